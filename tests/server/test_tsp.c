/* The stream protocol of a front-end process: what is there of a request after its connection, its group or its
 * front-end is gone, and that nothing is left of one that is over. */
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/harness/test.h"
#include "tests/server/support_tsp.h"

#define ALL 4096
#define RUNNING "vllm:num_requests_running{"
#define WAITING "vllm:num_requests_waiting{"
#define JOURNAL "tandem_journal_used_bytes{"
#define REQUESTS "tandem_tcp_requests{"
#define EXPIRED "tandem_tcp_expired_total{"

static struct rig_options endless_options(void) {
    struct rig_options options = rig_options();
    options.cycle = true;
    return options;
}

static void expect_clean(struct rig *rig) {
    rig_await_metric(rig, REQUESTS, 0);
    rig_await_metric(rig, RUNNING, 0);
    rig_await_metric(rig, WAITING, 0);
    rig_await_metric(rig, JOURNAL, 0);
    rig_await_metric(rig, "vllm:kv_cache_usage_perc{", 0);
}

/* The ids are the script's, over and over. */
static void expect_script(const struct rig *rig, const struct tsp_answer *answer, uint32_t n) {
    EXPECT_EQ(answer->n, n);
    for (uint32_t i = 0; i < n; i++) {
        EXPECT_EQ(answer->ids[i], rig->script.ids[i % rig->script.size]);
    }
}

static struct tsp_answer *make_answer(void) {
    struct tsp_answer *answer = calloc(1, sizeof *answer);
    return answer;
}

static void free_answer(struct tsp_answer *answer) {
    buf_free(&answer->text);
    free(answer);
}

TEST(an_answer_is_delivered_and_forgotten) {
    struct rig rig;
    struct rig_options options = rig_options();
    struct tsp_client client;
    struct tsp_answer *answer = make_answer();
    rig_start(&rig, &options);
    tsp_client_open(&client, &rig, NULL);
    tsp_client_submit(&client, 1, 7, 500, 500, NULL);
    tsp_client_read(&client, 1, ALL, answer);
    EXPECT_EQ(answer->finish, TSP_FINISH_STOP);
    EXPECT_EQ(answer->completion_tokens, rig.script.size + 1);
    EXPECT_TEXT(buf_cstr(&answer->text), options.answer);
    EXPECT_EQ(rig_metric(&rig, REQUESTS), 1);
    tsp_client_say(&client, TSP_ACK, 1);
    expect_clean(&rig);
    EXPECT_EQ(rig_metric(&rig, "tandem_tcp_forgotten_requests{"), 1);
    tsp_client_close(&client);
    free_answer(answer);
    rig_stop(&rig);
}

TEST(a_request_outlives_its_connection_and_its_frontend) {
    struct rig rig;
    struct rig_options options = endless_options();
    struct tsp_client client;
    struct tsp_answer *answer = make_answer();
    rig_start(&rig, &options);
    tsp_client_open(&client, &rig, NULL);
    tsp_client_submit(&client, 1, 7, 900, -1, NULL);
    tsp_client_read(&client, 1, 20, answer);
    tsp_client_close(&client);
    tsp_client_open(&client, &rig, NULL);
    tsp_client_resume(&client, 1, 7, answer->n);
    tsp_client_read(&client, 1, 60, answer);
    tsp_client_close(&client);

    rig_kill_frontend(&rig, &options);
    rig_group_up(&rig, 0);
    tsp_client_open(&client, &rig, NULL);
    tsp_client_resume(&client, 1, 7, answer->n);
    tsp_client_read(&client, 1, ALL, answer);
    EXPECT_EQ(answer->finish, TSP_FINISH_LENGTH);
    expect_script(&rig, answer, 900);
    tsp_client_say(&client, TSP_ACK, 1);
    expect_clean(&rig);
    tsp_client_close(&client);
    free_answer(answer);
    rig_stop(&rig);
}

