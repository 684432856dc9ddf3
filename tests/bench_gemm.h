/* Our matrix products for a benchmark of others that takes -DMINE="bench_gemm.h": see
 * tests/bench_peers.sh. */
#define TASKMOE_IMPLEMENTATION
#define TMOE_THREADS
#include "taskmoe.h"

#define NAPI 1
static const char *const APIN[] = { "taskmoe" };

static int prep(int api, int v, const shape *s, const float *B, int nb)
{
    (void)api;
    (void)v;
    (void)s;
    (void)B;
    (void)nb;
    return 1;
}

/* v: 0 A B, 1 A B^T, 2 A^T B; a batch is spread over the lanes, as the heads of attention are. */
typedef struct batch_of_products {
    const tmoe_ctx *ctx;
    int v;
    const shape *s;
    const float *A, *B;
    float *C;
} batch_of_products;

static void batch_chunk(void *arg, int chunk, int lane)
{
    const batch_of_products *b = (const batch_of_products *)arg;
    const int M = b->s->m, N = b->s->n, K = b->s->k;
    const size_t i = (size_t)chunk;
    tmoei_gemm_lane(b->ctx, lane, b->v == 2, b->v == 1, M, N, K, b->A + i * (size_t)(M * K),
        (size_t)(b->v == 2 ? M : K), b->B + i * (size_t)(K * N), (size_t)(b->v == 1 ? K : N), 0.0f,
        b->C + i * (size_t)(M * N), (size_t)N);
}

static int run(int api, int v, const shape *s, const float *A, const float *B, float *C, int copy)
{
    static tmoe_ctx *ctx;
    (void)api;
    (void)copy;
    if (!ctx) {
        tmoe_ctx_config config;
        memset(&config, 0, sizeof config);
        config.threads = threads;
        ctx = tmoe_ctx_create(&config);
    }
    if (s->batch > 1) {
        batch_of_products b;
        b.ctx = ctx;
        b.v = v;
        b.s = s;
        b.A = A;
        b.B = B;
        b.C = C;
        tmoei_parallel(ctx, batch_chunk, &b, s->batch);
    } else
        tmoei_gemm(ctx, v == 2, v == 1, s->m, s->n, s->k, A, (size_t)(v == 2 ? s->m : s->k), B,
            (size_t)(v == 1 ? s->k : s->n), 0.0f, C, (size_t)s->n, NULL);
    return 1;
}
