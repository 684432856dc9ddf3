/* demo: trains a dense model and a mixture of experts on the same tasks, then shows what each makes
 * of words and of tasks that it has never met, and how the mixture's experts are used.
 *   run time     under four minutes on two cores
 *   exit status  1: the mixture answered no line of an unseen task, so `make demo` fails
 *   read next    multitask.c, which compares them over seeds; >>mix, >>router in taskmoe.h */
#define TMOE_THREADS
#define TASKMOE_IMPLEMENTATION
#include "common.h"
#include <ctype.h>

#define STEPS 2500        /* of the optimiser, for each model */
#define EXPERTS 4         /* in a layer of the mixture */
#define WIDTH 64          /* of both models */
#define WORDS 3           /* asked about in part 1 */
#define EXAMPLES 3        /* test lines of a task in part 2 */
#define PICKED 6          /* tasks in part 2 */
#define ANSWER_COLUMNS 23 /* on the screen; the longest right answer has as many */
#define LABEL_COLUMNS 38  /* left of the picture of the routes */
#define TASKS_MAX 256     /* the embedded suite has 222 */
#define LINES_MAX 256     /* a task of it has at most 48 test lines */
#define ROUTE_MAX 1024    /* routed layers x experts */

enum { DENSE, MIXTURE, KINDS };

static const char *const names[KINDS] = { "dense", "mixture" };

/* Part 1 asks about the first of these that are in no training line. */
static const char *const candidates[] = { "wizard", "volcano", "garlic", "comet", "pirate",
    "umbrella", "lantern", "dragonfly", NULL };

typedef struct demo {
    const char *program, *save;
    int steps, width;
    style style;
    tmoe_ctx *ctx;
    tmoe_suite *suite;
    tmoe_model *models[KINDS];
    double percent[KINDS][TASKS_MAX]; /* of each task of the suite: test lines answered right */
    double answers_a_second[KINDS];
} demo;

static void check(const demo *d, tmoe_result result)
{
    if (result != TMOE_OK) die(d->program, tmoe_error_message(d->ctx));
}

/* ---- two models ------------------------------------------------------------------------------ */

/* All settings of both models; what differs between them is here, too. */
static void settings_of(int kind, const demo *d, tmoe_config *config, tmoe_training *training)
{
    *config = tmoe_config_default();
    config->experts = kind == MIXTURE ? EXPERTS : 1;
    config->width = d->width;
    config->encoder_ffn = config->decoder_ffn = 4 * d->width;
    config->source_tokens = config->target_tokens = 0; /* as long as the suite needs */
    *training = tmoe_training_default();
    training->steps = d->steps;
    training->label = names[kind];
    take_best_measured(config, training);
}

static void train(demo *d, int kind)
{
    progress_line progress = { stderr, 0.0, { 0 } };
    tmoe_config config;
    tmoe_training training;
    settings_of(kind, d, &config, &training);
    training.progress = show_progress;
    training.progress_user = &progress;
    progress.routes.experts = config.experts;
    d->models[kind] = tmoe_train(d->ctx, d->suite, &config, &training);
    if (!d->models[kind]) die(d->program, tmoe_error_message(d->ctx));
}

/* ---- their answers --------------------------------------------------------------------------- */

/* Letter for letter: no capital, hyphen or star is forgiven. */
static int is_right(const tmoe_example *line, const char *answer)
{
    int i;
    for (i = 0; i < line->output_count; i++)
        if (!strcmp(line->outputs[i], answer)) return 1;
    return 0;
}

/* A task that was trained on is asked by its name, another one by its instruction. */
static void answer_lines(const demo *d, int kind, const tmoe_task *task, const char *const *inputs,
    int count, char **answers)
{
    tmoe_model *model = d->models[kind];
    if (task->part == TMOE_PART_TRAIN)
        check(d, tmoe_answer_many(model, task->name, NULL, inputs, count, answers));
    else
        check(d, tmoe_answer_many_unseen(model, task->instruction, NULL, inputs, count, answers));
}

/* How many percent of a task's test lines are answered right. */
static double percent_right(const demo *d, int kind, const tmoe_task *task)
{
    const char *inputs[LINES_MAX] = { NULL };
    char *answers[LINES_MAX] = { NULL };
    const int n = task->test_count < LINES_MAX ? task->test_count : LINES_MAX;
    int i, right = 0;
    for (i = 0; i < n; i++) inputs[i] = task->test[i].input;
    answer_lines(d, kind, task, inputs, n, answers);
    for (i = 0; i < n; i++) right += is_right(&task->test[i], answers[i]);
    tmoe_answers_free(d->models[kind], answers, n);
    return 100.0 * right / n;
}

