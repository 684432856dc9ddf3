/* The program for one's own tasks: what it makes of the data, its warnings and advice, that nothing
 * is lost when it is stopped. */
#define main train_main
#include "../examples/train.c"
#undef main
#include "test.h"

/* A folder build/own_tasks with three small tasks, and the output of what runs in build/own_out. */
static const char folder[] = "build/own_tasks", model_path[] = "build/own_model.safetensors";

static FILE *open_task(const char *name)
{
    char path[200];
    FILE *file;
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    file = fopen(path, "wb");
    if (!file) abort();
    return file;
}

static void write_folder(void)
{
    FILE *file;
    int i;
    (void)system("mkdir -p build/own_tasks");
    file = open_task("count.tsv");
    for (i = 0; i < 40; i++) fprintf(file, "%d\t%d\n", i, i + 1);
    (void)fclose(file);
    file = open_task("same.tsv");
    fprintf(file, "input\toutput\n");
    for (i = 0; i < 40; i++) fprintf(file, "w%d\tw%d\n", i % 34, i % 34);
    (void)fclose(file);
    file = open_task("lone.tsv");
    fprintf(file, "a\tb\n");
    (void)fclose(file);
    file = open_task("tasks.tsv");
    fprintf(file, "name\tinstruction\ncount\tAdd one.\nsame\tCopy it.\nbirds\tName a bird.\n");
    (void)fclose(file);
}

/* Standard output of train_main with these options, in `text`; returns its exit status. */
static int run(const char *options, char *text, size_t size)
{
    char command[500];
    FILE *file;
    size_t n;
    int status;
    (void)snprintf(command, sizeof command, "build/train %s %s > build/own_out 2> build/own_err",
        folder, options);
    status = system(command);
    file = fopen("build/own_out", "rb");
    if (!file) abort();
    n = fread(text, 1, size - 1, file);
    text[n] = 0;
    (void)fclose(file);
    return status;
}

static void test_what_is_odd_in_a_folder_is_said_before_any_work(void)
{
    char text[8000];
    write_folder();
    CHECK(run("--steps 2 --width 16 --threads 1 --set encoder_heads=2", text, sizeof text) == 0);
    CHECK_HAS(text, "no --save MODEL: the model is shown, not kept");
    CHECK_HAS(text, "3 tasks with 66 training lines");
    CHECK_HAS(text, "tasks.tsv describes 'birds', which is no task of the folder");
    CHECK_HAS(text, "task lone has no row in tasks.tsv: its instruction is 'lone'");
    CHECK_HAS(text, "task same: line 1 looks like a header");
    CHECK_HAS(text, "task same: 6 of 8 test lines are training lines as well");
    CHECK_HAS(text, "task lone: 1 lines leave none for a test");
    CHECK(!strstr(text, "task count: line 1"));
    CHECK_HAS(text, "not learned yet");
}

static void test_advice_follows_from_the_scores(void)
{
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    tmoe_suite *suite;
    scores all[3];
    char text[2000];
    data d;
    size_t n;
    int t, saved;
    FILE *file;
    write_folder();
    suite = tmoe_suite_load(ctx, folder, NULL);
    d = look_at(suite);
    CHECK(d.tasks == 3 && d.lines == 66 && d.fewest == 1 && d.longest_input == 5);
    for (t = 0; t < 3; t++) {
        const int count = !strcmp(tmoe_suite_task(suite, t)->name, "count");
        all[t].train = count ? 0.98 : 0.3;
        all[t].test = count ? 0.1 : 0.3;
    }
    fflush(stdout);
    saved = dup(1);
    if (!freopen("build/own_out", "wb", stdout)) abort();
    advise(&d, all);
    fflush(stdout);
    (void)dup2(saved, 1);
    (void)close(saved);
    file = fopen("build/own_out", "rb");
    n = fread(text, 1, sizeof text - 1, file);
    text[n] = 0;
    (void)fclose(file);
    CHECK_HAS(text, "count: 0.98 on training lines, 0.10 on test lines: learned by heart. Some");
    CHECK(!strstr(text, "same: "));
    CHECK_HAS(text, "2 tasks are not learned yet");
    CHECK_HAS(text, "2 tasks have fewer than 10 test lines");
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
}

