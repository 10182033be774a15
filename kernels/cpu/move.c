#include <string.h>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/rows.h"

static void gather_row(const void *context, uint32_t row, uint32_t thread) {
    (void)thread;
    const struct op_gather_rows *args = context;
    memcpy((char *)args->out + row * args->row_bytes, (const char *)args->x + args->index[row] * args->row_bytes,
           args->row_bytes);
}

static void gather_rows_run(struct kernel_device *device, const void *context) {
    const struct op_gather_rows *args = context;
    cpu_rows(device, args->n_rows, args->row_bytes / 8, gather_row, args);
}

enum status cpu_gather_rows(struct kernel_stream *stream, const struct op_gather_rows *args) {
    cpu_enqueue(stream, gather_rows_run, args, sizeof *args);
    return STATUS_OK;
}

static void copy_row(const void *context, uint32_t row, uint32_t thread) {
    (void)thread;
    const struct op_copy_2d *args = context;
    memcpy((char *)args->dst + row * args->dst_stride, (const char *)args->src + row * args->src_stride, args->width);
}

static void copy_2d_run(struct kernel_device *device, const void *context) {
    const struct op_copy_2d *args = context;
    cpu_rows(device, (uint32_t)args->height, args->width / 8, copy_row, args);
}

enum status cpu_copy_2d(struct kernel_stream *stream, const struct op_copy_2d *args) {
    cpu_enqueue(stream, copy_2d_run, args, sizeof *args);
    return STATUS_OK;
}
