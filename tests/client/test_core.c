/* The client's session against scripted bytes: what it says, when it connects, and what it makes of what it hears. */
#include "tests/client/support_core.h"

static struct tandem_error error_of(const struct tandem_stream *stream) {
    struct tandem_error error = {0};
    EXPECT(tandem_stream_error(stream, &error));
    return error;
}

/* An accepted stream of `choices`, number 1. */
static struct tandem_stream *running(struct rig *rig, uint32_t choices) {
    struct tandem_stream *stream = rig_submit(rig, 5, NEVER);
    rig_connect(rig);
    rig_hear(rig, TSP_SUBMIT, 1);
    rig_accept(rig, 1, 5, choices);
    return stream;
}

TEST(greets_with_key_and_submits_with_credit) {
    struct rig rig;
    struct core_options options = rig_options();
    rig_start(&rig, &options);
    EXPECT(!core_wants_connection(&rig.core));
    rig_submit(&rig, 5, NEVER);
    core_tick(&rig.core, rig.now_ms);
    EXPECT(core_wants_connection(&rig.core));
    core_opened(&rig.core, rig.now_ms);
    buffer_consume(&rig.core.out, TSP_MAGIC_BYTES);
    struct tsp_message hello = rig_hear(&rig, TSP_HELLO, 0);
    EXPECT_EQ(hello.body.hello.key.size, 6);
    EXPECT(memcmp(hello.body.hello.key.data, "s3cret", 6) == 0);
    EXPECT_EQ(rig.core.out.size, 0); /* nothing before WELCOME */
    rig_welcome(&rig, LIFE);
    struct tsp_message submit = rig_hear(&rig, TSP_SUBMIT, 1);
    EXPECT_EQ(submit.body.submit.request_id[0], 5);
    EXPECT_EQ(submit.body.submit.credit, 8);
    core_free(&rig.core);
}

TEST(an_answer_however_its_bytes_arrive) {
    for (size_t step = 1; step < 80; step++) {
        struct rig rig;
        struct core_options options = rig_options();
        struct tandem_event event;
        rig_start(&rig, &options);
        rig.step = step;
        struct tandem_stream *stream = running(&rig, 1);
        rig_tokens(&rig, 1, 0, 0, 2);
        rig_tokens(&rig, 1, 0, 2, 1);
        rig_done(&rig, 1, 0, 3, true, 0);
        EXPECT_EQ(pieces_read(stream, &event), TANDEM_OK);
        EXPECT_EQ(event.n_ids, 2);
        EXPECT_EQ(event.ids[1], 1);
        EXPECT_TEXT(event.text, "t");
        EXPECT_EQ(event.finish, TANDEM_FINISH_NONE);
        EXPECT_EQ(pieces_read(stream, &event), TANDEM_OK);
        EXPECT_EQ(event.offset, 2);
        EXPECT_EQ(pieces_read(stream, &event), TANDEM_OK);
        EXPECT(event.last);
        EXPECT_EQ(event.finish, TANDEM_FINISH_STOP);
        EXPECT_EQ(event.usage.completion_tokens, 3);
        EXPECT_EQ(pieces_read(stream, &event), TANDEM_END);
        EXPECT_EQ(pieces_read(stream, &event), TANDEM_END);
        rig_hear(&rig, TSP_ACK, 1);
        rig_hear(&rig, TSP_PING, 0);
        EXPECT_EQ(rig.core.out.size, 0);
        core_free(&rig.core);
    }
}

TEST(a_loss_before_accepted_submits_again_and_after_it_resumes) {
    struct rig rig;
    struct core_options options = rig_options();
    int result;
    rig_start(&rig, &options);
    struct tandem_stream *stream = rig_submit(&rig, 5, NEVER);
    rig_connect(&rig);
    rig_hear(&rig, TSP_SUBMIT, 1);
    rig_lose(&rig);
    rig_connect(&rig);
    EXPECT_EQ(rig_hear(&rig, TSP_SUBMIT, 1).body.submit.request_id[0], 5);
    rig_accept(&rig, 1, 5, 2);
    rig_tokens(&rig, 1, 0, 0, 3);
    rig_tokens(&rig, 1, 1, 0, 1);
    rig_done(&rig, 1, 1, 1, false, 0);
    rig_lose(&rig);
    rig_connect(&rig);
    struct tsp_message resume = rig_hear(&rig, TSP_RESUME, 1);
    EXPECT_EQ(resume.body.resume.request_id[0], 5);
    EXPECT_EQ(resume.body.resume.offsets.size, 16);
    EXPECT_EQ(tsp_u64_at(resume.body.resume.offsets, 0), 3);
    EXPECT_EQ(tsp_u64_at(resume.body.resume.offsets, 1), 1);
    EXPECT_EQ(resume.body.resume.credit, 4); /* 8, and 4 ids lie unread */
    rig_accept(&rig, 1, 5, 2);
    rig_done(&rig, 1, 1, 1, false, 0); /* comes again, and is passed over */
    rig_tokens(&rig, 1, 0, 3, 2);
    rig_done(&rig, 1, 0, 5, true, 0);
    EXPECT_EQ(rig_read(stream, &result), 6);
    EXPECT_EQ(result, TANDEM_END);
    EXPECT_EQ(rig.core.reconnects, 2);
    core_free(&rig.core);
}

