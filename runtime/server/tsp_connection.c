/* A socket around a session of the stream protocol. Reading stops while the client takes nothing; what was written in
 * one turn of the loop goes out in one write at its end. */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/base/log.h"
#include "runtime/server/server_internal.h"

#define BACKLOG 1024
#define HANDSHAKE_MS 5000
#define KEPT_CAPACITY (256u << 10) /* a larger send buffer is given back when it is empty */

struct tsp_connection {
    uv_tcp_t tcp;
    uv_write_t write;
    uv_shutdown_t shutdown;
    struct server *server;
    struct tsp_connection *previous, *next;
    struct tsp_session *session;
    struct buf sending; /* bytes of the write in progress */
    bool writing;
    bool reading;
    bool lingering; /* everything was sent and our side shut; what still comes is thrown away */
    bool closed;
    size_t received;   /* its share of server->tsp.in_bytes */
    uint64_t since_ms; /* when its end began; 0: it has not */
};

/* ---- closing */

static void on_closed(uv_handle_t *handle) {
    struct tsp_connection *connection = handle->data;
    buf_free(&connection->sending);
    free(connection);
}

static void close_connection(struct tsp_connection *connection) {
    if (connection->closed) {
        return;
    }
    struct tsp_server *tsp = &connection->server->tsp;
    connection->closed = true;
    tsp->in_bytes -= connection->received;
    tsp_session_destroy(connection->session);
    connection->session = NULL;
    *(connection->previous != NULL ? &connection->previous->next : &tsp->connections) = connection->next;
    if (connection->next != NULL) {
        connection->next->previous = connection->previous;
    }
    tsp->n_connections--;
    uv_close((uv_handle_t *)&connection->tcp, on_closed);
}

static void on_shutdown(uv_shutdown_t *request, int status) {
    struct tsp_connection *connection = request->data;
    if (status < 0) {
        close_connection(connection);
    }
}

/* As HTTP's connections do: closing with unread bytes would reset the socket, and the client lose our last words. */
static void linger(struct tsp_connection *connection) {
    connection->lingering = true;
    connection->since_ms = server_now_ms(connection->server);
    connection->shutdown.data = connection;
    if (uv_shutdown(&connection->shutdown, (uv_stream_t *)&connection->tcp, on_shutdown) != 0) {
        close_connection(connection);
    }
}

/* ---- writing */

static void flush(struct tsp_connection *connection);
static void update_reading(struct tsp_connection *connection);

static size_t unsent(const struct tsp_connection *connection) {
    return connection->writing ? uv_stream_get_write_queue_size((const uv_stream_t *)&connection->tcp) : 0;
}

static void on_written(uv_write_t *request, int status) {
    struct tsp_connection *connection = request->data;
    connection->writing = false;
    connection->sending.size = 0;
    if (connection->closed) {
        return;
    }
    if (status < 0) {
        close_connection(connection);
        return;
    }
    if (connection->sending.capacity > KEPT_CAPACITY) {
        buf_free(&connection->sending);
    }
    tsp_session_sending(connection->session, 0, server_now_ms(connection->server));
    tsp_deliver(connection->session);
    flush(connection);
}

/* Hands the rest to libuv: it writes when the socket takes more. */
static void write_later(struct tsp_connection *connection, struct buf *out) {
    struct buf swap = connection->sending;
    connection->sending = *out;
    *out = swap;
    out->size = 0;
    uv_buf_t part = uv_buf_init(connection->sending.data, (unsigned)connection->sending.size);
    connection->write.data = connection;
    connection->writing = true;
    if (uv_write(&connection->write, (uv_stream_t *)&connection->tcp, &part, 1, on_written) != 0) {
        connection->writing = false;
        close_connection(connection);
        return;
    }
    tsp_session_sending(connection->session, unsent(connection), server_now_ms(connection->server));
}

