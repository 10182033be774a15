#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vec.h"
#include "runtime/base/rng.h"

static void random_row(const void *context, uint32_t row, uint32_t thread) {
    (void)thread;
    const struct op_random *args = context;
    const struct vec_ops *vec = vec_ops();
    size_t size = dtype_bytes(args->dtype);
    char *out = (char *)args->out + (size_t)row * args->n_columns * size;
    float values[ROW_CHUNK];
    for (size_t i = 0; i < args->n_columns; i += ROW_CHUNK) {
        size_t n = row_chunk(args->n_columns, i);
        uint64_t number = args->first + row * args->row_step + i;
        for (size_t j = 0; j < n; j++) {
            values[j] = args->centre + args->scale * rng_element(args->key, number + j);
        }
        vec->store(out + i * size, args->dtype, values, n);
    }
}

static void random_run(struct kernel_device *device, const void *context) {
    const struct op_random *args = context;
    cpu_rows(device, args->n_rows, (size_t)args->n_columns * 4, random_row, args);
}

enum status cpu_random(struct kernel_stream *stream, const struct op_random *args) {
    cpu_enqueue(stream, random_run, args, sizeof *args);
    return STATUS_OK;
}
