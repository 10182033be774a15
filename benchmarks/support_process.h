/* Children of a benchmark, and the part of the supervisor that it plays for real ones. */
#ifndef TANDEM_BENCHMARKS_SUPPORT_PROCESS_H
#define TANDEM_BENCHMARKS_SUPPORT_PROCESS_H

#include <sys/types.h>

#include "runtime/wire/control_msg.h"

/* Aborts with the failure's text. */
void must(enum status status);

/* Forks a child that dies with this process. Returns 0 in the child. */
pid_t child_start(void);

/* Waits for the next child of this process to end; aborts when it failed. */
void child_await(void);

/* Runs worker_main or frontend_main in a child; returns this end of its control socket. */
int process_start(int (*run)(int control_fd), pid_t *child);

/* Waits for that message on a control socket, past others; aborts with the text of an ERROR. */
void control_expect(int control, enum control_type type);

#endif
