/* zeroshot: asks a saved mixture about a task that it knows by the instruction only: answers, the
 * route, the nearest tasks it was
 * trained on.   run time   milliseconds   read next   >>router, tmoe_route_unseen in taskmoe.h */
#define TMOE_THREADS
#define TASKMOE_IMPLEMENTATION
#include "common.h"

static const char usage[] =
    "usage: zeroshot MODEL \"INSTRUCTION\" [INPUT ...] [options]\n"
    "Answers each INPUT (without any: each line of standard input) by the instruction.";

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

static void answer(tmoe_model *model, const char *program, tmoe_ctx *ctx, const char *instruction,
    const float *route, const char *input)
{
    char *text = NULL;
    if (tmoe_answer_many(model, instruction, route, &input, 1, &text) != TMOE_OK) {
        fprintf(stderr, "%s: '%s': %s\n", program, input, tmoe_error_message(ctx));
        return;
    }
    printf("%s -> %s\n", input, text);
    fflush(stdout);
    tmoe_answers_free(model, &text, 1);
}

int main(int argc, char **argv)
{
    static const char *const ways[] = { "router", "nearest", "average", NULL };
    const char *words[1002], *way = "router";
    int threads = 1, count, i, n, known, tasks[3];
    float cosines[3], *route;
    tmoe_ctx *ctx;
    tmoe_model *model;
    option options[] = { { "--route", "HOW", 's', NULL,
                             "router (on the instruction), nearest (seen tasks' routes) or average "
                             "(default router)" },
        { "--threads", "T", 'i', NULL, "threads (default 1)" }, { NULL, NULL, 0, NULL, NULL } };
    options[0].value = &way;
    options[1].value = &threads;
    count = options_read(argc, argv, usage, options, words, 1002);
    if (count < 2) {
        options_help(usage, options);
        return 2;
    }
    ctx = context_or_die(argv[0], threads);
    model = tmoe_model_load(ctx, words[0]);
    if (!model) die(argv[0], tmoe_error_message(ctx));
    n = tmoe_routed_layers(model) * tmoe_model_config(model)->experts;
    route = (float *)malloc(sizeof(float) * (size_t)(n + 1));
    if (!route) die(argv[0], "out of memory");
    known = tmoe_model_find_task(model, words[1]);
    if ((known >= 0 ? tmoe_route_of_task(model, known, route)
                    : tmoe_route_unseen(model, words[1],
                        (tmoe_zero_shot)choose(argv[0], "--route", way, ways), route))
        != TMOE_OK)
        die(argv[0], tmoe_error_message(ctx));
    printf("%s\n",
        known >= 0 ? "a task the model was trained on; its route:"
                   : "an unseen task; its route (share of each expert):");
    print_route(model, route);
    n = tmoe_model_nearest_tasks(model, words[1], 3, tasks, cosines);
    printf("nearest seen tasks:");
    for (i = 0; i < n; i++)
        printf("%s %s (%.2f)", i ? "," : "", tmoe_model_task(model, tasks[i])->name,
            (double)cosines[i]);
    printf("\n\n");
    for (i = 2; i < count; i++)
        answer(model, argv[0], ctx, words[1], tmoe_routed_layers(model) ? route : NULL, words[i]);
    if (count == 2) {
        char line[4096];
        while (fgets(line, sizeof line, stdin)) {
            line[strcspn(line, "\r\n")] = 0;
            if (line[0])
                answer(model, argv[0], ctx, words[1], tmoe_routed_layers(model) ? route : NULL,
                    line);
        }
    }
    free(route);
    tmoe_model_destroy(model);
    tmoe_ctx_destroy(ctx);
    return 0;
}