/* Writes until nothing is left or the socket is full; room that a write made is filled at once. */
static void flush(struct tsp_connection *connection) {
    while (!connection->closed && !connection->writing && !connection->lingering) {
        struct buf *out = tsp_session_out(connection->session);
        if (out->size == 0) {
            break;
        }
        uv_buf_t part = uv_buf_init(out->data, (unsigned)out->size);
        int sent = uv_try_write((uv_stream_t *)&connection->tcp, &part, 1);
        if (sent < 0 && sent != UV_EAGAIN) {
            close_connection(connection);
            return;
        }
        buf_consume(out, sent > 0 ? (size_t)sent : 0);
        if (out->size > 0) {
            write_later(connection, out);
        } else {
            tsp_deliver(connection->session);
        }
    }
    if (!connection->closed && !connection->writing && !connection->lingering &&
        tsp_session_over(connection->session)) {
        linger(connection);
    }
    update_reading(connection);
}

static void on_prepare(uv_prepare_t *prepare) {
    struct server *server = prepare->data;
    for (struct tsp_connection *connection = server->tsp.connections, *next; connection != NULL; connection = next) {
        next = connection->next;
        if (!connection->writing && tsp_session_out(connection->session)->size > 0) {
            flush(connection);
        }
    }
}

/* ---- reading */

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf) {
    (void)suggested;
    struct tsp_connection *connection = handle->data;
    *buf = uv_buf_init(connection->server->read_buffer, sizeof connection->server->read_buffer);
}

/* Incomplete frames of all connections together stay within a bound. */
static void count_received(struct tsp_connection *connection) {
    struct server *server = connection->server;
    size_t received = tsp_session_received(connection->session);
    server->tsp.in_bytes += received - connection->received;
    connection->received = received;
    if (received > 0 && server->tsp.in_bytes > server->limits.body_total_bytes) {
        tsp_session_end(connection->session, TSP_CODE_TOO_MANY, "Too many large requests at once; try again later");
    }
}

static void on_read(uv_stream_t *stream, ssize_t got, const uv_buf_t *buf) {
    struct tsp_connection *connection = stream->data;
    if (got < 0) {
        close_connection(connection);
        return;
    }
    if (got == 0 || connection->lingering) {
        return;
    }
    tsp_session_feed(connection->session, buf->base, (size_t)got, server_now_ms(connection->server));
    count_received(connection);
    flush(connection);
}

/* A client that asks and does not listen is not read further. */
static void update_reading(struct tsp_connection *connection) {
    if (connection->closed) {
        return;
    }
    bool wanted = connection->lingering || tsp_session_over(connection->session) ||
                  !tsp_session_is_open(connection->session) || tsp_session_has_room(connection->session);
    if (wanted == connection->reading) {
        return;
    }
    connection->reading = wanted;
    if (!wanted) {
        uv_read_stop((uv_stream_t *)&connection->tcp);
    } else if (uv_read_start((uv_stream_t *)&connection->tcp, on_alloc, on_read) != 0) {
        close_connection(connection);
    }
}

/* ---- beginning */

static struct tsp_session_config session_config(struct server *server) {
    const struct tsp_limits *limits = &server->init.tsp;
    const char *model = server->context->model;
    return (struct tsp_session_config){
        .host = &tsp_server_host,
        .context = server,
        .welcome = {.version = TSP_VERSION,
                    .max_frame = limits->max_frame_bytes,
                    .max_streams = limits->max_streams,
                    .resume_window_ms = limits->resume_window_ms,
                    .ping_ms = limits->ping_ms,
                    .life = once_life(server->tsp.once),
                    .name = {.data = (const uint8_t *)"tandem", .size = 6},
                    .model = {.data = (const uint8_t *)model, .size = (uint32_t)strlen(model)},
                    .max_model_len = server->context->max_model_len},
        .handshake_ms = HANDSHAKE_MS,
        .send_buffer = limits->send_buffer_bytes,
    };
}