TEST(an_ended_request_outlives_its_frontend_whole_and_once) {
    struct rig rig;
    struct rig_options options = rig_options();
    struct tsp_client client;
    struct tsp_answer *answer = make_answer();
    struct tsp_answer *again = make_answer();
    rig_start(&rig, &options);
    tsp_client_open(&client, &rig, NULL);
    tsp_client_submit(&client, 1, 7, 500, -1, NULL);
    tsp_client_read(&client, 1, ALL, answer);
    rig_kill_frontend(&rig, &options); /* no group comes up: nothing can run again */
    tsp_client_close(&client);
    tsp_client_open(&client, &rig, NULL);
    tsp_client_submit(&client, 1, 7, 500, -1, NULL);
    tsp_client_read(&client, 1, ALL, again);
    EXPECT_TEXT(buf_cstr(&again->text), buf_cstr(&answer->text));
    EXPECT_EQ(again->crc, answer->crc);
    tsp_client_say(&client, TSP_ACK, 1);
    expect_clean(&rig);
    tsp_client_submit(&client, 2, 7, 500, -1, NULL);
    again->n = again->crc = 0;
    tsp_client_read(&client, 2, ALL, again);
    EXPECT_EQ(again->error, TSP_CODE_GONE);
    tsp_client_close(&client);
    free_answer(answer);
    free_answer(again);
    rig_stop(&rig);
}

static void ack_id(struct tsp_client *client, uint8_t tag) {
    struct tsp_message message = {.type = TSP_ACK, .given = 1u << TSP_ACK_REQUEST_ID};
    memset(message.body.ack.request_id, tag, TSP_ID_BYTES);
    tsp_client_send(client, &message);
}

/* A PONG says that the frames before its PING were acted upon. */
static void await_pong(struct tsp_client *client) {
    tsp_client_send(client, &(struct tsp_message){.type = TSP_PING, .given = 1u << TSP_PING_DATA});
    EXPECT_EQ(tsp_client_next(client).type, TSP_PONG);
}

/* The connection is lost behind END: what was taken of the ACK on the stream is not known. */
TEST(an_ack_by_id_forgets_what_ended_before_the_loss) {
    struct rig rig;
    struct rig_options options = rig_options();
    struct tsp_client client;
    struct tsp_answer *answer = make_answer();
    rig_start(&rig, &options);
    tsp_client_open(&client, &rig, NULL);
    tsp_client_submit(&client, 1, 7, 500, -1, NULL);
    tsp_client_read(&client, 1, ALL, answer);
    tsp_client_close(&client);
    tsp_client_open(&client, &rig, "another key");
    ack_id(&client, 7); /* there is no such request of this key */
    await_pong(&client);
    EXPECT_EQ(rig_metric(&rig, REQUESTS), 1);
    tsp_client_close(&client);
    tsp_client_open(&client, &rig, NULL);
    ack_id(&client, 7);
    ack_id(&client, 7);
    await_pong(&client);
    EXPECT_EQ(rig_metric(&rig, REQUESTS), 0);
    EXPECT_EQ(rig_metric(&rig, "tandem_tcp_forgotten_requests{"), 1);
    expect_clean(&rig);
    answer->n = answer->crc = 0;
    tsp_client_submit(&client, 1, 7, 500, -1, NULL);
    tsp_client_read(&client, 1, ALL, answer);
    EXPECT_EQ(answer->error, TSP_CODE_GONE);
    tsp_client_close(&client);
    free_answer(answer);
    rig_stop(&rig);
}

/* A front-end that took the request over does not know that its answer was delivered. */
TEST(an_ack_by_id_reaches_the_next_frontend) {
    struct rig rig;
    struct rig_options options = rig_options();
    struct tsp_client client;
    struct tsp_answer *answer = make_answer();
    rig_start(&rig, &options);
    tsp_client_open(&client, &rig, NULL);
    tsp_client_submit(&client, 1, 7, 500, -1, NULL);
    tsp_client_read(&client, 1, ALL, answer);
    rig_kill_frontend(&rig, &options);
    tsp_client_close(&client);
    tsp_client_open(&client, &rig, NULL);
    EXPECT_EQ(rig_metric(&rig, REQUESTS), 1);
    ack_id(&client, 7);
    expect_clean(&rig);
    tsp_client_close(&client);
    free_answer(answer);
    rig_stop(&rig);
}

