/* The shell around the session core: descriptors, the clock, and the calls of the public header. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "runtime/client/core.h"
#include "runtime/client/request.h"
#include "runtime/client/tcp.h"

#define READ_BYTES 65536
#define READS_AT_ONCE 16 /* so that a fast server does not keep a call from returning */

struct tandem_client {
    struct core core; /* first, so that a stream's core is its client */
    pid_t pid;
    int poll_fd;         /* epoll: the connection and the wake-up */
    int wake_fd;         /* eventfd that tandem_stream_cancel writes */
    atomic_bool cancels; /* some stream's `cancel` was set, and wake_fd written */
    struct tandem_transport transport;
    void *connection; /* NULL: none */
    bool has_more;    /* it may hold bytes that its descriptor says nothing of */
    int watched_fd;   /* in poll_fd for the connection; -1: none */
    short watched_events;
    char **servers;
    uint32_t n_servers;
    uint8_t bytes[READ_BYTES];
};

static struct tandem_client *client_of(const struct tandem_stream *stream) {
    return (struct tandem_client *)stream->core;
}

static uint64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static bool is_foreign(const struct tandem_client *client) {
    return client->pid != getpid();
}

/* ---- life */

static uint32_t or_default(uint32_t value, uint32_t standard) {
    return value != 0 ? value : standard;
}

static bool are_valid(const struct tandem_options *options) {
    if (options == NULL || options->size < sizeof *options || options->servers == NULL || options->n_servers == 0 ||
        options->n_servers > UINT16_MAX || options->credit > TSP_MAX_CREDIT) {
        return false;
    }
    for (size_t i = 0; i < options->n_servers; i++) {
        if (options->servers[i] == NULL || (options->transport == NULL && !tcp_is_address(options->servers[i]))) {
            return false;
        }
    }
    const struct tandem_transport *transport = options->transport;
    return (options->key == NULL || strlen(options->key) <= TSP_MAX_KEY_BYTES) &&
           (options->name == NULL || strlen(options->name) <= TSP_MAX_NAME_BYTES) &&
           (transport == NULL || (transport->open != NULL && transport->read != NULL && transport->write != NULL &&
                                  transport->descriptor != NULL && transport->close != NULL));
}

static bool copy_servers(struct tandem_client *client, const struct tandem_options *options) {
    client->servers = calloc(options->n_servers, sizeof client->servers[0]);
    client->n_servers = client->servers != NULL ? (uint32_t)options->n_servers : 0;
    bool whole = client->servers != NULL;
    for (size_t i = 0; whole && i < options->n_servers; i++) {
        client->servers[i] = strdup(options->servers[i]);
        whole = client->servers[i] != NULL;
    }
    return whole;
}

static bool open_descriptors(struct tandem_client *client) {
    client->poll_fd = epoll_create1(EPOLL_CLOEXEC);
    client->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event wake = {.events = EPOLLIN};
    return client->poll_fd >= 0 && client->wake_fd >= 0 &&
           epoll_ctl(client->poll_fd, EPOLL_CTL_ADD, client->wake_fd, &wake) == 0;
}

int tandem_client_create(const struct tandem_options *options, struct tandem_client **made) {
    *made = NULL;
    if (!are_valid(options)) {
        return TANDEM_MISUSE;
    }
    struct tandem_client *client = calloc(1, sizeof *client);
    if (client == NULL) {
        return TANDEM_NO_MEMORY;
    }
    struct core_options core = {.n_servers = (uint32_t)options->n_servers,
                                .connect_timeout_ms = or_default(options->connect_timeout_ms, 5000),
                                .give_up_ms = or_default(options->give_up_ms, 60000),
                                .failover_ms = or_default(options->failover_ms, 10000),
                                .credit = or_default(options->credit, 512)};
    snprintf(core.key, sizeof core.key, "%s", options->key != NULL ? options->key : "");
    snprintf(core.name, sizeof core.name, "%s", options->name != NULL ? options->name : "");
    core_init(&client->core, &core);
    client->pid = getpid();
    client->transport = options->transport != NULL ? *options->transport : tcp_transport;
    client->poll_fd = client->wake_fd = client->watched_fd = -1;
    int result = copy_servers(client, options) ? TANDEM_OK : TANDEM_NO_MEMORY;
    if (result == TANDEM_OK && !open_descriptors(client)) {
        result = TANDEM_SYSTEM;
    }
    if (result != TANDEM_OK) {
        tandem_client_free(client);
        return result;
    }
    *made = client;
    return TANDEM_OK;
}

