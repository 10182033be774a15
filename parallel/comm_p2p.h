/* Collectives between cards of one host that reach each other's memory. Part of the cuda plug-ins; found through
 * comm_find("p2p").
 *
 * Decode-sized messages go by kernels of our own: every rank pushes its data straight into the others' memory and adds
 * what was pushed into its own, in rank order, in one launch. Larger messages, and everything else, go by comm_nccl,
 * which this communicator opens beneath itself. At open the kernels are proven against NCCL (parallel/comm_proof.h);
 * where they fail, or no card reaches the other, NCCL serves everything. */
#ifndef TANDEM_PARALLEL_COMM_P2P_H
#define TANDEM_PARALLEL_COMM_P2P_H

#include <stddef.h>
#include <stdint.h>

#define COMM_P2P_MAX_WORLD 8

/* Of the group's shared memory: NCCL's meeting, then ours, in which the ranks hand out their memory. */
#define COMM_P2P_MEETING_BYTES 8192

/* The most that one rank may bring to our own kernels: what it pushes grows with the world, so this shrinks. */
static inline size_t comm_p2p_most_bytes(uint32_t world) {
    return ((size_t)8 << 20) / world;
}

/* Device memory that a rank's peers push into: two turns of one slot for each rank, in which half of every packet is
 * flags. */
static inline size_t comm_p2p_slots_bytes(uint32_t world) {
    return 2 * world * 2 * comm_p2p_most_bytes(world);
}

#endif
