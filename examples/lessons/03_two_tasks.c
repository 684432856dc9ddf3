/* Lesson 3: two tasks that pull apart need two layers; a route says whose layer is whose.
 *
 * Task L turns a point of the plane by 60 degrees to the left, task R to the right. Both see the
 * same points. A dense layer y = W x, one for both tasks, does not know which task it works for. It
 * can only learn what the tasks share, the mean of the two turns, cos(60) I. Then it is always off
 * by sin(60), and its loss stays at sin(60)^2 = 0.75.
 *
 * Two experts hold a W each. Task t has a route r_t = softmax(z_t / tau), two weights with the sum
 * 1, and works with the merged layer W_t = r_t1 W_1 + r_t2 W_2. The logits z_t are trained with the
 * rest. They begin equal; but the gradients of L and R differ, so the routes part. As the
 * temperature tau falls, the routes become sharp, and each expert becomes the turn of one task.
 *
 * | step  dense  experts  route of L            route of R
 * |    0   0.92     0.86  11111111112222222222  11111111112222222222
 * |    5   0.75     0.72  11111111111222222222  11111111122222222222
 * |   10   0.75     0.56  11111111111111222222  11111112222222222222
 * |   20   0.75     0.02  11111111111111111222  11122222222222222222
 * |   40   0.75     0.00  11111111111111111122  11222222222222222222
 * |   80   0.75     0.00  11111111111111111112  12222222222222222222
 * |  160   0.75     0.00  11111111111111111111  22222222222222222222
 * | expert 1: cos  0.50, sin  0.87
 * | expert 2: cos  0.50, sin -0.87
 *
 * Run time: none to speak of. Read next: the head of >>mix in taskmoe.h. */
#define TASKMOE_IMPLEMENTATION
#include "../../taskmoe.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { LEFT, RIGHT, TASKS, POINTS = 12, EXPERTS = 2, MATRIX = 2 * 2, STEPS = 160, BAR = 20 };

static struct parameters {
    float dense[MATRIX], experts[EXPERTS * MATRIX], z[TASKS][EXPERTS];
} dw, w = { { 0.2f }, { 0.2f, -0.1f, 0.1f, 0.2f, 0.1f, 0.1f, -0.1f, 0.2f }, { { 0.0f } } };

static float points[POINTS * 2], minus_turned[TASKS][POINTS * 2];

static void make_points(void)
{
    const float full = 6.2831853f, turn[TASKS] = { full / 6.0f, -full / 6.0f };
    for (int i = 0; i < POINTS; i++) {
        const float angle = full * (float)i / POINTS;
        points[2 * i] = cosf(angle);
        points[2 * i + 1] = sinf(angle);
        for (int task = 0; task < TASKS; task++) {
            minus_turned[task][2 * i] = -cosf(angle + turn[task]);
            minus_turned[task][2 * i + 1] = -sinf(angle + turn[task]);
        }
    }
}

/* The mean of |W x - turned x|^2 over the points of a task. */
static tmoe_tensor *loss_of(tmoe_tape *tape, tmoe_tensor *matrix, int task)
{
    tmoe_tensor *x = tmoe_leaf(tape, POINTS, 2, points, NULL);
    tmoe_tensor *wanted = tmoe_leaf(tape, POINTS, 2, minus_turned[task], NULL);
    tmoe_tensor *error = tmoe_linear(tape, x, matrix, NULL, TMOE_NONE, wanted);
    return tmoe_affine(tape, tmoe_sum(tape, tmoe_multiply(tape, error, error)), 1.0f / POINTS, 0);
}

/* W_t = sum_e r_te W_e, with r_t = softmax(z_t / tau) */
static tmoe_tensor *merged_layer(tmoe_tape *tape, int task, float tau, tmoe_tensor **route)
{
    tmoe_tensor *z = tmoe_leaf(tape, 1, EXPERTS, w.z[task], dw.z[task]);
    *route = tmoe_select(tape, z, NULL, tau, 0);
    tmoe_tensor *bar = tmoe_mix_parameters(tape, w.experts, dw.experts, EXPERTS, MATRIX, *route, 0);
    return tmoe_reshape(tape, bar, 2, 2);
}

/* A bar of ones and twos: the shares of the two experts. */
static void draw(const tmoe_tensor *route)
{
    printf("  ");
    for (int i = 0; i < BAR; i++) putchar((float)i + 0.5f < route->x[0] * BAR ? '1' : '2');
}

int main(void)
{
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    tmoe_tape *tape = tmoe_tape_create(ctx);
    float dense_loss = 0.0f, experts_loss = 0.0f;
    int show_at = 0;

    make_points();
    printf("step  dense  experts  route of L            route of R\n");
    for (int step = 0; step <= STEPS; step++) {
        const float tau = fmaxf(1.0f - (float)step / STEPS, 0.1f);
        tmoe_tensor *routes[TASKS], *dense[TASKS], *experts[TASKS];
        memset(&dw, 0, sizeof dw);
        tmoe_tape_reset(tape);

        for (int task = 0; task < TASKS; task++) {
            dense[task] = loss_of(tape, tmoe_leaf(tape, 2, 2, w.dense, dw.dense), task);
            experts[task] = loss_of(tape, merged_layer(tape, task, tau, &routes[task]), task);
        }
        tmoe_tensor *dense_sum = tmoe_add(tape, dense[LEFT], dense[RIGHT]);
        tmoe_tensor *experts_sum = tmoe_add(tape, experts[LEFT], experts[RIGHT]);
        if (tmoe_backward(tape, tmoe_add(tape, dense_sum, experts_sum)) != TMOE_OK) return 1;
        dense_loss = dense_sum->x[0] / TASKS;
        experts_loss = experts_sum->x[0] / TASKS;
        if (step == show_at) {
            show_at = step ? 2 * step : 5;
            printf("%4d   %.2f     %.2f", step, (double)dense_loss, (double)experts_loss);
            draw(routes[LEFT]);
            draw(routes[RIGHT]);
            printf("\n");
        }
        for (size_t i = 0; i < sizeof w / sizeof(float); i++)
            ((float *)&w)[i] -= 0.25f * ((const float *)&dw)[i];
    }
    for (int e = 0; e < EXPERTS; e++) {
        const float *turn = w.experts + e * MATRIX; /* cos -sin, sin cos */
        printf("expert %d: cos %5.2f, sin %5.2f\n", e + 1, (double)turn[0], (double)turn[2]);
    }

    tmoe_tape_destroy(tape);
    tmoe_ctx_destroy(ctx);
    return fabsf(dense_loss - 0.75f) > 0.01f || experts_loss > 0.01f;
}
