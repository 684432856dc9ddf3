/* multitask: trains a dense multi-task model and a task-level mixture of experts on the same tasks,
 * in the same order, for the same number of steps, and prints what each can do on tasks it has seen
 * and on tasks it knows by their instruction only.
 *   run time   about two minutes on two cores with the embedded suite      read next   >>mix,
 *   >>router in taskmoe.h */
#define TMOE_THREADS
#define TASKMOE_IMPLEMENTATION
#include "common.h"

#define SEEDS_MAX 20
#define CATEGORIES_MAX 64

static const char usage[] =
    "usage: multitask [FOLDER] [options]\n"
    "Trains a dense model and a mixture of experts on a folder of tasks and compares them.\n"
    "FOLDER (default: the embedded suite) holds NAME.tsv files with lines 'input TAB output', see "
    "README.md.";

typedef struct run { /* one model of one seed */
    double *scores;  /* one a task of the suite; NaN: not measured */
    double train_seconds, answer_seconds, tokens_per_second;
    size_t parameters, active;
    int answers;
} run;

typedef struct settings {
    const char *program, *folder, *split, *mix, *select, *save, *tsv, *log;
    int seeds, seed, steps, experts, threads, limit, width, layers;
    float lr, lr_router, dropout;
} settings;

static progress_line progress;

static struct {
    FILE *log, *tsv;
} files;

static route_means log_routes;

/* Once a training has begun: then folder and settings are good, and files of earlier runs may go.
 * */
static void open_files(const settings *s)
{
    if (s->log && !files.log && !(files.log = fopen(s->log, "w"))) die_file(s->program, s->log);
    if (!s->tsv || files.tsv) return;
    if (!(files.tsv = fopen(s->tsv, "w"))) die_file(s->program, s->tsv);
    fprintf(files.tsv, "seed\tmodel\ttask\tcategory\tpart\tmetric\tscore\texamples\n");
    file_written(s->program, s->tsv, files.tsv, 0);
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
        open_files(s);
        sum = n = 0.0;
    }
    sum += (double)p->loss;
    n += 1.0;
    log_routes.experts = progress.routes.experts;
    route_means_add(&log_routes, p, every);
    if (files.log && p->step % every == 0) {
        fprintf(files.log, "%s\t%lld\t%.5f", p->label, (long long)p->step, sum / n);
        if (route_means_of(&log_routes, means))
            fprintf(files.log, "\t%.4f\t%.4f\t%.4f", means[0], means[1], means[2]);
        fprintf(files.log, "\n");
        file_written(s->program, s->log, files.log, 0);
        sum = n = 0.0;
    }
    return show_progress(&progress, p);
}

static tmoe_model *train_one(tmoe_ctx *ctx, const tmoe_suite *suite, settings *s, int seed,
    int experts, run *r)
{
    static const char *const mixes[] = { "param", "output", NULL },
                             *const selections[] = { "softmax", "gumbel", "st", "average", NULL };
    tmoe_config config = tmoe_config_default();
    tmoe_training training = tmoe_training_default();
    tmoe_model *model;
    double began = seconds_now();
    int i;
    config.experts = experts;
    config.width = s->width;
    config.encoder_ffn = config.decoder_ffn = 4 * s->width;
    config.encoder_layers = config.decoder_layers = s->layers;
    config.mix = (tmoe_mix)choose(s->program, "--mix", s->mix, mixes);
    config.selection = (tmoe_selection)choose(s->program, "--select", s->select, selections);
    config.source_tokens = config.target_tokens = 0; /* as long as the suite needs */
    config.seed = (uint64_t)seed;
    training.seed = (uint64_t)seed;
    training.steps = s->steps;
    training.lr_model = s->lr;
    training.lr_router = s->lr_router;
    training.dropout = s->dropout;
    training.label = experts > 1 ? "mixture" : "dense";
    training.progress = log_and_show;
    training.progress_user = s;
    progress.routes.experts = experts;
    model = tmoe_train(ctx, suite, &config, &training);
    if (!model) die(s->program, tmoe_error_message(ctx));
    r->train_seconds = seconds_now() - began;
    r->parameters = tmoe_model_parameters(model, &r->active);
    r->scores = (double *)malloc(sizeof *r->scores * (size_t)tmoe_suite_count(suite));
    if (!r->scores) die(s->program, "out of memory");
    began = seconds_now();
    r->answers = 0;
    for (i = 0; i < tmoe_suite_count(suite); i++) {
        const tmoe_task *task = tmoe_suite_task(suite, i);
        r->scores[i] = (double)NAN;
        if (task->part == TMOE_PART_DEV || task->test_count == 0) continue;
        if (tmoe_evaluate(model, task, NULL, s->limit, &r->scores[i]) != TMOE_OK)
            die(s->program, tmoe_error_message(ctx));
        r->answers += s->limit > 0 && s->limit < task->test_count ? s->limit : task->test_count;
    }
    r->answer_seconds = seconds_now() - began;
    return model;
}

