/* train: trains one model on a folder of your own tasks, with settings that follow from the data,
 * and says how well it knows each of them.
 *   run time   some minutes; --minutes N chooses
 *   read next  tmoe_trainer_run, tmoe_trainer_save in taskmoe.h; ask.c, to ask the model */
#define TMOE_THREADS
#define TASKMOE_IMPLEMENTATION
#include "common.h"
#include <signal.h>

#define SCORED_LINES 50         /* training lines of a task that are scored, at most */
#define EXAMPLES 10             /* answers that are shown while it trains */
#define CHECKPOINT_SECONDS 60.0 /* between two checkpoints */
#define BYTES_MAX 160           /* longer inputs, in the mean, are read by a BPE */
#define BPE_VOCABULARY 1024     /* its tokens */
#define EPOCHS 30               /* of all lines, within the limits below */
#define STEPS_LEAST 2000
#define STEPS_MOST 5000
#define LINES_A_STEP 64 /* what the library takes */
#define TIMED_STEPS 4   /* to know how many steps fit into --minutes */
#define NAME_COLUMNS 28 /* of a task in the table */

typedef struct settings {
    const char *program, *folder, *split, *save;
    int resume, steps, experts, width, threads, seed;
    float minutes;
    assignments set;
} settings;

static volatile sig_atomic_t stop_asked;

static void ask_to_stop(int signal_number)
{
    (void)signal_number;
    stop_asked = 1;
}

/* ---- what the data is ------------------------------------------------------------------------ */

typedef struct data {
    const tmoe_suite *suite;
    int tasks, unseen;  /* trained on; held out by the split */
    long lines;         /* of training */
    int fewest;         /* of them in a task */
    double input_bytes; /* mean */
    size_t longest_input, longest_output;
} data;

static data look_at(const tmoe_suite *suite)
{
    data d;
    double bytes = 0.0;
    int t, i, k;
    memset(&d, 0, sizeof d);
    d.suite = suite;
    for (t = 0; t < tmoe_suite_count(suite); t++) {
        const tmoe_task *task = tmoe_suite_task(suite, t);
        d.unseen += task->part == TMOE_PART_TEST;
        if (task->part != TMOE_PART_TRAIN) continue;
        if (d.tasks == 0 || task->train_count < d.fewest) d.fewest = task->train_count;
        d.tasks++;
        d.lines += task->train_count;
        for (i = 0; i < task->train_count; i++) {
            const tmoe_example *line = &task->train[i];
            const size_t length = strlen(line->input);
            bytes += (double)length;
            if (length > d.longest_input) d.longest_input = length;
            for (k = 0; k < line->output_count; k++)
                if (strlen(line->outputs[k]) > d.longest_output)
                    d.longest_output = strlen(line->outputs[k]);
        }
    }
    if (d.lines > 0) d.input_bytes = bytes / (double)d.lines;
    return d;
}

/* ---- warnings before any work ---------------------------------------------------------------- */

static int is_one_of(const char *text, const char *const *words)
{
    for (; *words; words++)
        if (!strcmp(text, *words)) return 1;
    return 0;
}

/* "input TAB output" and the like. */
static int looks_like_a_header(const tmoe_example *line)
{
    static const char *const left[] = { "input", "Input", "question", "Question", "text", "Text",
        "source", "sentence", "prompt", "x", NULL };
    static const char *const right[] = { "output", "Output", "answer", "Answer", "label", "Label",
        "target", "completion", "y", NULL };
    return is_one_of(line->input, left) && is_one_of(line->outputs[0], right);
}

/* Test lines that are training lines, too: they make the score too kind. */
static int repeated_lines(const tmoe_task *task)
{
    int i, k, n = 0;
    for (i = 0; i < task->test_count; i++) {
        for (k = 0; k < task->train_count; k++)
            if (!strcmp(task->test[i].input, task->train[k].input)) break;
        n += k < task->train_count;
    }
    return n;
}

