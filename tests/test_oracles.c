/* Numbers computed by other people's code: the paper's reference implementation and its metrics.
 * They lie in TMOE_ORACLES (default ../shared/oracles), not in this repository; where they are
 * absent the tests say so and are skipped. */
#define TASKMOE_IMPLEMENTATION
#include "taskmoe.h"
#include "test.h"
#include "generate.h"

static char oracles[512];
static int skipped;

/* A number of the JSON; fallback where the node is -1 or no number. */
static double json_number(const tmoei_json *json, int node, double fallback)
{
    const tmoei_json_node *n = tmoei_json_at(json, node);
    return n->kind == TMOEI_JSON_NUMBER ? n->number : fallback;
}

static int present(const char *name, char *path, size_t size)
{
    (void)snprintf(path, size, "%s/%s", oracles, name);
    if (file_exists(path)) return 1;
    printf("SKIPPED: there is no %s (set TMOE_ORACLES to the folder of the oracles)\n", path);
    skipped++;
    return 0;
}

/* ---- metrics ---- */
static void test_metrics_score_as_the_reference(void)
{
    static const char *const names[TMOE_METRICS] = { "EM", "ACC", "Classification-F1", "QA-F1",
        "Rouge-L", "Matthew-Correlation", "Pearson-Correlation" };
    char path[600];
    size_t length;
    tmoei_json json;
    if (!present("metrics/expected.json", path, sizeof path)) return;
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    char *text = tmoei_read_file(ctx, path, (size_t)1 << 30, &length);
    CHECK(text && tmoei_json_parse(ctx, &json, text, length, path) == TMOE_OK);
    int cases = 0;
    for (int c = json.nodes[0].child; c >= 0; c = json.nodes[c].next, cases++) {
        const char *metric_name = json.nodes[tmoei_json_get(&json, c, "metric")].text;
        const int given = tmoei_json_get(&json, c, "predictions"),
                  answers = tmoei_json_get(&json, c, "answers"), n = json.nodes[given].count;
        const char **predictions = malloc((size_t)n * sizeof *predictions),
                   **outputs = malloc(10000 * sizeof *outputs);
        tmoe_example *examples = calloc((size_t)n, sizeof *examples);
        int metric = 0, used = 0;
        while (metric < TMOE_METRICS && strcmp(names[metric], metric_name)) metric++;
        CHECK(metric < TMOE_METRICS);
        int p = json.nodes[given].child, a = json.nodes[answers].child;
        for (int i = 0; i < n; i++, p = json.nodes[p].next, a = json.nodes[a].next) {
            predictions[i] = json.nodes[p].text;
            examples[i].outputs = outputs + used;
            examples[i].output_count = json.nodes[a].count;
            for (int o = json.nodes[a].child; o >= 0; o = json.nodes[o].next)
                outputs[used++] = json.nodes[o].text;
        }
        const int score = tmoei_json_get(&json, c, "score");
        double got = -9.0;
        CHECK(tmoe_score(ctx, (tmoe_metric)metric, predictions, examples, n, &got) == TMOE_OK);
        if (json.nodes[score].kind != TMOEI_JSON_NUMBER)
            CHECK(got != got); /* undefined there, undefined here */
        else if (!(fabs(got - json.nodes[score].number) <= 1e-9)) {
            printf("case %d, %s: %.12g, the reference says %.12g ('%s')\n", cases, metric_name, got,
                json.nodes[score].number, predictions[0]);
            test_failures++;
        }
        free(predictions);
        free(outputs);
        free(examples);
    }
    CHECK(cases > 0);
    tmoei_json_free(ctx, &json);
    tmoei_free(ctx, text);
    CHECK(tmoe_ctx_bytes(ctx, NULL) > 0);
    tmoe_ctx_destroy(ctx);
}

/* ---- the reference's model ---- */
typedef struct reference {
    tmoe_ctx *ctx;
    tmoei_safetensors file;
    tmoe_model *model;
    tmoe_trainer *trainer;
    long ids[48], mask[48], targets[24], task[4];
} reference;

static void longs(reference *r, const char *name, long *out, size_t count)
{
    const tmoei_entry *entry = tmoei_safetensors_find(&r->file, name);
    CHECK(entry && entry->count == count && entry->end - entry->begin == 8 * count);
    for (size_t i = 0; entry && i < count; i++) {
        const unsigned char *p = r->file.data + entry->begin + 8 * i;
        uint64_t x = 0;
        for (int b = 7; b >= 0; b--) x = x << 8 | p[b];
        out[i] = (long)x;
    }
}

static void floats(reference *r, const char *name, float *out, size_t count)
{
    const tmoei_entry *entry = tmoei_safetensors_find(&r->file, name);
    if (!entry) {
        printf("%s: no tensor %s\n", r->file.path, name);
        test_failures++;
        return;
    }
    CHECK(tmoei_safetensors_read(r->ctx, &r->file, entry, 0, out, count) == TMOE_OK);
}

static const char *reference_parts(const char *name, const char **rest)
{
    static const char *const pieces[][4] = { { "self.qkv", "self_attn.q_proj", "self_attn.k_proj",
                                                 "self_attn.v_proj" },
        { "self.out", "self_attn.out_proj", NULL, NULL },
        { "self.norm", "self_attn_layer_norm", NULL, NULL },
        { "cross.q", "encoder_attn.q_proj", NULL, NULL },
        { "cross.kv", "encoder_attn.k_proj", "encoder_attn.v_proj", NULL },
        { "cross.out", "encoder_attn.out_proj", NULL, NULL },
        { "cross.norm", "encoder_attn_layer_norm", NULL, NULL }, { "fc1", "fc1", NULL, NULL },
        { "fc2", "fc2", NULL, NULL }, { "ffn.norm", "final_layer_norm", NULL, NULL } };
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        const size_t n = strlen(pieces[i][0]);
        if (strncmp(name, pieces[i][0], n) == 0 && name[n] == '.') {
            for (int j = 0; j < 3; j++) rest[j] = pieces[i][j + 1];
            return name + n;
        }
    }
    return NULL;
}

