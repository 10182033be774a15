/* The table of the cuda backend. */
#include "kernels/cuda/cuda_ops.h"

/* On cards without bf16 arithmetic, activations of bf16 weights are fp32: fp16 overflows where bf16 does not. */
static enum dtype activation_dtype(enum dtype weights) {
    return weights == DTYPE_BF16 && cuda_lowest_arch() < 80 ? DTYPE_F32 : weights;
}

/* A launch goes to the thread's current card, and a stream may be used from any thread. */
#define ENTER(op)                                                                                                      \
    static enum status enter_##op(struct kernel_stream *stream, const struct op_##op *args) {                          \
        TRY(cuda_enter(stream->device));                                                                               \
        return cuda_##op(stream, args);                                                                                \
    }

ENTER(slot_update)
ENTER(batch_prepare)
ENTER(embed)
ENTER(rmsnorm)
ENTER(gemm)
ENTER(rope_kv)
ENTER(attention)
ENTER(swiglu)
ENTER(gemm_swiglu)
ENTER(gather_rows)
ENTER(copy_2d)
ENTER(random)
ENTER(argmax)
ENTER(argmax_merge)
ENTER(sample)
ENTER(commit)

static constexpr void name_services(struct kernel_ops &ops) {
    ops.open = cuda_open;
    ops.close = cuda_close;
    ops.memory_info = cuda_memory_info;
    ops.alloc = cuda_alloc;
    ops.free = cuda_free;
    ops.host_alloc = cuda_host_alloc;
    ops.host_free = cuda_host_free;
    ops.stream_create = cuda_stream_create;
    ops.copy_stream_create = cuda_copy_stream_create;
    ops.stream_destroy = cuda_stream_destroy;
    ops.stream_sync = cuda_stream_sync;
    ops.event_create = cuda_event_create;
    ops.event_destroy = cuda_event_destroy;
    ops.event_record = cuda_event_record;
    ops.event_wait = cuda_event_wait;
    ops.event_sync = cuda_event_sync;
    ops.graph_begin = cuda_graph_begin;
    ops.graph_end = cuda_graph_end;
    ops.graph_launch = cuda_graph_launch;
    ops.graph_destroy = cuda_graph_destroy;
    ops.copy = cuda_copy;
    ops.fill = cuda_fill;
    ops.host_call = cuda_host_call;
    /* Never: on two H100 behind NVLink halves gained nothing, a prompt of 2,048 tokens took 111.5 ms and 112.5 uncut,
     * of 8,192 479 and 476. A product's blocks leave a sum beside it no processors to speak of. */
    ops.half_step_tokens = UINT32_MAX;
    ops.activation_dtype = activation_dtype;
    ops.attention_workspace = cuda_attention_workspace;
    ops.stream_bytes = cuda_stream_bytes;
    ops.graph_bytes = cuda_graph_bytes;
}

static constexpr void name_math(struct kernel_ops &ops) {
    ops.slot_update = enter_slot_update;
    ops.batch_prepare = enter_batch_prepare;
    ops.embed = enter_embed;
    ops.rmsnorm = enter_rmsnorm;
    ops.gemm = enter_gemm;
    ops.rope_kv = enter_rope_kv;
    ops.attention = enter_attention;
    ops.swiglu = enter_swiglu;
    ops.gemm_swiglu = enter_gemm_swiglu;
    ops.gather_rows = enter_gather_rows;
    ops.copy_2d = enter_copy_2d;
    ops.random = enter_random;
    ops.argmax = enter_argmax;
    ops.argmax_merge = enter_argmax_merge;
    ops.sample = enter_sample;
    ops.commit = enter_commit;
}

/* By name, as in ops.c of the cpu backend: C++17 has no designated initialisers. */
static constexpr struct kernel_ops make_ops(void) {
    struct kernel_ops ops = {};
    ops.name = "cuda";
    name_services(ops);
    name_math(ops);
    return ops;
}

extern "C" const struct kernel_ops kernels_cuda_ops;
extern "C" constexpr struct kernel_ops kernels_cuda_ops = make_ops();
