/* tradeoff: what a score costs. Trains dense models and mixtures of several widths and numbers of
 * experts, measures how long each takes to answer, and draws score against time as an SVG.
 *   run time   a training for each width and number of experts; a stopped run goes on from its TSV
 *              file, and --draw makes the picture again from that file alone
 *   read next  tmoe_mix_parameters in taskmoe.h: why experts cost nothing in an answer */
#define TMOE_THREADS
#define TASKMOE_IMPLEMENTATION
#include "common.h"

#define LIST_MAX 16
#define POINTS_MAX (LIST_MAX * LIST_MAX)
#define TIMED_LINES 4  /* of each task, behind one that is not timed */
#define TIMED_PASSES 3 /* the fastest counts: the others were disturbed */

typedef struct settings {
    const char *program, *split, *widths, *experts, *tsv, *svg;
    int steps, seeds, threads, limit, draw;
} settings;

/* Means over seeds. */
typedef struct point {
    int width, experts, seeds;
    double score[2]; /* of seen and unseen tasks */
    double microseconds;
} point;

enum { SCORES = 2, NUMBERS = 4 }; /* a line of the file: two scores, microseconds, train seconds */

/* ---- measuring ------------------------------------------------------------------------------- */

static int read_list(const settings *s, const char *text, int *numbers)
{
    int n = 0;
    while (*text) {
        char *end;
        const long number = strtol(text, &end, 10);
        if (end == text || number < 1 || number > 1024 || n == LIST_MAX || (*end && *end != ','))
            die(s->program, "--widths and --experts take up to 16 numbers: 32,64,96");
        numbers[n++] = (int)number;
        text = *end ? end + 1 : end;
    }
    return n;
}

/* Seconds of TIMED_LINES answers of a task, asked one by one, once its experts are merged. The least
 * of several passes: what else the machine does meanwhile does not count. */
static double seconds_of_task(tmoe_ctx *ctx, const settings *s, tmoe_model *model,
    const tmoe_task *task)
{
    double best = HUGE_VAL, began = 0.0;
    char text[512];
    int pass, i;
    for (pass = 0; pass < TIMED_PASSES; pass++) {
        for (i = 0; i <= TIMED_LINES; i++) {
            if (i == 1) began = seconds_now();
            if (tmoe_answer(model, task->name, task->test[i].input, text, sizeof text) != TMOE_OK)
                die(s->program, tmoe_error_message(ctx));
        }
        best = fmin(best, seconds_now() - began);
    }
    return best;
}

/* Mean seconds of one answer to the trained tasks. */
static double seconds_of_answer(tmoe_ctx *ctx, const settings *s, const tmoe_suite *suite,
    tmoe_model *model)
{
    double sum = 0.0;
    int t, n = 0;
    for (t = 0; t < tmoe_suite_count(suite); t++) {
        const tmoe_task *task = tmoe_suite_task(suite, t);
        if (task->part != TMOE_PART_TRAIN || task->test_count <= TIMED_LINES) continue;
        sum += seconds_of_task(ctx, s, model, task);
        n += TIMED_LINES;
    }
    return n ? sum / n : (double)NAN;
}

/* Mean scores of seen and unseen tasks. */
static void score(tmoe_ctx *ctx, const settings *s, const tmoe_suite *suite, tmoe_model *model,
    double *scores)
{
    double sum[SCORES] = { 0.0, 0.0 }, one;
    int n[SCORES] = { 0, 0 }, t, i;
    for (t = 0; t < tmoe_suite_count(suite); t++) {
        const tmoe_task *task = tmoe_suite_task(suite, t);
        const int unseen = task->part == TMOE_PART_TEST;
        if (task->part == TMOE_PART_DEV || task->test_count == 0) continue;
        if (tmoe_evaluate(model, task, NULL, s->limit, &one) != TMOE_OK)
            die(s->program, tmoe_error_message(ctx));
        if (!(one == one)) continue; /* undefined */
        sum[unseen] += one;
        n[unseen]++;
    }
    for (i = 0; i < SCORES; i++) scores[i] = n[i] ? sum[i] / n[i] : (double)NAN;
}

