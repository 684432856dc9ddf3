/* Every operation's gradient against central differences, its shape errors, and what the tape
 * promises. */
#define TASKMOE_IMPLEMENTATION
#include "taskmoe.h"
#include "test.h"

typedef tmoe_tensor *build_fn(tmoe_tape *tape, tmoe_tensor **in);
static tmoe_ctx *ctx;

static int q_offsets[4] = { 0, 3, 4, 7 }, k_offsets[4] = { 0, 2, 6, 7 };
static int ids[5] = { 1, 0, 2, 1, 3 }, positions[5] = { 0, 1, 2, 0, 1 },
           targets[5] = { 1, -1, 3, 0, 2 }, more_targets[7] = { 1, 3, -1, 0, 2, 1, 0 };
static float noise[12] = { 0.3f, -1.0f, 0.7f, 1.9f, 0.2f, -0.4f, 0.0f, 1.1f, -0.6f, 0.5f, 0.8f,
    -1.3f };

static float number(uint64_t i)
{
    return tmoei_normal(7, 1, i);
}

/* loss = <c, f(in)> with fixed c; every input element is moved by +-h and the difference quotient
 * is held against the gradient. */
static void check_gradient(const char *name, build_fn *build, int count, const int shapes[][2],
    double tolerance)
{
    const float h = 4e-3f; /* best of 1e-3 to 1e-2: rounding against curvature */
    tmoe_tape *tape = tmoe_tape_create(ctx);
    float *x[4], *dx[4], *c = NULL, first;
    uint64_t next = 0;
    double worst = 0.0;
    int i, a, side;
    size_t j, n;
    for (i = 0; i < count; i++) {
        n = (size_t)(shapes[i][0] * shapes[i][1]);
        x[i] = (float *)malloc(n * sizeof(float));
        dx[i] = (float *)calloc(n, sizeof(float));
        for (j = 0; j < n; j++) x[i][j] = number(next++);
    }
    for (i = -1; i < count; i++) { /* -1: the backward pass itself */
        n = i < 0 ? 1 : (size_t)(shapes[i][0] * shapes[i][1]);
        for (j = 0; j < n; j++) {
            double loss[2] = { 0.0, 0.0 };
            first = i < 0 ? 0.0f : x[i][j];
            for (side = 0; side < (i < 0 ? 1 : 2); side++) {
                tmoe_tensor *in[4], *y;
                size_t e;
                if (i >= 0) x[i][j] = side ? first - h : first + h;
                tmoe_tape_reset(tape);
                for (a = 0; a < count; a++)
                    in[a] = tmoe_leaf(tape, shapes[a][0], shapes[a][1], x[a], dx[a]);
                y = build(tape, in);
                if (!y) {
                    printf("%s: %s\n", name, tmoe_error_message(ctx));
                    test_failures++;
                    goto out;
                }
                if (!c) {
                    c = (float *)malloc(tmoei_elements(y) * sizeof(float));
                    for (e = 0; e < tmoei_elements(y); e++) c[e] = number(1000 + e);
                }
                for (e = 0; e < tmoei_elements(y); e++)
                    loss[side] += (double)y->x[e] * (double)c[e];
                if (i < 0) {
                    tmoe_tensor *weighted =
                        tmoe_multiply(tape, y, tmoe_leaf(tape, y->rows, y->cols, c, NULL));
                    CHECK(tmoe_backward(tape, tmoe_sum(tape, weighted)) == TMOE_OK);
                }
            }
            if (i >= 0) {
                const double difference = (loss[0] - loss[1]) / (2.0 * (double)h),
                             error = fabs(difference - (double)dx[i][j]) / (1.0 + fabs(difference));
                x[i][j] = first;
                if (!(error <= worst)) worst = error;
            }
        }
    }
    if (!(worst <= tolerance)) {
        printf("%s: gradient off by %g, allowed %g\n", name, worst, tolerance);
        test_failures++;
    }
out:
    for (i = 0; i < count; i++) {
        free(x[i]);
        free(dx[i]);
    }
    free(c);
    tmoe_tape_destroy(tape);
}

/* The product is recorded before the loss, so its backward pass, which reads the logits, comes after
 * the loss's. */
static tmoe_tensor *cross_entropy_and_product(tmoe_tape *t, tmoe_tensor *logits,
    tmoe_tensor *factor)
{
    tmoe_tensor *product = tmoe_multiply(t, logits, factor);
    return tmoe_add(t, tmoe_sum(t, product), tmoe_cross_entropy(t, logits, targets, 0.0f, 1.0f));
}

static tmoe_tensor *mix_of_three(tmoe_tape *t, tmoe_tensor **in)
{
    return tmoe_mix_parameters(t, in[0]->x, in[0]->dx, 3, 24, tmoe_select(t, in[1], NULL, 1.0f, 0),
        0);
}

