/* compare: trains the method's variants on the same tasks and prints what each reaches: how a route
 * is selected, which router makes it, what a task is represented by, which way the experts are
 * mixed. One thing at a time is changed from the default; --full crosses selections, routers and
 * vectors.
 *   run time   some two minutes a line and seed with the embedded suite (--tsv keeps what is done)
 *       read next   >>router, >>mix in taskmoe.h */
#define TMOE_THREADS
#define TASKMOE_IMPLEMENTATION
#include "common.h"

#define SEEDS_MAX 20
#define ROWS_MAX 256

static const char usage[] = "usage: compare [FOLDER] [options]\n"
                            "Trains variants of the mixture and a dense model on a folder of tasks "
                            "and prints the scores of each.";

static const char *const selections[] = { "softmax", "gumbel", "straight-through", "average",
    "random-task", "random-example", NULL };
static const char *const routers[] = { "linear", "linear-specific", "rnn", "rnn-specific", "gru",
    "gru-specific", "lstm", "lstm-specific", "transformer", "transformer-specific", NULL };
/* The last two: what a dense model makes of 16 lines of a task; fisher reads their answers, too, also
 * those of unseen tasks. */
static const char *const vectors[] = { "text", "learned", "state", "fisher", NULL };

enum { GIVEN = 2 };

static const char *const mixes[] = { "param", "output", NULL };

typedef struct row {
    int dense, selection, router, vector, mix, two_stages;
} row;

typedef struct settings {
    const char *program, *folder, *split, *tsv, *only;
    int seeds, seed, steps, experts, threads, full, limit, width;
} settings;

static progress_line progress;

static void row_name(const row *r, char *text, size_t size)
{
    if (r->dense)
        (void)snprintf(text, size, "dense");
    else
        (void)snprintf(text, size, "%s, %s, %s, %s",
            r->two_stages ? "two stages" : selections[r->selection], routers[r->router],
            vectors[r->vector], mixes[r->mix]);
}

/* The rows: dense, the default, then one change at a time; or the whole cross. */
static int make_rows(row *rows, int full)
{
    const row standard = { 0, TMOE_SELECT_SOFTMAX, TMOE_ROUTER_LINEAR_LAYER_SPECIFIC,
        TMOE_VECTOR_TEXT, TMOE_MIX_PARAM, 0 };
    int n = 0, s, r, v;
    rows[n] = standard;
    rows[n++].dense = 1;
    rows[n++] = standard;
    for (s = 0; selections[s]; s++)
        for (r = 0; routers[r]; r++)
            for (v = 0; vectors[v]; v++) {
                const int changes =
                    (s != standard.selection) + (r != standard.router) + (v != standard.vector);
                if (changes == 0 || (!full && changes > 1)) continue;
                rows[n] = standard;
                rows[n].selection = s;
                rows[n].router = r;
                rows[n++].vector = v;
            }
    rows[n] = standard;
    rows[n++].mix = TMOE_MIX_OUTPUT;
    rows[n] = standard;
    rows[n].selection = TMOE_SELECT_STRAIGHT_THROUGH;
    rows[n++].mix = TMOE_MIX_OUTPUT;
    rows[n] = standard;
    rows[n++].two_stages = 1;
    return n;
}

/* Vectors (tmoe_suite_count(suite), k) of all tasks by a dense model, and a model whose task vectors are those
 * of its training tasks. */
static tmoe_model *given_vectors(tmoe_ctx *ctx, const tmoe_suite *suite, const settings *s,
    tmoe_config *c, const tmoe_training *t, int how, float **table)
{
    tmoe_config plain = *c;
    tmoe_training training = *t;
    tmoe_task *tasks = (tmoe_task *)malloc(sizeof *tasks * (size_t)tmoe_suite_count(suite));
    tmoe_model *dense, *given;
    int i, n = 0;
    plain.experts = 1;
    training.label = "dense";
    dense = tmoe_train(ctx, suite, &plain, &training);
    if (!dense) die(s->program, tmoe_error_message(ctx));
    c->vectors = TMOE_VECTOR_GIVEN;
    if (how == 0) c->vector_width = c->width;
    c->source_tokens = tmoe_model_config(dense)->source_tokens;
    c->target_tokens = tmoe_model_config(dense)->target_tokens;
    *table =
        (float *)malloc(sizeof **table * (size_t)tmoe_suite_count(suite) * (size_t)c->vector_width);
    if (!tasks || !*table) die(s->program, "out of memory");
    if (tmoe_task_vectors(dense, suite, how ? TMOE_EMBED_FISHER : TMOE_EMBED_STATE, 16,
            c->vector_width, *table)
        != TMOE_OK)
        die(s->program, tmoe_error_message(ctx));
    for (i = 0; i < tmoe_suite_count(suite); i++)
        if (tmoe_suite_task(suite, i)->part == TMOE_PART_TRAIN)
            tasks[n++] = *tmoe_suite_task(suite, i);
    given = tmoe_model_create(ctx, c, tmoe_model_tokenizer(dense), tasks, n);
    if (!given) die(s->program, tmoe_error_message(ctx));
    for (i = n = 0; i < tmoe_suite_count(suite); i++)
        if (tmoe_suite_task(suite, i)->part == TMOE_PART_TRAIN
            && tmoe_task_vector_set(given, n++, *table + (size_t)i * (size_t)c->vector_width)
                != TMOE_OK)
            die(s->program, tmoe_error_message(ctx));
    free(tasks);
    tmoe_model_destroy(dense);
    return given;
}