/* Rows of FOLDER/tasks.tsv whose task is not there, and tasks without a row. */
static void compare_with_table(const settings *s, const tmoe_suite *suite)
{
    char path[1100], row[8192];
    char *seen = (char *)calloc((size_t)tmoe_suite_count(suite) + 1, 1);
    FILE *file;
    int t, column = -1;
    (void)snprintf(path, sizeof path, "%.1000s/tasks.tsv", s->folder);
    file = fopen(path, "rb");
    while (file && seen && fgets(row, sizeof row, file)) {
        char *field = row;
        int i;
        row[strcspn(row, "\r\n")] = 0;
        if (!strncmp(row, "\xef\xbb\xbf", 3)) field += 3; /* a byte-order mark */
        if (column < 0) {                                 /* which column is the name? */
            for (column = 0; strcspn(field, "\t") != 4 || strncmp(field, "name", 4) != 0;
                 column++) {
                field += strcspn(field, "\t");
                if (!*field++) break;
            }
            continue;
        }
        for (i = 0; i < column && *field; i++) field += strcspn(field, "\t") + 1;
        field[strcspn(field, "\t")] = 0;
        t = tmoe_suite_find(suite, field);
        if (t >= 0)
            seen[t] = 1;
        else if (*field && !s->split)
            printf("warning: tasks.tsv describes '%s', which is no task of the folder\n", field);
    }
    for (t = 0; file && seen && t < tmoe_suite_count(suite); t++)
        if (!seen[t])
            printf("warning: task %s has no row in tasks.tsv: its instruction is '%s'\n",
                tmoe_suite_task(suite, t)->name, tmoe_suite_task(suite, t)->instruction);
    if (file) fclose(file);
    free(seen);
}

static void warn(const settings *s, const data *d)
{
    int t;
    compare_with_table(s, d->suite);
    for (t = 0; t < tmoe_suite_count(d->suite); t++) {
        const tmoe_task *task = tmoe_suite_task(d->suite, t);
        const int repeated = repeated_lines(task);
        if (task->train_count > 0 && looks_like_a_header(&task->train[0]))
            printf("warning: task %s: line 1 looks like a header, and is learned as a line\n",
                task->name);
        if (repeated > 0)
            printf("warning: task %s: %d of %d test lines are training lines as well\n", task->name,
                repeated, task->test_count);
        if (task->train_count > 0 && task->test_count == 0)
            printf("warning: task %s: %d lines leave none for a test\n", task->name,
                task->train_count);
    }
    if (d->tasks == 1)
        printf("warning: one task alone: the model is dense; related tasks beside it would help\n");
}

/* ---- settings that follow from the data ------------------------------------------------------ */

static int clamp(double x, int least, int most)
{
    return x < least ? least : x > most ? most : (int)x;
}

/* What is not given on the command line. */
static void choose_settings(const settings *s, const data *d, tmoe_config *config,
    tmoe_training *training)
{
    *config = tmoe_config_default();
    *training = tmoe_training_default();
    config->width = d->lines < 3000 ? 64 : 96;
    if (d->lines > 50000) config->width = 128;
    if (s->width) config->width = s->width;
    config->encoder_ffn = config->decoder_ffn = 4 * config->width;
    config->experts = clamp(d->tasks, 1, 4);
    if (s->experts) config->experts = s->experts;
    take_best_measured(config, training);
    config->source_tokens = config->target_tokens = 0; /* set when the tokenizer is known */

    training->vocabulary = d->input_bytes > BYTES_MAX ? BPE_VOCABULARY : 0;
    training->steps = clamp((double)d->lines * EPOCHS / LINES_A_STEP, STEPS_LEAST, STEPS_MOST);
    /* No early stopping by default: on small folders the validation loss is least after some forty
     * steps, where hardly an answer is right. --set validation_lines=8 and so on ask for it. */
    config->seed = training->seed = (uint64_t)s->seed;
    training->label = "train";
    assign(&s->set, config, training);
    if (s->steps) training->steps = s->steps;
}

/* Half as long again as the longest lines: what is asked later may be longer. */
static void leave_room(tmoe_config *config)
{
    config->source_tokens += config->source_tokens / 2 + 16;
    config->target_tokens += config->target_tokens / 2 + 4;
}

/* ---- training -------------------------------------------------------------------------------- */

typedef struct watch {
    const settings *settings;
    const data *data;
    tmoe_ctx *ctx;
    progress_line line;
    double last_save;
    int next_task;       /* whose line is shown next */
    long long next_step; /* when */
} watch;

/* Shows what the model answers to a test line: of another task each time. */
static void show_example(watch *w, const tmoe_progress *p)
{
    const int count = tmoe_suite_count(w->data->suite);
    char answer[200], right[200];
    int i;
    for (i = 0; i < count; i++) {
        const tmoe_task *task = tmoe_suite_task(w->data->suite, (w->next_task + i) % count);
        const tmoe_example *line =
            &task->test[(int)p->step % (task->test_count + !task->test_count)];
        char *text = NULL;
        if (task->part != TMOE_PART_TRAIN || task->test_count == 0) continue;
        if (tmoe_answer_many(tmoe_trainer_model(p->trainer), task->name, NULL, &line->input, 1,
                &text)
            != TMOE_OK)
            return;
        column_text(answer, 30, text);
        column_text(right, 30, line->outputs[0]);
        tmoe_answers_free(tmoe_trainer_model(p->trainer), &text, 1);
        if (is_terminal(w->line.out)) fprintf(w->line.out, "\r%*s\r", LINE_COLUMNS, "");
        fprintf(w->line.out, "  %.14s: %s (right: %s)\n", task->name, answer, right);
        w->next_task = (w->next_task + i + 1) % count;
        return;
    }
}

