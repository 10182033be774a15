/* `tandem serve`: the process that starts, watches, restarts and ends all others. It reads no network byte, and owns
 * what must outlive a crash: the listening sockets and the journals. */
#ifndef TANDEM_LAUNCHER_SUPERVISOR_H
#define TANDEM_LAUNCHER_SUPERVISOR_H

#include "launcher/config.h"
#include "launcher/serve_plan.h"

/* Serves until SIGINT, SIGTERM or a SIGHUP that was not ignored at the start; returns the exit code: 0 after a signal,
 * 1 when it could not start, when a group had been given up, or when the front-end would not stay up. What failed was
 * said on standard error. */
int supervisor_run(const struct config *config, const struct serve_plan *plan);

#endif
