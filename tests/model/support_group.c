#define _GNU_SOURCE
#include "tests/model/support_group.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/worker/worker_plan.h"

const struct step_sampling greedy_sampling = {
    .prompt_len = 1, .top_p = 1.0f, .repetition_penalty = 1.0f, .n_logprobs = -1};

static uint32_t or_default(uint32_t value, uint32_t otherwise) {
    return value > 0 ? value : otherwise;
}

static void fill_init(const struct group_options *options, struct worker_init *init, struct model_config *config) {
    memset(init, 0, sizeof *init);
    snprintf(init->backend, sizeof init->backend, "%s", options->backend != NULL ? options->backend : "cpu");
    snprintf(init->model_dir, sizeof init->model_dir, "%s%s", options->dir[0] == '/' ? "" : TANDEM_SOURCE_DIR "/",
             options->dir);
    EXPECT_OK(model_config_load(init->model_dir, config));
    init->world = options->world;
    init->dtype = (uint32_t)options->dtype;
    init->load_dummy = options->dummy;
    init->deterministic = options->deterministic;
    uint32_t positions = config->max_position < 512 ? config->max_position : 512;
    init->limits = (struct step_limits){
        .max_rows = or_default(options->max_rows, 4),
        .max_tokens = or_default(options->max_tokens, 64),
        .n_slots = or_default(options->max_rows, 4),
        .max_len = or_default(options->max_len, positions),
        .block_size = 16,
        .vocab_size = config->vocab_size,
    };
    init->limits.max_ids = init->limits.n_slots * init->limits.max_len;
    init->limits.n_blocks = init->limits.n_slots * ((init->limits.max_len + 15) / 16) + 1;
    init->n_valid_ids = config->vocab_size;
    init->max_body_bytes = step_body_max_bytes(&init->limits);
    init->threads = or_default(options->threads, 1);
    init->first_cpu = -1;
    struct plan_input input;
    struct plan plan;
    /* The bytes of a collective are the same on every backend, and this process may only ask the cpu's. */
    worker_plan_input(init, config, kernels_find("cpu"), NULL, &input);
    EXPECT_OK(plan_make(&input, &plan));
    init->comm_max_bytes = plan.comm_max_bytes;
}

static void run_rank(struct group_rank *rank, int comm_fd, void (*body)(struct group_rank *rank)) {
    struct executor_config config = {.init = &rank->init, .comm_fd = comm_fd, .graphs = rank->options->graphs};
    EXPECT_OK(model_executor_ops.open(&config, &rank->executor));
    rank->model = model_executor_model(rank->executor);
    const struct kernel_ops *kernels = rank->model->kernels;
    EXPECT_OK(kernels->stream_create(rank->model->device, &rank->stream));
    rank->builder = step_builder_create(&rank->init.limits);
    rank->body = xaligned(64, rank->init.max_body_bytes);
    /* What was never written must not matter: NaN in every format. */
    size_t kv_bytes = rank->config.n_layers * rank->model->kv_layer_bytes;
    EXPECT_OK(kernels->fill(rank->stream, rank->model->kv_arena, 0xff, kv_bytes));
    EXPECT_OK(kernels->stream_sync(rank->stream));
    body(rank);
    kernels->stream_destroy(rank->stream);
    free(rank->body);
    step_builder_destroy(rank->builder);
    model_executor_ops.close(rank->executor);
}

