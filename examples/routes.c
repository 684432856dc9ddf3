/* routes: reads what a mixture has learned to route. Which experts go with which kinds of tasks, which tasks are routed alike, what is
 * lost when the experts of a category are disabled. Plain text in the terminal; with --html one file that any browser opens.
 *   run time   under a minute for the embedded suite's model      read next   >>routes, tmoe_expert_disable in taskmoe.h */
#define TMOE_THREADS
#define TASKMOE_IMPLEMENTATION
#include "common.h"

#define CATEGORIES_MAX 64
#define TOP 3                           /* experts that are disabled for a category */
#define RANDOM_DRAWS 3                  /* as many random ones, so many times */

static const char usage[] =
    "usage: routes MODEL [FOLDER] [options]\n"
    "Reads the routes of a mixture (multitask --save MODEL). With its FOLDER of tasks also what disabling experts costs.";

typedef struct reading {
    tmoe_ctx *ctx;
    tmoe_model *model;
    tmoe_suite *suite;                  /* or NULL */
    int N, R, E, C;                     /* C = R * E columns */
    float *routes;                      /* (N, C) */
    const char *categories[CATEGORIES_MAX];
    int category_of[4096], category_count, size[CATEGORIES_MAX];
    double *r, *p;                      /* (categories, C) */
    tmoe_join *joins;
    int order[4096];                    /* tasks as the tree has them */
    int top[CATEGORIES_MAX][TOP];
    double whole[CATEGORIES_MAX], drop[CATEGORIES_MAX][4];      /* own and other tasks: without the top experts, without random ones */
} reading;

static void *room(size_t count, size_t size)
{
    void *p = calloc(count + 1, size);
    if (!p) die("routes", "out of memory");
    return p;
}

static void column_name(const reading *x, int column, char *text, size_t size)
{
    char layer[32];
    tmoe_routed_layer_name(x->model, column / x->E, layer, sizeof layer);
    (void)snprintf(text, size, "%s, expert %d", layer, column % x->E);
}

static void read_routes(reading *x)
{
    int t, c, stack[8192], depth = 0, n = 0;
    x->N = tmoe_model_task_count(x->model);
    x->R = tmoe_routed_layers(x->model);
    x->E = tmoe_model_config(x->model)->E;
    x->C = x->R * x->E;
    if (x->R == 0) die("routes", "the model is dense: it has no routes");
    if (x->N > 4096) die("routes", "more than 4096 tasks");
    x->routes = (float *)room((size_t)(x->N * x->C), sizeof(float));
    for (t = 0; t < x->N; t++) {
        const char *category = tmoe_model_task(x->model, t)->category;
        if (tmoe_route(x->model, t, x->routes + (size_t)t * (size_t)x->C) != TMOE_OK) die("routes", tmoe_error_message(x->ctx));
        for (c = 0; c < x->category_count && strcmp(x->categories[c], category); c++) { }
        if (c == x->category_count) {
            if (c == CATEGORIES_MAX) die("routes", "more than 64 categories");
            x->categories[x->category_count++] = category;
        }
        x->category_of[t] = c;
        x->size[c]++;
    }
    x->r = (double *)room((size_t)(x->category_count * x->C), sizeof(double));
    x->p = (double *)room((size_t)(x->category_count * x->C), sizeof(double));
    x->joins = (tmoe_join *)room((size_t)x->N, sizeof *x->joins);
    for (c = 0; c < x->category_count; c++) {
        float *feature = (float *)room((size_t)x->N, sizeof(float));
        double *r = x->r + c * x->C;
        int i, j;
        for (t = 0; t < x->N; t++) feature[t] = x->category_of[t] == c ? 1.0f : 0.0f;
        if (tmoe_route_correlations(x->ctx, x->routes, x->N, x->C, feature, 1000, 1, r, x->p + c * x->C) != TMOE_OK) die("routes", tmoe_error_message(x->ctx));
        for (i = 0; i < TOP; i++) {                             /* the highest correlations, each expert once */
            x->top[c][i] = -1;
            for (j = 0; j < x->C; j++) {
                int taken = 0, k;
                for (k = 0; k < i; k++) taken |= x->top[c][k] == j;
                if (!taken && r[j] == r[j] && (x->top[c][i] < 0 || r[j] > r[x->top[c][i]])) x->top[c][i] = j;
            }
        }
        free(feature);
    }
    if (tmoe_cluster(x->ctx, x->routes, x->N, x->C, x->joins) != TMOE_OK) die("routes", tmoe_error_message(x->ctx));
    stack[depth++] = x->N > 1 ? 2 * x->N - 2 : 0;               /* leaves from the top join down */
    while (depth) {
        const int at = stack[--depth];
        if (at < x->N) x->order[n++] = at;
        else { stack[depth++] = x->joins[at - x->N].b; stack[depth++] = x->joins[at - x->N].a; }
    }
}

