/* The adapters of event loops, over a transport of the user's. */
#include <tandem/epoll.h>
#include <tandem/uv.h>

#include "tests/client/support_wire.h"

/* The stream of the next SUBMIT, behind whatever else the client has to say. */
static uint32_t hear_submit(struct wire *wire) {
    enum tsp_type type;
    uint32_t stream;
    do {
        stream = hear_any(wire, &type);
    } while (type != TSP_SUBMIT);
    return stream;
}

/* What `note` was handed. */
struct notes {
    unsigned pieces, ends, failures;
    struct tandem_client *client;
    bool asks_again;          /* at the first end */
    struct tandem_uv *closes; /* at the last */
    bool closed;
};

static void set_flag(void *notes) {
    ((struct notes *)notes)->closed = true;
}

static void note(void *context, struct tandem_stream *stream, int result, const struct tandem_event *event) {
    struct notes *notes = context;
    EXPECT((event != NULL) == (result == TANDEM_OK));
    notes->pieces += result == TANDEM_OK;
    notes->ends += result == TANDEM_END;
    notes->failures += result != TANDEM_OK && result != TANDEM_END;
    if (result == TANDEM_OK) {
        return;
    }
    tandem_stream_free(stream);
    if (notes->asks_again) {
        notes->asks_again = false;
        ask(notes->client);
    } else if (notes->closes != NULL) {
        tandem_uv_close(notes->closes, set_flag);
    }
}

/* ---- epoll */

struct set {
    struct wire wire;
    struct notes notes;
    struct tandem_client *client;
    struct tandem_epoll loop;
    int fd;
};

static void set_up(struct set *set) {
    epoll_data_t data = {.ptr = &set->loop};
    memset(set, 0, sizeof *set);
    set->client = set->notes.client = connect_to(&set->wire);
    set->fd = epoll_create1(EPOLL_CLOEXEC);
    EXPECT(set->fd >= 0);
    EXPECT_EQ(tandem_epoll_add(&set->loop, set->fd, data, set->client, note, &set->notes), TANDEM_OK);
}

static void tear_down(struct set *set) {
    struct epoll_event event;
    tandem_epoll_remove(&set->loop);
    tandem_client_free(set->client);
    EXPECT_EQ(epoll_wait(set->fd, &event, 1, 0), 0);
    close(set->fd);
}

TEST(an_epoll_set_serves_a_client) {
    struct set set;
    struct epoll_event event;
    int timeout_ms;
    set_up(&set);
    EXPECT_EQ(tandem_epoll_serve(&set.loop, &timeout_ms), TANDEM_END);
    ask(set.client);
    EXPECT_EQ(tandem_epoll_serve(&set.loop, &timeout_ms), TANDEM_OK);
    EXPECT(timeout_ms > 0 && timeout_ms <= 5000); /* of the connection */
    EXPECT_EQ(epoll_wait(set.fd, &event, 1, 0), 0);
    welcome(&set.wire);
    EXPECT_EQ(epoll_wait(set.fd, &event, 1, 10000), 1);
    EXPECT_EQ(tandem_epoll_serve(&set.loop, &timeout_ms), TANDEM_OK);
    accept_stream(&set.wire, hear(&set.wire, TSP_SUBMIT));
    token(&set.wire, 1, 0);
    EXPECT_EQ(epoll_wait(set.fd, &event, 1, 10000), 1);
    EXPECT(event.data.ptr == &set.loop);
    EXPECT_EQ(tandem_epoll_serve(&set.loop, &timeout_ms), TANDEM_OK);
    EXPECT_EQ(set.notes.pieces, 1);
    EXPECT_EQ(epoll_wait(set.fd, &event, 1, 0), 0);
    tear_down(&set);
}

TEST(a_request_from_a_handler_is_sent_before_the_wait) {
    struct set set;
    int timeout_ms;
    set_up(&set);
    set.notes.asks_again = true;
    ask(set.client);
    serve(&set.wire, set.client, 1);
    end(&set.wire, 1, TSP_FINISH_STOP);
    EXPECT_EQ(tandem_epoll_serve(&set.loop, &timeout_ms), TANDEM_OK);
    EXPECT_EQ(set.notes.ends, 1);
    EXPECT_EQ(hear_submit(&set.wire), 2);
    accept_stream(&set.wire, 2);
    end(&set.wire, 2, TSP_FINISH_STOP);
    EXPECT_EQ(tandem_epoll_serve(&set.loop, &timeout_ms), TANDEM_END);
    EXPECT_EQ(set.notes.ends, 2);
    tear_down(&set);
}

