#include "kernels/cuda/cublas.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

#include "kernels/cuda/cuda_ops.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct cublas_calls calls;
static bool loaded; /* `calls` is filled in */

struct symbol {
    const char *name;
    void **call;
};

static const struct symbol blas_symbols[] = {
    {"cublasCreate_v2", (void **)&calls.create},
    {"cublasDestroy_v2", (void **)&calls.destroy},
    {"cublasSetStream_v2", (void **)&calls.set_stream},
    {"cublasSetWorkspace_v2", (void **)&calls.set_workspace},
    {"cublasSetMathMode", (void **)&calls.set_math_mode},
    {"cublasGemmEx", (void **)&calls.gemm},
    {NULL, NULL},
};

static const struct symbol lt_symbols[] = {
    {"cublasLtMatmulDescCreate", (void **)&calls.lt_desc_create},
    {"cublasLtMatmulDescDestroy", (void **)&calls.lt_desc_destroy},
    {"cublasLtMatmulDescSetAttribute", (void **)&calls.lt_desc_set},
    {"cublasLtMatrixLayoutCreate", (void **)&calls.lt_layout_create},
    {"cublasLtMatrixLayoutDestroy", (void **)&calls.lt_layout_destroy},
    {"cublasLtMatmulPreferenceCreate", (void **)&calls.lt_preference_create},
    {"cublasLtMatmulPreferenceDestroy", (void **)&calls.lt_preference_destroy},
    {"cublasLtMatmulPreferenceSetAttribute", (void **)&calls.lt_preference_set},
    {"cublasLtMatmulAlgoGetHeuristic", (void **)&calls.lt_heuristic},
    {"cublasLtMatmul", (void **)&calls.lt_multiply},
    {NULL, NULL},
};

/* The library of our own CUDA version first: one that is newer than the driver loads but cannot work. */
#if CUDART_VERSION >= 13000
static const char *const versions[] = {".13", ".12", ""};
#elif CUDART_VERSION >= 12000
static const char *const versions[] = {".12", ".11", ".13", ""};
#else
static const char *const versions[] = {".11", ".12", ".13", ""};
#endif

static void *open_library(const char *name, const char *version) {
    char file[32];
    snprintf(file, sizeof file, "lib%s.so%s", name, version);
    return dlopen(file, RTLD_NOW | RTLD_LOCAL); /* stays open until the process ends */
}

static enum status find_symbols(void *library, const struct symbol *symbols) {
    for (; symbols->name != NULL; symbols++) {
        *symbols->call = dlsym(library, symbols->name);
        if (*symbols->call == NULL) {
            FAIL(STATUS_UNSUPPORTED, "cuBLAS has no %s; install the libcublas of CUDA %d", symbols->name,
                 CUDART_VERSION / 1000);
        }
    }
    return STATUS_OK;
}

static enum status load_calls(void) {
    void *blas = NULL;
    void *lt = NULL;
    for (size_t i = 0; i < sizeof versions / sizeof *versions && lt == NULL; i++) {
        blas = open_library("cublas", versions[i]);
        lt = blas == NULL ? NULL : open_library("cublasLt", versions[i]); /* the one that cuBLAS uses itself */
    }
    if (lt == NULL) {
        FAIL(STATUS_UNSUPPORTED,
             "cuBLAS %d is not installed (%s); install the CUDA toolkit's libcublas (package libcublas-%d-x, or the "
             "Python package nvidia-cublas) and name its folder in LD_LIBRARY_PATH",
             CUDART_VERSION / 1000, dlerror(), CUDART_VERSION / 1000);
    }
    TRY(find_symbols(blas, blas_symbols));
    TRY(find_symbols(lt, lt_symbols));
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
