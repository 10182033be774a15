/* The engine's only view of the workers of its group: send a step, take events. The real port (port_link.c) speaks
 * worker_msg over SOCK_SEQPACKET links with the bodies in a step ring; tests and the simulator bring their own. */
#ifndef TANDEM_ENGINE_WORKER_PORT_H
#define TANDEM_ENGINE_WORKER_PORT_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"
#include "runtime/base/step.h"
#include "runtime/wire/step_body.h"

enum port_event_type {
    PORT_STEP_DONE, /* rank 0 has finished `step_id`; results[0..n_results) are its sampled rows' */
    PORT_LOST,      /* a link closed or broke its protocol: the group is gone; the port is dead from here on */
};

struct port_event {
    enum port_event_type type;
    uint64_t step_id;
    uint32_t device_us;
    uint32_t n_results;
    const struct step_result *results; /* valid until the next call on the port */
};

struct worker_port;

struct worker_port_ops {
    /* Memory for the next body (step_body_max_bytes). */
    void *(*reserve)(struct worker_port *port);
    /* Commits the body for all ranks; returns its step id (1, 2, ... per port). Never blocks; a rank that cannot be
     * woken shows as PORT_LOST later. */
    uint64_t (*submit)(struct worker_port *port, size_t bytes);
    /* Takes the next event; STATUS_BUSY when there is none now. */
    enum status (*poll)(struct worker_port *port, struct port_event *event);
    /* Descriptors to poll(2) for POLLIN before `poll` can have more, as things stand now; returns their number
     * (<= world). */
    uint32_t (*descriptors)(struct worker_port *port, int *fds);
    /* Tells every rank that no link will do for this group any more, and why: the workers end, and are started again
     * by who started them. Without it they wait for their next link after a close. */
    void (*give_up)(struct worker_port *port, const char *reason);
    void (*close)(struct worker_port *port);
};

struct worker_port {
    const struct worker_port_ops *ops;
    uint32_t epoch;
    uint32_t world;
};

/* The real port over `world` link sockets and a step ring (both taken over, also on failure). */
enum status port_link_open(const int *links, uint32_t world, int ring_fd, uint32_t epoch,
                           const struct step_limits *limits, size_t max_body_bytes, struct worker_port **port);

#endif
