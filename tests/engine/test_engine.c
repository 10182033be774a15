/* One behaviour of the engine each, while all goes well. */
#include "tests/engine/support_bench.h"
#include "tests/harness/test.h"

/* ---- what is refused */

TEST(a_request_that_cannot_be_served_is_refused_by_field) {
    struct bench bench;
    bench_setup(&bench);
    bench.config.limits.n_blocks = 9; /* 32 tokens */
    bench_start(&bench);
    struct journal_handle handle;
    struct engine_request request = bench_request(1, 5, 5);
    const struct step_bias bad_bias = {.id = VOCABULARY, .value = 1};
    struct {
        enum status status;
        const char *part;
        struct engine_request request;
    } cases[12];
    for (size_t i = 0; i < 12; i++) {
        cases[i].request = request;
    }
    uint32_t bad_prompt[5] = {1, 2, VOCABULARY, 4, 5};
#define CASE(index, code, text, field, value)                                                                          \
    cases[index].request.field = value;                                                                                \
    cases[index].status = code;                                                                                        \
    cases[index].part = text
    CASE(0, STATUS_INVALID, "prompt: it is empty", params.n_prompt, 0);
    CASE(1, STATUS_LIMIT, "shorten it", params.n_prompt, MAX_LEN);
    CASE(2, STATUS_INVALID, "max_tokens", params.max_tokens, 0);
    CASE(3, STATUS_LIMIT, "fewer tokens", params.max_tokens, 29); /* 33 positions */
    CASE(4, STATUS_INVALID, "prompt: id 1000 at 2", prompt, bad_prompt);
    CASE(5, STATUS_INVALID, "temperature", params.sampling.temperature, -1);
    CASE(6, STATUS_INVALID, "top_p", params.sampling.top_p, 0);
    CASE(7, STATUS_INVALID, "n_logprobs", params.sampling.n_logprobs, 21);
    CASE(8, STATUS_LIMIT, "stop_token_ids", params.n_stop_ids, 65);
    CASE(9, STATUS_LIMIT, "logit_bias", params.n_bias, 301);
    CASE(10, STATUS_TIMEOUT, "deadline", params.deadline_ns, 4);
    CASE(11, STATUS_INVALID, "logit_bias: entry 0", bias, &bad_bias);
    cases[11].request.params.n_bias = 1;
    for (size_t i = 0; i < 12; i++) {
        EXPECT_FAILS(engine_submit(bench.engine, &cases[i].request, 5, &handle), cases[i].status, cases[i].part);
    }
    request.params.max_tokens = 28; /* 32 positions: the last token is never computed */
    EXPECT_OK(engine_submit(bench.engine, &request, 0, &handle));
    bench_run_to_rest(&bench);
    EXPECT_EQ(bench_state(&bench, handle).n_output, 28);
    bench_stop(&bench);
}

TEST(a_full_queue_refuses_and_a_group_that_is_down_does_not) {
    struct bench bench;
    bench_setup(&bench);
    bench.config.queue_max = 3;
    bench_start(&bench);
    engine_port_lost(bench.engine, 0);
    for (uint64_t i = 0; i < 3; i++) {
        bench_submit(&bench, i, 5, 5);
    }
    struct engine_request request = bench_request(9, 5, 5);
    struct journal_handle handle;
    EXPECT_FAILS(engine_submit(bench.engine, &request, 0, &handle), STATUS_BUSY, "come again");
    EXPECT_EQ(bench_stats(&bench).waiting, 3);
    bench_new_group(&bench);
    engine_tick(bench.engine, 0);
    EXPECT_OK(engine_submit(bench.engine, &request, 0, &handle));
    bench_run_to_rest(&bench);
    EXPECT_EQ(bench_stats(&bench).finished[JOURNAL_FINISH_LENGTH], 4);
    bench_stop(&bench);
}

/* ---- what runs */