/* Mean score over the tasks of a category (own = 1) or all others. */
static double score_of(reading *x, int category, int own, int limit)
{
    double sum = 0.0, score;
    int s, n = 0;
    for (s = 0; s < x->suite->count; s++) {
        const tmoe_task *task = &x->suite->tasks[s];
        const int known = tmoe_find_task(x->model, task->name);
        if (known < 0 || task->test_count == 0 || (x->category_of[known] == category) != own) continue;
        if (tmoe_evaluate(x->model, task, NULL, limit, &score) != TMOE_OK) die("routes", tmoe_error_message(x->ctx));
        if (score == score) { sum += score; n++; }
    }
    return n ? sum / n : (double)NAN;
}

static void disable(reading *x, const int *columns, int disabled)
{
    int i;
    for (i = 0; i < TOP; i++)           /* the last expert of a layer stays: then one fewer is disabled */
        if (columns[i] >= 0) (void)tmoe_expert_disable(x->model, columns[i] / x->E, columns[i] % x->E, disabled);
}

static void read_drops(reading *x, int limit)
{
    double others[CATEGORIES_MAX];
    int c, draw, own;
    for (c = 0; c < x->category_count; c++) { x->whole[c] = score_of(x, c, 1, limit); others[c] = score_of(x, c, 0, limit); }
    for (c = 0; c < x->category_count; c++) {
        fprintf(stderr, "disabling experts: %s\n", x->categories[c]);
        disable(x, x->top[c], 1);
        x->drop[c][0] = x->whole[c] - score_of(x, c, 1, limit);
        x->drop[c][1] = others[c] - score_of(x, c, 0, limit);
        disable(x, x->top[c], 0);
        for (draw = 0; draw < RANDOM_DRAWS; draw++) {
            int columns[TOP], i, j;
            for (i = 0; i < TOP; i++) {
                columns[i] = (int)(tmoei_random(7, (uint64_t)(c * RANDOM_DRAWS + draw), (uint64_t)i) % (uint64_t)x->C);
                for (j = 0; j < i; j++) if (columns[j] == columns[i]) columns[i] = -1;
            }
            disable(x, columns, 1);
            for (own = 1; own >= 0; own--) x->drop[c][own ? 2 : 3] += ((own ? x->whole[c] : others[c]) - score_of(x, c, own, limit)) / RANDOM_DRAWS;
            disable(x, columns, 0);
        }
    }
}

/* ---- the terminal ------------------------------------------------------------------------------------- */

