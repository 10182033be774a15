#include "runtime/server/tsp_server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/base/hash.h"
#include "runtime/server/server_internal.h"

#define RETRY_MIN_MS 100
#define RETRY_MAX_MS 30000
#define RETRY_UNKNOWN_MS 1000

/* ---- the table */

static struct tsp_request **bucket_of(struct server *server, const uint8_t *id, uint64_t owner) {
    uint64_t seed = owner ^ once_secret(server->tsp.once); /* so that nobody can choose what collides */
    return &server->tsp.buckets[hash64(seed, id, TSP_ID_BYTES) % TSP_BUCKETS];
}

struct tsp_request *tsp_find(struct server *server, const uint8_t id[TSP_ID_BYTES], uint64_t owner) {
    struct tsp_request *request = *bucket_of(server, id, owner);
    while (request != NULL && (request->owner != owner || memcmp(request->id, id, TSP_ID_BYTES) != 0)) {
        request = request->chain;
    }
    return request;
}

void tsp_enter(struct tsp_request *request) {
    struct tsp_server *tsp = &request->server->tsp;
    struct tsp_request **bucket = bucket_of(request->server, request->id, request->owner);
    request->chain = *bucket;
    *bucket = request;
    request->next = tsp->requests;
    if (request->next != NULL) {
        request->next->previous = request;
    }
    tsp->requests = request;
    tsp->n_requests++;
}

void tsp_leave(struct tsp_request *request) {
    struct tsp_server *tsp = &request->server->tsp;
    struct tsp_request **link = bucket_of(request->server, request->id, request->owner);
    while (*link != request) {
        link = &(*link)->chain;
    }
    *link = request->chain;
    *(request->previous != NULL ? &request->previous->next : &tsp->requests) = request->next;
    if (request->next != NULL) {
        request->next->previous = request->previous;
    }
    request->previous = request->next = NULL;
    tsp->n_requests--;
}

/* ---- what sessions ask for */

static bool authorize(void *context, struct tsp_bytes key, uint64_t *owner) {
    struct server *server = context;
    *owner = hash64(once_secret(server->tsp.once), key.data, key.size);
    return server->keys == NULL || key_set_has(server->keys, key.data, key.size);
}

/* Of everything that makes it this request: a client that sends it again may grant other credit. */
static uint64_t submit_hash(const struct server *server, struct tsp_bytes fields) {
    struct byte_reader reader = tsp_reader(fields);
    uint64_t hash = once_secret(server->tsp.once);
    uint16_t tag;
    struct tsp_bytes value;
    while (tsp_next(&reader, &tag, &value)) {
        if (tag != TSP_SUBMIT_CREDIT) {
            hash = hash64(hash, &tag, sizeof tag);
            hash = hash64(hash, &value.size, sizeof value.size);
            hash = hash64(hash, value.data, value.size);
        }
    }
    return hash;
}

uint32_t tsp_retry_ms(const struct replica *replica) {
    double ms = replica->wait.ms_per_end;
    return ms == 0             ? RETRY_UNKNOWN_MS
           : ms < RETRY_MIN_MS ? RETRY_MIN_MS
           : ms < RETRY_MAX_MS ? (uint32_t)ms
                               : RETRY_MAX_MS;
}

/* A deadline that the queue alone will take is refused now, and not when it has passed. */
static bool refuse_deadline(struct server *server, struct tsp_stream *stream, const struct tsp_message *message) {
    const struct replica *replica = replicas_choose(server);
    struct engine_stats stats;
    engine_thread_stats(replica->thread, &stats);
    uint64_t wait_ms = wait_estimate_ms(&replica->wait, stats.waiting);
    uint32_t deadline_ms = message->body.submit.deadline_ms;
    if (!tsp_given(message, TSP_SUBMIT_DEADLINE_MS) || (deadline_ms > 0 && wait_ms <= deadline_ms)) {
        return false;
    }
    char text[128];
    snprintf(text, sizeof text, "The queue takes about %llu ms, the deadline is %u ms", (unsigned long long)wait_ms,
             deadline_ms);
    uint64_t over_ms = wait_ms > deadline_ms ? wait_ms - deadline_ms : 0;
    over_ms = over_ms > RETRY_MIN_MS ? over_ms : RETRY_MIN_MS;
    tsp_stream_error(stream, TSP_CODE_DEADLINE_UNMEETABLE, text,
                     over_ms < RETRY_MAX_MS ? (uint32_t)over_ms : RETRY_MAX_MS);
    return true;
}

