/* `tandem generate`: the workers of one group and an engine in this process, no listener. Lines come in any number;
 * a bounded window of them runs at once, and the answers go out in input order. */
#ifndef TANDEM_LAUNCHER_OFFLINE_H
#define TANDEM_LAUNCHER_OFFLINE_H

#include "launcher/config.h"
#include "launcher/serve_plan.h"

/* Answers standard input's lines on standard output; returns the exit code: 0 when every line was answered. */
int offline_run(const struct config *config, const struct serve_plan *plan);

#endif
