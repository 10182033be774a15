/* What device.c, stream.c and pool.c share. */
#ifndef TANDEM_KERNELS_CPU_DEVICE_H
#define TANDEM_KERNELS_CPU_DEVICE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "kernels/cpu/cpu_device.h"

struct cpu_pool;

struct kernel_device {
    struct kernel_device_config config;
    struct cpu_pool *pool;
    char *scratch;              /* [1 + threads][CPU_SCRATCH_BYTES] */
    pthread_mutex_t math_lock;  /* held by the stream whose math record runs */
    _Atomic uint32_t n_streams; /* alive */
    _Atomic bool pinned_stream; /* a stream already has first_cpu */
};

/* Memory that math records may use while they run: one piece for all threads, and one for each. Page-aligned, and
 * untouched pages cost nothing: as large as a panel of the longest rows is (gemm_turned_avx512.c). */
#define CPU_SCRATCH_BYTES ((size_t)34 << 20)
void *cpu_shared_scratch(const struct kernel_device *device);
void *cpu_thread_scratch(const struct kernel_device *device, uint32_t thread);

/* ---- pool.c: the helper threads */
enum status cpu_pool_create(const struct kernel_device_config *config, struct cpu_pool **pool);
void cpu_pool_destroy(struct cpu_pool *pool);

/* Starts a thread, pinned to `cpu` unless that is negative, with all signals blocked: they belong to the program's own
 * threads. */
enum status cpu_thread_start(pthread_t *thread, int cpu, void *(*function)(void *), void *argument);

/* ---- device.c */
enum status cpu_open(const struct kernel_device_config *config, struct kernel_device **device);
void cpu_close(struct kernel_device *device);
enum status cpu_memory_info(struct kernel_device *device, size_t *free_bytes, size_t *total_bytes);
enum status cpu_alloc(struct kernel_device *device, size_t bytes, void **memory);
void cpu_free(struct kernel_device *device, void *memory);

/* ---- stream.c */
enum status cpu_stream_create(struct kernel_device *device, struct kernel_stream **stream);
enum status cpu_copy_stream_create(struct kernel_device *device, struct kernel_stream **stream);
void cpu_stream_destroy(struct kernel_stream *stream);
enum status cpu_stream_sync(struct kernel_stream *stream);
enum status cpu_event_create(struct kernel_device *device, struct kernel_event **event);
void cpu_event_destroy(struct kernel_event *event);
enum status cpu_event_record(struct kernel_event *event, struct kernel_stream *stream);
enum status cpu_event_wait(struct kernel_stream *stream, struct kernel_event *event);
enum status cpu_event_sync(struct kernel_event *event);
enum status cpu_graph_begin(struct kernel_stream *stream);
enum status cpu_graph_end(struct kernel_stream *stream, struct kernel_graph **graph);
enum status cpu_graph_launch(struct kernel_graph *graph, struct kernel_stream *stream);
void cpu_graph_destroy(struct kernel_graph *graph);
enum status cpu_copy(struct kernel_stream *stream, void *dst, const void *src, size_t bytes, enum kernel_copy kind);
enum status cpu_fill(struct kernel_stream *stream, void *dst, int byte, size_t bytes);
enum status cpu_host_call(struct kernel_stream *stream, void (*function)(void *argument), const void *argument,
                          size_t bytes);

#endif
