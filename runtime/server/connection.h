/* One HTTP/1.1 connection: reading, deadlines, writing. What a request means is routes.c's business; a call that
 * answers later is told when the client is gone or has taken what was written.
 *
 * A request is handled to its end before the next one of the connection is parsed; bytes that come in between wait. */
#ifndef TANDEM_SERVER_CONNECTION_H
#define TANDEM_SERVER_CONNECTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "runtime/base/buf.h"
#include "runtime/http/http_parser.h"

struct server;
struct call;

enum connection_state {
    CONNECTION_OPEN,
    CONNECTION_FLUSHING,  /* the last reply is being sent; nothing more is read */
    CONNECTION_LINGERING, /* everything was sent and our side shut; what still comes is thrown away */
    CONNECTION_CLOSED,    /* the handle is being closed; memory goes with its callback */
};

struct connection {
    uv_tcp_t tcp;
    uv_write_t write;
    uv_shutdown_t shutdown;
    struct server *server;
    struct connection *previous, *next;
    enum connection_state state;
    struct http_parser *parser;
    struct call *call; /* what answers the current request; NULL: nothing yet, or the answer is written */
    bool busy;         /* a request is being answered */
    bool feeding;      /* connection_feed is on the stack */
    bool reading;      /* uv_read_start */
    bool head_seen;    /* of the request that is coming in */
    bool in_request;   /* its first byte came */
    bool keep_alive;   /* the current answer leaves the connection open */
    bool head_only;    /* it was asked for by HEAD */
    uint32_t n_requests;
    size_t body_bytes;  /* of the request coming in; counted in the server's total */
    struct buf in;      /* bytes that wait for the parser */
    struct buf out;     /* bytes not handed to the kernel yet */
    struct buf sending; /* bytes of the write in progress */
    bool writing;
    size_t queued_seen; /* libuv's queue at the last tick: it moves while the client takes bytes */
    uint64_t since_ms;  /* when the current phase of reading began */
    uint64_t moved_ms;  /* when the client last took a byte, or the last write began */
};

/* Serves an accepted connection of the listener. */
void connection_accept(struct server *server, uv_stream_t *listener);

/* Where an answer's bytes go, and what sends them. Never blocks; the connection may be closed when it returns, of which
 * its call was told. */
struct buf *connection_out(struct connection *connection);
void connection_flush(struct connection *connection);

/* Bytes that were written to connection_out and not taken by the client. */
size_t connection_unsent(const struct connection *connection);

/* The current request is answered: the next one is read, or the connection closes once all is sent. */
void connection_finish(struct connection *connection);

/* The answer failed after it began: what was written is sent and the connection is closed, so that it cannot be taken
 * for a whole one. */
void connection_break(struct connection *connection);

/* Closes at once. */
void connection_close(struct connection *connection);

/* Enforces the deadlines; called for each connection several times a second. */
void connection_tick(struct connection *connection, uint64_t now_ms);

#endif