TEST(a_resumed_request_goes_on_behind_what_is_known_of_it) {
    struct rig rig;
    struct core_options options = rig_options();
    static const uint8_t id[TSP_ID_BYTES] = {5};
    static const uint64_t offsets[] = {3};
    struct tandem_event event;
    int result;
    rig_start(&rig, &options);
    struct tandem_stream *stream = stream_resume(&rig.core, id, offsets, 1);
    rig_connect(&rig);
    struct tsp_message resume = rig_hear(&rig, TSP_RESUME, 1);
    EXPECT_EQ(resume.body.resume.request_id[0], 5);
    EXPECT_EQ(resume.body.resume.offsets.size, 8);
    rig_lose(&rig);
    rig_connect(&rig); /* no SUBMIT, though ACCEPTED did not come */
    EXPECT_EQ(tsp_u64_at(rig_hear(&rig, TSP_RESUME, 1).body.resume.offsets, 0), 3);
    rig_accept(&rig, 1, 5, 2);
    rig_tokens(&rig, 1, 0, 3, 2);
    EXPECT_EQ(pieces_read(stream, &event), TANDEM_OK);
    EXPECT_EQ(event.offset, 3);
    rig_done(&rig, 1, 0, 5, false, 99); /* a checksum that nobody here can know */
    rig_tokens(&rig, 1, 1, 0, 1);
    rig_done(&rig, 1, 1, 1, true, 0);
    rig_read(stream, &result);
    EXPECT_EQ(result, TANDEM_END);
    rig_hear(&rig, TSP_ACK, 1);
    core_free(&rig.core);
}

TEST(a_resumed_request_is_checked_as_far_as_it_was_seen) {
    for (int kind = 0; kind < 4; kind++) {
        struct rig rig;
        struct core_options options = rig_options();
        static const uint8_t id[TSP_ID_BYTES] = {5};
        static const uint64_t offsets[] = {3, 0};
        int result;
        rig_start(&rig, &options);
        struct tandem_stream *stream = stream_resume(&rig.core, id, offsets, 2);
        rig_connect(&rig);
        rig_hear(&rig, TSP_RESUME, 1);
        if (kind == 0) {
            rig_accept(&rig, 1, 5, 1); /* fewer choices than are known */
        } else if (kind == 1) {
            rig_error(&rig, 1, TSP_CODE_NOT_FOUND, "No request of this id and key");
        } else {
            rig_accept(&rig, 1, 5, 2);
        }
        if (kind == 2) {
            rig_done(&rig, 1, 1, 0, false, 1); /* all of that one's ids were seen */
        } else if (kind == 3) {
            rig_lose(&rig);
            rig_open(&rig);
            rig_welcome(&rig, LIFE + 1);
        }
        static const int results[] = {TANDEM_MISMATCH, TSP_CODE_NOT_FOUND, TANDEM_MISMATCH, TANDEM_LOST};
        rig_read(stream, &result);
        EXPECT_EQ(result, results[kind]);
        core_free(&rig.core);
    }
}

/* A front-end that died after it had said so knows nothing of a cancel, and goes on with the choice. */
TEST(a_choice_that_has_ended_stays_so_after_a_loss) {
    struct rig rig;
    struct core_options options = rig_options();
    struct tandem_event event;
    rig_start(&rig, &options);
    struct tandem_stream *stream = running(&rig, 2);
    rig_tokens(&rig, 1, 0, 0, 2);
    rig_done(&rig, 1, 0, 2, false, 0);
    for (int i = 0; i < 2; i++) {
        EXPECT_EQ(pieces_read(stream, &event), TANDEM_OK);
    }
    rig_lose(&rig);
    rig_connect(&rig);
    rig_hear(&rig, TSP_RESUME, 1);
    rig_accept(&rig, 1, 5, 2);
    rig_tokens(&rig, 1, 0, 2, 5);
    EXPECT_EQ(rig_hear(&rig, TSP_CREDIT, 1).body.credit.tokens, 5); /* the other choice needs it */
    rig_tokens(&rig, 1, 1, 0, 1);
    rig_done(&rig, 1, 0, 7, false, 0);
    rig_done(&rig, 1, 1, 1, true, 0);
    EXPECT_EQ(pieces_read(stream, &event), TANDEM_OK);
    EXPECT_EQ(event.choice, 1);
    EXPECT_EQ(pieces_read(stream, &event), TANDEM_OK);
    EXPECT(event.choice == 1 && event.last);
    EXPECT_EQ(pieces_read(stream, &event), TANDEM_END);
    core_free(&rig.core);
}

