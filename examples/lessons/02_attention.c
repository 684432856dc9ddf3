/* Lesson 2: attention looks something up.
 *
 * A list has four items, a letter with a digit each: "d5 a7 f1 c4". The question is a letter, "c";
 * the answer is its digit, 4. No fixed weighted sum of the items answers it, as any item may be the
 * one that is asked for. Attention computes the weights of the sum from the question:
 *
 *     p = softmax(q k^T / sqrt(D)),   y = p v
 *
 * The question makes a query q, each item a key k and a value v; weights are large where q and k
 * point the same way. What to compare is learned: by w -= rate * dl/dw, again and again.
 *
 * | step  0  loss 2.3
 * | step 20  loss 0.2
 * | step 40  loss 0.0
 * | step 60  loss 0.0
 * | Asked for c, it looks at  d5 1 %  a7 0 %  f1 1 %  c4 98 %
 *
 * Run time: none to speak of. Read next: tmoe_attention in taskmoe.h, and attention in >>ops. */
#define TASKMOE_IMPLEMENTATION
#include "../../taskmoe.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { LISTS = 64, ITEMS = 4, LETTERS = 8, DIGITS = 10, WIDTH = 32, STEPS = 60 };

enum { PARAMETERS = (LETTERS + 2 * DIGITS + 3 * WIDTH) * WIDTH };

static float weights[PARAMETERS], gradients[PARAMETERS]; /* all matrices, one behind the other */
static int letters[LISTS * ITEMS], digits[LISTS * ITEMS], asked[LISTS], answers[LISTS];
static int list_begins[LISTS + 1], query_begins[LISTS + 1]; /* first rows, and where all end */
static tmoe_tensor *query, *key_value;                      /* of the latest pass */

static int random_below(int n) /* the same numbers on every machine */
{
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return (int)((state >> 8) % (uint32_t)n);
}

static void make_lists(void)
{
    for (int list = 0; list < LISTS; list++) {
        const int first = random_below(LETTERS), stride = 1 + 2 * random_below(LETTERS / 2);
        const int wanted = list * ITEMS + random_below(ITEMS);
        for (int i = 0; i < ITEMS; i++) {
            letters[list * ITEMS + i] = (first + i * stride) % LETTERS; /* four that differ */
            digits[list * ITEMS + i] = random_below(DIGITS);
        }
        asked[list] = letters[wanted];
        answers[list] = digits[wanted];
        list_begins[list + 1] = (list + 1) * ITEMS;
        query_begins[list + 1] = list + 1;
    }
}

static tmoe_tensor *next_matrix(tmoe_tape *tape, int rows, int *used)
{
    const int at = *used;
    *used += rows * WIDTH;
    return tmoe_leaf(tape, rows, WIDTH, weights + at, gradients + at);
}

/* Returns a row of scores for each list, one score for each digit. */
static tmoe_tensor *scores_of(tmoe_tape *tape)
{
    int used = 0; /* so many weights have a matrix already */
    tmoe_tensor *letter_rows = next_matrix(tape, LETTERS, &used);
    tmoe_tensor *digit_rows = next_matrix(tape, DIGITS, &used);
    tmoe_tensor *to_query = next_matrix(tape, WIDTH, &used);
    tmoe_tensor *to_key_value = next_matrix(tape, 2 * WIDTH, &used);
    tmoe_tensor *to_scores = next_matrix(tape, DIGITS, &used);

    /* An item is the sum of its letter's row and its digit's row. */
    tmoe_tensor *a = tmoe_embedding(tape, letter_rows, LISTS * ITEMS, letters, 1.0f, NULL, NULL);
    tmoe_tensor *b = tmoe_embedding(tape, digit_rows, LISTS * ITEMS, digits, 1.0f, NULL, NULL);
    tmoe_tensor *question = tmoe_embedding(tape, letter_rows, LISTS, asked, 1.0f, NULL, NULL);
    query = tmoe_linear(tape, question, to_query, NULL, TMOE_NONE, NULL);
    key_value = tmoe_linear(tape, tmoe_add(tape, a, b), to_key_value, NULL, TMOE_NONE, NULL);
    tmoe_tensor *y = tmoe_attention(tape, query, key_value, 1, LISTS, query_begins, list_begins, 0);
    return tmoe_linear(tape, y, to_scores, NULL, TMOE_NONE, NULL);
}

/* The first list, with its weights p computed once more from q and k. */
static void show_weights(void)
{
    float p[ITEMS], sum = 0.0f, dot;
    for (int i = 0; i < ITEMS; i++) {
        dot = 0.0f;
        for (int d = 0; d < WIDTH; d++) dot += query->x[d] * key_value->x[i * 2 * WIDTH + d];
        p[i] = expf(dot / sqrtf((float)WIDTH));
        sum += p[i];
    }
    printf("Asked for %c, it looks at", 'a' + asked[0]);
    for (int i = 0; i < ITEMS; i++)
        printf("  %c%d %.0f %%", 'a' + letters[i], digits[i], (double)(100.0f * p[i] / sum));
    printf("\n");
}

int main(void)
{
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    tmoe_tape *tape = tmoe_tape_create(ctx);
    float last_loss = 0.0f;
    for (int i = 0; i < PARAMETERS; i++) weights[i] = 0.0005f * (float)(random_below(2001) - 1000);
    for (int step = 0; step <= STEPS; step++) {
        make_lists();
        tmoe_tape_reset(tape);
        tmoe_tensor *loss = tmoe_cross_entropy(tape, scores_of(tape), answers, 0.0f, 1.0f / LISTS);
        memset(gradients, 0, sizeof gradients); /* the backward pass adds to them */
        if (tmoe_backward(tape, loss) != TMOE_OK) return 1;
        last_loss = loss->x[0];
        if (step % 20 == 0) printf("step %2d  loss %.1f\n", step, (double)last_loss);
        for (int i = 0; i < PARAMETERS; i++) weights[i] -= 0.6f * gradients[i];
    }
    show_weights();
    tmoe_tape_destroy(tape);
    tmoe_ctx_destroy(ctx);
    return last_loss > 0.05f;
}
