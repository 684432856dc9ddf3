/* describe: what a file of tmoe_model_save or tmoe_trainer_save holds: sizes, settings, the state of
 * its training, its tasks with their routes.
 *   run time   milliseconds; the parameters are read only for the routes
 *   read next  tmoe_describe, >>settings in taskmoe.h */
#define TASKMOE_IMPLEMENTATION
#include "common.h"

#define NAME_COLUMNS 24  /* of a setting */
#define LABEL_COLUMNS 34 /* left of a route */

static void print_sizes(const tmoe_description *d)
{
    printf("%s of %.1f MB: %lu parameters, %lu of them in use for a task\n",
        d->is_checkpoint ? "checkpoint" : "model", (double)d->file_bytes / 1e6,
        (unsigned long)d->parameters, (unsigned long)d->active_parameters);
    printf("%d tasks, %d experts a layer, %lld steps taken\n", d->task_count, d->config.experts,
        (long long)d->step);
}

static void print_training(const tmoe_description *d)
{
    if (!d->is_checkpoint) return;
    printf("training: %lld of %d steps done", (long long)d->steps_done, d->training.steps);
    if (d->best_validation_loss == d->best_validation_loss) /* no NaN */
        printf(", best validation loss %.4f at step %lld", (double)d->best_validation_loss,
            (long long)d->best_step);
    printf("\n");
}

/* The settings of the model or the training; a star where one is not the default. */
static void print_settings(const tmoe_description *d, tmoe_settings of)
{
    const tmoe_config config = tmoe_config_default();
    const tmoe_training training = tmoe_training_default();
    char value[160], usual[160];
    const char *name;
    int i;
    for (i = 0; (name = tmoe_setting_name(of, i)) != NULL; i++) {
        if (of == TMOE_SETTINGS_CONFIG) {
            (void)tmoe_config_get(&d->config, name, value, sizeof value);
            (void)tmoe_config_get(&config, name, usual, sizeof usual);
        } else {
            (void)tmoe_training_get(&d->training, name, value, sizeof value);
            (void)tmoe_training_get(&training, name, usual, sizeof usual);
        }
        printf("%s%-*s %s\n", strcmp(value, usual) ? " *" : "  ", NAME_COLUMNS, name, value);
    }
}

static void print_tasks(const char *program, tmoe_ctx *ctx, tmoe_model *model)
{
    const int routed = tmoe_routed_layers(model) * tmoe_model_config(model)->experts;
    float *route = (float *)malloc(sizeof *route * (size_t)(routed + 1));
    int t;
    if (!route) die(program, "out of memory");
    if (routed) print_layer_names(model, LABEL_COLUMNS);
    for (t = 0; t < tmoe_model_task_count(model); t++) {
        const tmoe_task *task = tmoe_model_task(model, t);
        if (!routed) {
            printf("  %s\n", task->name);
            continue;
        }
        if (tmoe_route_of_task(model, t, route) != TMOE_OK) die(program, tmoe_error_message(ctx));
        print_route_row(model, route, task->name, LABEL_COLUMNS);
    }
    free(route);
}

int main(int argc, char **argv)
{
    static const char usage[] =
        "usage: describe MODEL [options]\n"
        "Says what a saved model or checkpoint holds. A star marks a setting that is not\n"
        "the library's default.";
    const char *path = NULL;
    int tasks = 0;
    tmoe_description d;
    tmoe_ctx *ctx;
    const option options[] = { { "--tasks", NULL, 'b', &tasks,
                                   "the tasks as well, with their routes" },
        { NULL, NULL, 0, NULL, NULL } };
    if (options_read(argc, argv, usage, options, &path, 1) != 1) {
        options_help(usage, options);
        return 2;
    }
    ctx = context_or_die(argv[0], 1);
    if (tmoe_describe(ctx, path, &d) != TMOE_OK) die(argv[0], tmoe_error_message(ctx));
    print_sizes(&d);
    print_training(&d);
    printf("\nmodel:\n");
    print_settings(&d, TMOE_SETTINGS_CONFIG);
    if (d.is_checkpoint) {
        printf("\ntraining:\n");
        print_settings(&d, TMOE_SETTINGS_TRAINING);
    }
    if (tasks) {
        tmoe_model *model = tmoe_model_load(ctx, path);
        if (!model) die(argv[0], tmoe_error_message(ctx));
        printf("\n%s\n", tmoe_routed_layers(model) ? "tasks and routes:" : "tasks:");
        print_tasks(argv[0], ctx, model);
        tmoe_model_destroy(model);
    }
    tmoe_ctx_destroy(ctx);
    return 0;
}