static void say_status(struct rig *rig, uint32_t running) {
    struct tsp_message message = {.type = TSP_STATUS_REPLY, .body.status = {.running = running}};
    const struct tsp_fields *fields = tsp_fields_of(TSP_STATUS_REPLY);
    for (size_t i = 0; i < fields->n; i++) {
        message.given |= 1ull << fields->table[i].tag;
    }
    rig_say(rig, &message);
}

TEST(status_is_asked_for_until_it_is_answered) {
    struct rig rig;
    struct core_options options = rig_options();
    rig_start(&rig, &options);
    EXPECT_EQ(core_take_status(&rig.core), TANDEM_AGAIN);
    core_ask_status(&rig.core);
    rig_connect(&rig); /* for nothing else */
    rig_hear(&rig, TSP_STATUS, 0);
    core_ask_status(&rig.core); /* the same question */
    core_tick(&rig.core, rig.now_ms);
    EXPECT_EQ(rig.core.out.size, 0);
    rig_lose(&rig);
    rig_connect(&rig);
    rig_hear(&rig, TSP_STATUS, 0);
    say_status(&rig, 7);
    say_status(&rig, 8); /* nobody asked */
    EXPECT_EQ(core_take_status(&rig.core), TANDEM_OK);
    EXPECT_EQ(rig.core.status.running, 7);
    EXPECT_EQ(core_take_status(&rig.core), TANDEM_AGAIN);
    rig_lose(&rig);
    EXPECT(!core_wants_connection(&rig.core));
    core_ask_status(&rig.core);
    rig_open(&rig);
    rig_error(&rig, 0, TSP_CODE_UNAUTHORIZED, "No valid API key");
    EXPECT_EQ(core_take_status(&rig.core), TSP_CODE_UNAUTHORIZED);
    core_ask_status(&rig.core);
    rig.now_ms += 5000;
    rig_open(&rig);
    core_tick(&rig.core, rig.now_ms + options.give_up_ms);
    EXPECT_EQ(core_take_status(&rig.core), TANDEM_UNREACHABLE);
    core_free(&rig.core);
}

TEST(what_does_not_fit_together_is_a_mismatch) {
    for (int kind = 0; kind < 5; kind++) {
        struct rig rig;
        struct core_options options = rig_options();
        int result;
        rig_start(&rig, &options);
        struct tandem_stream *stream = running(&rig, 2);
        rig_tokens(&rig, 1, 0, 0, 2);
        switch (kind) {
        case 0: rig_tokens(&rig, 1, 0, 3, 1); break;      /* a gap */
        case 1: rig_tokens(&rig, 1, 2, 0, 1); break;      /* no such choice */
        case 2: rig_done(&rig, 1, 0, 2, false, 1); break; /* another checksum */
        case 3: rig_done(&rig, 1, 0, 1, false, 0); break; /* another count */
        default: rig_done(&rig, 1, 0, 2, true, 0); break; /* choice 1 has no end */
        }
        rig_hear_ack(&rig, 5);
        EXPECT_EQ(rig_read(stream, &result), 2);
        EXPECT_EQ(result, TANDEM_MISMATCH);
        EXPECT(error_of(stream).message[0] != '\0');
        EXPECT_EQ(rig.core.link, LINK_OPEN); /* other streams go on */
        core_free(&rig.core);
    }
}

TEST(credit_bounds_what_lies_unread) {
    struct rig rig;
    struct core_options options = rig_options();
    struct tandem_event event;
    rig_start(&rig, &options);
    struct tandem_stream *stream = running(&rig, 1);
    rig_tokens(&rig, 1, 0, 0, 3);
    rig_tokens(&rig, 1, 0, 3, 5);
    EXPECT_EQ(rig.core.out.size, 0);
    pieces_read(stream, &event);
    EXPECT_EQ(rig.core.out.size, 0); /* 3 are not worth a frame */
    pieces_read(stream, &event);
    EXPECT_EQ(rig_hear(&rig, TSP_CREDIT, 1).body.credit.tokens, 8);
    rig_tokens(&rig, 1, 0, 8, 8);
    rig_tokens(&rig, 1, 0, 16, 1);
    EXPECT_EQ(pieces_read(stream, &event), TANDEM_OK);
    EXPECT_EQ(pieces_read(stream, &event), TANDEM_MISMATCH);
    core_free(&rig.core);
}

