/* Runs the ranks of a group: as forked processes that map one memfd, with a card each or without, or as threads of this
 * process that share one mapping. */
#ifndef TANDEM_TESTS_PARALLEL_SUPPORT_RANKS_H
#define TANDEM_TESTS_PARALLEL_SUPPORT_RANKS_H

#include "parallel/comm.h"
#include "tests/harness/test.h"

/* Of what a group says its rows are, in bf16. */
#define ROW_ELEMENTS 5120u

struct rank_run {
    const struct comm_ops *ops;
    struct comm *comm;
    const struct kernel_ops *kernels;
    struct kernel_device *device;
    struct kernel_stream *stream;
    uint32_t rank;
    uint32_t world;
    uint64_t seed;
    size_t max_bytes;
};

/* A table whose only services are copy and host_call, done at once on the calling thread. */
extern const struct kernel_ops direct_kernels;

/* Calls body once per rank with an open comm; fails the test when a rank fails. `kernels` is direct_kernels or a real
 * backend. */
void run_as_processes(const struct kernel_ops *kernels, uint32_t world, size_t max_bytes, bool spin, uint64_t seed,
                      void (*body)(struct rank_run *run));
/* The same on test_max_world() cards, with that communicator. */
void run_on_cards(const char *comm, size_t max_bytes, void (*body)(struct rank_run *run));
void run_as_threads(uint32_t world, size_t max_bytes, bool spin, uint64_t seed, void (*body)(struct rank_run *run));

/* Element i of an array in that format. */
static inline void put(void *data, size_t i, float value, enum dtype dtype) {
    if (dtype == DTYPE_F32) {
        ((float *)data)[i] = value;
    } else {
        ((uint16_t *)data)[i] = dtype == DTYPE_BF16 ? f32_to_bf16(value) : f32_to_f16(value);
    }
}

static inline float get(const void *data, size_t i, enum dtype dtype) {
    if (dtype == DTYPE_F32) {
        return ((const float *)data)[i];
    }
    uint16_t half = ((const uint16_t *)data)[i];
    return dtype == DTYPE_BF16 ? bf16_to_f32(half) : f16_to_f32(half);
}

#endif
