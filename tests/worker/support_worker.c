#define _GNU_SOURCE
#include "tests/worker/support_worker.h"

#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/kernels.h"
#include "parallel/comm.h"
#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/worker/worker.h"
#include "runtime/worker/worker_plan.h"

static void fill_limits(struct worker_init *init, uint32_t vocab_size) {
    init->limits = (struct step_limits){.max_rows = 4,
                                        .max_tokens = 64,
                                        .n_slots = 4,
                                        .max_len = 256,
                                        .block_size = 16,
                                        .n_blocks = 65,
                                        .vocab_size = vocab_size,
                                        .max_ids = 1024};
    init->n_valid_ids = vocab_size;
    init->max_body_bytes = step_body_max_bytes(&init->limits);
    init->threads = 1;
    init->first_cpu = -1;
}

void null_init(struct worker_init *init, uint32_t n_ids) {
    memset(init, 0, sizeof *init);
    strcpy(init->backend, "null");
    init->world = 1;
    fill_limits(init, n_ids);
}

void model_init(struct worker_init *init, const char *dir, uint32_t world) {
    struct model_config config;
    memset(init, 0, sizeof *init);
    strcpy(init->backend, "cpu");
    snprintf(init->model_dir, sizeof init->model_dir, "%s/%s", TANDEM_SOURCE_DIR, dir);
    if (access(init->model_dir, R_OK) != 0) {
        test_skip("the model is not in this checkout");
    }
    EXPECT_OK(model_config_load(init->model_dir, &config));
    init->world = world;
    init->dtype = DTYPE_F32;
    fill_limits(init, config.vocab_size);
    struct plan_input input;
    struct plan plan;
    worker_plan_input(init, &config, kernels_find("cpu"), NULL, &input);
    EXPECT_OK(plan_make(&input, &plan));
    init->comm_max_bytes = plan.comm_max_bytes;
}

void group_start(struct group *group, const struct worker_init *init, uint32_t world) {
    memset(group, 0, sizeof *group);
    group->init = *init;
    group->init.world = world;
    group->world = world;
    group->builder = step_builder_create(&init->limits);
    EXPECT_OK(memfd_make("progress", sizeof *group->page, &group->page_fd));
    void *page;
    EXPECT_OK(memfd_map(group->page_fd, sizeof *group->page, 1, &page));
    group->page = page;
    group->comm_fd = -1;
    if (world > 1) {
        EXPECT_OK(memfd_make("comm", comm_shm_bytes(world, init->comm_max_bytes > 0 ? init->comm_max_bytes : 1),
                             &group->comm_fd));
    }
    for (uint32_t r = 0; r < world; r++) {
        int pair[2];
        EXPECT_OK(channel_pair(pair));
        fflush(NULL);
        group->pids[r] = fork();
        if (group->pids[r] == 0) {
            close(pair[0]);
            for (uint32_t i = 0; i < r; i++) {
                close(group->control[i]);
            }
            exit(worker_main(pair[1]));
        }
        close(pair[1]);
        group->control[r] = pair[0];
        group->links[r] = -1;
        struct control_msg message = {.type = CONTROL_INIT, .rank = r};
        message.body.worker = group->init;
        message.body.worker.rank = r;
        int fds[] = {group->page_fd, group->comm_fd};
        EXPECT_OK(control_send(group->control[r], &message, fds, world > 1 ? 2 : 1));
    }
}

static void expect_type(struct group *group, uint32_t rank, enum control_type type) {
    struct control_msg message;
    int fds[CHANNEL_MAX_FDS];
    uint32_t n_fds = 0;
    do {
        EXPECT_OK(control_receive(group->control[rank], &message, fds, &n_fds, 0));
        if (message.type == CONTROL_ERROR) {
            test_fail(__FILE__, __LINE__, "rank %u: %s", rank, message.body.text);
        }
        if (message.type == CONTROL_LOADING) {
            EXPECT(message.value <= message.total && message.total > 0);
        }
    } while (message.type == CONTROL_LOADING);
    EXPECT_EQ(message.type, type);
    EXPECT_EQ(message.rank, rank);
}

void group_ready(struct group *group) {
    for (uint32_t r = 0; r < group->world; r++) {
        expect_type(group, r, CONTROL_COMM_ID);
    }
    for (uint32_t r = 0; r < group->world; r++) {
        struct control_msg message = {.type = CONTROL_COMM_IDS, .rank = r};
        EXPECT_OK(control_send(group->control[r], &message, NULL, 0));
    }
    for (uint32_t r = 0; r < group->world; r++) {
        expect_type(group, r, CONTROL_READY);
    }
}

void group_link(struct group *group, bool set_up) {
    size_t bytes = group->init.max_body_bytes;
    group->epoch++;
    EXPECT_OK(memfd_make("ring", step_ring_bytes(bytes), &group->ring_fd));
    for (uint32_t r = 0; r < group->world; r++) {
        int pair[2];
        EXPECT_OK(channel_pair(pair));
        struct control_msg message = {.type = CONTROL_LINK, .rank = r, .epoch = group->epoch};
        int fds[] = {pair[1], group->ring_fd};
        EXPECT_OK(control_send(group->control[r], &message, fds, 2));
        close(pair[1]);
        group->links[r] = pair[0];
    }
    group->ring = NULL;
    if (set_up) {
        EXPECT_OK(step_ring_open_writer(group->ring_fd, group->epoch, bytes, &group->ring));
    }
}

