#!/bin/sh
# Runs each lesson and compares what it prints with the lines "* | ..." of its own comment.
#   usage: sh tests/lessons.sh BUILD [-v]       BUILD: the folder of the programs; -v: shows what they print
cd "$(dirname "$0")/.." || exit 1
build=$1; passed=0; failed=0
for lesson in examples/lessons/*.c; do
    name=$(basename "$lesson" .c)
    sed -n 's/^ \* |$//p; s/^ \* | //p' "$lesson" > "$build/$name.expected"
    "$build/$name" > "$build/$name.printed" 2> "$build/$name.errors"
    status=$?
    if [ "$2" = -v ]; then printf '\n== %s\n' "$name"; cat "$build/$name.printed"; fi
    if [ "$status" -eq 0 ] && [ -s "$build/$name.expected" ] && diff "$build/$name.expected" "$build/$name.printed"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1)); echo "FAILED $name: exit status $status; < its comment, > what it printed"; cat "$build/$name.errors"
    fi
done
echo "lessons: $passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
