/* The boundary between the model and the machine: one const table per backend, found by name, so that `cpu` and `cuda`
 * live side by side in one program and one test.
 *
 * Contract. A math op only enqueues work on its stream: no allocation, no wait. Its argument struct may be reused as
 * soon as the call returns; what its pointers point to must live until the stream has passed. Ops on one stream run in
 * order. Arguments are checked once, for every backend, by the kernels_* wrappers below (kernels.c); backends trust
 * them. Products accumulate in fp32; softmax, norms, rope and the sampler are fp32 throughout. Memory that was never
 * written never enters arithmetic (0 x NaN is NaN). Pointers are device pointers unless a comment says host, aligned
 * to 64 bytes at the start of each buffer.
 *
 * On the cpu backend one output is one fixed order of operations, the same in the C, AVX2 and AVX-512 code and for any
 * number of threads, rows and chunks: a row's bits depend on its own tokens alone.
 *
 * Letters: T tokens of the step, R rows, S sampled rows, H hidden size, D head size, Q and G query and KV heads of this
 * rank, F feed-forward columns of this rank, V vocabulary rows of this rank, B KV block size, L slots. */
#ifndef TANDEM_KERNELS_KERNELS_H
#define TANDEM_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"
#include "runtime/base/status.h"
#include "runtime/base/step.h"

/* What every backend serves of a model: one head lies on a stack or in registers, a bit for each id in fast memory. */
#define KERNEL_MAX_HEAD_DIM 256 /* of Llama and Qwen2 models: 32 .. 128 */
#define KERNEL_MAX_VOCABULARY (320 * 1024)

struct kernel_device;
struct kernel_stream;
struct kernel_event;
struct kernel_graph;

struct kernel_device_config {
    int ordinal;      /* which card; the cpu backend has only 0 */
    uint32_t threads; /* cpu: compute threads of this rank, >= 1 */
    int first_cpu;    /* cpu: threads are pinned to first_cpu, first_cpu + 1, ...; -1 leaves them free */
    bool spin;        /* cpu: threads spin for work; right only while all ranks' threads fit the free cores */
    /* cuda: a row's bits depend on its own tokens alone, whatever the batch and the chunks, as they always do on the
     * cpu backend; products of many rows and attention of few take longer then. */
    bool deterministic;
};

/* Weights of one matrix, y = x W^T: N rows (outputs) of K columns (inputs), row-major. */
struct weight {
    enum dtype format;
    uint32_t n;
    uint32_t k;
    const void *data; /* [n][k] */
};

/* What to warm in the caches while something else is waited for; {NULL, 0} is none, and a backend may ignore it. */
struct kernel_prefetch {
    const void *data;
    size_t bytes;
};

/* The paged KV cache of one layer: [n_blocks][2: K, V][G][B][D]. */
struct kv_layout {
    enum dtype dtype;
    uint32_t n_blocks;
    uint32_t block_size; /* B, a power of two */
    uint32_t n_heads;    /* G */
    uint32_t head_dim;   /* D */
};

/* Elements between two blocks of one layer. */
static inline size_t kv_block_elements(const struct kv_layout *layout) {
    return (size_t)2 * layout->n_heads * layout->block_size * layout->head_dim;
}

/* Device memory that outlives steps: what is known of each slot.
 *
 * A padding row is a row of the padding slot with q_len 1. commit leaves that slot alone, so its len stays 0 and every
 * padding row is the token ids[L - 1][0] at position 0, whose key and value go to block 0, which no sequence is given.
 * The padding rows of a step lie side by side. */
struct slot_state {
    uint32_t n_slots;               /* L; the last one is the padding slot of graphs: its block table is all block 0 */
    uint32_t max_len;               /* positions per slot */
    uint32_t max_blocks;            /* ceil(max_len / B) */
    uint32_t *len;                  /* [L] positions in the KV cache */
    uint32_t *ids;                  /* [L][max_len + 1] */
    uint32_t *block_table;          /* [L][max_blocks] */
    struct step_sampling *sampling; /* [L] */
    struct step_bias *bias;         /* [L][STEP_MAX_LOGIT_BIAS] */
};

