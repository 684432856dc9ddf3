#!/bin/sh
# The commands of README.md and the other pages: every line of a code block and every `command` in a sentence that begins
# with build/, make or sh tests/ is run. Programs that train get options that make them short; what make would run is only
# looked up. Names in capitals (FOLDER, MODEL, NAME ...) stand for files and tasks that are made here.
#   usage: sh tests/commands.sh BUILD
root=$(cd "$(dirname "$0")/.." && pwd)
work=$1/commands
passed=0; failed=0
rm -rf "$work" && mkdir -p "$work/my_tasks" && cd "$work" || exit 1
work=$(pwd)
ln -s .. build && ln -s "$root/examples" examples && ln -s "$root/tests" tests && ln -s "$root/Makefile" "$root/taskmoe.h" .

# Two small tasks, a model of theirs with a checkpoint's log, and a small BART with its mixture.
i=0
while [ $i -lt 40 ]; do
    printf 'w%d\tW%d\n' $i $i >> my_tasks/NAME.tsv
    printf 'w%d v\tw%d\n' $i $i >> my_tasks/first.tsv
    i=$((i + 1))
done
short="--steps 2 --width 16"
{
    build/train my_tasks $short --save my.safetensors
    build/export bart_folder
} > made.txt 2>&1 || { cat made.txt; echo "commands: 0 passed, 1 failed"; exit 1; }

# What a page's command becomes: names filled in, and short.
short_form() {
    case $1 in
        "make examples && "*) short_form "${1#make examples && }" ;;
        "make "*) printf 'make -n %s\n' "${1#make }" | sed 's/PREFIX=\.\.\./PREFIX=installed/' ;;
        build/bart*--tasks*) printf '%s --steps 2\n' "$1" | sed 's/FOLDER/bart_folder/' ;;
        build/bart*) printf '%s --max 6\n' "$1" | sed 's/FOLDER/bart_folder/' | sed '/--save\|--export/s/ --max 6//' ;;
        build/fewshot*--model*) printf '%s --few-steps 2 --tasks 1 --seeds 1\n' "$1" ;;
        build/fewshot*) printf '%s %s --experts 2 --few-steps 2 --tasks 1 --seeds 1 --rows dense,mixture\n' "$1" "$short" | in_data ;;
        build/compare*) printf '%s %s --experts 2 --limit 1 --seeds 1 --only dense\n' "$1" "$short" | in_data ;;
        build/multitask*) printf '%s %s --limit 1 --seeds 1\n' "$1" "$short" | in_data ;;
        build/tradeoff*) printf '%s --widths 8 --experts 1 --steps 2 --limit 1 --tsv trade.tsv --svg trade.svg\n' "$1" ;;
        build/train*) printf '%s %s\n' "$1" "$short" ;;
        build/routes*) printf '%s --limit 1\n' "$1" | sed 's/MODEL/model.safetensors/' ;;
        build/ask\ MODEL) echo 'echo ":tasks" | build/ask my.safetensors' ;;
        build/ask*|build/describe*) printf '%s\n' "$1" | sed 's/MODEL/my.safetensors/' ;;
        build/bench_*) printf 'test -f tests/%s.c\n' "$(printf '%s' "${1#build/}" | sed 's/ .*//')" ;;
        build/quickstart*) printf '%s kept.safetensors\n' "$1" ;;
        "sh tests/house.sh"*) echo "python3 -c '' 2> /dev/null || exit 0; cd $root && $1" ;;
        "sh tests/"*) printf 'test -f %s\n' "$(printf '%s' "${1#sh }" | sed 's/ .*//')" ;;
        *) echo "echo 'tests/commands.sh does not know it'; false" ;;
    esac
}
in_data() { sed "s# DATA # examples/suite #; s# F # other$passed.tsv #; s#--split core_random##"; }

# `command` in sentences and tables, and lines of code blocks, without their comments, each once, in the pages' order.
for page in README.md examples/BART.md examples/RESULTS.md examples/CHANGES.md examples/build.md examples/lessons/README.md \
    examples/suite/README.md examples/python/FORMAT.md tests/README.md tests/SPEED.md; do
    [ -f "$root/$page" ] && awk '/^ *```/ {code = !code; next}
        code {sub(/ +#.*/, ""); print; next}
        {n = split($0, part, "`"); for (i = 2; i <= n; i += 2) print part[i]}' "$root/$page"
done | grep -E '^(build/[a-z_]+|make [a-z&]+|sh tests/[a-z_]+\.sh)( |$)' | awk '!seen[$0]++' > commands.txt

while IFS= read -r command; do
    short_form "$command" > run.sh
    if sh -e run.sh > log 2>&1 < /dev/null; then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "FAILED $command"; cat run.sh; tail -n 5 log; fi
done < commands.txt

# The C program of README.md is examples/quickstart.c, but for its head.
awk '/^```c$/ {code = 1; next} /^```/ {code = 0} code' "$root/README.md" > readme.c
if sed -n '/^#define TASKMOE_IMPLEMENTATION/,$p' "$root/examples/quickstart.c" | diff - readme.c; then passed=$((passed + 1))
else failed=$((failed + 1)); echo "FAILED README.md: its program is not examples/quickstart.c"; fi
echo "commands: $passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 20 ]