TEST(errors_of_a_stream_end_it_alone) {
    struct rig rig;
    struct core_options options = rig_options();
    int result;
    rig_start(&rig, &options);
    struct tandem_stream *stream = running(&rig, 1);
    struct tandem_stream *other = rig_submit(&rig, 6, NEVER);
    core_tick(&rig.core, rig.now_ms);
    rig_hear(&rig, TSP_SUBMIT, 2);
    rig_error(&rig, 2, TSP_CODE_QUEUE_FULL, "come again");
    EXPECT_EQ(rig.core.out.size, 0); /* it did not begin: nothing is there to be acknowledged */
    rig_read(other, &result);
    EXPECT_EQ(result, TSP_CODE_QUEUE_FULL);
    EXPECT_TEXT(error_of(other).message, "come again");
    EXPECT_EQ(error_of(other).retry_after_ms, 700);
    rig_read(stream, &result);
    EXPECT_EQ(result, TANDEM_AGAIN);
    core_free(&rig.core);
}

TEST(a_wrong_key_fails_all_and_connects_no_more) {
    struct rig rig;
    struct core_options options = rig_options();
    int result;
    rig_start(&rig, &options);
    struct tandem_stream *stream = rig_submit(&rig, 5, NEVER);
    rig_open(&rig);
    rig_error(&rig, 0, TSP_CODE_UNAUTHORIZED, "No valid API key");
    rig_read(stream, &result);
    EXPECT_EQ(result, TSP_CODE_UNAUTHORIZED);
    rig.now_ms += 10000;
    core_tick(&rig.core, rig.now_ms);
    EXPECT(!core_wants_connection(&rig.core));
    core_free(&rig.core);
}

TEST(another_life_loses_what_was_begun_and_asks_again_for_the_rest) {
    struct rig rig;
    struct core_options options = rig_options();
    int result;
    rig_start(&rig, &options);
    struct tandem_stream *begun = running(&rig, 1);
    struct tandem_stream *accepted = rig_submit(&rig, 6, NEVER);
    core_tick(&rig.core, rig.now_ms);
    rig_hear(&rig, TSP_SUBMIT, 2);
    rig_accept(&rig, 2, 6, 1);
    rig_tokens(&rig, 1, 0, 0, 1);
    rig_lose(&rig);
    rig_open(&rig);
    rig_welcome(&rig, LIFE + 1);
    EXPECT_EQ(rig_read(begun, &result), 1);
    EXPECT_EQ(result, TANDEM_LOST);
    EXPECT_EQ(rig_hear(&rig, TSP_SUBMIT, 1).body.submit.request_id[0], 6);
    rig_read(accepted, &result);
    EXPECT_EQ(result, TANDEM_AGAIN);
    core_free(&rig.core);
}

TEST(cancel_before_and_after_the_submit) {
    struct rig rig;
    struct core_options options = rig_options();
    struct tandem_event event;
    rig_start(&rig, &options);
    struct tandem_stream *unsent = rig_submit(&rig, 6, NEVER);
    atomic_store(&unsent->cancel, true);
    streams_cancel(&rig.core);
    EXPECT_EQ(pieces_read(unsent, &event), TANDEM_OK);
    EXPECT_EQ(event.finish, TANDEM_FINISH_CANCELLED);
    EXPECT_EQ(pieces_read(unsent, &event), TANDEM_END);
    EXPECT(!core_wants_connection(&rig.core));
    struct tandem_stream *sent = running(&rig, 1);
    atomic_store(&sent->cancel, true);
    streams_cancel(&rig.core);
    rig_hear(&rig, TSP_CANCEL, 1);
    rig_lose(&rig);
    rig_connect(&rig); /* it is still wanted */
    rig_hear(&rig, TSP_RESUME, 1);
    rig_hear(&rig, TSP_CANCEL, 1);
    core_free(&rig.core);
}

TEST(a_freed_stream_is_given_up_on_this_connection_or_the_next) {
    struct rig rig;
    struct core_options options = rig_options();
    rig_start(&rig, &options);
    struct tandem_stream *first = running(&rig, 1);
    struct tandem_stream *second = rig_submit(&rig, 6, NEVER);
    core_tick(&rig.core, rig.now_ms);
    rig_hear(&rig, TSP_SUBMIT, 2);
    stream_free(first);
    rig_hear_ack(&rig, 5);
    rig_tokens(&rig, 1, 0, 0, 1); /* was on its way */
    rig_pong(&rig, rig_hear(&rig, TSP_PING, 0).body.ping.data);
    EXPECT_EQ(rig.core.n_acks, 0);
    rig_lose(&rig);
    stream_free(second);
    EXPECT(rig.core.streams == NULL);
    rig_connect(&rig);
    rig_hear_ack(&rig, 6);
    core_free(&rig.core);
}