/* Applies the writes of a step to the slots, in the order inits, runs, blocks. The arrays are device copies of the
 * step body's. A slot's bias entries are copied from bias[sampling.bias_first ...]. */
struct op_slot_update {
    struct slot_state slots;
    const struct step_init *inits;
    const struct step_run *runs;
    const uint32_t *ids;
    const struct step_block *blocks;
    const struct step_bias *bias;
    uint32_t n_inits, n_runs, n_ids, n_blocks, n_bias;
};

/* Turns rows into what the other ops read. Per token: its id, position and row. Per row: its first token and the KV
 * length once it is computed. Per sampled row, in row order: the index of its last token, its slot, and that length.
 *
 * A part of a step is prepared by itself: R, T and S are the part's. Its first row begins behind the tokens that an
 * earlier part took, its last row ends with the part; a row is sampled in the part that holds its last token. Tokens
 * and rows count from the part's first, sample_token from the step's. */
struct op_batch_prepare {
    struct slot_state slots;
    const struct step_row *rows; /* [R] */
    uint32_t n_rows, n_tokens, n_sampled;
    uint32_t first_token;   /* of the part in the step; 0 for a whole step, like the next */
    uint32_t skip;          /* tokens of the first row in earlier parts, fewer than it has */
    uint32_t *row_start;    /* out [R + 1] */
    uint32_t *row_slot;     /* out [R] */
    uint32_t *row_kv_len;   /* out [R] */
    uint32_t *token_id;     /* out [T] */
    uint32_t *token_pos;    /* out [T] */
    uint32_t *token_row;    /* out [T] */
    uint32_t *sample_token; /* out [S] */
    uint32_t *sample_slot;  /* out [S] */
    uint32_t *sample_len;   /* out [S]: row_kv_len of the row, so many ids does its slot hold */
};

/* out[t] = table[token_id[t] - first_id] where that row is ours, else zeros. */
struct op_embed {
    const uint32_t *token_id; /* [T] */
    struct weight table;      /* [V][H] */
    uint32_t first_id;
    uint32_t n_tokens;
    enum dtype out_dtype;
    void *out; /* [T][H] */
};

/* residual += delta (when delta is not NULL), then out = residual / rms(residual) * weight.
 * rms(x) = sqrt(mean(x^2) + eps). */
struct op_rmsnorm {
    float *residual;   /* [T][H] fp32, in and out */
    const void *delta; /* [T][H] or NULL */
    enum dtype delta_dtype;
    const void *weight; /* [H] */
    enum dtype weight_dtype;
    void *out; /* [T][H], or NULL to add only */
    enum dtype out_dtype;
    uint32_t n_tokens;
    uint32_t hidden;
    float eps;
};

/* out[m][n] = sum_k x[m][k] w[n][k] + bias[n]. out never overlaps x. */
struct op_gemm {
    struct weight weight; /* [N][K] */
    const void *bias;     /* [N] in bias_dtype, or NULL */
    enum dtype bias_dtype;
    const void *x; /* [M][K], rows x_stride elements apart */
    enum dtype x_dtype;
    size_t x_stride;
    void *out; /* [M][N], rows out_stride elements apart */
    enum dtype out_dtype;
    size_t out_stride;
    uint32_t m;
    struct kernel_prefetch prefetch;
};

/* Rotates the queries and keys of `qkv` in place by their positions (half-split layout: element i pairs with i + D/2)
 * and writes keys and values to the cache. */
struct op_rope_kv {
    void *qkv; /* [T][(Q + 2 G) D]: queries, keys, values */
    enum dtype dtype;
    const float *rope;           /* [max_len][D]: cos of D/2 angles, then their sines */
    const uint32_t *token_pos;   /* [T] */
    const uint32_t *token_row;   /* [T] */
    const uint32_t *row_slot;    /* [R] */
    const uint32_t *block_table; /* [L][max_blocks] */
    uint32_t max_blocks;
    uint32_t n_tokens;
    uint32_t n_q_heads; /* Q */
    struct kv_layout kv;
    void *cache; /* of this layer */
};

