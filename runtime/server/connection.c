#include "runtime/server/connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/http/http_writer.h"
#include "runtime/server/server_internal.h"

#define MAX_WAITING_BYTES (64u << 10) /* pipelined behind the current request; then reading stops */
#define KEPT_CAPACITY (256u << 10)    /* a larger send buffer is given back when it is empty */

static void feed(struct connection *connection);
static void update_reading(struct connection *connection);

/* ---- closing */

static void on_closed(uv_handle_t *handle) {
    struct connection *connection = handle->data;
    http_parser_destroy(connection->parser);
    buf_free(&connection->in);
    buf_free(&connection->out);
    buf_free(&connection->sending);
    free(connection);
}

static void forget_body(struct connection *connection) {
    connection->server->body_bytes -= connection->body_bytes;
    connection->body_bytes = 0;
}

void connection_close(struct connection *connection) {
    if (connection->state == CONNECTION_CLOSED) {
        return;
    }
    struct server *server = connection->server;
    connection->state = CONNECTION_CLOSED;
    if (connection->call != NULL) {
        call_client_gone(connection->call);
        connection->call = NULL;
    }
    forget_body(connection);
    if (connection->previous != NULL) {
        connection->previous->next = connection->next;
    } else {
        server->connections = connection->next;
    }
    if (connection->next != NULL) {
        connection->next->previous = connection->previous;
    }
    server->n_connections--;
    uv_close((uv_handle_t *)&connection->tcp, on_closed);
}

static void on_shutdown(uv_shutdown_t *request, int status) {
    struct connection *connection = request->data;
    if (status < 0) {
        connection_close(connection);
    }
}

/* Closing a socket with unread bytes resets it, and the client might lose the reply: our side is shut first, and the
 * client's bytes are drained until its end or a deadline. */
static void linger(struct connection *connection) {
    connection->state = CONNECTION_LINGERING;
    connection->since_ms = server_now_ms(connection->server);
    connection->shutdown.data = connection;
    if (uv_shutdown(&connection->shutdown, (uv_stream_t *)&connection->tcp, on_shutdown) != 0) {
        connection_close(connection);
        return;
    }
    update_reading(connection);
}

/* ---- writing */

/* A long reply does not pin its memory for an idle connection. */
static void give_back(struct buf *empty) {
    empty->size = 0;
    if (empty->capacity > KEPT_CAPACITY) {
        buf_free(empty);
    }
}

struct buf *connection_out(struct connection *connection) {
    return &connection->out;
}

size_t connection_unsent(const struct connection *connection) {
    return connection->out.size +
           (connection->writing ? uv_stream_get_write_queue_size((const uv_stream_t *)&connection->tcp) : 0);
}

static void on_written(uv_write_t *request, int status) {
    struct connection *connection = request->data;
    connection->writing = false;
    give_back(&connection->sending);
    if (connection->state == CONNECTION_CLOSED) {
        return;
    }
    if (status < 0) {
        connection_close(connection);
        return;
    }
    connection_flush(connection);
    if (connection->state != CONNECTION_OPEN || connection->writing) {
        return;
    }
    if (connection->call != NULL) {
        call_client_drained(connection->call);
    } else {
        feed(connection);
    }
}

/* Hands the rest to libuv: it writes when the socket takes more. */
static void write_later(struct connection *connection) {
    struct buf swap = connection->sending;
    connection->sending = connection->out;
    connection->out = swap;
    connection->out.size = 0;
    uv_buf_t part = uv_buf_init(connection->sending.data, (unsigned)connection->sending.size);
    connection->write.data = connection;
    connection->writing = true;
    connection->queued_seen = connection->sending.size;
    connection->moved_ms = server_now_ms(connection->server);
    if (uv_write(&connection->write, (uv_stream_t *)&connection->tcp, &part, 1, on_written) != 0) {
        connection->writing = false;
        connection_close(connection);
    }
}

void connection_flush(struct connection *connection) {
    if (connection->state == CONNECTION_CLOSED || connection->writing) {
        return;
    }
    if (connection->out.size > 0) {
        uv_buf_t part = uv_buf_init(connection->out.data, (unsigned)connection->out.size);
        int sent = uv_try_write((uv_stream_t *)&connection->tcp, &part, 1);
        if (sent < 0 && sent != UV_EAGAIN) {
            connection_close(connection);
            return;
        }
        buf_consume(&connection->out, sent > 0 ? (size_t)sent : 0);
    }
    if (connection->out.size > 0) {
        write_later(connection);
        return;
    }
    give_back(&connection->out);
    if (connection->state == CONNECTION_FLUSHING) {
        linger(connection);
    }
}