static void measure(tmoe_ctx *ctx, const settings *s, const tmoe_suite *suite, const point *p,
    int seed, double *numbers)
{
    static progress_line progress;
    tmoe_config config = tmoe_config_default();
    tmoe_training training = tmoe_training_default();
    tmoe_model *model;
    char label[64];
    const double began = seconds_now();
    (void)snprintf(label, sizeof label, "width %d, %d expert%s", p->width, p->experts,
        p->experts > 1 ? "s" : "");
    config.experts = p->experts;
    config.width = p->width;
    config.encoder_ffn = config.decoder_ffn = 4 * p->width;
    config.source_tokens = config.target_tokens = 0; /* as long as the suite needs */
    config.seed = training.seed = (uint64_t)seed;
    training.steps = s->steps;
    training.label = label;
    take_best_measured(&config, &training);
    training.progress = show_progress;
    training.progress_user = &progress;
    progress.out = stderr;
    progress.routes.experts = p->experts;
    model = tmoe_train(ctx, suite, &config, &training);
    if (!model) die(s->program, tmoe_error_message(ctx));
    numbers[3] = seconds_now() - began;
    score(ctx, s, suite, model, numbers);
    numbers[2] = 1e6 * seconds_of_answer(ctx, s, suite, model);
    tmoe_model_destroy(model);
}

/* Trains and measures what the file does not have. */
static void measure_all(const settings *s)
{
    tmoe_ctx *ctx = context_or_die(s->program, s->threads);
    tmoe_suite *suite = tmoe_suite_load(ctx, "examples/suite", s->split);
    int widths[LIST_MAX], experts[LIST_MAX], seed, w, e;
    const int width_count = read_list(s, s->widths, widths);
    const int expert_count = read_list(s, s->experts, experts);
    char header[300];
    results file;
    if (!suite) die(s->program, tmoe_error_message(ctx));
    (void)snprintf(header, sizeof header,
        "seed\twidth\texperts\tseen\tunseen\tmicroseconds\ttrain_seconds\tsplit=%.60s steps=%d "
        "limit=%d",
        s->split, s->steps, s->limit);
    file = results_open(s->program, s->tsv, header);
    for (seed = 1; seed <= s->seeds; seed++)
        for (w = 0; w < width_count; w++)
            for (e = 0; e < expert_count; e++) {
                const point p = { widths[w], experts[e], 1, { 0.0, 0.0 }, 0.0 };
                double numbers[NUMBERS];
                char key[64];
                (void)snprintf(key, sizeof key, "%d\t%d\t%d\t", seed, p.width, p.experts);
                if (results_find(&file, key, numbers, NUMBERS)) continue;
                measure(ctx, s, suite, &p, seed, numbers);
                results_add(&file, key, numbers, NUMBERS);
            }
    results_close(&file);
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
}

/* ---- the file, read again -------------------------------------------------------------------- */

static int by_experts_and_width(const void *a, const void *b)
{
    const point *x = (const point *)a, *y = (const point *)b;
    return x->experts != y->experts ? x->experts - y->experts : x->width - y->width;
}

