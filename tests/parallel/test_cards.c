/* The collectives between cards: runs with TANDEM_TEST_BACKEND=cuda, TANDEM_TEST_CARDS=N and TANDEM_PLUGIN=FILE. Each
 * rank is a process with a card of its own; with one card the group is a group of one. Values are small whole numbers,
 * so that sums are exact in every format and order. */
#include <sys/wait.h>
#include <unistd.h>

#include "parallel/comm.h"
#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/clock.h"
#include "runtime/base/rng.h"
#include "tests/harness/test.h"

#define MAX_BYTES ((size_t)4 << 20)

struct rank {
    const struct kernel_ops *kernels;
    struct kernel_device *device;
    struct kernel_stream *stream;
    const struct comm_ops *ops;
    struct comm *comm;
    uint32_t rank, world;
    char *send, *recv; /* device memory, MAX_BYTES and world x MAX_BYTES long */
    uint8_t *host;     /* world x MAX_BYTES */
};

static struct comm_config config_of(const struct rank *rank, int memory_fd, uint64_t timeout_ns) {
    return (struct comm_config){.rank = rank->rank,
                                .world = rank->world,
                                .kernels = rank->kernels,
                                .device = rank->device,
                                .max_bytes = MAX_BYTES,
                                .memory_fd = memory_fd,
                                .timeout_ns = timeout_ns};
}

static void open_card(struct rank *rank) {
    rank->kernels = kernels_find_for("cuda", (int)rank->rank);
    if (rank->kernels == NULL) {
        test_fail(__FILE__, __LINE__, "rank %u: %s", rank->rank, status_text());
    }
    struct kernel_device_config device = {.ordinal = (int)rank->rank, .threads = 1, .first_cpu = -1};
    EXPECT_OK(rank->kernels->open(&device, &rank->device));
    EXPECT_OK(rank->kernels->stream_create(rank->device, &rank->stream));
    rank->ops = comm_find("nccl");
    EXPECT(rank->ops != NULL);
    void *memory[2];
    EXPECT_OK(rank->kernels->alloc(rank->device, MAX_BYTES, &memory[0]));
    EXPECT_OK(rank->kernels->alloc(rank->device, rank->world * MAX_BYTES, &memory[1]));
    rank->send = memory[0];
    rank->recv = memory[1];
    rank->host = xcalloc(rank->world, MAX_BYTES);
}

static void run_rank(uint32_t rank, uint32_t world, int memory_fd, void (*body)(struct rank *rank)) {
    struct rank self = {.rank = rank, .world = world};
    open_card(&self);
    struct comm_config config = config_of(&self, memory_fd, 60 * NS_PER_S);
    EXPECT_OK(self.ops->open(&config, &self.comm));
    body(&self);
    self.ops->close(self.comm);
    self.kernels->stream_destroy(self.stream);
    self.kernels->free(self.device, self.send);
    self.kernels->free(self.device, self.recv);
    self.kernels->close(self.device);
}

static void run_on_cards(void (*body)(struct rank *rank)) {
    if (strcmp(test_backend(), "cuda") != 0) {
        test_skip("TANDEM_TEST_BACKEND is not cuda");
    }
    uint32_t world = test_max_world();
    pid_t children[COMM_MAX_WORLD];
    int fd;
    EXPECT(world >= 1 && world <= COMM_MAX_WORLD);
    EXPECT_OK(memfd_make("comm", comm_memory_bytes("nccl", world, MAX_BYTES), &fd));
    for (uint32_t r = 0; r < world; r++) {
        fflush(NULL);
        children[r] = fork();
        if (children[r] == 0) {
            run_rank(r, world, fd, body);
            exit(0);
        }
    }
    for (uint32_t r = 0; r < world; r++) {
        int state = -1;
        EXPECT_EQ(waitpid(children[r], &state, 0), children[r]);
        EXPECT_EQ(state, 0);
    }
    close(fd);
}

static void upload(struct rank *rank, void *device, size_t bytes) {
    EXPECT_OK(rank->kernels->copy(rank->stream, device, rank->host, bytes, KERNEL_COPY_TO_DEVICE));
    EXPECT_OK(rank->kernels->stream_sync(rank->stream));
}

