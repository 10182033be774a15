#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/base/buf.h"
#include "runtime/base/channel.h"
#include "runtime/base/rng.h"
#include "runtime/worker/worker.h"
#include "tests/worker/support_worker.h"

#define STORIES "../shared/models/stories260k"

static const uint32_t prompt[] = {1, 403, 407, 261, 378};
enum { N_PROMPT = 5 };

static uint32_t made_up(uint64_t seed, uint32_t position, uint32_t n) {
    return (uint32_t)(rng_token_uniform(seed, 0, position) * (float)n);
}

TEST(a_null_worker_answers_every_step) {
    struct worker_init init;
    struct group group;
    struct step_result results[4];
    null_init(&init, 500);
    group_start(&group, &init, 1);
    group_ready(&group);
    group_link(&group, true);
    group_begin(&group, 0, prompt, N_PROMPT, 11);
    group_begin(&group, 3, prompt, N_PROMPT, 12);
    group_row(&group, 0, 0, N_PROMPT, true);
    group_row(&group, 3, 0, 2, false);
    uint64_t step = group_commit(&group, 1);
    EXPECT_EQ(group_take_done(&group, 0, step, results), 1);
    EXPECT_EQ(results[0].id, made_up(11, N_PROMPT, 500));
    for (uint32_t i = 0; i < 20; i++) {
        group_row(&group, 0, N_PROMPT + i, 1, true);
        step = group_commit(&group, 1);
        EXPECT_EQ(group_take_done(&group, 0, step, results), 1);
        EXPECT_EQ(results[0].id, made_up(11, N_PROMPT + 1 + i, 500));
    }
    EXPECT_EQ(atomic_load(&group.page->rank[0].taken), step);
    EXPECT_EQ(atomic_load(&group.page->rank[0].done), step);
    group_stop(&group);
}

/* As many rows as a configuration may ask for, each with all the log-probabilities that a request may ask for: more
 * than a socket takes in one piece. */
TEST(the_results_of_the_largest_step_come_whole) {
    enum { ROWS = 4096 };
    struct worker_init init;
    struct group group;
    null_init(&init, 500);
    init.limits.max_rows = init.limits.n_slots = init.limits.max_tokens = init.limits.max_ids = ROWS;
    init.limits.n_blocks = ROWS + 1;
    init.max_body_bytes = step_body_max_bytes(&init.limits);
    group_start(&group, &init, 1);
    group_ready(&group);
    group_link(&group, true);
    for (uint32_t slot = 0; slot < ROWS; slot++) {
        struct step_init start = {.slot = slot,
                                  .sampling = {.seed = slot,
                                               .prompt_len = 1,
                                               .top_p = 1.0f,
                                               .repetition_penalty = 1.0f,
                                               .n_logprobs = STEP_MAX_LOGPROBS}};
        EXPECT(step_builder_add_init(group.builder, start, NULL));
        EXPECT(step_builder_add_run(group.builder, slot, 0, prompt, 1));
        EXPECT(step_builder_add_block(group.builder, (struct step_block){.slot = slot, .index = 0, .block = slot + 1}));
        group_row(&group, slot, 0, 1, true);
    }
    struct step_result *results = xcalloc(ROWS, sizeof *results);
    for (uint32_t step = 1; step <= 2; step++) {
        EXPECT_EQ(group_take_done(&group, 0, group_commit(&group, 1), results), ROWS);
        for (uint32_t slot = 0; slot < ROWS; slot++) {
            EXPECT_EQ(results[slot].id, made_up(slot, step, 500));
            EXPECT_EQ(results[slot].n_top, STEP_MAX_LOGPROBS);
            EXPECT_EQ(results[slot].top_id[STEP_MAX_LOGPROBS - 1], (results[slot].id + STEP_MAX_LOGPROBS - 1) % 500);
            group_row(&group, slot, step, 1, true);
        }
    }
    free(results);
    group_stop(&group);
}

