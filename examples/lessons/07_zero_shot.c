/* Lesson 7: a task that was never trained, answered by its instruction.
 *
 * The input is three letters, such as "ghd". A task says which letter to write, the first, second
 * or third, and how: as it is, in capitals, or twice. That makes nine tasks. The model is trained
 * on eight of them; the ninth, "Write the second letter in capitals.", is held out. The model has
 * seen "second" and it has seen "in capitals", but never both in one instruction.
 *
 * It is the model of the paper in small: an encoder-decoder transformer whose layers have three
 * experts each. The words of an instruction are hashed into a vector; the router makes a route from
 * the vector, and the vector is also added to every token (P e_t on the header's first page).
 * Instructions that share words have similar vectors, so a new combination of known words lands
 * where the model can use what it has learned.
 *
 * | Write the second letter in capitals.
 * |   hfe -> F
 * |   dfc -> F
 * |   cca -> C
 * | at least 114 of 120 are right: yes
 *
 * Run time: 1 second. Read next: tmoe_answer_unseen in taskmoe.h, then Book II from >>vectors. */
#define TASKMOE_IMPLEMENTATION
#include "../../taskmoe.h"
#include <ctype.h>
#include <stdio.h>
#include <string.h>

enum { LETTERS = 8, INPUT = 3, LINES = 120 };

enum { AS_IT_IS, IN_CAPITALS, TWICE, MANNERS };

static const char *const places[INPUT] = { "first", "second", "third" };
static const char *const manners[MANNERS] = { "as it is", "in capitals", "twice" };

/* The lines of one task. */
typedef struct lines {
    char instruction[64];
    char input_text[LINES][INPUT + 1], output_text[LINES][INPUT];
    const char *inputs[LINES], *outputs[LINES];
} lines;

static int random_below(int n) /* the same numbers on every machine */
{
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return (int)((state >> 8) % (uint32_t)n);
}

static void make_lines(lines *task, int place, int manner)
{
    snprintf(task->instruction, sizeof task->instruction, "Write the %s letter %s.", places[place],
        manners[manner]);
    for (int i = 0; i < LINES; i++) {
        char *input = task->input_text[i], *output = task->output_text[i];
        for (int k = 0; k < INPUT; k++) input[k] = (char)('a' + random_below(LETTERS));
        output[0] = input[place];
        if (manner == IN_CAPITALS) output[0] = (char)toupper(input[place]);
        if (manner == TWICE) output[1] = input[place];
        task->inputs[i] = input;
        task->outputs[i] = output;
    }
}

/* A small model for a small job; all other settings are the defaults. */
static tmoe_model *train(tmoe_ctx *ctx, const tmoe_suite *suite)
{
    tmoe_config config = tmoe_config_default();
    tmoe_training training = tmoe_training_default();

    config.width = 32;
    config.encoder_ffn = config.decoder_ffn = 64;
    config.encoder_layers = config.decoder_layers = 1;
    config.experts = 3;
    config.source_tokens = config.target_tokens = 0; /* as long as the lines need */
    training.steps = 400;
    return tmoe_train(ctx, suite, &config, &training);
}

int main(void)
{
    static lines tasks[INPUT][MANNERS]; /* all zero: the texts end with a NUL */
    const lines *held_out = &tasks[1][IN_CAPITALS];
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    tmoe_suite *suite = tmoe_suite_create(ctx);
    int right = 0;

    for (int place = 0; place < INPUT; place++)
        for (int manner = 0; manner < MANNERS; manner++) {
            lines *task = &tasks[place][manner];
            tmoe_task_lines description;
            make_lines(task, place, manner);
            if (task == held_out) continue; /* the model is not told about it in any way */

            memset(&description, 0, sizeof description);
            description.name = description.instruction = task->instruction;
            description.inputs = task->inputs;
            description.outputs = task->outputs;
            description.count = LINES;
            if (tmoe_suite_add(suite, &description) != TMOE_OK) return 1;
        }

    tmoe_model *model = train(ctx, suite);
    printf("%s\n", held_out->instruction);
    for (int i = 0; model && i < LINES; i++) {
        char answer[16];
        if (tmoe_answer_unseen(model, held_out->instruction, held_out->inputs[i], answer,
                sizeof answer)
            != TMOE_OK)
            break;
        right += !strcmp(answer, held_out->outputs[i]);
        if (i < 3) printf("  %s -> %s\n", held_out->inputs[i], answer);
    }
    if (tmoe_error(ctx) != TMOE_OK) fprintf(stderr, "%s\n", tmoe_error_message(ctx));
    printf("at least 114 of 120 are right: %s\n", right >= 114 ? "yes" : "no");

    tmoe_model_destroy(model);
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
    return right < 114;
}