static int watch_step(void *user, const tmoe_progress *p)
{
    watch *w = (watch *)user;
    const char *save = w->settings->save;
    const double now = seconds_now();
    (void)show_progress(&w->line, p);
    if (p->step >= w->next_step && p->step < p->steps) {
        show_example(w, p);
        w->next_step = p->step + (p->steps + EXAMPLES - 1) / EXAMPLES;
    }
    if (save && now - w->last_save > CHECKPOINT_SECONDS) {
        if (tmoe_trainer_save(p->trainer, save) != TMOE_OK)
            fprintf(stderr, "%s: no checkpoint: %s\n", w->settings->program,
                tmoe_error_message(w->ctx));
        w->last_save = now;
    }
    return stop_asked;
}

/* How many steps --minutes are: those of a trainer that is thrown away are timed. */
static int steps_in(const settings *s, const data *d, tmoe_ctx *ctx, const tmoe_config *config,
    const tmoe_tokenizer *tokenizer, const tmoe_training *training)
{
    tmoe_model *model = tmoe_model_create(ctx, config, tokenizer, tmoe_suite_task(d->suite, 0),
        tmoe_suite_count(d->suite));
    tmoe_trainer *trainer = model ? tmoe_trainer_create(model, d->suite, training) : NULL;
    double seconds = 0.0;
    int i;
    for (i = 0; trainer && i < 2 * TIMED_STEPS; i++) { /* the first half warms up */
        const double began = seconds_now();
        if (tmoe_trainer_step(trainer, NULL) != TMOE_OK) die(s->program, tmoe_error_message(ctx));
        if (i >= TIMED_STEPS) seconds += (seconds_now() - began) / TIMED_STEPS;
    }
    if (!trainer) die(s->program, tmoe_error_message(ctx));
    tmoe_trainer_destroy(trainer);
    tmoe_model_destroy(model);
    return clamp(60.0 * (double)s->minutes / seconds, 100, 1000000);
}

static void begin(const settings *s, const data *d, tmoe_ctx *ctx, tmoe_model **model,
    tmoe_training *training)
{
    tmoe_config config;
    tmoe_tokenizer *tokenizer;
    choose_settings(s, d, &config, training);
    tokenizer = tmoe_suite_tokenizer(ctx, d->suite, training->vocabulary);
    if (!tokenizer || tmoe_suite_fit(ctx, d->suite, tokenizer, &config) != TMOE_OK)
        die(s->program, tmoe_error_message(ctx));
    leave_room(&config);
    if (s->minutes > 0.0f) training->steps = steps_in(s, d, ctx, &config, tokenizer, training);
    *model = tmoe_model_create(ctx, &config, tokenizer, tmoe_suite_task(d->suite, 0),
        tmoe_suite_count(d->suite));
    if (!*model) die(s->program, tmoe_error_message(ctx));
    tmoe_tokenizer_destroy(tokenizer);
}

/* A checkpoint says with which settings it goes on. */
static void begin_again(const settings *s, tmoe_ctx *ctx, tmoe_model **model,
    tmoe_training *training)
{
    tmoe_description found;
    if (tmoe_describe(ctx, s->save, &found) != TMOE_OK) die(s->program, tmoe_error_message(ctx));
    if (!found.is_checkpoint) die(s->program, "--resume: this training is done");
    *training = found.training;
    if (s->steps) training->steps = s->steps;
    *model = tmoe_model_load(ctx, s->save);
    if (!*model) die(s->program, tmoe_error_message(ctx));
    printf("goes on after step %lld of %d\n", (long long)found.steps_done, training->steps);
}