TEST(one_bell_is_enough_for_several_steps) {
    struct worker_init init;
    struct group group;
    struct step_result results[4];
    null_init(&init, 500);
    group_start(&group, &init, 1);
    group_ready(&group);
    group_link(&group, true);
    group_begin(&group, 0, prompt, N_PROMPT, 5);
    group_row(&group, 0, 0, N_PROMPT, true);
    group_commit(&group, 0);
    for (uint32_t i = 0; i < 3; i++) {
        group_row(&group, 0, N_PROMPT + i, 1, true);
        group_commit(&group, i == 2 ? 1 : 0);
    }
    for (uint64_t step = 1; step <= 4; step++) {
        EXPECT_EQ(group_take_done(&group, 0, step, results), 1);
        EXPECT_EQ(results[0].id, made_up(5, N_PROMPT + (uint32_t)step - 1, 500));
    }
    group_stop(&group);
}

TEST(a_step_of_no_rows_is_done_too) {
    struct worker_init init;
    struct group group;
    model_init(&init, STORIES, 1);
    group_start(&group, &init, 1);
    group_ready(&group);
    group_link(&group, true);
    group_begin(&group, 0, prompt, N_PROMPT, 5);
    EXPECT_EQ(group_take_done(&group, 0, group_commit(&group, 1), NULL), 0);
    EXPECT_EQ(group_take_done(&group, 0, group_commit(&group, 1), NULL), 0);
    group_stop(&group);
}

/* Greedy ids from `steps` steps; the first holds the prompt. */
static void generate(struct group *group, uint32_t *ids, uint32_t n_ids) {
    group_begin(group, 1, prompt, N_PROMPT, 0);
    group_row(group, 1, 0, N_PROMPT, true);
    for (uint32_t i = 0; i < n_ids; i++) {
        struct step_result result;
        uint64_t step = group_commit(group, group->world);
        EXPECT_EQ(group_take_done(group, 0, step, &result), 1);
        for (uint32_t r = 1; r < group->world; r++) {
            EXPECT_EQ(group_take_done(group, r, step, NULL), 0); /* only rank 0 sends results */
        }
        ids[i] = result.id;
        if (i + 1 < n_ids) {
            group_row(group, 1, N_PROMPT + i, 1, true);
        }
    }
}

/* From ../shared/models/stories260k/reference.json. */
static const uint32_t story[] = {432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426, 338, 401, 396, 267, 337};
enum { N_STORY = 16 };

TEST(a_group_survives_its_engine) {
    struct worker_init init;
    struct group group;
    uint32_t ids[N_STORY];
    model_init(&init, STORIES, 2);
    group_start(&group, &init, 2);
    group_ready(&group);
    for (int engine = 0; engine < 3; engine++) {
        group_link(&group, true);
        generate(&group, ids, N_STORY);
        EXPECT(memcmp(ids, story, sizeof story) == 0);
        /* It dies between two bells: rank 1 has to find the step by itself, or rank 0 waits for it for ever. */
        group_row(&group, 1, N_PROMPT + N_STORY - 1, 1, true);
        uint64_t last = group_commit(&group, engine == 1 ? 0 : 1);
        group_unlink(&group);
        for (uint32_t r = 0; r < 2; r++) {
            wait_for(&group.page->rank[r].done, last);
            EXPECT_EQ(atomic_load(&group.page->rank[r].taken), last);
        }
    }
    group_link(&group, true);
    generate(&group, ids, N_STORY);
    EXPECT(memcmp(ids, story, sizeof story) == 0);
    group_stop(&group);
}

TEST(links_may_end_before_their_first_step) {
    struct worker_init init;
    struct group group;
    struct step_result result;
    null_init(&init, 500);
    group_start(&group, &init, 2);
    group_ready(&group);
    group_link(&group, false); /* the ring was never set up */
    group_unlink(&group);
    group_link(&group, true);
    group_unlink(&group);
    group_link(&group, false); /* and one that is replaced without having been closed */
    int old[] = {group.links[0], group.links[1]};
    group_link(&group, true);
    group_begin(&group, 0, prompt, N_PROMPT, 1);
    group_row(&group, 0, 0, N_PROMPT, true);
    uint64_t step = group_commit(&group, 2);
    EXPECT_EQ(group_take_done(&group, 0, step, &result), 1);
    EXPECT_EQ(group_take_done(&group, 1, step, &result), 0);
    char byte;
    EXPECT_EQ(read(old[0], &byte, 1), 0); /* the workers let go of it */
    group_stop(&group);
}

