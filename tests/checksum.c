/* Thirty steps of training and some answers, in six ways, as one number each: what only typesets,
 * moves or renames must leave every one of them as it was.   usage: checksum (from the project's folder; `make checksum`) */
#define TASKMOE_IMPLEMENTATION
#define TMOE_THREADS
#include "taskmoe.h"

static uint64_t hash_of(uint64_t hash, const void *data, size_t bytes) /* FNV-1a */
{
    const unsigned char *p = (const unsigned char *)data;
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ p[i]) * UINT64_C(0x100000001b3);
    return hash;
}

typedef void settings_fn(tmoe_config *c, tmoe_training *t);

static void defaults(tmoe_config *c, tmoe_training *t)
{
    (void)c;
    (void)t;
}

/* What version 0.2.0 did by default, and the other models below do. */
static void classic(tmoe_config *c, tmoe_training *t)
{
    c->task_input = TMOE_TASK_TEXT;
    c->positions = TMOE_POSITION_LEARNED;
    c->vector_width = 64;
    c->word_pairs = 0;
    c->vector_length = 0.0f;
    t->optimiser = TMOE_OPTIMISER_ADAMW;
    t->lr_model = 2e-3f;
    t->tasks_per_step = t->examples_per_task = 8;
    t->vocabulary = 300;
}

static void dense(tmoe_config *c, tmoe_training *t)
{
    c->experts = 1;
    c->norm = TMOE_NORM_POST;
    t->dropout = 0.1f;
    t->label_smoothing = 0.1f;
}

static void outputs(tmoe_config *c, tmoe_training *t)
{
    c->mix = TMOE_MIX_OUTPUT;
    c->selection = TMOE_SELECT_STRAIGHT_THROUGH;
    c->router = TMOE_ROUTER_LSTM_LAYER_SPECIFIC;
    c->vectors = TMOE_VECTOR_LEARNED;
    c->exploration = 0.1f;
    t->alternate_steps = 3;
    t->load_balance = 0.01f;
}

static void feed_forward(tmoe_config *c, tmoe_training *t)
{
    c->expert_kind = TMOE_EXPERT_FFN;
    c->selection = TMOE_SELECT_GUMBEL;
    c->router = TMOE_ROUTER_TRANSFORMER;
    c->activation = TMOE_RELU;
    t->expert_regularisation = 1e-3f;
}

static void random_routes(tmoe_config *c, tmoe_training *t)
{
    c->selection = TMOE_SELECT_RANDOM_EXAMPLE;
    c->expert_places = TMOE_DECODER;
    c->scale_embedding = 1;
    t->tasks_per_step = 3;
}

static int sum(const char *name, settings_fn *settings, tmoe_isa isa)
{
    static const char *const inputs[3] = { "violin", "tiger", "bus" };
    tmoe_ctx_config cc;
    memset(&cc, 0, sizeof cc);
    cc.threads = 2;
    cc.isa = isa;
    tmoe_ctx *ctx = tmoe_ctx_create(&cc);
    if (!ctx) return 1;
    tmoe_config c = tmoe_config_default();
    tmoe_training t = tmoe_training_default();
    c.width = 48;
    c.encoder_ffn = c.decoder_ffn = 96;
    t.steps = 30;
    if (settings != defaults) classic(&c, &t);
    settings(&c, &t);
    tmoe_suite *suite = tmoe_suite_load(ctx, "examples/suite", "quickstart");
    tmoe_model *model = suite ? tmoe_train(ctx, suite, &c, &t) : NULL;
    char *answers[3] = { NULL, NULL, NULL };
    uint64_t weights = UINT64_C(0xcbf29ce484222325), texts = weights;
    if (model) {
        weights = hash_of(weights, model->theta, model->size * sizeof(float));
        tmoe_model_generation(model)->beams = 3;
        if (tmoe_answer_many(model, model->tasks[0].name, NULL, inputs, 3, answers) == TMOE_OK)
            for (int i = 0; i < 3; i++) texts = hash_of(texts, answers[i], strlen(answers[i]) + 1);
        printf("%-14s %-8s %016llx %016llx\n", name, tmoe_ctx_isa(ctx), (unsigned long long)weights,
            (unsigned long long)texts);
        tmoe_answers_free(model, answers, 3);
    }
    const int bad = tmoe_error(ctx) != TMOE_OK;
    if (bad) fprintf(stderr, "%s: %s\n", name, tmoe_error_message(ctx));
    tmoe_model_destroy(model);
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
    return bad;
}

int main(void)
{
    int bad = 0;
    for (int isa = TMOE_ISA_AUTO; isa <= TMOE_ISA_AVX2; isa++) {
        if (isa == TMOE_ISA_NEON) continue;
        bad |= sum("default", defaults, (tmoe_isa)isa);
        bad |= sum("classic", classic, (tmoe_isa)isa);
        bad |= sum("dense", dense, (tmoe_isa)isa);
        bad |= sum("outputs", outputs, (tmoe_isa)isa);
        bad |= sum("feed-forward", feed_forward, (tmoe_isa)isa);
        bad |= sum("random routes", random_routes, (tmoe_isa)isa);
    }
    return bad;
}