TEST(an_ack_is_sent_again_until_it_is_known_to_have_come) {
    struct rig rig;
    struct core_options options = rig_options();
    int result;
    rig_start(&rig, &options);
    struct tandem_stream *stream = running(&rig, 1);
    struct tandem_stream *failed = rig_submit(&rig, 6, NEVER);
    core_tick(&rig.core, rig.now_ms);
    rig_hear(&rig, TSP_SUBMIT, 2);
    rig_accept(&rig, 2, 6, 1);
    rig_done(&rig, 1, 0, 0, true, 0);
    rig_hear(&rig, TSP_ACK, 1);
    uint64_t first = rig_hear(&rig, TSP_PING, 0).body.ping.data;
    rig_error(&rig, 2, TSP_CODE_DEADLINE, "late");
    rig_hear(&rig, TSP_ACK, 2);
    EXPECT_EQ(rig.core.out.size, 0); /* one PING at a time */
    rig_pong(&rig, first);           /* says nothing of the second */
    uint64_t second = rig_hear(&rig, TSP_PING, 0).body.ping.data;
    EXPECT(second > first);
    EXPECT_EQ(rig.core.n_acks, 1);
    rig_lose(&rig);
    rig_connect(&rig); /* for nothing else */
    rig_hear_ack(&rig, 6);
    rig_hear(&rig, TSP_PING, 0);
    rig_lose(&rig); /* with the answer */
    rig_connect(&rig);
    rig_hear_ack(&rig, 6);
    rig_pong(&rig, rig_hear(&rig, TSP_PING, 0).body.ping.data);
    EXPECT_EQ(rig.core.n_acks, 0);
    rig_lose(&rig);
    EXPECT(!core_wants_connection(&rig.core));
    rig_read(stream, &result);
    EXPECT_EQ(result, TANDEM_END);
    rig_read(failed, &result);
    EXPECT_EQ(result, TSP_CODE_DEADLINE);
    core_free(&rig.core);
}

TEST(acks_are_bounded_and_go_out_in_parts) {
    struct rig rig;
    struct core_options options = rig_options();
    rig_start(&rig, &options);
    for (uint32_t i = 0; i < MAX_ACKS + 5; i++) {
        uint8_t id[TSP_ID_BYTES] = {(uint8_t)i, (uint8_t)(i >> 8)};
        acks_add(&rig.core, id, false);
    }
    EXPECT_EQ(rig.core.n_acks, MAX_ACKS);
    rig_connect(&rig);
    uint32_t n = 5; /* the oldest are left to the server's window */
    while (rig.core.n_acks > 0) {
        uint32_t part = 0;
        while (rig.core.out.data[4] == TSP_ACK) {
            const struct tsp_message ack = rig_hear(&rig, TSP_ACK, 0);
            EXPECT_EQ(ack.body.ack.request_id[0] | ack.body.ack.request_id[1] << 8, n++);
            part++;
        }
        EXPECT_EQ(part, 16);
        rig_pong(&rig, rig_hear(&rig, TSP_PING, 0).body.ping.data);
    }
    EXPECT_EQ(n, MAX_ACKS + 5);
    core_free(&rig.core);
}

TEST(acks_that_no_server_takes_are_given_up) {
    struct rig rig;
    struct core_options options = rig_options();
    rig_start(&rig, &options);
    running(&rig, 1);
    rig_done(&rig, 1, 0, 0, true, 0);
    core_lost(&rig.core, "cut", rig.now_ms);
    EXPECT_EQ(core_deadline(&rig.core), rig.core.connect_at_ms);
    rig.now_ms += options.give_up_ms;
    core_tick(&rig.core, rig.now_ms);
    EXPECT(!core_wants_connection(&rig.core));
    EXPECT_EQ(core_deadline(&rig.core), NEVER);
    core_free(&rig.core);
}

/* What another stream took over is that one's to acknowledge. */
TEST(a_superseded_stream_acknowledges_nothing) {
    struct rig rig;
    struct core_options options = rig_options();
    rig_start(&rig, &options);
    running(&rig, 1);
    rig_error(&rig, 1, TSP_CODE_SUPERSEDED, "another stream took the request over");
    EXPECT_EQ(rig.core.n_acks, 0);
    EXPECT_EQ(rig.core.out.size, 0);
    core_free(&rig.core);
}

TEST(deadlines_of_a_request_of_the_greeting_and_of_all_servers) {
    struct rig rig;
    struct core_options options = rig_options();
    int result;
    rig_start(&rig, &options);
    struct tandem_stream *hasty = rig_submit(&rig, 5, 3000);
    struct tandem_stream *patient = rig_submit(&rig, 6, NEVER);
    rig_open(&rig);
    EXPECT_EQ(core_deadline(&rig.core), 3000);
    core_tick(&rig.core, 3000);
    rig_read(hasty, &result);
    EXPECT_EQ(result, TANDEM_TIMEOUT);
    EXPECT_EQ(core_deadline(&rig.core), 6000); /* opened at 1000, 5000 to greet */
    core_tick(&rig.core, 5999);
    EXPECT_EQ(rig.core.link, LINK_GREETING);
    core_tick(&rig.core, 6000);
    EXPECT_EQ(rig.core.link, LINK_NONE);
    core_tick(&rig.core, 60999);
    rig_read(patient, &result);
    EXPECT_EQ(result, TANDEM_AGAIN);
    core_tick(&rig.core, 61000); /* 60 s after the first attempt began */
    rig_read(patient, &result);
    EXPECT_EQ(result, TANDEM_UNREACHABLE);
    core_free(&rig.core);
}

