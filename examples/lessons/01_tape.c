/* Lesson 1: a tape computes values forward and gradients backward.
 *
 * A tape is a list. Each operation computes its result at once and leaves a node on the list; the
 * node knows how to go back. tmoe_backward starts at the loss l, where dl/dl = 1, and walks the
 * list from the last node to the first. Each node applies the chain rule to its own operation. What
 * arrives at the leaves is the gradient: for every weight w the number dl/dw.
 *
 * Is that number right? A derivative is the limit of a difference quotient, so a quotient with a
 * small h must be close to it. This is the gradient check, the test of every operation:
 *
 *     dl/dw  ~  (l(w + h) - l(w - h)) / 2h
 *
 * | loss 3.03
 * |
 * | weight     tape  quotient
 * | w[0][0]    -0.77     -0.77
 * | w[0][1]    -0.29     -0.29
 * | w[0][2]    -0.25     -0.25
 * | w[1][0]    -0.60     -0.60
 * | w[1][1]    -1.10     -1.10
 * | w[1][2]     1.96      1.96
 * | b[0]       -1.60     -1.60
 * | b[1]        0.31      0.31
 * | they agree to 0.001: yes
 *
 * Run time: none to speak of. Read next: >>tape in taskmoe.h, then lesson 2. */
#define TASKMOE_IMPLEMENTATION
#include "../../taskmoe.h"
#include <math.h>
#include <stdio.h>

enum { ROWS = 4, INPUTS = 3, OUTPUTS = 2, WEIGHTS = OUTPUTS * INPUTS + OUTPUTS };

/* Four rows of three numbers, and what the layer should make of each row. */
static float x[ROWS * INPUTS] = { 0.5f, -1.0f, 2.0f, 1.5f, 0.3f, -0.7f, -0.2f, 0.8f, 0.1f, -1.2f,
    0.4f, 0.9f };
static float minus_target[ROWS * OUTPUTS] = { -0.8f, 0.1f, -0.3f, 0.5f, 0.6f, -0.9f, 0.2f, 0.4f };

/* The weights, w (OUTPUTS, INPUTS) and behind it b (OUTPUTS), and the gradient of each. */
static float weights[WEIGHTS] = { 0.3f, -0.5f, 0.2f, -0.4f, 0.1f, 0.6f, -0.3f, 0.2f };
static float gradients[WEIGHTS];

/* y = tanh(x w^T + b);  l = sum (y - target)^2.  Forward: each line computes at once. */
static tmoe_tensor *loss_of(tmoe_tape *tape)
{
    float *b = weights + OUTPUTS * INPUTS, *db = gradients + OUTPUTS * INPUTS;

    /* A leaf is memory of the program. Without memory for a gradient it is a constant. */
    tmoe_tensor *inputs = tmoe_leaf(tape, ROWS, INPUTS, x, NULL);
    tmoe_tensor *wanted = tmoe_leaf(tape, ROWS, OUTPUTS, minus_target, NULL);
    tmoe_tensor *matrix = tmoe_leaf(tape, OUTPUTS, INPUTS, weights, gradients);
    tmoe_tensor *bias = tmoe_leaf(tape, 1, OUTPUTS, b, db);

    tmoe_tensor *sums = tmoe_linear(tape, inputs, matrix, bias, TMOE_NONE, NULL);
    tmoe_tensor *error = tmoe_add(tape, tmoe_activate(tape, sums, TMOE_TANH), wanted);
    return tmoe_sum(tape, tmoe_multiply(tape, error, error));
}

/* (l(w + h) - l(w - h)) / 2h: two forward passes for ONE weight. The tape gives all weights in one
 * backward pass, which costs about as much as two forward passes. That is why there are tapes. */
static float quotient_of(tmoe_tape *tape, float *weight)
{
    const float h = 0.004f, here = *weight;
    float loss[2];

    for (int side = 0; side < 2; side++) {
        *weight = side ? here + h : here - h;
        tmoe_tape_reset(tape); /* forgets the tensors of the last pass */
        loss[side] = loss_of(tape)->x[0];
    }
    *weight = here;
    return (loss[1] - loss[0]) / (2.0f * h);
}

int main(void)
{
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    tmoe_tape *tape = tmoe_tape_create(ctx);
    int agree = 1;

    tmoe_tensor *loss = loss_of(tape);
    /* An operation that fails returns NULL, and so do all that build on it: one check is enough. */
    if (!loss || tmoe_backward(tape, loss) != TMOE_OK) {
        fprintf(stderr, "%s\n", tmoe_error_message(ctx));
        return 1;
    }
    printf("loss %.2f\n\nweight     tape  quotient\n", (double)loss->x[0]);

    for (int i = 0; i < WEIGHTS; i++) {
        const float quotient = quotient_of(tape, &weights[i]);
        if (fabsf(quotient - gradients[i]) > 0.001f) agree = 0;
        if (i < OUTPUTS * INPUTS)
            printf("w[%d][%d] %8.2f  %8.2f\n", i / INPUTS, i % INPUTS, (double)gradients[i],
                (double)quotient);
        else
            printf("b[%d]    %8.2f  %8.2f\n", i - OUTPUTS * INPUTS, (double)gradients[i],
                (double)quotient);
    }
    printf("they agree to 0.001: %s\n", agree ? "yes" : "no");

    tmoe_tape_destroy(tape);
    tmoe_ctx_destroy(ctx);
    return !agree;
}