/* The reference's names of what our tensor holds, one below the other; how many. Leading rows of
 * positions are padding there. */
static int reference_names(const char *name, char out[3][160], int *skip_rows)
{
    static const char *const fixed[][2] = { { "tokens.weight", "model.shared.weight" },
        { "encoder.positions.weight", "model.encoder.embed_positions.weight" },
        { "decoder.positions.weight", "model.decoder.embed_positions.weight" },
        { "encoder.norm.weight", "model.encoder.layernorm_embedding.weight" },
        { "encoder.norm.bias", "model.encoder.layernorm_embedding.bias" },
        { "decoder.norm.weight", "model.decoder.layernorm_embedding.weight" },
        { "decoder.norm.bias", "model.decoder.layernorm_embedding.bias" },
        { "output.bias", "final_logits_bias" }, { "task_vectors.weight", "task_vectors" },
        { "router.layer_projection.weight", "router.model.layer_specific_proj.weight" },
        { "router.layer_projection.bias", "router.model.layer_specific_proj.bias" },
        { "router.layer_positions.weight", "router.model.pos_embed.weight" },
        { "router.projection.weight", "router.model.proj.weight" },
        { "router.projection.bias", "router.model.proj.bias" },
        { "router.attention.qkv.weight", "router.model.transformer.self_attn.in_proj_weight" },
        { "router.attention.qkv.bias", "router.model.transformer.self_attn.in_proj_bias" },
        { "router.forward.input.weight", "router.model.rnn.weight_ih_l0" },
        { "router.forward.input.bias", "router.model.rnn.bias_ih_l0" },
        { "router.forward.hidden.weight", "router.model.rnn.weight_hh_l0" },
        { "router.forward.hidden.bias", "router.model.rnn.bias_hh_l0" },
        { "router.backward.input.weight", "router.model.rnn.weight_ih_l0_reverse" },
        { "router.backward.input.bias", "router.model.rnn.bias_ih_l0_reverse" },
        { "router.backward.hidden.weight", "router.model.rnn.weight_hh_l0_reverse" },
        { "router.backward.hidden.bias", "router.model.rnn.bias_hh_l0_reverse" } };
    int layer, expert, used = 0;
    char side[16], rest[80];
    *skip_rows = strstr(name, "positions.weight") && name[0] != 'r' ? 2 : 0;
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
        if (strcmp(name, fixed[i][0]) == 0) {
            (void)snprintf(out[0], 160, "%s", fixed[i][1]);
            return 1;
        }
    if (sscanf(name, "%15[a-z].%d.expert.%d.%79s", side, &layer, &expert, rest) == 4) {
        const char *parts[3] = { NULL, NULL, NULL }, *end = reference_parts(rest, parts);
        for (int j = 0; end && j < 3 && parts[j]; j++)
            (void)snprintf(out[used++], 160, "model.%s.layers.%d.blocks.%d.%s%s", side, layer,
                expert, parts[j], end);
        return used;
    }
    if (sscanf(name, "router.%d.%79s", &layer, rest) == 2) {
        (void)snprintf(out[0], 160, "router.model.router_units.%d.%s", layer, rest);
        return 1;
    }
    if (strncmp(name, "router.attention.out.", 21) == 0) {
        (void)snprintf(out[0], 160, "router.model.transformer.self_attn.out_proj.%s", name + 21);
        return 1;
    }
    (void)snprintf(out[0], 160, "router.model.transformer.%s", name + 7);
    return 1;
}

/* What the reference's file holds for our tensor p, under a prefix, into out. */
static void reference_tensor(reference *r, const char *prefix, int p, float *out)
{
    const tmoei_parameter *parameter = &r->model->parameters[p];
    char names[3][160], full[512];
    int skip, count = reference_names(parameter->name, names, &skip);
    size_t at = 0;
    float block[34 * 61];
    if (strstr(parameter->name, "router.0.") && r->model->config.router == TMOE_ROUTER_LINEAR)
        (void)snprintf(names[0], 160, "router.model.%.60s", parameter->name + 9);
    for (int i = 0; i < count; i++) {
        (void)snprintf(full, sizeof full, "%s%s",
            strcmp(prefix, "param.") == 0 && strcmp(names[i], "task_vectors") == 0 ? "" : prefix,
            names[i]);
        const tmoei_entry *entry = tmoei_safetensors_find(&r->file, full);
        if (!entry || entry->count > sizeof block / sizeof *block) {
            printf("no tensor %s for %s\n", full, parameter->name);
            test_failures++;
            return;
        }
        floats(r, full, block, entry->count);
        const size_t first = (size_t)(skip * parameter->cols), n = entry->count - first;
        if (at + n > (size_t)parameter->rows * (size_t)parameter->cols) {
            printf("%s does not fit %s\n", full, parameter->name);
            test_failures++;
            return;
        }
        memcpy(out + at, block + first, n * sizeof(float));
        at += n;
    }
    CHECK(at == (size_t)parameter->rows * (size_t)parameter->cols);
}

