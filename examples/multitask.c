/* multitask: trains a dense multi-task model and a task-level mixture of experts on the same tasks,
 * in the same order, for the same number of steps, and prints what each can do on tasks it has seen
 * and on tasks it knows by their instruction only; over several splits and seeds, if asked.
 *   run time   several minutes on two cores with the embedded suite, for each split and seed
 *   read next  >>mix, >>router in taskmoe.h */
#define TMOE_THREADS
#define TASKMOE_IMPLEMENTATION
#include "common.h"

#define STEPS 5000 /* twice the library's default: both models still learn */
#define SEEDS_MAX 20
#define SPLITS_MAX 8
#define RUNS_MAX (SEEDS_MAX * SPLITS_MAX)
#define CATEGORIES_MAX 64
#define LABEL_COLUMNS 19 /* left of the picture of the routes */

enum { DENSE, MIXTURE, KINDS };

static const char *const names[KINDS] = { "dense", "mixture" };

typedef struct settings {
    const char *program, *folder, *split, *save, *tsv, *log;
    int seeds, seed, steps, experts, threads, limit, width;
    assignments set, set_of[KINDS]; /* for both models, for one of them */
} settings;

/* What is trained if no option says otherwise. */
static settings default_settings(void)
{
    const tmoe_config config = tmoe_config_default();
    settings s;
    memset(&s, 0, sizeof s);
    s.folder = "examples/suite";
    s.seeds = s.seed = 1;
    s.steps = STEPS;
    s.experts = config.experts;
    s.width = config.width;
    return s;
}

/* All that a model is and how it is trained; where the two kinds differ stands here or above. */
static void settings_of(int kind, const settings *s, tmoe_config *config, tmoe_training *training)
{
    *config = tmoe_config_default();
    config->experts = kind == MIXTURE ? s->experts : 1;
    config->width = s->width;
    config->encoder_ffn = config->decoder_ffn = 4 * s->width;
    config->source_tokens = config->target_tokens = 0; /* as long as the suite needs */

    *training = tmoe_training_default();
    training->steps = s->steps;
    training->label = names[kind];
    take_best_measured(config, training);
    assign(&s->set, config, training);
    assign(&s->set_of[kind], config, training);
}

typedef struct run { /* both models of one split and seed */
    const tmoe_suite *suite;
    int split, seed;

    struct {
        double *scores; /* one a task of the suite; NaN: not measured, or undefined */
        double train_seconds, answer_seconds;
        size_t parameters, active;
        int answers;
    } of[KINDS];
} run;

static run runs[RUNS_MAX];
static int run_count;
static char split_names[SPLITS_MAX][256];
static int split_count;

/* ---- files that are written while it runs ---------------------------------------------------- */

static progress_line progress;
static FILE *log_file;
static results score_file;
static route_means log_routes;

/* Once a training has begun: then folder and settings are good, and an earlier log may go. */
static void open_log(const settings *s)
{
    if (s->log && !log_file && !(log_file = fopen(s->log, "w"))) die_file(s->program, s->log);
}

/* Appends " before:NAME=VALUE" of each. */
static void append_assignments(char *text, size_t size, const char *before, const assignments *a)
{
    int i;
    for (i = 0; i < a->count; i++) {
        const size_t length = strlen(text);
        (void)snprintf(text + length, size - length, " %s%s", before, a->texts[i]);
    }
}

/* The scores' file begins with all settings that decide them. */
static void open_scores(const settings *s)
{
    char header[8000];
    (void)snprintf(header, sizeof header,
        "seed\tsplit\tmodel\ttask\tcategory\tpart\tmetric\tscore\texamples\tfolder=%.300s steps=%d "
        "experts=%d width=%d limit=%d",
        s->folder, s->steps, s->experts, s->width, s->limit);
    append_assignments(header, sizeof header, "", &s->set);
    append_assignments(header, sizeof header, "dense:", &s->set_of[DENSE]);
    append_assignments(header, sizeof header, "mixture:", &s->set_of[MIXTURE]);
    score_file = results_open(s->program, s->tsv, header);
}

/* The log: label, step, loss and, of a mixture, route entropy, least and largest use of an expert;
 * a line for each hundredth of a run. */
