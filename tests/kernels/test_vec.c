/* The vector primitives: accuracy of exp, conversions of every value, and equal bits in all instruction sets. What the
 * ops make of them is in the op case table. */
#include <math.h>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/vec.h"
#include "runtime/base/alloc.h"
#include "runtime/base/rng.h"
#include "tests/harness/test.h"

/* The tables that this processor can run; the C code first. */
static uint32_t all_tables(const struct vec_ops *tables[3]) {
    uint32_t n = 0;
    for (int isa = CPU_ISA_C; isa <= CPU_ISA_AVX512; isa++) {
        if (cpu_isa_override((enum cpu_isa)isa) == (enum cpu_isa)isa) {
            tables[n++] = vec_ops();
        }
    }
    return n;
}

static void expect_same_floats(const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++) {
        EXPECT((isnan(a[i]) && isnan(b[i])) || f32_to_bits(a[i]) == f32_to_bits(b[i]));
    }
}

/* Every 397th float there is. */
TEST_TIMEOUT(exp_is_accurate_and_equal_everywhere, 120) {
    enum { BATCH = 1 << 16 };
    const struct vec_ops *tables[3];
    uint32_t n_tables = all_tables(tables);
    float *x = xcalloc(BATCH, sizeof *x);
    float *expected = xcalloc(BATCH, sizeof *expected);
    float *actual = xcalloc(BATCH, sizeof *actual);
    uint64_t bits = 0;
    double worst = 0;
    while (bits < (uint64_t)1 << 32) {
        for (size_t i = 0; i < BATCH; i++, bits += 397) {
            x[i] = bits_to_f32((uint32_t)bits);
        }
        tables[0]->exp(expected, x, BATCH);
        for (uint32_t t = 1; t < n_tables; t++) {
            tables[t]->exp(actual, x, BATCH);
            expect_same_floats(actual, expected, BATCH);
        }
        for (size_t i = 0; i < BATCH; i++) {
            if (x[i] < -87.3365f) {
                EXPECT(expected[i] == 0.0f);
            } else if (x[i] > 88.3762f) {
                EXPECT(expected[i] == INFINITY);
            } else if (isnan(x[i])) {
                EXPECT(isnan(expected[i]));
            } else {
                double exact = exp((double)x[i]);
                double error = fabs((double)expected[i] - exact) / exact * 0x1p23;
                worst = error > worst ? error : worst;
            }
        }
    }
    float zero = 0.0f;
    tables[0]->exp(actual, &zero, 1);
    EXPECT(actual[0] == 1.0f);
    printf("  worst error of exp: %.2f x 2^-23\n", worst);
    EXPECT(worst < 1.0);
    free(x);
    free(expected);
    free(actual);
}

TEST(conversions_are_those_of_dtype_h) {
    const struct vec_ops *tables[3];
    uint32_t n_tables = all_tables(tables);
    enum { N = 65536 };
    uint16_t *half = xcalloc(N, sizeof *half);
    float *wide = xcalloc(N, sizeof *wide);
    float *expected = xcalloc(N, sizeof *expected);
    for (uint32_t t = 0; t < n_tables; t++) {
        for (enum dtype dtype = DTYPE_BF16; dtype <= DTYPE_F16; dtype++) {
            for (uint32_t i = 0; i < N; i++) {
                half[i] = (uint16_t)i;
                expected[i] = dtype == DTYPE_BF16 ? bf16_to_f32(half[i]) : f16_to_f32(half[i]);
            }
            tables[t]->load(wide, half, dtype, N);
            expect_same_floats(wide, expected, N);
            uint64_t seed = t;
            for (uint32_t round = 0; round < 20; round++) {
                for (uint32_t i = 0; i < N; i++) { /* any bits; near the range of fp16; on its ties */
                    uint32_t bits = (uint32_t)rng_next(&seed);
                    wide[i] = bits_to_f32(i % 3 == 0   ? bits
                                          : i % 3 == 1 ? (bits & 0x9fffffffu) | 0x20000000u
                                                       : (bits & 0xfffff000u));
                }
                tables[t]->store(half, dtype, wide, N);
                for (uint32_t i = 0; i < N; i++) {
                    uint16_t right = dtype == DTYPE_BF16 ? f32_to_bf16(wide[i]) : f32_to_f16(wide[i]);
                    float back = dtype == DTYPE_BF16 ? bf16_to_f32(half[i]) : f16_to_f32(half[i]);
                    EXPECT(half[i] == right || (isnan(wide[i]) && isnan(back)));
                }
            }
        }
    }
    free(half);
    free(wide);
    free(expected);
}

