/* bench_generate: how fast a BART folder answers, greedily, by the public API: requests of 64
 * source tokens, exactly 64 new tokens each.
 *   usage  build/bench_generate FOLDER [THREADS (1) [ROUNDS (5) [BATCH ... (1 32)]]]      beside
 *   others: tests/bench_generate.sh prints one line for each batch: the median and the least
 *   milliseconds, new tokens a second by the median */
#define TASKMOE_IMPLEMENTATION
#define TMOE_THREADS
#include "../taskmoe.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { source_tokens = 64, new_tokens = 64, most_rounds = 99 };

static double milliseconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void die(const char *why)
{
    fprintf(stderr, "bench_generate: %s\n", why);
    exit(1);
}

static void bench(tmoe_ctx *ctx, tmoe_model *model, const char *folder, int threads, int rounds,
    int batch)
{
    const int V = tmoe_tokenizer_vocabulary(tmoe_model_tokenizer(model));
    tmoe_generation how = *tmoe_model_generation(model);
    int *ids =
        (int *)malloc(sizeof *ids * (size_t)(batch * (source_tokens + 1 + new_tokens + 1 + 1)));
    int *lengths = ids + batch * source_tokens, *counts = lengths + batch, *tokens = counts + batch,
        i, round;
    unsigned state = 1;
    double time[most_rounds];
    tmoe_request request;
    tmoe_generated out;
    if (!ids) die("out of memory");
    how.beams = how.returned = 1;
    how.min_length = how.max_length = new_tokens + 1; /* with the start token */
    how.forced_begin_id = how.forced_end_id = -1;
    how.no_repeat_ngram = 0;
    for (i = 0; i < batch * source_tokens; i++) { /* <s>, random tokens, </s> */
        state = state * 1664525u + 1013904223u;
        ids[i] = i % source_tokens == 0              ? 0
            : i % source_tokens == source_tokens - 1 ? 2
                                                     : 4 + (int)((state >> 8) % (unsigned)(V - 4));
    }
    for (i = 0; i < batch; i++) lengths[i] = source_tokens;
    memset(&request, 0, sizeof request);
    memset(&out, 0, sizeof out);
    request.ids = ids;
    request.lengths = lengths;
    request.count = batch;
    request.how = &how;
    out.tokens = tokens;
    out.token_counts = counts;
    for (round = -1; round < rounds; round++) { /* the first one warms up */
        const double began = milliseconds_now();
        if (tmoe_generate(model, &request, &out) != TMOE_OK) die(tmoe_error_message(ctx));
        if (round >= 0) time[round] = milliseconds_now() - began;
    }
    for (i = 0; i < batch; i++)
        if (counts[i] != new_tokens + 1) die("an answer ended early");
    qsort(time, (size_t)rounds, sizeof *time, by_value);
    printf("%-14s taskmoe        threads %d batch %3d: %9.1f ms  %9.1f new tokens/s  (min %.1f "
           "ms)\n",
        folder, threads, batch, time[rounds / 2], 1e3 * batch * new_tokens / time[rounds / 2],
        time[0]);
    fflush(stdout);
    free(ids);
}

int main(int argc, char **argv)
{
    const int threads = argc > 2 ? atoi(argv[2]) : 1, rounds = argc > 3 ? atoi(argv[3]) : 5;
    tmoe_ctx_config config;
    tmoe_ctx *ctx;
    tmoe_model *model;
    int i;
    if (argc < 2 || rounds < 1 || rounds > most_rounds)
        die("usage: bench_generate FOLDER [THREADS [ROUNDS (at most 99) [BATCH ...]]]");
    memset(&config, 0, sizeof config);
    config.threads = threads;
    ctx = tmoe_ctx_create(&config);
    model = ctx ? tmoe_bart_load(ctx, argv[1]) : NULL;
    if (!model || !tmoe_model_tokenizer(model)) die(ctx ? tmoe_error_message(ctx) : "no context");
    for (i = 4; i < argc; i++)
        bench(ctx, model, argv[1], threads, rounds, atoi(argv[i]) > 0 ? atoi(argv[i]) : 1);
    if (argc <= 4) {
        bench(ctx, model, argv[1], threads, rounds, 1);
        bench(ctx, model, argv[1], threads, rounds, 32);
    }
    tmoe_model_destroy(model);
    tmoe_ctx_destroy(ctx);
    return 0;
}