static void print_text(const reading *x)
{
    static const char *const shades[] = { "  ", "\xe2\x96\x91\xe2\x96\x91", "\xe2\x96\x92\xe2\x96\x92", "\xe2\x96\x93\xe2\x96\x93", "\xe2\x96\x88\xe2\x96\x88" };
    char name[64];
    int c, t, l, e, i;
    printf("%d tasks, %d routed layers, %d experts each\n\nroutes, mean of each category's tasks (a block a layer, a cell an expert, darker = larger share)\n%-18s", x->N, x->R, x->E, "");
    for (l = 0; l < x->R; l++) { tmoe_routed_layer_name(x->model, l, name, sizeof name); printf(" %-*s", 2 * x->E + 1, name); }
    printf("\n");
    for (c = 0; c < x->category_count; c++) {
        printf("%-18.18s", x->categories[c]);
        for (l = 0; l < x->R; l++) {
            printf(" ");
            for (e = 0; e < x->E; e++) {
                double sum = 0.0;
                int shade;
                for (t = 0; t < x->N; t++) if (x->category_of[t] == c) sum += (double)x->routes[t * x->C + l * x->E + e] / x->size[c];
                shade = (int)(sum * x->E * 2.0);
                printf("%s", shades[shade > 4 ? 4 : shade]);
            }
            printf(" ");
        }
        printf("\n");
    }
    printf("\nexperts that go with a category (Pearson r over tasks; p: chance of any r as large when the category is shuffled)\n");
    for (c = 0; c < x->category_count; c++)
        for (i = 0; i < TOP; i++) {
            const int j = x->top[c][i];
            if (j < 0 || !(x->p[c * x->C + j] < 0.05)) continue;
            column_name(x, j, name, sizeof name);
            printf("%-18.18s %-22s r %+.2f  p %.3f\n", x->categories[c], name, x->r[c * x->C + j], x->p[c * x->C + j]);
        }
    if (!x->suite) { printf("\nwith the FOLDER of the tasks, too: what disabling experts costs\n"); return; }
    printf("\nscore lost when a category's %d most correlated experts are disabled, and with as many random ones\n%-18s %8s %12s %12s %12s %12s\n", TOP, "", "score", "own tasks", "other tasks", "random, own", "random, other");
    for (c = 0; c < x->category_count; c++)
        printf("%-18.18s %8.3f %12.3f %12.3f %12.3f %12.3f\n", x->categories[c], x->whole[c], x->drop[c][0], x->drop[c][1], x->drop[c][2], x->drop[c][3]);
}

/* ---- the report: one file, inline SVG, nothing from the network ---------------------------------------- */

static void put_text(FILE *f, const char *text)
{
    for (; *text; text++)
        if (*text == '<') fputs("&lt;", f); else if (*text == '&') fputs("&amp;", f); else if (*text == '"') fputs("&quot;", f); else fputc(*text, f);
}

static int hue(const reading *x, int category) { return 360 * category / x->category_count; }

enum { CELL = 13, LABEL = 250 };

static void put_heat_map(const reading *x, FILE *f)
{
    const int pitch = x->E * CELL + 8 > 80 ? x->E * CELL + 8 : 80, width = LABEL + x->R * pitch;       /* a layer's name needs 80 */
    int c, t, j, l, y = 34;
    char name[64];
    fprintf(f, "<h2>Routes</h2><p>A row a task, a block a layer, a column an expert; the stronger the colour, the larger the expert's share. Hover tells the number.</p>"
            "<div class=scroll><svg width=%d height=%d role=img aria-label=\"heat map of tasks and experts\">", width, 44 + x->N * CELL + x->category_count * 20);
    for (l = 0; l < x->R; l++) {
        tmoe_routed_layer_name(x->model, l, name, sizeof name);
        fprintf(f, "<text x=%d y=14 class=head>%s</text>", LABEL + l * pitch, name);
    }
    for (c = 0; c < x->category_count; c++) {
        fprintf(f, "<text x=0 y=%d class=head style=\"fill:hsl(%d 60%% var(--hl))\">", y, hue(x, c));
        put_text(f, x->categories[c]);
        fprintf(f, "</text>");
        y += 6;
        for (t = 0; t < x->N; t++) {
            if (x->category_of[t] != c) continue;
            fprintf(f, "<text x=%d y=%d text-anchor=end>", LABEL - 6, y + CELL - 3);
            put_text(f, tmoe_model_task(x->model, t)->name);
            fprintf(f, "</text>");
            for (j = 0; j < x->C; j++) {
                const double r = (double)x->routes[t * x->C + j];
                column_name(x, j, name, sizeof name);
                fprintf(f, "<rect x=%d y=%d width=%d height=%d fill-opacity=%.2f><title>", LABEL + j / x->E * pitch + j % x->E * CELL, y, CELL - 1, CELL - 1, 0.04 + 0.96 * r);
                put_text(f, tmoe_model_task(x->model, t)->name);
                fprintf(f, "\n%s: %.3f</title></rect>", name, r);
            }
            y += CELL;
        }
        y += 14;
    }
    fprintf(f, "</svg></div>");
}

