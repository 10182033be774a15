#include "tests/server/support_tsp.h"

#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/hash.h"
#include "tests/harness/test.h"

static void set_id(uint8_t id[TSP_ID_BYTES], uint8_t tag) {
    memset(id, tag, TSP_ID_BYTES);
}

void tsp_client_send(struct tsp_client *client, const struct tsp_message *message) {
    uint8_t bytes[512];
    struct tsp_writer writer = tsp_writer(bytes, sizeof bytes);
    tsp_encode(&writer, message);
    EXPECT(!writer.out.failed);
    raw_send_bytes(client->fd, bytes, writer.out.size);
}

void tsp_client_open(struct tsp_client *client, const struct rig *rig, const char *key) {
    *client = (struct tsp_client){.fd = raw_connect_to(rig->tcp_port)};
    raw_send_bytes(client->fd, TSP_MAGIC, TSP_MAGIC_BYTES);
    struct tsp_message hello = {.type = TSP_HELLO, .given = 1u << TSP_HELLO_VERSION};
    hello.body.hello.version = TSP_VERSION;
    if (key != NULL) {
        hello.given |= 1u << TSP_HELLO_KEY;
        hello.body.hello.key = (struct tsp_bytes){.data = (const uint8_t *)key, .size = (uint32_t)strlen(key)};
    }
    tsp_client_send(client, &hello);
    EXPECT_EQ(tsp_client_next(client).type, TSP_WELCOME);
}

void tsp_client_close(struct tsp_client *client) {
    close(client->fd);
    buf_free(&client->in);
}

void tsp_client_submit(struct tsp_client *client, uint32_t stream, uint8_t tag, uint32_t max_tokens, int64_t credit,
                       void (*more)(struct tsp_writer *writer)) {
    uint8_t bytes[1024];
    uint8_t id[TSP_ID_BYTES];
    struct tsp_writer writer = tsp_writer(bytes, sizeof bytes);
    set_id(id, tag);
    tsp_begin(&writer, TSP_SUBMIT, 0, stream);
    tsp_put_bytes(&writer, TSP_SUBMIT_REQUEST_ID, id, sizeof id);
    tsp_put_bytes(&writer, TSP_SUBMIT_PROMPT, "x", 1);
    tsp_put_u32(&writer, TSP_SUBMIT_MAX_TOKENS, max_tokens);
    if (credit >= 0) {
        tsp_put_u32(&writer, TSP_SUBMIT_CREDIT, (uint32_t)credit);
    }
    if (more != NULL) {
        more(&writer);
    }
    tsp_end(&writer);
    EXPECT(!writer.out.failed);
    raw_send_bytes(client->fd, bytes, writer.out.size);
}

void tsp_client_resume(struct tsp_client *client, uint32_t stream, uint8_t tag, uint64_t offset) {
    uint8_t bytes[128];
    uint8_t id[TSP_ID_BYTES];
    struct tsp_writer writer = tsp_writer(bytes, sizeof bytes);
    set_id(id, tag);
    tsp_begin(&writer, TSP_RESUME, 0, stream);
    tsp_put_bytes(&writer, TSP_RESUME_REQUEST_ID, id, sizeof id);
    tsp_put_u64s(&writer, TSP_RESUME_OFFSETS, &offset, 1);
    tsp_end(&writer);
    raw_send_bytes(client->fd, bytes, writer.out.size);
}

void tsp_client_say(struct tsp_client *client, enum tsp_type type, uint32_t stream) {
    tsp_client_send(client, &(struct tsp_message){.type = type, .stream = stream});
}

struct tsp_message tsp_client_next(struct tsp_client *client) {
    buf_consume(&client->in, client->used);
    client->used = 0;
    for (;;) {
        struct tsp_frame frame;
        struct tsp_message message;
        enum status status = tsp_frame_decode(client->in.data, client->in.size, TSP_MAX_PAYLOAD, &frame, &client->used);
        if (status == STATUS_OK) {
            EXPECT_OK(tsp_decode(&frame, &message));
            return message;
        }
        EXPECT_EQ(status, STATUS_BUSY);
        ssize_t got = recv(client->fd, buf_reserve(&client->in, 65536), 65536, 0);
        EXPECT(got > 0);
        client->in.size += (size_t)got;
    }
}

static void take_tokens(struct tsp_answer *answer, const struct tsp_tokens *tokens) {
    EXPECT_EQ(tokens->offset, answer->n);
    for (uint32_t i = 0; i < tokens->ids.size / 4; i++) {
        EXPECT(answer->n < 4096);
        answer->ids[answer->n] = tsp_u32_at(tokens->ids, i);
        answer->crc = crc32c(answer->crc, &answer->ids[answer->n++], 4);
    }
    buf_append(&answer->text, tokens->text.data, tokens->text.size);
}

void tsp_client_read(struct tsp_client *client, uint32_t stream, uint32_t n, struct tsp_answer *answer) {
    bool over = false;
    while (!over && answer->n < n) {
        struct tsp_message message = tsp_client_next(client);
        EXPECT_EQ(message.stream, stream);
        over = (message.flags & TSP_END) != 0;
        if (message.type == TSP_TOKENS) {
            take_tokens(answer, &message.body.tokens);
        } else if (message.type == TSP_DONE) {
            EXPECT_EQ(message.body.done.tokens, answer->n);
            EXPECT_EQ(message.body.done.crc, answer->crc);
            buf_append(&answer->text, message.body.done.text.data, message.body.done.text.size);
            answer->finish = (enum tsp_finish)message.body.done.finish;
            answer->completion_tokens = message.body.done.completion_tokens;
        } else if (message.type == TSP_ERROR) {
            answer->error = message.body.error.code;
        } else {
            EXPECT_EQ(message.type, TSP_ACCEPTED);
        }
    }
}
