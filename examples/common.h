/* What the example programs share: options, the progress line, numbers for tables. Not part of the
 * library. */
#ifndef TMOE_EXAMPLES_COMMON_H
#define TMOE_EXAMPLES_COMMON_H

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif
#include "../taskmoe.h"
#ifdef __GNUC__
#define SHARED static __attribute__((unused)) /* not every program calls every function */
#else
#define SHARED static
#endif

/* ---- options: a table, --help and refusal of everything unknown ------------------------------ */

typedef struct option {
    const char *name;     /* "--steps"; NULL ends the table */
    const char *argument; /* "N" in the help; NULL: a switch */
    char kind; /* 'n' int from 1, 'i' int from 0, 'f' float, 's' string, 'b' switch (int set to 1),
                * 'm' NAME=VALUE into `assignments`, any number of times */
    void *value;
    const char *help;
} option;

/* Settings of a model and its training by their names, from the command line. */
enum { ASSIGNMENTS_MAX = 32 };

typedef struct assignments {
    const char *texts[ASSIGNMENTS_MAX]; /* NAME=VALUE */
    int count;
} assignments;

/* Prints the settings that can be set, with their defaults and what they may be. */
static void settings_list(void)
{
    const tmoe_config config = tmoe_config_default();
    const tmoe_training training = tmoe_training_default();
    char value[160] = "", values[160] = "";
    const char *name;
    int of, i;
    for (of = 0; of < 2; of++) {
        printf(of ? "\nof the training:\n" : "of the model:\n");
        for (i = 0; (name = tmoe_setting_name((tmoe_settings)of, i)) != NULL; i++) {
            if (of)
                (void)tmoe_training_get(&training, name, value, sizeof value);
            else
                (void)tmoe_config_get(&config, name, value, sizeof value);
            (void)tmoe_setting_values((tmoe_settings)of, name, values, sizeof values);
            printf("  %s=%s\n      %s\n", name, value, values);
        }
    }
}

/* Carries out assignments that options_read has checked. */
SHARED void assign(const assignments *a, tmoe_config *config, tmoe_training *training)
{
    int i;
    for (i = 0; i < a->count; i++) {
        const char *value = strchr(a->texts[i], '=') + 1;
        char name[64];
        (void)snprintf(name, sizeof name, "%.*s", (int)(value - 1 - a->texts[i]), a->texts[i]);
        if (tmoe_training_set(training, name, value) == TMOE_ERR_ARGUMENT)
            (void)tmoe_config_set(config, name, value);
    }
}

/* Adds NAME=VALUE, where it is a setting of the training or else of the model, and a value of it. */
static void assignment_add(const char *program, const char *option, const char *text,
    assignments *a)
{
    tmoe_config config = tmoe_config_default();
    tmoe_training training = tmoe_training_default();
    const char *equals = strchr(text, '=');
    char name[64], values[160] = "";
    tmoe_settings of = TMOE_SETTINGS_TRAINING;
    tmoe_result r;
    (void)snprintf(name, sizeof name, "%.*s", equals ? (int)(equals - text) : 0, text);
    r = tmoe_training_set(&training, name, equals ? equals + 1 : "");
    if (r == TMOE_ERR_ARGUMENT) {
        of = TMOE_SETTINGS_CONFIG;
        r = tmoe_config_set(&config, name, equals ? equals + 1 : "");
    }
    if (!equals || r == TMOE_ERR_ARGUMENT) {
        fprintf(stderr, "%s: %s %s: %s; --settings lists them all\n", program, option, text,
            equals ? "there is no such setting" : "it must be NAME=VALUE");
        exit(2);
    }
    if (r != TMOE_OK) {
        (void)tmoe_setting_values(of, name, values, sizeof values);
        fprintf(stderr, "%s: %s %s: it must be %s\n", program, option, text, values);
        exit(2);
    }
    if (a->count == ASSIGNMENTS_MAX) {
        fprintf(stderr, "%s: %s can be given %d times\n", program, option, ASSIGNMENTS_MAX);
        exit(2);
    }
    a->texts[a->count++] = text;
}

