/* routes: reads what a mixture has learned to route. Which experts go with which kinds of tasks,
 * which tasks are routed alike, what is lost when the experts of a category are disabled. Plain
 * text in the terminal; with --html one file that any browser opens.
 *   run time   under a minute for the embedded suite's model      read next   >>routes,
 *   tmoe_expert_set_enabled in taskmoe.h */
#define TMOE_THREADS
#define TASKMOE_IMPLEMENTATION
#include "common.h"

#define CATEGORIES_MAX 64
#define TOP 3          /* experts that are disabled for a category */
#define RANDOM_DRAWS 3 /* as many random ones, so many times */
#define BRANCHES 24    /* of the tree in the terminal */

static const char usage[] = "usage: routes MODEL [FOLDER] [options]\n"
                            "Reads the routes of a mixture (multitask --save MODEL). With its "
                            "FOLDER of tasks also what disabling experts costs.";

typedef struct reading {
    tmoe_ctx *ctx;
    tmoe_model *model;
    tmoe_suite *suite; /* or NULL */
    int N, R, E, C;    /* C = R * E columns */
    float *routes;     /* (N, C) */
    const char *categories[CATEGORIES_MAX];
    int category_of[4096], category_count, size[CATEGORIES_MAX];
    double *r, *p; /* (categories, C) */
    tmoe_join *joins;
    int order[4096]; /* tasks as the tree has them */
    int top[CATEGORIES_MAX][TOP];
    /* of the suite's tasks, with all experts and without some; NaN: not measured, or undefined */
    double *scores, *without;
    double whole[CATEGORIES_MAX],
        drop[CATEGORIES_MAX]
            [4];   /* own and other tasks: without the top experts, without random ones */
    int undefined; /* scores */
    int measured[CATEGORIES_MAX]; /* tasks that are in the folder, too, with test lines */
    char coverage[256];           /* how many of how many */
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
    tmoe_correlation_test test;
    x->N = tmoe_model_task_count(x->model);
    x->R = tmoe_routed_layers(x->model);
    x->E = tmoe_model_config(x->model)->experts;
    x->C = x->R * x->E;
    if (x->R == 0) die("routes", "the model is dense: it has no routes");
    if (x->N > 4096) die("routes", "more than 4096 tasks");
    x->routes = (float *)room((size_t)(x->N * x->C), sizeof(float));
    for (t = 0; t < x->N; t++) {
        const char *category = tmoe_model_task(x->model, t)->category;
        if (tmoe_route_of_task(x->model, t, x->routes + (size_t)t * (size_t)x->C) != TMOE_OK)
            die("routes", tmoe_error_message(x->ctx));
        for (c = 0; c < x->category_count && strcmp(x->categories[c], category); c++) {}
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
        test.routes = x->routes;
        test.tasks = x->N;
        test.columns = x->C;
        test.feature = feature;
        test.permutations = 1000;
        test.seed = 1;
        if (tmoe_route_correlations(x->ctx, &test, r, x->p + c * x->C) != TMOE_OK)
            die("routes", tmoe_error_message(x->ctx));
        for (i = 0; i < TOP; i++) { /* the highest correlations, each expert once */
            x->top[c][i] = -1;
            for (j = 0; j < x->C; j++) {
                int taken = 0, k;
                for (k = 0; k < i; k++) taken |= x->top[c][k] == j;
                if (!taken && r[j] == r[j] && (x->top[c][i] < 0 || r[j] > r[x->top[c][i]]))
                    x->top[c][i] = j;
            }
        }
        free(feature);
    }
    if (tmoe_cluster(x->ctx, x->routes, x->N, x->C, x->joins) != TMOE_OK)
        die("routes", tmoe_error_message(x->ctx));
    stack[depth++] = x->N > 1 ? 2 * x->N - 2 : 0; /* leaves from the top join down */
    while (depth) {
        const int at = stack[--depth];
        if (at < x->N)
            x->order[n++] = at;
        else {
            stack[depth++] = x->joins[at - x->N].b;
            stack[depth++] = x->joins[at - x->N].a;
        }
    }
}

