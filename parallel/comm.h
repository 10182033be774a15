/* Collectives of one tensor-parallel group: one process per rank, one table per transport.
 *
 * Collectives are enqueued on a stream like any kernel, in the same order on every rank, and act on device memory of
 * the kernels they were opened with. They may go on several streams while events keep them in that order. Sums are
 * taken in fp32 in rank order 0 .. world-1 with one rounding at the end, so every rank holds the same bits (NCCL is
 * asked only for the latter). Sums and what they travel in have one format; device buffers begin at multiples of 16
 * bytes, those of a gather at multiples of 8. A rank that never comes leaves the others waiting: the host's watchdog
 * kills the group, so no collective times out by itself, but every wait ends with an error once `abort` was called. */
#ifndef TANDEM_PARALLEL_COMM_H
#define TANDEM_PARALLEL_COMM_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

#define COMM_MAX_WORLD 16

struct comm;

struct comm_config {
    uint32_t rank;
    uint32_t world;
    const struct kernel_ops *kernels;
    struct kernel_device *device;
    size_t max_bytes; /* the largest all_reduce, and the most one rank sends in any other collective */
    /* Decode-sized sums are of some rows of so many elements in this format; a communicator that has a choice of ways
     * proves and times them for those. 0: it has no choice. */
    size_t row_elements;
    enum dtype row_dtype;
    int memory_fd;       /* the group's shared memory, comm_memory_bytes() long, zeroed; borrowed. -1: none is needed */
    bool spin;           /* comm_shm: spin between arrivals; right only while all ranks' threads fit the free cores */
    uint64_t timeout_ns; /* of open itself, which is collective */
};

/* What a communicator found out at open, for the log and the metrics. */
struct comm_report {
    const char *serves;   /* what serves decode-sized sums: "p2p", "nccl" */
    size_t own_bytes;     /* the largest sum that proven kernels of our own serve; 0: none */
    float row_us;         /* of one row's all_reduce_add_rmsnorm in a graph, on the slowest rank; 0: not measured */
    float trusted_row_us; /* the same by the communicator that it was proven against */
};

struct comm_ops {
    const char *name;
    /* Collective: returns when every rank has called it, or fails naming the ranks that did not come. */
    enum status (*open)(const struct comm_config *config, struct comm **comm);
    void (*close)(struct comm *comm);
    /* In place: data[i] = sum over ranks. */
    enum status (*all_reduce)(struct comm *comm, struct kernel_stream *stream, void *data, size_t count,
                              enum dtype dtype);
    /* recv = the ranks' `bytes` from send, in rank order; recv holds world * bytes. */
    enum status (*all_gather)(struct comm *comm, struct kernel_stream *stream, const void *send, void *recv,
                              size_t bytes);
    /* send holds one part for each rank, in rank order, send_bytes[r] long; recv likewise. Every rank must know both
     * (send_bytes[r] here is recv_bytes[self] there). */
    enum status (*all_to_all)(struct comm *comm, struct kernel_stream *stream, const void *send,
                              const size_t *send_bytes, void *recv, const size_t *recv_bytes);
    enum status (*broadcast)(struct comm *comm, struct kernel_stream *stream, void *data, size_t bytes, uint32_t root);
    /* Waits on the host until all ranks are here. */
    enum status (*barrier)(struct comm *comm);
    /* Ends every wait of this rank's collectives with an error; may be called from any thread. */
    void (*abort)(struct comm *comm);
    /* STATUS_OK while every collective that has run did its work; else the error that ended one of them, after which
     * what the later ones left in memory means nothing. Look before using results. May be called from any thread. */
    enum status (*check)(struct comm *comm);
    /* Optional fusion, NULL means composition: data summed as all_reduce would, then op_rmsnorm with delta = data. What
     * lies in data afterwards means nothing. */
    enum status (*all_reduce_add_rmsnorm)(struct comm *comm, struct kernel_stream *stream, void *data,
                                          const struct op_rmsnorm *args);
    /* Optional; NULL: there is nothing to tell. */
    void (*report)(const struct comm *comm, struct comm_report *report);
};

/* "self" (world 1), "shm" (the cpu backend), "p2p" and "nccl" (cards; once kernels_find_for has loaded their plug-in);
 * else NULL. */
const struct comm_ops *comm_find(const char *name);

/* The communicator of a group on that backend. Own kernels and NCCL share sums out by size and round them differently,
 * so one of them takes all where bits count; at two cards NCCL's sums have one order. */
const char *comm_name_for(const char *backend, uint32_t world, bool deterministic);

/* Bytes of the group's shared memory, 0 when it needs none: comm_shm exchanges everything there, comm_nccl only meets
 * there to learn the id that rank 0 made, and comm_p2p hands out its cards' memory there. */
size_t comm_memory_bytes(const char *name, uint32_t world, size_t max_bytes);

/* Bytes that a communicator takes of what its rank's device has: of comm_shm a share of the group's memory, of
 * comm_nccl about what its channels' buffers take, of comm_p2p what peers push into besides. */
size_t comm_device_bytes(const char *name, uint32_t world, size_t max_bytes);

/* Bytes of shared memory that comm_shm needs for a group. */
size_t comm_shm_bytes(uint32_t world, size_t max_bytes);

#endif