/* Mean score over the tasks of a category (NULL: all) and part; how many tasks into *count. */
static double category_score(const tmoe_suite *suite, const double *scores, const char *category,
    tmoe_part part, int *count)
{
    double sum = 0.0;
    int i, n = 0;
    for (i = 0; i < tmoe_suite_count(suite); i++)
        if (tmoe_suite_task(suite, i)->part == part && scores[i] == scores[i]
            && (!category || !strcmp(tmoe_suite_task(suite, i)->category, category))) {
            sum += scores[i];
            n++;
        }
    *count = n;
    return n ? sum / n : (double)NAN;
}

static void print_cell(const double *x, int n)
{
    if (!(mean_of(x, n) == mean_of(x, n)))
        printf(" %12s", "-");
    else if (n > 1)
        printf("  %.3f +-%.3f", mean_of(x, n), deviation_of(x, n));
    else
        printf(" %12.3f", x[0]);
}

static void print_table(const tmoe_suite *suite, run runs[2][SEEDS_MAX], int seeds)
{
    const char *categories[CATEGORIES_MAX + 1];
    int count = 0, c, i, part, kind, s, tasks[2], undefined = 0;
    for (i = 0; i < tmoe_suite_count(suite); i++) {
        for (c = 0; c < count && strcmp(categories[c], tmoe_suite_task(suite, i)->category); c++) {}
        if (c == count && count < CATEGORIES_MAX
            && tmoe_suite_task(suite, i)->part != TMOE_PART_DEV)
            categories[count++] = tmoe_suite_task(suite, i)->category;
    }
    categories[count] = NULL;
    printf("\n%-18s %5s %*s %*s   %5s %*s %*s\n", "mean score", "seen", seeds > 1 ? 14 : 12,
        "dense", seeds > 1 ? 13 : 12, "mixture", "unseen", seeds > 1 ? 13 : 11, "dense",
        seeds > 1 ? 13 : 12, "mixture");
    for (c = 0; c <= count; c++) {
        if (c == count)
            printf("%.*s\n", seeds > 1 ? 86 : 80,
                "----------------------------------------------------------------------------------"
                "----");
        printf("%-18s", categories[c] ? categories[c] : "all");
        for (part = 0; part < 2; part++) {
            double x[2][SEEDS_MAX];
            for (kind = 0; kind < 2; kind++)
                for (s = 0; s < seeds; s++)
                    x[kind][s] = category_score(suite, runs[kind][s].scores, categories[c],
                        part ? TMOE_PART_TEST : TMOE_PART_TRAIN, &tasks[part]);
            printf("%s %5d", part ? "  " : "", tasks[part]);
            print_cell(x[0], seeds);
            print_cell(x[1], seeds);
        }
        printf("\n");
    }
    for (i = 0; i < tmoe_suite_count(suite); i++)
        for (s = 0; tmoe_suite_task(suite, i)->part != TMOE_PART_DEV
             && tmoe_suite_task(suite, i)->test_count > 0 && s < seeds;
             s++)
            for (kind = 0; kind < 2; kind++)
                undefined += !(runs[kind][s].scores[i] == runs[kind][s].scores[i]);
    if (undefined)
        printf("%d undefined scores (nan in --tsv) are left out of the means\n", undefined);
    printf("\n%-10s %12s %12s %10s %12s %12s\n", "", "parameters", "active", "train s", "answers",
        "answers/s");
    for (kind = 0; kind < 2; kind++) {
        double train[SEEDS_MAX], speed[SEEDS_MAX];
        for (s = 0; s < seeds; s++) {
            train[s] = runs[kind][s].train_seconds;
            speed[s] = runs[kind][s].answers / runs[kind][s].answer_seconds;
        }
        printf("%-10s %12lu %12lu %10.1f %12d %12.0f\n", kind ? "mixture" : "dense",
            (unsigned long)runs[kind][0].parameters, (unsigned long)runs[kind][0].active,
            mean_of(train, seeds), runs[kind][0].answers, mean_of(speed, seeds));
    }
}

