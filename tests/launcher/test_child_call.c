#define _GNU_SOURCE
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launcher/child_call.h"
#include "runtime/base/alloc.h"
#include "tests/harness/test.h"

static enum status call(enum status (*function)(void *argument), void *argument, size_t bytes, uint32_t timeout_s) {
    struct child_call call;
    TRY(child_call_start(function, argument, bytes, &call));
    return child_call_finish(&call, timeout_s);
}

struct sum {
    int a, b, sum;
    pid_t pid;
};

static int touched;

static enum status add(void *argument) {
    struct sum *sum = argument;
    touched = 1;
    sum->sum = sum->a + sum->b;
    sum->pid = getpid();
    return STATUS_OK;
}

TEST(the_result_comes_back_and_nothing_else) {
    struct sum sum = {.a = 3, .b = 4};
    EXPECT_OK(call(add, &sum, sizeof sum, 20));
    EXPECT_EQ(sum.sum, 7);
    EXPECT(sum.pid != getpid());
    EXPECT_EQ(touched, 0);
    EXPECT_EQ(waitpid(-1, NULL, WNOHANG), -1); /* no child is left */
}

static enum status fill_large(void *argument) {
    memset(argument, 0x5a, 1 << 20);
    return STATUS_OK;
}

TEST(a_result_may_be_larger_than_a_pipe) {
    char *large = xcalloc(1, 1 << 20);
    EXPECT_OK(call(fill_large, large, 1 << 20, 20));
    EXPECT_EQ(large[0], 0x5a);
    EXPECT_EQ(large[(1 << 20) - 1], 0x5a);
    free(large);
}

static enum status refuse(void *argument) {
    *(int *)argument = 5;
    FAIL(STATUS_LIMIT, "%d is too many", 7);
}

TEST(a_failure_brings_its_text) {
    int value = 1;
    EXPECT_FAILS(call(refuse, &value, sizeof value, 20), STATUS_LIMIT, "7 is too many");
    EXPECT_EQ(value, 5);
}

static enum status hang(void *argument) {
    (void)argument;
    while (pause() < 0) {
    }
    return STATUS_OK;
}

static enum status die(void *argument) {
    kill(getpid(), *(int *)argument);
    return STATUS_OK;
}

static enum status leave(void *argument) {
    _exit(*(int *)argument);
}

TEST(a_child_that_gives_no_answer_is_told_of) {
    int value = SIGKILL;
    EXPECT_FAILS(call(die, &value, sizeof value, 20), STATUS_INTERNAL, "was killed by signal 9");
    value = 3;
    EXPECT_FAILS(call(leave, &value, sizeof value, 20), STATUS_INTERNAL, "exited with code 3 and no answer");
    EXPECT_FAILS(call(hang, &value, sizeof value, 1), STATUS_TIMEOUT, "gave no answer within 1 s");
    EXPECT_EQ(value, 3);
    EXPECT_EQ(waitpid(-1, NULL, WNOHANG), -1);
}