void tandem_client_free(struct tandem_client *client) {
    if (client == NULL) {
        return;
    }
    if (client->connection != NULL && client->core.link == LINK_OPEN && !is_foreign(client)) {
        core_bye(&client->core);
        client->transport.write(client->connection, client->core.out.data, client->core.out.size);
    }
    /* A child's copy of a TCP connection can be closed unnoticed; what a user's transport would do is not known. */
    if (client->connection != NULL && (!is_foreign(client) || client->transport.close == tcp_transport.close)) {
        client->transport.close(client->connection);
    }
    core_free(&client->core);
    if (client->poll_fd >= 0) {
        close(client->poll_fd);
    }
    if (client->wake_fd >= 0) {
        close(client->wake_fd);
    }
    for (uint32_t i = 0; i < client->n_servers; i++) {
        free(client->servers[i]);
    }
    free(client->servers);
    free(client);
}

/* ---- the connection */

static void unwatch(struct tandem_client *client) {
    if (client->watched_fd >= 0) {
        epoll_ctl(client->poll_fd, EPOLL_CTL_DEL, client->watched_fd, NULL);
        client->watched_fd = -1;
    }
}

static void close_connection(struct tandem_client *client) {
    unwatch(client);
    client->transport.close(client->connection);
    client->connection = NULL;
    client->has_more = false;
}

static void open_connection(struct tandem_client *client) {
    struct core *core = &client->core;
    int error = client->transport.open(client->transport.context, client->servers[core->server], &client->connection);
    core_opened(core, now_ms());
    if (error != 0) {
        client->connection = NULL;
        core_lost(core, strerror(-error), now_ms());
    }
}

/* Sends what is there. Returns 0, or the negative errno of a broken connection. */
static ptrdiff_t send_out(struct tandem_client *client) {
    struct buffer *out = &client->core.out;
    ptrdiff_t n = 1;
    size_t at = 0;
    while (at < out->size && n > 0) {
        n = client->transport.write(client->connection, out->data + at, out->size - at);
        at += n > 0 ? (size_t)n : 0;
    }
    buffer_consume(out, at);
    return n >= 0 || n == -EAGAIN ? 0 : n;
}

/* Reads until nothing is left. A socket says so by a short read too; a user's transport, which may have taken more off
 * its descriptor than it hands out at once, by -EAGAIN alone. */
static ptrdiff_t receive(struct tandem_client *client) {
    struct core *core = &client->core;
    bool is_socket = client->transport.read == tcp_transport.read;
    client->has_more = false;
    for (int i = 0; i < READS_AT_ONCE && core->link != LINK_NONE; i++) {
        ptrdiff_t n = client->transport.read(client->connection, client->bytes, sizeof client->bytes);
        if (n <= 0) {
            return n == -EAGAIN ? 0 : n == 0 ? -ECONNRESET : n;
        }
        core_feed(core, client->bytes, (size_t)n, now_ms());
        if (is_socket && (size_t)n < sizeof client->bytes) {
            return 0;
        }
    }
    client->has_more = true;
    return 0;
}

/* Has poll_fd watch the connection for what is wanted of it now. While it is made its descriptor may be closed and
 * another one get the same number: so it is registered anew each time. */
