/* The whole model: gradients with every mix and selection, the two mixes against each other and
 * against a dense model, equal bits. */
#define TMOE_THREADS
#define TASKMOE_IMPLEMENTATION
#include "taskmoe.h"
#include "test.h"
#include "generate.h"
#include "small.h"
static const tmoei_guide first_task = { 0, NULL, NULL }, second_task = { 1, NULL, NULL };

static double loss_of(set *s)
{
    const double loss = tmoei_step_gradients(s->trainer);
    memset(s->trainer->grads, 0, s->trainer->span * sizeof(float));
    return loss;
}

/* For every named tensor: the loss along the tensor's own gradient g / |g| must rise by |g|; along
 * a random direction u by <g, u>. */
static float expert_regularisation, load_balance;

static void check_model_gradient(const tmoe_config *config, const char *name, int routers_too)
{
    tmoe_training training = small_training();
    training.expert_regularisation = expert_regularisation;
    training.load_balance = load_balance;
    set s = make(1, config, &training);
    float *g, *keep;
    int p, tensors = 0;
    if (!s.trainer) return;
    for (p = 0; p < s.model->parameter_count;
         p++) { /* a router of size 0.02 is all curvature under its layer norms */
        const tmoei_parameter *parameter = &s.model->parameters[p];
        size_t i;
        for (i = 0; (parameter->rate == TMOEI_RATE_ROUTER || parameter->rate == TMOEI_RATE_TASKS)
             && parameter->init_std > 0.0f && i < (size_t)parameter->rows * (size_t)parameter->cols;
             i++)
            s.model->theta[parameter->offset + i] *= 5.0f;
    }
    g = (float *)malloc(s.model->size * sizeof(float));
    keep = (float *)malloc(s.model->size * sizeof(float));
    (void)tmoei_step_gradients(s.trainer);
    memset(g, 0, s.model->size * sizeof(float));
    memcpy(g + s.trainer->first, s.trainer->grads, s.trainer->span * sizeof(float));
    memcpy(keep, s.model->theta, s.model->size * sizeof(float));
    memset(s.trainer->grads, 0, s.trainer->span * sizeof(float));
    CHECK(s.ctx->error == TMOE_OK);
    for (p = 0; p < s.model->parameter_count; p++) {
        const tmoei_parameter *parameter = &s.model->parameters[p];
        const size_t n = (size_t)parameter->rows * (size_t)parameter->cols, at = parameter->offset;
        double norm = 0.0, along, plus, minus, h;
        size_t i;
        int direction;
        if (parameter->rate == TMOEI_RATE_NONE
            || (!routers_too && parameter->rate != TMOEI_RATE_LAYERS
                && parameter->rate != TMOEI_RATE_SHARED))
            continue;
        for (i = 0; i < n; i++) norm += (double)g[at + i] * (double)g[at + i];
        norm = sqrt(norm);
        if (norm < 1e-3) continue; /* k biases: softmax does not see them */
        for (direction = 0; direction < 2; direction++) {
            double size = 0.0, expected = 0.0;
            float *u = s.trainer->moment1;
            for (i = 0; i < n; i++) {
                u[i] = direction ? tmoei_normal(5, (uint64_t)p, i) * (float)norm + g[at + i]
                                 : g[at + i];
                size += (double)u[i] * (double)u[i];
            }
            for (i = 0; i < n; i++) {
                u[i] /= (float)sqrt(size);
                expected += (double)u[i] * (double)g[at + i];
            }
            /* moves the loss by some 0.001: far above rounding, still nearly straight */
            h = 1e-3 / (norm > 0.1 ? norm : 0.1);
            for (i = 0; i < n; i++) s.model->theta[at + i] = keep[at + i] + (float)h * u[i];
            plus = loss_of(&s);
            for (i = 0; i < n; i++) s.model->theta[at + i] = keep[at + i] - (float)h * u[i];
            minus = loss_of(&s);
            memcpy(s.model->theta + at, keep + at, n * sizeof(float));
            along = (plus - minus) / (2.0 * h);
            if (!(fabs(along - expected) <= 0.02 * norm + 3e-4)) {
                printf("%s: %s: along %s the loss rises by %g, the gradient says %g (norm %g)\n",
                    name, parameter->name, direction ? "u" : "g", along, expected, norm);
                test_failures++;
            }
        }
        tensors++;
    }
    CHECK(tensors > (config->experts > 1 ? 25 : 15));
    memset(s.trainer->moment1, 0, s.trainer->span * sizeof(float));
    free(g);
    free(keep);
    unmake(&s);
}

static void test_gradients_of_every_mix_and_selection(void)
{
    static const tmoe_selection selections[] = { TMOE_SELECT_SOFTMAX, TMOE_SELECT_GUMBEL,
        TMOE_SELECT_STRAIGHT_THROUGH, TMOE_SELECT_AVERAGE, TMOE_SELECT_RANDOM_TASK,
        TMOE_SELECT_RANDOM_EXAMPLE };
    static const char *const names[] = { "softmax", "gumbel", "straight-through", "average",
        "random task", "random example" };
    int mix, s;
    for (mix = 0; mix < 2; mix++)
        for (s = 0; s < 6; s++) {
            tmoe_config c = small_config();
            char name[64];
            c.mix = (tmoe_mix)mix;
            c.selection = selections[s];
            c.random_n = 2;
            c.router = TMOE_ROUTER_LINEAR_LAYER_SPECIFIC;
            c.vectors = TMOE_VECTOR_LEARNED;
            (void)snprintf(name, sizeof name, "%s %s", mix ? "OUTPUT" : "PARAM", names[s]);
            check_model_gradient(&c, name,
                selections[s]
                    != TMOE_SELECT_STRAIGHT_THROUGH); /* its router gradient is biased by design */
        }
}

static void test_gradients_of_every_router(void)
{
    int r;
    for (r = 0; r < 10; r++) {
        tmoe_config c = small_config();
        char name[32];
        c.router = (tmoe_router_kind)r;
        c.vectors = TMOE_VECTOR_LEARNED;
        (void)snprintf(name, sizeof name, "router %d", r);
        check_model_gradient(&c, name, 1);
    }
}

static void test_gradients_of_other_shapes(void)
{
    tmoe_config c = small_config();
    c.norm = TMOE_NORM_POST;
    c.activation = TMOE_RELU;
    c.vector_length = 0.0f; /* a gradient that stands out from ReLU's kinks */
    c.scale_embedding = 1;
    check_model_gradient(&c, "post norm", 1);
    c = small_config();
    c.expert_kind = TMOE_EXPERT_FFN;
    check_model_gradient(&c, "FFN experts, PARAM", 1);
    c.mix = TMOE_MIX_OUTPUT;
    check_model_gradient(&c, "FFN experts, OUTPUT", 1);
    c = small_config();
    c.expert_places = TMOE_DECODER;
    c.exploration = 0.5f;
    check_model_gradient(&c, "decoder experts, exploring", 1);
    c = small_config();
    c.experts = 1;
    check_model_gradient(&c, "dense", 1);
    c = small_config();
    c.positions = TMOE_POSITION_ROTARY;
    check_model_gradient(&c, "rotary positions, PARAM", 1);
    c.mix = TMOE_MIX_OUTPUT;
    c.norm = TMOE_NORM_POST;
    check_model_gradient(&c, "rotary positions, OUTPUT, post norm", 1);
}

static void test_gradients_of_expert_regularisation_and_load_balance(void)
{
    tmoe_config c = small_config();
    expert_regularisation = 0.01f;
    check_model_gradient(&c, "expert regularisation", 1);
    expert_regularisation = 0.0f;
    load_balance = 3.0f;
    check_model_gradient(&c, "load balance", 1);
    load_balance = 0.0f;
}

static void test_a_disabled_expert_gets_no_weight(void)
{
    tmoe_selection kinds[4] = { TMOE_SELECT_SOFTMAX, TMOE_SELECT_AVERAGE,
        TMOE_SELECT_STRAIGHT_THROUGH, TMOE_SELECT_RANDOM_TASK };
    for (int k = 0; k < 4; k++) {
        tmoe_config c = small_config();
        tmoe_training training = small_training();
        float route[64], sum = 0.0f;
        c.selection = kinds[k];
        c.random_n = 1;
        set s = make(1, &c, &training);
        if (!s.trainer) return;
        CHECK(tmoe_route_of_task(s.model, 99, route) == TMOE_ERR_ARGUMENT
            && tmoe_error(s.model->ctx) == TMOE_ERR_ARGUMENT);
        CHECK(tmoe_expert_set_enabled(s.model, 1, 0, 0) == TMOE_OK
            && tmoe_error(s.model->ctx) == TMOE_OK);
        CHECK(
            tmoe_route_unseen(s.model, "something new", TMOE_ZERO_SHOT_AVERAGE, route) == TMOE_OK);
        CHECK(route[c.experts] == 0.0f);
        for (int e = 1; e < c.experts; e++)
            CHECK_NEAR(route[c.experts + e], 1.0 / (c.experts - 1), 1e-6);
        CHECK(tmoe_route_of_task(s.model, 0, route) == TMOE_OK);
        CHECK(route[c.experts] == 0.0f);
        for (int e = 0; e < c.experts; e++) sum += route[c.experts + e];
        CHECK_NEAR(sum, 1.0, 1e-5);
        CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
        CHECK(s.trainer->use[c.experts] == 0.0f); /* in training, too */
        for (int e = 1; e + 1 < c.experts; e++)
            CHECK(tmoe_expert_set_enabled(s.model, 1, e, 0) == TMOE_OK);
        for (int t = 0; t < tmoe_model_task_count(s.model);
             t++) /* whatever a task had, it has the last one now */
            CHECK(tmoe_route_of_task(s.model, t, route) == TMOE_OK
                && route[2 * c.experts - 1] == 1.0f);
        CHECK(tmoe_expert_set_enabled(s.model, 1, c.experts - 1, 0)
            == TMOE_ERR_ARGUMENT); /* the last one stays */
        CHECK(tmoe_expert_set_enabled(s.model, 99, 0, 0) == TMOE_ERR_ARGUMENT);
        CHECK(tmoe_expert_set_enabled(s.model, 1, 0, 1) == TMOE_OK);
        CHECK(tmoe_route_of_task(s.model, 0, route) == TMOE_OK
            && (k >= 2 || route[c.experts] > 0.0f));
        unmake(&s);
    }
}

/* A finite mask, divided by such a temperature, would be no mask. */
static void test_disabled_experts_stay_out_at_any_temperature(void)
{
    tmoe_selection kinds[3] = { TMOE_SELECT_SOFTMAX, TMOE_SELECT_GUMBEL,
        TMOE_SELECT_STRAIGHT_THROUGH };
    for (int k = 0; k < 3; k++) {
        tmoe_config c = small_config();
        tmoe_training training = small_training();
        tmoe_progress p;
        float route[64];
        c.selection = kinds[k];
        c.temperature = c.temperature_min = 1e9f;
        set s = make(1, &c, &training);
        if (!s.trainer) return;
        CHECK(tmoe_expert_set_enabled(s.model, 1, 0, 0) == TMOE_OK);
        CHECK(tmoe_trainer_step(s.trainer, &p) == TMOE_OK);
        CHECK(s.trainer->use[c.experts] == 0.0f && s.trainer->entropy[1] >= 0.0f);
        CHECK((s.trainer->noise[0] == 0.0f) == (k == 0)); /* SOFTMAX draws none */
        CHECK(tmoe_route_of_task(s.model, 0, route) == TMOE_OK);
        CHECK(route[c.experts] == 0.0f);
        CHECK_NEAR(route[c.experts + 1] + route[c.experts + 2], 1.0, 1e-6);
        for (size_t i = 0; i < s.model->size; i++)
            if (!isfinite(s.model->theta[i])) CHECK(!"parameters are finite");
        unmake(&s);
    }
}

static void test_exploration_leaves_disabled_experts_alone(void)
{
    tmoe_config c = small_config();
    tmoe_training training = small_training();
    float most = 0.0f;
    c.exploration = 1.0f;
    set s = make(1, &c, &training);
    if (!s.trainer) return;
    CHECK(tmoe_expert_set_enabled(s.model, 1, 1, 0) == TMOE_OK);
    for (int i = 0; i < 8; i++) {
        CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
        CHECK(s.trainer->use[c.experts + 1] == 0.0f);
        CHECK_NEAR(s.trainer->use[c.experts] + s.trainer->use[c.experts + 2], 1.0, 1e-5);
        most = s.trainer->use[1] > most ? s.trainer->use[1] : most;
    }
    CHECK(most > 0.0f); /* in the other layer it is explored */
    unmake(&s);
}

/* Steps of two trainings with equal seeds, one with router_dropout: other routes in training, each
 * step; and none of it where routes are read. */
static void test_router_dropout_is_for_training_alone(void)
{
    tmoe_config c = small_config();
    tmoe_training t = small_training();
    float plain[64], dropped[64] = { 0.0f }, before[64];
    int alike = 0;
    t.train = TMOE_TRAIN_MODEL; /* so the router stays, and with it what it computes */
    set a = make(1, &c, &t);
    t.router_dropout = 0.5f;
    set b = make(1, &c, &t);
    const int n = b.model->R * c.experts;
    CHECK(n <= 64 && tmoe_route_of_task(b.model, 0, before) == TMOE_OK);
    for (int i = 0; i < 4; i++) {
        float last[64];
        memcpy(last, dropped, sizeof last);
        CHECK(tmoe_trainer_step(a.trainer, NULL) == TMOE_OK);
        CHECK(tmoe_trainer_step(b.trainer, NULL) == TMOE_OK);
        memcpy(plain, a.trainer->use, (size_t)n * sizeof(float));
        memcpy(dropped, b.trainer->use, (size_t)n * sizeof(float));
        CHECK(memcmp(plain, dropped, (size_t)n * sizeof(float)) != 0);
        alike += i > 0 && memcmp(last, dropped, (size_t)n * sizeof(float)) == 0;
    }
    CHECK(alike == 0); /* a new mask each step */
    CHECK(tmoe_route_of_task(a.model, 0, plain) == TMOE_OK);
    CHECK(tmoe_route_of_task(b.model, 0, dropped) == TMOE_OK);
    CHECK(memcmp(plain, dropped, (size_t)n * sizeof(float)) == 0);
    CHECK(memcmp(before, dropped, (size_t)n * sizeof(float)) == 0);
    unmake(&a);
    unmake(&b);
}

/* One task, four lines a step: were their route one, a step's use of an expert would be 0 or 1. */
static void test_random_routes_are_drawn_for_each_example(void)
{
    tmoe_config c = small_config();
    tmoe_training training = small_training();
    int parts = 0, several = 0;
    float first[6];
    c.selection = TMOE_SELECT_RANDOM_EXAMPLE;
    training.tasks_per_step = 1;
    set s = make(1, &c, &training);
    if (!s.trainer) return;
    for (int i = 0; i < 8; i++) {
        CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
        for (int e = 0; e < 2 * c.experts; e++) {
            const float quarters = 4.0f * s.trainer->use[e];
            CHECK(quarters == roundf(quarters));
            parts += quarters > 0.0f && quarters < 4.0f;
        }
        if (i == 0)
            memcpy(first, s.trainer->use, sizeof first);
        else
            several += memcmp(first, s.trainer->use, sizeof first) != 0;
    }
    CHECK(parts > 8 && several > 4);
    unmake(&s);
}

/* What succeeds clears the error of the call before; what only reads leaves it. */
static void test_a_call_that_succeeds_leaves_no_error(void)
{
    tmoe_config c = small_config();
    tmoe_training training = small_training();
    const char *path = "build/test_error.safetensors";
    float route[6];
    training.steps = 1;
    set s = make(1, &c, &training);
    if (!s.trainer) return;
    for (int call = 0; call < 8; call++) {
        CHECK(tmoe_route_of_task(s.model, -1, route) == TMOE_ERR_ARGUMENT);
        (void)tmoe_ctx_threads(s.ctx);
        (void)tmoe_model_find_task(s.model, "none");
        CHECK(tmoe_error(s.ctx) == TMOE_ERR_ARGUMENT);
        if (call == 0) CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
        if (call == 1) CHECK(tmoe_trainer_run(s.trainer) == TMOE_OK); /* nothing is left to do */
        if (call == 2) (void)tmoe_trainer_validation_loss(s.trainer);
        if (call == 3) CHECK(tmoe_trainer_save(s.trainer, path) == TMOE_OK);
        if (call == 4) CHECK(tmoe_trainer_load(s.trainer, path) == TMOE_OK);
        if (call == 5) CHECK(tmoe_route_of_task(s.model, 0, route) == TMOE_OK);
        if (call == 6) tmoe_tape_destroy(tmoe_tape_create(s.ctx));
        if (call == 7) tmoe_tokenizer_destroy(tmoe_suite_tokenizer(s.ctx, s.suite, 300));
        CHECK(tmoe_error(s.ctx) == TMOE_OK && !*tmoe_error_message(s.ctx));
    }
    (void)remove(path);
    unmake(&s);
}

