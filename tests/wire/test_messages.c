#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/rng.h"
#include "runtime/wire/control_msg.h"
#include "runtime/wire/worker_msg.h"
#include "tests/harness/test.h"

static struct step_result some_result(uint64_t *rng, uint32_t n_top) {
    struct step_result result = {.id = (uint32_t)rng_next(rng),
                                 .flags = rng_next(rng) % 8 == 0 ? STEP_RESULT_NONFINITE : 0,
                                 .logprob = -(float)(rng_next(rng) % 1000) / 7,
                                 .n_top = n_top};
    for (uint32_t i = 0; i < n_top; i++) {
        result.top_id[i] = (uint32_t)rng_next(rng);
        result.top_logprob[i] = -(float)(rng_next(rng) % 1000) / 3;
    }
    return result;
}

TEST(a_doorbell_reads_back) {
    uint8_t packet[16];
    EXPECT_EQ(worker_msg_encode_step(7, 0x0102030405060708ull, packet, sizeof packet), 16);
    const uint8_t expected[16] = {1, 0, 0, 0, 7, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1};
    EXPECT(memcmp(packet, expected, 16) == 0);
    struct worker_msg message;
    EXPECT_OK(worker_msg_parse(packet, 16, 4, &message));
    EXPECT_EQ(message.type, WORKER_MSG_STEP);
    EXPECT_EQ(message.epoch, 7);
    EXPECT_EQ(message.step_id, 0x0102030405060708ull);
    EXPECT_FAILS(worker_msg_parse(packet, 15, 4, &message), STATUS_INVALID, "no header");
    packet[0] = 5;
    EXPECT_FAILS(worker_msg_parse(packet, 16, 4, &message), STATUS_INVALID, "type 5");
}

TEST(results_read_back_and_any_cut_is_refused) {
    uint64_t rng = 3;
    for (uint32_t n = 0; n <= 6; n++) {
        struct step_result results[6];
        for (uint32_t i = 0; i < n; i++) {
            results[i] = some_result(&rng, (uint32_t)(rng_next(&rng) % (STEP_MAX_LOGPROBS + 1)));
        }
        size_t capacity = worker_msg_max_bytes(6);
        uint8_t *packet = xcalloc(capacity, 1);
        size_t size = worker_msg_encode_done(2, 33, 1234, results, n, packet, capacity);
        struct worker_msg message;
        EXPECT_OK(worker_msg_parse(packet, size, 6, &message));
        EXPECT_EQ(message.type, WORKER_MSG_STEP_DONE);
        EXPECT_EQ(message.step_id, 33);
        EXPECT_EQ(message.device_us, 1234);
        EXPECT_EQ(message.n_results, n);
        for (uint32_t i = 0; i < n; i++) {
            struct step_result got;
            worker_msg_next_result(&message, &got);
            EXPECT_EQ(got.id, results[i].id);
            EXPECT_EQ(got.flags, results[i].flags);
            EXPECT(got.logprob == results[i].logprob);
            EXPECT_EQ(got.n_top, results[i].n_top);
            EXPECT(memcmp(got.top_id, results[i].top_id, got.n_top * sizeof got.top_id[0]) == 0);
            EXPECT(memcmp(got.top_logprob, results[i].top_logprob, got.n_top * sizeof(float)) == 0);
        }
        for (size_t cut = 0; cut < size; cut++) {
            uint8_t *shorter = xcalloc(cut + 1, 1);
            memcpy(shorter, packet, cut);
            EXPECT(worker_msg_parse(shorter, cut, 6, &message) == STATUS_INVALID);
            free(shorter);
        }
        EXPECT(n == 0 || worker_msg_parse(packet, size, n - 1, &message) == STATUS_INVALID);
        free(packet);
    }
}

TEST(the_largest_answer_fits) {
    uint32_t rows = WORKER_MSG_MAX_RESULTS;
    struct step_result *results = xcalloc(rows, sizeof results[0]);
    for (uint32_t i = 0; i < rows; i++) {
        results[i].n_top = STEP_MAX_LOGPROBS;
    }
    size_t capacity = worker_msg_max_bytes(UINT32_MAX); /* what more rows have comes in more packets */
    uint8_t *packet = xcalloc(capacity, 1);
    EXPECT_EQ(worker_msg_encode_done(1, 1, 0, results, rows, packet, capacity), capacity);
    /* It also passes a socket of the default buffer size in one piece. */
    int fds[2];
    EXPECT_OK(channel_pair(fds));
    EXPECT_EQ(send(fds[0], packet, capacity, MSG_DONTWAIT), capacity);
    close(fds[0]);
    close(fds[1]);
    free(results);
    free(packet);
}

