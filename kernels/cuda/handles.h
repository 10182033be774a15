/* What C code inside a plug-in may know of the cuda backend's devices and streams, and of the host's cards. */
#ifndef TANDEM_KERNELS_CUDA_HANDLES_H
#define TANDEM_KERNELS_CUDA_HANDLES_H

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "kernels/kernels.h"

cudaStream_t cuda_stream_handle(const struct kernel_stream *stream);
int cuda_device_ordinal(const struct kernel_device *device);

/* plugin.card */
enum status cuda_card(int ordinal, struct kernel_card *card);

#ifdef __cplusplus
}
#endif

#endif
