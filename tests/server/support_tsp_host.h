/* A host that answers a session of the stream protocol by simple rules, for its unit tests and its fuzz target: a
 * SUBMIT or RESUME is accepted and given as many ids as it has credit, in frames of up to eight; an id that begins with
 * 0xEE is refused; CANCEL is answered with DONE. It holds the session to what tsp_session.h promises. */
#ifndef TANDEM_TESTS_SERVER_SUPPORT_TSP_HOST_H
#define TANDEM_TESTS_SERVER_SUPPORT_TSP_HOST_H

#include <string.h>

#include "runtime/base/check.h"
#include "runtime/server/tsp_session.h"

#define HOST_MAX_IDS 64 /* an answer's length */

struct scripted_host {
    uint32_t opened, closed, lost, acks, acked_ids, cancels, credits;
    uint8_t acked_id; /* first byte of the last one */
    struct {
        bool open;
        uint64_t sent;
    } streams[256]; /* by number, for those below */
};

static inline void scripted_host_close(struct scripted_host *host, struct tsp_stream *stream) {
    CHECK(stream->request == host, "a stream without its request");
    host->closed++;
    host->streams[stream->id % 256].open = false;
}

static inline bool scripted_host_authorize(void *context, struct tsp_bytes key, uint64_t *owner) {
    (void)context;
    *owner = key.size;
    return key.size == 0 || (key.size == 4 && memcmp(key.data, "good", 4) == 0);
}

static inline void scripted_host_end(struct tsp_stream *stream, enum tsp_finish finish, uint64_t tokens) {
    struct tsp_message done = {.type = TSP_DONE,
                               .flags = TSP_END,
                               .given = 1u << TSP_DONE_CHOICE | 1u << TSP_DONE_FINISH | 1u << TSP_DONE_TOKENS |
                                        1u << TSP_DONE_CRC};
    done.body.done.finish = (uint8_t)finish;
    done.body.done.tokens = tokens;
    tsp_stream_send(stream, &done);
}

static inline void scripted_host_deliver(struct scripted_host *host, struct tsp_stream *stream) {
    static const uint8_t ids[4 * 8];
    uint64_t *sent = &host->streams[stream->id % 256].sent;
    while (*sent < HOST_MAX_IDS && stream->credit > 0 && tsp_session_has_room(stream->session)) {
        uint64_t n = stream->credit < 8 ? stream->credit : 8;
        struct tsp_message tokens = {.type = TSP_TOKENS,
                                     .given = 1u << TSP_TOKENS_CHOICE | 1u << TSP_TOKENS_OFFSET | 1u << TSP_TOKENS_IDS};
        tokens.body.tokens.offset = *sent;
        tokens.body.tokens.ids = (struct tsp_bytes){.data = ids, .size = (uint32_t)n * 4};
        tsp_stream_send(stream, &tokens);
        *sent += n;
        stream->credit -= stream->credit != TSP_NO_CREDIT_LIMIT ? n : 0;
        if (*sent >= HOST_MAX_IDS) {
            scripted_host_end(stream, TSP_FINISH_LENGTH, *sent);
        }
    }
}

static inline void scripted_host_open(void *context, struct tsp_stream *stream, const struct tsp_message *message) {
    struct scripted_host *host = context;
    bool submit = message->type == TSP_SUBMIT;
    const uint8_t *id = submit ? message->body.submit.request_id : message->body.resume.request_id;
    CHECK(submit || message->type == TSP_RESUME, "type %d opens no stream", message->type);
    CHECK(stream->id == message->stream && stream->id > 0, "the stream's number");
    CHECK(stream->credit == TSP_NO_CREDIT_LIMIT || stream->credit <= TSP_MAX_CREDIT, "credit");
    if (id[0] == 0xEE) {
        tsp_stream_error(stream, TSP_CODE_QUEUE_FULL, "full", 1000);
        return;
    }
    host->opened++;
    host->streams[stream->id % 256].open = true;
    host->streams[stream->id % 256].sent = 0;
    stream->request = host;
    struct tsp_message accepted = {.type = TSP_ACCEPTED,
                                   .given = 1u << TSP_ACCEPTED_REQUEST_ID | 1u << TSP_ACCEPTED_PROMPT_TOKENS |
                                            1u << TSP_ACCEPTED_CHOICES};
    memcpy(accepted.body.accepted.request_id, id, TSP_ID_BYTES);
    accepted.body.accepted.choices = 1;
    tsp_stream_send(stream, &accepted);
    scripted_host_deliver(host, stream);
}

static inline bool scripted_host_cancel_id(void *context, uint64_t owner, const uint8_t id[TSP_ID_BYTES],
                                           struct tsp_accepted *reply) {
    (void)context;
    (void)owner;
    reply->choices = 1;
    return id[0] != 0xEE;
}

static inline void scripted_host_cancel(void *context, struct tsp_stream *stream) {
    struct scripted_host *host = context;
    host->cancels++;
    scripted_host_end(stream, TSP_FINISH_CANCELLED, host->streams[stream->id % 256].sent);
    scripted_host_close(host, stream);
    tsp_stream_close(stream);
}

static inline void scripted_host_credit(void *context, struct tsp_stream *stream) {
    struct scripted_host *host = context;
    host->credits++;
    scripted_host_deliver(host, stream);
}

static inline void scripted_host_ack(void *context, struct tsp_stream *stream) {
    struct scripted_host *host = context;
    if (host->streams[stream->id % 256].sent >= HOST_MAX_IDS) {
        host->acks++;
        scripted_host_close(host, stream);
        tsp_stream_close(stream);
    }
}

static inline void scripted_host_ack_id(void *context, uint64_t owner, const uint8_t id[TSP_ID_BYTES]) {
    struct scripted_host *host = context;
    CHECK(owner == 0 || owner == 4, "an owner that did not say HELLO");
    host->acked_ids++;
    host->acked_id = id[0];
}

static inline void scripted_host_lost(void *context, struct tsp_stream *stream) {
    struct scripted_host *host = context;
    host->lost++;
    scripted_host_close(host, stream);
}

static inline void scripted_host_status(void *context, struct tsp_status_reply *reply) {
    struct scripted_host *host = context;
    reply->running = host->opened - host->closed;
}

static const struct tsp_host scripted_host_table = {
    .authorize = scripted_host_authorize,
    .open = scripted_host_open,
    .cancel_id = scripted_host_cancel_id,
    .cancel = scripted_host_cancel,
    .credit = scripted_host_credit,
    .ack = scripted_host_ack,
    .ack_id = scripted_host_ack_id,
    .lost = scripted_host_lost,
    .status = scripted_host_status,
};

static inline struct tsp_session_config scripted_host_config(struct scripted_host *host) {
    return (struct tsp_session_config){
        .host = &scripted_host_table,
        .context = host,
        .welcome = {.version = TSP_VERSION,
                    .max_frame = 8192,
                    .max_streams = 4,
                    .resume_window_ms = 1000,
                    .ping_ms = 100,
                    .life = 7,
                    .name = {.data = (const uint8_t *)"host", .size = 4},
                    .model = {.data = (const uint8_t *)"none", .size = 4}},
        .handshake_ms = 50,
        .send_buffer = 1u << 20,
    };
}

#endif
