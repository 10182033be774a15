/* Tokens per second of a whole model on the cpu backend: forked ranks with comm_shm, steps put in as the engine puts
 * them in (one ahead), no HTTP. Beside each figure stands what the machine can do, measured in the same run.
 *
 *   bench_model DIR [ROUNDS]      default: 3 rounds after one to warm up; every figure is their median
 *
 * The cores are shared out: TP 1 has them all as threads, TP 2 half of them each. Columns: the shape (decode at a batch
 * size from an empty context, 128 steps; prefill of one prompt of 512), tokens per second, milliseconds per step, and
 * for decode the weight bytes read per second with their share of the measured read bandwidth. A last line per
 * shape is JSON. */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "benchmarks/ceilings.h"
#include "runtime/base/channel.h"
#include "runtime/worker/model_executor.h"
#include "runtime/worker/worker_plan.h"

#define CEILING_BYTES ((size_t)1 << 30)
#define DECODE_STEPS 128
#define PREFILL 512
#define MAX_BATCH 16
#define BLOCK 16
#define MAX_ROUNDS 32

struct shape {
    const char *name;
    uint32_t batch;   /* rows of a step */
    uint32_t q_len;   /* tokens of each row */
    uint32_t n_steps; /* measured */
};

static const struct shape shapes[] = {
    {"decode, batch 1", 1, 1, DECODE_STEPS}, {"decode, batch 16", 16, 1, DECODE_STEPS}, {"prefill 512", 1, PREFILL, 1}};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

/* What the ranks tell the parent. */
struct outcome {
    uint64_t ns[SHAPES][MAX_ROUNDS];
    uint64_t weight_bytes; /* read by a decode step, all ranks together */
};

static void must(enum status status) {
    CHECK(status == STATUS_OK, "%s", status_text());
}

static void fill_init(const char *dir, uint32_t world, uint32_t threads, struct worker_init *init) {
    struct model_config config;
    *init = (struct worker_init){.world = world, .threads = threads, .spin = 1, .n_valid_ids = 0};
    snprintf(init->backend, sizeof init->backend, "cpu");
    snprintf(init->model_dir, sizeof init->model_dir, "%s", dir);
    must(model_config_load(dir, &config));
    init->dtype = DTYPE_BF16;
    init->n_valid_ids = config.vocab_size;
    init->limits = (struct step_limits){.max_rows = MAX_BATCH,
                                        .max_tokens = PREFILL,
                                        .n_slots = MAX_BATCH,
                                        .max_len = 2 * PREFILL,
                                        .block_size = BLOCK,
                                        .n_blocks = MAX_BATCH * (2 * PREFILL / BLOCK) + 1,
                                        .vocab_size = config.vocab_size,
                                        .max_ids = MAX_BATCH * PREFILL};
    init->max_body_bytes = step_body_max_bytes(&init->limits);
    struct plan_input input;
    struct plan plan;
    worker_plan_input(init, &config, kernels_find("cpu"), NULL, &input);
    must(plan_make(&input, &plan));
    init->comm_max_bytes = plan.comm_max_bytes;
}

struct rank {
    struct worker_init init;
    struct executor *executor;
    struct step_builder *builder;
    void *body;
    uint64_t step_id;
};

/* Puts in one step of the shape at position `pos` of every row; the first one brings the slots. */
static void put_step(struct rank *rank, const struct shape *shape, uint32_t pos) {
    static uint32_t prompt[PREFILL];
    for (uint32_t row = 0; row < shape->batch; row++) {
        if (pos == 0) {
            struct step_init init = {
                .slot = row,
                .sampling = {.prompt_len = shape->q_len, .top_p = 1.0f, .repetition_penalty = 1.0f, .n_logprobs = -1}};
            for (uint32_t i = 0; i < shape->q_len; i++) {
                prompt[i] = (row * 31 + i * 7 + 5) % rank->init.limits.vocab_size;
            }
            CHECK(step_builder_add_init(rank->builder, init, NULL), "init");
            CHECK(step_builder_add_run(rank->builder, row, 0, prompt, shape->q_len), "run");
        }
        uint32_t per_slot = 2 * PREFILL / BLOCK;
        for (uint32_t i = (pos + BLOCK - 1) / BLOCK; i * BLOCK < pos + shape->q_len; i++) {
            struct step_block block = {row, i, 1 + row * per_slot + i};
            CHECK(step_builder_add_block(rank->builder, block), "block");
        }
        struct step_row line = {.slot = row, .q_len = shape->q_len, .pos = pos, .flags = STEP_ROW_SAMPLE};
        CHECK(step_builder_add_row(rank->builder, line), "row");
    }
    size_t bytes = step_builder_finish(rank->builder, ++rank->step_id, 1, rank->body);
    step_builder_reset(rank->builder);
    must(model_executor_ops.step(rank->executor, rank->body, bytes, 1, rank->step_id));
}

/* Nanoseconds of the shape's steps, one in flight ahead of the one that is waited for. */
static uint64_t run_shape(struct rank *rank, const struct shape *shape) {
    struct executor_done done;
    uint32_t pos = 0;
    if (shape->n_steps > 1) { /* the first step fills caches and block tables and does not count */
        put_step(rank, shape, pos);
        must(model_executor_ops.wait(rank->executor, &done));
        pos += shape->q_len;
    }
    uint64_t start_ns = clock_now_ns();
    for (uint32_t step = 0; step < shape->n_steps; step++) {
        put_step(rank, shape, pos);
        pos += shape->q_len;
        if (step > 0) {
            must(model_executor_ops.wait(rank->executor, &done));
        }
    }
    must(model_executor_ops.wait(rank->executor, &done));
    return clock_now_ns() - start_ns;
}