/* Which of the model's tasks can be measured: a folder of other tasks must not pass for the
 * model's. */
static void count_measured(reading *x)
{
    int s, n = 0, strange = 0;
    for (s = 0; s < tmoe_suite_count(x->suite); s++) {
        const int known = tmoe_model_find_task(x->model, tmoe_suite_task(x->suite, s)->name);
        if (known < 0)
            strange++;
        else if (tmoe_suite_task(x->suite, s)->test_count > 0) {
            x->measured[x->category_of[known]]++;
            n++;
        }
    }
    (void)snprintf(x->coverage, sizeof x->coverage,
        "%d of the model's %d tasks are measured%s; %d of the folder's %d tasks are not the "
        "model's",
        n, x->N, n < x->N ? ", the others are not in the folder or have no test lines there" : "",
        strange, tmoe_suite_count(x->suite));
    if (n == 0) die("routes: nothing to measure", x->coverage);
}

static void read_scores(reading *x, int limit, double *scores)
{
    int s;
    for (s = 0; s < tmoe_suite_count(x->suite); s++) {
        const tmoe_task *task = &*tmoe_suite_task(x->suite, s);
        scores[s] = (double)NAN;
        if (tmoe_model_find_task(x->model, task->name) < 0 || task->test_count == 0) continue;
        if (tmoe_evaluate(x->model, task, NULL, limit, &scores[s]) != TMOE_OK)
            die("routes", tmoe_error_message(x->ctx));
        x->undefined += !(scores[s] == scores[s]);
    }
}

/* Mean over the tasks of a category (own = 1) or all others: the score, or what is lost of it
 * without some experts, where both are defined. */
static double mean_score(const reading *x, int category, int own, int lost)
{
    double sum = 0.0;
    int s, n = 0;
    for (s = 0; s < tmoe_suite_count(x->suite); s++) {
        const int known = tmoe_model_find_task(x->model, tmoe_suite_task(x->suite, s)->name);
        const double score = lost ? x->scores[s] - x->without[s] : x->scores[s];
        if (known >= 0 && (x->category_of[known] == category) == own && score == score) {
            sum += score;
            n++;
        }
    }
    return n ? sum / n : (double)NAN;
}

static void read_drops(reading *x, int limit)
{
    int c, draw, own, i, j;
    x->scores = (double *)room((size_t)tmoe_suite_count(x->suite), sizeof(double));
    x->without = (double *)room((size_t)tmoe_suite_count(x->suite), sizeof(double));
    count_measured(x);
    read_scores(x, limit, x->scores);
    for (c = 0; c < x->category_count; c++) {
        int wanted = 0;
        fprintf(stderr, "disabling experts: %s\n", x->categories[c]);
        x->whole[c] = mean_score(x, c, 1, 0);
        for (i = 0; i < 4; i++) x->drop[c][i] = (double)NAN;
        for (draw = 0; draw <= RANDOM_DRAWS;
             draw++) { /* first the most correlated, then as many random ones */
            int columns[TOP], n = 0;
            for (i = 0; draw == 0 ? i < TOP : n < wanted && i < 1000; i++) {
                columns[n] = draw == 0
                    ? x->top[c][i]
                    : (int)(tmoei_random(7, (uint64_t)(c * RANDOM_DRAWS + draw - 1), (uint64_t)i)
                        % (uint64_t)x->C);
                for (j = 0; j < n && columns[j] != columns[n]; j++) {}
                if (j < n || columns[n] < 0) continue; /* drawn twice; undefined */
                n += tmoe_expert_set_enabled(x->model, columns[n] / x->E, columns[n] % x->E, 0)
                    == TMOE_OK; /* a layer's last one stays */
            }
            if (draw == 0) wanted = n;
            if (n == 0) break; /* no correlation is defined: nothing to disable */
            read_scores(x, limit, x->without);
            for (own = 1; own >= 0; own--) {
                double *drop = &x->drop[c][(draw ? 2 : 0) + !own];
                const double lost = mean_score(x, c, own, 1) / (draw ? RANDOM_DRAWS : 1);
                *drop = draw < 2 ? lost : *drop + lost;
            }
            while (n--)
                (void)tmoe_expert_set_enabled(x->model, columns[n] / x->E, columns[n] % x->E, 1);
        }
    }
}

