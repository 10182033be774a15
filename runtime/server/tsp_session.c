#include "runtime/server/tsp_session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/request/openai.h"

#define KEPT_CAPACITY (64u << 10) /* a longer buffer is given back when it is empty */

enum session_state { SESSION_MAGIC, SESSION_HELLO, SESSION_OPEN, SESSION_OVER };

struct tsp_session {
    struct tsp_session_config config;
    enum session_state state;
    uint64_t owner;
    struct buf in, out;
    size_t sending;    /* taken from `out`, not taken by the peer */
    uint64_t since_ms; /* when the connection began */
    uint64_t heard_ms; /* when the peer last sent or took a byte */
    bool pinged;       /* since then, at pinged_ms */
    uint64_t pinged_ms;
    uint32_t last_id;            /* of the streams so far */
    uint32_t n, n_room;          /* of streams[] */
    uint32_t turn;               /* where the next round over the streams begins */
    struct tsp_stream **streams; /* ascending by id */
};

/* ---- life */

struct tsp_session *tsp_session_create(const struct tsp_session_config *config, uint64_t now_ms) {
    struct tsp_session *session = xcalloc(1, sizeof *session);
    session->config = *config;
    session->since_ms = now_ms;
    session->heard_ms = now_ms;
    return session;
}

void tsp_session_destroy(struct tsp_session *session) {
    for (uint32_t i = 0; i < session->n; i++) {
        if (session->streams[i]->request != NULL) {
            session->config.host->lost(session->config.context, session->streams[i]);
        }
        free(session->streams[i]);
    }
    free(session->streams);
    buf_free(&session->in);
    buf_free(&session->out);
    free(session);
}

struct buf *tsp_session_out(struct tsp_session *session) {
    return &session->out;
}

bool tsp_session_over(const struct tsp_session *session) {
    return session->state == SESSION_OVER;
}

bool tsp_session_is_open(const struct tsp_session *session) {
    return session->state == SESSION_OPEN;
}

uint64_t tsp_session_owner(const struct tsp_session *session) {
    return session->owner;
}

uint32_t tsp_session_streams(const struct tsp_session *session) {
    return session->n;
}

size_t tsp_session_received(const struct tsp_session *session) {
    return session->in.size;
}

bool tsp_session_has_room(const struct tsp_session *session) {
    return session->state == SESSION_OPEN && session->out.size + session->sending < session->config.send_buffer;
}

/* ---- sending */

static void send_message(struct tsp_session *session, const struct tsp_message *message) {
    struct buf *out = &session->out;
    for (size_t room = 512;; room *= 2) {
        struct tsp_writer writer = tsp_writer(buf_reserve(out, room), room);
        tsp_encode(&writer, message);
        if (!writer.out.failed) {
            out->size += writer.out.size;
            return;
        }
        CHECK(room < 2 * (size_t)TSP_MAX_PAYLOAD, "a message of more than %u bytes", TSP_MAX_PAYLOAD);
    }
}

static struct tsp_bytes text_bytes(const char *text, size_t size) {
    return (struct tsp_bytes){.data = (const uint8_t *)text, .size = (uint32_t)size};
}

static void send_error(struct tsp_session *session, uint32_t stream, enum tsp_code code, const char *text,
                       uint32_t retry_after_ms) {
    struct tsp_message message = {.type = TSP_ERROR, .flags = TSP_END, .stream = stream};
    message.body.error.code = code;
    message.body.error.message = text_bytes(text, strlen(text));
    message.given = 1u << TSP_ERROR_CODE | 1u << TSP_ERROR_MESSAGE;
    if (retry_after_ms != TSP_NO_RETRY) {
        message.body.error.retry_after_ms = retry_after_ms;
        message.given |= 1u << TSP_ERROR_RETRY_AFTER_MS;
    }
    size_t path = code >= TSP_CODE_INVALID && code < TSP_CODE_QUEUE_FULL ? openai_path_length(text) : 0;
    if (path > 0) {
        message.body.error.param = text_bytes(text, path);
        message.given |= 1u << TSP_ERROR_PARAM;
    }
    send_message(session, &message);
}

