/* What the example programs share: options, the progress line, numbers for tables. Not part of the library. */
#ifndef TMOE_EXAMPLES_COMMON_H
#define TMOE_EXAMPLES_COMMON_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__unix__) || defined(__APPLE__)
#  include <unistd.h>
#endif
#include "../taskmoe.h"
#ifdef __GNUC__
#  define SHARED static __attribute__((unused))      /* not every program calls every function */
#else
#  define SHARED static
#endif

/* ---- options: a table, --help and refusal of everything unknown -------------------------------------- */

typedef struct option {
    const char *name;           /* "--steps"; NULL ends the table */
    const char *argument;       /* "N" in the help; NULL: a switch */
    char kind;                  /* 'i' int, 'f' float, 's' string, 'b' switch (int set to 1) */
    void *value;
    const char *help;
} option;

SHARED void options_help(const char *usage, const option *options)
{
    printf("%s\n", usage);
    for (; options->name; options++) {
        char left[40];
        snprintf(left, sizeof left, "%s%s%s", options->name, options->argument ? " " : "", options->argument ? options->argument : "");
        printf("  %-22s %s\n", left, options->help);
    }
}

SHARED void die(const char *program, const char *message)
{
    fprintf(stderr, "%s: %s\n", program, message);
    exit(1);
}

/* Reads options into the table's values; other words go to words[0 .. return value - 1], at most `most`. */
SHARED int options_read(int argc, char **argv, const char *usage, const option *options, const char **words, int most)
{
    int i, count = 0, only_words = 0;
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
        if (!strcmp(word, "--")) { only_words = 1; continue; }
        if (!strcmp(word, "--help") || !strcmp(word, "-h")) { options_help(usage, options); exit(0); }
        while (o->name && strcmp(o->name, word)) o++;
        if (!o->name) {
            fprintf(stderr, "%s: unknown option '%s'; --help lists them\n", argv[0], word);
            exit(2);
        }
        if (o->kind == 'b') { *(int *)o->value = 1; continue; }
        if (++i == argc) {
            fprintf(stderr, "%s: %s needs %s\n", argv[0], word, o->argument);
            exit(2);
        }
        if (o->kind == 's') *(const char **)o->value = argv[i];
        if (o->kind == 'i') {
            long number = strtol(argv[i], &end, 10);
            *(int *)o->value = (int)number;
            if (number < -1000000000L || number > 1000000000L) end = NULL;
        }
        if (o->kind == 'f') *(float *)o->value = strtof(argv[i], &end);
        if (o->kind != 's' && (!end || *end || end == argv[i])) {
            fprintf(stderr, "%s: %s needs a number, not '%s'\n", argv[0], word, argv[i]);
            exit(2);
        }
    }
    return count;
}

SHARED int choose(const char *program, const char *name, const char *given, const char *const *choices)
{
    int i;
    for (i = 0; choices[i]; i++) if (!strcmp(choices[i], given)) return i;
    fprintf(stderr, "%s: %s is one of", program, name);
    for (i = 0; choices[i]; i++) fprintf(stderr, " %s", choices[i]);
    fprintf(stderr, ", not '%s'\n", given);
    exit(2);
}

/* ---- machine ----------------------------------------------------------------------------------------- */

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

/* ---- progress: one line that is drawn again on a terminal, plain lines in a file ---------------------- */

typedef struct progress_line { FILE *out; int64_t last; double last_time; } progress_line;

