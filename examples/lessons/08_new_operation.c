/* Lesson 8: an operation of one's own for the tape.
 *
 * Lesson 6 had to work around what it wanted, every row divided by its length. Here it is:
 *
 *     forward    n_t = |x_t|,   y_t = x_t / n_t
 *     backward   dx_t = (dy_t - y_t <y_t, dy_t>) / n_t
 *
 * The backward line follows from dn/dx_j = x_j / n = y_j. It takes out of the gradient what points
 * along y, because a longer x gives the same y.
 *
 * The public API has no way to leave a node on a tape. But the implementation is compiled into this
 * file, and so are its private functions, tmoei_. The box at the head of >>ops names those that
 * make an operation, in seven steps, which are marked below. They are private because they may
 * change with the next version of the library.
 *
 * | dx[0]  tape  0.43  quotient  0.43
 * | dx[1]  tape  0.18  quotient  0.18
 * | dx[2]  tape -0.14  quotient -0.14
 * | dx[3]  tape  0.39  quotient  0.39
 * | all 8 agree to 0.001: yes
 * | unit_rows: x (8,1); needs 2 columns
 *
 * Run time: none to speak of. Read next: another operation in >>ops, such as layer norm. */
#define TASKMOE_IMPLEMENTATION
#include "../../taskmoe.h"
#include <math.h>
#include <stdio.h>

enum { ROWS = 2, COLUMNS = 4, COUNT = ROWS * COLUMNS };

static float x[COUNT] = { 0.5f, -1.2f, 0.8f, 0.3f, -0.7f, 0.4f, 1.1f, -0.2f }, dx[COUNT];
static float c[COUNT] = { 1.0f, -0.5f, 0.3f, 0.8f, -0.9f, 0.2f, 0.6f, -0.4f };

/* 6 backward: dx (+)= (dy - y <y, dy>) / n */
static void unit_rows_backward(tmoe_tape *tape, tmoei_node *node)
{
    const float *lengths = *(float *const *)node->kept; /* what step 5 recorded */
    float *gradient = tmoei_grad_to_add(node, 0);       /* NULL where x wants none */
    (void)tape;

    for (int row = 0; gradient && row < node->y->rows; row++) {
        const int columns = node->y->cols;
        const float *y = node->y->x + row * columns, *dy = node->y->dx + row * columns;
        float along = 0.0f;
        for (int i = 0; i < columns; i++) along += y[i] * dy[i];
        for (int i = 0; i < columns; i++)
            gradient[row * columns + i] += (dy[i] - y[i] * along) / lengths[row];
    }
}

/* y_t = x_t / |x_t|. The tiny number keeps a row of zeros from being divided by zero. */
static tmoe_tensor *unit_rows(tmoe_tape *tape, tmoe_tensor *input)
{
    /* 1 poison: an operation before this one failed */
    if (!input || tape->ctx->error != TMOE_OK) return NULL;

    /* 2 rule */
    const int rows = input->rows, columns = input->cols;
    TMOEI_SHAPE_RULE(tape, columns >= 2, "unit_rows: x (%d,%d); needs 2 columns", rows, columns);

    /* 3 result, and memory for what the backward pass needs again */
    tmoe_tensor *result = tmoei_tensor_new(tape, rows, columns, NULL);
    float *lengths = tmoei_floats(tape, (size_t)rows);
    if (!result || !lengths) return NULL;

    /* 4 compute; a dry tape only counts memory, so there is nothing to read. The float mode sets
     * numbers below 1.2e-38 to zero, as all operations do; the tape sets it for the way back. */
    const tmoei_float_mode mode = tmoei_float_mode_enter();
    for (int row = 0; !tape->dry && row < rows; row++) {
        const float *in = input->x + row * columns;
        float sum = 1e-12f;
        for (int i = 0; i < columns; i++) sum += in[i] * in[i];
        lengths[row] = sqrtf(sum);
        for (int i = 0; i < columns; i++) result->x[row * columns + i] = in[i] / lengths[row];
    }
    tmoei_float_mode_leave(mode);

    /* 5 record: the node keeps a copy of the pointer `lengths` */
    return tmoei_record(tape, result, unit_rows_backward, TMOEI_HAND_NONE, &lengths, sizeof lengths,
        &input, 1);
}

/* 7 the gradient check, as in lesson 1, of l = sum of c * y with constants c */
static tmoe_tensor *loss_of(tmoe_tape *tape)
{
    tmoe_tape_reset(tape);
    tmoe_tensor *y = unit_rows(tape, tmoe_leaf(tape, ROWS, COLUMNS, x, dx));
    return tmoe_sum(tape, tmoe_multiply(tape, y, tmoe_leaf(tape, ROWS, COLUMNS, c, NULL)));
}

int main(void)
{
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    tmoe_tape *tape = tmoe_tape_create(ctx);
    float worst = 0.0f, h = 0.01f;

    if (tmoe_backward(tape, loss_of(tape)) != TMOE_OK) return 1;
    for (int i = 0; i < COUNT; i++) {
        const float here = x[i];
        x[i] = here + h;
        const float above = loss_of(tape)->x[0];
        x[i] = here - h;
        const float below = loss_of(tape)->x[0];
        x[i] = here;
        const float quotient = (above - below) / (2.0f * h);
        worst = fmaxf(worst, fabsf(quotient - dx[i]));
        if (i < COLUMNS)
            printf("dx[%d]  tape %5.2f  quotient %5.2f\n", i, (double)dx[i], (double)quotient);
    }
    printf("all %d agree to 0.001: %s\n", COUNT, worst < 0.001f ? "yes" : "no");

    /* The rule at work: a refusal with the values and the rule, and no crash. */
    tmoe_tape_reset(tape);
    (void)tmoe_sum(tape, unit_rows(tape, tmoe_leaf(tape, COUNT, 1, x, NULL)));
    printf("%s\n", tmoe_error_message(ctx));

    tmoe_tape_destroy(tape);
    tmoe_ctx_destroy(ctx);
    return worst >= 0.001f;
}
