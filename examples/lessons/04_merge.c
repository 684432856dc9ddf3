/* Lesson 4: the gradient of a merge, by hand and by the library.
 *
 * Three experts of four parameters are merged by a route, and the merged layer has a loss:
 *
 *     r = softmax(z),   theta_bar = sum_e r_e theta_e,   l = 1/2 |theta_bar - target|^2
 *
 * Let g = dl/dtheta_bar; here it is theta_bar - target. By the chain rule
 *
 *     dl/dtheta_e = r_e g            an expert learns as much as it is used
 *     dl/dr_e     = <g, theta_e>     a share grows if its expert points against the gradient
 *
 * The shares sum to 1, so a number that all dl/dr_e have in common moves nothing: it cancels in
 * dl/dz_j = r_j (dr_j - sum_e r_e dr_e). The library takes c = <g, theta_bar> from all of them:
 *
 *     dr_e = <g, theta_e - theta_bar>
 *
 * Read it so: g is the direction in which the loss grows, and theta_e - theta_bar is where the
 * merged layer would go with more of expert e. With this choice sum_e r_e dr_e = 0, so that
 * dl/dz_j = r_j dr_j.
 *
 * | expert  share  <g,theta_e>    dr hand  library    dz hand  library  quotient
 * |      1   0.35       -0.748     -0.581   -0.581     -0.201   -0.201    -0.201
 * |      2   0.23        0.838      1.005    1.005      0.233    0.233     0.233
 * |      3   0.42       -0.243     -0.076   -0.076     -0.032   -0.032    -0.032
 * | hand, library and quotient agree to 0.001, r_e g and dtheta_e too: yes
 *
 * Run time: none to speak of. Read next: mix of parameters in >>mix, the README's derivation. */
#define TASKMOE_IMPLEMENTATION
#include "../../taskmoe.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { EXPERTS = 3, BLOCK = 4 };

static float theta[EXPERTS][BLOCK] = { { 0.9f, -0.3f, 0.5f, 0.1f }, { -0.4f, 0.8f, 0.2f, -0.6f },
    { 0.3f, 0.4f, -0.7f, 0.6f } };
static float minus_target[BLOCK] = { -1.0f, 0.2f, 0.1f, -0.5f };
static float z[EXPERTS] = { 0.2f, -0.2f, 0.4f };

static float dot(const float *a, const float *b)
{
    float sum = 0.0f;
    for (int i = 0; i < BLOCK; i++) sum += a[i] * b[i];
    return sum;
}

/* The loss of the layer that a route merges; dtheta NULL: the experts are constants. */
static tmoe_tensor *loss_of(tmoe_tape *tape, tmoe_tensor *route, float *dtheta)
{
    tmoe_tensor *merged = tmoe_mix_parameters(tape, theta[0], dtheta, EXPERTS, BLOCK, route, 0);
    tmoe_tensor *error = tmoe_add(tape, merged, tmoe_leaf(tape, 1, BLOCK, minus_target, NULL));
    return tmoe_affine(tape, tmoe_sum(tape, tmoe_multiply(tape, error, error)), 0.5f, 0.0f);
}

/* The loss as a function of z, which is all that a difference quotient needs. */
static float loss_at(tmoe_tape *tape)
{
    tmoe_tape_reset(tape);
    tmoe_tensor *logits = tmoe_leaf(tape, 1, EXPERTS, z, NULL);
    return loss_of(tape, tmoe_select(tape, logits, NULL, 1.0f, 0), NULL)->x[0];
}

int main(void)
{
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    tmoe_tape *tape = tmoe_tape_create(ctx);
    float r[EXPERTS], bar[BLOCK] = { 0.0f }, g[BLOCK], worst = 0.0f;
    float dr[EXPERTS] = { 0.0f }, dz[EXPERTS] = { 0.0f }, dtheta[EXPERTS][BLOCK] = { { 0.0f } };

    /* The library, with z as a leaf: through the merge and through the softmax. */
    tmoe_tensor *logits = tmoe_leaf(tape, 1, EXPERTS, z, dz);
    tmoe_tensor *soft = tmoe_select(tape, logits, NULL, 1.0f, 0);
    if (tmoe_backward(tape, loss_of(tape, soft, dtheta[0])) != TMOE_OK) return 1;
    memcpy(r, soft->x, sizeof r);

    /* Once more with the route as a leaf, to see its gradient. */
    tmoe_tape_reset(tape);
    tmoe_tensor *route = tmoe_leaf(tape, 1, EXPERTS, r, dr);
    if (tmoe_backward(tape, loss_of(tape, route, NULL)) != TMOE_OK) return 1;

    /* By hand. */
    for (int e = 0; e < EXPERTS; e++)
        for (int i = 0; i < BLOCK; i++) bar[i] += r[e] * theta[e][i];
    for (int i = 0; i < BLOCK; i++) g[i] = bar[i] + minus_target[i];

    printf("expert  share  <g,theta_e>    dr hand  library    dz hand  library  quotient\n");
    for (int e = 0; e < EXPERTS; e++) {
        const float h = 0.01f, here = z[e];
        const float dr_hand = dot(g, theta[e]) - dot(g, bar), dz_hand = r[e] * dr_hand;
        float quotient;

        z[e] = here + h;
        quotient = loss_at(tape);
        z[e] = here - h;
        quotient = (quotient - loss_at(tape)) / (2.0f * h);
        z[e] = here;

        printf("%6d   %.2f %12.3f %10.3f %8.3f %10.3f %8.3f %9.3f\n", e + 1, (double)r[e],
            (double)dot(g, theta[e]), (double)dr_hand, (double)dr[e], (double)dz_hand,
            (double)dz[e], (double)quotient);
        worst = fmaxf(worst, fabsf(dr_hand - dr[e]));
        worst = fmaxf(worst, fmaxf(fabsf(dz_hand - dz[e]), fabsf(quotient - dz[e])));
        for (int i = 0; i < BLOCK; i++) worst = fmaxf(worst, fabsf(dtheta[e][i] - r[e] * g[i]));
    }
    printf("hand, library and quotient agree to 0.001, r_e g and dtheta_e too: %s\n",
        worst < 0.001f ? "yes" : "no");

    tmoe_tape_destroy(tape);
    tmoe_ctx_destroy(ctx);
    return worst >= 0.001f;
}