static void watch(struct tandem_client *client) {
    if (client->connection == NULL) {
        return;
    }
    int fd = client->transport.descriptor(client->connection);
    short events = client->core.out.size > 0 ? POLLIN | POLLOUT : POLLIN;
    if (client->transport.events != NULL) {
        events = client->transport.events(client->connection, events);
    }
    if (fd != client->watched_fd) {
        unwatch(client);
    }
    bool stale = client->core.link == LINK_GREETING || fd != client->watched_fd || events != client->watched_events;
    struct epoll_event wanted = {.events = (events & POLLIN) != 0 ? EPOLLIN : 0};
    wanted.events |= (events & POLLOUT) != 0 ? (uint32_t)EPOLLOUT : 0;
    if (fd >= 0 && stale && epoll_ctl(client->poll_fd, EPOLL_CTL_MOD, fd, &wanted) != 0) {
        epoll_ctl(client->poll_fd, EPOLL_CTL_ADD, fd, &wanted);
    }
    client->watched_fd = fd;
    client->watched_events = events;
}

static void pump(struct tandem_client *client) {
    struct core *core = &client->core;
    if (client->connection != NULL) {
        ptrdiff_t error = receive(client);
        if (error != 0 && core->link != LINK_NONE) {
            core_lost(core, strerror((int)-error), now_ms());
        }
    }
    core_tick(core, now_ms());
    if (client->connection != NULL && core->link == LINK_NONE) {
        close_connection(client);
    }
    if (client->connection == NULL && core_wants_connection(core)) {
        open_connection(client);
    }
    if (client->connection != NULL) {
        ptrdiff_t error = send_out(client);
        if (error != 0) {
            core_lost(core, strerror((int)-error), now_ms());
            close_connection(client);
        }
    }
}

int tandem_client_process(struct tandem_client *client) {
    uint64_t woken;
    if (is_foreign(client)) {
        return TANDEM_MISUSE;
    }
    /* The flag goes down before the wake-up is taken: a cancel that comes in between raises it again. */
    if (atomic_exchange(&client->cancels, false)) {
        if (read(client->wake_fd, &woken, sizeof woken) < 0 && errno != EAGAIN) {
            return TANDEM_SYSTEM;
        }
        streams_cancel(&client->core);
    }
    pump(client);
    watch(client);
    return TANDEM_OK;
}

void tandem_client_wait_for(struct tandem_client *client, struct tandem_wait *wait) {
    if (is_foreign(client)) { /* what it would change is the parent's */
        *wait = (struct tandem_wait){.fd = -1, .timeout_ms = 0};
        return;
    }
    uint64_t now = now_ms();
    uint64_t at = core_deadline(&client->core);
    *wait = (struct tandem_wait){.fd = client->poll_fd, .events = POLLIN, .timeout_ms = -1};
    watch(client);
    if (client->has_more) {
        at = now;
    }
    if (at != NEVER) {
        uint64_t left = at > now ? at - now : 0;
        wait->timeout_ms = left < INT32_MAX ? (int)left : INT32_MAX;
    }
}

/* Waits until there may be something, but no longer than until `end_ms`. */
static void wait_until(struct tandem_client *client, uint64_t end_ms) {
    struct tandem_wait wait;
    tandem_client_wait_for(client, &wait);
    uint64_t now = now_ms();
    uint64_t left = end_ms > now ? end_ms - now : 0;
    if (end_ms != NEVER && (wait.timeout_ms < 0 || left < (uint64_t)wait.timeout_ms)) {
        wait.timeout_ms = left < INT32_MAX ? (int)left : INT32_MAX;
    }
    struct pollfd descriptor = {.fd = wait.fd, .events = wait.events};
    poll(&descriptor, 1, wait.timeout_ms);
}

/* ---- streams */

static bool make_id(uint8_t id[TSP_ID_BYTES]) {
    ssize_t n;
    do {
        n = getrandom(id, TSP_ID_BYTES, 0);
    } while (n < 0 && errno == EINTR);
    return n == TSP_ID_BYTES;
}

