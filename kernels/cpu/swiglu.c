#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vec.h"

static void swiglu_row(const void *context, uint32_t token, uint32_t thread) {
    (void)thread;
    const struct op_swiglu *args = context;
    const struct vec_ops *vec = vec_ops();
    size_t columns = args->n_columns;
    size_t size = dtype_bytes(args->dtype);
    const char *gate = (const char *)args->gate_up + (size_t)token * 2 * columns * size;
    const char *up = gate + columns * size;
    char *out = (char *)args->out + token * columns * size;
    float gate_scratch[ROW_CHUNK];
    float up_scratch[ROW_CHUNK];
    for (size_t i = 0; i < columns; i += ROW_CHUNK) {
        size_t n = row_chunk(columns, i);
        const float *gate_part = vec_view(vec, gate + i * size, args->dtype, gate_scratch, n);
        const float *up_part = vec_view(vec, up + i * size, args->dtype, up_scratch, n);
        if (args->dtype == DTYPE_F32) {
            vec->swiglu((float *)(void *)out + i, gate_part, up_part, n);
        } else {
            vec->swiglu(gate_scratch, gate_part, up_part, n);
            vec->store(out + i * size, args->dtype, gate_scratch, n);
        }
    }
}

void cpu_swiglu_run(struct kernel_device *device, const void *context) {
    const struct op_swiglu *args = context;
    cpu_rows(device, args->n_tokens, (size_t)args->n_columns * 2, swiglu_row, args);
}

enum status cpu_swiglu(struct kernel_stream *stream, const struct op_swiglu *args) {
    cpu_enqueue(stream, cpu_swiglu_run, args, sizeof *args);
    return STATUS_OK;
}
