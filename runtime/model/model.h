/* One rank's model in device memory: weights, KV cache, slots and the buffers of a step, each one arena of the size
 * that the plan says. */
#ifndef TANDEM_MODEL_MODEL_H
#define TANDEM_MODEL_MODEL_H

#include <stdatomic.h>

#include "kernels/kernels.h"
#include "parallel/comm.h"
#include "runtime/format/safetensors.h"
#include "runtime/model/batch.h"
#include "runtime/model/plan.h"
#include "runtime/model/weights.h"

struct model {
    struct model_config config;
    struct shard_model shard;
    enum dtype act;       /* of activations */
    enum dtype delta;     /* of what sublayers add to the residual: batch_delta_dtype(act) */
    uint32_t n_valid_ids; /* logits of ids from here on are left out */
    const struct kernel_ops *kernels;
    struct kernel_device *device;
    const struct comm_ops *comm_ops; /* set by whoever opens the communicator, before the first step */
    struct comm *comm;               /* borrowed */
    /* Where the sums over the ranks of half a step run beside the math of the other half; NULL in a world of 1. */
    struct kernel_stream *side_stream;
    struct model_half {
        struct kernel_event *ready;  /* on the stream that computes: this rank's part of a sum is there */
        struct kernel_event *summed; /* on side_stream */
    } half[STEP_PARTS_MAX];
    struct batch_limits limits;
    struct weights_layout layout;
    struct model_weights weights;
    struct kv_layout kv;
    size_t kv_layer_bytes;
    struct slot_state slots;
    struct batch_buffers buffers;
    void *body; /* device copy of a step's body */
    void *weight_arena;
    void *kv_arena; /* [layer][block][2][G][B][D] */
    void *slot_arena;
    void *activation_arena;
};

struct model_options {
    const struct plan_input *input; /* n_blocks as planned; kernels and device are the ones to use */
    const struct plan *plan;
    uint32_t rank;
    uint32_t n_valid_ids;
    /* for model_load, see struct weights_load */
    const struct checkpoint *checkpoint; /* NULL: made-up weights */
    uint32_t load_threads;
    const atomic_bool *cancelled;
    void (*progress)(void *context, uint64_t done, uint64_t total);
    void *context;
};

/* Allocates the arenas. All of the model is in place, with zeros for weights. Fails as kernel_ops.alloc does. */
enum status model_open(const struct model_options *options, struct model **model);

/* Loads the weights; fails as weights_load does. Steps may run meanwhile, but mean nothing. */
enum status model_load(struct model *model, const struct model_options *options);

/* Frees the arenas; no stream may be using them. NULL is fine. */
void model_close(struct model *model);

/* The cache of one layer. */
void *model_kv_layer(const struct model *model, uint32_t layer);

#endif
