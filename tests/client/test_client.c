/* The client's calls over a transport of the user's: a pair of sockets with a scripted server at the other end. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/client/include/tandem/client.h"
#include "runtime/wire/tsp.h"
#include "tests/harness/test.h"

#define ROOM 4096

/* What a transport hands over: the server's end of the last connection, and the client's. */
struct wire {
    int server, client;
    unsigned opened, closed;
    uint8_t ids[4][TSP_ID_BYTES]; /* of the SUBMITs, by stream */
};

static int wire_open(void *context, const char *server, void **connection) {
    struct wire *wire = context;
    int ends[2];
    EXPECT_TEXT(server, "the other end");
    EXPECT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    EXPECT(fcntl(ends[0], F_SETFL, O_NONBLOCK) == 0);
    wire->client = ends[0];
    wire->server = ends[1];
    wire->opened++;
    *connection = wire;
    return 0;
}

static ptrdiff_t wire_read(void *connection, void *bytes, size_t size) {
    ssize_t n = recv(((struct wire *)connection)->client, bytes, size, 0);
    return n >= 0 ? n : -errno;
}

static ptrdiff_t wire_write(void *connection, const void *bytes, size_t size) {
    ssize_t n = send(((struct wire *)connection)->client, bytes, size, MSG_NOSIGNAL);
    return n >= 0 ? n : -errno;
}

static int wire_descriptor(void *connection) {
    return ((struct wire *)connection)->client;
}

static void wire_close(void *connection) {
    struct wire *wire = connection;
    close(wire->client);
    wire->closed++;
}

static struct tandem_client *connect_to(struct wire *wire) {
    static const char *const servers[] = {"the other end"};
    struct tandem_transport transport = {.context = wire,
                                         .open = wire_open,
                                         .read = wire_read,
                                         .write = wire_write,
                                         .descriptor = wire_descriptor,
                                         .close = wire_close};
    struct tandem_options options = {
        .size = sizeof options, .servers = servers, .n_servers = 1, .transport = &transport};
    struct tandem_client *client;
    EXPECT_EQ(tandem_client_create(&options, &client), TANDEM_OK);
    return client;
}

static struct tandem_stream *ask(struct tandem_client *client) {
    struct tandem_request *request = tandem_request_create();
    struct tandem_stream *stream;
    tandem_request_text(request, "prompt", "2+2", 3);
    EXPECT_EQ(tandem_submit(client, request, &stream), TANDEM_OK);
    tandem_request_free(request);
    return stream;
}

/* ---- the server */

static void say(struct wire *wire, const struct tsp_message *message) {
    uint8_t bytes[ROOM];
    struct tsp_writer writer = tsp_writer(bytes, sizeof bytes);
    tsp_encode(&writer, message);
    EXPECT_EQ(write(wire->server, bytes, writer.out.size), writer.out.size);
}

static void take(int fd, void *bytes, size_t size) {
    if (size > 0) { /* for no bytes it would wait too */
        EXPECT_EQ(recv(fd, bytes, size, MSG_WAITALL), size);
    }
}

/* Waits for the next frame, which must be of this type; returns its stream. */
static uint32_t hear(struct wire *wire, enum tsp_type type) {
    uint8_t bytes[ROOM];
    struct tsp_frame frame;
    struct tsp_message message;
    size_t used;
    take(wire->server, bytes, TSP_HEADER_BYTES);
    struct byte_reader header = {.next = bytes, .left = 4};
    take(wire->server, bytes + TSP_HEADER_BYTES, read_u32(&header));
    EXPECT_OK(tsp_frame_decode(bytes, ROOM, ROOM - TSP_HEADER_BYTES, &frame, &used));
    EXPECT_OK(tsp_decode(&frame, &message));
    EXPECT_TEXT(tsp_type_name(message.type), tsp_type_name(type));
    if (type == TSP_SUBMIT) {
        memcpy(wire->ids[message.stream], message.body.submit.request_id, TSP_ID_BYTES);
    }
    return message.stream;
}

static void welcome(struct wire *wire) {
    uint8_t magic[TSP_MAGIC_BYTES];
    struct tsp_message message = {.type = TSP_WELCOME};
    take(wire->server, magic, sizeof magic);
    hear(wire, TSP_HELLO);
    message.body.welcome =
        (struct tsp_welcome){.version = TSP_VERSION, .max_frame = ROOM, .max_streams = 8, .ping_ms = 60000, .life = 1};
    message.given = 1u << TSP_WELCOME_VERSION | 1u << TSP_WELCOME_MAX_FRAME | 1u << TSP_WELCOME_MAX_STREAMS |
                    1u << TSP_WELCOME_RESUME_WINDOW_MS | 1u << TSP_WELCOME_PING_MS | 1u << TSP_WELCOME_LIFE;
    say(wire, &message);
}

static void accept_stream(struct wire *wire, uint32_t stream) {
    struct tsp_message message = {.type = TSP_ACCEPTED, .stream = stream};
    memcpy(message.body.accepted.request_id, wire->ids[stream], TSP_ID_BYTES);
    message.body.accepted.choices = 1;
    message.given = 1u << TSP_ACCEPTED_REQUEST_ID | 1u << TSP_ACCEPTED_PROMPT_TOKENS | 1u << TSP_ACCEPTED_CHOICES;
    say(wire, &message);
}

/* An id of 0. */
static void token(struct wire *wire, uint32_t stream, uint64_t offset) {
    static const uint8_t id[4];
    struct tsp_message message = {.type = TSP_TOKENS, .stream = stream};
    message.body.tokens.offset = offset;
    message.body.tokens.ids = (struct tsp_bytes){id, sizeof id};
    message.given = 1u << TSP_TOKENS_CHOICE | 1u << TSP_TOKENS_OFFSET | 1u << TSP_TOKENS_IDS;
    say(wire, &message);
}

/* The end of a stream that no ids were sent on. */
static void end(struct wire *wire, uint32_t stream, enum tsp_finish finish) {
    struct tsp_message message = {.type = TSP_DONE, .flags = TSP_END, .stream = stream};
    message.body.done.finish = (uint8_t)finish;
    message.given = 1u << TSP_DONE_CHOICE | 1u << TSP_DONE_FINISH | 1u << TSP_DONE_TOKENS | 1u << TSP_DONE_CRC |
                    1u << TSP_DONE_PROMPT_TOKENS | 1u << TSP_DONE_COMPLETION_TOKENS | 1u << TSP_DONE_REASONING_TOKENS;
    say(wire, &message);
}

/* Brings `n` streams to their ACCEPTED. */
static void serve(struct wire *wire, struct tandem_client *client, uint32_t n) {
    tandem_client_process(client);
    welcome(wire);
    tandem_client_process(client);
    for (uint32_t i = 0; i < n; i++) {
        accept_stream(wire, hear(wire, TSP_SUBMIT));
    }
}

/* ---- tests */

TEST(options_are_checked) {
    const char *const good[] = {"tcp://[::1]:8001", "localhost:1"};
    const char *const bad[] = {"localhost", "localhost:", ":1", "::1:8001", "localhost:http", "[]:1", ""};
    struct tandem_client *client;
    struct tandem_options options = {.size = sizeof options, .servers = good, .n_servers = 2};
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
        bool refused = tandem_stream_next(stream, 0, &event) == TANDEM_MISUSE &&
                       tandem_client_next(client, 0, &another, &event) == TANDEM_MISUSE &&
                       tandem_client_process(client) == TANDEM_MISUSE;
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
