/* Matrix products, attention and vector functions of every instruction set this processor has,
 * against plain double sums and long double. */
#define TASKMOE_IMPLEMENTATION
#define TMOE_THREADS
#include "../taskmoe.h"
#include "test.h"

static const tmoe_isa all_isas[] = { TMOE_ISA_C, TMOE_ISA_NEON, TMOE_ISA_AVX2, TMOE_ISA_AVX512 };
static const char *const isa_names[] = { "C", "NEON", "AVX2", "AVX-512" };

/* A context of the i-th instruction set; NULL where the processor lacks it. */
static tmoe_ctx *context_of(int i, int threads)
{
    tmoe_ctx_config config;
    tmoe_ctx *ctx;
    memset(&config, 0, sizeof config);
    config.isa = all_isas[i];
    config.threads = threads;
    ctx = tmoe_ctx_create(&config);
    if (ctx && strcmp(tmoe_ctx_isa(ctx), isa_names[i])) {
        tmoe_ctx_destroy(ctx);
        return NULL;
    }
    return ctx;
}

/* -1 .. 1, the same every time */
static float noise(uint32_t i, uint32_t key)
{
    uint32_t h = i * 0x9e3779b1u ^ key * 0x85ebca6bu;
    h = (h ^ (h >> 15)) * 0x2c1b3c6du;
    h = (h ^ (h >> 12)) * 0x297a2d39u;
    return (float)(h ^ (h >> 15)) / 2147483648.0f - 1.0f;
}

static float *floats(size_t n, uint32_t key)
{
    float *x = (float *)malloc((n + 1) * sizeof(float));
    size_t i;
    if (!x) exit(3);
    for (i = 0; i < n; i++) x[i] = key ? noise((uint32_t)i, key) : (float)NAN;
    return x;
}

/* (rows, cols), stored as (cols, rows) where transposed */
static tmoei_matrix factor(const float *x, int rows, int cols, int transposed, size_t stride)
{
    return transposed ? tmoei_transposed(tmoei_matrix_of(x, cols, rows, stride))
                      : tmoei_matrix_of(x, rows, cols, stride);
}

/* One product with NaN around every operand: what is read outside shows in C, what is written
 * outside is no NaN any more. */
static void one_product(tmoe_ctx *ctx, int lane_only, int ta, int tb, int M, int N, int K,
    float beta, int with_epilogue)
{
    /* some strides so long that a transposed A is packed, some rows a multiple of 4 KiB apart */
    const size_t lda = (M + N) % 3 == 0 ? (size_t)((ta ? M : K) + 1023) / 1024 * 1024
                                        : (size_t)(ta ? M : K) + ((M + N) % 3 == 1 ? 131 : 3);
    const size_t ldb = (size_t)(tb ? K : N) + 2, ldc = (size_t)N + 1;
    float *A = floats((size_t)(ta ? K : M) * lda, 0), *B = floats((size_t)(tb ? N : K) * ldb, 0),
          *C = floats((size_t)M * ldc, 0);
    float *bias = floats((size_t)N, 5), *residual = floats((size_t)M * (size_t)N, 7),
          *pre = floats((size_t)M * (size_t)N, 0);
    tmoei_epilogue e;
    int m, n, k, bad = 0;
#define A_AT(m, k) A[ta ? (size_t)(k)*lda + (size_t)(m) : (size_t)(m)*lda + (size_t)(k)]
#define B_AT(k, n) B[tb ? (size_t)(n)*ldb + (size_t)(k) : (size_t)(k)*ldb + (size_t)(n)]
    for (m = 0; m < M; m++)
        for (k = 0; k < K; k++) A_AT(m, k) = noise((uint32_t)(m * K + k), 11);
    for (n = 0; n < N; n++)
        for (k = 0; k < K; k++) B_AT(k, n) = noise((uint32_t)(n * K + k), 13);
    if (beta != 0.0f)
        for (m = 0; m < M; m++)
            for (n = 0; n < N; n++)
                C[(size_t)m * ldc + (size_t)n] = noise((uint32_t)(m * N + n), 17);
    memset(&e, 0, sizeof e);
    e.bias = bias;
    e.activation = TMOE_GELU;
    e.pre = pre;
    e.pre_stride = e.residual_stride = (size_t)N;
    e.residual = residual;
    if (lane_only)
        tmoei_gemm_lane(ctx, 0, factor(A, M, K, ta, lda), factor(B, K, N, tb, ldb),
            tmoei_output_of(C, ldc, beta));
    else
        tmoei_gemm(ctx, factor(A, M, K, ta, lda), factor(B, K, N, tb, ldb),
            tmoei_output_of(C, ldc, beta), with_epilogue ? &e : NULL);
    for (m = 0; m < M; m++) {
        for (n = 0; n < N; n++) {
            double want = beta != 0.0f ? (double)noise((uint32_t)(m * N + n), 17) : 0.0, size = 1.0;
            if (M * N > 4000 && (m * 31 + n * 17) % 29 && m < M - 2 && n < N - 2) continue;
            for (k = 0; k < K; k++) {
                want += (double)A_AT(m, k) * (double)B_AT(k, n);
                size += fabs((double)A_AT(m, k) * (double)B_AT(k, n));
            }
            if (with_epilogue) {
                want += (double)bias[n];
                bad +=
                    !(fabs(want - (double)pre[(size_t)m * (size_t)N + (size_t)n]) <= 2e-6 * size);
                want = want * 0.5 * erfc(-want * 0.70710678118654752)
                    + (double)residual[(size_t)m * (size_t)N + (size_t)n];
            }
            bad += !(fabs(want - (double)C[(size_t)m * ldc + (size_t)n]) <= 2e-6 * size);
        }
        bad += C[(size_t)m * ldc + (size_t)N] == C[(size_t)m * ldc + (size_t)N];
    }
    if (bad)
        printf("%s: %d wrong numbers: M %d N %d K %d, A%s B%s, beta %g%s%s\n", tmoe_ctx_isa(ctx),
            bad, M, N, K, ta ? "^T" : "", tb ? "^T" : "", (double)beta,
            lane_only ? ", one lane" : "", with_epilogue ? ", epilogue" : "");
    CHECK(bad == 0);
    free(A);
    free(B);
    free(C);
    free(bias);
    free(residual);
    free(pre);
#undef A_AT
#undef B_AT
}