TEST(an_ack_by_id_ends_what_runs_and_the_stream_that_holds_it) {
    struct rig rig;
    struct rig_options options = endless_options();
    struct tsp_client client;
    struct tsp_client other;
    struct tsp_answer *answer = make_answer();
    options.max_len = 40960;
    rig_start(&rig, &options);
    atomic_store(&rig.groups[0].delay_us, 2000);
    tsp_client_open(&client, &rig, NULL);
    tsp_client_open(&other, &rig, NULL);
    tsp_client_submit(&client, 1, 7, 40000, -1, NULL);
    tsp_client_read(&client, 1, 5, answer);
    ack_id(&other, 7);
    tsp_client_read(&client, 1, ALL, answer);
    EXPECT_EQ(answer->error, TSP_CODE_GONE);
    expect_clean(&rig);
    tsp_client_submit(&client, 2, 8, 900, 3, NULL); /* and without a stream */
    answer->n = answer->crc = 0;
    tsp_client_read(&client, 2, 3, answer);
    tsp_client_close(&client);
    ack_id(&other, 8);
    expect_clean(&rig);
    tsp_client_close(&other);
    free_answer(answer);
    rig_stop(&rig);
}

/* Every place of the queue is there for those that wait, though nobody acknowledges what has ended. */
TEST(ended_requests_take_no_place_in_the_queue) {
    struct rig rig;
    struct rig_options options = endless_options();
    struct tsp_client client;
    struct tsp_answer *answer = make_answer();
    options.queue_max = 8;
    options.max_rows = 1;
    rig_start(&rig, &options);
    tsp_client_open(&client, &rig, NULL);
    for (uint8_t tag = 1; tag <= 8; tag++) {
        answer->n = answer->crc = 0;
        tsp_client_submit(&client, tag, tag, 4, -1, NULL);
        tsp_client_read(&client, tag, ALL, answer);
        EXPECT_EQ(answer->finish, TSP_FINISH_LENGTH);
    }
    tsp_client_close(&client);
    tsp_client_open(&client, &rig, NULL);
    atomic_store(&rig.groups[0].held, true);
    for (uint8_t tag = 11; tag <= 11 + 8; tag++) {
        tsp_client_submit(&client, tag, tag, 4, -1, NULL);
        EXPECT_EQ(tsp_client_next(&client).type, TSP_ACCEPTED);
        rig_await_metric(&rig, RUNNING, 1);
    }
    EXPECT_EQ(rig_metric(&rig, REQUESTS), 8 + 1 + 8);
    tsp_client_submit(&client, 20, 20, 4, -1, NULL);
    EXPECT_EQ(tsp_client_next(&client).body.error.code, TSP_CODE_QUEUE_FULL);
    tsp_client_close(&client);
    free_answer(answer);
    rig_stop(&rig);
}

static void four_with_stops(struct tsp_writer *writer) {
    tsp_put_u32(writer, TSP_SUBMIT_N, 4);
    tsp_put_bytes(writer, TSP_SUBMIT_STOP, "42", 2);
    tsp_put_u8(writer, TSP_SUBMIT_ECHO, 1);
}

TEST(more_choices_than_ever_fit_are_a_wrong_request) {
    struct rig rig;
    struct rig_options options = endless_options();
    struct tsp_client client;
    options.queue_max = 1;
    options.max_rows = 2;
    rig_start(&rig, &options);
    atomic_store(&rig.groups[0].held, true);
    tsp_client_open(&client, &rig, NULL);
    tsp_client_submit(&client, 1, 1, 4, -1, four_with_stops);
    struct tsp_message message = tsp_client_next(&client);
    EXPECT_EQ(message.type, TSP_ERROR);
    EXPECT_EQ(message.body.error.code, TSP_CODE_INVALID);
    tsp_client_close(&client);
    rig_stop(&rig);
}

static void two_choices(struct tsp_writer *writer) {
    tsp_put_u32(writer, TSP_SUBMIT_N, 2);
}

#define FIRST_TOKENS "vllm:time_to_first_token_seconds_count{"
#define NEXT_TOKENS "vllm:inter_token_latency_seconds_count{"
#define STOPPED "vllm:request_success_total{model_name=\"" RIG_MODEL "\",finished_reason=\"stop\"}"

