/* The client's calls over a transport of the user's. */
#include <poll.h>
#include <pthread.h>
#include <sys/wait.h>

#include "tests/client/support_wire.h"

TEST(options_are_checked) {
    const char *const good[] = {"tcp://[::1]:8001", "localhost:1", "localhost:65535"};
    const char *const bad[] = {
        "localhost", "localhost:", ":1",          "::1:8001",        "localhost:http",
        "[]:1",      "",           "localhost:0", "localhost:65536", "localhost:99999999999999999999"};
    struct tandem_client *client;
    struct tandem_options options = {.size = sizeof options, .servers = good, .n_servers = 3};
    EXPECT_EQ(tandem_client_create(&options, &client), TANDEM_OK);
    tandem_client_free(client);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        options = (struct tandem_options){.size = sizeof options, .servers = &bad[i], .n_servers = 1};
        EXPECT_EQ(tandem_client_create(&options, &client), TANDEM_MISUSE);
        EXPECT(client == NULL);
    }
    options = (struct tandem_options){.size = sizeof options};
    EXPECT_EQ(tandem_client_create(&options, &client), TANDEM_MISUSE);
    options = (struct tandem_options){.servers = good, .n_servers = 1};
    EXPECT_EQ(tandem_client_create(&options, &client), TANDEM_MISUSE);
}

TEST(an_event_loop_sees_every_step) {
    struct wire wire = {0};
    struct tandem_client *client = connect_to(&wire);
    struct tandem_stream *stream = ask(client);
    struct tandem_stream *of;
    struct tandem_event event;
    struct tandem_wait wait;
    serve(&wire, client, 1);
    EXPECT_EQ(tandem_client_process(client), TANDEM_OK); /* ACCEPTED */
    EXPECT_EQ(tandem_client_next(client, 0, &of, &event), TANDEM_AGAIN);
    tandem_client_wait_for(client, &wait);
    struct pollfd descriptor = {.fd = wait.fd, .events = wait.events};
    EXPECT(wait.timeout_ms > 0 && wait.timeout_ms <= 60000); /* until PING */
    EXPECT_EQ(poll(&descriptor, 1, 0), 0);
    end(&wire, 1, TSP_FINISH_STOP);
    EXPECT_EQ(poll(&descriptor, 1, 10000), 1);
    tandem_client_process(client);
    EXPECT_EQ(tandem_client_next(client, 0, &of, &event), TANDEM_OK);
    EXPECT(of == stream && event.last && event.finish == TANDEM_FINISH_STOP);
    EXPECT_EQ(tandem_client_next(client, 0, &of, &event), TANDEM_END);
    EXPECT(of == stream);
    EXPECT_EQ(tandem_client_next(client, 0, &of, &event), TANDEM_END);
    EXPECT(of == NULL);
    EXPECT_EQ(hear(&wire, TSP_ACK), 1);
    EXPECT_EQ(hear(&wire, TSP_PING), 0);
    tandem_client_free(client);
    EXPECT_EQ(hear(&wire, TSP_BYE), 0);
    EXPECT_EQ(wire.opened, 1);
    EXPECT_EQ(wire.closed, 1);
}

/* Such as TLS does: all is taken off the descriptor, and handed out in parts. */
static uint8_t taken[ROOM];
static size_t n_taken, n_given;

static ptrdiff_t read_in_parts(void *connection, void *bytes, size_t size) {
    if (n_given == n_taken) {
        ptrdiff_t n = wire_read(connection, taken, sizeof taken);
        if (n <= 0) {
            return n;
        }
        n_taken = (size_t)n;
        n_given = 0;
    }
    size_t left = n_taken - n_given;
    size_t n = left < 3 ? left : 3;
    EXPECT(n <= size);
    memcpy(bytes, taken + n_given, n);
    n_given += n;
    return (ptrdiff_t)n;
}

TEST(bytes_that_a_transport_holds_are_not_waited_for) {
    struct wire wire = {0};
    struct tandem_client *client = connect_reading(&wire, read_in_parts);
    struct tandem_stream *stream = ask(client);
    struct tandem_event event;
    struct tandem_wait wait;
    tandem_client_process(client);
    welcome(&wire);
    unsigned n = 0;
    do {
        EXPECT_EQ(tandem_client_process(client), TANDEM_OK);
        tandem_client_wait_for(client, &wait);
        n++;
    } while (wait.timeout_ms == 0);
    EXPECT(n > 1);
    accept_stream(&wire, hear(&wire, TSP_SUBMIT));
    end(&wire, 1, TSP_FINISH_STOP);
    EXPECT_EQ(tandem_stream_next(stream, TANDEM_FOREVER, &event), TANDEM_OK);
    EXPECT(event.last);
    tandem_client_free(client);
}