static int log_and_show(void *user, const tmoe_progress *p)
{
    static double sum, n;
    const settings *s = (const settings *)user;
    const int every = p->steps >= 100 ? p->steps / 100 : 1;
    double means[3];
    if (p->step == 1) {
        open_log(s);
        sum = n = 0.0;
    }
    sum += (double)p->loss;
    n += 1.0;
    log_routes.experts = progress.routes.experts;
    route_means_add(&log_routes, p, every);
    if (log_file && p->step % every == 0) {
        fprintf(log_file, "%s\t%lld\t%.5f", p->label, (long long)p->step, sum / n);
        if (route_means_of(&log_routes, means))
            fprintf(log_file, "\t%.4f\t%.4f\t%.4f", means[0], means[1], means[2]);
        fprintf(log_file, "\n");
        file_written(s->program, s->log, log_file, 0);
        sum = n = 0.0;
    }
    return show_progress(&progress, p);
}

static int is_asked(const tmoe_task *task)
{
    return task->part != TMOE_PART_DEV && task->test_count > 0;
}

static int lines_of(const settings *s, const tmoe_task *task)
{
    return s->limit > 0 && s->limit < task->test_count ? s->limit : task->test_count;
}

/* A line of the scores' file: that of a task, or of a cost of the whole run (task NULL). Reads it if
 * it is there and `read` is 1, writes it if `read` is 0. Returns 1 if that was done. */
static int score_line(const run *r, int kind, const tmoe_task *task, const char *metric,
    double *numbers, int read)
{
    char key[1000];
    (void)snprintf(key, sizeof key, "%d\t%s\t%s\t%.300s\t%.200s\t%s\t%s\t", r->seed,
        split_names[r->split], names[kind], task ? task->name : "-", task ? task->category : "-",
        !task                               ? "-"
            : task->part == TMOE_PART_TRAIN ? "seen"
                                            : "unseen",
        metric);
    if (read) return results_find(&score_file, key, numbers, 2);
    results_add(&score_file, key, numbers, 2);
    return 1;
}

/* All lines of a run: written, or read. Returns 1 if all are there. */
static int score_lines(const settings *s, run *r, int kind, int read)
{
    double seconds[2] = { r->of[kind].train_seconds, 0.0 };
    double answers[2] = { r->of[kind].answer_seconds, r->of[kind].answers };
    double parameters[2] = { (double)r->of[kind].parameters, (double)r->of[kind].active };
    int i;
    for (i = 0; i < tmoe_suite_count(r->suite); i++) {
        const tmoe_task *task = tmoe_suite_task(r->suite, i);
        double numbers[2] = { r->of[kind].scores[i], lines_of(s, task) };
        if (!is_asked(task)) continue;
        if (!score_line(r, kind, task, tmoe_metric_name(task->metric), numbers, read)) return 0;
        r->of[kind].scores[i] = numbers[0];
    }
    if (!score_line(r, kind, NULL, "train_seconds", seconds, read)) return 0;
    if (!score_line(r, kind, NULL, "answer_seconds", answers, read)) return 0;
    if (!score_line(r, kind, NULL, "parameters", parameters, read)) return 0;
    r->of[kind].train_seconds = seconds[0];
    r->of[kind].answer_seconds = answers[0];
    r->of[kind].answers = (int)answers[1];
    r->of[kind].parameters = (size_t)parameters[0];
    r->of[kind].active = (size_t)parameters[1];
    return 1;
}

/* ---- training and measuring ------------------------------------------------------------------ */

static void measure(tmoe_ctx *ctx, const settings *s, run *r, int kind, tmoe_model *model)
{
    const double began = seconds_now();
    double *scores = r->of[kind].scores;
    int i, answers = 0;
    for (i = 0; i < tmoe_suite_count(r->suite); i++) {
        const tmoe_task *task = tmoe_suite_task(r->suite, i);
        if (!is_asked(task)) continue;
        if (tmoe_evaluate(model, task, NULL, s->limit, &scores[i]) != TMOE_OK)
            die(s->program, tmoe_error_message(ctx));
        answers += lines_of(s, task);
    }
    r->of[kind].answers = answers;
    r->of[kind].answer_seconds = seconds_now() - began;
    r->of[kind].parameters = tmoe_model_parameters(model, &r->of[kind].active);
}