TEST(a_long_prompt_comes_in_chunks_behind_the_decodes) {
    struct bench bench;
    bench_setup(&bench);
    bench_start(&bench);
    bench_submit(&bench, 1, 3, 30);
    bench_turn(&bench); /* prefill of the first */
    bench_turn(&bench); /* its first decode */
    bench_submit(&bench, 2, 40, 5);
    bench_submit(&bench, 3, 20, 5);
    const uint32_t expected[][3] = {{1, 15, 0}, {1, 15, 0}, {1, 10, 5}, {1, 1, 14}, {1, 1, 1}};
    for (size_t i = 0; i < 5; i++) {
        bench_turn(&bench);
        struct step_view view = bench_newest(&bench);
        uint32_t n_rows = expected[i][2] > 0 ? 3 : 2;
        EXPECT_EQ(view.header->n_rows, n_rows);
        for (uint32_t row = 0; row < n_rows; row++) {
            EXPECT_EQ(view.rows[row].q_len, expected[i][row]);
        }
        EXPECT(view.header->n_tokens <= 16);
    }
    bench_run_to_rest(&bench);
    bench_stop(&bench);
}

TEST(a_prompt_seen_before_is_not_computed_again) {
    struct bench bench;
    bench_setup(&bench);
    bench_start(&bench);
    struct journal_handle first = bench_submit(&bench, 1, 12, 3);
    bench_run_to_rest(&bench);
    uint64_t computed = device_tokens_computed(bench.device);
    EXPECT_EQ(computed, 12 + 2);
    struct journal_handle second = bench_submit(&bench, 1, 12, 3);
    engine_tick(bench.engine, 0);
    /* Two of three full blocks: the last prompt token is computed for its logits. */
    EXPECT_EQ(bench_newest(&bench).inits[0].len, 8);
    EXPECT_EQ(bench_newest(&bench).header->n_ids, 12);
    bench_run_to_rest(&bench);
    EXPECT_EQ(device_tokens_computed(bench.device) - computed, 4 + 2);
    EXPECT_EQ(bench_stats(&bench).cached_tokens, 8);
    EXPECT_EQ(bench_stats(&bench).prefix_queries, 24);
    uint32_t ids[2][3];
    EXPECT_OK(journal_read_ids(bench.journal, first, 0, 3, ids[0]));
    EXPECT_OK(journal_read_ids(bench.journal, second, 0, 3, ids[1]));
    EXPECT(memcmp(ids[0], ids[1], sizeof ids[0]) == 0);
    bench_stop(&bench);
}

/* The first choice computes the prompt, the others come together when it is in the cache. */
TEST(choices_wait_for_their_common_prompt) {
    struct bench bench;
    bench_setup(&bench);
    bench_start(&bench);
    struct engine_request request = bench_request(1, 14, 4);
    struct journal_handle handles[4];
    for (uint32_t choice = 0; choice < 4; choice++) {
        request.params.sampling.choice = choice;
        EXPECT_OK(engine_submit(bench.engine, &request, 0, &handles[choice]));
    }
    engine_tick(bench.engine, 0);
    EXPECT_EQ(bench_newest(&bench).header->n_rows, 1);
    bench_turn(&bench);
    struct step_view view = bench_newest(&bench);
    EXPECT_EQ(view.header->n_rows, 4);
    EXPECT_EQ(view.header->n_inits, 3);
    for (int i = 0; i < 3; i++) {
        EXPECT_EQ(view.inits[i].len, 12);
        EXPECT_EQ(view.rows[1 + i].q_len, 2);
    }
    bench_run_to_rest(&bench);
    EXPECT_EQ(device_tokens_computed(bench.device), 14 + 3 * 2 + 4 * 3);
    bench_stop(&bench);
}

TEST(a_request_of_another_id_does_not_wait) {
    struct bench bench;
    bench_setup(&bench);
    bench.config.limits.max_tokens = 32;
    bench_start(&bench);
    bench_submit(&bench, 1, 14, 4);
    bench_submit(&bench, 2, 14, 4);
    engine_tick(bench.engine, 0);
    EXPECT_EQ(bench_newest(&bench).header->n_rows, 2);
    bench_run_to_rest(&bench);
    bench_stop(&bench);
}

/* Two sequences that together outgrow the blocks: the younger one gives way, and both end as if alone. */
TEST(the_youngest_gives_way) {
    struct bench bench;
    uint32_t ids[2][2][30];
    for (int tight = 0; tight < 2; tight++) {
        bench_setup(&bench);
        bench.config.limits.n_blocks = tight ? 1 + 12 : 65;
        bench.config.prefix_cache = false;
        bench_start(&bench);
        struct journal_handle handles[2] = {bench_submit(&bench, 1, 10, 30), bench_submit(&bench, 2, 10, 30)};
        while (bench_stats(&bench).preemptions == 0 && !engine_idle(bench.engine)) {
            bench_turn(&bench);
        }
        EXPECT_EQ(bench_stats(&bench).preemptions, tight);
        if (tight) {
            EXPECT_EQ(bench_stats(&bench).running, 1);
            EXPECT_EQ(bench_newest(&bench).header->n_rows, 1);
        }
        bench_run_to_rest(&bench);
        for (int i = 0; i < 2; i++) {
            EXPECT_EQ(bench_state(&bench, handles[i]).n_output, 30);
            EXPECT_OK(journal_read_ids(bench.journal, handles[i], 0, 30, ids[tight][i]));
        }
        bench_stop(&bench);
    }
    EXPECT(memcmp(ids[0], ids[1], sizeof ids[0]) == 0);
}