static int reference_open(reference *r, tmoe_router_kind router, const char *name,
    tmoe_selection selection, float tau)
{
    static const char *const names[3] = { "a", "b", "c" };
    char path[600], file[80];
    tmoe_task tasks[3];
    tmoe_config c = tmoe_config_default();
    tmoe_training t = tmoe_training_default();
    const int before = test_failures;
    memset(r, 0, sizeof *r);
    (void)snprintf(file, sizeof file, "crosstask/%s.safetensors", name);
    if (!present(file, path, sizeof path)) return 0;
    r->ctx = tmoe_ctx_create(NULL);
    CHECK(tmoei_safetensors_open(r->ctx, &r->file, path) == TMOE_OK);
    longs(r, "input_ids", r->ids, 48);
    longs(r, "attention_mask", r->mask, 48);
    longs(r, "target_ids", r->targets, 24);
    longs(r, "task_of_example", r->task, 4);
    c.width = 16;
    c.encoder_heads = 2;
    c.decoder_heads = 4;
    c.encoder_ffn = 24;
    c.decoder_ffn = 20;
    c.vocabulary = 61;
    c.source_tokens = c.target_tokens = 32;
    c.norm = TMOE_NORM_POST;
    c.positions = TMOE_POSITION_LEARNED;
    c.task_input = TMOE_TASK_TEXT;
    c.vector_length = 0.0f;
    t.optimiser = TMOE_OPTIMISER_ADAMW;
    c.experts = 3;
    c.mix = TMOE_MIX_OUTPUT;
    c.selection = selection;
    c.temperature = c.temperature_min = tau;
    c.router = router;
    c.router_hidden = 12;
    c.vectors = TMOE_VECTOR_LEARNED;
    c.vector_width = 8;
    memset(tasks, 0, sizeof tasks);
    for (int i = 0; i < 3; i++) tasks[i].name = tasks[i].instruction = tasks[i].category = names[i];
    r->model = tmoe_model_create(r->ctx, &c, NULL, tasks, 3);
    if (!r->model) {
        printf("%s\n", tmoe_error_message(r->ctx));
        test_failures++;
        return 0;
    }
    for (int p = 0; p < r->model->parameter_count; p++)
        reference_tensor(r, "param.", p, r->model->theta + r->model->parameters[p].offset);
    r->model->version++;
    t.label_smoothing = 0.1f;
    t.tasks_per_step = t.examples_per_task = 4;
    t.steps = INT_MAX;
    t.warmup = 0.0f;
    t.lr_model = 1e-3f;
    t.lr_router = 1e-2f;
    t.lr_tasks = 2e-2f;
    r->trainer = tmoei_trainer_new(r->model, &t, 3, 4, 0);
    CHECK(r->trainer != NULL);
    return r->trainer != NULL && test_failures == before;
}

static void reference_close(reference *r)
{
    if (!r->ctx) return;
    tmoe_trainer_destroy(r->trainer);
    tmoe_model_destroy(r->model);
    tmoei_safetensors_close(r->ctx, &r->file);
    tmoe_ctx_destroy(r->ctx);
}

/* Examples into the trainer's batch; the padding (token 1, mask 0) is left out. */
static void reference_batch(reference *r, const int *examples, int count)
{
    tmoei_batch *b = &r->trainer->batch;
    CHECK(tmoei_batch_reserve(r->ctx, b, 48, 24, (size_t)count) == TMOE_OK);
    for (int i = 0; i < count; i++) {
        int x[12], y[6], s = 0, t = 0;
        for (int j = 0; j < 12; j++)
            if (r->mask[examples[i] * 12 + j]) x[s++] = (int)r->ids[examples[i] * 12 + j];
        while (t < 6 && r->targets[examples[i] * 6 + t] != 1) {
            y[t] = (int)r->targets[examples[i] * 6 + t];
            t++;
        }
        tmoei_batch_put(b, x, (size_t)s, y, (size_t)t, 2);
    }
}

/* Loss, and gradients in trainer->grads, of the whole batch as the library's own training step
 * computes them. With noise every example is a group of its own, as noise belongs to an example in
 * the reference. */
static double reference_gradients(reference *r, int noise)
{
    int groups[4][4], counts[4] = { 0, 0, 0, 0 }, K = 0;
    double loss = 0.0;
    for (int i = 0; i < 4; i++) {
        int g = 0;
        while (!noise && g < K && r->trainer->step_tasks[g] != (int)r->task[i]) g++;
        if (noise) g = K;
        if (g == K) r->trainer->step_tasks[K++] = (int)r->task[i];
        groups[g][counts[g]++] = i;
    }
    if (noise) {
        float given[24];
        floats(r, "gumbel_noise", given, 24);
        for (int g = 0; g < 4; g++)
            for (int l = 0; l < 4; l++)
                for (int e = 0; e < 3; e++)
                    r->trainer->noise[(g * 4 + l) * 3 + e] = given[((l % 2) * 4 + g) * 3 + e];
    }
    tmoe_tape_reset(r->trainer->router_tape);
    tmoe_tensor *routes = tmoei_step_routes(r->trainer, K);
    CHECK(routes != NULL);
    tmoei_route_statistics(r->trainer, routes->x, K);
    if (routes->wants_grad) {
        memset(r->trainer->droutes, 0, tmoei_elements(routes) * sizeof(float));
        routes->dx = r->trainer->droutes;
        routes->has_grad = 1;
        (void)tmoei_load_balance(r->trainer, K);
    }
    for (int g = 0; g < K; g++) {
        reference_batch(r, groups[g], counts[g]);
        tmoei_step_group(r->trainer, routes, g, g, 1.0f, &loss);
    }
    if (routes->wants_grad) CHECK(tmoei_tape_backward(r->trainer->router_tape) == TMOE_OK);
    CHECK(r->ctx->error == TMOE_OK);
    return loss;
}

