/* A plug-in for hosts without cards: the cpu backend in a cuda plug-in's place. It shows four cards; card 1 is an old
 * one, and for card 3 it says that it has no code. */
#include <stdio.h>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cuda/host.h"
#include "kernels/plugin.h"
#include "parallel/comm.h"

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
    out->total_bytes = (size_t)2 << 30;
    if (ordinal == 3) {
        FAIL(STATUS_UNSUPPORTED, "has no code for card 3 (%s, sm_%d)", out->name, out->arch);
    }
    return STATUS_OK;
}

static enum status open_card(const struct kernel_device_config *config, struct kernel_device **device) {
    struct kernel_card ignored;
    TRY(card(config->ordinal, &ignored));
    struct kernel_device_config own = {.threads = 1, .first_cpu = -1};
    return cpu_kernel_ops.open(&own, device);
}

static void attach(const struct plugin_host *program) {
    host_attach(program);
    kernels = cpu_kernel_ops;
    kernels.name = "cuda";
    kernels.open = open_card;
}

__attribute__((visibility("default"))) extern const struct plugin tandem_plugin;

const struct plugin tandem_plugin = {
    .build_id = TANDEM_PLUGIN_ID, .attach = attach, .card = card, .kernels = &kernels, .comms = comms};