static void put_tree(const reading *x, FILE *f)
{
    double *px = (double *)room(2 * (size_t)x->N, sizeof(double)), *py = (double *)room(2 * (size_t)x->N, sizeof(double)), top = 1e-9;
    int i;
    for (i = 0; i < x->N - 1; i++) if (x->joins[i].height > top) top = x->joins[i].height;
    fprintf(f, "<h2>Which tasks are routed alike</h2><p>Average-linkage clustering of routes by Euclidean distance; tasks that join on the left have nearly equal routes. "
            "Names have the colour of their category.</p><div class=scroll><svg width=%d height=%d role=img aria-label=\"tree of tasks\">", LABEL + 420, x->N * CELL + 12);
    for (i = 0; i < x->N; i++) {
        const int t = x->order[i];
        px[t] = 0.0;
        py[t] = i * CELL + CELL / 2.0 + 2.0;
        fprintf(f, "<text x=%d y=%.1f text-anchor=end style=\"fill:hsl(%d 60%% var(--hl))\">", LABEL - 6, py[t] + 4.0, hue(x, x->category_of[t]));
        put_text(f, tmoe_model_task(x->model, t)->name);
        fprintf(f, "<title>");
        put_text(f, x->categories[x->category_of[t]]);
        fprintf(f, "</title></text>");
    }
    for (i = 0; i < x->N - 1; i++) {
        const tmoe_join *j = &x->joins[i];
        px[x->N + i] = 400.0 * j->height / top;
        py[x->N + i] = (py[j->a] + py[j->b]) / 2.0;
        fprintf(f, "<path d=\"M%.1f %.1fH%.1fV%.1fH%.1f\"><title>%d tasks, distance %.3f</title></path>", LABEL + px[j->a], py[j->a], LABEL + px[x->N + i], py[j->b], LABEL + px[j->b], j->size, j->height);
    }
    fprintf(f, "</svg></div>");
    free(px);
    free(py);
}

