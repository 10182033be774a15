/* The session of the stream protocol without a socket: handshake, streams, credit, time. */
#include <stdlib.h>
#include <string.h>

#include "tests/harness/test.h"
#include "tests/server/support_tsp_host.h"

struct rig {
    struct scripted_host host;
    struct tsp_session *session;
    struct buf in; /* what the client is about to send */
};

static struct rig *make_rig(void) {
    struct rig *rig = calloc(1, sizeof *rig);
    struct tsp_session_config config = scripted_host_config(&rig->host);
    rig->session = tsp_session_create(&config, 0);
    return rig;
}

static void free_rig(struct rig *rig) {
    tsp_session_destroy(rig->session);
    EXPECT_EQ(rig->host.opened, rig->host.closed); /* no stream was forgotten */
    buf_free(&rig->in);
    free(rig);
}

static void feed(struct rig *rig, uint64_t now_ms) {
    tsp_session_feed(rig->session, rig->in.data, rig->in.size, now_ms);
    rig->in.size = 0;
}

static void put(struct rig *rig, const struct tsp_message *message) {
    struct tsp_writer writer = tsp_writer(buf_reserve(&rig->in, 1024), 1024);
    tsp_encode(&writer, message);
    EXPECT(!writer.out.failed);
    rig->in.size += writer.out.size;
}

static void put_hello(struct rig *rig, const char *key, uint32_t version) {
    struct tsp_message hello = {.type = TSP_HELLO, .given = 1u << TSP_HELLO_VERSION | 1u << TSP_HELLO_KEY};
    hello.body.hello.version = version;
    hello.body.hello.key = (struct tsp_bytes){.data = (const uint8_t *)key, .size = (uint32_t)strlen(key)};
    buf_append(&rig->in, TSP_MAGIC, TSP_MAGIC_BYTES);
    put(rig, &hello);
}

static void put_submit(struct rig *rig, uint32_t stream, int64_t credit, uint8_t first_of_id) {
    uint8_t id[TSP_ID_BYTES] = {first_of_id};
    struct tsp_writer writer = tsp_writer(buf_reserve(&rig->in, 256), 256);
    tsp_begin(&writer, TSP_SUBMIT, 0, stream);
    tsp_put_bytes(&writer, TSP_SUBMIT_REQUEST_ID, id, sizeof id);
    if (credit >= 0) {
        tsp_put_u32(&writer, TSP_SUBMIT_CREDIT, (uint32_t)credit);
    }
    tsp_end(&writer);
    rig->in.size += writer.out.size;
}

static void put_credit(struct rig *rig, uint32_t stream, uint32_t tokens) {
    put(rig, &(struct tsp_message){
                 .type = TSP_CREDIT, .stream = stream, .given = 1u << TSP_CREDIT_TOKENS, .body.credit.tokens = tokens});
}

/* Takes the next message that was sent. */
static struct tsp_message next(struct rig *rig) {
    static uint8_t kept[1 << 17]; /* what the message points to */
    struct buf *out = tsp_session_out(rig->session);
    struct tsp_frame frame;
    struct tsp_message message;
    size_t used;
    size_t n = out->size < sizeof kept ? out->size : sizeof kept;
    memcpy(kept, out->data, n);
    EXPECT_OK(tsp_frame_decode(kept, n, TSP_MAX_PAYLOAD, &frame, &used));
    EXPECT_OK(tsp_decode(&frame, &message));
    buf_consume(out, used);
    return message;
}

static void expect_end(struct rig *rig, enum tsp_code code) {
    struct tsp_message message = next(rig);
    EXPECT_EQ(message.type, TSP_ERROR);
    EXPECT_EQ(message.stream, 0);
    EXPECT_EQ(message.body.error.code, code);
    EXPECT(tsp_session_over(rig->session));
    EXPECT_EQ(tsp_session_out(rig->session)->size, 0);
}

static struct rig *make_open_rig(void) {
    struct rig *rig = make_rig();
    put_hello(rig, "good", TSP_VERSION);
    feed(rig, 0);
    EXPECT_EQ(next(rig).type, TSP_WELCOME);
    return rig;
}

