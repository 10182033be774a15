#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rows.cuh"

template <int V> static __global__ void swiglu_kernel(struct op_swiglu args) {
    let_dependents_launch();
    wait_for_predecessors();
    size_t token = blockIdx.x;
    size_t columns = args.n_columns;
    for (size_t i = row_item() * V; i < columns; i += row_items() * V) {
        float gate[V];
        float up[V];
        load_elements<V>(args.gate_up, args.dtype, token * 2 * columns + i, gate);
        load_elements<V>(args.gate_up, args.dtype, token * 2 * columns + columns + i, up);
#pragma unroll
        for (int j = 0; j < V; j++) {
            gate[j] = silu(gate[j]) * up[j];
        }
        store_elements<V>(args.out, args.dtype, token * columns + i, gate);
    }
}

enum status cuda_swiglu(struct kernel_stream *stream, const struct op_swiglu *args) {
    if (by_eights(args->n_columns, (uintptr_t)args->gate_up | (uintptr_t)args->out)) {
        dim3 grid = row_grid(args->n_tokens, args->n_columns / 8);
        return cuda_status(launch_dependent(stream, swiglu_kernel<8>, grid, ROW_THREADS, 0, *args), "swiglu");
    }
    dim3 grid = row_grid(args->n_tokens, args->n_columns);
    return cuda_status(launch_dependent(stream, swiglu_kernel<1>, grid, ROW_THREADS, 0, *args), "swiglu");
}
