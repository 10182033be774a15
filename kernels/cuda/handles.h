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

/* What the code that runs on the stream's card was compiled for, as `arch` of a card: 80 on a card of sm_90 whose
 * driver compiled it from the PTX of compute_80. */
int cuda_code_arch(const struct kernel_stream *stream);

/* The same for the thread's current card. */
enum status cuda_find_code_arch(int *arch);

/* plugin.card */
enum status cuda_card(int ordinal, struct kernel_card *card);

#ifdef __cplusplus
}
#endif

#endif