/* ---- the terminal ---------------------------------------------------------------------------- */

/* The tree from its top join down; only the topmost BRANCHES - 1 joins are opened, what is below
 * stands in one line. */
static void print_branch(const reading *x, int at, char *prefix, int last)
{
    const size_t length = strlen(prefix);
    int first, n, i, width = 0;
    printf("%s%s", prefix, at == 2 * x->N - 2 ? "" : last ? "\xe2\x94\x94 " : "\xe2\x94\x9c ");
    if (at != 2 * x->N - 2) strcpy(prefix + length, last ? "  " : "\xe2\x94\x82 ");
    if (at >= x->N && at > 2 * x->N - 1 - BRANCHES) {
        printf("%.3f\n", x->joins[at - x->N].height);
        print_branch(x, x->joins[at - x->N].a, prefix, 0);
        print_branch(x, x->joins[at - x->N].b, prefix, 1);
    } else {
        for (first = at; first >= x->N; first = x->joins[first - x->N].a) {}
        for (i = 0; x->order[i] != first; i++) {}
        n = at < x->N ? 1 : x->joins[at - x->N].size;
        if (n > 1) printf("%d tasks below %.3f: ", n, x->joins[at - x->N].height);
        for (first = i; i < first + n && width < 90; i++)
            width +=
                printf("%s%s", i > first ? ", " : "", tmoe_model_task(x->model, x->order[i])->name);
        printf("%s\n", i < first + n ? ", ..." : "");
    }
    prefix[length] = 0;
}

static void print_number(double x)
{
    if (x == x)
        printf(" %12.3f", fabs(x) < 0.0005 ? 0.0 : x);
    else
        printf(" %12s", "not measured");
}

static void print_text(const reading *x)
{
    static const char *const shades[] = { "  ", "\xe2\x96\x91\xe2\x96\x91",
        "\xe2\x96\x92\xe2\x96\x92", "\xe2\x96\x93\xe2\x96\x93", "\xe2\x96\x88\xe2\x96\x88" };
    char name[64], prefix[8 * BRANCHES] = "";
    int c, t, l, e, i, undefined = 0;
    printf("%d tasks, %d routed layers, %d experts each\n\nroutes, mean of each category's tasks "
           "(a block a layer, a cell an expert, darker = larger share)\n%-18s",
        x->N, x->R, x->E, "");
    for (l = 0; l < x->R; l++) {
        tmoe_routed_layer_name(x->model, l, name, sizeof name);
        printf(" %-*s", 2 * x->E + 1, name);
    }
    printf("\n");
    for (c = 0; c < x->category_count; c++) {
        printf("%-18.18s", x->categories[c]);
        for (l = 0; l < x->R; l++) {
            printf(" ");
            for (e = 0; e < x->E; e++) {
                double sum = 0.0;
                int shade;
                for (t = 0; t < x->N; t++)
                    if (x->category_of[t] == c)
                        sum += (double)x->routes[t * x->C + l * x->E + e] / x->size[c];
                shade = (int)(sum * x->E * 2.0);
                printf("%s", shades[shade > 4 ? 4 : shade]);
            }
            printf(" ");
        }
        printf("\n");
    }
    printf("\nwhich tasks are routed alike (average-linkage clustering; a number is the distance "
           "of the two branches below it)\n");
    if (x->N > 1) print_branch(x, 2 * x->N - 2, prefix, 1);
    printf("\nexperts that go with a category, p < 0.05 (Pearson r over tasks; p: chance of any r "
           "as large when the category is shuffled)\n");
    for (c = 0; c < x->category_count; c++)
        for (i = 0; i < TOP; i++) {
            const int j = x->top[c][i];
            if (j < 0 || !(x->p[c * x->C + j] < 0.05)) continue;
            column_name(x, j, name, sizeof name);
            printf("%-18.18s %-22s r %+.2f  p %.3f\n", x->categories[c], name, x->r[c * x->C + j],
                x->p[c * x->C + j]);
        }
    for (i = 0; i < x->category_count * x->C; i++) undefined += !(x->r[i] == x->r[i]);
    if (undefined)
        printf("%d of %d correlations are undefined: a share that is the same for all tasks, or a "
               "category that all tasks are of\n",
            undefined, x->category_count * x->C);
    if (!x->suite) {
        printf("\nwith the FOLDER of the tasks, too: what disabling experts costs\n");
        return;
    }
    printf("\nscore lost when a category's %d most correlated experts are disabled, and with as "
           "many random ones\n%s\n%-18s %8s %8s %12s %12s %12s %12s\n",
        TOP, x->coverage, "", "measured", "score", "own tasks", "other tasks", "random, own",
        "random, other");
    for (c = 0; c < x->category_count; c++) {
        (void)snprintf(name, sizeof name, "%d/%d", x->measured[c], x->size[c]);
        printf("%-18.18s %8s", x->categories[c], name);
        if (x->whole[c] == x->whole[c])
            printf(" %8.3f", x->whole[c]);
        else
            printf(" %8s", "-");
        for (i = 0; i < 4; i++) print_number(x->drop[c][i]);
        printf("\n");
    }
    if (x->undefined)
        printf("%d undefined scores of all evaluations are left out of the means\n", x->undefined);
}

