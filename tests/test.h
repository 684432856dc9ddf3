/* What the test programs share: checks that count, a filter by name, a last line with the counts.
 * */
#ifndef TMOE_TEST_H
#define TMOE_TEST_H
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int test_failures; /* of the test that runs now */
static const char *test_filter;

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
            test_failures++; \
        } \
    } while (0)
#define CHECK_NEAR(a, b, tolerance) \
    do { \
        const double a_ = (double)(a), b_ = (double)(b); \
        if (!(fabs(a_ - b_) <= (double)(tolerance))) { \
            printf("%s:%d: failed: %s is %.9g, %s is %.9g\n", __FILE__, __LINE__, #a, a_, #b, b_); \
            test_failures++; \
        } \
    } while (0)
#define CHECK_TEXT(a, b) \
    do { \
        const char *a_ = (a), *b_ = (b); \
        if (!a_ || strcmp(a_, b_)) { \
            printf("%s:%d: failed: %s is '%s', not '%s'\n", __FILE__, __LINE__, #a, \
                a_ ? a_ : "(null)", b_); \
            test_failures++; \
        } \
    } while (0)
#define CHECK_HAS(text, part) \
    do { \
        const char *t_ = (text); \
        if (!t_ || !strstr(t_, (part))) { \
            printf("%s:%d: failed: '%s' does not contain '%s'\n", __FILE__, __LINE__, \
                t_ ? t_ : "(null)", (part)); \
            test_failures++; \
        } \
    } while (0)

#define RUN(test) \
    do { \
        if (!test_filter || strstr(#test, test_filter)) { \
            test_failures = 0; \
            test(); \
            if (test_failures) { \
                printf("FAILED %s\n", #test); \
                failed++; \
            } else \
                passed++; \
        } \
    } while (0)

#define TEST_MAIN(name, ...) \
    int main(int argc, char **argv) \
    { \
        int passed = 0, failed = 0; \
        test_filter = argc > 1 ? argv[1] : NULL; \
        __VA_ARGS__ \
        printf(name ": %d passed, %d failed\n", passed, failed); \
        return failed != 0; \
    }

static inline int file_exists(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file) (void)fclose(file);
    return file != NULL;
}
#endif