/* ---- the end of an answer */

static void flush_and_close(struct connection *connection) {
    if (connection->state == CONNECTION_OPEN) {
        connection->state = CONNECTION_FLUSHING;
        connection->in.size = 0;
        forget_body(connection);
        update_reading(connection);
        connection_flush(connection);
    }
}

void connection_break(struct connection *connection) {
    connection->call = NULL;
    flush_and_close(connection);
}

void connection_finish(struct connection *connection) {
    connection->call = NULL;
    if (!connection->keep_alive) {
        flush_and_close(connection);
        return;
    }
    forget_body(connection);
    http_parser_next(connection->parser);
    connection->busy = false;
    connection->head_only = false;
    connection->head_seen = false;
    connection->in_request = false;
    connection->since_ms = server_now_ms(connection->server);
    connection_flush(connection);
    if (connection->state == CONNECTION_OPEN) {
        feed(connection);
    }
}

/* ---- reading */

static void refuse(struct connection *connection, int http_status, const char *text) {
    struct openai_error error;
    openai_error_set(&error, STATUS_INVALID, text);
    error.http_status = http_status;
    error.param[0] = 0;
    connection->busy = true;
    routes_reply_error(connection, &error, false);
}

static void note_progress(struct connection *connection, enum http_event event) {
    struct server *server = connection->server;
    if (!connection->in_request && http_parser_in_request(connection->parser)) {
        connection->in_request = true;
        connection->since_ms = server_now_ms(server);
    }
    if (event == HTTP_HEAD_DONE) {
        connection->head_seen = true;
        connection->since_ms = server_now_ms(server);
    }
}

static void begin_request(struct connection *connection, const struct http_request *request) {
    connection->busy = true;
    connection->n_requests++;
    connection->keep_alive = request->keep_alive && connection->n_requests < connection->server->limits.max_requests &&
                             !connection->server->draining;
}

static void on_event(struct connection *connection, enum http_event event) {
    const struct http_request *request = http_parser_request(connection->parser);
    connection->head_only = request->method == HTTP_METHOD_HEAD; /* of one that is refused, too */
    if (event == HTTP_HEAD_DONE) {
        connection->keep_alive = request->keep_alive;
        if (routes_check_head(connection, request) && request->expect_continue) {
            buf_append_text(&connection->out, "HTTP/1.1 100 Continue\r\n\r\n");
            connection_flush(connection);
        }
    } else if (event == HTTP_REQUEST_DONE) {
        begin_request(connection, request);
        if (connection->head_seen || routes_check_head(connection, request)) {
            routes_handle(connection, request);
        }
    } else if (event == HTTP_BAD) {
        refuse(connection, http_parser_error_status(connection->parser), status_text());
    }
}

/* Bodies of all connections together stay within a bound. */
static bool count_body(struct connection *connection, size_t bytes) {
    if (!connection->head_seen) {
        return true;
    }
    struct server *server = connection->server;
    connection->body_bytes += bytes;
    server->body_bytes += bytes;
    if (server->body_bytes <= server->limits.body_total_bytes) {
        return true;
    }
    struct openai_error error;
    openai_error_set(&error, STATUS_CLOSED, "Too many large requests at once; try again later");
    connection->busy = true;
    routes_reply_error(connection, &error, false);
    return false;
}

/* Feeds what waits until a request is being answered, nothing is left, or the connection closes. Answers that come at
 * once return here and not into a deeper call. */
static void feed(struct connection *connection) {
    if (connection->feeding) {
        return;
    }
    connection->feeding = true;
    while (connection->state == CONNECTION_OPEN && !connection->busy && connection->in.size > 0 &&
           connection_unsent(connection) < connection->server->limits.output_bytes) {
        size_t consumed = 0;
        enum http_event event =
            http_parser_feed(connection->parser, connection->in.data, connection->in.size, &consumed);
        note_progress(connection, event);
        buf_consume(&connection->in, consumed);
        if (count_body(connection, consumed)) {
            on_event(connection, event);
        }
    }
    connection->feeding = false;
    update_reading(connection);
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf) {
    (void)suggested;
    struct connection *connection = handle->data;
    *buf = uv_buf_init(connection->server->read_buffer, sizeof connection->server->read_buffer);
}

