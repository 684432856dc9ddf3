/* fewshot: adapts to tasks that were never trained on, from a few examples each, and compares where
 * the adaptation begins: from scratch, a dense multi-task model, mixtures of experts trained in
 * several ways. Protocol: CrossFit's (16 lines a label or 32, as many for dev, learning rate and
 * batch size chosen on dev, test score of the chosen).
 *   run time   hours for the whole table on the embedded suite (--rows, --tasks and --seeds make it
 *   shorter; --tsv keeps what is done)
 *   read next  tmoe_few_shot_run, tmoe_model_derive, tmoe_compare in taskmoe.h */
#define TMOE_THREADS
#define TASKMOE_IMPLEMENTATION
#include "common.h"

#define SEEDS_MAX 20
#define TASKS_MAX 512

static const char usage[] = "usage: fewshot [FOLDER] [options]\n"
                            "Adapts models to the held-out tasks of a folder from a few examples "
                            "of each and prints what each start is worth.";

typedef enum kind { SCRATCH, DENSE, AVERAGE, RANDOM, ONE_STAGE, TWO_STAGES, SOFTMAX, KINDS } kind;

static const char *const kinds[KINDS] = { "scratch", "dense", "average", "random", "one-stage",
    "two-stages", "softmax" };

typedef struct row {
    const char *name;
    kind model;
    tmoe_zero_shot start;
    tmoe_tune tune;
    const char *what;
} row;

static const row rows[] = { { "scratch", SCRATCH, TMOE_ZERO_SHOT_ROUTER, TMOE_TUNE_ALL,
                                "random weights" },
    { "dense", DENSE, TMOE_ZERO_SHOT_ROUTER, TMOE_TUNE_ALL,
        "dense multi-task model: the base of all gains" },
    { "average", AVERAGE, TMOE_ZERO_SHOT_AVERAGE, TMOE_TUNE_ALL, "experts always averaged" },
    { "random", RANDOM, TMOE_ZERO_SHOT_AVERAGE, TMOE_TUNE_ALL,
        "a fixed random expert a task and layer; begins with their average" },
    { "one-stage", ONE_STAGE, TMOE_ZERO_SHOT_ROUTER, TMOE_TUNE_ALL,
        "straight-through routes, predicted route" },
    { "two-stages", TWO_STAGES, TMOE_ZERO_SHOT_ROUTER, TMOE_TUNE_ALL,
        "the paper's two stages, predicted route" },
    { "mixture", SOFTMAX, TMOE_ZERO_SHOT_ROUTER, TMOE_TUNE_ALL,
        "soft routes, parameters averaged (the default), predicted route" },
    { "mixture-nearest", SOFTMAX, TMOE_ZERO_SHOT_NEAREST, TMOE_TUNE_ALL,
        "the same, route of the nearest seen tasks" },
    { "mixture-average", SOFTMAX, TMOE_ZERO_SHOT_AVERAGE, TMOE_TUNE_ALL,
        "the same, average of the experts (MHR-mu)" },
    { "mixture-experts", SOFTMAX, TMOE_ZERO_SHOT_ROUTER, TMOE_TUNE_EXPERTS,
        "predicted route, only the routed layers are tuned" },
    { "mixture-vector", SOFTMAX, TMOE_ZERO_SHOT_ROUTER, TMOE_TUNE_VECTOR,
        "predicted route, only the task's vector is tuned" } };

enum { ROWS = sizeof rows / sizeof *rows, BASE = 1, MIXTURE = 6 };

typedef struct settings {
    const char *program, *folder, *split, *tsv, *chosen, *model;
    tmoe_model *given;
    int seeds, seed, steps, experts, threads, tasks, width, few_steps;
} settings;

static progress_line progress;

/* A model that an earlier run left beside its TSV file must be what this run would train: neither
 * used nor written over if it is not. */
static void must_fit(tmoe_ctx *ctx, const tmoe_model *model, const tmoe_suite *suite,
    const tmoe_config *c, int steps, const char *program, const char *path)
{
    const tmoe_config *m = tmoe_model_config(model);
    tmoe_description description;
    int i, seen = 0, known = 0;
    if (tmoe_describe(ctx, path, &description) != TMOE_OK) die(program, tmoe_error_message(ctx));
    for (i = 0; i < tmoe_suite_count(suite); i++)
        if (tmoe_suite_task(suite, i)->part == TMOE_PART_TRAIN) {
            seen++;
            known += tmoe_model_find_task(model, tmoe_suite_task(suite, i)->name) >= 0;
        }
    if (m->width == c->width && m->experts == c->experts && m->selection == c->selection
        && m->seed == c->seed && description.step == steps && known == seen
        && tmoe_model_task_count(model) == seen)
        return;
    fprintf(stderr,
        "%s: %s is a model of other settings (width %d, experts %d, steps %d, seed %d, tasks %d): "
        "give another --tsv, or remove it\n",
        program, path, m->width, m->experts, (int)description.step, (int)m->seed,
        tmoe_model_task_count(model));
    exit(1);
}