static void download(struct rank *rank, const void *device, size_t bytes) {
    EXPECT_OK(rank->kernels->copy(rank->stream, rank->host, device, bytes, KERNEL_COPY_TO_HOST));
    EXPECT_OK(rank->kernels->stream_sync(rank->stream));
    EXPECT_OK(rank->ops->check(rank->comm));
}

/* ---- sums */

/* What a rank brings as element i: -8 .. 7. */
static float element(uint32_t rank, size_t i) {
    uint64_t state = ((uint64_t)rank << 32) ^ i;
    return (float)(rng_next(&state) % 16) - 8.0f;
}

static void put(void *data, size_t i, float value, enum dtype dtype) {
    if (dtype == DTYPE_F32) {
        ((float *)data)[i] = value;
    } else {
        ((uint16_t *)data)[i] = dtype == DTYPE_BF16 ? f32_to_bf16(value) : f32_to_f16(value);
    }
}

static void put_elements(struct rank *rank, size_t count, enum dtype dtype) {
    for (size_t i = 0; i < count; i++) {
        put(rank->host, i, element(rank->rank, i), dtype);
    }
    upload(rank, rank->send, count * dtype_bytes(dtype));
}

static void expect_sums(struct rank *rank, size_t count, enum dtype dtype, float times) {
    download(rank, rank->send, count * dtype_bytes(dtype));
    for (size_t i = 0; i < count; i++) {
        float sum = 0;
        uint8_t wanted[4] = {0};
        for (uint32_t r = 0; r < rank->world; r++) {
            sum += element(r, i);
        }
        put(wanted, 0, sum * times, dtype);
        if (memcmp(wanted, rank->host + i * dtype_bytes(dtype), dtype_bytes(dtype)) != 0) {
            test_fail(__FILE__, __LINE__, "rank %u of %u: element %zu of %zu %s is not %g", rank->rank, rank->world, i,
                      count, dtype_name(dtype), (double)(sum * times));
        }
    }
}

static const size_t counts[] = {1, 3, 1023, 4096, 5120, 65537, 1048576};
#define N_COUNTS (sizeof counts / sizeof counts[0])

static void reduce_all_sizes(struct rank *rank) {
    for (size_t c = 0; c < N_COUNTS; c++) {
        for (int dtype = 0; dtype < 3; dtype++) {
            put_elements(rank, counts[c], (enum dtype)dtype);
            EXPECT_OK(rank->ops->all_reduce(rank->comm, rank->stream, rank->send, counts[c], (enum dtype)dtype));
            expect_sums(rank, counts[c], (enum dtype)dtype, 1);
        }
    }
}

TEST_TIMEOUT(all_reduce_adds, 180) {
    run_on_cards(reduce_all_sizes);
}

/* The sum of sums: the second launch starts from what the first left. */
static void replay(struct rank *rank) {
    struct kernel_graph *graph = NULL;
    put_elements(rank, 4096, DTYPE_F32);
    EXPECT_OK(rank->kernels->graph_begin(rank->stream));
    EXPECT_OK(rank->ops->all_reduce(rank->comm, rank->stream, rank->send, 4096, DTYPE_F32));
    EXPECT_OK(rank->kernels->graph_end(rank->stream, &graph));
    float times = 1;
    for (int i = 0; i < 3; i++) {
        EXPECT_OK(rank->kernels->graph_launch(graph, rank->stream));
        expect_sums(rank, 4096, DTYPE_F32, times);
        times *= (float)rank->world;
    }
    EXPECT_OK(rank->ops->all_reduce(rank->comm, rank->stream, rank->send, 4096, DTYPE_F32)); /* eager among graphs */
    expect_sums(rank, 4096, DTYPE_F32, times);
    rank->kernels->graph_destroy(graph);
}

TEST_TIMEOUT(collectives_are_recorded_in_graphs, 120) {
    run_on_cards(replay);
}

/* ---- bytes */

static uint8_t byte_of(uint32_t from, uint32_t to, size_t i) {
    return (uint8_t)(from * 131 + to * 17 + i * 7 + i / 251);
}