/* ---- the report: one file, inline SVG, nothing from the network ------------------------------ */

static void put_text(FILE *f, const char *text)
{
    for (; *text; text++)
        if (*text == '<')
            fputs("&lt;", f);
        else if (*text == '&')
            fputs("&amp;", f);
        else if (*text == '"')
            fputs("&quot;", f);
        else
            fputc(*text, f);
}

static int hue(const reading *x, int category)
{
    return 360 * category / x->category_count;
}

enum {
    CELL = 13,
    STRIP = 8,
    WHOLE = 40
}; /* pixels; tasks in a piece of the tree; of a category that is printed on one page */

/* A row's name: stays when the rest scrolls, is cut where the screen is narrow. */
static void put_name(const reading *x, FILE *f, const char *name, const char *title, int category)
{
    fprintf(f, "<div class=name title=\"");
    put_text(f, title);
    if (category >= 0) fprintf(f, "\" style=\"color:hsl(%d 60%% var(--hl))", hue(x, category));
    fprintf(f, "\">");
    put_text(f, name);
    fprintf(f, "</div>");
}

static void put_heat_map(const reading *x, FILE *f)
{
    const int pitch = x->E * CELL + 8 > 80 ? x->E * CELL + 8 : 80,
              width = x->R * pitch; /* a layer's name needs 80 */
    int c, t, j, l;
    char name[64];
    fprintf(f,
        "<h2>Routes</h2><p>A row a task, a block a layer, a column an expert; the stronger the "
        "colour, the larger the expert's share. Hover tells the number.</p>"
        "<div class=scroll><table class=\"map heat\" aria-label=\"heat map of tasks and "
        "experts\"><thead><tr><th><td><svg width=%d height=18 viewBox=\"0 0 %d 18\">",
        width, width);
    for (l = 0; l < x->R; l++) {
        tmoe_routed_layer_name(x->model, l, name, sizeof name);
        fprintf(f, "<text x=%d y=13 class=head>%s</text>", l * pitch, name);
    }
    fprintf(f, "</svg></thead>");
    for (c = 0; c < x->category_count; c++) {
        fprintf(f, "<tbody%s><tr class=head><th>", x->size[c] <= WHOLE ? " class=whole" : "");
        put_name(x, f, x->categories[c], x->categories[c], c);
        for (t = 0; t < x->N; t++) {
            const char *task = tmoe_model_task(x->model, t)->name;
            if (x->category_of[t] != c) continue;
            fprintf(f, "<tr><th>");
            put_name(x, f, task, task, -1);
            fprintf(f, "<td><svg width=%d height=%d viewBox=\"0 0 %d %d\">", width, CELL, width,
                CELL);
            for (j = 0; j < x->C; j++) {
                const double r = (double)x->routes[t * x->C + j];
                column_name(x, j, name, sizeof name);
                fprintf(f, "<rect x=%d width=%d height=%d fill-opacity=%.2f><title>",
                    j / x->E * pitch + j % x->E * CELL, CELL - 1, CELL - 1, 0.04 + 0.96 * r);
                put_text(f, task);
                fprintf(f, "\n%s: %.3f</title></rect>", name, r);
            }
            fprintf(f, "</svg>");
        }
    }
    fprintf(f, "</table></div>");
}

