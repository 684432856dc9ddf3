/* What makes the method what it is: routes with and without noise, what runs and what moves, the
 * loss, the optimiser, two stages, exploration, few-shot adaptation. Each test says which promise
 * or which fault of the reference (PAPER.md, section 6) it is about. */
#define TASKMOE_IMPLEMENTATION
#include "taskmoe.h"
#include "test.h"
#include "generate.h"
#include "small.h"

static float *tensor(const tmoe_model *model, const char *name, size_t *n)
{
    for (const tmoei_parameter *p = model->parameters;
         p < model->parameters + model->parameter_count; p++)
        if (!strcmp(p->name, name)) {
            *n = p->size;
            return model->theta + p->offset;
        }
    printf("no tensor is called %s\n", name);
    test_failures++;
    *n = 0;
    return model->theta;
}

/* Routers begin so small that all routes are nearly even: makes the differences between them large.
 * */
static void louder(const tmoe_model *model)
{
    for (size_t i = model->parameters[model->router_parameter].offset; i < model->vectors; i++)
        model->theta[i] *= 12.0f;
}

/* Takes steps, and nothing moves. */
static tmoe_training still_training(void)
{
    tmoe_training t = paper_training();
    t.lr_model = t.lr_router = t.lr_tasks = 0.0f;
    t.router_dropout = 0.0f; /* routes are compared with those outside of training */
    return t;
}

static void softmax_of(double *x, int n)
{
    double sum = 0.0;
    for (int i = 0; i < n; i++) sum += x[i] = exp(x[i]);
    for (int i = 0; i < n; i++) x[i] /= sum;
}

/* -log p of a line's answer by a pass of the test's own, under the task's route of evaluation; adds
 * its tokens to *tokens. */
static double line_loss(const set *s, int task, const tmoe_example *line, int *tokens)
{
    int ids[64], tids[64], positions[64], soff[2] = { 0, 0 }, toff[2] = { 0, 0 };
    const int n = (int)strlen(line->outputs[0]) + 1, V = s->model->V;
    size_t count = 0;
    double loss = 0.0;
    tmoei_pass pass;
    tmoei_pack source, target;
    CHECK(tmoei_encode_source(s->model->tokenizer, tmoe_suite_task(s->suite, task)->instruction,
              line->input, 0, ids, 64, &count)
        == TMOE_OK);
    for (int j = 0; j < 64; j++) positions[j] = j;
    for (int j = 0; j < n; j++)
        tids[j] = j ? 3 + (unsigned char)line->outputs[0][j - 1] : s->model->config.start_id;
    memset(&source, 0, sizeof source);
    memset(&target, 0, sizeof target);
    source.ids = ids;
    source.positions = positions;
    source.offsets = soff;
    source.sequences = 1;
    source.tokens = soff[1] = (int)count;
    target.ids = tids;
    target.positions = positions;
    target.offsets = toff;
    target.sequences = 1;
    target.tokens = toff[1] = n;
    const tmoei_guide guide = tmoei_guide_of(task);
    CHECK(tmoei_evaluation_pass(s->model, &guide, s->model->tape, &pass) == TMOE_OK);
    const tmoe_tensor *h =
        tmoei_head(&pass, tmoei_decode(&pass, &target, tmoei_encode(&pass, &source), &source));
    CHECK(h != NULL);
    for (int j = 0; h && j < n; j++) {
        double z = 0.0;
        for (int v = 0; v < V; v++) z += exp((double)h->x[j * V + v]);
        loss +=
            log(z) - (double)h->x[j * V + (j + 1 < n ? 3 + (unsigned char)line->outputs[0][j] : 2)];
    }
    *tokens += n;
    return loss;
}

/* ---- routes ---------------------------------------------------------------------------------- */
/* Faults 1 and 2: in evaluation soft Gumbel is the mixture of softmax, bit by bit, and a vector of
 * zeros, whose logits are all 0, gets exactly 1 / E. */
static void test_gumbel_is_evaluated_as_the_mixture_without_noise(void)
{
    static const tmoe_selection kinds[3] = { TMOE_SELECT_SOFTMAX, TMOE_SELECT_GUMBEL,
        TMOE_SELECT_STRAIGHT_THROUGH };
    float routes[3][6], vector[16], zeros[16] = { 0.0f };
    for (int j = 0; j < 16; j++) vector[j] = tmoei_normal(4, 1, (uint64_t)j);
    for (int k = 0; k < 3; k++) {
        tmoe_config c = paper_config();
        const tmoe_training t = still_training();
        float even[6], other[6], *a, *b;
        size_t n = 0;
        c.selection = kinds[k];
        c.vectors = TMOE_VECTOR_GIVEN;
        set s = make(1, &c, &t);
        louder(s.model);
        for (int task = 0; task < 3; task++)
            CHECK(tmoe_task_vector_set(s.model, task, task == 1 ? zeros : vector) == TMOE_OK);
        for (int step = 0; step < 3; step++) {
            CHECK(tmoe_route_of_task(s.model, 0, routes[k]) == TMOE_OK
                && tmoe_route_of_task(s.model, 1, even) == TMOE_OK);
            CHECK(tmoe_route_of_vector(s.model, vector, other) == TMOE_OK);
            for (int i = 0; i < 6; i++) {
                CHECK_NEAR(even[i], k == 2 ? i % 3 == 0 : 1.0 / 3, 1e-7);
                CHECK_NEAR(other[i], routes[k][i], 1e-7);
            }
            CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
        }
        a = logits_of(&s, NULL, &n);
        b = logits_of(&s, routes[k], &n);
        CHECK(a && b
            && memcmp(a, b, n * sizeof(float))
                == 0); /* what decoding uses is what tmoe_route_of_task says, ... */
        {
            float *first = logits_of_task(&s, 1, NULL, &n),
                  *second = logits_of(&s, even, &n); /* ... each task its own (fault 6), ... */
            CHECK(first && second && memcmp(first, second, n * sizeof(float)) == 0
                && memcmp(first, a, n * sizeof(float)) != 0);
            free(first);
            free(second);
        }
        {
            set dense = s; /* ... and that as it is: the dense model of that route says the same */
            float *d;
            size_t m = 0;
            c.experts = 1;
            dense.model = tmoe_model_derive(s.ctx, s.model, routes[k], &c, NULL, 0);
            CHECK(dense.model != NULL);
            d = logits_of(&dense, NULL, &m);
            CHECK(d && m == n);
            for (size_t i = 0; d && i < n; i++) CHECK_NEAR(d[i], a[i], 1e-5);
            free(d);
            tmoe_model_destroy(dense.model);
        }
        free(a);
        free(b);
        unmake(&s);
    }
    CHECK(memcmp(routes[0], routes[1], sizeof routes[0]) == 0);
    for (int i = 0; i < 6; i++) {
        const float *row = routes[0] + i / 3 * 3;
        CHECK(routes[2][i]
            == (routes[0][i] >= row[0] && routes[0][i] >= row[1] && routes[0][i] >= row[2] ? 1.0f
                                                                                           : 0.0f));
        CHECK(fabsf(routes[0][i] - 1.0f / 3) > 1e-4f);
    }
}

