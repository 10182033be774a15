/* The matrix product of the cpu backend: right against double precision, and the very bits that kernels/cpu/gemm.h
 * defines, whatever the instruction set, the number of threads and the rows beside it. */
#include <math.h>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/vec.h"
#include "runtime/base/alloc.h"
#include "tests/harness/test.h"
#include "tests/kernels/support_rig.h"

#define GAP 5   /* elements between rows of x and of out */
#define TAIL 64 /* poisoned elements behind a matrix */

struct product {
    uint32_t m, n, k;
    enum dtype w_dtype, x_dtype, out_dtype;
    bool bias;
    /* filled in by product_make */
    float *w, *x, *bias_values; /* as rounded to their dtypes; [n][k], [m][k], [n] */
    float *expected;            /* [m][n] by the definition, rounded to out_dtype */
    void *w_device, *x_device, *bias_device;
};

/* gemm.h's definition, in its plainest form. */
static float dot_by_definition(const float *x, const float *w, uint32_t k) {
    float lanes[16] = {0};
    for (uint32_t i = 0; i < (k + 15) / 16 * 16; i++) {
        lanes[i % 16] = fmaf(i < k ? x[i] : 0.0f, i < k ? w[i] : 0.0f, lanes[i % 16]);
    }
    for (int half = 8; half > 0; half /= 2) {
        for (int lane = 0; lane < half; lane++) {
            lanes[lane] = lanes[lane] + lanes[lane + half];
        }
    }
    return lanes[0];
}

static void product_make(struct rig *rig, struct product *product, uint64_t seed) {
    uint32_t m = product->m;
    uint32_t n = product->n;
    uint32_t k = product->k;
    product->w = random_values(&seed, (size_t)n * k, product->w_dtype, 0.5f);
    product->x = random_values(&seed, (size_t)m * k, product->x_dtype, 2.0f);
    product->bias_values = random_values(&seed, n, DTYPE_BF16, 1.0f);
    product->expected = xcalloc((size_t)m * n, sizeof(float));
    for (uint32_t row = 0; row < m; row++) {
        for (uint32_t column = 0; column < n; column++) {
            float sum = dot_by_definition(product->x + (size_t)row * k, product->w + (size_t)column * k, k);
            product->expected[(size_t)row * n + column] = product->bias ? sum + product->bias_values[column] : sum;
        }
    }
    /* Device memory is poisoned with NaN where nothing is written: between the rows of x and behind both. */
    size_t w_bytes = (size_t)n * k * dtype_bytes(product->w_dtype);
    void *packed = pack_values(product->w, (size_t)n * k, product->w_dtype);
    product->w_device = rig_alloc(rig, w_bytes + TAIL * dtype_bytes(product->w_dtype));
    EXPECT_OK(rig->ops->copy(rig->stream, product->w_device, packed, w_bytes, KERNEL_COPY_TO_DEVICE));
    EXPECT_OK(rig->ops->stream_sync(rig->stream));
    free(packed);
    size_t element = dtype_bytes(product->x_dtype);
    packed = pack_values(product->x, (size_t)m * k, product->x_dtype);
    product->x_device = rig_alloc(rig, ((size_t)m * (k + GAP) + TAIL) * element);
    for (uint32_t row = 0; row < m; row++) {
        EXPECT_OK(rig->ops->copy(rig->stream, (char *)product->x_device + row * (k + GAP) * element,
                                 (char *)packed + row * k * element, k * element, KERNEL_COPY_TO_DEVICE));
    }
    EXPECT_OK(rig->ops->stream_sync(rig->stream));
    free(packed);
    packed = pack_values(product->bias_values, n, DTYPE_BF16);
    product->bias_device = rig_upload(rig, packed, n * dtype_bytes(DTYPE_BF16));
    free(packed);
}

static void product_free(struct product *product) {
    free(product->w);
    free(product->x);
    free(product->bias_values);
    free(product->expected);
}

/* Rows [first, first + count) of the product, as fp32 [count][n]; release with free(). Checks that the gaps between
 * the rows of out were left alone. */
