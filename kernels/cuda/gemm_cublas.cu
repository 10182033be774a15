/* Products by cuBLAS. With a bias they go by its second interface, cublasLt, which adds the bias before it rounds: the
 * first one would add to what lies in the output, and rounds the product before it does (seen with fp16 and bf16). */
#include <limits.h>

#include "kernels/cuda/cublas.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/gemm_small.h"
#include "kernels/cuda/launch.cuh"

/* cublasLt reads a bias in the format of the output: it lies at the workspace's end. */
#define BIAS_BYTES ((size_t)1 << 20)
#define LT_WORKSPACE_BYTES (CUBLAS_WORKSPACE_BYTES - BIAS_BYTES)
#define BIAS_THREADS 256

static cudaDataType_t cuda_type(enum dtype dtype) {
    switch (dtype) {
    case DTYPE_BF16: return CUDA_R_16BF;
    case DTYPE_F16: return CUDA_R_16F;
    default: return CUDA_R_32F;
    }
}

/* Of outputs that are no multiple of 16 bytes wide, cublasLt rounds the product before it adds the bias, too. */
bool gemm_cublas_takes(const struct kernel_device *device, const struct gemm_task *task) {
    return task->w_dtype == task->x_dtype && (task->out_dtype == task->w_dtype || task->out_dtype == DTYPE_F32) &&
           (task->w_dtype != DTYPE_BF16 || device->arch >= 80) && task->m <= INT_MAX && task->n <= INT_MAX &&
           task->k <= INT_MAX && task->x_stride <= INT_MAX && task->out_stride <= INT_MAX &&
           (task->bias == NULL || (task->n % 8 == 0 && task->n * sizeof(float) <= BIAS_BYTES));
}

/* In cuBLAS's column-major eyes: out^T [n x m] = W [n x k] x^T [k x m], columns so far apart. */
static int x_pitch(const struct gemm_task *task) {
    return (int)(task->x_stride > task->k ? task->x_stride : task->k);
}

static int out_pitch(const struct gemm_task *task) {
    return (int)(task->out_stride > task->n ? task->out_stride : task->n);
}

__global__ void __launch_bounds__(BIAS_THREADS) convert_bias_kernel(const struct gemm_task task, void *to) {
    let_dependents_launch();
    wait_for_predecessors();
    uint32_t n = blockIdx.x * BIAS_THREADS + threadIdx.x;
    if (n < task.n) {
        store_element(to, task.out_dtype, n, load_element(task.bias, task.bias_dtype, n));
    }
}

/* What describes a product to cublasLt. */
struct lt_product {
    void *desc, *w, *x, *out, *preference;
};

/* Calls return 0 for success, else the number of an error, which these functions hand on. */
#define LT_TRY(call)                                                                                                   \
    do {                                                                                                               \
        int error_ = (call);                                                                                           \
        if (error_ != 0) {                                                                                             \
            return error_;                                                                                             \
        }                                                                                                              \
    } while (0)

static int lt_describe(const struct cublas_calls *calls, const struct gemm_task *task, const void *bias,
                       struct lt_product *product) {
    const int transposed = CUBLAS_TRANSPOSED;
    const int epilogue = CUBLASLT_EPILOGUE_ADDS_BIAS;
    const cudaDataType_t in = cuda_type(task->w_dtype);
    LT_TRY(calls->lt_desc_create(&product->desc, CUBLAS_FP32, CUDA_R_32F));
    LT_TRY(calls->lt_desc_set(product->desc, CUBLASLT_TRANSPOSES_A, &transposed, sizeof transposed));
    LT_TRY(calls->lt_desc_set(product->desc, CUBLASLT_EPILOGUE, &epilogue, sizeof epilogue));
    LT_TRY(calls->lt_desc_set(product->desc, CUBLASLT_BIAS, &bias, sizeof bias));
    LT_TRY(calls->lt_layout_create(&product->w, in, task->k, task->n, task->k));
    LT_TRY(calls->lt_layout_create(&product->x, in, task->k, task->m, x_pitch(task)));
    return calls->lt_layout_create(&product->out, cuda_type(task->out_dtype), task->n, task->m, out_pitch(task));
}

/* The largest power of two, up to 256, that divides an address. */
static uint32_t alignment_of(const void *data) {
    uintptr_t bits = (uintptr_t)data | 256;
    return (uint32_t)(bits & (~bits + 1));
}

