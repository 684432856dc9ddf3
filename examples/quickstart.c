/* quickstart: four calls train a mixture of experts on a folder of tasks, ask it, and keep it.
 *   run time   10 to 20 seconds on one core      read next   >>mix in taskmoe.h */
#define TASKMOE_IMPLEMENTATION
#include "../taskmoe.h"
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    tmoe_training training = tmoe_training_default();
    tmoe_config config = tmoe_config_default();
    const char *path = argc > 1 ? argv[1] : "quickstart.safetensors";
    const char *task = "word_upper_case";
    char answer[64] = "";
    tmoe_suite *suite = tmoe_suite_load(ctx, "examples/suite", "quickstart");
    tmoe_model *model;

    training.steps = 800;
    config.width = 64; /* a small model for a small job */
    config.encoder_ffn = config.decoder_ffn = 256;
    model = suite ? tmoe_train(ctx, suite, &config, &training) : NULL;
    if (!model || tmoe_answer(model, task, "violin", answer, sizeof answer) != TMOE_OK
        || tmoe_model_save(model, path) != TMOE_OK)
        fprintf(stderr, "quickstart: %s\n", tmoe_error_message(ctx));
    printf("violin -> %s\n", answer);

    tmoe_model_destroy(model);
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
    return strcmp(answer, "VIOLIN") != 0; /* it must have learned that much */
}
