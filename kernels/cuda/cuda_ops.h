/* What the files of the cuda backend offer each other: the device services and the math ops; kernels.h says what each
 * does. Of the math ops the thread's current card must be the stream's: the table's entries (ops.cu) see to it. */
#ifndef TANDEM_KERNELS_CUDA_CUDA_OPS_H
#define TANDEM_KERNELS_CUDA_CUDA_OPS_H

#include "kernels/cuda/cuda_device.h"

/* ---- device.cu */
enum status cuda_open(const struct kernel_device_config *config, struct kernel_device **device);
void cuda_close(struct kernel_device *device);
enum status cuda_memory_info(struct kernel_device *device, size_t *free_bytes, size_t *total_bytes);
enum status cuda_alloc(struct kernel_device *device, size_t bytes, void **memory);
void cuda_free(struct kernel_device *device, void *memory);
enum status cuda_host_alloc(struct kernel_device *device, size_t bytes, void **memory);
void cuda_host_free(struct kernel_device *device, void *memory);

/* Makes the device the calling thread's current one: calls may come from any thread. */
enum status cuda_enter(const struct kernel_device *device);

/* The lowest `arch` of all devices opened by this process; INT_MAX before the first. */
int cuda_lowest_arch(void);

/* ---- stream.cu */
enum status cuda_stream_create(struct kernel_device *device, struct kernel_stream **stream);
enum status cuda_copy_stream_create(struct kernel_device *device, struct kernel_stream **stream);
size_t cuda_graph_bytes(struct kernel_device *device, uint32_t n_ops);
void cuda_stream_destroy(struct kernel_stream *stream);
enum status cuda_stream_sync(struct kernel_stream *stream);
enum status cuda_event_create(struct kernel_device *device, struct kernel_event **event);
void cuda_event_destroy(struct kernel_event *event);
enum status cuda_event_record(struct kernel_event *event, struct kernel_stream *stream);
enum status cuda_event_wait(struct kernel_stream *stream, struct kernel_event *event);
enum status cuda_event_sync(struct kernel_event *event);
enum status cuda_graph_begin(struct kernel_stream *stream);
enum status cuda_graph_end(struct kernel_stream *stream, struct kernel_graph **graph);
enum status cuda_graph_launch(struct kernel_graph *graph, struct kernel_stream *stream);
void cuda_graph_destroy(struct kernel_graph *graph);
enum status cuda_copy(struct kernel_stream *stream, void *dst, const void *src, size_t bytes, enum kernel_copy kind);
enum status cuda_fill(struct kernel_stream *stream, void *dst, int byte, size_t bytes);
enum status cuda_host_call(struct kernel_stream *stream, void (*function)(void *argument), const void *argument,
                           size_t bytes);

/* ---- cublas.cu */
enum status cuda_blas_open(struct kernel_stream *stream);
void cuda_blas_close(struct kernel_stream *stream);
size_t cuda_stream_bytes(struct kernel_device *device);

/* ---- gemm.cu: the stream's scratch memory for matrix products */
size_t cuda_gemm_scratch_bytes(const struct kernel_device *device); /* NULL: what no device's is above */
enum status cuda_gemm_open(struct kernel_stream *stream);
void cuda_gemm_close(struct kernel_stream *stream);

/* ---- math */
size_t cuda_attention_workspace(struct kernel_device *device, uint32_t max_tokens, uint32_t n_q_heads,
                                uint32_t head_dim, uint32_t max_kv_len);

enum status cuda_slot_update(struct kernel_stream *stream, const struct op_slot_update *args);
enum status cuda_batch_prepare(struct kernel_stream *stream, const struct op_batch_prepare *args);
enum status cuda_embed(struct kernel_stream *stream, const struct op_embed *args);
enum status cuda_rmsnorm(struct kernel_stream *stream, const struct op_rmsnorm *args);
enum status cuda_gemm(struct kernel_stream *stream, const struct op_gemm *args);
enum status cuda_rope_kv(struct kernel_stream *stream, const struct op_rope_kv *args);
enum status cuda_attention(struct kernel_stream *stream, const struct op_attention *args);
enum status cuda_swiglu(struct kernel_stream *stream, const struct op_swiglu *args);
enum status cuda_gemm_swiglu(struct kernel_stream *stream, const struct op_gemm_swiglu *args);
enum status cuda_gather_rows(struct kernel_stream *stream, const struct op_gather_rows *args);
enum status cuda_copy_2d(struct kernel_stream *stream, const struct op_copy_2d *args);
enum status cuda_random(struct kernel_stream *stream, const struct op_random *args);
enum status cuda_argmax(struct kernel_stream *stream, const struct op_argmax *args);
enum status cuda_argmax_merge(struct kernel_stream *stream, const struct op_argmax_merge *args);
enum status cuda_sample(struct kernel_stream *stream, const struct op_sample *args);
enum status cuda_commit(struct kernel_stream *stream, const struct op_commit *args);

/* Brings the sampler's code and its static memory onto the current card, so that memory_info counts them from the
 * start. */
enum status cuda_sample_load(void);

#endif