TEST(a_part_of_the_results_reads_back) {
    struct step_result results[3] = {{.id = 4}, {.id = 5, .n_top = 1, .top_id = {9}}, {.id = 6}}, got;
    uint8_t packet[128];
    size_t size = worker_msg_encode_results(2, 33, results, 3, packet, sizeof packet);
    struct worker_msg message;
    EXPECT_OK(worker_msg_parse(packet, size, 3, &message));
    EXPECT_EQ(message.type, WORKER_MSG_RESULTS);
    EXPECT_EQ(message.step_id, 33);
    EXPECT_EQ(message.n_results, 3);
    for (uint32_t i = 0; i < 3; i++) {
        worker_msg_next_result(&message, &got);
        EXPECT_EQ(got.id, results[i].id);
        EXPECT_EQ(got.n_top, results[i].n_top);
    }
    EXPECT_FAILS(worker_msg_parse(packet, size, 2, &message), STATUS_INVALID, "RESULTS: n_results is 3, at most 2");
    EXPECT_FAILS(worker_msg_parse(packet, 16, 3, &message), STATUS_INVALID, "RESULTS: the packet ends");
}

TEST(bad_results_are_refused) {
    struct step_result result = {.id = 1, .n_top = 1};
    uint8_t packet[64];
    size_t size = worker_msg_encode_done(1, 1, 0, &result, 1, packet, sizeof packet);
    struct worker_msg message;
    uint8_t bad[64];
    memcpy(bad, packet, size);
    bad[24 + 4] = 2;
    EXPECT_FAILS(worker_msg_parse(bad, size, 4, &message), STATUS_INVALID, "unknown flags");
    memcpy(bad, packet, size);
    bad[24 + 5] = 21;
    EXPECT_FAILS(worker_msg_parse(bad, size, 4, &message), STATUS_INVALID, "n_top 21");
    memcpy(bad, packet, size);
    bad[24 + 5] = 0;
    EXPECT_FAILS(worker_msg_parse(bad, size, 4, &message), STATUS_INVALID, "follow the results");
}

TEST(an_error_text_reads_back_and_is_cut) {
    uint8_t packet[1024];
    char text[800];
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\0';
    size_t size = worker_msg_encode_error(4, 5, text, packet, sizeof packet);
    struct worker_msg message;
    EXPECT_OK(worker_msg_parse(packet, size, 1, &message));
    EXPECT_EQ(message.type, WORKER_MSG_ERROR);
    EXPECT_EQ(strlen(message.text), WORKER_MSG_TEXT_MAX - 1);
    size = worker_msg_encode_error(4, 5, "out of memory", packet, sizeof packet);
    EXPECT_OK(worker_msg_parse(packet, size, 1, &message));
    EXPECT_TEXT(message.text, "out of memory");
    EXPECT(worker_msg_parse(packet, 16 + WORKER_MSG_TEXT_MAX, 1, &message) == STATUS_INVALID);
}

/* ---- control messages */

TEST(control_messages_carry_descriptors) {
    int pair[2], pipe_fds[2];
    EXPECT_OK(channel_pair(pair));
    EXPECT_EQ(pipe(pipe_fds), 0);
    static struct control_msg sent, got;
    sent.type = CONTROL_INIT;
    sent.rank = 3;
    snprintf(sent.body.worker.model_dir, sizeof sent.body.worker.model_dir, "/models/some");
    snprintf(sent.body.worker.backend, sizeof sent.body.worker.backend, "cpu");
    sent.body.worker.limits.n_slots = 17;
    EXPECT_OK(control_send(pair[0], &sent, &pipe_fds[1], 1));
    int fds[CHANNEL_MAX_FDS];
    uint32_t n_fds = 99;
    EXPECT_OK(control_receive(pair[1], &got, fds, &n_fds, 0));
    EXPECT_EQ(n_fds, 1);
    EXPECT_EQ(got.rank, 3);
    EXPECT_TEXT(got.body.worker.model_dir, "/models/some");
    EXPECT_TEXT(got.body.worker.backend, "cpu");
    EXPECT_EQ(got.body.worker.limits.n_slots, 17);
    EXPECT_EQ(write(fds[0], "x", 1), 1);
    char byte;
    EXPECT_EQ(read(pipe_fds[0], &byte, 1), 1);
    EXPECT_EQ(control_receive(pair[1], &got, fds, &n_fds, MSG_DONTWAIT), STATUS_BUSY);
    close(pair[0]);
    EXPECT_EQ(control_receive(pair[1], &got, fds, &n_fds, 0), STATUS_CLOSED);
}

