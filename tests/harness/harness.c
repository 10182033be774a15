#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "tests/harness/test.h"

#define MAX_TESTS 512
#define EXIT_SKIPPED 77

static struct {
    const char *name;
    void (*function)(void);
    unsigned timeout_s;
} tests[MAX_TESTS];
static size_t test_count;

void test_register(const char *name, void (*function)(void), unsigned timeout_s) {
    if (test_count == MAX_TESTS) {
        abort();
    }
    tests[test_count].name = name;
    tests[test_count].function = function;
    tests[test_count++].timeout_s = timeout_s;
}

void test_fail(const char *file, int line, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s:%d: ", file, line);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

void test_skip(const char *reason) {
    printf("  skipped: %s\n", reason);
    fflush(stdout);
    exit(EXIT_SKIPPED);
}

const char *test_backend(void) {
    const char *backend = getenv("TANDEM_TEST_BACKEND");
    return backend != NULL ? backend : "cpu";
}

uint32_t test_max_world(void) {
    const char *cards = getenv("TANDEM_TEST_CARDS");
    if (strcmp(test_backend(), "cpu") == 0) {
        return UINT32_MAX;
    }
    return cards != NULL ? (uint32_t)strtoul(cards, NULL, 10) : 1;
}

/* Runs test `index` in a child in a process group of its own, so that what it started dies with it. Returns 0 for a
 * pass, EXIT_SKIPPED for a skip, anything else for a failure. */
static int run_one(size_t index, unsigned timeout_s) {
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        setpgid(0, 0);
        tests[index].function();
        exit(0);
    }
    setpgid(child, child);
    uint64_t deadline = clock_now_ns() + timeout_s * NS_PER_S;
    int state = 0;
    while (waitpid(child, &state, WNOHANG) == 0) {
        if (clock_now_ns() > deadline) {
            fprintf(stderr, "no end after %u s\n", timeout_s);
            kill(-child, SIGKILL);
            waitpid(child, &state, 0);
            break;
        }
        struct timespec pause = {.tv_nsec = 1000000};
        nanosleep(&pause, NULL);
    }
    kill(-child, SIGKILL);
    if (WIFSIGNALED(state)) {
        fprintf(stderr, "ended by signal %d\n", WTERMSIG(state));
        return 1;
    }
    return WEXITSTATUS(state);
}

int main(int argc, char **argv) {
    const char *filter = "";
    unsigned least_timeout_s = 20;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--list") == 0) {
            for (size_t t = 0; t < test_count; t++) {
                puts(tests[t].name);
            }
            return 0;
        }
        if (strcmp(argv[i], "--timeout") == 0 && i + 1 < argc) {
            least_timeout_s = (unsigned)strtoul(argv[++i], NULL, 10);
        } else {
            filter = argv[i];
        }
    }
    int passed = 0;
    int failed = 0;
    int skipped = 0;
    for (size_t t = 0; t < test_count; t++) {
        if (strstr(tests[t].name, filter) == NULL) {
            continue;
        }
        uint64_t start = clock_now_ns();
        unsigned timeout_s = tests[t].timeout_s > least_timeout_s ? tests[t].timeout_s : least_timeout_s;
        int result = run_one(t, timeout_s);
        passed += result == 0;
        skipped += result == EXIT_SKIPPED;
        failed += result != 0 && result != EXIT_SKIPPED;
        printf("%s %s (%.0f ms)\n",
               result == 0              ? "ok  "
               : result == EXIT_SKIPPED ? "skip"
                                        : "FAIL",
               tests[t].name, (double)(clock_now_ns() - start) / 1e6);
    }
    printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed > 0;
}