TEST(overlap_keeps_two_steps_in_flight_and_changes_no_token) {
    uint32_t ids[2][3][20];
    uint64_t steps[2];
    for (int overlap = 0; overlap < 2; overlap++) {
        struct bench bench;
        bench_setup(&bench);
        bench.config.overlap = overlap;
        bench_start(&bench);
        struct journal_handle handles[3];
        for (uint32_t i = 0; i < 3; i++) {
            handles[i] = bench_submit(&bench, i, 5 + 9 * i, 20);
        }
        uint32_t deepest = 0;
        for (int i = 0; !engine_idle(bench.engine); i++) {
            EXPECT(i < 1000);
            bench_turn(&bench);
            uint32_t depth = device_backlog(bench.device);
            deepest = depth > deepest ? depth : deepest;
        }
        EXPECT_EQ(deepest, 1 + overlap);
        for (uint32_t i = 0; i < 3; i++) {
            EXPECT_EQ(bench_state(&bench, handles[i]).n_output, 20);
            EXPECT_OK(journal_read_ids(bench.journal, handles[i], 0, 20, ids[overlap][i]));
        }
        steps[overlap] = bench_stats(&bench).steps;
        bench_stop(&bench);
    }
    EXPECT(memcmp(ids[0], ids[1], sizeof ids[0]) == 0);
    EXPECT_EQ(steps[0], steps[1]); /* no end was a surprise: none was by a stop id */
}

/* ---- how it ends */

TEST(a_stop_id_ends_and_what_was_computed_past_it_does_not_count) {
    struct bench bench;
    bench_setup(&bench);
    bench.config.overlap = true;
    bench_start(&bench);
    struct journal_handle plain = bench_submit(&bench, 1, 5, 10);
    bench_run_to_rest(&bench);
    uint32_t ids[10];
    EXPECT_OK(journal_read_ids(bench.journal, plain, 0, 10, ids));
    uint64_t tokens = bench_stats(&bench).generation_tokens, computed = device_tokens_computed(bench.device);
    struct engine_request request = bench_request(1, 5, 10);
    uint32_t stop_ids[2] = {VOCABULARY - 1, ids[4]};
    request.params.n_stop_ids = 2;
    request.stop_ids = stop_ids;
    struct journal_handle handle;
    EXPECT_OK(engine_submit(bench.engine, &request, 0, &handle));
    bench_run_to_rest(&bench);
    EXPECT_EQ(bench_state(&bench, handle).finish, JOURNAL_FINISH_STOP);
    EXPECT_EQ(bench_state(&bench, handle).n_output, 5);
    EXPECT_EQ(bench_stats(&bench).generation_tokens - tokens, 5);
    /* One cached block; four decodes, and one that ran past the stop. */
    EXPECT_EQ(device_tokens_computed(bench.device) - computed, 1 + 4 + 1);
    bench_stop(&bench);
}

TEST(the_context_ends_a_sequence) {
    struct bench bench;
    bench_setup(&bench);
    bench_start(&bench);
    struct journal_handle handle = bench_submit(&bench, 1, 60, 1000);
    bench_run_to_rest(&bench);
    EXPECT_EQ(bench_state(&bench, handle).finish, JOURNAL_FINISH_LENGTH);
    EXPECT_EQ(bench_state(&bench, handle).n_output, 4);
    bench_stop(&bench);
}

