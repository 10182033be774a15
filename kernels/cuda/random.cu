#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/rows.cuh"

extern "C" {
#include "runtime/base/rng.h"
}

template <int V> static __global__ void random_kernel(struct op_random args) {
    size_t row = blockIdx.x;
    uint64_t number = args.first + row * args.row_step;
    for (size_t i = row_item() * V; i < args.n_columns; i += row_items() * V) {
        float value[V];
#pragma unroll
        for (int j = 0; j < V; j++) {
            value[j] = __fadd_rn(args.centre, __fmul_rn(args.scale, rng_element(args.key, number + i + j)));
        }
        store_elements<V>(args.out, args.dtype, row * args.n_columns + i, value);
    }
}

enum status cuda_random(struct kernel_stream *stream, const struct op_random *args) {
    if (by_eights(args->n_columns, (uintptr_t)args->out)) {
        random_kernel<8><<<row_grid(args->n_rows, args->n_columns / 8), ROW_THREADS, 0, stream->stream>>>(*args);
    } else {
        random_kernel<1><<<row_grid(args->n_rows, args->n_columns), ROW_THREADS, 0, stream->stream>>>(*args);
    }
    return CUDA_LAUNCHED("random");
}