static void expect_bytes(const struct rank *rank, size_t at, uint32_t from, uint32_t to, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        EXPECT_EQ(rank->host[at + i], byte_of(from, to, i));
    }
}

static void gather_and_broadcast(struct rank *rank) {
    for (size_t c = 0; c < N_COUNTS; c++) {
        size_t bytes = counts[c];
        for (size_t i = 0; i < bytes; i++) {
            rank->host[i] = byte_of(rank->rank, 0, i);
        }
        upload(rank, rank->send, bytes);
        EXPECT_OK(rank->ops->all_gather(rank->comm, rank->stream, rank->send, rank->recv, bytes));
        download(rank, rank->recv, rank->world * bytes);
        for (uint32_t r = 0; r < rank->world; r++) {
            expect_bytes(rank, r * bytes, r, 0, bytes);
        }
        uint32_t root = (uint32_t)c % rank->world;
        EXPECT_OK(rank->ops->broadcast(rank->comm, rank->stream, rank->send, bytes, root));
        download(rank, rank->send, bytes);
        expect_bytes(rank, 0, root, 0, bytes);
        EXPECT_OK(rank->ops->barrier(rank->comm));
    }
}

TEST_TIMEOUT(all_gather_and_broadcast_move_bytes, 120) {
    run_on_cards(gather_and_broadcast);
}

/* Uneven parts, some of them empty. */
static size_t part_bytes(uint32_t from, uint32_t to, size_t limit) {
    return (from * 3 + to) % 4 == 3 ? 0 : (from + 1) * limit / (to + 2) / 16;
}

static void exchange(struct rank *rank) {
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
                rank->host[at++] = byte_of(rank->rank, r, i);
            }
        }
        upload(rank, rank->send, at);
        EXPECT_OK(rank->ops->all_to_all(rank->comm, rank->stream, rank->send, send_bytes, rank->recv, recv_bytes));
        download(rank, rank->recv, received);
        at = 0;
        for (uint32_t r = 0; r < rank->world; r++) {
            expect_bytes(rank, at, r, rank->rank, recv_bytes[r]);
            at += recv_bytes[r];
        }
    }
}

TEST_TIMEOUT(all_to_all_moves_uneven_parts, 120) {
    run_on_cards(exchange);
}

/* ---- the end */

/* The others wait in a collective that rank 0 never joins, until each aborts its own. */
static void abort_all(struct rank *rank) {
    EXPECT_OK(rank->ops->barrier(rank->comm));
    if (rank->rank > 0) {
        EXPECT_OK(rank->ops->all_reduce(rank->comm, rank->stream, rank->send, 64, DTYPE_F32));
    }
    rank->ops->abort(rank->comm);
    EXPECT_OK(rank->kernels->stream_sync(rank->stream));
    EXPECT_FAILS(rank->ops->check(rank->comm), STATUS_CLOSED, "aborted");
    EXPECT_FAILS(rank->ops->all_reduce(rank->comm, rank->stream, rank->send, 64, DTYPE_F32), STATUS_CLOSED, "aborted");
    EXPECT_FAILS(rank->ops->barrier(rank->comm), STATUS_CLOSED, "aborted");
    rank->ops->abort(rank->comm); /* once more does nothing */
}

TEST_TIMEOUT(abort_ends_every_wait, 120) {
    run_on_cards(abort_all);
}

static void miss_a_rank(struct rank *rank) {
    struct comm *second = NULL;
    int fd;
    if (rank->rank > 0) {
        return;
    }
    rank->world = 3;
    EXPECT_OK(memfd_make("comm", comm_memory_bytes("nccl", 3, MAX_BYTES), &fd));
    struct comm_config config = config_of(rank, fd, NS_PER_S / 2);
    EXPECT_FAILS(rank->ops->open(&config, &second), STATUS_TIMEOUT,
                 "rank 0 waited 0.5 s for the group of 3; missing: 1, 2");
    close(fd);
}

TEST_TIMEOUT(a_group_that_is_not_whole_is_told_of, 120) {
    run_on_cards(miss_a_rank);
}