TEST(failures_reach_the_handler) {
    const char *const servers[] = {"127.0.0.1:1"};
    struct tandem_options options = {.size = sizeof options, .servers = servers, .n_servers = 1, .give_up_ms = 50};
    struct notes notes = {0};
    struct tandem_client *client;
    struct tandem_epoll loop;
    struct epoll_event event;
    epoll_data_t data = {.fd = -1};
    int timeout_ms;
    int fd = epoll_create1(EPOLL_CLOEXEC);
    EXPECT_EQ(tandem_client_create(&options, &client), TANDEM_OK);
    EXPECT_EQ(tandem_epoll_add(&loop, fd, data, client, note, &notes), TANDEM_OK);
    ask(client);
    while (tandem_epoll_serve(&loop, &timeout_ms) == TANDEM_OK) {
        epoll_wait(fd, &event, 1, timeout_ms);
    }
    EXPECT_EQ(notes.failures, 1);
    EXPECT_EQ(notes.pieces + notes.ends, 0);
    tandem_epoll_remove(&loop);
    tandem_client_free(client);
    close(fd);
}

TEST(one_client_does_not_keep_the_loop) {
    struct set set;
    int timeout_ms;
    unsigned n = TANDEM_EVENTS_AT_ONCE + 40;
    set_up(&set);
    ask(set.client);
    serve(&set.wire, set.client, 1);
    for (unsigned i = 0; i < n; i++) {
        token(&set.wire, 1, i);
        if (i % 128 == 0) { /* a pair of sockets holds a few hundred */
            tandem_client_process(set.client);
        }
    }
    EXPECT_EQ(tandem_epoll_serve(&set.loop, &timeout_ms), TANDEM_OK);
    EXPECT_EQ(set.notes.pieces, TANDEM_EVENTS_AT_ONCE);
    EXPECT_EQ(timeout_ms, 0);
    EXPECT_EQ(tandem_epoll_serve(&set.loop, &timeout_ms), TANDEM_OK);
    EXPECT_EQ(set.notes.pieces, n);
    EXPECT(timeout_ms > 0);
    tear_down(&set);
}

TEST(a_set_that_is_none_is_refused) {
    struct wire wire = {0};
    struct tandem_client *client = connect_to(&wire);
    struct tandem_epoll loop;
    epoll_data_t data = {.fd = 0};
    EXPECT_EQ(tandem_epoll_add(&loop, -1, data, client, note, NULL), TANDEM_SYSTEM);
    EXPECT_EQ(errno, EBADF);
    tandem_client_free(client);
}

/* ---- libuv */

/* The server's side, played by a timer of the same loop: each step answers what the client has sent by then. */
struct script {
    struct wire *wire;
    unsigned step;
};

static bool was_sent(const struct wire *wire) {
    uint8_t byte;
    return wire->opened > 0 && recv(wire->server, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 1;
}

static void play(uv_timer_t *timer) {
    struct script *script = timer->data;
    struct wire *wire = script->wire;
    if (!was_sent(wire)) {
        return;
    }
    if (script->step == 0) {
        welcome(wire);
    } else {
        EXPECT_EQ(hear_submit(wire), script->step);
        accept_stream(wire, script->step);
        end(wire, script->step, TSP_FINISH_STOP);
    }
    if (++script->step == 3) {
        uv_close((uv_handle_t *)timer, NULL);
    }
}

TEST(a_uv_loop_serves_a_client) {
    struct wire wire = {0};
    struct script script = {.wire = &wire};
    struct tandem_client *client = connect_to(&wire);
    struct tandem_uv adapter;
    struct notes notes = {.client = client, .asks_again = true, .closes = &adapter};
    uv_loop_t loop;
    uv_timer_t timer = {.data = &script};
    EXPECT_EQ(uv_loop_init(&loop), 0);
    EXPECT_EQ(uv_timer_init(&loop, &timer), 0);
    EXPECT_EQ(uv_timer_start(&timer, play, 1, 1), 0);
    EXPECT_EQ(tandem_uv_start(&adapter, &loop, client, note, &notes), 0);
    ask(client);
    EXPECT_EQ(uv_run(&loop, UV_RUN_DEFAULT), 0); /* ends by itself when the adapter and the script are closed */
    EXPECT_EQ(notes.pieces, 2);
    EXPECT_EQ(notes.ends, 2);
    EXPECT_EQ(notes.failures, 0);
    EXPECT_EQ(script.step, 3);
    EXPECT(notes.closed);
    EXPECT_EQ(uv_loop_close(&loop), 0);
    tandem_client_free(client);
}

TEST(a_uv_loop_keeps_the_clients_time) {
    const char *const servers[] = {"127.0.0.1:1"};
    struct tandem_options options = {.size = sizeof options, .servers = servers, .n_servers = 1, .give_up_ms = 50};
    struct tandem_client *client;
    struct tandem_uv adapter;
    struct notes notes = {.closes = &adapter};
    uv_loop_t loop;
    EXPECT_EQ(tandem_client_create(&options, &client), TANDEM_OK);
    EXPECT_EQ(uv_loop_init(&loop), 0);
    EXPECT_EQ(tandem_uv_start(&adapter, &loop, client, note, &notes), 0);
    ask(client);
    EXPECT_EQ(uv_run(&loop, UV_RUN_DEFAULT), 0);
    EXPECT_EQ(notes.failures, 1);
    EXPECT(notes.closed);
    EXPECT_EQ(uv_loop_close(&loop), 0);
    tandem_client_free(client);
}