static void put_tables(const reading *x, FILE *f)
{
    char name[64];
    int c, i;
    fprintf(f, "<h2>Experts that go with a category</h2><p>Pearson correlation over tasks between an expert's share and belonging to the category; p is the chance that any expert "
            "correlates as much when the categories are shuffled among the tasks (1,000 times).</p><div class=scroll><table><tr><th>category<th>tasks<th colspan=%d>the %d highest</tr>", TOP, TOP);
    for (c = 0; c < x->category_count; c++) {
        fprintf(f, "<tr><td>");
        put_text(f, x->categories[c]);
        fprintf(f, "<td class=n>%d", x->size[c]);
        for (i = 0; i < TOP; i++) {
            const int j = x->top[c][i];
            if (j < 0) { fprintf(f, "<td>undefined"); continue; }
            column_name(x, j, name, sizeof name);
            fprintf(f, "<td%s>%s<br><b>%+.2f</b> <span class=dim>p %.3f</span>", x->p[c * x->C + j] < 0.05 ? "" : " class=dim", name, x->r[c * x->C + j], x->p[c * x->C + j]);
        }
        fprintf(f, "</tr>");
    }
    fprintf(f, "</table></div>");
    if (!x->suite) return;
    fprintf(f, "<h2>Disabling experts</h2><p>Score lost when a category's %d most correlated experts are disabled, on its own tasks and on all others, beside what %d random experts cost "
            "(mean of %d draws).</p><div class=scroll><table><tr><th>category<th>score<th>own tasks<th>others<th>random: own<th>random: others</tr>", TOP, TOP, RANDOM_DRAWS);
    for (c = 0; c < x->category_count; c++) {
        fprintf(f, "<tr><td>");
        put_text(f, x->categories[c]);
        fprintf(f, "<td class=n>%.3f", x->whole[c]);
        for (i = 0; i < 4; i++) {
            const double change = fabs(x->drop[c][i]) < 0.0005 ? 0.0 : -x->drop[c][i];
            if (x->drop[c][i] == x->drop[c][i]) fprintf(f, "<td class=n%s>%+.3f", i == 0 ? " style=\"font-weight:600\"" : "", change);
            else fprintf(f, "<td class=\"n dim\">undefined");
        }
        fprintf(f, "</tr>");
    }
    fprintf(f, "</table></div>");
}

/* Curves of a log that multitask --log wrote: lines of label, step, loss. */
static void put_curves(const char *path, FILE *f)
{
    enum { POINTS = 20000, CURVES = 4 };
    static double steps[POINTS], losses[POINTS];
    static int which[POINTS];
    char label[CURVES][40], name[40], line[256];
    double step, loss, most_step = 1.0, most_loss = 1e-9;
    int n = 0, count = 0, i, k;
    FILE *log = fopen(path, "r");
    if (!log) die("routes", "the log cannot be read");
    while (n < POINTS && fgets(line, sizeof line, log)) {
        if (sscanf(line, "%39s %lf %lf", name, &step, &loss) != 3) continue;
        for (k = 0; k < count && strcmp(label[k], name); k++) { }
        if (k == CURVES) continue;
        if (k == count) strcpy(label[count++], name);
        if (step > most_step) most_step = step;
        if (loss > most_loss) most_loss = loss;
        which[n] = k; steps[n] = step; losses[n++] = loss;
    }
    fclose(log);
    fprintf(f, "<h2>Training</h2><div class=scroll><svg width=640 height=230 role=img aria-label=\"training curves\"><path class=axis d=\"M40 10V190H630\"/>");
    fprintf(f, "<text x=36 y=16 text-anchor=end>%.1f</text><text x=36 y=194 text-anchor=end>0</text><text x=630 y=206 text-anchor=end>%.0f steps</text><text x=44 y=16>loss</text>", most_loss, most_step);
    for (k = 0; k < count; k++) {
        fprintf(f, "<text x=%d y=224 style=\"fill:hsl(%d 60%% var(--hl))\">%s</text><path style=\"stroke:hsl(%d 60%% var(--hl))\" d=\"", 40 + 120 * k, 140 * k, label[k], 140 * k);
        for (i = 0, step = -1.0; i < n; i++) {
            if (which[i] != k) continue;
            fprintf(f, "%c%.1f %.1f", step < 0.0 ? 'M' : 'L', 40.0 + 590.0 * steps[i] / most_step, 190.0 - 175.0 * losses[i] / most_loss);
            step = steps[i];
        }
        fprintf(f, "\"/>");
    }
    fprintf(f, "</svg></div>");
}