/* Mean route of each category: one block a layer, one cell an expert, darker = more. */
static void print_routes(tmoe_model *model)
{
    static const char *const shades[] = { "  ", "\xe2\x96\x91\xe2\x96\x91",
        "\xe2\x96\x92\xe2\x96\x92", "\xe2\x96\x93\xe2\x96\x93", "\xe2\x96\x88\xe2\x96\x88" };
    const int R = tmoe_routed_layers(model), E = tmoe_model_config(model)->experts,
              N = tmoe_model_task_count(model);
    float *route = (float *)malloc(sizeof(float) * (size_t)(R * E)),
          *sum = (float *)malloc(sizeof(float) * (size_t)(R * E));
    int t, u, l, e, n;
    char name[32];
    if (!route || !sum || R == 0) {
        free(route);
        free(sum);
        return;
    }
    printf("\nroutes, mean of each category's tasks (a block a layer, a cell an expert, darker = "
           "larger share)\n%-18s",
        "");
    for (l = 0; l < R; l++) {
        tmoe_routed_layer_name(model, l, name, sizeof name);
        printf(" %-*s", 2 * E + 1, name);
    }
    printf("\n");
    for (t = 0; t < N; t++) {
        const char *category = tmoe_model_task(model, t)->category;
        for (u = 0; u < t && strcmp(tmoe_model_task(model, u)->category, category); u++) {}
        if (u < t) continue; /* printed already */
        memset(sum, 0, sizeof(float) * (size_t)(R * E));
        for (u = t, n = 0; u < N; u++)
            if (!strcmp(tmoe_model_task(model, u)->category, category)
                && tmoe_route_of_task(model, u, route) == TMOE_OK) {
                n++;
                for (e = 0; e < R * E; e++) sum[e] += route[e];
            }
        printf("%-18s", category);
        for (l = 0; l < R; l++) {
            printf(" ");
            for (e = 0; e < E; e++) {
                int shade = (int)(sum[l * E + e] / (float)n * (float)E
                    * 2.0f); /* the even share 1/E is in the middle */
                printf("%s", shades[shade > 4 ? 4 : shade]);
            }
            printf(" ");
        }
        printf("\n");
    }
    free(route);
    free(sum);
}

