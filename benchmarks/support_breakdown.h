/* Where the time of a step goes: the recorded step back to back, and each kind of its ops alone. */
#ifndef TANDEM_BENCHMARKS_SUPPORT_BREAKDOWN_H
#define TANDEM_BENCHMARKS_SUPPORT_BREAKDOWN_H

#include "benchmarks/support_ceiling.h"
#include "benchmarks/support_group.h"
#include "benchmarks/support_tape.h"

#define BREAKDOWN_KINDS 32

/* A step of `rows` slots, 0 and up, that stand at `pos` and compute q_len tokens each, all of them known. */
struct breakdown_step {
    uint32_t rows, q_len, pos;
    bool greedy;
    uint32_t max_kv_len;
};

struct breakdown {
    double graph_us;  /* of the whole step; this and what follows is 0 when it was not measured */
    double launch_us; /* what one launch of it takes of the calling thread */
    double bytes, flops;
    uint32_t n_kinds;
    struct {
        struct tape_kind kind;
        double us; /* of all ops of the kind */
    } kinds[BREAKDOWN_KINDS];
};

/* Collective. The slots must have been given out with block tables that reach `launches` steps further; what is in
 * their caches does not matter. Nothing may be in flight; afterwards the slots are worth nothing. The whole step is
 * launched `launches` times; 0 leaves graph_us at 0. */
void breakdown_run(struct rank *rank, const struct breakdown_step *step, uint32_t launches,
                   struct breakdown *breakdown);

/* The step's kinds of op, its bytes and flops, without measuring anything. */
void breakdown_count(struct rank *rank, const struct breakdown_step *step, struct breakdown *breakdown);

/* The least time for `bytes` and `flops`, in us: the longer of the two, as if they overlapped. */
double breakdown_floor_us(const struct ceiling *ceiling, double bytes, double flops);

/* Time in collectives, in us. */
double breakdown_collective_us(const struct breakdown *breakdown);

/* Prints one row for each kind, and one for their sum. */
void breakdown_report(const struct breakdown *breakdown, const struct ceiling *ceiling, uint32_t world,
                      const struct breakdown_step *step);

#endif