static void answer_all(demo *d, int kind)
{
    const double began = seconds_now();
    int t, lines = 0;
    for (t = 0; t < tmoe_suite_count(d->suite); t++) {
        d->percent[kind][t] = percent_right(d, kind, tmoe_suite_task(d->suite, t));
        lines += tmoe_suite_task(d->suite, t)->test_count;
    }
    d->answers_a_second[kind] = lines / (seconds_now() - began);
}

/* Two lines on the screen: "input -> right answer", then what both models say. Adds to `right`. */
static void show_line(const demo *d, const tmoe_task *task, const tmoe_example *line, int *right)
{
    int kind;
    printf("    %s -> %s\n     ", line->input, line->outputs[0]);
    for (kind = MIXTURE; kind >= DENSE; kind--) {
        char *answer, column[ANSWER_COLUMNS + 1];
        answer_lines(d, kind, task, &line->input, 1, &answer);
        column_text(column, ANSWER_COLUMNS, answer);
        if (is_right(line, answer)) {
            right[kind]++;
            printf(" %s %-*s %sright%s", names[kind], ANSWER_COLUMNS, column, d->style.good,
                d->style.plain);
        } else
            printf(" %s %-*s %sWRONG%s", names[kind], ANSWER_COLUMNS, column, d->style.bad,
                d->style.plain);
        printf(kind == DENSE ? "\n" : " ");
        tmoe_answers_free(d->models[kind], &answer, 1);
    }
}

static void show_title(const demo *d, const char *title)
{
    printf("\n%s%s%s\n", d->style.bold, title, d->style.plain);
}

/* ---- part 1: words --------------------------------------------------------------------------- */

static int contains(const char *text, const char *word)
{
    size_t i;
    for (; *text; text++) {
        for (i = 0; word[i] && tolower((unsigned char)text[i]) == word[i]; i++) {}
        if (!word[i]) return 1;
    }
    return 0;
}

/* The number of training lines, and in how many of them the word is, in small or capital letters. */
static int lines_with(const tmoe_suite *suite, const char *word, int *lines)
{
    int t, i, k, found = 0;
    *lines = 0;
    for (t = 0; t < tmoe_suite_count(suite); t++) {
        const tmoe_task *task = tmoe_suite_task(suite, t);
        if (task->part != TMOE_PART_TRAIN) continue;
        *lines += task->train_count;
        for (i = 0; i < task->train_count; i++) {
            int here = contains(task->train[i].input, word);
            for (k = 0; k < task->train[i].output_count; k++)
                here |= contains(task->train[i].outputs[k], word);
            found += here;
        }
    }
    return found;
}

static void show_words(const demo *d)
{
    const tmoe_task *task = tmoe_suite_task(d->suite, tmoe_suite_find(d->suite, "word_upper_case"));
    int i, lines, shown = 0, right[KINDS] = { 0, 0 };
    show_title(d, "1. A task that both were trained on, with words that neither has met");
    (void)lines_with(d->suite, candidates[0], &lines);
    printf("(Looked up just now: none of the %d training lines has these words in it.)\n\n", lines);
    print_wrapped(task->instruction, 2);
    for (i = 0; candidates[i] && shown < WORDS; i++) {
        char upper[32];
        const char *answer = upper;
        const tmoe_example line = { candidates[i], &answer, 1 };
        size_t k;
        if (lines_with(d->suite, candidates[i], &lines) > 0) continue;
        for (k = 0; k <= strlen(candidates[i]); k++)
            upper[k] = (char)toupper((unsigned char)candidates[i][k]);
        show_line(d, task, &line, right);
        shown++;
    }
}

/* ---- part 2: tasks --------------------------------------------------------------------------- */

typedef struct ranked {
    int task;
    double percent; /* of both models together */
} ranked;

static int easier_first(const void *a, const void *b)
{
    const ranked *x = (const ranked *)a, *y = (const ranked *)b;
    if (x->percent != y->percent) return x->percent < y->percent ? 1 : -1;
    return x->task - y->task;
}

/* The two unseen tasks that are easiest for both models together, two in the middle, the two
 * hardest. Returns how many unseen tasks there are. */
