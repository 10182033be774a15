/* The collectives between cards, by NCCL and by our own kernels: runs with TANDEM_TEST_BACKEND=cuda,
 * TANDEM_TEST_CARDS=N and TANDEM_PLUGIN=FILE. Each rank is a process with a card of its own; with one card the group is
 * a group of one, which NCCL alone serves. Where a test says nothing else, values are small whole numbers, so that sums
 * are exact in every format and order. */
#include <math.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/clock.h"
#include "runtime/base/rng.h"
#include "tests/parallel/support_ranks.h"

#define MAX_BYTES ((size_t)16 << 20)

/* Of the rank that this process is. */
static char *send, *recv; /* device memory, MAX_BYTES and world x MAX_BYTES long */
static uint8_t *host;     /* world x MAX_BYTES */
static void (*wanted_body)(struct rank_run *rank);

static void run_with_buffers(struct rank_run *rank) {
    void *memory[2];
    EXPECT_OK(rank->kernels->alloc(rank->device, MAX_BYTES, &memory[0]));
    EXPECT_OK(rank->kernels->alloc(rank->device, rank->world * MAX_BYTES, &memory[1]));
    send = memory[0];
    recv = memory[1];
    host = xcalloc(rank->world, MAX_BYTES);
    wanted_body(rank);
    rank->kernels->free(rank->device, send);
    rank->kernels->free(rank->device, recv);
    free(host);
}

static void on_cards(const char *comm, void (*body)(struct rank_run *rank)) {
    if (strcmp(test_backend(), "cuda") != 0) {
        test_skip("TANDEM_TEST_BACKEND is not cuda");
    }
    wanted_body = body;
    run_on_cards(comm, MAX_BYTES, run_with_buffers);
}

static void by_every_way(void (*body)(struct rank_run *rank)) {
    on_cards("nccl", body);
    if (test_max_world() > 1) {
        on_cards("p2p", body);
    }
}

static void by_own_kernels(void (*body)(struct rank_run *rank)) {
    if (test_max_world() < 2) {
        test_skip("TANDEM_TEST_CARDS is less than 2");
    }
    on_cards("p2p", body);
}

static void upload(struct rank_run *rank, void *device, size_t bytes) {
    EXPECT_OK(rank->kernels->copy(rank->stream, device, host, bytes, KERNEL_COPY_TO_DEVICE));
    EXPECT_OK(rank->kernels->stream_sync(rank->stream));
}

static void download(struct rank_run *rank, const void *device, size_t bytes) {
    EXPECT_OK(rank->kernels->copy(rank->stream, host, device, bytes, KERNEL_COPY_TO_HOST));
    EXPECT_OK(rank->kernels->stream_sync(rank->stream));
    EXPECT_OK(rank->ops->check(rank->comm));
}

/* ---- sums */

/* What a rank brings as element i: -8 .. 7. */
static float element(uint32_t rank, size_t i) {
    uint64_t state = ((uint64_t)rank << 32) ^ i;
    return (float)(rng_next(&state) % 16) - 8.0f;
}

static void put_elements(struct rank_run *rank, size_t count, enum dtype dtype) {
    for (size_t i = 0; i < count; i++) {
        put(host, i, element(rank->rank, i), dtype);
    }
    upload(rank, send, count * dtype_bytes(dtype));
}

static void expect_sums(struct rank_run *rank, size_t count, enum dtype dtype, float times) {
    download(rank, send, count * dtype_bytes(dtype));
    for (size_t i = 0; i < count; i++) {
        float sum = 0;
        uint8_t wanted[4] = {0};
        for (uint32_t r = 0; r < rank->world; r++) {
            sum += element(r, i);
        }
        put(wanted, 0, sum * times, dtype);
        if (memcmp(wanted, host + i * dtype_bytes(dtype), dtype_bytes(dtype)) != 0) {
            test_fail(__FILE__, __LINE__, "rank %u of %u: element %zu of %zu %s is not %g", rank->rank, rank->world, i,
                      count, dtype_name(dtype), (double)(sum * times));
        }
    }
}

static const size_t counts[] = {1, 3, 1023, 4096, 5120, 65537, 1048576};
#define N_COUNTS (sizeof counts / sizeof counts[0])

static void reduce_all_sizes(struct rank_run *rank) {
    for (size_t c = 0; c < N_COUNTS; c++) {
        for (int dtype = 0; dtype < 3; dtype++) {
            put_elements(rank, counts[c], (enum dtype)dtype);
            EXPECT_OK(rank->ops->all_reduce(rank->comm, rank->stream, send, counts[c], (enum dtype)dtype));
            expect_sums(rank, counts[c], (enum dtype)dtype, 1);
        }
    }
}