/* Heads of width 4 at positions 0 to 2. */
static tmoe_tensor *turns(tmoe_tape *t)
{
    static float table[3 * 4];
    CHECK(tmoe_rotary_table(ctx, table, 3, 4, 10.0f) == TMOE_OK);
    return tmoe_leaf(t, 3, 4, table, NULL);
}

#define GRADIENT(name, tolerance, expression, ...) \
    static tmoe_tensor *build_##name(tmoe_tape *t, tmoe_tensor **in) \
    { \
        return expression; \
    } \
    static void test_gradient_of_##name(void) \
    { \
        static const int shapes[][2] = { __VA_ARGS__ }; \
        check_gradient(#name, build_##name, (int)(sizeof shapes / sizeof *shapes), shapes, \
            tolerance); \
    }

GRADIENT(linear, 3e-4, tmoe_linear(t, in[0], in[1], in[2], TMOE_NONE, in[3]), { 5, 3 }, { 4, 3 },
    { 1, 4 }, { 5, 4 })
GRADIENT(linear_with_itself_as_residual, 3e-4, tmoe_linear(t, in[0], in[1], NULL, TMOE_NONE, in[0]),
    { 5, 3 }, { 3, 3 })
GRADIENT(linear_gelu, 3e-4, tmoe_linear(t, in[0], in[1], in[2], TMOE_GELU, in[3]), { 5, 3 },
    { 4, 3 }, { 1, 4 }, { 5, 4 })
GRADIENT(linear_relu, 3e-4, tmoe_linear(t, in[0], in[1], in[2], TMOE_RELU, NULL), { 5, 3 },
    { 4, 3 }, { 1, 4 })
GRADIENT(layer_norm, 3e-4, tmoe_layer_norm(t, in[0], in[1], in[2]), { 4, 6 }, { 1, 6 }, { 1, 6 })
GRADIENT(normalize, 3e-4, tmoe_normalize(t, in[0]), { 4, 6 })
GRADIENT(normalize_of_what_a_product_needs_too, 3e-4,
    tmoe_multiply(t, tmoe_normalize(t, in[0]), in[0]), { 3, 5 })
GRADIENT(self_attention, 3e-4, tmoe_attention(t, in[0], in[0], 2, 3, q_offsets, q_offsets, 0),
    { 7, 12 })
GRADIENT(causal_attention, 3e-4, tmoe_attention(t, in[0], in[0], 2, 3, q_offsets, q_offsets, 1),
    { 7, 12 })
GRADIENT(cross_attention, 3e-4, tmoe_attention(t, in[0], in[1], 2, 3, q_offsets, k_offsets, 0),
    { 7, 4 }, { 7, 8 })
GRADIENT(rotary, 3e-4, tmoe_rotary(t, in[0], 8, turns(t), positions), { 5, 10 })
GRADIENT(rotary_of_what_a_product_needs_too, 3e-4,
    tmoe_multiply(t, tmoe_rotary(t, in[0], 8, turns(t), positions), in[0]), { 5, 10 })
GRADIENT(embedding, 3e-4, tmoe_embedding(t, in[0], 5, ids, 2.0f, in[1], positions), { 4, 6 },
    { 3, 6 })
GRADIENT(cross_entropy, 3e-4,
    tmoe_cross_entropy(t, tmoe_linear(t, in[0], in[1], NULL, TMOE_NONE, NULL), targets, 0.1f,
        0.25f),
    { 5, 3 }, { 4, 3 })
GRADIENT(cross_entropy_of_shared_logits, 3e-4,
    tmoe_add(t, tmoe_sum(t, in[0]), tmoe_cross_entropy(t, in[0], targets, 0.0f, 1.0f)), { 5, 4 })
GRADIENT(cross_entropy_of_a_route, 3e-4,
    tmoe_cross_entropy(t, tmoe_select(t, in[0], NULL, 0.5f, 0), targets, 0.0f, 1.0f), { 5, 4 })
GRADIENT(cross_entropy_of_attention, 3e-4,
    tmoe_cross_entropy(t, tmoe_attention(t, in[0], in[0], 2, 3, q_offsets, q_offsets, 0),
        more_targets, 0.0f, 1.0f),
    { 7, 12 })
GRADIENT(cross_entropy_of_logits_that_a_product_needs, 3e-4,
    cross_entropy_and_product(t, tmoe_linear(t, in[0], in[1], NULL, TMOE_NONE, NULL), in[2]),
    { 5, 3 }, { 4, 3 }, { 5, 4 })
GRADIENT(mix_parameters_used_whole, 5e-4,
    tmoe_add(t, mix_of_three(t, in), tmoe_multiply(t, mix_of_three(t, in), in[2])), { 3, 24 },
    { 1, 3 }, { 1, 24 })
