/* The one symbol that a cuda plug-in exports. */
#include "kernels/plugin.h"

#include "kernels/cuda/handles.h"
#include "kernels/cuda/host.h"

extern const struct kernel_ops kernels_cuda_ops;
extern const struct comm_ops comm_nccl_ops;

__attribute__((visibility("default"))) extern const struct plugin tandem_plugin;

const struct plugin tandem_plugin = {
    .build_id = TANDEM_PLUGIN_ID,
    .attach = host_attach,
    .card = cuda_card,
    .kernels = &kernels_cuda_ops,
    .comm = &comm_nccl_ops,
};
