/* The engine's thread between a front-end loop (this thread) and workers in threads of their own, over real links. */
#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/engine/engine_thread.h"
#include "tests/engine/support_worker.h"
#include "tests/harness/test.h"

#define SLOTS 64

static const struct step_limits limits = {.max_rows = 16,
                                          .max_tokens = 64,
                                          .n_slots = 16,
                                          .max_len = 256,
                                          .block_size = 16,
                                          .n_blocks = 200,
                                          .vocab_size = 1000,
                                          .max_ids = 320};

struct stream {
    bool admitted, over;
    struct journal_handle handle;
    uint32_t n_prompt, max_tokens, n_read;
    enum journal_finish finish;
};

struct front {
    int fd;
    size_t bytes;
    struct journal *journal;
    struct engine_thread *thread;
    int wake_fd;
    _Atomic uint32_t wakes;
    _Atomic bool watches; /* the figures at each wake are kept */
    struct engine_stats at_wake;
    uint32_t n_events, n_refused, n_over;
    char refusal[160];
    struct stream streams[400];
};

static void on_wake(void *context) {
    struct front *front = context;
    atomic_fetch_add(&front->wakes, 1);
    if (atomic_load(&front->watches)) {
        engine_thread_stats(front->thread, &front->at_wake);
    }
    uint64_t one = 1;
    EXPECT_EQ(write(front->wake_fd, &one, sizeof one), sizeof one);
}

static void start(struct front *front, bool recover) {
    struct engine_thread_config config = {.engine = {.limits = limits,
                                                     .queue_max = SLOTS,
                                                     .prefix_cache = true,
                                                     .overlap = true,
                                                     .journal = front->journal},
                                          .recover = recover,
                                          .wake = on_wake,
                                          .context = front};
    EXPECT_OK(engine_thread_start(&config, &front->thread));
}

static struct front *front_make(void) {
    log_setup(LOG_ERROR, "test");
    struct front *front = xcalloc(1, sizeof *front);
    front->bytes = journal_bytes(SLOTS, 256ul * 4096);
    EXPECT_OK(memfd_make("thread-journal", front->bytes, &front->fd));
    EXPECT_OK(journal_open(front->fd, front->bytes, SLOTS, true, &front->journal));
    front->wake_fd = eventfd(0, EFD_CLOEXEC);
    start(front, false);
    return front;
}

static void front_drop(struct front *front) {
    engine_thread_stop(front->thread);
    journal_close(front->journal);
    close(front->fd);
    close(front->wake_fd);
    free(front);
}

static enum status submit(struct front *front, uint32_t user, uint32_t n_prompt, uint32_t max_tokens) {
    uint32_t prompt[256];
    for (uint32_t i = 0; i < n_prompt; i++) {
        prompt[i] = (user + i) % limits.vocab_size;
    }
    struct engine_request request = {
        .params = {.user = user,
                   .sampling = {.seed = user, .top_p = 1, .repetition_penalty = 1, .n_logprobs = -1},
                   .n_prompt = n_prompt,
                   .max_tokens = max_tokens,
                   .n_blob = 3,
                   .flags = JOURNAL_SURVIVES_FRONTEND},
        .prompt = prompt,
        .blob = "abc"};
    memcpy(request.params.request_id, &user, sizeof user);
    front->streams[user].n_prompt = n_prompt;
    front->streams[user].max_tokens = max_tokens;
    return engine_thread_submit(front->thread, &request);
}

static void read_stream(struct front *front, struct stream *stream) {
    uint32_t n, ids[256];
    EXPECT_OK(journal_progress(front->journal, stream->handle, &n, &stream->finish));
    EXPECT(n >= stream->n_read || stream->finish == JOURNAL_FINISH_STOP || stream->finish == JOURNAL_FINISH_CANCELLED);
    if (n > stream->n_read) {
        EXPECT_OK(journal_read_ids(front->journal, stream->handle, stream->n_read, n - stream->n_read, ids));
        for (uint32_t i = stream->n_read; i < n; i++) {
            EXPECT_EQ(ids[i - stream->n_read], stream->n_prompt + i);
        }
        stream->n_read = n;
    }
    if (stream->finish != JOURNAL_RUNNING) {
        stream->over = true;
        front->n_over++;
        engine_thread_release(front->thread, stream->handle);
    }
}