static int order_of_numbers(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* The first and last streams of every use: no number twice.
 * Before, dropout's stream of a step's group 1,024 was that of the next step's group 0. */
static void test_random_streams_do_not_meet(void)
{
    static const int64_t steps[5] = { 0, 1, 2, INT32_MAX - 1, INT32_MAX };
    static const int groups[6] = { 0, 1, 1023, 1024, 1025,
        TMOEI_GROUPS_MAX * TMOEI_EXAMPLES_MAX - 1 };
    uint64_t streams[64];
    size_t n = 0, i;
    streams[n++] = 0; /* the tensors' */
    streams[n++] = TMOEI_TENSORS_MAX;
    for (i = TMOEI_STREAM_TASK_ROUTES; i <= TMOEI_STREAM_ACCEPTED; i++) streams[n++] = i;
    for (i = 0; i < 5; i++)
        for (size_t g = 0; g < 6; g++)
            streams[n++] = TMOEI_STREAM_DROPOUT | tmoei_group_number(steps[i], groups[g]);
    streams[n++] = TMOEI_STREAM_PERMUTATION | 0;
    streams[n++] = TMOEI_STREAM_PERMUTATION | INT32_MAX;
    streams[n++] = TMOEI_STREAM_RESAMPLE | 0;
    streams[n++] = TMOEI_STREAM_RESAMPLE | INT32_MAX;
    streams[n++] = TMOEI_STREAM_LINES | 0;
    streams[n++] = TMOEI_STREAM_LINES | INT32_MAX;
    qsort(streams, n, sizeof *streams, order_of_numbers);
    for (i = 1; i < n; i++) CHECK(streams[i - 1] < streams[i]);
}

/* Numbers are dealt in epochs, whatever a hand's size is and wherever it begins. */
static void test_tasks_and_lines_come_once_an_epoch(void)
{
    int order[7], all[7 * 20], hand[7];
    tmoei_deal(3, TMOEI_STREAM_TASKS, 0, order, 7, 7 * 20, all);
    for (int epoch = 0; epoch < 20; epoch++) {
        int seen = 0;
        for (int i = 0; i < 7; i++) seen |= 1 << all[7 * epoch + i];
        CHECK(seen == 127);
        if (epoch > 0) CHECK(memcmp(all, all + 7 * epoch, 7 * sizeof(int)) != 0);
    }
    for (int size = 1; size <= 7; size++)
        for (int at = 0; at + size <= 7 * 20; at += size) {
            tmoei_deal(3, TMOEI_STREAM_TASKS, (uint64_t)at, order, 7, size, hand);
            CHECK(memcmp(hand, all + at, (size_t)size * sizeof(int)) == 0);
        }

    /* the trainer's own: 3 tasks, 2 a step; 10 lines each, 4 a step */
    tmoe_config c = small_config();
    tmoe_training t = small_training();
    int tasks[3] = { 0 }, lines[30] = { 0 };
    t.tasks_per_step = 2;
    t.steps = 15;
    set s = make(1, &c, &t);
    for (int step = 0; step < 15; step++) {
        CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
        for (int g = 0; g < 2; g++) {
            tasks[s.trainer->step_tasks[g]]++;
            for (int i = 0; i < 4; i++) lines[s.trainer->chosen[4 * g + i]]++;
        }
    }
    for (int task = 0; task < 3; task++) CHECK(tasks[task] == 10);
    for (int line = 0; line < 30; line++) CHECK(lines[line] == 4);
    unmake(&s);
}

/* Without a number of lines a step has 64 of them, shared by its tasks. */
static void test_a_step_has_64_lines_unless_told(void)
{
    static const int tasks[3] = { 1, 2, 32 }, lines[3] = { 64, 32, 21 };
    for (int i = 0; i < 3; i++) {
        const tmoe_config c = small_config();
        tmoe_training t = small_training();
        t.tasks_per_step = tasks[i];
        t.examples_per_task = 0;
        set s = make(1, &c, &t);
        CHECK(s.trainer && s.trainer->training.examples_per_task == lines[i]);
        unmake(&s);
    }
}

/* A group in which two epochs meet may have its longest line twice: that is planned for. */
static void test_a_line_that_comes_twice_in_a_group_is_within_the_plan(void)
{
    static const char *const inputs[3] = { "a", "b", "cccccccccccccccccccccccccccccccc" };
    static const char *const outputs[3] = { "a", "b", "cccccccccccc" };
    const tmoe_config c = small_config();
    tmoe_training t = small_training();
    tmoe_ctx *ctx = context(1);
    tmoe_suite *suite = tmoe_suite_create(ctx);
    tmoe_tokenizer *tokenizer = tmoe_tokenizer_bytes(ctx);
    int twice = 0;
    t.examples_per_task = 2;
    t.steps = 60;
    CHECK(add_task(suite, "one", NULL, "1", TMOE_PART_TRAIN, inputs, outputs, 3, 0) == TMOE_OK);
    tmoe_model *model = tmoe_model_create(ctx, &c, tokenizer, suite->tasks, 1);
    tmoe_trainer *trainer = tmoe_trainer_create(model, suite, &t);
    CHECK(trainer && trainer->group.sources == 2 * 34 && trainer->group.targets == 2 * 13);
    const size_t before = tmoe_ctx_bytes(ctx, NULL);
    for (int step = 0; trainer && step < 60; step++) {
        CHECK(tmoe_trainer_step(trainer, NULL) == TMOE_OK);
        twice += trainer->chosen[0] == trainer->chosen[1] && trainer->chosen[0] == 2;
    }
    size_t peak;
    CHECK(twice > 0 && tmoe_ctx_bytes(ctx, &peak) == before && peak == before);
    tmoe_trainer_destroy(trainer);
    tmoe_model_destroy(model);
    tmoe_tokenizer_destroy(tokenizer);
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
}

static void test_tuning_the_experts_leaves_other_layers_alone(void)
{
    tmoe_config c = small_config();
    tmoe_training training = small_training();
    float route[3] = { 0.5f, 0.25f, 0.25f };
    c.expert_places = TMOE_DECODER;
    set s = make(1, &c, &training);
    if (!s.trainer) return;
    c.experts = 1;
    training.train = TMOE_TRAIN_LAYERS;
    tmoe_model *model = tmoe_model_derive(s.ctx, s.model, route, &c, tmoe_suite_task(s.suite, 0),
        tmoe_suite_count(s.suite));
    tmoe_trainer *trainer = model ? tmoe_trainer_create(model, s.suite, &training) : NULL;
    CHECK(trainer != NULL);
    if (trainer) {
        float *before = (float *)malloc(model->size * sizeof(float));
        memcpy(before, model->theta, model->size * sizeof(float));
        tmoei_train_experts_only(trainer, s.model);
        for (int i = 0; i < trainer->update_count; i++) { /* each piece of the block once */
            CHECK(
                trainer->updates[i].offset - model->layers[1].block < model->layers[1].block_size);
            CHECK(i == 0 || trainer->updates[i].offset > trainer->updates[i - 1].offset);
        }
        for (int i = 0; i < 3; i++) CHECK(tmoe_trainer_step(trainer, NULL) == TMOE_OK);
        for (size_t i = 0, in_expert; i < model->size; i++) {
            in_expert = i - model->layers[1].block < model->layers[1].block_size;
            if (!in_expert) CHECK(before[i] == model->theta[i]);
        }
        CHECK(memcmp(before + model->layers[1].block, model->theta + model->layers[1].block,
                  model->layers[1].block_size * sizeof(float))
            != 0);
        free(before);
    }
    tmoe_trainer_destroy(trainer);
    tmoe_model_destroy(model);
    unmake(&s);
}

static void test_both_mixes_agree_on_one_hot_routes(void)
{
    tmoe_config c = small_config();
    tmoe_training t = small_training();
    float route[6] = { 0.0f, 1.0f, 0.0f, 0.0f, 0.0f, 1.0f }, *a, *b;
    size_t n = 0, i;
    set p, o;
    c.expert_noise = 1.0f;
    p = make(1, &c, &t);
    c.mix = TMOE_MIX_OUTPUT;
    o = make(1, &c, &t);
    a = logits_of(&p, route, &n);
    b = logits_of(&o, route, &n);
    for (i = 0; i < n; i++) CHECK_NEAR(a[i], b[i], 1e-5);
    free(a);
    free(b);
    unmake(&p);
    unmake(&o);
}

/* PARAM against an explicit dense model whose layers are the merged blocks: bit for bit. */
static void test_param_mix_is_the_dense_model_of_its_merged_blocks(void)
{
    tmoe_config c = small_config();
    tmoe_training t = small_training();
    float route[6] = { 0.2f, 0.5f, 0.3f, 0.6f, 0.3f, 0.1f }, *a, *b;
    size_t n = 0, m = 0;
    int l;
    set moe, dense;
    c.expert_noise = 1.0f;
    moe = make(1, &c, &t);
    c.experts = 1;
    dense = make(1, &c, &t);
    a = logits_of(&moe, route, &n);
    for (l = 0; l < TMOEI_SHARED; l++)
        memcpy(dense.model->theta + dense.model->parameters[l].offset,
            moe.model->theta + moe.model->parameters[l].offset,
            (size_t)moe.model->parameters[l].rows * (size_t)moe.model->parameters[l].cols
                * sizeof(float));
    for (l = 0; l < moe.model->L; l++) {
        CHECK(moe.model->layers[l].block_size == dense.model->layers[l].block_size);
        memcpy(dense.model->theta + dense.model->layers[l].block, moe.model->blocks[l],
            moe.model->layers[l].block_size * sizeof(float));
    }
    b = logits_of(&dense, NULL, &m);
    CHECK(n == m && n > 0 && memcmp(a, b, n * sizeof(float)) == 0);
    free(a);
    free(b);
    unmake(&moe);
    unmake(&dense);
}

/* Routes in evaluation carry no noise: asked twice they are equal, and they are what decoding uses
 * (faults 1 and 2). */
/* A task cut out of a mixture is a dense model with the same numbers; a dense model upcycled
 * without noise is the dense model. */
static void test_derived_models_compute_what_they_came_from(void)
{
    for (int kind = 0; kind < 4; kind++) {
        tmoe_config c = small_config(), dense;
        c.positions = kind / 2 ? TMOE_POSITION_ROTARY : TMOE_POSITION_LEARNED;
        tmoe_training training = small_training();
        float route[64], *a, *b;
        size_t n, m;
        c.expert_kind = kind % 2 ? TMOE_EXPERT_FFN : TMOE_EXPERT_LAYER;
        set s = make(1, &c, &training), d;
        if (!s.trainer) return;
        for (int i = 0; i < 8; i++) CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
        CHECK(tmoe_route_of_task(s.model, 0, route) == TMOE_OK);
        a = logits_of(&s, NULL, &n);
        dense = c;
        dense.experts = 1;
        tmoe_model *mixture = s.model,
                   *cut = tmoe_model_derive(s.ctx, s.model, route, &dense,
                       tmoe_suite_task(s.suite, 0), 1);
        CHECK(cut && cut->R == 0);
        d = s;
        d.model = cut;
        b = logits_of(&d, NULL, &m);
        CHECK(n == m);
        for (size_t i = 0; a && b && i < n; i++) CHECK_NEAR(a[i], b[i], 1e-5);
        free(a);

        /* of a one-hot route they are the same bits, whatever the mix averages */
        static const float one_hot[6] = { 0.0f, 1.0f, 0.0f, 0.0f, 0.0f, 1.0f };
        tmoe_model *chosen =
            tmoe_model_derive(s.ctx, s.model, one_hot, &dense, tmoe_suite_task(s.suite, 0), 1);
        a = logits_of(&s, one_hot, &n);
        d.model = chosen;
        float *one = logits_of(&d, NULL, &m);
        CHECK(n == m && memcmp(a, one, n * sizeof(float)) == 0);
        tmoe_model_destroy(chosen);
        free(a);
        free(one);

        c.expert_noise = 0.0f;
        c.expert_kind = TMOE_EXPERT_LAYER;
        tmoe_model *up = tmoe_model_derive(s.ctx, cut, NULL, &c, tmoe_suite_task(s.suite, 0),
            tmoe_suite_count(s.suite));
        CHECK(up && up->R == 2);
        d.model = up;
        a = logits_of(&d, NULL, &m);
        for (size_t i = 0; a && b && i < n; i++) CHECK_NEAR(a[i], b[i], 1e-5);
        free(a);
        free(b);
        tmoe_model *same = tmoe_model_derive(s.ctx, mixture, NULL, NULL,
            tmoe_suite_task(s.suite, 0), tmoe_suite_count(s.suite));
        CHECK(same && memcmp(same->theta, mixture->theta, same->size * sizeof(float)) == 0
            && same->step == mixture->step);
        c.width = 32;
        CHECK(tmoe_model_derive(s.ctx, mixture, NULL, &c, tmoe_suite_task(s.suite, 0),
                  tmoe_suite_count(s.suite))
            == NULL);
        CHECK_HAS(tmoe_error_message(s.ctx), "must stay");
        tmoe_model_destroy(cut);
        tmoe_model_destroy(up);
        tmoe_model_destroy(same);
        unmake(&s);
    }
}

/* One test for each field that changes what copied weights compute; the others are free. */
static void test_a_derived_model_keeps_all_that_its_weights_depend_on(void)
{
    tmoe_config c = small_config();
    const tmoe_training training = small_training();
    c.positions = TMOE_POSITION_LEARNED;
    c.rotary_base = 100.0f;
    set s = make(1, &c, &training);
    if (!s.trainer) return;
    const tmoe_task *tasks = tmoe_suite_task(s.suite, 0);
    const int n = tmoe_suite_count(s.suite);
    c = *tmoe_model_config(s.model);
    tmoe_config d = c;
    d.activation = TMOE_RELU;
    d.scale_embedding = 1;
    d.encoder_heads = 4;
    d.decoder_heads = 1;
    d.norm = TMOE_NORM_POST;
    d.begin_in_target = 1;
    d.start_id = 1;
    d.source_tokens++;
    d.positions = TMOE_POSITION_ROTARY;
    d.rotary_base = 50.0f;
    CHECK(tmoe_model_derive(s.ctx, s.model, NULL, &d, tasks, n) == NULL
        && tmoe_error(s.ctx) == TMOE_ERR_CONFIG);
    CHECK_HAS(tmoe_error_message(s.ctx), "activation is 2, must stay 1");
    CHECK_HAS(tmoe_error_message(s.ctx), "scale_embedding is 1, must stay 0");
    CHECK_HAS(tmoe_error_message(s.ctx), "encoder_heads is 4, must stay 2");
    CHECK_HAS(tmoe_error_message(s.ctx), "decoder_heads is 1, must stay 2");
    CHECK_HAS(tmoe_error_message(s.ctx), "norm is 1, must stay 0");
    CHECK_HAS(tmoe_error_message(s.ctx), "begin_in_target is 1, must stay 0");
    CHECK_HAS(tmoe_error_message(s.ctx), "positions is 1, must stay 0");
    CHECK_HAS(tmoe_error_message(s.ctx), "rotary_base is 50, must stay 100");
    CHECK_HAS(tmoe_error_message(s.ctx), "start_id is 1, must stay 2");
    CHECK_HAS(tmoe_error_message(s.ctx), "source_tokens is 41, must stay 40");

    d = c; /* experts that are layers differ in their attention, too */
    d.expert_kind = TMOE_EXPERT_FFN;
    CHECK(tmoe_model_derive(s.ctx, s.model, NULL, &d, tasks, n) == NULL);
    CHECK_HAS(tmoe_error_message(s.ctx), "expert_kind must stay");
    d.experts = 1;
    tmoe_model *mean = tmoe_model_derive(s.ctx, s.model, NULL, &d, tasks, n);
    CHECK(mean != NULL);
    tmoe_model_destroy(mean);

    d = c; /* experts that are FFNs share their attention: a layer can begin with it */
    d.experts = 2;
    d.expert_kind = TMOE_EXPERT_FFN;
    tmoe_model *ffns = tmoe_model_derive(s.ctx, s.model, NULL, &d, tasks, n);
    for (int experts = 1; ffns && experts < 4; experts++) {
        d.experts = experts;
        d.expert_kind = TMOE_EXPERT_LAYER;
        d.expert_noise = 0.0f;
        tmoe_model *layers = tmoe_model_derive(s.ctx, ffns, NULL, &d, tasks, n);
        for (int e = 0; layers && e < experts; e++)
            CHECK(memcmp(tmoei_piece_of(layers, 0, TMOEI_SELF_OUT, e),
                      tmoei_piece_of(ffns, 0, TMOEI_SELF_OUT, 0), 16 * 16 * sizeof(float))
                == 0);
        CHECK(layers != NULL);
        tmoe_model_destroy(layers);
    }
    tmoe_model_destroy(ffns);

    d = c; /* how texts become tokens, how experts are mixed and what trains them is free */
    d.vocabulary = 0;
    d.task_input = c.task_input ^ TMOE_TASK_TEXT;
    d.specials_in_text = 1;
    d.mix = TMOE_MIX_OUTPUT;
    d.selection = TMOE_SELECT_GUMBEL;
    d.router = TMOE_ROUTER_LSTM;
    d.vectors = TMOE_VECTOR_LEARNED;
    tmoe_model *other = tmoe_model_derive(s.ctx, s.model, NULL, &d, tasks, n);
    CHECK(other && other->V == s.model->V && other->step == 0);
    tmoe_model_destroy(other);
    unmake(&s);
}

static void set_all(tmoe_model *model, float value)
{
    for (size_t i = 0; i < model->size; i++) model->theta[i] = value;
}

/* A router is taken whole or not at all: the same kind, for the same layers. Vectors made of text
 * stay what their instruction says. */
static void test_a_router_is_taken_whole_or_not_at_all(void)
{
    tmoe_ctx *ctx = context(1);
    tmoe_tokenizer *tokenizer = tmoe_tokenizer_bytes(ctx);
    tmoe_suite *suite = small_suite(ctx);
    for (int change = 0; change < 7; change++) {
        tmoe_config c = small_config(), d = c;
        if (change == 1) d.router = TMOE_ROUTER_TRANSFORMER_LAYER_SPECIFIC;
        if (change == 2) d.experts = 2;
        if (change == 3) c.expert_places = TMOE_ENCODER;
        if (change == 3) d.expert_places = TMOE_DECODER;
        if (change == 4) d.vectors = TMOE_VECTOR_LEARNED;
        if (change == 5) c.vectors = d.vectors = TMOE_VECTOR_GIVEN;
        if (change == 6) c.vectors = d.vectors = TMOE_VECTOR_GIVEN;
        if (change == 6) c.vector_width = 8; /* then no vector is copied, either */
        tmoe_model *from = tmoe_model_create(ctx, &c, tokenizer, tmoe_suite_task(suite, 1), 2);
        tmoe_model *to = tmoe_model_create(ctx, &d, tokenizer, tmoe_suite_task(suite, 0), 3);
        if (!from || !to) {
            CHECK(0);
            return;
        }
        set_all(from, 1.0f);
        set_all(to, 2.0f);
        const int taken = change == 0 || change == 4 || change == 5,
                  rows = change == 4 || change == 5;
        CHECK(tmoe_model_take_router(to, from) == taken);
        for (size_t i = to->parameters[to->router_parameter].offset; i < to->vectors; i++)
            CHECK(to->theta[i] == (taken ? 1.0f : 2.0f));
        for (size_t i = 0; i < 48; i++) /* of tasks 0, 1, 2; from knows 1 and 2 */
            CHECK(to->theta[to->vectors + i] == (rows && i >= 16 ? 1.0f : 2.0f));
        CHECK(to->theta[0] == 2.0f);
        tmoe_model_destroy(from);
        tmoe_model_destroy(to);
    }
    tmoe_suite_destroy(suite);
    tmoe_tokenizer_destroy(tokenizer);
    tmoe_ctx_destroy(ctx);
}

static void refuses(tmoe_ctx *ctx, const tmoe_tokenizer *tokenizer, const tmoe_task *tasks,
    const tmoe_config *c, const char *message)
{
    CHECK(tmoe_model_create(ctx, c, tokenizer, tasks, 3) == NULL
        && tmoe_error(ctx) == TMOE_ERR_CONFIG);
    CHECK_HAS(tmoe_error_message(ctx), message);
}

static void test_enums_and_limits_of_a_config_are_checked(void)
{
    tmoe_ctx *ctx = context(1);
    tmoe_tokenizer *tokenizer = tmoe_tokenizer_bytes(ctx);
    tmoe_suite *suite = small_suite(ctx);
    const tmoe_task *tasks = tmoe_suite_task(suite, 0);
    for (int low = 0; low < 2; low++) {
        tmoe_config c = small_config();
        c.norm = (tmoe_norm)(low ? -1 : 2);
        c.activation = low ? TMOE_NONE : TMOE_TANH;
        c.expert_kind = (tmoe_expert_kind)(low ? -1 : 2);
        c.mix = (tmoe_mix)(low ? -1 : 2);
        c.selection = (tmoe_selection)(low ? -1 : 6);
        c.router = (tmoe_router_kind)(low ? -1 : 11);
        c.vectors = (tmoe_vector_kind)(low ? -1 : 3);
        c.positions = (tmoe_position_kind)(low ? -1 : 2);
        c.rotary_base = low ? 1.0f : (float)INFINITY;
        c.expert_places = low ? -1 : 4;
        refuses(ctx, tokenizer, tasks, &c, low ? "norm is -1" : "norm is 2");
        CHECK_HAS(tmoe_error_message(ctx), low ? "activation is 0" : "activation is 3");
        CHECK_HAS(tmoe_error_message(ctx), low ? "expert_kind is -1" : "expert_kind is 2");
        CHECK_HAS(tmoe_error_message(ctx), low ? "mix is -1" : "mix is 2");
        CHECK_HAS(tmoe_error_message(ctx), low ? "selection is -1" : "selection is 6");
        CHECK_HAS(tmoe_error_message(ctx), low ? "router is -1" : "router is 11");
        CHECK_HAS(tmoe_error_message(ctx), low ? "vectors is -1" : "vectors is 3");
        CHECK_HAS(tmoe_error_message(ctx), low ? "expert_places is -1" : "expert_places is 4");
        CHECK_HAS(tmoe_error_message(ctx), low ? "positions is -1" : "positions is 2");
        CHECK_HAS(tmoe_error_message(ctx), low ? "rotary_base is 1," : "rotary_base is inf");
    }
    tmoe_config c = small_config();
    c.decoder_heads = 16;
    c.positions = TMOE_POSITION_LEARNED;
    tmoe_model *odd = tmoe_model_create(ctx, &c, tokenizer, tasks, 3);
    CHECK(odd != NULL); /* only what is turned comes in pairs */
    tmoe_model_destroy(odd);
    c.positions = TMOE_POSITION_ROTARY;
    refuses(ctx, tokenizer, tasks, &c, "heads of width 8 and 1, must be even");
    c = small_config();
    c.experts = 65;
    refuses(ctx, tokenizer, tasks, &c, "experts is 65");
    c = small_config();
    c.router = TMOE_ROUTER_TRANSFORMER; /* reads vectors; the layer-specific one a projection */
    c.vector_width = 18;
    refuses(ctx, tokenizer, tasks, &c, "vector_width is 18, must be divisible by");
    c.router = TMOE_ROUTER_TRANSFORMER_LAYER_SPECIFIC;
    c.router_hidden = 6;
    refuses(ctx, tokenizer, tasks, &c, "router_hidden is 6, must be divisible by");
    c.router_hidden = 8;
    tmoe_model *model = tmoe_model_create(ctx, &c, tokenizer, tasks, 3);
    CHECK(model != NULL);
    tmoe_model_destroy(model);
    tmoe_task nameless = *tasks;
    nameless.instruction = NULL;
    CHECK(tmoe_model_create(ctx, &c, tokenizer, &nameless, 1) == NULL
        && tmoe_error(ctx) == TMOE_ERR_ARGUMENT);
    tmoe_suite_destroy(suite);
    tmoe_tokenizer_destroy(tokenizer);
    tmoe_ctx_destroy(ctx);
}

static void test_a_training_in_which_nothing_would_move_is_refused(void)
{
    tmoe_ctx *ctx = context(1);
    tmoe_suite *suite = small_suite(ctx);
    tmoe_tokenizer *tokenizer = tmoe_tokenizer_bytes(ctx);
    for (int way = 0; way < 4; way++) {
        tmoe_config c = small_config();
        tmoe_training t = small_training();
        if (way == 0) { /* no router */
            c.selection = TMOE_SELECT_AVERAGE;
            t.train = TMOE_TRAIN_ROUTER;
        } else if (way == 1) { /* text vectors are fixed */
            t.train = TMOE_TRAIN_TASKS;
        } else { /* one of the turns has nothing to move; way 3: both have */
            t.train = way == 2 ? TMOE_TRAIN_MODEL : TMOE_TRAIN_ALL;
            t.alternate_steps = 2;
        }
        tmoe_model *model = tmoe_model_create(ctx, &c, tokenizer, tmoe_suite_task(suite, 0),
            tmoe_suite_count(suite));
        CHECK(model != NULL);
        tmoe_trainer *trainer = tmoe_trainer_create(model, suite, &t);
        CHECK((trainer != NULL) == (way == 3));
        CHECK(tmoe_error(ctx) == (way == 3 ? TMOE_OK : TMOE_ERR_CONFIG));
        tmoe_trainer_destroy(trainer);
        tmoe_model_destroy(model);
    }
    tmoe_training t = small_training(); /* the second stage has no turns */
    t.steps = 6;
    t.alternate_steps = 2;
    tmoe_config c = small_config();
    tmoe_model *model = tmoe_train_two_stages(ctx, suite, NULL, &c, NULL, &t);
    CHECK(model != NULL);
    tmoe_model_destroy(model);
    tmoe_tokenizer_destroy(tokenizer);
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
}

static void test_two_stages_keep_the_router_and_sharpen(void)
{
    tmoe_ctx *ctx = context(1);
    tmoe_suite *suite = small_suite(ctx);
    tmoe_config c = small_config();
    tmoe_training one = small_training(), two = small_training();
    float a[64], b[64];
    c.vectors = TMOE_VECTOR_LEARNED;
    one.steps = 30;
    two.steps = 40;
    tmoe_model *model = tmoe_train_two_stages(ctx, suite, NULL, &c, &one, &two);
    if (!model) {
        printf("%s\n", tmoe_error_message(ctx));
        CHECK(model != NULL);
        return;
    }
    CHECK_NEAR(tmoe_model_temperature(model), 1.0, 1e-6); /* 300 at its start */
    c.selection = TMOE_SELECT_STRAIGHT_THROUGH;
    c.temperature = 2.0f;
    c.temperature_min = 0.1f;
    c.temperature_decay = (float)(log(20.0) * 3.0 / 30);
    tmoe_model *first = tmoe_train_from(ctx, suite, NULL, NULL, &c, &one);
    CHECK(first != NULL);
    for (int t = 0; first && t < 3; t++) {
        CHECK(tmoe_route_of_task(model, t, a) == TMOE_OK
            && tmoe_route_of_task(first, t, b) == TMOE_OK);
        for (int i = 0; i < 6; i++)
            if (b[i] == 1.0f)
                for (int e = i / 3 * 3; e < i / 3 * 3 + 3; e++)
                    CHECK(a[i] >= a[e]); /* the same experts lead */
    }
    const size_t router = model->parameters[model->router_parameter].offset,
                 n = model->vectors - router;
    CHECK(first
        && memcmp(model->theta + router, first->theta + router, n * sizeof(float))
            == 0); /* bit for bit: frozen */
    CHECK(first
        && memcmp(model->theta + model->vectors, first->theta + first->vectors,
               3 * 16 * sizeof(float))
            == 0);
    CHECK(first && memcmp(model->theta, first->theta, 1000 * sizeof(float)) != 0);
    one.train = TMOE_TRAIN_LAYERS;
    tmoe_model *again = first ? tmoe_train_from(ctx, suite, first, model, &c, &one)
                              : NULL; /* one's layers, the other's router */
    CHECK(again && memcmp(again->theta + router, model->theta + router, n * sizeof(float)) == 0);
    CHECK(again && memcmp(again->theta, first->theta, 1000 * sizeof(float)) == 0
        && memcmp(again->theta + again->layers[0].block, first->theta + first->layers[0].block,
               1000 * sizeof(float))
            != 0);
    tmoe_model_destroy(again);
    tmoe_model_destroy(first);
    tmoe_model_destroy(model);
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
}

/* The likelihood of each label by itself, from a pass without the ranking code's packing of many
 * labels. */
static void test_ranking_takes_the_most_likely_label(void)
{
    tmoe_config c = paper_config();
    tmoe_training training = paper_training();
    static const char *const labels[3] = { "#", "ANT", "no" },
                             *const inputs[3] = { "ant", "bee", "cat" };
    int chosen[3], differ = 0;
    set s = make(1, &c, &training);
    if (!s.trainer) return;
    tmoe_task task = *tmoe_suite_task(s.suite, 0);
    for (int i = 0; i < 60; i++) CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
    CHECK(tmoe_choose_label(s.model, &task, NULL, inputs, 3, TMOE_LABEL_SUM, chosen)
        == TMOE_ERR_ARGUMENT);
    CHECK_HAS(tmoe_error_message(s.ctx), "closed set");
    task.labels = labels;
    task.label_count = 3;
    for (int normalised = 0; normalised < 2; normalised++) {
        CHECK(
            tmoe_choose_label(s.model, &task, NULL, inputs, 3, (tmoe_label_score)normalised, chosen)
            == TMOE_OK);
        for (int i = 0; i < 3; i++) {
            double best = -1e30;
            int expected = -1, ids[64];
            for (int l = 0; l < 3; l++) {
                tmoei_pass pass;
                tmoei_pack source, target;
                int positions[64], tids[16], tpositions[16], soff[2] = { 0, 0 }, toff[2] = { 0, 0 };
                size_t count;
                double sum = 0.0;
                CHECK(tmoei_encode_source(s.model->tokenizer, task.instruction, inputs[i], 0, ids,
                          64, &count)
                    == TMOE_OK);
                for (int j = 0; j < 64; j++) positions[j] = j;
                memset(&source, 0, sizeof source);
                memset(&target, 0, sizeof target);
                source.ids = ids;
                source.positions = positions;
                source.offsets = soff;
                source.sequences = 1;
                source.tokens = soff[1] = (int)count;
                const int n = (int)strlen(labels[l]) + 1;
                for (int j = 0; j < n; j++) {
                    tids[j] = j ? 3 + labels[l][j - 1] : 2;
                    tpositions[j] = j;
                }
                target.ids = tids;
                target.positions = tpositions;
                target.offsets = toff;
                target.sequences = 1;
                target.tokens = toff[1] = n;
                CHECK(tmoei_evaluation_pass(s.model, &first_task, s.model->tape, &pass) == TMOE_OK);
                const tmoe_tensor *h = tmoei_head(&pass,
                    tmoei_decode(&pass, &target, tmoei_encode(&pass, &source), &source));
                for (int j = 0; h && j < n; j++) {
                    double z = 0.0;
                    const float *x = h->x + j * s.model->V;
                    for (int v = 0; v < s.model->V; v++) z += exp((double)x[v]);
                    sum += (double)x[j + 1 < n ? 3 + labels[l][j] : 2] - log(z);
                }
                float score = 0.0f;
                CHECK(tmoe_score_answers(s.model, task.name, NULL, NULL, inputs[i], &labels[l], 1,
                          &score)
                    == TMOE_OK);
                CHECK_NEAR(score, sum, 1e-4);
                if (normalised) sum /= n;
                if (sum > best) {
                    best = sum;
                    expected = l;
                }
            }
            CHECK(chosen[i] == expected);
            differ |= normalised && expected != 0;
        }
    }
    CHECK(differ); /* the mean does not favour the shortest label */
    unmake(&s);
}

static void test_the_best_answers_come_with_their_likelihoods(void)
{
    tmoe_config c = paper_config();
    tmoe_training training = paper_training();
    char *answers[5] = { NULL }, *unseen[1] = { NULL };
    float likely[5], again[5], lone;
    set s = make(1, &c, &training);
    if (!s.trainer) return;
    const tmoe_task *task = tmoe_suite_task(s.suite, 0);
    for (int i = 0; i < 30; i++) CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
    CHECK(tmoe_answer_best(s.model, task->name, NULL, NULL, "ant", 5, answers, likely) == TMOE_OK);
    CHECK(tmoe_score_answers(s.model, task->name, NULL, NULL, "ant", (const char *const *)answers,
              5, again)
        == TMOE_OK);
    for (int i = 0; i < 5; i++) {
        CHECK_NEAR(likely[i], again[i], 1e-4);
        CHECK(likely[i] <= 0.0f && (i == 0 || likely[i] <= likely[i - 1]));
    }
    CHECK(strcmp(answers[0], answers[1]) != 0);

    CHECK(tmoe_answer_best(s.model, NULL, "Say it backwards.", NULL, "ant", 1, unseen, &lone)
        == TMOE_OK);
    CHECK(tmoe_score_answers(s.model, NULL, "Say it backwards.", NULL, "ant",
              (const char *const *)unseen, 1, again)
        == TMOE_OK);
    CHECK_NEAR(lone, again[0], 1e-4);
    CHECK(tmoe_score_answers(s.model, task->name, NULL, NULL, "ant", NULL, 0, NULL) == TMOE_OK);

    /* a known task or an instruction, not both and not neither */
    for (int both = 0; both < 2; both++) {
        const char *name = both ? task->name : NULL, *instruction = both ? "Say it." : NULL;
        char *none[1] = { answers[0] };
        CHECK(tmoe_answer_best(s.model, name, instruction, NULL, "ant", 1, none, likely)
            == TMOE_ERR_ARGUMENT);
        CHECK(none[0] == NULL);
        CHECK_HAS(tmoe_error_message(s.ctx), "must be NULL, but not both");
        CHECK(tmoe_score_answers(s.model, name, instruction, NULL, "ant",
                  (const char *const *)unseen, 1, again)
            == TMOE_ERR_ARGUMENT);
    }
    tmoe_answers_free(s.model, unseen, 1);
    CHECK(tmoe_answer_best(s.model, "no such task", NULL, NULL, "ant", 1, unseen, &lone)
        == TMOE_ERR_ARGUMENT);
    CHECK(unseen[0] == NULL);
    CHECK(tmoe_answer_best(s.model, task->name, NULL, NULL, "ant", 0, unseen, &lone)
        == TMOE_ERR_ARGUMENT);
    tmoe_answers_free(s.model, answers, 5);
    unmake(&s);
}

static void test_parameters_are_read_and_written_by_their_names(void)
{
    tmoe_config c = small_config();
    tmoe_training training = small_training();
    tmoe_parameter p;
    set s = make(1, &c, &training);
    float before[64], after[64], zeros[4096] = { 0.0f };
    size_t total = 0;
    int i, found = -1;
    for (i = 0; tmoe_model_parameter(s.model, i, &p); i++) {
        total += (size_t)p.rows * (size_t)p.cols;
        CHECK(p.name && p.values);
        if (found < 0 && strncmp(p.name, "router", 6) == 0 && p.rows * p.cols <= 4096) found = i;
    }
    CHECK(total == tmoe_model_parameters(s.model, NULL));
    CHECK(!tmoe_model_parameter(s.model, -1, &p) && !p.name);
    CHECK(found >= 0 && tmoe_model_parameter(s.model, found, &p));
    CHECK(tmoe_route_of_task(s.model, 0, before) == TMOE_OK);
    CHECK(tmoe_model_parameter_set(s.model, p.name, zeros) == TMOE_OK);
    CHECK(p.values[0] == 0.0f && memcmp(p.values, zeros, sizeof(float)) == 0);
    CHECK(tmoe_route_of_task(s.model, 0, after) == TMOE_OK);
    CHECK(memcmp(before, after, sizeof(float) * (size_t)(s.model->R * c.experts)) != 0);

    zeros[0] = (float)INFINITY;
    CHECK(tmoe_model_parameter_set(s.model, p.name, zeros) == TMOE_ERR_ARGUMENT);
    CHECK_HAS(tmoe_error_message(s.ctx), "must be finite");
    CHECK(p.values[0] == 0.0f);
    CHECK(tmoe_model_parameter_set(s.model, "no.such", zeros) == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_model_parameter_set(s.model, NULL, zeros) == TMOE_ERR_ARGUMENT);
    unmake(&s);
}

static void test_the_text_vector_is_the_models(void)
{
    tmoe_config c = small_config();
    tmoe_training training = small_training();
    float ours[1024], theirs[1024];
    set s = make(1, &c, &training);
    CHECK(c.vector_width <= 1024);
    CHECK(tmoe_text_vector(tmoe_model_config(s.model), "Copy the word.", ours) == TMOE_OK);
    CHECK(tmoe_vector_unseen(s.model, "Copy the word.", theirs) == TMOE_OK);
    CHECK(memcmp(ours, theirs, sizeof(float) * (size_t)c.vector_width) == 0);
    CHECK(tmoe_text_vector(NULL, "a", ours) == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_text_vector(&c, NULL, ours) == TMOE_ERR_ARGUMENT);
    unmake(&s);
}

/* ---- a router of the program's own ---- */

/* z_le = 5 cos(e, prototype of layer l and expert e) */
static tmoe_tensor *prototypes(void *user, tmoe_tape *tape, tmoe_tensor *vectors,
    tmoe_tensor *const *parameters, int columns)
{
    int *calls = (int *)user;
    ++*calls;
    CHECK(parameters[0]->rows == columns);
    tmoe_tensor *cosines = tmoe_linear(tape, tmoe_normalize(tape, vectors),
        tmoe_normalize(tape, parameters[0]), NULL, TMOE_NONE, NULL);
    return tmoe_affine(tape, cosines, 5.0f, 0.0f);
}

static tmoe_tensor *wrong_logits(void *user, tmoe_tape *tape, tmoe_tensor *vectors,
    tmoe_tensor *const *parameters, int columns)
{
    (void)tape;
    (void)parameters;
    (void)columns;
    return user ? vectors : NULL; /* of another width, or none */
}

static void test_a_router_of_ones_own_is_trained_and_saved(void)
{
    const char *path = "build/test_own_router.safetensors";
    tmoe_config c = small_config();
    tmoe_training training = small_training();
    tmoe_own_parameter parameter = { "prototypes", 0, 0, 0.3f };
    int calls = 0;
    const tmoe_own_router own = { prototypes, &calls, &parameter, 1 };
    float route[64], again[64];
    tmoe_ctx *ctx = context(1);
    tmoe_suite *suite = small_suite(ctx);
    tmoe_tokenizer *tokenizer = tmoe_tokenizer_bytes(ctx);
    c.router = TMOE_ROUTER_OWN;
    parameter.cols = c.vector_width;
    parameter.rows = (c.encoder_layers + c.decoder_layers) * c.experts;
    refuses(ctx, tokenizer, tmoe_suite_task(suite, 0), &c, "tmoe_ctx_set_router gave none");

    tmoe_ctx_set_router(ctx, &own);
    tmoe_model *model = tmoe_model_create(ctx, &c, tokenizer, tmoe_suite_task(suite, 0), 3);
    CHECK(model != NULL && model->R * c.experts == parameter.rows && parameter.rows <= 64);
    const int n = parameter.rows;
    tmoe_trainer *trainer = tmoe_trainer_create(model, suite, &training);
    CHECK(trainer && tmoe_route_of_task(model, 0, route) == TMOE_OK && calls > 0);

    /* its gradient: the loss falls along it */
    const tmoei_parameter *p = &model->parameters[model->router_parameter];
    CHECK_TEXT(p->name, "router.own.prototypes");
    const float before = model->theta[p->offset];
    for (int i = 0; i < 6; i++) CHECK(tmoe_trainer_step(trainer, NULL) == TMOE_OK);
    CHECK(model->theta[p->offset] != before);

    /* saved and loaded: equal routes; refused where the context has no router, or another one */
    CHECK(tmoe_model_save(model, path) == TMOE_OK);
    CHECK(tmoe_route_unseen(model, "Copy the words.", TMOE_ZERO_SHOT_ROUTER, route) == TMOE_OK);
    tmoe_model *loaded = tmoe_model_load(ctx, path);
    CHECK(loaded
        && tmoe_route_unseen(loaded, "Copy the words.", TMOE_ZERO_SHOT_ROUTER, again) == TMOE_OK);
    CHECK(memcmp(route, again, sizeof(float) * (size_t)n) == 0);
    tmoe_model_destroy(loaded);
    tmoe_ctx_set_router(ctx, NULL);
    CHECK(tmoe_model_load(ctx, path) == NULL && tmoe_error(ctx) == TMOE_ERR_CONFIG);
    parameter.name = "others";
    tmoe_ctx_set_router(ctx, &own);
    CHECK(tmoe_model_load(ctx, path) == NULL && tmoe_error(ctx) == TMOE_ERR_FORMAT);
    parameter.name = "prototypes";
    tmoe_ctx_set_router(ctx, NULL);

    /* a derived model has it from its start, on another context, too */
    tmoe_ctx *other = context(1);
    tmoe_model *derived = tmoe_model_derive(other, model, NULL, NULL, tmoe_suite_task(suite, 0), 3);
    CHECK(derived
        && tmoe_route_unseen(derived, "Copy the words.", TMOE_ZERO_SHOT_ROUTER, again) == TMOE_OK);
    CHECK(memcmp(route, again, sizeof(float) * (size_t)n) == 0);
    tmoe_model_destroy(derived);
    tmoe_ctx_destroy(other);

    /* logits of another shape, or none, are errors of the call that needs them */
    for (int some = 0; some < 2; some++) {
        model->own_router.logits = wrong_logits;
        model->own_router.user = some ? &calls : NULL;
        CHECK(tmoe_route_unseen(model, "Copy.", TMOE_ZERO_SHOT_ROUTER, again)
            == (some ? TMOE_ERR_SHAPE : TMOE_ERR_CANCELLED));
        CHECK_HAS(tmoe_error_message(ctx), "the router of the program");
        CHECK(tmoe_trainer_step(trainer, NULL) != TMOE_OK);
    }
    tmoe_trainer_destroy(trainer);
    tmoe_model_destroy(model);

    tmoe_own_parameter twice[2] = { { "a", 1, 2, 0.0f }, { "a", 1, 2, 0.0f } };
    const tmoe_own_router bad = { prototypes, &calls, twice, 2 };
    tmoe_ctx_set_router(ctx, &bad);
    refuses(ctx, tokenizer, tmoe_suite_task(suite, 0), &c, "parameter 1 of the router, 'a' (1,2)");
    twice[1].name = "b";
    twice[1].rows = 0;
    refuses(ctx, tokenizer, tmoe_suite_task(suite, 0), &c, "parameter 1 of the router, 'b' (0,2)");
    (void)remove(path);
    tmoe_tokenizer_destroy(tokenizer);
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
}

/* Few-shot adaptation: the sample is balanced, the model stays as it is, any number of threads
 * gives the same numbers. */
static void test_few_shot_adapts_a_copy_and_threads_do_not_matter(void)
{
    static const char *const inputs[16] = { "ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen",
        "ibis", "jay", "kite", "lark", "mole", "newt", "owl", "pig" };
    static const char *const outputs[16] = { "no", "yes", "no", "yes", "yes", "no", "no", "yes",
        "yes", "no", "yes", "no", "yes", "no", "no", "yes" };
    static const char *const labels[2] = { "yes", "no" };
    double tests[2][3];
    for (int threads = 1; threads <= 2; threads++) {
        tmoe_config c = small_config();
        tmoe_training training = small_training();
        set s = make(threads, &c, &training);
        tmoe_few_shot f = tmoe_few_shot_default();
        tmoe_few_shot_result r;
        tmoei_few_shot_job job;
        tmoe_example lines[32], dev[16];
        int order[16], yes = 0;
        if (!s.trainer) return;
        for (int i = 0; i < 4; i++) CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
        CHECK(add_task(s.suite, "vowel", "letters", "Does it end in a vowel?", TMOE_PART_TEST,
                  inputs, outputs, 16, 4)
            == TMOE_OK);
        tmoe_task *task = &s.suite->tasks[3];
        task->labels = labels;
        task->label_count = 2;
        f.steps = 12;
        f.evaluate_every_steps = 5;
        f.shots_per_label = 2;
        f.batch_size_count = 2;
        f.batch_sizes[0] = 0;
        CHECK(tmoe_few_shot_run(s.model, task, &f, &r) == TMOE_ERR_ARGUMENT);
        CHECK_HAS(tmoe_error_message(s.ctx), "batch size 0: must be 1 to 1024");
        f.batch_sizes[0] = 1;
        memset(&job, 0, sizeof job);
        job.task = task;
        job.how = &f;
        job.lines = lines;
        tmoei_few_shot_sample(&job, order, dev);
        CHECK(job.train_count == 4 && job.dev_count == 4);
        for (int i = 0; i < 4; i++) yes += !strcmp(lines[i].outputs[0], "yes");
        CHECK(yes == 2);
        for (int i = 0; i < 8; i++)
            for (int j = 0; j < i; j++)
                CHECK(lines[i].input != lines[j].input); /* train and dev are apart */
        float *before = (float *)malloc(s.model->size * sizeof(float));
        memcpy(before, s.model->theta, s.model->size * sizeof(float));
        for (int tune = 0; tune < 3; tune++) {
            f.tune = (tmoe_tune)tune;
            CHECK(tmoe_few_shot_run(s.model, task, &f, &r) == TMOE_OK);
            if (s.ctx->error) printf("%s\n", tmoe_error_message(s.ctx));
            CHECK(r.train_count == 4 && r.dev_count == 4 && r.dev >= 0.0 && r.dev <= 1.0);
            tests[threads - 1][tune] =
                r.dev + 2.0 * r.test + 4.0 * (double)r.learning_rate + r.batch_size;
        }
        CHECK(memcmp(before, s.model->theta, s.model->size * sizeof(float)) == 0);
        f.steps = 0;
        CHECK(tmoe_few_shot_run(s.model, task, &f, &r) == TMOE_ERR_ARGUMENT);
        free(before);
        unmake(&s);
    }
    for (int tune = 0; tune < 3; tune++) CHECK(tests[0][tune] == tests[1][tune]);
}

static void test_few_shot_learns_the_task(void)
{
    tmoe_config c = small_config();
    tmoe_training training = small_training();
    set s = make(1, &c, &training);
    tmoe_few_shot f = tmoe_few_shot_default();
    tmoe_few_shot_result r;
    static const char *const inputs[12] = { "a", "b", "c", "d", "e", "f", "g", "h", "a", "b", "c",
        "d" },
                             *const outputs[12] = { "z", "z", "z", "z", "z", "z", "z", "z", "z",
                                 "z", "z", "z" };
    if (!s.trainer) return;
    CHECK(add_task(s.suite, "zzz", "letters", "Say z.", TMOE_PART_TEST, inputs, outputs, 12, 4)
        == TMOE_OK);
    f.steps = 60;
    f.evaluate_every_steps = 20;
    f.learning_rates[0] = 1e-2f;
    f.learning_rate_count = f.batch_size_count = 1;
    CHECK(tmoe_few_shot_run(s.model, tmoe_suite_task(s.suite, 3), &f, &r) == TMOE_OK);
    CHECK(r.dev == 1.0 && r.test == 1.0);
    f.steps = f.evaluate_every_steps = 1;
    CHECK(tmoe_few_shot_run(s.model, tmoe_suite_task(s.suite, 3), &f, &r) == TMOE_OK);
    CHECK(r.test == 0.0); /* so it was learned, not known before */

    /* a configuration that diverges is passed over; all of them are an error */
    const tmoe_few_shot_result before = r;
    f.steps = 4;
    f.learning_rate_count = 2;
    f.learning_rates[0] = f.learning_rates[1] = 1e30f;
    CHECK(tmoe_few_shot_run(s.model, tmoe_suite_task(s.suite, 3), &f, &r) == TMOE_ERR_NUMERIC);
    CHECK(memcmp(&before, &r, sizeof r) == 0);
    f.learning_rates[1] = 1e-2f;
    CHECK(tmoe_few_shot_run(s.model, tmoe_suite_task(s.suite, 3), &f, &r) == TMOE_OK);
    CHECK(r.diverged == 1 && r.learning_rate == 1e-2f);
    unmake(&s);
}

static void test_evaluation_routes_are_free_of_noise(void)
{
    static const tmoe_selection selections[] = { TMOE_SELECT_GUMBEL, TMOE_SELECT_STRAIGHT_THROUGH,
        TMOE_SELECT_RANDOM_TASK, TMOE_SELECT_RANDOM_EXAMPLE };
    int s, i;
    for (s = 0; s < 4; s++) {
        tmoe_config c = small_config();
        tmoe_training t = small_training();
        float one[6], two[6], sum[2] = { 0.0f, 0.0f };
        set x;
        c.selection = selections[s];
        x = make(1, &c, &t);
        CHECK(tmoe_trainer_step(x.trainer, NULL) == TMOE_OK);
        CHECK(tmoe_route_of_task(x.model, 1, one) == TMOE_OK);
        x.model->routes_version = 0;
        CHECK(tmoe_route_of_task(x.model, 1, two) == TMOE_OK);
        CHECK(memcmp(one, two, sizeof one) == 0);
        for (i = 0; i < 6; i++) sum[i / 3] += one[i];
        CHECK_NEAR(sum[0], 1.0, 1e-6);
        CHECK_NEAR(sum[1], 1.0, 1e-6);
        unmake(&x);
    }
}

static void train_bits(int threads, const tmoe_config *c, const tmoe_training *t, int steps,
    float **theta, size_t *size)
{
    set s = make(threads, c, t);
    int i;
    for (i = 0; i < steps; i++) CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
    *size = s.model->size;
    *theta = (float *)malloc(s.model->size * sizeof(float));
    memcpy(*theta, s.model->theta, s.model->size * sizeof(float));
    unmake(&s);
}

static void test_one_two_and_four_threads_give_the_same_bits(void)
{
    int mix, threads;
    for (mix = 0; mix < 4; mix++) {
        tmoe_config c = small_config();
        tmoe_training t = small_training();
        float *first, *other;
        size_t size, again;
        c.mix = (tmoe_mix)(mix % 2);
        c.positions = mix / 2 ? TMOE_POSITION_ROTARY : TMOE_POSITION_LEARNED;
        c.width = 64; /* large enough for several chunks */
        c.encoder_ffn = c.decoder_ffn = 256;
        if (mix) c.task_input = TMOE_TASK_VECTOR;
        t.dropout = 0.1f;
        train_bits(1, &c, &t, 4, &first, &size);
        for (threads = 1; threads <= 4; threads *= 2) {
            train_bits(threads, &c, &t, 4, &other, &again);
            CHECK(size == again && memcmp(first, other, size * sizeof(float)) == 0);
            free(other);
        }
        free(first);
    }
}

static void test_resuming_gives_the_same_bits(void)
{
    const char *path = "build/test_resume.safetensors";
    tmoe_config c = small_config();
    tmoe_training t = small_training();
    int stop, i;
    c.selection = TMOE_SELECT_GUMBEL;
    c.temperature = 2.0f;
    c.temperature_decay = 0.1f;
    c.temperature_min = 0.1f;
    t.dropout = 0.1f;
    for (stop = 0; stop <= 6; stop += 3) {
        float *whole;
        size_t size;
        set a, b;
        train_bits(1, &c, &t, 6, &whole, &size);
        a = make(1, &c, &t);
        for (i = 0; i < stop; i++) CHECK(tmoe_trainer_step(a.trainer, NULL) == TMOE_OK);
        CHECK(tmoe_trainer_save(a.trainer, path) == TMOE_OK);
        unmake(&a);
        b = make(1, &c, &t);
        for (size_t j = 0; j < b.model->size; j++)
            b.model->theta[j] += 0.5f; /* other weights at first: all must come from the file */
        CHECK(tmoe_trainer_load(b.trainer, path) == TMOE_OK);
        CHECK_NEAR(tmoe_model_temperature(b.model), 2.0 * exp(-0.1 * stop), 1e-6); /* fault 3 */
        for (i = stop; i < 6; i++) CHECK(tmoe_trainer_step(b.trainer, NULL) == TMOE_OK);
        CHECK(b.model->size == size && memcmp(b.model->theta, whole, size * sizeof(float)) == 0);
        unmake(&b);
        free(whole);
    }
    (void)remove(path);
}

/* A trainer that has stepped before it loads counts seconds and tokens from the load on. */
static void test_progress_counts_from_the_load_on(void)
{
    const char *path = "build/test_progress.trainer.safetensors";
    tmoe_training t = small_training();
    tmoe_progress p;
    set s = make(1, NULL, &t);
    if (!s.trainer) return;
    CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
    const double tokens = s.trainer->tokens;
    CHECK(tmoe_trainer_save(s.trainer, path) == TMOE_OK);
    for (int i = 0; i < 3; i++) CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
    s.trainer->began -= 1000.0; /* as if these had taken so long */
    CHECK(tmoe_trainer_load(s.trainer, path) == TMOE_OK);
    CHECK(tmoe_trainer_step(s.trainer, &p) == TMOE_OK && p.step == 2);
    CHECK(p.seconds < 900.0 && p.seconds_left < 900.0);
    CHECK(tokens > 0.0 && s.trainer->tokens < 3.0 * tokens);
    unmake(&s);
    (void)remove(path);
}

/* What changes the bits of a step must be as it was when the checkpoint was written; a refused load
 * names it and changes nothing. */
static void test_resuming_under_another_training_is_refused(void)
{
    static const char *const named[] = { "lr_model is ",
        "examples_per_task is 4 in the file, 2 here", "seed is 1 in the file, 9 here",
        "machines is 1 in the file, 2 here", "hash of the lines is ", "validation_lines is ",
        "steps is 3, but 4 are done", "the models differ in their config",
        "the models differ in their tasks",
        "dropout is 0 in the file, 0.25 here; load_balance is 0 in the file, 0.5 here" };
    const char *path = "build/test_other.safetensors";
    tmoe_config c = small_config();
    tmoe_training t = small_training();
    set a = make(1, &c, &t);
    for (int i = 0; i < 4; i++) CHECK(tmoe_trainer_step(a.trainer, NULL) == TMOE_OK);
    CHECK(tmoe_trainer_save(a.trainer, path) == TMOE_OK);
    unmake(&a);

    for (size_t i = 0; i < sizeof named / sizeof *named; i++) {
        tmoe_training other = t;
        tmoe_config shape = c;
        if (i == 0) other.lr_model = 1e-3f;
        if (i == 1) other.examples_per_task = 2;
        if (i == 2) other.seed = 9;
        if (i == 3) other.machines = 2;
        if (i == 5) other.validation_lines = 1;
        if (i == 6) other.steps = 3;
        if (i == 7) shape.width = 32;
        if (i == 9) other.dropout = 0.25f;
        if (i == 9) other.load_balance = 0.5f;
        set b = make(1, &shape, &other);
        if (i == 4) b.trainer->texts.ids[7]++; /* another letter in one line */
        if (i == 8) b.model->tasks[1].category = "others";
        const size_t theta = b.model->size * sizeof(float), span = b.trainer->span * sizeof(float);
        const size_t bytes = b.ctx->bytes_now;
        float *before = (float *)malloc(theta + span);
        memcpy(before, b.model->theta, theta);
        memcpy(before + b.model->size, b.trainer->moment1, span);
        CHECK(tmoe_trainer_load(b.trainer, path) == TMOE_ERR_CONFIG);
        CHECK_HAS(tmoe_error_message(b.ctx), named[i]);
        CHECK(memcmp(before, b.model->theta, theta) == 0
            && memcmp(before + b.model->size, b.trainer->moment1, span) == 0);
        CHECK(b.trainer->steps_done == 0 && b.model->step == 0 && b.ctx->bytes_now == bytes);
        free(before);
        unmake(&b);
    }
    (void)remove(path);
}

/* What changes no step may be another: the number of threads, measuring, the label. More steps set
 * another learning rate from the next step on, that of their own schedule. */
static void test_resuming_may_take_more_steps(void)
{
    const char *path = "build/test_more.safetensors";
    tmoe_config c = small_config();
    tmoe_training t = small_training();
    tmoe_progress p;
    t.validation_lines = 2;
    set a = make(1, &c, &t);
    for (int i = 0; i < t.steps; i++) CHECK(tmoe_trainer_step(a.trainer, NULL) == TMOE_OK);
    CHECK(tmoe_trainer_save(a.trainer, path) == TMOE_OK);

    t.label = "more";
    t.evaluate_every_steps = 2;
    t.patience = 3;
    t.machines = 1;
    set b = make(2, &c, &t);
    CHECK(tmoe_trainer_load(b.trainer, path) == TMOE_OK);
    CHECK(tmoe_trainer_run(b.trainer) == TMOE_OK && b.trainer->steps_done == 8); /* all are done */
    CHECK(memcmp(a.model->theta, b.model->theta, a.model->size * sizeof(float)) == 0);
    unmake(&b);

    t.steps = 12;
    b = make(1, &c, &t);
    CHECK(tmoe_trainer_load(b.trainer, path) == TMOE_OK);
    CHECK(tmoe_trainer_step(b.trainer, &p) == TMOE_OK && p.step == 9 && p.steps == 12);
    CHECK(p.lr_model == tmoei_learning_rate(&t, 8, t.lr_model));
    CHECK(tmoe_trainer_run(b.trainer) == TMOE_OK && b.trainer->steps_done == 12);
    unmake(&b);
    unmake(&a);
    (void)remove(path);
}

/* The bytes of a file, and a zero behind them. */
static char *read_file(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    CHECK(file && fseek(file, 0, SEEK_END) == 0);
    *size = (size_t)ftell(file);
    char *bytes = (char *)calloc(*size + 1, 1);
    rewind(file);
    CHECK(fread(bytes, 1, *size, file) == *size && fclose(file) == 0);
    return bytes;
}

static int stop_at_4(void *user, const tmoe_progress *p)
{
    (void)user;
    return p->step == 4;
}

static void test_a_file_is_described_without_its_parameters(void)
{
    const char *path = "build/test_described.safetensors";
    tmoe_config c = small_config();
    tmoe_training t = small_training();
    tmoe_description d;
    size_t active = 0, size = 0;
    t.validation_lines = 2;
    t.evaluate_every_steps = 2;
    t.patience = 3;
    t.lr_model = 0.0125f;
    t.seed = UINT64_MAX;
    t.progress = stop_at_4;
    set a = make(1, &c, &t);
    CHECK(tmoe_model_save(a.model, path) == TMOE_OK);
    CHECK(tmoe_describe(a.ctx, path, &d) == TMOE_OK);
    CHECK(!d.is_checkpoint && d.steps_done == 0 && d.step == 0 && isnan(d.best_validation_loss));
    CHECK(memcmp(&d.config, tmoe_model_config(a.model), sizeof d.config) == 0);
    CHECK(d.parameters == tmoe_model_parameters(a.model, &active) && d.active_parameters == active);
    CHECK(d.training.steps == tmoe_training_default().steps && d.task_count == 3);

    CHECK(tmoe_trainer_run(a.trainer) == TMOE_ERR_CANCELLED);
    CHECK(tmoe_trainer_save(a.trainer, path) == TMOE_OK);
    CHECK(tmoe_describe(a.ctx, path, &d) == TMOE_OK);
    CHECK(d.is_checkpoint && d.steps_done == 4 && d.step == 4);
    CHECK(d.best_step == a.trainer->best_step && d.best_step > 0);
    CHECK(d.best_validation_loss == a.trainer->best_loss);
    CHECK(d.training.steps == t.steps && d.training.evaluate_every_steps == 2);
    CHECK(d.training.patience == 3 && d.training.lr_model == 0.0125f);
    CHECK(d.training.seed == UINT64_MAX && d.training.optimiser == t.optimiser);

    /* what is said is enough to go on */
    tmoe_model *model = tmoe_model_load(a.ctx, path);
    tmoe_trainer *trainer = tmoe_trainer_create(model, a.suite, &d.training);
    CHECK(trainer && tmoe_trainer_load(trainer, path) == TMOE_OK);
    CHECK(tmoe_trainer_run(trainer) == TMOE_OK && tmoe_trainer_run(a.trainer) == TMOE_OK);
    CHECK(memcmp(a.model->theta, model->theta, model->size * sizeof(float)) == 0);
    tmoe_trainer_destroy(trainer);
    tmoe_model_destroy(model);

    /* a failure leaves the description as it was */
    char *bytes = read_file(path, &size);
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(bytes, 1, size / 2, file) == size / 2 && fclose(file) == 0);
    free(bytes);
    d.step = 77;
    CHECK(tmoe_describe(a.ctx, path, &d) == TMOE_ERR_FORMAT && d.step == 77);
    CHECK(tmoe_describe(a.ctx, "build/no such file", &d) == TMOE_ERR_FILE && d.step == 77);
    (void)remove(path);
    unmake(&a);
}