GRADIENT(map, 3e-4,
    tmoe_activate(t, tmoe_activate(t, tmoe_activate(t, in[0], TMOE_SIGMOID), TMOE_TANH), TMOE_GELU),
    { 3, 4 })
GRADIENT(add_and_multiply, 3e-4,
    tmoe_multiply(t, tmoe_add(t, in[0], in[1]), tmoe_multiply(t, in[0], in[2])), { 3, 4 }, { 1, 4 },
    { 3, 4 })
GRADIENT(add_to_itself, 3e-4, tmoe_add(t, in[0], in[0]), { 3, 4 })
GRADIENT(affine_and_reshape, 3e-4, tmoe_affine(t, tmoe_reshape(t, in[0], 2, 6), -1.5f, 1.0f),
    { 3, 4 })
GRADIENT(dropout, 3e-4, tmoe_dropout(t, tmoe_add(t, in[0], in[1]), 0.4f, 3, 5), { 5, 8 }, { 5, 8 })
GRADIENT(select, 3e-4, tmoe_select(t, in[0], noise, 0.7f, 0), { 3, 4 })

static tmoe_tensor *build_slice_and_concat(tmoe_tape *t, tmoe_tensor **in)
{
    tmoe_tensor *parts[3];
    parts[0] = tmoe_slice(t, in[0], 1, 2);
    parts[1] = in[1];
    parts[2] = tmoe_slice(t, in[0], 0, 2);
    return tmoe_concat(t, parts, 3);
}

static void test_gradient_of_slice_and_concat(void)
{
    static const int shapes[][2] = { { 3, 4 }, { 3, 2 } };
    check_gradient("slice, concat", build_slice_and_concat, 2, shapes, 3e-4);
}

static tmoe_tensor *build_mix_outputs(tmoe_tape *t, tmoe_tensor **in)
{
    tmoe_tensor *outputs[3];
    outputs[0] = tmoe_activate(t, in[0], TMOE_TANH);
    outputs[1] = in[1];
    outputs[2] = in[0];
    return tmoe_mix_outputs(t, outputs, 3,
        tmoe_reshape(t, tmoe_select(t, in[2], NULL, 1.0f, 0), 1, 6), 3);
}

static void test_gradient_of_mix_outputs(void)
{
    static const int shapes[][2] = { { 3, 4 }, { 3, 4 }, { 2, 3 } };
    check_gradient("mix_outputs", build_mix_outputs, 3, shapes, 3e-4);
}

/* A merged block is used through its parts, one of which is not used: its gradient must be zero,
 * not what memory held. */
static tmoe_tensor *build_mix_parameters(tmoe_tape *t, tmoe_tensor **in)
{
    tmoe_tensor *block = tmoe_mix_parameters(t, in[1]->x, in[1]->dx, 3, 24,
        tmoe_reshape(t, tmoe_select(t, in[2], NULL, 1.0f, 0), 1, 6), 3);
    tmoe_tensor *w = tmoei_part(t, block, 0, 4, 4), *b = tmoei_part(t, block, 16, 1, 4),
                *unused = tmoei_part(t, block, 20, 1, 4);
    return unused ? tmoe_linear(t, in[0], w, b, TMOE_NONE, in[0]) : NULL;
}

static void test_gradient_of_mix_parameters(void)
{
    static const int shapes[][2] = { { 5, 4 }, { 3, 24 }, { 2, 3 } };
    check_gradient("mix_parameters", build_mix_parameters, 3, shapes, 5e-4);
}

/* What is merged for several tasks in one sweep over the experts is what each task gets alone,
 * gradients included. */