TEST(a_reader_ends_a_sequence_at_its_own_count) {
    struct bench bench;
    bench_setup(&bench);
    bench_start(&bench);
    struct journal_handle handle = bench_submit(&bench, 1, 5, 30);
    for (int i = 0; i < 10; i++) {
        bench_turn(&bench);
    }
    uint32_t news = bench.n_news;
    engine_end(bench.engine, handle, JOURNAL_FINISH_STOP, 3);
    EXPECT_EQ(bench.n_news, news + 1);
    EXPECT_EQ(bench_state(&bench, handle).n_output, 3);
    EXPECT_EQ(bench_state(&bench, handle).finish, JOURNAL_FINISH_STOP);
    engine_end(bench.engine, handle, JOURNAL_FINISH_CANCELLED, 1); /* too late: ignored */
    EXPECT_EQ(bench_state(&bench, handle).finish, JOURNAL_FINISH_STOP);
    EXPECT_EQ(bench_stats(&bench).blocks_used, 0);
    engine_release(bench.engine, handle);
    engine_release(bench.engine, handle);
    engine_end(bench.engine, handle, JOURNAL_FINISH_STOP, 0);
    struct journal_handle live = bench_submit(&bench, 2, 5, 30);
    bench_turn(&bench);
    engine_release(bench.engine, live); /* nobody reads it any more */
    EXPECT_EQ(bench_stats(&bench).finished[JOURNAL_FINISH_CANCELLED], 1);
    bench_run_to_rest(&bench);
    bench_stop(&bench);
}

TEST(a_result_that_is_not_finite_ends_one_and_leaves_nothing_in_the_cache) {
    struct bench bench;
    bench_setup(&bench);
    bench.nan_seed = 1;
    bench_start(&bench);
    struct journal_handle bad = bench_submit(&bench, 1, 9, 5), good = bench_submit(&bench, 2, 5, 5);
    bench_run_to_rest(&bench);
    EXPECT_EQ(bench_state(&bench, bad).finish, JOURNAL_FINISH_ERROR);
    EXPECT_EQ(bench_state(&bench, bad).error_code, STATUS_INTERNAL);
    EXPECT_EQ(bench_state(&bench, bad).n_output, 0);
    EXPECT_EQ(bench_state(&bench, good).finish, JOURNAL_FINISH_LENGTH);
    EXPECT_EQ(bench_stats(&bench).blocks_cached, 2); /* of the good one's 9 computed positions */
    bench_stop(&bench);
}

TEST(a_deadline_ends_what_waits_and_what_runs) {
    struct bench bench;
    bench_setup(&bench);
    bench.config.limits.n_slots = 1;
    bench_start(&bench);
    struct engine_request request = bench_request(1, 5, 30);
    struct journal_handle handles[3];
    for (uint64_t i = 0; i < 3; i++) {
        request.params.deadline_ns = i < 2 ? 100 + i : 0;
        EXPECT_OK(engine_submit(bench.engine, &request, 0, &handles[i]));
    }
    bench_turn(&bench);
    bench_turn(&bench);
    EXPECT_EQ(engine_next_ns(bench.engine), 100);
    engine_tick(bench.engine, 99);
    EXPECT_EQ(bench_state(&bench, handles[0]).finish, JOURNAL_RUNNING);
    engine_tick(bench.engine, 100);
    EXPECT_EQ(bench_state(&bench, handles[0]).finish, JOURNAL_FINISH_ERROR);
    EXPECT_EQ(bench_state(&bench, handles[0]).error_code, STATUS_TIMEOUT);
    EXPECT_EQ(engine_next_ns(bench.engine), 101);
    engine_tick(bench.engine, 5000);
    EXPECT_EQ(bench_state(&bench, handles[1]).error_code, STATUS_TIMEOUT);
    EXPECT(engine_next_ns(bench.engine) == UINT64_MAX);
    bench_run_to_rest(&bench);
    EXPECT_EQ(bench_state(&bench, handles[2]).finish, JOURNAL_FINISH_LENGTH);
    bench_stop(&bench);
}

TEST(a_group_that_is_given_up_fails_all) {
    struct bench bench;
    bench_setup(&bench);
    bench_start(&bench);
    struct journal_handle handles[6];
    for (uint64_t i = 0; i < 6; i++) {
        handles[i] = bench_submit(&bench, i, 5, 30);
    }
    bench_turn(&bench);
    engine_port_lost(bench.engine, 0);
    engine_fail_all(bench.engine, STATUS_CLOSED, "the workers do not come up");
    for (int i = 0; i < 6; i++) {
        EXPECT_EQ(bench_state(&bench, handles[i]).error_code, STATUS_CLOSED);
        EXPECT_TEXT(bench_state(&bench, handles[i]).error_text, "the workers do not come up");
    }
    EXPECT(engine_idle(bench.engine));
    bench_stop(&bench);
}
