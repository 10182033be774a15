/* A cuda device: the card behind it, and its memory. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/handles.h"

extern "C" {
#include "runtime/base/alloc.h"
}

/* Of the host. */
#define SMALL_PAGE ((size_t)4096)
#define LARGE_PAGE ((size_t)2 << 20)

static int lowest_arch = INT_MAX;

enum status cuda_status(cudaError_t error, const char *call) {
    if (error == cudaSuccess) {
        return STATUS_OK;
    }
    cudaGetLastError(); /* told here, it must not be told again by the next launch */
    enum status status = error == cudaErrorMemoryAllocation ? STATUS_LIMIT : STATUS_INTERNAL;
    FAIL(status, "%s: %s (%s)", call, cudaGetErrorString(error), cudaGetErrorName(error));
}

enum status cuda_enter(const struct kernel_device *device) {
    return cuda_status(cudaSetDevice(device->ordinal), "cudaSetDevice");
}

int cuda_lowest_arch(void) {
    return __atomic_load_n(&lowest_arch, __ATOMIC_RELAXED);
}

static void note_arch(int arch) {
    int lowest = cuda_lowest_arch();
    while (arch < lowest &&
           !__atomic_compare_exchange_n(&lowest_arch, &lowest, arch, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
}

static enum status describe(struct kernel_device *device) {
    int max_shared = 0;
    CUDA_TRY(cudaDeviceGetAttribute(&device->n_processors, cudaDevAttrMultiProcessorCount, device->ordinal));
    CUDA_TRY(cudaDeviceGetAttribute(&max_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device->ordinal));
    device->max_shared = (size_t)max_shared;
    TRY(cuda_find_code_arch(&device->code_arch));
    return cuda_sample_load();
}

enum status cuda_open(const struct kernel_device_config *config, struct kernel_device **result) {
    struct kernel_card card;
    enum status status = cuda_card(config->ordinal, &card); /* makes it the current one */
    if (status == STATUS_UNSUPPORTED) {
        FAIL(status,
             "this build of the cuda backend (CUDA %d) %s; tandem_cuda11.so holds code for sm_70 and sm_80, "
             "tandem_cuda13.so for sm_80 and sm_90: install the one for this card and driver",
             CUDART_VERSION / 1000, status_text());
    }
    TRY(status);
    struct kernel_device *device = (struct kernel_device *)xcalloc(1, sizeof *device);
    device->ordinal = config->ordinal;
    device->arch = card.arch;
    device->deterministic = config->deterministic;
    status = describe(device);
    if (status != STATUS_OK) {
        free(device);
        return status;
    }
    note_arch(device->arch);
    *result = device;
    return STATUS_OK;
}

void cuda_close(struct kernel_device *device) {
    free(device);
}

enum status cuda_memory_info(struct kernel_device *device, size_t *free_bytes, size_t *total_bytes) {
    TRY(cuda_enter(device));
    return cuda_status(cudaMemGetInfo(free_bytes, total_bytes), "cudaMemGetInfo");
}

/* Clears new memory. Our streams do not wait for the legacy default stream, so it is left alone, and the caller waits:
 * whichever stream uses the memory first finds zeros. */
static enum status clear(void *memory, size_t bytes) {
    CUDA_TRY(cudaMemsetAsync(memory, 0, bytes, cudaStreamPerThread));
    return cuda_status(cudaStreamSynchronize(cudaStreamPerThread), "cudaStreamSynchronize");
}

enum status cuda_alloc(struct kernel_device *device, size_t bytes, void **memory) {
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    TRY(cuda_memory_info(device, &free_bytes, &total_bytes));
    void *fresh = NULL;
    size_t some = bytes > 0 ? bytes : 1;
    cudaError_t error = bytes > total_bytes ? cudaErrorMemoryAllocation : cudaMalloc(&fresh, some);
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        FAIL(STATUS_LIMIT,
             "memory of card %d: %zu MiB are wanted and %zu MiB are free; lower memory_limit_gib or max_model_len",
             device->ordinal, bytes >> 20, free_bytes >> 20);
    }
    TRY(cuda_status(error, "cudaMalloc"));
    enum status status = clear(fresh, some);
    if (status != STATUS_OK) {
        cudaFree(fresh);
        return status;
    }
    *memory = fresh;
    return STATUS_OK;
}

void cuda_free(struct kernel_device *device, void *memory) {
    if (memory != NULL && cuda_enter(device) == STATUS_OK) {
        cudaFree(memory);
    }
}

/* Pages of the process, to be pinned. 64 MiB of large ones take 24 ms, and 2 to let go; of cudaHostAlloc 35 and 10. */
static void *make_pages(size_t bytes) {
    size_t page = bytes < LARGE_PAGE ? SMALL_PAGE : LARGE_PAGE;
    size_t whole = (bytes + page - 1) / page * page;
    void *memory = NULL;
    if (posix_memalign(&memory, page, whole) != 0) {
        return NULL;
    }
    if (page == LARGE_PAGE) {
        madvise(memory, whole, MADV_HUGEPAGE); /* small ones do as well */
    }
    memset(memory, 0, whole);
    return memory;
}

enum status cuda_host_alloc(struct kernel_device *device, size_t bytes, void **memory) {
    TRY(cuda_enter(device));
    size_t some = bytes > 0 ? bytes : 1;
    void *fresh = make_pages(some);
    cudaError_t error =
        fresh != NULL ? cudaHostRegister(fresh, some, cudaHostRegisterPortable) : cudaErrorMemoryAllocation;
    if (error != cudaSuccess) {
        free(fresh);
    }
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        FAIL(STATUS_LIMIT, "pinned host memory: %zu MiB cannot be had; free memory of the host, or raise its limits",
             bytes >> 20);
    }
    TRY(cuda_status(error, "cudaHostRegister"));
    *memory = fresh;
    return STATUS_OK;
}

void cuda_host_free(struct kernel_device *device, void *memory) {
    if (memory != NULL && cuda_enter(device) == STATUS_OK) {
        cudaHostUnregister(memory);
        free(memory);
    }
}
