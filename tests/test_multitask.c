/* The tables of multitask: what is averaged over splits and seeds, and that they fit a screen. */
#define main multitask_main
#include "../examples/multitask.c"
#undef main
#include "test.h"

static void add(tmoe_suite *suite, const char *name, tmoe_part part)
{
    static const char *const texts[] = { "a", "b", "c" };
    tmoe_task_lines lines;
    memset(&lines, 0, sizeof lines);
    lines.name = lines.instruction = name;
    lines.category = "letters";
    lines.part = part;
    lines.inputs = lines.outputs = texts;
    lines.count = 3;
    lines.test_count = 1;
    CHECK(tmoe_suite_add(suite, &lines) == TMOE_OK);
}

/* Two splits of tasks x, y, z: x is seen in both, y held out in the first, z in the second. */
static void make_suites(tmoe_ctx *ctx, tmoe_suite **suites)
{
    int i;
    for (i = 0; i < 2; i++) {
        suites[i] = tmoe_suite_create(ctx);
        add(suites[i], "x", TMOE_PART_TRAIN);
        add(suites[i], "y", i == 0 ? TMOE_PART_TEST : TMOE_PART_TRAIN);
        add(suites[i], "z", i == 1 ? TMOE_PART_TEST : TMOE_PART_TRAIN);
    }
}

/* Three runs: the first split with two seeds, the second with one. */
static void make_runs(tmoe_suite **suites, double (*scores)[KINDS][3])
{
    int i, kind;
    memset(runs, 0, sizeof runs);
    run_count = 3;
    split_count = 2;
    strcpy(split_names[0], "first");
    strcpy(split_names[1], "second");
    for (i = 0; i < run_count; i++) {
        runs[i].split = i / 2;
        runs[i].suite = suites[i / 2];
        for (kind = 0; kind < KINDS; kind++) {
            runs[i].of[kind].scores = scores[i][kind];
            runs[i].of[kind].answer_seconds = 1.0;
        }
    }
}

static void test_a_task_counts_once_with_its_mean_over_the_runs_where_it_is_in_the_part(void)
{
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    tmoe_suite *suites[2];
    double scores[3][KINDS][3] = { { { 0.1, 0.2, 0.3 }, { 0.4, 0.5, 0.6 } },
        { { 0.3, 0.4, 0.5 }, { 0.6, 0.7, 0.8 } }, { { 0.8, 0.6, 0.9 }, { 0.2, 0.3, 0.1 } } };
    double dense[9], mixture[9], *pooled[KINDS] = { dense, mixture };
    const char *found[9];
    int times[9], tasks;
    make_suites(ctx, suites);
    make_runs(suites, scores);
    CHECK(pool_tasks(TMOE_PART_TEST, pooled, times, found) == 2);
    CHECK_TEXT(found[0], "y");
    CHECK(times[0] == 2 && times[1] == 1);
    CHECK_NEAR(dense[0], 0.3, 1e-12);
    CHECK_NEAR(mixture[0], 0.6, 1e-12);
    CHECK_NEAR(dense[1], 0.9, 1e-12);
    CHECK_NEAR(mixture[1], 0.1, 1e-12);
    CHECK(pool_tasks(TMOE_PART_TRAIN, pooled, times, found) == 3);
    CHECK_NEAR(dense[0], (0.1 + 0.3 + 0.8) / 3.0, 1e-12);
    CHECK_NEAR(mean_score(&runs[1], MIXTURE, NULL, TMOE_PART_TRAIN, &tasks), 0.7, 1e-12);
    CHECK(tasks == 2);
    scores[0][DENSE][1] = (double)NAN; /* undefined: it is no score of 0 */
    CHECK(pool_tasks(TMOE_PART_TEST, pooled, times, found) == 2);
    CHECK(isnan(dense[0]) && !isnan(dense[1]));
    tmoe_suite_destroy(suites[0]);
    tmoe_suite_destroy(suites[1]);
    tmoe_ctx_destroy(ctx);
}