/* Training's noise: mean Euler's constant, variance pi^2 / 6, below 0 once in e; new in every step
 * and for every task; r = softmax((z + g) / tau). */
static void test_training_noise_is_gumbels_and_new_in_every_step(void)
{
    tmoe_config c = paper_config();
    const tmoe_training t = still_training();
    double mean = 0.0, squares = 0.0, below = 0.0, count = 0.0, expected[6] = { 0.0 };
    float before[384], route[6];
    c.selection = TMOE_SELECT_STRAIGHT_THROUGH;
    c.experts = 64;
    set s = make(1, &c, &t);
    for (int step = 0; step < 20; step++) {
        const float *g = s.trainer->noise;
        memcpy(before, g, sizeof before);
        CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
        for (int i = 0; i < 384; i++) {
            mean += (double)g[i];
            squares += (double)(g[i] * g[i]);
            below += g[i] < 0.0f;
            count += 1.0;
        }
        for (int i = 0; i < 256; i++) CHECK(g[i] != g[i + 128] && (step == 0 || g[i] != before[i]));
    }
    mean /= count;
    CHECK_NEAR(mean, 0.5772, 0.06);
    CHECK_NEAR(squares / count - mean * mean, 1.645, 0.2);
    CHECK_NEAR(below / count, exp(-1.0), 0.03);
    unmake(&s);
    c.selection = TMOE_SELECT_GUMBEL;
    c.experts = 3;
    c.temperature = 2.0f;
    s = make(1, &c, &t);
    louder(s.model);
    CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
    for (int k = 0; k < 3; k++) {
        CHECK(tmoe_route_of_task(s.model, s.trainer->step_tasks[k], route) == TMOE_OK);
        for (int l = 0; l < 2; l++) {
            double r[3];
            for (int e = 0; e < 3; e++)
                r[e] = log((double)route[l * 3 + e])
                    + (double)s.trainer->noise[k * 6 + l * 3 + e] / 2.0;
            softmax_of(r, 3);
            for (int e = 0; e < 3; e++) expected[l * 3 + e] += r[e] / 3;
        }
    }
    for (int i = 0; i < 6; i++) CHECK_NEAR(s.trainer->use[i], expected[i], 1e-5);
    unmake(&s);
}

/* The largest of the numbers once rounded to U = 1, whose noise is infinite: a step that drew it
 * failed at every retry. */
static void test_noise_of_the_extreme_random_numbers_is_finite(void)
{
    static const uint64_t random[3] = { 0, UINT64_MAX, UINT64_MAX - (UINT64_C(1) << 40) };
    for (int i = 0; i < 3; i++) {
        const float u = tmoei_uniform(random[i]), noise = -logf(-logf(u));
        CHECK(u > 0.0f && u < 1.0f && fabsf(noise) < 20.0f);
    }
}

/* Fault 4: a task's random route is n of E at 1 / n for ever, whatever the optimiser does; an
 * example's is one expert, a fresh one in every step. */
static void test_random_routes_stay_with_a_task_or_are_fresh_for_an_example(void)
{
    for (int n = 1; n <= 3; n++) {
        tmoe_config c = paper_config();
        const tmoe_training t = paper_training();
        tmoe_progress p;
        float routes[18], again[6];
        int differ = 0;
        c.selection = TMOE_SELECT_RANDOM_TASK;
        c.random_n = n;
        set s = make(1, &c, &t);
        for (int task = 0; task < 3; task++)
            CHECK(tmoe_route_of_task(s.model, task, routes + 6 * task) == TMOE_OK);
        for (int row = 0; row < 18; row += 3) {
            int used = 0;
            for (int e = 0; e < 3; e++) {
                used += routes[row + e] != 0.0f;
                CHECK(routes[row + e] == 0.0f || fabsf(routes[row + e] - 1.0f / (float)n) < 1e-6f);
            }
            CHECK(used == n);
            differ |= memcmp(routes, routes + row, 3 * sizeof(float)) != 0;
        }
        CHECK(differ == (n < 3));
        for (int step = 0; step < 4; step++) {
            CHECK(tmoe_trainer_step(s.trainer, &p) == TMOE_OK);
            for (int i = 0; i < 6; i++)
                CHECK_NEAR(p.expert_use[i], (routes[i] + routes[6 + i] + routes[12 + i]) / 3, 1e-6);
        }
        for (int task = 0; task < 3; task++)
            CHECK(tmoe_route_of_task(s.model, task, again) == TMOE_OK
                && memcmp(again, routes + 6 * task, sizeof again) == 0);
        unmake(&s);
    }
    tmoe_config c = paper_config();
    tmoe_training t = still_training();
    tmoe_progress p;
    int used[6] = { 0 };
    c.selection = TMOE_SELECT_RANDOM_EXAMPLE;
    t.tasks_per_step = t.examples_per_task = 1;
    set s = make(1, &c, &t);
    for (int step = 0; step < 90; step++) {
        CHECK(tmoe_trainer_step(s.trainer, &p) == TMOE_OK);
        for (int i = 0; i < 6; i++) {
            CHECK(p.expert_use[i] == 0.0f || p.expert_use[i] == 1.0f);
            used[i] += p.expert_use[i] == 1.0f;
        }
    }
    for (int i = 0; i < 6; i++)
        CHECK(used[i] >= 15 && used[i] <= 45); /* 30 expected, 4.5 a standard deviation */
    CHECK(used[0] + used[1] + used[2] == 90);
    unmake(&s);
}

/* Exploration: about that share of the routes is replaced, half of them by the uniform route, half
 * by one expert, any of them; the rest is as it was. */
static void test_exploration_replaces_routes_by_one_expert_or_all(void)
{
    tmoe_config c = paper_config();
    tmoe_training t = still_training();
    tmoe_progress p;
    float route[6];
    int as_it_was = 0, uniform = 0, one[3] = { 0, 0, 0 }, rows = 0;
    c.exploration = 0.5f;
    t.tasks_per_step = t.examples_per_task = 1;
    set s = make(1, &c, &t);
    louder(s.model);
    for (int step = 0; step < 200; step++) {
        CHECK(tmoe_trainer_step(s.trainer, &p) == TMOE_OK
            && tmoe_route_of_task(s.model, s.trainer->step_tasks[0], route) == TMOE_OK);
        for (int l = 0; l < 6; l += 3, rows++) {
            int same = 1, even = 1, all = 0;
            CHECK_NEAR(p.expert_use[l] + p.expert_use[l + 1] + p.expert_use[l + 2], 1.0, 1e-5);
            for (int e = l; e < l + 3; e++) {
                same &= fabsf(p.expert_use[e] - route[e]) < 1e-6f;
                even &= fabsf(p.expert_use[e] - 1.0f / 3) < 1e-6f;
                if (p.expert_use[e] > 1.0f - 1e-6f) {
                    one[e - l]++;
                    all = 1;
                }
            }
            CHECK(same + even + all == 1);
            as_it_was += same;
            uniform += even;
        }
    }
    CHECK(as_it_was > 160 && as_it_was < 240
        && rows == 400);                  /* 200 expected, 10 a standard deviation */
    CHECK(uniform > 72 && uniform < 128); /* 100; 9 */
    for (int e = 0; e < 3; e++) CHECK(one[e] > 12 && one[e] < 55); /* 33; 5.5 */
    unmake(&s);
}