/* NULL if the scores' file has the run already. */
static tmoe_model *train_one(tmoe_ctx *ctx, settings *s, run *r, int kind)
{
    const double began = seconds_now();
    tmoe_config config;
    tmoe_training training;
    tmoe_model *model;
    const int tasks = tmoe_suite_count(r->suite);
    int i;
    r->of[kind].scores = (double *)malloc(sizeof(double) * (size_t)tasks);
    if (!r->of[kind].scores) die(s->program, "out of memory");
    for (i = 0; i < tasks; i++) r->of[kind].scores[i] = (double)NAN;
    if (score_file.text && score_lines(s, r, kind, 1)) return NULL;
    settings_of(kind, s, &config, &training);
    config.seed = training.seed = (uint64_t)r->seed;
    training.progress = log_and_show;
    training.progress_user = s;
    progress.routes.experts = config.experts;
    model = tmoe_train(ctx, r->suite, &config, &training);
    if (!model) die(s->program, tmoe_error_message(ctx));
    r->of[kind].train_seconds = seconds_now() - began;
    measure(ctx, s, r, kind, model);
    (void)score_lines(s, r, kind, 0);
    return model;
}

/* Both models of each seed on a suite. Returns the mixture of the first seed, if it was trained. */
static tmoe_model *train_all(tmoe_ctx *ctx, settings *s, const tmoe_suite *suite, int split)
{
    tmoe_model *first = NULL;
    int seed, kind;
    for (seed = 0; seed < s->seeds; seed++) {
        run *r = &runs[run_count++];
        r->suite = suite;
        r->split = split;
        r->seed = s->seed + seed;
        if (s->seeds > 1 || split_count > 1)
            fprintf(stderr, "%s, seed %d\n", split_names[split], r->seed);
        for (kind = 0; kind < KINDS; kind++) {
            tmoe_model *model = train_one(ctx, s, r, kind);
            if (kind == MIXTURE && seed == 0)
                first = model;
            else
                tmoe_model_destroy(model);
        }
    }
    return first;
}

/* ---- tables ---------------------------------------------------------------------------------- */

/* Mean score over the tasks of a category (NULL: all) and part; how many tasks into *count. */
static double mean_score(const run *r, int kind, const char *category, tmoe_part part, int *count)
{
    double sum = 0.0;
    int i;
    *count = 0;
    for (i = 0; i < tmoe_suite_count(r->suite); i++) {
        const tmoe_task *task = tmoe_suite_task(r->suite, i);
        const double score = r->of[kind].scores[i];
        if (task->part != part || !(score == score)) continue;
        if (category && strcmp(task->category, category) != 0) continue;
        sum += score;
        ++*count;
    }
    return *count ? sum / *count : (double)NAN;
}

/* 13 columns: mean and deviation over runs. */
static void print_cell(const double *x, int n)
{
    if (!(mean_of(x, n) == mean_of(x, n)))
        printf(" %12s", "-");
    else if (n > 1)
        printf(" %.3f \xc2\xb1%.3f", mean_of(x, n), deviation_of(x, n)); /* a plus-minus sign */
    else
        printf(" %12.3f", x[0]);
}

/* A row over the runs of a split (-1: all): number of tasks, dense and mixture, seen and unseen. */
static void print_row(const char *name, const char *category, int split)
{
    static const tmoe_part parts[2] = { TMOE_PART_TRAIN, TMOE_PART_TEST };
    int p, i, kind;
    printf("%-15.15s", name);
    for (p = 0; p < 2; p++) {
        double x[KINDS][RUNS_MAX];
        int n = 0, tasks = 0;
        for (i = 0; i < run_count; i++) {
            if (split >= 0 && runs[i].split != split) continue;
            for (kind = 0; kind < KINDS; kind++)
                x[kind][n] = mean_score(&runs[i], kind, category, parts[p], &tasks);
            n++;
        }
        printf(" %4d", tasks);
        for (kind = 0; kind < KINDS; kind++) print_cell(x[kind], n);
    }
    printf("\n");
}

