#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "benchmarks/support_group.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "benchmarks/support_trace.h"
#include "launcher/child_call.h"
#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/check.h"
#include "runtime/wire/step_ring.h"
#include "runtime/worker/model_executor.h"
#include "runtime/worker/worker.h"
#include "runtime/worker/worker_plan.h"

#define BLOCK 16u
#define PLAN_TIMEOUT_S 300u

/* ---- what a worker is told */

struct planning {
    struct worker_init init;
    struct plan plan;
};

static enum status make_plan(void *argument) {
    struct planning *planning = argument;
    struct model_config config;
    struct plan_input input;
    TRY(model_config_load(planning->init.model_dir, &config));
    const struct kernel_ops *kernels = kernels_find_for(planning->init.backend, 0);
    if (kernels == NULL) {
        return STATUS_UNSUPPORTED;
    }
    struct kernel_device_config device_config = {.ordinal = 0, .threads = 1, .first_cpu = -1};
    struct kernel_device *device;
    TRY(kernels->open(&device_config, &device));
    worker_plan_input(&planning->init, &config, kernels, device, &input);
    enum status status = plan_make(&input, &planning->plan);
    kernels->close(device);
    return status;
}

uint32_t bench_blocks(uint32_t positions) {
    return (positions + BLOCK - 1) / BLOCK;
}

/* Of a rank: the cores are shared out; cards need none. */
static uint32_t threads_for(const struct group_config *config) {
    uint32_t share = (uint32_t)sysconf(_SC_NPROCESSORS_ONLN) / config->world;
    return strcmp(config->backend, "cpu") == 0 && share > 0 ? share : 1;
}

void group_init(const struct group_config *config, struct worker_init *init) {
    struct model_config model;
    must(model_config_load(config->model_dir, &model));
    *init = (struct worker_init){.world = config->world,
                                 .epoch = 1,
                                 .dtype = model.torch_dtype == DTYPE_F32 ? DTYPE_BF16 : model.torch_dtype,
                                 .load_dummy = config->dummy,
                                 .n_valid_ids = model.vocab_size,
                                 .threads = threads_for(config),
                                 .first_cpu = -1,
                                 .spin = 1};
    snprintf(init->model_dir, sizeof init->model_dir, "%s", config->model_dir);
    snprintf(init->backend, sizeof init->backend, "%s", config->backend);
    init->limits = (struct step_limits){.max_rows = config->max_rows,
                                        .max_tokens = config->max_tokens,
                                        .n_slots = config->max_rows,
                                        .max_len = config->max_len,
                                        .block_size = BLOCK,
                                        .n_blocks = 1 + bench_blocks(config->kv_tokens) + config->max_rows,
                                        .vocab_size = model.vocab_size,
                                        .max_ids = config->max_tokens + config->max_len};
    init->max_body_bytes = step_body_max_bytes(&init->limits);
    struct planning planning = {.init = *init};
    must(child_call_run(make_plan, &planning, sizeof planning, PLAN_TIMEOUT_S));
    init->comm_max_bytes = planning.plan.comm_max_bytes;
}

static int comm_memory(const struct worker_init *init) {
    const char *name = comm_name_for(init->backend, init->world, init->deterministic);
    size_t bytes = comm_memory_bytes(name, init->world, init->comm_max_bytes);
    int fd = -1;
    if (bytes > 0) {
        must(memfd_make("comm", bytes, &fd));
    }
    return fd;
}

static void place_rank(struct worker_init *init, uint32_t rank) {
    init->rank = rank;
    if (strcmp(init->backend, "cpu") == 0) {
        init->first_cpu = (int32_t)(rank * init->threads);
    } else {
        init->device = (int32_t)rank;
    }
}

/* ---- forked ranks */

static void run_rank(struct rank *rank, int comm_fd, bool trace, void (*run)(struct rank *rank)) {
    if (trace) {
        must(trace_open());
    }
    struct executor_config config = {
        .init = &rank->init, .comm_fd = comm_fd, .graphs = strcmp(rank->init.backend, "cpu") != 0};
    must(model_executor_ops.open(&config, &rank->executor));
    rank->builder = step_builder_create(&rank->init.limits);
    rank->body = xaligned(64, rank->init.max_body_bytes);
    run(rank);
    group_barrier(rank);
    model_executor_ops.close(rank->executor);
    step_builder_destroy(rank->builder);
    free(rank->body);
}