static float *product_run(struct rig *rig, const struct product *product, uint32_t first, uint32_t count) {
    uint32_t n = product->n;
    size_t stride = n + GAP;
    size_t element = dtype_bytes(product->out_dtype);
    void *out = rig_alloc(rig, count * stride * element);
    struct op_gemm args = {
        .weight = {.format = product->w_dtype, .n = n, .k = product->k, .data = product->w_device},
        .bias = product->bias ? product->bias_device : NULL,
        .bias_dtype = DTYPE_BF16,
        .x = (char *)product->x_device + (size_t)first * (product->k + GAP) * dtype_bytes(product->x_dtype),
        .x_dtype = product->x_dtype,
        .x_stride = product->k + GAP,
        .out = out,
        .out_dtype = product->out_dtype,
        .out_stride = stride,
        .m = count,
    };
    EXPECT_OK(rig->ops->gemm(rig->stream, &args));
    memset(&args, 0xff, sizeof args); /* the op must have copied them */
    char *strided = rig_download(rig, out, count * stride * element);
    char *dense = xcalloc((size_t)count * n, element);
    for (uint32_t row = 0; row < count; row++) {
        memcpy(dense + row * n * element, strided + row * stride * element, n * element);
        for (size_t i = 0; i < GAP * element; i++) {
            EXPECT_EQ((unsigned char)strided[(row * stride + n) * element + i], 0xff);
        }
    }
    float *values = unpack_values(dense, (size_t)count * n, product->out_dtype);
    free(strided);
    free(dense);
    return values;
}

/* Each sum of k products in 16 lanes rounds at most k / 16 + 6 times on the way of one term (Higham, "Accuracy and
 * stability of numerical algorithms", 3.1), the last of them for the bias; then comes the rounding to out_dtype. */
static void expect_right(const struct product *product) {
    for (uint32_t row = 0; row < product->m; row++) {
        for (uint32_t column = 0; column < product->n; column++) {
            double sum = product->bias ? (double)product->bias_values[column] : 0;
            double magnitude = fabs(sum);
            for (uint32_t i = 0; i < product->k; i++) {
                double term = (double)product->x[(size_t)row * product->k + i] *
                              (double)product->w[(size_t)column * product->k + i];
                sum += term;
                magnitude += fabs(term);
            }
            double bound = ((double)product->k / 16 + 7) * 0x1p-24 * magnitude;
            double error = fabs((double)product->expected[(size_t)row * product->n + column] - sum);
            if (!(error <= bound)) {
                test_fail(__FILE__, __LINE__, "%u x %u x %u at %u, %u: off by %g, allowed %g", product->m, product->n,
                          product->k, row, column, error, bound);
            }
        }
    }
}

static void expect_bits(const struct product *product, const float *actual, uint32_t first, uint32_t count,
                        const char *how) {
    size_t n = (size_t)count * product->n;
    void *packed = pack_values(product->expected + (size_t)first * product->n, n, product->out_dtype);
    float *expected = unpack_values(packed, n, product->out_dtype);
    for (size_t i = 0; i < n; i++) {
        if (f32_to_bits(actual[i]) != f32_to_bits(expected[i])) {
            test_fail(__FILE__, __LINE__, "%u x %u x %u, %s weights, %s: row %zu column %zu is %a, expected %a",
                      product->m, product->n, product->k, dtype_name(product->w_dtype), how, first + i / product->n,
                      i % product->n, (double)actual[i], (double)expected[i]);
        }
    }
    free(packed);
    free(expected);
}

/* Runs the product on every instruction set that the processor has; the whole, and cut into chunks of rows. */
static void product_try(struct rig *rig, struct product product, uint64_t seed) {
    product_make(rig, &product, seed);
    expect_right(&product);
    for (int isa = CPU_ISA_C; isa <= CPU_ISA_AVX512; isa++) {
        if (cpu_isa_override((enum cpu_isa)isa) != (enum cpu_isa)isa) {
            continue;
        }
        const char *name = cpu_isa_name((enum cpu_isa)isa);
        float *whole = product_run(rig, &product, 0, product.m);
        expect_bits(&product, whole, 0, product.m, name);
        free(whole);
        for (uint32_t first = 0; first < product.m;) {
            uint32_t count = product.m > 40 ? 37 : 1 + first % 3; /* the rig keeps every output */
            count = count < product.m - first ? count : product.m - first;
            float *part = product_run(rig, &product, first, count);
            expect_bits(&product, part, first, count, name);
            free(part);
            first += count;
        }
    }
    product_free(&product);
    rig_reset(rig);
}

