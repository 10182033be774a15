#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rows.cuh"

/* Two rows of a step on one slot are padding rows: each has the same token at position 0, so the first of them writes
 * the cache for all, and no two threads write the same place. They lie side by side. */
static __device__ bool repeats_last_slot(const struct op_rope_kv &args, uint32_t token) {
    if (token == 0) {
        return false;
    }
    uint32_t row = args.token_row[token];
    uint32_t last = args.token_row[token - 1];
    return row != last && args.row_slot[row] == args.row_slot[last];
}

/* Where element 0 of the token's key of head 0 lies in the cache. Behind it come the keys of the other heads, then the
 * values, block_size * head_dim elements apart. */
static __device__ size_t place_in_cache(const struct op_rope_kv &args, uint32_t token, uint32_t pos,
                                        size_t block_elements) {
    uint32_t slot = args.row_slot[args.token_row[token]];
    uint32_t block = args.block_table[(size_t)slot * args.max_blocks + pos / args.kv.block_size];
    return block * block_elements + (size_t)(pos % args.kv.block_size) * args.kv.head_dim;
}

template <int V>
static __device__ void rotate(float (&first)[V], float (&second)[V], const float *cosine, const float *sine) {
    float c[V];
    float s[V];
    load_elements<V>(cosine, DTYPE_F32, 0, c);
    load_elements<V>(sine, DTYPE_F32, 0, s);
#pragma unroll
    for (int j = 0; j < V; j++) {
        float a = first[j];
        float b = second[j];
        first[j] = a * c[j] - b * s[j];
        second[j] = b * c[j] + a * s[j];
    }
}

/* An item is V elements of a head's first half and their partners in the second. */
template <int V> static __global__ void rope_kv_kernel(struct op_rope_kv args, size_t block_elements) {
    let_dependents_launch();
    wait_for_predecessors();
    uint32_t token = blockIdx.x;
    uint32_t dim = args.kv.head_dim;
    uint32_t half = dim / 2;
    uint32_t n_heads = args.n_q_heads + 2 * args.kv.n_heads;
    uint32_t items_per_head = half / V;
    uint32_t pos = args.token_pos[token];
    const float *cosine = args.rope + (size_t)pos * dim;
    size_t place = place_in_cache(args, token, pos, block_elements);
    bool write = !repeats_last_slot(args, token);
    for (uint32_t item = row_item(); item < n_heads * items_per_head; item += row_items()) {
        uint32_t head = item / items_per_head;
        uint32_t i = item % items_per_head * V;
        size_t at = ((size_t)token * n_heads + head) * dim + i;
        float first[V];
        float second[V];
        load_elements<V>(args.qkv, args.dtype, at, first);
        load_elements<V>(args.qkv, args.dtype, at + half, second);
        if (head < args.n_q_heads + args.kv.n_heads) {
            rotate<V>(first, second, cosine + i, cosine + half + i);
            store_elements<V>(args.qkv, args.dtype, at, first);
            store_elements<V>(args.qkv, args.dtype, at + half, second);
        }
        if (head >= args.n_q_heads && write) {
            size_t to = place + (size_t)(head - args.n_q_heads) * args.kv.block_size * dim + i;
            store_elements<V>(args.cache, args.kv.dtype, to, first);
            store_elements<V>(args.cache, args.kv.dtype, to + half, second);
        }
    }
}

enum status cuda_rope_kv(struct kernel_stream *stream, const struct op_rope_kv *args) {
    size_t n_heads = (size_t)args->n_q_heads + 2 * args->kv.n_heads;
    size_t half = args->kv.head_dim / 2;
    size_t block_elements = kv_block_elements(&args->kv);
    if (by_eights(half, (uintptr_t)args->qkv | (uintptr_t)args->rope | (uintptr_t)args->cache)) {
        dim3 grid = row_grid(args->n_tokens, n_heads * half / 8);
        return cuda_status(launch_dependent(stream, rope_kv_kernel<8>, grid, ROW_THREADS, 0, *args, block_elements),
                           "rope_kv");
    }
    dim3 grid = row_grid(args->n_tokens, n_heads * half);
    return cuda_status(launch_dependent(stream, rope_kv_kernel<1>, grid, ROW_THREADS, 0, *args, block_elements),
                       "rope_kv");
}