/* What progress says of the routes: the mean of the tasks' routes, and the mean of their entropies
 * (not the entropy of the mean). */
static void test_route_statistics_are_means_over_the_tasks(void)
{
    tmoe_config c = paper_config();
    const tmoe_training t = still_training();
    tmoe_progress p;
    double use[6] = { 0.0 }, entropy[2] = { 0.0, 0.0 };
    float route[6];
    set s = make(1, &c, &t);
    louder(s.model);
    CHECK(tmoe_trainer_step(s.trainer, &p) == TMOE_OK && p.routed_layers == 2);
    for (int task = 0; task < 3; task++) {
        CHECK(tmoe_route_of_task(s.model, task, route) == TMOE_OK);
        for (int i = 0; i < 6; i++) {
            use[i] += (double)route[i] / 3;
            entropy[i / 3] -= (double)route[i] * log((double)route[i]) / 3;
        }
    }
    for (int i = 0; i < 6; i++) CHECK_NEAR(p.expert_use[i], use[i], 1e-6);
    for (int l = 0; l < 2; l++) CHECK_NEAR(p.route_entropy[l], entropy[l], 1e-5);
    for (int l = 0; l < 2; l++) CHECK(entropy[l] > 0.2 && entropy[l] < log(3.0) - 1e-3);
    unmake(&s);
}

/* An unseen task: by the router on its text vector, or the seen tasks' routes weighted by
 * softmax(20 cos). */
static void test_unseen_tasks_are_routed_by_the_router_or_by_the_nearest(void)
{
    static const char text[] = "Write the first letter in upper case.";
    tmoe_config c = paper_config();
    const tmoe_training t = paper_training();
    float route[6], own[6], vector[16], cosines[3];
    double weights[3], expected[6] = { 0.0 };
    int tasks[3];
    set s = make(1, &c, &t);
    louder(s.model);
    tmoei_text_vector(&c, text, vector);
    CHECK(tmoe_route_of_vector(s.model, vector, own) == TMOE_OK
        && tmoe_route_unseen(s.model, text, TMOE_ZERO_SHOT_ROUTER, route) == TMOE_OK);
    CHECK(memcmp(route, own, sizeof own) == 0);
    CHECK(tmoe_model_nearest_tasks(s.model, text, 3, tasks, cosines) == 3
        && cosines[0] - cosines[2] > 0.05f);
    for (int i = 0; i < 3; i++) weights[i] = 20.0 * (double)cosines[i];
    softmax_of(weights, 3);
    for (int i = 0; i < 3; i++) {
        CHECK(tmoe_route_of_task(s.model, tasks[i], route) == TMOE_OK);
        for (int j = 0; j < 6; j++) expected[j] += weights[i] * (double)route[j];
    }
    CHECK(tmoe_route_unseen(s.model, text, TMOE_ZERO_SHOT_NEAREST, route) == TMOE_OK);
    for (int j = 0; j < 6; j++) CHECK_NEAR(route[j], expected[j], 1e-5);
    CHECK(fabsf(route[0] - own[0]) > 1e-3f);
    unmake(&s);
}

/* A bag of words does not tell these two from one another; with pairs of words it does. A model of
 * an older file has none, and keeps the vectors that its router was trained on. */
static void test_pairs_of_words_tell_instructions_of_the_same_words_apart(void)
{
    static const char *const texts[2] = { "Write the first word without its last letter.",
        "Write the last word without its first letter." };
    for (int pairs = 0; pairs < 2; pairs++) {
        tmoe_config c = paper_config();
        float a[64], b[64];
        c.vector_width = 64;
        c.word_pairs = pairs;
        tmoei_text_vector(&c, texts[0], a);
        tmoei_text_vector(&c, texts[1], b);
        CHECK_NEAR(tmoei_text_dot(a, a, 64), 64.0, 1e-4); /* their length is sqrt(k) */
        CHECK_NEAR(tmoei_text_dot(b, b, 64), 64.0, 1e-4);
        if (pairs)
            CHECK(tmoei_cosine(a, b, 64) < 0.9f);
        else
            CHECK(tmoei_cosine(a, b, 64) > 0.9999f);
    }
}

/* What `how` does for each kind of vectors, and which selections know nothing of tasks. */
static void test_zero_shot_depends_on_vectors_and_selection(void)
{
    static const char text[] = "Write the first letter in upper case.";
    const tmoe_training t = paper_training();
    float router[6], nearest[6], average[6], masked[6];
    for (int vectors = 0; vectors < 3; vectors++)
        for (int selection = 0; selection < 6; selection++) {
            tmoe_config c = paper_config();
            c.vectors = (tmoe_vector_kind)vectors;
            c.selection = (tmoe_selection)selection;
            c.vocabulary = 0;
            set s = make(1, &c, &t);
            if (!s.model) return;
            louder(s.model);
            for (size_t i = s.model->vectors; i < s.model->size; i++) s.model->theta[i] += 0.1f;
            s.model->version++;
            CHECK(tmoe_route_unseen(s.model, text, TMOE_ZERO_SHOT_ROUTER, router) == TMOE_OK
                && tmoe_route_unseen(s.model, text, TMOE_ZERO_SHOT_NEAREST, nearest) == TMOE_OK
                && tmoe_route_unseen(s.model, text, TMOE_ZERO_SHOT_AVERAGE, average) == TMOE_OK);
            for (int i = 0; i < 6; i++) CHECK_NEAR(average[i], 1.0 / 3.0, 1e-6);
            const int same = memcmp(router, nearest, sizeof router) == 0;
            const int even = memcmp(nearest, average, sizeof nearest) == 0;
            if (selection <= TMOE_SELECT_STRAIGHT_THROUGH)
                CHECK(!even && (vectors == TMOE_VECTOR_TEXT || same));
            else
                CHECK(even && same);
            if (selection == TMOE_SELECT_SOFTMAX && vectors == TMOE_VECTOR_TEXT) CHECK(!same);

            CHECK(tmoe_expert_set_enabled(s.model, 0, 2, 0) == TMOE_OK
                && tmoe_route_unseen(s.model, text, TMOE_ZERO_SHOT_NEAREST, masked) == TMOE_OK
                && masked[2] == 0.0f);
            memcpy(masked, average, sizeof masked);
            CHECK(tmoe_route_unseen(s.model, text, (tmoe_zero_shot)3, masked) == TMOE_ERR_ARGUMENT
                && tmoe_route_unseen(s.model, text, (tmoe_zero_shot)-1, masked)
                    == TMOE_ERR_ARGUMENT);
            CHECK(memcmp(masked, average, sizeof masked) == 0);
            CHECK_HAS(tmoe_error_message(s.ctx), "route_unseen: how is -1");
            unmake(&s);
        }
}

/* ---- what runs, what moves ------------------------------------------------------------------- */
/* Bytes of tensors, of nodes and of floats that a step's last group and a pass of evaluation took.
 * */
typedef struct bytes {
    size_t small, big, evaluation;
} bytes;