static void try_on_threads(uint32_t threads) {
    struct rig rig;
    rig_open(&rig, "cpu", threads);
    static const uint32_t shapes[][3] = {
        {1, 1, 1},    {1, 64, 32},   {2, 7, 15},   {3, 9, 16},   {4, 33, 17},   {5, 100, 31}, {6, 50, 33},
        {7, 8, 48},   {8, 25, 64},   {9, 31, 100}, {10, 6, 576}, {11, 13, 47},  {12, 24, 80}, {13, 5, 96},
        {16, 96, 64}, {17, 19, 129}, {33, 20, 65}, {40, 37, 79}, {130, 70, 47},
    };
    static const enum dtype dtypes[] = {DTYPE_BF16, DTYPE_F16, DTYPE_F32};
    uint64_t seed = 1;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        for (int w = 0; w < 3; w++) {
            struct product product = {.m = shapes[i][0],
                                      .n = shapes[i][1],
                                      .k = shapes[i][2],
                                      .w_dtype = dtypes[w],
                                      .x_dtype = i % 3 == 2 ? dtypes[(i / 3 + (size_t)w) % 3] : DTYPE_F32,
                                      .out_dtype = i % 4 == 3 ? dtypes[(i / 4 + (size_t)w) % 3] : DTYPE_F32,
                                      .bias = i % 2 == 1};
            product_try(&rig, product, seed++);
        }
    }
    rig_close(&rig);
}

TEST_TIMEOUT(every_instruction_set_gives_the_defined_bits, 120) {
    try_on_threads(1);
}

TEST_TIMEOUT(any_number_of_threads_gives_the_defined_bits, 240) {
    try_on_threads(2);
    try_on_threads(5);
}

/* All numbers of rows, past every tile and the switch from direct to packed products. */
TEST_TIMEOUT(any_number_of_rows_gives_the_defined_bits, 120) {
    struct rig rig;
    rig_open(&rig, "cpu", 2);
    for (uint32_t m = 1; m <= 40; m++) {
        struct product product = {.m = m, .n = 29, .k = 112, .w_dtype = DTYPE_BF16};
        product_try(&rig, product, m);
    }
    rig_close(&rig);
}

/* Enough columns that the packed rows do not fit one chunk, and enough weights that threads share them. */
TEST_TIMEOUT(large_products_give_the_defined_bits, 120) {
    struct rig rig;
    rig_open(&rig, "cpu", 3);
    product_try(&rig, (struct product){.m = 21, .n = 10, .k = 20000, .w_dtype = DTYPE_BF16}, 1);
    product_try(&rig, (struct product){.m = 150, .n = 45, .k = 1536, .w_dtype = DTYPE_F16}, 2);
    product_try(&rig, (struct product){.m = 71, .n = 53, .k = 777, .w_dtype = DTYPE_BF16}, 5);   /* a part is a block */
    product_try(&rig, (struct product){.m = 130, .n = 29, .k = 1545, .w_dtype = DTYPE_F32}, 6);  /* several columns' */
    product_try(&rig, (struct product){.m = 110, .n = 4, .k = 20000, .w_dtype = DTYPE_BF16}, 7); /* packed in parts */
    product_try(&rig, (struct product){.m = 400, .n = 100, .k = 300, .w_dtype = DTYPE_BF16}, 8); /* several chunks */
    product_try(&rig, (struct product){.m = 200, .n = 5, .k = 16400, .w_dtype = DTYPE_BF16}, 9); /* of long rows */
    product_try(&rig, (struct product){.m = 2, .n = 3000, .k = 576, .w_dtype = DTYPE_BF16}, 3);
    product_try(&rig, (struct product){.m = 9, .n = 1001, .k = 256, .w_dtype = DTYPE_F32}, 4);
    rig_close(&rig);
}

static float *swiglu_run(struct rig *rig, const struct product *product, uint32_t count) {
    size_t half = product->n / 2;
    void *out = rig_alloc(rig, count * half * sizeof(float));
    struct op_gemm_swiglu args = {
        .gemm = {.weight = {.format = product->w_dtype, .n = product->n, .k = product->k, .data = product->w_device},
                 .x = product->x_device,
                 .x_dtype = DTYPE_F32,
                 .x_stride = product->k + GAP,
                 .out = rig_alloc(rig, count * product->n * sizeof(float)),
                 .out_dtype = DTYPE_F32,
                 .out_stride = product->n,
                 .m = count},
        .out = out,
    };
    EXPECT_OK(rig->ops->gemm_swiglu(rig->stream, &args));
    return rig_download(rig, out, count * half * sizeof(float));
}

