/* Descriptions of tensors for the copy engine of sm_90, which the driver makes: the plug-in is not linked to it. */
#ifndef TANDEM_KERNELS_CUDA_TENSOR_MAP_H
#define TANDEM_KERNELS_CUDA_TENSOR_MAP_H

#include "kernels/cuda/cuda_device.h"

#if CUDART_VERSION >= 12000
#include <cuda.h> /* types alone */
#define CUDA_HAS_TENSOR_MAPS 1
#else
#define CUDA_HAS_TENSOR_MAPS 0
#endif

#if CUDA_HAS_TENSOR_MAPS

/* Whether the driver can describe tensors. */
bool tensor_maps_usable(void);

/* A tensor of 16-bit elements, the first dimension 64 wide and dense. */
struct tensor_shape {
    uint32_t rank;
    uint64_t dims[5];
    uint64_t strides[4]; /* bytes, of the second dimension and on */
    uint32_t box[5];     /* what one copy brings */
};

/* Boxes arrive in shared memory in lines of 128 bytes, whose 16-byte chunks are permuted as hopper.cuh tells; what lies
 * outside the tensor arrives as zeros. `what` names the tensor in the error. */
enum status tensor_map_make(const char *what, const void *data, enum dtype dtype, const struct tensor_shape *shape,
                            CUtensorMap *map);

#endif

#endif