/* seen, unseen, seconds of training; the progress lines have the entropy of the routes and the use
 * of the experts */
static void measure(tmoe_ctx *ctx, const tmoe_suite *suite, const settings *s, const row *r,
    int seed, double *numbers)
{
    tmoe_config c = tmoe_config_default();
    tmoe_training t = tmoe_training_default();
    tmoe_model *model, *given = NULL;
    float *table = NULL, *route = NULL;
    double began, sum[2] = { 0.0, 0.0 }, score;
    int i, n[2] = { 0, 0 }, undefined = 0;
    char name[120];
    row_name(r, name, sizeof name);
    c.width = s->width;
    c.encoder_ffn = c.decoder_ffn = 4 * s->width;
    c.source_tokens = c.target_tokens = 0;
    c.experts = r->dense ? 1 : s->experts;
    c.selection = (tmoe_selection)r->selection;
    c.router = (tmoe_router_kind)r->router;
    c.vectors = r->vector < GIVEN ? (tmoe_vector_kind)r->vector : TMOE_VECTOR_TEXT;
    c.mix = (tmoe_mix)r->mix;
    if (r->selection == TMOE_SELECT_GUMBEL
        || r->selection == TMOE_SELECT_STRAIGHT_THROUGH) { /* the paper's stage 1 */
        c.temperature = 2.0f;
        c.temperature_min = 0.1f;
        c.temperature_decay = (float)(log(20.0) * 3.0 / s->steps);
    }
    if (r->router >= TMOE_ROUTER_TRANSFORMER && c.vector_width % 4)
        c.vector_width += 4 - c.vector_width % 4;
    c.seed = t.seed = (uint64_t)seed;
    t.steps = s->steps;
    t.label = name;
    t.progress = show_progress;
    t.progress_user = &progress;
    progress.routes.experts = c.experts;
    if (!r->dense && r->vector >= GIVEN)
        given = given_vectors(ctx, suite, s, &c, &t, r->vector - GIVEN, &table);
    began = seconds_now();
    model = r->two_stages ? tmoe_train_two_stages(ctx, suite, NULL, &c, &t, &t)
                          : tmoe_train_from(ctx, suite, NULL, given, &c, &t);
    if (model && table)
        route =
            (float *)malloc(sizeof *route * (size_t)(tmoe_routed_layers(model) * c.experts + 1));
    if (!model) die(s->program, tmoe_error_message(ctx));
    numbers[2] = seconds_now() - began;
    for (i = 0; i < tmoe_suite_count(suite); i++) {
        const tmoe_task *task = tmoe_suite_task(suite, i);
        const int unseen = task->part == TMOE_PART_TEST;
        if (task->part == TMOE_PART_DEV || task->test_count == 0) continue;
        if (route && unseen && c.selection <= TMOE_SELECT_STRAIGHT_THROUGH
            && tmoe_route_of_vector(model, table + (size_t)i * (size_t)c.vector_width, route)
                != TMOE_OK)
            die(s->program, tmoe_error_message(ctx));
        if (tmoe_evaluate(model, task,
                route && unseen && c.selection <= TMOE_SELECT_STRAIGHT_THROUGH ? route : NULL,
                unseen ? 0 : s->limit, &score)
            != TMOE_OK)
            die(s->program, tmoe_error_message(ctx));
        if (score == score) {
            sum[unseen] += score;
            n[unseen]++;
        } else
            undefined++;
    }
    if (undefined)
        fprintf(stderr, "%s, seed %d: %d undefined scores are left out of the means\n", name, seed,
            undefined);
    for (i = 0; i < 2; i++) numbers[i] = n[i] ? sum[i] / n[i] : (double)NAN;
    tmoe_model_destroy(given);
    tmoe_model_destroy(model);
    free(table);
    free(route);
}