TEST(silence_is_answered_by_ping_and_then_by_a_loss) {
    struct rig rig;
    struct core_options options = rig_options();
    rig_start(&rig, &options);
    running(&rig, 1);
    EXPECT_EQ(core_deadline(&rig.core), 21000);
    core_tick(&rig.core, 20999);
    EXPECT_EQ(rig.core.out.size, 0);
    core_tick(&rig.core, 21000);
    rig_hear(&rig, TSP_PING, 0);
    core_tick(&rig.core, 40999);
    EXPECT_EQ(rig.core.link, LINK_OPEN);
    EXPECT_EQ(rig.core.out.size, 0); /* one is enough */
    core_tick(&rig.core, 41000);
    EXPECT_EQ(rig.core.link, LINK_NONE);
    core_free(&rig.core);
}

/* The program stood still for longer than that: what the server says may lie unread. */
TEST(no_server_is_left_that_was_not_asked) {
    struct rig rig;
    struct core_options options = rig_options();
    rig_start(&rig, &options);
    running(&rig, 1);
    core_tick(&rig.core, 90000);
    uint64_t asked = rig_hear(&rig, TSP_PING, 0).body.ping.data;
    EXPECT_EQ(core_deadline(&rig.core), 110000);
    core_tick(&rig.core, 109999);
    EXPECT_EQ(rig.core.link, LINK_OPEN);
    rig.now_ms = 109999;
    rig_pong(&rig, asked);
    core_tick(&rig.core, 110000);
    EXPECT_EQ(rig.core.link, LINK_OPEN);
    core_free(&rig.core);
}

TEST(ping_is_answered) {
    struct rig rig;
    struct core_options options = rig_options();
    struct tsp_message ping = {.type = TSP_PING, .given = 1u << TSP_PING_DATA, .body.ping.data = 99};
    rig_start(&rig, &options);
    running(&rig, 1);
    rig_say(&rig, &ping);
    EXPECT_EQ(rig_hear(&rig, TSP_PONG, 0).body.ping.data, 99);
    core_free(&rig.core);
}

TEST(pauses_grow_until_a_stream_is_heard_of) {
    struct rig rig;
    struct core_options options = rig_options();
    rig_start(&rig, &options);
    running(&rig, 1);
    static const uint64_t pauses[] = {0, 20, 40, 80, 160, 320, 640, 1280, 2000, 2000};
    for (size_t i = 0; i < sizeof pauses / sizeof pauses[0]; i++) {
        core_lost(&rig.core, "refused", rig.now_ms);
        EXPECT_EQ(rig.core.connect_at_ms - rig.now_ms, pauses[i]);
        rig.now_ms = rig.core.connect_at_ms;
        rig_open(&rig);
    }
    rig_welcome(&rig, LIFE);
    rig_hear(&rig, TSP_RESUME, 1);
    rig_accept(&rig, 1, 5, 1);
    core_lost(&rig.core, "cut", rig.now_ms);
    EXPECT_EQ(rig.core.connect_at_ms, rig.now_ms);
    core_free(&rig.core);
}

TEST(the_next_server_is_tried_unless_this_one_holds_an_answer) {
    struct rig rig;
    struct core_options options = rig_options();
    options.n_servers = 2;
    rig_start(&rig, &options);
    rig_submit(&rig, 5, NEVER);
    rig_open(&rig);
    rig_lose(&rig);
    EXPECT_EQ(rig.core.server, 1);
    rig_connect(&rig);
    rig_hear(&rig, TSP_SUBMIT, 1);
    rig_accept(&rig, 1, 5, 1);
    rig_lose(&rig);
    EXPECT_EQ(rig.core.server, 1);
    rig_open(&rig);
    rig_lose(&rig); /* 5 s later */
    EXPECT_EQ(rig.core.server, 1);
    rig_open(&rig);
    rig_lose(&rig); /* 10 s: long enough waited */
    EXPECT_EQ(rig.core.server, 0);
    core_free(&rig.core);
}

