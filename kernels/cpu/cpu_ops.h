/* The math ops of the cpu backend; kernels.h says what each does. All only enqueue: the work runs on the stream's
 * thread, spread over the device's compute threads. None of them allocates, and none fails. */
#ifndef TANDEM_KERNELS_CPU_CPU_OPS_H
#define TANDEM_KERNELS_CPU_CPU_OPS_H

#include "kernels/kernels.h"

/* Always DTYPE_F32: on a processor the conversions cost more than the bytes. */
enum dtype cpu_activation_dtype(enum dtype weights);

/* The table of chunks, and the results of splits (attention.c). */
size_t cpu_attention_workspace(struct kernel_device *device, uint32_t max_tokens, uint32_t n_q_heads, uint32_t head_dim,
                               uint32_t max_kv_len);

/* What cpu_swiglu enqueues; args is a struct op_swiglu. */
void cpu_swiglu_run(struct kernel_device *device, const void *args);

enum status cpu_slot_update(struct kernel_stream *stream, const struct op_slot_update *args);
enum status cpu_batch_prepare(struct kernel_stream *stream, const struct op_batch_prepare *args);
enum status cpu_embed(struct kernel_stream *stream, const struct op_embed *args);
enum status cpu_rmsnorm(struct kernel_stream *stream, const struct op_rmsnorm *args);
enum status cpu_gemm(struct kernel_stream *stream, const struct op_gemm *args);
enum status cpu_rope_kv(struct kernel_stream *stream, const struct op_rope_kv *args);
enum status cpu_attention(struct kernel_stream *stream, const struct op_attention *args);
enum status cpu_swiglu(struct kernel_stream *stream, const struct op_swiglu *args);
enum status cpu_gemm_swiglu(struct kernel_stream *stream, const struct op_gemm_swiglu *args);
enum status cpu_gather_rows(struct kernel_stream *stream, const struct op_gather_rows *args);
enum status cpu_copy_2d(struct kernel_stream *stream, const struct op_copy_2d *args);
enum status cpu_random(struct kernel_stream *stream, const struct op_random *args);
enum status cpu_argmax(struct kernel_stream *stream, const struct op_argmax *args);
enum status cpu_argmax_merge(struct kernel_stream *stream, const struct op_argmax_merge *args);
enum status cpu_sample(struct kernel_stream *stream, const struct op_sample *args);
enum status cpu_commit(struct kernel_stream *stream, const struct op_commit *args);

#endif
