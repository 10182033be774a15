/* A client over a transport of the user's, a pair of sockets, with a scripted server at the other end. */
#ifndef TANDEM_TESTS_CLIENT_SUPPORT_WIRE_H
#define TANDEM_TESTS_CLIENT_SUPPORT_WIRE_H

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
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

static inline int wire_open(void *context, const char *server, void **connection) {
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

static inline ptrdiff_t wire_read(void *connection, void *bytes, size_t size) {
    ssize_t n = recv(((struct wire *)connection)->client, bytes, size, 0);
    return n >= 0 ? n : -errno;
}

static inline ptrdiff_t wire_write(void *connection, const void *bytes, size_t size) {
    ssize_t n = send(((struct wire *)connection)->client, bytes, size, MSG_NOSIGNAL);
    return n >= 0 ? n : -errno;
}

static inline int wire_descriptor(void *connection) {
    return ((struct wire *)connection)->client;
}

static inline void wire_close(void *connection) {
    struct wire *wire = connection;
    close(wire->client);
    wire->closed++;
}

typedef ptrdiff_t wire_read_fn(void *connection, void *bytes, size_t size);

static inline struct tandem_client *connect_reading(struct wire *wire, wire_read_fn *read) {
    static const char *const servers[] = {"the other end"};
    struct tandem_transport transport = {.context = wire,
                                         .open = wire_open,
                                         .read = read,
                                         .write = wire_write,
                                         .descriptor = wire_descriptor,
                                         .close = wire_close};
    struct tandem_options options = {
        .size = sizeof options, .servers = servers, .n_servers = 1, .transport = &transport};
    struct tandem_client *client;
    EXPECT_EQ(tandem_client_create(&options, &client), TANDEM_OK);
    return client;
}

static inline struct tandem_client *connect_to(struct wire *wire) {
    return connect_reading(wire, wire_read);
}

static inline struct tandem_stream *ask(struct tandem_client *client) {
    struct tandem_request *request = tandem_request_create();
    struct tandem_stream *stream;
    tandem_request_text(request, "prompt", "2+2", 3);
    EXPECT_EQ(tandem_submit(client, request, &stream), TANDEM_OK);
    tandem_request_free(request);
    return stream;
}

/* ---- the server */

static inline void say(struct wire *wire, const struct tsp_message *message) {
    uint8_t bytes[ROOM];
    struct tsp_writer writer = tsp_writer(bytes, sizeof bytes);
    tsp_encode(&writer, message);
    EXPECT_EQ(write(wire->server, bytes, writer.out.size), writer.out.size);
}

static inline void take(int fd, void *bytes, size_t size) {
    if (size > 0) { /* for no bytes it would wait too */
        EXPECT_EQ(recv(fd, bytes, size, MSG_WAITALL), size);
    }
}

/* Waits for the next frame; returns its stream. */
static inline uint32_t hear_any(struct wire *wire, enum tsp_type *type) {
    uint8_t bytes[ROOM];
    struct tsp_frame frame;
    struct tsp_message message;
    size_t used;
    take(wire->server, bytes, TSP_HEADER_BYTES);
    struct byte_reader header = {.next = bytes, .left = 4};
    take(wire->server, bytes + TSP_HEADER_BYTES, read_u32(&header));
    EXPECT_OK(tsp_frame_decode(bytes, ROOM, ROOM - TSP_HEADER_BYTES, &frame, &used));
    EXPECT_OK(tsp_decode(&frame, &message));
    if (message.type == TSP_SUBMIT) {
        memcpy(wire->ids[message.stream], message.body.submit.request_id, TSP_ID_BYTES);
    }
    *type = message.type;
    return message.stream;
}

/* The same for a frame that must be of this type. */
static inline uint32_t hear(struct wire *wire, enum tsp_type type) {
    enum tsp_type heard;
    uint32_t stream = hear_any(wire, &heard);
    EXPECT_TEXT(tsp_type_name(heard), tsp_type_name(type));
    return stream;
}

static inline void welcome(struct wire *wire) {
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

static inline void accept_stream(struct wire *wire, uint32_t stream) {
    struct tsp_message message = {.type = TSP_ACCEPTED, .stream = stream};
    memcpy(message.body.accepted.request_id, wire->ids[stream], TSP_ID_BYTES);
    message.body.accepted.choices = 1;
    message.given = 1u << TSP_ACCEPTED_REQUEST_ID | 1u << TSP_ACCEPTED_PROMPT_TOKENS | 1u << TSP_ACCEPTED_CHOICES;
    say(wire, &message);
}

/* An id of 0. */
static inline void token(struct wire *wire, uint32_t stream, uint64_t offset) {
    static const uint8_t id[4];
    struct tsp_message message = {.type = TSP_TOKENS, .stream = stream};
    message.body.tokens.offset = offset;
    message.body.tokens.ids = (struct tsp_bytes){id, sizeof id};
    message.given = 1u << TSP_TOKENS_CHOICE | 1u << TSP_TOKENS_OFFSET | 1u << TSP_TOKENS_IDS;
    say(wire, &message);
}

/* The end of a stream that no ids were sent on. */
static inline void end(struct wire *wire, uint32_t stream, enum tsp_finish finish) {
    struct tsp_message message = {.type = TSP_DONE, .flags = TSP_END, .stream = stream};
    message.body.done.finish = (uint8_t)finish;
    message.given = 1u << TSP_DONE_CHOICE | 1u << TSP_DONE_FINISH | 1u << TSP_DONE_TOKENS | 1u << TSP_DONE_CRC |
                    1u << TSP_DONE_PROMPT_TOKENS | 1u << TSP_DONE_COMPLETION_TOKENS | 1u << TSP_DONE_REASONING_TOKENS;
    say(wire, &message);
}

/* Brings `n` streams to their ACCEPTED. */
static inline void serve(struct wire *wire, struct tandem_client *client, uint32_t n) {
    tandem_client_process(client);
    welcome(wire);
    tandem_client_process(client);
    for (uint32_t i = 0; i < n; i++) {
        accept_stream(wire, hear(wire, TSP_SUBMIT));
    }
}

#endif
