#define _GNU_SOURCE /* getrandom */
#include "runtime/server/server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/base/hash.h"
#include "runtime/base/log.h"
#include "runtime/server/server_internal.h"

#define TICK_MS 100
#define BACKLOG 1024

/* ---- the clock's work */

static bool all_sent(const struct server *server) {
    for (const struct connection *c = server->connections; c != NULL; c = c->next) {
        if (connection_unsent(c) > 0) {
            return false;
        }
    }
    return true;
}

static void tick_drain(struct server *server, uint64_t now_ms) {
    bool over = now_ms >= server->drain_deadline_ms;
    if (over) {
        for (struct call *call = server->calls, *next; call != NULL; call = next) {
            next = call->next;
            call_fail(call, STATUS_CLOSED, "The server is shutting down", "server_shutting_down");
        }
    }
    if (over || (server->n_calls == 0 && tsp_attached(server) == 0)) {
        tsp_drain_end(server);
    }
    if (server->n_calls == 0 && tsp_attached(server) == 0 && !server->drain_told && all_sent(server) &&
        tsp_all_sent(server)) {
        server->drain_told = true;
        server->drained(server->callback_context);
    }
}

static void on_tick(uv_timer_t *timer) {
    struct server *server = timer->data;
    uint64_t now_ms = server_now_ms(server);
    for (struct call *call = server->calls, *next; call != NULL; call = next) {
        next = call->next;
        call_tick(call, now_ms);
    }
    for (struct connection *connection = server->connections, *next; connection != NULL; connection = next) {
        next = connection->next;
        connection_tick(connection, now_ms);
    }
    tsp_tick(server, now_ms);
    if (server->draining) {
        tick_drain(server, now_ms);
    }
}

static void on_reap(uv_prepare_t *prepare) {
    calls_reap(prepare->data);
}

/* ---- life */

static void on_connection(uv_stream_t *listener, int status) {
    struct server *server = listener->data;
    if (status == 0) {
        connection_accept(server, listener);
    } else {
        /* Out of descriptors, libuv gives up a spare one to accept and close what waits. */
        log_warn("accept: %s", uv_strerror(status));
    }
}

static enum status listen_on(struct server *server, int fd) {
    int error = uv_tcp_open(&server->listener, fd);
    if (error != 0) {
        close(fd);
    } else {
        error = uv_listen((uv_stream_t *)&server->listener, BACKLOG, on_connection);
    }
    if (error != 0) {
        FAIL(STATUS_IO, "http: the listener cannot be used: %s", uv_strerror(error));
    }
    return STATUS_OK;
}

/* Connections need descriptors: as many as the system lets us have. */
static void raise_descriptor_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &limit) != 0) {
            log_warn("the limit of open files stays as it is");
        }
    }
}

/* Replies with the same seed and the same fingerprint are comparable: it names the model and how it is run. */
static void set_fingerprint(struct server *server) {
    const char *model = server->context->model;
    uint64_t hash = hash64(server->init.world, model, strlen(model));
    snprintf(server->fingerprint, sizeof server->fingerprint, "fp_%012llx",
             (unsigned long long)(hash & 0xffffffffffffull));
}

static enum status open_parts(struct server *server, const struct server_config *config, bool *journals_taken) {
    const struct frontend_init *init = &server->init;
    TRY(tsp_server_open(server, config->once));
    TRY(request_context_load(init->model_dir, init->tokenizer_dir, init->served_model_name, init->limits.max_len,
                             init->n_valid_ids, &server->context));
    if (init->api_key_file[0] != 0) {
        TRY(key_set_load(init->api_key_file, &server->keys));
    }
    set_fingerprint(server);
    *journals_taken = true;
    return replicas_open(server, config->journals);
}

enum status server_create(const struct server_config *config, struct server **out) {
    const struct frontend_init *init = config->init;
    CHECK(init->n_replicas >= 1 && init->n_replicas <= SERVER_MAX_REPLICAS, "%u replicas", init->n_replicas);
    raise_descriptor_limit();
    struct server *server = xcalloc(1, sizeof *server);
    server->init = *init;
    server->limits = config->limits;
    server->drained = config->drained;
    server->progressed = config->progressed;
    server->callback_context = config->context;
    server->created = (int64_t)time(NULL);
    CHECK(getrandom(&server->random, sizeof server->random, 0) == sizeof server->random, "getrandom");
    metrics_init(&server->metrics);
    CHECK(uv_loop_init(&server->loop) == 0, "uv_loop_init");
    uv_timer_init(&server->loop, &server->tick);
    server->tick.data = server;
    uv_prepare_init(&server->loop, &server->reaper);
    server->reaper.data = server;
    uv_tcp_init(&server->loop, &server->listener);
    server->listener.data = server;
    tsp_init_handles(server);
    bool journals_taken = false;
    enum status status = open_parts(server, config, &journals_taken);
    for (uint32_t i = 0; i < init->n_replicas && !journals_taken; i++) {
        close(config->journals[i]);
    }
    if (status == STATUS_OK) {
        status = listen_on(server, config->listener);
    } else {
        close(config->listener);
    }
    if (status == STATUS_OK) {
        status = tsp_listen(server, config->tsp_listener);
    } else {
        close(config->tsp_listener);
    }
    if (status != STATUS_OK) {
        server_destroy(server);
        return status;
    }
    uv_prepare_start(&server->reaper, on_reap);
    uv_timer_start(&server->tick, on_tick, TICK_MS, TICK_MS);
    *out = server;
    return STATUS_OK;
}

void server_destroy(struct server *server) {
    while (server->connections != NULL) {
        connection_close(server->connections);
    }
    tsp_close_connections(server);
    tsp_drop_all(server);
    uv_close((uv_handle_t *)&server->listener, NULL);
    uv_close((uv_handle_t *)&server->tick, NULL);
    uv_close((uv_handle_t *)&server->reaper, NULL);
    replicas_close(server);
    uv_run(&server->loop, UV_RUN_DEFAULT); /* closing callbacks, and what the worker pool still parses */
    calls_reap(server);
    tsp_server_close(server);
    CHECK(uv_loop_close(&server->loop) == 0, "a handle outlived the server");
    request_context_free(server->context);
    key_set_free(server->keys);
    buf_free(&server->payload);
    free(server);
}

uv_loop_t *server_loop(struct server *server) {
    return &server->loop;
}

void server_run(struct server *server) {
    uv_run(&server->loop, UV_RUN_DEFAULT);
}

void server_stop(struct server *server) {
    uv_stop(&server->loop);
}

void server_drain(struct server *server, uint64_t timeout_ms) {
    if (!server->draining) {
        server->draining = true;
        server->drain_deadline_ms = server_now_ms(server) + timeout_ms;
        for (struct connection *connection = server->connections; connection != NULL; connection = connection->next) {
            connection->keep_alive = false;
        }
        tsp_drain(server, timeout_ms);
    }
}
