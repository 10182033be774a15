#define _GNU_SOURCE /* prctl */
#include "benchmarks/support_process.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/base/channel.h"
#include "runtime/base/check.h"
#include "runtime/base/log.h"

void must(enum status status) {
    CHECK(status == STATUS_OK, "%s", status_text());
}

pid_t child_start(void) {
    fflush(NULL); /* or the child would print it again */
    pid_t child = fork();
    CHECK(child >= 0, "fork: %s", strerror(errno));
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    }
    return child;
}

void child_await(void) {
    int state;
    CHECK(wait(&state) > 0 && state == 0, "a child of the benchmark failed");
}

int process_start(int (*run)(int control_fd), pid_t *child) {
    int pair[2];
    must(channel_pair(pair));
    *child = child_start();
    if (*child == 0) {
        close(pair[0]);
        log_setup(LOG_ERROR, "bench");
        exit(run(pair[1]));
    }
    close(pair[1]);
    return pair[0];
}

void control_expect(int control, enum control_type type) {
    struct control_msg message;
    uint32_t n_fds = 0;
    do {
        must(control_receive(control, &message, NULL, &n_fds, 0));
        CHECK(message.type != CONTROL_ERROR, "%s", message.body.text);
    } while (message.type != (uint32_t)type);
}
