#define _GNU_SOURCE /* MAP_ANONYMOUS */
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "parallel/comm_shm.h"
#include "parallel/reduce.h"
#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/clock.h"
#include "runtime/base/rng.h"
#include "tests/parallel/support_ranks.h"

/* Element i of what rank r brings to collective `round`: every rank can compute every other's. Magnitudes differ, so
 * that another order of additions gives other bits. */
static float element(uint64_t seed, uint32_t round, uint32_t rank, size_t i) {
    uint64_t state = seed ^ ((uint64_t)round << 40) ^ ((uint64_t)rank << 32) ^ i;
    uint64_t bits = rng_next(&state);
    float mantissa = (float)(int32_t)(bits & 0xffffff) - 8388608.0f;
    return ldexpf(mantissa, (int)(bits >> 56) % 24 - 36);
}

/* The definition, one element at a time. */
static float expected_sum(const struct rank_run *run, uint32_t round, size_t i, enum dtype dtype) {
    char cell[4];
    float sum = 0;
    for (uint32_t r = 0; r < run->world; r++) {
        put(cell, 0, element(run->seed, round, r, i), dtype);
        sum = r == 0 ? get(cell, 0, dtype) : sum + get(cell, 0, dtype);
    }
    put(cell, 0, sum, dtype);
    return get(cell, 0, dtype);
}

static void check_all_reduce(struct rank_run *run, uint32_t round, size_t count, enum dtype dtype) {
    char *data = xaligned(64, count * 4 + 8);
    for (size_t i = 0; i < count; i++) {
        put(data, i, element(run->seed, round, run->rank, i), dtype);
    }
    memset(data + count * dtype_bytes(dtype), 0x5a, 8);
    EXPECT_OK(run->ops->all_reduce(run->comm, run->stream, data, count, dtype));
    EXPECT_OK(run->kernels->stream_sync(run->stream));
    for (size_t i = 0; i < count; i++) {
        if (f32_to_bits(get(data, i, dtype)) != f32_to_bits(expected_sum(run, round, i, dtype))) {
            test_fail(__FILE__, __LINE__, "rank %u of %u, element %zu of %zu %s: %a instead of %a", run->rank,
                      run->world, i, count, dtype_name(dtype), (double)get(data, i, dtype),
                      (double)expected_sum(run, round, i, dtype));
        }
    }
    for (int i = 0; i < 8; i++) {
        EXPECT_EQ(data[count * dtype_bytes(dtype) + (size_t)i], 0x5a);
    }
    free(data);
}

/* Fills or compares `count` bytes of what `from` sends to `to`. */
static void fill_bytes(uint8_t *data, uint64_t seed, uint32_t round, uint32_t from, uint32_t to, size_t count) {
    uint64_t state = seed ^ ((uint64_t)round << 44) ^ ((uint64_t)from << 38) ^ ((uint64_t)to << 32);
    for (size_t i = 0; i < count; i += 8) {
        uint64_t bits = rng_next(&state);
        memcpy(data + i, &bits, count - i < 8 ? count - i : 8);
    }
}

static void expect_bytes(const uint8_t *data, uint64_t seed, uint32_t round, uint32_t from, uint32_t to, size_t count) {
    uint8_t *expected = xcalloc(1, count);
    fill_bytes(expected, seed, round, from, to, count);
    if (memcmp(data, expected, count) != 0) {
        test_fail(__FILE__, __LINE__, "some of the %zu bytes from rank %u differ", count, from);
    }
    free(expected);
}

static void check_all_gather(struct rank_run *run, uint32_t round, size_t bytes) {
    uint8_t *send = xcalloc(1, bytes);
    uint8_t *recv = xcalloc(run->world, bytes);
    fill_bytes(send, run->seed, round, run->rank, 0, bytes);
    EXPECT_OK(run->ops->all_gather(run->comm, run->stream, send, recv, bytes));
    EXPECT_OK(run->kernels->stream_sync(run->stream));
    for (uint32_t r = 0; r < run->world; r++) {
        expect_bytes(recv + r * bytes, run->seed, round, r, 0, bytes);
    }
    free(send);
    free(recv);
}

static void check_broadcast(struct rank_run *run, uint32_t round, size_t bytes) {
    uint32_t root = round % run->world;
    uint8_t *data = xcalloc(1, bytes);
    if (run->rank == root) {
        fill_bytes(data, run->seed, round, root, 0, bytes);
    }
    EXPECT_OK(run->ops->broadcast(run->comm, run->stream, data, bytes, root));
    EXPECT_OK(run->kernels->stream_sync(run->stream));
    expect_bytes(data, run->seed, round, root, 0, bytes);
    free(data);
}

