#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rows.cuh"

template <int V> static __global__ void embed_kernel(struct op_embed args) {
    let_dependents_launch();
    wait_for_predecessors();
    uint32_t token = blockIdx.x;
    size_t hidden = args.table.k;
    uint32_t row = args.token_id[token] - args.first_id; /* wraps below first_id, then fails the test too */
    bool ours = row < args.table.n;
    for (size_t i = row_item() * V; i < hidden; i += row_items() * V) {
        float value[V] = {};
        if (ours) {
            load_elements<V>(args.table.data, args.table.format, row * hidden + i, value);
        }
        store_elements<V>(args.out, args.out_dtype, token * hidden + i, value);
    }
}

enum status cuda_embed(struct kernel_stream *stream, const struct op_embed *args) {
    if (by_eights(args->table.k, (uintptr_t)args->table.data | (uintptr_t)args->out)) {
        dim3 grid = row_grid(args->n_tokens, args->table.k / 8);
        return cuda_status(launch_dependent(stream, embed_kernel<8>, grid, ROW_THREADS, 0, *args), "embed");
    }
    dim3 grid = row_grid(args->n_tokens, args->table.k);
    return cuda_status(launch_dependent(stream, embed_kernel<1>, grid, ROW_THREADS, 0, *args), "embed");
}
