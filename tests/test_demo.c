/* The demo and what it prints with: which words count as never met, which tasks are picked, what is
 * right, that nothing is wider than a screen, and what its exit status says. */
#define _GNU_SOURCE /* pseudo-terminals */
#define main demo_main
#include "../examples/demo.c"
#undef main
#include "test.h"
#include <fcntl.h>

#define SCREEN_COLUMNS 80

/* Columns of a line: bytes that begin a character. */
static int columns_of(const char *line, size_t length)
{
    int n = 0;
    size_t i;
    for (i = 0; i < length; i++) n += ((unsigned char)line[i] & 0xc0) != 0x80;
    return n;
}

/* The widest line of a text; '\r' begins a line again. */
static int widest(const char *text)
{
    int most = 0;
    while (*text) {
        const size_t length = strcspn(text, "\r\n");
        const int columns = columns_of(text, length);
        if (columns > most) most = columns;
        text += length + (text[length] != 0);
    }
    return most;
}

static char *read_all(const char *path)
{
    FILE *file = fopen(path, "rb");
    char *text = (char *)calloc(1, 1 << 20);
    if (file && text) (void)!fread(text, 1, (1 << 20) - 1, file);
    if (file) fclose(file);
    return text;
}

/* Standard output goes to PATH until `to_screen_again`. */
static int to_file(const char *path)
{
    const int screen = dup(1);
    fflush(stdout);
    if (!freopen(path, "wb", stdout)) abort();
    return screen;
}

static void to_screen_again(int screen)
{
    fflush(stdout);
    (void)dup2(screen, 1);
    close(screen);
}

/* The terminal side of a pseudo-terminal, NULL where there is none; *reader is what a screen reads. */
static FILE *open_terminal(int *reader)
{
    const char *name;
    *reader = posix_openpt(O_RDWR | O_NOCTTY);
    if (*reader < 0 || grantpt(*reader) != 0 || unlockpt(*reader) != 0) return NULL;
    name = ptsname(*reader);
    return name ? fopen(name, "wb") : NULL;
}

/* A task of four lines, the last of which is for test. */
static void add_letters(tmoe_suite *suite, const char *name, tmoe_part part)
{
    static const char *const inputs[] = { "an apple", "bear", "cloud", "lamp" };
    static const char *const outputs[] = { "A", "BEAR", "CLOUDS", "LAMP" };
    tmoe_task_lines lines;
    memset(&lines, 0, sizeof lines);
    lines.name = lines.instruction = name;
    lines.part = part;
    lines.inputs = inputs;
    lines.outputs = outputs;
    lines.count = 4;
    lines.test_count = 1;
    CHECK(tmoe_suite_add(suite, &lines) == TMOE_OK);
}

static void test_a_word_counts_as_met_in_any_training_line_and_only_there(void)
{
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    tmoe_suite *suite = tmoe_suite_create(ctx);
    int lines;
    add_letters(suite, "first", TMOE_PART_TRAIN);
    add_letters(suite, "second", TMOE_PART_TRAIN);
    CHECK(lines_with(suite, "apple", &lines) == 2);
    CHECK(lines == 6);
    CHECK(lines_with(suite, "bear", &lines) == 2);   /* in the input and the output: once a line */
    CHECK(lines_with(suite, "clouds", &lines) == 2); /* in an output, in capitals */
    CHECK(lines_with(suite, "ou", &lines) == 2);
    CHECK(lines_with(suite, "lamp", &lines) == 0); /* a test line */
    add_letters(suite, "held", TMOE_PART_TEST);
    CHECK(lines_with(suite, "apple", &lines) == 2 && lines == 6); /* not in unseen tasks */
    CHECK(!contains("appl", "apple") && !contains("", "a"));
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
}

static void test_enough_candidates_are_in_no_line_of_the_suite(void)
{
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    tmoe_suite *suite = tmoe_suite_load(ctx, "examples/suite", "zero_shot");
    int i, lines, unmet = 0;
    for (i = 0; candidates[i]; i++) unmet += lines_with(suite, candidates[i], &lines) == 0;
    CHECK(unmet >= WORDS);
    CHECK(lines > 20000);
    CHECK(lines_with(suite, "violin", &lines) > 0);
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
}

static void test_right_is_what_equals_an_answer_letter_for_letter(void)
{
    const char *const outputs[] = { "V-I", "VI" };
    const tmoe_example line = { "vi", outputs, 2 };
    CHECK(is_right(&line, "V-I") && is_right(&line, "VI"));
    CHECK(!is_right(&line, "vi") && !is_right(&line, "V-I ") && !is_right(&line, "V"));
}