SHARED void options_help(const char *usage, const option *options)
{
    printf("%s\n", usage);
    for (; options->name; options++) {
        char left[40];
        snprintf(left, sizeof left, "%s%s%s", options->name, options->argument ? " " : "",
            options->argument ? options->argument : "");
        printf("  %-22s %s\n", left, options->help);
    }
}

SHARED void die(const char *program, const char *message)
{
    fprintf(stderr, "%s: %s\n", program, message);
    exit(1);
}

SHARED void die_file(const char *program, const char *path)
{
    fprintf(stderr, "%s: %s: %s\n", program, path, strerror(errno));
    exit(1);
}

static void stdout_flush(
    void) /* at exit: a table that a full disk cut off must not pass for done */
{
    if (fflush(stdout) != 0 || ferror(stdout)) {
        perror("standard output");
        _Exit(1);
    }
}

static int have_assignments(const option *options)
{
    while (options->name && options->kind != 'm') options++;
    return options->name != NULL;
}

/* Reads options into the table's values; other words go to words[0 .. return value - 1], at most
 * `most`. */
SHARED int options_read(int argc, char **argv, const char *usage, const option *options,
    const char **words, int most)
{
    int i, count = 0, only_words = 0;
    (void)atexit(stdout_flush);
    for (i = 1; i < argc; i++) {
        const option *o = options;
        const char *word = argv[i];
        char *end = NULL;
        if (only_words || word[0] != '-' || !word[1]) {
            if (count == most) {
                fprintf(stderr, "%s: '%s' is one word too many; --help tells\n", argv[0], word);
                exit(2);
            }
            words[count++] = word;
            continue;
        }
        if (!strcmp(word, "--")) {
            only_words = 1;
            continue;
        }
        if (!strcmp(word, "--help") || !strcmp(word, "-h")) {
            options_help(usage, options);
            exit(0);
        }
        while (o->name && strcmp(o->name, word)) o++;
        if (!o->name && !strcmp(word, "--settings") && have_assignments(options)) {
            settings_list();
            exit(0);
        }
        if (!o->name) {
            fprintf(stderr, "%s: unknown option '%s'; --help lists them\n", argv[0], word);
            exit(2);
        }
        if (o->kind == 'b') {
            *(int *)o->value = 1;
            continue;
        }
        if (++i == argc) {
            fprintf(stderr, "%s: %s needs %s\n", argv[0], word, o->argument);
            exit(2);
        }
        if (o->kind == 's') *(const char **)o->value = argv[i];
        if (o->kind == 'm') {
            assignment_add(argv[0], word, argv[i], (assignments *)o->value);
            continue;
        }
        if (o->kind == 'i' || o->kind == 'n') {
            long number = strtol(argv[i], &end, 10);
            *(int *)o->value = (int)number;
            if (number < (o->kind == 'n') || number > 1000000000L) end = NULL;
        }
        if (o->kind == 'f') *(float *)o->value = strtof(argv[i], &end);
        if (o->kind != 's' && (!end || *end || end == argv[i])) {
            fprintf(stderr, "%s: %s needs a number%s, not '%s'\n", argv[0], word,
                o->kind == 'n'       ? " from 1 on"
                    : o->kind == 'i' ? " from 0 on"
                                     : "",
                argv[i]);
            exit(2);
        }
    }
    return count;
}

SHARED int choose(const char *program, const char *name, const char *given,
    const char *const *choices)
{
    int i;
    for (i = 0; choices[i]; i++)
        if (!strcmp(choices[i], given)) return i;
    fprintf(stderr, "%s: %s is one of", program, name);
    for (i = 0; choices[i]; i++) fprintf(stderr, " %s", choices[i]);
    fprintf(stderr, ", not '%s'\n", given);
    exit(2);
}

/* ---- files that are written ------------------------------------------------------------------ */

/* Asked before hours of work, not after: can PATH (NULL: nothing) be written? What is there keeps
 * what it has. With `replaced` it is going to be written as PATH.tmp and renamed, as
 * tmoe_model_save does: can that be written, too? */