/* The model of a kind and seed: MODEL, or from the file beside the TSV where an earlier run left
 * it, else trained. */
static tmoe_model *model_of(tmoe_ctx *ctx, const tmoe_suite *suite, const settings *s, kind which,
    int seed)
{
    tmoe_config c = tmoe_config_default();
    tmoe_training t = tmoe_training_default();
    tmoe_model *model;
    char path[1024] = "";
    FILE *file;
    if (s->given) return s->given;
    if (s->tsv)
        (void)snprintf(path, sizeof path, "%.900s.%s.%d.safetensors", s->tsv, kinds[which], seed);
    c.width = s->width;
    c.encoder_ffn = c.decoder_ffn = 4 * s->width;
    c.source_tokens = c.target_tokens = 0;
    c.experts = which == SCRATCH || which == DENSE ? 1 : s->experts;
    c.seed = t.seed = (uint64_t)seed;
    c.selection = which == AVERAGE ? TMOE_SELECT_AVERAGE
        : which == RANDOM          ? TMOE_SELECT_RANDOM_TASK
        : which == ONE_STAGE       ? TMOE_SELECT_STRAIGHT_THROUGH
                                   : TMOE_SELECT_SOFTMAX;
    if (which == ONE_STAGE) {
        c.temperature = 2.0f;
        c.temperature_min = 0.1f;
        c.temperature_decay = (float)(log(20.0) * 3.0 / s->steps);
    }
    t.steps = which == SCRATCH ? 1 : s->steps;
    if (which == SCRATCH) t.lr_model = 0.0f;
    if (c.selection == TMOE_SELECT_SOFTMAX) take_best_measured(&c, &t);
    t.label = kinds[which];
    t.progress = show_progress;
    t.progress_user = &progress;
    progress.routes.experts = c.experts;
    file = path[0] ? fopen(path, "rb") : NULL;
    if (file) {
        fclose(file);
        model = tmoe_model_load(ctx, path);
        if (!model) die(s->program, tmoe_error_message(ctx));
        must_fit(ctx, model, suite, &c, t.steps, s->program, path);
        return model;
    }
    model = which == TWO_STAGES ? tmoe_train_two_stages(ctx, suite, NULL, &c, &t, &t)
                                : tmoe_train(ctx, suite, &c, &t);
    if (!model || (path[0] && tmoe_model_save(model, path) != TMOE_OK))
        die(s->program, tmoe_error_message(ctx));
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

/* MODEL takes the place of the table's models: a dense one is adapted as row dense, a mixture in
 * the rows mixture*. */
static int possible(const settings *s, int r)
{
    return !s->given || rows[r].model == (tmoe_routed_layers(s->given) ? SOFTMAX : DENSE);
}

/* Refuses names that are no row; says which rows MODEL cannot have. */
static void check_rows(const settings *s)
{
    const char *at = s->chosen;
    int r, left = 0;
    for (; at; at = at[strcspn(at, ",")] ? at + strcspn(at, ",") + 1 : NULL) {
        for (r = 0; r < ROWS
             && !(strncmp(at, rows[r].name, strcspn(at, ",")) == 0
                 && rows[r].name[strcspn(at, ",")] == 0);
             r++) {}
        if (r < ROWS) continue;
        fprintf(stderr, "%s: --rows: there is no row '%.*s'; the rows are", s->program,
            (int)strcspn(at, ","), at);
        for (r = 0; r < ROWS; r++) fprintf(stderr, " %s", rows[r].name);
        fprintf(stderr, "\n");
        exit(2);
    }
    for (r = 0; r < ROWS; r++) {
        if (!listed(s->chosen, rows[r].name)) continue;
        if (possible(s, r))
            left++;
        else if (s->chosen || rows[r].model == SOFTMAX)
            fprintf(stderr, "left out, as %s is %s: %s\n", s->model,
                tmoe_routed_layers(s->given) ? "a mixture" : "dense", rows[r].name);
    }
    if (!left) die(s->program, "no row of the table is left");
}

static void print_gain(const tmoe_comparison *c, int count)
{
    const int used = count - c->undefined - c->zero_base;
    if (!(c->relative_gain[0] == c->relative_gain[0]))
        printf("  %-32s",
            count == c->undefined ? "undefined: no such tasks" : "undefined: base 0 or less");
    else
        printf("  %+6.1f%% [%+6.1f, %+6.1f] (%d)%*s", 100.0 * c->relative_gain[0],
            100.0 * c->relative_gain[1], 100.0 * c->relative_gain[2], used, used > 9 ? 3 : 4, "");
}

/* A row of the table: b and x are scores of the base and of the row (b == x: the base itself), n
 * tasks each. */
static void print_row(tmoe_ctx *ctx, const char *name, const double *b, const double *x, int n,
    int undefined)
{
    double high[2][TASKS_MAX];
    tmoe_comparison all, above;
    int i, count = 0;
    for (i = 0; i < n; i++)
        if (b[i] > 0.1) {
            high[0][count] = b[i];
            high[1][count++] = x[i];
        }
    if (tmoe_compare(ctx, b, x, n, 1, &all) != TMOE_OK
        || tmoe_compare(ctx, high[0], high[1], count, 1, &above) != TMOE_OK)
        return;
    printf("%-16s %6.3f", name, mean_of(x, n));
    if (b != x) {
        if (all.undefined == n)
            printf("  %-23s", "undefined");
        else
            printf("  %+.3f [%+.3f, %+.3f]", all.difference[0], all.difference[1],
                all.difference[2]);
        print_gain(&all, n);
        print_gain(&above, count);
        printf("  %d/%d/%d", all.wins, all.ties, all.losses);
        if (all.zero_base) printf("  base 0 or less: %d", all.zero_base);
        if (all.undefined) printf("  no score here or of the base: %d", all.undefined);
    }
    if (undefined) printf("  undefined scores, left out: %d", undefined);
    printf("\n");
}

int main(int argc, char **argv)
{
    settings s = { argv[0], "examples/suite", NULL, NULL, NULL, NULL, NULL, 5, 1, 2500, 8, 0, 0, 96,
        200 };
    static double scores[2][ROWS]
                        [TASKS_MAX]; /* zero-shot, few-shot: a task's mean over the seeds */
    static int defined[2][ROWS][TASKS_MAX], undefined[2][ROWS], measured[ROWS];
    const char *word = NULL;
    char header[1200], key[400];
    int unseen[TASKS_MAX], n = 0, i, r, k, seed, pass, base = BASE;
    tmoe_ctx *ctx;
    tmoe_suite *suite;
    results file;
    option options[] = {
        { "--split", "NAME|FILE", 's', NULL,
            "splits/NAME.json of the folder, or a file (default: zero_shot if there)" },
        { "--model", "MODEL", 's', NULL,
            "adapt this saved model instead of training the table's: rows mixture*, or row dense "
            "if it is dense" },
        { "--seeds", "N", 'n', NULL,
            "models (but for --model) and samples of lines with seeds S, S+1, ... (default 5)" },
        { "--seed", "S", 'i', NULL, "first seed (default 1)" },
        { "--tsv", "FILE", 's', NULL,
            "one line for each seed, row and task; a stopped run goes on from it" },
        { "--rows", "A,B", 's', NULL,
            "only these rows of the table (scratch, dense, ..., see the first column)" },
        { "--tasks", "N", 'n', NULL, "only the first N held-out tasks (default: all)" },
        { "--steps", "N", 'n', NULL, "optimiser steps of each multi-task model (default 2500)" },
        { "--few-steps", "N", 'n', NULL, "optimiser steps of each adaptation (default 200)" },
        { "--experts", "E", 'n', NULL, "experts a layer (default 8)" },
        { "--width", "D", 'n', NULL, "model width (default 96)" },
        { "--threads", "T", 'i', NULL,
            "threads (default: all processors); any number gives the same bits" },
        { NULL, NULL, 0, NULL, NULL }
    };
    void *values[] = { &s.split, &s.model, &s.seeds, &s.seed, &s.tsv, &s.chosen, &s.tasks, &s.steps,
        &s.few_steps, &s.experts, &s.width, &s.threads };
    for (i = 0; options[i].name; i++) options[i].value = values[i];
    if (options_read(argc, argv, usage, options, &word, 1) == 1) s.folder = word;
    if (s.seeds < 1 || s.seeds > SEEDS_MAX) die(argv[0], "--seeds takes 1 to 20");
    progress.out = stderr;
    ctx = context_or_die(argv[0], s.threads);
    suite = tmoe_suite_load(ctx, s.folder, s.split);
    if (!suite) die(argv[0], tmoe_error_message(ctx));
    for (i = 0; i < tmoe_suite_count(suite) && n < TASKS_MAX; i++)
        if (tmoe_suite_task(suite, i)->part == TMOE_PART_TEST
            && tmoe_suite_task(suite, i)->test_count > 0 && (!s.tasks || n < s.tasks))
            unseen[n++] = i;
    if (!n) die(argv[0], "the split holds no task out: there is nothing to adapt to");
    if (s.model && !(s.given = tmoe_model_load(ctx, s.model)))
        die(argv[0], tmoe_error_message(ctx));
    check_rows(&s);
    (void)snprintf(header, sizeof header,
        "seed\trow\ttask\tzero_shot\tdev\ttest\tlearning_rate\tbatch_size\tfolder=%s split=%s "
        "steps=%d experts=%d width=%d few_steps=%d model=%s",
        s.folder, s.split ? s.split : "default", s.steps, s.experts, s.width, s.few_steps,
        s.model ? s.model : "-");
    file = results_open(argv[0], s.tsv, header);
    for (seed = s.seed; seed < s.seed + s.seeds; seed++)
        for (k = 0; k < KINDS; k++) {
            tmoe_model *model = NULL;
            for (r = 0; r < ROWS; r++) {
                if ((int)rows[r].model != k || !listed(s.chosen, rows[r].name) || !possible(&s, r))
                    continue;
                measured[r] = 1;
                for (i = 0; i < n; i++) {
                    const tmoe_task *task = tmoe_suite_task(suite, unseen[i]);
                    double numbers[5];
                    (void)snprintf(key, sizeof key, "%d\t%s\t%.200s\t", seed, rows[r].name,
                        task->name);
                    if (!results_find(&file, key, numbers, 5)) {
                        tmoe_few_shot how = tmoe_few_shot_default();
                        tmoe_few_shot_result result;
                        float *route;
                        if (!model) model = model_of(ctx, suite, &s, rows[r].model, seed);
                        how.start = rows[r].start;
                        how.tune = rows[r].tune;
                        how.steps = s.few_steps;
                        how.seed = (uint64_t)seed;
                        route = (float *)malloc(sizeof(float)
                            * ((size_t)tmoe_routed_layers(model)
                                    * (size_t)tmoe_model_config(model)->experts
                                + 1));
                        if (!route
                            || tmoe_route_unseen(model, task->instruction, how.start, route)
                                != TMOE_OK
                            || tmoe_evaluate(model, task, tmoe_routed_layers(model) ? route : NULL,
                                   0, &numbers[0])
                                != TMOE_OK
                            || tmoe_few_shot_run(model, task, &how, &result) != TMOE_OK)
                            die(argv[0], tmoe_error_message(ctx));
                        free(route);
                        numbers[1] = result.dev;
                        numbers[2] = result.test;
                        numbers[3] = (double)result.learning_rate;
                        numbers[4] = result.batch_size;
                        results_add(&file, key, numbers, 5);
                        fprintf(stderr, "seed %d, %s, task %d of %d: %s %.3f -> %.3f\n", seed,
                            rows[r].name, i + 1, n, task->name, numbers[0], numbers[2]);
                    }
                    for (pass = 0; pass < 2; pass++) {
                        const double score = numbers[pass ? 2 : 0];
                        if (score == score) {
                            scores[pass][r][i] += score;
                            defined[pass][r][i]++;
                        } else
                            undefined[pass][r]++;
                    }
                }
            }
            if (!s.given) tmoe_model_destroy(model);
        }
    results_close(&file);
    for (r = ROWS - 1; !measured[BASE] && r >= 0; r--)
        if (measured[r] && (r > 0 || base == BASE))
            base = r; /* no dense row: the first but scratch */
    printf("%d held-out tasks, %d seed%s; gains are relative to %s, mean over tasks [95 %% "
           "bootstrap interval] (tasks that count)\n",
        n, s.seeds, s.seeds > 1 ? "s" : "", rows[base].name);
    for (pass = 0; pass < 2; pass++) {
        printf("\n%-16s %6s  %-23s  %-32s  %-32s  %s\n", pass ? "few-shot" : "zero-shot", "score",
            "difference", "gain (ARG), all tasks", "gain where the base is above 0.1",
            "wins/ties/losses");
        for (r = 0; r < ROWS; r++)
            for (i = 0; i < n; i++)
                scores[pass][r][i] =
                    defined[pass][r][i] ? scores[pass][r][i] / defined[pass][r][i] : (double)NAN;
        for (r = 0; r < ROWS; r++)
            if (measured[r] && (pass || r > 0))
                print_row(ctx, rows[r].name, scores[pass][base], scores[pass][r], n,
                    undefined[pass][r]);
    }
    printf("\n");
    for (r = 0; r < ROWS; r++)
        if (measured[r])
            printf("%-16s %s\n", rows[r].name,
                s.given && (r == BASE || r == MIXTURE) ? s.model : rows[r].what);
    tmoe_model_destroy(s.given);
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
    return 0;
}