/* Takes the fields of the config that versions up to 0.2.0 did not have out of a file. */
static void drop_later_fields(char *bytes)
{
    char *at = strstr(bytes + 8, ",\\\"positions\\\""), *end = at ? strstr(at, "}\"") : NULL;
    CHECK(end != NULL);
    if (!end) return;
    memcpy(at, "}\"", 2);
    memset(at + 2, ' ', (size_t)(end - at)); /* behind the string: all places stay */
}

/* A file as version 0.1 wrote it: format 2, some fields of the config by other names, no settings. */
static void file_of_version_0_1(const char *path)
{
    static const char *const names[][2] = { { "\\\"width\\\":", "\\\"D\\\":" },
        { "encoder_heads", "H_encoder" }, { "decoder_heads", "H_decoder" },
        { "encoder_ffn", "F_encoder" }, { "decoder_ffn", "F_decoder" },
        { "\\\"vocabulary\\\":", "\\\"V\\\":" }, { "\\\"experts\\\":", "\\\"E\\\":" },
        { "vector_width", "k" }, { "\"version\":\"4\"", "\"version\":\"2\"" },
        { "\"training\":\"", "\"ignored\":\"" } };
    size_t size;
    char *bytes = read_file(path, &size);
    drop_later_fields(bytes);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const size_t from = strlen(names[i][0]), to = strlen(names[i][1]);
        char *at = strstr(bytes + 8, names[i][0]), *end = at ? strstr(at, "}") : NULL;
        if (i == 9 && !at) continue; /* of trainers only */
        CHECK(at && end);
        if (!at || !end) break;
        memcpy(at, names[i][1], to);
        memmove(at + to, at + from, (size_t)(end - at) - from + 1);
        /* spaces behind the object keep all places; behind the last one when it is the outermost */
        memset(end + 1 - (from - to), ' ', from - to);
    }
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(bytes, 1, size, file) == size && fclose(file) == 0);
    free(bytes);
}