/* Bytes that `from` sends to `to`: uneven, some of them none. */
static size_t part_bytes(const struct rank_run *run, uint32_t round, uint32_t from, uint32_t to, size_t limit) {
    uint64_t state = run->seed ^ ((uint64_t)round << 20) ^ (from << 8) ^ to;
    uint64_t bits = rng_next(&state);
    return bits % 5 == 0 ? 0 : (size_t)(bits >> 8) % (limit / run->world + 1);
}

static void check_all_to_all(struct rank_run *run, uint32_t round, size_t limit) {
    size_t send_bytes[COMM_MAX_WORLD];
    size_t recv_bytes[COMM_MAX_WORLD];
    size_t sent = 0;
    size_t received = 0;
    for (uint32_t r = 0; r < run->world; r++) {
        send_bytes[r] = part_bytes(run, round, run->rank, r, limit);
        recv_bytes[r] = part_bytes(run, round, r, run->rank, limit);
        sent += send_bytes[r];
        received += recv_bytes[r];
    }
    uint8_t *send = xcalloc(1, sent);
    uint8_t *recv = xcalloc(1, received);
    uint8_t *at = send;
    for (uint32_t r = 0; r < run->world; r++) {
        fill_bytes(at, run->seed, round, run->rank, r, send_bytes[r]);
        at += send_bytes[r];
    }
    EXPECT_OK(run->ops->all_to_all(run->comm, run->stream, send, send_bytes, recv, recv_bytes));
    EXPECT_OK(run->kernels->stream_sync(run->stream));
    at = recv;
    for (uint32_t r = 0; r < run->world; r++) {
        expect_bytes(at, run->seed, round, r, run->rank, recv_bytes[r]);
        at += recv_bytes[r];
    }
    free(send);
    free(recv);
}

/* Sizes around every border: one shot and two, one piece and several, odd counts. */
static void every_size(struct rank_run *run) {
    static const size_t counts[] = {1, 3, 16, 17, 1023, 1025, 16383, 16385, 32769, 70001, 262143, 262145, 530001};
    uint32_t round = 0;
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        for (int dtype = 0; dtype < 3; dtype++) {
            check_all_reduce(run, round++, counts[c], (enum dtype)dtype);
        }
        check_all_gather(run, round++, counts[c]);
        check_broadcast(run, round++, counts[c]);
        check_all_to_all(run, round++, counts[c]);
    }
    check_all_to_all(run, round, 2400004);
}

TEST_TIMEOUT(every_size_is_exact_at_world_1_to_4, 90) {
    for (uint32_t world = 1; world <= 4; world++) {
        run_as_processes(&direct_kernels, world, 2400004, false, 7 + world, every_size);
    }
}

static void mixed(struct rank_run *run) {
    uint64_t state = run->seed;
    for (uint32_t round = 0; round < 3000; round++) {
        uint64_t bits = rng_next(&state);
        size_t size = 1 + (bits >> 8) % (bits % 7 == 0 ? 50000 : 300);
        switch (bits >> 61) {
        case 0: check_all_gather(run, round, size); break;
        case 1: check_broadcast(run, round, size); break;
        case 2: check_all_to_all(run, round, size * 4); break;
        case 3: EXPECT_OK(run->ops->barrier(run->comm)); break;
        default: check_all_reduce(run, round, size, (enum dtype)(bits % 3)); break;
        }
    }
}

TEST_TIMEOUT(thousands_of_mixed_collectives, 90) {
    run_as_processes(&direct_kernels, 2, 200000, true, 1, mixed);
    run_as_processes(&direct_kernels, 3, 200000, false, 2, mixed);
    run_as_processes(&direct_kernels, 4, 200000, false, 3, mixed);
}

TEST_TIMEOUT(thousands_of_mixed_collectives_between_threads, 90) {
    run_as_threads(2, 200000, true, 4, mixed);
    run_as_threads(4, 200000, false, 5, mixed);
}

static void sixteen(struct rank_run *run) {
    for (uint32_t round = 0; round < 20; round++) {
        check_all_reduce(run, 3 * round, 40 + 1777 * round, (enum dtype)(round % 3));
        check_all_to_all(run, 3 * round + 1, 40 + 1777 * round);
        check_all_gather(run, 3 * round + 2, 1 + 177 * round);
    }
}

TEST_TIMEOUT(sixteen_ranks, 60) {
    run_as_processes(&direct_kernels, 16, 200000, false, 6, sixteen);
}