static int lt_prefer(const struct cublas_calls *calls, const struct gemm_task *task, struct lt_product *product) {
    const size_t workspace_bytes = LT_WORKSPACE_BYTES;
    const uint32_t reduction = CUBLASLT_REDUCTION_IN_FP32; /* of partial sums, where there are some */
    const struct {
        int attribute;
        uint32_t bytes;
    } alignments[] = {{CUBLASLT_ALIGNMENT_A, alignment_of(task->w)},
                      {CUBLASLT_ALIGNMENT_B, alignment_of(task->x)},
                      {CUBLASLT_ALIGNMENT_C, alignment_of(task->out)},
                      {CUBLASLT_ALIGNMENT_D, alignment_of(task->out)}};
    LT_TRY(calls->lt_preference_create(&product->preference));
    LT_TRY(calls->lt_preference_set(product->preference, CUBLASLT_MOST_WORKSPACE, &workspace_bytes,
                                    sizeof workspace_bytes));
    LT_TRY(calls->lt_preference_set(product->preference, CUBLASLT_REDUCTIONS, &reduction, sizeof reduction));
    for (size_t i = 0; i < sizeof alignments / sizeof *alignments; i++) {
        LT_TRY(calls->lt_preference_set(product->preference, alignments[i].attribute, &alignments[i].bytes,
                                        sizeof alignments[i].bytes));
    }
    return 0;
}

static int lt_multiply(struct kernel_stream *stream, const struct gemm_task *task, const struct lt_product *product) {
    const struct cublas_calls *calls = stream->device->cublas;
    const float one = 1.0f;
    const float zero = 0.0f;
    struct cublaslt_choice choice;
    int found = 0;
    /* A cublasHandle_t is a cublasLtHandle_t too. */
    LT_TRY(calls->lt_heuristic(stream->cublas, product->desc, product->w, product->x, product->out, product->out,
                               product->preference, 1, &choice, &found));
    return calls->lt_multiply(stream->cublas, product->desc, &one, task->w, product->w, task->x, product->x, &zero,
                              task->out, product->out, task->out, product->out, choice.algorithm,
                              stream->cublas_workspace, LT_WORKSPACE_BYTES, stream->stream);
}

static int lt_run(struct kernel_stream *stream, const struct gemm_task *task, const void *bias,
                  struct lt_product *product) {
    LT_TRY(lt_describe(stream->device->cublas, task, bias, product));
    LT_TRY(lt_prefer(stream->device->cublas, task, product));
    return lt_multiply(stream, task, product);
}

static void lt_forget(const struct cublas_calls *calls, const struct lt_product *product) {
    void *const layouts[] = {product->w, product->x, product->out};
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        if (layouts[i] != NULL) {
            calls->lt_layout_destroy(layouts[i]);
        }
    }
    if (product->preference != NULL) {
        calls->lt_preference_destroy(product->preference);
    }
    if (product->desc != NULL) {
        calls->lt_desc_destroy(product->desc);
    }
}

static enum status multiply_and_add(struct kernel_stream *stream, const struct gemm_task *task) {
    const struct cublas_calls *calls = stream->device->cublas;
    void *bias = (char *)stream->cublas_workspace + LT_WORKSPACE_BYTES;
    dim3 blocks((task->n + BIAS_THREADS - 1) / BIAS_THREADS);
    TRY(cuda_status(launch_dependent(stream, convert_bias_kernel, blocks, BIAS_THREADS, 0, *task, bias),
                    "convert_bias"));
    struct lt_product product = {};
    int error = lt_run(stream, task, bias, &product);
    lt_forget(calls, &product);
    return cuda_blas_status(error, "cublasLtMatmul");
}

enum status gemm_cublas(struct kernel_stream *stream, const struct gemm_task *task) {
    const float one = 1.0f;
    const float zero = 0.0f;
    if (task->bias != NULL) {
        return multiply_and_add(stream, task);
    }
    int error = stream->device->cublas->gemm(
        stream->cublas, CUBLAS_TRANSPOSED, CUBLAS_AS_IT_IS, (int)task->n, (int)task->m, (int)task->k, &one, task->w,
        cuda_type(task->w_dtype), (int)task->k, task->x, cuda_type(task->x_dtype), x_pitch(task), &zero, task->out,
        cuda_type(task->out_dtype), out_pitch(task), CUBLAS_FP32, CUBLAS_ANY_ALGORITHM);
    return cuda_blas_status(error, "cublasGemmEx");
}
