/* bench: what this machine does with the header. Prints; asserts nothing. Every figure is the
 * median of `rounds` runs.
 *   usage  build/bench [threads, default 1 and 2] */
#define TASKMOE_IMPLEMENTATION
#define TMOE_THREADS
#include "../taskmoe.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { rounds = 5 };

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, by_value);
    return x[n / 2];
}

/* lie as the library's own arrays do: from the beginning of a cache line */
static float *ones(tmoe_ctx *ctx, size_t n)
{
    float *x = (float *)tmoei_alloc(ctx, n, sizeof *x, 0);
    size_t i;
    if (!x) exit(1);
    for (i = 0; i < n; i++) x[i] = 1.0f;
    return x;
}

static void bench_products(tmoe_ctx *ctx)
{
    static const int shapes[][3] = { { 512, 512, 512 }, { 1024, 1024, 1024 }, { 2048, 512, 128 },
        { 2048, 128, 512 }, { 512, 768, 768 }, { 512, 3072, 768 }, { 1, 768, 768 }, { 8, 768, 768 },
        { 32, 768, 768 } };
    int s, kind, r;
    printf("matrix products, GFLOP/s       NT       NN       TN\n");
    for (s = 0; s < (int)(sizeof shapes / sizeof *shapes); s++) {
        const int M = shapes[s][0], N = shapes[s][1], K = shapes[s][2];
        float *A = ones(ctx, (size_t)M * (size_t)K), *B = ones(ctx, (size_t)N * (size_t)K),
              *C = ones(ctx, (size_t)M * (size_t)N);
        const double flop = 2.0 * M * N * K;
        printf("  %5d x %5d x %5d   ", M, N, K);
        for (kind = 0; kind < 3; kind++) {
            const tmoei_matrix a = kind == 2 ? tmoei_transposed(tmoei_matrix_of(A, K, M, (size_t)M))
                                             : tmoei_matrix_of(A, M, K, (size_t)K);
            const tmoei_matrix b = kind == 0 ? tmoei_transposed(tmoei_matrix_of(B, N, K, (size_t)K))
                                             : tmoei_matrix_of(B, K, N, (size_t)N);
            const int times = (int)(1e9 / flop) + 1;
            double speed[rounds];
            for (r = 0; r < rounds; r++) {
                const double began = seconds_now();
                int i;
                for (i = 0; i < times; i++)
                    tmoei_gemm(ctx, a, b, tmoei_output_of(C, (size_t)N, 0.0f), NULL);
                speed[r] = flop * times / (seconds_now() - began) * 1e-9;
            }
            printf(" %8.1f", median(speed, rounds));
        }
        printf("\n");
        tmoei_free(ctx, A);
        tmoei_free(ctx, B);
        tmoei_free(ctx, C);
    }
}

/* Milliseconds of one training step (given back) and answers a second, of one kind of model on the
 * embedded suite. */
static double bench_model(tmoe_ctx *ctx, const tmoe_suite *suite, const char *name, int E,
    tmoe_mix mix, tmoe_selection selection)
{
    tmoe_config config = tmoe_config_default();
    tmoe_training training = tmoe_training_default();
    tmoe_tokenizer *tokenizer = tmoe_suite_tokenizer(ctx, suite, training.vocabulary);
    tmoe_model *model;
    tmoe_trainer *trainer;
    double step[rounds], answer[rounds], score;
    int r, i;
    config.experts = E;
    config.mix = mix;
    config.selection = selection;
    if (tmoe_suite_fit(ctx, suite, tokenizer, &config) != TMOE_OK) exit(1);
    model = tmoe_model_create(ctx, &config, tokenizer, tmoe_suite_task(suite, 0),
        tmoe_suite_count(suite));
    trainer = model ? tmoe_trainer_create(model, suite, &training) : NULL;
    if (!trainer) {
        fprintf(stderr, "bench: %s\n", tmoe_error_message(ctx));
        exit(1);
    }
    for (r = -1; r < rounds; r++) { /* the same steps for every kind; the first round warms up */
        const double began = seconds_now();
        for (i = 0; i < 20; i++)
            if (tmoe_trainer_step(trainer, NULL) != TMOE_OK) exit(1);
        if (r >= 0) step[r] = (seconds_now() - began) / 20 * 1e3;
    }
    if (tmoe_evaluate(model, tmoe_suite_task(suite, 0), NULL, 4, &score) != TMOE_OK)
        exit(1); /* route and merge are made here, once */
    for (r = 0; r < rounds; r++) {
        const double began = seconds_now();
        for (i = 0; i < 10; i++)
            if (tmoe_evaluate(model, tmoe_suite_task(suite, 0), NULL, 0, &score) != TMOE_OK)
                exit(1);
        answer[r] = 10.0 * tmoe_suite_task(suite, 0)->test_count / (seconds_now() - began);
    }
    printf("  %-34s %8.2f %14.0f\n", name, median(step, rounds), median(answer, rounds));
    fflush(stdout);
    tmoe_trainer_destroy(trainer);
    tmoe_model_destroy(model);
    tmoe_tokenizer_destroy(tokenizer);
    return median(step, rounds);
}

int main(int argc, char **argv)
{
    int E, threads, only = argc > 1 ? atoi(argv[1]) : 0;
    for (threads = only ? only : 1; threads <= (only ? only : 2); threads++) {
        tmoe_ctx_config config;
        tmoe_ctx *ctx;
        tmoe_suite *suite;
        memset(&config, 0, sizeof config);
        config.threads = threads;
        ctx = tmoe_ctx_create(&config);
        if (!ctx) return 1;
        printf("%s kernels, %d thread%s, median of %d\n", tmoe_ctx_isa(ctx), threads,
            threads > 1 ? "s" : "", rounds);
        bench_products(ctx);
        suite = tmoe_suite_load(ctx, "examples/suite", "zero_shot");
        if (!suite) {
            fprintf(stderr, "bench: %s\n", tmoe_error_message(ctx));
            return 1;
        }
        printf("embedded suite                        ms a step   answers/s (cached task)\n");
        (void)bench_model(ctx, suite, "dense", 1, TMOE_MIX_PARAM, TMOE_SELECT_SOFTMAX);
        (void)bench_model(ctx, suite, "E 4, parameters mixed", 4, TMOE_MIX_PARAM,
            TMOE_SELECT_SOFTMAX);
        for (E = 3; E <= 4; E++) {
            char name[2][64];
            double all, one;
            (void)snprintf(name[0], sizeof name[0], "E %d, outputs mixed", E);
            (void)snprintf(name[1], sizeof name[1], "E %d, outputs, straight-through", E);
            all = bench_model(ctx, suite, name[0], E, TMOE_MIX_OUTPUT, TMOE_SELECT_SOFTMAX);
            one =
                bench_model(ctx, suite, name[1], E, TMOE_MIX_OUTPUT, TMOE_SELECT_STRAIGHT_THROUGH);
            printf("  straight-through / all, E %d         %8.2f x\n", E, one / all);
        }
        tmoe_suite_destroy(suite);
        tmoe_ctx_destroy(ctx);
    }
    return 0;
}
