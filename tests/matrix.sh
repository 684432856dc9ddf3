#!/bin/sh
# The header under every compiler, standard and build option that it promises; its symbols; the calls it must not make.
set -eu
cd "$(dirname "$0")/.."
mkdir -p build/matrix
B=build/matrix
STRICT="-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wdouble-promotion -Wundef -Wcast-qual -Werror"
C_ONLY="-Wstrict-prototypes -Wmissing-prototypes"
passed=0; failed=0
check() {                   # check NAME COMMAND...
    name=$1; shift
    if "$@" > $B/log 2>&1; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED $name"; head -n 20 $B/log; fi
}
printf '#define TASKMOE_IMPLEMENTATION\n#include "taskmoe.h"\n' > $B/impl.c
cp $B/impl.c $B/impl.cpp
printf '#include "taskmoe.h"\n#define TASKMOE_IMPLEMENTATION\n#include "taskmoe.h"\n#include "taskmoe.h"\n' > $B/twice.c
printf '#include "taskmoe.h"\nint uses_it(void);\nint uses_it(void) { return tmoe_version(); }\n' > $B/user.c
printf '#define TASKMOE_STATIC\n#define TASKMOE_IMPLEMENTATION\n#include "taskmoe.h"\nint other(void);\nint other(void) { return tmoe_version(); }\n' > $B/static1.c
printf '#define TASKMOE_STATIC\n#define TASKMOE_IMPLEMENTATION\n#include "taskmoe.h"\nint other(void);\nint main(void) { return other() != tmoe_version(); }\n' > $B/static2.c
# a program's own macros: one capital letter each, and words of <windows.h> and Qt; they are as before behind the header
for m in A B C D E F G H I J K L M N O P Q R S T U V W X Y Z small near far min max slots signals emit foreach interface ERROR; do
    echo "#define $m @$m"; done > $B/macros.h
printf '#include "macros.h"\n#include "taskmoe.h"\nint uses_it(void);\nint uses_it(void) { return tmoe_version(); }\n' > $B/macros_user.c
{ printf '#include "macros.h"\n#define TASKMOE_IMPLEMENTATION\n#include "taskmoe.h"\n#define TEXT_OF(x) #x\n#define TEXT(x) TEXT_OF(x)\n'
  printf 'typedef char tmoe_macros_are_back[sizeof TEXT(E) == 3 && sizeof TEXT(small) == 7 && sizeof TEXT(max) == 5 ? 1 : -1];\n'; } > $B/macros.c
cp $B/macros.c $B/macros.cpp; cp $B/macros_user.c $B/macros_user.cpp
version=$(sed -n 's/^#define TMOE_VERSION_[A-Z]* \([0-9]*\)$/\1/p' taskmoe.h | head -n 3 | awk '{v = v * 100 + $1} END {print v}')
printf 'int uses_it(void);\nint main(void) { return uses_it() != %d; }\n' "$version" > $B/main.c

for cc in gcc clang; do
    command -v $cc > /dev/null || { echo "SKIPPED: no $cc"; continue; }
    for std in c99 c11 c17; do for opt in -O0 -O2; do
        check "$cc -std=$std $opt" $cc -std=$std $opt -I. $STRICT $C_ONLY -c $B/impl.c -o $B/impl.o
    done; done
    for option in TMOE_THREADS TMOE_NO_STDIO TMOE_NO_BART 'TMOE_NO_STDIO -DTMOE_NO_EVALUATION -DTMOE_NO_BART' TMOE_NO_SIMD TMOE_NO_AVX512 TMOE_NO_AVX2 TMOE_NO_NEON TMOE_NO_EVALUATION TASKMOE_STATIC \
                  'TMOE_MALLOC(n)=my_malloc(n) -DTMOE_FREE(p)=my_free(p) -include build/matrix/my.h' \
                  'TMOE_DEF=__attribute__((visibility("hidden")))' 'TMOE_HEADER_FILENAME="taskmoe.h"' 'TMOE_ALLOW_FAST_MATH -ffast-math'; do
        printf '#include <stddef.h>\nvoid *my_malloc(size_t n);\nvoid my_free(void *p);\n' > $B/my.h
        # word splitting of the option is meant
        check "$cc -D$option" $cc -std=c99 -O1 -I. $STRICT $C_ONLY -D$option -c $B/impl.c -o $B/option.o
    done
    check "$cc included twice" $cc -std=c99 -O0 -I. $STRICT $C_ONLY -c $B/twice.c -o $B/twice.o
    check "$cc static in two files" $cc -std=c99 -O0 -I. $STRICT $C_ONLY $B/static1.c $B/static2.c -o $B/static -lm
    check "$cc static runs" $B/static
    check "$cc declarations only" $cc -std=c99 -I. $STRICT $C_ONLY -c $B/user.c -o $B/user.o
    check "$cc link" $cc -std=c99 -I. $B/user.o $B/impl.o $B/main.c -o $B/linked -lm
    check "$cc run" $B/linked
    check "$cc declarations behind a program's macros" $cc -std=c99 -I. $STRICT $C_ONLY -c $B/macros_user.c -o $B/macros.o
    check "$cc implementation behind a program's macros" $cc -std=c99 -I. $STRICT $C_ONLY -DTMOE_THREADS -c $B/macros.c -o $B/macros.o
    check "$cc fast-math is an error" sh -c "! $cc -std=c99 -ffast-math -fsyntax-only -I. $B/impl.c"