void group_unlink(struct group *group) {
    for (uint32_t r = 0; r < group->world; r++) {
        close(group->links[r]);
        group->links[r] = -1;
    }
    step_ring_close(group->ring);
    group->ring = NULL;
    close(group->ring_fd);
}

uint64_t group_commit(struct group *group, uint32_t bells) {
    char packet[64];
    void *body = step_ring_reserve(group->ring);
    /* The builder wants the id that the ring is about to give. */
    uint64_t step_id = step_ring_committed(group->ring) + 1;
    size_t bytes = step_builder_finish(group->builder, step_id, group->epoch, body);
    step_builder_reset(group->builder);
    EXPECT_EQ(step_ring_commit(group->ring, bytes), step_id);
    size_t size = worker_msg_encode_step(group->epoch, step_id, packet, sizeof packet);
    for (uint32_t r = 0; r < bells; r++) {
        EXPECT_OK(channel_send(group->links[r], packet, size, NULL, 0));
    }
    return step_id;
}

uint32_t group_take_done(struct group *group, uint32_t rank, uint64_t step_id, struct step_result *results) {
    size_t capacity = worker_msg_max_bytes(group->init.limits.max_rows);
    void *packet = xcalloc(1, capacity);
    struct worker_msg message;
    uint32_t n_results = 0;
    do {
        size_t size = capacity;
        EXPECT_OK(channel_receive(group->links[rank], packet, &size, NULL, NULL, 0));
        EXPECT_OK(worker_msg_parse(packet, size, group->init.limits.max_rows, &message));
        if (message.type == WORKER_MSG_ERROR) {
            test_fail(__FILE__, __LINE__, "rank %u: %s", rank, message.text);
        }
        EXPECT_EQ(message.epoch, group->epoch);
        EXPECT_EQ(message.step_id, step_id);
        for (uint32_t i = 0; i < message.n_results; i++) {
            worker_msg_next_result(&message, &results[n_results++]);
        }
    } while (message.type == WORKER_MSG_RESULTS);
    EXPECT_EQ(message.type, WORKER_MSG_STEP_DONE);
    free(packet);
    return n_results;
}

const char *group_take_error(struct group *group, uint32_t rank) {
    static struct control_msg message;
    int fds[CHANNEL_MAX_FDS];
    uint32_t n_fds = 0;
    do {
        EXPECT_OK(control_receive(group->control[rank], &message, fds, &n_fds, 0));
    } while (message.type != CONTROL_ERROR);
    return message.body.text;
}

int group_reap(struct group *group, uint32_t rank) {
    int state = -1;
    EXPECT_EQ(waitpid(group->pids[rank], &state, 0), group->pids[rank]);
    return WIFSIGNALED(state) ? -WTERMSIG(state) : WEXITSTATUS(state);
}

void group_stop(struct group *group) {
    for (uint32_t r = 0; r < group->world; r++) {
        struct control_msg message = {.type = CONTROL_STOP, .rank = r};
        EXPECT_OK(control_send(group->control[r], &message, NULL, 0));
    }
    for (uint32_t r = 0; r < group->world; r++) {
        EXPECT_EQ(group_reap(group, r), 0);
    }
    group_free(group);
}

void group_free(struct group *group) {
    step_builder_destroy(group->builder);
    step_ring_close(group->ring);
    munmap(group->page, sizeof *group->page);
}

void group_begin(struct group *group, uint32_t slot, const uint32_t *ids, uint32_t n_ids, uint64_t seed) {
    struct step_init init = {
        .slot = slot,
        .sampling = {.seed = seed, .prompt_len = n_ids, .top_p = 1.0f, .repetition_penalty = 1.0f, .n_logprobs = -1}};
    EXPECT(step_builder_add_init(group->builder, init, NULL));
    EXPECT(step_builder_add_run(group->builder, slot, 0, ids, n_ids));
    uint32_t blocks = group->init.limits.max_len / group->init.limits.block_size;
    for (uint32_t i = 0; i < blocks; i++) {
        struct step_block block = {.slot = slot, .index = i, .block = 1 + slot * blocks + i};
        EXPECT(step_builder_add_block(group->builder, block));
    }
}

void group_row(struct group *group, uint32_t slot, uint32_t pos, uint32_t q_len, bool samples) {
    struct step_row row = {.slot = slot, .pos = pos, .q_len = q_len, .flags = samples ? STEP_ROW_SAMPLE : 0};
    EXPECT(step_builder_add_row(group->builder, row));
}

void wait_for(const _Atomic uint64_t *value, uint64_t least) {
    while (atomic_load(value) < least) {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL); /* the harness ends a test that waits for ever */
    }
}
