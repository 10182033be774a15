/* One connection of the stream protocol (runtime/wire/PROTOCOL.md) without its socket: bytes in, bytes out, time as an
 * argument. It knows framing, handshake, streams, credit and liveness; what a request is, is its host's business, whom
 * it calls and who answers through the functions on streams.
 *
 * Memory: at most one incoming frame, a small struct per stream that was not acknowledged, and `out`, which grows by
 * what the host writes (it asks tsp_session_has_room first) and by answers to the client's own frames (the shell stops
 * reading while there is no room). */
#ifndef TANDEM_SERVER_TSP_SESSION_H
#define TANDEM_SERVER_TSP_SESSION_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/buf.h"
#include "runtime/wire/tsp.h"

struct tsp_session;

#define TSP_NO_CREDIT_LIMIT UINT64_MAX
#define TSP_NO_RETRY UINT32_MAX /* no retry helps */

/* A request on a connection. Freed by tsp_stream_close and tsp_stream_error, or with its session. */
struct tsp_stream {
    struct tsp_session *session;
    uint32_t id;
    void *request;   /* the host's; it sets it when it takes the stream */
    uint64_t credit; /* ids that may still be sent; TSP_NO_CREDIT_LIMIT */
};

/* The server as a session sees it. Each function may answer at once, close streams, and free nothing else. */
struct tsp_host {
    /* Whether the key may come in, and the number by which its requests are known. */
    bool (*authorize)(void *context, struct tsp_bytes key, uint64_t *owner);
    /* A new stream with a SUBMIT or RESUME; its credit is set. The host answers it or keeps it. */
    void (*open)(void *context, struct tsp_stream *stream, const struct tsp_message *message);
    /* CANCEL of an id from no stream of its own. False when there is no such request; else fills in the reply. */
    bool (*cancel_id)(void *context, uint64_t owner, const uint8_t id[TSP_ID_BYTES], struct tsp_accepted *reply);
    void (*cancel)(void *context, struct tsp_stream *stream);
    void (*credit)(void *context, struct tsp_stream *stream); /* it grew */
    void (*ack)(void *context, struct tsp_stream *stream);
    /* ACK of an id: its client wants nothing more of the request, if there is one. */
    void (*ack_id)(void *context, uint64_t owner, const uint8_t id[TSP_ID_BYTES]);
    void (*lost)(void *context, struct tsp_stream *stream); /* its session is being destroyed */
    void (*status)(void *context, struct tsp_status_reply *reply);
};

struct tsp_session_config {
    const struct tsp_host *host;
    void *context;
    struct tsp_welcome welcome; /* what clients are told; texts are borrowed */
    uint32_t handshake_ms;
    size_t send_buffer; /* bytes in `out` and on their way above which there is no room */
};

struct tsp_session *tsp_session_create(const struct tsp_session_config *config, uint64_t now_ms);
void tsp_session_destroy(struct tsp_session *session);

/* Takes what was received. */
void tsp_session_feed(struct tsp_session *session, const void *bytes, size_t size, uint64_t now_ms);

/* Deadlines and PING; to be called several times a second. */
void tsp_session_tick(struct tsp_session *session, uint64_t now_ms);

/* What is to be sent; the shell consumes it. */
struct buf *tsp_session_out(struct tsp_session *session);

/* From the shell: bytes that were taken from `out` and are still on their way; a peer that takes them lives. */
void tsp_session_sending(struct tsp_session *session, size_t bytes, uint64_t now_ms);

/* Nothing more is read; once `out` is sent the connection is to be closed. */
bool tsp_session_over(const struct tsp_session *session);

/* Whether the client has been welcomed. */
bool tsp_session_is_open(const struct tsp_session *session);

uint64_t tsp_session_owner(const struct tsp_session *session);
uint32_t tsp_session_streams(const struct tsp_session *session);
/* Bytes of an incomplete frame. */
size_t tsp_session_received(const struct tsp_session *session);

/* ---- for the host */

bool tsp_session_has_room(const struct tsp_session *session);

/* The streams in turn, so that each gets its share of the room: the first call after `turn` was 0 begins where the last
 * round ended; NULL when every one was there. */
struct tsp_stream *tsp_session_next_stream(struct tsp_session *session, uint32_t *turn);

/* Sends a message on the stream; its member `stream` is filled in. */
void tsp_stream_send(struct tsp_stream *stream, struct tsp_message *message);

/* ERROR with END, and the stream is closed. `retry_after_ms` may be TSP_NO_RETRY. `text` may begin with the path
 * of a field, which becomes `param`. */
void tsp_stream_error(struct tsp_stream *stream, enum tsp_code code, const char *text, uint32_t retry_after_ms);

/* As tsp_stream_error, but the stream stays until its ACK. */
void tsp_stream_fail(struct tsp_stream *stream, enum tsp_code code, const char *text, uint32_t retry_after_ms);

void tsp_stream_close(struct tsp_stream *stream);

/* Announces the end of the server. */
void tsp_session_drain(struct tsp_session *session, uint32_t deadline_ms);

/* Ends the connection: ERROR on stream 0, or BYE when nothing is wrong with the peer. */
void tsp_session_end(struct tsp_session *session, enum tsp_code code, const char *text);
void tsp_session_bye(struct tsp_session *session, enum tsp_code code, const char *text);

#endif