/* Refuses a SUBMIT that is not looked at any closer. */
static void turn_away(struct server *server, struct tsp_stream *stream, enum metrics_reason reason, enum tsp_code code,
                      const char *text) {
    server->metrics.rejected[reason]++;
    tsp_stream_error(stream, code, text, tsp_retry_ms(replicas_choose(server)));
}

static void begin(struct server *server, struct tsp_stream *stream, const struct tsp_message *message, uint64_t hash) {
    struct tsp_server *tsp = &server->tsp;
    if (server->draining) {
        turn_away(server, stream, REJECTED_UNAVAILABLE, TSP_CODE_DRAINING, "The server is shutting down");
    } else if (!once_has_room(tsp->once, tsp->n_requests + 1)) {
        turn_away(server, stream, REJECTED_BUSY, TSP_CODE_QUEUE_FULL,
                  "The server remembers as many requests as it can");
    } else if (refuse_deadline(server, stream, message)) {
        server->metrics.rejected[REJECTED_BUSY]++;
    } else {
        tsp->metrics.submits++;
        tsp_request_begin(server, stream, message, hash);
    }
}

static void open_stream(void *context, struct tsp_stream *stream, const struct tsp_message *message) {
    struct server *server = context;
    bool submit = message->type == TSP_SUBMIT;
    const uint8_t *id = submit ? message->body.submit.request_id : message->body.resume.request_id;
    uint64_t owner = tsp_session_owner(stream->session);
    uint64_t hash = submit ? submit_hash(server, message->body.submit.fields) : 0;
    struct tsp_request *known = tsp_find(server, id, owner);
    if (known != NULL && submit && known->hash != hash) {
        tsp_stream_error(stream, TSP_CODE_CONFLICT, "request_id: another request has it", TSP_NO_RETRY);
    } else if (known != NULL) {
        server->tsp.metrics.resumes++;
        tsp_request_attach(known, stream, submit ? (struct tsp_bytes){0} : message->body.resume.offsets);
    } else if (once_has(server->tsp.once, id, owner)) {
        tsp_stream_error(stream, TSP_CODE_GONE, "This request has ended and is forgotten", TSP_NO_RETRY);
    } else if (submit) {
        begin(server, stream, message, hash);
    } else {
        tsp_stream_error(stream, TSP_CODE_NOT_FOUND, "No request of this id and key", TSP_NO_RETRY);
    }
}

static bool cancel_id(void *context, uint64_t owner, const uint8_t id[TSP_ID_BYTES], struct tsp_accepted *reply) {
    struct tsp_request *request = tsp_find(context, id, owner);
    if (request == NULL) {
        return false;
    }
    reply->prompt_tokens = request->prompt_tokens;
    reply->choices = request->n_choices;
    tsp_request_cancel(request);
    return true;
}

static void cancel(void *context, struct tsp_stream *stream) {
    (void)context;
    tsp_request_cancel(stream->request);
}

static void credit(void *context, struct tsp_stream *stream) {
    (void)context;
    tsp_request_deliver(stream->request);
}

/* Before the end it says nothing: what it confirms is the whole. */
static void ack(void *context, struct tsp_stream *stream) {
    (void)context;
    struct tsp_request *request = stream->request;
    if (request->state == TSP_ENDED) {
        tsp_request_drop(request);
        tsp_stream_close(stream);
    }
}

/* The stream that holds it may be another connection's, also one whose loss was not noticed yet. */
static void ack_id(void *context, uint64_t owner, const uint8_t id[TSP_ID_BYTES]) {
    struct tsp_request *request = tsp_find(context, id, owner);
    if (request == NULL) {
        return;
    }
    struct tsp_stream *stream = request->stream;
    bool ended = request->state == TSP_ENDED;
    tsp_request_drop(request);
    if (stream != NULL && ended) {
        tsp_stream_close(stream);
    } else if (stream != NULL) {
        tsp_stream_error(stream, TSP_CODE_GONE, "Its client wants nothing more of this request", TSP_NO_RETRY);
    }
}

static void lost(void *context, struct tsp_stream *stream) {
    struct server *server = context;
    struct tsp_request *request = stream->request;
    server->metrics.disconnected += request->state != TSP_ENDED;
    tsp_request_detach(request);
}