/* However many tokens an event brings. */
TEST(each_answer_has_one_first_token) {
    struct rig rig;
    struct rig_options options = rig_options();
    struct tsp_client client;
    rig_start(&rig, &options);
    tsp_client_open(&client, &rig, NULL);
    for (uint32_t stream = 1; stream <= 30; stream++) {
        tsp_client_submit(&client, stream, (uint8_t)stream, 500, -1, two_choices);
    }
    rig_await_metric(&rig, STOPPED, 60);
    EXPECT_EQ(rig_metric(&rig, FIRST_TOKENS), 60);
    EXPECT_EQ(rig_metric(&rig, NEXT_TOKENS), 60 * (double)rig.script.size); /* the end id is a token */
    tsp_client_close(&client);
    rig_stop(&rig);
}

TEST(a_first_token_is_not_measured_again_by_the_next_frontend) {
    struct rig rig;
    struct rig_options options = endless_options();
    struct tsp_client client;
    struct tsp_answer *answer = make_answer();
    options.max_len = 40960;
    rig_start(&rig, &options);
    atomic_store(&rig.groups[0].delay_us, 1000);
    tsp_client_open(&client, &rig, NULL);
    tsp_client_submit(&client, 1, 7, 40000, -1, NULL);
    tsp_client_read(&client, 1, 20, answer);
    tsp_client_close(&client);
    rig_kill_frontend(&rig, &options);
    rig_group_up(&rig, 0);
    tsp_client_open(&client, &rig, NULL);
    tsp_client_resume(&client, 1, 7, answer->n);
    do {
        tsp_client_read(&client, 1, answer->n + 1, answer);
    } while (rig_metric(&rig, NEXT_TOKENS) == 0);
    EXPECT_EQ(rig_metric(&rig, FIRST_TOKENS), 0);
    ack_id(&client, 7);
    expect_clean(&rig);
    tsp_client_close(&client);
    free_answer(answer);
    rig_stop(&rig);
}

/* Takes messages of the stream until END; the ids that each choice had then, all of them cancelled. */
static void read_cancelled(struct tsp_client *client, uint32_t stream, uint64_t n_ids[2]) {
    struct tsp_message message;
    do {
        message = tsp_client_next(client);
        EXPECT_EQ(message.stream, stream);
        if (message.type == TSP_DONE) {
            EXPECT_EQ(message.body.done.finish, TSP_FINISH_CANCELLED);
            n_ids[message.body.done.choice] = message.body.done.tokens;
        }
    } while ((message.flags & TSP_END) == 0);
}

/* The engine was done with it before the cancel, the stream was not: what one stream was told is what all are. */
TEST(a_cancelled_answer_ends_in_the_same_place_for_every_stream) {
    struct rig rig;
    struct rig_options options = endless_options();
    struct tsp_client client;
    uint64_t told[2] = {0};
    uint64_t again[2] = {0};
    rig_start(&rig, &options);
    tsp_client_open(&client, &rig, NULL);
    tsp_client_submit(&client, 1, 7, 50, 10, two_choices);
    EXPECT_EQ(tsp_client_next(&client).type, TSP_ACCEPTED);
    rig_await_metric(&rig, "vllm:request_success_total{model_name=\"" RIG_MODEL "\",finished_reason=\"length\"}", 2);
    tsp_client_say(&client, TSP_CANCEL, 1);
    read_cancelled(&client, 1, told);
    EXPECT_EQ(told[0] + told[1], 10); /* the credit */
    tsp_client_close(&client);
    tsp_client_open(&client, &rig, NULL);
    tsp_client_resume(&client, 1, 7, told[0]);
    read_cancelled(&client, 1, again);
    EXPECT(again[0] == told[0] && again[1] == told[1]);
    EXPECT_EQ(rig_metric(&rig, "vllm:e2e_request_latency_seconds_count{"), 1);
    tsp_client_say(&client, TSP_ACK, 1);
    expect_clean(&rig);
    tsp_client_close(&client);
    rig_stop(&rig);
}

