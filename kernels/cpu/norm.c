#include <math.h>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vec.h"

static const char *element(const void *data, enum dtype dtype, size_t index) {
    return (const char *)data + index * dtype_bytes(dtype);
}

/* Adds delta to the residual and returns the sum of the squares of the result. */
static float add_and_square(const struct op_rmsnorm *args, const struct vec_ops *vec, uint32_t token) {
    float *x = args->residual + (size_t)token * args->hidden;
    float lanes[16] = {0};
    if (args->delta == NULL || args->delta_dtype == DTYPE_F32) {
        const float *delta = args->delta;
        vec->add_squares(lanes, x, delta == NULL ? NULL : delta + (size_t)token * args->hidden, args->hidden);
        return vec_lane_sum(lanes);
    }
    float scratch[ROW_CHUNK];
    const char *delta = element(args->delta, args->delta_dtype, (size_t)token * args->hidden);
    for (size_t i = 0; i < args->hidden; i += ROW_CHUNK) {
        size_t n = row_chunk(args->hidden, i);
        vec->load(scratch, element(delta, args->delta_dtype, i), args->delta_dtype, n);
        vec->add_squares(lanes, x + i, scratch, n);
    }
    return vec_lane_sum(lanes);
}

static void rmsnorm_row(const void *context, uint32_t token, uint32_t thread) {
    (void)thread;
    const struct op_rmsnorm *args = context;
    const struct vec_ops *vec = vec_ops();
    float squares = add_and_square(args, vec, token);
    if (args->out == NULL) {
        return;
    }
    float factor = 1.0f / sqrtf(squares / (float)args->hidden + args->eps);
    const float *x = args->residual + (size_t)token * args->hidden;
    char *out = (char *)args->out + (size_t)token * args->hidden * dtype_bytes(args->out_dtype);
    float weight_scratch[ROW_CHUNK];
    float out_scratch[ROW_CHUNK];
    for (size_t i = 0; i < args->hidden; i += ROW_CHUNK) {
        size_t n = row_chunk(args->hidden, i);
        const void *packed = element(args->weight, args->weight_dtype, i);
        const float *weight = vec_view(vec, packed, args->weight_dtype, weight_scratch, n);
        if (args->out_dtype == DTYPE_F32) {
            vec->scale_weight((float *)(void *)out + i, x + i, weight, factor, n);
        } else {
            vec->scale_weight(out_scratch, x + i, weight, factor, n);
            vec->store(out + i * dtype_bytes(args->out_dtype), args->out_dtype, out_scratch, n);
        }
    }
}

static void rmsnorm_run(struct kernel_device *device, const void *context) {
    const struct op_rmsnorm *args = context;
    cpu_rows(device, args->n_tokens, args->hidden, rmsnorm_row, args);
}

enum status cpu_rmsnorm(struct kernel_stream *stream, const struct op_rmsnorm *args) {
    cpu_enqueue(stream, rmsnorm_run, args, sizeof *args);
    return STATUS_OK;
}