SHARED void must_be_writable(const char *program, const char *path, int replaced)
{
    FILE *old = path ? fopen(path, "rb") : NULL, *file = path ? fopen(path, "ab") : NULL;
    char temporary[1100];
    if (path && !file) die_file(program, path);
    if (file) fclose(file);
    if (old)
        fclose(old);
    else if (path)
        (void)remove(path);
    if (!path || !replaced) return;
    (void)snprintf(temporary, sizeof temporary, "%.1000s.tmp", path);
    must_be_writable(program, temporary, 0);
}

/* What was written so far is in the file, or the program ends; with `last` the file is closed.
 * NULL: nothing was to be written. */
SHARED void file_written(const char *program, const char *path, FILE *file, int last)
{
    if (file && (fflush(file) != 0 || ferror(file) || (last && fclose(file) != 0)))
        die_file(program, path);
}

/* What measured best on the development tasks (RESULTS.md, "What was tried") and is no default of
 * the library: experts that are feed-forward networks, and a router that may not rely on single
 * words. A dense model stays as it is. */
SHARED void take_best_measured(tmoe_config *config, tmoe_training *training)
{
    if (config->experts == 1) return;
    config->expert_kind = TMOE_EXPERT_FFN;
    training->router_dropout = 0.3f;
}

/* ---- machine --------------------------------------------------------------------------------- */

SHARED int processors(void)
{
#if defined(_SC_NPROCESSORS_ONLN)
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > 64 ? 64 : (int)n;
#else
    return 1;
#endif
}

SHARED double seconds_now(void)
{
#if defined(CLOCK_MONOTONIC)
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
#else
    return (double)clock() / CLOCKS_PER_SEC;
#endif
}

SHARED int is_terminal(FILE *file)
{
#if defined(__unix__) || defined(__APPLE__)
    return isatty(fileno(file));
#else
    (void)file;
    return 0;
#endif
}

SHARED tmoe_ctx *context_or_die(const char *program, int threads)
{
    tmoe_ctx_config config;
    tmoe_ctx *ctx;
    memset(&config, 0, sizeof config);
    config.threads = threads > 0 ? threads : processors();
    ctx = tmoe_ctx_create(&config);
    if (!ctx) die(program, "no memory for a context, or more than 64 threads");
    return ctx;
}

/* ---- progress: one line that is drawn again on a terminal, plain lines in a file ------------- */

typedef struct route_means {
    int experts, columns, steps;
    double entropy, use[4096];
} route_means; /* experts: of a layer; 0: not asked for */

/* Sums over steps, which begin again every `every` steps: entropy of the routes, mean of the routed
 * layers, and use of each expert. */
SHARED void route_means_add(route_means *m, const tmoe_progress *p, int every)
{
    int i;
    if ((p->step - 1) % every == 0) {
        m->steps = 0;
        m->entropy = 0.0;
        memset(m->use, 0, sizeof m->use);
    }
    m->columns = p->routed_layers * m->experts <= 4096 ? p->routed_layers * m->experts : 0;
    for (i = 0; i < p->routed_layers; i++)
        m->entropy += (double)p->route_entropy[i] / p->routed_layers;
    for (i = 0; i < m->columns; i++) m->use[i] += (double)p->expert_use[i];
    m->steps++;
}

/* Their means: entropy, least and largest share of an expert in its layer; 0: there are no routes.
 * */
SHARED int route_means_of(const route_means *m, double *three)
{
    int i;
    three[0] = m->entropy / m->steps;
    three[1] = three[2] = m->use[0] / m->steps;
    for (i = 1; i < m->columns; i++) {
        three[1] = fmin(three[1], m->use[i] / m->steps);
        three[2] = fmax(three[2], m->use[i] / m->steps);
    }
    return m->columns > 0;
}

typedef struct progress_line {
    FILE *out;
    double last_time;
    route_means routes;
} progress_line;

#define LINE_COLUMNS 79 /* of 80: some terminals wrap a full line */