static void products_equal_double_sums_in_every_shape(void)
{
    static const int sizes[] = { 1, 2, 4, 7, 8, 13, 14, 15, 16, 17, 31, 33, 65, 100, 257, 390 };
    const int count = (int)(sizeof sizes / sizeof *sizes);
    int isa, a, b, c, tt, tried = 0;
    for (isa = 0; isa < 4; isa++) {
        tmoe_ctx *ctx = context_of(isa, 2), *many = context_of(isa, 48), *one = context_of(isa, 1);
        if (!ctx || !many || !one) {
            tmoe_ctx_destroy(ctx);
            tmoe_ctx_destroy(many);
            tmoe_ctx_destroy(one);
            continue;
        }
        tried++;
        for (a = 0; a < count; a++)
            for (b = 0; b < count; b++)
                for (c = 0; c < count; c++)
                    for (tt = 0; tt < 4; tt++) {
                        if ((a + 2 * b + 3 * c + tt) % 5)
                            continue; /* a fifth of all: every size meets every other */
                        one_product(ctx, (a + b + c) % 3 == 0, tt & 1, tt >> 1, sizes[a], sizes[b],
                            sizes[c], (a ^ b ^ c) & 1 ? 1.0f : 0.0f, (a + b + c) % 3 == 1);
                    }
        /* few rows of long sums: in pieces of K, one row in the order of memory */
        for (a = 1; a <= 9; a++)
            for (b = 44; b < 47; b++)
                for (c = 511; c < 3000; c = 2 * c + 3)
                    one_product(ctx, 0, 0, (a + b + c) % 3 != 0, a, b, c, (a ^ b) & 1 ? 1.0f : 0.0f,
                        b == 45);
        /* more lanes than tiles, and blocks of columns in which all of K does not find room */
        for (a = 0; a < count; a++)
            for (tt = 0; tt < 4; tt++)
                one_product(many, 0, tt & 1, tt >> 1, sizes[a], sizes[(a * 7 + 5 + tt) % count],
                    sizes[(a * 3 + 11) % count], (float)(a & 1), a % 3 == 1);
        for (tt = 0; tt < 4; tt++) {
            one_product(many, 0, tt & 1, tt >> 1, 130, 300, 790, 1.0f, 1);
            one_product(ctx, 0, tt & 1, tt >> 1, 70, 2300, 450, (float)(tt & 1), tt > 1);
            one_product(one, 0, tt & 1, tt >> 1, 70, 521, 450, (float)(tt & 1),
                tt > 1); /* rows of A 4 KiB apart, N from 512 on: copied */
        }
        tmoe_ctx_destroy(ctx);
        tmoe_ctx_destroy(many);
        tmoe_ctx_destroy(one);
    }
    CHECK(tried >= 1);
}

