/* A session core with a scripted server: what it sends is decoded, what it is sent is made here. */
#ifndef TANDEM_TESTS_CLIENT_SUPPORT_CORE_H
#define TANDEM_TESTS_CLIENT_SUPPORT_CORE_H

#include "runtime/base/hash.h"
#include "runtime/client/core.h"
#include "runtime/client/request.h"
#include "tests/harness/test.h"

#define ROOM 4096
#define LIFE 77

struct rig {
    struct core core;
    uint64_t now_ms;
    size_t step;         /* bytes that arrive at once; 0: all of a frame */
    uint8_t taken[ROOM]; /* the frame that rig_hear found */
};

static inline struct core_options rig_options(void) {
    return (struct core_options){.n_servers = 1,
                                 .connect_timeout_ms = 5000,
                                 .give_up_ms = 60000,
                                 .failover_ms = 10000,
                                 .credit = 8,
                                 .key = "s3cret",
                                 .name = "test"};
}

static inline void rig_start(struct rig *rig, const struct core_options *options) {
    memset(rig, 0, sizeof *rig);
    rig->now_ms = 1000;
    core_init(&rig->core, options);
    core_tick(&rig->core, rig->now_ms);
}

static inline struct tandem_stream *rig_submit(struct rig *rig, uint8_t id, uint64_t deadline_ms) {
    struct buffer fields = {0};
    struct tsp_writer writer = tsp_writer(buffer_reserve(&fields, 256), 256);
    uint8_t bytes[TSP_ID_BYTES] = {id};
    tsp_put_bytes(&writer, TSP_SUBMIT_REQUEST_ID, bytes, sizeof bytes);
    tsp_put_bytes(&writer, TSP_SUBMIT_PROMPT, "2+2", 3);
    fields.size = writer.out.size;
    return stream_create(&rig->core, bytes, &fields, deadline_ms);
}

static inline void rig_feed(struct rig *rig, const uint8_t *bytes, size_t size) {
    size_t step = rig->step > 0 ? rig->step : size;
    for (size_t at = 0; at < size; at += step) {
        core_feed(&rig->core, bytes + at, size - at < step ? size - at : step, rig->now_ms);
    }
}

/* The server says `message`. */
static inline void rig_say(struct rig *rig, const struct tsp_message *message) {
    uint8_t bytes[ROOM];
    struct tsp_writer writer = tsp_writer(bytes, sizeof bytes);
    tsp_encode(&writer, message);
    EXPECT(!writer.out.failed);
    rig_feed(rig, bytes, writer.out.size);
    core_tick(&rig->core, rig->now_ms);
}

/* The next frame that the client sends must be of this type and stream. */
static inline struct tsp_message rig_hear(struct rig *rig, enum tsp_type type, uint32_t stream) {
    struct buffer *out = &rig->core.out;
    struct tsp_frame frame;
    struct tsp_message message;
    size_t used;
    size_t n = out->size < ROOM ? out->size : ROOM;
    EXPECT(n > 0);
    memcpy(rig->taken, out->data, n);
    EXPECT_OK(tsp_frame_decode(rig->taken, n, ROOM, &frame, &used));
    EXPECT_OK(tsp_decode(&frame, &message));
    EXPECT_TEXT(tsp_type_name(message.type), tsp_type_name(type));
    EXPECT_EQ(message.stream, stream);
    buffer_consume(out, used);
    return message;
}

static inline void rig_welcome(struct rig *rig, uint64_t life) {
    struct tsp_message message = {.type = TSP_WELCOME};
    message.body.welcome = (struct tsp_welcome){.version = TSP_VERSION,
                                                .max_frame = ROOM,
                                                .max_streams = 4,
                                                .resume_window_ms = 60000,
                                                .ping_ms = 20000,
                                                .life = life};
    message.given = 1u << TSP_WELCOME_VERSION | 1u << TSP_WELCOME_MAX_FRAME | 1u << TSP_WELCOME_MAX_STREAMS |
                    1u << TSP_WELCOME_RESUME_WINDOW_MS | 1u << TSP_WELCOME_PING_MS | 1u << TSP_WELCOME_LIFE;
    rig_say(rig, &message);
}

/* The connection that the core wants is made, up to HELLO. */
static inline void rig_open(struct rig *rig) {
    core_tick(&rig->core, rig->now_ms);
    EXPECT(core_wants_connection(&rig->core));
    core_opened(&rig->core, rig->now_ms);
    EXPECT(memcmp(rig->core.out.data, TSP_MAGIC, TSP_MAGIC_BYTES) == 0);
    buffer_consume(&rig->core.out, TSP_MAGIC_BYTES);
    rig_hear(rig, TSP_HELLO, 0);
}