void tsp_session_end(struct tsp_session *session, enum tsp_code code, const char *text) {
    if (session->state != SESSION_OVER) {
        send_error(session, 0, code, text, code == TSP_CODE_TOO_MANY ? 1000 : TSP_NO_RETRY);
        session->state = SESSION_OVER;
    }
}

void tsp_session_bye(struct tsp_session *session, enum tsp_code code, const char *text) {
    if (session->state != SESSION_OPEN) {
        return;
    }
    struct tsp_message message = {.type = TSP_BYE, .given = 1u << TSP_BYE_CODE | 1u << TSP_BYE_MESSAGE};
    message.body.bye.code = code;
    message.body.bye.message = text_bytes(text, strlen(text));
    send_message(session, &message);
    session->state = SESSION_OVER;
}

void tsp_session_drain(struct tsp_session *session, uint32_t deadline_ms) {
    if (session->state == SESSION_OPEN) {
        struct tsp_message message = {.type = TSP_DRAIN, .given = 1u << TSP_DRAIN_DEADLINE_MS};
        message.body.drain.deadline_ms = deadline_ms;
        send_message(session, &message);
    }
}

/* ---- streams */

/* Where the first stream with an id of at least `id` is. */
static uint32_t stream_place(const struct tsp_session *session, uint32_t id) {
    uint32_t low = 0;
    uint32_t high = session->n;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (session->streams[middle]->id < id) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static struct tsp_stream *find_stream(const struct tsp_session *session, uint32_t id) {
    uint32_t place = stream_place(session, id);
    return place < session->n && session->streams[place]->id == id ? session->streams[place] : NULL;
}

static struct tsp_stream *add_stream(struct tsp_session *session, uint32_t id, uint64_t credit) {
    struct tsp_stream *stream = xcalloc(1, sizeof *stream);
    stream->session = session;
    stream->id = id;
    stream->credit = credit;
    if (session->n == session->n_room) {
        session->n_room = session->n_room > 0 ? session->n_room * 2 : 8;
        session->streams = xrealloc(session->streams, session->n_room, sizeof session->streams[0]);
    }
    session->streams[session->n++] = stream; /* ids ascend */
    return stream;
}

void tsp_stream_close(struct tsp_stream *stream) {
    struct tsp_session *session = stream->session;
    uint32_t place = stream_place(session, stream->id);
    CHECK(place < session->n && session->streams[place] == stream, "a stream is closed twice");
    session->n--;
    memmove(session->streams + place, session->streams + place + 1, (session->n - place) * sizeof session->streams[0]);
    session->turn -= session->turn > place;
    free(stream);
}

struct tsp_stream *tsp_session_next_stream(struct tsp_session *session, uint32_t *turn) {
    if (*turn >= session->n) {
        return NULL;
    }
    ++*turn;
    session->turn = session->turn < session->n ? session->turn : 0;
    return session->streams[session->turn++];
}

void tsp_stream_send(struct tsp_stream *stream, struct tsp_message *message) {
    message->stream = stream->id;
    send_message(stream->session, message);
}

void tsp_stream_fail(struct tsp_stream *stream, enum tsp_code code, const char *text, uint32_t retry_after_ms) {
    send_error(stream->session, stream->id, code, text, retry_after_ms);
}

void tsp_stream_error(struct tsp_stream *stream, enum tsp_code code, const char *text, uint32_t retry_after_ms) {
    tsp_stream_fail(stream, code, text, retry_after_ms);
    tsp_stream_close(stream);
}

/* ---- what the client says */

/* A new stream's number must be above the ones before. */
static bool take_id(struct tsp_session *session, uint32_t id) {
    if (id <= session->last_id) {
        tsp_session_end(session, TSP_CODE_BAD_STREAM, "a new stream's number must be above all earlier ones");
        return false;
    }
    session->last_id = id;
    return true;
}

static void on_open(struct tsp_session *session, const struct tsp_message *message) {
    if (!take_id(session, message->stream)) {
        return;
    }
    if (session->n >= session->config.welcome.max_streams) {
        send_error(session, message->stream, TSP_CODE_TOO_MANY, "Too many streams on this connection; acknowledge some",
                   1000);
        return;
    }
    bool submit = message->type == TSP_SUBMIT;
    uint64_t credit = submit ? message->body.submit.credit : message->body.resume.credit;
    if (!tsp_given(message, submit ? (unsigned)TSP_SUBMIT_CREDIT : (unsigned)TSP_RESUME_CREDIT)) {
        credit = TSP_NO_CREDIT_LIMIT;
    } else if (credit > TSP_MAX_CREDIT) {
        tsp_session_end(session, TSP_CODE_CREDIT, "more than 2^31 - 1 tokens of credit");
        return;
    }
    session->config.host->open(session->config.context, add_stream(session, message->stream, credit), message);
}

static void on_cancel_id(struct tsp_session *session, const struct tsp_message *message) {
    struct tsp_message reply = {.type = TSP_ACCEPTED, .flags = TSP_END, .stream = message->stream};
    const uint8_t *id = message->body.cancel.request_id;
    if (!take_id(session, message->stream)) {
        return;
    }
    if (!session->config.host->cancel_id(session->config.context, session->owner, id, &reply.body.accepted)) {
        send_error(session, message->stream, TSP_CODE_NOT_FOUND, "No request of this id and key", TSP_NO_RETRY);
        return;
    }
    memcpy(reply.body.accepted.request_id, id, TSP_ID_BYTES);
    reply.body.accepted.known = 1;
    reply.given = 1u << TSP_ACCEPTED_REQUEST_ID | 1u << TSP_ACCEPTED_PROMPT_TOKENS | 1u << TSP_ACCEPTED_CHOICES |
                  1u << TSP_ACCEPTED_KNOWN;
    send_message(session, &reply);
}

static void on_ack_id(struct tsp_session *session, const struct tsp_message *message) {
    session->config.host->ack_id(session->config.context, session->owner, message->body.ack.request_id);
}

static void on_credit(struct tsp_session *session, struct tsp_stream *stream, uint32_t tokens) {
    if (stream->credit == TSP_NO_CREDIT_LIMIT) {
        return;
    }
    if (tokens > TSP_MAX_CREDIT - stream->credit) {
        tsp_session_end(session, TSP_CODE_CREDIT, "more than 2^31 - 1 tokens of credit");
        return;
    }
    stream->credit += tokens;
    session->config.host->credit(session->config.context, stream);
}

/* CREDIT, ACK and CANCEL of a stream; those of one that has ended are late and mean nothing. */
static void on_stream(struct tsp_session *session, const struct tsp_message *message) {
    const struct tsp_host *host = session->config.host;
    struct tsp_stream *stream = find_stream(session, message->stream);
    if (stream == NULL && message->stream > session->last_id) {
        tsp_session_end(session, TSP_CODE_BAD_STREAM,
                        "the first frame of a stream is SUBMIT, RESUME or CANCEL of an id");
    } else if (stream != NULL && message->type == TSP_CREDIT) {
        on_credit(session, stream, message->body.credit.tokens);
    } else if (stream != NULL && message->type == TSP_ACK) {
        host->ack(session->config.context, stream);
    } else if (stream != NULL) {
        host->cancel(session->config.context, stream);
    }
}

static void on_status(struct tsp_session *session) {
    struct tsp_message message = {.type = TSP_STATUS_REPLY};
    const struct tsp_fields *fields = tsp_fields_of(TSP_STATUS_REPLY);
    for (size_t i = 0; i < fields->n; i++) {
        message.given |= 1ull << fields->table[i].tag;
    }
    session->config.host->status(session->config.context, &message.body.status);
    send_message(session, &message);
}

static void on_ping(struct tsp_session *session, const struct tsp_message *message) {
    struct tsp_message pong = *message;
    pong.type = TSP_PONG;
    pong.flags = 0;
    send_message(session, &pong);
}

static void on_message(struct tsp_session *session, const struct tsp_message *message) {
    switch (message->type) {
    case TSP_SUBMIT:
    case TSP_RESUME: on_open(session, message); break;
    case TSP_CREDIT: on_stream(session, message); break;
    case TSP_ACK:
        if (tsp_given(message, TSP_ACK_REQUEST_ID)) {
            on_ack_id(session, message);
        } else {
            on_stream(session, message);
        }
        break;
    case TSP_CANCEL:
        if (tsp_given(message, TSP_CANCEL_REQUEST_ID)) {
            on_cancel_id(session, message);
        } else {
            on_stream(session, message);
        }
        break;
    case TSP_STATUS: on_status(session); break;
    case TSP_PING: on_ping(session, message); break;
    case TSP_PONG: break; /* that it came is what counts */
    case TSP_BYE: session->state = SESSION_OVER; break;
    default: tsp_session_end(session, TSP_CODE_UNKNOWN_TYPE, "a client does not send frames of this type"); break;
    }
}

/* ---- handshake */

static void welcome(struct tsp_session *session, uint32_t version) {
    struct tsp_message message = {.type = TSP_WELCOME, .body.welcome = session->config.welcome};
    const struct tsp_fields *fields = tsp_fields_of(TSP_WELCOME);
    for (size_t i = 0; i < fields->n; i++) {
        message.given |= 1ull << fields->table[i].tag;
    }
    message.body.welcome.version = version < TSP_VERSION ? version : TSP_VERSION;
    session->state = SESSION_OPEN;
    send_message(session, &message);
}

static void on_hello(struct tsp_session *session, const struct tsp_message *message) {
    if (message->type != TSP_HELLO) {
        tsp_session_end(session, TSP_CODE_BAD_MESSAGE, "the first frame must be HELLO");
    } else if (message->body.hello.version >> 16 != TSP_VERSION >> 16) {
        tsp_session_end(session, TSP_CODE_VERSION, "this server speaks version 1 of the protocol");
    } else if (!session->config.host->authorize(session->config.context, message->body.hello.key, &session->owner)) {
        tsp_session_end(session, TSP_CODE_UNAUTHORIZED, "No valid API key; send one in HELLO");
    } else {
        welcome(session, message->body.hello.version);
    }
}

static const char http_reply[] = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n"
                                 "Content-Length: 63\r\n\r\n"
                                 "This port speaks the Tandem Stream Protocol; HTTP has its own.\n";

/* What else clients tend to begin with. */
static bool looks_like_http(const struct buf *in) {
    static const char *const beginnings[] = {"GET ", "POST", "HEAD", "PUT ", "OPTI", "DELE"};
    for (size_t i = 0; i < sizeof beginnings / sizeof beginnings[0]; i++) {
        if (memcmp(in->data, beginnings[i], in->size < 4 ? in->size : 4) == 0) {
            return true;
        }
    }
    return false;
}

/* Returns the bytes taken. */
static size_t take_magic(struct tsp_session *session) {
    const struct buf *in = &session->in;
    size_t n = in->size < TSP_MAGIC_BYTES ? in->size : TSP_MAGIC_BYTES;
    if (memcmp(in->data, TSP_MAGIC, n) == 0) {
        session->state = n == TSP_MAGIC_BYTES ? SESSION_HELLO : SESSION_MAGIC;
        return n == TSP_MAGIC_BYTES ? n : 0;
    }
    if (looks_like_http(in)) {
        if (in->size >= 4) {
            buf_append(&session->out, http_reply, sizeof http_reply - 1);
            session->state = SESSION_OVER;
        }
        return 0;
    }
    tsp_session_end(session, TSP_CODE_BAD_FRAME, "a connection begins with the protocol's eight magic bytes");
    return 0;
}

/* ---- bytes */

/* A frame whose fields are wrong. */
static void on_malformed(struct tsp_session *session, const struct tsp_frame *frame, enum status status) {
    char text[256];
    snprintf(text, sizeof text, "%s", status_text());
    if (status == STATUS_UNSUPPORTED) {
        if ((frame->flags & TSP_OPTIONAL) == 0) {
            tsp_session_end(session, TSP_CODE_UNKNOWN_TYPE, text);
        }
        return;
    }
    bool opens = (frame->type == TSP_SUBMIT || frame->type == TSP_RESUME) && frame->stream > session->last_id;
    if (session->state != SESSION_OPEN || !opens) {
        tsp_session_end(session, TSP_CODE_BAD_MESSAGE, text);
        return;
    }
    session->last_id = frame->stream;
    send_error(session, frame->stream, TSP_CODE_BAD_MESSAGE, text, TSP_NO_RETRY);
}

/* Takes a frame off the bytes; 0 when it is not whole or the session is over. */
static size_t take_frame(struct tsp_session *session, const char *bytes, size_t size) {
    uint32_t most = session->state == SESSION_OPEN ? session->config.welcome.max_frame : TSP_MIN_MAX_PAYLOAD;
    struct tsp_frame frame;
    struct tsp_message message;
    size_t used;
    enum status status = tsp_frame_decode(bytes, size, most, &frame, &used);
    if (status == STATUS_BUSY) {
        return 0;
    }
    if (status != STATUS_OK) {
        tsp_session_end(session, status == STATUS_LIMIT ? TSP_CODE_TOO_LARGE : TSP_CODE_BAD_FRAME, status_text());
        return 0;
    }
    status = tsp_decode(&frame, &message);
    if (status != STATUS_OK) {
        on_malformed(session, &frame, status);
    } else if (session->state == SESSION_HELLO) {
        on_hello(session, &message);
    } else {
        on_message(session, &message);
    }
    return used;
}

void tsp_session_feed(struct tsp_session *session, const void *bytes, size_t size, uint64_t now_ms) {
    session->heard_ms = now_ms;
    session->pinged = false;
    if (session->state == SESSION_OVER) {
        return;
    }
    struct buf *in = &session->in;
    buf_append(in, bytes, size);
    size_t at = session->state == SESSION_MAGIC ? take_magic(session) : 0;
    for (size_t used = 1; used > 0 && (session->state == SESSION_HELLO || session->state == SESSION_OPEN); at += used) {
        used = take_frame(session, in->data + at, in->size - at);
    }
    buf_consume(in, at);
    if (session->state == SESSION_OVER || (in->size == 0 && in->capacity > KEPT_CAPACITY)) {
        buf_free(in);
    }
}

void tsp_session_sending(struct tsp_session *session, size_t bytes, uint64_t now_ms) {
    if (bytes < session->sending) {
        session->heard_ms = now_ms;
        session->pinged = false;
    }
    session->sending = bytes;
}

void tsp_session_tick(struct tsp_session *session, uint64_t now_ms) {
    uint64_t ping_ms = session->config.welcome.ping_ms;
    uint64_t silent_ms = now_ms - session->heard_ms;
    if (session->state == SESSION_MAGIC || session->state == SESSION_HELLO) {
        if (now_ms - session->since_ms > session->config.handshake_ms) {
            tsp_session_end(session, TSP_CODE_TIMEOUT, "no HELLO in time");
        }
    } else if (session->state == SESSION_OPEN && session->pinged && now_ms - session->pinged_ms >= ping_ms) {
        tsp_session_end(session, TSP_CODE_TIMEOUT, "nothing was heard, nor an answer to PING");
    } else if (session->state == SESSION_OPEN && silent_ms > ping_ms && !session->pinged) {
        struct tsp_message message = {.type = TSP_PING, .given = 1u << TSP_PING_DATA};
        message.body.ping.data = now_ms;
        session->pinged = true;
        session->pinged_ms = now_ms;
        send_message(session, &message);
    }
}
