/* The splits of the embedded suite: what each holds out, and that its parts are still trained. */
#define TASKMOE_IMPLEMENTATION
#include "../taskmoe.h"
#include "test.h"

static const char *const reported[] = { "zero_shot", "zero_shot_2", "zero_shot_3", "zero_shot_4" };

#define REPORTED 4

static tmoe_suite *load(tmoe_ctx *ctx, const char *split)
{
    tmoe_suite *suite = tmoe_suite_load(ctx, "examples/suite", split);
    CHECK_TEXT(tmoe_error_message(ctx), "");
    return suite;
}

/* The task of this name in a part of the suite, or NULL. */
static const tmoe_task *find(const tmoe_suite *suite, tmoe_part part, const char *name)
{
    int i;
    for (i = 0; i < tmoe_suite_count(suite); i++) {
        const tmoe_task *task = tmoe_suite_task(suite, i);
        if (task->part == part && !strcmp(task->name, name)) return task;
    }
    return NULL;
}

static int count_part(const tmoe_suite *suite, tmoe_part part)
{
    int i, n = 0;
    for (i = 0; i < tmoe_suite_count(suite); i++) n += tmoe_suite_task(suite, i)->part == part;
    return n;
}

/* How many trained compositions begin (or end) as the name does. */
static int trained_with(const tmoe_suite *suite, const char *name, size_t length, int at_end)
{
    int i, n = 0;
    for (i = 0; i < tmoe_suite_count(suite); i++) {
        const tmoe_task *task = tmoe_suite_task(suite, i);
        const size_t whole = strlen(task->name);
        const char *at = at_end && whole > length ? task->name + whole - length : task->name;
        if (task->part != TMOE_PART_TRAIN || strcmp(task->category, "composition") != 0) continue;
        n += whole > length && !strncmp(at, name, length);
    }
    return n;
}

/* A composition is SELECTION_TRANSFORMATION: finds where its name is cut, such that select_SELECTION
 * and word_TRANSFORMATION are trained alone, and counts the trained compositions of each part. */
static int parts_are_trained(const tmoe_suite *suite, const char *name, int least)
{
    const char *cut = strchr(name, '_');
    for (; cut; cut = strchr(cut + 1, '_')) {
        char selection[80], transformation[80];
        const int length = (int)(cut - name);
        (void)snprintf(selection, sizeof selection, "select_%.*s", length, name);
        (void)snprintf(transformation, sizeof transformation, "word_%s", cut + 1);
        if (find(suite, TMOE_PART_TRAIN, selection) && find(suite, TMOE_PART_TRAIN, transformation))
            return trained_with(suite, name, (size_t)length + 1, 0) >= least
                && trained_with(suite, cut, strlen(cut), 1) >= least;
    }
    return 0;
}

static void test_each_zero_shot_split_holds_out_36_compositions_whose_parts_are_trained(void)
{
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    int k, i;
    for (k = 0; k < REPORTED; k++) {
        tmoe_suite *suite = load(ctx, reported[k]);
        CHECK(count_part(suite, TMOE_PART_TRAIN) == 161);
        CHECK(count_part(suite, TMOE_PART_DEV) == 6);
        CHECK(count_part(suite, TMOE_PART_TEST) == 36);
        for (i = 0; i < tmoe_suite_count(suite); i++) {
            const tmoe_task *task = tmoe_suite_task(suite, i);
            if (task->part == TMOE_PART_TRAIN) continue;
            CHECK_TEXT(task->category, "composition");
            CHECK(!find(suite, TMOE_PART_TRAIN, task->name));
            CHECK(
                parts_are_trained(suite, task->name, 6)); /* of 10: 3 are held out, 1 is for dev */
        }
        tmoe_suite_destroy(suite);
    }
    tmoe_ctx_destroy(ctx);
}

/* How many tests of suite `of` are in a part of another. */
static int tests_in(const tmoe_suite *of, const tmoe_suite *suite, tmoe_part part)
{
    int i, n = 0;
    for (i = 0; i < tmoe_suite_count(of); i++) {
        const tmoe_task *task = tmoe_suite_task(of, i);
        n += task->part == TMOE_PART_TEST && find(suite, part, task->name) != NULL;
    }
    return n;
}

static void test_the_four_splits_test_nearly_all_compositions_between_them(void)
{
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    tmoe_suite *suites[REPORTED], *all = tmoe_suite_load(ctx, "examples/suite/tasks", NULL);
    int k, m, i, tested = 0;
    for (k = 0; k < REPORTED; k++) suites[k] = load(ctx, reported[k]);
    for (k = 0; k < REPORTED; k++)
        for (m = 0; m < k; m++) CHECK(tests_in(suites[k], suites[m], TMOE_PART_TEST) <= 12);
    for (i = 0; i < tmoe_suite_count(all); i++) {
        int by = 0;
        for (k = 0; k < REPORTED; k++)
            by += find(suites[k], TMOE_PART_TEST, tmoe_suite_task(all, i)->name) != NULL;
        CHECK(by <= 2);
        tested += by > 0;
    }
    CHECK(tested == 108); /* of 120: place 6 is kept for development */
    for (k = 0; k < REPORTED; k++) tmoe_suite_destroy(suites[k]);
    tmoe_suite_destroy(all);
    tmoe_ctx_destroy(ctx);
}

static void
test_development_tests_what_no_reported_split_tests_and_trains_on_nothing_that_zero_shot_tests(void)
{
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    tmoe_suite *development = load(ctx, "development"), *zero_shot = load(ctx, "zero_shot");
    int k, i, removed = 0;
    CHECK(count_part(development, TMOE_PART_TEST) == 12);
    for (k = 0; k < REPORTED; k++) {
        tmoe_suite *suite = load(ctx, reported[k]);
        CHECK(tests_in(suite, development, TMOE_PART_TEST) == 0);
        tmoe_suite_destroy(suite);
    }
    CHECK(tests_in(zero_shot, development, TMOE_PART_TRAIN) == 0);
    CHECK(tests_in(zero_shot, development, TMOE_PART_DEV) == 0);
    for (i = 0; i < tmoe_suite_count(zero_shot); i++) {
        const tmoe_task *task = tmoe_suite_task(zero_shot, i);
        if (task->part != TMOE_PART_TRAIN) continue;
        if (find(development, TMOE_PART_TEST, task->name))
            removed++;
        else
            CHECK(find(development, TMOE_PART_TRAIN, task->name) != NULL);
    }
    CHECK(count_part(development, TMOE_PART_TRAIN)
        == count_part(zero_shot, TMOE_PART_TRAIN) - removed);
    for (i = 0; i < tmoe_suite_count(development); i++) {
        const tmoe_task *task = tmoe_suite_task(development, i);
        if (task->part != TMOE_PART_TEST) continue;
        CHECK_TEXT(task->category, "composition");
        CHECK(parts_are_trained(development, task->name, 4));
    }
    tmoe_suite_destroy(development);
    tmoe_suite_destroy(zero_shot);
    tmoe_ctx_destroy(ctx);
}

TEST_MAIN(
    "test_suite", RUN(test_each_zero_shot_split_holds_out_36_compositions_whose_parts_are_trained);
    RUN(test_the_four_splits_test_nearly_all_compositions_between_them);
    RUN(test_development_tests_what_no_reported_split_tests_and_trains_on_nothing_that_zero_shot_tests);)
