/* A function run in a short-lived child process: for what must leave no trace in this one, such as a look at the cards
 * (the supervisor holds no CUDA context). */
#ifndef TANDEM_LAUNCHER_CHILD_CALL_H
#define TANDEM_LAUNCHER_CHILD_CALL_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"

/* Forks; the child calls function(argument) and ends. What it left in the `bytes` bytes of `argument` is copied back
 * here, and its status and failure text become ours. STATUS_TIMEOUT, the child killed, when it takes longer than
 * `timeout_s`; STATUS_INTERNAL when it died. To be called while the process has one thread. */
enum status child_call(enum status (*function)(void *argument), void *argument, size_t bytes, uint32_t timeout_s);

#endif