static void test_splits_are_names_between_commas(void)
{
    settings s = default_settings();
    split_count = 0;
    s.split = "zero_shot,development";
    read_splits(&s);
    CHECK(split_count == 2);
    CHECK_TEXT(split_names[0], "zero_shot");
    CHECK_TEXT(split_names[1], "development");
    split_count = 0;
    s.split = NULL;
    read_splits(&s);
    CHECK(split_count == 1);
}

static void test_only_the_number_of_experts_and_what_is_set_differ_between_the_models(void)
{
    settings s = default_settings();
    tmoe_config config[KINDS];
    tmoe_training training[KINDS];
    int kind;
    s.set.texts[s.set.count++] = "positions=learned";
    s.set_of[MIXTURE].texts[s.set_of[MIXTURE].count++] = "matrix_decay=0.5";
    for (kind = 0; kind < KINDS; kind++) settings_of(kind, &s, &config[kind], &training[kind]);
    CHECK(config[DENSE].experts == 1 && config[MIXTURE].experts == 4);
    CHECK(config[DENSE].positions == TMOE_POSITION_LEARNED);
    config[DENSE].experts = 4;
    config[DENSE].expert_kind = config[MIXTURE].expert_kind;
    training[DENSE].router_dropout = training[MIXTURE].router_dropout;
    CHECK(memcmp(&config[DENSE], &config[MIXTURE], sizeof config[DENSE]) == 0);
    CHECK_NEAR(training[DENSE].matrix_decay, tmoe_training_default().matrix_decay, 0.0);
    CHECK_NEAR(training[MIXTURE].matrix_decay, 0.5f, 0.0);
    CHECK_TEXT(training[MIXTURE].label, "mixture");
    training[DENSE].matrix_decay = 0.5f;
    training[DENSE].label = training[MIXTURE].label;
    CHECK(memcmp(&training[DENSE], &training[MIXTURE], sizeof training[DENSE]) == 0);
}

/* The widest line of a file in columns, its text in `text`. */
static int widest_line(const char *path, char *text, size_t size)
{
    FILE *file = fopen(path, "rb");
    size_t length = file ? fread(text, 1, size - 1, file) : 0, i;
    int most = 0, columns = 0;
    if (file) fclose(file);
    text[length] = 0;
    for (i = 0; i < length; i++) {
        columns = text[i] == '\n' ? 0 : columns + (((unsigned char)text[i] & 0xc0) != 0x80);
        if (columns > most) most = columns;
    }
    return most;
}

static void test_tables_of_several_runs_fit_a_screen(void)
{
    static char text[1 << 16];
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    tmoe_suite *suites[2];
    double scores[3][KINDS][3] = { { { 1.0, 0.0, 1.0 }, { 0.0, 1.0, 0.0 } },
        { { 0.0, 1.0, 0.0 }, { 1.0, 0.0, 1.0 } }, { { 1.0, 1.0, 1.0 }, { 0.0, 0.0, 0.0 } } };
    const int screen = dup(1);
    make_suites(ctx, suites);
    make_runs(suites, scores);
    fflush(stdout);
    if (!freopen("build/test_multitask.txt", "wb", stdout)) abort();
    print_scores();
    print_differences(ctx, "test");
    print_costs();
    fflush(stdout);
    (void)dup2(screen, 1);
    close(screen);
    CHECK(widest_line("build/test_multitask.txt", text, sizeof text) <= LINE_COLUMNS);
    CHECK_HAS(text,
        "\nfirst              2 0.500 \xc2\xb1"
        "0.707 0.500 \xc2\xb1"
        "0.707");
    CHECK_HAS(text,
        "\nletters            2 0.667 \xc2\xb1"
        "0.577");
    CHECK_HAS(text, "over 3 runs");
    CHECK_HAS(text, "   2 unseen tasks          -0.500 [-1.000, +0.000]    0, 1, 1");
    tmoe_suite_destroy(suites[0]);
    tmoe_suite_destroy(suites[1]);
    tmoe_ctx_destroy(ctx);
}

TEST_MAIN("test_multitask",
          RUN(test_a_task_counts_once_with_its_mean_over_the_runs_where_it_is_in_the_part);
          RUN(test_splits_are_names_between_commas);
          RUN(test_only_the_number_of_experts_and_what_is_set_differ_between_the_models);
          RUN(test_tables_of_several_runs_fit_a_screen);)