static void test_two_best_two_middle_and_two_worst_unseen_tasks_are_picked(void)
{
    static demo d;
    int picked[PICKED], t, place = 0;
    d.ctx = tmoe_ctx_create(NULL);
    d.suite = tmoe_suite_load(d.ctx, "examples/suite", "zero_shot");
    for (t = 0; t < tmoe_suite_count(d.suite); t++) {
        /* seen tasks are better than all; unseen ones differ by one each, in another order */
        const int unseen = tmoe_suite_task(d.suite, t)->part == TMOE_PART_TEST;
        d.percent[DENSE][t] = unseen ? 7 * place++ % 36 : 100.0;
        d.percent[MIXTURE][t] = 0.0;
    }
    CHECK(pick(&d, picked) == 36);
    for (t = 0; t < PICKED; t++) {
        static const double want[PICKED] = { 35.0, 34.0, 18.0, 17.0, 1.0, 0.0 };
        CHECK(tmoe_suite_task(d.suite, picked[t])->part == TMOE_PART_TEST);
        CHECK_NEAR(d.percent[DENSE][picked[t]], want[t], 0.0);
    }
    tmoe_suite_destroy(d.suite);
    tmoe_ctx_destroy(d.ctx);
}

static void test_answers_are_cut_to_their_column_and_instructions_wrapped(void)
{
    char column[ANSWER_COLUMNS + 1], *text;
    int screen;
    column_text(column, ANSWER_COLUMNS, "skyscraper skyscraper");
    CHECK_TEXT(column, "skyscraper skyscraper");
    column_text(column, ANSWER_COLUMNS, "aaaaaaaaaaaaaaaaaaaaaaa");
    CHECK_TEXT(column, "aaaaaaaaaaaaaaaaaaaaaaa");
    column_text(column, ANSWER_COLUMNS, "aaaaaaaaaaaaaaaaaaaaaaaa");
    CHECK_TEXT(column, "aaaaaaaaaaaaaaaaaaaaa..");
    column_text(column, ANSWER_COLUMNS, "\033[31mni\xc3\xb1o");
    CHECK_TEXT(column, "?[31mni??o");
    screen = to_file("build/test_demo.txt");
    print_wrapped("Replace the vowels of the word of the list that comes first in the alphabet by "
                  "stars.",
        2);
    print_wrapped("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                  "aaa"
                  "aaaaaaaaaaaaaa b",
        4);
    to_screen_again(screen);
    text = read_all("build/test_demo.txt");
    CHECK(widest(text) <= LINE_COLUMNS);
    CHECK_HAS(text, "  Replace the vowels");
    CHECK_HAS(text, " alphabet\n  by stars.\n");
    CHECK_HAS(text, " b\n");
    free(text);
}

static void test_escape_codes_are_for_terminals_without_NO_COLOR(void)
{
    int reader;
    FILE *terminal = open_terminal(&reader), *file = fopen("build/test_demo.txt", "wb");
    CHECK_TEXT(style_of(file).bad, "");
    fclose(file);
    if (!terminal) return;
    setenv("TERM", "xterm", 1);
    unsetenv("NO_COLOR");
    CHECK_TEXT(style_of(terminal).bad, "\033[31m");
    setenv("NO_COLOR", "", 1); /* no-color.org: empty is as if it were not there */
    CHECK_TEXT(style_of(terminal).bad, "\033[31m");
    setenv("NO_COLOR", "1", 1);
    CHECK_TEXT(style_of(terminal).bad, "");
    unsetenv("NO_COLOR");
    setenv("TERM", "dumb", 1);
    CHECK_TEXT(style_of(terminal).bad, "");
    fclose(terminal);
    close(reader);
}

/* The report of a step, with numbers as wide as they get. */
static tmoe_progress wide_progress(int64_t step)
{
    static const float entropy[2] = { 1.3f, 1.2f },
                       use[8] = { 0.0f, 1.0f, 0.0f, 0.0f, 0.25f, 0.25f, 0.25f, 0.25f };
    tmoe_progress p;
    memset(&p, 0, sizeof p);
    p.step = step;
    p.steps = 20000;
    p.label = "two stages, transformer-specific, learned, output";
    p.loss = 12.345f;
    p.routed_layers = 2;
    p.route_entropy = entropy;
    p.expert_use = use;
    p.tokens_per_second = 1234567.0;
    p.seconds = p.seconds_left = 59999.0;
    return p;
}