/* In pieces of a few rows, between which a page can end: a join is drawn in each that it reaches
 * into. */
static void put_tree(const reading *x, FILE *f)
{
    double *px = (double *)room(2 * (size_t)x->N, sizeof(double)),
           *py = (double *)room(2 * (size_t)x->N, sizeof(double)), top = 1e-9;
    char title[512];
    int i, first;
    for (i = 0; i < x->N - 1; i++)
        if (x->joins[i].height > top) top = x->joins[i].height;
    for (i = 0; i < x->N; i++) py[x->order[i]] = i * CELL + CELL / 2.0;
    for (i = 0; i < x->N - 1; i++) {
        px[x->N + i] = 400.0 * x->joins[i].height / top;
        py[x->N + i] = (py[x->joins[i].a] + py[x->joins[i].b]) / 2.0;
    }
    fprintf(f,
        "<h2>Which tasks are routed alike</h2><p>Average-linkage clustering of routes by Euclidean "
        "distance; tasks that join on the left have nearly equal routes. "
        "Names have the colour of their category.</p><div class=scroll><table class=map "
        "aria-label=\"tree of tasks\">");
    for (first = 0; first < x->N; first += STRIP) {
        const int rows = x->N - first < STRIP ? x->N - first : STRIP;
        fprintf(f, "<tr><th>");
        for (i = first; i < first + rows; i++) {
            const tmoe_task *task = tmoe_model_task(x->model, x->order[i]);
            (void)snprintf(title, sizeof title, "%.250s: %.250s",
                x->categories[x->category_of[x->order[i]]], task->name);
            put_name(x, f, task->name, title, x->category_of[x->order[i]]);
        }
        fprintf(f, "<td><svg width=420 height=%d viewBox=\"0 %d 420 %d\">", rows * CELL,
            first * CELL, rows * CELL);
        for (i = 0; i < x->N - 1; i++) {
            const tmoe_join *j = &x->joins[i];
            if (py[j->b] < first * CELL || py[j->a] > (first + rows) * CELL) continue;
            fprintf(f,
                "<path d=\"M%.1f %.1fH%.1fV%.1fH%.1f\"><title>%d tasks, distance "
                "%.3f</title></path>",
                px[j->a], py[j->a], px[x->N + i], py[j->b], px[j->b], j->size, j->height);
        }
        fprintf(f, "</svg>");
    }
    fprintf(f, "</table></div>");
    free(px);
    free(py);
}

