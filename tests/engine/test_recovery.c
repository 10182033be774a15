/* What the engine does when workers or the front-end die. */
#include "runtime/base/log.h"
#include "tests/engine/support_bench.h"
#include "tests/harness/test.h"

/* ---- deaths */

TEST(a_lost_group_is_replayed_in_order_and_nothing_is_lost) {
    struct bench bench;
    bench_setup(&bench);
    bench.config.limits.max_tokens = 64;
    bench_start(&bench);
    struct journal_handle handles[3];
    for (uint32_t i = 0; i < 3; i++) {
        handles[i] = bench_submit(&bench, i, 6, 20);
    }
    for (int i = 0; i < 8; i++) {
        bench_turn(&bench);
    }
    uint32_t n = bench_state(&bench, handles[0]).n_output;
    EXPECT_EQ(n, 7);
    device_kill(bench.device);
    engine_tick(bench.engine, 0);
    EXPECT(bench.device == NULL);
    EXPECT_EQ(bench_stats(&bench).waiting, 3);
    EXPECT_EQ(bench_stats(&bench).blocks_cached, 0);
    bench_new_group(&bench);
    engine_tick(bench.engine, 0);
    struct step_view view = bench_newest(&bench);
    EXPECT_EQ(view.header->step_id, 1);
    EXPECT_EQ(view.header->epoch, 2);
    EXPECT_EQ(view.header->n_rows, 3);
    for (uint32_t i = 0; i < 3; i++) {
        EXPECT_EQ(view.inits[i].sampling.seed, i);
        EXPECT_EQ(view.inits[i].sampling.prompt_len, 6);
        EXPECT_EQ(view.rows[i].q_len, 6 + n);
    }
    EXPECT_EQ(bench_stats(&bench).replays, 3);
    bench_run_to_rest(&bench);
    for (int i = 0; i < 3; i++) {
        EXPECT_EQ(bench_state(&bench, handles[i]).n_output, 20);
    }
    bench_stop(&bench);
}

TEST(a_request_that_kills_fails_alone) {
    struct bench bench;
    bench_setup(&bench);
    bench.config.limits.max_tokens = 64;
    bench.config.overlap = true;
    bench.kill_seed = 2;
    bench_start(&bench);
    struct journal_handle handles[3];
    for (uint32_t i = 0; i < 3; i++) {
        handles[i] = bench_submit(&bench, i + 1, 6, 20);
    }
    uint32_t deaths = 0;
    for (int i = 0; !engine_idle(bench.engine); i++) {
        EXPECT(i < 1000);
        bench_turn(&bench);
        if (bench.device == NULL) {
            deaths++;
            if (deaths < 3) {
                EXPECT_EQ(journal_deaths(bench.journal, handles[1]), deaths);
            }
            bench_new_group(&bench);
        } else if (deaths == 2 && device_backlog(bench.device) > 0) {
            EXPECT_EQ(bench_newest(&bench).header->n_rows, 1);
        }
    }
    EXPECT_EQ(deaths, 3);
    EXPECT_EQ(bench_state(&bench, handles[1]).finish, JOURNAL_FINISH_ERROR);
    EXPECT(strstr(bench_state(&bench, handles[1]).error_text, "died three times") != NULL);
    EXPECT_EQ(bench_state(&bench, handles[0]).n_output, 20);
    EXPECT_EQ(bench_state(&bench, handles[2]).n_output, 20);
    bench_stop(&bench);
}

/* ---- a group that breaks its word */

static struct worker_port_ops honest;
static int lie;
static struct step_result lies[8];
static int n_given_up;

static void count_given_up(struct worker_port *port, const char *reason) {
    (void)port;
    EXPECT(strstr(reason, "step ") != NULL);
    n_given_up++;
}

static enum status lying_poll(struct worker_port *port, struct port_event *event) {
    enum status status = honest.poll(port, event);
    if (status == STATUS_OK && event->type == PORT_STEP_DONE) {
        memcpy(lies, event->results, event->n_results * sizeof lies[0]);
        event->results = lies;
        event->step_id += lie == 0;
        event->n_results -= lie == 1;
        lies[0].id = lie == 2 ? VOCABULARY : lies[0].id;
        lies[0].n_top = lie == 3 ? STEP_MAX_LOGPROBS + 1 : 0;
    }
    return status;
}

TEST(a_group_that_reports_nonsense_is_dropped) {
    for (lie = 0; lie < 4; lie++) {
        struct bench bench;
        bench_setup(&bench);
        log_setup(LOG_ERROR + 1, "test");
        bench_start(&bench);
        honest = *device_port(bench.device)->ops;
        struct worker_port_ops lying = honest;
        lying.poll = lying_poll;
        lying.give_up = count_given_up;
        device_port(bench.device)->ops = &lying;
        struct journal_handle handle = bench_submit(&bench, 1, 6, 20);
        bench_turn(&bench);
        bench_turn(&bench);
        EXPECT(bench.device == NULL);
        EXPECT_EQ(bench_state(&bench, handle).n_output, 0);
        EXPECT_EQ(n_given_up, lie + 1);
        bench_new_group(&bench);
        bench_run_to_rest(&bench);
        EXPECT_EQ(bench_state(&bench, handle).n_output, 20);
        bench_stop(&bench);
    }
}