TEST_TIMEOUT(all_reduce_adds, 180) {
    by_every_way(reduce_all_sizes);
}

/* The sum of sums: the second launch starts from what the first left. */
static void replay(struct rank_run *rank) {
    struct kernel_graph *graph = NULL;
    put_elements(rank, 4096, DTYPE_F32);
    EXPECT_OK(rank->kernels->graph_begin(rank->stream));
    EXPECT_OK(rank->ops->all_reduce(rank->comm, rank->stream, send, 4096, DTYPE_F32));
    EXPECT_OK(rank->kernels->graph_end(rank->stream, &graph));
    float times = 1;
    for (int i = 0; i < 3; i++) {
        EXPECT_OK(rank->kernels->graph_launch(graph, rank->stream));
        expect_sums(rank, 4096, DTYPE_F32, times);
        times *= (float)rank->world;
    }
    EXPECT_OK(rank->ops->all_reduce(rank->comm, rank->stream, send, 4096, DTYPE_F32)); /* eager among graphs */
    expect_sums(rank, 4096, DTYPE_F32, times);
    rank->kernels->graph_destroy(graph);
}

TEST_TIMEOUT(collectives_are_recorded_in_graphs, 120) {
    by_every_way(replay);
}

/* Sizes on both sides of where own kernels give way to NCCL, and sums among gathers: nothing is waited for in between,
 * order and the turns of the slots alone keep them apart. */
static void back_to_back(struct rank_run *rank) {
    enum { ROUNDS = 400, MOST = 2048 };
    size_t at = 0;
    uint64_t state = rank->seed;
    for (int round = 0; round < ROUNDS; round++) {
        size_t count = 8 * (1 + rng_next(&state) % (round % 50 == 0 ? 8 * MOST : MOST / 8));
        for (size_t i = 0; i < count && at + count <= MAX_BYTES / 4; i++) {
            ((float *)(void *)host)[at + i] = element(rank->rank, at + i);
        }
        at += at + count <= MAX_BYTES / 4 ? count : 0;
    }
    upload(rank, send, at * sizeof(float));
    state = rank->seed;
    size_t done = 0;
    for (int round = 0; round < ROUNDS; round++) {
        size_t count = 8 * (1 + rng_next(&state) % (round % 50 == 0 ? 8 * MOST : MOST / 8));
        if (done + count <= MAX_BYTES / 4) {
            float *data = (float *)(void *)send + done;
            EXPECT_OK(rank->ops->all_reduce(rank->comm, rank->stream, data, count, DTYPE_F32));
            EXPECT_OK(rank->ops->all_gather(rank->comm, rank->stream, data, recv, 8 * (size_t)(1 + round % 9)));
            done += count;
        }
    }
    EXPECT_EQ(done, at);
    expect_sums(rank, at, DTYPE_F32, 1);
}

TEST_TIMEOUT(collectives_follow_each_other_on_a_stream, 120) {
    by_every_way(back_to_back);
}

/* ---- all_reduce_add_rmsnorm beside what it stands for */

struct norm_buffers {
    char *data;      /* [2][NORM_ELEMENTS] of the format: fused, composed */
    float *residual; /* [2][NORM_ELEMENTS] */
    float *weight;
    char *out; /* [2][NORM_ELEMENTS] */
};
#define NORM_ELEMENTS ((size_t)3 << 20)

static float real_element(uint64_t seed, uint32_t rank, size_t i) {
    uint64_t state = seed ^ ((uint64_t)rank << 40) ^ i;
    return ((float)(rng_next(&state) >> 40) - 8388608.0f) * 0x1p-22f;
}

static void put_norm(struct rank_run *rank, const struct norm_buffers *buffers, size_t count, uint32_t hidden,
                     enum dtype dtype) {
    for (size_t i = 0; i < count; i++) {
        put(host, i, real_element(1, rank->rank, i), dtype);
    }
    upload(rank, buffers->data, count * dtype_bytes(dtype));
    upload(rank, buffers->data + NORM_ELEMENTS * 4, count * dtype_bytes(dtype));
    for (size_t i = 0; i < count; i++) {
        put(host, i, real_element(2, 0, i), DTYPE_F32);
    }
    upload(rank, buffers->residual, count * sizeof(float));
    upload(rank, buffers->residual + NORM_ELEMENTS, count * sizeof(float));
    for (size_t i = 0; i < hidden; i++) {
        put(host, i, real_element(3, 0, i), DTYPE_F32);
    }
    upload(rank, buffers->weight, hidden * sizeof(float));
}

