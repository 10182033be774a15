/* The math ops of a backend, measured alone at the shapes of a model that is split over TP ranks. */
#ifndef TANDEM_BENCHMARKS_SUPPORT_OPS_H
#define TANDEM_BENCHMARKS_SUPPORT_OPS_H

#include "benchmarks/support_ceiling.h"
#include "kernels/kernels.h"

#define INTS_BYTES ((size_t)16 << 20)

struct model_shape {
    const char *name;
    uint32_t hidden, q_heads, kv_heads, head_dim, ffn, vocab;
};

/* What differs between a processor and a card. */
struct scale {
    size_t weight_bytes;
    const uint32_t *rows; /* of products, ascending, 0 ends them */
    uint32_t prefill;     /* tokens of one prompt */
    uint32_t context;     /* of decode rows */
    uint32_t head_rows;   /* most rows that go through the head */
};

struct bench {
    const struct kernel_ops *ops;
    struct kernel_device *device;
    struct kernel_stream *stream;
    const struct scale *scale;
    struct ceiling ceiling;
    enum dtype act, delta; /* of activations, and of what is added to the residual */
    const char *only;
    const char *model; /* in the rows that are printed */
    uint32_t tp;
    char *weights; /* scale->weight_bytes of small numbers; caches, too */
    char *x, *out; /* the largest operands that any shape has */
    char *logits;  /* fp32, of head_rows rows */
    char *ints;    /* INTS_BYTES for the small arrays of one op */
    size_t ints_used;
};

/* `rows` rows of `q_len` tokens each, at the end of `context` positions. */
struct rows {
    uint32_t rows, q_len, context;
};

/* Each measures its op at the model's shape and prints a row of the report, unless bench->only names another op.
 * bench_attention does rope_kv as well, and leaves out what the caches' buffer cannot hold. */
void bench_products(struct bench *bench, const struct model_shape *shape);
void bench_rmsnorm(struct bench *bench, const struct model_shape *shape, uint32_t tokens);
void bench_swiglu(struct bench *bench, const struct model_shape *shape, uint32_t tokens);
void bench_attention(struct bench *bench, const struct model_shape *shape, struct rows rows);
void bench_argmax(struct bench *bench, const struct model_shape *shape, uint32_t rows);
void bench_sample(struct bench *bench, const struct model_shape *shape, uint32_t rows);

#endif
