#include "kernels/cuda/tensor_map.h"

#if CUDA_HAS_TENSOR_MAPS

typedef CUresult (*encode_function)(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                    const cuuint64_t *dims, const cuuint64_t *strides, const cuuint32_t *box,
                                    const cuuint32_t *element_strides, CUtensorMapInterleave interleave,
                                    CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                    CUtensorMapFloatOOBfill fill);

/* The driver's cuTensorMapEncodeTiled; NULL when there is none. */
static encode_function find_encode(void) {
    void *function = NULL;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
#else
    cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &result);
#endif
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? (encode_function)function : NULL;
}

static encode_function encode(void) {
    static const encode_function found = find_encode();
    return found;
}

bool tensor_maps_usable(void) {
    return encode() != NULL;
}

enum status tensor_map_make(const char *what, const void *data, enum dtype dtype, const struct tensor_shape *shape,
                            CUtensorMap *map) {
    static_assert(sizeof(cuuint64_t) == sizeof(uint64_t), "the driver's words");
    const cuuint32_t ones[5] = {1, 1, 1, 1, 1};
    CUtensorMapDataType type = dtype == DTYPE_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    CUresult result = encode() == NULL
                          ? CUDA_ERROR_NOT_FOUND
                          : encode()(map, type, shape->rank, (void *)data, (const cuuint64_t *)shape->dims,
                                     (const cuuint64_t *)shape->strides, shape->box, ones,
                                     CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                     CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) {
        FAIL(STATUS_INTERNAL, "%s: cuTensorMapEncodeTiled: error %d of %u dimensions, the second of %llu", what,
             (int)result, shape->rank, (unsigned long long)shape->dims[1]);
    }
    return STATUS_OK;
}

#endif
