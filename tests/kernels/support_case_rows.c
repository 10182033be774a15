/* Cases of the ops that treat rows one by one. */
#include <math.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/base/rng.h"
#include "tests/harness/test.h"
#include "tests/kernels/support_cases.h"

static void *upload_values(struct rig *rig, const float *values, size_t n, enum dtype dtype) {
    void *packed = pack_values(values, n, dtype);
    void *device = rig_upload(rig, packed, n * dtype_bytes(dtype));
    free(packed);
    return device;
}

static float *download_values(struct rig *rig, const void *device, size_t n, enum dtype dtype) {
    void *packed = rig_download(rig, device, n * dtype_bytes(dtype));
    float *values = unpack_values(packed, n, dtype);
    free(packed);
    return values;
}

void case_embed(struct rig *rig, const struct op_case *c) {
    uint64_t seed = 1;
    uint32_t first_id = 1000;
    size_t n = (size_t)c->rows * c->columns;
    float *table = random_values(&seed, (size_t)c->inner * c->columns, c->w, 1.0f);
    uint32_t *ids = xcalloc(c->rows, sizeof *ids);
    for (uint32_t i = 0; i < c->rows; i++) { /* some below and some behind this rank's share */
        ids[i] = first_id - 2 + (uint32_t)(rng_next(&seed) % (c->inner + 4));
    }
    struct op_embed args = {
        .token_id = rig_upload(rig, ids, c->rows * sizeof *ids),
        .table = {.format = c->w,
                  .n = c->inner,
                  .k = c->columns,
                  .data = upload_values(rig, table, (size_t)c->inner * c->columns, c->w)},
        .first_id = first_id,
        .n_tokens = c->rows,
        .out_dtype = c->y,
        .out = rig_alloc(rig, n * dtype_bytes(c->y)),
    };
    EXPECT_OK(rig->ops->embed(rig->stream, &args));
    float *out = download_values(rig, args.out, n, c->y);
    double *expected = xcalloc(n, sizeof *expected);
    for (size_t i = 0; i < n; i++) {
        uint32_t id = ids[i / c->columns];
        bool mine = id >= first_id && id < first_id + c->inner;
        expected[i] = mine ? (double)table[(id - first_id) * c->columns + i % c->columns] : 0.0;
    }
    /* Exact but for one rounding where the formats differ; fp16 has subnormals below 2^-14. */
    double relative = c->y == c->w || c->y == DTYPE_F32 ? 0.0 : dtype_epsilon(c->y);
    expect_close("embed", out, expected, n, relative, relative == 0.0 ? 0.0 : 0x1p-25);
    free(table);
    free(ids);
    free(out);
    free(expected);
}

static void rmsnorm_reference(const struct op_case *c, const float *residual, const float *delta, const float *weight,
                              float eps, double *sum, double *out) {
    for (uint32_t row = 0; row < c->rows; row++) {
        double squares = 0;
        for (uint32_t i = 0; i < c->columns; i++) {
            size_t at = (size_t)row * c->columns + i;
            sum[at] = (double)residual[at] + (c->plain ? 0.0 : (double)delta[at]);
            squares += sum[at] * sum[at];
        }
        double rms = sqrt(squares / c->columns + (double)eps);
        for (uint32_t i = 0; i < c->columns; i++) {
            size_t at = (size_t)row * c->columns + i;
            out[at] = sum[at] / rms * (double)weight[i];
        }
    }
}