static void print_rule(void)
{
    int i;
    for (i = 0; i < 77; i++) printf("-");
    printf("\n");
}

static void print_undefined(void)
{
    int r, i, kind, undefined = 0;
    for (r = 0; r < run_count; r++)
        for (i = 0; i < tmoe_suite_count(runs[r].suite); i++)
            for (kind = 0; kind < KINDS; kind++) {
                const double score = runs[r].of[kind].scores[i];
                undefined += is_asked(tmoe_suite_task(runs[r].suite, i)) && !(score == score);
            }
    if (undefined)
        printf("%d undefined scores (nan in --tsv) are left out of the means\n", undefined);
}

/* Rows: categories, splits if there are several, all. */
static void print_scores(void)
{
    const tmoe_suite *suite = runs[0].suite;
    const char *categories[CATEGORIES_MAX];
    int count = 0, c, i;
    for (i = 0; i < tmoe_suite_count(suite); i++) {
        const tmoe_task *task = tmoe_suite_task(suite, i);
        for (c = 0; c < count && strcmp(categories[c], task->category) != 0; c++) {}
        if (c == count && count < CATEGORIES_MAX && is_asked(task))
            categories[count++] = task->category;
    }
    printf("\n%-15s %4s %12s %12s %6s %10s %12s\n", "mean score", "seen", "dense", "mixture",
        "unseen", "dense", "mixture");
    for (c = 0; c < count; c++) print_row(categories[c], categories[c], -1);
    print_rule();
    for (i = 0; i < split_count && split_count > 1; i++) print_row(split_names[i], NULL, i);
    if (split_count > 1) print_rule();
    print_row("all", NULL, -1);
    if (run_count > 1)
        printf("(mean and standard deviation over %d runs of each model)\n", run_count);
    print_undefined();
}

/* Score of each task of a part, mean over the runs whose split has it there. Returns the number of
 * tasks, at most those of all suites together. */
static int pool_tasks(tmoe_part part, double *scores[KINDS], int *times, const char **found)
{
    int r, i, t, kind, n = 0;
    for (r = 0; r < run_count; r++)
        for (i = 0; i < tmoe_suite_count(runs[r].suite); i++) {
            const tmoe_task *task = tmoe_suite_task(runs[r].suite, i);
            if (task->part != part || !is_asked(task)) continue;
            for (t = 0; t < n && strcmp(found[t], task->name) != 0; t++) {}
            if (t == n) {
                found[n] = task->name;
                times[n] = 0;
                scores[DENSE][n] = scores[MIXTURE][n] = 0.0;
                n++;
            }
            times[t]++;
            for (kind = 0; kind < KINDS; kind++) scores[kind][t] += runs[r].of[kind].scores[i];
        }
    for (t = 0; t < n; t++)
        for (kind = 0; kind < KINDS; kind++) scores[kind][t] /= times[t];
    return n;
}

/* What the mixture gains, with intervals over tasks. */
static void print_differences(tmoe_ctx *ctx, const char *program)
{
    static const tmoe_part parts[2] = { TMOE_PART_TRAIN, TMOE_PART_TEST };
    const char **found;
    double *scores[KINDS];
    int *times, p, i, n;
    size_t most = 1;
    for (i = 0; i < run_count; i++) most += (size_t)tmoe_suite_count(runs[i].suite);
    found = (const char **)malloc(most * sizeof *found);
    times = (int *)malloc(most * sizeof *times);
    for (i = 0; i < KINDS; i++) scores[i] = (double *)malloc(most * sizeof *scores[i]);
    if (!found || !times || !scores[DENSE] || !scores[MIXTURE]) die(program, "out of memory");
    printf("\n%-26s %-26s %s\n", "mixture - dense", "mean [95 % over tasks]",
        "better, same, worse");
    for (p = 0; p < 2; p++) {
        tmoe_comparison c;
        n = pool_tasks(parts[p], scores, times, found);
        if (n == 0) continue;
        if (tmoe_compare(ctx, scores[DENSE], scores[MIXTURE], n, 1, &c) != TMOE_OK)
            die(program, tmoe_error_message(ctx));
        printf("%4d %-21s %+.3f [%+.3f, %+.3f]    %d, %d, %d\n", n,
            p ? "unseen tasks" : "seen tasks", c.difference[0], c.difference[1], c.difference[2],
            c.wins, c.ties, c.losses);
    }
    free((void *)found);
    free(times);
    for (i = 0; i < KINDS; i++) free(scores[i]);
}