/* Nobody reads, and yet no sequence goes on behind its stop text. */
TEST(stop_texts_are_found_without_a_reader) {
    struct rig rig;
    struct rig_options options = endless_options();
    struct tsp_client client;
    rig_start(&rig, &options);
    tsp_client_open(&client, &rig, NULL);
    tsp_client_submit(&client, 1, 7, 900, 0, four_with_stops);
    EXPECT_EQ(tsp_client_next(&client).body.accepted.choices, 4);
    rig_await_metric(&rig, STOPPED, 4); /* RUNNING may be stale, and 0 for that */
    rig_kill_frontend(&rig, &options);
    tsp_client_close(&client);
    tsp_client_open(&client, &rig, NULL);
    tsp_client_resume(&client, 1, 7, 0);
    struct buf texts[4] = {{0}};
    struct tsp_message message;
    do {
        message = tsp_client_next(&client);
        if (message.type == TSP_TOKENS) {
            buf_append(&texts[message.body.tokens.choice], message.body.tokens.text.data,
                       message.body.tokens.text.size);
        } else if (message.type == TSP_DONE) {
            EXPECT_EQ(message.body.done.finish, TSP_FINISH_STOP);
        }
    } while ((message.flags & TSP_END) == 0);
    for (int i = 0; i < 4; i++) {
        EXPECT_TEXT(buf_cstr(&texts[i]), "xWell.\n</think>\n\nThe sum is ");
        buf_free(&texts[i]);
    }
    tsp_client_say(&client, TSP_ACK, 1);
    expect_clean(&rig);
    tsp_client_close(&client);
    rig_stop(&rig);
}

static void cancel_with_connection(struct tsp_writer *writer) {
    tsp_put_u8(writer, TSP_SUBMIT_ON_DISCONNECT, TSP_CANCEL_REQUEST);
}

TEST(what_shall_end_with_its_connection_ends_with_its_frontend) {
    struct rig rig;
    struct rig_options options = endless_options();
    struct tsp_client client;
    struct tsp_answer *answer = make_answer();
    rig_start(&rig, &options);
    atomic_store(&rig.groups[0].delay_us, 2000);
    tsp_client_open(&client, &rig, NULL);
    tsp_client_submit(&client, 1, 7, 900, -1, cancel_with_connection);
    tsp_client_read(&client, 1, 5, answer);
    shutdown(client.fd, SHUT_WR); /* a half-closed connection counts as gone */
    expect_clean(&rig);
    tsp_client_close(&client);
    tsp_client_open(&client, &rig, NULL);
    tsp_client_submit(&client, 1, 8, 900, -1, cancel_with_connection);
    EXPECT_EQ(tsp_client_next(&client).type, TSP_ACCEPTED);
    rig_kill_frontend(&rig, &options);
    expect_clean(&rig);
    tsp_client_close(&client);
    free_answer(answer);
    rig_stop(&rig);
}

TEST(the_window_forgets_what_nobody_takes) {
    struct rig rig;
    struct rig_options options = endless_options();
    struct tsp_client client;
    struct tsp_answer *answer = make_answer();
    options.tsp.resume_window_ms = 200;
    rig_start(&rig, &options);
    tsp_client_open(&client, &rig, NULL);
    tsp_client_submit(&client, 1, 7, 30, -1, NULL);
    tsp_client_read(&client, 1, ALL, answer); /* and no ACK */
    rig_await_metric(&rig, EXPIRED, 1);
    tsp_client_submit(&client, 2, 8, 900, 3, NULL);
    answer->n = answer->crc = 0;
    tsp_client_read(&client, 2, 3, answer);
    tsp_client_close(&client);
    rig_await_metric(&rig, EXPIRED, 2);
    expect_clean(&rig);
    free_answer(answer);
    rig_stop(&rig);
}