static void compare_gradients(reference *r, const char *kind)
{
    static float expected[4096];
    char prefix[60];
    (void)snprintf(prefix, sizeof prefix, "grad.%s.", kind);
    for (int p = 0; p < r->model->parameter_count; p++) {
        const tmoei_parameter *parameter = &r->model->parameters[p];
        const size_t n = (size_t)parameter->rows * (size_t)parameter->cols;
        const float *got = r->trainer->grads + parameter->offset;
        double most = 0.0, off = 0.0;
        if (parameter->rate == TMOEI_RATE_NONE) continue;
        if (strcmp(kind, "average") == 0
            && (parameter->rate == TMOEI_RATE_ROUTER || parameter->rate == TMOEI_RATE_TASKS)) {
            for (size_t i = 0; i < n; i++) CHECK(got[i] == 0.0f);
            continue;
        }
        reference_tensor(r, prefix, p, expected);
        for (size_t i = 0; i < n; i++) {
            if (fabs((double)expected[i]) > most) most = fabs((double)expected[i]);
            if (!(fabs((double)(got[i] - expected[i])) <= off))
                off = fabs((double)(got[i] - expected[i]));
        }
        if (!(off <= 1e-4 * most + 1e-12)) {
            printf("%s, %s %s: off by %g, the largest entry is %g\n", r->file.path, kind,
                parameter->name, off, most);
            test_failures++;
        }
    }
}

static double expected_loss(reference *r, const char *router, const char *kind, int index)
{
    char path[600];
    size_t length;
    tmoei_json json;
    (void)snprintf(path, sizeof path, "%s/crosstask/losses.json", oracles);
    char *text = tmoei_read_file(r->ctx, path, 1 << 20, &length);
    CHECK(text && tmoei_json_parse(r->ctx, &json, text, length, path) == TMOE_OK);
    int node = tmoei_json_get(&json, tmoei_json_get(&json, 0, router), kind);
    if (index >= 0)
        for (node = json.nodes[node].child; index > 0; index--) node = json.nodes[node].next;
    const double value = json_number(&json, node, (double)NAN);
    tmoei_json_free(r->ctx, &json);
    tmoei_free(r->ctx, text);
    return value;
}

static const char *const router_names[10] = { "linear", "linear_layer_specific", "rnn",
    "rnn_layer_specific", "gru", "gru_layer_specific", "lstm", "lstm_layer_specific", "transformer",
    "transformer_layer_specific" };

static void check_selection(int router, tmoe_selection selection, float tau, const char *kind,
    int noise)
{
    reference r;
    if (reference_open(&r, (tmoe_router_kind)router, router_names[router], selection, tau)) {
        const double loss = reference_gradients(&r, noise),
                     expected = expected_loss(&r, router_names[router], kind, -1);
        if (!(fabs(loss - expected) <= 1e-5 * expected)) {
            printf("%s, %s: loss %.9g, the reference says %.9g\n", router_names[router], kind, loss,
                expected);
            test_failures++;
        }
        compare_gradients(&r, kind);
    }
    reference_close(&r);
}

static void test_softmax_routes_losses_and_gradients_of_all_routers(void)
{
    for (int router = 0; router < 10; router++) {
        reference r;
        check_selection(router, TMOE_SELECT_SOFTMAX, 1.3f, "softmax", 0);
        if (reference_open(&r, (tmoe_router_kind)router, router_names[router], TMOE_SELECT_SOFTMAX,
                1.3f)) {
            float expected[36], route[12];
            floats(&r, "routes.softmax", expected, 36);
            for (int t = 0; t < 3; t++) {
                CHECK(tmoe_route_of_task(r.model, t, route) == TMOE_OK);
                for (int i = 0; i < 12; i++)
                    CHECK_NEAR(route[i], expected[(i / 3 * 3 + t) * 3 + i % 3], 1e-5);
            }
        }
        reference_close(&r);
    }
}

static void test_straight_through_losses_and_gradients_of_all_routers(void)
{
    for (int router = 0; router < 10; router++)
        check_selection(router, TMOE_SELECT_STRAIGHT_THROUGH, 0.7f, "straight_through", 1);
}

static void test_gumbel_and_average(void)
{
    check_selection(TMOE_ROUTER_LINEAR_LAYER_SPECIFIC, TMOE_SELECT_GUMBEL, 0.7f, "gumbel", 1);
    check_selection(TMOE_ROUTER_LINEAR_LAYER_SPECIFIC, TMOE_SELECT_AVERAGE, 1.0f, "average", 0);
}

static void test_masked_experts_get_the_routes_of_the_reference(void)
{
    reference r;
    if (reference_open(&r, TMOE_ROUTER_LINEAR_LAYER_SPECIFIC, router_names[1], TMOE_SELECT_SOFTMAX,
            1.0f)) {
        float mask[12], expected[36], route[12];
        floats(&r, "mask.encoder", mask, 6);
        floats(&r, "mask.decoder", mask + 6, 6);
        floats(&r, "routes.masked", expected, 36);
        for (int i = 0; i < 12; i++)
            if (mask[i] != 0.0f)
                CHECK(tmoe_expert_set_enabled(r.model, i / 3, i % 3, 0) == TMOE_OK);
        for (int t = 0; t < 3; t++) {
            CHECK(tmoe_route_of_task(r.model, t, route) == TMOE_OK);
            for (int i = 0; i < 12; i++)
                CHECK_NEAR(route[i], expected[(i / 3 * 3 + t) * 3 + i % 3], 1e-5);
        }
    }
    reference_close(&r);
}

