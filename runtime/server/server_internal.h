/* What the parts of the server share. One thread: the loop's. */
#ifndef TANDEM_SERVER_SERVER_INTERNAL_H
#define TANDEM_SERVER_SERVER_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "runtime/request/openai_response.h"
#include "runtime/server/auth.h"
#include "runtime/server/call.h"
#include "runtime/server/connection.h"
#include "runtime/server/metrics.h"
#include "runtime/server/server.h"
#include "runtime/server/tsp_server.h"
#include "runtime/server/wait_estimate.h"

#define SERVER_MAX_REPLICAS CONTROL_MAX_WORLD

struct replica {
    struct server *server;
    struct journal *journal;
    struct engine_thread *thread;
    uv_async_t wake; /* events wait */
    uint32_t live;   /* sequences of clients that run on it */
    bool up;         /* a group is up */
    bool failed;     /* given up; `cause` says why */
    char cause[512];
    bool progressed;           /* a token came since the group is up, and the supervisor was told */
    uint64_t tokens_before;    /* generated when the group came up */
    uint64_t downs;            /* groups lost so far */
    struct worker_ready ready; /* of the newest group's rank 0 */
    struct wait_estimate wait;
};

/* Sequences are known to the engines by number: an index into this table and the generation of the entry. */
struct client_entry {
    struct sequence_client *client; /* NULL: free */
    uint32_t generation;
    uint32_t next_free;
};

struct server {
    uv_loop_t loop;
    struct frontend_init init;
    struct server_limits limits;
    struct request_context *context;
    struct key_set *keys; /* NULL: anyone may ask */
    char fingerprint[32];
    int64_t created; /* seconds since 1970 */
    uint64_t random; /* state of rng_next, for default seeds */

    uv_tcp_t listener;
    uv_timer_t tick;
    struct connection *connections;
    uint32_t n_connections;
    size_t body_bytes; /* of all connections */
    char read_buffer[64 << 10];

    struct replica replicas[SERVER_MAX_REPLICAS];
    uint32_t n_replicas;
    struct client_entry *entries;
    uint32_t n_entries;
    uint32_t free_entry; /* UINT32_MAX: none */

    struct call *calls;
    struct call *ended_calls; /* until calls_reap */
    uv_prepare_t reaper;
    uint32_t n_calls;
    uint32_t n_parsing;
    struct buf payload; /* one event under construction */
    struct metrics metrics;
    struct tsp_server tsp;

    bool draining;
    bool drain_told;
    uint64_t drain_deadline_ms;
    void (*drained)(void *context);
    void (*progressed)(void *context, uint32_t replica);
    void *callback_context;
};

/* Milliseconds of the loop's clock. */
static inline uint64_t server_now_ms(struct server *server) {
    return uv_now(&server->loop);
}

/* ---- routes.c */

/* Judges a request by its head. Returns true when it may go on; else it was answered and the connection is closing. */
bool routes_check_head(struct connection *connection, const struct http_request *request);

/* Answers a whole request, now or by a call. */
void routes_handle(struct connection *connection, const struct http_request *request);

/* Answers with an error in OpenAI's shape. `keep_alive` false closes the connection behind it. */
void routes_reply_error(struct connection *connection, const struct openai_error *error, bool keep_alive);

/* ---- replicas.c */

/* The replica for a new call: up before coming up before given up, then the least loaded, then the first. */
struct replica *replicas_choose(struct server *server);
/* Refuses a request whose sequences could never be there together: to come again would not help it. */
enum status replicas_check(const struct replica *replica, const struct request *request);

enum status replicas_open(struct server *server, const int *journals);
void replicas_close(struct server *server);

/* Gives a sequence's client its number, by which its events come, and ends its use. */
uint64_t replicas_enter(struct server *server, struct sequence_client *client);
void replicas_leave(struct server *server, uint64_t user);

/* At recovery: gives a client the number its sequence had before; false when no sequence can have had it. Afterwards
 * replicas_entered is called once. */
bool replicas_enter_at(struct server *server, uint64_t user, struct sequence_client *client);
void replicas_entered(struct server *server);

#endif