TEST(requests_before_any_group_wait_and_may_be_cancelled) {
    struct rig rig;
    struct rig_options options = endless_options();
    struct tsp_client client;
    struct tsp_answer *answer = make_answer();
    options.without_groups = true;
    rig_start(&rig, &options);
    tsp_client_open(&client, &rig, NULL);
    for (uint32_t stream = 1; stream <= 8; stream++) {
        tsp_client_submit(&client, stream, (uint8_t)stream, 20, -1, stream % 2 == 0 ? four_with_stops : NULL);
    }
    rig_await_metric(&rig, WAITING, 4 + 16);
    tsp_client_say(&client, TSP_CANCEL, 3);
    rig_await_metric(&rig, WAITING, 4 + 16 - 1);
    tsp_client_close(&client); /* now, since a close with frames unread may drop what was sent before it */
    rig_group_up(&rig, 0);
    tsp_client_open(&client, &rig, NULL);
    tsp_client_resume(&client, 1, 3, 0);
    tsp_client_read(&client, 1, ALL, answer);
    EXPECT(answer->finish == TSP_FINISH_CANCELLED && answer->n == 0);
    tsp_client_resume(&client, 2, 5, 0);
    tsp_client_read(&client, 2, ALL, answer);
    EXPECT_EQ(answer->finish, TSP_FINISH_LENGTH);
    expect_script(&rig, answer, 20);
    tsp_client_close(&client);
    free_answer(answer);
    rig_stop(&rig);
}

TEST(a_model_that_is_given_up_fails_its_requests_for_every_stream) {
    struct rig rig;
    struct rig_options options = endless_options();
    struct tsp_client client;
    struct tsp_answer *answer = make_answer();
    options.max_len = 40960;
    rig_start(&rig, &options);
    atomic_store(&rig.groups[0].delay_us, 2000);
    tsp_client_open(&client, &rig, NULL);
    tsp_client_submit(&client, 1, 7, 40000, -1, NULL);
    tsp_client_read(&client, 1, 5, answer);
    rig_group_down(&rig, 0, "killed by signal 9");
    tsp_client_read(&client, 1, ALL, answer);
    EXPECT_EQ(answer->error, TSP_CODE_UNAVAILABLE);
    answer->error = 0;
    tsp_client_resume(&client, 2, 7, answer->n);
    tsp_client_read(&client, 2, ALL, answer);
    EXPECT_EQ(answer->error, TSP_CODE_UNAVAILABLE);
    answer->error = 0;
    tsp_client_submit(&client, 3, 8, 900, -1, NULL);
    tsp_client_read(&client, 3, ALL, answer);
    EXPECT_EQ(answer->error, TSP_CODE_UNAVAILABLE);
    tsp_client_say(&client, TSP_ACK, 2);
    expect_clean(&rig);
    tsp_client_close(&client);
    free_answer(answer);
    rig_stop(&rig);
}

/* The reader takes nothing while others go on; what it gets then is whole. */
TEST_TIMEOUT(a_connection_that_is_not_read_keeps_its_share_of_memory, 60) {
    struct rig rig;
    struct rig_options options = endless_options();
    struct tsp_client slow;
    struct tsp_client quick;
    struct tsp_answer *answer = make_answer();
    options.max_len = 8192;
    options.tsp.send_buffer_bytes = 20000;
    rig_start(&rig, &options);
    tsp_client_open(&slow, &rig, NULL);
    tsp_client_open(&quick, &rig, NULL);
    for (uint32_t stream = 1; stream <= 8; stream++) {
        tsp_client_submit(&slow, stream, (uint8_t)stream, 4000, -1, NULL);
    }
    for (uint32_t i = 0; i < 20; i++) {
        tsp_client_submit(&quick, i + 1, (uint8_t)(100 + i), 50, 7, NULL);
        for (answer->n = answer->crc = 0; answer->n < 50;) {
            tsp_client_read(&quick, i + 1, answer->n + 1, answer);
            tsp_client_send(&quick, &(struct tsp_message){.type = TSP_CREDIT,
                                                          .stream = i + 1,
                                                          .given = 1u << TSP_CREDIT_TOKENS,
                                                          .body.credit.tokens = 7});
        }
        expect_script(&rig, answer, 50);
        answer->finish = 0;
        tsp_client_read(&quick, i + 1, ALL, answer);
        EXPECT_EQ(answer->finish, TSP_FINISH_LENGTH);
        tsp_client_say(&quick, TSP_ACK, i + 1);
    }
    rig_await_metric(&rig, RUNNING, 0);
    uint32_t n_ids[9] = {0};
    for (uint32_t left = 8; left > 0;) {
        struct tsp_message message = tsp_client_next(&slow);
        if (message.type == TSP_TOKENS) {
            EXPECT_EQ(message.body.tokens.offset, n_ids[message.stream]);
            n_ids[message.stream] += message.body.tokens.ids.size / 4;
        } else if (message.type == TSP_DONE) {
            EXPECT_EQ(n_ids[message.stream], 4000);
            tsp_client_say(&slow, TSP_ACK, message.stream);
            left--;
        }
    }
    expect_clean(&rig);
    tsp_client_close(&slow);
    tsp_client_close(&quick);
    free_answer(answer);
    rig_stop(&rig);
}