static void run_rank(struct rank *rank, int comm_fd, uint32_t rounds, struct outcome *outcome, _Atomic uint64_t *sum) {
    struct executor_config config = {.init = &rank->init, .comm_fd = comm_fd};
    must(model_executor_ops.open(&config, &rank->executor));
    rank->builder = step_builder_create(&rank->init.limits);
    rank->body = xaligned(64, rank->init.max_body_bytes);
    const struct model *model = model_executor_model(rank->executor);
    struct worker_ready ready;
    model_executor_ops.describe(rank->executor, &ready);
    uint64_t bytes = ready.weight_bytes;
    if (model->weights.embed.data != model->weights.head.data) {
        bytes -= (uint64_t)model->weights.embed.n * model->weights.embed.k * dtype_bytes(model->weights.embed.format);
    }
    atomic_fetch_add(sum, bytes);
    for (uint32_t round = 0; round <= rounds; round++) {
        for (int i = 0; i < SHAPES; i++) {
            model_executor_ops.reset(rank->executor);
            rank->step_id = 0;
            uint64_t ns = run_shape(rank, &shapes[i]);
            if (rank->init.rank == 0 && round > 0) {
                outcome->ns[i][round - 1] = ns;
            }
        }
    }
    step_builder_destroy(rank->builder);
    free(rank->body);
    model_executor_ops.close(rank->executor);
}

static void run_world(const char *dir, uint32_t world, uint32_t threads, uint32_t rounds, struct outcome *outcome) {
    struct rank rank = {0};
    fill_init(dir, world, threads, &rank.init);
    int comm_fd = -1;
    if (world > 1) {
        must(memfd_make("comm", comm_shm_bytes(world, rank.init.comm_max_bytes), &comm_fd));
    }
    struct {
        struct outcome outcome;
        _Atomic uint64_t weight_bytes;
    } *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED, "no memory");
    for (uint32_t r = 0; r < world; r++) {
        fflush(NULL);
        if (fork() == 0) {
            rank.init.rank = r;
            rank.init.first_cpu = (int32_t)(r * threads);
            run_rank(&rank, comm_fd, rounds, &shared->outcome, &shared->weight_bytes);
            _exit(0);
        }
    }
    for (uint32_t r = 0; r < world; r++) {
        int state;
        CHECK(wait(&state) > 0 && state == 0, "a rank failed");
    }
    *outcome = shared->outcome;
    outcome->weight_bytes = atomic_load(&shared->weight_bytes);
    munmap(shared, sizeof *shared);
    if (comm_fd >= 0) {
        close(comm_fd);
    }
}

static int compare_ns(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void print_outcome(uint32_t world, uint32_t threads, uint32_t rounds, struct outcome *outcome,
                          double bandwidth) {
    for (int i = 0; i < SHAPES; i++) {
        const struct shape *shape = &shapes[i];
        qsort(outcome->ns[i], rounds, sizeof outcome->ns[i][0], compare_ns);
        double seconds = (double)outcome->ns[i][rounds / 2] * 1e-9;
        double tokens = (double)shape->batch * shape->q_len * shape->n_steps / seconds;
        double bytes = (double)outcome->weight_bytes * shape->n_steps / seconds;
        printf("TP %u x %u  %-17s %9.1f tokens/s %8.2f ms/step", world, threads, shape->name, tokens,
               seconds * 1e3 / shape->n_steps);
        if (shape->q_len == 1) {
            printf("  %6.2f GB/s of weights (%.0f %%)", bytes * 1e-9, 100 * bytes / bandwidth);
        }
        printf("\n{\"bench\": \"model\", \"tp\": %u, \"threads\": %u, \"shape\": \"%s\", \"tokens_per_s\": %.1f, "
               "\"weight_bytes_per_s\": %.0f, \"read_bandwidth\": %.0f}\n",
               world, threads, shape->name, tokens, bytes, bandwidth);
    }
}

/* In a child, so that its memory does not stay with the ranks. */
static double measure_bandwidth(uint32_t threads) {
    double *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED, "no memory");
    if (fork() == 0) {
        char *data = xaligned(4096, CEILING_BYTES);
        memset(data, 1, CEILING_BYTES);
        *shared = ceiling_read_bandwidth(threads, data, CEILING_BYTES);
        _exit(0);
    }
    int state;
    CHECK(wait(&state) > 0 && state == 0, "the bandwidth could not be measured");
    double bandwidth = *shared;
    munmap(shared, sizeof *shared);
    return bandwidth;
}

int main(int argc, char **argv) {
    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: bench_model DIR [ROUNDS]\n");
        return 2;
    }
    uint32_t rounds = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 3;
    CHECK(rounds > 0 && rounds <= MAX_ROUNDS, "ROUNDS: 1 to %d are wanted", MAX_ROUNDS);
    uint32_t cores = (uint32_t)sysconf(_SC_NPROCESSORS_ONLN);
    double before = measure_bandwidth(cores);
    struct outcome one;
    struct outcome two;
    run_world(argv[1], 1, cores, rounds, &one);
    run_world(argv[1], 2, cores > 1 ? cores / 2 : 1, rounds, &two);
    double after = measure_bandwidth(cores);
    double bandwidth = after > before ? after : before;
    printf("read bandwidth of %u cores: %.2f GB/s\n", cores, bandwidth * 1e-9);
    print_outcome(1, cores, rounds, &one, bandwidth);
    print_outcome(2, cores > 1 ? cores / 2 : 1, rounds, &two, bandwidth);
    return 0;
}