static void test_tasks_mixed_at_once_are_as_each_alone(void)
{
    enum { TASKS = 3, E = 5, N = 33001, WIDTH = 2 * E };

    static float experts[E * N], all[E * N], alone[E * N], g[TASKS * N];
    float route[TASKS * WIDTH], dr_all[TASKS * WIDTH] = { 0.0f },
                                               dr_alone[TASKS * WIDTH] = { 0.0f };
    tmoe_tape *tape = tmoe_tape_create(ctx);
    tmoe_tensor *y, *y1;
    uint32_t seed = 7;
    int i, t;
    for (i = 0; i < E * N; i++) {
        seed = seed * 1664525u + 1013904223u;
        experts[i] = (float)(seed >> 8) * 1.1920929e-7f - 1.0f;
    }
    for (i = 0; i < TASKS * N; i++) {
        seed = seed * 1664525u + 1013904223u;
        g[i] = (float)(seed >> 8) * 1.1920929e-7f - 1.0f;
    }
    for (i = 0; i < TASKS * WIDTH; i++)
        route[i] = i / WIDTH == 1 ? (i % WIDTH == 8 ? 1.0f : 0.0f) : 0.05f * (float)(1 + i % 7);
    y = tmoe_mix_parameters(tape, experts, all, E, N, tmoe_leaf(tape, TASKS, WIDTH, route, dr_all),
        E);
    CHECK(y && y->rows == TASKS && y->cols == N);
    memcpy(y->dx, g, sizeof g);
    y->has_grad = 1;
    CHECK(tmoei_tape_backward(tape) == TMOE_OK);
    for (t = 0; t < TASKS; t++) {
        y1 = tmoe_mix_parameters(tape, experts, alone, E, N,
            tmoe_leaf(tape, 1, WIDTH, route + t * WIDTH, dr_alone + t * WIDTH), E);
        CHECK(y1 && !memcmp(y1->x, y->x + (size_t)t * N, N * sizeof(float)));
        memcpy(y1->dx, g + (size_t)t * N, N * sizeof(float));
        y1->has_grad = 1;
        CHECK(tmoei_tape_backward(tape) == TMOE_OK);
    }
    for (i = 0; i < TASKS * WIDTH; i++)
        CHECK_NEAR(dr_all[i], dr_alone[i], 1e-3); /* sums of 33,001 numbers around 1 */
    CHECK(dr_all[9] != 0.0f && dr_all[0] == 0.0f);
    for (i = 0; i < E * N; i++)
        if (!(fabsf(all[i] - alone[i]) <= 1e-6f)) break;
    CHECK(i == E * N && all[N - 1] != 0.0f);
    tmoe_tape_destroy(tape);
}

/* One-hot forward; backward as if the soft sample had been there: dz_j = (1/tau) sum_e q_e s_e ([e
 * = j] - s_j). */
static void test_straight_through_gradient_is_that_of_the_soft_sample(void)
{
    tmoe_tape *tape = tmoe_tape_create(ctx);
    float z[4] = { 0.2f, 1.0f, -0.5f, 0.3f }, dz[4] = { 0.0f, 0.0f, 0.0f, 0.0f },
          q[4] = { 1.0f, -2.0f, 0.5f, 3.0f };
    double s[4], sum = 0.0, expected;
    tmoe_tensor *r;
    int e, j;
    for (e = 0; e < 4; e++) sum += s[e] = exp(((double)z[e] + (double)noise[e]) / 0.7);
    for (e = 0; e < 4; e++) s[e] /= sum;
    r = tmoe_select(tape, tmoe_leaf(tape, 1, 4, z, dz), noise, 0.7f, 1);
    CHECK(r && r->x[3] == 1.0f && r->x[0] == 0.0f && r->x[1] == 0.0f && r->x[2] == 0.0f);
    CHECK(
        tmoe_backward(tape, tmoe_sum(tape, tmoe_multiply(tape, r, tmoe_leaf(tape, 1, 4, q, NULL))))
        == TMOE_OK);
    for (j = 0; j < 4; j++) {
        for (expected = 0.0, e = 0; e < 4; e++)
            expected += (double)q[e] * s[e] * ((e == j) - s[j]) / 0.7;
        CHECK_NEAR(dz[j], expected, 1e-6);
    }
    tmoe_tape_destroy(tape);
}

/* The route's gradient is <g, theta_e> less a number that is the same for all experts: <g, theta_bar>
 * where the row sums to 1. */
static void test_gradient_of_a_route_is_known_up_to_what_a_softmax_drops(void)
{
    enum { E = 3, N = 24 };

    tmoe_tape *tape = tmoe_tape_create(ctx);
    float experts[E * N], g[N], route[2][E] = { { 0.25f, 0.5f, 0.25f }, { 0.5f, 2.0f, -1.0f } };
    double exact[E];
    int row, e, i;
    for (i = 0; i < E * N; i++) experts[i] = number((uint64_t)i);
    for (i = 0; i < N; i++) g[i] = number(100 + (uint64_t)i);
    for (e = 0; e < E; e++) {
        exact[e] = 0.0;
        for (i = 0; i < N; i++) exact[e] += (double)g[i] * (double)experts[e * N + i];
    }
    for (row = 0; row < 2; row++) {
        float dr[E] = { 0.0f, 0.0f, 0.0f };
        double bar = 0.0;
        tmoe_tape_reset(tape);
        tmoe_tensor *block = tmoe_mix_parameters(tape, experts, NULL, E, N,
            tmoe_leaf(tape, 1, E, route[row], dr), 0);
        tmoe_tensor *product = tmoe_multiply(tape, block, tmoe_leaf(tape, 1, N, g, NULL));
        CHECK(tmoe_backward(tape, tmoe_sum(tape, product)) == TMOE_OK);
        for (e = 0; e < E; e++) bar += (double)route[row][e] * exact[e];
        for (e = 0; e < E; e++) {
            CHECK_NEAR(dr[e] - dr[0], exact[e] - exact[0], 1e-5);
            if (row == 0) CHECK_NEAR(dr[e], exact[e] - bar, 1e-5);
        }
    }
    tmoe_tape_destroy(tape);
}