/* Takes events until there are none, sleeping until the engine wakes it first. */
static void take_events(struct front *front) {
    struct pollfd polled = {.fd = front->wake_fd, .events = POLLIN};
    poll(&polled, 1, -1);
    uint64_t count;
    EXPECT_EQ(read(front->wake_fd, &count, sizeof count), sizeof count);
    struct engine_event event;
    while (engine_thread_event(front->thread, &event)) {
        struct stream *stream = &front->streams[event.user];
        front->n_events++;
        switch (event.type) {
        case ENGINE_ADMITTED:
            EXPECT(!stream->admitted);
            stream->admitted = true;
            stream->handle = event.handle;
            break;
        case ENGINE_REFUSED:
            front->n_refused++;
            EXPECT(event.status != STATUS_OK);
            memcpy(front->refusal, event.text, sizeof front->refusal);
            break;
        case ENGINE_ADVANCED:
            EXPECT(stream->admitted);
            EXPECT_EQ(event.handle.generation, stream->handle.generation);
            if (!stream->over) { /* its end may have been read before the event that tells of it */
                read_stream(front, stream);
            }
            break;
        }
    }
}

TEST_TIMEOUT(many_streams_come_through_whole, 60) {
    struct front *front = front_make();
    struct worker_port *port;
    struct null_group *group = null_group_start(&limits, 2, 1, 0, &port);
    engine_thread_set_port(front->thread, port);
    uint32_t next = 0;
    while (front->n_over < 300) {
        while (next < 300 && next - front->n_over < 40) {
            EXPECT_OK(submit(front, next, 1 + next % 100, 1 + next % 90));
            next++;
        }
        take_events(front);
    }
    EXPECT_EQ(front->n_refused, 0);
    uint64_t tokens = 0;
    for (uint32_t i = 0; i < 300; i++) {
        EXPECT_EQ(front->streams[i].finish, JOURNAL_FINISH_LENGTH);
        EXPECT_EQ(front->streams[i].n_read, front->streams[i].max_tokens);
        tokens += front->streams[i].n_read;
    }
    EXPECT(atomic_load(&front->wakes) <= front->n_events);
    EXPECT(front->n_events <= tokens + 2ul * 300);
    engine_thread_stop(front->thread);
    size_t used, total;
    journal_usage(front->journal, &used, &total);
    EXPECT_EQ(used, 0);
    start(front, false);
    null_group_stop(group);
    front_drop(front);
}

TEST_TIMEOUT(streams_survive_their_workers, 60) {
    struct front *front = front_make();
    struct worker_port *port;
    struct null_group *group = NULL;
    for (uint32_t i = 0; i < 20; i++) {
        EXPECT_OK(submit(front, i, 10 + i, 200));
    }
    for (uint32_t epoch = 1; front->n_over < 20; epoch++) {
        if (group != NULL) {
            null_group_stop(group);
        }
        group = null_group_start(&limits, 2, epoch, epoch % 3 == 0 ? 0 : 60, &port);
        engine_thread_set_port(front->thread, port);
        for (int round = 0; front->n_over < 20 && (epoch % 3 != 0 || round < 50) && round < 400;) {
            struct pollfd polled = {.fd = front->wake_fd, .events = POLLIN};
            bool ended = null_group_ended(group);
            if (poll(&polled, 1, 100) > 0) {
                take_events(front);
                round++;
            } else if (ended) {
                break; /* nothing comes any more */
            }
        }
        if (epoch % 3 == 0) {
            engine_thread_port_lost(front->thread);
        }
        EXPECT(epoch < 500);
    }
    for (uint32_t i = 0; i < 20; i++) {
        EXPECT_EQ(front->streams[i].n_read, 200);
        EXPECT_EQ(front->streams[i].finish, JOURNAL_FINISH_LENGTH);
    }
    struct engine_stats stats;
    engine_thread_stats(front->thread, &stats);
    EXPECT(stats.replays > 0);
    null_group_stop(group);
    front_drop(front);
}

TEST(refusals_say_why) {
    struct front *front = front_make();
    EXPECT_OK(submit(front, 1, 256 - 1, 5));
    EXPECT_OK(submit(front, 2, 256, 5));
    while (front->n_refused == 0) {
        take_events(front);
    }
    EXPECT(front->streams[1].admitted);
    EXPECT(strstr(front->refusal, "shorten it") != NULL);
    /* The command queue has room for a submit per journal slot; more are refused at once. */
    uint32_t n_taken = 0;
    struct engine_event event;
    enum status status = STATUS_OK;
    for (uint32_t i = 3; i < 300 && status == STATUS_OK; i++) {
        status = submit(front, i, 10, 5);
        n_taken += status == STATUS_OK;
    }
    EXPECT_EQ(status, STATUS_BUSY);
    EXPECT_EQ(n_taken, SLOTS);
    while (engine_thread_event(front->thread, &event)) {
    }
    front_drop(front);
}

