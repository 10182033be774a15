#include "kernels/cuda/handles.h"

#include <stdio.h>

#include "kernels/cuda/cuda_device.h"

cudaStream_t cuda_stream_handle(const struct kernel_stream *stream) {
    return stream->stream;
}

int cuda_device_ordinal(const struct kernel_device *device) {
    return device->ordinal;
}

int cuda_code_arch(const struct kernel_stream *stream) {
    return stream->device->code_arch;
}

/* Compiled for what all kernels are compiled for: where this one has code, they have. */
__global__ void has_code(void) {
}

enum status cuda_find_code_arch(int *arch) {
    cudaFuncAttributes code;
    CUDA_TRY(cudaFuncGetAttributes(&code, has_code));
    *arch = code.ptxVersion;
    return STATUS_OK;
}

static enum status fail_driver(cudaError_t error) {
    int version = 0;
    cudaGetLastError(); /* it is told here, not by the next call */
    if (cudaDriverGetVersion(&version) != cudaSuccess || version == 0) {
        FAIL(STATUS_UNSUPPORTED, "finds no driver (%s)", cudaGetErrorString(error));
    }
    FAIL(STATUS_UNSUPPORTED, "is of CUDA %d, the driver serves %d.%d: %s", CUDART_VERSION / 1000, version / 1000,
         version % 1000 / 10, cudaGetErrorString(error));
}

/* The thread's current card must be `ordinal`; makes its context, if there was none. */
static enum status look_at(int ordinal, struct kernel_card *card) {
    cudaDeviceProp properties;
    cudaFuncAttributes code;
    CUDA_TRY(cudaGetDeviceProperties(&properties, ordinal));
    snprintf(card->name, sizeof card->name, "%.63s", properties.name);
    card->arch = properties.major * 10 + properties.minor;
    cudaError_t error = cudaFuncGetAttributes(&code, has_code);
    if (error != cudaSuccess) {
        cudaGetLastError();
        FAIL(STATUS_UNSUPPORTED, "has no code for card %d (%s, sm_%d): %s", ordinal, card->name, card->arch,
             cudaGetErrorString(error));
    }
    return cuda_status(cudaMemGetInfo(&card->free_bytes, &card->total_bytes), "cudaMemGetInfo");
}

enum status cuda_card(int ordinal, struct kernel_card *card) {
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess && error != cudaErrorNoDevice) {
        return fail_driver(error);
    }
    if (ordinal < 0 || ordinal >= count) {
        cudaGetLastError();
        FAIL(STATUS_NOT_FOUND, "there is no card %d: the driver shows %d", ordinal, count);
    }
    /* It stays this thread's card: going back to another would make a context there, which takes memory. */
    CUDA_TRY(cudaSetDevice(ordinal));
    return look_at(ordinal, card);
}
