/* A suite of three small tasks, a model and a trainer for it, memory full of NaN: what tests of the
 * model begin with. */
#ifndef TMOE_SMALL_H
#define TMOE_SMALL_H
static const char *const words[12] = { "apple", "bear", "cloud", "door", "eagle", "fish", "gate",
    "horse", "ink", "jar", "king", "lamp" };
static const char *const uppers[12] = { "APPLE", "BEAR", "CLOUD", "DOOR", "EAGLE", "FISH", "GATE",
    "HORSE", "INK", "JAR", "KING", "LAMP" };
static const char *const firsts[12] = { "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k",
    "l" };
static const char *const twice[12] = { "apple apple", "bear bear", "cloud cloud", "door door",
    "eagle eagle", "fish fish", "gate gate", "horse horse", "ink ink", "jar jar", "king king",
    "lamp lamp" };

static tmoe_result add_task(tmoe_suite *suite, const char *name, const char *category,
    const char *instruction, tmoe_part part, const char *const *inputs, const char *const *outputs,
    int count, int test_count)
{
    tmoe_task_lines lines;
    memset(&lines, 0, sizeof lines);
    lines.name = name;
    lines.category = category;
    lines.instruction = instruction;
    lines.part = part;
    lines.inputs = inputs;
    lines.outputs = outputs;
    lines.count = count;
    lines.test_count = test_count;
    return tmoe_suite_add(suite, &lines);
}

static tmoe_suite *small_suite(tmoe_ctx *ctx)
{
    tmoe_suite *suite = tmoe_suite_create(ctx);
    if (suite
        && add_task(suite, "upper", "letters", "Write it in upper case.", TMOE_PART_TRAIN, words,
               uppers, 12, 2)
            == TMOE_OK
        && add_task(suite, "first", "letters", "Give the first letter.", TMOE_PART_TRAIN, words,
               firsts, 12, 2)
            == TMOE_OK
        && add_task(suite, "twice", "words", "Write it twice.", TMOE_PART_TRAIN, words, twice, 12,
               2)
            == TMOE_OK)
        return suite;
    tmoe_suite_destroy(suite);
    return NULL;
}

static tmoe_config small_config(void)
{
    tmoe_config c = tmoe_config_default();
    c.width = 16;
    c.encoder_heads = c.decoder_heads = 2;
    c.encoder_ffn = c.decoder_ffn = 24;
    c.encoder_layers = c.decoder_layers = 1;
    c.experts = 3;
    c.vector_width = 16;
    c.router_hidden = 8;
    c.source_tokens = 40;
    c.target_tokens = 16;
    return c;
}

static tmoe_training small_training(void)
{
    tmoe_training t = tmoe_training_default();
    t.steps = 8;
    t.tasks_per_step = 3;
    t.examples_per_task = 4;
    t.router_dropout = 0.25f;
    t.vocabulary = 0;
    return t;
}

/* The paper's model and optimiser, for tests that compute its steps by hand: the encoder reads the
 * instruction, positions are learned, AdamW moves everything. */
static inline tmoe_config paper_config(void)
{
    tmoe_config c = small_config();
    c.task_input = TMOE_TASK_TEXT;
    c.positions = TMOE_POSITION_LEARNED;
    c.word_pairs = 0;
    c.vector_length = 0.0f;
    return c;
}

static inline tmoe_training paper_training(void)
{
    tmoe_training t = small_training();
    t.optimiser = TMOE_OPTIMISER_ADAMW;
    return t;
}

/* Memory comes full of NaN: reading what was not written shows. */
static void *poisoned(size_t size, void *user)
{
    void *p = malloc(size);
    (void)user;
    return p ? memset(p, 0xff, size) : NULL;
}

static void poisoned_free(void *p, size_t size, void *user)
{
    (void)size;
    (void)user;
    free(p);
}

static tmoe_ctx *context(int threads)
{
    tmoe_ctx_config config;
    memset(&config, 0, sizeof config);
    config.threads = threads;
    config.alloc_fn = poisoned;
    config.free_fn = poisoned_free;
    return tmoe_ctx_create(&config);
}

typedef struct set {
    tmoe_ctx *ctx;
    tmoe_suite *suite;
    tmoe_model *model;
    tmoe_trainer *trainer;
} set;

static set make(int threads, const tmoe_config *config, const tmoe_training *training)
{
    set s;
    tmoe_tokenizer *tokenizer;
    s.ctx = context(threads);
    s.suite = small_suite(s.ctx);
    tokenizer = tmoe_tokenizer_bytes(s.ctx);
    s.model = tmoe_model_create(s.ctx, config, tokenizer, tmoe_suite_task(s.suite, 0),
        tmoe_suite_count(s.suite));
    s.trainer = s.model ? tmoe_trainer_create(s.model, s.suite, training) : NULL;
    if (!s.trainer) {
        printf("make: %s\n", tmoe_error_message(s.ctx));
        test_failures++;
    }
    tmoe_tokenizer_destroy(tokenizer);
    return s;
}

static void unmake(set *s)
{
    tmoe_trainer_destroy(s->trainer);
    tmoe_model_destroy(s->model);
    tmoe_suite_destroy(s->suite);
    tmoe_ctx_destroy(s->ctx);
}

/* Logits of a model for the first training lines of task 0 under a given route, or (NULL) a task's.
 * */
static float *logits_of_task(set *s, int task, const float *route, size_t *count)
{
    static const int chosen[3] = { 0, 1, 2 };
    const tmoei_guide guide = { task, route, NULL };
    tmoei_pass pass;
    tmoe_tensor *h;
    float *copy = NULL;
    CHECK(tmoei_batch_fill(s->trainer, chosen, 3, 0) == TMOE_OK);
    CHECK(tmoei_evaluation_pass(s->model, &guide, s->trainer->group_tape, &pass) == TMOE_OK);
    h = tmoei_encode(&pass, &s->trainer->batch.source);
    h = tmoei_head(&pass,
        tmoei_decode(&pass, &s->trainer->batch.target, h, &s->trainer->batch.source));
    CHECK(h != NULL);
    if (h) {
        *count = tmoei_elements(h);
        copy = (float *)malloc(*count * sizeof(float));
        memcpy(copy, h->x, *count * sizeof(float));
    }
    tmoe_tape_record(s->trainer->group_tape, 1);
    return copy;
}

static inline float *logits_of(set *s, const float *route, size_t *count)
{
    return logits_of_task(s, 0, route, count);
}
#endif
