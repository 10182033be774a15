/* Collectives between cards of one host that reach each other's memory. Part of the cuda plug-ins; found through
 * comm_find("p2p").
 *
 * Decode-sized messages go by kernels of our own: every rank pushes its data straight into the others' memory and adds
 * what was pushed into its own, in rank order, in one launch. Between two ranks the sums of long prompts do so too, row
 * by row through a pipe; among more, pushing everything to everyone costs more than a ring. Everything else goes by
 * comm_nccl, which this communicator opens beneath itself. At open the kernels are proven against NCCL
 * (parallel/comm_proof.h); where they fail, or no card reaches the other, NCCL serves everything. */
#ifndef TANDEM_PARALLEL_COMM_P2P_H
#define TANDEM_PARALLEL_COMM_P2P_H

#include <stddef.h>
#include <stdint.h>

#define COMM_P2P_MAX_WORLD 8

/* Of the group's shared memory: NCCL's meeting, then ours, in which the ranks hand out their memory. */
#define COMM_P2P_MEETING_BYTES 8192

/* The most that one rank may bring to the slots: what it pushes grows with the world, so this shrinks. Of that,
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

/* The pipe of two ranks: each block has slots for rows of its namesake on the peer, a flag for each, and a count of the
 * rows so far. */
#define COMM_P2P_PIPE_BLOCKS 256u
#define COMM_P2P_PIPE_SLOTS 4u
#define COMM_P2P_PIPE_SLOT_BYTES ((size_t)32 << 10) /* a row of P2P_NORM_MAX_HIDDEN in fp32 */
static inline size_t comm_p2p_pipe_bytes(uint32_t world) {
    return world != 2 ? 0
                      : COMM_P2P_PIPE_BLOCKS *
                            (COMM_P2P_PIPE_SLOTS * (COMM_P2P_PIPE_SLOT_BYTES + sizeof(uint32_t)) + sizeof(uint32_t));
}

/* Where the words and the pipe begin in the device memory that a rank's peers push into. Before them lie two turns of
 * slots for each rank; half of every packet is flags. */
static inline size_t comm_p2p_words_at(uint32_t world) {
    return (size_t)2 * world * (2 * comm_p2p_packets_bytes(world) + comm_p2p_most_bytes(world));
}

static inline size_t comm_p2p_pipe_at(uint32_t world) {
    return comm_p2p_words_at(world) + comm_p2p_words(world) * sizeof(uint32_t);
}

static inline size_t comm_p2p_memory_bytes(uint32_t world) {
    return comm_p2p_pipe_at(world) + comm_p2p_pipe_bytes(world);
}

#endif