/* Nothing is waited for between collectives: order and double buffering alone keep them apart. */
static void back_to_back(struct rank_run *run) {
    enum { ROUNDS = 64, COUNT = 5000 };
    static float data[ROUNDS][COUNT];
    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (size_t i = 0; i < COUNT; i++) {
            data[round][i] = element(run->seed, round, run->rank, i);
        }
    }
    for (uint32_t round = 0; round < ROUNDS; round++) {
        size_t count = round % 5 == 0 ? COUNT : 1 + round;
        EXPECT_OK(run->ops->all_reduce(run->comm, run->stream, data[round], count, DTYPE_F32));
    }
    EXPECT_OK(run->kernels->stream_sync(run->stream));
    EXPECT_OK(run->ops->check(run->comm));
    for (uint32_t round = 0; round < ROUNDS; round++) {
        size_t count = round % 5 == 0 ? COUNT : 1 + round;
        for (size_t i = 0; i < count; i++) {
            EXPECT(f32_to_bits(data[round][i]) == f32_to_bits(expected_sum(run, round, i, DTYPE_F32)));
        }
    }
}

TEST(collectives_follow_each_other_on_a_stream) {
    run_as_processes(kernels_find("cpu"), 3, 20000, false, 8, back_to_back);
}

/* ---- abort */

/* How many ranks have seen their collectives done; in memory that the ranks share. */
static _Atomic uint32_t *n_done;

/* A rank that still wakes up in a collective finds it aborted, though all had come: nobody aborts before the others are
 * out. */
static void *abort_soon(void *argument) {
    struct rank_run *run = argument;
    while (atomic_load(n_done) < run->world - 1) {
        nanosleep(&(struct timespec){.tv_nsec = 1000 * 1000}, NULL);
    }
    nanosleep(&(struct timespec){.tv_nsec = 20 * 1000 * 1000}, NULL);
    run->ops->abort(run->comm);
    return NULL;
}

static void leave_alone(struct rank_run *run) {
    float data[100] = {0};
    for (int i = 0; i < 10; i++) {
        EXPECT_OK(run->ops->all_reduce(run->comm, run->stream, data, 100, DTYPE_F32));
    }
    if (run->rank == 0) {
        return; /* never comes again */
    }
    EXPECT_OK(run->ops->check(run->comm));
    atomic_fetch_add(n_done, 1);
    pthread_t thread;
    EXPECT_EQ(pthread_create(&thread, NULL, abort_soon, run), 0);
    if (run->rank == 1) {
        /* Enqueued, and ended by the abort; refused if that came first. */
        enum status status = run->ops->all_reduce(run->comm, run->stream, data, 100, DTYPE_F32);
        EXPECT(status == STATUS_OK || status == STATUS_CLOSED);
    } else {
        EXPECT_FAILS(run->ops->barrier(run->comm), STATUS_CLOSED, "aborted");
    }
    pthread_join(thread, NULL);
    EXPECT_FAILS(run->ops->check(run->comm), STATUS_CLOSED, "aborted");
    EXPECT_FAILS(run->ops->all_gather(run->comm, run->stream, data, data, 4), STATUS_CLOSED, "aborted");
    EXPECT_FAILS(run->ops->barrier(run->comm), STATUS_CLOSED, "aborted");
}