static bytes bytes_of(set *s)
{
    const tmoe_tape *tape = s->trainer->group_tape;
    bytes b = { tape->nodes.now, tape->big.now, 0 };
    size_t n;
    free(logits_of(s, NULL, &n));
    b.evaluation = tape->big.now;
    return b;
}

/* Straight-through with outputs mixed leaves out all that a weight of 0 makes 0. The rest is what
 * the mix of all experts computes, the unselected ones with a weight that is as good as 0: loss,
 * every parameter's gradient, and dl/dr of the unselected experts, too. */
static void test_straight_through_outputs_equal_the_dense_computation(void)
{
    static const int lines[3] = { 0, 1, 2 };
    tmoe_config c = paper_config();
    const tmoe_training t = paper_training();
    float r[2][6], dr[2][6], *grads;
    double loss[2] = { 0.0, 0.0 }, most = 0.0;
    c.selection = TMOE_SELECT_STRAIGHT_THROUGH;
    c.mix = TMOE_MIX_OUTPUT;
    set s = make(1, &c, &t);
    const size_t n = s.trainer->span;
    grads = (float *)malloc(n * sizeof(float));
    louder(s.model);
    (void)tmoei_step_gradients(s.trainer);
    for (int way = 0; way < 2; way++) {
        for (int i = 0; i < 6; i++) {
            r[way][i] = i == 1 || i == 5 ? 1.0f : way ? 1e-9f : 0.0f;
            dr[way][i] = 0.0f;
        }
        if (way) {
            memcpy(grads, s.trainer->grads, n * sizeof(float));
            s.model->config.selection = TMOE_SELECT_SOFTMAX;
        }
        memset(s.trainer->grads, 0, n * sizeof(float));
        tmoe_tape_reset(s.trainer->router_tape);
        CHECK(tmoei_batch_fill(s.trainer, lines, 3, 0) == TMOE_OK);
        tmoei_step_group(s.trainer, tmoe_leaf(s.trainer->router_tape, 1, 6, r[way], dr[way]), 0, 0,
            1.0f, &loss[way]);
        CHECK(s.ctx->error == TMOE_OK);
    }
    CHECK(loss[0] > 0.0);
    CHECK_NEAR(loss[0], loss[1], 1e-6 * loss[1]);
    for (
        int i = 0; i < 6;
        i++) { /* the selected ones' are next to 0: a norm follows, which does not see their size */
        CHECK(i == 1 || i == 5 || fabsf(dr[1][i]) > 1e-2f);
        CHECK_NEAR(dr[0][i], dr[1][i], 1e-5);
    }
    for (size_t i = 0; i < n; i++)
        if (fabs((double)s.trainer->grads[i]) > most) most = fabs((double)s.trainer->grads[i]);
    for (size_t i = 0; i < n; i++) CHECK_NEAR(grads[i], s.trainer->grads[i], 1e-6 * most);
    CHECK(most > 1e-3);
    free(grads);
    unmake(&s);
}

/* Fault 5: experts with weight 0 have no gradient and do not move, and a group costs what it costs
 * a dense model, but for the one op that mixes: an unselected expert runs forward only, and that
 * only with outputs mixed by straight-through, whose router needs it. */
static void test_unselected_experts_neither_run_nor_move(void)
{
    static const tmoe_selection kinds[3] = { TMOE_SELECT_STRAIGHT_THROUGH, TMOE_SELECT_RANDOM_TASK,
        TMOE_SELECT_RANDOM_EXAMPLE };
    tmoe_config c = paper_config();
    tmoe_training t = paper_training();
    bytes dense;
    size_t forward;
    t.tasks_per_step = t.examples_per_task = 1;
    t.weight_decay = 0.0f;
    c.experts = 1;
    set s = make(1, &c, &t);
    CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
    dense = bytes_of(&s);
    forward = s.trainer->group_tape->nodes.now; /* of a pass without nodes */
    CHECK(3 * forward < 2 * dense.small);
    unmake(&s);
    c.experts = 3;
    for (int k = 0; k < 6; k++) {
        const int both = k < 3 ? 0 : k == 3; /* OUTPUT and straight-through */
        int still = 0, moved = 0,
            own = 0; /* own: PARAM runs the expert's block itself in evaluation, not a copy */
        c.mix = k < 3 ? TMOE_MIX_PARAM : TMOE_MIX_OUTPUT;
        c.selection = kinds[k % 3];
        s = make(1, &c, &t);
        float *before = (float *)malloc(s.model->size * sizeof(float));
        memcpy(before, s.model->theta, s.model->size * sizeof(float));
        CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
        const bytes b = bytes_of(&s);
        const size_t blocks =
            (s.model->layers[0].block_size + s.model->layers[1].block_size) * sizeof(float);
        for (int l = 0; l < 2; l++)
            for (int e = 0; e < 3; e++) {
                const tmoei_layer *layer = &s.model->layers[l];
                const size_t n = layer->block_size, at = layer->block + (size_t)e * n;
                int zeros = 1;
                const float *m = s.trainer->moment1 + (at - s.trainer->first),
                            *v = s.trainer->moment2 + (at - s.trainer->first);
                for (size_t i = 0; i < n; i++) zeros &= m[i] == 0.0f && v[i] == 0.0f;
                const int same =
                    zeros && memcmp(before + at, s.model->theta + at, n * sizeof(float)) == 0;
                own += s.model->blocks[l] == s.model->theta + at;
                if (s.trainer->use[l * 3 + e] == 0.0f) {
                    CHECK(same);
                    still++;
                } else {
                    CHECK(!same && !zeros);
                    moved++;
                }
            }
        CHECK(still == 4 && moved == 2 && (k >= 3 || own == 2));
        CHECK(k == 0
            || b.small <= dense.small + 2048
                    + (both ? 2 * forward
                            : 0)); /* 0: a merged block's pieces are noted one by one */
        CHECK(both
            || b.big <= dense.big + dense.big / 8
                    + (k == 0 ? blocks : 0)); /* 0: and their gradient goes to the router, too */
        CHECK(b.evaluation <= dense.evaluation + dense.evaluation / 4);
        free(before);
        unmake(&s);
    }
}

/* Fault 7 and the rest of the optimiser, by hand in double from the gradients that the hook sees:
 * clipping, moments and their bias, rates that rise in equal steps to the top and then fall in
 * equal steps, weight decay on matrices only; what is not trained, or rests while updates
 * alternate, stays. */
typedef struct watch {
    float *g;
    size_t n;
} watch;

static void watched(void *user, float *gradients, size_t count)
{
    watch *w = (watch *)user;
    w->g = (float *)realloc(w->g, count * sizeof(float));
    memcpy(w->g, gradients, (w->n = count) * sizeof(float));
}

