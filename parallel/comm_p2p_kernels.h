/* The kernels of comm_p2p. One call is one *epoch*, a number that lies in device memory and that the kernels move on
 * themselves: a graph holds none.
 *
 * Small messages travel in packets of 16 bytes, {data, flag, data, flag}, the flag being the epoch: a packet tells by
 * itself that it has come, so nothing has to be fenced or signalled. Larger ones travel plainly, in half the bytes, and
 * each block tells its namesakes on the peers with one flag that all of its data is there.
 *
 * A rank's memory holds two turns of slots, used by epochs in turns. Two are enough: a rank pushes for epoch e + 2 only
 * after its stream has passed epoch e + 1, for which it needed every peer's data of e + 1, which the peer pushed after
 * its stream had passed epoch e. That rests on stream order (of several streams, on the events
 * between them): a kernel that was launched early (programmatic dependent launch) waits for the one before it first.
 *
 * The pipe has its own count, of rows: a block pushes its next row, raises that row's flag, and waits for the flag of
 * the row before, of which it takes the sum. Four slots are enough: it pushes row k + 4 after the peer's flag of row
 * k + 2 came, which the peer raised after it had taken the sum of row k. */
#ifndef TANDEM_PARALLEL_COMM_P2P_KERNELS_H
#define TANDEM_PARALLEL_COMM_P2P_KERNELS_H

#ifdef __cplusplus
extern "C" {
#endif

#include "kernels/kernels.h"
#include "parallel/comm_p2p.h"

/* Epochs begin shortly before the number wraps, so that every start passes the wrap. */
#define P2P_FIRST_EPOCH 0xffffffc0u

/* A word of pinned host memory that spinning kernels look at. */
enum p2p_state {
    P2P_GOES_ON,
    P2P_ABORTED, /* by the host */
    P2P_GAVE_UP, /* by a kernel that waited for longer than `patience` */
};

/* What a kernel knows of the group; copied into each launch. */
struct p2p_group {
    uint32_t rank, world;
    char *memory[COMM_P2P_MAX_WORLD]; /* of every rank, as this card sees it: [2][world] slots of packets, [2][world]
                                       * plain slots, [2][world][COMM_P2P_MAX_BLOCKS] flags, own epochs likewise, the
                                       * pipe */
    size_t packets_bytes;             /* of a message that travels in packets, at most */
    size_t most_bytes;                /* of any that goes through slots */
    size_t words_at, pipe_at;         /* where in a rank's memory the flags and the pipe lie */
    volatile uint32_t *state;         /* enum p2p_state in pinned host memory */
    uint32_t patience;                /* looks at `state` before a kernel gives up; 0: it never does */
    uint32_t max_blocks;              /* that run at once on every rank's card */
};

/* Each enqueues one kernel. `count` is a multiple of 8, `bytes` of 8, the data at most group->most_bytes (of the gather
 * packets_bytes), and pointers are aligned to 16 bytes (send and recv of the gather to 8). Ranks must call in the same
 * order. */
enum status p2p_all_reduce(const struct p2p_group *group, struct kernel_stream *stream, void *data, size_t count,
                           enum dtype dtype);
enum status p2p_all_gather(const struct p2p_group *group, struct kernel_stream *stream, const void *send, void *recv,
                           size_t bytes);

/* args->delta is the data, hidden a multiple of 8 and at most P2P_NORM_MAX_HIDDEN, out not NULL. */
enum status p2p_all_reduce_add_rmsnorm(const struct p2p_group *group, struct kernel_stream *stream,
                                       const struct op_rmsnorm *args);
#define P2P_NORM_MAX_HIDDEN 8192u

/* The same between two ranks, through the pipe: any number of rows. */
enum status p2p_pipe_add_rmsnorm(const struct p2p_group *group, struct kernel_stream *stream,
                                 const struct op_rmsnorm *args);

#ifdef __cplusplus
}
#endif

#endif
