/* bart: Hugging Face's BART in plain C. Answers with a folder's weights, makes experts of its
 * layers and trains them on a folder of tasks, and cuts a task out of such a mixture as a folder
 * that `transformers` loads.
 *   run time   loading under a second; training as long as --steps says      read next   >>bart,
 *   >>inference in taskmoe.h */
#define TMOE_THREADS
#define TASKMOE_IMPLEMENTATION
#include "common.h"
#include <limits.h>

static const char usage[] =
    "usage: bart FOLDER \"text\" ...            answers each text\n"
    "       bart FOLDER --ids \"0 17 9 2\"      the same on token ids, without a tokenizer\n"
    "       bart FOLDER --tasks DIR --save FILE\n"
    "                                          makes experts of the layers, trains them\n"
    "       bart FILE \"text\" --task NAME      asks the trained mixture;\n"
    "                                          --instruction TEXT: about an unseen task\n"
    "       bart FILE DIR --export --task NAME  cuts a task out as a dense BART\n"
    "       bart FOLDER --save FILE            keeps it as one file, used where it lies\n"
    "FOLDER holds config.json, model.safetensors (or shards with an index), and\n"
    "tokenizer.json, or vocab.json and merges.txt.";

enum { not_given = INT_MIN };

typedef struct settings {
    const char *program, *ids, *task, *instruction, *tasks, *split, *save, *out, *early, *mix;
    int beams, longest, shortest, ngram, returned, experts, ffn, steps, threads, seed, groups,
        examples;
    float penalty, lr, noise;
} settings;

static progress_line progress;

static int is_file(const char *path) /* and not a folder */
{
    FILE *file = fopen(path, "rb");
    char byte;
    const int yes = file && fread(&byte, 1, 1, file) == 1;
    if (file) fclose(file);
    return yes;
}

static void megabytes(const char *name, size_t bytes)
{
    printf("  %-28s %10.1f MB\n", name, (double)bytes / 1e6);
}

/* One request: token ids in, answers out, as text where the model has a tokenizer. */
static void generate(tmoe_ctx *ctx, tmoe_model *model, const settings *s, const float *route,
    const int *ids, int count)
{
    const tmoe_tokenizer *tokenizer = tmoe_model_tokenizer(model);
    tmoe_generation how = *tmoe_model_generation(model);
    static const char *const earlies[] = { "false", "true", "never", NULL };
    const int most = tmoe_model_config(model)->target_tokens + 1;
    tmoe_request request;
    tmoe_generated out;
    int *tokens, counts[64], i, t;
    float scores[64];
    if (s->beams != not_given) how.beams = s->beams;
    if (s->longest != not_given) how.max_length = s->longest;
    if (s->shortest != not_given) how.min_length = s->shortest;
    if (s->ngram != not_given) how.no_repeat_ngram = s->ngram;
    if (s->early)
        how.early_stopping =
            (tmoe_early_stopping)choose(s->program, "--early-stopping", s->early, earlies);
    if (s->penalty < HUGE_VALF) how.length_penalty = s->penalty;
    if (s->returned != not_given) how.returned = s->returned;
    if (how.returned < 1 || how.returned > 64) die(s->program, "--return takes 1 to 64");
    tokens = (int *)malloc(sizeof *tokens * (size_t)(how.returned * most));
    if (!tokens) die(s->program, "out of memory");
    memset(&request, 0, sizeof request);
    request.task = -1;
    request.route = route;
    request.ids = ids;
    request.lengths = &count;
    request.count = 1;
    request.how = &how;
    out.tokens = tokens;
    out.token_counts = counts;
    out.scores = scores;
    if (tmoe_generate(model, &request, &out) != TMOE_OK) die(s->program, tmoe_error_message(ctx));
    if (how.max_length == 0 || how.max_length > most) how.max_length = most;
    for (i = 0; i < how.returned; i++) {
        if (how.beams > 1) printf("%8.4f  ", (double)scores[i]);
        if (s->ids)
            for (t = 0; t < counts[i]; t++)
                printf("%s%d", t ? " " : "", tokens[i * how.max_length + t]);
        else {
            size_t length = 0;
            char *text = NULL;
            if (tmoe_tokenizer_decode(tokenizer, tokens + i * how.max_length, (size_t)counts[i],
                    TMOE_TOKENIZER_SKIP_SPECIALS, NULL, 0, &length)
                    != TMOE_OK
                || !(text = (char *)malloc(length + 1)))
                die(s->program, tmoe_error_message(ctx));
            (void)tmoe_tokenizer_decode(tokenizer, tokens + i * how.max_length, (size_t)counts[i],
                TMOE_TOKENIZER_SKIP_SPECIALS, text, length + 1, &length);
            printf("%s", text);
            free(text);
        }
        printf("\n");
    }
    free(tokens);
}