/* Whether it is done with the product or after it: the bits of swiglu of the defined product. */
TEST_TIMEOUT(swiglu_of_any_number_of_rows_has_the_same_bits, 120) {
    struct rig rig;
    rig_open(&rig, "cpu", 2);
    static const uint32_t counts[] = {1, 7, 40, 100, 130};
    for (uint32_t half = 15; half <= 100; half += 17) {
        struct product product = {.m = 130, .n = 2 * half, .k = 50, .w_dtype = half % 2 ? DTYPE_BF16 : DTYPE_F16};
        product_make(&rig, &product, half);
        float *gate_up = product_run(&rig, &product, 0, product.m);
        for (int isa = CPU_ISA_C; isa <= CPU_ISA_AVX512; isa++) {
            cpu_isa_override((enum cpu_isa)isa);
            for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
                float *out = swiglu_run(&rig, &product, counts[i]);
                for (uint32_t row = 0; row < counts[i]; row++) {
                    float expected[100];
                    vec_ops_c.swiglu(expected, gate_up + row * product.n, gate_up + row * product.n + half, half);
                    EXPECT(memcmp(expected, out + row * half, half * sizeof(float)) == 0);
                }
                free(out);
            }
        }
        free(gate_up);
        product_free(&product);
        rig_reset(&rig);
    }
    rig_close(&rig);
}

/* One row's NaN or infinity is that row's alone. */
TEST(a_poisoned_row_stays_alone) {
    struct rig rig;
    rig_open(&rig, "cpu", 2);
    for (uint32_t m = 2; m <= 20; m++) {
        struct product product = {.m = m, .n = 40, .k = 64, .w_dtype = DTYPE_BF16};
        product_make(&rig, &product, m);
        uint32_t bad = m / 2;
        float values[64];
        for (int i = 0; i < 64; i++) {
            values[i] = i % 2 == 0 ? NAN : INFINITY;
        }
        EXPECT_OK(rig.ops->copy(rig.stream, (float *)product.x_device + bad * (64 + GAP), values, sizeof values,
                                KERNEL_COPY_TO_DEVICE));
        for (int isa = CPU_ISA_C; isa <= CPU_ISA_AVX512; isa++) {
            cpu_isa_override((enum cpu_isa)isa);
            float *out = product_run(&rig, &product, 0, m);
            expect_bits(&product, out, 0, bad, "before a poisoned row");
            expect_bits(&product, out + (bad + 1) * 40, bad + 1, m - bad - 1, "behind a poisoned row");
            for (uint32_t i = 0; i < 40; i++) {
                EXPECT(isnan(out[bad * 40 + i]));
            }
            free(out);
        }
        product_free(&product);
        rig_reset(&rig);
    }
    rig_close(&rig);
}

/* Signed zeros and subnormal numbers are kept: no flush to zero, and the zeros of a short row's end change nothing. */
TEST(tiny_numbers_keep_their_bits) {
    struct rig rig;
    rig_open(&rig, "cpu", 1);
    static const enum dtype dtypes[] = {DTYPE_BF16, DTYPE_F16, DTYPE_F32};
    for (int w = 0; w < 3; w++) {
        struct product product = {.m = 3, .n = 11, .k = 21, .w_dtype = dtypes[w]};
        product_make(&rig, &product, 5);
        for (uint32_t row = 0; row < 3; row++) {
            for (uint32_t i = 0; i < 21; i++) {
                product.x[row * 21 + i] *= 0x1p-130f;
            }
            EXPECT_OK(rig.ops->copy(rig.stream, (float *)product.x_device + row * (21 + GAP), product.x + row * 21,
                                    21 * sizeof(float), KERNEL_COPY_TO_DEVICE));
        }
        bool subnormal = false;
        for (uint32_t i = 0; i < 33; i++) {
            product.expected[i] = dot_by_definition(product.x + i / 11 * 21, product.w + i % 11 * 21, 21);
            subnormal = subnormal || fpclassify(product.expected[i]) == FP_SUBNORMAL;
        }
        EXPECT(subnormal);
        for (int isa = CPU_ISA_C; isa <= CPU_ISA_AVX512; isa++) {
            cpu_isa_override((enum cpu_isa)isa);
            float *out = product_run(&rig, &product, 0, 3);
            expect_bits(&product, out, 0, 3, "tiny numbers");
            free(out);
        }
        product_free(&product);
        rig_reset(&rig);
    }
    rig_close(&rig);
}