/* Trains, and keeps what there is. Returns the model, or NULL where it was stopped. */
static tmoe_model *train(const settings *s, const data *d, tmoe_ctx *ctx)
{
    tmoe_training training;
    tmoe_trainer *trainer;
    tmoe_model *model = NULL;
    tmoe_result result;
    watch w;
    memset(&w, 0, sizeof w);
    if (s->resume)
        begin_again(s, ctx, &model, &training);
    else
        begin(s, d, ctx, &model, &training);
    w.settings = s;
    w.data = d;
    w.ctx = ctx;
    w.line.out = stderr;
    w.last_save = seconds_now();
    w.next_step = (training.steps + EXAMPLES - 1) / EXAMPLES;
    training.label = "train";
    training.progress = watch_step;
    training.progress_user = &w;
    trainer = tmoe_trainer_create(model, d->suite, &training);
    if (!trainer || (s->resume && tmoe_trainer_load(trainer, s->save) != TMOE_OK))
        die(s->program, tmoe_error_message(ctx));
    printf("%d steps, %s, %d expert%s a layer, width %d, %lu parameters, %.0f MB of memory\n"
           "inputs of at most %d, outputs of at most %d %s\n",
        training.steps, training.vocabulary ? "BPE" : "bytes", tmoe_model_config(model)->experts,
        tmoe_model_config(model)->experts > 1 ? "s" : "", tmoe_model_config(model)->width,
        (unsigned long)tmoe_model_parameters(model, NULL),
        (double)tmoe_trainer_bytes(trainer, NULL) / 1e6,
        tmoe_model_config(model)->source_tokens - 2, tmoe_model_config(model)->target_tokens - 2,
        training.vocabulary ? "tokens" : "bytes");
    fflush(stdout);

    result = tmoe_trainer_run(trainer);
    if (result == TMOE_ERR_CANCELLED) {
        if (is_terminal(stderr)) fprintf(stderr, "\n");
        if (s->save && tmoe_trainer_save(trainer, s->save) != TMOE_OK)
            die(s->program, tmoe_error_message(ctx));
        fprintf(stderr,
            s->save ? "%s: stopped; the same command with --resume goes on\n"
                    : "%s: stopped; without --save nothing is kept\n",
            s->program);
    } else if (result != TMOE_OK) {
        die(s->program, tmoe_error_message(ctx));
    } else if (s->save && tmoe_model_save(model, s->save) != TMOE_OK) {
        die(s->program, tmoe_error_message(ctx));
    }
    tmoe_trainer_destroy(trainer);
    if (result == TMOE_OK) return model;
    tmoe_model_destroy(model);
    return NULL;
}

/* ---- what it has learned --------------------------------------------------------------------- */

typedef struct scores {
    double train, test; /* NaN: undefined, or no lines */
} scores;

static double score_of(const settings *s, tmoe_ctx *ctx, tmoe_model *model, const tmoe_task *task,
    int limit)
{
    double score = (double)NAN;
    if (task->test_count > 0 && tmoe_evaluate(model, task, NULL, limit, &score) != TMOE_OK)
        die(s->program, tmoe_error_message(ctx));
    return score;
}

static void print_score(double score)
{
    if (score == score)
        printf(" %8.2f", score);
    else
        printf(" %8s", "-");
}

/* Training lines and test lines of each task, side by side. */
static void score_tasks(const settings *s, const data *d, tmoe_ctx *ctx, tmoe_model *model,
    scores *all)
{
    int t;
    printf("\n%-*s %-12s %8s %8s %8s\n", NAME_COLUMNS, "task", "metric", "lines", "training",
        "test");
    for (t = 0; t < tmoe_suite_count(d->suite); t++) {
        tmoe_task task = *tmoe_suite_task(d->suite, t);
        char name[NAME_COLUMNS + 1];
        if (task.part == TMOE_PART_DEV) continue;
        all[t].test = score_of(s, ctx, model, &task, 0);
        task.test = task.train;
        task.test_count = task.part == TMOE_PART_TRAIN ? task.train_count : 0;
        all[t].train = score_of(s, ctx, model, &task, SCORED_LINES);
        column_text(name, NAME_COLUMNS, task.name);
        printf("%-*s %-12s %8d", NAME_COLUMNS, name, tmoe_metric_name(task.metric),
            task.part == TMOE_PART_TRAIN ? task.train_count : 0);
        print_score(all[t].train);
        print_score(all[t].test);
        printf("\n");
        fflush(stdout);
    }
}

