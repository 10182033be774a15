/* cuBLAS and its second interface cublasLt, opened at run time, so that the backend loads on a host that lacks it and
 * says what is missing. The calls below have the same signatures and numbers in CUDA 11, 12 and 13. */
#ifndef TANDEM_KERNELS_CUDA_CUBLAS_H
#define TANDEM_KERNELS_CUDA_CUBLAS_H

#include "kernels/cuda/cuda_device.h"

#define CUBLAS_WORKSPACE_BYTES ((size_t)32 << 20) /* what NVIDIA recommends for Hopper; older cards need less */
#define CUBLAS_HANDLE_BYTES ((size_t)68 << 20)    /* what cublasCreate takes of an H100, code and own workspace */

enum cublas_operation { CUBLAS_AS_IT_IS = 0, CUBLAS_TRANSPOSED = 1 };
enum cublas_compute { CUBLAS_FP32 = 68 };      /* CUBLAS_COMPUTE_32F: products of fp32 are not cut to TF32 */
enum cublas_math { CUBLAS_SUMS_IN_FP32 = 16 }; /* CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION */
enum cublas_algorithm { CUBLAS_ANY_ALGORITHM = -1 };
enum cublaslt_attribute { CUBLASLT_TRANSPOSES_A = 3, CUBLASLT_EPILOGUE = 7, CUBLASLT_BIAS = 8 };
enum cublaslt_epilogue { CUBLASLT_EPILOGUE_ADDS_BIAS = 4 };
enum cublaslt_reduction { CUBLASLT_REDUCTION_IN_FP32 = 2 }; /* CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE */
enum cublaslt_preference {
    CUBLASLT_MOST_WORKSPACE = 1,
    CUBLASLT_REDUCTIONS = 3,
    CUBLASLT_ALIGNMENT_A = 5,
    CUBLASLT_ALIGNMENT_B = 6,
    CUBLASLT_ALIGNMENT_C = 7,
    CUBLASLT_ALIGNMENT_D = 8
};

/* cublasLtMatmulHeuristicResult_t */
struct cublaslt_choice {
    uint64_t algorithm[8];
    size_t workspace_bytes;
    int status;
    float waves;
    int reserved[4];
};

/* Each returns a cublasStatus_t, 0 for success; `void *` handles are cublasHandle_t. */
struct cublas_calls {
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    int (*set_stream)(void *handle, cudaStream_t stream);
    int (*set_workspace)(void *handle, void *workspace, size_t bytes);
    int (*set_math_mode)(void *handle, int mode);
    int (*gemm)(void *handle, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a, int a_type,
                int lda, const void *b, int b_type, int ldb, const void *beta, void *c, int c_type, int ldc,
                int compute, int algorithm); /* cublasGemmEx; matrices are column-major */

    /* cublasLt...: of a product, of a matrix, of what to look for; then a choice of algorithm, and the product. */
    int (*lt_desc_create)(void **desc, int compute, int scale_type);
    int (*lt_desc_destroy)(void *desc);
    int (*lt_desc_set)(void *desc, int attribute, const void *value, size_t bytes);
    int (*lt_layout_create)(void **layout, int type, uint64_t rows, uint64_t columns, int64_t pitch);
    int (*lt_layout_destroy)(void *layout);
    int (*lt_preference_create)(void **preference);
    int (*lt_preference_destroy)(void *preference);
    int (*lt_preference_set)(void *preference, int attribute, const void *value, size_t bytes);
    int (*lt_heuristic)(void *handle, void *desc, void *a, void *b, void *c, void *d, void *preference, int most,
                        struct cublaslt_choice *choices, int *count); /* cublasLtMatmulAlgoGetHeuristic */
    int (*lt_multiply)(void *handle, void *desc, const void *alpha, const void *a, void *a_layout, const void *b,
                       void *b_layout, const void *beta, const void *c, void *c_layout, void *d, void *d_layout,
                       const void *algorithm, void *workspace, size_t bytes, cudaStream_t stream);
};

/* STATUS_OK, or a failure whose text holds the call and the number of the error. */
enum status cuda_blas_status(int error, const char *call);

#endif
