#include "parallel/comm.h"

#include <string.h>

#include "parallel/comm_self.h"
#include "parallel/comm_shm.h"

const struct comm_ops *comm_find(const char *name) {
    static const struct comm_ops *const tables[] = {&comm_self_ops, &comm_shm_ops};
    for (size_t i = 0; i < sizeof tables / sizeof tables[0]; i++) {
        if (strcmp(tables[i]->name, name) == 0) {
            return tables[i];
        }
    }
    return NULL;
}