static void put_tables(const reading *x, FILE *f)
{
    char name[64];
    int c, i;
    fprintf(f,
        "<section class=whole><h2>Experts that go with a category</h2><p>Pearson correlation over "
        "tasks between an expert's share and belonging to the category; "
        "p is the chance that any expert correlates as much when the categories are shuffled among "
        "the tasks (1,000 times).</p><div class=scroll><table><thead><tr><th>category<th>tasks<th "
        "colspan=%d>the %d highest</thead>",
        TOP, TOP);
    for (c = 0; c < x->category_count; c++) {
        fprintf(f, "<tr><td>");
        put_text(f, x->categories[c]);
        fprintf(f, "<td class=n>%d", x->size[c]);
        for (i = 0; i < TOP; i++) {
            const int j = x->top[c][i];
            if (j < 0) {
                fprintf(f, "<td>undefined");
                continue;
            }
            column_name(x, j, name, sizeof name);
            fprintf(f, "<td class=\"expert%s\">%s<br><b>%+.2f</b> <span class=dim>p %.3f</span>",
                x->p[c * x->C + j] < 0.05 ? "" : " dim", name, x->r[c * x->C + j],
                x->p[c * x->C + j]);
        }
        fprintf(f, "</tr>");
    }
    fprintf(f, "</table></div></section>");
    if (!x->suite) return;
    fprintf(f,
        "<section class=whole><h2>Disabling experts</h2><p>Score lost when a category's %d most "
        "correlated experts are disabled (but a layer's last), on its own tasks and on all others, "
        "beside what as many random experts cost (mean of %d draws). %s.</p><div "
        "class=scroll><table><thead><tr><th>category<th>measured<th>score<th>own "
        "tasks<th>others<th>random: own<th>random: others</thead>",
        TOP, RANDOM_DRAWS, x->coverage);
    for (c = 0; c < x->category_count; c++) {
        fprintf(f, "<tr><td>");
        put_text(f, x->categories[c]);
        fprintf(f, "<td class=n>%d of %d", x->measured[c], x->size[c]);
        if (x->whole[c] == x->whole[c])
            fprintf(f, "<td class=n>%.3f", x->whole[c]);
        else
            fprintf(f, "<td class=\"n dim\">not measured");
        for (i = 0; i < 4; i++) {
            if (!(x->drop[c][i] == x->drop[c][i]))
                fprintf(f, "<td class=\"n dim\">not measured");
            else
                fprintf(f, "<td class=n%s>%.3f", i == 0 ? " style=\"font-weight:600\"" : "",
                    fabs(x->drop[c][i]) < 0.0005 ? 0.0 : x->drop[c][i]);
        }
        fprintf(f, "</tr>");
    }
    fprintf(f, "</table></div>");
    if (x->undefined)
        fprintf(f, "<p>%d undefined scores of all evaluations are left out of the means.</p>",
            x->undefined);
    fprintf(f, "</section>");
}

/* Curves of a log that multitask --log wrote: lines of label, step, loss; where the step falls
 * another seed's run begins. A curve that is full drops every second point and goes on with half as
 * many. */
enum { POINTS = 5000, CURVES = 4, HOVER = 100 };

typedef struct curve {
    double steps[POINTS], losses[POINTS], last;
    int run[POINTS], runs, n, every, lines;
    char label[40];
} curve;

static struct {
    curve of[CURVES];
    double most_step, most_loss;
    int count, left_out;
} curves;

static void read_log(const char *path)
{
    char name[40], line[256];
    double step, loss;
    curve *c;
    int i;
    FILE *log = fopen(path, "r");
    if (!log) die_file("routes", path);
    curves.most_step = 1.0;
    curves.most_loss = 1e-9;
    while (fgets(line, sizeof line, log)) {
        if (sscanf(line, "%39s %lf %lf", name, &step, &loss) != 3) continue;
        for (c = curves.of; c < curves.of + curves.count && strcmp(c->label, name); c++) {}
        if (!isfinite(step) || !isfinite(loss) || c == curves.of + CURVES) {
            curves.left_out++;
            continue;
        }
        if (c == curves.of + curves.count) {
            strcpy(c->label, name);
            c->every = c->runs = 1;
            c->last = step;
            curves.count++;
        }
        if (step > curves.most_step) curves.most_step = step;
        if (loss > curves.most_loss) curves.most_loss = loss;
        c->runs += step < c->last;
        c->last = step;
        if (c->lines++ % c->every) continue;
        if (c->n == POINTS) {
            c->n /= 2;
            c->every *= 2;
            for (i = 0; i < c->n; i++) {
                c->steps[i] = c->steps[2 * i];
                c->losses[i] = c->losses[2 * i];
                c->run[i] = c->run[2 * i];
            }
        }
        c->run[c->n] = c->runs;
        c->steps[c->n] = step;
        c->losses[c->n++] = loss;
    }
    fclose(log);
    if (!curves.count) die("routes", "the log has no lines of label, step and loss");
}

