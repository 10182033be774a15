/* The op case table: what each math op is tried with, on any backend. A case runs one op on poisoned memory and holds
 * its outputs against a plain double-precision computation; every tolerance is given where it is used, with its
 * reason. */
#ifndef TANDEM_TESTS_KERNELS_SUPPORT_CASES_H
#define TANDEM_TESTS_KERNELS_SUPPORT_CASES_H

#include "tests/kernels/support_rig.h"

#define CASE_MAX_ROWS 12
#define CASE_MAX_TIMES 22

struct op_case {
    const char *op;
    uint32_t rows;    /* tokens, sampled rows or copied rows */
    uint32_t columns; /* hidden size, feed-forward columns, vocabulary, N, bytes of a row */
    uint32_t inner;   /* K of gemm and gemm_swiglu; vocabulary of embed; ids that exist, of argmax and sample; ranks of
                         argmax_merge */
    enum dtype x;     /* inputs */
    enum dtype w;     /* weights, tables */
    enum dtype y;     /* outputs */
    bool plain;       /* without the optional part: bias of gemm and gemm_swiglu, delta of rmsnorm */
    /* rope_kv, attention */
    enum dtype kv;
    uint32_t q_heads, kv_heads, head_dim, block_size;
    struct {
        uint32_t past; /* positions in the cache before the step */
        uint32_t len;  /* tokens of the step; 0 ends the list */
    } row[CASE_MAX_ROWS];
    uint32_t times; /* so often do the rows come, one list after the other; 0: once */
};

extern const struct op_case op_cases[];
extern const size_t op_case_count;

/* Runs one case; a wrong result ends the test with the case named. */
void op_case_run(struct rig *rig, const struct op_case *op_case);

/* "rmsnorm rows=3 columns=100 ..." */
const char *op_case_name(const struct op_case *op_case);

void case_embed(struct rig *rig, const struct op_case *op_case);
void case_rmsnorm(struct rig *rig, const struct op_case *op_case);
void case_gemm(struct rig *rig, const struct op_case *op_case);
void case_swiglu(struct rig *rig, const struct op_case *op_case);
void case_gemm_swiglu(struct rig *rig, const struct op_case *op_case);
void case_gather_rows(struct rig *rig, const struct op_case *op_case);
void case_copy_2d(struct rig *rig, const struct op_case *op_case);
void case_random(struct rig *rig, const struct op_case *op_case);
void case_rope_kv(struct rig *rig, const struct op_case *op_case);
void case_attention(struct rig *rig, const struct op_case *op_case);
void case_argmax(struct rig *rig, const struct op_case *op_case);
void case_argmax_merge(struct rig *rig, const struct op_case *op_case);
void case_sample(struct rig *rig, const struct op_case *op_case);
void case_slots(struct rig *rig, const struct op_case *op_case);

#endif
