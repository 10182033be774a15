#include "parallel/comm.h"

#include <string.h>

#include "kernels/plugin.h"
#include "parallel/comm_nccl.h"
#include "parallel/comm_self.h"
#include "parallel/comm_shm.h"

/* About what NCCL 2.28 takes of each of two H100, its part of the recorded steps included. */
#define NCCL_DEVICE_BYTES ((size_t)1536 << 20)

const struct comm_ops *comm_find(const char *name) {
    static const struct comm_ops *const tables[] = {&comm_self_ops, &comm_shm_ops};
    for (size_t i = 0; i < sizeof tables / sizeof tables[0]; i++) {
        if (strcmp(tables[i]->name, name) == 0) {
            return tables[i];
        }
    }
    const struct plugin *plugin = plugin_in_use();
    return plugin != NULL && strcmp(plugin->comm->name, name) == 0 ? plugin->comm : NULL;
}

const char *comm_name_for(const char *backend, uint32_t world) {
    return world == 1 ? "self" : strcmp(backend, "cuda") == 0 ? "nccl" : "shm";
}

size_t comm_memory_bytes(const char *name, uint32_t world, size_t max_bytes) {
    if (strcmp(name, "shm") == 0) {
        return comm_shm_bytes(world, max_bytes);
    }
    return strcmp(name, "nccl") == 0 ? COMM_NCCL_MEETING_BYTES : 0;
}

size_t comm_device_bytes(const char *name, uint32_t world, size_t max_bytes) {
    if (strcmp(name, "shm") == 0) {
        return comm_shm_bytes(world, max_bytes) / world;
    }
    return strcmp(name, "nccl") == 0 ? NCCL_DEVICE_BYTES : 0;
}