static void test_the_optimiser_is_adamw_by_hand(void)
{
    for (int alternate = 0; alternate < 3; alternate += 2) {
        tmoe_config c = paper_config();
        tmoe_training t = paper_training();
        watch w = { NULL, 0 };
        int moved[2] = { 0, 0 }, clipped = 0;
        c.vectors = TMOE_VECTOR_LEARNED;
        t.steps = 10;
        t.warmup = 0.4f;
        t.weight_decay = 0.5f;
        t.clip = 1.0f;
        t.alternate_steps = alternate;
        t.lr_model = 1e-2f;
        t.lr_router = 2e-2f;
        t.lr_tasks = 3e-2f;
        t.all_reduce = watched;
        t.all_reduce_user = &w;
        set s = make(1, &c, &t);
        const size_t n = s.model->size;
        double *x = (double *)malloc(n * sizeof *x), *m = (double *)calloc(n, sizeof *m),
               *v = (double *)calloc(n, sizeof *v);
        for (size_t i = 0; i < n; i++) x[i] = (double)s.model->theta[i];
        for (int step = 0; step < 10; step++) {
            tmoe_progress progress;
            double norm = 0.0, worst = 0.0;
            CHECK(tmoe_trainer_step(s.trainer, &progress) == TMOE_OK && w.n == s.trainer->span);
            for (size_t i = 0; i < w.n; i++) norm += (double)w.g[i] * (double)w.g[i];
            norm = sqrt(norm);
            CHECK_NEAR(progress.gradient_norm, norm, 1e-4 * norm);
            const double factor = step < 3
                ? (step + 1) / 4.0
                : (10 - step) / 7.0; /* 4 steps of 10 up; 0 would come after the last */
            CHECK_NEAR(progress.lr_model, 1e-2 * factor, 1e-8);
            CHECK_NEAR(progress.lr_router, 2e-2 * factor, 1e-8);
            CHECK_NEAR(progress.lr_tasks, 3e-2 * factor, 1e-8);
            clipped += norm > 1.0;
            for (int turn = 0; turn < 2; turn++)
                moved[turn] += alternate == 0 || step / alternate % 2 == turn;
            for (int p = 0; p < s.model->parameter_count; p++) {
                const tmoei_parameter *q = &s.model->parameters[p];
                const int router = q->rate == TMOEI_RATE_ROUTER || q->rate == TMOEI_RATE_TASKS;
                const int moves = q->rate != TMOEI_RATE_NONE
                    && (alternate == 0 || step / alternate % 2 == router);
                const double lr = factor
                    * (q->rate == TMOEI_RATE_ROUTER ? 2e-2
                            : router                ? 3e-2
                                                    : 1e-2);
                const double decay = strstr(q->name, "bias") || strstr(q->name, "norm") ? 0.0 : 0.5;
                for (size_t i = q->offset; i < q->offset + q->size; i++) {
                    if (moves) {
                        const double g =
                            (double)w.g[i - s.trainer->first] * (norm > 1.0 ? 1.0 / norm : 1.0);
                        m[i] = 0.9 * m[i] + 0.1 * g;
                        v[i] = 0.999 * v[i] + 0.001 * g * g;
                        x[i] -= lr
                            * (m[i] / (1.0 - pow(0.9, moved[router]))
                                    / (sqrt(v[i] / (1.0 - pow(0.999, moved[router]))) + 1e-8)
                                + decay * x[i]);
                    }
                    if (!(fabs(x[i] - (double)s.model->theta[i]) <= worst))
                        worst = fabs(x[i] - (double)s.model->theta[i]);
                    x[i] = (double)s.model->theta[i]; /* no more than one step's rounding */
                }
            }
            CHECK_NEAR(worst, 0.0, 1e-5);
        }
        CHECK(clipped > 0 && (!alternate || clipped < 10));
        free(x);
        free(m);
        free(v);
        free(w.g);
        unmake(&s);
    }
}

/* Experts are drawn together: the gradient by hand for one matrix, and of each tensor the experts'
 * sum is 0, as the distance does not change when all move alike. Where layers rest, nothing is
 * added to their gradient. */
static void test_expert_regularisation_draws_experts_together(void)
{
    tmoe_config c = paper_config();
    tmoe_training t = paper_training();
    float *g[2];
    size_t n = 0;
    int left = 0;
    const double lambda = 6.0;
    for (int on = 0; on < 2; on++) {
        t.expert_regularisation = on ? (float)lambda : 0.0f;
        set s = make(1, &c, &t);
        g[on] = (float *)malloc(s.model->size * sizeof(float));
        (void)tmoei_step_gradients(s.trainer);
        memcpy(g[on] + s.trainer->first, s.trainer->grads, s.trainer->span * sizeof(float));
        if (on) {
            const float *x[3], *d[3], *o[3];
            double distance[3], sum = 0.0, size = 0.0;
            for (int e = 0; e < 3; e++) {
                char name[64];
                (void)snprintf(name, sizeof name, "decoder.0.expert.%d.fc1.weight", e);
                x[e] = tensor(s.model, name, &n);
                d[e] = g[1] + (x[e] - s.model->theta);
                o[e] = g[0] + (x[e] - s.model->theta);
            }
            for (int e = 0; e < 3; e++) { /* of expert e to the next */
                distance[e] = 0.0;
                for (size_t i = 0; i < n; i++)
                    distance[e] += pow((double)(x[e][i] - x[(e + 1) % 3][i]), 2.0);
                distance[e] = sqrt(distance[e]);
            }
            for (int e = 0; e < 3; e++)
                for (size_t i = 0; i < n; i++) {
                    const double next = (double)(x[e][i] - x[(e + 1) % 3][i]) / distance[e],
                                 last =
                                     (double)(x[e][i] - x[(e + 2) % 3][i]) / distance[(e + 2) % 3];
                    CHECK_NEAR(d[e][i] - o[e][i], lambda / 3 * (next + last), 1e-4);
                }
            for (int l = 0; l < 2; l++)
                for (size_t i = 0; i < s.model->layers[l].block_size; i++) {
                    double all = 0.0;
                    for (int e = 0; e < 3; e++) {
                        const size_t at = s.model->layers[l].block
                            + (size_t)e * s.model->layers[l].block_size + i;
                        all += (double)g[1][at] - (double)g[0][at];
                        size += fabs((double)g[1][at] - (double)g[0][at]);
                    }
                    sum += fabs(all);
                }
            CHECK(size > 10.0 && sum < 1e-4 * size);
        }
        unmake(&s);
    }
    t.train = TMOE_TRAIN_SHARED
        | TMOE_TRAIN_ROUTER; /* what is trained lies on both sides of the layers */
    set s = make(1, &c, &t);
    CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK
        && s.trainer->first < s.model->layers[0].block);
    for (size_t i = 0; i < s.trainer->span; i++) left += s.trainer->grads[i] != 0.0f;
    CHECK(left == 0);
    free(g[0]);
    free(g[1]);
    unmake(&s);
}

/* ---- the loss -------------------------------------------------------------------------------- */
/* Fault 9: the loss is the mean over the step's target tokens, all of one weight, though groups
 * have few or many. */
static void test_the_loss_is_the_mean_over_target_tokens(void)
{
    tmoe_config c = paper_config();
    const tmoe_training t = still_training();
    tmoe_progress p;
    double loss = 0.0;
    int tokens = 0;
    set s = make(1, &c, &t);
    CHECK(tmoe_trainer_step(s.trainer, &p) == TMOE_OK);
    for (int i = 0; i < 12; i++) { /* 3 groups of 4; a task has 10 training lines */
        const int task = s.trainer->chosen[i] / 10;
        CHECK(task == s.trainer->step_tasks[i / 4]);
        loss += line_loss(&s, task,
            &tmoe_suite_task(s.suite, task)->train[s.trainer->chosen[i] % 10], &tokens);
    }
    CHECK(tokens > 60);
    CHECK_NEAR(p.loss, loss / tokens, 1e-4);
    unmake(&s);
}

