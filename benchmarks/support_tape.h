/* A step on tape: the forward pass run once against tables of ops that only write down what they are asked for, so that
 * each kind of op can be played back alone, with the very arguments (and so the very weights and caches) it has in the
 * step. That is how a step's time is told apart without a profiler. */
#ifndef TANDEM_BENCHMARKS_SUPPORT_TAPE_H
#define TANDEM_BENCHMARKS_SUPPORT_TAPE_H

#include "runtime/model/model.h"

struct tape;

struct tape_kind {
    char name[32]; /* "qkv", "attention", "all_reduce", ... */
    bool collective;
    uint32_t count; /* in a step */
    double bytes;   /* read from memory by all of them: weights, or the cache up to each row's length */
    double flops;   /* of matrix products and of attention's */
};

/* What the arguments do not tell the host. */
struct tape_load {
    uint64_t kv_tokens; /* the rows' lengths after the step, summed up */
    uint64_t pairs;     /* for each token the positions that it attends to, summed up */
};

/* Writes down forward_enqueue of `batch`. Nothing runs. */
enum status tape_record(struct model *model, struct kernel_stream *stream, const struct step_batch *batch,
                        const struct tape_load *load, struct tape **tape);
void tape_free(struct tape *tape);

uint32_t tape_kinds(const struct tape *tape);
const struct tape_kind *tape_kind(const struct tape *tape, uint32_t kind);

/* Enqueues all ops of a kind in the order of the step. */
enum status tape_play(const struct tape *tape, uint32_t kind);

#endif