void case_rmsnorm(struct rig *rig, const struct op_case *c) {
    uint64_t seed = 2;
    size_t n = (size_t)c->rows * c->columns;
    float *residual = random_values(&seed, n, DTYPE_F32, 5.0f);
    float *delta = random_values(&seed, n, c->x, 3.0f);
    float *weight = random_values(&seed, c->columns, c->w, 1.0f);
    double *expected_sum = xcalloc(n, sizeof(double));
    double *expected = xcalloc(n, sizeof(double));
    struct op_rmsnorm args = {
        .residual = upload_values(rig, residual, n, DTYPE_F32),
        .delta = c->plain ? NULL : upload_values(rig, delta, n, c->x),
        .delta_dtype = c->x,
        .weight = upload_values(rig, weight, c->columns, c->w),
        .weight_dtype = c->w,
        .out = rig_alloc(rig, n * dtype_bytes(c->y)),
        .out_dtype = c->y,
        .n_tokens = c->rows,
        .hidden = c->columns,
        .eps = 1e-5f,
    };
    EXPECT_OK(rig->ops->rmsnorm(rig->stream, &args));
    rmsnorm_reference(c, residual, delta, weight, args.eps, expected_sum, expected);
    float *sum = download_values(rig, args.residual, n, DTYPE_F32);
    float *out = download_values(rig, args.out, n, c->y);
    expect_close("rmsnorm residual", sum, expected_sum, n, 0x1p-24, 0.0); /* one rounded addition */
    /* The sum's terms are positive: at most 2^-24 for each of the 512 additions of a lane (8,192 columns), halved by
     * the root; a cancelled residual carries the rounding of its terms, of size 10. */
    expect_close("rmsnorm", out, expected, n, dtype_epsilon(c->y) + 2e-6, 10 * 0x1p-24 * 4);
    if (!c->plain) { /* adding alone: once more the same delta, no output */
        args.out = NULL;
        EXPECT_OK(rig->ops->rmsnorm(rig->stream, &args));
        float *twice = download_values(rig, args.residual, n, DTYPE_F32);
        for (size_t i = 0; i < n; i++) {
            EXPECT(twice[i] == sum[i] + delta[i]);
        }
        free(twice);
    }
    free(residual);
    free(delta);
    free(weight);
    free(expected_sum);
    free(expected);
    free(sum);
    free(out);
}

/* What y[row][column] is, and the sum of what was added. */
static double dot(const struct op_gemm *args, const float *x, const float *weight, const float *bias, uint32_t row,
                  uint32_t column, double *size) {
    double sum = bias != NULL ? (double)bias[column] : 0.0;
    *size = fabs(sum);
    for (uint32_t k = 0; k < args->weight.k; k++) {
        double product = (double)x[row * args->x_stride + k] * (double)weight[(size_t)column * args->weight.k + k];
        sum += product;
        *size += fabs(product);
    }
    return sum;
}

/* Every third bias takes away what the first row's product is: what is left shows whether the product was rounded
 * before the bias came. */
static void cancel_first_row(const struct op_case *c, const float *x, const float *weight, float *bias) {
    for (uint32_t column = 0; column < c->columns; column += 3) {
        double product = 0;
        for (uint32_t k = 0; k < c->inner; k++) {
            product += (double)x[k] * (double)weight[(size_t)column * c->inner + k];
        }
        bias[column] = -(float)product;
    }
    void *packed = pack_values(bias, c->columns, c->w);
    float *rounded = unpack_values(packed, c->columns, c->w);
    memcpy(bias, rounded, c->columns * sizeof *bias);
    free(packed);
    free(rounded);
}

void case_gemm(struct rig *rig, const struct op_case *c) {
    uint64_t seed = 3;
    /* Rows lie apart, with poison between; where a row's length keeps its end aligned, so does its stride. */
    size_t x_stride = c->inner + (c->inner % 8 == 0 ? 8 : 5);
    size_t out_stride = c->columns + (c->columns % 8 == 0 ? 8 : 3);
    float *x = random_values(&seed, c->rows * x_stride, c->x, 1.0f);
    for (size_t i = 0; i < c->rows * x_stride; i++) {
        x[i] = i % x_stride < c->inner ? x[i] : NAN;
    }
    float *weight = random_values(&seed, (size_t)c->columns * c->inner, c->w, 1.0f);
    float *bias = random_values(&seed, c->columns, c->w, 4.0f);
    cancel_first_row(c, x, weight, bias);
    struct op_gemm args = {
        .weight = {.format = c->w,
                   .n = c->columns,
                   .k = c->inner,
                   .data = upload_values(rig, weight, (size_t)c->columns * c->inner, c->w)},
        .bias = c->plain ? NULL : upload_values(rig, bias, c->columns, c->w),
        .bias_dtype = c->w,
        .x = upload_values(rig, x, c->rows * x_stride, c->x),
        .x_dtype = c->x,
        .x_stride = x_stride,
        .out = rig_alloc(rig, c->rows * out_stride * dtype_bytes(c->y)),
        .out_dtype = c->y,
        .out_stride = out_stride,
        .m = c->rows,
    };
    EXPECT_OK(rig->ops->gemm(rig->stream, &args));
    float *out = download_values(rig, args.out, c->rows * out_stride, c->y);
    for (size_t i = 0; i < c->rows * out_stride; i++) {
        size_t column = i % out_stride;
        if (column >= c->columns) {
            EXPECT(isnan(out[i])); /* poison between the rows stays */
            continue;
        }
        double size;
        double expected =
            dot(&args, x, weight, c->plain ? NULL : bias, (uint32_t)(i / out_stride), (uint32_t)column, &size);
        /* 2^-24 of the running sum for each of the K + 1 fp32 additions is the bound in any order. */
        expect_close("gemm", &out[i], &expected, 1, dtype_epsilon(c->y), size * (c->inner + 1) * 0x1p-24);
    }
    free(x);
    free(weight);
    free(bias);
    free(out);
}

