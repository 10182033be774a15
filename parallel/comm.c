#include "parallel/comm.h"

#include <string.h>

#include "kernels/plugin.h"
#include "parallel/comm_nccl.h"
#include "parallel/comm_p2p.h"
#include "parallel/comm_self.h"
#include "parallel/comm_shm.h"

/* As NCCL 2.28 was seen to take of an H100 with its neighbour behind NVLink: channels of 24 rings and 32 pairs, and its
 * kernels. Fewer links make fewer channels. */
#define NCCL_DEVICE_BYTES ((size_t)1344 << 20)

const struct comm_ops *comm_find(const char *name) {
    static const struct comm_ops *const tables[] = {&comm_self_ops, &comm_shm_ops};
    for (size_t i = 0; i < sizeof tables / sizeof tables[0]; i++) {
        if (strcmp(tables[i]->name, name) == 0) {
            return tables[i];
        }
    }
    const struct plugin *plugin = plugin_in_use();
    for (size_t i = 0; plugin != NULL && plugin->comms[i] != NULL; i++) {
        if (strcmp(plugin->comms[i]->name, name) == 0) {
            return plugin->comms[i];
        }
    }
    return NULL;
}

const char *comm_name_for(const char *backend, uint32_t world, bool deterministic) {
    if (world == 1) {
        return "self";
    }
    if (strcmp(backend, "cuda") != 0) {
        return "shm";
    }
    return world <= COMM_P2P_MAX_WORLD && !deterministic ? "p2p" : "nccl";
}

size_t comm_memory_bytes(const char *name, uint32_t world, size_t max_bytes) {
    if (strcmp(name, "shm") == 0) {
        return comm_shm_bytes(world, max_bytes);
    }
    if (strcmp(name, "p2p") == 0) {
        return COMM_P2P_MEETING_BYTES;
    }
    return strcmp(name, "nccl") == 0 ? COMM_NCCL_MEETING_BYTES : 0;
}

size_t comm_device_bytes(const char *name, uint32_t world, size_t max_bytes) {
    if (strcmp(name, "shm") == 0) {
        return comm_shm_bytes(world, max_bytes) / world;
    }
    if (strcmp(name, "p2p") == 0) {
        return NCCL_DEVICE_BYTES + comm_p2p_memory_bytes(world);
    }
    return strcmp(name, "nccl") == 0 ? NCCL_DEVICE_BYTES : 0;
}