static void test_expert_regularisation(void)
{
    reference r;
    if (reference_open(&r, TMOE_ROUTER_LINEAR_LAYER_SPECIFIC, router_names[1], TMOE_SELECT_SOFTMAX,
            1.0f)) {
        const double expected =
            expected_loss(&r, router_names[1], "expert_regularisation_encoder0", -1);
        float *gradients = (float *)calloc(r.model->size, sizeof(float));
        if (gradients)
            CHECK_NEAR(tmoei_expert_distance(r.model, 0, gradients, 0.0f), expected,
                1e-5 * expected);
        free(gradients);
    }
    reference_close(&r);
}

static void test_eight_optimiser_steps(void)
{
    reference r;
    if (reference_open(&r, TMOE_ROUTER_LINEAR_LAYER_SPECIFIC, router_names[1], TMOE_SELECT_SOFTMAX,
            1.3f))
        for (int step = 0; step < 8; step++) {
            const double loss = reference_gradients(&r, 0),
                         expected = expected_loss(&r, router_names[1], "adamw_losses", step);
            CHECK_NEAR(loss, expected, 1e-4 * expected);
            tmoei_trainer_turn(r.trainer);
            CHECK(tmoei_trainer_apply(r.trainer, loss, NULL) == TMOE_OK);
        }
    reference_close(&r);
}

/* ---- tokenizers ---- */
static void check_ids(const tmoe_tokenizer *t, const tmoei_json *json, const char *key, int flags,
    const char *where)
{
    static int ids[400000];
    const int text = tmoei_json_get(json, 0, "text"), list = tmoei_json_get(json, 0, key);
    size_t count = 0, i = 0;
    CHECK(tmoe_tokenizer_encode(t, json->nodes[text].text, json->nodes[text].length, flags, ids,
              sizeof ids / sizeof *ids, &count)
        == TMOE_OK);
    int same = (int)count == json->nodes[list].count;
    for (int node = json->nodes[list].child; same && node >= 0; node = json->nodes[node].next)
        same = ids[i++] == (int)json->nodes[node].number;
    if (!same) {
        printf("%s: %s differ on '%.60s'\n", where, key, json->nodes[text].text);
        test_failures++;
    }
}

static void check_decoded(const tmoe_tokenizer *t, const tmoei_json *json, const char *key,
    int flags, const char *where)
{
    static int ids[400000];
    static char text[1000000];
    const int list = tmoei_json_get(json, 0, "ids"), expected = tmoei_json_get(json, 0, key);
    size_t count = 0, length = 0;
    for (int node = json->nodes[list].child; node >= 0; node = json->nodes[node].next)
        ids[count++] = (int)json->nodes[node].number;
    CHECK(tmoe_tokenizer_decode(t, ids, count, flags, text, sizeof text, &length) == TMOE_OK);
    if (length != json->nodes[expected].length
        || memcmp(text, json->nodes[expected].text, length) != 0) {
        printf("%s: %s is '%.60s', not '%.60s'\n", where, key, text, json->nodes[expected].text);
        test_failures++;
    }
}

/* Copies a file of the oracles into build/oracle_bpe, so that a folder without tokenizer.json can
 * be tried. */
static void copy_file(tmoe_ctx *ctx, const char *from_folder, const char *to_folder,
    const char *name)
{
    char from[700], to[700];
    size_t length = 0;
    (void)snprintf(from, sizeof from, "%s/%s", from_folder, name);
    (void)snprintf(to, sizeof to, "%s/%s", to_folder, name);
    char *text = tmoei_read_file(ctx, from, (size_t)1 << 30, &length);
    FILE *file = text ? fopen(to, "wb") : NULL;
    CHECK(file && fwrite(text, 1, length, file) == length);
    if (file) (void)fclose(file);
    tmoei_free(ctx, text);
}

/* tokenizer.json, vocab.json with merges.txt, and a copy that went through our own file: ids and
 * texts as Hugging Face's. */
static void test_bpe_is_identical_to_hugging_faces(void)
{
    static const char *const variants[2] = { "small", "full" };
    const int find = TMOE_TOKENIZER_FIND_SPECIALS, skip = TMOE_TOKENIZER_SKIP_SPECIALS;
    for (int v = 0; v < 6; v++) {
        char folder[600], path[640], name[80];
        (void)snprintf(name, sizeof name, "bpe/%s/expected.jsonl", variants[v / 3]);
        if (!present(name, path, sizeof path)) return;
        (void)snprintf(folder, sizeof folder, "%s/bpe/%s", oracles, variants[v / 3]);
        tmoe_ctx *ctx = tmoe_ctx_create(NULL);
        if (v % 3 == 1) {
            (void)tmoei_make_folder(ctx, "build/oracle_bpe");
            copy_file(ctx, folder, "build/oracle_bpe", "vocab.json");
            copy_file(ctx, folder, "build/oracle_bpe", "merges.txt");
            (void)snprintf(folder, sizeof folder, "build/oracle_bpe");
        }
        tmoe_tokenizer *t = tmoe_tokenizer_load(ctx, folder);
        if (!t) {
            printf("%s\n", tmoe_error_message(ctx));
            test_failures++;
            tmoe_ctx_destroy(ctx);
            continue;
        }
        if (v % 3 == 2) {
            tmoei_buffer text;
            tmoei_json json;
            memset(&text, 0, sizeof text);
            tmoei_tokenizer_to_json(ctx, t, &text);
            tmoe_tokenizer_destroy(t);
            CHECK(!text.failed
                && tmoei_json_parse(ctx, &json, text.data, text.length, "own") == TMOE_OK);
            t = tmoei_tokenizer_from_json(ctx, &json);
            CHECK(t != NULL);
            tmoei_json_free(ctx, &json);
            tmoei_buffer_free(ctx, &text);
        }
        tmoei_lines in;
        tmoei_lines_open(ctx, &in, path);
        int lines = 0;
        for (; t && tmoei_lines_next(&in); lines++) {
            tmoei_json json;
            CHECK(tmoei_json_parse(ctx, &json, in.line, in.size, in.where) == TMOE_OK);
            check_ids(t, &json, "ids", find | TMOE_TOKENIZER_SPECIALS, in.where);
            check_ids(t, &json, "ids_prefix_space",
                find | TMOE_TOKENIZER_SPECIALS | TMOE_TOKENIZER_PREFIX_SPACE, in.where);
            check_ids(t, &json, "ids_plain", find, in.where);
            check_decoded(t, &json, "decoded", skip, in.where);
            check_decoded(t, &json, "decoded_clean", skip | TMOE_TOKENIZER_CLEAN_SPACES, in.where);
            tmoei_json_free(ctx, &json);
        }
        CHECK(lines > 0);
        tmoe_tokenizer_destroy(t);
        tmoe_ctx_destroy(ctx);
    }
}

