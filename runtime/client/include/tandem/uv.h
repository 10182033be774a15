/* A client in a libuv loop.
 *
 *     struct tandem_uv adapter;
 *     int error = tandem_uv_start(&adapter, loop, client, on_event, context);
 *     ... tandem_submit, here or in any callback of the loop ...
 *     uv_run(loop, UV_RUN_DEFAULT);
 *
 * The client is served before each wait of the loop, so that what callbacks submit, cancel and free is seen without
 * further calls. The adapter keeps the loop alive until it is closed. */
#ifndef TANDEM_UV_H
#define TANDEM_UV_H

#include <poll.h>
#include <uv.h>

#include <tandem/loop.h>

#ifdef __cplusplus
extern "C" {
#endif

/* To be treated as opaque; it must live until `on_closed` was called, and the client until tandem_uv_close. */
struct tandem_uv {
    struct tandem_client *client;
    tandem_on_event on_event;
    void *context;
    uv_prepare_t prepare;
    uv_poll_t poll;
    uv_timer_t timer;
    void (*on_closed)(void *context);
    int events; /* that `poll` waits for */
    int n_open; /* handles */
};

/* They end the wait; what they are for is done before the next one. */
static inline void tandem_uv_on_poll(uv_poll_t *poll, int status, int events) {
    (void)poll;
    (void)status;
    (void)events;
}

static inline void tandem_uv_on_timer(uv_timer_t *timer) {
    (void)timer;
}

static inline void tandem_uv_on_prepare(uv_prepare_t *prepare) {
    struct tandem_uv *self = (struct tandem_uv *)prepare->data;
    struct tandem_wait wait;
    int result = tandem_dispatch(self->client, self->on_event, self->context);
    if (uv_is_closing((uv_handle_t *)prepare) || result == TANDEM_MISUSE) { /* by on_event; in a forked child */
        return;
    }
    tandem_client_wait_for(self->client, &wait);
    int timeout_ms = result == TANDEM_OK ? 0 : wait.timeout_ms;
    int events = ((wait.events & POLLIN) != 0 ? UV_READABLE : 0) | ((wait.events & POLLOUT) != 0 ? UV_WRITABLE : 0);
    if (events != self->events) {
        self->events = events;
        uv_poll_start(&self->poll, events, tandem_uv_on_poll);
    }
    if (timeout_ms >= 0) {
        uv_timer_start(&self->timer, tandem_uv_on_timer, (uint64_t)timeout_ms, 0);
    } else {
        uv_timer_stop(&self->timer);
    }
}

/* Has `loop` serve the client and hand what comes to `on_event`. 0, or libuv's error, with nothing to be closed. */
static inline int tandem_uv_start(struct tandem_uv *self, uv_loop_t *loop, struct tandem_client *client,
                                  tandem_on_event on_event, void *context) {
    struct tandem_wait wait;
    tandem_client_wait_for(client, &wait);
    int error = uv_poll_init(loop, &self->poll, wait.fd); /* the only one of the three that can fail */
    if (error != 0) {
        return error;
    }
    uv_timer_init(loop, &self->timer);
    uv_prepare_init(loop, &self->prepare);
    self->client = client;
    self->on_event = on_event;
    self->context = context;
    self->on_closed = NULL;
    self->events = 0;
    self->n_open = 3;
    self->prepare.data = self->poll.data = self->timer.data = self;
    return uv_prepare_start(&self->prepare, tandem_uv_on_prepare);
}

static inline void tandem_uv_on_close(uv_handle_t *handle) {
    struct tandem_uv *self = (struct tandem_uv *)handle->data;
    if (--self->n_open == 0 && self->on_closed != NULL) {
        self->on_closed(self->context);
    }
}

/* Takes the client out of the loop. In `on_event` too: then a few more events may come before it is done, and the
 * client may not be freed before the call of the loop's that brought them returns; elsewhere it may be freed at once.
 * `on_closed` (or NULL) is called by the loop, with the context of tandem_uv_start, when *self is no longer used. */
static inline void tandem_uv_close(struct tandem_uv *self, void (*on_closed)(void *context)) {
    self->on_closed = on_closed;
    uv_close((uv_handle_t *)&self->prepare, tandem_uv_on_close);
    uv_close((uv_handle_t *)&self->poll, tandem_uv_on_close);
    uv_close((uv_handle_t *)&self->timer, tandem_uv_on_close);
}

#ifdef __cplusplus
}
#endif

#endif
