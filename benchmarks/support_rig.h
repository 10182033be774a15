/* A real front-end process whose tokens are made up, for benchmarks of the host's path; this process is the supervisor.
 * It serves the embedded model's tokenizer and chat template over HTTP and the stream protocol, without keys. */
#ifndef TANDEM_BENCHMARKS_SUPPORT_RIG_H
#define TANDEM_BENCHMARKS_SUPPORT_RIG_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define RIG_STREAMS 1024 /* at once */
#define RIG_MAX_LEN 65536
#define RIG_PERIOD_US 20000 /* of a paced step */

struct rig {
    pid_t frontend, worker;
    int frontend_control, worker_control;
    uint16_t http_port, tcp_port;
};

/* The worker is a real one whose null backend answers every step at once; so the engine runs ahead of the loop, and
 * pending tokens of a stream share a write. `paced`: a step every RIG_PERIOD_US, as cards would do; every token is a
 * write of its own. Ids are printable ASCII in this vocabulary, so that each is an event of its own. */
void rig_start(struct rig *rig, bool paced);
void rig_stop(struct rig *rig);

#endif