/* With a one-hot route that is not trained, merging copies nothing: the block is the expert's own
 * memory. */
static void test_one_hot_route_is_the_expert_itself(void)
{
    tmoe_tape *tape = tmoe_tape_create(ctx);
    float experts[12] = { 0.0f }, gradients[12] = { 0.0f }, route[3] = { 0.0f, 1.0f, 0.0f };
    tmoe_tensor *block =
        tmoe_mix_parameters(tape, experts, gradients, 3, 4, tmoe_leaf(tape, 1, 3, route, NULL), 0);
    CHECK(block && block->x == experts + 4 && block->dx == gradients + 4);
    experts[0] = 3.0f; /* an only expert counts as its route says, too */
    route[0] = 0.5f;
    block = tmoe_mix_parameters(tape, experts, NULL, 1, 4, tmoe_leaf(tape, 1, 1, route, NULL), 0);
    CHECK(block && block->x[0] == 1.5f);
    tmoe_tape_destroy(tape);
}

static void test_rows_are_normalized_to_length_1_or_stay_0(void)
{
    tmoe_tape *tape = tmoe_tape_create(ctx);
    float x[6] = { 3.0f, 4.0f, 0.0f, 0.0f, -2e-12f, 0.0f }, dx[6] = { 0.0f };
    float ones[6] = { 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f };
    const tmoe_tensor *y = tmoe_normalize(tape, tmoe_leaf(tape, 3, 2, x, dx));
    CHECK_NEAR(y->x[0], 0.6, 1e-6);
    CHECK_NEAR(y->x[1], 0.8, 1e-6);
    CHECK(y->x[2] == 0.0f && y->x[3] == 0.0f);
    CHECK_NEAR(y->x[4], -1.0, 1e-6);
    tmoe_tensor *loss = tmoe_sum(tape,
        tmoe_multiply(tape, tmoe_normalize(tape, tmoe_leaf(tape, 3, 2, x, dx)),
            tmoe_leaf(tape, 3, 2, ones, NULL)));
    CHECK(loss && tmoe_backward(tape, loss) == TMOE_OK);
    CHECK_NEAR(dx[0], (1.0 - 0.6 * 1.4) / 5.0, 1e-6);
    CHECK(dx[2] == 0.0f && dx[3] == 0.0f);
    tmoe_tape_destroy(tape);
}

/* Three steps against the formula in double. */
static void test_adamw_on_ones_own_leaves_is_the_formula(void)
{
    enum { N = 5000 };

    static float theta[N], grad[N], m[N], v[N];
    static double expected[N], em[N], ev[N];
    const tmoe_trained what = { theta, grad, m, v, N };
    tmoe_training how = tmoe_training_default();
    int step, i;
    how.weight_decay = 0.1f;
    for (i = 0; i < N; i++) expected[i] = theta[i] = (float)(i % 17) - 8.0f;
    for (step = 1; step <= 3; step++) {
        for (i = 0; i < N; i++) {
            const double g = grad[i] = (float)((i * step) % 13 - 6) * 0.01f;
            em[i] = 0.9 * em[i] + 0.1 * g;
            ev[i] = 0.999 * ev[i] + 0.001 * g * g;
            expected[i] -= 0.01
                * (em[i] / (1.0 - pow(0.9, step)) / (sqrt(ev[i] / (1.0 - pow(0.999, step))) + 1e-8)
                    + 0.1 * expected[i]);
        }
        CHECK(tmoe_adamw(ctx, &how, 0.01f, step, &what) == TMOE_OK);
        for (i = 0; i < N; i++) CHECK(grad[i] == 0.0f);
    }
    for (i = 0; i < N; i++) CHECK_NEAR(theta[i], expected[i], 1e-5);
    grad[N - 1] = (float)NAN;
    theta[0] = 7.0f;
    grad[0] = 1.0f;
    CHECK(tmoe_adamw(ctx, &how, 0.01f, 4, &what) == TMOE_ERR_NUMERIC && theta[0] == 7.0f);
    CHECK(tmoe_adamw(ctx, &how, 0.01f, 0, &what) == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_adamw(ctx, NULL, -1.0f, 1, &what) == TMOE_ERR_ARGUMENT && theta[0] == 7.0f);
}