TEST(a_long_submit_is_parsed_beside_the_loop) {
    struct rig rig;
    struct rig_options options = endless_options();
    struct tsp_client client;
    struct tsp_answer *answer = make_answer();
    options.limits.inline_body_bytes = 10;
    rig_start(&rig, &options);
    tsp_client_open(&client, &rig, NULL);
    tsp_client_submit(&client, 1, 1, 10, -1, NULL);
    tsp_client_read(&client, 1, ALL, answer);
    expect_script(&rig, answer, 10);
    tsp_client_submit(&client, 2, 2, 100000, -1, NULL); /* refused over there */
    tsp_client_read(&client, 2, ALL, answer);
    EXPECT_EQ(answer->error, TSP_CODE_CONTEXT_LENGTH);
    for (uint8_t tag = 3; tag < 30; tag++) { /* gone before they are parsed, with a connection that is */
        tsp_client_submit(&client, tag, tag, 10, -1, cancel_with_connection);
    }
    tsp_client_close(&client);
    rig_await_metric(&rig, REQUESTS, 1); /* the one without ACK */
    free_answer(answer);
    rig_stop(&rig);
}

TEST(a_drain_lets_running_answers_end_and_says_bye) {
    struct rig rig;
    struct rig_options options = endless_options();
    struct tsp_client client;
    struct tsp_answer *answer = make_answer();
    rig_start(&rig, &options);
    atomic_store(&rig.groups[0].delay_us, 1000);
    tsp_client_open(&client, &rig, NULL);
    tsp_client_submit(&client, 1, 1, 300, -1, NULL);
    tsp_client_read(&client, 1, 5, answer);
    rig_send(&rig, CONTROL_DRAIN, 10000);
    bool drained = false;
    struct tsp_message message;
    do {
        message = tsp_client_next(&client);
        if (message.type == TSP_DRAIN) {
            drained = true;
            tsp_client_submit(&client, 2, 2, 10, -1, NULL);
        } else if (message.stream == 2) {
            EXPECT_EQ(message.body.error.code, TSP_CODE_DRAINING);
        } else if (message.type == TSP_DONE) {
            EXPECT_EQ(message.body.done.tokens, 300);
            answer->finish = (enum tsp_finish)message.body.done.finish;
        }
    } while (message.type != TSP_BYE);
    EXPECT(drained && answer->finish == TSP_FINISH_LENGTH);
    rig_expect_message(&rig, CONTROL_DRAINED);
    tsp_client_close(&client);
    free_answer(answer);
    rig_stop(&rig);
}

TEST(a_drain_that_takes_too_long_fails_what_runs) {
    struct rig rig;
    struct rig_options options = endless_options();
    struct tsp_client client;
    struct tsp_answer *answer = make_answer();
    rig_start(&rig, &options);
    atomic_store(&rig.groups[0].held, true);
    tsp_client_open(&client, &rig, NULL);
    tsp_client_submit(&client, 1, 1, 300, -1, NULL);
    EXPECT_EQ(tsp_client_next(&client).type, TSP_ACCEPTED);
    rig_send(&rig, CONTROL_DRAIN, 100);
    EXPECT_EQ(tsp_client_next(&client).type, TSP_DRAIN);
    tsp_client_read(&client, 1, ALL, answer);
    EXPECT_EQ(answer->error, TSP_CODE_DRAINING);
    EXPECT_EQ(tsp_client_next(&client).type, TSP_BYE);
    rig_expect_message(&rig, CONTROL_DRAINED);
    tsp_client_close(&client);
    free_answer(answer);
    rig_stop(&rig);
}
