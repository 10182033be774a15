/* The memory plan of a tensor-parallel group: pure arithmetic. What `tandem plan` prints, what the supervisor checks at
 * start and what a worker allocates are these numbers; a worker that would use other ones stops. */
#ifndef TANDEM_MODEL_PLAN_H
#define TANDEM_MODEL_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "runtime/model/batch.h"
#include "runtime/model/shard.h"
#include "runtime/model/weights.h"

struct plan_input {
    const struct model_config *config;
    uint32_t world;
    const char *comm; /* name of the communicator */
    enum dtype dtype; /* of the matrices */
    enum dtype kv_dtype;
    uint32_t max_model_len;
    uint32_t max_num_seqs;           /* rows of a step */
    uint32_t max_num_batched_tokens; /* tokens of a step */
    uint32_t block_size;             /* positions, a power of two */
    uint32_t n_slots;                /* that requests use; the padding slot comes on top */
    size_t max_body_bytes;           /* of a step's body */
    uint32_t n_blocks;               /* KV blocks to have, block 0 among them; 0: as many as fit and can be used */
    uint32_t n_graphs;               /* decode steps that are recorded */
    uint64_t memory_limit_bytes;     /* per rank, the context included; 0: what free_bytes allows */
    uint64_t context_bytes;          /* what a process takes of its device before it asks for anything */
    uint64_t free_bytes; /* of each rank's device next to such a process, or of the host when ranks share it */
    bool balance_layers; /* shard_balance_ffn: the backend cuts steps in halves */
    bool shared_memory;  /* the ranks live in the memory of one host (cpu); else on cards of their own */
    const struct kernel_ops *kernels; /* asked for activation dtype and attention workspace */
    struct kernel_device *device;     /* NULL where the backend's answers do not depend on it */
};

struct plan_rank {
    size_t weight_bytes;     /* the weights' arena */
    size_t kv_block_bytes;   /* of one block, all layers */
    size_t kv_bytes;         /* n_blocks of them */
    size_t activation_bytes; /* batch buffers and the step's body */
    size_t slot_bytes;
    size_t comm_bytes;    /* of the communicator: on the cpu this rank's share of the group's shared memory */
    size_t graph_bytes;   /* recorded steps */
    size_t backend_bytes; /* its streams' libraries */
    size_t total_bytes;   /* of all these; the context comes on top */
};

struct plan {
    uint32_t world;
    uint32_t n_blocks;     /* the least over the ranks; block 0 is never handed out */
    uint64_t kv_tokens;    /* positions in the blocks that are */
    size_t comm_max_bytes; /* for comm_config.max_bytes */
    struct batch_limits batch;
    struct plan_rank rank[SHARD_MAX_WORLD];
};

/* STATUS_LIMIT when the weights, or the KV of one sequence of max_model_len, do not fit; the text says what to lower.
 * STATUS_INVALID for values that cannot be; STATUS_UNSUPPORTED when the model cannot be split over that world, or has
 * larger heads or a larger vocabulary than the kernels serve. */
enum status plan_make(const struct plan_input *input, struct plan *plan);

/* What a rank holds of the model; fails as shard_model_make does. */
enum status plan_shard(const struct plan_input *input, uint32_t rank, struct shard_model *shard);

/* Where the parts of an arena lie: point into `memory`, or only measure when it is NULL. Both return the bytes needed,
 * which are those of the plan. The step's body lies behind the batch buffers, max_body_bytes long. */
size_t plan_slots_place(const struct plan_input *input, void *memory, struct slot_state *slots);
size_t plan_activations_place(const struct plan_input *input, const struct shard_model *shard, void *memory,
                              struct batch_buffers *buffers, void **body);

#endif
