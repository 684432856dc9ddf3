/* fewshot: adapts to tasks that were never trained on, from a few examples each, and compares where the adaptation begins: from scratch, a
 * dense multi-task model, mixtures of experts trained in several ways. Protocol: CrossFit's (16 lines a label or 32, as many for dev,
 * learning rate and batch size chosen on dev, test score of the chosen).
 *   run time   hours for the whole table on the embedded suite (--rows, --tasks and --seeds make it shorter; --tsv keeps what is done)
 *   read next  tmoe_few_shot_run, tmoe_model_derive, tmoe_compare in taskmoe.h */
#define TMOE_THREADS
#define TASKMOE_IMPLEMENTATION
#include "common.h"

#define SEEDS_MAX 20
#define TASKS_MAX 512

static const char usage[] =
    "usage: fewshot [FOLDER] [options]\n"
    "Adapts models to the held-out tasks of a folder from a few examples of each and prints what each start is worth.";

typedef enum kind { SCRATCH, DENSE, AVERAGE, RANDOM, ONE_STAGE, TWO_STAGES, SOFTMAX, KINDS } kind;
static const char *const kinds[KINDS] = { "scratch", "dense", "average", "random", "one-stage", "two-stages", "softmax" };

typedef struct row { const char *name; kind model; tmoe_zero_shot start; tmoe_tune tune; const char *what; } row;
static const row rows[] = {
    { "scratch", SCRATCH, TMOE_ZERO_SHOT_ROUTER, TMOE_TUNE_ALL, "random weights" },
    { "dense", DENSE, TMOE_ZERO_SHOT_ROUTER, TMOE_TUNE_ALL, "dense multi-task model: the base of all gains" },
    { "average", AVERAGE, TMOE_ZERO_SHOT_AVERAGE, TMOE_TUNE_ALL, "experts always averaged" },
    { "random", RANDOM, TMOE_ZERO_SHOT_AVERAGE, TMOE_TUNE_ALL, "a fixed random expert a task and layer; begins with their average" },
    { "one-stage", ONE_STAGE, TMOE_ZERO_SHOT_ROUTER, TMOE_TUNE_ALL, "straight-through routes, predicted route" },
    { "two-stages", TWO_STAGES, TMOE_ZERO_SHOT_ROUTER, TMOE_TUNE_ALL, "the paper's two stages, predicted route" },
    { "mixture", SOFTMAX, TMOE_ZERO_SHOT_ROUTER, TMOE_TUNE_ALL, "soft routes, parameters averaged (the default), predicted route" },
    { "mixture-nearest", SOFTMAX, TMOE_ZERO_SHOT_NEAREST, TMOE_TUNE_ALL, "the same, route of the nearest seen tasks" },
    { "mixture-average", SOFTMAX, TMOE_ZERO_SHOT_AVERAGE, TMOE_TUNE_ALL, "the same, average of the experts (MHR-mu)" },
    { "mixture-experts", SOFTMAX, TMOE_ZERO_SHOT_ROUTER, TMOE_TUNE_EXPERTS, "predicted route, only the routed layers are tuned" },
    { "mixture-vector", SOFTMAX, TMOE_ZERO_SHOT_ROUTER, TMOE_TUNE_VECTOR, "predicted route, only the task's vector is tuned" }
};
enum { ROWS = sizeof rows / sizeof *rows, BASE = 1 };

typedef struct settings { const char *program, *folder, *split, *tsv, *chosen, *model; int seeds, seed, steps, experts, threads, tasks, width, few_steps; } settings;
static progress_line progress = { NULL, 0, 0.0 };

/* The model of a kind and seed: from the file beside the TSV where an earlier run left it, else trained. */
static tmoe_model *model_of(tmoe_ctx *ctx, const tmoe_suite *suite, const settings *s, kind which, int seed)
{
    tmoe_config c = tmoe_config_default();
    tmoe_training t = tmoe_training_default();
    tmoe_model *model;
    char path[1024] = "";
    FILE *file;
    if (s->model) (void)snprintf(path, sizeof path, "%s", s->model);
    else if (s->tsv) (void)snprintf(path, sizeof path, "%.900s.%s.%d.safetensors", s->tsv, kinds[which], seed);
    file = path[0] ? fopen(path, "rb") : NULL;
    if (file || s->model) {
        if (file) fclose(file);
        model = tmoe_model_load(ctx, path);
        if (!model) die(s->program, tmoe_error_message(ctx));
        return model;
    }
    c.D = s->width;
    c.F_encoder = c.F_decoder = 4 * s->width;
    c.source_tokens = c.target_tokens = 0;
    c.E = which == SCRATCH || which == DENSE ? 1 : s->experts;
    c.seed = t.seed = (uint64_t)seed;
    c.selection = which == AVERAGE ? TMOE_SELECT_AVERAGE : which == RANDOM ? TMOE_SELECT_RANDOM_TASK : which == ONE_STAGE ? TMOE_SELECT_STRAIGHT_THROUGH : TMOE_SELECT_SOFTMAX;
    if (which == ONE_STAGE) { c.temperature = 2.0f; c.temperature_min = 0.1f; c.temperature_decay = (float)(log(20.0) * 3.0 / s->steps); }
    t.steps = which == SCRATCH ? 1 : s->steps;
    if (which == SCRATCH) t.lr_model = 0.0f;
    t.label = kinds[which];
    t.progress = show_progress;
    t.progress_user = &progress;
    model = which == TWO_STAGES ? tmoe_train_two_stages(ctx, suite, NULL, &c, &t, &t) : tmoe_train(ctx, suite, &c, &t);
    if (!model || (path[0] && tmoe_model_save(model, path) != TMOE_OK)) die(s->program, tmoe_error_message(ctx));
    return model;
}