/* How long a training takes yet, at its end how long it took and how fast it was. */
static void time_text(char *text, size_t size, const tmoe_progress *p)
{
    const int done = p->step == p->steps;
    const double seconds = done ? p->seconds : p->seconds_left;
    char time[24];
    if (seconds < 600.0)
        (void)snprintf(time, sizeof time, "%.0f s", seconds);
    else
        (void)snprintf(time, sizeof time, "%.0f min", seconds / 60.0);
    if (done)
        (void)snprintf(text, size, "%s, %.0f tokens/s", time, p->tokens_per_second);
    else
        (void)snprintf(text, size, "%s left", time);
}

/* What is behind the label: steps, loss; of a mixture the entropy of its routes in nats, if asked
 * for, and the use of its least and most used expert; the time. */
static void numbers_text(char *text, size_t size, const route_means *routes, const tmoe_progress *p,
    int entropy)
{
    char time[64];
    double means[3];
    int n =
        snprintf(text, size, "%lld/%d  loss %.3f  ", (long long)p->step, p->steps, (double)p->loss);
    const int mixture = route_means_of(routes, means);
    if (mixture && entropy) n += snprintf(text + n, size - (size_t)n, "entropy %.2f  ", means[0]);
    if (mixture)
        n += snprintf(text + n, size - (size_t)n, "use %.0f-%.0f %%  ", 100.0 * means[1],
            100.0 * means[2]);
    time_text(time, sizeof time, p);
    (void)snprintf(text + n, size - (size_t)n, "%s", time);
}

/* The line: label, a bar while it runs on a terminal, numbers. The entropy has to go where there is
 * a bar or the label is long; a longer label is cut. */
static void progress_text(char *text, size_t size, const progress_line *line,
    const tmoe_progress *p)
{
    char bar[16] = "", numbers[200];
    int i, room;
    if (is_terminal(line->out) && p->step < p->steps) {
        for (i = 0; i < 10; i++) bar[i + 1] = (int64_t)i * p->steps < 10 * p->step ? '#' : '.';
        bar[0] = '[';
        memcpy(bar + 11, "] ", 3);
    }
    numbers_text(numbers, sizeof numbers, &line->routes, p, !bar[0]);
    room = LINE_COLUMNS - 1 - (int)strlen(bar) - (int)strlen(numbers);
    if (room < (int)strlen(p->label)) {
        numbers_text(numbers, sizeof numbers, &line->routes, p, 0);
        room = LINE_COLUMNS - 1 - (int)strlen(bar) - (int)strlen(numbers);
    }
    if (room < 8) room = 8;
    (void)snprintf(text, size, "%-8.*s %s%s", room, p->label, bar, numbers);
    text[LINE_COLUMNS] = 0;
}

/* A line for each tenth of the training; on a terminal one line that is drawn over itself. */
SHARED int show_progress(void *user, const tmoe_progress *p)
{
    progress_line *line = (progress_line *)user;
    const int every = p->steps >= 10 ? p->steps / 10 : 1, done = p->step == p->steps;
    const double now = seconds_now();
    char text[512];
    if (p->step <= 1) line->last_time = 0.0;
    route_means_add(&line->routes, p, every);
    if (is_terminal(line->out)) {
        if (now - line->last_time < 0.1 && !done) return 0;
        line->last_time = now;
        progress_text(text, sizeof text, line, p);
        fprintf(line->out, "\r%-*s%s", LINE_COLUMNS, text, done ? "\n" : "");
    } else if (p->step % every == 0 || done) {
        progress_text(text, sizeof text, line, p);
        fprintf(line->out, "%s\n", text);
    }
    fflush(line->out);
    return 0;
}

/* ---- text on a screen of 80 columns ---------------------------------------------------------- */

/* Escape codes, or "" where they would be in the way: in a file, and where NO_COLOR is set. */
typedef struct style {
    const char *good, *bad, *bold, *plain;
} style;