void group_run(const struct group_config *config, void (*run)(struct rank *rank), void *result, size_t result_bytes) {
    struct rank rank = {.step_id = 0};
    group_init(config, &rank.init);
    int comm_fd = comm_memory(&rank.init);
    size_t shared_bytes = sizeof *rank.shared + result_bytes;
    rank.shared = mmap(NULL, shared_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(rank.shared != MAP_FAILED, "mmap: %s", strerror(errno));
    for (uint32_t r = 0; r < config->world; r++) {
        if (child_start() == 0) {
            place_rank(&rank.init, r);
            run_rank(&rank, comm_fd, config->trace, run);
            fflush(NULL);
            _exit(0);
        }
    }
    for (uint32_t r = 0; r < config->world; r++) {
        child_await();
    }
    memcpy(result, rank.shared->result, result_bytes);
    munmap(rank.shared, shared_bytes);
    if (comm_fd >= 0) {
        close(comm_fd);
    }
}

void group_barrier(struct rank *rank) {
    rank->arrivals++;
    atomic_fetch_add(&rank->shared->arrived, 1);
    while (atomic_load(&rank->shared->arrived) < rank->arrivals * rank->init.world) {
        sched_yield();
    }
}

/* ---- steps */

static void give_out(struct step_builder *builder, const struct worker_init *init, const struct bench_step *step,
                     uint32_t slot) {
    struct step_init line = {.slot = slot,
                             .len = step->pos,
                             .sampling = {.seed = slot,
                                          .prompt_len = step->prompt,
                                          .temperature = step->temperature,
                                          .top_p = step->temperature > 0 ? 0.95f : 1.0f,
                                          .repetition_penalty = 1.0f,
                                          .n_logprobs = -1}};
    uint32_t *ids = xcalloc(step->prompt, sizeof *ids);
    for (uint32_t i = 0; i < step->prompt; i++) {
        ids[i] = (slot * 31 + i * 7 + 5) % init->limits.vocab_size;
    }
    CHECK(step_builder_add_init(builder, line, NULL), "a step has no room for slot %u", slot);
    CHECK(step_builder_add_run(builder, slot, 0, ids, step->prompt), "a step has no room for %u ids", step->prompt);
    free(ids);
}

size_t bench_step_build(struct step_builder *builder, const struct worker_init *init, const struct bench_step *step,
                        uint64_t step_id, void *body) {
    uint32_t end = step->pos + step->q_len;
    for (uint32_t row = step->first_row; row < step->first_row + step->rows; row++) {
        if (step->fresh) {
            give_out(builder, init, step, row);
        }
        /* As the engine does: a block is named when it is reached. */
        for (uint32_t i = step->fresh ? 0 : bench_blocks(step->pos); i < bench_blocks(end); i++) {
            struct step_block block = {row, i, 1 + row * step->slot_blocks + i};
            CHECK(i < step->slot_blocks && step_builder_add_block(builder, block), "a step has no room for blocks");
        }
        uint32_t flags = end >= step->prompt ? STEP_ROW_SAMPLE : 0;
        struct step_row line = {.slot = row, .q_len = step->q_len, .pos = step->pos, .flags = flags};
        CHECK(step_builder_add_row(builder, line), "a step has no room for row %u", row);
    }
    size_t bytes = step_builder_finish(builder, step_id, 1, body);
    step_builder_reset(builder);
    return bytes;
}

void rank_step(struct rank *rank, const struct bench_step *step) {
    size_t bytes = bench_step_build(rank->builder, &rank->init, step, ++rank->step_id, rank->body);
    must(model_executor_ops.step(rank->executor, rank->body, bytes, 1, rank->step_id));
}

void rank_wait(struct rank *rank) {
    struct executor_done done;
    must(model_executor_ops.wait(rank->executor, &done));
}

void rank_reset(struct rank *rank) {
    model_executor_ops.reset(rank->executor);
    rank->step_id = 0;
}

/* ---- worker processes: this process is their supervisor and their engine */

static void init_workers(const struct worker_init *init, struct workers *workers) {
    int fds[2];
    fds[1] = comm_memory(init);
    must(memfd_make("progress", sizeof(struct progress_page), &fds[0]));
    for (uint32_t rank = 0; rank < init->world; rank++) {
        struct control_msg message = {.type = CONTROL_INIT, .body.worker = *init};
        place_rank(&message.body.worker, rank);
        must(control_send(workers->controls[rank], &message, fds, fds[1] >= 0 ? 2 : 1));
    }
    for (uint32_t rank = 0; rank < init->world; rank++) {
        struct control_msg ids = {.type = CONTROL_COMM_IDS};
        control_expect(workers->controls[rank], CONTROL_COMM_ID);
        must(control_send(workers->controls[rank], &ids, NULL, 0));
    }
    for (uint32_t rank = 0; rank < init->world; rank++) {
        control_expect(workers->controls[rank], CONTROL_READY);
    }
    close(fds[0]);
    if (fds[1] >= 0) {
        close(fds[1]);
    }
}

static void link_workers(const struct worker_init *init, struct workers *workers) {
    int links[CONTROL_MAX_WORLD];
    int ring;
    must(memfd_make("ring", step_ring_bytes(init->max_body_bytes), &ring));
    for (uint32_t rank = 0; rank < init->world; rank++) {
        int pair[2];
        must(channel_pair(pair));
        struct control_msg link = {.type = CONTROL_LINK, .epoch = 1};
        int link_fds[2] = {pair[1], ring};
        must(control_send(workers->controls[rank], &link, link_fds, 2));
        close(pair[1]);
        links[rank] = pair[0];
    }
    must(port_link_open(links, init->world, ring, 1, &init->limits, init->max_body_bytes, &workers->port));
}

void workers_start(const struct worker_init *init, struct workers *workers) {
    *workers = (struct workers){.world = init->world};
    for (uint32_t rank = 0; rank < init->world; rank++) {
        workers->controls[rank] = process_start(worker_main, &workers->pids[rank]);
    }
    init_workers(init, workers);
    link_workers(init, workers);
}

void workers_stop(struct workers *workers) {
    workers->port->ops->close(workers->port);
    for (uint32_t rank = 0; rank < workers->world; rank++) {
        struct control_msg stop = {.type = CONTROL_STOP};
        must(control_send(workers->controls[rank], &stop, NULL, 0));
        close(workers->controls[rank]);
    }
    for (uint32_t rank = 0; rank < workers->world; rank++) {
        child_await();
    }
}
