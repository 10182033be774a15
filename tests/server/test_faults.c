/* Clients that go away or stall, queues that fill, groups that die, drains. */
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/harness/test.h"
#include "tests/server/support_rig.h"
#include "tests/server/support_stream.h"

#define CHAT "/v1/chat/completions"
#define QUESTION "\"messages\":[{\"role\":\"user\",\"content\":\"What is 40 + 2?\"}]"
#define BODY "{" QUESTION "}"
#define STREAM_BODY "{" QUESTION ",\"stream\":true}"

#define RUNNING "vllm:num_requests_running{"
#define WAITING "vllm:num_requests_waiting{"
#define JOURNAL "tandem_journal_used_bytes{"
#define REFUSED "tandem_requests_rejected_total{model_name=\"tandem-r1-tiny\",reason=\"busy\""
#define UNAVAILABLE "tandem_requests_rejected_total{model_name=\"tandem-r1-tiny\",reason=\"unavailable\""
#define BLOCKS "vllm:kv_cache_usage_perc{"

static void sleep_ms(long ms) {
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

/* Nothing is left of any request. */
static void expect_clean(struct rig *rig) {
    rig_await_metric(rig, RUNNING, 0);
    rig_await_metric(rig, WAITING, 0);
    rig_await_metric(rig, JOURNAL, 0);
    rig_await_metric(rig, BLOCKS, 0);
    rig_await_metric(rig, "tandem_calls{", 0);
}

static void start_endless(struct rig *rig) {
    struct rig_options options = rig_options();
    options.cycle = true;
    options.max_len = 40960;
    rig_start(rig, &options);
    atomic_store(&rig->groups[0].delay_us, 2000);
}

TEST(a_client_that_goes_away_is_cancelled) {
    struct rig rig;
    start_endless(&rig);
    struct response response = {0};
    int streaming = raw_connect(&rig);
    raw_post(streaming, CHAT, "", STREAM_BODY);
    raw_read_head(streaming, &response);
    EXPECT(raw_read_chunk(streaming, &response) && raw_read_chunk(streaming, &response));
    int whole = raw_connect(&rig);
    raw_post(whole, CHAT, "", BODY);
    int several = raw_connect(&rig);
    raw_post(several, CHAT, "", "{" QUESTION ",\"n\":4,\"stream\":true}");
    rig_await_metric(&rig, RUNNING, 6);
    close(streaming);
    close(whole);
    shutdown(several, SHUT_WR); /* a half-closed connection counts as gone */
    expect_clean(&rig);
    EXPECT(rig_metric(&rig, "tandem_client_disconnects_total{") == 3);
    close(several);
    response_free(&response);
    rig_stop(&rig);
}

TEST(a_client_that_resets_is_cancelled) {
    struct rig rig;
    start_endless(&rig);
    struct response response = {0};
    int fd = raw_connect(&rig);
    raw_post(fd, CHAT, "", STREAM_BODY);
    raw_read_head(fd, &response);
    struct linger linger = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(fd);
    expect_clean(&rig);
    response_free(&response);
    rig_stop(&rig);
}

TEST(a_client_may_go_away_before_anything_runs) {
    struct rig rig;
    struct rig_options options = rig_options();
    options.without_groups = true;
    rig_start(&rig, &options);
    int fds[8];
    for (int i = 0; i < 8; i++) {
        fds[i] = raw_connect(&rig);
        raw_post(fds[i], CHAT, "", i % 2 == 0 ? BODY : STREAM_BODY);
    }
    rig_await_metric(&rig, WAITING, 8);
    for (int i = 0; i < 8; i++) {
        close(fds[i]);
    }
    expect_clean(&rig);
    rig_group_up(&rig, 0);
    struct stream stream;
    rig_stream(&rig, CHAT, STREAM_BODY, &stream);
    EXPECT(stream.done && stream.whole);
    stream_free(&stream);
    rig_stop(&rig);
}

/* The slow client takes nothing for a while: its tokens wait in the journal, others go on, and it misses nothing. */
TEST_TIMEOUT(a_slow_reader_blocks_nobody_and_loses_nothing, 60) {
    struct rig rig;
    struct rig_options options = rig_options();
    options.cycle = true;
    options.max_len = 40960;
    options.limits.output_bytes = 20000;
    rig_start(&rig, &options);
    int slow = raw_connect(&rig);
    int small = 65536;
    setsockopt(slow, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    /* Log-probabilities make few tokens more bytes than the sockets take. */
    raw_post(slow, "/v1/completions", "", "{\"prompt\":\"x\",\"max_tokens\":8000,\"logprobs\":20,\"stream\":true}");
    for (int i = 0; i < 20; i++) {
        struct stream stream;
        rig_stream(&rig, CHAT, "{" QUESTION ",\"max_tokens\":50,\"stream\":true}", &stream);
        EXPECT(stream.done && stream.whole);
        stream_free(&stream);
    }
    rig_await_metric(&rig, RUNNING, 0); /* its tokens are all generated; most of them lie in the journal */
    EXPECT(rig_metric(&rig, JOURNAL) > 0);
    struct response response = {0};
    struct stream stream;
    raw_read(slow, &response);
    stream_parse(&response, &stream);
    EXPECT(stream.done && stream.whole);
    struct buf expected = {0};
    for (uint32_t i = 0; i < 8000; i++) {
        tokenizer_decode(rig.tokenizer, &rig.script.ids[i % rig.script.size], 1, true, &expected);
    }
    EXPECT_TEXT(buf_cstr(&stream.choices[0].content), buf_cstr(&expected));
    buf_free(&expected);
    stream_free(&stream);
    close(slow);
    expect_clean(&rig);
    response_free(&response);
    rig_stop(&rig);
}

TEST_TIMEOUT(a_client_that_takes_nothing_is_cut, 60) {
    struct rig rig;
    struct rig_options options = rig_options();
    options.cycle = true;
    options.max_len = 40960;
    options.limits.output_bytes = 20000;
    options.limits.stall_ms = 500;
    rig_start(&rig, &options);
    int stalled = raw_connect(&rig);
    int small = 4096;
    setsockopt(stalled, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    raw_post(stalled, "/v1/completions", "", "{\"prompt\":\"x\",\"max_tokens\":40000,\"stream\":true}");
    rig_await_metric(&rig, "tandem_client_disconnects_total{", 1);
    expect_clean(&rig);
    close(stalled);
    rig_stop(&rig);
}

/* Requests that an engine holds or that were refused: a call counts only once that is decided. One that goes from
 * waiting to running between the two scrapes is missed, never counted twice. */
static double decided(struct rig *rig) {
    double n = rig_metric(rig, RUNNING);
    n += rig_metric(rig, WAITING);
    return n + rig_metric(rig, REFUSED);
}

/* Two requests run and so many wait; none gets on. */
static void start_held(struct rig *rig, uint32_t queue_max) {
    struct rig_options options = rig_options();
    options.cycle = true;
    options.max_rows = 2;
    options.queue_max = queue_max;
    rig_start(rig, &options);
    atomic_store(&rig->groups[0].held, true);
}

static void expect_refused(struct rig *rig, const char *path, const char *body, const char *text) {
    struct response response = {0};
    int fd = raw_connect(rig);
    raw_post(fd, path, "", body);
    raw_read(fd, &response);
    EXPECT_EQ(response.status, 400);
    EXPECT(strstr(buf_cstr(&response.body), text) != NULL);
    response_free(&response);
    close(fd);
}

/* To come again would not help what does not fit an idle server. */
TEST(what_never_fits_is_not_told_to_come_again) {
    struct rig rig;
    start_held(&rig, 2);
    expect_refused(&rig, CHAT, "{" QUESTION ",\"n\":5}", "n: 5 answers at once; this server makes 2 and lets 2 wait");
    rig_stop(&rig);

    start_held(&rig, 64);
    expect_refused(&rig, "/v1/completions",
                   "{\"prompt\":[\"a\",\"b\",\"c\",\"d\"],\"n\":16,\"max_tokens\":1000,\"logprobs\":20}",
                   "max_tokens: 64 answers of this length need");
    rig_stop(&rig);
}

TEST(a_full_queue_refuses) {
    struct rig rig;
    start_held(&rig, 2);
    /* How many run and how many wait depends on when steps are planned: enough come to fill both. */
    int fds[8];
    for (int i = 0; i < 8; i++) {
        fds[i] = raw_connect(&rig);
        raw_post(fds[i], CHAT, "", STREAM_BODY);
        while (decided(&rig) < i + 1) {
            sleep_ms(1);
        }
        if (i == 0) {
            rig_await_metric(&rig, RUNNING, 1);
        }
    }
    double refused = rig_metric(&rig, REFUSED);
    EXPECT(refused >= 8 - 2 - 2 && refused <= 8 - 2);
    struct response response = {0};
    int more = raw_connect(&rig);
    raw_post(more, CHAT, "", BODY);
    raw_read(more, &response);
    EXPECT_EQ(response.status, 429);
    EXPECT_TEXT(response_header(&response, "Retry-After"), "1");
    EXPECT(response_header(&response, "retry-after-ms") != NULL);
    EXPECT_TEXT(response_header(&response, "Connection"), "keep-alive");
    EXPECT(strstr(buf_cstr(&response.body), "\"code\":\"server_overloaded\"") != NULL);
    raw_post(more, CHAT, "", "{" QUESTION ",\"n\":3}"); /* some of its choices might fit: all or none */
    raw_read(more, &response);
    EXPECT_EQ(response.status, 429);
    for (int i = 0; i < 8; i++) {
        close(fds[i]);
    }
    rig_await_metric(&rig, "tandem_calls{", 0);
    atomic_store(&rig.groups[0].held, false);
    expect_clean(&rig);
    raw_post(more, CHAT, "", "{" QUESTION ",\"max_tokens\":5}");
    raw_read(more, &response);
    EXPECT_EQ(response.status, 200);
    EXPECT(rig_metric(&rig, REFUSED) == refused + 2);
    close(more);
    response_free(&response);
    rig_stop(&rig);
}

/* Reads chunks until `n` events were seen. */
static void read_events(int fd, struct response *response, int n) {
    for (int i = 0; i < n; i++) {
        EXPECT(raw_read_chunk(fd, response));
    }
}

TEST(a_stream_survives_its_workers) {
    struct rig rig;
    struct rig_options options = rig_options();
    options.cycle = true;
    rig_start(&rig, &options);
    atomic_store(&rig.groups[0].last_step, 15); /* each group leaves something to the next one */
    int fd = raw_connect(&rig);
    raw_post(fd, CHAT, "", "{" QUESTION ",\"stream\":true,\"max_tokens\":200}");
    struct response response = {0};
    raw_read_head(fd, &response);
    for (int round = 0; round < 4; round++) {
        read_events(fd, &response, 10);
        rig_expect_message(&rig, CONTROL_PROGRESS); /* once per group that brought a token */
        rig_group_down(&rig, 0, NULL);
        atomic_store(&rig.groups[0].last_step, round < 3 ? 15 : 0);
        rig_group_up(&rig, 0);
    }
    while (raw_read_chunk(fd, &response)) {
    }
    struct stream stream;
    stream_parse(&response, &stream);
    EXPECT(stream.done && stream.whole);
    EXPECT_TEXT(stream.choices[0].finish, "length");
    struct buf expected = {0};
    for (uint32_t i = 5; i < 200; i++) { /* behind </think>; its cycle shows the marker as text */
        tokenizer_decode(rig.tokenizer, &rig.script.ids[i % rig.script.size], 1, true, &expected);
    }
    EXPECT_TEXT(buf_cstr(&stream.choices[0].content), buf_cstr(&expected) + strspn(buf_cstr(&expected), "\n"));
    EXPECT(rig_metric(&rig, "tandem_group_losses_total{") == 4);
    buf_free(&expected);
    stream_free(&stream);
    response_free(&response);
    close(fd);
    rig_stop(&rig);
}

TEST(requests_wait_for_a_group) {
    struct rig rig;
    struct rig_options options = rig_options();
    options.without_groups = true;
    rig_start(&rig, &options);
    struct response response = {0};
    rig_get(&rig, "/ready", &response);
    EXPECT_EQ(response.status, 503);
    rig_get(&rig, "/health", &response);
    EXPECT_EQ(response.status, 200);
    int fd = raw_connect(&rig);
    raw_post(fd, CHAT, "", BODY);
    rig_await_metric(&rig, WAITING, 1);
    rig_group_up(&rig, 0);
    raw_read(fd, &response);
    EXPECT_EQ(response.status, 200);
    rig_get(&rig, "/ready", &response);
    EXPECT_EQ(response.status, 200);
    close(fd);
    response_free(&response);
    rig_stop(&rig);
}

TEST(a_group_given_up_fails_what_runs) {
    struct rig rig;
    start_endless(&rig);
    struct response response = {0};
    struct response whole = {0};
    int streaming = raw_connect(&rig);
    raw_post(streaming, CHAT, "", STREAM_BODY);
    raw_read_head(streaming, &response);
    read_events(streaming, &response, 3);
    int waiting = raw_connect(&rig);
    raw_post(waiting, CHAT, "", BODY);
    rig_await_metric(&rig, RUNNING, 2);
    rig_group_down(&rig, 0, "rank 0 died 5 times: killed by signal 9");
    while (raw_read_chunk(streaming, &response)) {
    }
    struct stream stream;
    stream_parse(&response, &stream);
    EXPECT(!stream.done && !stream.whole); /* no [DONE], no last chunk: it cannot be taken for a finished one */
    EXPECT(strstr(stream.error, "rank 0 died 5 times: killed by signal 9") != NULL);
    EXPECT(stream.choices[0].finish[0] == 0);
    EXPECT(raw_at_end(streaming));
    raw_read(waiting, &whole);
    EXPECT_EQ(whole.status, 503);
    EXPECT(strstr(buf_cstr(&whole.body), "rank 0 died 5 times") != NULL);
    rig_post(&rig, CHAT, BODY, &whole);
    EXPECT_EQ(whole.status, 503);
    EXPECT(response_header(&whole, "Retry-After") != NULL);
    EXPECT(strstr(buf_cstr(&whole.body), "rank 0 died 5 times") != NULL);
    EXPECT_EQ(rig_metric(&rig, "tandem_streams_failed_total{"), 2); /* what ran, streamed or not */
    EXPECT_EQ(rig_metric(&rig, UNAVAILABLE), 1);                    /* what came when it was gone */
    rig_get(&rig, "/ready", &whole);
    EXPECT_EQ(whole.status, 503);
    expect_clean(&rig);
    stream_free(&stream);
    rig_group_up(&rig, 0); /* an operator brought it back */
    rig_post(&rig, CHAT, "{" QUESTION ",\"max_tokens\":3}", &whole);
    EXPECT_EQ(whole.status, 200);
    close(streaming);
    close(waiting);
    response_free(&response);
    response_free(&whole);
    rig_stop(&rig);
}

TEST(replicas_share_the_load) {
    struct rig rig;
    struct rig_options options = rig_options();
    options.cycle = true;
    options.n_replicas = 2;
    options.max_len = 40960;
    rig_start(&rig, &options);
    atomic_store(&rig.groups[0].delay_us, 2000);
    atomic_store(&rig.groups[1].delay_us, 2000);
    int fds[6];
    for (int i = 0; i < 6; i++) {
        fds[i] = raw_connect(&rig);
        raw_post(fds[i], CHAT, "", STREAM_BODY);
        rig_await_metric(&rig, "tandem_calls{", i + 1);
    }
    rig_await_metric(&rig, "vllm:num_requests_running{model_name=\"tandem-r1-tiny\",engine=\"0\"", 3);
    rig_await_metric(&rig, "vllm:num_requests_running{model_name=\"tandem-r1-tiny\",engine=\"1\"", 3);
    for (int i = 0; i < 6; i++) {
        close(fds[i]);
    }
    rig_await_metric(&rig, "tandem_calls{", 0);
    rig_group_down(&rig, 0, "given up"); /* the other one serves on */
    struct response response = {0};
    rig_post(&rig, CHAT, "{" QUESTION ",\"max_tokens\":3}", &response);
    EXPECT_EQ(response.status, 200);
    rig_get(&rig, "/ready", &response);
    EXPECT_EQ(response.status, 200);
    response_free(&response);
    rig_stop(&rig);
}

TEST(a_drain_lets_running_answers_finish) {
    struct rig rig;
    struct rig_options options = rig_options();
    options.cycle = true;
    rig_start(&rig, &options);
    atomic_store(&rig.groups[0].delay_us, 3000);
    int running = raw_connect(&rig);
    raw_post(running, CHAT, "", "{" QUESTION ",\"stream\":true,\"max_tokens\":100}");
    struct response response = {0};
    struct response other = {0};
    raw_read_head(running, &response);
    int kept = raw_connect(&rig);
    raw_send(kept, "GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
    raw_read(kept, &other);
    rig_send(&rig, CONTROL_DRAIN, 20000);
    do {
        rig_get(&rig, "/ready", &other);
    } while (other.status == 200);
    EXPECT_EQ(other.status, 503);
    raw_post(kept, CHAT, "", BODY);
    raw_read(kept, &other);
    EXPECT_EQ(other.status, 503);
    EXPECT(strstr(buf_cstr(&other.body), "server_shutting_down") != NULL);
    EXPECT_TEXT(response_header(&other, "Connection"), "close");
    EXPECT(raw_at_end(kept));
    while (raw_read_chunk(running, &response)) {
    }
    struct stream stream;
    stream_parse(&response, &stream);
    EXPECT(stream.done && stream.whole);
    rig_expect_message(&rig, CONTROL_DRAINED);
    stream_free(&stream);
    close(running);
    close(kept);
    response_free(&response);
    response_free(&other);
    rig_stop(&rig);
}

TEST(a_drain_ends_by_its_deadline) {
    struct rig rig;
    start_endless(&rig);
    int running = raw_connect(&rig);
    raw_post(running, CHAT, "", STREAM_BODY);
    struct response response = {0};
    raw_read_head(running, &response);
    read_events(running, &response, 2);
    rig_send(&rig, CONTROL_DRAIN, 100);
    while (raw_read_chunk(running, &response)) {
    }
    struct stream stream;
    stream_parse(&response, &stream);
    EXPECT(!stream.done && !stream.whole);
    EXPECT_TEXT(stream.error, "The server is shutting down");
    rig_expect_message(&rig, CONTROL_DRAINED);
    stream_free(&stream);
    close(running);
    response_free(&response);
    rig_stop(&rig);
}

TEST(an_idle_stream_is_kept_open_by_comments) {
    struct rig rig;
    struct rig_options options = rig_options();
    options.limits.ping_ms = 100;
    options.without_groups = true;
    rig_start(&rig, &options);
    int fd = raw_connect(&rig);
    raw_post(fd, CHAT, "", STREAM_BODY);
    struct response response = {0};
    raw_read_head(fd, &response); /* comes with the first comment: no token is there yet */
    EXPECT_EQ(response.status, 200);
    read_events(fd, &response, 2);
    rig_group_up(&rig, 0);
    while (raw_read_chunk(fd, &response)) {
    }
    struct stream stream;
    stream_parse(&response, &stream);
    EXPECT(stream.n_comments >= 2 && stream.done && stream.whole);
    EXPECT_TEXT(buf_cstr(&stream.choices[0].content), "The sum is 42.");
    stream_free(&stream);
    close(fd);
    response_free(&response);
    rig_stop(&rig);
}

TEST(without_its_supervisor_it_exits) {
    struct rig rig;
    start_endless(&rig);
    int fd = raw_connect(&rig);
    raw_post(fd, CHAT, "", STREAM_BODY);
    struct response response = {0};
    raw_read_head(fd, &response);
    close(rig.control);
    int state = 0;
    EXPECT_EQ(waitpid(rig.child, &state, 0), rig.child);
    EXPECT(WIFEXITED(state) && WEXITSTATUS(state) != 0);
    while (raw_read_chunk(fd, &response)) {
    }
    EXPECT(!response.whole);
    close(fd);
    response_free(&response);
    rig_free(&rig);
}

TEST(signals_are_the_supervisors) {
    struct rig rig;
    struct rig_options options = rig_options();
    rig_start(&rig, &options);
    kill(rig.child, SIGINT);
    kill(rig.child, SIGTERM);
    sleep_ms(20);
    struct response response = {0};
    rig_post(&rig, CHAT, BODY, &response);
    EXPECT_EQ(response.status, 200);
    response_free(&response);
    rig_stop(&rig);
}

/* Many clients at once, half of which go away at some point; afterwards nothing is left of them. */
TEST_TIMEOUT(a_crowd_that_comes_and_goes, 120) {
    struct rig rig;
    struct rig_options options = rig_options();
    options.max_rows = 32;
    options.queue_max = 512;
    rig_start(&rig, &options);
    enum { CROWD = 200 };
    int fds[CROWD];
    struct response response = {0};
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < CROWD; i++) {
            fds[i] = raw_connect(&rig);
            raw_post(fds[i], CHAT, "", i % 3 == 0 ? BODY : STREAM_BODY);
            if (i % 4 == 1) {
                close(fds[i]);
            }
        }
        for (int i = 0; i < CROWD; i++) {
            if (i % 4 == 1) {
                continue;
            }
            raw_read(fds[i], &response);
            EXPECT_EQ(response.status, 200);
            EXPECT(response.whole);
            close(fds[i]);
        }
    }
    expect_clean(&rig);
    rig_await_metric(&rig, "tandem_connections{", 1);
    response_free(&response);
    rig_stop(&rig);
}