/* Residuals are equal to the bit, and so are the norms but for the order in which squares may be added. */
static void expect_same_norms(struct rank_run *rank, const struct norm_buffers *buffers, size_t count,
                              enum dtype dtype) {
    static float composed[NORM_ELEMENTS];
    download(rank, buffers->residual + NORM_ELEMENTS, count * sizeof(float));
    memcpy(composed, host, count * sizeof(float));
    download(rank, buffers->residual, count * sizeof(float));
    EXPECT_EQ(memcmp(host, composed, count * sizeof(float)), 0);
    download(rank, buffers->out + NORM_ELEMENTS * 4, count * dtype_bytes(dtype));
    for (size_t i = 0; i < count; i++) {
        composed[i] = get(host, i, dtype);
    }
    download(rank, buffers->out, count * dtype_bytes(dtype));
    float bound = dtype == DTYPE_F32 ? 0x1p-20f : dtype == DTYPE_F16 ? 0x1p-10f : 0x1p-7f;
    for (size_t i = 0; i < count; i++) {
        if (!(fabsf(get(host, i, dtype) - composed[i]) <= bound * fabsf(composed[i]))) {
            test_fail(__FILE__, __LINE__, "element %zu of %zu %s: %g instead of %g", i, count, dtype_name(dtype),
                      (double)get(host, i, dtype), (double)composed[i]);
        }
    }
}

/* All ranks hold what rank 0 holds. */
static void expect_one_result(struct rank_run *rank, const float *residual, size_t count) {
    EXPECT_OK(rank->ops->all_gather(rank->comm, rank->stream, residual, recv, count * sizeof(float)));
    download(rank, recv, rank->world * count * sizeof(float));
    for (uint32_t r = 1; r < rank->world; r++) {
        EXPECT_EQ(memcmp(host, host + r * count * sizeof(float), count * sizeof(float)), 0);
    }
}

/* Several times in a row, without a wait in between. */
#define NORM_TIMES 3

static void norm_one(struct rank_run *rank, const struct norm_buffers *buffers, uint32_t rows, uint32_t hidden,
                     enum dtype dtype) {
    size_t count = (size_t)rows * hidden;
    struct op_rmsnorm norm = {.residual = buffers->residual,
                              .delta = buffers->data,
                              .delta_dtype = dtype,
                              .weight = buffers->weight,
                              .weight_dtype = DTYPE_F32,
                              .out = buffers->out,
                              .out_dtype = dtype,
                              .n_tokens = rows,
                              .hidden = hidden,
                              .eps = 1e-5f};
    char *again = buffers->data + NORM_ELEMENTS * 4;
    put_norm(rank, buffers, count, hidden, dtype);
    for (int i = 0; i < NORM_TIMES; i++) {
        EXPECT_OK(rank->ops->all_reduce_add_rmsnorm(rank->comm, rank->stream, buffers->data, &norm));
        EXPECT_OK(
            rank->kernels->copy(rank->stream, buffers->data, again, count * dtype_bytes(dtype), KERNEL_COPY_ON_DEVICE));
    }
    norm.residual += NORM_ELEMENTS;
    norm.delta = again;
    norm.out = buffers->out + NORM_ELEMENTS * 4;
    EXPECT_OK(rank->ops->all_reduce(rank->comm, rank->stream, again, count, dtype));
    for (int i = 0; i < NORM_TIMES; i++) {
        EXPECT_OK(rank->kernels->rmsnorm(rank->stream, &norm));
    }
    expect_same_norms(rank, buffers, count, dtype);
    expect_one_result(rank, buffers->residual, count);
}

/* Widths of models, one that is no multiple of 8 and one that no block takes; batches beyond the cards' processors; the
 * last ones beyond the slots, so that two ranks send them through the pipe. */
static void norms(struct rank_run *rank) {
    static const uint32_t shapes[][2] = {{1, 64},   {1, 5120}, {1, 8192},  {2, 1536},   {16, 5120},  {58, 896},
                                         {3, 1001}, {2, 9216}, {300, 192}, {600, 5120}, {300, 8192}, {3000, 896}};
    struct norm_buffers buffers;
    void *memory[4];
    for (int i = 0; i < 4; i++) {
        EXPECT_OK(rank->kernels->alloc(rank->device, 2 * NORM_ELEMENTS * 4, &memory[i]));
    }
    buffers = (struct norm_buffers){memory[0], memory[1], memory[2], memory[3]};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (int dtype = 0; dtype < 3; dtype++) {
            norm_one(rank, &buffers, shapes[i][0], shapes[i][1], (enum dtype)dtype);
        }
    }
    for (int i = 0; i < 4; i++) {
        rank->kernels->free(rank->device, memory[i]);
    }
}

TEST_TIMEOUT(fused_is_equal_to_composed, 120) {
    by_own_kernels(norms);
}

/* ---- bytes */

static uint8_t byte_of(uint32_t from, uint32_t to, size_t i) {
    return (uint8_t)(from * 131 + to * 17 + i * 7 + i / 251);
}