void *group_run(const struct group_options *options, size_t shared_bytes, void (*body)(struct group_rank *rank)) {
    struct group_rank rank = {.options = options};
    fill_init(options, &rank.init, &rank.config);
    int comm_fd = -1;
    if (options->world > 1) {
        const char *comm = comm_name_for(rank.init.backend, options->world, rank.init.deterministic);
        size_t bytes = comm_memory_bytes(comm, options->world, rank.init.comm_max_bytes);
        EXPECT_OK(memfd_make("comm", bytes, &comm_fd));
    }
    rank.shared =
        mmap(NULL, shared_bytes > 0 ? shared_bytes : 1, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(rank.shared != MAP_FAILED);
    pid_t children[COMM_MAX_WORLD];
    for (uint32_t r = 0; r < options->world; r++) {
        fflush(NULL);
        children[r] = fork();
        if (children[r] == 0) {
            rank.init.rank = r;
            rank.init.device = strcmp(rank.init.backend, "cuda") == 0 ? (int32_t)r : 0;
            run_rank(&rank, comm_fd, body);
            exit(0);
        }
    }
    for (uint32_t r = 0; r < options->world; r++) {
        int state = -1;
        EXPECT_EQ(waitpid(children[r], &state, 0), children[r]);
        EXPECT_EQ(state, 0);
    }
    if (comm_fd >= 0) {
        close(comm_fd);
    }
    return rank.shared;
}

void group_begin(struct group_rank *rank, uint32_t slot, uint32_t len, const uint32_t *ids, uint32_t n_ids,
                 const struct step_sampling *sampling) {
    struct step_init init = {.slot = slot, .len = len, .sampling = *sampling};
    init.sampling.prompt_len = n_ids;
    EXPECT(step_builder_add_init(rank->builder, init, NULL));
    EXPECT(step_builder_add_run(rank->builder, slot, 0, ids, n_ids));
    rank->n_blocks[slot] = 0;
}

void group_row(struct group_rank *rank, uint32_t slot, uint32_t pos, uint32_t q_len, bool samples) {
    struct step_row row = {.slot = slot, .pos = pos, .q_len = q_len, .flags = samples ? STEP_ROW_SAMPLE : 0};
    EXPECT(step_builder_add_row(rank->builder, row));
    uint32_t per_slot = (rank->init.limits.max_len + 15) / 16;
    for (; rank->n_blocks[slot] * 16 < pos + q_len; rank->n_blocks[slot]++) {
        uint32_t i = rank->n_blocks[slot];
        struct step_block block = {.slot = slot, .index = i, .block = 1 + slot * per_slot + i};
        EXPECT(step_builder_add_block(rank->builder, block));
    }
}

void group_submit(struct group_rank *rank) {
    size_t bytes = step_builder_finish(rank->builder, ++rank->step_id, 1, rank->body);
    step_builder_reset(rank->builder);
    EXPECT_OK(model_executor_ops.step(rank->executor, rank->body, bytes, 1, rank->step_id));
}

struct executor_done group_step(struct group_rank *rank) {
    struct executor_done done;
    group_submit(rank);
    EXPECT_OK(model_executor_ops.wait(rank->executor, &done));
    EXPECT_EQ(done.step_id, rank->step_id);
    return done;
}

void group_generate(struct group_rank *rank, const uint32_t *prompt, uint32_t n_prompt, uint32_t chunk, uint32_t *ids,
                    uint32_t n_ids) {
    group_begin(rank, 0, 0, prompt, n_prompt, &greedy_sampling);
    uint32_t pos = 0;
    uint32_t n = 0;
    while (n < n_ids) {
        uint32_t left = pos < n_prompt ? n_prompt - pos : 1;
        uint32_t q_len = left < chunk ? left : chunk;
        bool samples = pos + q_len >= n_prompt;
        group_row(rank, 0, pos, q_len, samples);
        struct executor_done done = group_step(rank);
        EXPECT_EQ(done.n_results, samples);
        pos += q_len;
        if (samples) {
            EXPECT_EQ(done.results[0].flags, 0);
            ids[n++] = done.results[0].id;
        }
    }
}

void group_copy_logits(const struct group_rank *rank, uint32_t row, float *whole) {
    const struct shard_model *shard = &rank->model->shard;
    const struct kernel_ops *kernels = rank->model->kernels;
    EXPECT_OK(kernels->copy(rank->stream, whole + shard->vocab_first,
                            rank->model->buffers.logits + (size_t)row * shard->n_vocab, shard->n_vocab * sizeof(float),
                            KERNEL_COPY_TO_HOST));
    EXPECT_OK(kernels->stream_sync(rank->stream));
}