TEST(streams_take_turns) {
    struct wire wire = {0};
    struct tandem_client *client = connect_to(&wire);
    struct tandem_stream *of[4];
    struct tandem_event event;
    ask(client);
    ask(client);
    serve(&wire, client, 2);
    for (uint64_t offset = 0; offset < 2; offset++) {
        token(&wire, 1, offset);
    }
    for (uint64_t offset = 0; offset < 2; offset++) {
        token(&wire, 2, offset);
    }
    for (int i = 0; i < 4; i++) {
        EXPECT_EQ(tandem_client_next(client, TANDEM_FOREVER, &of[i], &event), TANDEM_OK);
    }
    EXPECT(of[0] != of[1] && of[0] == of[2] && of[1] == of[3]);
    tandem_client_free(client);
}

TEST(a_lost_connection_is_made_again) {
    struct wire wire = {0};
    struct tandem_client *client = connect_to(&wire);
    struct tandem_stream *stream = ask(client);
    struct tandem_event event;
    serve(&wire, client, 1);
    token(&wire, 1, 0);
    EXPECT_EQ(tandem_stream_next(stream, TANDEM_FOREVER, &event), TANDEM_OK);
    close(wire.server);
    tandem_client_process(client);
    EXPECT_EQ(wire.opened, 2);
    EXPECT_EQ(wire.closed, 1);
    welcome(&wire);
    tandem_client_process(client);
    EXPECT_EQ(hear(&wire, TSP_RESUME), 1);
    EXPECT_EQ(tandem_client_reconnects(client), 1);
    tandem_client_free(client);
}

TEST(a_stream_that_is_left_is_taken_up_by_its_id) {
    struct wire wire = {0};
    struct wire other = {0};
    struct tandem_client *client = connect_to(&wire);
    struct tandem_client *heir = connect_to(&other);
    struct tandem_stream *stream = ask(client);
    struct tandem_stream *resumed;
    struct tandem_event event;
    uint8_t id[TANDEM_ID_BYTES];
    static const uint64_t offsets[200] = {1};
    serve(&wire, client, 1);
    token(&wire, 1, 0);
    EXPECT_EQ(tandem_stream_next(stream, TANDEM_FOREVER, &event), TANDEM_OK);
    tandem_stream_id(stream, id);
    EXPECT(memcmp(id, wire.ids[1], sizeof id) == 0);
    tandem_stream_leave(stream);
    tandem_client_free(client);
    EXPECT_EQ(hear(&wire, TSP_BYE), 0); /* and neither CANCEL nor ACK before it */

    EXPECT_EQ(tandem_resume(heir, id, offsets, 200, &resumed), TANDEM_MISUSE);
    EXPECT_EQ(tandem_resume(heir, id, NULL, 1, &resumed), TANDEM_MISUSE);
    EXPECT(resumed == NULL);
    EXPECT_EQ(tandem_resume(heir, id, offsets, 1, &resumed), TANDEM_OK);
    tandem_client_process(heir);
    welcome(&other);
    tandem_client_process(heir);
    EXPECT_EQ(hear(&other, TSP_RESUME), 1);
    memcpy(other.ids[1], id, sizeof id);
    accept_stream(&other, 1);
    token(&other, 1, 1);
    EXPECT_EQ(tandem_stream_next(resumed, TANDEM_FOREVER, &event), TANDEM_OK);
    EXPECT_EQ(event.offset, 1);
    tandem_client_free(heir);
    EXPECT_EQ(hear(&other, TSP_ACK), 0); /* what nobody left is given up */
}

static void *answer_status(void *context) {
    struct wire *wire = context;
    struct tsp_message message = {.type = TSP_STATUS_REPLY, .body.status = {.waiting = 3, .kv_used = 0.5f}};
    for (unsigned tag = TSP_STATUS_RUNNING; tag <= TSP_STATUS_REQUESTS; tag += 2) {
        message.given |= 1u << tag;
    }
    hear(wire, TSP_STATUS);
    say(wire, &message);
    return NULL;
}

TEST(status_is_waited_for) {
    struct wire wire = {0};
    struct tandem_client *client = connect_to(&wire);
    struct tandem_status status = {.size = sizeof status};
    struct tandem_status small = {0};
    pthread_t thread;
    EXPECT_EQ(tandem_client_status(client, 0, &small), TANDEM_MISUSE);
    EXPECT_EQ(tandem_client_status(client, 0, &status), TANDEM_AGAIN);
    welcome(&wire);
    EXPECT(pthread_create(&thread, NULL, answer_status, &wire) == 0);
    EXPECT_EQ(tandem_client_status(client, TANDEM_FOREVER, &status), TANDEM_OK);
    pthread_join(thread, NULL);
    EXPECT_TEXT(status.server, "the other end");
    EXPECT(status.waiting == 3 && status.kv_used == 0.5f && !status.draining && status.size == sizeof status);
    tandem_client_free(client);
}