/* Without rows or columns nothing is written; without terms C is zeros, or stays. */
static void products_without_rows_columns_or_terms_are_empty(void)
{
    static const int shapes[][3] = { { 0, 5, 7 }, { 9, 0, 7 }, { 9, 5, 0 }, { 0, 0, 0 } };
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    float x[64] = { 0.0f }, y[64];
    for (int s = 0; s < 4; s++)
        for (int way = 0; way < 8; way++) {
            const int M = shapes[s][0], N = shapes[s][1], K = shapes[s][2], adds = way >> 2;
            const tmoei_matrix a = factor(x, M, K, 0, 8), b = factor(x, K, N, way & 1, 8);
            const tmoei_output c = tmoei_output_of(y, 5, (float)adds);
            for (int i = 0; i < 64; i++) y[i] = 3.0f;
            if (way & 2)
                tmoei_gemm_lane(ctx, 0, a, b, c);
            else
                tmoei_gemm(ctx, a, b, c, NULL);
            for (int i = 0; i < 64; i++) CHECK(y[i] == (i < M * N && !adds ? 0.0f : 3.0f));
        }
    tmoe_ctx_destroy(ctx);
}

static void products_have_the_same_bits_on_any_number_of_threads(void)
{
    static const int threads[] = { 1, 2, 3, 4, 7, 64 };
    static const int shapes[][3] = { { 3, 200, 77 }, { 64, 128, 500 }, { 301, 257, 190 },
        { 8, 512, 900 }, { 1, 260, 700 }, { 2, 130, 40 }, { 3, 257, 129 }, { 70, 2300, 450 },
        { 520, 90, 1200 } };
    int isa, i, s, tt, more;
    for (isa = 0; isa < 4; isa++) {
        tmoe_ctx *ctx[6];
        for (i = 0; i < 6; i++) ctx[i] = context_of(isa, threads[i]);
        for (s = 0; s < 9; s++)
            for (tt = 0; tt < 4; tt++)
                for (more = 0; more < 2; more++) {
                    const int M = shapes[s][0], N = shapes[s][1], K = shapes[s][2], ta = tt & 1,
                              tb = tt >> 1;
                    const size_t size = (size_t)M * (size_t)N;
                    float *A = floats((size_t)M * (size_t)K, 3),
                          *B = floats((size_t)N * (size_t)K, 4), *first = floats(size, 0);
                    for (i = 0; i < 6 && ctx[i]; i++) {
                        float *C = floats(size, more ? 5 : 0);
                        tmoei_gemm(ctx[i], factor(A, M, K, ta, (size_t)(ta ? M : K)),
                            factor(B, K, N, tb, (size_t)(tb ? K : N)),
                            tmoei_output_of(C, (size_t)N, (float)more), NULL);
                        if (!i)
                            memcpy(first, C, size * sizeof(float));
                        else
                            CHECK(!memcmp(first, C, size * sizeof(float)));
                        free(C);
                    }
                    free(A);
                    free(B);
                    free(first);
                }
        for (i = 0; i < 6; i++) tmoe_ctx_destroy(ctx[i]);
    }
}

/* Forward, and backward from dy, of one head, by the definition. */
static void attention_naive(int T, int S, int W, int causal, double scale, const float *q,
    const float *k, const float *v, const float *dy, double *y, double *dq, double *dk, double *dv)
{
    int t, s, w;
    memset(y, 0, sizeof(double) * (size_t)(T * W));
    memset(dq, 0, sizeof(double) * (size_t)(T * W));
    memset(dk, 0, sizeof(double) * (size_t)(S * W));
    memset(dv, 0, sizeof(double) * (size_t)(S * W));
    for (t = 0; t < T; t++) {
        const int seen = causal ? t + 1 + S - T : S;
        double *p = (double *)malloc(sizeof(double) * (size_t)S), sum = 0.0, delta = 0.0;
        if (!p) exit(3);
        for (s = 0; s < seen; s++) {
            double z = 0.0;
            for (w = 0; w < W; w++) z += (double)q[t * W + w] * (double)k[s * W + w];
            sum += p[s] = exp(scale * z);
        }
        for (s = 0; s < seen; s++) {
            p[s] /= sum;
            for (w = 0; w < W; w++) y[t * W + w] += p[s] * (double)v[s * W + w];
        }
        for (w = 0; w < W; w++) delta += (double)dy[t * W + w] * y[t * W + w];
        for (s = 0; s < seen; s++) {
            double dp = 0.0, ds;
            for (w = 0; w < W; w++) dp += (double)dy[t * W + w] * (double)v[s * W + w];
            ds = p[s] * (dp - delta) * scale;
            for (w = 0; w < W; w++) {
                dq[t * W + w] += ds * (double)k[s * W + w];
                dk[s * W + w] += ds * (double)q[t * W + w];
                dv[s * W + w] += p[s] * (double)dy[t * W + w];
            }
        }
        free(p);
    }
}