static void test_files_of_version_0_1_are_read(void)
{
    const char *path = "build/test_0_1.safetensors";
    tmoe_config c = paper_config();
    tmoe_training t = paper_training();
    set a = make(1, &c, &t);
    for (int i = 0; i < 4; i++) CHECK(tmoe_trainer_step(a.trainer, NULL) == TMOE_OK);
    CHECK(tmoe_model_save(a.model, path) == TMOE_OK);
    file_of_version_0_1(path);
    tmoe_model *model = tmoe_model_load(a.ctx, path);
    if (!model) printf("%s\n", tmoe_error_message(a.ctx));
    CHECK(model && memcmp(&model->config, &a.model->config, sizeof model->config) == 0);
    CHECK(model && memcmp(model->theta, a.model->theta, model->size * sizeof(float)) == 0);
    tmoe_model_destroy(model);

    CHECK(tmoe_trainer_save(a.trainer, path) == TMOE_OK);
    file_of_version_0_1(path);
    t.lr_model = 1e-3f; /* it has no settings to be compared: the caller vouches for them */
    set b = make(1, &c, &t);
    CHECK(tmoe_trainer_load(b.trainer, path) == TMOE_OK && b.trainer->steps_done == 4);
    CHECK(memcmp(b.model->theta, a.model->theta, a.model->size * sizeof(float)) == 0);
    unmake(&b);
    unmake(&a);
    (void)remove(path);
}

