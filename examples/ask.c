/* ask: asks a saved model: a task that it was trained on, or one that it only knows by the
 * instruction. Shows how sure it is, the route, and the nearest tasks that it has seen.
 *   run time   milliseconds an answer
 *   read next  >>router, tmoe_route_unseen, tmoe_answer_best in taskmoe.h */
#define TMOE_THREADS
#define TASKMOE_IMPLEMENTATION
#include "common.h"

#define WORDS_MAX 1002   /* of the command line */
#define BEST_MAX 8       /* answers that are shown */
#define BEAMS 4          /* of the search for them, at least */
#define LABEL_COLUMNS 20 /* left of a route */
#define NEAREST 3        /* tasks that are named */

typedef struct settings {
    const char *program, *model, *task, *instruction, *how;
    int best, tsv, threads;
} settings;

/* What is asked about now, and how. */
typedef struct session {
    const settings *settings;
    tmoe_ctx *ctx;
    tmoe_model *model;
    style style;
    int talks; /* a person reads along: prompts, routes, probabilities in words */
    const char *task, *instruction; /* one of them; both NULL at first */
    float *route;                   /* NULL for a dense model */
    char **lines;                   /* asked so far, and instructions */
    int line_count, failures;
} session;

/* ---- lines ----------------------------------------------------------------------------------- */

/* The next line of a file, of any length, without its end; NULL at the end of the file. The
 * session keeps it. */
static char *read_line(session *s, FILE *file)
{
    size_t size = 0, length = 0;
    char *text = NULL, **lines;
    int c;
    while ((c = fgetc(file)) != EOF && c != '\n') {
        if (length + 1 >= size) {
            size = size ? 2 * size : 128;
            text = (char *)realloc(text, size);
            if (!text) die(s->settings->program, "out of memory");
        }
        text[length++] = (char)c;
    }
    if (c == EOF && length == 0) return NULL;
    if (length > 0 && text[length - 1] == '\r') length--;
    if (!text) text = (char *)malloc(1);
    lines = (char **)realloc((void *)s->lines, sizeof *lines * (size_t)(s->line_count + 1));
    if (!text || !lines) die(s->settings->program, "out of memory");
    text[length] = 0;
    s->lines = lines;
    s->lines[s->line_count++] = text;
    return text;
}

/* ---- the task -------------------------------------------------------------------------------- */

/* Three tasks that the model was trained on, by how alike the instructions are (cosines). */
static void print_nearest(const session *s, const char *instruction)
{
    char text[1000] = "nearest seen tasks:";
    int tasks[NEAREST], i;
    float cosines[NEAREST];
    const int n = tmoe_model_nearest_tasks(s->model, instruction, NEAREST, tasks, cosines);
    for (i = 0; i < n; i++)
        (void)snprintf(text + strlen(text), sizeof text - strlen(text), "%s %s (%.2f)",
            i ? "," : "", tmoe_model_task(s->model, tasks[i])->name, (double)cosines[i]);
    print_wrapped(text, 0);
}

/* The route: a block a layer, a cell an expert. */
static void print_route(const session *s)
{
    const int known = s->task ? tmoe_model_find_task(s->model, s->task) : -1;
    if (!s->task && !s->instruction) {
        printf("nothing is asked yet\n");
        return;
    }
    if (!s->route) {
        printf("a dense model: it has no routes\n");
        return;
    }
    print_layer_names(s->model, LABEL_COLUMNS);
    printf("%s", s->style.bold);
    print_route_row(s->model, s->route, known >= 0 ? "route" : "route (unseen)", LABEL_COLUMNS);
    printf("%s", s->style.plain);
}

