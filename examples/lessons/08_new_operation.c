/* Lesson 8: an operation of one's own for the tape.
 *
 * How sharp is a route? Its entropy says it: ln E for an even route of E experts, 0 for a one-hot
 * route. An operation makes it a part of the loss, so that training can ask for sharp routes.
 *
 *     forward    H_t = -sum_e r_te ln r_te
 *     backward   dr_te = -(ln r_te + 1) dH_t
 *
 * The public API has no way to leave a node on a tape. But the implementation is compiled into this
 * file, and so are its private functions, tmoei_. The box at the head of >>ops names those that
 * make an operation, in seven steps, which are marked below. They are private because they may
 * change with the next version of the library.
 *
 * | entropies 1.10 and 0.59
 * | gradient of the second route's logits: 0.16 -0.09 -0.07
 * | all 6 agree with the quotients to 0.001: yes
 * | entropy: route (6,1); needs 2 experts
 *
 * Run time: none to speak of. Read next: another operation in >>ops, such as layer norm. */
#define TASKMOE_IMPLEMENTATION
#include "../../taskmoe.h"
#include <math.h>
#include <stdio.h>

enum { TASKS = 2, EXPERTS = 3, COUNT = TASKS * EXPERTS };

static float z[COUNT] = { 0.0f, 0.0f, 0.0f, 1.5f, -0.4f, -1.1f },
             dz[COUNT];                        /* logits of two tasks */
static float weights[TASKS] = { 1.0f, -0.5f }; /* of the two entropies in the loss */

/* A share of 0 adds nothing, but its logarithm is infinite: it is taken for this one. */
static float logarithm(float share)
{
    return logf(share > 1e-30f ? share : 1e-30f);
}

/* 6 backward: dr (+)= -(ln r + 1) dH */
static void entropy_backward(tmoe_tape *tape, tmoei_node *node)
{
    const tmoe_tensor *entropy = node->y, *route = node->in[0];
    float *dr = tmoei_grad_to_add(node, 0); /* NULL where the route wants no gradient */
    (void)tape;

    for (int task = 0; dr && task < route->rows; task++)
        for (int e = 0; e < route->cols; e++) {
            const int at = task * route->cols + e;
            dr[at] -= (logarithm(route->x[at]) + 1.0f) * entropy->dx[task];
        }
}

/* H_t = -sum_e r_te ln r_te, a row for each task */
static tmoe_tensor *entropy_of(tmoe_tape *tape, tmoe_tensor *route)
{
    /* 1 poison: an operation before this one failed */
    if (!route || tape->ctx->error != TMOE_OK) return NULL;

    /* 2 rule */
    const int rows = route->rows, columns = route->cols;
    TMOEI_SHAPE_RULE(tape, columns >= 2, "entropy: route (%d,%d); needs 2 experts", rows, columns);

    /* 3 result */
    tmoe_tensor *entropy = tmoei_tensor_new(tape, rows, 1, NULL);
    if (!entropy) return NULL;

    /* 4 compute; a dry tape only counts memory, so there is nothing to read. The float mode takes
     * numbers below 1.2e-38 for zero, as all operations do; the tape sets it for the way back. */
    const tmoei_float_mode mode = tmoei_float_mode_enter();
    for (int task = 0; !tape->dry && task < rows; task++) {
        const float *r = route->x + task * columns;
        float sum = 0.0f;
        for (int e = 0; e < columns; e++) sum -= r[e] * logarithm(r[e]);
        entropy->x[task] = sum;
    }
    tmoei_float_mode_leave(mode);

    /* 5 record: one input, and nothing else that the way back needs */
    return tmoei_record(tape, entropy, entropy_backward, TMOEI_HAND_NONE, NULL, 0, &route, 1);
}

/* 7 the gradient check, as in lesson 1, of l = sum_t weight_t H_t as a function of the logits */
static tmoe_tensor *loss_of(tmoe_tape *tape, tmoe_tensor **entropy)
{
    tmoe_tape_reset(tape);
    tmoe_tensor *route = tmoe_select(tape, tmoe_leaf(tape, TASKS, EXPERTS, z, dz), NULL, 1.0f, 0);
    *entropy = entropy_of(tape, route);
    tmoe_tensor *weight = tmoe_leaf(tape, TASKS, 1, weights, NULL);
    return tmoe_sum(tape, tmoe_multiply(tape, *entropy, weight));
}

int main(void)
{
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    tmoe_tape *tape = tmoe_tape_create(ctx);
    tmoe_tensor *entropy;
    float worst = 0.0f, h = 0.01f;

    if (tmoe_backward(tape, loss_of(tape, &entropy)) != TMOE_OK) return 1;
    printf("entropies %.2f and %.2f\n", (double)entropy->x[0], (double)entropy->x[1]);
    for (int i = 0; i < COUNT; i++) {
        const float here = z[i];
        z[i] = here + h;
        const float above = loss_of(tape, &entropy)->x[0];
        z[i] = here - h;
        const float below = loss_of(tape, &entropy)->x[0];
        z[i] = here;
        worst = fmaxf(worst, fabsf((above - below) / (2.0f * h) - dz[i]));
    }
    printf("gradient of the second route's logits: %.2f %.2f %.2f\n", (double)dz[3], (double)dz[4],
        (double)dz[5]);
    printf("all %d agree with the quotients to 0.001: %s\n", COUNT, worst < 0.001f ? "yes" : "no");

    /* The rule at work: a refusal with the values and the rule, and no crash. */
    tmoe_tape_reset(tape);
    (void)tmoe_sum(tape, entropy_of(tape, tmoe_leaf(tape, COUNT, 1, z, NULL)));
    printf("%s\n", tmoe_error_message(ctx));

    tmoe_tape_destroy(tape);
    tmoe_ctx_destroy(ctx);
    return worst >= 0.001f;
}
