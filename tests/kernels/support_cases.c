#include "tests/kernels/support_cases.h"

#include "tests/harness/test.h"

#define F32 DTYPE_F32
#define BF16 DTYPE_BF16
#define F16 DTYPE_F16

/* Shapes of real models stand beside odd ones: one element, one less and one more than a vector, prime sizes. */
const struct op_case op_cases[] = {
    {"embed", .rows = 1, .columns = 1, .inner = 1, .w = F32, .y = F32},
    {"embed", .rows = 7, .columns = 64, .inner = 32, .w = F32, .y = F32},
    {"embed", .rows = 33, .columns = 576, .inner = 101, .w = BF16, .y = F32},
    {"embed", .rows = 64, .columns = 1029, .inner = 50, .w = F16, .y = F32},
    {"embed", .rows = 5, .columns = 130, .inner = 9, .w = BF16, .y = BF16},
    {"embed", .rows = 5, .columns = 130, .inner = 9, .w = F32, .y = F16},
    {"embed", .rows = 5, .columns = 517, .inner = 9, .w = F16, .y = BF16},

    {"rmsnorm", .rows = 1, .columns = 1, .x = F32, .w = F32, .y = F32},
    {"rmsnorm", .rows = 3, .columns = 15, .x = F32, .w = BF16, .y = F32},
    {"rmsnorm", .rows = 2, .columns = 17, .x = F32, .w = F32, .y = F32, .plain = true},
    {"rmsnorm", .rows = 16, .columns = 576, .x = F32, .w = BF16, .y = F32},
    {"rmsnorm", .rows = 70, .columns = 1536, .x = F32, .w = F16, .y = F32},
    {"rmsnorm", .rows = 5, .columns = 8192, .x = BF16, .w = BF16, .y = BF16},
    {"rmsnorm", .rows = 4, .columns = 1023, .x = F16, .w = F16, .y = F16},
    {"rmsnorm", .rows = 9, .columns = 513, .x = BF16, .w = F32, .y = F16, .plain = true},

    {"gemm", .rows = 1, .columns = 1, .inner = 1, .x = F32, .w = F32, .y = F32},
    {"gemm", .rows = 1, .columns = 37, .inner = 61, .x = F32, .w = BF16, .y = F32},
    {"gemm", .rows = 5, .columns = 130, .inner = 100, .x = F32, .w = F16, .y = F32, .plain = true},
    {"gemm", .rows = 16, .columns = 192, .inner = 576, .x = F32, .w = BF16, .y = F32, .plain = true},
    {"gemm", .rows = 67, .columns = 65, .inner = 129, .x = F32, .w = F32, .y = F32},
    {"gemm", .rows = 130, .columns = 96, .inner = 320, .x = F32, .w = BF16, .y = F32},
    {"gemm", .rows = 9, .columns = 50, .inner = 70, .x = BF16, .w = BF16, .y = BF16},
    {"gemm", .rows = 9, .columns = 50, .inner = 70, .x = F16, .w = F16, .y = F16, .plain = true},
    {"gemm", .rows = 1, .columns = 48, .inner = 64, .x = BF16, .w = BF16, .y = F32, .plain = true},
    {"gemm", .rows = 1, .columns = 4100, .inner = 1088, .x = BF16, .w = BF16, .y = BF16},
    {"gemm", .rows = 3, .columns = 20, .inner = 14336, .x = BF16, .w = BF16, .y = F32},
    {"gemm", .rows = 5, .columns = 301, .inner = 1088, .x = BF16, .w = BF16, .y = BF16},
    {"gemm", .rows = 8, .columns = 1001, .inner = 2048, .x = F16, .w = F16, .y = F32},
    {"gemm", .rows = 9, .columns = 6144, .inner = 192, .x = BF16, .w = BF16, .y = F32, .plain = true},
    {"gemm", .rows = 12, .columns = 77, .inner = 520, .x = BF16, .w = BF16, .y = F32},
    {"gemm", .rows = 16, .columns = 520, .inner = 4160, .x = F16, .w = F16, .y = F16},
    {"gemm", .rows = 17, .columns = 130, .inner = 1024, .x = BF16, .w = BF16, .y = F32},
    {"gemm", .rows = 32, .columns = 64, .inner = 2560, .x = BF16, .w = BF16, .y = BF16, .plain = true},
    {"gemm", .rows = 33, .columns = 200, .inner = 640, .x = F16, .w = F16, .y = F32},
    {"gemm", .rows = 33, .columns = 1200, .inner = 192, .x = BF16, .w = BF16, .y = BF16, .plain = true},
    {"gemm", .rows = 48, .columns = 130, .inner = 4160, .x = F16, .w = F16, .y = F16},
    {"gemm", .rows = 63, .columns = 301, .inner = 1088, .x = BF16, .w = BF16, .y = BF16},
    {"gemm", .rows = 63, .columns = 20, .inner = 14336, .x = F16, .w = F16, .y = F32, .plain = true},
    {"gemm", .rows = 64, .columns = 130, .inner = 2560, .x = BF16, .w = BF16, .y = F32},
    {"gemm", .rows = 33, .columns = 17000, .inner = 192, .x = BF16, .w = BF16, .y = BF16, .plain = true},
    {"gemm", .rows = 64, .columns = 257, .inner = 1536, .x = BF16, .w = BF16, .y = F32},
    {"gemm", .rows = 64, .columns = 70, .inner = 1540, .x = BF16, .w = BF16, .y = F32},
    {"gemm", .rows = 65, .columns = 384, .inner = 640, .x = BF16, .w = BF16, .y = BF16},
    {"gemm", .rows = 64, .columns = 2300, .inner = 128, .x = BF16, .w = BF16, .y = BF16},

    {"swiglu", .rows = 1, .columns = 1, .x = F32},
    {"swiglu", .rows = 3, .columns = 31, .x = F32},
    {"swiglu", .rows = 40, .columns = 1536, .x = F32},
    {"swiglu", .rows = 2, .columns = 517, .x = BF16},
    {"swiglu", .rows = 2, .columns = 1041, .x = F16},

    {"gemm_swiglu", .rows = 1, .columns = 1, .inner = 1, .x = F32, .w = F32, .y = F32},
    {"gemm_swiglu", .rows = 5, .columns = 37, .inner = 100, .x = F32, .w = BF16, .y = F32, .plain = true},
    {"gemm_swiglu", .rows = 1, .columns = 2056, .inner = 1088, .x = BF16, .w = BF16, .y = BF16},
    {"gemm_swiglu", .rows = 7, .columns = 152, .inner = 2048, .x = F16, .w = F16, .y = F16, .plain = true},
    {"gemm_swiglu", .rows = 16, .columns = 40, .inner = 4160, .x = BF16, .w = BF16, .y = BF16},
    {"gemm_swiglu", .rows = 32, .columns = 200, .inner = 640, .x = F16, .w = F16, .y = F16},
    {"gemm_swiglu", .rows = 40, .columns = 310, .inner = 192, .x = BF16, .w = BF16, .y = BF16, .plain = true},
    {"gemm_swiglu", .rows = 34, .columns = 8504, .inner = 128, .x = BF16, .w = BF16, .y = BF16},
    {"gemm_swiglu", .rows = 64, .columns = 72, .inner = 1088, .x = F16, .w = F16, .y = F16},
    {"gemm_swiglu", .rows = 70, .columns = 130, .inner = 320, .x = BF16, .w = BF16, .y = BF16},

    {"gather_rows", .rows = 1, .columns = 1},
    {"gather_rows", .rows = 5, .columns = 7},
    {"gather_rows", .rows = 300, .columns = 2304},
    {"copy_2d", .rows = 1, .columns = 1},
    {"copy_2d", .rows = 9, .columns = 13},
    {"copy_2d", .rows = 257, .columns = 1540},
    {"random", .rows = 1, .columns = 1, .y = F32},
    {"random", .rows = 7, .columns = 24, .y = F32},
    {"random", .rows = 3, .columns = 1025, .y = BF16},
    {"random", .rows = 40, .columns = 4096, .y = BF16},
    {"random", .rows = 9, .columns = 520, .y = F16},

    {"rope_kv", .x = F32, .kv = F32, .q_heads = 1, .kv_heads = 1, .head_dim = 2, .block_size = 1, .row = {{0, 3}}},
    {"rope_kv", .x = F32, .kv = BF16, .q_heads = 9, .kv_heads = 3, .head_dim = 64, .block_size = 16,
     .row = {{0, 1}, {15, 2}, {31, 40}, {100, 1}}},
    {"rope_kv", .x = F32, .kv = F16, .q_heads = 4, .kv_heads = 2, .head_dim = 18, .block_size = 4,
     .row = {{5, 5}, {0, 9}}},
    {"rope_kv", .x = BF16, .kv = BF16, .q_heads = 6, .kv_heads = 2, .head_dim = 128, .block_size = 16,
     .row = {{7, 3}, {16, 1}}},
    {"rope_kv", .x = F16, .kv = F32, .q_heads = 2, .kv_heads = 1, .head_dim = 80, .block_size = 32,
     .row = {{60, 10}, {0, 1}}},

    {"attention", .x = F32, .kv = F32, .q_heads = 1, .kv_heads = 1, .head_dim = 2, .block_size = 1, .row = {{0, 1}}},
    {"attention", .x = F32, .kv = F32, .q_heads = 3, .kv_heads = 1, .head_dim = 8, .block_size = 2,
     .row = {{0, 5}, {3, 1}, {70, 9}}},
    {"attention", .x = F32, .kv = BF16, .q_heads = 9, .kv_heads = 3, .head_dim = 64, .block_size = 16,
     .row = {{0, 1}, {63, 1}, {64, 1}, {65, 1}, {200, 1}, {0, 90}, {40, 50}}},
    {"attention", .x = F32, .kv = F16, .q_heads = 4, .kv_heads = 2, .head_dim = 18, .block_size = 4,
     .row = {{30, 40}, {128, 1}}},
    {"attention", .x = F32, .kv = BF16, .q_heads = 9, .kv_heads = 3, .head_dim = 64, .block_size = 16,
     .row = {{1300, 1}}},
    {"attention", .x = F32, .kv = F32, .q_heads = 5, .kv_heads = 1, .head_dim = 48, .block_size = 16,
     .row = {{511, 3}, {1024, 1}}},
    {"attention", .x = F32, .kv = BF16, .q_heads = 80, .kv_heads = 1, .head_dim = 32, .block_size = 8,
     .row = {{10, 3}, {90, 2}}},
    {"attention", .x = F32, .kv = BF16, .q_heads = 2, .kv_heads = 2, .head_dim = 256, .block_size = 128,
     .row = {{500, 30}, {3, 1}}},
    {"attention", .x = BF16, .kv = BF16, .q_heads = 6, .kv_heads = 2, .head_dim = 128, .block_size = 16,
     .row = {{77, 3}, {16, 1}}},
    {"attention", .x = F16, .kv = F16, .q_heads = 4, .kv_heads = 4, .head_dim = 80, .block_size = 16,
     .row = {{100, 20}, {0, 1}}},
    /* Each number of query heads to a KV head that models have; tiles of tokens and of positions that end on and beside
     * their borders; rows of one token alone, few and many, and beside others. */
    {"attention", .x = BF16, .kv = BF16, .q_heads = 8, .kv_heads = 2, .head_dim = 128, .block_size = 16,
     .row = {{0, 129}, {63, 1}, {1000, 3}, {127, 1}, {250, 65}, {1999, 1}}},
    {"attention", .x = F16, .kv = F16, .q_heads = 2, .kv_heads = 2, .head_dim = 128, .block_size = 32,
     .row = {{0, 1}, {0, 128}, {300, 1}, {128, 128}, {0, 2}}},
    {"attention", .x = F16, .kv = F16, .q_heads = 9, .kv_heads = 3, .head_dim = 64, .block_size = 16,
     .row = {{0, 64}, {64, 65}, {1, 1}, {700, 2}, {1023, 1}}},
    {"attention", .x = BF16, .kv = BF16, .q_heads = 5, .kv_heads = 1, .head_dim = 128, .block_size = 16,
     .row = {{2500, 1}}},
    {"attention", .x = F16, .kv = F16, .q_heads = 14, .kv_heads = 2, .head_dim = 64, .block_size = 128,
     .row = {{3000, 1}, {16, 1}, {100, 1}}},
    {"attention", .x = F16, .kv = F16, .q_heads = 16, .kv_heads = 2, .head_dim = 128, .block_size = 16,
     .row = {{0, 1},
             {2047, 1},
             {63, 1},
             {64, 1},
             {65, 1},
             {15, 1},
             {16, 1},
             {900, 1},
             {511, 1},
             {1, 1},
             {127, 1},
             {200, 1}}},
    {"attention", .x = BF16, .kv = BF16, .q_heads = 4, .kv_heads = 1, .head_dim = 128, .block_size = 16, .times = 22,
     .row = {{0, 1},
             {300, 1},
             {64, 1},
             {130, 1},
             {511, 1},
             {63, 1},
             {200, 1},
             {255, 1},
             {256, 1},
             {1, 1},
             {65, 1},
             {90, 1}}},
    {"attention", .x = BF16, .kv = BF16, .q_heads = 15, .kv_heads = 3, .head_dim = 64, .block_size = 16,
     .row = {{1500, 1}, {0, 1}, {40, 1}, {41, 1}, {42, 1}, {43, 1}, {44, 1}, {45, 1}}},
    {"attention", .x = F16, .kv = F16, .q_heads = 20, .kv_heads = 1, .head_dim = 128, .block_size = 256,
     .row = {{255, 2}, {256, 1}, {900, 1}}},
    {"attention", .x = F16, .kv = F16, .q_heads = 4, .kv_heads = 1, .head_dim = 128, .block_size = 8,
     .row = {{30, 40}, {128, 1}}},

    {"argmax", .rows = 1, .columns = 1, .inner = 1},
    {"argmax", .rows = 6, .columns = 33, .inner = 30},
    {"argmax", .rows = 9, .columns = 49152, .inner = 49152},
    {"argmax_merge", .rows = 12, .inner = 1},
    {"argmax_merge", .rows = 40, .inner = 4},

    {"sample", .rows = 12, .columns = 1, .inner = 1},
    {"sample", .rows = 96, .columns = 40, .inner = 37},
    {"sample", .rows = 64, .columns = 513, .inner = 512},
    {"sample", .rows = 40, .columns = 9000, .inner = 8999},

    {"slots", .rows = 1},
    {"slots", .rows = 9},
};
const size_t op_case_count = sizeof op_cases / sizeof op_cases[0];