/* Takes a known task, or an instruction; returns whether it can be asked. */
static int take_task(session *s, const char *task, const char *instruction)
{
    static const char *const ways[] = { "router", "nearest", "average", NULL };
    const int known = task ? tmoe_model_find_task(s->model, task) : -1;
    const tmoe_zero_shot how =
        (tmoe_zero_shot)choose(s->settings->program, "--route", s->settings->how, ways);
    tmoe_result result = TMOE_OK;
    if (task && known < 0) {
        char none[2];
        (void)tmoe_answer(s->model, task, "", none,
            sizeof none); /* its message names the nearest */
        fprintf(stderr, "%s: %s\n", s->settings->program, tmoe_error_message(s->ctx));
        return 0;
    }
    if (s->route && known >= 0) result = tmoe_route_of_task(s->model, known, s->route);
    if (s->route && known < 0) result = tmoe_route_unseen(s->model, instruction, how, s->route);
    if (result != TMOE_OK) {
        fprintf(stderr, "%s: %s\n", s->settings->program, tmoe_error_message(s->ctx));
        return 0;
    }
    s->task = task ? tmoe_model_task(s->model, known)->name : NULL;
    s->instruction = task ? NULL : instruction;
    if (!s->talks) return 1;
    printf("%s%s%s: %s\n", s->style.bold, task ? s->task : "an unseen task", s->style.plain,
        task ? tmoe_model_task(s->model, known)->instruction : instruction);
    if (s->route) print_route(s);
    print_nearest(s, task ? tmoe_model_task(s->model, known)->instruction : instruction);
    printf("\n");
    return 1;
}

/* ---- answers --------------------------------------------------------------------------------- */

/* The best answers with their probabilities: in words, or as columns. */
static void print_answers(const session *s, const char *input, char **answers,
    const float *log_likelihoods, int n)
{
    int i;
    if (s->settings->tsv) {
        printf("%s", input);
        for (i = 0; i < n; i++) printf("\t%s\t%.4f", answers[i], exp((double)log_likelihoods[i]));
        printf("\n");
    } else if (!s->talks) {
        printf("%s\n", answers[0]);
    } else {
        printf("%s -> %s%s%s  %.0f %%", input, s->style.bold, answers[0], s->style.plain,
            100.0 * exp((double)log_likelihoods[0]));
        for (i = 1; i < n; i++)
            printf("%s%s %.0f %%", i == 1 ? "   or " : ", ", answers[i],
                100.0 * exp((double)log_likelihoods[i]));
        printf("\n");
    }
    fflush(stdout);
}

static void ask(session *s, const char *input)
{
    char *answers[BEAMS + BEST_MAX] = { NULL };
    float log_likelihoods[BEAMS + BEST_MAX];
    const int found = s->settings->best > BEAMS ? s->settings->best : BEAMS;
    if (!s->task && !s->instruction) {
        fprintf(stderr, "%s: which task? :task NAME, or an instruction: :do TEXT\n",
            s->settings->program);
        s->failures++;
        return;
    }
    if (tmoe_answer_best(s->model, s->task, s->instruction, s->route, input, found, answers,
            log_likelihoods)
        != TMOE_OK) {
        fprintf(stderr, "%s: '%s': %s\n", s->settings->program, input, tmoe_error_message(s->ctx));
        s->failures++;
        return;
    }
    print_answers(s, input, answers, log_likelihoods, s->settings->best);
    tmoe_answers_free(s->model, answers, found);
}

/* ---- a session ------------------------------------------------------------------------------- */

static void print_tasks(const session *s)
{
    char text[8192] = "";
    int t;
    for (t = 0; t < tmoe_model_task_count(s->model); t++) {
        const char *name = tmoe_model_task(s->model, t)->name;
        if (strlen(text) + strlen(name) + 3 > sizeof text) {
            print_wrapped(text, 2);
            text[0] = 0;
        }
        (void)snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s", text[0] ? "  " : "",
            name);
    }
    if (text[0]) print_wrapped(text, 2);
}

static void print_help(void)
{
    printf("  TEXT             an input for the task\n"
           "  :task NAME       a task that the model was trained on\n"
           "  :do INSTRUCTION  an unseen task\n"
           "  :tasks           the names of the tasks\n"
           "  :route           the route of the task\n"
           "  :history, :N     what was typed; line N of it again\n"
           "  :quit            or the end of the input\n");
}

static void print_history(const session *s)
{
    int i;
    for (i = 0; i < s->line_count; i++) printf("%4d  %s\n", i + 1, s->lines[i]);
}

