/* Launches that overlap on one stream: from sm_90 on, a kernel may start while the one before it still runs
 * (programmatic dependent launch), so that what depends on nobody - its start, its weights - costs no time of its own.
 *
 * The contract of a kernel launched by launch_dependent: every block calls wait_for_predecessors() before it reads what
 * any kernel before it on the stream writes, and before it writes what any of them may still read or write; that is,
 * before every access to memory other than reads of what never changes (weights, tables of the model). No block may
 * leave without that call, not even one without work: a kernel's end tells its successor that all before it has ended
 * too, which holds only if it waited itself.
 *
 * let_dependents_launch() may come at any place, before the wait too: it lets the next kernel's blocks into what room
 * there is on the card once all blocks of this one have called it (or ended), and says nothing about memory. A kernel
 * that never calls it lets its successor start when it ends.
 *
 * Data of predecessors is read by plain loads after the wait. Loads of the read-only kind (__ldg, ld.global.nc) are for
 * what never changes: a compiler may move those across the wait.
 *
 * A kernel, copy or host call that is enqueued in the plain way after such a kernel waits for its end, and a kernel
 * launched by launch_dependent after anything that is no kernel starts when that has ended. */
#ifndef TANDEM_KERNELS_CUDA_LAUNCH_CUH
#define TANDEM_KERNELS_CUDA_LAUNCH_CUH

#include <cuda_runtime.h>

#include "kernels/cuda/handles.h"

/* Returns when all that was enqueued before this kernel has ended and its writes can be seen. */
__device__ __forceinline__ void wait_for_predecessors(void) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" : : : "memory");
#endif
}

__device__ __forceinline__ void let_dependents_launch(void) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" : : : "memory");
#endif
}

/* kernel<<<blocks, threads, shared, stream>>>(args...), started early where card and code know how. The thread's
 * current card must be the stream's. Graphs record it like any launch. */
template <typename... Parameters, typename... Args>
static inline cudaError_t launch_dependent(const struct kernel_stream *stream, void (*kernel)(Parameters...),
                                           dim3 blocks, dim3 threads, size_t shared, Args... args) {
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = blocks;
    config.blockDim = threads;
    config.dynamicSmemBytes = shared;
    config.stream = cuda_stream_handle(stream);
    config.attrs = &early;
    config.numAttrs = cuda_code_arch(stream) >= 90 ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, Parameters(args)...);
}

#endif
