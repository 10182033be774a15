#define _GNU_SOURCE /* strsignal, sigabbrev */
#include "launcher/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/base/channel.h"

void spawn_seal(void) {
    struct rlimit limit;
    if (syscall(SYS_close_range, 3u, ~0u, CLOSE_RANGE_CLOEXEC) == 0 || getrlimit(RLIMIT_NOFILE, &limit) != 0) {
        return;
    }
    /* A kernel before 5.11. */
    for (int i = 3; i < (int)(limit.rlim_cur < 65536 ? limit.rlim_cur : 65536); i++) {
        fcntl(i, F_SETFD, FD_CLOEXEC); /* most are not open */
    }
}

/* The program's first and last words between fork and exec: only calls that are safe after a fork of a process with
 * threads. What fails here shows as exit code 127. */
static _Noreturn void become_child(const char *const *arguments, int control_fd, pid_t parent) {
    sigset_t none;
    sigemptyset(&none);
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGCHLD, SIG_DFL);
    int null_fd = open("/dev/null", O_RDONLY);
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent || null_fd < 0 || dup2(null_fd, 0) < 0 ||
        dup2(2, 1) < 0) {
        _exit(127);
    }
    if (null_fd > 2 && null_fd != SPAWN_CHILD_FD) {
        close(null_fd);
    }
    if (control_fd == SPAWN_CHILD_FD ? fcntl(control_fd, F_SETFD, 0) != 0 : dup2(control_fd, SPAWN_CHILD_FD) < 0) {
        _exit(127);
    }
    sigprocmask(SIG_SETMASK, &none, NULL);
    execv("/proc/self/exe", (char *const *)(size_t)arguments);
    _exit(127);
}

enum status spawn_child(const char *const *arguments, struct child *child) {
    int pair[2];
    TRY(channel_pair(pair));
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid == 0) {
        become_child(arguments, pair[1], parent);
    }
    int error = errno;
    close(pair[1]);
    if (pid < 0) {
        close(pair[0]);
        errno = error;
        FAIL_ERRNO(STATUS_IO, "fork");
    }
    if (fcntl(pair[0], F_SETFL, O_NONBLOCK) != 0) {
        enum status status = status_fail_errno(STATUS_IO, "fcntl of a control socket");
        close(pair[0]);
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        return status;
    }
    *child = (struct child){.pid = pid, .control_fd = pair[0]};
    return STATUS_OK;
}

int spawn_reap(struct child *child, char *how, size_t size) {
    int state;
    if (child->pid == 0 || waitpid(child->pid, &state, WNOHANG) != child->pid) {
        return 0;
    }
    child->pid = 0;
    if (WIFSIGNALED(state)) {
        snprintf(how, size, "was killed by signal %d (%s)", WTERMSIG(state), strsignal(WTERMSIG(state)));
    } else {
        snprintf(how, size, "exited with code %d", WEXITSTATUS(state));
    }
    return 1;
}

void spawn_kill(const struct child *child) {
    if (child->pid > 0) {
        kill(child->pid, SIGKILL);
    }
}

void spawn_close(struct child *child) {
    if (child->control_fd >= 0) {
        close(child->control_fd);
        child->control_fd = -1;
    }
}

enum status spawn_signals(int *fd) {
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGINT);
    sigaddset(&mask, SIGTERM);
    sigaddset(&mask, SIGCHLD);
    struct sigaction hangup;
    if (sigaction(SIGHUP, NULL, &hangup) == 0 && hangup.sa_handler != SIG_IGN) {
        sigaddset(&mask, SIGHUP);
    }
    if (sigprocmask(SIG_BLOCK, &mask, NULL) != 0) {
        FAIL_ERRNO(STATUS_IO, "sigprocmask");
    }
    *fd = signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC);
    if (*fd < 0) {
        FAIL_ERRNO(STATUS_IO, "signalfd");
    }
    return STATUS_OK;
}