/* Lengths around the vector's, at addresses that are not aligned, touching nothing behind. */
TEST(parts_of_vectors) {
    const struct vec_ops *tables[3];
    uint32_t n_tables = all_tables(tables);
    for (uint32_t t = 0; t < n_tables; t++) {
        for (size_t n = 1; n < 70; n++) {
            float *x = xcalloc(n, sizeof *x); /* no room behind: the sanitizer sees a read too far */
            float *out = xcalloc(n, sizeof *out);
            uint16_t *half = xcalloc(n, sizeof *half);
            float lanes[16] = {0};
            for (size_t i = 0; i < n; i++) {
                x[i] = (float)(i + 1);
            }
            tables[t]->add_squares(lanes, x, NULL, n);
            EXPECT(vec_lane_sum(lanes) == (float)(n * (n + 1) * (2 * n + 1) / 6)); /* below 2^24: exact */
            tables[t]->store(half, DTYPE_BF16, x, n);
            tables[t]->load(out, half, DTYPE_BF16, n);
            expect_same_floats(out, x, n);
            tables[t]->scale(out, x, 2.0f, n);
            EXPECT(out[0] == 2.0f && out[n - 1] == 2.0f * (float)n);
            float max;
            EXPECT(tables[t]->row_max(x, n, &max));
            EXPECT(max == (float)n);
            EXPECT_EQ(tables[t]->first_reaching(x, n, (float)n), n - 1);
            EXPECT_EQ(tables[t]->first_reaching(x, n, (float)n + 1.0f), n);
            free(x);
            free(out);
            free(half);
        }
    }
}

TEST(keys_order_as_floats) {
    uint64_t seed = 3;
    EXPECT_EQ(vec_key(0.0f), vec_key(-0.0f));
    for (uint32_t i = 0; i < 200000; i++) {
        float a = bits_to_f32((uint32_t)rng_next(&seed));
        float b = bits_to_f32((uint32_t)rng_next(&seed));
        if (!isnan(a) && !isnan(b)) {
            EXPECT_EQ(a < b, vec_key(a) < vec_key(b));
            EXPECT(vec_key_value(vec_key(a)) == a);
        }
    }
}

TEST(weights_are_cut_off_at_2_to_the_minus_43) {
    EXPECT_EQ(vec_weight(1.0f), VEC_WEIGHT_ONE);
    EXPECT_EQ(vec_weight(0.0f), 0);
    EXPECT_EQ(vec_weight(0x1p-43f), 1);
    EXPECT_EQ(vec_weight(0x1.fp-44f), 0);
    EXPECT_EQ(vec_weight(0x1.8p-42f), 3);
    EXPECT_EQ(vec_weight(0x1p-126f), 0);
    const struct vec_ops *tables[3];
    uint32_t n_tables = all_tables(tables);
    uint64_t seed = 4;
    float x[1000];
    uint64_t sum = 0;
    for (uint32_t i = 0; i < 1000; i++) {
        x[i] = -(float)(rng_next(&seed) % 4000) / 100.0f;
        float p;
        vec_ops_c.exp(&p, &x[i], 1);
        sum += vec_weight(p);
    }
    struct vec_filter all = {.max = 0.0f, .inv_temperature = 1.0f, .lowest = -INFINITY};
    for (uint32_t t = 0; t < n_tables; t++) {
        EXPECT(tables[t]->weight_sum(x, 1000, &all) == sum);
        EXPECT_EQ(tables[t]->weight_find(x, 1000, &all, sum), 1000);
        EXPECT(tables[t]->weight_find(x, 1000, &all, sum - 1) < 1000);
    }
}