static void test_wrong_shapes_are_refused_with_the_values_and_the_rule(void)
{
    tmoe_tape *tape = tmoe_tape_create(ctx);
    float x[24] = { 0.0f };
    int bad_ids[2] = { 0, 9 }, offsets[2] = { 0, 3 };
    tmoe_tensor *a = tmoe_leaf(tape, 2, 3, x, NULL), *b = tmoe_leaf(tape, 4, 2, x, NULL), *parts[2];
    static const int falling[3] = { 0, 5, 2 }, offsets_of_four[2] = { 0, 4 },
                     offsets_of_one[2] = { 0, 1 };
    static const int offsets_of_many[2] = { 0, 65537 }, offsets_from_one[2] = { 1, 2 };
    static float zeros[8], many[4 * 65537];
    tmoe_tensor *four = tmoe_leaf(tape, 4, 2, zeros, NULL),
                *keys = tmoe_leaf(tape, 1, 4, zeros, NULL);
    tmoe_tensor *heads = turns(tape);
    static const int below[2] = { 0, -1 }, beyond[2] = { 3, 0 };
    tmoe_tensor *result[34];
    size_t i, n = 0;
    parts[0] = a;
    parts[1] = b;
#define REFUSED(expression, words) \
    do { \
        ctx->error = TMOE_OK; \
        result[n] = (expression); \
        CHECK(result[n] == NULL); \
        CHECK(ctx->error == TMOE_ERR_SHAPE || ctx->error == TMOE_ERR_ARGUMENT); \
        CHECK_HAS(tmoe_error_message(ctx), words); \
        n++; \
    } while (0)
    REFUSED(tmoe_linear(tape, a, b, NULL, TMOE_NONE, NULL), "x (2,3), w (4,2)");
    REFUSED(tmoe_linear(tape, a, a, NULL, TMOE_TANH, NULL), "act must be");
    REFUSED(tmoe_layer_norm(tape, a, b, b), "must be (1,3)");
    REFUSED(tmoe_attention(tape, a, a, 2, 1, offsets, offsets, 0), "2 heads");
    REFUSED(tmoe_attention(tape, a, a, 1, 2, falling, falling, 0), "offsets rise");
    REFUSED(tmoe_attention(tape, a, a, 1, 1, offsets_from_one, offsets_from_one, 0), "from 0");
    REFUSED(tmoe_attention(tape, a, a, 1, 1, NULL, offsets, 0), "from 0");
    REFUSED(tmoe_attention(tape, four, keys, 1, 1, offsets_of_four, offsets_of_one, 1),
        "no fewer keys");
    REFUSED(tmoe_attention(tape, four, tmoe_leaf(tape, 65537, 4, many, NULL), 1, 1, offsets_of_four,
                offsets_of_many, 0),
        "at most 65536 keys");
    REFUSED(tmoe_embedding(tape, a, 2, bad_ids, 1.0f, NULL, NULL), "has id 9");
    REFUSED(tmoe_rotary(tape, four, 4, heads, positions), "4 columns of x (4,2), table (3,4)");
    REFUSED(tmoe_rotary(tape, keys, 2, heads, positions), "2 columns of x (1,4)");
    REFUSED(tmoe_rotary(tape, keys, 0, heads, positions), "0 columns");
    REFUSED(tmoe_rotary(tape, a, 3, tmoe_leaf(tape, 1, 3, x, NULL), positions), "an even width");
    REFUSED(tmoe_rotary(tape, keys, 4, heads, NULL), "no positions");
    REFUSED(tmoe_rotary(tape, keys, 4, heads, below + 1), "row 0 has position -1");
    REFUSED(tmoe_rotary(tape, keys, 4, heads, beyond), "row 0 has position 3; 0 <= position < 3");
    REFUSED(tmoe_activate(tape, a, (tmoe_activation)5), "f is 5");
    REFUSED(tmoe_activate(tape, a, (tmoe_activation)-1), "f is -1");
    REFUSED(tmoe_linear(tape, a, a, NULL, (tmoe_activation)7, NULL), "act must be");
    REFUSED(tmoe_concat(tape, NULL, 0), "0 parts");
    REFUSED(tmoe_cross_entropy(tape, a, bad_ids, 0.0f, 1.0f), "target 9");
    REFUSED(tmoe_cross_entropy(tape, a, bad_ids, 1.0f, 1.0f), "smoothing 1");
    REFUSED(tmoe_add(tape, a, b), "a (2,3), b (4,2)");
    REFUSED(tmoe_multiply(tape, a, b), "multiply");
    REFUSED(tmoe_slice(tape, a, 2, 2), "2 columns from column 2");
    REFUSED(tmoe_concat(tape, parts, 2), "part 1 has 4 rows");
    REFUSED(tmoe_reshape(tape, a, 5, 1), "must stay");
    REFUSED(tmoe_dropout(tape, a, 1.0f, 0, 0), "p = 1");
    REFUSED(tmoe_select(tape, a, NULL, 0.0f, 0), "temperature 0");
    REFUSED(tmoe_mix_outputs(tape, parts, 2, tmoe_leaf(tape, 1, 1, x, NULL), 0), "2 experts");
    REFUSED(tmoe_mix_parameters(tape, x, NULL, 3, 4, tmoe_leaf(tape, 1, 2, x, NULL), 0),
        "3 experts");
    REFUSED(tmoe_leaf(tape, 0, 3, x, NULL), "leaf");
    REFUSED(tmoe_leaf(tape, 1, 3, NULL, NULL), "NULL");
    for (i = 0; i < n; i++) CHECK(result[i] == NULL);
    ctx->error = TMOE_OK; /* poison: a NULL input gives NULL and keeps the first cause */
    CHECK(tmoe_add(tape, tmoe_linear(tape, a, b, NULL, TMOE_NONE, NULL), NULL) == NULL);
    CHECK_HAS(tmoe_error_message(ctx), "linear");
    CHECK(tmoe_backward(tape, NULL) == TMOE_ERR_SHAPE);
    tmoe_tape_reset(tape);
    CHECK(tmoe_error(ctx) == TMOE_OK && tmoe_backward(tape, NULL) == TMOE_ERR_ARGUMENT);
    tmoe_tape_reset(tape);
    tmoe_tape_destroy(tape);
    ctx->error = TMOE_OK;
}