/* ---- the front-end's death */

static void front_end_dies(struct bench *bench) {
    engine_destroy(bench->engine);
    journal_close(bench->journal);
    EXPECT_OK(journal_open(bench->fd, bench->bytes, BENCH_SEQUENCES, false, &bench->journal));
    bench->config.journal = bench->journal;
    bench->engine = engine_create(&bench->config);
    engine_recover(bench->engine);
    engine_check(bench->engine);
}

/* A death between the last token and the end: the recovered token is looked at again. */
TEST(an_end_that_was_not_written_is_found_at_recovery) {
    struct bench bench;
    bench_setup(&bench);
    bench_start(&bench);
    uint32_t stop_id = 77;
    struct engine_request request = bench_request(1, 5, 10);
    request.params.n_stop_ids = 1;
    request.stop_ids = &stop_id;
    struct journal_handle stopped, full, running, ended;
    EXPECT_OK(engine_submit(bench.engine, &request, 0, &stopped));
    EXPECT_OK(engine_submit(bench.engine, &request, 0, &running));
    EXPECT_OK(engine_submit(bench.engine, &request, 0, &ended));
    request.params.max_tokens = 2;
    EXPECT_OK(engine_submit(bench.engine, &request, 0, &full));
    const struct journal_token stop = {.id = 77}, other = {.id = 5};
    journal_append(bench.journal, stopped, &other);
    journal_append(bench.journal, stopped, &stop);
    journal_append(bench.journal, full, &other);
    journal_append(bench.journal, full, &other);
    journal_append(bench.journal, running, &other);
    engine_end(bench.engine, ended, JOURNAL_FINISH_CANCELLED, 0);
    front_end_dies(&bench);
    EXPECT_EQ(bench_state(&bench, stopped).finish, JOURNAL_FINISH_STOP);
    EXPECT_EQ(bench_state(&bench, stopped).n_output, 2);
    EXPECT_EQ(bench_state(&bench, full).finish, JOURNAL_FINISH_LENGTH);
    EXPECT_EQ(bench_state(&bench, running).finish, JOURNAL_RUNNING);
    EXPECT_EQ(bench_stats(&bench).waiting, 1);
    bench_new_group(&bench);
    bench_run_to_rest(&bench);
    EXPECT(bench_state(&bench, running).finish != JOURNAL_RUNNING);
    engine_release(bench.engine, ended);
    engine_release(bench.engine, stopped);
    engine_release(bench.engine, full);
    engine_release(bench.engine, running);
    size_t used, total;
    journal_usage(bench.journal, &used, &total);
    EXPECT_EQ(used, 0);
    bench_stop(&bench);
}

/* Two choices that had said the same are replayed: what the second finds in the cache of their answer is no prompt. */
TEST(recovered_answers_do_not_count_as_cached_prompts) {
    struct bench bench;
    bench_setup(&bench);
    bench_start(&bench);
    struct engine_request request = bench_request(1, 6, 20);
    const struct journal_token token = {.id = 5};
    struct journal_handle handles[2];
    for (uint32_t choice = 0; choice < 2; choice++) {
        request.params.sampling.choice = choice;
        EXPECT_OK(engine_submit(bench.engine, &request, 0, &handles[choice]));
        for (int i = 0; i < 10; i++) {
            journal_append(bench.journal, handles[choice], &token);
        }
    }
    front_end_dies(&bench);
    bench_new_group(&bench);
    engine_tick(bench.engine, 0);
    bench_turn(&bench);
    EXPECT_EQ(bench_newest(&bench).inits[0].len, 12); /* of 16 known ids */
    EXPECT_EQ(bench_stats(&bench).prefix_queries, 12);
    EXPECT_EQ(bench_stats(&bench).prefix_hits, 6);
    EXPECT_EQ(bench_stats(&bench).cached_tokens, 6);
    bench_run_to_rest(&bench);
    bench_stop(&bench);
}

/* A journal may hold what this engine's limits do not allow; that is dropped, the rest is served. */
TEST(a_recovered_request_is_checked_against_the_limits) {
    struct bench bench;
    bench_setup(&bench);
    log_setup(LOG_ERROR, "test");
    bench_start(&bench);
    struct journal_handle long_one = bench_submit(&bench, 1, 40, 5), high_id = bench_submit(&bench, 9, 5, 5),
                          good = bench_submit(&bench, 2, 5, 5), high_output = bench_submit(&bench, 3, 5, 5);
    const struct journal_token high = {.id = VOCABULARY};
    journal_append(bench.journal, high_output, &high);
    bench.config.limits.max_len = 32;
    bench.config.limits.vocab_size = 900; /* the prompt of seed 9 begins at 900 */
    bench.device_config.limits = bench.config.limits;
    front_end_dies(&bench);
    struct journal_state state;
    EXPECT_EQ(journal_state(bench.journal, long_one, &state), STATUS_NOT_FOUND);
    EXPECT_EQ(journal_state(bench.journal, high_id, &state), STATUS_NOT_FOUND);
    EXPECT_EQ(journal_state(bench.journal, high_output, &state), STATUS_NOT_FOUND);
    bench_new_group(&bench);
    bench_run_to_rest(&bench);
    EXPECT_EQ(bench_state(&bench, good).n_output, 5);
    bench_stop(&bench);
}