/* ---- BART ---- */
static const char *const bart_cases[] = { "base", "distil", "scaled_relu", "wide", "forced_bos",
    "unprefixed", "base_f16", "base_bf16" };

enum { BART_CASES = sizeof bart_cases / sizeof *bart_cases };

typedef struct bart {
    tmoe_ctx *ctx;
    tmoe_model *model;
    tmoei_safetensors expected;
    int B, S, T, *ids, *labels, *mask, sources[16], targets[16];
    char folder[600];
} bart;

static int *int_tensor(bart *b, const char *name, int *rows, int *cols)
{
    const tmoei_entry *entry = tmoei_safetensors_find(&b->expected, name);
    const size_t bytes = entry ? tmoei_dtypes[entry->dtype].bytes : 0;
    CHECK(entry && entry->rank == 2 && tmoei_dtypes[entry->dtype].name[0] == 'I');
    if (!entry) return NULL;
    int *out = malloc(entry->count * sizeof *out);
    for (size_t i = 0; out && i < entry->count; i++) {
        uint64_t x = 0;
        for (size_t k = 0; k < bytes; k++)
            x |= (uint64_t)b->expected.data[entry->begin + bytes * i + k] << (8 * k);
        out[i] = (int)(int64_t)x;
    }
    *rows = (int)(entry->count / entry->cols);
    *cols = (int)entry->cols;
    return out;
}

static int bart_open(bart *b, int which)
{
    char name[80], path[700];
    int rows, cols;
    const int before = test_failures; /* a failure elsewhere must not hide the other cases */
    memset(b, 0, sizeof *b);
    (void)snprintf(name, sizeof name, "bart/%s/expected.safetensors", bart_cases[which]);
    if (!present(name, path, sizeof path)) return 0;
    (void)snprintf(b->folder, sizeof b->folder, "%s/bart/%s", oracles, bart_cases[which]);
    b->ctx = tmoe_ctx_create(NULL);
    CHECK(tmoei_safetensors_open(b->ctx, &b->expected, path) == TMOE_OK);
    b->model = tmoe_bart_load(b->ctx, b->folder);
    if (!b->model) {
        printf("%s\n", tmoe_error_message(b->ctx));
        test_failures++;
        return 0;
    }
    b->ids = int_tensor(b, "input_ids", &b->B, &b->S);
    b->mask = int_tensor(b, "attention_mask", &rows, &cols);
    b->labels = int_tensor(b, "labels", &rows, &b->T);
    CHECK(b->ids && b->mask && b->labels && b->B <= 16);
    for (int i = 0; i < b->B; i++) {
        while (b->sources[i] < b->S && b->mask[i * b->S + b->sources[i]]) b->sources[i]++;
        while (b->targets[i] < b->T && b->labels[i * b->T + b->targets[i]] != -100) b->targets[i]++;
    }
    return test_failures == before;
}

static void bart_close(bart *b)
{
    if (!b->ctx) return;
    free(b->ids);
    free(b->mask);
    free(b->labels);
    tmoe_model_destroy(b->model);
    tmoei_safetensors_close(b->ctx, &b->expected);
    CHECK(tmoe_ctx_bytes(b->ctx, NULL) == 0 || b->ctx->pool == NULL);
    tmoe_ctx_destroy(b->ctx);
}

static float *expected_floats(bart *b, const char *name, size_t *count)
{
    const tmoei_entry *entry = tmoei_safetensors_find(&b->expected, name);
    if (!entry) {
        printf("%s: no %s\n", b->folder, name);
        test_failures++;
        return NULL;
    }
    float *out = malloc(entry->count * sizeof *out);
    CHECK(tmoei_safetensors_read(b->ctx, &b->expected, entry, 0, out, entry->count) == TMOE_OK);
    *count = entry->count;
    return out;
}

/* Rows of ours, packed, against theirs (B, width, n), padded positions left out. */
static void check_rows(bart *b, const char *name, const tmoe_tensor *ours, const int *lengths,
    int width, double tolerance)
{
    size_t count = 0, row = 0;
    if (!tmoei_safetensors_find(&b->expected, name) && strstr(strrchr(b->folder, '/'), "16"))
        return; /* half-precision copies: logits and loss only */
    float *theirs = expected_floats(b, name, &count);
    double off = 0.0;
    CHECK(ours != NULL);
    if (!theirs || !ours) {
        free(theirs);
        return;
    }
    const size_t n = (size_t)ours->cols;
    CHECK(count == (size_t)(b->B * width) * n);
    for (int i = 0; i < b->B; i++)
        for (int t = 0; t < lengths[i]; t++, row++)
            for (size_t j = 0; j < n; j++) {
                const double d =
                    fabs((double)(ours->x[row * n + j] - theirs[(size_t)(i * width + t) * n + j]));
                if (!(d <= off)) off = d;
            }
    CHECK(row == (size_t)ours->rows);
    if (!(off <= tolerance)) {
        printf("%s: %s is off by %g\n", b->folder, name, off);
        test_failures++;
    }
    free(theirs);
}