static inline void rig_connect(struct rig *rig) {
    rig_open(rig);
    rig_welcome(rig, LIFE);
}

static inline void rig_lose(struct rig *rig) {
    core_lost(&rig->core, "cut", rig->now_ms);
    rig->now_ms += 5000; /* longer than any pause */
    core_tick(&rig->core, rig->now_ms);
}

static inline void rig_accept(struct rig *rig, uint32_t number, uint8_t id, uint32_t choices) {
    struct tsp_message message = {.type = TSP_ACCEPTED, .stream = number};
    message.body.accepted.request_id[0] = id;
    message.body.accepted.prompt_tokens = 3;
    message.body.accepted.choices = choices;
    message.given = 1u << TSP_ACCEPTED_REQUEST_ID | 1u << TSP_ACCEPTED_PROMPT_TOKENS | 1u << TSP_ACCEPTED_CHOICES;
    rig_say(rig, &message);
}

/* `n` ids offset, offset + 1, ... with the text "t". */
static inline void rig_tokens(struct rig *rig, uint32_t number, uint32_t choice, uint64_t offset, uint32_t n) {
    uint8_t ids[ROOM / 4];
    struct byte_writer writer = {.start = ids, .capacity = sizeof ids};
    struct tsp_message message = {.type = TSP_TOKENS, .stream = number};
    for (uint32_t i = 0; i < n; i++) {
        write_u32(&writer, (uint32_t)offset + i);
    }
    message.body.tokens.choice = choice;
    message.body.tokens.offset = offset;
    message.body.tokens.ids = (struct tsp_bytes){ids, 4 * n};
    message.body.tokens.text = (struct tsp_bytes){(const uint8_t *)"t", 1};
    message.given = 1u << TSP_TOKENS_CHOICE | 1u << TSP_TOKENS_OFFSET | 1u << TSP_TOKENS_IDS | 1u << TSP_TOKENS_TEXT;
    rig_say(rig, &message);
}

/* DONE of a choice that rig_tokens sent `n` ids of; the checksum is off by `wrong`. */
static inline void rig_done(struct rig *rig, uint32_t number, uint32_t choice, uint32_t n, bool last, uint32_t wrong) {
    struct tsp_message message = {.type = TSP_DONE, .stream = number, .flags = last ? TSP_END : 0};
    uint32_t crc = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint8_t id[4] = {(uint8_t)i};
        crc = crc32c(crc, id, sizeof id);
    }
    message.body.done = (struct tsp_done){.choice = choice,
                                          .finish = TSP_FINISH_STOP,
                                          .tokens = n,
                                          .crc = crc + wrong,
                                          .prompt_tokens = 3,
                                          .completion_tokens = n};
    message.given = 1u << TSP_DONE_CHOICE | 1u << TSP_DONE_FINISH | 1u << TSP_DONE_TOKENS | 1u << TSP_DONE_CRC;
    if (last) {
        message.given |=
            1u << TSP_DONE_PROMPT_TOKENS | 1u << TSP_DONE_COMPLETION_TOKENS | 1u << TSP_DONE_REASONING_TOKENS;
    }
    rig_say(rig, &message);
}

static inline void rig_error(struct rig *rig, uint32_t number, uint32_t code, const char *text) {
    struct tsp_message message = {.type = TSP_ERROR, .flags = TSP_END, .stream = number};
    message.body.error.code = code;
    message.body.error.message = (struct tsp_bytes){(const uint8_t *)text, (uint32_t)strlen(text)};
    message.body.error.retry_after_ms = 700;
    message.given = 1u << TSP_ERROR_CODE | 1u << TSP_ERROR_MESSAGE | 1u << TSP_ERROR_RETRY_AFTER_MS;
    rig_say(rig, &message);
}

static inline void rig_hear_ack(struct rig *rig, uint8_t id) {
    EXPECT_EQ(rig_hear(rig, TSP_ACK, 0).body.ack.request_id[0], id);
}

static inline void rig_pong(struct rig *rig, uint64_t data) {
    struct tsp_message message = {.type = TSP_PONG, .given = 1u << TSP_PING_DATA, .body.ping.data = data};
    rig_say(rig, &message);
}

/* Reads all pieces; returns the number of ids, and the stream's result. */
static inline size_t rig_read(struct tandem_stream *stream, int *result) {
    struct tandem_event event;
    size_t n = 0;
    while ((*result = pieces_read(stream, &event)) == TANDEM_OK) {
        n += event.n_ids;
    }
    return n;
}

#endif
