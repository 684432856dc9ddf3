# taskmoe: everything that can be built here. A plain C compiler and make are enough; no machine flags are needed.
CC ?= cc
CFLAGS ?= -O2
CPPFLAGS ?=
LDLIBS = -lm -lpthread
PREFIX ?= /usr/local
STD = -std=gnu99
WARN = -Wall -Wextra
BUILD = build

PROGRAMS = demo train multitask tradeoff ask describe quickstart fewshot compare routes bart
TESTS = $(patsubst tests/%.c,%,$(wildcard tests/test_*.c))
LESSONS = $(patsubst examples/lessons/%.c,%,$(wildcard examples/lessons/*.c))

examples: $(PROGRAMS:%=$(BUILD)/%)

$(BUILD)/%: examples/%.c examples/common.h taskmoe.h | $(BUILD)
	$(CC) $(STD) $(WARN) $(CPPFLAGS) $(CFLAGS) -o $@ $< $(LDLIBS)

$(BUILD)/%: tests/%.c tests/test.h taskmoe.h | $(BUILD)
	$(CC) $(STD) $(WARN) $(CPPFLAGS) $(CFLAGS) -I. -o $@ $< $(LDLIBS)

# The library with all public functions and the pool of threads, for other languages (examples/python).
SHARED = libtaskmoe.so
ifeq ($(shell uname -s),Darwin)
SHARED = libtaskmoe.dylib
endif
ifeq ($(OS),Windows_NT)
SHARED = taskmoe.dll
endif
shared: $(BUILD)/$(SHARED)

$(BUILD)/$(SHARED): taskmoe.h | $(BUILD)
	$(CC) $(STD) $(WARN) $(CPPFLAGS) $(CFLAGS) -fPIC -shared -DTMOE_THREADS -DTASKMOE_IMPLEMENTATION -o $@ -x c taskmoe.h $(LDLIBS)

# With TASKMOE_STATIC the compiler leaves out what a lesson does not call: it takes half the time.
$(BUILD)/%: examples/lessons/%.c taskmoe.h | $(BUILD)
	$(CC) -std=c99 $(WARN) $(CPPFLAGS) $(CFLAGS) -DTASKMOE_STATIC -o $@ $< -lm

# These tests include the program that they test.
$(BUILD)/test_demo: examples/demo.c examples/common.h
$(BUILD)/test_routes: examples/routes.c examples/common.h
$(BUILD)/test_multitask: examples/multitask.c examples/common.h
$(BUILD)/test_tradeoff: examples/tradeoff.c examples/common.h
$(BUILD)/test_train: examples/train.c examples/common.h

$(BUILD):
	mkdir -p $@

# Two models, and what they answer to words and tasks that they have never met.
demo: $(BUILD)/demo
	@$(BUILD)/demo

# Eight small programs that teach the method; see examples/lessons/README.md.
lessons: $(LESSONS:%=$(BUILD)/%)
	@sh tests/lessons.sh $(BUILD) -v

test: examples $(TESTS:%=$(BUILD)/%) $(LESSONS:%=$(BUILD)/%) $(BUILD)/export $(BUILD)/twin shared
	@sh tests/lessons.sh $(BUILD)
	@CC="$(CC)" CXX="$(CXX)" sh tests/run.sh $(BUILD) $(TESTS)

bench: $(BUILD)/bench $(BUILD)/bench_generate $(BUILD)/bench_step
	$(BUILD)/bench
	for lanes in 1 x2 x4 x8 x16 x64; do $(BUILD)/bench_step $$lanes S | head -n 1; $(BUILD)/bench_step $$lanes M | head -n 1; done
	sh tests/bench_peers.sh 1
	sh tests/bench_peers.sh 2
	sh tests/bench_training.sh 1
	sh tests/bench_training.sh 2
	sh tests/bench_generate.sh 1
	sh tests/bench_generate.sh 2

matrix:
	sh tests/matrix.sh

# The typesetting of all sources; format-check changes nothing and fails where it differs.
SOURCES = taskmoe.h $(wildcard examples/*.c examples/*.cpp examples/*.h examples/lessons/*.c examples/suite/*.c tests/*.c tests/*.h)
CLANG_FORMAT = clang-format
format:
	$(CLANG_FORMAT) -i $(SOURCES)

format-check:
	@$(CLANG_FORMAT) --version | grep -q ' 14[.]' || { echo "clang-format 14 is needed: others set some lines otherwise"; exit 1; }
	$(CLANG_FORMAT) --dry-run -Werror $(SOURCES)

# What a change that only typesets or moves must leave as it is.
checksum: $(BUILD)/checksum
	$(BUILD)/checksum

fuzz:
	sh tests/fuzz.sh

install:
	mkdir -p "$(DESTDIR)$(PREFIX)/include" "$(DESTDIR)$(PREFIX)/share/pkgconfig"
	cp taskmoe.h "$(DESTDIR)$(PREFIX)/include/"
	sed -e 's|@PREFIX@|$(PREFIX)|' -e "s|@VERSION@|$$(sed -n 's/^#define TMOE_VERSION_\(MAJOR\|MINOR\|PATCH\) //p' taskmoe.h | tr '\n' '.' | sed 's/\.$$//')|" \
	    tests/taskmoe.pc.in > "$(DESTDIR)$(PREFIX)/share/pkgconfig/taskmoe.pc"

clean:
	rm -rf $(BUILD)

.PHONY: examples shared demo lessons test bench matrix format format-check checksum fuzz install clean
