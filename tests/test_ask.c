/* The program that asks a model: what it prints for people, in a pipe and as columns, its commands,
 * and its exit status. */
#define TMOE_THREADS
#define TASKMOE_IMPLEMENTATION
#include "taskmoe.h"
#include "test.h"

static const char path[] = "build/ask_model.safetensors";

/* A model of two tasks, hardly trained: what it answers does not matter here. */
static void make_model(void)
{
    static const char *const inputs[] = { "ant", "bee", "cat", "dog" };
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    tmoe_suite *suite = tmoe_suite_create(ctx);
    tmoe_config c = tmoe_config_default();
    tmoe_training t = tmoe_training_default();
    tmoe_task_lines lines;
    memset(&lines, 0, sizeof lines);
    lines.inputs = lines.outputs = inputs;
    lines.count = 4;
    lines.name = "same";
    lines.instruction = "Copy the word.";
    CHECK(tmoe_suite_add(suite, &lines) == TMOE_OK);
    lines.name = "again";
    lines.instruction = "Say it again.";
    CHECK(tmoe_suite_add(suite, &lines) == TMOE_OK);
    c.width = 16;
    c.encoder_ffn = c.decoder_ffn = 32;
    c.source_tokens = 20;
    c.target_tokens = 12;
    t.steps = 3;
    tmoe_model *model = tmoe_train(ctx, suite, &c, &t);
    CHECK(model && tmoe_model_save(model, path) == TMOE_OK);
    tmoe_model_destroy(model);
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
}

/* Runs build/ask on the model; `typed` is standard input. Returns whether it succeeded. */
static int run(const char *options, const char *typed, char *out, size_t size)
{
    char command[600];
    FILE *file = fopen("build/ask_typed", "wb");
    if (!file || fputs(typed, file) < 0 || fclose(file) != 0) abort();
    (void)snprintf(command, sizeof command,
        "build/ask %s %s < build/ask_typed > build/ask_out 2> build/ask_err", path, options);
    const int status = system(command);
    file = fopen("build/ask_out", "rb");
    if (!file) abort();
    const size_t n = fread(out, 1, size - 1, file);
    out[n] = 0;
    (void)fclose(file);
    return status == 0;
}

static int count_of(const char *text, char c)
{
    int n = 0;
    for (; *text; text++) n += *text == c;
    return n;
}

static void test_a_pipe_gets_an_answer_a_line_and_nothing_else(void)
{
    char out[20000], long_line[3000];
    make_model();
    CHECK(run("--task same", "ant\r\nbee\ncat", out, sizeof out));
    CHECK(count_of(out, '\n') == 3 && !strstr(out, "->") && !strstr(out, "\033"));
    CHECK(run("--task same --tsv --best 3", "ant\nbee\n", out, sizeof out));
    CHECK(count_of(out, '\n') == 2 && count_of(out, '\t') == 2 * 6);
    CHECK(strncmp(out, "ant\t", 4) == 0);

    /* a line that the model cannot take is said, and the others are answered */
    memset(long_line, 'a', sizeof long_line);
    memcpy(long_line + sizeof long_line - 6, "\nbee\n", 6);
    CHECK(!run("--task same", long_line, out, sizeof out));
    CHECK(count_of(out, '\n') == 1);
}

static void test_commands_change_the_task_and_show_the_session(void)
{
    char out[20000];
    make_model();
    CHECK(run("", ":task again\nant\n:do Copy it.\nbee\n:2\n:tasks\n:history\n:quit\ncat\n", out,
        sizeof out));
    CHECK_HAS(out, "  same  again\n");
    CHECK_HAS(out, "   3  :do Copy it.\n");
    CHECK(!strstr(out, "9  cat"));             /* after :quit nothing is read */
    CHECK(!run("", "ant\n", out, sizeof out)); /* which task? */
    CHECK(!run("", ":task none\n", out, sizeof out));
    CHECK(!run("", ":nonsense\n", out, sizeof out));
    CHECK(run("", ":task same\n:route\n", out, sizeof out));
    CHECK_HAS(out, "enc 0");
}

static void test_words_on_the_command_line_are_answered_for_people(void)
{
    char out[20000];
    make_model();
    CHECK(run("\"Copy the word twice.\" ant bee", "", out, sizeof out));
    CHECK_HAS(out, "an unseen task: Copy the word twice.");
    CHECK_HAS(out, "nearest seen tasks: same");
    CHECK_HAS(out, "ant -> ");
    CHECK_HAS(out, " %   or ");
    CHECK(!run("--task none ant", "", out, sizeof out));
    (void)remove(path);
}

TEST_MAIN("test_ask", RUN(test_a_pipe_gets_an_answer_a_line_and_nothing_else);
          RUN(test_commands_change_the_task_and_show_the_session);
          RUN(test_words_on_the_command_line_are_answered_for_people);)
