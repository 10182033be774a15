#include "kernels/cuda/cublas.h"

#include <dlfcn.h>
#include <pthread.h>

#include "kernels/cuda/cuda_ops.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct cublas_calls calls;
static bool loaded; /* `calls` is filled in */

static const struct {
    const char *name;
    void **call;
} symbols[] = {
    {"cublasCreate_v2", (void **)&calls.create},          {"cublasDestroy_v2", (void **)&calls.destroy},
    {"cublasSetStream_v2", (void **)&calls.set_stream},   {"cublasSetWorkspace_v2", (void **)&calls.set_workspace},
    {"cublasSetMathMode", (void **)&calls.set_math_mode}, {"cublasGemmEx", (void **)&calls.gemm},
};

/* The library of our own CUDA version first: one that is newer than the driver loads but cannot work. */
static void *open_library(void) {
#if CUDART_VERSION >= 13000
    static const char *const names[] = {"libcublas.so.13", "libcublas.so.12", "libcublas.so"};
#elif CUDART_VERSION >= 12000
    static const char *const names[] = {"libcublas.so.12", "libcublas.so.11", "libcublas.so.13", "libcublas.so"};
#else
    static const char *const names[] = {"libcublas.so.11", "libcublas.so.12", "libcublas.so.13", "libcublas.so"};
#endif
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        if (library != NULL) {
            return library;
        }
    }
    return NULL;
}

static enum status load_calls(void) {
    void *library = open_library(); /* stays open until the process ends */
    if (library == NULL) {
        FAIL(STATUS_UNSUPPORTED,
             "cuBLAS %d is not installed (%s); install the CUDA toolkit's libcublas (package libcublas-%d-x, or the "
             "Python package nvidia-cublas) and name its folder in LD_LIBRARY_PATH",
             CUDART_VERSION / 1000, dlerror(), CUDART_VERSION / 1000);
    }
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        *symbols[i].call = dlsym(library, symbols[i].name);
        if (*symbols[i].call == NULL) {
            FAIL(STATUS_UNSUPPORTED, "cuBLAS has no %s; install the libcublas of CUDA %d", symbols[i].name,
                 CUDART_VERSION / 1000);
        }
    }
    loaded = true;
    return STATUS_OK;
}

enum status cuda_blas_status(int error, const char *call) {
    if (error == 0) {
        return STATUS_OK;
    }
    FAIL(STATUS_INTERNAL, "%s: cuBLAS error %d", call, error);
}

static enum status open_handle(struct kernel_stream *stream) {
    CUDA_TRY(cudaSetDevice(stream->device->ordinal)); /* a handle belongs to the thread's current card */
    CUDA_TRY(cudaMalloc(&stream->cublas_workspace, CUBLAS_WORKSPACE_BYTES));
    TRY(cuda_blas_status(calls.create(&stream->cublas), "cublasCreate"));
    TRY(cuda_blas_status(calls.set_stream(stream->cublas, stream->stream), "cublasSetStream"));
    /* After the stream: setting a stream takes the workspace away. */
    TRY(cuda_blas_status(calls.set_workspace(stream->cublas, stream->cublas_workspace, CUBLAS_WORKSPACE_BYTES),
                         "cublasSetWorkspace"));
    return cuda_blas_status(calls.set_math_mode(stream->cublas, CUBLAS_SUMS_IN_FP32), "cublasSetMathMode");
}

/* Opens the library (once per process) and gives the stream its handle and workspace. */
enum status cuda_blas_open(struct kernel_stream *stream) {
    stream->cublas = NULL;
    stream->cublas_workspace = NULL;
    pthread_mutex_lock(&lock);
    enum status status = loaded ? STATUS_OK : load_calls();
    pthread_mutex_unlock(&lock);
    TRY(status);
    stream->device->cublas = &calls;
    status = open_handle(stream);
    if (status != STATUS_OK) {
        cuda_blas_close(stream);
    }
    return status;
}

/* A stream that has neither is fine. It must have passed its work. */
void cuda_blas_close(struct kernel_stream *stream) {
    if (stream->cublas != NULL) {
        calls.destroy(stream->cublas);
    }
    cudaFree(stream->cublas_workspace);
    stream->cublas = NULL;
    stream->cublas_workspace = NULL;
}

size_t cuda_stream_bytes(struct kernel_device *device) {
    return CUBLAS_WORKSPACE_BYTES + CUBLAS_HANDLE_BYTES + cuda_gemm_scratch_bytes(device);
}
