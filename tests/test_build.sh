#!/bin/sh
# examples/build.md and examples/worker.cpp: what they say is extracted, built and run. Here compilers do not optimise,
# and all but the first line with cc leave out the vector kernels: otherwise it would take a minute.
#   usage: sh tests/test_build.sh BUILD
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1/own" && cd "$1/own" || exit 1
export CC="${CC:-cc}" CXX="${CXX:-c++}" CFLAGS=-DTMOE_NO_SIMD
passed=0; failed=0
check() {                   # check NAME COMMAND...
    name=$1; shift
    if "$@" > log 2>&1; then passed=$((passed + 1)); else failed=$((failed + 1)); cat log; echo "FAILED $name"; fi
}
block() { sed -n "/^\`\`\`$1\$/,/^\`\`\`\$/p" "$root/examples/build.md" | sed '1d;$d'; }
says() { "./$1" > out && echo "$2" | diff out - ; }
rm -rf ./* && cp "$root/taskmoe.h" .
block c > mine.c
one="taskmoe $(sed -n 's/^#define TMOE_VERSION_[A-Z]* \([0-9]*\)$/\1/p' taskmoe.h | awk '{v = v * 100 + $1} END {print v}'), 1 of 2 threads"
two=$(echo "$one" | sed 's/, 1/, 2/')

block sh | sed 's/ -O2 / /; s/^cc /$CC -Wall -Wextra -Werror /; s/-DTMOE_THREADS/& $CFLAGS/' > lines.sh
check "the lines with cc" sh -e lines.sh
check "cc: one thread" says mine "$one"
check "cc: two threads" says mine_threads "$two"

if command -v cmake > /dev/null; then
    block cmake > CMakeLists.txt
    check "cmake" cmake -S . -B cmake -DCMAKE_C_COMPILER="$CC" -DCMAKE_BUILD_TYPE=Debug
    check "cmake builds" cmake --build cmake
    check "cmake: two threads" says cmake/mine "$two"
else echo "SKIPPED: CMakeLists.txt: no cmake"; fi

if command -v meson > /dev/null && command -v ninja > /dev/null; then
    block meson > meson.build
    check "meson" env CC="$CC" meson setup meson --buildtype=debug
    check "meson builds" ninja -C meson
    check "meson: two threads" says meson/mine "$two"
else echo "SKIPPED: meson.build: no meson and ninja"; fi

if command -v "$CXX" > /dev/null; then
    mkdir tasks
    for word in a b c ab bc ca abc bca cab acb; do printf '%s\t%s\n' "$word" "$(echo "$word" | tr abc ABC)"; done > tasks/upper.tsv
    check "worker.cpp builds" "$CXX" -std=c++17 -O1 -Wall -Wextra -Werror "$root/examples/worker.cpp" -o worker -lm -lpthread
    check "worker answers while it trains, stops, and keeps the last step" ./worker tasks kept upper abc
    cat log > worker.txt
    check "worker: three answers during the training" sh -c "head -n 3 worker.txt | grep -c '^step [0-9]*[05]0: ' | grep -qx 3"
    step=$(sed -n 's/.*stopped by the progress callback after step \([0-9]*\)$/\1/p' worker.txt)
    check "worker was stopped" test "${step:-0}" -ge 150
    check "worker: what was kept is the last step, and answers" grep -qx "kept, step $step: [ABC][ABC]*" worker.txt
    check "worker says what is wrong" sh -c "! ./worker none kept2 upper abc | grep -q finished && ./worker none kept2 upper abc | grep 'none: is not a folder'"
else echo "SKIPPED: worker.cpp: no C++ compiler"; fi
echo "build: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