SHARED style style_of(FILE *out)
{
    static const style none = { "", "", "", "" },
                       codes = { "\033[32m", "\033[31m", "\033[1m", "\033[0m" };
    const char *off = getenv("NO_COLOR"), *terminal = getenv("TERM");
    if (!is_terminal(out) || (off && *off)) return none;
    return terminal && strcmp(terminal, "dumb") != 0 ? codes : none;
}

/* Prints a text and a line end, broken at spaces; each line begins in column `indent`. */
SHARED void print_wrapped(const char *text, int indent)
{
    const int room = LINE_COLUMNS - indent;
    while ((int)strlen(text) > room) {
        int n = room;
        while (n > 0 && text[n] != ' ') n--;
        if (n == 0) n = room - 1; /* a word that is longer than a line */
        printf("%*s%.*s\n", indent, "", n, text);
        text += n + (text[n] == ' ');
    }
    printf("%*s%s\n", indent, "", text);
}

/* A model's text in a column of the screen (columns + 1 bytes): cut where it is too long, '?' for
 * what is not ASCII. */
SHARED void column_text(char *column, int columns, const char *text)
{
    int n = 0;
    for (; *text && n < columns; text++)
        column[n++] = (char)(*text < ' ' || *text > '~' ? '?' : *text);
    if (*text) column[n - 2] = column[n - 1] = '.';
    column[n] = 0;
}

/* Columns that an expert takes in the picture of a route, whose rows begin in column `label`; 0: not
 * even one fits. */
static int expert_columns(const tmoe_model *model, int label)
{
    const int layers = tmoe_routed_layers(model), experts = tmoe_model_config(model)->experts;
    int columns = 2;
    while (columns > 0 && label + layers * (columns * experts + 1) > LINE_COLUMNS) columns--;
    return columns;
}

/* The line above pictures: the layers' names; "enc 0" for "encoder 0" where a block is narrow. */
SHARED void print_layer_names(const tmoe_model *model, int label)
{
    const int block = expert_columns(model, label) * tmoe_model_config(model)->experts;
    int l;
    printf("%*s", label, "");
    for (l = 0; block && l < tmoe_routed_layers(model); l++) {
        char name[32], narrow[16];
        tmoe_routed_layer_name(model, l, name, sizeof name);
        (void)snprintf(narrow, sizeof narrow, "%.3s%.8s", name, strchr(name, ' '));
        printf(" %-*.*s", block, block, (int)strlen(name) <= block ? name : narrow);
    }
    printf("\n");
}

/* A route as a row of blocks: one a layer, in it a cell an expert, darker for a larger share. */
SHARED void print_route_row(const tmoe_model *model, const float *route, const char *name,
    int label)
{
    static const char *const shades[] = { " ", "\xe2\x96\x91", "\xe2\x96\x92", "\xe2\x96\x93",
        "\xe2\x96\x88" };
    const int experts = tmoe_model_config(model)->experts, columns = expert_columns(model, label);
    int i, k;
    printf("  %-*.*s", label - 2, label - 2, name);
    for (i = 0; i < tmoe_routed_layers(model) * experts; i++) {
        /* the even share 1/E is in the middle */
        const int shade = (int)(route[i] * (float)experts * 2.0f);
        if (i % experts == 0 && columns) printf(" ");
        for (k = 0; k < columns; k++) printf("%s", shades[shade > 4 ? 4 : shade]);
    }
    printf("%s\n", columns ? "" : "(too many experts for this screen)");
}

/* The mean route of the known tasks of a category (NULL: all); 0: there are none. */
SHARED int mean_route(tmoe_model *model, const char *category, float *mean)
{
    const int size = tmoe_routed_layers(model) * tmoe_model_config(model)->experts;
    float *route = (float *)malloc(sizeof *route * (size_t)size + 1);
    int t, i, n = 0;
    for (i = 0; i < size; i++) mean[i] = 0.0f;
    for (t = 0; route && t < tmoe_model_task_count(model); t++) {
        if (category && strcmp(tmoe_model_task(model, t)->category, category) != 0) continue;
        if (tmoe_route_of_task(model, t, route) != TMOE_OK) continue;
        for (i = 0; i < size; i++) mean[i] += route[i];
        n++;
    }
    for (i = 0; i < size && n; i++) mean[i] /= (float)n;
    free(route);
    return n;
}