static void on_read(uv_stream_t *stream, ssize_t got, const uv_buf_t *buf) {
    struct connection *connection = stream->data;
    if (got < 0) { /* the client's end: a half-closed connection is a client that went away */
        connection_close(connection);
    } else if (got > 0 && connection->state == CONNECTION_OPEN) {
        buf_append(&connection->in, buf->base, (size_t)got);
        feed(connection);
    }
}

/* Reading goes on while a request is being answered, so that the client's going away is seen; only one that sends
 * ever more behind its request is left to wait. */
static void update_reading(struct connection *connection) {
    bool wanted = connection->state == CONNECTION_LINGERING || connection->state == CONNECTION_FLUSHING ||
                  (connection->state == CONNECTION_OPEN && connection->in.size <= MAX_WAITING_BYTES);
    if (wanted == connection->reading || connection->state == CONNECTION_CLOSED) {
        return;
    }
    connection->reading = wanted;
    if (!wanted) {
        uv_read_stop((uv_stream_t *)&connection->tcp);
    } else if (uv_read_start((uv_stream_t *)&connection->tcp, on_alloc, on_read) != 0) {
        connection_close(connection);
    }
}

/* ---- beginning */

static void set_socket_options(struct connection *connection) {
    uv_tcp_nodelay(&connection->tcp, 1);
    uv_tcp_keepalive(&connection->tcp, 1, 60);
    int fd;
    unsigned timeout_ms = connection->server->limits.stall_ms;
    if (uv_fileno((const uv_handle_t *)&connection->tcp, &fd) == 0) {
        /* A peer that vanished without a word is noticed within the stall limit; failing here costs only that. */
        (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof timeout_ms);
    }
}

void connection_accept(struct server *server, uv_stream_t *listener) {
    struct connection *connection = xcalloc(1, sizeof *connection);
    connection->server = server;
    connection->parser = http_parser_create();
    connection->since_ms = server_now_ms(server);
    connection->moved_ms = connection->since_ms;
    uv_tcp_init(&server->loop, &connection->tcp);
    connection->tcp.data = connection;
    connection->next = server->connections;
    if (connection->next != NULL) {
        connection->next->previous = connection;
    }
    server->connections = connection;
    server->n_connections++;
    server->metrics.connections++;
    if (uv_accept(listener, (uv_stream_t *)&connection->tcp) != 0) {
        connection_close(connection);
        return;
    }
    set_socket_options(connection);
    update_reading(connection);
    if (connection->state == CONNECTION_OPEN && server->n_connections > server->limits.max_connections) {
        struct openai_error error;
        openai_error_set(&error, STATUS_CLOSED, "Too many connections; try again later");
        connection->busy = true;
        routes_reply_error(connection, &error, false);
    }
}

/* ---- deadlines */

static void tick_reading(struct connection *connection, uint64_t elapsed_ms) {
    const struct server_limits *limits = &connection->server->limits;
    if (!connection->in_request) {
        if (elapsed_ms > limits->idle_ms) {
            connection_close(connection);
        }
    } else if (!connection->head_seen) {
        if (elapsed_ms > limits->header_ms) {
            refuse(connection, 408, "The head of the request did not come in time");
        }
    } else {
        uint64_t paced_ms = elapsed_ms > limits->body_grace_ms ? elapsed_ms - limits->body_grace_ms : 0;
        bool slow = connection->body_bytes < paced_ms * limits->body_bytes_per_s / 1000;
        if (slow || elapsed_ms > limits->body_ms) {
            refuse(connection, 408, "The body of the request did not come in time");
        }
    }
}

static void tick_writing(struct connection *connection, uint64_t now_ms) {
    size_t queued = uv_stream_get_write_queue_size((const uv_stream_t *)&connection->tcp);
    if (queued != connection->queued_seen) {
        connection->queued_seen = queued;
        connection->moved_ms = now_ms;
    }
    if (now_ms - connection->moved_ms > connection->server->limits.stall_ms) {
        connection->server->metrics.stalled_clients++;
        connection_close(connection);
    }
}

void connection_tick(struct connection *connection, uint64_t now_ms) {
    if (connection->writing) {
        tick_writing(connection, now_ms);
    } else if (connection->state == CONNECTION_LINGERING) {
        if (now_ms - connection->since_ms > connection->server->limits.linger_ms) {
            connection_close(connection);
        }
    } else if (connection->state == CONNECTION_OPEN && !connection->busy) {
        tick_reading(connection, now_ms - connection->since_ms);
    }
}
