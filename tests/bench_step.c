/* The training step: median milliseconds on the sizes that the peers' scripts measure, random text,
 *   no dropout. usage: bench_step THREADS S|M|B|T [EXPERTS dense|param|st|output [STEPS
 *   [adamw|muon|turns]]]
 * T is the model of the suite, 8 tasks of 8 examples. The optimiser's share is what follows the
 * all-reduce: the gradient's norm and the updates.
 * THREADS may be xN: N lanes simulated on one thread, to see what more cores than there are would
 * do. */
#define TASKMOE_IMPLEMENTATION
#define TMOE_THREADS
#include "taskmoe.h"

typedef struct size_of_model {
    char name;
    int D, H, F, layers, V, tasks, examples, source, target, steps;
} size_of_model;

static const size_of_model sizes[] = { { 'S', 128, 4, 512, 2, 512, 4, 32, 64, 16, 40 },
    { 'M', 256, 4, 1024, 3, 4096, 4, 16, 64, 16, 15 },
    { 'B', 768, 12, 3072, 6, 50265, 4, 4, 128, 32, 5 },
    { 'T', 96, 4, 384, 2, 259, 8, 64, 26, 12, 100 } };
#define LINES 64          /* of each task */
#define WAKE_SECONDS 1e-6 /* simulated: until the first lane is at work, ... */
#define LANE_SECONDS 1e-7 /* ... and for each lane, to be offered its part */
#define STEPS_MAX 1000

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int rising(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* ---- simulated lanes ----------------------------------------------------------------------------
 * The library hands its chunks to config.parallel_fn. Here one thread runs them one by one and
 * notes how long each took; a chunk goes to the lane that would be free first, and uses that lane's
 * scratch (in truth a lane takes its own part first, then others': the busiest has as much to do).
 * A region then takes as long as its busiest lane. What is not in regions is serial. Not seen:
 * memory that all cores share, and another core's cache. */
#define FUNCTIONS(X) \
    X(tmoei_product_tile_chunk) \
    X(tmoei_product_pack_chunk) \
    X(tmoei_product_few_chunk) \
    X(tmoei_attention_chunk) \
    X(tmoei_norm_chunk) \
    X(tmoei_update_chunk) \
    X(tmoei_scale_add_sweep) \
    X(tmoei_activation_sweep) \
    X(tmoei_merge_sweep) \
    X(tmoei_column_sums) \
    X(tmoei_norm_rows) \
    X(tmoei_norm_columns) \
    X(tmoei_embedding_columns) \
    X(tmoei_embedding_rows) \
    X(tmoei_rotary_rows) \
    X(tmoei_cross_entropy_rows) \
    X(tmoei_dropout_sweep)
typedef void any_fn(void);
#define ENTRY(f) { #f, (any_fn *)f, 0, 0.0, 0.0 },

static struct region {
    const char *name;
    any_fn *fn;
    int count;
    double work, span;
} regions[] = { FUNCTIONS(ENTRY){ "others", NULL, 0, 0.0, 0.0 } };

#define REGIONS (sizeof regions / sizeof *regions)
static double clock_seconds, spent,
    spans; /* cost of asking for the time; in regions: truly, and on many lanes */

static void simulate(void *user, void (*task)(void *arg, int lane), void *arg, int n)
{
    const double began = now();
    const tmoei_job *job = (const tmoei_job *)arg;
    any_fn *fn = (any_fn *)job->fn;
    double lanes[TMOEI_LANES_MAX], span = 0.0;
    struct region *r = regions;
    (void)user;
    (void)task;
    if (job->fn == tmoei_sweep_chunk) fn = (any_fn *)((const tmoei_sweep_job *)job->arg)->fn;
    while (r->fn && r->fn != fn) r++;
    memset(lanes, 0, sizeof lanes);
    for (int chunk = 0; chunk < job->chunks; chunk++) {
        int first = 0;
        for (int lane = 1; lane < n; lane++)
            if (lanes[lane] < lanes[first]) first = lane;
        const double start = now();
        job->fn(job->arg, chunk, first);
        const double took = now() - start - clock_seconds;
        lanes[first] += took;
        r->work += took;
        if (lanes[first] > span) span = lanes[first];
    }
    span += WAKE_SECONDS + LANE_SECONDS * n;
    r->count++;
    r->span += span;
    spans += span;
    spent += now() - began + clock_seconds;
}

/* What many lanes lose: the work of a region on all of them, and what it takes instead. */
static void print_regions(double serial, int lanes, int steps)
{
    printf("  %-28s %8s %10s %10s\n  %-28s %8s %10.3f %10.3f\n", "ms a step", "regions", "work",
        "simulated", "serial", "", 1e3 * serial, 1e3 * serial);
    for (size_t i = 0; i < REGIONS; i++)
        if (regions[i].count)
            printf("  %-28s %8d %10.3f %10.3f   (%.0f %% of the lanes at work)\n", regions[i].name,
                regions[i].count / steps, 1e3 * regions[i].work / steps,
                1e3 * regions[i].span / steps, 100.0 * regions[i].work / (regions[i].span * lanes));
}

/* Letters that fill `tokens` of a byte tokenizer between <s> and </s>. */
static char *random_text(int tokens, unsigned *seed)
{
    char *text = (char *)malloc((size_t)tokens);
    for (int i = 0; text && i < tokens - 2; i++) {
        *seed = *seed * 1664525u + 1013904223u;
        text[i] = (char)('!' + (int)(*seed >> 16) % 94);
    }
    if (text) text[tokens - 2] = 0;
    return text;
}

static int add_tasks(tmoe_suite *suite, const size_of_model *size, int tasks)
{
    unsigned seed = 1;
    for (int k = 0; k < tasks; k++) {
        char name[16], *in[LINES], *out[LINES];
        const char *inputs[LINES], *outputs[LINES];
        int good = 1;
        snprintf(name, sizeof name, "t%d", k);
        for (int i = 0; i < LINES; i++) {
            inputs[i] = in[i] = random_text(size->source, &seed);
            outputs[i] = out[i] = random_text(size->target, &seed);
            good = good && in[i] && out[i];
        }
        tmoe_task_lines lines;
        memset(&lines, 0, sizeof lines);
        lines.name = lines.instruction = name;
        lines.inputs = inputs;
        lines.outputs = outputs;
        lines.count = LINES;
        lines.test_count = 1;
        good = good && tmoe_suite_add(suite, &lines) == TMOE_OK;
        for (int i = 0; i < LINES; i++) {
            free(in[i]);
            free(out[i]);
        }
        if (!good) return 0;
    }
    return 1;
}

/* The all-reduce of one machine: notes when the optimiser begins. */
static void optimiser_begins(void *user, float *gradients, size_t count)
{
    (void)gradients;
    (void)count;
    *(double *)user = now();
}

static double median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, rising);
    return x[n / 2];
}