/* Hidden states after each layer, logits, loss, and every gradient. */
static void test_bart_hidden_states_logits_loss_and_gradients(void)
{
    for (int which = 0; which < BART_CASES; which++) {
        bart b;
        if (!bart_open(&b, which)) {
            bart_close(&b);
            continue;
        }
        const tmoe_config *c = tmoe_model_config(b.model);
        float *grads = calloc(b.model->size, sizeof *grads);
        tmoe_tape *tape = tmoe_tape_create(b.ctx);
        tmoei_batch batch;
        tmoei_pass pass;
        char name[200];
        size_t count = 0, tokens = 0;
        memset(&batch, 0, sizeof batch);
        memset(&pass, 0, sizeof pass);
        CHECK(tmoei_batch_reserve(b.ctx, &batch, (size_t)(b.B * b.S), (size_t)(b.B * b.T),
                  (size_t)b.B)
            == TMOE_OK);
        for (int i = 0; i < b.B; i++) {
            tmoei_batch_put(&batch, b.ids + i * b.S, (size_t)b.sources[i], b.labels + i * b.T,
                (size_t)b.targets[i], c->start_id);
            tokens += (size_t)b.targets[i];
        }
        pass.model = b.model;
        pass.tape = tape;
        pass.grads = grads;
        pass.train = TMOE_TRAIN_ALL;
        tmoe_tensor *h = tmoei_embed(&pass, &batch.source, 0);
        check_rows(&b, "encoder_hidden.0", h, b.sources, b.S, 2e-5);
        pass.pack = &batch.source;
        for (int l = 0; l < c->encoder_layers; l++) {
            h = tmoei_layer_forward(&pass, l, h);
            (void)snprintf(name, sizeof name, "encoder_hidden.%d", l + 1);
            check_rows(&b, name, h, b.sources, b.S, 2e-5);
        }
        tmoe_tensor *y = tmoei_embed(&pass, &batch.target, 1);
        check_rows(&b, "decoder_hidden.0", y, b.targets, b.T, 2e-5);
        pass.pack = &batch.target;
        pass.memory = h;
        pass.memory_pack = &batch.source;
        for (int l = 0; l < c->decoder_layers; l++) {
            y = tmoei_layer_forward(&pass, c->encoder_layers + l, y);
            (void)snprintf(name, sizeof name, "decoder_hidden.%d", l + 1);
            check_rows(&b, name, y, b.targets, b.T, 2e-5);
        }
        y = tmoei_head(&pass, y);
        check_rows(&b, "logits", y, b.targets, b.T, 2e-5);
        tmoe_tensor *loss = tmoe_cross_entropy(tape, y, batch.labels, 0.0f, 1.0f / (float)tokens);
        float *theirs = expected_floats(&b, "loss", &count);
        CHECK(loss && theirs
            && fabs((double)(loss->x[0] - theirs[0])) <= 2e-6 * fabs((double)theirs[0]));
        free(theirs);
        CHECK(tmoe_backward(tape, loss) == TMOE_OK);
        tmoei_bart_list list;
        CHECK(tmoei_bart_list_all(b.model, &list) == TMOE_OK);
        int compared = 0;
        const int has = tmoei_safetensors_find(&b.expected, "grad.model.shared.weight")
            != NULL; /* the half-precision copies have none */
        for (size_t i = 0; has && i < list.count; i++) {
            const tmoei_bart_tensor t = list.items[i];
            if (t.optional) continue; /* the output bias: a constant to both */
            double most = 0.0, off = 0.0;
            (void)snprintf(name, sizeof name, "grad.%s", t.name);
            theirs = expected_floats(&b, name, &count);
            CHECK(theirs && count == (t.rows + t.skip) * t.cols);
            for (size_t j = 0; theirs && j < t.rows * t.cols; j++) {
                const double x = (double)theirs[t.skip * t.cols + j],
                             d = fabs((double)grads[t.offset + j] - x);
                if (fabs(x) > most) most = fabs(x);
                if (!(d <= off)) off = d;
            }
            /* keys' biases shift all scores of a row alike: their gradient is 0, and what both
             * sides have is rounding of sums of size 1 */
            if (!(off <= 1e-4 * most + (strstr(t.name, "k_proj.bias") ? 1e-7 : 1e-12))) {
                printf("%s: %s is off by %g, its largest entry is %g\n", b.folder, name, off, most);
                test_failures++;
            }
            compared++;
            free(theirs);
        }
        CHECK(!has || compared > 40);
        tmoei_free(b.ctx, list.items);
        tmoei_free(b.ctx, batch.memory);
        tmoe_tape_destroy(tape);
        free(grads);
        bart_close(&b);
    }
}