done
for cxx in g++ clang++; do
    command -v $cxx > /dev/null || { echo "SKIPPED: no $cxx"; continue; }
    for std in c++11 c++17; do
        check "$cxx -std=$std" $cxx -std=$std -O1 -I. $STRICT -DTMOE_THREADS -c $B/impl.cpp -o $B/implpp.o
    done
    check "$cxx declarations behind a program's macros" $cxx -std=c++11 -I. $STRICT -c $B/macros_user.cpp -o $B/macros.o
    check "$cxx implementation behind a program's macros" $cxx -std=c++11 -I. $STRICT -DTMOE_THREADS -c $B/macros.cpp -o $B/macros.o
done
gcc -std=c99 -O2 -I. -DTMOE_THREADS -c $B/impl.c -o $B/impl.o
check "only tmoe_ symbols" sh -c "! nm -g --defined-only $B/impl.o | awk '{print \$3}' | grep -v '^tmoe_'"
check ".data and .bss are empty" sh -c "size -A $B/impl.o | awk '\$1 ~ /^\\.(data|bss|tdata|tbss)\$/ && \$2 > 0 {bad = 1} END {exit bad}'"
check "no exit, abort, printf, rand, getenv" sh -c "! nm -u $B/impl.o | grep -E ' (exit|abort|printf|puts|putchar|fprintf|rand|getenv|_exit)\$'"
check "version in title and macros agree" sh -c "head -n 1 taskmoe.h | grep -q \"taskmoe.h \$(sed -n 's/^#define TMOE_VERSION_[A-Z]* \\([0-9]*\\)\$/\\1/p' taskmoe.h | head -n 3 | paste -sd.) \""
check "every tag in the contents exists" sh -c "sed -n '/^ \\* CONTENTS/,/^ \\* QUICK START/p' taskmoe.h | grep -o '>>[a-z]*' | sort -u | while read t; do grep -q \"/\\* ==== \$t\" taskmoe.h || { echo \$t; exit 1; }; done"
sed -n '/^#define TASKMOE_IMPLEMENTATION/,$p' examples/quickstart.c | sed -e 's|/\*|//|; s| \*/$||' > $B/quick_file
sed -n '/^ \* QUICK START/,/^ \* THE ALGORITHM/p' taskmoe.h | sed -n 's/^ \* \{0,3\}//p' | sed '1d;$d' | sed '$d' > $B/quick_header
check "quick start in the header is the example" diff -bB $B/quick_file $B/quick_header
mkdir -p $B/suite/tasks $B/suite/splits
check "make_suite compiles" gcc -std=c99 -Wall -Wextra -Wpedantic -Werror -O1 examples/suite/make_suite.c -o $B/make_suite
check "make_suite runs" $B/make_suite $B/suite
for part in tasks splits tasks.tsv; do check "suite: $part is what the program writes" diff -r examples/suite/$part $B/suite/$part; done
# Published scores were measured on these bytes. Numbers of cksum: CRC and size.
is_cksum() { want=$1; shift; got=$(LC_ALL=C cat "$@" | cksum); [ "$got" = "$want" ] || { echo "cksum is $got, was $want"; return 1; }; }
check "suite: the tasks are those of the published scores" is_cksum "3155213242 1634049" examples/suite/tasks.tsv $(LC_ALL=C ls examples/suite/tasks/*.tsv)
check "suite: zero_shot is that of the published scores" is_cksum "2881358918 4872" examples/suite/splits/zero_shot.json
check "suite: few_shot is that of the published scores" is_cksum "1781157431 4557" examples/suite/splits/few_shot.json
echo "matrix: $passed passed, $failed failed"
[ $failed -eq 0 ]
