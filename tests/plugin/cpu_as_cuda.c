/* A plug-in for hosts without cards: the cpu backend in a cuda plug-in's place. It shows four cards; card 1 is an old
 * one, and for card 3 it says that it has no code. The environment's TEST_CARD, "compute capability x 10, MiB", makes
 * all of them cards of that kind, next to nobody but the process that looks. */
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cuda/host.h"
#include "kernels/plugin.h"
#include "parallel/comm.h"

#define CONTEXT_MIB 527 /* of an H100 */

static struct kernel_ops kernels;
static const struct comm_ops comm = {.name = "nccl"};
static const struct comm_ops *const comms[] = {&comm, NULL};

static enum status card(int ordinal, struct kernel_card *out) {
    if (ordinal < 0 || ordinal > 3) {
        FAIL(STATUS_NOT_FOUND, "there is no card %d: the driver shows 4", ordinal);
    }
    snprintf(out->name, sizeof out->name, "Test Card %d", ordinal);
    out->arch = ordinal == 1 ? 70 : 90;
    out->free_bytes = (size_t)1 << 30;
    out->total_bytes = ((size_t)1 << 30) + ((size_t)16 << 20);
    unsigned long mib;
    const char *all = getenv("TEST_CARD");
    if (all != NULL && sscanf(all, "%d, %lu", &out->arch, &mib) == 2) {
        out->total_bytes = mib << 20;
        out->free_bytes = out->total_bytes - ((size_t)CONTEXT_MIB << 20);
    } else if (ordinal == 3) {
        FAIL(STATUS_UNSUPPORTED, "has no code for card 3 (%s, sm_%d)", out->name, out->arch);
    }
    return STATUS_OK;
}

static int lowest_arch = 90;

static enum status open_card(const struct kernel_device_config *config, struct kernel_device **device) {
    struct kernel_card opened;
    TRY(card(config->ordinal, &opened));
    lowest_arch = opened.arch < lowest_arch ? opened.arch : lowest_arch;
    struct kernel_device_config own = {.threads = 1, .first_cpu = -1};
    return cpu_kernel_ops.open(&own, device);
}

/* What a card's backend plans with: kernels/cuda/ops.cu, cublas.h, stream.cu. */
static enum dtype activation_dtype(enum dtype weights) {
    return weights == DTYPE_BF16 && lowest_arch < 80 ? DTYPE_F32 : weights;
}

static size_t stream_bytes(struct kernel_device *device) {
    (void)device;
    return (size_t)100 << 20;
}

static size_t graph_bytes(struct kernel_device *device, uint32_t n_ops) {
    (void)device;
    return (size_t)n_ops * 7424;
}

static void attach(const struct plugin_host *program) {
    host_attach(program);
    kernels = cpu_kernel_ops;
    kernels.name = "cuda";
    kernels.open = open_card;
    kernels.activation_dtype = activation_dtype;
    kernels.stream_bytes = stream_bytes;
    kernels.graph_bytes = graph_bytes;
}

__attribute__((visibility("default"))) extern const struct plugin tandem_plugin;

const struct plugin tandem_plugin = {
    .build_id = TANDEM_PLUGIN_ID, .attach = attach, .card = card, .kernels = &kernels, .comms = comms};