/* Causal attention of each token over positions 0 .. its own, from the cache. Query head h reads KV head
 * q_to_kv[h]. */
struct op_attention {
    const void *qkv;            /* as op_rope_kv left it */
    enum dtype dtype;           /* of qkv and out */
    void *out;                  /* [T][Q D] */
    const uint32_t *row_start;  /* [R + 1] */
    const uint32_t *row_slot;   /* [R] */
    const uint32_t *row_kv_len; /* [R] */
    const uint32_t *block_table;
    uint32_t max_blocks;
    uint32_t n_rows, n_tokens;
    uint32_t n_q_heads;
    const uint32_t *q_to_kv; /* [Q], values < G */
    struct kv_layout kv;
    const void *cache;
    float scale;         /* usually 1 / sqrt(D) */
    uint32_t max_kv_len; /* a host-known bound on row_kv_len of this step */
    void *workspace;     /* kernel_ops.attention_workspace bytes */
    struct kernel_prefetch prefetch;
};

/* out[t][f] = silu(gate_up[t][f]) * gate_up[t][F + f], silu(x) = x / (1 + e^-x). */
struct op_swiglu {
    const void *gate_up; /* [T][2 F] */
    void *out;           /* [T][F] */
    enum dtype dtype;
    uint32_t n_tokens;
    uint32_t n_columns; /* F */
};

/* gemm and swiglu in one: out[m][f] = silu(y[m][f]) * y[m][F + f], where y is what `gemm` says and N is 2 F. Whether y
 * is rounded to its format on the way is the backend's choice. */
struct op_gemm_swiglu {
    struct op_gemm gemm; /* its out [M][2 F], rows not apart, is room for y; what it holds afterwards means nothing */
    void *out;           /* [M][F] in gemm.out_dtype */
};

/* out[i] = x[index[i]], rows of `row_bytes`. */
struct op_gather_rows {
    const void *x;
    const uint32_t *index; /* [n_rows] */
    void *out;
    uint32_t n_rows;
    size_t row_bytes;
};

/* dst[i] = src[i] for `height` rows of `width` bytes at their own strides. */
struct op_copy_2d {
    void *dst;
    size_t dst_stride; /* bytes */
    const void *src;
    size_t src_stride; /* bytes */
    size_t width;      /* bytes */
    size_t height;
};

/* out[r][c] = centre + scale * rng_element(key, first + r * row_step + c), two roundings in fp32 and one to `dtype`:
 * made-up weights, the same bits on every backend, whoever makes which part of them. */
struct op_random {
    void *out; /* [n_rows][n_columns] */
    enum dtype dtype;
    uint32_t n_rows, n_columns;
    uint64_t key;
    uint64_t first;    /* number of the element out[0][0] */
    uint64_t row_step; /* from one row's numbers to the next row's */
    float centre, scale;
};

/* The largest logit of a row and its id, the lowest among equals. A row with NaN or +inf gives value NaN. */
struct token_choice {
    float value;
    uint32_t id;
};

/* Local part of greedy sampling over a vocabulary-parallel head: ids are first_id + column; ids >= n_valid (padding
 * rows of the checkpoint) are left out. A rank with no valid id gives {-inf, first_id}. */
struct op_argmax {
    const float *logits; /* [S][V] */
    uint32_t n_rows;
    uint32_t n_columns; /* V */
    uint32_t first_id;
    uint32_t n_valid;
    struct token_choice *out; /* [S] */
};

/* Merges the choices of all ranks: results[s] = the best of choices[0..world)[s], STEP_RESULT_NONFINITE when one of
 * them is NaN or none is above -inf. */
struct op_argmax_merge {
    const struct token_choice *choices; /* [world][S] */
    uint32_t world;
    uint32_t n_rows;
    struct step_result *results; /* [S] */
};

