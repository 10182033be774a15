/* World 1: sums are what they are, and moving data to oneself is a copy. */
#include "parallel/comm_self.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "runtime/base/alloc.h"
#include "runtime/base/check.h"

struct comm {
    const struct kernel_ops *kernels;
    atomic_bool aborted;
};

static enum status self_check(struct comm *comm) {
    if (atomic_load(&comm->aborted)) {
        FAIL(STATUS_CLOSED, "the group's collectives were aborted");
    }
    return STATUS_OK;
}

static enum status self_open(const struct comm_config *config, struct comm **out) {
    if (config->world != 1 || config->rank != 0) {
        FAIL(STATUS_INVALID, "comm self: rank %u of %u asked for; it serves world 1 only", config->rank, config->world);
    }
    struct comm *comm = xcalloc(1, sizeof *comm);
    comm->kernels = config->kernels;
    *out = comm;
    return STATUS_OK;
}

static void self_close(struct comm *comm) {
    free(comm);
}

static enum status self_all_reduce(struct comm *comm, struct kernel_stream *stream, void *data, size_t count,
                                   enum dtype dtype) {
    (void)stream;
    (void)data;
    (void)count;
    (void)dtype;
    return self_check(comm);
}

static enum status self_copy(struct comm *comm, struct kernel_stream *stream, const void *send, void *recv,
                             size_t bytes) {
    TRY(self_check(comm));
    if (send == recv || bytes == 0) {
        return STATUS_OK;
    }
    return comm->kernels->copy(stream, recv, send, bytes, KERNEL_COPY_ON_DEVICE);
}

static enum status self_all_to_all(struct comm *comm, struct kernel_stream *stream, const void *send,
                                   const size_t *send_bytes, void *recv, const size_t *recv_bytes) {
    CHECK(send_bytes[0] == recv_bytes[0], "%zu bytes sent, %zu expected", send_bytes[0], recv_bytes[0]);
    return self_copy(comm, stream, send, recv, send_bytes[0]);
}

static enum status self_broadcast(struct comm *comm, struct kernel_stream *stream, void *data, size_t bytes,
                                  uint32_t root) {
    (void)stream;
    (void)data;
    (void)bytes;
    CHECK(root == 0, "root %u of world 1", root);
    return self_check(comm);
}

static void self_abort(struct comm *comm) {
    atomic_store(&comm->aborted, true);
}

const struct comm_ops comm_self_ops = {
    .name = "self",
    .open = self_open,
    .close = self_close,
    .all_reduce = self_all_reduce,
    .all_gather = self_copy,
    .all_to_all = self_all_to_all,
    .broadcast = self_broadcast,
    .barrier = self_check,
    .abort = self_abort,
    .check = self_check,
};