static void expect_bytes(size_t at, uint32_t from, uint32_t to, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        EXPECT_EQ(host[at + i], byte_of(from, to, i));
    }
}

static void gather_and_broadcast(struct rank_run *rank) {
    for (size_t c = 0; c < N_COUNTS; c++) {
        size_t bytes = counts[c];
        for (size_t i = 0; i < bytes; i++) {
            host[i] = byte_of(rank->rank, 0, i);
        }
        upload(rank, send, bytes);
        EXPECT_OK(rank->ops->all_gather(rank->comm, rank->stream, send, recv, bytes));
        download(rank, recv, rank->world * bytes);
        for (uint32_t r = 0; r < rank->world; r++) {
            expect_bytes(r * bytes, r, 0, bytes);
        }
        uint32_t root = (uint32_t)c % rank->world;
        EXPECT_OK(rank->ops->broadcast(rank->comm, rank->stream, send, bytes, root));
        download(rank, send, bytes);
        expect_bytes(0, root, 0, bytes);
        EXPECT_OK(rank->ops->barrier(rank->comm));
    }
}

TEST_TIMEOUT(all_gather_and_broadcast_move_bytes, 120) {
    by_every_way(gather_and_broadcast);
}

/* Uneven parts, some of them empty. */
static size_t part_bytes(uint32_t from, uint32_t to, size_t limit) {
    return (from * 3 + to) % 4 == 3 ? 0 : (from + 1) * limit / (to + 2) / 16;
}

static void exchange(struct rank_run *rank) {
    for (size_t c = 0; c < N_COUNTS; c++) {
        size_t send_bytes[COMM_MAX_WORLD];
        size_t recv_bytes[COMM_MAX_WORLD];
        size_t at = 0;
        size_t received = 0;
        for (uint32_t r = 0; r < rank->world; r++) {
            send_bytes[r] = part_bytes(rank->rank, r, counts[c]);
            recv_bytes[r] = part_bytes(r, rank->rank, counts[c]);
            received += recv_bytes[r];
            for (size_t i = 0; i < send_bytes[r]; i++) {
                host[at++] = byte_of(rank->rank, r, i);
            }
        }
        upload(rank, send, at);
        EXPECT_OK(rank->ops->all_to_all(rank->comm, rank->stream, send, send_bytes, recv, recv_bytes));
        download(rank, recv, received);
        at = 0;
        for (uint32_t r = 0; r < rank->world; r++) {
            expect_bytes(at, r, rank->rank, recv_bytes[r]);
            at += recv_bytes[r];
        }
    }
}

TEST_TIMEOUT(all_to_all_moves_uneven_parts, 120) {
    by_every_way(exchange);
}

/* ---- the end */

/* The others wait in a collective that rank 0 never joins, until each aborts its own. */
static void abort_all(struct rank_run *rank) {
    EXPECT_OK(rank->ops->barrier(rank->comm));
    if (rank->rank > 0) {
        EXPECT_OK(rank->ops->all_reduce(rank->comm, rank->stream, send, 64, DTYPE_F32));
    }
    rank->ops->abort(rank->comm);
    EXPECT_OK(rank->kernels->stream_sync(rank->stream));
    EXPECT_FAILS(rank->ops->check(rank->comm), STATUS_CLOSED, "aborted");
    EXPECT_FAILS(rank->ops->all_reduce(rank->comm, rank->stream, send, 64, DTYPE_F32), STATUS_CLOSED, "aborted");
    EXPECT_FAILS(rank->ops->barrier(rank->comm), STATUS_CLOSED, "aborted");
    rank->ops->abort(rank->comm); /* once more does nothing */
}

TEST_TIMEOUT(abort_ends_every_wait, 120) {
    by_every_way(abort_all);
}

static void miss_a_rank(struct rank_run *rank) {
    struct comm *second = NULL;
    int fd;
    if (rank->rank > 0) {
        return;
    }
    EXPECT_OK(memfd_make("comm", comm_memory_bytes(rank->ops->name, 3, MAX_BYTES), &fd));
    struct comm_config config = {.rank = 0,
                                 .world = 3,
                                 .kernels = rank->kernels,
                                 .device = rank->device,
                                 .max_bytes = MAX_BYTES,
                                 .memory_fd = fd,
                                 .timeout_ns = NS_PER_S / 2};
    EXPECT_FAILS(rank->ops->open(&config, &second), STATUS_TIMEOUT,
                 "rank 0 waited 0.5 s for the group of 3; missing: 1, 2");
    close(fd);
}

TEST_TIMEOUT(a_group_that_is_not_whole_is_told_of, 120) {
    by_every_way(miss_a_rank);
}