TEST(a_handshake_arrives_in_any_pieces) {
    for (size_t step = 1; step < 60; step += 7) {
        struct rig *rig = make_rig();
        put_hello(rig, "good", TSP_VERSION + 5); /* a newer minor version is spoken with as ours */
        for (size_t at = 0; at < rig->in.size; at += step) {
            size_t n = rig->in.size - at < step ? rig->in.size - at : step;
            tsp_session_feed(rig->session, rig->in.data + at, n, 0);
        }
        struct tsp_message welcome = next(rig);
        EXPECT_EQ(welcome.type, TSP_WELCOME);
        EXPECT_EQ(welcome.body.welcome.version, TSP_VERSION);
        EXPECT_EQ(welcome.body.welcome.life, 7);
        EXPECT_EQ(tsp_session_owner(rig->session), 4);
        free_rig(rig);
    }
}

TEST(bad_beginnings_are_told_and_closed) {
    struct rig *rig = make_rig();
    tsp_session_feed(rig->session, "\x89TSQ", 4, 0);
    expect_end(rig, TSP_CODE_BAD_FRAME);
    free_rig(rig);
    rig = make_rig();
    put_hello(rig, "good", 2u << 16);
    feed(rig, 0);
    expect_end(rig, TSP_CODE_VERSION);
    free_rig(rig);
    rig = make_rig();
    put_hello(rig, "bad", TSP_VERSION);
    feed(rig, 0);
    expect_end(rig, TSP_CODE_UNAUTHORIZED);
    free_rig(rig);
    rig = make_rig();
    buf_append(&rig->in, TSP_MAGIC, TSP_MAGIC_BYTES);
    put_submit(rig, 1, -1, 1);
    feed(rig, 0);
    expect_end(rig, TSP_CODE_BAD_MESSAGE);
    EXPECT_EQ(rig->host.opened, 0);
    free_rig(rig);
}

TEST(http_is_answered_in_its_own_words) {
    struct rig *rig = make_rig();
    tsp_session_feed(rig->session, "PO", 2, 0);
    EXPECT_EQ(tsp_session_out(rig->session)->size, 0);
    tsp_session_feed(rig->session, "ST / HTTP/1.1\r\n", 15, 0);
    const char *reply = buf_cstr(tsp_session_out(rig->session));
    EXPECT(strncmp(reply, "HTTP/1.1 400 ", 13) == 0);
    const char *body = strstr(reply, "\r\n\r\n") + 4;
    EXPECT_EQ(strtoul(strstr(reply, "Content-Length: ") + 16, NULL, 10), strlen(body));
    EXPECT(tsp_session_over(rig->session));
    free_rig(rig);
}

TEST(who_says_no_hello_is_closed) {
    struct rig *rig = make_rig();
    tsp_session_tick(rig->session, 50);
    EXPECT(!tsp_session_over(rig->session));
    tsp_session_tick(rig->session, 51);
    expect_end(rig, TSP_CODE_TIMEOUT);
    free_rig(rig);
}

TEST(silence_is_asked_once_and_then_closed) {
    struct rig *rig = make_open_rig();
    tsp_session_tick(rig->session, 100);
    EXPECT_EQ(tsp_session_out(rig->session)->size, 0);
    tsp_session_tick(rig->session, 101);
    tsp_session_tick(rig->session, 150);
    struct tsp_message ping = next(rig);
    EXPECT_EQ(ping.type, TSP_PING);
    EXPECT_EQ(tsp_session_out(rig->session)->size, 0); /* one is enough */
    ping.type = TSP_PONG;
    put(rig, &ping);
    feed(rig, 160);
    tsp_session_tick(rig->session, 201);
    EXPECT_EQ(tsp_session_out(rig->session)->size, 0);
    tsp_session_tick(rig->session, 261);
    EXPECT_EQ(next(rig).type, TSP_PING);
    tsp_session_tick(rig->session, 361);
    expect_end(rig, TSP_CODE_TIMEOUT);
    free_rig(rig);
}