static void test_a_table_of_turns_that_makes_no_sense_is_refused(void)
{
    static const struct {
        int positions, width;
        float base;
    } wrong[] = { { 0, 4, 10.0f }, { 3, 3, 10.0f }, { 3, 0, 10.0f }, { 3, 4, 1.0f },
        { 3, 4, -2.0f }, { 3, 4, (float)NAN } };

    float table[12];
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const tmoe_result result =
            tmoe_rotary_table(ctx, table, wrong[i].positions, wrong[i].width, wrong[i].base);
        CHECK(result == TMOE_ERR_ARGUMENT);
        CHECK_HAS(tmoe_error_message(ctx), "a base above 1");
    }
    CHECK(tmoe_rotary_table(ctx, NULL, 3, 4, 10.0f) == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_rotary_table(ctx, table, 3, 4, 10.0f) == TMOE_OK);
}

/* A second backward pass would add nothing, and say that it went well; the loss of another tape, too. */
static void test_backward_refuses_a_loss_that_is_not_on_the_tape(void)
{
    tmoe_tape *tape = tmoe_tape_create(ctx), *other = tmoe_tape_create(ctx);
    float x[3] = { 1.0f, 2.0f, 3.0f }, dx[3] = { 0.0f, 0.0f, 0.0f };
    tmoe_tensor *leaf = tmoe_leaf(tape, 1, 3, x, dx), *loss = tmoe_sum(tape, leaf);
    CHECK(tmoe_backward(other, loss) == TMOE_ERR_ARGUMENT);
    tmoe_tape_reset(other);
    CHECK(tmoe_backward(tape, loss) == TMOE_OK && dx[1] == 1.0f);
    CHECK(tmoe_backward(tape, loss) == TMOE_ERR_ARGUMENT);
    CHECK_HAS(tmoe_error_message(ctx), "since its last backward pass");
    CHECK(dx[1] == 1.0f);
    tmoe_tape_destroy(tape);
    tmoe_tape_destroy(other);
    ctx->error = TMOE_OK;
}

/* h's gradient memory is free after the first pass: a second loss would write where others read. */
static void test_a_second_loss_on_tensors_that_are_used_up_is_refused(void)
{
    tmoe_tape *tape = tmoe_tape_create(ctx);
    float x[3] = { 1.0f, 2.0f, 3.0f }, dx[3] = { 0.0f, 0.0f, 0.0f };
    tmoe_tensor *leaf = tmoe_leaf(tape, 1, 3, x, dx);
    tmoe_tensor *h = tmoe_affine(tape, leaf, 2.0f, 0.0f);
    tmoe_tensor *unused = tmoe_affine(tape, leaf, 4.0f, 0.0f);
    CHECK(tmoe_backward(tape, tmoe_sum(tape, h)) == TMOE_OK && dx[1] == 2.0f);
    CHECK(tmoe_backward(tape, tmoe_sum(tape, leaf)) == TMOE_OK && dx[1] == 3.0f);
    tmoe_tape_record(tape, 0);
    CHECK(tmoe_sum(tape, h) != NULL); /* the values are still there */
    tmoe_tape_record(tape, 1);
    CHECK(tmoe_add(tape, leaf, h) == NULL && tmoe_error(ctx) == TMOE_ERR_ARGUMENT);
    CHECK_HAS(tmoe_error_message(ctx), "used up");
    ctx->error = TMOE_OK;
    CHECK(tmoe_backward(tape, tmoe_sum(tape, unused)) == TMOE_ERR_ARGUMENT && dx[1] == 3.0f);
    tmoe_tape_destroy(tape);
    ctx->error = TMOE_OK;
}