/* Whatever the bytes, texts end within their fields, and numbers beside them keep their values. */
TEST(control_texts_are_always_ended) {
    int pair[2];
    EXPECT_OK(channel_pair(pair));
    static struct control_msg sent, got;
    int fds[CHANNEL_MAX_FDS];
    uint32_t n_fds;
    const uint32_t types[] = {CONTROL_INIT, CONTROL_READY, CONTROL_GROUP_UP, CONTROL_GROUP_DOWN, CONTROL_ERROR};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        memset(&sent.body, 'A', sizeof sent.body);
        sent.type = types[i];
        EXPECT_OK(control_send(pair[0], &sent, NULL, 0));
        EXPECT_OK(control_receive(pair[1], &got, fds, &n_fds, 0));
        if (types[i] == CONTROL_INIT) {
            EXPECT_EQ(strlen(got.body.worker.model_dir), sizeof got.body.worker.model_dir - 1);
            EXPECT_EQ(strlen(got.body.worker.backend), sizeof got.body.worker.backend - 1);
            EXPECT_EQ(strlen(got.body.frontend.served_model_name), sizeof got.body.frontend.served_model_name - 1);
            EXPECT_EQ(strlen(got.body.frontend.api_key_file), sizeof got.body.frontend.api_key_file - 1);
            EXPECT_EQ(strlen(got.body.frontend.tokenizer_dir), sizeof got.body.frontend.tokenizer_dir - 1);
            EXPECT_EQ(got.body.worker.replica, 0x41414141);
            EXPECT_EQ(got.body.worker.deterministic, 0x41414141);
            EXPECT_EQ(got.body.frontend.n_replicas, 0x41414141);
            EXPECT_EQ(got.body.frontend.drain_timeout_ms, 0x41414141);
        } else if (types[i] == CONTROL_READY || types[i] == CONTROL_GROUP_UP) {
            EXPECT_EQ(strlen(got.body.ready.device_name), sizeof got.body.ready.device_name - 1);
            EXPECT_EQ(strlen(got.body.ready.comm_name), sizeof got.body.ready.comm_name - 1);
            EXPECT_EQ(got.body.ready.comm_own_bytes, 0x4141414141414141);
        } else {
            EXPECT_EQ(strlen(got.body.text), sizeof got.body.text - 1);
        }
    }
}

TEST(foreign_control_messages_are_refused) {
    int pair[2];
    EXPECT_OK(channel_pair(pair));
    static struct control_msg sent, got;
    int fds[CHANNEL_MAX_FDS];
    uint32_t n_fds;
    struct {
        uint32_t magic, bytes, type, rank, id_bytes;
        size_t size;
    } cases[] = {
        {CONTROL_MAGIC + 1, sizeof sent, CONTROL_STOP, 0, 0, sizeof sent},
        {CONTROL_MAGIC, 12, CONTROL_STOP, 0, 0, sizeof sent},
        {CONTROL_MAGIC, sizeof sent, CONTROL_STOP, 0, 0, sizeof sent - 1},
        {CONTROL_MAGIC, sizeof sent, CONTROL_STOP, 0, 0, 1},
        {CONTROL_MAGIC, sizeof sent, 0, 0, 0, sizeof sent},
        {CONTROL_MAGIC, sizeof sent, CONTROL_ERROR + 1, 0, 0, sizeof sent},
        {CONTROL_MAGIC, sizeof sent, CONTROL_COMM_ID, CONTROL_MAX_WORLD, 0, sizeof sent},
        {CONTROL_MAGIC, sizeof sent, CONTROL_COMM_ID, 0, CONTROL_COMM_ID_BYTES + 1, sizeof sent},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        sent = (struct control_msg){.magic = cases[i].magic,
                                    .bytes = cases[i].bytes,
                                    .type = cases[i].type,
                                    .rank = cases[i].rank,
                                    .id_bytes = cases[i].id_bytes};
        int extra = dup(0);
        EXPECT_OK(channel_send(pair[0], &sent, cases[i].size, &extra, 1));
        close(extra);
        EXPECT_FAILS(control_receive(pair[1], &got, fds, &n_fds, 0), STATUS_INTERNAL, "control message");
        EXPECT_EQ(n_fds, 0);
        /* The descriptor that came along was closed: the next one gets its number. */
        int next = dup(0);
        EXPECT_EQ(next, extra);
        close(next);
    }
    static char longer[sizeof sent + 1];
    EXPECT_OK(channel_send(pair[0], longer, sizeof longer, NULL, 0));
    EXPECT_FAILS(control_receive(pair[1], &got, fds, &n_fds, 0), STATUS_INTERNAL, "control message");
}
