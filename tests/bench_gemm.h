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

/* v: 0 A B, 1 A B^T, 2 A^T B */
static tmoei_matrix left(int v, const shape *s, const float *A)
{
    if (v == 2) return tmoei_transposed(tmoei_matrix_of(A, s->k, s->m, (size_t)s->m));
    return tmoei_matrix_of(A, s->m, s->k, (size_t)s->k);
}

static tmoei_matrix right(int v, const shape *s, const float *B)
{
    if (v == 1) return tmoei_transposed(tmoei_matrix_of(B, s->n, s->k, (size_t)s->k));
    return tmoei_matrix_of(B, s->k, s->n, (size_t)s->n);
}

/* A batch is spread over the lanes, as the heads of attention are. */
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
    tmoei_gemm_lane(b->ctx, lane, left(b->v, b->s, b->A + i * (size_t)(M * K)),
        right(b->v, b->s, b->B + i * (size_t)(K * N)),
        tmoei_output_of(b->C + i * (size_t)(M * N), (size_t)N, 0.0f));
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
        tmoei_gemm(ctx, left(v, s, A), right(v, s, B), tmoei_output_of(C, (size_t)s->n, 0.0f),
            NULL);
    return 1;
}
