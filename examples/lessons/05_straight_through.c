/* Lesson 5: straight-through selection: one expert forward, all experts backward.
 *
 * A soft route runs a mixture. A hard route r = one-hot(argmax z) runs one expert, but it is a step
 * function of z: its derivative is 0 almost everywhere, and the router learns nothing. Straight-
 * through selection (Jang 2017) goes forward with the one-hot r and backward as if r had been the
 * softmax s. With theta_bar the chosen expert and g the gradient there:
 *
 *     s = softmax((z + noise) / tau)          dr_e = <g, theta_e - theta_bar>
 *     r = one-hot(argmax s)                   dz_j = s_j (dr_j - sum_e s_e dr_e) / tau
 *
 * So experts that did not run get a vote, too: part 1 prints it beside the true derivative, 0.
 *
 * A choice without noise would never try the others. Gumbel noise, -log(-log u) of an even random
 * number u, makes expert e the choice with the probability softmax(z)_e. Each time a bad expert is
 * chosen, the vote goes against it; so its probability falls, and the route sharpens: part 2.
 *
 * | expert  r forward  s backward  dz of the tape  quotient
 * |      1          1        0.39            0.49      0.00
 * |      2          0        0.32            0.02      0.00
 * |      3          0        0.29           -0.51      0.00
 * |
 * | step  probability of expert 3
 * |    0  #########.....................  chosen  0 times in 0
 * |   40  ########################......  chosen 22 times in 40
 * |   80  ############################..  chosen 34 times in 40
 * |  120  #############################.  chosen 37 times in 40
 * |  160  #############################.  chosen 36 times in 40
 * |  200  #############################.  chosen 39 times in 40
 *
 * Run time: none to speak of. Read next: select in >>mix, then >>router. */
#define TASKMOE_IMPLEMENTATION
#include "../../taskmoe.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { EXPERTS = 3, BLOCK = 2, STEPS = 200, BAR = 30 };

/* Three experts that stay as they are; the third one is almost what is wanted. */
static float theta[EXPERTS][BLOCK] = { { 1.0f, 0.0f }, { -0.5f, 0.9f }, { -0.5f, -0.9f } };
static float minus_target[BLOCK] = { 0.4f, 1.0f };
static float z[EXPERTS] = { 0.3f, 0.1f, 0.0f }, dz[EXPERTS]; /* the router: three numbers */

static float random_number(void) /* between 0 and 1, the same on every machine */
{
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return ((float)(state >> 8) + 0.5f) / 16777216.0f;
}

/* l = 1/2 |theta_bar - target|^2 with the expert that the route names */
static tmoe_tensor *loss_of(tmoe_tape *tape, const float *noise, tmoe_tensor **route)
{
    tmoe_tape_reset(tape);
    *route = tmoe_select(tape, tmoe_leaf(tape, 1, EXPERTS, z, dz), noise, 1.0f, 1); /* 1: hard */
    tmoe_tensor *chosen = tmoe_mix_parameters(tape, theta[0], NULL, EXPERTS, BLOCK, *route, 0);
    tmoe_tensor *error = tmoe_add(tape, chosen, tmoe_leaf(tape, 1, BLOCK, minus_target, NULL));
    return tmoe_affine(tape, tmoe_sum(tape, tmoe_multiply(tape, error, error)), 0.5f, 0.0f);
}

static void softmax(float *s)
{
    float sum = 0.0f;
    for (int e = 0; e < EXPERTS; e++) {
        s[e] = expf(z[e]);
        sum += s[e];
    }
    for (int e = 0; e < EXPERTS; e++) s[e] /= sum;
}

/* Part 1: one pass without noise. */
static int show_votes(tmoe_tape *tape)
{
    const float h = 0.01f;
    float s[EXPERTS], r[EXPERTS], above, below;
    tmoe_tensor *route;
    softmax(s);
    if (tmoe_backward(tape, loss_of(tape, NULL, &route)) != TMOE_OK) return 0;
    memcpy(r, route->x, sizeof r);
    printf("expert  r forward  s backward  dz of the tape  quotient\n");
    for (int e = 0; e < EXPERTS; e++) {
        z[e] += h;
        above = loss_of(tape, NULL, &route)->x[0];
        z[e] -= 2.0f * h;
        below = loss_of(tape, NULL, &route)->x[0];
        z[e] += h;
        printf("%6d %10.0f %11.2f %15.2f %9.2f\n", e + 1, (double)r[e], (double)s[e], (double)dz[e],
            (double)((above - below) / (2.0f * h)));
    }
    return 1;
}

int main(void)
{
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    tmoe_tape *tape = tmoe_tape_create(ctx);
    float s[EXPERTS], noise[EXPERTS];
    int third = 0;

    if (!show_votes(tape)) return 1;
    printf("\nstep  probability of expert 3\n");
    for (int step = 0; step <= STEPS; step++) {
        tmoe_tensor *route;
        softmax(s);
        if (step % 40 == 0) {
            printf("%4d  ", step);
            for (int i = 0; i < BAR; i++) putchar((float)i + 0.5f < s[2] * BAR ? '#' : '.');
            printf("  chosen %2d times in %d\n", third, step ? 40 : 0);
            third = 0;
        }
        for (int e = 0; e < EXPERTS; e++) noise[e] = -logf(-logf(random_number()));
        memset(dz, 0, sizeof dz);
        if (tmoe_backward(tape, loss_of(tape, noise, &route)) != TMOE_OK) return 1;
        third += route->x[2] == 1.0f;
        for (int e = 0; e < EXPERTS; e++) z[e] -= 0.2f * dz[e];
    }
    tmoe_tape_destroy(tape);
    tmoe_ctx_destroy(ctx);
    return s[2] < 0.9f;
}