/* Is `name` one of the words of a list with commas (NULL: of any)? */
static int listed(const char *list, const char *name)
{
    const size_t n = strlen(name);
    const char *at = list;
    if (!list) return 1;
    for (; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (strncmp(at, name, n) == 0 && (at[n] == ',' || at[n] == 0)) return 1;
    return 0;
}

static void print_gain(const tmoe_ctx *ctx, const double *base, const double *scores, int n, double above)
{
    double b[TASKS_MAX], x[TASKS_MAX];
    tmoe_comparison c;
    int i, used = 0;
    for (i = 0; i < n; i++) if (base[i] > above) { b[used] = base[i]; x[used++] = scores[i]; }
    if (tmoe_compare((tmoe_ctx *)ctx, b, x, used, 1, &c) != TMOE_OK) return;
    if (!(c.arg[0] == c.arg[0])) { printf("  %-35s", "undefined: no base above"); return; }
    printf("  %+6.1f%% [%+6.1f, %+6.1f] (%d)      ", 100.0 * c.arg[0], 100.0 * c.arg[1], 100.0 * c.arg[2], used - c.undefined - c.zero_base);
}

int main(int argc, char **argv)
{
    settings s = { argv[0], "examples/suite", NULL, NULL, NULL, NULL, 5, 1, 2500, 8, 0, 0, 96, 200 };
    static double zero[ROWS][TASKS_MAX], test[ROWS][TASKS_MAX];
    static int measured[ROWS];
    const char *word = NULL;
    char header[1200], key[400];
    int unseen[TASKS_MAX], n = 0, i, r, k, seed, pass;
    tmoe_ctx *ctx;
    tmoe_suite *suite;
    results file;
    option options[] = {
        { "--split", "NAME|FILE", 's', NULL, "splits/NAME.json of the folder, or a file (default: zero_shot if there)" },
        { "--model", "MODEL", 's', NULL, "adapt this saved model (rows mixture*) instead of training the models of the table" },
        { "--seeds", "N", 'i', NULL, "models and samples with seeds S, S+1, ... (default 5)" },
        { "--seed", "S", 'i', NULL, "first seed (default 1)" },
        { "--tsv", "FILE", 's', NULL, "one line for each seed, row and task; a stopped run goes on from it" },
        { "--rows", "A,B", 's', NULL, "only these rows of the table (scratch, dense, ..., see the first column)" },
        { "--tasks", "N", 'i', NULL, "only the first N held-out tasks (default: all)" },
        { "--steps", "N", 'i', NULL, "optimiser steps of each multi-task model (default 2500)" },
        { "--few-steps", "N", 'i', NULL, "optimiser steps of each adaptation (default 200)" },
        { "--experts", "E", 'i', NULL, "experts a layer (default 8)" },
        { "--width", "D", 'i', NULL, "model width (default 96)" },
        { "--threads", "T", 'i', NULL, "threads (default: all processors); any number gives the same bits" },
        { NULL, NULL, 0, NULL, NULL }
    };
    void *values[] = { &s.split, &s.model, &s.seeds, &s.seed, &s.tsv, &s.chosen, &s.tasks, &s.steps, &s.few_steps, &s.experts, &s.width, &s.threads };
    for (i = 0; options[i].name; i++) options[i].value = values[i];
    if (options_read(argc, argv, usage, options, &word, 1) == 1) s.folder = word;
    if (s.seeds < 1 || s.seeds > SEEDS_MAX) die(argv[0], "--seeds takes 1 to 20");
    if (s.model) s.seeds = 1;
    progress.out = stderr;
    ctx = context_or_die(argv[0], s.threads);
    suite = tmoe_suite_load(ctx, s.folder, s.split);
    if (!suite) die(argv[0], tmoe_error_message(ctx));
    for (i = 0; i < suite->count && n < TASKS_MAX; i++)
        if (suite->tasks[i].part == TMOE_PART_TEST && suite->tasks[i].test_count > 0 && (!s.tasks || n < s.tasks)) unseen[n++] = i;
    if (!n) die(argv[0], "the split holds no task out: there is nothing to adapt to");
    for (r = 0; s.chosen && r < ROWS && !listed(s.chosen, rows[r].name); r++) { }
    if (r == ROWS) die(argv[0], "--rows names no row; they are scratch, dense, average, random, one-stage, two-stages, mixture, mixture-nearest, ...");
    (void)snprintf(header, sizeof header, "seed\trow\ttask\tzero_shot\tdev\ttest\tlearning_rate\tbatch_size\tfolder=%s split=%s steps=%d experts=%d width=%d few_steps=%d model=%s",
                   s.folder, s.split ? s.split : "default", s.steps, s.experts, s.width, s.few_steps, s.model ? s.model : "-");
    file = results_open(argv[0], s.tsv, header);
    for (seed = s.seed; seed < s.seed + s.seeds; seed++)
        for (k = 0; k < KINDS; k++) {
            tmoe_model *model = NULL;
            for (r = 0; r < ROWS; r++) {
                if ((int)rows[r].model != k || !listed(s.chosen, rows[r].name) || (s.model && k != SOFTMAX)) continue;
                measured[r] = 1;
                for (i = 0; i < n; i++) {
                    const tmoe_task *task = &suite->tasks[unseen[i]];
                    double numbers[5];
                    (void)snprintf(key, sizeof key, "%d\t%s\t%.200s\t", seed, rows[r].name, task->name);
                    if (results_find(&file, key, numbers, 5) != 5) {
                        tmoe_few_shot how = tmoe_few_shot_default();
                        tmoe_few_shot_result result;
                        float *route;
                        if (!model) model = model_of(ctx, suite, &s, rows[r].model, seed);
                        how.start = rows[r].start;
                        how.tune = rows[r].tune;
                        how.steps = s.few_steps;
                        how.seed = (uint64_t)seed;
                        route = (float *)malloc(sizeof(float) * ((size_t)tmoe_routed_layers(model) * (size_t)tmoe_model_config(model)->E + 1));
                        if (!route || tmoe_route_unseen(model, task->instruction, how.start, route) != TMOE_OK
                            || tmoe_evaluate(model, task, tmoe_routed_layers(model) ? route : NULL, 0, &numbers[0]) != TMOE_OK
                            || tmoe_few_shot_run(model, task, &how, &result) != TMOE_OK) die(argv[0], tmoe_error_message(ctx));
                        free(route);
                        numbers[1] = result.dev;
                        numbers[2] = result.test;
                        numbers[3] = (double)result.learning_rate;
                        numbers[4] = result.batch_size;
                        results_add(&file, key, numbers, 5);
                        fprintf(stderr, "seed %d, %s, task %d of %d: %s %.3f -> %.3f\n", seed, rows[r].name, i + 1, n, task->name, numbers[0], numbers[2]);
                    }
                    zero[r][i] += numbers[0] / s.seeds;
                    test[r][i] += numbers[2] / s.seeds;
                }
            }
            tmoe_model_destroy(model);
        }
    results_close(&file);
    printf("%d held-out tasks, %d seed%s; gains are relative to the dense start, mean over tasks [95 %% bootstrap interval] (tasks that count)\n", n, s.seeds, s.seeds > 1 ? "s" : "");
    for (pass = 0; pass < 2; pass++) {
        printf("\n%-16s %6s  %-36s  %-36s  %s\n", pass ? "few-shot" : "zero-shot", "score", "gain (ARG), all tasks", "gain where the base is above 0.1", "wins/ties/losses");
        for (r = 0; r < ROWS; r++) {
            double (*x)[TASKS_MAX] = pass ? test : zero;
            tmoe_comparison c;
            if (!measured[r] || (!pass && r == 0)) continue;
            printf("%-16s %6.3f", rows[r].name, mean_of(x[r], n));
            if (measured[BASE] && r != BASE && tmoe_compare(ctx, x[BASE], x[r], n, 1, &c) == TMOE_OK) {
                print_gain(ctx, x[BASE], x[r], n, -1.0);
                print_gain(ctx, x[BASE], x[r], n, 0.1);
                printf("  %d/%d/%d", c.wins, c.ties, c.losses);
            }
            printf("\n");
        }
    }
    printf("\n");
    for (r = 0; r < ROWS; r++) if (measured[r]) printf("%-16s %s\n", rows[r].name, rows[r].what);
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
    return 0;
}
