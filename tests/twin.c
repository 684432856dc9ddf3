/* twin: what tests/test_python.py compares the binding with. Prints sizes and offsets of structs;
 * trains a model with the settings given, prints its answers and routes, and saves it.
 *   usage: build/twin FOLDER FILE NAME=VALUE ... */
#define TASKMOE_IMPLEMENTATION
#include "taskmoe.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INSTRUCTION "Write the last letter twice."

static const char *const inputs[] = { "abc", "bca", "c" };

#define INPUTS (sizeof inputs / sizeof *inputs)

static void die(const char *what)
{
    fprintf(stderr, "twin: %s\n", what);
    exit(1);
}

#define OFFSET(type, field) \
    printf("layout " #type "." #field " %lu\n", (unsigned long)offsetof(type, field))

static void print_layout(void)
{
    printf("layout tmoe_ctx_config %lu\n", (unsigned long)sizeof(tmoe_ctx_config));
    OFFSET(tmoe_ctx_config, alloc_fn);
    OFFSET(tmoe_ctx_config, free_fn);
    OFFSET(tmoe_ctx_config, alloc_user);
    OFFSET(tmoe_ctx_config, threads);
    OFFSET(tmoe_ctx_config, parallel_fn);
    OFFSET(tmoe_ctx_config, parallel_user);
    OFFSET(tmoe_ctx_config, isa);
    printf("layout tmoe_progress %lu\n", (unsigned long)sizeof(tmoe_progress));
    OFFSET(tmoe_progress, step);
    OFFSET(tmoe_progress, steps);
    OFFSET(tmoe_progress, label);
    OFFSET(tmoe_progress, trainer);
    OFFSET(tmoe_progress, loss);
    OFFSET(tmoe_progress, validation_loss);
    OFFSET(tmoe_progress, best_validation_loss);
    OFFSET(tmoe_progress, gradient_norm);
    OFFSET(tmoe_progress, lr_model);
    OFFSET(tmoe_progress, lr_router);
    OFFSET(tmoe_progress, lr_tasks);
    OFFSET(tmoe_progress, temperature);
    OFFSET(tmoe_progress, routed_layers);
    OFFSET(tmoe_progress, route_entropy);
    OFFSET(tmoe_progress, expert_use);
    OFFSET(tmoe_progress, tokens_per_second);
    OFFSET(tmoe_progress, seconds);
    OFFSET(tmoe_progress, seconds_left);
    printf("layout tmoe_parameter %lu\n", (unsigned long)sizeof(tmoe_parameter));
    OFFSET(tmoe_parameter, name);
    OFFSET(tmoe_parameter, values);
    OFFSET(tmoe_parameter, rows);
    OFFSET(tmoe_parameter, cols);
    OFFSET(tmoe_task, name);
    printf("size tmoe_config %lu\n", (unsigned long)sizeof(tmoe_config));
    printf("size tmoe_training %lu\n", (unsigned long)sizeof(tmoe_training));
    printf("value TMOE_VERSION %d\n", TMOE_VERSION);
    printf("value TMOE_ERR_ARGUMENT %d\n", TMOE_ERR_ARGUMENT);
    printf("value TMOE_ERR_CANCELLED %d\n", TMOE_ERR_CANCELLED);
    printf("value TMOE_SETTINGS_CONFIG %d\n", TMOE_SETTINGS_CONFIG);
    printf("value TMOE_SETTINGS_TRAINING %d\n", TMOE_SETTINGS_TRAINING);
    printf("value TMOE_ZERO_SHOT_ROUTER %d\n", TMOE_ZERO_SHOT_ROUTER);
    printf("value TMOE_ZERO_SHOT_NEAREST %d\n", TMOE_ZERO_SHOT_NEAREST);
    printf("value TMOE_ZERO_SHOT_AVERAGE %d\n", TMOE_ZERO_SHOT_AVERAGE);
}

/* "NAME=VALUE" in training, or else in config; the seed in both. */
static void set(tmoe_config *config, tmoe_training *training, const char *assignment)
{
    char name[64];
    const char *value = strchr(assignment, '=');
    tmoe_result result;
    if (!value || value - assignment >= (long)sizeof name) die(assignment);
    (void)snprintf(name, sizeof name, "%.*s", (int)(value - assignment), assignment);
    result = tmoe_training_set(training, name, value + 1);
    if (result == TMOE_ERR_ARGUMENT || !strcmp(name, "seed"))
        result = tmoe_config_set(config, name, value + 1);
    if (result != TMOE_OK) die(assignment);
}

static void print_route(const tmoe_model *model, const char *label, const float *route)
{
    const int count = tmoe_routed_layers(model) * tmoe_model_config(model)->experts;
    int i;
    printf("route\t%s\t", label);
    for (i = 0; i < count; i++) printf("%.9g ", (double)route[i]);
    printf("\n");
}

static void ask(tmoe_model *model)
{
    float route[256];
    char *answers[INPUTS];
    size_t i;
    int t;
    for (t = 0; t < tmoe_model_task_count(model); t++) {
        const char *name = tmoe_model_task(model, t)->name;
        if (tmoe_answer_many(model, name, NULL, inputs, (int)INPUTS, answers) != TMOE_OK)
            die("no answers");
        for (i = 0; i < INPUTS; i++) printf("answer\t%s\t%s\t%s\n", name, inputs[i], answers[i]);
        tmoe_answers_free(model, answers, (int)INPUTS);
        if (tmoe_route_of_task(model, t, route) != TMOE_OK) die("no route");
        print_route(model, name, route);
    }
    if (tmoe_answer_many_unseen(model, INSTRUCTION, NULL, inputs, (int)INPUTS, answers) != TMOE_OK)
        die("no answers of the unseen task");
    for (i = 0; i < INPUTS; i++) printf("unseen\t%s\t%s\t%s\n", INSTRUCTION, inputs[i], answers[i]);
    tmoe_answers_free(model, answers, (int)INPUTS);
    for (t = TMOE_ZERO_SHOT_ROUTER; t <= TMOE_ZERO_SHOT_AVERAGE; t++) {
        char label[16];
        (void)snprintf(label, sizeof label, "%d", t);
        if (tmoe_route_unseen(model, INSTRUCTION, (tmoe_zero_shot)t, route) != TMOE_OK)
            die("no route of the unseen task");
        print_route(model, label, route);
    }
}

int main(int argc, char **argv)
{
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    tmoe_config config = tmoe_config_default();
    tmoe_training training = tmoe_training_default();
    tmoe_suite *suite;
    tmoe_model *model;
    int i;
    if (argc < 3 || !ctx) die("usage: twin FOLDER FILE NAME=VALUE ...");
    print_layout();
    for (i = 3; i < argc; i++) set(&config, &training, argv[i]);
    suite = tmoe_suite_load(ctx, argv[1], NULL);
    model = suite ? tmoe_train(ctx, suite, &config, &training) : NULL;
    if (!model) die(tmoe_error_message(ctx));
    ask(model);
    if (tmoe_model_save(model, argv[2]) != TMOE_OK) die(tmoe_error_message(ctx));
    tmoe_model_destroy(model);
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
    return 0;
}