int tandem_submit(struct tandem_client *client, const struct tandem_request *request, struct tandem_stream **stream) {
    uint8_t id[TSP_ID_BYTES];
    uint8_t head[TSP_FIELD_HEADER_BYTES + TSP_ID_BYTES];
    *stream = NULL;
    if (is_foreign(client)) {
        return TANDEM_MISUSE;
    }
    if (request == NULL || request->result != TANDEM_OK) {
        return request == NULL ? TANDEM_NO_MEMORY : request->result;
    }
    if (!make_id(id)) {
        return TANDEM_SYSTEM;
    }
    struct tsp_writer writer = tsp_writer(head, sizeof head);
    tsp_put_bytes(&writer, TSP_SUBMIT_REQUEST_ID, id, sizeof id);
    struct buffer fields = {0};
    buffer_append(&fields, head, sizeof head);
    buffer_append(&fields, request->fields.data, request->fields.size);
    uint64_t now = now_ms();
    bool limited = request->timeout_ms > 0 && request->timeout_ms < NEVER - now;
    if (!fields.failed) {
        *stream = stream_create(&client->core, id, &fields, limited ? now + request->timeout_ms : NEVER);
    }
    buffer_free(&fields);
    return *stream != NULL ? TANDEM_OK : TANDEM_NO_MEMORY;
}

void tandem_stream_id(const struct tandem_stream *stream, uint8_t id[TANDEM_ID_BYTES]) {
    memcpy(id, stream->id, TANDEM_ID_BYTES);
}

int tandem_resume(struct tandem_client *client, const uint8_t id[TANDEM_ID_BYTES], const uint64_t *offsets,
                  size_t n_offsets, struct tandem_stream **stream) {
    *stream = NULL;
    if (is_foreign(client) || id == NULL || n_offsets > TSP_MAX_CHOICES || (offsets == NULL && n_offsets > 0)) {
        return TANDEM_MISUSE;
    }
    *stream = stream_resume(&client->core, id, offsets, (uint32_t)n_offsets);
    return *stream != NULL ? TANDEM_OK : TANDEM_NO_MEMORY;
}

void tandem_stream_leave(struct tandem_stream *stream) {
    if (stream != NULL && !is_foreign(client_of(stream))) {
        stream_destroy(stream);
    }
}

void tandem_stream_free(struct tandem_stream *stream) {
    if (stream != NULL && !is_foreign(client_of(stream))) {
        stream_free(stream);
    }
}

void tandem_stream_cancel(struct tandem_stream *stream) {
    struct tandem_client *client = client_of(stream);
    uint64_t one = 1;
    if (is_foreign(client) || atomic_exchange(&stream->cancel, true)) {
        return;
    }
    while (write(client->wake_fd, &one, sizeof one) < 0 && errno == EINTR) {
    }
    atomic_store(&client->cancels, true); /* last: who sees it takes the wake-up away */
}

static uint64_t end_of(int timeout_ms) {
    return timeout_ms < 0 ? NEVER : now_ms() + (uint64_t)timeout_ms;
}

int tandem_stream_next(struct tandem_stream *stream, int timeout_ms, struct tandem_event *event) {
    struct tandem_client *client = client_of(stream);
    if (is_foreign(client)) {
        return TANDEM_MISUSE;
    }
    int result = pieces_read(stream, event);
    if (result != TANDEM_AGAIN) {
        return result;
    }
    uint64_t end_ms = end_of(timeout_ms);
    for (;;) {
        tandem_client_process(client);
        result = pieces_read(stream, event);
        if (result != TANDEM_AGAIN || (end_ms != NEVER && now_ms() >= end_ms)) {
            return result;
        }
        wait_until(client, end_ms);
    }
}

/* One event, end or failure of any stream; TANDEM_AGAIN without one. */
static int read_any(struct core *core, struct tandem_stream **stream, struct tandem_event *event) {
    while ((*stream = stream_next_ready(core)) != NULL) {
        int result = pieces_read(*stream, event);
        if (result == TANDEM_OK) {
            stream_set_ready(*stream);
            return result;
        }
        if (result != TANDEM_AGAIN && !(*stream)->told) {
            (*stream)->told = true;
            return result;
        }
    }
    return core->n_live > 0 ? TANDEM_AGAIN : TANDEM_END;
}