/* Fault 11: the validation loss is that of the lines kept out of training, under the routes of
 * evaluation: no noise, exploration, dropout, smoothing. */
static void test_validation_loss_is_plain_and_of_lines_not_trained_on(void)
{
    tmoe_config c = paper_config();
    tmoe_training t = paper_training();
    double loss = 0.0;
    int tokens = 0;
    c.selection = TMOE_SELECT_GUMBEL;
    c.exploration = 1.0f;
    t.label_smoothing = t.dropout = 0.3f;
    t.validation_lines = 3;
    t.lr_model = 1e-2f;
    set s = make(1, &c, &t);
    louder(s.model);
    for (int step = 0; step < 8; step++) {
        CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
        for (int i = 0; i < 12; i++) CHECK(s.trainer->chosen[i] % 10 < 7);
    }
    for (int task = 0; task < 3; task++)
        for (int line = 7; line < 10; line++)
            loss += line_loss(&s, task, &tmoe_suite_task(s.suite, task)->train[line], &tokens);
    CHECK_NEAR(tmoe_trainer_validation_loss(s.trainer), loss / tokens, 1e-4);
    unmake(&s);
}

/* A training that goes wrong, here by its own progress callback, ends with the parameters that were
 * best on the way. */
static tmoe_model *to_spoil;
static float last_measured;

static int spoil(void *user, const tmoe_progress *p)
{
    (void)user;
    last_measured = p->validation_loss;
    for (int i = 0; p->step == 8 && i < 259 * 16; i++)
        to_spoil->theta[i] *= -2.0f; /* the embeddings */
    return 0;
}

static void test_training_ends_with_the_best_parameters(void)
{
    tmoe_config c = paper_config();
    tmoe_training t = paper_training();
    t.steps = 12;
    t.validation_lines = 3;
    t.evaluate_every_steps = 4;
    t.progress = spoil;
    set s = make(1, &c, &t);
    to_spoil = s.model;
    CHECK(tmoe_trainer_run(s.trainer) == TMOE_OK);
    CHECK(last_measured > s.trainer->best_loss + 0.1f);
    CHECK_NEAR(tmoe_trainer_validation_loss(s.trainer), s.trainer->best_loss, 1e-6);
    unmake(&s);
}

/* Few-shot training keeps the step of the best, too. Nothing is learned here: the first is best. */
static void test_few_shot_keeps_the_step_of_the_best(void)
{
    tmoe_config c = paper_config();
    const tmoe_training t = still_training();
    double dev = (double)NAN;
    set s = make(1, &c, &t);
    tmoei_few_shot_train(s.trainer, tmoe_suite_task(s.suite, 0), 1, &dev);
    CHECK(dev == 0.0 && s.trainer->steps_done == 8 && s.model->step == 1);
    unmake(&s);
}

/* The training's label need not outlive the call that takes it. */
static void test_the_label_of_a_training_is_copied(void)
{
    tmoe_config c = paper_config();
    tmoe_training t = paper_training();
    tmoe_progress p;
    char label[8] = "first";
    t.label = label;
    set s = make(1, &c, &t);
    memset(label, 0, sizeof label);
    CHECK(tmoe_trainer_step(s.trainer, &p) == TMOE_OK);
    CHECK_TEXT(p.label, "first");
    unmake(&s);
}

/* So the model keeps the step of the best parameters, too: it was validated at that temperature. A
 * checkpoint has it. */
static void test_the_best_parameters_keep_their_temperature(void)
{
    const char *path = "build/test_best.safetensors";
    tmoe_config c = paper_config();
    tmoe_training t = paper_training();
    t.steps = 12;
    t.validation_lines = 3;
    t.evaluate_every_steps = 4;
    t.progress = spoil;
    c.temperature = 3.0f;
    c.temperature_min = 0.01f;
    c.temperature_decay = 0.3f;
    set s = make(1, &c, &t), resumed = make(1, &c, &t);
    louder(s.model);
    to_spoil = s.model;
    CHECK(tmoe_trainer_run(s.trainer) == TMOE_OK);
    const int64_t step = s.model->step;
    CHECK((step == 4 || step == 8) && s.trainer->steps_done == 12);
    CHECK_NEAR(tmoe_trainer_validation_loss(s.trainer), s.trainer->best_loss, 1e-6);

    s.model->step = 12;
    CHECK(tmoe_trainer_save(s.trainer, path) == TMOE_OK);
    CHECK(tmoe_trainer_load(resumed.trainer, path) == TMOE_OK && resumed.model->step == 12);
    CHECK(tmoe_trainer_run(resumed.trainer) == TMOE_OK && resumed.model->step == step);
    unmake(&resumed);
    unmake(&s);
    (void)remove(path);
}

/* Fault 8: training and decoding begin with the same token, whichever that is; so the first token
 * of an answer is what the trained pass finds likeliest. */
static void test_decoding_begins_as_training_does(void)
{
    static const int starts[3] = { 2, 0, 3 + 'x' };
    for (int k = 0; k < 3; k++) {
        tmoe_config c = paper_config();
        const tmoe_training t = paper_training();
        tmoe_generation how;
        int lengths[3], tokens[12], counts[3];
        size_t n = 0;
        c.start_id = starts[k];
        set s = make(1, &c, &t);
        float *x = logits_of(&s, NULL, &n);
        const tmoei_batch *b = &s.trainer->batch;
        for (int r = 0; r < 3; r++) lengths[r] = b->source.offsets[r + 1] - b->source.offsets[r];
        how = *tmoe_model_generation(s.model);
        how.max_length = 4;
        CHECK(
            generate(s.model, 0, b->source.ids, lengths, 3, &how, tokens, counts, NULL) == TMOE_OK);
        for (int r = 0; x && r < 3; r++) {
            const float *row = x + b->target.offsets[r] * s.model->V;
            int best = 0;
            for (int v = 1; v < s.model->V; v++)
                if (row[v] > row[best]) best = v;
            CHECK(b->target.ids[b->target.offsets[r]] == starts[k] && tokens[4 * r] == starts[k]
                && tokens[4 * r + 1] == best);
            for (int v = b->target.offsets[r]; v + 1 < b->target.offsets[r + 1]; v++)
                CHECK(b->target.ids[v + 1] == b->labels[v]);
        }
        free(x);
        unmake(&s);
    }
}