static void attention_equals_its_definition_forward_and_backward(void)
{
    static const int shapes[][3] = { { 1, 1, 8 }, { 1, 37, 24 }, { 5, 9, 16 }, { 70, 70, 24 },
        { 33, 150, 32 }, { 3, 2100, 8 }, { 130, 130, 7 }, { 0, 9, 16 } };
    int isa, s, causal;
    for (isa = 0; isa < 4; isa++) {
        tmoe_ctx *ctx = context_of(isa, 1);
        if (!ctx) continue;
        for (s = 0; s < 8; s++)
            for (causal = 0; causal < 2; causal++) {
                const int T = shapes[s][0], S = shapes[s][1], W = shapes[s][2], TW = T * W,
                          SW = S * W;
                const float scale = 1.0f / sqrtf((float)W);
                float *q = floats((size_t)TW, 1), *k = floats((size_t)SW, 2),
                      *v = floats((size_t)SW, 3), *dy = floats((size_t)TW, 4);
                float *y = floats((size_t)TW, 0), *lse = floats((size_t)T, 0),
                      *dq = floats((size_t)TW, 0), *dk = floats((size_t)SW, 0),
                      *dv = floats((size_t)SW, 0);
                double *want = (double *)malloc(sizeof(double) * (size_t)(2 * TW + 2 * SW));
                double worst = 0.0;
                int i;
                if (!want) exit(3);
                for (i = 0; i < TW; i++) q[i] *= 6.0f; /* sharp rows */
                attention_naive(T, S, W, causal, (double)scale, q, k, v, dy, want, want + TW,
                    want + 2 * TW, want + 2 * TW + SW);
                tmoei_attention_head head;
                memset(&head, 0, sizeof head);
                head.ctx = ctx;
                head.causal = causal;
                head.q = tmoei_matrix_of(q, T, W, (size_t)W);
                head.k = tmoei_matrix_of(k, S, W, (size_t)W);
                head.v = tmoei_matrix_of(v, S, W, (size_t)W);
                head.y = y;
                head.y_stride = (size_t)W;
                head.lse = lse;
                tmoei_attention_blocks(&head);
                head.dy = dy;
                head.dq = dq;
                head.dk = dk;
                head.dv = dv;
                tmoei_attention_blocks(&head);
                for (i = 0; i < TW; i++)
                    worst = fmax(worst,
                        fmax(fabs(want[i] - (double)y[i]), fabs(want[TW + i] - (double)dq[i])));
                for (i = 0; i < SW; i++)
                    worst = fmax(worst,
                        fmax(fabs(want[2 * TW + i] - (double)dk[i]),
                            fabs(want[2 * TW + SW + i] - (double)dv[i])));
                for (i = 0; i < TW; i++)
                    CHECK(y[i] == y[i] && dq[i] == dq[i]); /* fmax would pass a NaN over */
                for (i = 0; i < SW; i++) CHECK(dk[i] == dk[i] && dv[i] == dv[i]);
                CHECK_NEAR(worst, 0.0, 2e-5);
                head.beta_q = head.beta_kv = 1.0f; /* the same once more, added */
                tmoei_attention_blocks(&head);
                for (i = 0; i < TW; i++)
                    worst = fmax(worst, fabs(2.0 * want[TW + i] - (double)dq[i]));
                for (i = 0; i < SW; i++)
                    worst = fmax(worst,
                        fmax(fabs(2.0 * want[2 * TW + i] - (double)dk[i]),
                            fabs(2.0 * want[2 * TW + SW + i] - (double)dv[i])));
                CHECK_NEAR(worst, 0.0, 4e-5);
                free(q);
                free(k);
                free(v);
                free(dy);
                free(y);
                free(lse);
                free(dq);
                free(dk);
                free(dv);
                free(want);
            }
        tmoe_ctx_destroy(ctx);
    }
}

static float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* exp over [-87.3, 88.3]: relative error. The promise in the header: 2 ulp. */
static void exponential_is_good_to_two_ulp(void)
{
    int isa;
    for (isa = 0; isa < 4; isa++) {
        tmoe_ctx *ctx = context_of(isa, 1);
        double worst = 0.0;
        uint32_t bits;
        if (!ctx) continue;
        int sign;
        for (sign = 0; sign < 2; sign++)
            for (bits = (uint32_t)sign << 31; bits < ((uint32_t)sign << 31 | 0x42b09999u);
                 bits += 9973u * 16u) { /* through all exponents */
                float x[16], y[16];
                int i;
                for (i = 0; i < 16; i++) x[i] = float_of(bits + (uint32_t)i * 9973u);
                if (x[15] < -87.29f || x[15] > 88.29f) break;
                (void)ctx->kernels->exp_sum(y, x, 1.0f, 0.0f, 16);
                for (i = 0; i < 16; i++) {
                    const long double e = expl((long double)x[i]);
                    worst = fmax(worst, (double)(fabsl((long double)y[i] - e) / e));
                    CHECK(y[i] == y[i]);
                }
            }
        CHECK(worst > 0.0 && worst < 2.0 * 1.1920929e-7);
        tmoe_ctx_destroy(ctx);
    }
}