static void *cancel_soon(void *stream) {
    tandem_stream_cancel(stream);
    tandem_stream_cancel(stream);
    return NULL;
}

static void *answer_cancel(void *wire) {
    end(wire, hear(wire, TSP_CANCEL), TSP_FINISH_CANCELLED);
    return NULL;
}

TEST(another_threads_cancel_wakes_who_waits) {
    struct wire wire = {0};
    struct tandem_client *client = connect_to(&wire);
    struct tandem_stream *stream = ask(client);
    struct tandem_event event;
    pthread_t threads[2];
    serve(&wire, client, 1);
    EXPECT(pthread_create(&threads[0], NULL, answer_cancel, &wire) == 0);
    EXPECT(pthread_create(&threads[1], NULL, cancel_soon, stream) == 0);
    EXPECT_EQ(tandem_stream_next(stream, TANDEM_FOREVER, &event), TANDEM_OK);
    EXPECT_EQ(event.finish, TANDEM_FINISH_CANCELLED);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    EXPECT_EQ(tandem_stream_next(stream, 0, &event), TANDEM_END);
    tandem_client_free(client);
}

static struct tandem_stream *cancelled_in_read;

static ptrdiff_t cancel_and_read(void *connection, void *bytes, size_t size) {
    if (cancelled_in_read != NULL) {
        tandem_stream_cancel(cancelled_in_read);
    }
    return wire_read(connection, bytes, size);
}

/* As another thread's may be: while the client is at work on the cancel before it. */
TEST(a_cancel_in_the_middle_of_the_work_leaves_no_wake_up_behind) {
    struct wire wire = {0};
    struct tandem_client *client = connect_reading(&wire, cancel_and_read);
    struct tandem_stream *first = ask(client);
    struct tandem_stream *second = ask(client);
    struct tandem_wait wait;
    serve(&wire, client, 2);
    tandem_stream_cancel(first);
    cancelled_in_read = second;
    for (int i = 0; i < 2; i++) {
        EXPECT_EQ(tandem_client_process(client), TANDEM_OK);
    }
    EXPECT_EQ(hear(&wire, TSP_CANCEL) + hear(&wire, TSP_CANCEL), 3);
    tandem_client_wait_for(client, &wait);
    struct pollfd descriptor = {.fd = wait.fd, .events = wait.events};
    EXPECT_EQ(poll(&descriptor, 1, 0), 0); /* else whoever waits on it never sleeps again */
    tandem_client_free(client);
}

TEST(a_forked_child_leaves_the_connection_alone) {
    struct wire wire = {0};
    struct tandem_client *client = connect_to(&wire);
    struct tandem_stream *stream = ask(client);
    struct tandem_stream *another;
    struct tandem_event event;
    int status;
    serve(&wire, client, 1);
    pid_t child = fork();
    if (child == 0) {
        struct tandem_wait wait;
        tandem_client_wait_for(client, &wait);
        bool refused = tandem_stream_next(stream, 0, &event) == TANDEM_MISUSE &&
                       tandem_client_next(client, 0, &another, &event) == TANDEM_MISUSE &&
                       tandem_client_process(client) == TANDEM_MISUSE && wait.fd == -1;
        tandem_stream_cancel(stream);
        tandem_stream_free(stream);
        tandem_client_free(client);
        _exit(refused && wire.closed == 0 ? 0 : 1);
    }
    EXPECT(waitpid(child, &status, 0) == child && status == 0);
    EXPECT_EQ(tandem_stream_next(stream, 0, &event), TANDEM_AGAIN);
    end(&wire, 1, TSP_FINISH_STOP);
    EXPECT_EQ(tandem_stream_next(stream, TANDEM_FOREVER, &event), TANDEM_OK);
    EXPECT_EQ(hear(&wire, TSP_ACK), 1); /* and no CANCEL before it */
    tandem_client_free(client);
}

TEST(a_server_that_is_not_there_is_given_up) {
    const char *const servers[] = {"127.0.0.1:1", "[::1]:1"};
    struct tandem_options options = {.size = sizeof options, .servers = servers, .n_servers = 2, .give_up_ms = 50};
    struct tandem_client *client;
    struct tandem_error error;
    struct tandem_event event;
    EXPECT_EQ(tandem_client_create(&options, &client), TANDEM_OK);
    struct tandem_stream *stream = ask(client);
    EXPECT(!tandem_stream_error(stream, &error));
    EXPECT_EQ(tandem_stream_next(stream, TANDEM_FOREVER, &event), TANDEM_UNREACHABLE);
    EXPECT(tandem_stream_error(stream, &error));
    EXPECT(strstr(error.message, "no server answers") != NULL);
    tandem_client_free(client);
}