static void status(void *context, struct tsp_status_reply *reply) {
    struct server *server = context;
    double used = 0;
    double total = 0;
    *reply = (struct tsp_status_reply){.queue_max = server->init.queue_max * server->n_replicas,
                                       .replicas = server->n_replicas,
                                       .draining = server->draining,
                                       .requests = server->tsp.n_requests};
    for (uint32_t i = 0; i < server->n_replicas; i++) {
        struct engine_stats stats;
        engine_thread_stats(server->replicas[i].thread, &stats);
        reply->running += stats.running;
        reply->waiting += stats.waiting;
        reply->replicas_up += server->replicas[i].up;
        used += stats.blocks_used;
        total += stats.blocks_total;
    }
    reply->kv_used = total > 0 ? (float)(used / total) : 0;
}

const struct tsp_host tsp_server_host = {
    .authorize = authorize,
    .open = open_stream,
    .cancel_id = cancel_id,
    .cancel = cancel,
    .credit = credit,
    .ack = ack,
    .ack_id = ack_id,
    .lost = lost,
    .status = status,
};

void tsp_deliver(struct tsp_session *session) {
    for (bool more = true; more && tsp_session_has_room(session);) {
        uint32_t turn = 0;
        struct tsp_stream *stream;
        more = false;
        while (tsp_session_has_room(session) && (stream = tsp_session_next_stream(session, &turn)) != NULL) {
            more = tsp_request_deliver_some(stream->request) || more;
        }
    }
}

/* ---- time */

static void expire(struct server *server, uint64_t now_ms) {
    for (struct tsp_request *request = server->tsp.requests, *next; request != NULL; request = next) {
        next = request->next;
        if (request->until_ms == 0 || now_ms < request->until_ms) {
            continue;
        }
        struct tsp_stream *stream = request->stream;
        server->tsp.metrics.expired++;
        tsp_request_drop(request);
        if (stream != NULL) { /* it never acknowledged the end */
            tsp_stream_close(stream);
        }
    }
}

static void note_waits(struct server *server, uint64_t now_ms) {
    for (uint32_t i = 0; i < server->n_replicas; i++) {
        struct engine_stats stats;
        uint64_t ends = 0;
        engine_thread_stats(server->replicas[i].thread, &stats);
        for (size_t k = 0; k < sizeof stats.finished / sizeof stats.finished[0]; k++) {
            ends += stats.finished[k];
        }
        wait_estimate_note(&server->replicas[i].wait, ends, stats.waiting, now_ms);
    }
}

void tsp_tick(struct server *server, uint64_t now_ms) {
    expire(server, now_ms);
    once_expire(server->tsp.once, clock_now_ns());
    note_waits(server, now_ms);
    tsp_connections_tick(server, now_ms);
}

/* ---- drain */

static void announce(struct tsp_session *session, uint64_t deadline_ms) {
    tsp_session_drain(session, deadline_ms < UINT32_MAX ? (uint32_t)deadline_ms : UINT32_MAX);
}

void tsp_drain(struct server *server, uint64_t deadline_ms) {
    tsp_each_session(server, announce, deadline_ms);
}

static bool is_open(const struct tsp_request *request) {
    return request->stream != NULL && request->state != TSP_ENDED;
}

uint32_t tsp_attached(const struct server *server) {
    uint32_t n = 0;
    for (const struct tsp_request *request = server->tsp.requests; request != NULL; request = request->next) {
        n += is_open(request);
    }
    return n;
}

static void say_bye(struct tsp_session *session, uint64_t unused) {
    (void)unused;
    tsp_session_bye(session, TSP_CODE_DRAINING, "The server is shutting down");
}

void tsp_drain_end(struct server *server) {
    for (struct tsp_request *request = server->tsp.requests, *next; request != NULL; request = next) {
        next = request->next;
        if (is_open(request)) {
            struct tsp_stream *stream = request->stream;
            tsp_request_drop(request);
            tsp_stream_error(stream, TSP_CODE_DRAINING, "The server is shutting down", RETRY_UNKNOWN_MS);
        }
    }
    tsp_each_session(server, say_bye, 0);
}

/* ---- life */

enum status tsp_server_open(struct server *server, int once_fd) {
    enum status result = once_open(once_fd, server->init.recover == 0, &server->tsp.once);
    close(once_fd);
    return result;
}

void tsp_drop_all(struct server *server) {
    while (server->tsp.requests != NULL) {
        tsp_request_drop(server->tsp.requests);
    }
}

void tsp_server_close(struct server *server) {
    for (struct tsp_request *request = server->tsp.leaving, *next; request != NULL; request = next) {
        next = request->next;
        tsp_request_free(request);
    }
    output_delta_free(&server->tsp.delta);
    buf_free(&server->tsp.logprobs);
    once_close(server->tsp.once);
}
