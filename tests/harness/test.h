/* The test harness. A test is a function that registers itself:
 *
 *     TEST(ring_refuses_when_full) {
 *         EXPECT(spsc_push(queue, &message));
 *         EXPECT_EQ(spsc_count(queue), 2);
 *     }
 *
 * Each test runs in a process of its own, so that a crash or a hang fails that test alone. A program takes an optional
 * filter (a substring of the test's name), --list, and --timeout SECONDS, which every test has at least (20); its last
 * line reads "N passed, N failed". Expectations end the test at the first failure and stay on in release builds. */
#ifndef TANDEM_TESTS_HARNESS_TEST_H
#define TANDEM_TESTS_HARNESS_TEST_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/status.h"

void test_register(const char *name, void (*function)(void), unsigned timeout_s);
_Noreturn void test_fail(const char *file, int line, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Ends the test as skipped, for a reason that is printed: for what a fresh clone does not hold. */
_Noreturn void test_skip(const char *reason);

/* The backend under test where a test takes any: the environment's TANDEM_TEST_BACKEND, "cpu" without it. Never opened
 * in a process that forks ranks: CUDA does not outlive a fork. */
const char *test_backend(void);

/* Ranks that a group on that backend may have: TANDEM_TEST_CARDS on cards (1 without it), any number on the cpu. */
uint32_t test_max_world(void);

/* `TEST_TIMEOUT(name, seconds)` is for a test that is known to need more. */
#define TEST_TIMEOUT(name, seconds)                                                                                    \
    static void test_##name(void);                                                                                     \
    __attribute__((constructor)) static void register_##name(void) {                                                   \
        test_register(#name, test_##name, (seconds));                                                                  \
    }                                                                                                                  \
    static void test_##name(void)
#define TEST(name) TEST_TIMEOUT(name, 0)

#define EXPECT(condition)                                                                                              \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            test_fail(__FILE__, __LINE__, "expected %s", #condition);                                                  \
        }                                                                                                              \
    } while (0)

/* Integers of any width; both values are printed. */
#define EXPECT_EQ(actual, expected)                                                                                    \
    do {                                                                                                               \
        long long actual_ = (long long)(actual);                                                                       \
        long long expected_ = (long long)(expected);                                                                   \
        if (actual_ != expected_) {                                                                                    \
            test_fail(__FILE__, __LINE__, "%s is %lld, expected %lld", #actual, actual_, expected_);                   \
        }                                                                                                              \
    } while (0)

#define EXPECT_TEXT(actual, expected)                                                                                  \
    do {                                                                                                               \
        const char *actual_ = (actual);                                                                                \
        const char *expected_ = (expected);                                                                            \
        if (strcmp(actual_, expected_) != 0) {                                                                         \
            test_fail(__FILE__, __LINE__, "%s is\n  %s\nexpected\n  %s", #actual, actual_, expected_);                 \
        }                                                                                                              \
    } while (0)

#define EXPECT_OK(expression)                                                                                          \
    do {                                                                                                               \
        enum status status_ = (expression);                                                                            \
        if (status_ != STATUS_OK) {                                                                                    \
            test_fail(__FILE__, __LINE__, "%s: %s: %s", #expression, status_name(status_), status_text());             \
        }                                                                                                              \
    } while (0)

/* The call fails with `code`, and the failure text contains `part`: a message must name field and remedy. */
#define EXPECT_FAILS(expression, code, part)                                                                           \
    do {                                                                                                               \
        enum status status_ = (expression);                                                                            \
        if (status_ != (code) || strstr(status_text(), (part)) == NULL) {                                              \
            test_fail(__FILE__, __LINE__, "%s: got %s \"%s\", expected %s with \"%s\"", #expression,                   \
                      status_name(status_), status_text(), status_name(code), (part));                                 \
        }                                                                                                              \
    } while (0)

#endif