/* GELU x Phi(x) and its derivative Phi(x) + x phi(x) over all finite floats, against long double.
 * */
static void gelu_and_its_slope_hold_over_all_floats(void)
{
    int isa, sign;
    for (isa = 0; isa < 4; isa++) {
        tmoe_ctx *ctx = context_of(isa, 1);
        double worst = 0.0, worst_slope = 0.0;
        uint32_t bits;
        if (!ctx) continue;
        for (sign = 0; sign < 2; sign++)
            for (bits = 0; bits < 0x7f780000u; bits += 30011u * 16u) {
                float x[16], y[16], one[16], slope[16];
                int i;
                for (i = 0; i < 16; i++) {
                    x[i] = float_of((bits + (uint32_t)i * 30011u) | (uint32_t)sign << 31);
                    one[i] = 1.0f;
                }
                ctx->kernels->gelu(y, NULL, x, 16);
                ctx->kernels->gelu(slope, one, x, 16);
                for (i = 0; i < 16; i++) {
                    const long double z = (long double)x[i],
                                      phi = 0.5L * erfcl(-z * 0.707106781186547524401L);
                    const long double density =
                        fabsl(z) > 100.0L ? 0.0L : 0.398942280401432677940L * expl(-0.5L * z * z);
                    const double scale = fmax(1.0, fabs((double)x[i]));
                    if (!(fabs((double)((long double)y[i] - z * phi)) / scale < 1.0)) {
                        CHECK(!"gelu is far off");
                        printf("at %g: %g\n", (double)x[i], (double)y[i]);
                    }
                    worst = fmax(worst, fabs((double)((long double)y[i] - z * phi)) / scale);
                    worst_slope = fmax(worst_slope,
                        fabs((double)((long double)slope[i] - (phi + z * density))));
                    CHECK(slope[i] == slope[i]);
                }
            }
        CHECK_NEAR(worst, 0.0, 4e-7);
        CHECK_NEAR(worst_slope, 0.0, 1e-6);
        tmoe_ctx_destroy(ctx);
    }
}

static void layer_norm_equals_its_definition(void)
{
    static const size_t widths[] = { 1, 5, 16, 33, 96, 768 };
    int isa, w;
    for (isa = 0; isa < 4; isa++) {
        tmoe_ctx *ctx = context_of(isa, 1);
        if (!ctx) continue;
        for (w = 0; w < 6; w++) {
            const size_t n = widths[w];
            float *x = floats(n, 21), *gain = floats(n, 22), *bias = floats(n, 23),
                  *dy = floats(n, 24), *y = floats(n, 0), *dx = floats(n, 0), mean, inv;
            double m = 0.0, v = 0.0, a = 0.0, b = 0.0;
            size_t i;
            for (i = 0; i < n; i++) x[i] += 30.0f; /* a mean far from 0 must not eat the variance */
            ctx->kernels->norm_forward(y, x, gain, bias, 1e-5f, &mean, &inv, n);
            ctx->kernels->norm_backward(dx, 0.0f, x, dy, gain, mean, inv, n);
            for (i = 0; i < n; i++) m += (double)x[i] / (double)n;
            for (i = 0; i < n; i++) v += ((double)x[i] - m) * ((double)x[i] - m) / (double)n;
            v = 1.0 / sqrt(v + 1e-5);
            for (i = 0; i < n; i++) {
                const double h = ((double)x[i] - m) * v, g = (double)dy[i] * (double)gain[i];
                a += g / (double)n;
                b += g * h / (double)n;
                CHECK_NEAR(y[i], h * (double)gain[i] + (double)bias[i], n == 1 ? 1e-2 : 3e-5);
            }
            for (i = 0; i < n && n > 1; i++)
                CHECK_NEAR(dx[i],
                    v * ((double)dy[i] * (double)gain[i] - a - ((double)x[i] - m) * v * b),
                    1e-4 * v);
            free(x);
            free(gain);
            free(bias);
            free(dy);
            free(y);
            free(dx);
        }
        tmoe_ctx_destroy(ctx);
    }
}

/* theta_bar_t = sum_e r_te theta_e; back: dtheta_e += sum_t r_te g_t, dr_te += <g_t, theta_e -
 * theta_bar_t>; six tasks are one and a half of what a kernel takes at a time on the way back, 17
 * more than any takes on the way there, as 19 experts are. What the experts share is a thousand
 * times what they differ by, as after upcycling. */