/* All lines of the file, means over seeds, sorted. Returns the number of points. */
static int read_points(const settings *s, point *points, char *caption, size_t size)
{
    FILE *file = fopen(s->tsv, "rb");
    char line[512];
    int n = 0, i, k;
    if (!file) die_file(s->program, s->tsv);
    *caption = 0;
    while (fgets(line, sizeof line, file)) {
        int seed, width, experts;
        double x[NUMBERS];
        if (strncmp(line, "seed\t", 5) == 0)
            (void)snprintf(caption, size, "%s", strrchr(line, '\t') + 1);
        if (sscanf(line, "%d\t%d\t%d\t%lf\t%lf\t%lf\t%lf", &seed, &width, &experts, &x[0], &x[1],
                &x[2], &x[3])
            != 7)
            continue;
        for (i = 0; i < n && (points[i].width != width || points[i].experts != experts); i++) {}
        if (i == POINTS_MAX) die(s->program, "the file has too many points");
        if (i == n) points[n++] = (point){ width, experts, 0, { 0.0, 0.0 }, 0.0 };
        points[i].seeds++;
        for (k = 0; k < SCORES; k++) points[i].score[k] += x[k];
        points[i].microseconds += x[2];
    }
    fclose(file);
    caption[strcspn(caption, "\r\n")] = 0;
    for (i = 0; i < n; i++) {
        for (k = 0; k < SCORES; k++) points[i].score[k] /= points[i].seeds;
        points[i].microseconds /= points[i].seeds;
    }
    qsort(points, (size_t)n, sizeof *points, by_experts_and_width);
    return n;
}

/* ---- drawing --------------------------------------------------------------------------------- */

/* In pixels; the panels are seen and unseen tasks, side by side. */
enum {
    PICTURE_WIDTH = 880,
    PICTURE_HEIGHT = 445,
    PANEL_LEFT = 70,
    PANEL_STEP = 425,
    PANEL_WIDTH = 290,
    PANEL_TOP = 84,
    PANEL_BOTTOM = 350,
    LABEL_DISTANCE = 16, /* between lines of text */
    NUMBER_DISTANCE = 30 /* between numbers beside each other */
};

typedef struct picture {
    FILE *out;
    const point *points;
    int count;
    double least_time, most_time; /* microseconds at the panels' edges */
    double top, step;             /* score at the upper edge, and of a line of the grid */
} picture;

static double x_of(const picture *f, int panel, double microseconds)
{
    const double part = log(microseconds / f->least_time) / log(f->most_time / f->least_time);
    return PANEL_LEFT + panel * PANEL_STEP + part * PANEL_WIDTH;
}

static double y_of(const picture *f, double value)
{
    return PANEL_BOTTOM - value / f->top * (PANEL_BOTTOM - PANEL_TOP);
}

/* Moves places (in their order) apart until neighbours have the distance; their middle stays. */
static void spread(double *places, int n, double distance)
{
    int round, i;
    for (round = 0; round < 1000; round++) {
        int moved = 0;
        for (i = 1; i < n; i++) {
            const double lack = distance - (places[i] - places[i - 1]);
            if (lack < 0.01) continue;
            places[i - 1] -= lack / 2.0;
            places[i] += lack / 2.0;
            moved = 1;
        }
        if (!moved) return;
    }
}

/* The edges of the panels: all points with some air around them. */
static void fit(picture *f)
{
    double most = 0.05;
    int i, k;
    f->least_time = HUGE_VAL;
    f->most_time = 0.0;
    for (i = 0; i < f->count; i++) {
        f->least_time = fmin(f->least_time, f->points[i].microseconds);
        f->most_time = fmax(f->most_time, f->points[i].microseconds);
        for (k = 0; k < SCORES; k++) most = fmax(most, f->points[i].score[k]);
    }
    f->least_time /= 1.12;
    f->most_time *= 1.04;
    f->step = 0.02;
    if (most > 0.12) f->step = 0.05;
    if (most > 0.3) f->step = 0.1;
    if (most > 0.7) f->step = 0.2;
    f->top = f->step * ceil(most / f->step);
}