static int pick(const demo *d, int *picked)
{
    ranked order[TASKS_MAX];
    int t, n = 0;
    for (t = 0; t < tmoe_suite_count(d->suite); t++) {
        if (tmoe_suite_task(d->suite, t)->part != TMOE_PART_TEST) continue;
        order[n].task = t;
        order[n++].percent = d->percent[DENSE][t] + d->percent[MIXTURE][t];
    }
    if (n < PICKED) die(d->program, "the split has fewer than six unseen tasks");
    qsort(order, (size_t)n, sizeof *order, easier_first);
    for (t = 0; t < 2; t++) {
        picked[t] = order[t].task;
        picked[2 + t] = order[n / 2 - 1 + t].task;
        picked[4 + t] = order[n - 2 + t].task;
    }
    return n;
}

static void show_tasks(const demo *d, const int *picked, int unseen)
{
    static const char *const why[PICKED / 2] = { "easy", "middle", "hard" };
    int i, e, right[KINDS] = { 0, 0 };
    show_title(d, "2. Tasks that neither was trained on: all they get is the instruction");
    printf("(Of %d such tasks the two with the most right answers of both models together,\n"
           "two in the middle, the two with the fewest; of each the first %d test lines.)\n",
        unseen, EXAMPLES);
    for (i = 0; i < PICKED; i++) {
        const tmoe_task *task = tmoe_suite_task(d->suite, picked[i]);
        printf("\n");
        print_wrapped(task->instruction, 2);
        printf("  (%s: of all its test lines the mixture answers %.0f %%, the dense model %.0f "
               "%%)\n",
            why[i / 2], d->percent[MIXTURE][picked[i]], d->percent[DENSE][picked[i]]);
        for (e = 0; e < EXAMPLES; e++) show_line(d, task, &task->test[e], right);
    }
    printf("\n  %sOf these %d lines: mixture %d right, dense %d right.%s\n", d->style.bold,
        PICKED * EXAMPLES, right[MIXTURE], right[DENSE], d->style.plain);
}

/* ---- part 3: numbers ------------------------------------------------------------------------- */

/* A row of the table: means over the tasks of a part, and their difference. Returns the mixture's
 * mean. */
static double show_row(const demo *d, tmoe_part part, const char *what)
{
    static double percent[KINDS][TASKS_MAX];
    tmoe_comparison found;
    char difference[64];
    int t, n = 0;
    for (t = 0; t < tmoe_suite_count(d->suite); t++) {
        if (tmoe_suite_task(d->suite, t)->part != part) continue;
        percent[DENSE][n] = d->percent[DENSE][t];
        percent[MIXTURE][n++] = d->percent[MIXTURE][t];
    }
    check(d, tmoe_compare(d->ctx, percent[DENSE], percent[MIXTURE], n, 1, &found));
    (void)snprintf(difference, sizeof difference, "%+5.1f [%+.1f, %+.1f]", found.difference[0],
        found.difference[1], found.difference[2]);
    printf("  %3d %-13s %6.1f %% %7.1f %%  %-20s %d, %d, %d\n", n, what, mean_of(percent[DENSE], n),
        mean_of(percent[MIXTURE], n), difference, found.wins, found.ties, found.losses);
    return mean_of(percent[MIXTURE], n);
}

/* Returns 1 if the mixture answered something in tasks that it had not seen. */
static int show_table(const demo *d)
{
    size_t all[KINDS], used[KINDS];
    double unseen;
    int kind;
    for (kind = 0; kind < KINDS; kind++)
        all[kind] = tmoe_model_parameters(d->models[kind], &used[kind]);
    show_title(d, "3. All tasks, all test lines: how many are answered letter for letter");
    printf("\n  %-17s %8s %9s  %-20s %s\n", "mean of", "dense", "mixture", "difference [95 %]",
        "better, same, worse");
    (void)show_row(d, TMOE_PART_TRAIN, "seen tasks");
    unseen = show_row(d, TMOE_PART_TEST, "unseen tasks");
    printf("\n  %-17s %6.2f M %7.2f M  %d experts a layer in the mixture\n", "parameters",
        1e-6 * (double)all[DENSE], 1e-6 * (double)all[MIXTURE], EXPERTS);
    printf("  %-17s %6.2f M %7.2f M  they are merged before it answers\n", "used by an answer",
        1e-6 * (double)used[DENSE], 1e-6 * (double)used[MIXTURE]);
    printf("  %-17s %8.0f %9.0f\n", "answers a second", d->answers_a_second[DENSE],
        d->answers_a_second[MIXTURE]);
    return unseen > 0.0;
}