/* ---- numbers --------------------------------------------------------------------------------- */

/* An undefined score (NaN: a correlation of constant answers, say) counts nowhere; every program
 * leaves it out of its means and says how many. */
SHARED double mean_of(const double *x, int n)
{
    double sum = 0.0;
    int i, used = 0;
    for (i = 0; i < n; i++)
        if (x[i] == x[i]) {
            sum += x[i];
            used++;
        }
    return used ? sum / used : (double)NAN;
}

SHARED double deviation_of(const double *x, int n)
{
    double m = mean_of(x, n), sum = 0.0;
    int i, used = 0;
    for (i = 0; i < n; i++)
        if (x[i] == x[i]) {
            sum += (x[i] - m) * (x[i] - m);
            used++;
        }
    return used > 1 ? sqrt(sum / (used - 1)) : 0.0;
}

/* ---- results that survive a stop: a TSV file that is appended to, whose lines are not computed
 * again --- */

typedef struct results {
    const char *program, *path;
    FILE *file;
    char *text;
} results;

/* Opens FILE (NULL: nothing is kept); `header` is its first line, settings included: a file with
 * another one is refused. */
SHARED results results_open(const char *program, const char *path, const char *header)
{
    results r = { program, path, NULL, NULL };
    FILE *old;
    long size = 0;
    if (!path) return r;
    old = fopen(path, "rb");
    if (old) {
        (void)fseek(old, 0, SEEK_END);
        size = ftell(old);
        rewind(old);
        r.text = (char *)malloc((size_t)size + 1);
        if (!r.text || fread(r.text, 1, (size_t)size, old) != (size_t)size)
            die(program, "the TSV file cannot be read");
        r.text[size] = 0;
        fclose(old);
        if (strncmp(r.text, "seed\t", 5) == 0 && strchr(r.text, '\n') == r.text + size - 1)
            size = 0; /* a header and nothing else */
        if (size
            && (strncmp(r.text, header, strlen(header)) != 0 || r.text[strlen(header)] != '\n'))
            die(program,
                "the TSV file is of a run with other settings: give another name, or remove it");
        while (size && r.text[size - 1] != '\n')
            r.text[--size] = 0; /* a line that was being written when the run stopped */
    }
    r.file = fopen(path, size ? "r+b" : "wb");
    if (!r.file) die_file(program, path);
    if (!size)
        fprintf(r.file, "%s\n", header);
    else
        (void)fseek(r.file, size, SEEK_SET);
    file_written(program, path, r.file, 0);
    return r;
}

/* The `count` numbers behind a key (the line's first fields, each with a TAB behind it) of an
 * earlier run; 0: there is no whole line of it. */
SHARED int results_find(const results *r, const char *key, double *numbers, int count)
{
    const char *at = r->text;
    while (at && (at = strchr(at, '\n')) != NULL) {
        const char *number = ++at;
        int n = 0;
        if (strncmp(at, key, strlen(key)) != 0) continue;
        for (number += strlen(key); n < count;
             n++) { /* a damaged line is passed over: a later one may be whole */
            char *end;
            numbers[n] = strtod(number, &end);
            if (end == number || *end != (n + 1 < count ? '\t' : '\n')) break;
            number = end + 1;
        }
        if (n == count) return 1;
    }
    return 0;
}

/* Adds a line; with all digits, so that a run that goes on from it prints the same as one that
 * never stopped. */
SHARED void results_add(results *r, const char *key, const double *numbers, int count)
{
    int i;
    if (!r->file) return;
    fprintf(r->file, "%s", key);
    for (i = 0; i < count; i++) fprintf(r->file, "%s%.17g", i ? "\t" : "", numbers[i]);
    fprintf(r->file, "\n");
    file_written(r->program, r->path, r->file, 0);
}

SHARED void results_close(results *r)
{
    file_written(r->program, r->path, r->file, 1);
    free(r->text);
}

#endif