static void draw_head(const picture *f)
{
    fprintf(f->out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" "
        "height=\"%d\" role=\"img\">\n<title>Score of seen and unseen tasks against the time of an "
        "answer, dense models and mixtures</title>\n",
        PICTURE_WIDTH, PICTURE_HEIGHT, PICTURE_WIDTH, PICTURE_HEIGHT);
    fprintf(f->out,
        "<style>\n"
        "text { font: 13px system-ui, sans-serif; fill: #333; }\n"
        ".title { font-weight: 600; font-size: 15px; }\n.small { font-size: 12px; }\n"
        ".ground { fill: #fff; }\n.grid { stroke: #ddd; }\n.axis { stroke: #777; }\n"
        ".line { fill: none; stroke-width: 2; }\n.leader { stroke-width: 1; opacity: 0.5; }\n"
        ".dense { stroke: #b35900; }\n.mixture { stroke: #0b63c5; }\n"
        "circle.dense, text.dense { fill: #b35900; stroke: none; }\n"
        "circle.mixture, text.mixture { fill: #0b63c5; stroke: none; }\n"
        "@media (prefers-color-scheme: dark) {\n"
        "text { fill: #ddd; }\n.ground { fill: #0d1117; }\n.grid { stroke: #2b313a; }\n"
        ".axis { stroke: #8b949e; }\n.dense { stroke: #f0a04b; }\n.mixture { stroke: #6cb2ff; }\n"
        "circle.dense, text.dense { fill: #f0a04b; }\n"
        "circle.mixture, text.mixture { fill: #6cb2ff; }\n}\n</style>\n"
        "<rect class=\"ground\" width=\"100%%\" height=\"100%%\"/>\n");
}

static void draw_line(const picture *f, const char *kind, double x1, double y1, double x2,
    double y2)
{
    fprintf(f->out, "<line class=\"%s\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", kind,
        x1, y1, x2, y2);
}

static void draw_text(const picture *f, const char *kind, const char *anchor, double x, double y,
    const char *text)
{
    fprintf(f->out, "<text class=\"%s\" text-anchor=\"%s\" x=\"%.1f\" y=\"%.1f\">%s</text>\n", kind,
        anchor, x, y, text);
}

/* Times on the logarithmic axis, in milliseconds. */
static void draw_times(const picture *f, int panel)
{
    static const double digits[] = { 1.0, 1.5, 2.0, 3.0, 5.0, 7.0 };
    double decade, last = -HUGE_VAL;
    int i;
    for (decade = 1.0; decade < 1e9; decade *= 10.0)
        for (i = 0; i < 6; i++) {
            const double time = digits[i] * decade;
            char text[32];
            double x;
            if (time < f->least_time || time > f->most_time) continue;
            x = x_of(f, panel, time);
            if (x < last + NUMBER_DISTANCE) continue;
            last = x;
            draw_line(f, "axis", x, PANEL_BOTTOM, x, PANEL_BOTTOM + 5);
            (void)snprintf(text, sizeof text, "%g", time / 1000.0);
            draw_text(f, "small", "middle", x, PANEL_BOTTOM + 19, text);
        }
}

static void draw_axes(const picture *f, int panel)
{
    static const char *const titles[SCORES] = { "tasks that were trained on",
        "tasks known by their instruction only" };
    const double left = PANEL_LEFT + panel * PANEL_STEP, right = left + PANEL_WIDTH;
    const int steps = (int)(f->top / f->step + 0.5);
    int i;
    for (i = 0; i <= steps; i++) {
        const double value = i * f->step, y = y_of(f, value);
        char text[32];
        draw_line(f, i ? "grid" : "axis", left, y, right, y);
        (void)snprintf(text, sizeof text, "%.*f", f->step < 0.1 ? 2 : 1, value);
        draw_text(f, "small", "end", left - 8, y + 4, text);
    }
    draw_times(f, panel);
    draw_text(f, "title", "start", left, PANEL_TOP - 50, titles[panel]);
    draw_text(f, "", "middle", left + PANEL_WIDTH / 2.0, PANEL_BOTTOM + 42,
        "time of one answer in ms (logarithmic)");
    if (panel == 0)
        fprintf(f->out,
            "<text text-anchor=\"middle\" transform=\"translate(20 %d) rotate(-90)\">score: mean "
            "share of right answers</text>\n",
            (PANEL_TOP + PANEL_BOTTOM) / 2);
}