SHARED int show_progress(void *user, const tmoe_progress *p)
{
    progress_line *line = (progress_line *)user;
    const int terminal = is_terminal(line->out), every = p->steps >= 10 ? p->steps / 10 : 1, done = p->step == p->steps;
    const double now = seconds_now();
    int i;
    if (p->step <= 1) { line->last_time = 0.0; line->last = 0; }
    if (terminal ? now - line->last_time < 0.1 && !done : p->step % every != 0 && !done) return 0;
    line->last_time = now;
    if (terminal) {
        fprintf(line->out, "\r%-8s [", p->part);
        for (i = 0; i < 20; i++) fputc((int64_t)i * p->steps < 20 * p->step ? '#' : '.', line->out);
        fprintf(line->out, "] ");
    } else fprintf(line->out, "%-8s ", p->part);
    fprintf(line->out, "step %lld/%d  loss %.3f  %.0f tokens/s  ", (long long)p->step, p->steps, (double)p->loss, p->tokens_per_second);
    if (done) fprintf(line->out, "%.0f s%s\n", p->seconds, terminal ? "          " : "");
    else fprintf(line->out, "%.0f s left%s", p->seconds_left, terminal ? "   " : "\n");
    fflush(line->out);
    return 0;
}

/* ---- numbers ----------------------------------------------------------------------------------------- */

SHARED double mean_of(const double *x, int n)
{
    double sum = 0.0;
    int i;
    for (i = 0; i < n; i++) sum += x[i];
    return n ? sum / n : (double)NAN;
}

SHARED double deviation_of(const double *x, int n)
{
    double m = mean_of(x, n), sum = 0.0;
    int i;
    for (i = 0; i < n; i++) sum += (x[i] - m) * (x[i] - m);
    return n > 1 ? sqrt(sum / (n - 1)) : 0.0;
}

/* ---- results that survive a stop: a TSV file that is appended to, whose lines are not computed again --- */

typedef struct results { FILE *file; char *text; } results;

/* Opens FILE (NULL: nothing is kept); `header` is its first line, settings included: a file with another one is refused. */
SHARED results results_open(const char *program, const char *path, const char *header)
{
    results r = { NULL, NULL };
    FILE *old;
    long size = 0;
    if (!path) return r;
    old = fopen(path, "rb");
    if (old) {
        (void)fseek(old, 0, SEEK_END);
        size = ftell(old);
        rewind(old);
        r.text = (char *)malloc((size_t)size + 1);
        if (!r.text || fread(r.text, 1, (size_t)size, old) != (size_t)size) die(program, "the TSV file cannot be read");
        r.text[size] = 0;
        fclose(old);
        if (size && (strncmp(r.text, header, strlen(header)) != 0 || r.text[strlen(header)] != '\n'))
            die(program, "the TSV file is of a run with other settings: give another name, or remove it");
        while (size && r.text[size - 1] != '\n') r.text[--size] = 0;       /* a line that was being written when the run stopped */
    }
    r.file = fopen(path, size ? "r+b" : "wb");
    if (!r.file) die(program, "the TSV file cannot be written");
    if (!size) fprintf(r.file, "%s\n", header);
    else (void)fseek(r.file, size, SEEK_SET);
    fflush(r.file);
    return r;
}

/* The numbers behind a key (the line's first fields, each with a TAB behind it) of an earlier run; how many were read. */
SHARED int results_find(const results *r, const char *key, double *numbers, int most)
{
    const char *at = r->text;
    int n = 0;
    while (at && (at = strchr(at, '\n')) != NULL) {
        at++;
        if (strncmp(at, key, strlen(key)) != 0) continue;
        for (at += strlen(key); n < most && *at && *at != '\n'; n++) {
            char *end;
            numbers[n] = strtod(at, &end);
            if (end == at) break;
            at = *end == '\t' ? end + 1 : end;
        }
        return n;
    }
    return 0;
}

SHARED void results_add(results *r, const char *key, const double *numbers, int count)
{
    int i;
    if (!r->file) return;
    fprintf(r->file, "%s", key);
    for (i = 0; i < count; i++) fprintf(r->file, "%s%.6g", i ? "\t" : "", numbers[i]);
    fprintf(r->file, "\n");
    fflush(r->file);
}

SHARED void results_close(results *r)
{
    if (r->file) fclose(r->file);
    free(r->text);
}

#endif