/* Files of versions up to 0.2.0 do not say how positions are known: their models have tables. */
static void test_a_file_without_positions_has_learned_ones(void)
{
    const char *path = "build/test_early.safetensors";
    const tmoe_config c = paper_config();
    const tmoe_training t = paper_training();
    set s = make(1, &c, &t);
    size_t size;
    CHECK(tmoe_model_save(s.model, path) == TMOE_OK);
    char *bytes = read_file(path, &size);
    drop_later_fields(bytes);
    memcpy(strstr(bytes + 8, "\"version\":\"4\""), "\"version\":\"3\"", 13);
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(bytes, 1, size, file) == size && fclose(file) == 0);
    tmoe_model *model = tmoe_model_load(s.ctx, path);
    if (!model) printf("%s\n", tmoe_error_message(s.ctx));
    CHECK(model && memcmp(&model->config, &s.model->config, sizeof model->config) == 0);
    CHECK(model && memcmp(model->theta, s.model->theta, model->size * sizeof(float)) == 0);
    tmoe_model_destroy(model);
    free(bytes);
    unmake(&s);
    (void)remove(path);
}

/* No rows of a table: not in theta, not in the optimiser, not in the file. */
static void test_rotary_positions_are_no_parameters_and_are_saved_bit_by_bit(void)
{
    const char *path = "build/test_rotary.safetensors";
    tmoe_config c = small_config();
    const tmoe_training t = small_training();
    c.positions = TMOE_POSITION_LEARNED;
    set learned = make(1, &c, &t);
    c.positions = TMOE_POSITION_ROTARY;
    c.rotary_base = 37.5f;
    set s = make(1, &c, &t);
    const size_t rows = (size_t)(c.source_tokens + c.target_tokens), D = (size_t)c.width;
    char one[64], two[64];
    size_t size;
    CHECK(learned.model->size - s.model->size == rows * D);
    CHECK(learned.trainer->span - s.trainer->span == rows * D);
    for (int i = 0; i < 8; i++) CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);

    CHECK(tmoe_trainer_save(s.trainer, path) == TMOE_OK);
    char *bytes = read_file(path, &size);
    CHECK(strstr(bytes + 8, "tokens.weight") && !strstr(bytes + 8, "coder.positions.weight"));
    tmoe_model *loaded = tmoe_model_load(s.ctx, path);
    CHECK(loaded && memcmp(&loaded->config, &s.model->config, sizeof loaded->config) == 0);
    CHECK(loaded && memcmp(loaded->theta, s.model->theta, loaded->size * sizeof(float)) == 0);
    if (loaded) {
        CHECK(tmoe_answer(s.model, "twice", "lamp", one, sizeof one) == TMOE_OK);
        CHECK(tmoe_answer(loaded, "twice", "lamp", two, sizeof two) == TMOE_OK);
        CHECK_TEXT(one, two);
    }
    set resumed = make(1, &c, &t);
    CHECK(tmoe_trainer_load(resumed.trainer, path) == TMOE_OK);
    CHECK(memcmp(resumed.model->theta, s.model->theta, s.model->size * sizeof(float)) == 0);
    CHECK(tmoe_trainer_load(learned.trainer, path) != TMOE_OK); /* another model */
    tmoe_model_destroy(loaded);
    free(bytes);
    unmake(&resumed);
    unmake(&s);
    unmake(&learned);
    (void)remove(path);
}

/* Without positions a text and its words in another order are the same to an encoder: with ROTARY
 * they are not, and both sides are turned. */
static void test_a_rotary_model_knows_the_order_of_tokens(void)
{
    static int ids[2][4] = { { 5, 9, 7, 2 }, { 9, 5, 7, 2 } }, places[4] = { 0, 1, 2, 3 };
    static int nowhere[4], offsets[2] = { 0, 4 };
    tmoe_config c = small_config();
    tmoe_training t = small_training();
    c.positions = TMOE_POSITION_ROTARY;
    set s = make(1, &c, &t);
    for (int decoder = 0; decoder < 2; decoder++) {
        float last[2][2][16]; /* of the last token: with places or not, in either order */
        for (int run = 0; run < 4; run++) {
            const tmoei_pack pack = { 1, 4, ids[run % 2], run < 2 ? places : nowhere, offsets };
            tmoei_pass pass;
            CHECK(tmoei_evaluation_pass(s.model, &first_task, s.trainer->group_tape, &pass)
                == TMOE_OK);
            const tmoe_tensor *h = tmoei_encode(&pass, &pack);
            if (decoder && h) {
                static float memory[16];
                static const int one[2] = { 0, 1 };
                const tmoei_pack source = { 1, 1, NULL, NULL, (int *)(uintptr_t)one };
                h = tmoei_decode(&pass, &pack, tmoe_leaf(pass.tape, 1, 16, memory, NULL), &source);
            }
            CHECK(h != NULL);
            if (h) memcpy(last[run / 2][run % 2], h->x + 3 * 16, sizeof last[0][0]);
        }
        double with = 0.0, without = 0.0;
        for (int i = 0; i < 16; i++) {
            with += fabs((double)last[0][0][i] - (double)last[0][1][i]);
            without += fabs((double)last[1][0][i] - (double)last[1][1][i]);
        }
        CHECK(with > 1e-2 && without < 1e-4);
    }
    unmake(&s);
}

/* A file that could not be read again is not written. */
static void test_a_model_that_could_not_be_loaded_is_not_saved(void)
{
    const char *path = "build/test_unsound.safetensors";
    tmoe_config c = small_config();
    tmoe_training t = small_training();
    set s = make(1, &c, &t);
    const float values[2] = { (float)INFINITY, (float)NAN };
    for (int i = 0; i < 2; i++) {
        tmoe_model_generation(s.model)->length_penalty = values[i];
        CHECK(tmoe_model_save(s.model, path) == TMOE_ERR_DATA && !file_exists(path));
        CHECK_HAS(tmoe_error_message(s.ctx), "length_penalty");
    }
    tmoe_model_generation(s.model)->length_penalty = 1.0f;
    s.model->tasks[1].instruction = "Sag \xe4h.";
    CHECK(tmoe_trainer_save(s.trainer, path) == TMOE_ERR_DATA && !file_exists(path));
    CHECK_HAS(tmoe_error_message(s.ctx), "not valid UTF-8");
    unmake(&s);
}

static void test_saved_and_loaded_model_answers_the_same(void)
{
    const char *path = "build/test_model.safetensors";
    tmoe_config c = small_config();
    tmoe_training t = small_training();
    c.task_input = TMOE_TASK_TEXT | TMOE_TASK_VECTOR;
    set s = make(1, &c, &t);
    tmoe_model *loaded;
    char one[64], two[64];
    size_t n;
    int i;
    for (i = 0; i < 8; i++) CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
    CHECK(tmoe_model_save(s.model, path) == TMOE_OK);
    loaded = tmoe_model_load(s.ctx, path);
    CHECK(loaded != NULL);
    if (loaded) {
        CHECK(loaded->size == s.model->size
            && memcmp(loaded->theta, s.model->theta, loaded->size * sizeof(float)) == 0);
        CHECK(memcmp(&loaded->config, &s.model->config, sizeof loaded->config) == 0
            && loaded->step == 8);
        CHECK_TEXT(tmoe_model_task(loaded, 2)->name, "twice");
        CHECK(tmoe_answer_unseen(s.model, "Give the last letter.", "lamp", one, sizeof one)
            == TMOE_OK);
        CHECK(tmoe_answer_unseen(loaded, "Give the last letter.", "lamp", two, sizeof two)
            == TMOE_OK);
        CHECK_TEXT(one, two);
        CHECK(tmoe_model_parameters(loaded, &n) > n);
    }
    tmoe_model_destroy(loaded);
    unmake(&s);
    (void)remove(path);
}

/* A name that the model does not know is refused, be it an instruction of its own; an instruction is
 * never taken for a name. */
static void test_names_and_instructions_are_two_things(void)
{
    tmoe_config c = small_config();
    tmoe_training training = small_training();
    char one[256] = "x", two[256];
    char *many[2] = { one, one };
    set s = make(1, &c, &training);
    if (!s.trainer) return;
    for (int i = 0; i < 8; i++) CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
    CHECK(tmoe_model_find_task(s.model, "first") == 1);
    CHECK(tmoe_model_find_task(s.model, "Give the first letter.") == -1);
    CHECK(tmoe_answer(s.model, "Give the first letter.", "lamp", one, sizeof one)
        == TMOE_ERR_ARGUMENT);
    CHECK_TEXT(one, "");
    CHECK_HAS(tmoe_error_message(s.ctx), "(nearest: first;");
    CHECK_HAS(tmoe_error_message(s.ctx), "tmoe_answer_unseen");
    CHECK(tmoe_answer_many(s.model, "uppercase", NULL, words, 2, many) == TMOE_ERR_ARGUMENT);
    CHECK_HAS(tmoe_error_message(s.ctx), "no task of the model is named 'uppercase'");
    CHECK(tmoe_answer(s.model, NULL, "lamp", one, sizeof one) == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_answer_unseen(s.model, NULL, "lamp", one, sizeof one) == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_answer(s.model, "upper", "lamp", one, 0) == TMOE_ERR_ARGUMENT);

    /* "first" as an instruction is not the task of that name */
    float routes[2][64];
    CHECK(tmoe_route_of_task(s.model, 1, routes[0]) == TMOE_OK);
    CHECK(tmoe_route_unseen(s.model, "first", TMOE_ZERO_SHOT_ROUTER, routes[1]) == TMOE_OK);
    CHECK(memcmp(routes[0], routes[1], s.model->route_width * sizeof(float)) != 0);
    CHECK(tmoe_answer_unseen(s.model, "first", "lamp", one, sizeof one) == TMOE_OK);
    CHECK(tmoe_answer_many_unseen(s.model, "first", routes[1], words + 11, 1, many) == TMOE_OK);
    CHECK_TEXT(one, many[0]);
    tmoe_answers_free(s.model, many, 1);

    /* the task's own words lead to the task's own route */
    CHECK(tmoe_answer(s.model, "first", "lamp", one, sizeof one) == TMOE_OK);
    CHECK(
        tmoe_answer_unseen(s.model, "Give the first letter.", "lamp", two, sizeof two) == TMOE_OK);
    CHECK_TEXT(one, two);
    unmake(&s);
}

static void test_negative_counts_and_unknown_choices_are_refused(void)
{
    tmoe_config c = small_config();
    tmoe_training training = small_training();
    static const int id = 5, length = 1;
    static const char *const labels[2] = { "yes", "" };
    int tokens[64], counts[1], chosen[1];
    float vectors[64];
    char *answers[1] = { NULL }, text[8];
    double score;
    tmoe_few_shot f = tmoe_few_shot_default();
    tmoe_few_shot_result r;
    set s = make(1, &c, &training);
    if (!s.trainer) return;
    tmoe_task task = *tmoe_suite_task(s.suite, 0);
    CHECK(tmoe_answer_many(s.model, "upper", NULL, words, -1, answers) == TMOE_ERR_ARGUMENT);
    CHECK_HAS(tmoe_error_message(s.ctx), "-1 inputs");
    CHECK(tmoe_answer_many(s.model, "upper", NULL, words, 0, answers) == TMOE_OK);
    CHECK(generate(s.model, 0, &id, &length, -1, NULL, tokens, counts, NULL) == TMOE_ERR_ARGUMENT);
    CHECK(generate(s.model, 3, &id, &length, 1, NULL, tokens, counts, NULL) == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_evaluate(s.model, &task, NULL, -1, &score) == TMOE_ERR_ARGUMENT);
    task.labels = labels;
    task.label_count = 2;
    CHECK(tmoe_choose_label(s.model, &task, NULL, words, 1, TMOE_LABEL_SUM, chosen)
        == TMOE_ERR_ARGUMENT);
    CHECK_HAS(tmoe_error_message(s.ctx), "none empty");
    task.label_count = 1;
    CHECK(tmoe_choose_label(s.model, &task, NULL, words, 1, (tmoe_label_score)2, chosen)
        == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_choose_label(s.model, &task, NULL, words, 1, TMOE_LABEL_MEAN, chosen) == TMOE_OK);
    CHECK(tmoe_answer(s.model, NULL, "apple", text, sizeof text) == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_answer(s.model, "upper", NULL, text, sizeof text) == TMOE_ERR_ARGUMENT);
    CHECK_HAS(tmoe_error_message(s.ctx), "NULL");
    CHECK(tmoe_answer_unseen(s.model, NULL, "apple", text, sizeof text) == TMOE_ERR_ARGUMENT);
    CHECK_HAS(tmoe_error_message(s.ctx), "NULL");
    CHECK(tmoe_answer_many(s.model, "upper", NULL, NULL, 1, answers) == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_answer(s.model, "upper", "apple", NULL, 8) == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_answer_unseen(s.model, "New.", "apple", NULL, 8) == TMOE_ERR_ARGUMENT);
    CHECK_HAS(tmoe_error_message(s.ctx), "answer: the text is NULL");
    CHECK(tmoe_answer_many(s.model, "upper", NULL, words, 1, NULL) == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_answer_many_unseen(s.model, "New.", NULL, words, 1, NULL) == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_evaluate(s.model, NULL, NULL, 0, &score) == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_choose_label(s.model, NULL, NULL, words, 1, TMOE_LABEL_SUM, chosen)
        == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_few_shot_run(s.model, NULL, NULL, &r) == TMOE_ERR_ARGUMENT);
    CHECK_HAS(tmoe_error_message(s.ctx), "few_shot_run: the task is NULL");
    CHECK(tmoe_route_unseen(s.model, NULL, TMOE_ZERO_SHOT_ROUTER, vectors) == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_model_find_task(s.model, NULL) == -1);
    CHECK(tmoe_model_nearest_tasks(s.model, NULL, 1, chosen, vectors) == 0 && chosen[0] == -1);
    task.labels = NULL;
    CHECK(tmoe_choose_label(s.model, &task, NULL, words, 1, TMOE_LABEL_SUM, chosen)
        == TMOE_ERR_ARGUMENT);
    f.tune = (tmoe_tune)3;
    CHECK(tmoe_few_shot_run(s.model, &task, &f, &r) == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_task_vectors(s.model, s.suite, (tmoe_task_embedding)2, 1, 16, vectors)
        == TMOE_ERR_ARGUMENT);
    unmake(&s);
}

