/* Lesson 6: a router of one's own, with a prototype for each expert.
 *
 * So far a task had logits of its own, which say nothing about any other task. A router makes them
 * from a vector that describes the task; so a task that was never trained gets a route, too. This
 * router has a trained prototype p_e for each expert, in the same space as the task vectors v_t:
 *
 *     z_te = cos(v_t, p_e),   r_t = softmax(z_t / tau)
 *
 * The closer a task is to a prototype, the more it uses that expert. tmoe_normalize divides each row
 * by its length; the product of two such matrices, v p^T, holds the cosines.
 *
 * There are three families of tasks, and each wants another layer: (1,0,0), (0,1,0) or (0,0,1). As
 * in lesson 4 the loss is |theta_bar - target|^2. Nobody tells the router the family; it has eight
 * numbers for each task, which are similar within a family. The last three tasks are never trained.
 *
 * | task       expert 1    2    3
 * | 1 trained        0.0  1.0  0.0
 * | 2 trained        0.0  0.0  1.0
 * | 3 trained        1.0  0.0  0.0
 * | 4 trained        0.0  1.0  0.0
 * | 5 trained        0.0  0.0  0.9
 * | 6 trained        1.0  0.0  0.0
 * | 7 new            0.0  1.0  0.0
 * | 8 new            0.0  0.0  1.0
 * | 9 new            0.9  0.1  0.0
 * | loss of the new tasks below 0.05: yes
 *
 * Run time: none to speak of. Read next: >>router in taskmoe.h, which reads instructions. */
#define TASKMOE_IMPLEMENTATION
#include "../../taskmoe.h"
#include <stdio.h>
#include <string.h>

enum { FAMILIES = 3, TRAINED = 6, TASKS = 9, NUMBERS = 8, EXPERTS = 3, BLOCK = 3, STEPS = 100 };

static struct parameters {
    float prototypes[EXPERTS * NUMBERS], experts[EXPERTS * BLOCK];
} w, dw; /* what is trained, and its gradient */

static float vectors[TASKS * NUMBERS], minus_targets[TASKS * BLOCK];

static float random_number(void) /* from -1 to 1, the same on every machine */
{
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1.0f;
}

static void fill(float *numbers, int count, float size)
{
    for (int i = 0; i < count; i++) numbers[i] = size * random_number();
}

/* Task t is of family t % FAMILIES. Its vector is the family's with something of its own added. */
static void make_tasks(void)
{
    float family[FAMILIES * NUMBERS];
    fill(family, FAMILIES * NUMBERS, 1.0f);
    fill(vectors, TASKS * NUMBERS, 0.3f);
    for (int i = 0; i < TASKS * NUMBERS; i++) vectors[i] += family[i % (FAMILIES * NUMBERS)];
    for (int t = 0; t < TASKS; t++) minus_targets[t * BLOCK + t % FAMILIES] = -1.0f;
}

/* r_t = softmax(cos(v_t, p_e) / tau), a row for each of `tasks` tasks from the first one on */
static tmoe_tensor *routes_of(tmoe_tape *tape, int first, int tasks)
{
    tmoe_tensor *v = tmoe_leaf(tape, tasks, NUMBERS, vectors + first * NUMBERS, NULL);
    tmoe_tensor *p = tmoe_leaf(tape, EXPERTS, NUMBERS, w.prototypes, dw.prototypes);
    tmoe_tensor *cosines =
        tmoe_linear(tape, tmoe_normalize(tape, v), tmoe_normalize(tape, p), NULL, TMOE_NONE, NULL);
    return tmoe_select(tape, cosines, NULL, 0.2f, 0);
}

/* The sum of |theta_bar - target|^2 over the tasks: a route a row, a merged layer a row. */
static tmoe_tensor *loss_of(tmoe_tape *tape, tmoe_tensor *routes, int first)
{
    float *wanted = minus_targets + first * BLOCK;
    tmoe_tensor *bars = tmoe_mix_parameters(tape, w.experts, dw.experts, EXPERTS, BLOCK, routes, 0);
    tmoe_tensor *error = tmoe_add(tape, bars, tmoe_leaf(tape, routes->rows, BLOCK, wanted, NULL));
    return tmoe_sum(tape, tmoe_multiply(tape, error, error));
}

int main(void)
{
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    tmoe_tape *tape = tmoe_tape_create(ctx);

    make_tasks();
    fill(w.prototypes, EXPERTS * NUMBERS, 1.0f);
    fill(w.experts, EXPERTS * BLOCK, 0.5f);
    for (int step = 0; step < STEPS; step++) {
        memset(&dw, 0, sizeof dw);
        tmoe_tape_reset(tape);
        if (tmoe_backward(tape, loss_of(tape, routes_of(tape, 0, TRAINED), 0)) != TMOE_OK) return 1;
        for (size_t i = 0; i < sizeof w / sizeof(float); i++)
            ((float *)&w)[i] -= 0.1f * ((const float *)&dw)[i];
    }

    tmoe_tape_reset(tape);
    const tmoe_tensor *routes = routes_of(tape, 0, TASKS);
    printf("task       expert 1    2    3\n");
    for (int t = 0; t < TASKS; t++) {
        printf("%d %-8s     ", t + 1, t < TRAINED ? "trained" : "new");
        for (int e = 0; e < EXPERTS; e++) printf("  %.1f", (double)routes->x[t * EXPERTS + e]);
        printf("\n");
    }
    const float loss = loss_of(tape, routes_of(tape, TRAINED, TASKS - TRAINED), TRAINED)->x[0];
    printf("loss of the new tasks below 0.05: %s\n", loss < 0.05f ? "yes" : "no");

    tmoe_tape_destroy(tape);
    tmoe_ctx_destroy(ctx);
    return loss >= 0.05f;
}