TEST(a_bell_of_another_epoch_is_dropped) {
    struct worker_init init;
    struct group group;
    struct step_result result;
    char packet[64];
    null_init(&init, 500);
    group_start(&group, &init, 1);
    group_ready(&group);
    group_link(&group, false);
    size_t size = worker_msg_encode_step(group.epoch + 1, 1, packet, sizeof packet);
    EXPECT_OK(channel_send(group.links[0], packet, size, NULL, 0)); /* would map a ring that is not there */
    uint64_t beats = atomic_load(&group.page->rank[0].beat);
    wait_for(&group.page->rank[0].beat, beats + 2);
    EXPECT_OK(step_ring_open_writer(group.ring_fd, group.epoch, init.max_body_bytes, &group.ring));
    group_begin(&group, 0, prompt, N_PROMPT, 1);
    group_row(&group, 0, 0, N_PROMPT, true);
    EXPECT_EQ(group_take_done(&group, 0, group_commit(&group, 1), &result), 1);
    group_stop(&group);
}

/* ---- ends */

TEST(signals_are_the_supervisors_business) {
    struct worker_init init;
    struct group group;
    null_init(&init, 500);
    group_start(&group, &init, 1);
    group_ready(&group);
    kill(group.pids[0], SIGINT);
    kill(group.pids[0], SIGTERM);
    uint64_t beats = atomic_load(&group.page->rank[0].beat);
    wait_for(&group.page->rank[0].beat, beats + 2);
    group_stop(&group);
}

TEST(a_worker_ends_with_its_control_socket) {
    struct worker_init init;
    struct group group;
    null_init(&init, 500);
    group_start(&group, &init, 1);
    group_ready(&group);
    close(group.control[0]);
    EXPECT_EQ(group_reap(&group, 0), 0);
    group_free(&group);
    group_start(&group, &init, 1); /* and before it has joined its group */
    close(group.control[0]);
    EXPECT_EQ(group_reap(&group, 0), 0);
    group_free(&group);
}

