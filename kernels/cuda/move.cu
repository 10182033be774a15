#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/rows.cuh"

struct moved_rows {
    char *dst;
    size_t dst_stride;
    const char *src;
    size_t src_stride;
    const uint32_t *index; /* [n_rows] rows of src; NULL: one after the other */
    size_t n_rows;
    size_t width;
};

template <typename T> static __global__ void move_kernel(struct moved_rows rows) {
    for (size_t row = blockIdx.x; row < rows.n_rows; row += gridDim.x) {
        size_t from = rows.index != NULL ? rows.index[row] : row;
        const T *src = (const T *)(rows.src + from * rows.src_stride);
        T *dst = (T *)(rows.dst + row * rows.dst_stride);
        for (size_t i = row_item(); i < rows.width / sizeof(T); i += row_items()) {
            dst[i] = src[i];
        }
    }
}

template <typename T> static void launch(struct kernel_stream *stream, const struct moved_rows *rows) {
    uint32_t n_rows = (uint32_t)(rows->n_rows < INT32_MAX ? rows->n_rows : INT32_MAX);
    move_kernel<T><<<row_grid(n_rows, rows->width / sizeof(T)), ROW_THREADS, 0, stream->stream>>>(*rows);
}

/* By the widest pieces that the addresses and the width allow. */
static void move_rows(struct kernel_stream *stream, const struct moved_rows *rows) {
    uintptr_t together = (uintptr_t)rows->dst | (uintptr_t)rows->src | rows->width;
    together |= rows->n_rows > 1 || rows->index != NULL ? rows->dst_stride | rows->src_stride : 0;
    if (together % sizeof(uint4) == 0) {
        launch<uint4>(stream, rows);
    } else if (together % sizeof(uint32_t) == 0) {
        launch<uint32_t>(stream, rows);
    } else {
        launch<uint8_t>(stream, rows);
    }
}

enum status cuda_gather_rows(struct kernel_stream *stream, const struct op_gather_rows *args) {
    struct moved_rows rows = {};
    rows.dst = (char *)args->out;
    rows.dst_stride = args->row_bytes;
    rows.src = (const char *)args->x;
    rows.src_stride = args->row_bytes;
    rows.index = args->index;
    rows.n_rows = args->n_rows;
    rows.width = args->row_bytes;
    move_rows(stream, &rows);
    return CUDA_LAUNCHED("gather_rows");
}

enum status cuda_copy_2d(struct kernel_stream *stream, const struct op_copy_2d *args) {
    struct moved_rows rows = {};
    rows.dst = (char *)args->dst;
    rows.dst_stride = args->dst_stride;
    rows.src = (const char *)args->src;
    rows.src_stride = args->src_stride;
    rows.n_rows = args->height;
    rows.width = args->width;
    move_rows(stream, &rows);
    return CUDA_LAUNCHED("copy_2d");
}