/* ---- models that come from models ------------------------------------------------------------ */
/* MHR-mu: experts to one dense layer without a route is their average. */
static void test_a_dense_start_is_the_average_of_the_experts(void)
{
    tmoe_config c = paper_config();
    const tmoe_training t = paper_training();
    c.expert_noise = 1.0f;
    set s = make(1, &c, &t);
    c.experts = 1;
    tmoe_model *dense = tmoe_model_derive(s.ctx, s.model, NULL, &c, tmoe_suite_task(s.suite, 0),
        tmoe_suite_count(s.suite));
    CHECK(dense != NULL);
    for (int l = 0; dense && l < 2; l++) {
        const size_t n = s.model->layers[l].block_size;
        const float *x = s.model->theta + s.model->layers[l].block,
                    *y = dense->theta + dense->layers[l].block;
        CHECK(n == dense->layers[l].block_size && memcmp(x, x + n, n * sizeof(float)) != 0);
        for (size_t i = 0; i < n; i++)
            CHECK_NEAR(y[i], ((double)x[i] + (double)x[n + i] + (double)x[2 * n + i]) / 3, 1e-6);
    }
    tmoe_model_destroy(dense);
    unmake(&s);
}

static double taus[64];
static int tau_count;

static int hear_tau(void *user, const tmoe_progress *p)
{
    (void)user;
    if (tau_count < 64) taus[tau_count++] = (double)p->temperature;
    return 0;
}

/* Stage 1 cools from 2 to 0.1, stage 2 from 300 to 1 by one factor a step; stage 2 begins with the
 * layers that stage 1 began with. */
static void test_stage_two_begins_anew_at_three_hundred(void)
{
    tmoe_ctx *ctx = context(1);
    tmoe_suite *suite = small_suite(ctx);
    tmoe_config c = paper_config(), dense = paper_config();
    tmoe_training one = paper_training(), two = still_training();
    one.steps = 20;
    one.lr_model = 1e-2f;
    two.steps = 20;
    one.progress = two.progress = hear_tau;
    dense.experts = 1;
    tmoe_model *start = tmoe_train(ctx, suite, &dense, &one);
    for (int given = 0; start && given < 2; given++) {
        const tmoe_model *from = given ? start : NULL;
        tau_count = 0;
        tmoe_model *model = tmoe_train_two_stages(ctx, suite, from, &c, &one, &two);
        CHECK(tau_count == 40);
        CHECK_NEAR(taus[0] * taus[0] / taus[1], 2.0, 0.01); /* before the first step */
        CHECK_NEAR(taus[19], 0.1, 1e-6);
        CHECK_NEAR(taus[20] * taus[20] / taus[21], 300.0, 1.0);
        CHECK_NEAR(taus[39], 1.0, 1e-6);
        for (int i = 21; i < 40; i++) CHECK(taus[i] < taus[i - 1] || taus[i] == 1.0);
        tmoe_model *anew =
            tmoe_train_from(ctx, suite, from, NULL, &c, &two); /* nothing moves in it */
        CHECK(model && anew
            && memcmp(model->theta, anew->theta,
                   model->parameters[model->router_parameter].offset * sizeof(float))
                == 0);
        tmoe_model_destroy(model);
        tmoe_model_destroy(anew);
    }
    CHECK(start != NULL);
    tmoe_model_destroy(start);
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
}

/* Fault 10 and Fisher's squares: rows are sums over lines of the squared gradients of norms and
 * biases, here from the trainer's gradient of one line at a time; components keep the distances
 * between rows of length 1. */
static void test_fisher_vectors_are_squares_of_gradients(void)
{
    tmoe_config c = paper_config();
    tmoe_training t = paper_training();
    float vectors[9];
    double rows[3][2000], wanted[3], found[3];
    size_t F = 0;
    c.experts = 1;
    t.tasks_per_step = t.examples_per_task = 1;
    set s = make(1, &c, &t);
    for (int i = 0; i < 10; i++) CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
    memset(rows, 0, sizeof rows);
    for (int task = 0; task < 3; task++)
        for (int line = 0; line < 2; line++) {
            tmoe_task alone = *tmoe_suite_task(s.suite, task);
            const tmoe_suite suite = { s.ctx, &alone, 1, 0, { NULL, NULL } };
            alone.train += line;
            alone.train_count = 1;
            tmoe_trainer *trainer = tmoe_trainer_create(s.model, &suite, &t);
            CHECK(trainer != NULL);
            if (!trainer) return;
            (void)tmoei_step_gradients(trainer);
            F = 0;
            for (int p = 0; p < s.model->parameter_count; p++) {
                const tmoei_parameter *q = &s.model->parameters[p];
                if (!strstr(q->name, "norm") && !strstr(q->name, "bias")) continue;
                for (size_t i = 0; q->rate != TMOEI_RATE_NONE && i < q->size; i++) {
                    const double g = (double)trainer->grads[q->offset + i - trainer->first]
                        * (double)(strlen(alone.train[0].outputs[0]) + 1);
                    rows[task][F++] += g * g; /* the loss is the sum over the line's tokens */
                }
            }
            tmoe_trainer_destroy(trainer);
        }
    CHECK(F > 300 && F < 2000);
    for (int task = 0; task < 3; task++) {
        double norm = 0.0;
        for (size_t i = 0; i < F; i++) norm += rows[task][i] * rows[task][i];
        for (size_t i = 0; i < F; i++) rows[task][i] /= sqrt(norm);
    }
    CHECK(tmoe_task_vectors(s.model, s.suite, TMOE_EMBED_FISHER, 2, 3, vectors) == TMOE_OK);
    for (int a = 0; a < 3; a++) {
        const int b = (a + 1) % 3;
        wanted[a] = found[a] = 0.0;
        for (size_t i = 0; i < F; i++) wanted[a] += pow(rows[a][i] - rows[b][i], 2.0);
        for (int j = 0; j < 3; j++)
            found[a] += pow((double)vectors[3 * a + j] - (double)vectors[3 * b + j], 2.0);
    }
    for (int a = 0; a < 3; a++)
        CHECK_NEAR(sqrt(found[a] / found[0]), sqrt(wanted[a] / wanted[0]), 2e-3);
    CHECK(fabs(sqrt(wanted[1] / wanted[0]) - 1.0) + fabs(sqrt(wanted[2] / wanted[0]) - 1.0) > 0.05);
    unmake(&s);
}

/* ---- few-shot -------------------------------------------------------------------------------- */
static const char *const letters[10] = { "a", "b", "c", "d", "e", "f", "g", "h", "i", "j" };
static const char *const ys[10] = { "y", "y", "y", "y", "y", "y", "y", "y", "y", "y" };

/* A model that says y: two experts of opposite weights, of which only the first, alone, can say
 * anything, as their average is no layer at all; the router takes it for the text vector of "Say
 * it.", and only when cold, as at its step 20. */