/* A task of a suite that the model was not trained on is asked by its instruction. */
static void test_unseen_tasks_of_a_suite_are_asked_by_their_instruction(void)
{
    tmoe_config c = small_config();
    tmoe_training training = small_training();
    static const char *const labels[3] = { "#", "APPLE", "no" };
    float route[64];
    int by_route[4], chosen[4];
    double one, two;
    set s = make(1, &c, &training);
    if (!s.trainer) return;
    for (int i = 0; i < 8; i++) CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
    tmoe_task task = *tmoe_suite_task(s.suite, 0);
    task.name = "Give the first letter."; /* the instruction of another task: not looked at */
    task.instruction = "Say something.";
    task.labels = labels;
    task.label_count = 3;
    CHECK(tmoe_route_unseen(s.model, task.instruction, TMOE_ZERO_SHOT_ROUTER, route) == TMOE_OK);
    CHECK(tmoe_choose_label(s.model, &task, route, words, 4, TMOE_LABEL_SUM, by_route) == TMOE_OK);
    CHECK(tmoe_choose_label(s.model, &task, NULL, words, 4, TMOE_LABEL_SUM, chosen) == TMOE_OK);
    CHECK(memcmp(by_route, chosen, sizeof chosen) == 0);
    CHECK(tmoe_evaluate(s.model, &task, route, 0, &one) == TMOE_OK);
    CHECK(tmoe_evaluate(s.model, &task, NULL, 0, &two) == TMOE_OK && one == two);
    unmake(&s);
}

/* A batch of requests, whatever its company, gets the answers that each alone gets. */
static void test_an_instruction_that_is_not_read_does_not_change_an_answer(void)
{
    tmoe_config c = small_config();
    tmoe_training training = small_training();
    char one[256], two[256];
    c.experts = 1;
    c.task_input = 0;
    set s = make(1, &c, &training);
    if (!s.trainer) return;
    CHECK(tmoe_answer(s.model, "upper", "lamp", one, sizeof one) == TMOE_OK);
    CHECK(tmoe_answer_unseen(s.model,
              "An instruction that is much too long for the few tokens that this small model can "
              "read, were it to read it at all, "
              "which it must not, because its configuration says that the encoder reads the input "
              "alone.",
              "lamp", two, sizeof two)
        == TMOE_OK);
    CHECK_TEXT(one, two);
    unmake(&s);
}

static void test_answers_do_not_depend_on_their_batch(void)
{
    int mix;
    for (mix = 0; mix < 2; mix++) {
        tmoe_config c = small_config();
        tmoe_training t = small_training();
        char *many[12], *alone;
        int i;
        set s;
        c.mix = (tmoe_mix)mix;
        s = make(1, &c, &t);
        for (i = 0; i < 8; i++) CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
        CHECK(tmoe_answer_many(s.model, "twice", NULL, words, 12, many) == TMOE_OK);
        for (i = 0; i < 12; i++) {
            CHECK(tmoe_answer_many(s.model, "twice", NULL, words + i, 1, &alone) == TMOE_OK);
            CHECK_TEXT(many[i], alone);
            tmoe_answers_free(s.model, &alone, 1);
        }
        tmoe_answers_free(s.model, many, 12);
        unmake(&s);
    }
}

/* Decoding step by step with the cache gives the logits that a pass over the whole target gives. */
static void test_cached_decoding_equals_the_full_pass(void)
{
    static const int chosen[3] = { 0, 1, 2 };
    int mix;
    for (mix = 0; mix < 4; mix++) {
        tmoe_config c = small_config();
        tmoe_training t = small_training();
        float *full;
        size_t n = 0;
        tmoei_cache cache;
        int r, step;
        set s;
        c.mix = (tmoe_mix)(mix % 2);
        c.positions = mix / 2 ? TMOE_POSITION_ROTARY : TMOE_POSITION_LEARNED;
        s = make(1, &c, &t);
        full = logits_of(&s, NULL, &n);
        CHECK(tmoei_batch_fill(s.trainer, chosen, 3, 0) == TMOE_OK);
        CHECK(tmoei_cache_create(&cache, s.model, &first_task, &s.trainer->batch.source, 1, 16)
            == TMOE_OK);
        for (step = 0; step < 4; step++, cache.position++) {
            const tmoe_tensor *logits;
            for (r = 0; r < 3; r++)
                cache.ids[r] =
                    s.trainer->batch.target.ids[s.trainer->batch.target.offsets[r] + step];
            logits = tmoei_cache_step(&cache, s.model, &first_task);
            CHECK(logits != NULL);
            for (r = 0; logits && r < 3; r++) {
                const float *row =
                    full + (size_t)(s.trainer->batch.target.offsets[r] + step) * (size_t)s.model->V;
                int v;
                for (v = 0; v < s.model->V; v++)
                    CHECK_NEAR(logits->x[r * s.model->V + v], row[v], 2e-5);
            }
        }
        tmoei_owner_free(&cache.own);
        free(full);
        unmake(&s);
    }
}

/* ---- the task's vector as an input of the layers --------------------------------------------- */

static void test_gradients_where_layers_read_the_task_vector(void)
{
    for (int kind = 0; kind < 6; kind++) {
        tmoe_config c = small_config();
        char name[64];
        c.task_input = TMOE_TASK_VECTOR | (kind % 2 ? TMOE_TASK_TEXT : 0);
        c.vectors = kind < 2 ? TMOE_VECTOR_TEXT : TMOE_VECTOR_LEARNED;
        c.experts = kind < 4 ? 3 : 1;
        c.scale_embedding = kind == 3;
        if (kind == 5) c.norm = TMOE_NORM_POST;
        (void)snprintf(name, sizeof name, "task vector %d", kind);
        check_model_gradient(&c, name, 1);
    }
}

/* With nothing but the vector a dense model gives each task logits of its own; the vector of an
 * unseen task is its instruction's; a request may bring one. */
static void test_a_dense_model_knows_its_task_by_the_vector(void)
{
    tmoe_config c = small_config();
    tmoe_training t = small_training();
    float vector[16];
    size_t n, m;
    c.experts = 1;
    c.task_input = TMOE_TASK_VECTOR;
    set s = make(1, &c, &t);
    if (!s.trainer) return;
    float *a = logits_of_task(&s, 0, NULL, &n), *b = logits_of_task(&s, 1, NULL, &m);
    CHECK(n == m && memcmp(a, b, n * sizeof(float)) != 0);

    /* the known task's own vector, given: the same bits; another's: the other task's */
    for (int task = 0; task < 2; task++) {
        static const int chosen[3] = { 0, 1, 2 };
        const tmoei_guide given = { -1, NULL, vector };
        tmoei_pass pass;
        CHECK(tmoe_vector_unseen(s.model, tmoe_model_task(s.model, task)->instruction, vector)
            == TMOE_OK);
        CHECK(tmoei_batch_fill(s.trainer, chosen, 3, 0) == TMOE_OK);
        CHECK(tmoei_evaluation_pass(s.model, &given, s.model->tape, &pass) == TMOE_OK);
        const tmoe_tensor *h = tmoei_encode(&pass, &s.trainer->batch.source);
        h = tmoei_head(&pass,
            tmoei_decode(&pass, &s.trainer->batch.target, (tmoe_tensor *)(uintptr_t)h,
                &s.trainer->batch.source));
        CHECK(h && memcmp(h->x, task ? b : a, n * sizeof(float)) == 0);
    }
    free(a);
    free(b);

    static const int ids[3] = { 0, 100, 2 };
    const int lengths[1] = { 3 };
    int tokens[17], counts[1];
    tmoe_request request;
    tmoe_generated out;
    memset(&request, 0, sizeof request);
    memset(&out, 0, sizeof out);
    request.task = -1;
    request.ids = ids;
    request.lengths = lengths;
    request.count = 1;
    out.tokens = tokens;
    out.token_counts = counts;
    CHECK(tmoe_generate(s.model, &request, &out) == TMOE_ERR_ARGUMENT);
    CHECK_HAS(tmoe_error_message(s.ctx), "need a vector");
    request.vector = vector;
    CHECK(tmoe_generate(s.model, &request, &out) == TMOE_OK);
    CHECK(tmoe_vector_unseen(s.model, NULL, vector) == TMOE_ERR_ARGUMENT);
    c.task_input = TMOE_TASK_VECTOR;
    CHECK(!tmoe_model_create(s.ctx, &c, s.model->tokenizer, NULL, 0));
    CHECK_HAS(tmoe_error_message(s.ctx), "TMOE_TASK_VECTOR, which needs a task; there are 0");
    c.task_input = TMOE_TASK_ROW; /* would be a part of the positions */
    c.positions = TMOE_POSITION_LEARNED;
    CHECK(!tmoe_model_create(s.ctx, &c, s.model->tokenizer, s.model->tasks, 3));
    CHECK_HAS(tmoe_error_message(s.ctx), "which is for TMOE_POSITION_ROTARY");
    unmake(&s);
}

/* Vectors that no text gives: an unseen task gets a mean of the known ones', and the nearest counts
 * most. */
static void test_an_unseen_task_gets_the_vectors_of_near_ones(void)
{
    tmoe_config c = small_config();
    tmoe_training t = small_training();
    float vector[16];
    c.vectors = TMOE_VECTOR_GIVEN;
    c.task_input = TMOE_TASK_VECTOR;
    set s = make(1, &c, &t);
    if (!s.trainer) return;
    for (int task = 0; task < 3; task++) {
        float own[16];
        for (int i = 0; i < 16; i++) own[i] = i == task ? 1.0f : 0.0f;
        CHECK(tmoe_task_vector_set(s.model, task, own) == TMOE_OK);
    }
    CHECK(tmoe_vector_unseen(s.model, "Give the first letters.", vector) == TMOE_OK);
    CHECK_NEAR(vector[0] + vector[1] + vector[2], 1.0, 1e-6);
    CHECK(vector[1] > 0.9f && vector[0] > 0.0f && vector[2] > 0.0f && vector[3] == 0.0f);
    unmake(&s);
}

/* A task that is cut out has its vector as a constant, and computes the same bits: of a dense
 * model, and of a mixture with a one-hot route, for known tasks and unseen ones. */
static void test_a_task_that_is_cut_out_keeps_its_vector_bit_for_bit(void)
{
    static const float one_hot[6] = { 0.0f, 1.0f, 0.0f, 0.0f, 0.0f, 1.0f };
    for (int kind = 0; kind < 16; kind++) {
        const int dense = kind & 1, unseen = kind & 2, learned = kind & 4;
        tmoe_config c = small_config(), cut_config;
        tmoe_training t = small_training();
        tmoe_task task;
        char one[64], two[64], *many[1], *cut_many[1];
        c.task_input = TMOE_TASK_VECTOR;
        c.vectors = learned ? TMOE_VECTOR_LEARNED : TMOE_VECTOR_TEXT;
        c.experts = dense ? 1 : 3;
        c.positions = kind & 8 ? TMOE_POSITION_ROTARY : TMOE_POSITION_LEARNED;
        set s = make(1, &c, &t), d;
        if (!s.trainer) return;
        for (int i = 0; i < 8; i++) CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);

        task = *tmoe_model_task(s.model, 1);
        if (unseen) task.name = "new";
        if (unseen) task.instruction = "Give the last letter.";
        cut_config = c;
        cut_config.experts = 1;
        cut_config.task_input = 0;
        const float *route = dense ? NULL : one_hot;
        tmoe_model *cut = tmoe_model_derive(s.ctx, s.model, route, &cut_config, &task, 1);
        CHECK(cut && !cut->has_vectors);
        if (!cut) return;
        const int row = tmoe_model_config(cut)->task_input;
        CHECK(row == (c.positions == TMOE_POSITION_ROTARY ? TMOE_TASK_ROW : 0));

        if (!unseen) { /* all logits */
            size_t n, m;
            float *a = logits_of_task(&s, 1, route, &n), *b;
            d = s;
            d.model = cut;
            b = logits_of_task(&d, 0, NULL, &m);
            CHECK(n == m && memcmp(a, b, n * sizeof(float)) == 0);
            free(a);
            free(b);
        }
        CHECK(tmoe_answer_many_unseen(s.model, task.instruction, route, words, 1, many) == TMOE_OK
            || !unseen);
        if (unseen) {
            CHECK(tmoe_answer_many(cut, "new", NULL, words, 1, cut_many) == TMOE_OK);
            CHECK_TEXT(many[0], cut_many[0]);
            tmoe_answers_free(cut, cut_many, 1);
        }
        tmoe_answers_free(s.model, many, 1);

        /* the cut model is saved, loaded and cut again as it is */
        const char *path = "build/test_cut.safetensors";
        CHECK(tmoe_model_save(cut, path) == TMOE_OK);
        tmoe_model *loaded = tmoe_model_load(s.ctx, path);
        tmoe_model *again = tmoe_model_derive(s.ctx, cut, NULL, NULL, &task, 1);
        CHECK(loaded && again);
        CHECK(tmoe_answer(cut, task.name, "lamp", one, sizeof one) == TMOE_OK);
        CHECK(loaded && tmoe_answer(loaded, task.name, "lamp", two, sizeof two) == TMOE_OK);
        CHECK_TEXT(one, two);
        CHECK(again && tmoe_answer(again, task.name, "lamp", two, sizeof two) == TMOE_OK);
        CHECK_TEXT(one, two);
        (void)remove(path);
        tmoe_model_destroy(loaded);
        tmoe_model_destroy(again);
        tmoe_model_destroy(cut);

        /* a constant is of one task */
        CHECK(!tmoe_model_derive(s.ctx, s.model, route, &cut_config, s.model->tasks, 2));
        CHECK_HAS(tmoe_error_message(s.ctx), "there must be one task, not 2");
        unmake(&s);
    }
}

/* P begins as zero where a model did not read vectors before: so it computes what it did. */
static void test_layers_that_begin_to_read_vectors_compute_what_they_did(void)
{
    tmoe_config c = small_config();
    tmoe_training t = small_training();
    size_t n, m;
    c.task_input = TMOE_TASK_TEXT;
    set s = make(1, &c, &t), d;
    if (!s.trainer) return;
    float *a = logits_of(&s, NULL, &n);
    c.task_input = TMOE_TASK_TEXT | TMOE_TASK_VECTOR;
    d = s;
    d.model = tmoe_model_derive(s.ctx, s.model, NULL, &c, s.model->tasks, 3);
    CHECK(d.model != NULL);
    if (!d.model) return;
    float *b = logits_of(&d, NULL, &m);
    CHECK(n == m);
    for (size_t i = 0; i < n; i++) CHECK(a[i] == b[i]);
    free(a);
    free(b);
    tmoe_model *from = s.model;
    s.model = d.model;
    c.vector_width = 8;
    CHECK(!tmoe_model_derive(s.ctx, d.model, NULL, &c, d.model->tasks, 3));
    CHECK_HAS(tmoe_error_message(s.ctx), "vector_width is 8, must stay 16");
    c.vector_width = 16;
    c.vector_length = 3.0f;
    CHECK(!tmoe_model_derive(s.ctx, d.model, NULL, &c, d.model->tasks, 3));
    CHECK_HAS(tmoe_error_message(s.ctx), "vector_length is 3, must stay 2");
    c.vector_length = 2.0f;
    c.word_pairs = !c.word_pairs;
    CHECK(!tmoe_model_derive(s.ctx, d.model, NULL, &c, d.model->tasks, 3));
    CHECK_HAS(tmoe_error_message(s.ctx), "must be those that the layers were trained on");
    c.word_pairs = !c.word_pairs;
    c.task_input = TMOE_TASK_ROW;
    CHECK(!tmoe_model_derive(s.ctx, d.model, NULL, &c, d.model->tasks, 1));
    CHECK_HAS(tmoe_error_message(s.ctx), "TMOE_TASK_ROW of task_input must stay");
    tmoe_model_destroy(d.model);
    s.model = from;
    unmake(&s);
}

/* The field of older files says the same by another name. */
static void test_an_older_config_says_that_the_instruction_is_read(void)
{
    static const char *const texts[2] = { "{\"instruction_in_input\":0}",
        "{\"instruction_in_input\":1}" };
    tmoe_ctx *ctx = context(1);
    const tmoei_field *field = tmoei_config_fields;
    while (strcmp(field->name, "task_input") != 0) field++;
    for (int i = 0; i < 2; i++) {
        tmoe_config c = small_config();
        tmoei_json json;
        c.task_input = TMOE_TASK_VECTOR;
        CHECK(tmoei_json_parse(ctx, &json, texts[i], strlen(texts[i]), "x") == TMOE_OK);
        CHECK(tmoei_fields_from_json(ctx, &json, "x", &c, field, 1, 1) == TMOE_OK);
        CHECK(c.task_input == (i ? TMOE_TASK_TEXT : 0));
        tmoei_json_free(ctx, &json);
    }
    tmoe_ctx_destroy(ctx);
}

static void test_frozen_parts_do_not_move(void)
{
    static const int bits[4] = { TMOE_TRAIN_LAYERS, TMOE_TRAIN_ROUTER, TMOE_TRAIN_TASKS,
        TMOE_TRAIN_SHARED };
    int which, p, i;
    for (which = 0; which < 4; which++) {
        tmoe_config c = small_config();
        tmoe_training t = small_training();
        float *before;
        set s;
        c.vectors = TMOE_VECTOR_LEARNED;
        t.train = bits[which];
        s = make(1, &c, &t);
        before = (float *)malloc(s.model->size * sizeof(float));
        memcpy(before, s.model->theta, s.model->size * sizeof(float));
        for (i = 0; i < 3; i++) CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
        for (p = 0; p < s.model->parameter_count; p++) {
            const tmoei_parameter *parameter = &s.model->parameters[p];
            const size_t bytes = (size_t)parameter->rows * (size_t)parameter->cols * sizeof(float);
            const int moves = parameter->rate == (tmoei_rate)which;
            if (!moves)
                CHECK(memcmp(before + parameter->offset, s.model->theta + parameter->offset, bytes)
                    == 0);
            else if (parameter->rows > 1)
                CHECK(memcmp(before + parameter->offset, s.model->theta + parameter->offset, bytes)
                    != 0);
        }
        free(before);
        unmake(&s);
    }
}

/* Nine requests of several lengths at once, and each alone: the same tokens. Rows move when
 * requests end and when beams change places. */
