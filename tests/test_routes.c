/* The route report's figures that examples/routes.c computes itself: what is lost when experts are
 * disabled. The others are the library's (test_data.c). */
#define main routes_main
#include "../examples/routes.c"
#undef main
#include "test.h"
#include "small.h"

/* What tasks lose, own (1) or other (0) than category c's, when the given experts have no share and
 * the others of a layer share what is left. */
static double direct_drop(const reading *x, int c, int own, const int *columns, int n)
{
    double sum = 0.0;
    int s, i, e, count = 0;
    for (s = 0; s < tmoe_suite_count(x->suite); s++) {
        const tmoe_task *task = tmoe_suite_task(x->suite, s);
        const int known = tmoe_model_find_task(x->model, task->name);
        float route[64];
        double whole = -9.0, without = -9.0;
        if ((x->category_of[known] == c) != own) continue;
        memcpy(route, x->routes + known * x->C, (size_t)x->C * sizeof(float));
        for (i = 0; i < n; i++) route[columns[i]] = 0.0f;
        for (i = 0; i < x->R; i++) {
            float left = 0.0f;
            for (e = 0; e < x->E; e++) left += route[i * x->E + e];
            for (e = 0; e < x->E; e++) route[i * x->E + e] /= left;
        }
        CHECK(tmoe_evaluate(x->model, task, x->routes + known * x->C, 0, &whole) == TMOE_OK);
        CHECK(tmoe_evaluate(x->model, task, route, 0, &without) == TMOE_OK);
        sum += whole - without;
        count++;
    }
    return sum / count;
}

/* Adds column to those that are disabled, if it is new and not the last of its layer. */
static void take(const reading *x, int *columns, int *n, int column)
{
    int i, of_layer = 0;
    if (column < 0) return;
    for (i = 0; i < *n; i++) {
        if (columns[i] == column) return;
        of_layer += columns[i] / x->E == column / x->E;
    }
    if (of_layer < x->E - 1) columns[(*n)++] = column;
}

static void test_drops_equal_evaluations_under_routes_without_those_experts(void)
{
    tmoe_config c = small_config();
    tmoe_training t = small_training();
    static reading x;
    double most = 0.0;
    int k, i, own, draw;
    t.steps = 400;
    t.lr_model = 6e-3f;
    t.lr_router = 2e-2f;
    t.validation_lines = 0;
    t.evaluate_every_steps = 0;
    set s = make(1, &c, &t);
    CHECK(tmoe_trainer_run(s.trainer) == TMOE_OK);
    for (i = 0; i < tmoe_suite_count(s.suite); i++) {
        s.suite->tasks[i].test = tmoe_suite_task(s.suite, i)->train;
        s.suite->tasks[i].test_count = tmoe_suite_task(s.suite, i)->train_count;
    }
    x.ctx = s.ctx;
    x.model = s.model;
    x.suite = s.suite;
    read_routes(&x);
    read_drops(&x, 0);
    CHECK(x.N == 3 && x.category_count == 2 && x.C == 6 && x.undefined == 0);
    for (k = 0; k < x.category_count; k++) {
        double whole = 0.0, random[2] = { 0.0, 0.0 };
        int top[TOP], n = 0, count = 0;
        for (i = 0; i < tmoe_suite_count(x.suite); i++)
            if (x.category_of[tmoe_model_find_task(x.model, tmoe_suite_task(x.suite, i)->name)]
                == k) {
                whole += x.scores[i];
                count++;
            }
        CHECK_NEAR(x.whole[k], whole / count, 1e-12);
        CHECK(x.measured[k] == count && x.size[k] == count);
        for (i = 0; i < TOP; i++) take(&x, top, &n, x.top[k][i]);
        for (own = 0; own < 2; own++) {
            CHECK_NEAR(x.drop[k][!own], direct_drop(&x, k, own, top, n), 1e-9);
            if (fabs(x.drop[k][!own]) > most) most = fabs(x.drop[k][!own]);
        }
        for (draw = 0; draw < RANDOM_DRAWS; draw++) {
            int columns[TOP], m = 0;
            for (i = 0; m < n && i < 1000; i++)
                take(&x, columns, &m,
                    (int)(tmoei_random(7, (uint64_t)(k * RANDOM_DRAWS + draw), (uint64_t)i) % 6));
            for (own = 0; own < 2; own++)
                random[!own] += direct_drop(&x, k, own, columns, m) / RANDOM_DRAWS;
        }
        for (own = 0; own < 2; own++) CHECK_NEAR(x.drop[k][2 + !own], random[!own], 1e-9);
    }
    CHECK(most > 0.1); /* there was something to lose */
    free(x.routes);
    free(x.r);
    free(x.p);
    free(x.joins);
    free(x.scores);
    free(x.without);
    unmake(&s);
}

TEST_MAIN("test_routes", RUN(test_drops_equal_evaluations_under_routes_without_those_experts);)