TEST(a_drain_sends_new_requests_to_the_next_server) {
    struct rig rig;
    struct core_options options = rig_options();
    struct tsp_message drain = {.type = TSP_DRAIN, .given = 1u << TSP_DRAIN_DEADLINE_MS};
    options.n_servers = 2;
    rig_start(&rig, &options);
    running(&rig, 1);
    rig_say(&rig, &drain);
    rig_submit(&rig, 6, NEVER);
    core_tick(&rig.core, rig.now_ms);
    EXPECT_EQ(rig.core.out.size, 0); /* waits for the first to end here */
    rig_done(&rig, 1, 0, 0, true, 0);
    EXPECT_EQ(rig.core.link, LINK_NONE);
    EXPECT_EQ(rig.core.server, 1);
    rig_connect(&rig);
    rig_hear_ack(&rig, 5);
    rig_hear(&rig, TSP_PING, 0);
    EXPECT_EQ(rig_hear(&rig, TSP_SUBMIT, 1).body.submit.request_id[0], 6);
    core_free(&rig.core);
}

/* It is alive, but of no use: asking it again and again would be no pause, and no end either. */
TEST(servers_that_all_drain_are_asked_with_growing_pauses_and_given_up) {
    struct rig rig;
    struct core_options options = rig_options();
    int result;
    options.n_servers = 2;
    rig_start(&rig, &options);
    struct tandem_stream *stream = rig_submit(&rig, 5, NEVER);
    static const uint64_t pauses[] = {0, 20, 40, 80, 160};
    for (size_t i = 0; i < sizeof pauses / sizeof pauses[0]; i++) {
        EXPECT_EQ(rig.core.server, i % 2);
        rig_connect(&rig);
        rig_hear(&rig, TSP_SUBMIT, 1);
        rig_error(&rig, 1, TSP_CODE_DRAINING, "The server is shutting down");
        EXPECT_EQ(rig.core.link, LINK_NONE);
        EXPECT_EQ(rig.core.connect_at_ms - rig.now_ms, pauses[i]);
        rig.now_ms = rig.core.connect_at_ms;
    }
    core_tick(&rig.core, 1000 + options.give_up_ms);
    rig_read(stream, &result);
    EXPECT_EQ(result, TANDEM_UNREACHABLE);
    core_free(&rig.core);
}

TEST(requests_are_sent_in_the_order_of_their_submission) {
    struct rig rig;
    struct core_options options = rig_options();
    rig_start(&rig, &options);
    for (uint8_t id = 1; id <= 6; id++) {
        struct tandem_stream *stream = rig_submit(&rig, id, NEVER);
        if (id == 3) {
            stream_free(stream);
        }
    }
    rig_connect(&rig);
    EXPECT_EQ(rig_hear(&rig, TSP_SUBMIT, 1).body.submit.request_id[0], 1);
    EXPECT_EQ(rig_hear(&rig, TSP_SUBMIT, 2).body.submit.request_id[0], 2);
    EXPECT_EQ(rig_hear(&rig, TSP_SUBMIT, 3).body.submit.request_id[0], 4);
    EXPECT_EQ(rig_hear(&rig, TSP_SUBMIT, 4).body.submit.request_id[0], 5);
    rig_submit(&rig, 7, NEVER); /* later than one that waits for room */
    rig_error(&rig, 2, TSP_CODE_INVALID, "no");
    EXPECT_EQ(rig_hear(&rig, TSP_SUBMIT, 5).body.submit.request_id[0], 6);
    core_free(&rig.core);
}

TEST(streams_above_the_servers_limit_wait) {
    struct rig rig;
    struct core_options options = rig_options();
    rig_start(&rig, &options);
    for (uint8_t id = 1; id <= 5; id++) {
        rig_submit(&rig, id, NEVER);
    }
    rig_connect(&rig);
    for (uint32_t number = 1; number <= 4; number++) {
        rig_hear(&rig, TSP_SUBMIT, number);
    }
    EXPECT_EQ(rig.core.out.size, 0);
    rig_error(&rig, 2, TSP_CODE_INVALID, "no");
    rig_hear(&rig, TSP_SUBMIT, 5);
    core_free(&rig.core);
}

TEST(bytes_that_are_no_frames_lose_the_connection_and_nothing_else) {
    struct rig rig;
    struct core_options options = rig_options();
    uint8_t garbage[64];
    int result;
    memset(garbage, 0x55, sizeof garbage);
    rig_start(&rig, &options);
    struct tandem_stream *stream = running(&rig, 1);
    rig_feed(&rig, garbage, sizeof garbage);
    EXPECT_EQ(rig.core.link, LINK_NONE);
    rig_read(stream, &result);
    EXPECT_EQ(result, TANDEM_AGAIN);
    rig_connect(&rig);
    rig_hear(&rig, TSP_RESUME, 1);
    core_free(&rig.core);
}