int tandem_client_next(struct tandem_client *client, int timeout_ms, struct tandem_stream **stream,
                       struct tandem_event *event) {
    *stream = NULL;
    if (is_foreign(client)) {
        return TANDEM_MISUSE;
    }
    int result = read_any(&client->core, stream, event);
    if (*stream != NULL || result == TANDEM_END) {
        return result;
    }
    uint64_t end_ms = end_of(timeout_ms);
    for (;;) {
        tandem_client_process(client);
        result = read_any(&client->core, stream, event);
        if (result != TANDEM_AGAIN || (end_ms != NEVER && now_ms() >= end_ms)) {
            return result;
        }
        wait_until(client, end_ms);
    }
}

int tandem_client_status(struct tandem_client *client, int timeout_ms, struct tandem_status *status) {
    struct core *core = &client->core;
    if (is_foreign(client) || status == NULL || status->size < sizeof *status) {
        return TANDEM_MISUSE;
    }
    core_ask_status(core);
    uint64_t end_ms = end_of(timeout_ms);
    for (;;) {
        tandem_client_process(client);
        int result = core_take_status(core);
        if (result == TANDEM_OK) {
            break;
        }
        if (result != TANDEM_AGAIN || (end_ms != NEVER && now_ms() >= end_ms)) {
            return result;
        }
        wait_until(client, end_ms);
    }
    const struct tsp_status_reply *reply = &core->status;
    *status = (struct tandem_status){.size = status->size,
                                     .server = client->servers[core->status_server],
                                     .running = reply->running,
                                     .waiting = reply->waiting,
                                     .queue_max = reply->queue_max,
                                     .kv_used = reply->kv_used,
                                     .replicas = reply->replicas,
                                     .replicas_up = reply->replicas_up,
                                     .draining = reply->draining != 0,
                                     .requests = reply->requests,
                                     .max_model_len = core->welcome.max_model_len};
    memcpy(status->model, core->model, sizeof status->model);
    return TANDEM_OK;
}

bool tandem_stream_error(const struct tandem_stream *stream, struct tandem_error *error) {
    if (stream->result == TANDEM_AGAIN || stream->result == TANDEM_END) {
        return false;
    }
    *error = (struct tandem_error){.code = stream->result,
                                   .message = stream->message != NULL ? stream->message : "",
                                   .param = stream->param != NULL ? stream->param : "",
                                   .retry_after_ms = stream->retry_after_ms};
    return true;
}

void tandem_stream_set_user(struct tandem_stream *stream, void *user) {
    stream->user = user;
}

void *tandem_stream_user(const struct tandem_stream *stream) {
    return stream->user;
}

uint64_t tandem_client_reconnects(const struct tandem_client *client) {
    return client->core.reconnects;
}

/* ---- log-probabilities */

/* The entry that `next` reads off the cursor's bytes. */
static bool take(struct tandem_logprob_cursor *cursor, struct tandem_logprob *entry, uint32_t *n_alternatives) {
    struct byte_reader reader = {.next = cursor->next, .left = cursor->left};
    struct tsp_logprob read = {0};
    if (cursor->left == 0 ||
        !(n_alternatives != NULL ? tsp_next_logprob(&reader, &read, n_alternatives) : tsp_next_top(&reader, &read))) {
        return false;
    }
    *entry = (struct tandem_logprob){
        .id = read.id, .logprob = read.logprob, .bytes = (const char *)read.text.data, .size = read.text.size};
    *cursor = (struct tandem_logprob_cursor){.next = reader.next, .left = reader.left};
    return true;
}

bool tandem_logprob_next(struct tandem_logprob_cursor *cursor, struct tandem_logprob *chosen,
                         uint32_t *n_alternatives) {
    return take(cursor, chosen, n_alternatives);
}

bool tandem_logprob_alternative(struct tandem_logprob_cursor *cursor, struct tandem_logprob *alternative) {
    return take(cursor, alternative, NULL);
}