static void print_costs(void)
{
    int kind, i;
    printf("\n%-10s %12s %12s %10s %12s %12s\n", "", "parameters", "active", "train s", "answers",
        "answers/s");
    for (kind = 0; kind < KINDS; kind++) {
        double train[RUNS_MAX], speed[RUNS_MAX];
        for (i = 0; i < run_count; i++) {
            train[i] = runs[i].of[kind].train_seconds;
            speed[i] = runs[i].of[kind].answers / runs[i].of[kind].answer_seconds;
        }
        printf("%-10s %12lu %12lu %10.1f %12d %12.0f\n", names[kind],
            (unsigned long)runs[0].of[kind].parameters, (unsigned long)runs[0].of[kind].active,
            mean_of(train, run_count), runs[0].of[kind].answers, mean_of(speed, run_count));
    }
}

static void print_routes(const char *program, tmoe_model *model)
{
    const int layers = tmoe_routed_layers(model), experts = tmoe_model_config(model)->experts;
    float *route = (float *)malloc(sizeof *route * (size_t)(layers * experts) + 1);
    int t, u;
    if (!route) die(program, "out of memory");
    printf("\nroutes, mean of each category (a block: a layer; a cell: an expert; dark: much)\n");
    print_layer_names(model, LABEL_COLUMNS);
    for (t = 0; t < tmoe_model_task_count(model); t++) {
        const char *category = tmoe_model_task(model, t)->category;
        for (u = 0; u < t && strcmp(tmoe_model_task(model, u)->category, category) != 0; u++) {}
        if (u < t) continue; /* printed already */
        (void)mean_route(model, category, route);
        print_route_row(model, route, category, LABEL_COLUMNS);
    }
    free(route);
}

/* ---- command line ---------------------------------------------------------------------------- */

/* What an option sets for both models, or a run for itself, would overwrite these. */
static void refuse_own_options(const char *program, const assignments *a)
{
    static const char *const own[] = { "seed=", "steps=", "experts=", "width=" };
    int i, k;
    for (i = 0; i < a->count; i++)
        for (k = 0; k < 4; k++)
            if (!strncmp(a->texts[i], own[k], strlen(own[k]))) {
                fprintf(stderr, "%s: %s has an option of its own, --%.*s\n", program, a->texts[i],
                    (int)strlen(own[k]) - 1, own[k]);
                exit(2);
            }
}

static void read_settings(int argc, char **argv, settings *s)
{
    static const char usage[] =
        "usage: multitask [FOLDER] [options]\n"
        "Trains a dense model and a mixture of experts on a folder of tasks and compares\n"
        "them. FOLDER (default: the embedded suite) holds NAME.tsv files with lines\n"
        "'input TAB output', see README.md.";
    const char *word = NULL;
    const option options[] = { { "--split", "NAMES", 's', &s->split,
                                   "FOLDER/splits/NAME.json; a,b,c: several (zero_shot)" },
        { "--seeds", "N", 'n', &s->seeds, "runs with seeds S, S+1, ... (default 1)" },
        { "--seed", "S", 'i', &s->seed, "first seed (default 1)" },
        { "--steps", "N", 'n', &s->steps, "optimiser steps of each model" },
        { "--experts", "E", 'n', &s->experts, "experts a layer" },
        { "--width", "D", 'n', &s->width, "model width" },
        { "--set", "NAME=VALUE", 'm', &s->set, "any other setting; --settings lists them" },
        { "--set-dense", "N=V", 'm', &s->set_of[DENSE], "the same of the dense model only" },
        { "--set-mixture", "N=V", 'm', &s->set_of[MIXTURE], "the same of the mixture only" },
        { "--threads", "T", 'i', &s->threads, "default: all processors; bits stay the same" },
        { "--limit", "N", 'i', &s->limit, "test lines a task that are scored (default all)" },
        { "--save", "MODEL", 's', &s->save,
            "where the first mixture is kept, if it was trained now" },
        { "--tsv", "FILE", 's', &s->tsv, "a line a seed, split, model and task; goes on from it" },
        { "--log", "FILE", 's', &s->log, "losses while training, for routes --log" },
        { NULL, NULL, 0, NULL, NULL } };
    *s = default_settings();
    s->program = argv[0];
    if (options_read(argc, argv, usage, options, &word, 1) == 1) s->folder = word;
    refuse_own_options(argv[0], &s->set);
    refuse_own_options(argv[0], &s->set_of[DENSE]);
    refuse_own_options(argv[0], &s->set_of[MIXTURE]);
    if (s->seeds > SEEDS_MAX) die(argv[0], "--seeds takes 1 to 20");
    if (s->experts < 2 || s->experts > 64)
        die(argv[0], "--experts takes 2 to 64: the dense model is trained beside it anyway");
}

