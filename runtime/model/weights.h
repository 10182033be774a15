/* A rank's weights: where each lies in the rank's one arena, and how they get there.
 *
 * Matrices are kept in the model's dtype, norms and biases in fp32 (they are small, and every stored format fits fp32
 * exactly). The arena also holds two tables that belong to the model: the rope angles and the map from query to KV
 * heads. Every array starts at a multiple of 256 bytes. */
#ifndef TANDEM_MODEL_WEIGHTS_H
#define TANDEM_MODEL_WEIGHTS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "runtime/format/safetensors.h"
#include "runtime/model/shard.h"

/* Offsets in the arena, in bytes. */
struct weights_layout {
    size_t place[SHARD_PLACES]; /* of layer 0 for the parts of a layer */
    size_t layer_bytes;         /* from one layer to the next */
    size_t rope;                /* fp32 [max_len][D] */
    size_t q_to_kv;             /* uint32_t [Q] */
    size_t bytes;               /* of the whole arena */
};

void weights_layout_make(const struct model_config *config, const struct shard_model *shard, enum dtype dtype,
                         uint32_t max_len, struct weights_layout *layout);

struct layer_weights {
    const float *attn_norm;    /* [H] */
    struct weight qkv;         /* [(Q + 2 G) D][H] */
    const float *qkv_bias;     /* [(Q + 2 G) D] or NULL */
    struct weight o;           /* [H][Q D] */
    const float *o_bias;       /* [H] or NULL: on rank 0 only */
    const float *ffn_norm;     /* [H] */
    struct weight gate_up;     /* [2 F][H] */
    const float *gate_up_bias; /* [2 F] or NULL */
    struct weight down;        /* [H][F] */
    const float *down_bias;    /* [H] or NULL: on rank 0 only */
};

struct model_weights {
    struct weight embed; /* [V][H] */
    struct weight head;  /* [V][H]; of a tied model the same memory as embed */
    const float *final_norm;
    const float *rope;
    const uint32_t *q_to_kv;
    struct layer_weights *layers; /* host memory, [n_layers] */
};

/* The arrays of an arena as the forward pass wants them. Release with weights_free (the arena stays). */
void weights_view(const struct model_config *config, const struct shard_model *shard, enum dtype dtype,
                  const struct weights_layout *layout, void *arena, struct model_weights *weights);
void weights_free(struct model_weights *weights);

struct weights_load {
    const struct model_config *config;
    const struct shard_model *shard;
    const struct weights_layout *layout;
    enum dtype dtype;
    uint32_t max_len; /* rows of the rope table */
    void *arena;      /* device memory, layout->bytes long */
    const struct kernel_ops *kernels;
    struct kernel_device *device;
    uint32_t threads;             /* that read and convert, >= 1 */
    const atomic_bool *cancelled; /* once true the rest is not wanted any more; may be NULL */
    /* Called from any of them, one at a time, with bytes of the checkpoint read so far and in all; may be NULL. */
    void (*progress)(void *context, uint64_t done, uint64_t total);
    void *context;
};

/* Reads this rank's slices from `checkpoint`, in the order in which they lie in its files, converts and copies them to
 * the arena, and fills in the two tables. With `checkpoint` NULL the weights are made up instead: small random numbers
 * that are a function of tensor and element, so that every world has the same model. Fails with STATUS_INVALID for a
 * missing tensor, one that does not belong to the model, or one of another shape, STATUS_UNSUPPORTED for a dtype that
 * is not served, STATUS_LIMIT for a value beyond float16's range (the text names the tensor), STATUS_IO. */
enum status weights_load(const struct weights_load *load, const struct checkpoint *checkpoint);

#endif