static const struct {
    const char *op;
    void (*run)(struct rig *rig, const struct op_case *op_case);
} runners[] = {
    {"embed", case_embed},
    {"rmsnorm", case_rmsnorm},
    {"gemm", case_gemm},
    {"swiglu", case_swiglu},
    {"gemm_swiglu", case_gemm_swiglu},
    {"gather_rows", case_gather_rows},
    {"copy_2d", case_copy_2d},
    {"random", case_random},
    {"rope_kv", case_rope_kv},
    {"attention", case_attention},
    {"argmax", case_argmax},
    {"argmax_merge", case_argmax_merge},
    {"sample", case_sample},
    {"slots", case_slots},
};

const char *op_case_name(const struct op_case *op_case) {
    static char name[256];
    snprintf(name, sizeof name, "%s rows=%u columns=%u inner=%u x=%s w=%s y=%s kv=%s heads=%u/%u dim=%u", op_case->op,
             op_case->rows, op_case->columns, op_case->inner, dtype_name(op_case->x), dtype_name(op_case->w),
             dtype_name(op_case->y), dtype_name(op_case->kv), op_case->q_heads, op_case->kv_heads, op_case->head_dim);
    return name;
}

void op_case_run(struct rig *rig, const struct op_case *op_case) {
    for (size_t i = 0; i < sizeof runners / sizeof runners[0]; i++) {
        if (strcmp(op_case->op, runners[i].op) == 0) {
            runners[i].run(rig, op_case);
            rig_reset(rig);
            return;
        }
    }
    test_fail(__FILE__, __LINE__, "no runner for op %s", op_case->op);
}
