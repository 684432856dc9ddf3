/* zeroshot: asks a saved mixture about a task that it knows by the instruction only: answers, the
 * route, the nearest tasks it was trained on.
 *   run time   milliseconds   read next   >>router, tmoe_route_unseen in taskmoe.h */
#define TMOE_THREADS
#define TASKMOE_IMPLEMENTATION
#include "common.h"

static const char usage[] =
    "usage: zeroshot MODEL \"INSTRUCTION\" [INPUT ...] [options]\n"
    "       zeroshot MODEL --task NAME [INPUT ...] [options]\n"
    "Answers each INPUT by the instruction, or as the task; without any, each line\n"
    "of standard input.";

static void print_route(const tmoe_model *model, const float *route)
{
    const int R = tmoe_routed_layers(model), E = tmoe_model_config(model)->experts;
    int l, e;
    char name[32];
    for (l = 0; l < R; l++) {
        tmoe_routed_layer_name(model, l, name, sizeof name);
        printf("  %-10s", name);
        for (e = 0; e < E; e++) printf("  %3.0f %%", 100.0 * (double)route[l * E + e]);
        printf("\n");
    }
}

/* What is asked: a known task by its name, or an unseen one by its instruction. */
typedef struct question {
    const char *program, *task, *instruction;
    const float *route; /* NULL for a dense model */
} question;

static void answer(tmoe_ctx *ctx, tmoe_model *model, const question *q, const char *input)
{
    char *text = NULL;
    const tmoe_result result = q->task
        ? tmoe_answer_many(model, q->task, q->route, &input, 1, &text)
        : tmoe_answer_many_unseen(model, q->instruction, q->route, &input, 1, &text);
    if (result != TMOE_OK) {
        fprintf(stderr, "%s: '%s': %s\n", q->program, input, tmoe_error_message(ctx));
        return;
    }
    printf("%s -> %s\n", input, text);
    fflush(stdout);
    tmoe_answers_free(model, &text, 1);
}

/* The route of the question, printed and kept; NULL for a dense model. */
static float *route_of(tmoe_ctx *ctx, tmoe_model *model, question *q, tmoe_zero_shot how)
{
    const int n = tmoe_routed_layers(model) * tmoe_model_config(model)->experts;
    const int known = q->task ? tmoe_model_find_task(model, q->task) : -1;
    float *route = NULL;
    if (q->task && known < 0) {
        /* the library's message names the nearest tasks */
        char none[2];
        (void)tmoe_answer(model, q->task, "", none, sizeof none);
        die(q->program, tmoe_error_message(ctx));
    }
    if (known >= 0) q->instruction = tmoe_model_task(model, known)->instruction;
    if (n == 0) return NULL;
    route = (float *)malloc(sizeof(float) * (size_t)n);
    if (!route) die(q->program, "out of memory");
    if ((known >= 0 ? tmoe_route_of_task(model, known, route)
                    : tmoe_route_unseen(model, q->instruction, how, route))
        != TMOE_OK)
        die(q->program, tmoe_error_message(ctx));
    printf("%s; its route (share of each expert):\n",
        known >= 0 ? "a task the model was trained on" : "an unseen task");
    print_route(model, route);
    return route;
}

/* Three tasks that the model was trained on, by how alike the instructions are (cosines). */
static void print_nearest(tmoe_model *model, const char *instruction)
{
    char text[1000] = "nearest seen tasks:";
    int tasks[3], i;
    float cosines[3];
    const int n = tmoe_model_nearest_tasks(model, instruction, 3, tasks, cosines);
    for (i = 0; i < n; i++)
        (void)snprintf(text + strlen(text), sizeof text - strlen(text), "%s %s (%.2f)",
            i ? "," : "", tmoe_model_task(model, tasks[i])->name, (double)cosines[i]);
    print_wrapped(text, 0);
}

int main(int argc, char **argv)
{
    static const char *const ways[] = { "router", "nearest", "average", NULL };
    const char *words[1002], *way = "router";
    int threads = 1, count, first, i;
    float *route;
    tmoe_ctx *ctx;
    tmoe_model *model;
    question q;
    option options[] = { { "--task", "NAME", 's', NULL,
                             "instead of an instruction: a task it was trained on" },
        { "--route", "HOW", 's', NULL, "router (default), nearest (seen tasks' routes), average" },
        { "--threads", "T", 'i', NULL, "threads (default 1)" }, { NULL, NULL, 0, NULL, NULL } };
    memset(&q, 0, sizeof q);
    q.program = argv[0];
    options[0].value = &q.task;
    options[1].value = &way;
    options[2].value = &threads;
    count = options_read(argc, argv, usage, options, words, 1002);
    first = q.task ? 1 : 2; /* of the inputs */
    if (count < first) {
        options_help(usage, options);
        return 2;
    }
    ctx = context_or_die(argv[0], threads);
    model = tmoe_model_load(ctx, words[0]);
    if (!model) die(argv[0], tmoe_error_message(ctx));
    if (!q.task) q.instruction = words[1];
    route = route_of(ctx, model, &q, (tmoe_zero_shot)choose(argv[0], "--route", way, ways));
    q.route = route;
    print_nearest(model, q.instruction);
    printf("\n");
    for (i = first; i < count; i++) answer(ctx, model, &q, words[i]);
    if (count == first) {
        char line[4096];
        while (fgets(line, sizeof line, stdin)) {
            line[strcspn(line, "\r\n")] = 0;
            if (line[0]) answer(ctx, model, &q, line);
        }
    }
    free(route);
    tmoe_model_destroy(model);
    tmoe_ctx_destroy(ctx);
    return 0;
}
