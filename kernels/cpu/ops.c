/* The table of the cpu backend. */
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/device.h"

/* Both are the host's small change. */
static size_t stream_bytes(struct kernel_device *device) {
    (void)device;
    return 0;
}

static size_t graph_bytes(struct kernel_device *device, uint32_t n_ops) {
    (void)device;
    (void)n_ops;
    return 0;
}

const struct kernel_ops cpu_kernel_ops = {
    .name = "cpu",
    .open = cpu_open,
    .close = cpu_close,
    .memory_info = cpu_memory_info,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .host_alloc = cpu_alloc, /* one memory */
    .host_free = cpu_free,
    .stream_create = cpu_stream_create,
    .copy_stream_create = cpu_copy_stream_create,
    .stream_destroy = cpu_stream_destroy,
    .stream_sync = cpu_stream_sync,
    .event_create = cpu_event_create,
    .event_destroy = cpu_event_destroy,
    .event_record = cpu_event_record,
    .event_wait = cpu_event_wait,
    .event_sync = cpu_event_sync,
    .graph_begin = cpu_graph_begin,
    .graph_end = cpu_graph_end,
    .graph_launch = cpu_graph_launch,
    .graph_destroy = cpu_graph_destroy,
    .copy = cpu_copy,
    .fill = cpu_fill,
    .host_call = cpu_host_call,
    .activation_dtype = cpu_activation_dtype,
    .attention_workspace = cpu_attention_workspace,
    .stream_bytes = stream_bytes,
    .graph_bytes = graph_bytes,
    .slot_update = cpu_slot_update,
    .batch_prepare = cpu_batch_prepare,
    .embed = cpu_embed,
    .rmsnorm = cpu_rmsnorm,
    .gemm = cpu_gemm,
    .rope_kv = cpu_rope_kv,
    .attention = cpu_attention,
    .swiglu = cpu_swiglu,
    .gemm_swiglu = cpu_gemm_swiglu,
    .gather_rows = cpu_gather_rows,
    .copy_2d = cpu_copy_2d,
    .random = cpu_random,
    .argmax = cpu_argmax,
    .argmax_merge = cpu_argmax_merge,
    .sample = cpu_sample,
    .commit = cpu_commit,
};