int main(int argc, char **argv)
{
    settings s = { argv[0], "examples/suite", NULL, "param", "softmax", NULL, NULL, NULL, 1, 1,
        5000, 4, 0, 0, 96, 2, 2e-3f, 5e-3f, 0.0f };
    static run runs[2][SEEDS_MAX];
    const char *word = NULL;
    tmoe_ctx *ctx;
    tmoe_suite *suite;
    tmoe_model *model = NULL;
    int seed, kind, i, seen = 0, unseen = 0;
    option options[] = {
        { "--split", "NAME|FILE", 's', NULL,
            "splits/NAME.json of the folder, or a file (default: zero_shot if there)" },
        { "--seeds", "N", 'n', NULL,
            "runs with seeds S, S+1, ... (default 1); several give mean and deviation" },
        { "--seed", "S", 'i', NULL, "first seed (default 1)" },
        { "--steps", "N", 'n', NULL, "optimiser steps of each model (default 5000)" },
        { "--experts", "E", 'n', NULL, "experts a layer (default 4)" },
        { "--mix", "param|output", 's', NULL, "average parameters or outputs (default param)" },
        { "--select", "softmax|st", 's', NULL,
            "softmax, gumbel, st (straight-through) or average (default softmax)" },
        { "--width", "D", 'n', NULL, "model width (default 96)" },
        { "--layers", "N", 'n', NULL, "encoder layers, and as many decoder layers (default 2)" },
        { "--lr", "X", 'f', NULL, "learning rate of the transformer (default 0.002)" },
        { "--lr-router", "X", 'f', NULL, "learning rate of the router (default 0.005)" },
        { "--dropout", "P", 'f', NULL, "dropout in training (default 0)" },
        { "--threads", "T", 'i', NULL,
            "threads (default: all processors); any number gives the same bits" },
        { "--limit", "N", 'i', NULL, "test lines of each task that are scored (default: all)" },
        { "--save", "MODEL", 's', NULL, "where the mixture of the first seed is kept" },
        { "--tsv", "FILE", 's', NULL, "one line for each seed, model and task" },
        { "--log", "FILE", 's', NULL, "losses while training, for routes --log" },
        { NULL, NULL, 0, NULL, NULL }
    };
    void *values[] = { &s.split, &s.seeds, &s.seed, &s.steps, &s.experts, &s.mix, &s.select,
        &s.width, &s.layers, &s.lr, &s.lr_router, &s.dropout, &s.threads, &s.limit, &s.save, &s.tsv,
        &s.log };
    for (i = 0; options[i].name; i++) options[i].value = values[i];
    if (options_read(argc, argv, usage, options, &word, 1) == 1) s.folder = word;
    if (s.seeds < 1 || s.seeds > SEEDS_MAX) die(argv[0], "--seeds takes 1 to 20");
    if (s.experts < 2 || s.experts > 64)
        die(argv[0], "--experts takes 2 to 64: the dense model is trained beside it anyway");
    progress.out = stderr;
    must_be_writable(argv[0], s.save, 1);
    must_be_writable(argv[0], s.tsv, 0);
    must_be_writable(argv[0], s.log, 0);
    ctx = context_or_die(argv[0], s.threads);
    suite = tmoe_suite_load(ctx, s.folder, s.split);
    if (!suite) die(argv[0], tmoe_error_message(ctx));
    for (i = 0; i < tmoe_suite_count(suite); i++) {
        seen += tmoe_suite_task(suite, i)->part == TMOE_PART_TRAIN;
        unseen += tmoe_suite_task(suite, i)->part == TMOE_PART_TEST;
    }
    printf("%s: %d training tasks, %d held-out tasks (known by their instruction only)\n", s.folder,
        seen, unseen);
    for (seed = 0; seed < s.seeds; seed++)
        for (kind = 0; kind < 2; kind++) {
            tmoe_model *trained =
                train_one(ctx, suite, &s, s.seed + seed, kind ? s.experts : 1, &runs[kind][seed]);
            open_files(&s);
            for (i = 0; files.tsv && i < tmoe_suite_count(suite); i++) {
                const tmoe_task *task = tmoe_suite_task(suite, i);
                if (task->part == TMOE_PART_DEV || task->test_count == 0) continue;
                fprintf(files.tsv, "%d\t%s\t%s\t%s\t%s\t%s\t%.6f\t%d\n", s.seed + seed,
                    kind ? "mixture" : "dense", task->name, task->category,
                    task->part == TMOE_PART_TRAIN ? "seen" : "unseen",
                    tmoe_metric_name(task->metric), runs[kind][seed].scores[i],
                    s.limit > 0 && s.limit < task->test_count ? s.limit : task->test_count);
            }
            file_written(argv[0], s.tsv, files.tsv, 0);
            if (kind == 1 && seed == 0)
                model = trained; /* kept for the picture and --save */
            else
                tmoe_model_destroy(trained);
        }
    print_table(suite, runs, s.seeds);
    print_routes(model);
    if (s.save) {
        if (tmoe_model_save(model, s.save) != TMOE_OK) die(argv[0], tmoe_error_message(ctx));
        printf("\nsaved the mixture (seed %d) to %s\n", s.seed, s.save);
    }
    file_written(argv[0], s.log, files.log, 1);
    file_written(argv[0], s.tsv, files.tsv, 1);
    for (kind = 0; kind < 2; kind++)
        for (seed = 0; seed < s.seeds; seed++) free(runs[kind][seed].scores);
    tmoe_model_destroy(model);
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
    return 0;
}