int main(int argc, char **argv)
{
    static double seconds[STEPS_MAX], optimiser[STEPS_MAX];
    double begun = 0.0;
    double serial = 0.0;
    const size_of_model *size = NULL;
    const int simulated = argc > 2 && argv[1][0] == 'x',
              threads = argc > 2 ? atoi(argv[1] + simulated) : 0, E = argc > 3 ? atoi(argv[3]) : 1;
    const char *how = argc > 4 ? argv[4] : "dense";
    for (size_t i = 0; argc > 2 && i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i].name == argv[2][0]) size = &sizes[i];
    if (!size || threads < 1) {
        fprintf(stderr,
            "usage: bench_step THREADS S|M|B|T [EXPERTS dense|param|st|output [STEPS "
            "[adamw|muon|turns]]]\n");
        return 2;
    }
    const char *moves = argc > 6 ? argv[6] : "adamw";
    const int tasks = E > 1 || size->tasks > 4 ? size->tasks : 1,
              steps = argc > 5 && atoi(argv[5]) < STEPS_MAX ? atoi(argv[5]) : size->steps;

    tmoe_ctx_config cc;
    memset(&cc, 0, sizeof cc);
    cc.threads = threads;
    if (simulated) {
        double began = now();
        for (int i = 0; i < 1000; i++) clock_seconds = (now() - began) / (i + 1);
        cc.parallel_fn = simulate;
    }
    tmoe_ctx *ctx = tmoe_ctx_create(&cc);
    if (!ctx) return 1;
    tmoe_config c = tmoe_config_default();
    c.width = size->D;
    c.encoder_heads = c.decoder_heads = size->H;
    c.encoder_ffn = c.decoder_ffn = size->F;
    c.vocabulary = size->V;
    c.encoder_layers = c.decoder_layers = size->layers;
    c.norm = TMOE_NORM_POST;
    c.positions = TMOE_POSITION_LEARNED;
    c.source_tokens = size->source;
    c.target_tokens = size->target;
    c.task_input = 0;
    c.experts = E;
    c.vectors = TMOE_VECTOR_LEARNED;
    c.vector_width = c.router_hidden = 64;
    c.mix = strcmp(how, "param") ? TMOE_MIX_OUTPUT : TMOE_MIX_PARAM;
    c.selection = strcmp(how, "st") ? TMOE_SELECT_SOFTMAX : TMOE_SELECT_STRAIGHT_THROUGH;
    tmoe_training t = tmoe_training_default();
    t.tasks_per_step = tasks;
    t.examples_per_task = size->examples / tasks;
    t.steps = steps + 2;
    t.dropout = t.label_smoothing = 0.0f;
    t.validation_lines = 0;
    t.evaluate_every_steps = 0;
    t.optimiser = strcmp(moves, "adamw") ? TMOE_OPTIMISER_MUON : TMOE_OPTIMISER_ADAMW;
    t.matrix_turns = strcmp(moves, "turns") == 0;
    t.all_reduce = optimiser_begins;
    t.all_reduce_user = &begun;

    tmoe_suite *suite = tmoe_suite_create(ctx);
    tmoe_tokenizer *tokenizer = tmoe_tokenizer_bytes(ctx);
    tmoe_model *model = suite && tokenizer && add_tasks(suite, size, tasks)
        ? tmoe_model_create(ctx, &c, tokenizer, tmoe_suite_task(suite, 0), tmoe_suite_count(suite))
        : NULL;
    tmoe_trainer *trainer = model ? tmoe_trainer_create(model, suite, &t) : NULL;
    for (int i = -2; trainer && i < steps; i++) { /* two to warm up */
        const double began = now(), spent_before = spent, spans_before = spans;
        if (tmoe_trainer_step(trainer, NULL) != TMOE_OK) break;
        const double ended = now(), took = ended - began;
        if (i >= 0) optimiser[i] = ended - begun;
        if (i >= 0) seconds[i] = took - (spent - spent_before) + (spans - spans_before);
        if (i >= 0)
            serial += took - (spent - spent_before);
        else
            for (size_t r = 0; r < REGIONS; r++)
                regions[r].count = 0, regions[r].work = regions[r].span = 0.0;
    }
    const int good = trainer && tmoe_error(ctx) == TMOE_OK;
    if (good) {
        const double step = median(seconds, steps), last = median(optimiser, steps);
        printf("%c T=%s E=%d %s %s: %.1f ms a step (min %.1f)", size->name, argv[1], E, how, moves,
            1e3 * step, 1e3 * seconds[0]);
        if (!simulated)
            printf(", %.2f of the optimiser (min %.2f, %.0f %%)", 1e3 * last, 1e3 * optimiser[0],
                100.0 * last / step);
        printf("\n");
        if (simulated) print_regions(serial / steps, threads, steps);
    } else
        fprintf(stderr, "%s\n", tmoe_error_message(ctx));
    tmoe_trainer_destroy(trainer);
    tmoe_model_destroy(model);
    tmoe_tokenizer_destroy(tokenizer);
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
    return !good;
}