static void put_curves(FILE *f)
{
    int i, k;
    fprintf(f, "<section class=whole><h2>Training</h2><p>");
    for (k = 0; k < curves.count; k++) {
        const curve *c = &curves.of[k];
        fprintf(f, "<b style=\"color:hsl(%d 60%% var(--hl))\">", 140 * k);
        put_text(f, c->label);
        fprintf(f, "</b>");
        if (c->runs > 1) fprintf(f, ", %d runs", c->runs);
        if (c->every > 1) fprintf(f, ", one of %d points", c->every);
        fprintf(f, ". ");
    }
    if (curves.left_out)
        fprintf(f, "Lines left out, of no finite number or of further labels: %d. ",
            curves.left_out);
    fprintf(f,
        "Hover tells the numbers.</p><div class=scroll><svg width=640 height=212 viewBox=\"0 0 640 "
        "212\" role=img aria-label=\"training curves\"><path class=axis d=\"M40 10V190H630\"/>"
        "<text x=36 y=16 text-anchor=end>%.3g</text><text x=36 y=194 text-anchor=end>0</text><text "
        "x=630 y=206 text-anchor=end>%.0f steps</text><text x=44 y=9>loss</text>",
        curves.most_loss, curves.most_step);
    for (k = 0; k < 2 * curves.count;
         k++) { /* all lines, then on top of them the points that can be hovered */
        const curve *c = &curves.of[k % curves.count];
        if (k < curves.count)
            fprintf(f, "<path style=\"stroke:hsl(%d 60%% var(--hl))\" d=\"", 140 * k);
        for (i = 0; i < c->n; i++) {
            const double x = 40.0 + 590.0 * c->steps[i] / curves.most_step,
                         y = 190.0 - 175.0 * c->losses[i] / curves.most_loss;
            if (k < curves.count)
                fprintf(f, "%c%.1f %.1f", i == 0 || c->run[i] != c->run[i - 1] ? 'M' : 'L', x, y);
            else if (i % ((c->n + HOVER - 1) / HOVER) == 0) {
                fprintf(f, "<circle cx=%.1f cy=%.1f r=5><title>", x, y);
                put_text(f, c->label);
                if (c->runs > 1) fprintf(f, ", run %d", c->run[i]);
                fprintf(f, "\nstep %.0f: %.4g</title></circle>", c->steps[i], c->losses[i]);
            }
        }
        if (k < curves.count) fprintf(f, "\"/>");
    }
    fprintf(f, "</svg></div></section>");
}

