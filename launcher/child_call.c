#define _GNU_SOURCE /* pipe2 */
#include "launcher/child_call.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/base/clock.h"

#define REAP_NS (5 * NS_PER_S)

/* What the child sends in front of the argument. */
struct answer {
    enum status status;
    char text[1024];
};

static bool write_all(int fd, const void *bytes, size_t size) {
    for (size_t done = 0; done < size;) {
        ssize_t written = write(fd, (const char *)bytes + done, size - done);
        if (written < 0 && errno != EINTR) {
            return false;
        }
        done += written > 0 ? (size_t)written : 0;
    }
    return true;
}

static _Noreturn void be_child(enum status (*function)(void *argument), void *argument, size_t bytes, int fd) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct answer answer = {.status = function(argument)};
    snprintf(answer.text, sizeof answer.text, "%s", answer.status != STATUS_OK ? status_text() : "");
    bool sent = write_all(fd, &answer, sizeof answer) && write_all(fd, argument, bytes);
    _exit(sent ? 0 : 1);
}

/* Reads `size` bytes; false when the other end was closed, or the deadline passed, before they were there. */
static bool read_until(int fd, uint64_t deadline_ns, void *bytes, size_t size, bool *in_time) {
    for (size_t got = 0; got < size;) {
        uint64_t now_ns = clock_now_ns();
        struct pollfd entry = {.fd = fd, .events = POLLIN};
        *in_time = now_ns < deadline_ns;
        if (!*in_time) {
            return false;
        }
        if (poll(&entry, 1, (int)((deadline_ns - now_ns) / NS_PER_MS) + 1) <= 0) {
            continue;
        }
        ssize_t length = read(fd, (char *)bytes + got, size - got);
        if (length == 0 || (length < 0 && errno != EINTR)) {
            return false;
        }
        got += length > 0 ? (size_t)length : 0;
    }
    return true;
}

/* Says how a child ended that gave no whole answer. One that a driver holds may outlive its SIGKILL for a while. */
static enum status fail_ended(pid_t pid) {
    int state = 0;
    uint64_t deadline_ns = clock_now_ns() + REAP_NS;
    while (waitpid(pid, &state, WNOHANG) != pid) {
        if (clock_now_ns() >= deadline_ns) {
            FAIL(STATUS_INTERNAL, "does not end");
        }
        struct timespec pause = {.tv_nsec = 1000000};
        nanosleep(&pause, NULL);
    }
    if (WIFSIGNALED(state)) {
        FAIL(STATUS_INTERNAL, "was killed by signal %d (%s)", WTERMSIG(state), strsignal(WTERMSIG(state)));
    }
    FAIL(STATUS_INTERNAL, "exited with code %d and no answer", WEXITSTATUS(state));
}

static enum status take_answer(int fd, pid_t pid, void *argument, size_t bytes, uint32_t timeout_s) {
    uint64_t deadline_ns = clock_now_ns() + timeout_s * NS_PER_S;
    struct answer answer;
    char *left = xcalloc(1, bytes);
    bool in_time = true;
    bool whole = read_until(fd, deadline_ns, &answer, sizeof answer, &in_time) &&
                 read_until(fd, deadline_ns, left, bytes, &in_time);
    enum status status = STATUS_OK;
    if (!in_time) {
        kill(pid, SIGKILL);
    }
    if (whole) {
        waitpid(pid, NULL, 0); /* it ends without another step */
        memcpy(argument, left, bytes);
        status = answer.status != STATUS_OK ? status_fail(answer.status, "%s", answer.text) : STATUS_OK;
    } else {
        status = fail_ended(pid);
    }
    free(left);
    if (!in_time) {
        FAIL(STATUS_TIMEOUT, "gave no answer within %u s", timeout_s);
    }
    return status;
}

enum status child_call_start(enum status (*function)(void *argument), void *argument, size_t bytes,
                             struct child_call *call) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) {
        FAIL_ERRNO(STATUS_IO, "pipe");
    }
    pid_t pid = fork();
    if (pid == 0) {
        close(ends[0]);
        be_child(function, argument, bytes, ends[1]);
    }
    int error = errno;
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        errno = error;
        FAIL_ERRNO(STATUS_IO, "fork");
    }
    *call = (struct child_call){.pid = pid, .fd = ends[0], .argument = argument, .bytes = bytes};
    return STATUS_OK;
}

enum status child_call_finish(struct child_call *call, uint32_t timeout_s) {
    enum status status = take_answer(call->fd, call->pid, call->argument, call->bytes, timeout_s);
    close(call->fd);
    return status;
}

enum status child_call_run(enum status (*function)(void *argument), void *argument, size_t bytes, uint32_t timeout_s) {
    struct child_call call;
    TRY(child_call_start(function, argument, bytes, &call));
    return child_call_finish(&call, timeout_s);
}