/* "a,b,c" into split_names; nothing: the folder's default. */
static void read_splits(const settings *s)
{
    const char *at = s->split;
    while (at) {
        const size_t length = strcspn(at, ",");
        if (split_count == SPLITS_MAX) die(s->program, "--split takes at most 8 names");
        if (length == 0 || length >= sizeof split_names[0])
            die(s->program, "--split: a name is empty or too long");
        memcpy(split_names[split_count++], at, length);
        at = at[length] ? at + length + 1 : NULL;
    }
    if (!s->split) (void)snprintf(split_names[split_count++], sizeof split_names[0], "default");
}

static tmoe_suite *load_suite(tmoe_ctx *ctx, const settings *s, int split)
{
    tmoe_suite *suite = tmoe_suite_load(ctx, s->folder, s->split ? split_names[split] : NULL);
    int i, seen = 0, unseen = 0;
    if (!suite) die(s->program, tmoe_error_message(ctx));
    for (i = 0; i < tmoe_suite_count(suite); i++) {
        seen += tmoe_suite_task(suite, i)->part == TMOE_PART_TRAIN;
        unseen += tmoe_suite_task(suite, i)->part == TMOE_PART_TEST;
    }
    printf("%s, split %s: %d training tasks,\n%d held-out tasks, known by their instruction only\n",
        s->folder, split_names[split], seen, unseen);
    fflush(stdout);
    return suite;
}

int main(int argc, char **argv)
{
    static settings s;
    tmoe_suite *suites[SPLITS_MAX];
    tmoe_model *model = NULL;
    tmoe_ctx *ctx;
    int i, kind;
    read_settings(argc, argv, &s);
    read_splits(&s);
    progress.out = stderr;
    must_be_writable(argv[0], s.save, 1);
    must_be_writable(argv[0], s.log, 0);
    ctx = context_or_die(argv[0], s.threads);
    for (i = 0; i < split_count; i++) suites[i] = load_suite(ctx, &s, i);
    open_scores(&s);
    for (i = 0; i < split_count; i++) {
        tmoe_model *first = train_all(ctx, &s, suites[i], i);
        if (i == 0)
            model = first;
        else
            tmoe_model_destroy(first);
    }
    print_scores();
    print_differences(ctx, argv[0]);
    print_costs();
    if (model) print_routes(argv[0], model);
    if (s.save && !model)
        die(argv[0], "--save: nothing to save, the first mixture's scores are from the TSV file");
    if (s.save) {
        if (tmoe_model_save(model, s.save) != TMOE_OK) die(argv[0], tmoe_error_message(ctx));
        printf("\nsaved the first mixture (seed %d) to %s\n", s.seed, s.save);
    }
    file_written(argv[0], s.log, log_file, 1);
    results_close(&score_file);
    for (i = 0; i < run_count; i++)
        for (kind = 0; kind < KINDS; kind++) free(runs[i].of[kind].scores);
    tmoe_model_destroy(model);
    for (i = 0; i < split_count; i++) tmoe_suite_destroy(suites[i]);
    tmoe_ctx_destroy(ctx);
    return 0;
}