static void test_requests_answered_together_are_as_each_alone(void)
{
    enum { N = 9, LONG = 13 };

    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    int ids[N * 7], lengths[N], n = 0, other = 0, differ = 0;
    for (int r = 0; r < N; r++) {
        lengths[r] = 2 + r % 6;
        for (int i = 0; i < lengths[r]; i++) ids[n++] = (r * 7 + i * 5 + 1) % 24;
    }
    for (int seed = 1; seed <= 12; seed++) {
        tmoe_config c = tmoe_config_default();
        c.width = 16;
        c.encoder_heads = c.decoder_heads = 2;
        c.encoder_ffn = c.decoder_ffn = 32;
        c.experts = 1;
        c.vocabulary = 24;
        c.seed = (uint64_t)seed;
        c.task_input = 0;
        c.positions = seed % 2 ? TMOE_POSITION_LEARNED : TMOE_POSITION_ROTARY;
        c.source_tokens = 16;
        c.target_tokens = 14;
        c.encoder_layers = c.decoder_layers = 1;
        tmoe_model *model = tmoe_model_create(ctx, &c, NULL, NULL, 0);
        CHECK(model != NULL);
        if (!model) break;
        for (size_t i = 0; i < model->size; i++)
            model->theta[i] *= model->theta[i] == 1.0f ? 1.0f : 12.0f; /* answers that differ */
        for (int beams = 1; beams <= 4; beams++) {
            static int together[N * 4 * LONG], counts[N * 4], alone[4 * LONG], count[4];
            tmoe_generation g = *tmoe_model_generation(model);
            g.beams = g.returned = beams;
            g.max_length = LONG;
            g.early_stopping = beams % 2 ? TMOE_EARLY_STOPPING_TRUE : TMOE_EARLY_STOPPING_NEVER;
            memset(together, 0, sizeof together);
            CHECK(generate(model, -1, ids, lengths, N, &g, together, counts, NULL) == TMOE_OK);
            for (int r = 0, at = 0; r < N; at += lengths[r++]) {
                memset(alone, 0, sizeof alone);
                CHECK(generate(model, -1, ids + at, lengths + r, 1, &g, alone, count, NULL)
                    == TMOE_OK);
                for (int b = 0; b < beams; b++) {
                    other += counts[r * beams + b] != counts[0];
                    differ += count[b] != counts[r * beams + b]
                        || memcmp(alone + b * LONG, together + (r * beams + b) * LONG,
                            (size_t)count[b] * sizeof(int));
                }
            }
        }
        tmoe_model_destroy(model);
    }
    CHECK(other > 0 && differ == 0);
    tmoe_ctx_destroy(ctx);
}

/* A text may fill the model's room to the last token, and no more; one that does not fit leaves
 * nothing behind. */
static void test_texts_of_the_longest_length_are_taken_and_longer_ones_refused(void)
{
    tmoe_config c = small_config();
    tmoe_training t = small_training();
    set s = make(1, &c, &t);
    tmoei_texts texts = { NULL, NULL, 0, 0, 0, 0 };
    const int end = tmoe_tokenizer_special(s.model->tokenizer, TMOE_TOKEN_END);
    CHECK(tmoei_texts_add(s.model, &texts, NULL, "abcdef", 8, "input", "t", 0)
        == TMOE_OK); /* <s> six bytes </s> */
    CHECK(texts.count == 1 && texts.ids_used == 8 && texts.ids[7] == end);
    CHECK(tmoei_texts_add(s.model, &texts, NULL, "abcdefg", 8, "input", "t", 1) == TMOE_ERR_DATA);
    CHECK_HAS(tmoe_error_message(s.ctx),
        "task t, line 2: the input has 9 tokens; the model takes at most 8");
    CHECK(texts.count == 1 && texts.ids_used == 8);
    s.ctx->error = TMOE_OK;
    CHECK(tmoei_texts_add(s.model, &texts, NULL, "abcdefg", 9, "input", "t", 1) == TMOE_OK);
    CHECK(texts.count == 2 && texts.ids_used == 17 && texts.ids[7] == end && texts.ids[16] == end);
    tmoei_free(s.ctx, texts.ids);
    tmoei_free(s.ctx, texts.offsets);
    unmake(&s);
}

/* Alternating updates: in its turn the model moves, then router and task vectors; what rests keeps
 * its moments, too. */
static void test_alternating_updates_leave_the_other_part_alone(void)
{
    tmoe_config c = small_config();
    tmoe_training t = small_training();
    c.vectors = TMOE_VECTOR_LEARNED;
    t.optimiser = TMOE_OPTIMISER_ADAMW;
    t.alternate_steps = 2;
    t.weight_decay = 0.1f;
    set s = make(1, &c, &t);
    if (!s.trainer) return;
    const size_t n = s.model->size, span = s.trainer->span;
    float *theta = (float *)malloc(n * sizeof(float)), *m1 = (float *)malloc(span * sizeof(float)),
          *m2 = (float *)malloc(span * sizeof(float));
    for (int step = 0; step < 8; step++) {
        memcpy(theta, s.model->theta, n * sizeof(float));
        memcpy(m1, s.trainer->moment1, span * sizeof(float));
        memcpy(m2, s.trainer->moment2, span * sizeof(float));
        CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
        for (int p = 0; p < s.model->parameter_count; p++) {
            const tmoei_parameter *parameter = &s.model->parameters[p];
            const size_t at = parameter->offset, g = at - s.trainer->first,
                         bytes = (size_t)parameter->rows * (size_t)parameter->cols * sizeof(float);
            const int router = parameter->rate == TMOEI_RATE_ROUTER
                || parameter->rate == TMOEI_RATE_TASKS,
                      moves = router == (step / 2 % 2);
            if (parameter->rate == TMOEI_RATE_NONE) continue;
            const int same = memcmp(theta + at, s.model->theta + at, bytes) == 0
                && memcmp(m1 + g, s.trainer->moment1 + g, bytes) == 0
                && memcmp(m2 + g, s.trainer->moment2 + g, bytes) == 0;
            if (!moves)
                CHECK(same);
            else if (parameter->rows > 1 && parameter->rate != TMOEI_RATE_TASKS)
                CHECK(!same);
        }
    }
    free(theta);
    free(m1);
    free(m2);
    unmake(&s);
}

static void test_all_problems_of_a_config_are_in_one_message(void)
{
    tmoe_ctx *ctx = context(1);
    tmoe_tokenizer *tokenizer = tmoe_tokenizer_bytes(ctx);
    tmoe_config c = small_config();
    c.encoder_heads = 3;
    c.experts = 0;
    c.temperature = 0.0f;
    CHECK(tmoe_model_create(ctx, &c, tokenizer, NULL, 0) == NULL);
    CHECK(tmoe_error(ctx) == TMOE_ERR_CONFIG);
    CHECK_HAS(tmoe_error_message(ctx), "width = 16 is not divisible by encoder_heads = 3");
    CHECK_HAS(tmoe_error_message(ctx), "experts is 0");
    CHECK_HAS(tmoe_error_message(ctx), "temperature is 0");
    tmoe_tokenizer_destroy(tokenizer);
    tmoe_ctx_destroy(ctx);
}

static void test_a_text_longer_than_the_model_takes_is_named(void)
{
    tmoe_config c = small_config();
    tmoe_training t = small_training();
    tmoe_ctx *ctx = context(1);
    tmoe_suite *suite = small_suite(ctx);
    tmoe_tokenizer *tokenizer = tmoe_tokenizer_bytes(ctx);
    tmoe_model *model;
    c.target_tokens = 10; /* "apple apple" needs 13 with <s> and </s> */
    model =
        tmoe_model_create(ctx, &c, tokenizer, tmoe_suite_task(suite, 0), tmoe_suite_count(suite));
    CHECK(
        model && tmoe_trainer_create(model, suite, &t) == NULL && tmoe_error(ctx) == TMOE_ERR_DATA);
    CHECK_HAS(tmoe_error_message(ctx),
        "task twice, line 1: the output has 13 tokens; the model takes at most 10");
    tmoe_model_destroy(model);
    tmoe_tokenizer_destroy(tokenizer);
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
}

/* Without a config, a training from a start has the start's; without stage 1's settings, stage 1 has
 * those of stage 2: as many steps, and a temperature that falls within them. */
static void test_what_is_left_out_is_the_starts_and_stage_twos(void)
{
    tmoe_ctx *ctx = context(1);
    tmoe_suite *suite = small_suite(ctx);
    tmoe_config c = small_config();
    tmoe_training t = small_training();
    tmoe_model *start, *model[2];
    int way;
    t.steps = 3;
    c.mix = TMOE_MIX_OUTPUT;
    c.temperature = 3.0f;
    c.target_tokens = 0; /* only what is 0 is fitted to the suite: "<s>apple apple</s>" ... */
    start = tmoe_train(ctx, suite, &c, &t);
    CHECK(start && tmoe_model_config(start)->source_tokens == c.source_tokens);
    CHECK(start && tmoe_model_config(start)->target_tokens == 13);
    c.target_tokens = 13;
    CHECK(start != NULL);
    model[0] = tmoe_train_from(ctx, suite, start, NULL, NULL, &t);
    CHECK(model[0] && tmoe_model_config(model[0])->experts == 3);
    CHECK(model[0] && tmoe_model_config(model[0])->mix == TMOE_MIX_OUTPUT);
    CHECK(model[0] && tmoe_model_config(model[0])->temperature == 3.0f);
    tmoe_model_destroy(model[0]);
    t.steps = 12;
    for (way = 0; way < 2; way++)
        model[way] = tmoe_train_two_stages(ctx, suite, start, way ? &c : NULL, way ? &t : NULL, &t);
    CHECK(model[0] && model[1] && model[0]->size == model[1]->size
        && memcmp(model[0]->theta, model[1]->theta, model[0]->size * sizeof(float)) == 0);
    tmoe_model_destroy(model[0]);
    tmoe_model_destroy(model[1]);
    tmoe_model_destroy(start);
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
}

/* Saves model and trainer, answers, and stops. */
static int keep_and_stop(void *user, const tmoe_progress *p)
{
    tmoe_model *model = tmoe_trainer_model(p->trainer);
    char text[64];
    if (p->step < 5) return 0;
    CHECK(tmoe_model_save(model, "build/test_kept.safetensors") == TMOE_OK);
    CHECK(tmoe_trainer_save(p->trainer, "build/test_kept.trainer.safetensors") == TMOE_OK);
    CHECK(tmoe_answer(model, "upper", "apple", (char *)user, 64) == TMOE_OK);
    CHECK(tmoe_answer(model, "nothing", "apple", text, 64) != TMOE_OK); /* its error is its own */
    return 1;
}

static void test_a_cancelled_training_is_kept_by_its_callback(void)
{
    tmoe_ctx *ctx = context(1);
    tmoe_suite *suite = small_suite(ctx);
    tmoe_config c = small_config();
    tmoe_training t = small_training();
    tmoe_model *model;
    tmoe_trainer *trainer;
    char said[64], says[64];
    t.progress = keep_and_stop;
    t.progress_user = said;
    model = tmoe_train(ctx, suite, &c, &t);
    CHECK(model == NULL && tmoe_error(ctx) == TMOE_ERR_CANCELLED);
    CHECK_TEXT(tmoe_error_message(ctx),
        "trainer_run: stopped by the progress callback after step 5");
    model = tmoe_model_load(ctx, "build/test_kept.safetensors");
    CHECK(model && model->step == 5);
    CHECK(model && tmoe_answer(model, "upper", "apple", says, sizeof says) == TMOE_OK);
    CHECK_TEXT(says, said);
    t.progress = NULL;
    trainer = model ? tmoe_trainer_create(model, suite, &t) : NULL;
    CHECK(trainer && tmoe_trainer_load(trainer, "build/test_kept.trainer.safetensors") == TMOE_OK);
    CHECK(trainer && tmoe_trainer_run(trainer) == TMOE_OK && trainer->steps_done == t.steps);
    tmoe_trainer_destroy(trainer);
    tmoe_model_destroy(model);
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
    (void)remove("build/test_kept.safetensors");
    (void)remove("build/test_kept.trainer.safetensors");
}

/* Lines of very different lengths: each input has a short accepted output and a long one. */
static tmoe_suite *uneven_suite(tmoe_ctx *ctx, char texts[2][40][64])
{
    static const char *outputs[2][10][2];
    tmoe_suite *suite = tmoe_suite_create(ctx);
    int task, i, j;
    for (task = 0; task < 2; task++) {
        const char *inputs[10], *first[10];
        for (i = 0; i < 10; i++) {
            char *x = texts[task][2 * i], *y = texts[task][2 * i + 1];
            const int input = task ? 50 - 4 * i : 1 + i, output = task ? 4 + i : 40 + 2 * i;
            for (j = 0; j < input; j++) x[j] = (char)('a' + (i + j) % 26);
            for (j = 0; j < output; j++) y[j] = (char)('A' + (i + j) % 26);
            x[input] = y[output] = 0;
            inputs[i] = x;
            first[i] = "x";
            outputs[task][i][0] = "x";
            outputs[task][i][1] = y;
        }
        CHECK(add_task(suite, task ? "down" : "up", NULL, task ? "d" : "u", TMOE_PART_TRAIN, inputs,
                  first, 10, 0)
            == TMOE_OK);
        for (i = 0; i < 10; i++) {
            tmoe_example *example = (tmoe_example *)&suite->tasks[task].train[i];
            example->outputs = outputs[task][i];
            example->output_count = 2;
        }
    }
    return suite;
}

/* Steps and validations allocate nothing: what they need at worst was reserved with the trainer. */
static void test_no_step_takes_more_than_was_planned(void)
{
    static char texts[2][40][64];

    const struct {
        tmoe_mix mix;
        tmoe_selection selection;
        tmoe_router_kind router;
        int alternate, train, validation;
    } cases[] = {
        { TMOE_MIX_PARAM, TMOE_SELECT_SOFTMAX, TMOE_ROUTER_LINEAR, 0, TMOE_TRAIN_ALL, 0 },
        { TMOE_MIX_PARAM, TMOE_SELECT_GUMBEL, TMOE_ROUTER_LSTM, 0, TMOE_TRAIN_ALL, 3 },
        { TMOE_MIX_PARAM, TMOE_SELECT_SOFTMAX, TMOE_ROUTER_TRANSFORMER, 2, TMOE_TRAIN_ALL, 3 },
        { TMOE_MIX_PARAM, TMOE_SELECT_STRAIGHT_THROUGH, TMOE_ROUTER_LINEAR, 0, TMOE_TRAIN_ALL, 0 },
        { TMOE_MIX_PARAM, TMOE_SELECT_RANDOM_EXAMPLE, TMOE_ROUTER_LINEAR, 0, TMOE_TRAIN_ALL, 5 },
        { TMOE_MIX_PARAM, TMOE_SELECT_RANDOM_TASK, TMOE_ROUTER_LINEAR, 0, TMOE_TRAIN_ALL, 5 },
        { TMOE_MIX_PARAM, TMOE_SELECT_SOFTMAX, TMOE_ROUTER_LINEAR, 0, TMOE_TRAIN_MODEL, 0 },
        { TMOE_MIX_OUTPUT, TMOE_SELECT_SOFTMAX, TMOE_ROUTER_LINEAR, 0, TMOE_TRAIN_ALL, 5 },
        { TMOE_MIX_OUTPUT, TMOE_SELECT_STRAIGHT_THROUGH, TMOE_ROUTER_LINEAR, 0, TMOE_TRAIN_ALL, 0 },
        { TMOE_MIX_OUTPUT, TMOE_SELECT_RANDOM_EXAMPLE, TMOE_ROUTER_LINEAR, 0, TMOE_TRAIN_ALL, 0 },
    };

    size_t i;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tmoe_config c = small_config();
        tmoe_training t = small_training();
        tmoe_training_memory memory;
        size_t before, peak, later;
        tmoe_ctx *ctx = context(2);
        tmoe_suite *suite = uneven_suite(ctx, texts);
        tmoe_tokenizer *tokenizer = tmoe_tokenizer_bytes(ctx);
        tmoe_model *model;
        tmoe_trainer *trainer;
        int step;
        c.width = 32; /* large enough not to hide in an arena's smallest chunk */
        c.encoder_ffn = c.decoder_ffn = 128;
        c.encoder_layers = c.decoder_layers = 2;
        c.source_tokens = c.target_tokens = 72;
        c.mix = cases[i].mix;
        c.selection = cases[i].selection;
        c.router = cases[i].router;
        c.positions = i / 2 % 2 ? TMOE_POSITION_ROTARY : TMOE_POSITION_LEARNED;
        c.exploration = 0.1f;
        if (i % 2) c.task_input = TMOE_TASK_VECTOR | TMOE_TASK_TEXT;
        t.steps = 40;
        t.tasks_per_step = 2;
        t.examples_per_task = 3;
        t.dropout = 0.1f;
        t.alternate_steps = cases[i].alternate;
        t.train = cases[i].train;
        t.validation_lines = cases[i].validation;
        t.evaluate_every_steps = cases[i].validation ? 10 : 0;
        model = tmoe_model_create(ctx, &c, tokenizer, suite->tasks, 2);
        before = tmoe_ctx_bytes(ctx, NULL);
        trainer = tmoe_trainer_create(model, suite, &t);
        CHECK(trainer != NULL);
        CHECK(tmoe_trainer_bytes(trainer, &memory) == memory.total);
        CHECK(memory.total
            == memory.parameters + memory.gradients + memory.moments + memory.best + memory.step);
        CHECK(memory.parameters == tmoe_model_parameters(model, NULL) * sizeof(float));
        /* the plan is what was taken, but for texts, lists and the heads of blocks */
        later = tmoe_ctx_bytes(ctx, &peak);
        CHECK(later - before >= memory.total - memory.parameters);
        CHECK(later - before <= memory.total - memory.parameters + 65536);
        for (step = 0; step < 30; step++) CHECK(tmoe_trainer_step(trainer, NULL) == TMOE_OK);
        CHECK(tmoe_trainer_run(trainer) == TMOE_OK);
        CHECK(tmoe_ctx_bytes(ctx, &before) == later);
        CHECK(before == peak);
        tmoe_trainer_destroy(trainer);
        tmoe_model_destroy(model);
        tmoe_tokenizer_destroy(tokenizer);
        tmoe_suite_destroy(suite);
        tmoe_ctx_destroy(ctx);
    }
}

/* Before anything is allocated, tmoe_training_bytes says what tmoe_trainer_bytes says afterwards, of
 * lines that are all as long as can be; and takes far less than the parameters meanwhile. */