/* What a person would see in the table. */
static void advise(const data *d, const scores *all)
{
    int t, by_heart = 0, few = 0, weak = 0;
    for (t = 0; t < tmoe_suite_count(d->suite); t++) {
        const tmoe_task *task = tmoe_suite_task(d->suite, t);
        if (task->part != TMOE_PART_TRAIN) continue;
        few += task->test_count > 0 && task->test_count < 10;
        if (all[t].train > 0.8 && all[t].test < 0.5 * all[t].train) {
            char text[400];
            (void)snprintf(text, sizeof text,
                "%s: %.2f on training lines, %.2f on test lines: learned by heart.%s", task->name,
                all[t].train, all[t].test,
                task->train_count < 300
                    ? " Some hundred lines a task, or related tasks beside it, help."
                    : " Does the input hold what the answer needs?");
            printf("%s", by_heart++ ? "" : "\n");
            print_wrapped(text, 0);
        }
        weak += all[t].train < 0.5;
    }
    if (weak)
        printf("\n%d task%s not learned yet: more --minutes, or a larger --width, may help.\n",
            weak, weak > 1 ? "s are" : " is");
    if (few)
        printf("\n%d task%s fewer than 10 test lines: such a score is rough.\n", few,
            few > 1 ? "s have" : " has");
}

/* ---- command line ---------------------------------------------------------------------------- */

static void read_settings(int argc, char **argv, settings *s)
{
    static const char usage[] =
        "usage: train FOLDER [options]\n"
        "Trains one model on a folder of your own tasks: a file NAME.tsv for each, with\n"
        "lines 'input TAB output'. Every fifth line is kept for a test. See README.md.";
    const option options[] = { { "--save", "MODEL", 's', &s->save,
                                   "where the model is kept, and its checkpoints" },
        { "--resume", NULL, 'b', &s->resume, "go on from the checkpoint in MODEL" },
        { "--minutes", "N", 'f', &s->minutes, "as many steps as fit into them" },
        { "--steps", "N", 'n', &s->steps, "of the optimiser (default: by the lines)" },
        { "--experts", "E", 'n', &s->experts, "a layer (default: by the tasks, up to 4)" },
        { "--width", "D", 'n', &s->width, "of the model (default: by the lines)" },
        { "--split", "NAME", 's', &s->split, "FOLDER/splits/NAME.json: some tasks held out" },
        { "--seed", "S", 'i', &s->seed, "of weights and batches (default 1)" },
        { "--threads", "T", 'i', &s->threads, "default: all processors; bits stay the same" },
        { "--set", "NAME=VALUE", 'm', &s->set, "any other setting; --settings lists them" },
        { NULL, NULL, 0, NULL, NULL } };
    memset(s, 0, sizeof *s);
    s->program = argv[0];
    s->seed = 1;
    if (options_read(argc, argv, usage, options, &s->folder, 1) != 1) {
        options_help(usage, options);
        exit(2);
    }
    if (s->minutes < 0.0f || (s->minutes > 0.0f && s->steps))
        die(argv[0], "--minutes is above 0, and not beside --steps");
    if (s->resume && !s->save) die(argv[0], "--resume needs --save MODEL, the checkpoint");
    if (s->resume && (s->minutes > 0.0f || s->experts || s->width || s->set.count))
        die(argv[0], "--resume goes on with the settings of the checkpoint; only --steps may grow");
    if (!s->save) printf("no --save MODEL: the model is shown, not kept\n");
}

int main(int argc, char **argv)
{
    settings s;
    data d;
    tmoe_suite *suite;
    tmoe_model *model;
    tmoe_ctx *ctx;
    scores *all;
    read_settings(argc, argv, &s);
    ctx = context_or_die(argv[0], s.threads);
    suite = tmoe_suite_load(ctx, s.folder, s.split);
    if (!suite) die(argv[0], tmoe_error_message(ctx));
    must_be_writable(argv[0], s.save, 1);
    d = look_at(suite);
    printf("%s: %d task%s with %ld training lines", s.folder, d.tasks, d.tasks > 1 ? "s" : "",
        d.lines);
    printf(d.unseen ? ", %d held out\n" : "\n", d.unseen);
    warn(&s, &d);
    (void)signal(SIGINT, ask_to_stop);
    (void)signal(SIGTERM, ask_to_stop);

    model = train(&s, &d, ctx);
    if (model) {
        all = (scores *)malloc(sizeof *all * (size_t)tmoe_suite_count(suite));
        if (!all) die(argv[0], "out of memory");
        if (s.save) printf("saved to %s\n", s.save);
        score_tasks(&s, &d, ctx, model, all);
        advise(&d, all);
        if (s.save)
            printf("\nTo ask it:  build/ask %s --task %s \"an input\"\n", s.save,
                tmoe_suite_task(suite, 0)->name);
        free(all);
    }
    tmoe_model_destroy(model);
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
    return model ? 0 : 1;
}