/* Tokens and scores of greedy and beam search under every set of options. */
static void test_bart_generates_the_tokens_of_transformers(void)
{
    int cases = 0;
    for (int which = 0; which < BART_CASES; which++) {
        bart b;
        char path[700];
        size_t length = 0;
        tmoei_json json;
        if (!bart_open(&b, which)) {
            bart_close(&b);
            continue;
        }
        (void)snprintf(path, sizeof path, "%s/generate.json", b.folder);
        if (!file_exists(path)) {
            bart_close(&b);
            continue;
        } /* the half-precision copies have none */
        char *text = tmoei_read_file(b.ctx, path, (size_t)1 << 30, &length);
        CHECK(text && tmoei_json_parse(b.ctx, &json, text, length, path) == TMOE_OK);
        int *packed = malloc((size_t)(b.B * b.S) * sizeof *packed), at = 0;
        for (int i = 0; i < b.B; i++) {
            memcpy(packed + at, b.ids + i * b.S, (size_t)b.sources[i] * sizeof *packed);
            at += b.sources[i];
        }
        for (int node = json.nodes[0].child; node >= 0; node = json.nodes[node].next, cases++) {
            const int o = tmoei_json_get(&json, node, "options"),
                      list = tmoei_json_get(&json, node, "sequences"),
                      scores = tmoei_json_get(&json, node, "scores");
            const int early = tmoei_json_get(&json, o, "early_stopping");
            tmoe_generation how;
            memset(&how, 0,
                /* as the oracle's script asks for, whatever the folder's defaults are */
                sizeof how);
            how.beams = (int)json_number(&json, tmoei_json_get(&json, o, "num_beams"), 1.0);
            how.max_length = (int)json_number(&json, tmoei_json_get(&json, o, "max_length"), 20.0);
            how.min_length = (int)json_number(&json, tmoei_json_get(&json, o, "min_length"), 0.0);
            how.no_repeat_ngram =
                (int)json_number(&json, tmoei_json_get(&json, o, "no_repeat_ngram_size"), 0.0);
            how.returned =
                (int)json_number(&json, tmoei_json_get(&json, o, "num_return_sequences"), 1.0);
            how.length_penalty =
                (float)json_number(&json, tmoei_json_get(&json, o, "length_penalty"), 1.0);
            how.early_stopping = early < 0 || json.nodes[early].kind == TMOEI_JSON_FALSE
                ? TMOE_EARLY_STOPPING_FALSE
                : json.nodes[early].kind == TMOEI_JSON_TRUE ? TMOE_EARLY_STOPPING_TRUE
                                                            : TMOE_EARLY_STOPPING_NEVER;
            how.forced_begin_id = b.model->generation.forced_begin_id;
            how.forced_end_id = b.model->generation.forced_end_id;
            const int n = b.B * how.returned;
            int *tokens = malloc((size_t)(n * how.max_length) * sizeof *tokens),
                *counts = malloc((size_t)n * sizeof *counts), i = 0;
            float *got = malloc((size_t)n * sizeof *got);
            CHECK(generate(b.model, -1, packed, b.sources, b.B, &how, tokens, counts, got)
                == TMOE_OK);
            CHECK(json.nodes[list].count == n);
            for (int s = json.nodes[list].child; s >= 0; s = json.nodes[s].next, i++) {
                int same = 1, t = 0;
                for (int v = json.nodes[s].child; v >= 0 && t < how.max_length;
                     v = json.nodes[v].next, t++)
                    same &= tokens[i * how.max_length + t] == (int)json.nodes[v].number;
                for (; t < how.max_length; t++)
                    same &= tokens[i * how.max_length + t] == b.model->config.pad_id;
                if (!same) {
                    printf("%s: generation case %d: sequence %d differs\n", b.folder, cases, i);
                    test_failures++;
                }
            }
            i = 0;
            for (int s = json.nodes[scores].child; s >= 0; s = json.nodes[s].next, i++)
                if (!(fabs((double)got[i] - json.nodes[s].number)
                        <= 1e-4 * fmax(1.0, fabs(json.nodes[s].number)))) {
                    printf("%s: generation case %d: score %d is %.7g, not %.7g\n", b.folder, cases,
                        i, (double)got[i], json.nodes[s].number);
                    test_failures++;
                }
            free(tokens);
            free(counts);
            free(got);
        }
        free(packed);
        tmoei_json_free(b.ctx, &json);
        tmoei_free(b.ctx, text);
        bart_close(&b);
    }
    if (!skipped) CHECK(cases > 50);
}

/* A model that went out as a folder and came in again has the same bits. */
static void test_bart_export_and_import_keep_every_bit(void)
{
    for (int which = 0; which < BART_CASES; which++) {
        bart b;
        if (!bart_open(&b, which)) {
            bart_close(&b);
            continue;
        }
        (void)tmoei_make_folder(b.ctx, "build/oracle_bart");
        CHECK(tmoe_export_dense(b.model, NULL, NULL, "build/oracle_bart") == TMOE_OK);
        tmoe_model *again = tmoe_bart_load(b.ctx, "build/oracle_bart");
        if (!again) {
            printf("%s\n", tmoe_error_message(b.ctx));
            test_failures++;
        } else {
            CHECK(again->size == b.model->size
                && memcmp(again->theta, b.model->theta, again->size * sizeof(float)) == 0);
            CHECK(memcmp(&again->config, &b.model->config, sizeof again->config) == 0);
            CHECK(memcmp(&again->generation, &b.model->generation, sizeof again->generation) == 0);
        }
        tmoe_model_destroy(again);
        bart_close(&b);
    }
}

TEST_MAIN("test_oracles", const char *folder = getenv("TMOE_ORACLES"); (
    void)snprintf(oracles, sizeof oracles, "%s", folder &&folder[0] ? folder : "../shared/oracles");
          RUN(test_metrics_score_as_the_reference);
          RUN(test_softmax_routes_losses_and_gradients_of_all_routers);
          RUN(test_straight_through_losses_and_gradients_of_all_routers);
          RUN(test_gumbel_and_average); RUN(test_masked_experts_get_the_routes_of_the_reference);
          RUN(test_expert_regularisation); RUN(test_eight_optimiser_steps);
          RUN(test_bpe_is_identical_to_hugging_faces);
          RUN(test_bart_hidden_states_logits_loss_and_gradients);
          RUN(test_bart_generates_the_tokens_of_transformers);
          RUN(test_bart_export_and_import_keep_every_bit); if (skipped)
              printf("test_oracles: %d files were absent; what needs them was SKIPPED\n", skipped);)
