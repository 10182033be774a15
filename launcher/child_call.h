/* A function run in a short-lived child process: for what must leave no trace in this one, such as a look at the cards
 * (the supervisor holds no CUDA context). */
#ifndef TANDEM_LAUNCHER_CHILD_CALL_H
#define TANDEM_LAUNCHER_CHILD_CALL_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "runtime/base/status.h"

/* A call under way. */
struct child_call {
    pid_t pid;
    int fd;
    void *argument;
    size_t bytes;
};

/* Forks; the child calls function(argument) and ends. To be called while the process has one thread; `argument` must
 * not be touched before the call is finished. */
enum status child_call_start(enum status (*function)(void *argument), void *argument, size_t bytes,
                             struct child_call *call);

/* Waits for the child. What it left in the `bytes` bytes of `argument` is copied back here, and its status and failure
 * text become ours. STATUS_TIMEOUT, the child killed, when it takes longer than `timeout_s` from now; STATUS_INTERNAL
 * when it died. */
enum status child_call_finish(struct child_call *call, uint32_t timeout_s);

/* Both, one after the other. */
enum status child_call_run(enum status (*function)(void *argument), void *argument, size_t bytes, uint32_t timeout_s);

#endif