/* The server itself stood still: what the peer said meanwhile has not been read yet. */
TEST(nobody_is_closed_who_was_not_asked) {
    struct rig *rig = make_open_rig();
    tsp_session_tick(rig->session, 5000);
    struct tsp_message ping = next(rig);
    EXPECT_EQ(ping.type, TSP_PING);
    ping.type = TSP_PONG;
    put(rig, &ping);
    feed(rig, 5010);
    tsp_session_tick(rig->session, 5110);
    EXPECT(!tsp_session_over(rig->session));
    EXPECT_EQ(tsp_session_out(rig->session)->size, 0);
    free_rig(rig);
}

TEST(a_peer_that_takes_bytes_lives) {
    struct rig *rig = make_open_rig();
    tsp_session_sending(rig->session, 1000, 0);
    for (uint64_t now = 90; now < 900; now += 90) {
        tsp_session_sending(rig->session, 1000 - now, now);
        tsp_session_tick(rig->session, now);
    }
    EXPECT(!tsp_session_over(rig->session));
    EXPECT_EQ(tsp_session_out(rig->session)->size, 0);
    free_rig(rig);
}

TEST(credit_bounds_what_is_sent) {
    struct rig *rig = make_open_rig();
    put_submit(rig, 1, 3, 1);
    feed(rig, 0);
    EXPECT_EQ(next(rig).type, TSP_ACCEPTED);
    EXPECT_EQ(next(rig).body.tokens.ids.size / 4, 3);
    EXPECT_EQ(tsp_session_out(rig->session)->size, 0);
    put_credit(rig, 1, 2);
    put_credit(rig, 1, 1);
    feed(rig, 0);
    EXPECT_EQ(next(rig).body.tokens.ids.size / 4, 2);
    EXPECT_EQ(next(rig).body.tokens.offset, 5);
    EXPECT_EQ(tsp_session_out(rig->session)->size, 0);
    put_credit(rig, 1, TSP_MAX_CREDIT);
    feed(rig, 0);
    while (next(rig).type != TSP_DONE) {
    }
    put(rig, &(struct tsp_message){.type = TSP_ACK, .stream = 1});
    put_credit(rig, 1, 5); /* late, and nothing */
    feed(rig, 0);
    EXPECT(rig->host.acks == 1 && !tsp_session_over(rig->session));
    free_rig(rig);
}

TEST(an_ack_of_an_id_needs_no_stream_and_no_answer) {
    struct rig *rig = make_open_rig();
    struct tsp_message ack = {.type = TSP_ACK, .given = 1u << TSP_ACK_REQUEST_ID, .body.ack.request_id = {9}};
    put(rig, &ack);
    put(rig, &ack);
    feed(rig, 0);
    EXPECT_EQ(rig->host.acked_ids, 2);
    EXPECT_EQ(rig->host.acked_id, 9);
    EXPECT_EQ(tsp_session_out(rig->session)->size, 0);
    ack.stream = 1;
    put(rig, &ack);
    feed(rig, 0);
    expect_end(rig, TSP_CODE_BAD_MESSAGE);
    free_rig(rig);
}

TEST(too_much_credit_ends_the_connection) {
    struct rig *rig = make_open_rig();
    put_submit(rig, 1, 0, 1);
    put_credit(rig, 1, TSP_MAX_CREDIT);
    feed(rig, 0);
    EXPECT(!tsp_session_over(rig->session));
    free_rig(rig);
    rig = make_open_rig();
    put_submit(rig, 1, 0, 1);
    put_credit(rig, 1, TSP_MAX_CREDIT + 1);
    feed(rig, 0);
    EXPECT_EQ(next(rig).type, TSP_ACCEPTED);
    expect_end(rig, TSP_CODE_CREDIT);
    free_rig(rig);
}

TEST(stream_numbers_ascend) {
    struct rig *rig = make_open_rig();
    put_submit(rig, 5, 0, 1);
    put_submit(rig, 9, 0, 1);
    feed(rig, 0);
    EXPECT_EQ(next(rig).stream, 5);
    EXPECT_EQ(next(rig).stream, 9);
    put_submit(rig, 9, 0, 1);
    feed(rig, 0);
    expect_end(rig, TSP_CODE_BAD_STREAM);
    free_rig(rig);
    rig = make_open_rig();
    put_credit(rig, 3, 1);
    feed(rig, 0);
    expect_end(rig, TSP_CODE_BAD_STREAM);
    free_rig(rig);
}