/* Upcycles a dense model to experts, says what it will need, trains, saves. */
static void train(tmoe_ctx *ctx, tmoe_model *start, const settings *s)
{
    static const char *const mixes[] = { "param", "output", NULL };
    tmoe_suite *suite = tmoe_suite_load(ctx, s->tasks, s->split);
    tmoe_config c = *tmoe_model_config(start);
    tmoe_training t = tmoe_training_default();
    tmoe_task *tasks;
    tmoe_model *model;
    tmoe_trainer *trainer;
    tmoe_training_memory memory;
    size_t active, all;
    int i, n = 0;
    if (!suite) die(s->program, tmoe_error_message(ctx));
    tasks = (tmoe_task *)malloc(sizeof *tasks * (size_t)(tmoe_suite_count(suite) + 1));
    if (!tasks) die(s->program, "out of memory");
    for (i = 0; i < tmoe_suite_count(suite); i++)
        if (tmoe_suite_task(suite, i)->part == TMOE_PART_TRAIN)
            tasks[n++] = *tmoe_suite_task(suite, i);
    c.experts = s->experts;
    c.expert_kind = s->ffn ? TMOE_EXPERT_FFN : TMOE_EXPERT_LAYER;
    c.mix = (tmoe_mix)choose(s->program, "--mix", s->mix, mixes);
    c.expert_noise = s->noise;
    c.seed = t.seed = (uint64_t)s->seed;
    t.steps = s->steps;
    t.tasks_per_step = s->groups;
    t.examples_per_task = s->examples;
    t.optimiser = TMOE_OPTIMISER_ADAMW; /* whose moments fit weights that are trained already */
    t.lr_model = s->lr;
    t.label_smoothing = 0.1f; /* the paper's */
    t.label = "mixture";
    t.progress = show_progress;
    t.progress_user = &progress;
    progress.routes.experts = s->experts;
    model = tmoe_model_derive(ctx, start, NULL, &c, tasks, n);
    free(tasks);
    if (!model) die(s->program, tmoe_error_message(ctx));
    tmoe_model_destroy(start);
    trainer = tmoe_trainer_create(model, suite, &t);
    if (!trainer) die(s->program, tmoe_error_message(ctx));
    all = tmoe_model_parameters(model, &active);
    printf("%d tasks, %d experts a layer: %.1f M parameters, %.1f M used for a task; training "
           "needs\n",
        n, c.experts, (double)all / 1e6, (double)active / 1e6);
    (void)tmoe_trainer_bytes(trainer, &memory);
    megabytes("parameters", memory.parameters);
    megabytes("gradients", memory.gradients);
    megabytes("moments", memory.moments);
    megabytes("a step's activations", memory.step);
    megabytes("in all", memory.total);
    fflush(stdout);
    if (tmoe_trainer_run(trainer) != TMOE_OK) die(s->program, tmoe_error_message(ctx));
    (void)tmoe_ctx_bytes(ctx, &all);
    megabytes("at most in use", all);
    if (s->save) {
        if (tmoe_model_save(model, s->save) != TMOE_OK) die(s->program, tmoe_error_message(ctx));
        printf("saved to %s\n", s->save);
    }
    tmoe_trainer_destroy(trainer);
    tmoe_model_destroy(model);
    tmoe_suite_destroy(suite);
}

/* The index of the known task of --task; -1 where --instruction describes an unseen one. */
static int known_task(const tmoe_model *model, const settings *s)
{
    int t, known;
    if (!s->task) return -1;
    known = tmoe_model_find_task(model, s->task);
    if (known >= 0) return known;
    fprintf(stderr, "%s: no task is called \"%s\"; the tasks of the model are", s->program,
        s->task);
    for (t = 0; t < tmoe_model_task_count(model); t++)
        fprintf(stderr, " %s", tmoe_model_task(model, t)->name);
    fprintf(stderr, "\n(--instruction TEXT asks about another one)\n");
    exit(1);
}

