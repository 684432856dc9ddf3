#!/bin/sh
# Runs the test programs given and adds up their counts. A program prints "NAME: P passed, F failed" last; one that dies counts as a failure.
build=$1; shift
passed=0; failed=0
skipped=$build/skipped.txt  # what needs a file or a program that is not here
: > "$skipped"
count() {                   # count NAME COMMAND...
    name=$1; shift
    if out=$("$@" 2>&1); then :; fi
    printf '%s\n' "$out" | grep '^SKIPPED' >> "$skipped"
    printf '%s\n' "$out" | grep -v '^SKIPPED'
    last=$(printf '%s\n' "$out" | tail -n 1)
    p=$(printf '%s\n' "$last" | sed -n 's/^.*: \([0-9]*\) passed, [0-9]* failed$/\1/p')
    f=$(printf '%s\n' "$last" | sed -n 's/^.*: [0-9]* passed, \([0-9]*\) failed$/\1/p')
    if [ -z "$p" ] || [ -z "$f" ]; then echo "$name: died before its end"; p=0; f=1; fi
    passed=$((passed + p)); failed=$((failed + f))
}
for t in "$@"; do count "$t" "$build/$t"; done
# Other languages and build systems, where they are.
count test_build sh tests/test_build.sh "$build"
count commands sh tests/commands.sh "$build"
if ! command -v python3 > /dev/null; then echo "SKIPPED: test_python.py: no python3" >> "$skipped"
elif ! python3 -c 'import numpy' 2> /dev/null; then echo "SKIPPED: test_python.py: no numpy" >> "$skipped"
else count test_python python3 tests/test_python.py "$build"; fi
# What transformers computes with a folder that the library wrote, where there is a Python that has it.
if ! command -v python3 > /dev/null; then echo "SKIPPED: check_export.py: no python3" >> "$skipped"
elif out=$("$build/export" "$build/exported" && python3 tests/check_export.py "$build/exported" "$build/bart" 2>&1); then
    passed=$((passed + 1))
    printf '%s\n' "$out" | grep '^SKIPPED' >> "$skipped"
    printf '%s\n' "$out" | grep -v '^SKIPPED'
else failed=$((failed + 1)); printf '%s\n' "$out"; fi
if [ -s "$skipped" ]; then
    echo "SKIPPED: $(wc -l < "$skipped" | tr -d ' ') checks need files or programs that are not here; $skipped lists them"; fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
