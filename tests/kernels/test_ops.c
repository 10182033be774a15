/* The op case table on the backend under test; on the cpu also the promise that its bits are the same on any
 * instruction set and any number of threads. */
#include "kernels/cpu/cpu_device.h"
#include "runtime/base/alloc.h"
#include "tests/harness/test.h"
#include "tests/kernels/support_cases.h"

/* Runs the cases of one op (all when NULL). */
static void run_on(struct rig *rig, const char *op) {
    uint32_t n = 0;
    for (size_t i = 0; i < op_case_count; i++) {
        if (op == NULL || strcmp(op_cases[i].op, op) == 0) {
            fprintf(stderr, "%s\n", op_case_name(&op_cases[i])); /* shown when the test fails */
            op_case_run(rig, &op_cases[i]);
            n++;
        }
    }
    EXPECT(n > 0);
    rig_close(rig);
}

static void run_cases(const char *op, uint32_t threads, struct buf *results) {
    struct rig rig;
    rig_open(&rig, test_backend(), threads);
    rig.results = results;
    run_on(&rig, op);
}

/* The ops for which a deterministic device may have other kernels. */
TEST_TIMEOUT(deterministic_devices_match_the_reference, 120) {
    static const char *const ops[] = {"gemm", "gemm_swiglu", "attention"};
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++) {
        struct rig rig;
        rig_open_deterministic(&rig, test_backend(), 2);
        run_on(&rig, ops[i]);
    }
}

TEST(embed_matches_the_reference) {
    run_cases("embed", 2, NULL);
}

TEST(rmsnorm_matches_the_reference) {
    run_cases("rmsnorm", 2, NULL);
}

TEST(gemm_matches_the_reference) {
    run_cases("gemm", 2, NULL);
}

TEST(swiglu_matches_the_reference) {
    run_cases("swiglu", 2, NULL);
}

TEST(gemm_swiglu_matches_the_reference) {
    run_cases("gemm_swiglu", 2, NULL);
}

TEST(gather_rows_matches_the_reference) {
    run_cases("gather_rows", 2, NULL);
}

TEST(copy_2d_matches_the_reference) {
    run_cases("copy_2d", 2, NULL);
}

TEST(random_matches_the_reference) {
    run_cases("random", 2, NULL);
}

TEST(rope_kv_matches_the_reference) {
    run_cases("rope_kv", 2, NULL);
}

TEST(attention_matches_the_reference) {
    run_cases("attention", 2, NULL);
}

TEST(argmax_matches_the_reference) {
    run_cases("argmax", 2, NULL);
}

TEST(argmax_merge_matches_the_reference) {
    run_cases("argmax_merge", 2, NULL);
}

TEST(sample_matches_the_reference) {
    run_cases("sample", 2, NULL);
}

TEST(slots_match_the_model) {
    run_cases("slots", 1, NULL);
}

static void need_cpu(void) {
    if (strcmp(test_backend(), "cpu") != 0) {
        test_skip("a promise of the cpu backend");
    }
}

static void expect_equal_bits(const struct buf *a, const struct buf *b) {
    EXPECT_EQ(a->size, b->size);
    for (size_t i = 0; i < a->size; i++) {
        if (a->data[i] != b->data[i]) {
            test_fail(__FILE__, __LINE__, "byte %zu of %zu differs", i, a->size);
        }
    }
}

/* Every output of every case, in the C code and in the code for `isa`. */
static void compare_isa(enum cpu_isa isa) {
    need_cpu();
    if (cpu_isa_override(isa) != isa) {
        test_skip("the processor has not this instruction set");
    }
    struct buf results = {0};
    run_cases(NULL, 1, &results);
    cpu_isa_override(CPU_ISA_C);
    struct buf reference = {0};
    run_cases(NULL, 1, &reference);
    expect_equal_bits(&results, &reference);
    buf_free(&results);
    buf_free(&reference);
}

TEST_TIMEOUT(avx2_gives_the_bits_of_c, 120) {
    compare_isa(CPU_ISA_AVX2);
}

TEST_TIMEOUT(avx512_gives_the_bits_of_c, 120) {
    compare_isa(CPU_ISA_AVX512);
}

TEST_TIMEOUT(threads_do_not_change_bits, 120) {
    need_cpu();
    struct buf one = {0};
    struct buf five = {0};
    run_cases(NULL, 1, &one);
    run_cases(NULL, 5, &five);
    expect_equal_bits(&one, &five);
    buf_free(&one);
    buf_free(&five);
}