/* Exact sampling of whole logit rows: bias and penalties, temperature, then top_k, top_p and min_p each on the
 * renormalised distribution of the one before, by threshold search without a candidate cut-off; ties at a threshold
 * are all kept for top_p and min_p, and broken by the lower id for top_k. The draw is inverse-CDF in ascending id
 * order with rng_token_uniform(seed, choice, slot length in ids).
 *
 * In fp32, in this order: bias is added; ids of prompt and output get the repetition penalty; ids of the output lose
 * the frequency penalty once for each occurrence, one after the other, then the presence penalty. Temperature 0 takes
 * the largest, the lowest id among equals. A row that holds NaN or +inf, before or after that, or nothing above -inf,
 * gives STEP_RESULT_NONFINITE, id 0 and no log-probabilities. Ids of probability 0 are not listed among the top. */
struct op_sample {
    float *logits; /* [n_rows][n_columns], overwritten */
    uint32_t n_rows;
    uint32_t n_columns; /* the whole vocabulary */
    uint32_t n_valid;
    const uint32_t *slot;  /* [n_rows] */
    const uint32_t *n_ids; /* [n_rows] ids the slot holds, that is the position of the token to draw */
    struct slot_state slots;
    struct step_result *results; /* [n_rows] */
};

/* Ends a step: every row's slot has q_len more positions in the cache, and a sampled row's new id is appended to the
 * slot's ids while its position is below max_len. Rows of the padding slot change nothing. */
struct op_commit {
    struct slot_state slots;
    const struct step_row *rows; /* [R] */
    uint32_t n_rows;
    const struct step_result *results; /* [S], in order of the sampled rows */
    uint32_t n_sampled;
};

enum kernel_copy { KERNEL_COPY_TO_DEVICE, KERNEL_COPY_TO_HOST, KERNEL_COPY_ON_DEVICE };

struct kernel_ops {
    const char *name;

    /* ---- device services; all may be called from any thread, a device's streams from one thread at a time */
    enum status (*open)(const struct kernel_device_config *config, struct kernel_device **device);
    void (*close)(struct kernel_device *device); /* after its streams, events and memory are gone; NULL is fine */
    enum status (*memory_info)(struct kernel_device *device, size_t *free_bytes, size_t *total_bytes);
    enum status (*alloc)(struct kernel_device *device, size_t bytes, void **memory); /* zeroed, 256-byte aligned */
    void (*free)(struct kernel_device *device, void *memory);
    enum status (*host_alloc)(struct kernel_device *device, size_t bytes, void **memory); /* pinned host memory */
    void (*host_free)(struct kernel_device *device, void *memory);
    enum status (*stream_create)(struct kernel_device *device, struct kernel_stream **stream);
    /* One for copies, fills, host calls, `random`, `rmsnorm` and collectives alone: it takes none of what the other
     * math ops' libraries want. */
    enum status (*copy_stream_create)(struct kernel_device *device, struct kernel_stream **stream);
    void (*stream_destroy)(struct kernel_stream *stream);     /* waits for it first */
    enum status (*stream_sync)(struct kernel_stream *stream); /* waits; the first error of the stream comes out here */
    enum status (*event_create)(struct kernel_device *device, struct kernel_event **event);
    void (*event_destroy)(struct kernel_event *event);
    enum status (*event_record)(struct kernel_event *event, struct kernel_stream *stream);
    enum status (*event_wait)(struct kernel_stream *stream, struct kernel_event *event); /* the stream waits */
    enum status (*event_sync)(struct kernel_event *event); /* the caller waits; passes at once if never recorded */
    /* Between begin and end, ops on the stream are recorded, not run. A graph replays the recorded arguments. */
    enum status (*graph_begin)(struct kernel_stream *stream);
    enum status (*graph_end)(struct kernel_stream *stream, struct kernel_graph **graph);
    enum status (*graph_launch)(struct kernel_graph *graph, struct kernel_stream *stream);
    void (*graph_destroy)(struct kernel_graph *graph);
    enum status (*copy)(struct kernel_stream *stream, void *dst, const void *src, size_t bytes, enum kernel_copy kind);
    enum status (*fill)(struct kernel_stream *stream, void *dst, int byte, size_t bytes);
    /* Calls function(copy of argument) on a host thread in stream order; at most KERNEL_HOST_CALL_BYTES. */
    enum status (*host_call)(struct kernel_stream *stream, void (*function)(void *argument), const void *argument,
                             size_t bytes);