static void set_socket_options(struct tsp_connection *connection) {
    uv_tcp_nodelay(&connection->tcp, 1);
    int fd;
    unsigned timeout_ms = 2 * connection->server->init.tsp.ping_ms;
    if (uv_fileno((const uv_handle_t *)&connection->tcp, &fd) == 0) {
        /* A peer that vanished without a word is noticed by PING too; failing here costs only that time. */
        (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof timeout_ms);
    }
}

static void on_connection(uv_stream_t *listener, int status) {
    struct server *server = listener->data;
    struct tsp_server *tsp = &server->tsp;
    if (status != 0) {
        log_warn("accept: %s", uv_strerror(status));
        return;
    }
    struct tsp_connection *connection = xcalloc(1, sizeof *connection);
    struct tsp_session_config config = session_config(server);
    connection->server = server;
    connection->session = tsp_session_create(&config, server_now_ms(server));
    uv_tcp_init(&server->loop, &connection->tcp);
    connection->tcp.data = connection;
    connection->next = tsp->connections;
    if (connection->next != NULL) {
        connection->next->previous = connection;
    }
    tsp->connections = connection;
    tsp->n_connections++;
    tsp->metrics.connections++;
    if (uv_accept(listener, (uv_stream_t *)&connection->tcp) != 0) {
        close_connection(connection);
        return;
    }
    set_socket_options(connection);
    if (tsp->n_connections > server->init.tsp.max_connections) {
        tsp_session_end(connection->session, TSP_CODE_TOO_MANY, "Too many connections; try again later");
    }
    flush(connection);
}

enum status tsp_listen(struct server *server, int fd) {
    struct tsp_server *tsp = &server->tsp;
    int error = uv_tcp_open(&tsp->listener, fd);
    if (error != 0) {
        close(fd);
    } else {
        error = uv_listen((uv_stream_t *)&tsp->listener, BACKLOG, on_connection);
    }
    if (error != 0) {
        FAIL(STATUS_IO, "tcp: the listener cannot be used: %s", uv_strerror(error));
    }
    uv_prepare_start(&tsp->flusher, on_prepare);
    return STATUS_OK;
}

void tsp_init_handles(struct server *server) {
    uv_tcp_init(&server->loop, &server->tsp.listener);
    server->tsp.listener.data = server;
    uv_prepare_init(&server->loop, &server->tsp.flusher);
    server->tsp.flusher.data = server;
}

void tsp_close_connections(struct server *server) {
    while (server->tsp.connections != NULL) {
        close_connection(server->tsp.connections);
    }
    uv_close((uv_handle_t *)&server->tsp.listener, NULL);
    uv_close((uv_handle_t *)&server->tsp.flusher, NULL);
}

/* ---- all of them */

void tsp_connections_tick(struct server *server, uint64_t now_ms) {
    for (struct tsp_connection *connection = server->tsp.connections, *next; connection != NULL; connection = next) {
        next = connection->next;
        if (tsp_session_over(connection->session)) { /* it may not take our last words either */
            connection->since_ms = connection->since_ms > 0 ? connection->since_ms : now_ms;
            if (now_ms - connection->since_ms > server->limits.linger_ms) {
                close_connection(connection);
            }
            continue;
        }
        tsp_session_sending(connection->session, unsent(connection), now_ms);
        tsp_session_tick(connection->session, now_ms);
        flush(connection);
    }
}

void tsp_each_session(struct server *server, void (*visit)(struct tsp_session *session, uint64_t value),
                      uint64_t value) {
    for (struct tsp_connection *connection = server->tsp.connections; connection != NULL;
         connection = connection->next) {
        visit(connection->session, value);
    }
}

bool tsp_all_sent(const struct server *server) {
    for (const struct tsp_connection *connection = server->tsp.connections; connection != NULL;
         connection = connection->next) {
        if (connection->writing || tsp_session_out(connection->session)->size > 0) {
            return false;
        }
    }
    return true;
}

uint32_t tsp_streams(const struct server *server) {
    uint32_t n = 0;
    for (const struct tsp_connection *connection = server->tsp.connections; connection != NULL;
         connection = connection->next) {
        n += tsp_session_streams(connection->session);
    }
    return n;
}
