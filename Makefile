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

# The library with all public functions and the pool of threads, compiled once. `cc -O2 examples/demo.c -lm -lpthread`
# gives the same program: the header takes the macro to mean that the function bodies have been compiled elsewhere.
OBJECT = $(BUILD)/taskmoe.o
LINK = -DTASKMOE_IMPLEMENTATION_ONCE $(OBJECT)
# Those that call private functions hold the library themselves.
INSIDE = routes 08_new_operation bench bench_generate bench_step checksum export twin \
    test_bart test_data test_kernels test_method test_model test_muon test_oracles test_routes test_tape
$(INSIDE:%=$(BUILD)/%): LINK =
$(BUILD)/08_new_operation: CPPFLAGS += -DTASKMOE_STATIC # compiles only what it calls

$(OBJECT): taskmoe.h | $(BUILD)
	$(CC) $(STD) $(WARN) $(CPPFLAGS) $(CFLAGS) -fPIC -DTMOE_THREADS -DTASKMOE_IMPLEMENTATION -c -o $@ -x c taskmoe.h

$(BUILD)/%: examples/%.c examples/common.h $(OBJECT)
	$(CC) $(STD) $(WARN) $(CPPFLAGS) $(CFLAGS) -o $@ $< $(LINK) $(LDLIBS)

$(BUILD)/%: tests/%.c tests/test.h $(OBJECT)
	$(CC) $(STD) $(WARN) $(CPPFLAGS) $(CFLAGS) -I. -o $@ $< $(LINK) $(LDLIBS)

# The same for other languages (examples/python).
SHARED = libtaskmoe.so
ifeq ($(shell uname -s),Darwin)
SHARED = libtaskmoe.dylib
endif
ifeq ($(OS),Windows_NT)
SHARED = taskmoe.dll
endif
shared: $(BUILD)/$(SHARED)

$(BUILD)/$(SHARED): $(OBJECT)
	$(CC) $(CFLAGS) -shared -o $@ $< $(LDLIBS)

$(BUILD)/%: examples/lessons/%.c $(OBJECT)
	$(CC) -std=c99 $(WARN) $(CPPFLAGS) $(CFLAGS) -o $@ $< $(LINK) $(LDLIBS)

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

# What is compiled for the tests, on all processors (unless make was told how many).
JOBS = $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(shell getconf _NPROCESSORS_ONLN 2> /dev/null || echo 1))
test-programs: examples $(TESTS:%=$(BUILD)/%) $(LESSONS:%=$(BUILD)/%) $(BUILD)/export $(BUILD)/twin shared

test:
	@$(MAKE) $(JOBS) test-programs
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

.PHONY: examples shared demo lessons test test-programs bench matrix format format-check checksum fuzz install clean