void case_swiglu(struct rig *rig, const struct op_case *c) {
    uint64_t seed = 4;
    size_t n = (size_t)c->rows * c->columns;
    float *gate_up = random_values(&seed, 2 * n, c->x, 12.0f);
    gate_up[0] = -200.0f; /* e^200 is beyond fp32: the result is 0, not NaN */
    struct op_swiglu args = {
        .gate_up = upload_values(rig, gate_up, 2 * n, c->x),
        .out = rig_alloc(rig, n * dtype_bytes(c->x)),
        .dtype = c->x,
        .n_tokens = c->rows,
        .n_columns = c->columns,
    };
    EXPECT_OK(rig->ops->swiglu(rig->stream, &args));
    float *out = download_values(rig, args.out, n, c->x);
    double *expected = xcalloc(n, sizeof *expected);
    for (size_t i = 0; i < n; i++) {
        size_t row = i / c->columns;
        double gate = (double)gate_up[row * 2 * c->columns + i % c->columns];
        double up = (double)gate_up[row * 2 * c->columns + c->columns + i % c->columns];
        expected[i] = gate / (1.0 + exp(-gate)) * up;
    }
    /* Four roundings and an exponential within 2 units in the last place; fp16 has subnormals below 2^-14. */
    expect_close("swiglu", out, expected, n, dtype_epsilon(c->x) + 8 * 0x1p-24, c->x == DTYPE_F16 ? 0x1p-25 : 1e-34);
    free(gate_up);
    free(out);
    free(expected);
}

/* Whether y is rounded on the way is the backend's choice, so its error is bounded by both roundings of it. */
static void expect_swiglu(const struct op_case *c, float out, double gate, double gate_size, double up,
                          double up_size) {
    double rounding = (c->inner + 1) * 0x1p-24;
    double epsilon = dtype_epsilon(c->y);
    double gate_error = gate_size * rounding + fabs(gate) * epsilon;
    double up_error = up_size * rounding + fabs(up) * epsilon;
    double silu = gate / (1.0 + exp(-gate));
    double expected = silu * up;
    /* silu's slope is nowhere above 1.1. */
    double error = 1.1 * gate_error * (fabs(up) + up_error) + fabs(silu) * up_error;
    expect_close("gemm_swiglu", &out, &expected, 1, epsilon + 8 * 0x1p-24, error + (c->y == DTYPE_F16 ? 0x1p-25 : 0));
}

void case_gemm_swiglu(struct rig *rig, const struct op_case *c) {
    uint64_t seed = 8;
    uint32_t n = 2 * c->columns;
    size_t x_stride = c->inner + (c->inner % 8 == 0 ? 8 : 5); /* as in case_gemm */
    float *x = random_values(&seed, c->rows * x_stride, c->x, 1.0f);
    for (size_t i = 0; i < c->rows * x_stride; i++) {
        x[i] = i % x_stride < c->inner ? x[i] : NAN;
    }
    float *weight = random_values(&seed, (size_t)n * c->inner, c->w, 1.0f / sqrtf((float)c->inner)); /* y of size 1 */
    float *bias = random_values(&seed, n, c->w, 2.0f);
    size_t out_bytes = (size_t)c->rows * c->columns * dtype_bytes(c->y);
    struct op_gemm_swiglu args = {
        .gemm = {.weight = {.format = c->w,
                            .n = n,
                            .k = c->inner,
                            .data = upload_values(rig, weight, (size_t)n * c->inner, c->w)},
                 .bias = c->plain ? NULL : upload_values(rig, bias, n, c->w),
                 .bias_dtype = c->w,
                 .x = upload_values(rig, x, c->rows * x_stride, c->x),
                 .x_dtype = c->x,
                 .x_stride = x_stride,
                 .out = rig_alloc(rig, 2 * out_bytes),
                 .out_dtype = c->y,
                 .out_stride = n,
                 .m = c->rows},
        .out = rig_alloc(rig, out_bytes),
    };
    EXPECT_OK(rig->ops->gemm_swiglu(rig->stream, &args));
    float *out = download_values(rig, args.out, (size_t)c->rows * c->columns, c->y);
    for (uint32_t row = 0; row < c->rows; row++) {
        for (uint32_t column = 0; column < c->columns; column++) {
            double gate_size;
            double up_size;
            const float *added = c->plain ? NULL : bias;
            double gate = dot(&args.gemm, x, weight, added, row, column, &gate_size);
            double up = dot(&args.gemm, x, weight, added, row, c->columns + column, &up_size);
            expect_swiglu(c, out[(size_t)row * c->columns + column], gate, gate_size, up, up_size);
        }
    }
    free(x);
    free(weight);
    free(bias);
    free(out);
}

