#include "runtime/server/frontend.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/channel.h"
#include "runtime/base/check.h"
#include "runtime/base/log.h"
#include "runtime/server/server.h"

struct frontend {
    int control;
    struct server *server;
    uv_poll_t poll;
    struct frontend_init init;
};

static void close_fds(const int *fds, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        close(fds[i]);
    }
}

/* Without a supervisor nobody restarts workers or stops us. */
static _Noreturn void orphaned(void) {
    log_error("the supervisor is gone");
    _exit(EXIT_FAILURE);
}

static void tell(struct frontend *frontend, enum control_type type, uint32_t replica) {
    struct control_msg message = {.type = type, .replica = replica};
    if (control_send(frontend->control, &message, NULL, 0) == STATUS_CLOSED) {
        orphaned();
    }
}

static void tell_error(int control, const char *text) {
    struct control_msg message = {.type = CONTROL_ERROR};
    snprintf(message.body.text, sizeof message.body.text, "%s", text);
    log_error("%s", text);
    if (control_send(control, &message, NULL, 0) != STATUS_OK) {
        orphaned();
    }
}

static void on_drained(void *context) {
    tell(context, CONTROL_DRAINED, 0);
}

static void on_progressed(void *context, uint32_t replica) {
    tell(context, CONTROL_PROGRESS, replica);
}

/* ---- messages of the supervisor */

static void on_group_up(struct frontend *frontend, const struct control_msg *message, const int *fds, uint32_t n_fds) {
    const struct frontend_init *init = &frontend->init;
    if (n_fds != init->world + 1) {
        log_error("GROUP_UP brought %u descriptors for %u ranks", n_fds, init->world);
        close_fds(fds, n_fds);
        return;
    }
    struct worker_port *port;
    enum status status = port_link_open(fds + 1, init->world, fds[0], message->epoch, &init->limits,
                                        (size_t)init->max_body_bytes, &port);
    if (status != STATUS_OK) { /* what the supervisor made cannot be used: it has to begin anew */
        tell_error(frontend->control, status_text());
        _exit(EXIT_FAILURE);
    }
    server_group_up(frontend->server, message->replica, port, &message->body.ready);
}

static void on_group_down(struct frontend *frontend, const struct control_msg *message) {
    if (message->total != 0) {
        server_group_failed(frontend->server, message->replica, message->body.text);
    } else {
        server_group_down(frontend->server, message->replica);
    }
}

static void on_message(struct frontend *frontend, const struct control_msg *message, const int *fds, uint32_t n_fds) {
    bool known_replica = message->replica < frontend->init.n_replicas;
    if (message->type == CONTROL_GROUP_UP && known_replica) {
        on_group_up(frontend, message, fds, n_fds);
        return;
    }
    close_fds(fds, n_fds);
    if (message->type == CONTROL_GROUP_DOWN && known_replica) {
        on_group_down(frontend, message);
    } else if (message->type == CONTROL_DRAIN) {
        server_drain(frontend->server, message->value);
    } else if (message->type == CONTROL_STOP) {
        server_stop(frontend->server);
    } else {
        log_warn("a message of type %u for replica %u is not for a front-end", message->type, message->replica);
    }
}

static void on_control(uv_poll_t *poll, int poll_status, int events) {
    struct frontend *frontend = poll->data;
    (void)poll_status; /* what is wrong shows in the receive */
    (void)events;
    for (;;) {
        struct control_msg message;
        int fds[CHANNEL_MAX_FDS];
        uint32_t n_fds = 0;
        enum status status = control_receive(frontend->control, &message, fds, &n_fds, MSG_DONTWAIT);
        if (status == STATUS_BUSY) {
            return;
        }
        if (status == STATUS_INTERNAL) {
            log_error("%s", status_text());
            continue;
        }
        if (status != STATUS_OK) {
            orphaned();
        }
        on_message(frontend, &message, fds, n_fds);
    }
}

/* ---- life */

static enum status take_init(int control, struct control_msg *message, int *fds) {
    uint32_t n_fds = 0;
    TRY(control_receive(control, message, fds, &n_fds, 0));
    if (message->type != CONTROL_INIT || message->body.frontend.n_replicas < 1 ||
        message->body.frontend.n_replicas > CONTROL_MAX_WORLD ||
        n_fds != FRONTEND_FDS + message->body.frontend.n_replicas) {
        close_fds(fds, n_fds);
        FAIL(STATUS_INTERNAL, "the first message of the supervisor is no INIT for a front-end");
    }
    return STATUS_OK;
}

static void start_handles(struct frontend *frontend) {
    uv_loop_t *loop = server_loop(frontend->server);
    CHECK(uv_poll_init(loop, &frontend->poll, frontend->control) == 0, "uv_poll_init");
    frontend->poll.data = frontend;
    uv_poll_start(&frontend->poll, UV_READABLE | UV_DISCONNECT, on_control);
}

int frontend_run(int control_fd, const struct server_limits *limits) {
    signal(SIGPIPE, SIG_IGN);
    signal(SIGINT, SIG_IGN); /* the supervisor directs */
    signal(SIGTERM, SIG_IGN);
    struct frontend frontend = {.control = control_fd};
    struct control_msg message;
    int fds[CHANNEL_MAX_FDS];
    enum status status = take_init(control_fd, &message, fds);
    if (status == STATUS_CLOSED) {
        orphaned();
    }
    if (status == STATUS_OK) {
        frontend.init = message.body.frontend;
        struct server_config config = {.init = &frontend.init,
                                       .limits = *limits,
                                       .listener = fds[FRONTEND_HTTP],
                                       .tsp_listener = fds[FRONTEND_TCP],
                                       .once = fds[FRONTEND_ONCE],
                                       .journals = fds + FRONTEND_FDS,
                                       .drained = on_drained,
                                       .progressed = on_progressed,
                                       .context = &frontend};
        status = server_create(&config, &frontend.server);
    }
    if (status != STATUS_OK) {
        tell_error(control_fd, status_text());
        return EXIT_FAILURE;
    }
    start_handles(&frontend);
    tell(&frontend, CONTROL_READY, 0);
    server_run(frontend.server);
    uv_close((uv_handle_t *)&frontend.poll, NULL);
    server_destroy(frontend.server);
    return EXIT_SUCCESS;
}

int frontend_main(int control_fd) {
    struct server_limits limits = server_limits_default();
    return frontend_run(control_fd, &limits);
}