static void test_memory_is_known_before_it_is_allocated(void)
{
    static const tmoe_selection selections[] = { TMOE_SELECT_SOFTMAX, TMOE_SELECT_RANDOM_EXAMPLE,
        TMOE_SELECT_STRAIGHT_THROUGH };
    static const char *const inputs[8] = { "aaaaaaaa", "bbbbbbbb", "cccccccc", "dddddddd",
        "eeeeeeee", "ffffffff", "gggggggg", "hhhhhhhh" };
    static const char *const outputs[8] = { "aaaaa", "bbbbb", "ccccc", "ddddd", "eeeee", "fffff",
        "ggggg", "hhhhh" };
    int i;
    for (i = 0; i < 12; i++) {
        tmoe_config c = small_config();
        tmoe_training t = small_training();
        tmoe_training_memory planned, real;
        tmoe_ctx *ctx = context(1);
        tmoe_suite *suite = tmoe_suite_create(ctx);
        tmoe_tokenizer *tokenizer = tmoe_tokenizer_bytes(ctx);
        tmoe_model *model;
        tmoe_trainer *trainer;
        size_t before, peak;
        c.encoder_ffn = 4096;
        c.selection = selections[i % 3];
        c.mix = i % 2 ? TMOE_MIX_OUTPUT : TMOE_MIX_PARAM;
        c.begin_in_target = i / 6;
        c.positions = i / 2 % 2 ? TMOE_POSITION_ROTARY : TMOE_POSITION_LEARNED;
        if (i == 4) c.experts = 1;
        if (i % 3 == 1) c.task_input = TMOE_TASK_VECTOR;
        if (i == 7) c.vectors = TMOE_VECTOR_LEARNED;
        t.alternate_steps = i == 3 ? 2 : 0;
        t.train = i == 5 ? TMOE_TRAIN_LAYERS : TMOE_TRAIN_ALL;
        t.validation_lines = i % 4 ? 3 : 0;
        t.evaluate_every_steps = i % 4 == 2;
        before = tmoe_ctx_bytes(ctx, &peak);
        const int source = c.task_input & TMOE_TASK_TEXT ? 12 : 10; /* with "1\n" or without */
        CHECK(tmoe_training_bytes(ctx, &c, &t, 2, source, 7, &planned) == TMOE_OK);
        CHECK(tmoe_ctx_bytes(ctx, &peak) == before);
        CHECK(peak - before < planned.parameters / 2);
        CHECK(add_task(suite, "one", NULL, "1", TMOE_PART_TRAIN, inputs, outputs, 8, 0) == TMOE_OK);
        CHECK(add_task(suite, "two", NULL, "2", TMOE_PART_TRAIN, inputs, outputs, 8, 0) == TMOE_OK);
        model = tmoe_model_create(ctx, &c, tokenizer, suite->tasks, 2);
        trainer = tmoe_trainer_create(model, suite, &t);
        CHECK(trainer != NULL);
        (void)tmoe_trainer_bytes(trainer, &real);
        CHECK(planned.parameters == real.parameters);
        CHECK(planned.gradients == real.gradients);
        CHECK(planned.moments == real.moments);
        CHECK(planned.best == real.best);
        CHECK(planned.step == real.step);
        CHECK(planned.total == real.total);
        tmoe_trainer_destroy(trainer);
        tmoe_model_destroy(model);
        tmoe_tokenizer_destroy(tokenizer);
        tmoe_suite_destroy(suite);
        tmoe_ctx_destroy(ctx);
    }
}

static void test_a_plan_of_what_cannot_be_trained_is_refused(void)
{
    tmoe_ctx *ctx = context(1);
    tmoe_config c = small_config();
    tmoe_training t = small_training();
    tmoe_training_memory memory, untouched;
    memset(&memory, 7, sizeof memory);
    untouched = memory;
    CHECK(tmoe_training_bytes(ctx, &c, &t, 0, 40, 16, &memory) == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_training_bytes(ctx, &c, &t, 1, 41, 16, &memory) == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_training_bytes(ctx, &c, &t, 1, 40, 17, &memory) == TMOE_ERR_ARGUMENT);
    c.width = 15;
    CHECK(tmoe_training_bytes(ctx, &c, &t, 1, 40, 16, &memory) == TMOE_ERR_CONFIG);
    c.width = 16;
    t.steps = 0;
    CHECK(tmoe_training_bytes(ctx, &c, &t, 1, 40, 16, &memory) == TMOE_ERR_CONFIG);
    CHECK(memcmp(&memory, &untouched, sizeof memory) == 0);
    CHECK(tmoe_training_bytes(ctx, NULL, NULL, 100, 128, 64, &memory) == TMOE_OK);
    CHECK(memory.total > memory.parameters && memory.best == 0);
    tmoe_ctx_destroy(ctx);
}

/* ---- memory that runs out -------------------------------------------------------------------- */
typedef struct counter {
    long given, fail_at, out;
    size_t bytes;
} counter;

static void *counting_alloc(size_t size, void *user)
{
    counter *c = (counter *)user;
    if (++c->given == c->fail_at) return NULL;
    c->out++;
    c->bytes += size;
    return malloc(size);
}

static void counting_free(void *ptr, size_t size, void *user)
{
    counter *c = (counter *)user;
    c->out--;
    c->bytes -= size;
    free(ptr);
}

/* Everything from the context to the answer; gives what went wrong first. */
static tmoe_result whole_life(counter *c, const tmoe_ctx_config *config)
{
    const char *path = "build/test_memory.safetensors";
    tmoe_ctx *ctx = tmoe_ctx_create(config);
    tmoe_suite *suite = ctx ? small_suite(ctx) : NULL;
    tmoe_model *model = NULL, *loaded = NULL;
    tmoe_config mc = small_config();
    tmoe_training t = small_training();
    tmoe_result result = TMOE_ERR_MEMORY;
    char text[64];
    (void)c;
    t.steps = 1;
    t.vocabulary = 262;
    t.validation_lines = 2;
    t.evaluate_every_steps = 1;
    mc.vectors = TMOE_VECTOR_LEARNED;
    if (suite) {
        model = tmoe_train(ctx, suite, &mc, &t);
        result = model ? tmoe_model_save(model, path) : tmoe_error(ctx);
        if (result == TMOE_OK) {
            loaded = tmoe_model_load(ctx, path);
            result = loaded ? TMOE_OK : tmoe_error(ctx);
        }
        if (result == TMOE_OK) result = tmoe_answer(loaded, "upper", "apple", text, sizeof text);
        if (result == TMOE_OK)
            result = tmoe_answer_unseen(loaded, "an unseen task", "apple", text, sizeof text);
    }
    tmoe_model_destroy(loaded);
    tmoe_model_destroy(model);
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
    (void)remove(path);
    return result;
}

static void test_every_failing_allocation_is_an_error_and_no_leak(void)
{
    counter c;
    tmoe_ctx_config config;
    long total, k;
    memset(&config, 0, sizeof config);
    config.alloc_fn = counting_alloc;
    config.free_fn = counting_free;
    config.alloc_user = &c;
    memset(&c, 0, sizeof c);
    CHECK(whole_life(&c, &config) == TMOE_OK);
    CHECK(c.out == 0 && c.bytes == 0);
    total = c.given;
    CHECK(total > 100);
    for (k = 1; k <= total; k++) {
        tmoe_result result;
        memset(&c, 0, sizeof c);
        c.fail_at = k;
        result = whole_life(&c, &config);
        if (result != TMOE_ERR_MEMORY || c.out || c.bytes) {
            printf("allocation %ld of %ld failing gave '%s', %ld blocks left\n", k, total,
                tmoe_result_name(result), c.out);
            test_failures++;
            if (test_failures > 5) return;
        }
    }
}

static void test_the_callers_float_mode_is_given_back(void)
{
    tmoe_config c = small_config();
    tmoe_training t = small_training();
    set s = make(2, &c, &t);
    volatile float tiny = 1e-38f, denormal;
    char text[64];
    CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
    CHECK(tmoe_answer(s.model, "upper", "apple", text, sizeof text) == TMOE_OK);
    denormal = tiny * 0.1f;
    CHECK(denormal > 0.0f);
    unmake(&s);
}

/* Principal components: of points on a line, the first one is the place on it and the others are
 * nothing; distances are kept. */
static void test_principal_components_keep_distances(void)
{
    enum { N = 7, F = 30 };

    double x[N * F], before[N * N], G[N * N], U[N * N], line[N * F];
    float out[N * N];
    for (int i = 0; i < N * F; i++) x[i] = (double)tmoei_normal(5, 1, (uint64_t)i);
    for (int i = 0; i < N * F; i++)
        line[i] = 3.0 + (i / F - 2) * (double)tmoei_normal(5, 2, (uint64_t)(i % F));
    for (int i = 0; i < N * N; i++) {
        before[i] = 0.0;
        for (int f = 0; f < F; f++) before[i] += pow(x[i / N * F + f] - x[i % N * F + f], 2.0);
    }
    tmoei_components(x, N, F, N, G, U, out);
    for (int i = 0; i < N * N; i++) {
        double after = 0.0;
        for (int j = 0; j < N; j++)
            after += pow((double)out[i / N * N + j] - (double)out[i % N * N + j], 2.0);
        CHECK_NEAR(after, before[i], 1e-4);
    }
    tmoei_components(line, N, F, 3, G, U, out);
    for (int i = 1; i < N; i++) {
        CHECK_NEAR(out[i * 3] - out[(i - 1) * 3], out[3] - out[0], 1e-4);
        CHECK_NEAR(out[i * 3 + 1], 0.0, 1e-4);
    }
    CHECK(fabs((double)(out[3] - out[0])) > 1.0);
}

/* The vectors that a dense model makes: the state is the mean of the encoder's output; tasks alike
 * have vectors alike; as given vectors they route. */
static void test_task_vectors_of_a_dense_model(void)
{
    for (int how = 0; how < 2; how++) {
        tmoe_config c = small_config();
        tmoe_training t = small_training();
        c.experts = 1;
        c.task_input = TMOE_TASK_TEXT | TMOE_TASK_VECTOR;
        set s = make(1, &c, &t);
        if (!s.trainer) return;
        for (int i = 0; i < 20; i++) CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
        const int N = tmoe_suite_count(s.suite), k = how ? 5 : c.width;
        float *v = (float *)malloc(sizeof(float) * (size_t)(N * k)),
              *again = (float *)malloc(sizeof(float) * (size_t)(N * k));
        CHECK(
            tmoe_task_vectors(s.model, s.suite, how ? TMOE_EMBED_FISHER : TMOE_EMBED_STATE, 4, k, v)
            == TMOE_OK);
        double squares = 0.0, between = 0.0;
        for (int i = 0; i < N * k; i++) squares += (double)(v[i] * v[i]);
        CHECK_NEAR(squares / N, k, 1e-3 * k);
        for (int j = 0; j < k; j++) between += fabs((double)(v[j] - v[k + j]));
        CHECK(between > 1e-3);
        if (how == 0) { /* against a pass of the test's own */
            double mean[64] = { 0.0 }, norm = 0.0, own = 0.0;
            for (int line = 0; line < 4; line++) {
                int ids[64], positions[64], offsets[2] = { 0, 0 };
                size_t count;
                tmoei_pass pass;
                tmoei_pack source;
                CHECK(tmoei_encode_source(s.model->tokenizer,
                          tmoe_suite_task(s.suite, 1)->instruction,
                          tmoe_suite_task(s.suite, 1)->train[line].input, 0, ids, 64, &count)
                    == TMOE_OK);
                for (int j = 0; j < 64; j++) positions[j] = j;
                memset(&source, 0, sizeof source);
                source.ids = ids;
                source.positions = positions;
                source.offsets = offsets;
                source.sequences = 1;
                source.tokens = offsets[1] = (int)count;
                CHECK(
                    tmoei_evaluation_pass(s.model, &second_task, s.model->tape, &pass) == TMOE_OK);
                const tmoe_tensor *h = tmoei_encode(&pass, &source);
                for (int r = 0; h && r < h->rows; r++)
                    for (int d = 0; d < c.width; d++)
                        mean[d] += (double)h->x[r * c.width + d] / h->rows;
            }
            for (int d = 0; d < c.width; d++) {
                norm += mean[d] * mean[d];
                own += (double)(v[k + d] * v[k + d]);
            }
            for (int d = 0; d < c.width; d++)
                CHECK_NEAR((double)v[k + d] / sqrt(own), mean[d] / sqrt(norm), 1e-4);
        }
        CHECK(tmoe_task_vectors(s.model, s.suite, how ? TMOE_EMBED_FISHER : TMOE_EMBED_STATE, 4, k,
                  again)
            == TMOE_OK);
        CHECK(memcmp(v, again, sizeof(float) * (size_t)(N * k)) == 0);
        CHECK(tmoe_task_vectors(s.model, s.suite, TMOE_EMBED_STATE, 4, c.width + 1, v)
            == TMOE_ERR_ARGUMENT);
        c.experts = 3;
        c.vectors = TMOE_VECTOR_GIVEN;
        c.vector_width = k;
        tmoe_model *mixture = tmoe_model_create(s.ctx, &c, tmoe_model_tokenizer(s.model),
            tmoe_suite_task(s.suite, 0), N);
        float a[64], b[64];
        CHECK(mixture != NULL);
        if (mixture) {
            for (int i = 0; i < N; i++)
                CHECK(tmoe_task_vector_set(mixture, i, again + i * k) == TMOE_OK);
            CHECK(tmoe_route_of_task(mixture, 1, a) == TMOE_OK
                && tmoe_route_of_vector(mixture, again + k, b) == TMOE_OK);
            for (int i = 0; i < tmoe_routed_layers(mixture) * 3; i++) CHECK_NEAR(a[i], b[i], 1e-6);
            CHECK(tmoe_task_vectors(mixture, s.suite, TMOE_EMBED_STATE, 4, c.width, v)
                == TMOE_ERR_ARGUMENT);
        }
        tmoe_model_destroy(mixture);
        free(v);
        free(again);
        unmake(&s);
    }
}

/* A matrix as numpy.save writes it; anything else is refused and changes nothing. */
static void test_npy_files_are_read(void)
{
    static const char text[] = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    static const char path[] = "build/test_vectors.npy";
    char head[128];
    const unsigned char values[24] = { 0, 0, 128, 63, 0, 0, 0, 64, 0, 0, 64, 192, 0, 0, 0, 0, 0, 0,
        0, 63, 0, 0, 128, 191 };
    float x[6] = { 9, 9, 9, 9, 9, 9 };
    memset(head, ' ', sizeof head);
    memcpy(head, "\x93NUMPY\x01\0v\0", 10);
    memcpy(head + 10, text, sizeof text - 1);
    head[127] = '\n';
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(head, 1, 128, file) == 128 && fwrite(values, 1, 24, file) == 24
        && fclose(file) == 0);
    CHECK(tmoe_npy_load(ctx, path, x, 3, 2) == TMOE_ERR_FORMAT && x[0] == 9.0f);
    CHECK_HAS(tmoe_error_message(ctx), "(3,2)");
    CHECK(tmoe_npy_load(ctx, path, x, 2, 3) == TMOE_OK);
    CHECK(x[0] == 1.0f && x[1] == 2.0f && x[2] == -3.0f && x[3] == 0.0f && x[4] == 0.5f
        && x[5] == -1.0f);
    (void)remove(path);
    CHECK(tmoe_npy_load(ctx, path, x, 2, 3) == TMOE_ERR_FILE);
    tmoe_ctx_destroy(ctx);
}

TEST_MAIN("test_model", RUN(test_gradients_of_every_mix_and_selection);
          RUN(test_gradients_of_every_router); RUN(test_gradients_of_other_shapes);
          RUN(test_gradients_of_expert_regularisation_and_load_balance);
          RUN(test_a_disabled_expert_gets_no_weight);
          RUN(test_disabled_experts_stay_out_at_any_temperature);
          RUN(test_progress_counts_from_the_load_on);
          RUN(test_exploration_leaves_disabled_experts_alone);
          RUN(test_router_dropout_is_for_training_alone);
          RUN(test_random_routes_are_drawn_for_each_example); RUN(test_random_streams_do_not_meet);
          RUN(test_tasks_and_lines_come_once_an_epoch); RUN(test_a_step_has_64_lines_unless_told);
          RUN(test_a_line_that_comes_twice_in_a_group_is_within_the_plan);
          RUN(test_a_call_that_succeeds_leaves_no_error);
          RUN(test_tuning_the_experts_leaves_other_layers_alone);
          RUN(test_both_mixes_agree_on_one_hot_routes);
          RUN(test_param_mix_is_the_dense_model_of_its_merged_blocks);
          RUN(test_derived_models_compute_what_they_came_from);
          RUN(test_a_derived_model_keeps_all_that_its_weights_depend_on);
          RUN(test_a_router_is_taken_whole_or_not_at_all);
          RUN(test_enums_and_limits_of_a_config_are_checked);
          RUN(test_a_training_in_which_nothing_would_move_is_refused);
          RUN(test_two_stages_keep_the_router_and_sharpen);
          RUN(test_ranking_takes_the_most_likely_label);
          RUN(test_the_best_answers_come_with_their_likelihoods);
          RUN(test_parameters_are_read_and_written_by_their_names);
          RUN(test_the_text_vector_is_the_models);
          RUN(test_a_router_of_ones_own_is_trained_and_saved);
          RUN(test_few_shot_adapts_a_copy_and_threads_do_not_matter);
          RUN(test_few_shot_learns_the_task); RUN(test_evaluation_routes_are_free_of_noise);
          RUN(test_one_two_and_four_threads_give_the_same_bits);
          RUN(test_resuming_gives_the_same_bits);
          RUN(test_resuming_under_another_training_is_refused);
          RUN(test_resuming_may_take_more_steps);
          RUN(test_a_file_is_described_without_its_parameters);
          RUN(test_files_of_version_0_1_are_read);
          RUN(test_a_file_without_positions_has_learned_ones);
          RUN(test_rotary_positions_are_no_parameters_and_are_saved_bit_by_bit);
          RUN(test_a_rotary_model_knows_the_order_of_tokens);
          RUN(test_a_model_that_could_not_be_loaded_is_not_saved);
          RUN(test_saved_and_loaded_model_answers_the_same);
          RUN(test_names_and_instructions_are_two_things);
          RUN(test_negative_counts_and_unknown_choices_are_refused);
          RUN(test_unseen_tasks_of_a_suite_are_asked_by_their_instruction);
          RUN(test_an_instruction_that_is_not_read_does_not_change_an_answer);
          RUN(test_answers_do_not_depend_on_their_batch);
          RUN(test_cached_decoding_equals_the_full_pass);
          RUN(test_gradients_where_layers_read_the_task_vector);
          RUN(test_a_dense_model_knows_its_task_by_the_vector);
          RUN(test_an_unseen_task_gets_the_vectors_of_near_ones);
          RUN(test_a_task_that_is_cut_out_keeps_its_vector_bit_for_bit);
          RUN(test_layers_that_begin_to_read_vectors_compute_what_they_did);
          RUN(test_an_older_config_says_that_the_instruction_is_read);
          RUN(test_frozen_parts_do_not_move);
          RUN(test_requests_answered_together_are_as_each_alone);
          RUN(test_texts_of_the_longest_length_are_taken_and_longer_ones_refused);
          RUN(test_alternating_updates_leave_the_other_part_alone);
          RUN(test_all_problems_of_a_config_are_in_one_message);
          RUN(test_a_text_longer_than_the_model_takes_is_named);
          RUN(test_what_is_left_out_is_the_starts_and_stage_twos);
          RUN(test_a_cancelled_training_is_kept_by_its_callback);
          RUN(test_no_step_takes_more_than_was_planned);
          RUN(test_memory_is_known_before_it_is_allocated);
          RUN(test_a_plan_of_what_cannot_be_trained_is_refused);
          RUN(test_every_failing_allocation_is_an_error_and_no_leak);
          RUN(test_principal_components_keep_distances); RUN(test_task_vectors_of_a_dense_model);
          RUN(test_npy_files_are_read); RUN(test_the_callers_float_mode_is_given_back);)
