/* The server inside the front-end process: listeners, connections, API calls, replicas, metrics, all on one libuv loop.
 * Every function is for the loop's thread. frontend.c drives it from the control socket; tests and benchmarks do it
 * with ports of their own. */
#ifndef TANDEM_SERVER_SERVER_H
#define TANDEM_SERVER_SERVER_H

#include <uv.h>

#include "runtime/engine/engine_thread.h"
#include "runtime/server/limits.h"
#include "runtime/wire/control_msg.h"

struct server;

struct server_config {
    const struct frontend_init *init; /* copied */
    struct server_limits limits;
    int listener, tsp_listener;     /* bound TCP sockets of HTTP and the stream protocol; taken over */
    int once;                       /* the memfd of forgotten requests; taken over */
    const int *journals;            /* init->n_replicas memfds; taken over */
    void (*drained)(void *context); /* nothing runs any more, after server_drain */
    void (*progressed)(void *context, uint32_t replica); /* the first token since its server_group_up came */
    void *context;
};

/* Loads tokenizer and keys, opens the journals, starts the engine threads, listens. The failure text names the file. */
enum status server_create(const struct server_config *config, struct server **server);

/* Stops the engines, closes everything, frees. */
void server_destroy(struct server *server);

uv_loop_t *server_loop(struct server *server);

/* Serves until server_stop. */
void server_run(struct server *server);
void server_stop(struct server *server);

/* A replica's group is up (takes the port over; `ready` is what its rank 0 said), is gone and will come again, or was
 * given up: then what runs fails with `cause`, and so does what comes, until a group is up again. */
void server_group_up(struct server *server, uint32_t replica, struct worker_port *port,
                     const struct worker_ready *ready);
void server_group_down(struct server *server, uint32_t replica);
void server_group_failed(struct server *server, uint32_t replica, const char *cause);

/* Takes nothing new; what runs may finish within `timeout_ms` and fails then. */
void server_drain(struct server *server, uint64_t timeout_ms);

#endif
