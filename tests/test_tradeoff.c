/* The picture of score against time: its numbers come from the file, its labels do not overlap. */
#define main tradeoff_main
#include "../examples/tradeoff.c"
#undef main
#include "test.h"

static void write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "wb");
    if (!file) abort();
    fputs(text, file);
    fclose(file);
}

static char *read_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    char *text = (char *)calloc(1, 1 << 18);
    if (file) {
        CHECK(fread(text, 1, (1 << 18) - 1, file) > 0);
        fclose(file);
    }
    return text;
}

static int count_of(const char *text, const char *part)
{
    int n = 0;
    for (text = strstr(text, part); text; text = strstr(text + 1, part)) n++;
    return n;
}

static settings of_file(const char *text)
{
    settings s;
    memset(&s, 0, sizeof s);
    s.program = "test";
    s.tsv = "build/test_tradeoff.tsv";
    s.svg = "build/test_tradeoff.svg";
    write_file(s.tsv, text);
    return s;
}

static const char header_line[] =
    "seed\twidth\texperts\tseen\tunseen\tmicroseconds\ttrain_seconds\tsplit=x steps=7 limit=0\n";

static void test_points_are_means_over_seeds_in_order_of_experts_and_width(void)
{
    char text[1000], caption[200];
    point points[POINTS_MAX];
    settings s;
    (void)snprintf(text, sizeof text, "%s%s", header_line,
        "1\t64\t4\t0.5\t0.2\t300\t9\n1\t32\t4\t0.4\t0.1\t100\t9\n1\t64\t1\t0.3\tnan\t310\t9\n"
        "2\t64\t4\t0.7\t0.4\t500\t9\n");
    s = of_file(text);
    CHECK(read_points(&s, points, caption, sizeof caption) == 3);
    CHECK_TEXT(caption, "split=x steps=7 limit=0");
    CHECK(points[0].experts == 1 && points[0].width == 64 && isnan(points[0].score[1]));
    CHECK(points[1].experts == 4 && points[1].width == 32 && points[1].seeds == 1);
    CHECK(points[2].width == 64 && points[2].seeds == 2);
    CHECK_NEAR(points[2].score[0], 0.6, 1e-12);
    CHECK_NEAR(points[2].score[1], 0.3, 1e-12);
    CHECK_NEAR(points[2].microseconds, 400.0, 1e-9);
}

static void test_spread_keeps_order_and_middle_and_makes_the_distance(void)
{
    double far[3] = { 10.0, 40.0, 90.0 }, near[4] = { 50.0, 50.0, 50.5, 51.0 };
    int i;
    spread(far, 3, 16.0);
    CHECK(far[0] == 10.0 && far[1] == 40.0 && far[2] == 90.0);
    spread(near, 4, 16.0);
    for (i = 1; i < 4; i++) CHECK(near[i] - near[i - 1] > 15.9);
    CHECK_NEAR((near[0] + near[1] + near[2] + near[3]) / 4.0, 50.375, 1e-9);
}

/* Four lines that end in one point: every name is drawn, none over another. */
static void test_labels_of_lines_that_meet_do_not_overlap(void)
{
    char text[2000];
    char *svg;
    const char *at;
    double last = -100.0;
    int e, n = 0;
    settings s;
    (void)snprintf(text, sizeof text, "%s", header_line);
    for (e = 1; e <= 8; e *= 2)
        (void)snprintf(text + strlen(text), sizeof text - strlen(text),
            "1\t32\t%d\t0.5\t0.1\t100\t9\n1\t64\t%d\t0.6\t0.2\t220\t9\n", e, e);
    s = of_file(text);
    draw(&s);
    svg = read_file(s.svg);
    for (at = strstr(svg, " experts</text>"); at; at = strstr(at + 1, " experts</text>")) {
        const char *y = at;
        double place;
        while (strncmp(y, " y=\"", 4) != 0) y--;
        place = strtod(y + 4, NULL);
        if (n == 3) last = -100.0; /* the second panel */
        CHECK(place - last > LABEL_DISTANCE - 0.2);
        last = place;
        n++;
    }
    CHECK(n == 6);
    CHECK(count_of(svg, ">dense</text>") == 2);
    CHECK(count_of(svg, "<polyline") == 8 && count_of(svg, "<circle") == 16);
    CHECK(count_of(svg, "<g ") == count_of(svg, "</g>"));
    CHECK(count_of(svg, "<text") == count_of(svg, "</text>"));
    CHECK(!strstr(svg, "nan") && !strstr(svg, "inf"));
    CHECK_HAS(svg, "prefers-color-scheme: dark");
    CHECK_HAS(svg, "time of one answer in ms");
    CHECK_HAS(svg, "</svg>");
    free(svg);
}

static void test_a_measurement_is_kept_and_not_repeated(void)
{
    char *arguments[] = { "tradeoff", "--widths", "8", "--experts", "1,2", "--steps", "1",
        "--limit", "1", "--split", "quickstart", "--tsv", "build/test_tradeoff.tsv", "--svg",
        "build/test_tradeoff.svg", NULL };
    char *first, *second;
    (void)remove("build/test_tradeoff.tsv");
    CHECK(tradeoff_main(15, arguments) == 0);
    first = read_file("build/test_tradeoff.tsv");
    CHECK(count_of(first, "\n") == 3);
    CHECK(tradeoff_main(15, arguments) == 0);
    second = read_file("build/test_tradeoff.tsv");
    CHECK_TEXT(second, first);
    free(first);
    free(second);
}

TEST_MAIN("test_tradeoff", RUN(test_points_are_means_over_seeds_in_order_of_experts_and_width);
          RUN(test_spread_keeps_order_and_middle_and_makes_the_distance);
          RUN(test_labels_of_lines_that_meet_do_not_overlap);
          RUN(test_a_measurement_is_kept_and_not_repeated);)
