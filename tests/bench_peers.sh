#!/bin/sh
# Our matrix products beside oneDNN's and OpenBLAS's, in one run: median of ROUNDS, GFLOP/s, and our share of the best of them.
#   usage: bench_peers.sh [THREADS (1) [GROUPS: any of sq d128 d256 d768 head dec deccold bat (all) [ROUNDS (5)]]]
# The libraries take turns group by group, so that a machine whose speed drifts drifts for all of them.
# Needs the benchmark of the peers (bench_gemm.c, shapes.h) in TMOE_PEERS (../shared/peers), and the libraries' headers for what is to be compared.
set -eu
cd "$(dirname "$0")/.."
peers=${TMOE_PEERS:-../shared/peers}
threads=${1:-1} groups=${2:-sq d128 d256 d768 head dec deccold bat} rounds=${3:-5} dir=build/peers names=""
export BUDGET="${BUDGET:-0.03}"             # seconds a shape, each time
[ -f "$peers/bench_gemm.c" ] || { echo "SKIPPED: there is no $peers/bench_gemm.c"; exit 0; }
mkdir -p "$dir"
rm -f "$dir"/*.csv
try() {                                     # NAME FLAGS...: builds the benchmark on that library
    name=$1; shift
    if ${CC:-cc} -O2 -std=gnu99 -I. "$peers/bench_gemm.c" "$@" -lm -lpthread -o "$dir/$name" 2> "$dir/$name.log"; then names="$names $name"
    else echo "SKIPPED: $name cannot be built here"; fi
}
try taskmoe '-DMINE="tests/bench_gemm.h"'
try onednn -DDNNL -ldnnl
try openblas -DOPENBLAS -lopenblas
round=0
while [ $round -lt "$rounds" ]; do
    for group in $groups; do for name in $names; do
        OMP_NUM_THREADS=$threads OPENBLAS_NUM_THREADS=$threads NOCHECK=1 "$dir/$name" "$threads" "$name" "$group" >> "$dir/all.csv" 2>> "$dir/$name.log"
    done; done
    round=$((round + 1))
done
grep -m 1 'model name' /proc/cpuinfo || true
# tag,threads,api,variant,M,N,K,batch,cold,median,...; a library's best call counts, packed beforehand left out
awk -F, '
function median(list,   x, n, i, j, t) {
    n = split(list, x, " ")
    for (i = 2; i <= n; i++) for (j = i; j > 1 && x[j - 1] + 0 > x[j] + 0; j--) { t = x[j]; x[j] = x[j - 1]; x[j - 1] = t }
    return x[int((n + 1) / 2)]
}
$3 != "matmul_prepackedB" {
    key = sprintf("%s %5d x %5d x %5d%s%s", $4, $5, $6, $7, $8 > 1 ? " x " $8 : "", $9 > 0 ? " from memory" : "")
    if (!(key in seen)) { seen[key] = 1; order[++keys] = key; kind[key] = $8 > 1 ? "batched" : $5 <= 32 ? "few rows" : "products" }
    if (!(($1, key, $3) in runs)) calls[$1, key] = calls[$1, key] " " $3
    runs[$1, key, $3] = runs[$1, key, $3] " " $10
}
function best(tag, key,   c, n, i, m, most) {
    n = split(calls[tag, key], c, " ")
    for (i = 1; i <= n; i++) { m = median(runs[tag, key, c[i]]); if (m > most) most = m }
    return most + 0
}
END {
    printf "%-34s %9s %9s %9s %9s\n", "op(A) op(B)    M x N x K", "ours", "oneDNN", "OpenBLAS", "ours/best"
    for (i = 1; i <= keys; i++) {
        key = order[i]; a = best("taskmoe", key); b = best("onednn", key); c = best("openblas", key); most = b > c ? b : c
        printf "%-34s %9.1f %9.1f %9.1f %9s\n", key, a, b, c, (most > 0 ? sprintf("%.2f", a / most) : "-")
        g = kind[key]
        if (b > 0) { to_b[g] += log(a / b); n_b[g]++ }
        if (c > 0) { to_c[g] += log(a / c); n_c[g]++ }
        if (most > 0 && (!(g in worst) || a / most < worst[g])) worst[g] = a / most
    }
    for (g in worst)
        printf "%s: geometric mean of ours / oneDNN %s, ours / OpenBLAS %s; worst against the best %.2f\n", g,
            (n_b[g] ? sprintf("%.3f", exp(to_b[g] / n_b[g])) : "-"), (n_c[g] ? sprintf("%.3f", exp(to_c[g] / n_c[g])) : "-"), worst[g]
}' "$dir/all.csv"