TEST(refused_and_surplus_streams_leave_the_connection) {
    struct rig *rig = make_open_rig();
    put_submit(rig, 1, 0, 0xEE);
    for (uint32_t stream = 2; stream <= 6; stream++) {
        put_submit(rig, stream, 0, 1);
    }
    feed(rig, 0);
    struct tsp_message refused = next(rig);
    EXPECT(refused.type == TSP_ERROR && refused.stream == 1 && refused.flags == TSP_END);
    EXPECT_EQ(refused.body.error.retry_after_ms, 1000);
    for (uint32_t stream = 2; stream <= 5; stream++) {
        EXPECT_EQ(next(rig).type, TSP_ACCEPTED);
    }
    EXPECT_EQ(next(rig).body.error.code, TSP_CODE_TOO_MANY);
    EXPECT(!tsp_session_over(rig->session));
    EXPECT_EQ(tsp_session_streams(rig->session), 4);
    free_rig(rig);
}

TEST(a_malformed_submit_ends_its_stream_alone) {
    struct rig *rig = make_open_rig();
    struct tsp_writer writer = tsp_writer(buf_reserve(&rig->in, 256), 256);
    tsp_begin(&writer, TSP_SUBMIT, 0, 4);
    tsp_put_u32(&writer, 1001, 5); /* critical, and not known */
    tsp_end(&writer);
    rig->in.size += writer.out.size;
    put_submit(rig, 5, 0, 1);
    feed(rig, 0);
    struct tsp_message error = next(rig);
    EXPECT(error.type == TSP_ERROR && error.stream == 4 && error.body.error.code == TSP_CODE_BAD_MESSAGE);
    EXPECT_EQ(next(rig).stream, 5);
    free_rig(rig);
}

TEST(streams_take_turns) {
    struct rig *rig = make_open_rig();
    for (uint32_t stream = 1; stream <= 3; stream++) {
        put_submit(rig, stream, 0, 1);
    }
    feed(rig, 0);
    uint32_t turn = 0;
    EXPECT_EQ(tsp_session_next_stream(rig->session, &turn)->id, 1);
    EXPECT_EQ(tsp_session_next_stream(rig->session, &turn)->id, 2);
    turn = 0; /* the next round begins where this one was left */
    uint32_t seen[4];
    uint32_t n = 0;
    for (struct tsp_stream *stream; (stream = tsp_session_next_stream(rig->session, &turn)) != NULL;) {
        seen[n++] = stream->id;
    }
    EXPECT(n == 3 && seen[0] == 3 && seen[1] == 1 && seen[2] == 2);
    free_rig(rig);
}

TEST(no_room_when_bytes_wait) {
    struct rig *rig = make_open_rig();
    EXPECT(tsp_session_has_room(rig->session));
    tsp_session_sending(rig->session, 1u << 20, 0);
    EXPECT(!tsp_session_has_room(rig->session));
    free_rig(rig);
}

TEST(a_lost_connection_gives_its_streams_back) {
    struct rig *rig = make_open_rig();
    put_submit(rig, 1, 0, 1);
    put_submit(rig, 2, 0, 1);
    feed(rig, 0);
    tsp_session_destroy(rig->session);
    EXPECT_EQ(rig->host.lost, 2);
    buf_free(&rig->in);
    free(rig);
}

TEST(drain_and_bye) {
    struct rig *rig = make_open_rig();
    tsp_session_drain(rig->session, 3000);
    EXPECT_EQ(next(rig).body.drain.deadline_ms, 3000);
    tsp_session_bye(rig->session, TSP_CODE_DRAINING, "bye");
    EXPECT_EQ(next(rig).type, TSP_BYE);
    EXPECT(tsp_session_over(rig->session));
    free_rig(rig);
}
