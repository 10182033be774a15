/* Inside of the cpu backend: how an op gets onto a stream, onto the threads, and to the code for this processor.
 *
 * A device is `threads` compute threads. Thread 0 is the stream's own thread, which runs the stream's records in order;
 * the others are helpers that wait for parallel regions. Records put by cpu_enqueue run one at a time among all streams
 * of a device, so scratch that is kept per thread belongs to the record that runs. */
#ifndef TANDEM_KERNELS_CPU_CPU_DEVICE_H
#define TANDEM_KERNELS_CPU_CPU_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

extern const struct kernel_ops cpu_kernel_ops;

/* Puts a record {run, copy of args} at the end of the stream; recorded instead while the stream captures a graph. `run`
 * is called on the stream's thread, with args aligned to 16 bytes and valid for the call. At most
 * CPU_RECORD_BYTES. Never allocates; waits only while the stream's queue is full. */
void cpu_enqueue(struct kernel_stream *stream, void (*run)(struct kernel_device *device, const void *args),
                 const void *args, size_t bytes);

#define CPU_RECORD_BYTES 512

/* Compute threads of the device, >= 1: `thread` in a body is less than this. */
uint32_t cpu_threads(const struct kernel_device *device);

/* Calls body(context, item, thread) once for each item of 0 .. n_items - 1 and returns when all are done; called from a
 * run function. `thread` numbers the caller among cpu_threads(), for scratch that is kept per thread. Which thread
 * takes which item is left open, so an item must give the same bits on any thread, in any order. */
void cpu_parallel(struct kernel_device *device, uint32_t n_items,
                  void (*body)(const void *context, uint32_t item, uint32_t thread), const void *context);

enum cpu_isa { CPU_ISA_C, CPU_ISA_AVX2, CPU_ISA_AVX512 };

/* The instruction set in use: the best that the processor (and the operating system) has, unless TANDEM_CPU_ISA is
 * c, avx2 or avx512, which lowers it and never raises it. Reads the environment once. */
enum cpu_isa cpu_isa(void);

/* Tests only: use this set from now on. Returns the set in use, which is lower when the processor has not this one. */
enum cpu_isa cpu_isa_override(enum cpu_isa isa);

/* "c", "avx2", "avx512". */
const char *cpu_isa_name(enum cpu_isa isa);

#endif
