/* A client in a program's own epoll set.
 *
 *     struct tandem_epoll loop;
 *     epoll_data_t data = {.ptr = &loop};
 *     int result = tandem_epoll_add(&loop, epoll_fd, data, client, on_event, context);
 *     while (result == TANDEM_OK && (result = tandem_epoll_serve(&loop, &timeout_ms)) == TANDEM_OK) {
 *         int n = epoll_wait(epoll_fd, events, N_EVENTS, timeout_ms);
 *         ... what the program's own descriptors have; nothing is to be done for the one whose data.ptr is &loop ...
 *     }
 *     tandem_epoll_remove(&loop);
 *
 * Serve the client before every wait: then what other descriptors' handlers submit, cancel and free is seen too. Its
 * own readiness does no more than end the wait. */
#ifndef TANDEM_EPOLL_H
#define TANDEM_EPOLL_H

#include <poll.h>
#include <sys/epoll.h>

#include <tandem/loop.h>

#ifdef __cplusplus
extern "C" {
#endif

/* To be treated as opaque; it and the client must live until tandem_epoll_remove. */
struct tandem_epoll {
    struct tandem_client *client;
    tandem_on_event on_event;
    void *context;
    int epoll_fd, fd;
    struct epoll_event wanted; /* as epoll_fd has it */
};

static inline uint32_t tandem_epoll_events(short events) {
    return ((events & POLLIN) != 0 ? (uint32_t)EPOLLIN : 0) | ((events & POLLOUT) != 0 ? (uint32_t)EPOLLOUT : 0);
}

/* Puts the client's descriptor into the set, with `data` to know it by. TANDEM_SYSTEM with errno when epoll_ctl fails;
 * nothing is to be removed then. */
static inline int tandem_epoll_add(struct tandem_epoll *self, int epoll_fd, epoll_data_t data,
                                   struct tandem_client *client, tandem_on_event on_event, void *context) {
    struct tandem_wait wait;
    tandem_client_wait_for(client, &wait);
    self->client = client;
    self->on_event = on_event;
    self->context = context;
    self->epoll_fd = epoll_fd;
    self->fd = wait.fd;
    self->wanted.events = tandem_epoll_events(wait.events);
    self->wanted.data = data;
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, wait.fd, &self->wanted) == 0 ? TANDEM_OK : TANDEM_SYSTEM;
}

/* Hands what there is to `on_event`, and says in *timeout_ms how long epoll_wait may wait (-1: any time; take your own
 * time-out if that is shorter). TANDEM_OK; TANDEM_END when no stream is left that anything could come of, which is no
 * failure: the next request can be submitted; TANDEM_MISUSE in a forked child; TANDEM_SYSTEM with errno when epoll_ctl
 * fails. */
static inline int tandem_epoll_serve(struct tandem_epoll *self, int *timeout_ms) {
    struct tandem_wait wait;
    int result = tandem_dispatch(self->client, self->on_event, self->context);
    *timeout_ms = 0;
    if (result == TANDEM_MISUSE || result == TANDEM_SYSTEM) {
        return result;
    }
    tandem_client_wait_for(self->client, &wait);
    *timeout_ms = result == TANDEM_OK ? 0 : wait.timeout_ms;
    if (self->wanted.events != tandem_epoll_events(wait.events)) {
        self->wanted.events = tandem_epoll_events(wait.events);
        if (epoll_ctl(self->epoll_fd, EPOLL_CTL_MOD, self->fd, &self->wanted) != 0) {
            return TANDEM_SYSTEM;
        }
    }
    return result == TANDEM_AGAIN ? TANDEM_OK : result;
}

/* Takes the client out of the set. To be called before tandem_client_free. */
static inline void tandem_epoll_remove(struct tandem_epoll *self) {
    epoll_ctl(self->epoll_fd, EPOLL_CTL_DEL, self->fd, NULL);
}

#ifdef __cplusplus
}
#endif

#endif