/* ---- part 4: routes -------------------------------------------------------------------------- */

static void show_routes(const demo *d, const int *picked)
{
    static const char *const categories[] = { "world_knowledge", "classification", "extraction",
        "transformation", "composition", NULL };
    tmoe_model *model = d->models[MIXTURE];
    float route[ROUTE_MAX];
    int i;
    show_title(d, "4. Which experts do what");
    printf("(A block is a layer, a cell in it an expert: the darker, the larger its share.)\n\n");
    print_layer_names(model, LABEL_COLUMNS);
    for (i = 0; categories[i]; i++)
        if (mean_route(model, categories[i], route))
            print_route_row(model, route, categories[i], LABEL_COLUMNS);
    printf("\n  The unseen tasks above; the route is made from the instruction:\n");
    for (i = 0; i < PICKED; i++) {
        const tmoe_task *task = tmoe_suite_task(d->suite, picked[i]);
        check(d, tmoe_route_unseen(model, task->instruction, TMOE_ZERO_SHOT_ROUTER, route));
        print_route_row(model, route, task->name, LABEL_COLUMNS);
    }
}

/* The two lines to type next ask an unseen task about a line that was not shown: the easiest task
 * whose instruction fits the screen. */
static void show_next(const demo *d, const int *picked)
{
    const tmoe_task *task = tmoe_suite_task(d->suite, picked[0]);
    int i;
    for (i = 0; i < PICKED && strlen(task->instruction) > 70; i++)
        task = tmoe_suite_task(d->suite, picked[i]);
    check(d, tmoe_model_save(d->models[MIXTURE], d->save));
    show_title(d, "Ask it yourself; the two lines to type next:");
    printf("\n  make build/ask\n  build/ask %s \\\n      \"%s\" \\\n      \"%s\"\n", d->save,
        task->instruction, task->test[EXAMPLES].input);
}

static void show_start(const demo *d)
{
    int t, seen = 0;
    for (t = 0; t < tmoe_suite_count(d->suite); t++)
        seen += tmoe_suite_task(d->suite, t)->part == TMOE_PART_TRAIN;
    show_title(d, "Two models learn the same small text tasks, from random weights");
    printf("  dense    one transformer for all %d tasks\n"
           "  mixture  %d experts in place of each feed-forward network, and a router that\n"
           "           reads the task's instruction and decides how they are mixed\n\n",
        seen, EXPERTS);
    fflush(stdout); /* before the progress, which goes to stderr */
}

int main(int argc, char **argv)
{
    static const char usage[] = "usage: demo [options]\n"
                                "Trains a dense model and a mixture of experts on small tasks and "
                                "shows\nwhat they answer.";
    static demo d;
    const option options[] = { { "--steps", "N", 'n', &d.steps, "optimiser steps of each model" },
        { "--width", "D", 'n', &d.width, "width of both models" },
        { "--save", "MODEL", 's', &d.save, "where the mixture is kept" },
        { NULL, NULL, 0, NULL, NULL } };
    int kind, unseen, answered, picked[PICKED];
    d.program = argv[0];
    d.save = "build/demo.safetensors";
    d.steps = STEPS;
    d.width = WIDTH;
    d.style = style_of(stdout);
    (void)options_read(argc, argv, usage, options, NULL, 0);
    must_be_writable(d.program, d.save, 1);
    d.ctx = context_or_die(d.program, 0);
    d.suite = tmoe_suite_load(d.ctx, "examples/suite", "zero_shot");
    if (!d.suite) die(d.program, tmoe_error_message(d.ctx));
    if (tmoe_suite_count(d.suite) > TASKS_MAX) die(d.program, "the suite has too many tasks");
    show_start(&d);
    for (kind = 0; kind < KINDS; kind++) {
        train(&d, kind);
        answer_all(&d, kind);
    }
    show_words(&d);
    unseen = pick(&d, picked);
    show_tasks(&d, picked, unseen);
    answered = show_table(&d);
    show_routes(&d, picked);
    show_next(&d, picked);
    for (kind = 0; kind < KINDS; kind++) tmoe_model_destroy(d.models[kind]);
    tmoe_suite_destroy(d.suite);
    tmoe_ctx_destroy(d.ctx);
    return !answered;
}
