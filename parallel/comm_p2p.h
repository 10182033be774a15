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

/* The most that one rank may bring to our own kernels: what it pushes grows with the world, so this shrinks. Of that,
 * messages up to the first size travel as packets, larger ones plainly (comm_p2p_kernels.h). */
static inline size_t comm_p2p_packets_bytes(uint32_t world) {
    return ((size_t)1 << 20) / world / 256 * 256;
}

static inline size_t comm_p2p_most_bytes(uint32_t world) {
    return ((size_t)8 << 20) / world / 256 * 256;
}

/* Words behind the slots: flags of the blocks of each rank, in two turns, and this rank's epochs. */
#define COMM_P2P_MAX_BLOCKS 512u
static inline size_t comm_p2p_words(uint32_t world) {
    return (2 * (size_t)world + 1) * COMM_P2P_MAX_BLOCKS;
}

/* Device memory that a rank's peers push into: two turns of slots for each rank. Half of every packet is flags. */
static inline size_t comm_p2p_memory_bytes(uint32_t world) {
    return (size_t)2 * world * (2 * comm_p2p_packets_bytes(world) + comm_p2p_most_bytes(world)) +
           comm_p2p_words(world) * sizeof(uint32_t);
}

#endif
