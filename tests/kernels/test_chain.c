/* Ops one after another on one stream, in buffers that each step overwrites: a backend that overlaps its kernels gives
 * the bits of one that waits after each of them, run by run, and in a graph. */
#include <stdlib.h>

#include "runtime/base/alloc.h"
#include "runtime/base/rng.h"
#include "tests/harness/test.h"
#include "tests/kernels/support_rig.h"

#define HIDDEN 1088
#define FFN 640
#define LAYERS 3
#define MAX_TOKENS 40

/* A model of feed-forward layers alone. */
struct chain {
    struct rig *rig;
    enum dtype act;
    uint32_t n_tokens;
    float *start; /* what the residual begins as */
    float *residual;
    float *delta;
    void *normed;
    void *gate_up_out;
    void *ffn;
    const float *norm;
    struct weight gate_up[LAYERS];
    struct weight down[LAYERS];
};

static struct weight make_weight(struct rig *rig, uint64_t *seed, uint32_t n, uint32_t k) {
    float *values = random_values(seed, (size_t)n * k, DTYPE_BF16, 0.1f);
    void *packed = pack_values(values, (size_t)n * k, DTYPE_BF16);
    struct weight weight = {.format = DTYPE_BF16, .n = n, .k = k, .data = rig_upload(rig, packed, (size_t)n * k * 2)};
    free(packed);
    free(values);
    return weight;
}

static void chain_make(struct chain *chain, struct rig *rig) {
    uint64_t seed = 11;
    *chain = (struct chain){.rig = rig, .act = rig->ops->activation_dtype(DTYPE_BF16)};
    size_t act = dtype_bytes(chain->act);
    float *values = random_values(&seed, MAX_TOKENS * HIDDEN, DTYPE_F32, 1.0f);
    chain->start = rig_upload(rig, values, MAX_TOKENS * HIDDEN * sizeof(float));
    chain->norm = rig_upload(rig, values, HIDDEN * sizeof(float));
    free(values);
    chain->residual = rig_alloc(rig, MAX_TOKENS * HIDDEN * sizeof(float));
    chain->delta = rig_alloc(rig, MAX_TOKENS * HIDDEN * sizeof(float));
    chain->normed = rig_alloc(rig, MAX_TOKENS * HIDDEN * act);
    chain->gate_up_out = rig_alloc(rig, (size_t)MAX_TOKENS * 2 * FFN * act);
    chain->ffn = rig_alloc(rig, MAX_TOKENS * FFN * act);
    for (int i = 0; i < LAYERS; i++) {
        chain->gate_up[i] = make_weight(rig, &seed, 2 * FFN, HIDDEN);
        chain->down[i] = make_weight(rig, &seed, HIDDEN, FFN);
    }
}

static void settle(struct chain *chain, bool wait) {
    if (wait) {
        EXPECT_OK(chain->rig->ops->stream_sync(chain->rig->stream));
    }
}

static void multiply(struct chain *chain, const struct weight *weight, const void *x, void *out, enum dtype out_dtype,
                     bool wait) {
    struct op_gemm args = {.weight = *weight,
                           .x = x,
                           .x_dtype = chain->act,
                           .x_stride = weight->k,
                           .out = out,
                           .out_dtype = out_dtype,
                           .out_stride = weight->n,
                           .m = chain->n_tokens};
    EXPECT_OK(chain->rig->ops->gemm(chain->rig->stream, &args));
    settle(chain, wait);
}

static void norm(struct chain *chain, bool add, bool wait) {
    struct op_rmsnorm args = {.residual = chain->residual,
                              .delta = add ? chain->delta : NULL,
                              .delta_dtype = DTYPE_F32,
                              .weight = chain->norm,
                              .weight_dtype = DTYPE_F32,
                              .out = chain->normed,
                              .out_dtype = chain->act,
                              .n_tokens = chain->n_tokens,
                              .hidden = HIDDEN,
                              .eps = 1e-5f};
    EXPECT_OK(chain->rig->ops->rmsnorm(chain->rig->stream, &args));
    settle(chain, wait);
}

static void enqueue(struct chain *chain, bool wait) {
    EXPECT_OK(chain->rig->ops->copy(chain->rig->stream, chain->residual, chain->start,
                                    (size_t)chain->n_tokens * HIDDEN * sizeof(float), KERNEL_COPY_ON_DEVICE));
    for (int i = 0; i < LAYERS; i++) {
        norm(chain, i > 0, wait);
        multiply(chain, &chain->gate_up[i], chain->normed, chain->gate_up_out, chain->act, wait);
        struct op_swiglu swiglu = {.gate_up = chain->gate_up_out,
                                   .out = chain->ffn,
                                   .dtype = chain->act,
                                   .n_tokens = chain->n_tokens,
                                   .n_columns = FFN};
        EXPECT_OK(chain->rig->ops->swiglu(chain->rig->stream, &swiglu));
        settle(chain, wait);
        multiply(chain, &chain->down[i], chain->ffn, chain->delta, DTYPE_F32, wait);
    }
    norm(chain, true, wait);
}

static void expect_result(struct chain *chain, const float *expected, const char *how) {
    size_t n = (size_t)chain->n_tokens * HIDDEN;
    float *residual = rig_download(chain->rig, chain->residual, n * sizeof(float));
    for (size_t i = 0; i < n; i++) {
        if (f32_to_bits(residual[i]) != f32_to_bits(expected[i])) {
            test_fail(__FILE__, __LINE__, "%u tokens, %s: element %zu is %a, expected %a", chain->n_tokens, how, i,
                      (double)residual[i], (double)expected[i]);
        }
    }
    free(residual);
}

TEST_TIMEOUT(a_chain_of_ops_gives_the_bits_of_ops_alone, 120) {
    struct rig rig;
    struct chain chain;
    rig_open(&rig, test_backend(), 2);
    chain_make(&chain, &rig);
    static const uint32_t tokens[] = {1, 8, 13, 23, 40};
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) {
        chain.n_tokens = tokens[i];
        enqueue(&chain, true);
        float *expected = rig_download(&rig, chain.residual, (size_t)chain.n_tokens * HIDDEN * sizeof(float));
        for (int run = 0; run < 2; run++) {
            enqueue(&chain, false);
            expect_result(&chain, expected, "one launch after another");
        }
        struct kernel_graph *graph = NULL;
        EXPECT_OK(rig.ops->graph_begin(rig.stream));
        enqueue(&chain, false);
        EXPECT_OK(rig.ops->graph_end(rig.stream, &graph));
        for (int run = 0; run < 2; run++) {
            EXPECT_OK(rig.ops->graph_launch(graph, rig.stream));
            EXPECT_OK(rig.ops->graph_launch(graph, rig.stream)); /* the next step follows at once */
            expect_result(&chain, expected, "in a graph");
        }
        rig.ops->graph_destroy(graph);
        free(expected);
    }
    rig_close(&rig);
}