/* Carries out a line; 0: it was :quit. */
static int take_line(session *s, const char *line)
{
    char *end;
    const long number = line[0] == ':' ? strtol(line + 1, &end, 10) : 0;
    if (number > 0 && !*end && number < s->line_count && s->lines[number - 1][0] != ':')
        return take_line(s, s->lines[number - 1]);
    if (line[0] == 0) return 1;
    if (line[0] != ':')
        ask(s, line);
    else if (!strncmp(line, ":task ", 6))
        s->failures += !take_task(s, line + 6, NULL);
    else if (!strncmp(line, ":do ", 4))
        s->failures += !take_task(s, NULL, line + 4);
    else if (!strcmp(line, ":tasks"))
        print_tasks(s);
    else if (!strcmp(line, ":route"))
        print_route(s);
    else if (!strcmp(line, ":history"))
        print_history(s);
    else if (!strcmp(line, ":help"))
        print_help();
    else if (!strcmp(line, ":quit"))
        return 0;
    else {
        fprintf(stderr, "%s: '%s' is no command; :help lists them\n", s->settings->program, line);
        s->failures++;
    }
    return 1;
}

/* Standard input, line by line. On a terminal the system edits the lines. */
static void converse(session *s)
{
    const int prompt = s->talks && is_terminal(stdin);
    const char *line;
    if (prompt)
        printf("%d tasks are known; :help lists what can be typed\n",
            tmoe_model_task_count(s->model));
    for (;;) {
        if (prompt) {
            printf("> ");
            fflush(stdout);
        }
        line = read_line(s, stdin);
        if (!line || !take_line(s, line)) break;
    }
    if (prompt && !line) printf("\n");
}

static void read_settings(int argc, char **argv, settings *s, const char **words, int *count)
{
    static const char usage[] =
        "usage: ask MODEL [\"INSTRUCTION\" [INPUT ...]] [options]\n"
        "       ask MODEL --task NAME [INPUT ...] [options]\n"
        "Answers each INPUT as the task, or by the instruction of an unseen one. Without\n"
        "an INPUT, each line of standard input; on a terminal, :help tells what else can\n"
        "be typed.";
    const option options[] = {
        { "--task", "NAME", 's', &s->task, "a task that the model was trained on" },
        { "--route", "HOW", 's', &s->how, "router (default), nearest (tasks' routes) or average" },
        { "--best", "N", 'n', &s->best, "answers that are shown, up to 8 (default 2)" },
        { "--tsv", NULL, 'b', &s->tsv, "columns: input; answer and probability, N times" },
        { "--threads", "T", 'i', &s->threads, "threads (default 1)" }, { NULL, NULL, 0, NULL, NULL }
    };
    memset(s, 0, sizeof *s);
    s->program = argv[0];
    s->how = "router";
    s->best = 2;
    s->threads = 1;
    *count = options_read(argc, argv, usage, options, words, WORDS_MAX);
    if (*count < 1) {
        options_help(usage, options);
        exit(2);
    }
    if (s->best > BEST_MAX) die(argv[0], "--best takes 1 to 8");
}

int main(int argc, char **argv)
{
    const char *words[WORDS_MAX];
    static settings settings;
    session s;
    int count, first, i, routed;
    memset(&s, 0, sizeof s);
    read_settings(argc, argv, &settings, words, &count);
    s.settings = &settings;
    s.ctx = context_or_die(argv[0], settings.threads);
    s.model = tmoe_model_load(s.ctx, words[0]);
    if (!s.model) die(argv[0], tmoe_error_message(s.ctx));
    s.style = style_of(stdout);
    first = settings.task || count == 1 ? 1 : 2; /* of the inputs */
    s.talks = !settings.tsv && (count > first || is_terminal(stdout));
    routed = tmoe_routed_layers(s.model) * tmoe_model_config(s.model)->experts;
    if (routed) s.route = (float *)malloc(sizeof(float) * (size_t)routed);
    if (routed && !s.route) die(argv[0], "out of memory");

    if (settings.task && !take_task(&s, settings.task, NULL)) return 1;
    if (first == 2 && !take_task(&s, NULL, words[1])) return 1;
    for (i = first; i < count; i++) ask(&s, words[i]);
    if (count == first) converse(&s);

    for (i = 0; i < s.line_count; i++) free(s.lines[i]);
    free((void *)s.lines);
    free(s.route);
    tmoe_model_destroy(s.model);
    tmoe_ctx_destroy(s.ctx);
    return s.failures > 0;
}