/* Above the panel the widths, each over the mean time of its models. */
static void draw_widths(const picture *f, int panel)
{
    double sums[LIST_MAX] = { 0.0 }, places[LIST_MAX], guides[LIST_MAX];
    int widths[LIST_MAX] = { 0 }, models[LIST_MAX] = { 0 }, n = 0, i, w;
    for (i = 0; i < f->count; i++) {
        for (w = 0; w < n && widths[w] < f->points[i].width; w++) {}
        if (w == n || widths[w] != f->points[i].width) {
            if (n == LIST_MAX) return;
            memmove(widths + w + 1, widths + w, sizeof *widths * (size_t)(n - w));
            memmove(sums + w + 1, sums + w, sizeof *sums * (size_t)(n - w));
            memmove(models + w + 1, models + w, sizeof *models * (size_t)(n - w));
            widths[w] = f->points[i].width;
            sums[w] = 0.0;
            models[w] = 0;
            n++;
        }
        sums[w] += log(f->points[i].microseconds);
        models[w]++;
    }
    for (w = 0; w < n; w++) places[w] = guides[w] = x_of(f, panel, exp(sums[w] / models[w]));
    spread(places, n, NUMBER_DISTANCE);
    draw_text(f, "small", "end", PANEL_LEFT + panel * PANEL_STEP - 8, PANEL_TOP - 22, "width");
    for (w = 0; w < n; w++) {
        char text[32];
        (void)snprintf(text, sizeof text, "%d", widths[w]);
        draw_text(f, "small", "middle", places[w], PANEL_TOP - 22, text);
        draw_line(f, "grid", places[w], PANEL_TOP - 17, guides[w], PANEL_TOP - 4);
        draw_line(f, "grid", guides[w], PANEL_TOP - 4, guides[w], PANEL_BOTTOM);
    }
}

/* One line of a panel: the models of points first .. last, which differ in width. */
typedef struct series {
    const char *kind;
    int experts;
    double opacity, end_x, end_y;
} series;

static series draw_series(const picture *f, int panel, int first, int last)
{
    const int experts = f->points[first].experts;
    series s = { experts > 1 ? "mixture" : "dense", experts, 1.0, 0.0, 0.0 };
    int i;
    /* the more experts, the stronger the colour */
    if (experts > 1)
        s.opacity = fmax(0.4, 1.0 - 0.25 * log2((double)f->points[f->count - 1].experts / experts));
    fprintf(f->out, "<g opacity=\"%.2f\">\n<polyline class=\"line %s\" points=\"", s.opacity,
        s.kind);
    for (i = first; i <= last; i++) {
        s.end_x = x_of(f, panel, f->points[i].microseconds);
        s.end_y = y_of(f, f->points[i].score[panel]);
        fprintf(f->out, "%.1f,%.1f ", s.end_x, s.end_y);
    }
    fprintf(f->out, "\"/>\n");
    for (i = first; i <= last; i++)
        fprintf(f->out, "<circle class=\"%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\"/>\n", s.kind,
            x_of(f, panel, f->points[i].microseconds), y_of(f, f->points[i].score[panel]));
    fprintf(f->out, "</g>\n");
    return s;
}

static int higher_first(const void *a, const void *b)
{
    const series *x = (const series *)a, *y = (const series *)b;
    if (x->end_y != y->end_y) return x->end_y < y->end_y ? -1 : 1;
    return y->experts - x->experts;
}

