/* The proof, at start, that a communicator's own kernels may stand in for another communicator that is trusted: on
 * this host, with these cards, they give the same sums, and they are no slower. Runs on any backend. */
#ifndef TANDEM_PARALLEL_COMM_PROOF_H
#define TANDEM_PARALLEL_COMM_PROOF_H

#include "parallel/comm.h"

#define COMM_PROOF_TIMED_MAX 16

/* Gathers are proven up to here, and larger ones left to the trusted communicator. */
#define COMM_PROOF_GATHER_BYTES ((size_t)64 << 10)

struct comm_proof_config {
    const struct comm_config *group; /* rows as there: sizes are whole rows of them */
    const struct comm_ops *own_ops;  /* must serve max_bytes by its own kernels meanwhile */
    struct comm *own;
    const struct comm_ops *trusted_ops;
    struct comm *trusted;
    size_t max_bytes;
    size_t serves_bytes; /* what the own kernels shall serve when they were right and no slower at all sizes */
};

/* One rank's finding. Plain data: the ranks exchange it. */
struct comm_finding {
    uint32_t n_sizes; /* that were checked */
    uint32_t n_timed;
    struct {
        uint64_t bytes;
        float own_us, trusted_us; /* of one all_reduce_add_rmsnorm in a graph */
    } timed[COMM_PROOF_TIMED_MAX];
    char fault[160]; /* "" when all sums were right */
};

/* What all ranks conclude from the findings of all. */
struct comm_verdict {
    size_t max_bytes;         /* the largest all_reduce that the own kernels shall serve; 0: none */
    float own_us, trusted_us; /* the slowest rank's, of the smallest size */
    char text[256];           /* one sentence for the log */
};

/* Collective. Sums of every number of rows up to 32 and of every eighth from there on, as many as max_bytes holds, in
 * the rows' format and in fp32; gathers of the same sizes up to COMM_PROOF_GATHER_BYTES. Fails only when the trusted
 * communicator or the device does. */
enum status comm_prove(const struct comm_proof_config *config, struct comm_verdict *verdict);

/* ---- its parts */

/* What two sums over `world` ranks of values within -1 .. 1 may differ by. Two ranks' sums have one order and one
 * rounding: they must be equal. Those of more may differ by a rounding, at the sum's magnitude, for each rank. */
float comm_proof_bound(enum dtype dtype, uint32_t world);

/* The first of `count` elements that differ by more than `bound`, or `count`. */
size_t comm_proof_compare(const void *own, const void *trusted, size_t count, enum dtype dtype, float bound);

/* The same on every rank for the same findings. Own kernels serve up to the last timed size at which, and at all below
 * it, they were no slower on the slowest rank than the trusted communicator (within a twentieth); `serves_bytes` when
 * that is so of all. */
void comm_proof_conclude(const struct comm_finding *findings, uint32_t world, size_t serves_bytes,
                         const char *trusted_name, struct comm_verdict *verdict);

#endif