static void write_report(const reading *x, const char *path, const char *model_name, const char *log)
{
    size_t active, all = tmoe_model_parameters(x->model, &active);
    FILE *f = fopen(path, "w");
    if (!f) die("routes", "the report cannot be written");
    fprintf(f, "<!DOCTYPE html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><title>Routes</title><style>"
            ":root{color-scheme:light dark;--bg:#fff;--fg:#1c2330;--dim:#66707f;--line:#d8dde5;--cell:#1750b8;--hl:36%%}"
            "@media(prefers-color-scheme:dark){:root{--bg:#12161d;--fg:#dde3ec;--dim:#8d98a8;--line:#2c3440;--cell:#7db0ff;--hl:68%%}}"
            "@media print{:root{--bg:#fff;--fg:#000;--cell:#1750b8;--hl:30%%}.scroll{overflow:visible}h2{break-after:avoid}}"
            "body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:0 auto;padding:16px}"
            "h1{font-size:24px;margin:8px 0;overflow-wrap:anywhere}h2{font-size:18px;margin:32px 0 4px}p{margin:4px 0 12px;color:var(--dim);max-width:70ch}"
            ".scroll{overflow-x:auto}svg{display:block}svg text{font:11px system-ui,sans-serif;fill:var(--fg)}svg text.head{font-weight:600;font-size:12px}"
            "rect{fill:var(--cell)}rect:hover{stroke:var(--fg)}path{fill:none;stroke:var(--dim);stroke-width:1.2}.axis{stroke:var(--line)}"
            "table{border-collapse:collapse}th,td{text-align:left;padding:4px 14px 4px 0;border-bottom:1px solid var(--line);vertical-align:top}.n{text-align:right;font-variant-numeric:tabular-nums}.dim{color:var(--dim)}"
            "</style><h1>Routes of ");
    put_text(f, strrchr(model_name, '/') ? strrchr(model_name, '/') + 1 : model_name);
    fprintf(f, "</h1><p>%d tasks, %d routed layers with %d experts each; %lu parameters, %lu of them active for a task.</p>", x->N, x->R, x->E, (unsigned long)all, (unsigned long)active);
    put_heat_map(x, f);
    put_tree(x, f);
    put_tables(x, f);
    if (log) put_curves(log, f);
    fprintf(f, "</html>\n");
    if (fclose(f) != 0) die("routes", "the report could not be written to its end");
    printf("\nreport: %s\n", path);
}

int main(int argc, char **argv)
{
    const char *words[2] = { NULL, NULL }, *html = NULL, *log = NULL, *split = NULL;
    int threads = 0, limit = 8, n;
    static reading x;
    option options[] = {
        { "--html", "FILE", 's', NULL, "writes the report: one file, opens in any browser" },
        { "--log", "FILE", 's', NULL, "training log of multitask --log, for the report's curves" },
        { "--split", "NAME|FILE", 's', NULL, "split of FOLDER (default: zero_shot if there)" },
        { "--limit", "N", 'i', NULL, "test lines of each task when experts are disabled (default 8; 0: all)" },
        { "--threads", "T", 'i', NULL, "threads (default: all processors)" },
        { NULL, NULL, 0, NULL, NULL }
    };
    void *values[] = { &html, &log, &split, &limit, &threads };
    for (n = 0; options[n].name; n++) options[n].value = values[n];
    n = options_read(argc, argv, usage, options, words, 2);
    if (n < 1) { options_help(usage, options); return 2; }
    x.ctx = context_or_die(argv[0], threads);
    x.model = tmoe_model_load(x.ctx, words[0]);
    if (!x.model) die(argv[0], tmoe_error_message(x.ctx));
    if (words[1]) {
        x.suite = tmoe_suite_load(x.ctx, words[1], split);
        if (!x.suite) die(argv[0], tmoe_error_message(x.ctx));
    }
    read_routes(&x);
    if (x.suite) read_drops(&x, limit);
    print_text(&x);
    if (html) write_report(&x, html, words[0], log);
    free(x.routes); free(x.r); free(x.p); free(x.joins);
    tmoe_model_destroy(x.model);
    tmoe_suite_destroy(x.suite);
    tmoe_ctx_destroy(x.ctx);
    return 0;
}
