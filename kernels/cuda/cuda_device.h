/* What a device and a stream of the cuda backend are, for the files of this folder. */
#ifndef TANDEM_KERNELS_CUDA_CUDA_DEVICE_H
#define TANDEM_KERNELS_CUDA_CUDA_DEVICE_H

#include <cuda_runtime.h>

extern "C" {
#include "kernels/kernels.h"
}

struct cublas_calls; /* cuBLAS, opened at run time; see cublas.h */

struct kernel_device {
    int ordinal;
    int arch;          /* 70, 80, 90: compute capability of the card times ten */
    int code_arch;     /* what the code that runs on it was compiled for: at most arch */
    int n_processors;  /* streaming multiprocessors */
    size_t max_shared; /* bytes of shared memory that one block may ask for */
    bool deterministic;
    const struct cublas_calls *cublas;
};

#define STREAM_COUNTERS 288u

struct kernel_stream {
    struct kernel_device *device;
    cudaStream_t stream;
    void *cublas;               /* cublasHandle_t of this stream, bound to it and to the workspace below */
    void *cublas_workspace;     /* device memory; fixed, so that graphs may hold it */
    uint32_t *counters;         /* [STREAM_COUNTERS], zeros between kernels: those that count leave zeros behind */
    void *gemm_scratch;         /* device memory of gemm_ring.cuh; fixed as well, one product at a time */
    struct host_call *captured; /* host calls of the graph being recorded (stream.cu) */
};

/* STATUS_OK, or a status whose text names the call and the CUDA error. */
enum status cuda_status(cudaError_t error, const char *call);

/* The error of the launch just made. */
#define CUDA_LAUNCHED(name) cuda_status(cudaGetLastError(), name)

/* TRY for a call of the CUDA runtime. */
#define CUDA_TRY(call) TRY(cuda_status((call), #call))

#endif
