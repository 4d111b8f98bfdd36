/* SPDX-License-Identifier: Apache-2.0
 *
 * A test harness in one header. A test program is a table of named functions and a main:
 *
 *     static void test_sum(void) { CHECK_EQUAL(1 + 1, 2); }
 *     static const test_case TESTS[] = {TEST(test_sum)};
 *     int main(int argc, char **argv) { return TEST_MAIN(TESTS, argc, argv); }
 *
 * Without arguments every test runs; arguments name the tests to run. A failed check ends its test,
 * is reported with file and line, and makes the program return 1.
 */
#ifndef FED_TEST_H
#define FED_TEST_H

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct test_case {
    const char *name;
    void (*run)(void);
} test_case;

#define TEST(function) {#function, function}
#define TEST_MAIN(tests, argc, argv)                                                               \
    test_run((tests), sizeof(tests) / sizeof((tests)[0]), argc, argv)

/* The running test jumps here when a check fails. */
static jmp_buf test_failed;
/* What is tested at the moment; the line of a failed test names it. NULL: nothing in particular. */
static const char *test_subject;

static inline void test_check(bool holds, const char *file, int line, const char *text) {
    if (holds) {
        return;
    }
    fprintf(stderr, "%s:%d: failed: %s\n", file, line, text);
    longjmp(test_failed, 1);
}

static inline void test_check_equal(intmax_t actual, intmax_t expected, const char *file, int line,
                                    const char *text) {
    if (actual == expected) {
        return;
    }
    fprintf(stderr, "%s:%d: failed: %s: %" PRIdMAX " is not %" PRIdMAX "\n", file, line, text,
            actual, expected);
    longjmp(test_failed, 1);
}

static inline void test_check_close(double actual, double expected, double tolerance,
                                    const char *file, int line, const char *text) {
    /* Written so that a NaN fails. */
    if (fabs(actual - expected) <= tolerance) {
        return;
    }
    fprintf(stderr, "%s:%d: failed: %s: %.9g is not within %.3g of %.9g\n", file, line, text,
            actual, tolerance, expected);
    longjmp(test_failed, 1);
}

#define CHECK(condition) test_check((condition), __FILE__, __LINE__, #condition)
/* Compares integers as bit patterns of 64 bits, so their types may differ, size_t included. */
#define CHECK_EQUAL(actual, expected)                                                              \
    test_check_equal((intmax_t)(actual), (intmax_t)(expected), __FILE__, __LINE__,                 \
                     #actual " == " #expected)
#define CHECK_CLOSE(actual, expected, tolerance)                                                   \
    test_check_close((double)(actual), (double)(expected), (double)(tolerance), __FILE__,          \
                     __LINE__, #actual " ~ " #expected)
#define CHECK_BYTES(actual, expected, num_bytes)                                                   \
    test_check(memcmp((actual), (expected), (num_bytes)) == 0, __FILE__, __LINE__,                 \
               #actual " and " #expected " differ")

/* malloc that ends the program when memory is short. */
static inline void *test_alloc(size_t num_bytes) {
    void *memory = malloc(num_bytes > 0 ? num_bytes : 1);
    if (memory == NULL) {
        fprintf(stderr, "out of memory: %zu bytes\n", num_bytes);
        exit(2);
    }
    return memory;
}

static inline bool test_run_one(const test_case *test) {
    test_subject = NULL;
    if (setjmp(test_failed) != 0) {
        const char *subject = test_subject;
        printf("FAIL %s%s%s\n", test->name, subject != NULL ? " with " : "",
               subject != NULL ? subject : "");
        return false;
    }
    test->run();
    printf("ok   %s\n", test->name);
    return true;
}

static inline bool test_is_asked(const char *name, int argc, char **argv) {
    bool is_asked = argc <= 1;
    for (int i = 1; i < argc; i++) {
        is_asked = is_asked || strcmp(name, argv[i]) == 0;
    }
    return is_asked;
}

/* Returns 0 if every chosen test passed, 1 if one failed, 2 if no test has a given name. */
static inline int test_run(const test_case *tests, size_t num_tests, int argc, char **argv) {
    size_t num_run = 0, num_failed = 0;
    for (size_t i = 0; i < num_tests; i++) {
        if (test_is_asked(tests[i].name, argc, argv)) {
            num_run++;
            num_failed += test_run_one(&tests[i]) ? 0 : 1;
        }
    }
    if (num_run == 0) {
        fprintf(stderr, "no such test; this program has:\n");
        for (size_t i = 0; i < num_tests; i++) {
            fprintf(stderr, "  %s\n", tests[i].name);
        }
        return 2;
    }
    return num_failed > 0 ? 1 : 0;
}

#endif