static void merging_and_its_backward_equal_double_sums(void)
{
    enum { most = 64 };

    static const int cases[][3] = { { 1, 3, 10007 }, { 6, 3, 10007 }, { 17, 3, 4097 },
        { 1, 19, 4097 }, { 2, 19, 4097 } }; /* T, E, n */
    static const float rows[18] = { 0.2f, 0.5f, 0.3f, 0.0f, 0.25f, 0.75f, 0.0f, 1.0f, 0.0f, 0.125f,
        0.0f, 0.875f, 0.5f, 0.25f, 0.25f, 0.0f, 0.5f, 0.5f };
    int isa, k, shared;
    for (isa = 0; isa < 4; isa++)
        for (k = 0; k < 5; k++)
            for (shared = 0; shared < 2; shared++) {
                const int T = cases[k][0], E = cases[k][1], n = cases[k][2];
                const size_t all = (size_t)E * (size_t)n, tasks = (size_t)T * (size_t)n;
                tmoe_ctx *ctx = context_of(isa, 2);
                float *theta = floats(all, 31), *g = floats(tasks, 32), *bar = floats(tasks, 0),
                      *dtheta = floats(all, 33), *before = floats(all, 33);
                float r[most], dr[most] = { 0 };
                double want[most] = { 0 };
                int e, i, t;
                for (i = 0; i < T * E; i++)
                    r[i] = E == 3 ? rows[i % 18]
                                  : (float)(i % 19) / 171.0f; /* 0 + 1 + ... + 18 = 171 */
                if (ctx) {
                    tmoei_merge_job forward =
                        tmoei_merge_job_of(theta, E, (size_t)n, r, (size_t)E, T);
                    tmoei_merge_job backward = forward;
                    forward.merged = bar;
                    backward.g = g;
                    backward.dexperts = dtheta;
                    backward.dr = dr;
                    for (i = 0; shared && i < n; i++)
                        for (e = 0; e < E; e++)
                            theta[e * n + i] = theta[i] + 1e-3f * theta[e * n + i] * (float)e;
                    tmoei_merge(ctx, &forward);
                    tmoei_merge(ctx, &backward);
                    for (i = 0; i < n; i++) {
                        for (t = 0; t < T; t++) {
                            double sum = 0.0;
                            for (e = 0; e < E; e++)
                                sum += (double)r[t * E + e] * (double)theta[e * n + i];
                            CHECK_NEAR(bar[t * n + i], sum, 3e-7);
                            for (e = 0; e < E; e++)
                                want[t * E + e] +=
                                    (double)g[t * n + i] * ((double)theta[e * n + i] - sum);
                        }
                        for (e = 0; e < E; e++) {
                            double sum = (double)before[e * n + i];
                            for (t = 0; t < T; t++)
                                sum += (double)r[t * E + e] * (double)g[t * n + i];
                            CHECK_NEAR(dtheta[e * n + i], sum, T > 6 ? 4e-6 : 6e-7);
                        }
                    }
                    for (i = 0; i < T * E; i++)
                        CHECK_NEAR(dr[i], want[i], shared ? E == 3 ? 1e-5 : 1e-4 : 2e-3);
                    CHECK(T < 6
                        || dr[2 * E + 1]
                            /* the chosen one of a one-hot route: <g, theta_e - theta_e> */
                            == 0.0f);
                }
                tmoe_ctx_destroy(ctx);
                free(theta);
                free(g);
                free(bar);
                free(dtheta);
                free(before);
            }
}

/* What a turn makes of x (T, columns + 5), forward and backward: as its definition says, in place or
 * not, with the same bits on any number of threads. */