TEST(a_worker_dies_with_its_parent) {
    int control[2];
    int pids[2];
    EXPECT_OK(channel_pair(control));
    EXPECT_EQ(pipe(pids), 0);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    pid_t parent = fork();
    if (parent == 0) {
        pid_t worker = fork();
        if (worker == 0) {
            close(control[0]);
            exit(worker_main(control[1]));
        }
        EXPECT_EQ(write(pids[1], &worker, sizeof worker), sizeof worker);
        pause();
    }
    pid_t worker;
    EXPECT_EQ(read(pids[0], &worker, sizeof worker), sizeof worker);
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/status", worker);
    for (;;) { /* until the worker ignores TERM, and so has asked to die with its parent */
        struct buf text = {0};
        EXPECT_OK(buf_read_file(&text, path, 1 << 16));
        const char *ignored = strstr(buf_cstr(&text), "SigIgn:");
        bool ready = ignored != NULL && (strtoull(ignored + 7, NULL, 16) & (1ull << (SIGTERM - 1))) != 0;
        buf_free(&text);
        if (ready) {
            break;
        }
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    kill(parent, SIGKILL);
    int state;
    EXPECT_EQ(waitpid(parent, &state, 0), parent);
    EXPECT_EQ(waitpid(worker, &state, 0), worker); /* its control socket is still open here */
    EXPECT(WIFSIGNALED(state) && WTERMSIG(state) == SIGKILL);
}

/* A step that breaks a promise ends the worker; the engine and the supervisor are told why. */
static void expect_refusal(struct group *group, const char *part) {
    char packet[1024];
    size_t size = sizeof packet;
    struct worker_msg message;
    group_commit(group, 1);
    EXPECT_OK(channel_receive(group->links[0], packet, &size, NULL, NULL, 0));
    EXPECT_OK(worker_msg_parse(packet, size, 4, &message));
    EXPECT_EQ(message.type, WORKER_MSG_ERROR);
    EXPECT(strstr(message.text, part) != NULL);
    EXPECT(strstr(group_take_error(group, 0), part) != NULL);
    EXPECT_EQ(group_reap(group, 0), 1);
    group_free(group);
}

TEST(a_broken_step_is_refused_by_name) {
    struct worker_init init;
    struct group group;
    null_init(&init, 500);
    group_start(&group, &init, 1);
    group_ready(&group);
    group_link(&group, true);
    group_row(&group, 2, 0, 1, false);
    expect_refusal(&group, "rows[0].slot 2 was never given out");
    group_start(&group, &init, 1);
    group_ready(&group);
    group_link(&group, true);
    uint32_t ids[] = {1, 500};
    group_begin(&group, 0, ids, 2, 0);
    expect_refusal(&group, "ids hold 500");
}

/* An engine that closed its link with a reason wants no other link to this group: the worker ends, also when reports
 * that the engine left unread reset the link. */
TEST(a_worker_ends_when_its_engine_gives_it_up) {
    for (int unread = 0; unread < 2; unread++) {
        struct worker_init init;
        struct group group;
        struct step_result result;
        char packet[1024];
        null_init(&init, 500);
        group_start(&group, &init, 1);
        group_ready(&group);
        group_link(&group, true);
        group_begin(&group, 0, prompt, N_PROMPT, 1);
        group_row(&group, 0, 0, N_PROMPT, true);
        uint64_t step = group_commit(&group, 1);
        if (unread) {
            struct pollfd polled = {.fd = group.links[0], .events = POLLIN};
            EXPECT_EQ(poll(&polled, 1, -1), 1);
        } else {
            EXPECT_EQ(group_take_done(&group, 0, step, &result), 1);
        }
        kill(group.pids[0], SIGSTOP); /* so that it finds all of this at once */
        size_t size = worker_msg_encode_error(group.epoch, step, "an id that is none", packet, sizeof packet);
        EXPECT_OK(channel_send(group.links[0], packet, size, NULL, 0));
        group_unlink(&group);
        kill(group.pids[0], SIGCONT);
        EXPECT(strstr(group_take_error(&group, 0), "the engine gives the group up: an id that is none") != NULL);
        EXPECT_EQ(group_reap(&group, 0), 1);
        group_free(&group);
    }
}

TEST(a_model_that_is_not_there_is_named) {
    struct worker_init init;
    struct group group;
    null_init(&init, 500);
    strcpy(init.backend, "cpu");
    strcpy(init.model_dir, "/nonexistent/model");
    group_start(&group, &init, 1);
    struct control_msg message = {.type = CONTROL_COMM_IDS};
    EXPECT_OK(control_send(group.control[0], &message, NULL, 0));
    EXPECT(strstr(group_take_error(&group, 0), "/nonexistent/model") != NULL);
    EXPECT_EQ(group_reap(&group, 0), 1);
    group_free(&group);
    strcpy(init.backend, "tpu");
    group_start(&group, &init, 1);
    EXPECT(strstr(group_take_error(&group, 0), "backend tpu") != NULL);
    EXPECT_EQ(group_reap(&group, 0), 1);
    group_free(&group);
}

TEST(a_plan_that_differs_is_refused) {
    struct worker_init init;
    struct group group;
    model_init(&init, STORIES, 1);
    init.comm_max_bytes++;
    group_start(&group, &init, 1);
    struct control_msg message = {.type = CONTROL_COMM_IDS};
    EXPECT_OK(control_send(group.control[0], &message, NULL, 0));
    EXPECT(strstr(group_take_error(&group, 0), "the plan says") != NULL);
    EXPECT_EQ(group_reap(&group, 0), 1);
    group_free(&group);
}