static void test_the_progress_line_never_wraps_and_a_file_gets_ten_lines(void)
{
    static progress_line line;
    static char text[1 << 20];
    int reader, step, lines = 0;
    char *at;
    memset(&line, 0, sizeof line);
    line.routes.experts = 4;
    line.out = fopen("build/test_demo.txt", "wb");
    for (step = 1; step <= 20000; step++) {
        const tmoe_progress p = wide_progress(step);
        CHECK(show_progress(&line, &p) == 0);
    }
    fclose(line.out);
    at = read_all("build/test_demo.txt");
    CHECK(widest(at) <= LINE_COLUMNS && widest(at) > 70 && !strchr(at, '\r'));
    for (step = 0; at[step]; step++) lines += at[step] == '\n';
    CHECK(lines == 10);
    free(at);
    line.out = open_terminal(&reader);
    if (!line.out) return;
    for (step = 1; step <= 20000; step += 19999) {
        const tmoe_progress p = wide_progress(step);
        ssize_t got;
        CHECK(show_progress(&line, &p) == 0);
        got = read(reader, text, sizeof text - 1);
        text[got > 0 ? got : 0] = 0;
        CHECK(text[0] == '\r' && columns_of(text + 1, strcspn(text + 1, "\r\n")) == LINE_COLUMNS);
        CHECK((strchr(text, '\n') != NULL) == (step == 20000));
        if (step == 1) CHECK_HAS(text, "[#.........]");
    }
    fclose(line.out);
    close(reader);
}

static void test_a_usual_progress_line_is_whole_on_a_terminal(void)
{
    static progress_line line;
    char text[400];
    int reader;
    ssize_t got;
    tmoe_progress p = wide_progress(1);
    static const float use[8] = { 0.1f, 0.4f, 0.25f, 0.25f, 0.25f, 0.25f, 0.25f, 0.25f };
    memset(&line, 0, sizeof line);
    line.routes.experts = 4;
    line.out = open_terminal(&reader);
    if (!line.out) return;
    p.label = "mixture";
    p.expert_use = use;
    p.seconds_left = 599.0;
    CHECK(show_progress(&line, &p) == 0);
    got = read(reader, text, sizeof text - 1);
    text[got > 0 ? got : 0] = 0;
    CHECK_HAS(text, "mixture  [#.........] 1/20000  loss 12.345  use 10-40 %  599 s left ");
    p.step = 20000;
    p.seconds = 599.0;
    CHECK(show_progress(&line, &p) == 0);
    got = read(reader, text, sizeof text - 1);
    text[got > 0 ? got : 0] = 0;
    CHECK_HAS(text, "mixture  20000/20000  loss 12.345  use 10-40 %  599 s, 1234567 tokens/s ");
    p.step = p.steps = 900;
    p.loss = 2.345f;
    p.tokens_per_second = 99999.0;
    CHECK(show_progress(&line, &p) == 0);
    got = read(reader, text, sizeof text - 1);
    text[got > 0 ? got : 0] = 0;
    CHECK_HAS(text,
        "mixture  900/900  loss 2.345  entropy 1.25  use 10-40 %  599 s, 99999 tokens/s");
    fclose(line.out);
    close(reader);
}

static void test_the_whole_demo_fits_a_screen_and_fails_if_no_unseen_line_is_answered(void)
{
    char *arguments[] = { "demo", "--steps", "1", "--width", "8", "--save",
        "build/test_demo.safetensors", NULL };
    const int screen = to_file("build/test_demo.txt");
    const int status = demo_main(7, arguments);
    char *text;
    double unseen = -1.0;
    const char *row;
    to_screen_again(screen);
    text = read_all("build/test_demo.txt");
    CHECK(widest(text) <= SCREEN_COLUMNS);
    CHECK(!strchr(text, '\033'));
    CHECK_HAS(text, "wizard -> WIZARD");
    CHECK_HAS(text, "Of these 18 lines: mixture ");
    CHECK_HAS(text, "161 seen tasks");
    CHECK_HAS(text, "make build/ask\n");
    CHECK(file_exists("build/test_demo.safetensors"));
    row = strstr(text, "unseen tasks  "); /* dense, mixture */
    CHECK(row && sscanf(row, "unseen tasks %*f %% %lf", &unseen) == 1);
    CHECK(status == !(unseen > 0.0));
    CHECK(unseen == 0.0); /* so that the failure has been seen */
    free(text);
}

TEST_MAIN("test_demo", RUN(test_a_word_counts_as_met_in_any_training_line_and_only_there);
          RUN(test_enough_candidates_are_in_no_line_of_the_suite);
          RUN(test_right_is_what_equals_an_answer_letter_for_letter);
          RUN(test_two_best_two_middle_and_two_worst_unseen_tasks_are_picked);
          RUN(test_answers_are_cut_to_their_column_and_instructions_wrapped);
          RUN(test_escape_codes_are_for_terminals_without_NO_COLOR);
          RUN(test_the_progress_line_never_wraps_and_a_file_gets_ten_lines);
          RUN(test_a_usual_progress_line_is_whole_on_a_terminal);
          RUN(test_the_whole_demo_fits_a_screen_and_fails_if_no_unseen_line_is_answered);)
