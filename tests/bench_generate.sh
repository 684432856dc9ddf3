#!/bin/sh
# How fast we generate beside CTranslate2 and transformers, in one run: greedy, fp32, 64 source and 64 new tokens, batch 1 and 32, random weights.
#   usage: bench_generate.sh [THREADS (1) [SIZE: small base (both) [ROUNDS (5)]]]
# The peers' program is tgen.py in TMOE_PEERS (../shared/peers); it needs Python with ctranslate2, transformers and torch, and a BPE folder of TMOE_ORACLES
# (../shared/oracles). It also writes the folders that all load, into build/generate: without it nothing is measured the first time.
set -eu
cd "$(dirname "$0")/.."
here=$(pwd)
peers=$(cd "${TMOE_PEERS:-../shared/peers}" 2> /dev/null && pwd) || peers=""
oracles=$(cd "${TMOE_ORACLES:-../shared/oracles}" 2> /dev/null && pwd) || oracles=""
threads=${1:-1} sizes=${2:-small base} rounds=${3:-5} python=${PYTHON:-python3}
make -s build/bench_generate
mkdir -p build/generate
cd build/generate
grep -m 1 'model name' /proc/cpuinfo || true
for size in $sizes; do
    bpe=small; [ "$size" = small ] || bpe=full
    if [ ! -f "$peers/tgen.py" ] || [ ! -d "$oracles/bpe/$bpe" ]; then echo "SKIPPED: the peers of $size, there is no tgen.py or no $bpe BPE folder"
    elif ! "$python" -c 'import ctranslate2, transformers, torch' 2> /dev/null; then echo "SKIPPED: the peers of $size, $python lacks ctranslate2, transformers or torch"
    else "$python" "$peers/tgen.py" "$size" "$oracles/bpe/$bpe" "$threads" 2> "$size.log" || echo "SKIPPED: tgen.py $size failed, see build/generate/$size.log"
    fi
    if [ -d "hf_$size" ]; then "$here/build/bench_generate" "hf_$size" "$threads" "$rounds"
    else echo "SKIPPED: there is no build/generate/hf_$size to measure"; fi
done
