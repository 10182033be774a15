/* The one symbol that a cuda plug-in exports. */
#include "kernels/plugin.h"

#include "kernels/cuda/handles.h"
#include "kernels/cuda/host.h"

extern const struct kernel_ops kernels_cuda_ops;
extern const struct comm_ops comm_p2p_ops;
extern const struct comm_ops comm_nccl_ops;
extern void comm_nccl_set_environment(void);

static const struct comm_ops *const comms[] = {&comm_p2p_ops, &comm_nccl_ops, NULL};

static void attach(const struct plugin_host *program) {
    host_attach(program);
    comm_nccl_set_environment();
}

__attribute__((visibility("default"))) extern const struct plugin tandem_plugin;

const struct plugin tandem_plugin = {
    .build_id = TANDEM_PLUGIN_ID,
    .attach = attach,
    .card = cuda_card,
    .kernels = &kernels_cuda_ops,
    .comms = comms,
};