TEST(requests_take_the_fields_of_the_protocol_by_name) {
    struct tandem_request *request = tandem_request_create();
    static const uint32_t ids[] = {1, 2};
    static const float values[] = {1.5f, -1};
    const struct tandem_message message = {.role = "user", .content = "hello"};
    EXPECT_EQ(tandem_request_int(request, "max_tokens", 7), TANDEM_OK);
    EXPECT_EQ(tandem_request_int(request, "seed", UINT64_MAX), TANDEM_OK);
    EXPECT_EQ(tandem_request_float(request, "temperature", 0.5), TANDEM_OK);
    EXPECT_EQ(tandem_request_text(request, "stop", "a", 1), TANDEM_OK);
    EXPECT_EQ(tandem_request_text(request, "stop", "b", 1), TANDEM_OK);
    EXPECT_EQ(tandem_request_ids(request, "stop_token_ids", ids, 2), TANDEM_OK);
    EXPECT_EQ(tandem_request_bias(request, ids, values, 2), TANDEM_OK);
    EXPECT_EQ(tandem_request_message(request, &message), TANDEM_OK);
    struct buffer payload = {0};
    struct tsp_writer writer = tsp_writer(buffer_reserve(&payload, 512), 512);
    uint8_t id[TSP_ID_BYTES] = {1};
    tsp_begin(&writer, TSP_SUBMIT, 0, 1);
    tsp_put_bytes(&writer, TSP_SUBMIT_REQUEST_ID, id, sizeof id);
    write_bytes(&writer.out, request->fields.data, request->fields.size);
    tsp_end(&writer);
    struct tsp_frame frame;
    struct tsp_message decoded;
    size_t used;
    EXPECT_OK(tsp_frame_decode(payload.data, writer.out.size, ROOM, &frame, &used));
    EXPECT_OK(tsp_decode(&frame, &decoded));
    EXPECT_EQ(decoded.given,
              1ull << 1 | 1ull << 7 | 1ull << 11 | 1ull << 15 | 1ull << 29 | 1ull << 31 | 1ull << 33 | 1ull << 35);
    buffer_free(&payload);
    tandem_request_free(request);
}

/* Whatever SUBMIT can carry has a setter, but for what the library sets itself. */
TEST(requests_can_carry_all_that_the_protocol_can) {
    struct tandem_request *request = tandem_request_create();
    const struct tsp_fields *fields = tsp_fields_of(TSP_SUBMIT);
    const struct tandem_message message = {.role = "user"};
    static const uint32_t ids[] = {1};
    static const float values[] = {1};
    for (size_t i = 0; i < fields->n; i++) {
        const struct tsp_field *field = &fields->table[i];
        switch (field->kind) {
        case TSP_KIND_ID: break;
        case TSP_KIND_F32: EXPECT_EQ(tandem_request_float(request, field->name, 0.5), TANDEM_OK); break;
        case TSP_KIND_BYTES: EXPECT_EQ(tandem_request_text(request, field->name, "x", 1), TANDEM_OK); break;
        case TSP_KIND_U32S: EXPECT_EQ(tandem_request_ids(request, field->name, ids, 1), TANDEM_OK); break;
        case TSP_KIND_BIAS: EXPECT_EQ(tandem_request_bias(request, ids, values, 1), TANDEM_OK); break;
        case TSP_KIND_FIELDS: EXPECT_EQ(tandem_request_message(request, &message), TANDEM_OK); break;
        default:
            EXPECT_EQ(tandem_request_int(request, field->name, 1),
                      field->tag == TSP_SUBMIT_CREDIT ? TANDEM_MISUSE : TANDEM_OK);
            break;
        }
    }
    tandem_request_free(request);
}

TEST(requests_refuse_what_is_no_field) {
    struct tandem_request *request = tandem_request_create();
    const struct tandem_message nobody = {.content = "hello"};
    EXPECT_EQ(tandem_request_int(request, "max_token", 7), TANDEM_MISUSE);
    EXPECT_EQ(tandem_request_int(request, "credit", 7), TANDEM_MISUSE);
    EXPECT_EQ(tandem_request_int(request, "temperature", 7), TANDEM_MISUSE);
    EXPECT_EQ(tandem_request_int(request, "max_tokens", 1ull << 32), TANDEM_MISUSE);
    EXPECT_EQ(tandem_request_int(request, "ignore_eos", 2), TANDEM_MISUSE);
    EXPECT_EQ(tandem_request_text(request, "n", "7", 1), TANDEM_MISUSE);
    EXPECT_EQ(tandem_request_float(request, "n", 7), TANDEM_MISUSE);
    EXPECT_EQ(tandem_request_message(request, &nobody), TANDEM_MISUSE);
    EXPECT_EQ(tandem_request_float(request, "top_p", 0.5), TANDEM_OK);
    EXPECT_EQ(tandem_request_float(request, "top_p", 0.5), TANDEM_MISUSE); /* twice */
    EXPECT_EQ(request->result, TANDEM_MISUSE);
    tandem_request_free(request);
}