static tmoe_model *that_says_y(tmoe_ctx *ctx, tmoe_suite *suite)
{
    tmoe_config c = paper_config();
    tmoe_training t = paper_training();
    size_t n, m;
    CHECK(add_task(suite, "y", NULL, "Say it.", TMOE_PART_TRAIN, letters, ys, 10, 1) == TMOE_OK);
    c.experts = 1;
    c.source_tokens = 20;
    c.target_tokens = 4;
    c.router = TMOE_ROUTER_LINEAR;
    t.steps = 150;
    t.lr_model = 1e-2f;
    t.train = TMOE_TRAIN_LAYERS;
    tmoe_model *dense = tmoe_train(ctx, suite, &c, &t);
    c.experts = 2;
    c.expert_noise = 0.0f;
    c.temperature = 1000.0f;
    c.temperature_decay = 1.0f;
    c.temperature_min = 0.1f;
    tmoe_model *model =
        dense ? tmoe_model_derive(ctx, dense, NULL, &c, tmoe_suite_task(suite, 0), 1) : NULL;
    tmoe_model_destroy(dense);
    CHECK(model != NULL);
    if (!model) return NULL;
    for (int l = 0; l < 2; l++) {
        float *x = model->theta + model->layers[l].block;
        for (size_t i = 0; i < model->layers[l].block_size; i++)
            x[model->layers[l].block_size + i] = -x[i];
    }
    float *w1 = tensor(model, "router.0.linear1.weight", &n),
          *w2 = tensor(model, "router.0.linear2.weight", &m);
    for (size_t i = 0; i < m; i++)
        w2[i] = i == 0 || i == m / 2 ? 1.0f
                                     : 0.0f; /* expert 0 of either layer, from hidden unit 0 ... */
    for (size_t i = 0; i < n; i++)
        w1[i] = i < 16 ? 0.25f * model->text_vectors[i]
                       : 0.0f; /* ... which is 4 for this vector, nearly 0 for others */
    model->step = 20;
    model->version++;
    return model;
}

static void test_few_shot_keeps_its_protocol(void)
{
    static const char *const inputs[4] = { "k", "l", "m", "n" },
                             *const zy[4] = { "z", "y", "y", "y" };
    tmoe_ctx *ctx = context(1);
    tmoe_suite *suite = tmoe_suite_create(ctx), *unseen = tmoe_suite_create(ctx);
    tmoe_model *model = that_says_y(ctx, suite);
    tmoe_few_shot f = tmoe_few_shot_default();
    tmoe_few_shot_result r;
    tmoei_few_shot_job job;
    tmoe_example lines[8], dev[4];
    uint64_t wanted = 0;
    int order[4], z = 0;
    if (!model) return;
    /* one line for training and one for dev: the sample's seed says which; here training wants z,
     * dev and test want y */
    CHECK(add_task(unseen, "new", NULL, "Say it.", TMOE_PART_TEST, inputs, zy, 4, 2) == TMOE_OK);
    CHECK(add_task(unseen, "other", NULL, "Do the rest", TMOE_PART_TEST, letters, ys, 10, 2)
        == TMOE_OK);
    f.shots = 1;
    f.batch_sizes[0] = 1;
    f.batch_size_count = f.learning_rate_count = 1;
    for (uint64_t seed = 1; seed <= 16; seed++) {
        memset(&job, 0, sizeof job);
        job.task = &unseen->tasks[0];
        job.how = &f;
        job.lines = lines;
        f.seed = seed;
        tmoei_few_shot_sample(&job, order, dev);
        if (!strcmp(lines[0].outputs[0], "z")) {
            wanted = seed;
            z++;
        }
    }
    CHECK(z > 2 && z < 14); /* samples differ by the seed */
    f.seed = wanted;
    /* nothing is learned: dev and test are the start's. Its route is the one asked for; a vector
     * starts with its text and at the model's temperature. */
    f.steps = f.evaluate_every_steps = 1;
    f.learning_rates[0] = 1e-9f;
    for (int start = 0; start < 3; start++) {
        f.start = (tmoe_zero_shot)start;
        CHECK(tmoe_few_shot_run(model, &unseen->tasks[0], &f, &r) == TMOE_OK);
        CHECK(r.dev == (start != TMOE_ZERO_SHOT_AVERAGE) && r.test == r.dev && r.train_count == 1
            && r.dev_count == 1);
    }
    f.start = TMOE_ZERO_SHOT_ROUTER;
    f.tune = TMOE_TUNE_VECTOR;
    CHECK(tmoe_few_shot_run(model, &unseen->tasks[0], &f, &r) == TMOE_OK && r.dev == 1.0
        && r.test == 1.0);
    CHECK(tmoe_few_shot_run(model, &unseen->tasks[1], &f, &r) == TMOE_OK && r.dev == 0.0
        && r.test == 0.0);
    f.steps = f.evaluate_every_steps = 60;
    f.learning_rates[0] = 1e-2f;
    CHECK(tmoe_few_shot_run(model, &unseen->tasks[1], &f, &r) == TMOE_OK && r.dev == 1.0
        && r.test == 1.0); /* the vector alone learns it */
    /* learned to the end, it says z: right for training, wrong for dev and test. Measured on the
     * way, the best is kept, and tested. */
    f.tune = TMOE_TUNE_ALL;
    CHECK(tmoe_few_shot_run(model, &unseen->tasks[0], &f, &r) == TMOE_OK && r.dev == 0.0
        && r.test == 0.0);
    f.evaluate_every_steps = 1;
    CHECK(tmoe_few_shot_run(model, &unseen->tasks[0], &f, &r) == TMOE_OK && r.dev == 1.0
        && r.test == 1.0);
    /* of two learning rates, one of which learns z, the other wins, wherever it is in the list */
    f.evaluate_every_steps = 60;
    f.learning_rate_count = 2;
    for (int first = 0; first < 2; first++) {
        f.learning_rates[first] = 1e-2f;
        f.learning_rates[!first] = 1e-9f;
        CHECK(tmoe_few_shot_run(model, &unseen->tasks[0], &f, &r) == TMOE_OK && r.dev == 1.0
            && r.test == 1.0 && r.learning_rate == 1e-9f);
    }
    tmoe_model_destroy(model);
    tmoe_suite_destroy(suite);
    tmoe_suite_destroy(unseen);
    tmoe_ctx_destroy(ctx);
}

TEST_MAIN("test_method", RUN(test_gumbel_is_evaluated_as_the_mixture_without_noise);
          RUN(test_training_noise_is_gumbels_and_new_in_every_step);
          RUN(test_noise_of_the_extreme_random_numbers_is_finite);
          RUN(test_random_routes_stay_with_a_task_or_are_fresh_for_an_example);
          RUN(test_exploration_replaces_routes_by_one_expert_or_all);
          RUN(test_route_statistics_are_means_over_the_tasks);
          RUN(test_unseen_tasks_are_routed_by_the_router_or_by_the_nearest);
          RUN(test_pairs_of_words_tell_instructions_of_the_same_words_apart);
          RUN(test_zero_shot_depends_on_vectors_and_selection);
          RUN(test_straight_through_outputs_equal_the_dense_computation);
          RUN(test_unselected_experts_neither_run_nor_move);
          RUN(test_the_optimiser_is_adamw_by_hand);
          RUN(test_expert_regularisation_draws_experts_together);
          RUN(test_the_loss_is_the_mean_over_target_tokens);
          RUN(test_validation_loss_is_plain_and_of_lines_not_trained_on);
          RUN(test_training_ends_with_the_best_parameters);
          RUN(test_the_best_parameters_keep_their_temperature);
          RUN(test_the_label_of_a_training_is_copied);
          RUN(test_few_shot_keeps_the_step_of_the_best); RUN(test_decoding_begins_as_training_does);
          RUN(test_a_dense_start_is_the_average_of_the_experts);
          RUN(test_stage_two_begins_anew_at_three_hundred);
          RUN(test_fisher_vectors_are_squares_of_gradients); RUN(test_few_shot_keeps_its_protocol);)