/* The route of a mixture, for --task or --instruction; NULL for a dense model. */
static float *route_of(tmoe_ctx *ctx, tmoe_model *model, const settings *s)
{
    const int width = tmoe_routed_layers(model) * tmoe_model_config(model)->experts,
              known = known_task(model, s);
    float *route;
    if (tmoe_routed_layers(model) == 0) return NULL;
    if (known < 0 && !s->instruction) die(s->program, "a mixture needs --task or --instruction");
    route = (float *)malloc(sizeof *route * (size_t)(width + 1));
    if (!route) die(s->program, "out of memory");
    if ((known >= 0 ? tmoe_route_of_task(model, known, route)
                    : tmoe_route_unseen(model, s->instruction, TMOE_ZERO_SHOT_ROUTER, route))
        != TMOE_OK)
        die(s->program, tmoe_error_message(ctx));
    return route;
}

static void answer(tmoe_ctx *ctx, tmoe_model *model, const settings *s, const char *const *texts,
    int count)
{
    const tmoe_tokenizer *tokenizer = tmoe_model_tokenizer(model);
    const tmoe_config *c = tmoe_model_config(model);
    const int known = known_task(model, s);
    const char *instruction =
        known >= 0 ? tmoe_model_task(model, known)->instruction : s->instruction;
    float *route = route_of(ctx, model, s);
    int *ids = (int *)malloc(sizeof *ids * (size_t)c->source_tokens), i;
    if (!ids) die(s->program, "out of memory");
    if (s->ids) {
        const char *at = s->ids;
        char *end;
        int n = 0;
        for (;; at = end) {
            const long id = strtol(at, &end, 10);
            if (end == at) break;
            if (n == c->source_tokens) die(s->program, "more ids than the model takes");
            if (id < 0 || id >= c->vocabulary) die(s->program, "an id is not of this vocabulary");
            ids[n++] = (int)id;
        }
        if (end[strspn(end, " \t")]) die(s->program, "--ids takes numbers with spaces between");
        generate(ctx, model, s, route, ids, n);
    } else if (!tokenizer)
        die(s->program, "the folder has no tokenizer: use --ids");
    for (i = 0; !s->ids && i < count; i++) {
        const size_t a = instruction ? strlen(instruction) + 1 : 0, b = strlen(texts[i]);
        char *text = (char *)malloc(a + b + 1);
        size_t n = 0;
        if (!text) die(s->program, "out of memory");
        if (a) {
            memcpy(text, instruction, a - 1);
            text[a - 1] = '\n';
        } /* as in training */
        memcpy(text + a, texts[i], b + 1);
        if (tmoe_tokenizer_encode(tokenizer, text, a + b,
                TMOE_TOKENIZER_SPECIALS | TMOE_TOKENIZER_FIND_SPECIALS, ids,
                (size_t)c->source_tokens, &n)
            != TMOE_OK)
            die(s->program, tmoe_error_message(ctx));
        if (n > (size_t)c->source_tokens)
            die(s->program, "the text has more tokens than the model takes");
        generate(ctx, model, s, route, ids, (int)n);
        free(text);
    }
    free(ids);
    free(route);
}