/* Under a temporary name first: a good report of before is there until this one is whole. */
static void write_report(const reading *x, const char *path, const char *model_name)
{
    char temporary[1100];
    size_t active, all = tmoe_model_parameters(x->model, &active);
    FILE *f;
    (void)snprintf(temporary, sizeof temporary,
        strncmp(path, "/dev/", 5) ? "%.1000s.tmp" : "%.1000s", path);
    f = fopen(temporary, "w");
    if (!f) die_file("routes", temporary);
    fprintf(f,
        "<!DOCTYPE html><html lang=en><meta charset=utf-8><meta name=viewport "
        "content=\"width=device-width\"><title>Routes</title><style>"
        ":root{color-scheme:light "
        "dark;--bg:#fff;--fg:#1c2330;--dim:#66707f;--line:#d8dde5;--cell:#1750b8;--hl:36%%}"
        "@media(prefers-color-scheme:dark){:root{--bg:#12161d;--fg:#dde3ec;--dim:#8d98a8;--line:#"
        "2c3440;--cell:#7db0ff;--hl:68%%}}"
        "body{background:var(--bg);color:var(--fg);font:15px/1.5 "
        "system-ui,sans-serif;max-width:1100px;margin:0 auto;padding:16px}"
        "h1{font-size:24px;margin:8px 0;overflow-wrap:anywhere}h2{font-size:18px;margin:32px 0 "
        "4px}p{margin:4px 0 12px;color:var(--dim);max-width:70ch}"
        ".scroll{overflow-x:auto}svg{display:block}.heat svg{overflow:visible}svg text{font:11px "
        "system-ui,sans-serif;fill:var(--fg)}svg text.head{font-weight:600;font-size:12px}"
        "rect{fill:var(--cell)}rect:hover{stroke:var(--fg)}path{fill:none;stroke:var(--dim);stroke-"
        "width:1.2}.axis{stroke:var(--line)}circle{fill:transparent}circle:hover{fill:var(--fg)}"
        "table{border-collapse:collapse}th,td{text-align:left;padding:4px 14px 4px "
        "0;border-bottom:1px solid "
        "var(--line);vertical-align:top}.n{text-align:right;font-variant-numeric:tabular-nums}.dim{"
        "color:var(--dim)}"
        ".expert{white-space:nowrap}th:first-child,td:first-child{position:sticky;left:0;"
        "background:var(--bg)}.map td,.map th{padding:0;border:0}"
        ".name{max-width:34vw;padding-right:6px;overflow:hidden;text-overflow:ellipsis;white-space:"
        "nowrap;text-align:right;font:11px/%dpx system-ui,sans-serif}"
        ".head .name{text-align:left;font-weight:600;font-size:12px;line-height:20px}"
        "@media "
        "print{:root{--bg:#fff;--fg:#000;--dim:#555;--line:#ccc;--cell:#1750b8;--hl:30%%}.scroll{"
        "overflow:visible}svg{max-width:100%%;height:auto}.name{max-width:280px}"
        ".map,.map "
        "td{width:100%%}th:first-child,td:first-child{position:static}h2,h2+p,thead,tr.head{break-"
        "after:avoid}p,tr,.whole{break-inside:avoid}}"
        "</style><h1>Routes of ",
        CELL);
    put_text(f, strrchr(model_name, '/') ? strrchr(model_name, '/') + 1 : model_name);
    fprintf(f,
        "</h1><p>%d tasks, %d routed layers with %d experts each; %lu parameters, %lu of them "
        "active for a task.</p>",
        x->N, x->R, x->E, (unsigned long)all, (unsigned long)active);
    put_heat_map(x, f);
    put_tree(x, f);
    put_tables(x, f);
    if (curves.count) put_curves(f);
    fprintf(f, "</html>\n");
    file_written("routes", temporary, f, 1);
    if (strcmp(temporary, path) && rename(temporary, path) != 0) die_file("routes", path);
    printf("\nreport: %s\n", path);
}

int main(int argc, char **argv)
{
    const char *words[2] = { NULL, NULL }, *html = NULL, *log = NULL, *split = NULL;
    int threads = 0, limit = 8, n;
    static reading x;
    option options[] = { { "--html", "FILE", 's', NULL,
                             "writes the report: one file, opens in any browser" },
        { "--log", "FILE", 's', NULL, "training log of multitask --log, for the report's curves" },
        { "--split", "NAME|FILE", 's', NULL, "split of FOLDER (default: zero_shot if there)" },
        { "--limit", "N", 'i', NULL,
            "test lines of each task when experts are disabled (default 8; 0: all)" },
        { "--threads", "T", 'i', NULL, "threads (default: all processors)" },
        { NULL, NULL, 0, NULL, NULL } };
    void *values[] = { &html, &log, &split, &limit, &threads };
    for (n = 0; options[n].name; n++) options[n].value = values[n];
    n = options_read(argc, argv, usage, options, words, 2);
    if (n < 1) {
        options_help(usage, options);
        return 2;
    }
    if (log) read_log(log);
    must_be_writable(argv[0], html, html && strncmp(html, "/dev/", 5));
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
    if (html) write_report(&x, html, words[0]);
    free(x.routes);
    free(x.r);
    free(x.p);
    free(x.joins);
    free(x.scores);
    free(x.without);
    tmoe_model_destroy(x.model);
    tmoe_suite_destroy(x.suite);
    tmoe_ctx_destroy(x.ctx);
    return 0;
}