TEST(abort_ends_every_wait) {
    n_done = mmap(NULL, sizeof *n_done, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(n_done != MAP_FAILED);
    run_as_processes(&direct_kernels, 3, 4096, false, 9, leave_alone);
    atomic_store(n_done, 0);
    run_as_processes(&direct_kernels, 2, 4096, true, 9, leave_alone);
    atomic_store(n_done, 0);
    run_as_threads(3, 4096, false, 9, leave_alone);
}

/* ---- opening */

static enum status open_rank(int fd, uint32_t rank, uint32_t world, size_t max_bytes, uint64_t timeout_ns) {
    struct comm_config config = {.rank = rank,
                                 .world = world,
                                 .kernels = &direct_kernels,
                                 .max_bytes = max_bytes,
                                 .memory_fd = fd,
                                 .timeout_ns = timeout_ns};
    struct comm *comm;
    return comm_find("shm")->open(&config, &comm);
}

TEST(open_names_the_missing_ranks) {
    int fd;
    EXPECT_OK(memfd_make("comm", comm_shm_bytes(4, 1000), &fd));
    EXPECT_FAILS(open_rank(fd, 2, 4, 1000, 1000), STATUS_TIMEOUT, "missing: 0, 1, 3");
    EXPECT_FAILS(open_rank(fd, 0, 4, 1000, 1000), STATUS_TIMEOUT, "missing: 1, 3");
    EXPECT_FAILS(open_rank(fd, 0, 4, 1000, 1000), STATUS_INTERNAL, "has joined this group before");
}

TEST(open_refuses_what_cannot_work) {
    int fd;
    EXPECT_OK(memfd_make("comm", comm_shm_bytes(2, 1000), &fd));
    EXPECT_FAILS(open_rank(fd, 2, 2, 1000, 0), STATUS_INVALID, "rank 2 of 2");
    EXPECT_FAILS(open_rank(fd, 0, 17, 1000, 0), STATUS_INVALID, "1 to 16");
    EXPECT_FAILS(open_rank(fd, 0, 2, 0, 0), STATUS_INVALID, "max_bytes 0");
    EXPECT_FAILS(open_rank(fd, 0, 2, 1 << 20, 0), STATUS_INVALID, "are needed");
    pid_t child = fork();
    if (child == 0) {
        _exit(open_rank(fd, 1, 2, 900, 10 * NS_PER_S) != STATUS_INTERNAL);
    }
    EXPECT_FAILS(open_rank(fd, 0, 2, 1000, 10 * NS_PER_S), STATUS_INTERNAL, "not of one group");
    int state;
    waitpid(child, &state, 0);
    EXPECT_EQ(state, 0);
}

TEST(self_is_a_group_of_one) {
    const struct comm_ops *ops = comm_find("self");
    struct comm_config config = {.rank = 0, .world = 2, .kernels = &direct_kernels, .max_bytes = 100};
    struct comm *comm;
    EXPECT_FAILS(ops->open(&config, &comm), STATUS_INVALID, "world 1 only");
    config.world = 1;
    EXPECT_OK(ops->open(&config, &comm));
    float data[2] = {1.5f, -2.5f};
    float copy[2] = {0};
    size_t bytes = sizeof data;
    EXPECT_OK(ops->all_reduce(comm, NULL, data, 2, DTYPE_F32));
    EXPECT(data[0] == 1.5f && data[1] == -2.5f);
    EXPECT_OK(ops->all_gather(comm, NULL, data, copy, 4));
    EXPECT(copy[0] == 1.5f && copy[1] == 0.0f);
    EXPECT_OK(ops->all_to_all(comm, NULL, data, &bytes, copy, &bytes));
    EXPECT(copy[1] == -2.5f);
    EXPECT_OK(ops->broadcast(comm, NULL, data, 8, 0));
    EXPECT_OK(ops->barrier(comm));
    ops->abort(comm);
    EXPECT_FAILS(ops->all_reduce(comm, NULL, data, 2, DTYPE_F32), STATUS_CLOSED, "aborted");
    ops->close(comm);
    EXPECT(comm_find("nccl") == NULL);
}

TEST(a_backend_has_its_communicator) {
    EXPECT_TEXT(comm_name_for("cpu", 1, false), "self");
    EXPECT_TEXT(comm_name_for("cuda", 1, false), "self");
    EXPECT_TEXT(comm_name_for("cpu", 2, false), "shm");
    EXPECT_TEXT(comm_name_for("null", 2, false), "shm");
    EXPECT_TEXT(comm_name_for("cuda", 2, false), "p2p");
    EXPECT_TEXT(comm_name_for("cuda", 8, false), "p2p");
    EXPECT_TEXT(comm_name_for("cuda", 9, false), "nccl");
    EXPECT_TEXT(comm_name_for("cuda", 2, true), "nccl");
    EXPECT_TEXT(comm_name_for("cpu", 2, true), "shm");
    EXPECT_TEXT(comm_name_for("cuda", 1, true), "self");
    EXPECT_EQ(comm_memory_bytes("self", 1, 1000), 0);
    EXPECT_EQ(comm_memory_bytes("shm", 2, 1000), comm_shm_bytes(2, 1000));
    EXPECT_EQ(comm_memory_bytes("nccl", 2, 1000), 4096);
    EXPECT_EQ(comm_memory_bytes("p2p", 2, 1000), 8192);
    EXPECT_EQ(comm_device_bytes("self", 1, 1000), 0);
    EXPECT_EQ(comm_device_bytes("shm", 2, 1000), comm_shm_bytes(2, 1000) / 2);
    EXPECT(comm_device_bytes("nccl", 2, 1000) > 100 << 20);
    EXPECT_EQ(comm_device_bytes("p2p", 2, 1000) - comm_device_bytes("nccl", 2, 1000),
              (20 << 20) + 5 * 512 * 4 + (32 << 20) + 5 * 256 * 4);
}
