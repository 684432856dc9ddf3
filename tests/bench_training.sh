#!/bin/sh
# Our training step beside PyTorch's, one after the other in one run: median milliseconds, and how many times as fast we are.
#   usage: bench_training.sh [THREADS (1) [SIZES: any of S M B ("S M") [ROUNDS (3)]]]
# Needs the peers' scripts (ttrain.py, tmix.py) in TMOE_PEERS (../shared/peers) and torch for the comparison; ours is shown without them, too.
set -eu
cd "$(dirname "$0")/.."
peers=${TMOE_PEERS:-../shared/peers}
threads=${1:-1} sizes=${2:-"S M"} rounds=${3:-3} dir=build/peers
mkdir -p "$dir"
: > "$dir/training.txt"
${CC:-cc} -O2 -std=gnu99 -I. tests/bench_step.c -o "$dir/bench_step" -lm -lpthread
python=python3
[ -f "$peers/ttrain.py" ] && [ -f "$peers/tmix.py" ] || { echo "SKIPPED PyTorch: there is no $peers/ttrain.py and tmix.py"; python=""; }
[ -z "$python" ] || $python -c 'import torch' 2> /dev/null || { echo "SKIPPED PyTorch: no torch here"; python=""; }
note() {                                    # WHAT WHO COMMAND...: keeps the milliseconds that the command prints
    what=$1 who=$2; shift 2
    ms=$("$@" 2> "$dir/training.log" | sed -n 's/.*[ :]\([0-9.]*\) ms a step.*/\1/p; s|.*ms/step median \([0-9.]*\).*|\1|p' | head -n 1)
    [ -n "$ms" ] || { echo "SKIPPED: $* printed no time, see $dir/training.log"; return 0; }
    echo "$what,$who,$ms" >> "$dir/training.txt"
}
round=0
while [ $round -lt "$rounds" ]; do
    for size in $sizes; do
        note "$size dense" ours "$dir/bench_step" "$threads" "$size"
        [ -z "$python" ] || note "$size dense" torch env FTZ=1 FUSED=1 $python "$peers/ttrain.py" "$threads" "$size"
        [ "$size" != M ] || continue        # mixtures of three experts, of S and B
        note "$size PARAM / softmax" ours "$dir/bench_step" "$threads" "$size" 3 param
        [ -z "$python" ] || note "$size PARAM / softmax" torch env FTZ=1 FUSED=1 $python "$peers/tmix.py" "$threads" "$size" 3 softmax
        note "$size straight-through" ours "$dir/bench_step" "$threads" "$size" 3 st
        [ -z "$python" ] || note "$size straight-through" torch env FTZ=1 FUSED=1 $python "$peers/tmix.py" "$threads" "$size" 3 st
    done
    round=$((round + 1))
done
grep -m 1 'model name' /proc/cpuinfo || true
awk -F, -v threads="$threads" '
function median(list,   x, n, i, j, t) {
    n = split(list, x, " ")
    for (i = 2; i <= n; i++) for (j = i; j > 1 && x[j - 1] + 0 > x[j] + 0; j--) { t = x[j]; x[j] = x[j - 1]; x[j - 1] = t }
    return x[int((n + 1) / 2)] + 0
}
{ if (!($1 in seen)) { seen[$1] = 1; order[++keys] = $1 } runs[$1, $2] = runs[$1, $2] " " $3 }
END {
    printf "%-24s %12s %12s %10s\n", "step, " threads " thread(s)", "ours, ms", "PyTorch, ms", "times"
    for (i = 1; i <= keys; i++) {
        a = median(runs[order[i], "ours"]); b = median(runs[order[i], "torch"])
        printf "%-24s %12.1f %12s %10s\n", order[i], a, (b ? sprintf("%.1f", b) : "-"), (a && b ? sprintf("%.2f", b / a) : "-")
    }
}' "$dir/training.txt"