    /* ---- what the backend wants */
    /* The least tokens of half a step. A step of twice as many may be cut in two, so that the sums over the ranks of
     * one half run beside the math of the other; of fewer, products lose more than that gains. UINT32_MAX: of any. */
    uint32_t half_step_tokens;
    enum dtype (*activation_dtype)(enum dtype weights); /* of qkv, norms' outputs and feed-forward activations */
    size_t (*attention_workspace)(struct kernel_device *device, uint32_t max_tokens, uint32_t n_q_heads,
                                  uint32_t head_dim, uint32_t max_kv_len); /* bytes */
    /* Device memory that is taken without alloc: by a stream (not by one for copies), and by a graph of so many ops.
     * The device may be NULL for an answer that holds for any. */
    size_t (*stream_bytes)(struct kernel_device *device);
    size_t (*graph_bytes)(struct kernel_device *device, uint32_t n_ops);

    /* ---- math */
    enum status (*slot_update)(struct kernel_stream *stream, const struct op_slot_update *args);
    enum status (*batch_prepare)(struct kernel_stream *stream, const struct op_batch_prepare *args);
    enum status (*embed)(struct kernel_stream *stream, const struct op_embed *args);
    enum status (*rmsnorm)(struct kernel_stream *stream, const struct op_rmsnorm *args);
    enum status (*gemm)(struct kernel_stream *stream, const struct op_gemm *args);
    enum status (*rope_kv)(struct kernel_stream *stream, const struct op_rope_kv *args);
    enum status (*attention)(struct kernel_stream *stream, const struct op_attention *args);
    enum status (*swiglu)(struct kernel_stream *stream, const struct op_swiglu *args);
    enum status (*gemm_swiglu)(struct kernel_stream *stream, const struct op_gemm_swiglu *args);
    enum status (*gather_rows)(struct kernel_stream *stream, const struct op_gather_rows *args);
    enum status (*copy_2d)(struct kernel_stream *stream, const struct op_copy_2d *args);
    enum status (*random)(struct kernel_stream *stream, const struct op_random *args);
    enum status (*argmax)(struct kernel_stream *stream, const struct op_argmax *args);
    enum status (*argmax_merge)(struct kernel_stream *stream, const struct op_argmax_merge *args);
    enum status (*sample)(struct kernel_stream *stream, const struct op_sample *args);
    enum status (*commit)(struct kernel_stream *stream, const struct op_commit *args);
};

#define KERNEL_HOST_CALL_BYTES 256

/* The backend of that name, its math ops wrapped in the shared argument checks (a bad argument is a programmer's error
 * and aborts with the op and field named). NULL when there is none; the failure text says why. "cpu" is always there;
 * "cuda" comes from the plug-in (kernels/plugin.h) that serves card `ordinal`, and a process uses one plug-in only. */
const struct kernel_ops *kernels_find_for(const char *name, int ordinal);

/* The same for card 0. */
const struct kernel_ops *kernels_find(const char *name);

/* The same table without checks; for tests that poison arguments. */
const struct kernel_ops *kernels_find_unchecked(const char *name);

struct kernel_card {
    char name[64];
    int arch; /* 70, 80, 90: compute capability times ten */
    size_t free_bytes, total_bytes;
};

/* What a card of the cuda backend is. Fails as plugin_for_card does: STATUS_NOT_FOUND behind the last card. */
enum status kernels_card(int ordinal, struct kernel_card *card);

#endif