static void test_a_repeated_step_allocates_nothing(void)
{
    tmoe_tape *tape = tmoe_tape_create(ctx);
    float *x = (float *)calloc(300 * 64, 4), *w = (float *)calloc(64 * 64, 4),
          *dw = (float *)calloc(64 * 64, 4);
    size_t bytes = 0, peak;
    int round, i;
    for (round = 0; round < 4; round++) {
        tmoe_tensor *h;
        tmoe_tape_reset(tape);
        h = tmoe_leaf(tape, 300, 64, x, NULL);
        for (i = 0; i < 10; i++)
            h = tmoe_linear(tape, h, tmoe_leaf(tape, 64, 64, w, dw), NULL, TMOE_GELU, h);
        CHECK(tmoe_backward(tape, tmoe_sum(tape, h)) == TMOE_OK);
        if (round == 2) bytes = tmoe_ctx_bytes(ctx, &peak);
    }
    CHECK(tmoe_ctx_bytes(ctx, &peak) == bytes);
    tmoe_tape_destroy(tape);
    free(x);
    free(w);
    free(dw);
}

static void one_after_the_other(void *user, void (*task)(void *, int), void *arg, int n)
{
    (void)user;
    for (int lane = 0; lane < n; lane++) task(arg, lane);
}

/* This program is built without TMOE_THREADS. */
static void test_threads_that_cannot_be_had_are_said(void)
{
    tmoe_ctx_config config;
    memset(&config, 0, sizeof config);
    config.threads = 4;
    tmoe_ctx *single = tmoe_ctx_create(&config);
    CHECK(tmoe_ctx_threads(single) == 1);
    config.parallel_fn = one_after_the_other;
    tmoe_ctx *several = tmoe_ctx_create(&config);
    CHECK(tmoe_ctx_threads(several) == 4);
    tmoe_ctx_destroy(single);
    tmoe_ctx_destroy(several);
    config.isa = (tmoe_isa)(TMOE_ISA_AVX512 + 1);
    CHECK(tmoe_ctx_create(&config) == NULL);
}

TEST_MAIN("test_tape", ctx = tmoe_ctx_create(NULL); RUN(test_gradient_of_linear);
          RUN(test_gradient_of_linear_with_itself_as_residual); RUN(test_gradient_of_linear_gelu);
          RUN(test_gradient_of_linear_relu); RUN(test_gradient_of_layer_norm);
          RUN(test_gradient_of_normalize);
          RUN(test_gradient_of_normalize_of_what_a_product_needs_too);
          RUN(test_rows_are_normalized_to_length_1_or_stay_0);
          RUN(test_adamw_on_ones_own_leaves_is_the_formula); RUN(test_gradient_of_self_attention);
          RUN(test_gradient_of_causal_attention); RUN(test_gradient_of_cross_attention);
          RUN(test_gradient_of_rotary); RUN(test_gradient_of_rotary_of_what_a_product_needs_too);
          RUN(test_gradient_of_embedding); RUN(test_gradient_of_cross_entropy);
          RUN(test_gradient_of_cross_entropy_of_shared_logits);
          RUN(test_gradient_of_cross_entropy_of_a_route);
          RUN(test_gradient_of_cross_entropy_of_attention);
          RUN(test_gradient_of_cross_entropy_of_logits_that_a_product_needs);
          RUN(test_gradient_of_mix_parameters_used_whole); RUN(test_gradient_of_map);
          RUN(test_gradient_of_add_and_multiply); RUN(test_gradient_of_add_to_itself);
          RUN(test_gradient_of_affine_and_reshape); RUN(test_gradient_of_dropout);
          RUN(test_gradient_of_select); RUN(test_gradient_of_slice_and_concat);
          RUN(test_gradient_of_mix_outputs); RUN(test_gradient_of_mix_parameters);
          RUN(test_tasks_mixed_at_once_are_as_each_alone);
          RUN(test_straight_through_gradient_is_that_of_the_soft_sample);
          RUN(test_gradient_of_a_route_is_known_up_to_what_a_softmax_drops);
          RUN(test_one_hot_route_is_the_expert_itself);
          RUN(test_wrong_shapes_are_refused_with_the_values_and_the_rule);
          RUN(test_a_table_of_turns_that_makes_no_sense_is_refused);
          RUN(test_backward_refuses_a_loss_that_is_not_on_the_tape);
          RUN(test_a_second_loss_on_tensors_that_are_used_up_is_refused);
          RUN(test_a_repeated_step_allocates_nothing);
          RUN(test_threads_that_cannot_be_had_are_said); tmoe_ctx_destroy(ctx);)
