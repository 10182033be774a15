/* Child processes. A child is this very executable (/proc/self/exe, so that an upgrade on disk does not mix versions)
 * with one descriptor of ours, its end of a control socket, and standard streams: input from /dev/null, output and
 * errors to our standard error. It ignores INT, TERM and HUP, which a terminal sends to all, and is killed by the
 * kernel when the thread that started it ends; both outlast the exec. */
#ifndef TANDEM_LAUNCHER_SPAWN_H
#define TANDEM_LAUNCHER_SPAWN_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "runtime/base/status.h"

#define SPAWN_CHILD_FD 3 /* the control socket's number in the child */

struct child {
    pid_t pid;      /* 0: none */
    int control_fd; /* our end, non-blocking, close-on-exec; -1: none */
};

/* Keeps descriptors that we were started with and know nothing of from our children. To be called first. */
void spawn_seal(void);

/* Starts the program with these arguments (a NULL-terminated list that begins with its name). */
enum status spawn_child(const char *const *arguments, struct child *child);

/* Reaps the child if it has ended: returns 1 and writes how it ended ("was killed by signal 9 (Killed)", "exited with
 * code 1") to `how`; 0 while it lives. Clears child->pid. */
int spawn_reap(struct child *child, char *how, size_t size);

/* Sends SIGKILL; fine when there is none. */
void spawn_kill(const struct child *child);

/* Closes our end of the control socket. */
void spawn_close(struct child *child);

/* Blocks SIGINT, SIGTERM, SIGHUP and SIGCHLD in the calling thread and returns a signalfd for them (non-blocking,
 * close-on-exec). A SIGHUP that is ignored, as nohup(1) leaves it, stays so. Call before threads start. Children get an
 * empty mask again. */
enum status spawn_signals(int *fd);

#endif