static void one_turn(int isa, int half, int heads, int T)
{
    enum { POSITIONS = 200 };

    const int W = 2 * half, turned = W * heads, cols = turned + 5;
    const size_t n = (size_t)T * (size_t)cols, bytes = n * sizeof(float);
    float *table = floats((size_t)(POSITIONS * W), 0), *x = floats(n, 3), *g = floats(n, 4);
    float *first = floats(2 * n, 0);
    int *places = (int *)malloc((size_t)T * sizeof(int)), bad = 0;
    for (int t = 0; t < T; t++) places[t] = t == 0 ? POSITIONS - 1 : t * 7 % POSITIONS;

    for (int threads = 1; threads <= 3; threads++) {
        tmoe_ctx *ctx = context_of(isa, threads);
        if (!ctx) break;
        CHECK(tmoe_rotary_table(ctx, table, POSITIONS, W, 100.0f) == TMOE_OK);
        tmoe_tape *tape = tmoe_tape_create(ctx);
        for (int in_place = 0; in_place < 2; in_place++) {
            float *dx = (float *)calloc(n, sizeof(float));
            tmoe_tape_reset(tape);
            tmoe_tensor *angles = tmoe_leaf(tape, POSITIONS, W, table, NULL);
            tmoe_tensor *h = tmoe_affine(tape, tmoe_leaf(tape, T, cols, x, dx), 1.0f, 0.0f);
            tmoe_tensor *y = in_place ? tmoei_rotary(tape, h, turned, angles, places, 1)
                                      : tmoe_rotary(tape, h, turned, angles, places);
            CHECK(y != NULL && (y->x == h->x) == in_place);
            tmoe_tensor *weighted = tmoe_multiply(tape, y, tmoe_leaf(tape, T, cols, g, NULL));
            CHECK(tmoe_backward(tape, tmoe_sum(tape, weighted)) == TMOE_OK);
            if (threads + in_place == 1) {
                memcpy(first, y->x, bytes);
                memcpy(first + n, dx, bytes);
            }
            bad += memcmp(first, y->x, bytes) != 0 || memcmp(first + n, dx, bytes) != 0;
            free(dx);
        }
        tmoe_tape_destroy(tape);
        tmoe_ctx_destroy(ctx);

        for (size_t i = 0; threads == 1 && i < n; i++) {
            const int t = (int)(i / (size_t)cols), c = (int)(i % (size_t)cols), pair = c % half;
            const double a = places[t] * pow(100.0, -2.0 * pair / W);
            const int second = c / half % 2; /* of the pair */
            const size_t other = second ? i - (size_t)half : i + (size_t)half;
            double want = (double)x[i], back = (double)g[i];
            if (c < turned) {
                const double sine = second ? sin(a) : -sin(a);
                want = want * cos(a) + (double)x[other] * sine;
                back = back * cos(a) - (double)g[other] * sine;
            }
            bad += !(fabs((double)first[i] - want) <= 2e-7);
            bad += !(fabs((double)first[n + i] - back) <= 2e-7);
        }
    }
    if (bad) printf("%s: heads %d of width %d: %d wrong\n", isa_names[isa], heads, W, bad);
    CHECK(bad == 0);
    free(table);
    free(x);
    free(g);
    free(first);
    free(places);
}

static void turns_equal_their_definition_on_any_number_of_threads(void)
{
    static const int halves[] = { 1, 2, 3, 4, 8, 12, 15, 16, 17, 24, 32, 40 };
    for (int isa = 0; isa < 4; isa++)
        for (size_t i = 0; i < sizeof halves / sizeof *halves; i++) {
            one_turn(isa, halves[i], 1, 1);
            one_turn(isa, halves[i], 8, 203);
        }
}

/* What rotary positions are for: scores know how far keys are, not where. */
static void scores_of_turned_rows_depend_on_their_distance_only(void)
{
    enum { W = 24, POSITIONS = 300, DISTANCE = 17 };

    static float table[POSITIONS * W], rows[POSITIONS * W];
    static int places[POSITIONS];
    float *x = floats(2 * W, 9);
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    tmoe_tape *tape = tmoe_tape_create(ctx);
    CHECK(tmoe_rotary_table(ctx, table, POSITIONS, W, 100.0f) == TMOE_OK);
    tmoe_tensor *angles = tmoe_leaf(tape, POSITIONS, W, table, NULL), *y[2];
    for (int which = 0; which < 2; which++) {
        for (int p = 0; p < POSITIONS; p++) {
            places[p] = p;
            memcpy(rows + p * W, x + which * W, W * sizeof(float));
        }
        y[which] = tmoe_rotary(tape, tmoe_leaf(tape, POSITIONS, W, rows, NULL), W, angles, places);
    }

    double least = 1e9, most = -1e9, other = 0.0;
    for (int p = 0; p + DISTANCE < POSITIONS; p++) {
        const float *q = y[0]->x + p * W;
        const double score = tmoei_dot(ctx, q, y[1]->x + (p + DISTANCE) * W, W, W);
        if (score < least) least = score;
        if (score > most) most = score;
        other = tmoei_dot(ctx, q, y[1]->x + (p + 1) * W, W, W);
    }
    CHECK(most - least < 1e-5 && fabs(other - most) > 0.1);
    tmoe_tape_destroy(tape);
    tmoe_ctx_destroy(ctx);
    free(x);
}