void case_gather_rows(struct rig *rig, const struct op_case *c) {
    uint64_t seed = 5;
    uint32_t n_source = 50;
    uint8_t *x = xcalloc(n_source, c->columns);
    for (size_t i = 0; i < (size_t)n_source * c->columns; i++) {
        x[i] = (uint8_t)rng_next(&seed);
    }
    uint32_t *index = xcalloc(c->rows, sizeof *index);
    for (uint32_t i = 0; i < c->rows; i++) {
        index[i] = (uint32_t)(rng_next(&seed) % n_source);
    }
    struct op_gather_rows args = {
        .x = rig_upload(rig, x, (size_t)n_source * c->columns),
        .index = rig_upload(rig, index, c->rows * sizeof *index),
        .out = rig_alloc(rig, (size_t)c->rows * c->columns),
        .n_rows = c->rows,
        .row_bytes = c->columns,
    };
    EXPECT_OK(rig->ops->gather_rows(rig->stream, &args));
    uint8_t *out = rig_download(rig, args.out, (size_t)c->rows * c->columns);
    for (size_t i = 0; i < (size_t)c->rows * c->columns; i++) {
        EXPECT_EQ(out[i], x[index[i / c->columns] * c->columns + i % c->columns]);
    }
    free(x);
    free(index);
    free(out);
}

void case_copy_2d(struct rig *rig, const struct op_case *c) {
    uint64_t seed = 6;
    size_t src_stride = c->columns + 11;
    size_t dst_stride = c->columns + 4;
    uint8_t *src = xcalloc(c->rows, src_stride);
    for (size_t i = 0; i < c->rows * src_stride; i++) {
        src[i] = (uint8_t)rng_next(&seed);
    }
    struct op_copy_2d args = {
        .dst = rig_alloc(rig, c->rows * dst_stride),
        .dst_stride = dst_stride,
        .src = rig_upload(rig, src, c->rows * src_stride),
        .src_stride = src_stride,
        .width = c->columns,
        .height = c->rows,
    };
    EXPECT_OK(rig->ops->copy_2d(rig->stream, &args));
    uint8_t *dst = rig_download(rig, args.dst, c->rows * dst_stride);
    for (size_t i = 0; i < c->rows * dst_stride; i++) {
        size_t column = i % dst_stride;
        EXPECT_EQ(dst[i], column < c->columns ? src[i / dst_stride * src_stride + column] : 0xff);
    }
    free(src);
    free(dst);
}

void case_random(struct rig *rig, const struct op_case *c) {
    size_t n = (size_t)c->rows * c->columns;
    struct op_random args = {
        .out = rig_alloc(rig, n * dtype_bytes(c->y)),
        .dtype = c->y,
        .n_rows = c->rows,
        .n_columns = c->columns,
        .key = 0xfedcba9876543210ull,
        .first = 5,
        .row_step = c->columns + 3, /* a part of wider rows */
        .centre = 1.0f,
        .scale = 0.1f,
    };
    EXPECT_OK(rig->ops->random(rig->stream, &args));
    float *out = download_values(rig, args.out, n, c->y);
    uint64_t state = args.key; /* the sequence of splitmix64 is walked from its beginning */
    uint64_t next = 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t number = args.first + i / c->columns * args.row_step + i % c->columns;
        uint64_t draw = 0;
        for (; next <= number; next++) {
            draw = rng_next(&state);
        }
        double unit = (double)(draw >> 40) * 0x1p-23 - 1.0;
        double expected = (double)args.centre + (double)args.scale * unit;
        /* One rounding of the product and one of the sum, then one to the format. */
        expect_close("random", &out[i], &expected, 1, dtype_epsilon(c->y) + 2 * 0x1p-24, 0.0);
    }
    free(out);
}