static void test_settings_follow_from_the_data(void)
{
    settings s;
    data d;
    tmoe_config c;
    tmoe_training t;
    memset(&s, 0, sizeof s);
    memset(&d, 0, sizeof d);
    s.seed = 7;
    d.tasks = 2;
    d.lines = 1000;
    d.fewest = 200;
    d.input_bytes = 30.0;
    choose_settings(&s, &d, &c, &t);
    CHECK(c.experts == 2 && c.width == 64 && t.vocabulary == 0 && t.steps == STEPS_LEAST);
    CHECK(t.validation_lines == 0 && t.patience == 0 && c.seed == 7 && t.seed == 7);
    d.tasks = 9;
    d.lines = 100000;
    d.fewest = 3;
    d.input_bytes = 500.0;
    choose_settings(&s, &d, &c, &t);
    CHECK(c.experts == 4 && c.width == 128 && c.decoder_ffn == 512 && t.steps == STEPS_MOST);
    CHECK(t.vocabulary == BPE_VOCABULARY);
    s.experts = 8;
    s.width = 32;
    s.steps = 11;
    s.set.texts[s.set.count++] = "steps=12";
    s.set.texts[s.set.count++] = "positions=learned";
    choose_settings(&s, &d, &c, &t);
    CHECK(c.experts == 8 && c.width == 32 && c.encoder_ffn == 128 && t.steps == 11);
    CHECK(c.positions == TMOE_POSITION_LEARNED);
}

static char *bytes_of(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    char *bytes;
    if (!file) abort();
    (void)fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    bytes = (char *)malloc(*size + 1);
    rewind(file);
    if (!bytes || fread(bytes, 1, *size, file) != *size) abort();
    (void)fclose(file);
    return bytes;
}

static void test_a_training_that_is_stopped_goes_on_to_the_same_bits(void)
{
    static settings s;
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    tmoe_suite *suite;
    tmoe_model *model;
    data d;
    size_t size, size_again;
    char *bytes, *bytes_again, text[8000];
    write_folder();
    s.program = "test_train";
    s.folder = folder;
    s.save = model_path;
    s.steps = 30;
    s.width = 16;
    s.seed = 1;
    suite = tmoe_suite_load(ctx, folder, NULL);
    d = look_at(suite);
    if (!freopen("build/own_out", "ab", stderr)) abort();
    model = train(&s, &d, ctx);
    CHECK(model != NULL);
    tmoe_model_destroy(model);
    bytes = bytes_of(model_path, &size);

    stop_asked = 1; /* after a step */
    CHECK(train(&s, &d, ctx) == NULL);
    stop_asked = 0;
    CHECK(system("build/describe build/own_model.safetensors --tasks > build/own_described") == 0);
    bytes_again = bytes_of("build/own_described", &size_again);
    bytes_again[size_again] = 0;
    CHECK_HAS(bytes_again, "checkpoint of ");
    CHECK_HAS(bytes_again, "training: 1 of 30 steps done");
    CHECK_HAS(bytes_again, " *width                    16\n");
    CHECK_HAS(bytes_again, "  positions                rotary\n");
    CHECK_HAS(bytes_again, "  lone  ");
    free(bytes_again);
    s.resume = 1;
    s.steps = 0; /* the checkpoint says how many */
    model = train(&s, &d, ctx);
    CHECK(model != NULL);
    tmoe_model_destroy(model);
    bytes_again = bytes_of(model_path, &size_again);
    CHECK(size == size_again && memcmp(bytes, bytes_again, size) == 0);
    free(bytes);
    free(bytes_again);

    CHECK(run("--save build/own_model.safetensors --resume", text, sizeof text) != 0); /* done */
    (void)remove(model_path);
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
}

TEST_MAIN("test_train", RUN(test_what_is_odd_in_a_folder_is_said_before_any_work);
          RUN(test_settings_follow_from_the_data); RUN(test_advice_follows_from_the_scores);
          RUN(test_a_training_that_is_stopped_goes_on_to_the_same_bits);)