/* Everything that operations compute from numbers of about this size: values and gradients. */
static void denormal_bits(int isa, int threads, float size, float *out, size_t *used)
{
    enum { T = 192, D = 96, F = 160 };

    *used = 0;
    tmoe_ctx *ctx = context_of(isa, threads);
    if (!ctx) return;
    tmoe_tape *tape = tmoe_tape_create(ctx);
    float *x = (float *)malloc(sizeof(float) * T * D), *dx = (float *)calloc(T * D, sizeof(float));
    float *w = (float *)malloc(sizeof(float) * F * D), *dw = (float *)calloc(F * D, sizeof(float));
    int targets[T];
    for (int i = 0; i < T * D; i++) x[i] = size * (float)(i * 7919 % 1000 - 500);
    for (int i = 0; i < F * D; i++) w[i] = 1e-3f * (float)(i * 7907 % 1000 - 500);
    for (int i = 0; i < T; i++) targets[i] = i % F;
    tmoe_tensor *in = tmoe_leaf(tape, T, D, x, dx), *matrix = tmoe_leaf(tape, F, D, w, dw);
    tmoe_tensor *row = tmoe_slice(tape, tmoe_reshape(tape, in, 1, T * D), 0, D);
    tmoe_tensor *both[2] = { in, in }, *y[12];
    y[0] = tmoe_linear(tape, in, matrix, NULL, TMOE_NONE, NULL);
    y[1] = tmoe_layer_norm(tape, in, row, row);
    y[2] = tmoe_dropout(tape, in, 0.3f, 1, 2);
    y[3] = tmoe_activate(tape, in, TMOE_GELU);
    y[4] = tmoe_activate(tape, in, TMOE_TANH);
    y[5] = tmoe_affine(tape, in, 0.5f, 0.0f);
    y[6] = tmoe_multiply(tape, in, in);
    y[7] = tmoe_add(tape, in, row);
    y[8] = tmoe_concat(tape, both, 2);
    y[9] = tmoe_select(tape, in, NULL, 1.0f, 0);
    y[10] = tmoe_cross_entropy(tape, y[0], targets, 0.1f, 1e-38f);
    y[11] = tmoe_sum(tape, in);
    for (int i = 0; i < 12; i++) {
        CHECK(y[i] != NULL);
        memcpy(out + *used, y[i]->x, tmoei_elements(y[i]) * sizeof(float));
        *used += tmoei_elements(y[i]);
    }
    tmoe_tensor *loss = tmoe_sum(tape, tmoe_multiply(tape, y[2], y[7]));
    for (int i = 1; i < 10; i++)
        loss = tmoe_add(tape, loss, tmoe_sum(tape, tmoe_affine(tape, y[i], 1e-38f, 0.0f)));
    CHECK(tmoe_backward(tape, tmoe_add(tape, loss, y[10])) == TMOE_OK);
    memcpy(out + *used, dx, sizeof(float) * T * D);
    *used += T * D;
    memcpy(out + *used, dw, sizeof(float) * F * D);
    *used += F * D;
    tmoe_tape_destroy(tape);
    tmoe_ctx_destroy(ctx);
    free(x);
    free(dx);
    free(w);
    free(dw);
}

/* Before, one thread computed with denormals and two flushed them. */
static void denormals_are_zero_on_any_number_of_threads(void)
{
    static const float sizes[3] = { 1e-38f, 3e-41f, 1e-44f };
    const size_t room = 400000;
    float *one = (float *)malloc(room * sizeof(float)),
          *two = (float *)malloc(room * sizeof(float));
    volatile float least = FLT_MIN;
    for (int i = 0; i < 4 * 3; i++) {
        size_t n, m;
        denormal_bits(i / 3, 1, sizes[i % 3], one, &n);
        denormal_bits(i / 3, 2, sizes[i % 3], two, &m);
        CHECK(n == m && n <= room && memcmp(one, two, n * sizeof(float)) == 0);
        size_t denormal = 0;
        for (size_t j = 0; j < n; j++) {
            uint32_t bits;
            memcpy(&bits, &one[j], sizeof bits);
            denormal += (bits & 0x7fffffffu) != 0 && (bits & 0x7f800000u) == 0;
        }
        CHECK(denormal == 0 || TMOEI_FLUSH == 0);
    }
    CHECK(least * 0.5f > 0.0f); /* the caller's mode is as it was */
    free(one);
    free(two);
}

static void context_tells_how_many_threads_run(void)
{
    for (int threads = 0; threads <= 5; threads++) {
        tmoe_ctx *ctx = context_of(0, threads);
        CHECK(tmoe_ctx_threads(ctx) == (threads > 1 ? threads : 1));
        tmoe_ctx_destroy(ctx);
    }
}

TEST_MAIN("test_kernels", RUN(products_equal_double_sums_in_every_shape);
          RUN(products_without_rows_columns_or_terms_are_empty);
          RUN(products_have_the_same_bits_on_any_number_of_threads);
          RUN(attention_equals_its_definition_forward_and_backward);
          RUN(exponential_is_good_to_two_ulp); RUN(gelu_and_its_slope_hold_over_all_floats);
          RUN(layer_norm_equals_its_definition); RUN(merging_and_its_backward_equal_double_sums);
          RUN(turns_equal_their_definition_on_any_number_of_threads);
          RUN(scores_of_turned_rows_depend_on_their_distance_only);
          RUN(denormals_are_zero_on_any_number_of_threads);
          RUN(context_tells_how_many_threads_run);)