static void print_cell(const double *x, int n)
{
    if (!(mean_of(x, n) == mean_of(x, n)))
        printf(" %16s", "-");
    else if (n > 1)
        printf("   %.3f +- %.3f", mean_of(x, n), deviation_of(x, n));
    else
        printf(" %16.3f", x[0]);
}

int main(int argc, char **argv)
{
    settings s = { argv[0], "examples/suite", NULL, NULL, NULL, 1, 1, 2500, 8, 0, 0, 20, 96 };
    static row rows[ROWS_MAX];
    const char *word = NULL;
    char header[400], key[200], name[120];
    tmoe_ctx *ctx;
    tmoe_suite *suite;
    results file;
    int i, n, seed;
    option options[] = {
        { "--split", "NAME|FILE", 's', NULL,
            "splits/NAME.json of the folder, or a file (default: zero_shot if there)" },
        { "--seeds", "N", 'n', NULL, "runs with seeds S, S+1, ... (default 1)" },
        { "--seed", "S", 'i', NULL, "first seed (default 1)" },
        { "--tsv", "FILE", 's', NULL,
            "one line for each variant and seed; a stopped run goes on from it" },
        { "--only", "TEXT", 's', NULL,
            "only the variants whose name has TEXT in it (\"lstm\", \"two stages\", \", "
            "output\")" },
        { "--full", NULL, 'b', NULL,
            "all selections x routers x vectors instead of one change at a time" },
        { "--steps", "N", 'n', NULL, "optimiser steps (default 2500)" },
        { "--experts", "E", 'n', NULL, "experts a layer (default 8)" },
        { "--width", "D", 'n', NULL, "model width (default 96)" },
        { "--limit", "N", 'i', NULL,
            "test lines of each seen task (default 20; 0: all); unseen tasks: all" },
        { "--threads", "T", 'i', NULL,
            "threads (default: all processors); any number gives the same bits" },
        { NULL, NULL, 0, NULL, NULL }
    };
    void *values[] = { &s.split, &s.seeds, &s.seed, &s.tsv, &s.only, &s.full, &s.steps, &s.experts,
        &s.width, &s.limit, &s.threads };
    for (i = 0; options[i].name; i++) options[i].value = values[i];
    if (options_read(argc, argv, usage, options, &word, 1) == 1) s.folder = word;
    if (s.seeds < 1 || s.seeds > SEEDS_MAX) die(argv[0], "--seeds takes 1 to 20");
    progress.out = stderr;
    ctx = context_or_die(argv[0], s.threads);
    suite = tmoe_suite_load(ctx, s.folder, s.split);
    if (!suite) die(argv[0], tmoe_error_message(ctx));
    n = make_rows(rows, s.full);
    for (i = 0; s.only && i < n && (row_name(&rows[i], name, sizeof name), !strstr(name, s.only));
         i++) {}
    if (s.only && i == n) {
        fprintf(stderr, "%s: --only: '%s' is in no variant's name; the variants are\n", argv[0],
            s.only);
        for (i = 0; i < n; i++) {
            row_name(&rows[i], name, sizeof name);
            fprintf(stderr, "  %s\n", name);
        }
        exit(2);
    }
    (void)snprintf(header, sizeof header,
        "seed\tvariant\tseen\tunseen\tseconds\tfolder=%s split=%s steps=%d experts=%d width=%d "
        "limit=%d",
        s.folder, s.split ? s.split : "default", s.steps, s.experts, s.width, s.limit);
    file = results_open(argv[0], s.tsv, header);
    printf("%-58s %16s %16s %8s\n", "selection, router, task vector, mix", "seen", "unseen",
        "train s");
    for (i = 0; i < n; i++) {
        double seen[SEEDS_MAX], unseen[SEEDS_MAX], seconds[SEEDS_MAX];
        row_name(&rows[i], name, sizeof name);
        if (s.only && !strstr(name, s.only)) continue;
        for (seed = 0; seed < s.seeds; seed++) {
            double numbers[3];
            (void)snprintf(key, sizeof key, "%d\t%s\t", s.seed + seed, name);
            if (!results_find(&file, key, numbers, 3)) {
                measure(ctx, suite, &s, &rows[i], s.seed + seed, numbers);
                results_add(&file, key, numbers, 3);
            }
            seen[seed] = numbers[0];
            unseen[seed] = numbers[1];
            seconds[seed] = numbers[2];
        }
        printf("%-58s", name);
        print_cell(seen, s.seeds);
        print_cell(unseen, s.seeds);
        printf(" %8.0f\n", mean_of(seconds, s.seeds));
        fflush(stdout);
    }
    results_close(&file);
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
    return 0;
}