TEST(readers_end_and_release) {
    struct front *front = front_make();
    struct worker_port *port;
    struct null_group *group = null_group_start(&limits, 1, 1, 0, &port);
    engine_thread_set_port(front->thread, port);
    for (uint32_t i = 0; i < 8; i++) {
        EXPECT_OK(submit(front, i, 10, 240));
    }
    bool ended[8] = {false};
    while (front->n_over < 8) {
        take_events(front);
        for (uint32_t i = 0; i < 8; i++) {
            struct stream *stream = &front->streams[i];
            if (!ended[i] && !stream->over && stream->n_read >= 5 + i) {
                ended[i] = true;
                engine_thread_end(front->thread, stream->handle,
                                  i % 2 == 0 ? JOURNAL_FINISH_STOP : JOURNAL_FINISH_CANCELLED, 5 + i);
            }
        }
    }
    engine_thread_fail_all(front->thread, STATUS_CLOSED, "nobody is left");
    front_drop(front);
    null_group_stop(group);
}

/* What waits in the queues when the thread is stopped is freed with it, and live streams stay in the journal. */
TEST(a_stop_leaves_live_streams_to_the_next_engine) {
    struct front *front = front_make();
    for (uint32_t i = 0; i < 5; i++) {
        EXPECT_OK(submit(front, i, 10, 20));
    }
    for (bool all = false; !all;) {
        take_events(front);
        all = true;
        for (uint32_t i = 0; i < 5; i++) {
            all = all && front->streams[i].admitted;
        }
    }
    engine_thread_stop(front->thread);
    journal_close(front->journal);
    EXPECT_OK(journal_open(front->fd, front->bytes, SLOTS, false, &front->journal));
    start(front, true);
    struct worker_port *port;
    struct null_group *group = null_group_start(&limits, 1, 1, 0, &port);
    engine_thread_set_port(front->thread, port);
    while (front->n_over < 5) {
        take_events(front);
    }
    for (uint32_t i = 0; i < 5; i++) {
        EXPECT_EQ(front->streams[i].n_read, 20);
    }
    EXPECT_OK(submit(front, 9, 10, 20));
    struct worker_port *unused;
    struct null_group *other = null_group_start(&limits, 1, 2, 0, &unused);
    engine_thread_set_port(front->thread, unused);
    engine_thread_fail_all(front->thread, STATUS_CLOSED, "text");
    front_drop(front);
    null_group_stop(group);
    null_group_stop(other);
}

static struct engine_request one_token_prompt(uint32_t user) {
    static const uint32_t prompt[1] = {1};
    return (struct engine_request){.params = {.user = user,
                                              .sampling = {.top_p = 1, .repetition_penalty = 1, .n_logprobs = -1},
                                              .n_prompt = 1,
                                              .max_tokens = 5},
                                   .prompt = prompt};
}

/* Submits it as stream 7 with a deadline that the engine takes; returns when it was admitted. */
static void submit_with_deadline(struct front *front) {
    struct engine_request request = one_token_prompt(7);
    uint64_t left_ns = 20 * NS_PER_MS;
    while (!front->streams[7].admitted) { /* a thread that comes to it too late refuses it */
        uint32_t n_refused = front->n_refused;
        request.params.deadline_ns = clock_now_ns() + left_ns;
        EXPECT_OK(engine_thread_submit(front->thread, &request));
        while (!front->streams[7].admitted && front->n_refused == n_refused) {
            take_events(front);
        }
        left_ns *= 2;
    }
}

TEST(a_deadline_wakes_the_thread) {
    struct front *front = front_make();
    submit_with_deadline(front);
    while (front->n_over == 0) {
        take_events(front); /* nothing else would ever come */
    }
    EXPECT_EQ(front->streams[7].finish, JOURNAL_FINISH_ERROR);
    front_drop(front);
}

/* ---- figures */

/* Who is woken by a token finds it in the figures: they decide whether a group has made progress. */
TEST(figures_are_there_before_the_wake) {
    struct front *front = front_make();
    EXPECT_OK(submit(front, 1, 10, 1));
    while (!front->streams[1].admitted) {
        take_events(front);
    }
    atomic_store(&front->watches, true);
    struct worker_port *port;
    struct null_group *group = null_group_start(&limits, 1, 1, 0, &port);
    engine_thread_set_port(front->thread, port);
    while (front->n_over == 0) {
        take_events(front);
    }
    EXPECT_EQ(front->at_wake.generation_tokens, 1);
    EXPECT_EQ(front->at_wake.finished[JOURNAL_FINISH_LENGTH], 1);
    front_drop(front);
    null_group_stop(group);
}

/* Its reader may keep it for long, as that of a client who is away does. */
TEST(a_deadline_shows_in_the_figures) {
    struct front *front = front_make();
    submit_with_deadline(front);
    struct engine_stats stats;
    do {
        engine_thread_stats(front->thread, &stats);
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL); /* the harness ends a test that waits for ever */
    } while (stats.waiting > 0);
    EXPECT_EQ(stats.finished[JOURNAL_FINISH_ERROR], 1);
    front_drop(front);
}