/* The panel's lines, each with its name at its right end. */
static void draw_panel(const picture *f, int panel)
{
    const double right = PANEL_LEFT + panel * PANEL_STEP + PANEL_WIDTH;
    series lines[LIST_MAX];
    double places[LIST_MAX];
    int first, last, i, n = 0;
    draw_widths(f, panel);
    draw_axes(f, panel);
    for (first = 0; first < f->count && n < LIST_MAX; first = last + 1) {
        last = first;
        while (last + 1 < f->count && f->points[last + 1].experts == f->points[first].experts)
            last++;
        if (f->points[first].score[panel] == f->points[first].score[panel])
            lines[n++] = draw_series(f, panel, first, last);
    }
    qsort(lines, (size_t)n, sizeof *lines, higher_first);
    for (i = 0; i < n; i++) places[i] = lines[i].end_y;
    spread(places, n, LABEL_DISTANCE);
    for (i = 0; i < n; i++) {
        char text[32] = "dense", kind[64];
        if (lines[i].experts > 1) (void)snprintf(text, sizeof text, "%d experts", lines[i].experts);
        (void)snprintf(kind, sizeof kind, "leader %s", lines[i].kind);
        draw_line(f, kind, lines[i].end_x + 5, lines[i].end_y, right + 12, places[i]);
        draw_text(f, lines[i].kind, "start", right + 15, places[i] + 4, text);
    }
}

static void draw(const settings *s)
{
    static point points[POINTS_MAX];
    char caption[200], text[300];
    picture f;
    int panel;
    f.points = points;
    f.count = read_points(s, points, caption, sizeof caption);
    if (f.count == 0) die(s->program, "the TSV file has no measured models");
    f.out = fopen(s->svg, "w");
    if (!f.out) die_file(s->program, s->svg);
    fit(&f);
    draw_head(&f);
    for (panel = 0; panel < SCORES; panel++) draw_panel(&f, panel);
    draw_text(&f, "small", "start", PANEL_LEFT, PICTURE_HEIGHT - 28,
        "A line joins models of the widths above it. Inputs were answered one by one, a task's "
        "experts "
        "merged before the first.");
    (void)snprintf(text, sizeof text, "Mean of %d seed%s; %s.", points[0].seeds,
        points[0].seeds > 1 ? "s" : "", caption);
    draw_text(&f, "small", "start", PANEL_LEFT, PICTURE_HEIGHT - 12, text);
    fprintf(f.out, "</svg>\n");
    file_written(s->program, s->svg, f.out, 1);
    printf("%s: %d models, from %s\n", s->svg, f.count, s->tsv);
}

int main(int argc, char **argv)
{
    static const char usage[] =
        "usage: tradeoff [options]\n"
        "Trains dense models and mixtures of several widths and numbers of experts and\n"
        "draws their scores against the time of an answer.";
    settings s = { argv[0], "zero_shot", "32,48,64,96,128", "1,2,4,8", "examples/tradeoff.tsv",
        "examples/tradeoff.svg", 0, 1, 0, 0, 0 };
    const option options[] = { { "--widths", "LIST", 's', &s.widths, "default 32,48,64,96,128" },
        { "--experts", "LIST", 's', &s.experts, "1 is the dense model; default 1,2,4,8" },
        { "--split", "NAME", 's', &s.split, "of the embedded suite (default zero_shot)" },
        { "--seeds", "N", 'n', &s.seeds, "seeds 1 to N (default 1)" },
        { "--steps", "N", 'n', &s.steps, "optimiser steps (default: the library's)" },
        { "--limit", "N", 'i', &s.limit, "test lines a task that are scored (default all)" },
        { "--threads", "T", 'i', &s.threads, "default: all processors" },
        { "--tsv", "FILE", 's', &s.tsv, "the numbers; a stopped run goes on from them" },
        { "--svg", "FILE", 's', &s.svg, "the picture" },
        { "--draw", NULL, 'b', &s.draw, "train nothing: draw what the TSV file has" },
        { NULL, NULL, 0, NULL, NULL } };
    s.steps = tmoe_training_default().steps;
    (void)options_read(argc, argv, usage, options, NULL, 0);
    must_be_writable(argv[0], s.svg, 0);
    if (!s.draw) measure_all(&s);
    draw(&s);
    return 0;
}