int main(int argc, char **argv)
{
    settings s;
    const char *words[1001];
    int export_it = 0;
    tmoe_ctx *ctx;
    tmoe_model *model;
    double began = seconds_now();
    int count, i;
    option options[] = { { "--ids", "\"N N ...\"", 's', NULL, "token ids in, token ids out" },
        { "--beams", "N", 'n', NULL, "beam search (default: the folder's generation settings)" },
        { "--max", "N", 'i', NULL, "longest answer in tokens, start token included" },
        { "--min", "N", 'i', NULL, "shortest answer in tokens" },
        { "--no-repeat", "N", 'i', NULL, "no N tokens in a row twice" },
        { "--length-penalty", "X", 'f', NULL, "scores are divided by length to this power" },
        { "--early-stopping", "WHEN", 's', NULL, "false, true or never" },
        { "--return", "N", 'n', NULL,
            "print the N best of the beams (default: the folder's setting, or 1)" },
        { "--task", "NAME", 's', NULL, "of a mixture: a task it was trained on" },
        { "--instruction", "TEXT", 's', NULL, "what an unseen task is about" },
        { "--tasks", "DIR", 's', NULL, "train on this folder of tasks" },
        { "--split", "NAME|FILE", 's', NULL, "splits/NAME.json of that folder, or a file" },
        { "--experts", "E", 'n', NULL, "experts a layer (default 3)" },
        { "--ffn", NULL, 'b', NULL,
            "experts are the feed-forward networks only, not whole layers" },
        { "--mix", "param|output", 's', NULL, "average parameters or outputs (default param)" },
        { "--noise", "X", 'f', NULL,
            "size of the noise between the copies, relative to the weights (default 0.01)" },
        { "--steps", "N", 'n', NULL, "optimiser steps (default 1000)" },
        { "--tasks-per-step", "N", 'n', NULL, "groups in a step, of one task each (default 4)" },
        { "--examples", "N", 'n', NULL, "examples of each (default 4)" },
        { "--lr", "X", 'f', NULL, "learning rate (default 1e-5, the paper's)" },
        { "--seed", "S", 'i', NULL, "of batches and noise (default 1)" },
        { "--save", "FILE", 's', NULL, "where the trained mixture goes" },
        { "--export", NULL, 'b', NULL, "cut the task out into the folder that is named last" },
        { "--threads", "T", 'i', NULL, "threads (default: all processors)" },
        { NULL, NULL, 0, NULL, NULL } };
    void *values[24];
    memset(&s, 0, sizeof s);
    s.program = argv[0];
    s.mix = "param";
    s.beams = s.longest = s.shortest = s.ngram = s.returned = not_given;
    s.experts = 3;
    s.steps = 1000;
    s.seed = 1;
    s.groups = s.examples = 4;
    s.penalty = HUGE_VALF;
    s.lr = 1e-5f;
    s.noise = 0.01f;
    values[0] = &s.ids;
    values[1] = &s.beams;
    values[2] = &s.longest;
    values[3] = &s.shortest;
    values[4] = &s.ngram;
    values[5] = &s.penalty;
    values[6] = &s.early;
    values[7] = &s.returned;
    values[8] = &s.task;
    values[9] = &s.instruction;
    values[10] = &s.tasks;
    values[11] = &s.split;
    values[12] = &s.experts;
    values[13] = &s.ffn;
    values[14] = &s.mix;
    values[15] = &s.noise;
    values[16] = &s.steps;
    values[17] = &s.groups;
    values[18] = &s.examples;
    values[19] = &s.lr;
    values[20] = &s.seed;
    values[21] = &s.save;
    values[22] = &export_it;
    values[23] = &s.threads;
    for (i = 0; options[i].name; i++) options[i].value = values[i];
    count = options_read(argc, argv, usage, options, words, 1001);
    if (count < 1 || (s.ids && count > 1) || (s.tasks && !s.save)
        || (count < 2 && !s.ids && !s.tasks && !s.save) || (export_it && count != 2)
        || (s.task && s.instruction)) {
        options_help(usage, options);
        return 2;
    }
    progress.out = stderr;
    must_be_writable(argv[0], s.save, 1);
    ctx = context_or_die(argv[0], s.threads);
    model = is_file(words[0]) ? tmoe_model_load(ctx, words[0]) : tmoe_bart_load(ctx, words[0]);
    if (!model) die(argv[0], tmoe_error_message(ctx));
    fprintf(stderr, "%s: %.1f M parameters in %.2f s\n", words[0],
        (double)tmoe_model_parameters(model, NULL) / 1e6, seconds_now() - began);
    if (s.tasks) {
        train(ctx, model, &s);
        model = NULL;
    } else if (export_it) {
        float *route = route_of(ctx, model, &s);
        if (tmoe_export_dense(model, NULL, route, words[1]) != TMOE_OK)
            die(argv[0], tmoe_error_message(ctx));
        free(route);
        printf("%s: the dense BART that does the task\n", words[1]);
    } else if (s.save) {
        if (tmoe_model_save(model, s.save) != TMOE_OK) die(argv[0], tmoe_error_message(ctx));
        printf("saved to %s\n", s.save);
    } else
        answer(ctx, model, &s, words + 1, count - 1);
    tmoe_model_destroy(model);
    tmoe_ctx_destroy(ctx);
    return 0;
}
