#include "parallel/comm_p2p.h"

#include <cuda_runtime_api.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "kernels/cuda/handles.h"
#include "parallel/comm_nccl.h"
#include "parallel/comm_p2p_kernels.h"
#include "parallel/comm_proof.h"
#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"

/* Some seconds: a look comes once in about 10 ms. */
#define PROOF_PATIENCE 300
#define LEAVE_TIMEOUT_NS (2 * NS_PER_S)
#define POLL_NS (200 * 1000)

extern const struct comm_ops comm_nccl_ops;
extern const struct comm_ops comm_p2p_ops;

enum outcome { PENDING, DONE, FAILED };

/* What a rank tells the others, in the group's shared memory. */
struct seat {
    _Atomic uint32_t shown;  /* enum outcome: whether `memory` is there to be opened */
    _Atomic uint32_t opened; /* enum outcome: whether the rank has opened all its peers' */
    _Atomic uint32_t left;   /* the rank is done with its peers' memory */
    int32_t ordinal;
    uint32_t max_blocks; /* of struct p2p_group */
    char fault[160];     /* why not */
    cudaIpcMemHandle_t memory;
};

struct meeting {
    char nccl[COMM_NCCL_MEETING_BYTES];
    struct seat seats[COMM_P2P_MAX_WORLD];
};
static_assert(sizeof(struct meeting) <= COMM_P2P_MEETING_BYTES, "the ranks meet in there");

struct comm {
    struct comm *nccl;
    const struct kernel_ops *kernels;
    int ordinal;
    struct p2p_group group;
    struct meeting *meeting;
    size_t own_bytes; /* messages up to here go by our own kernels */
    bool imported[COMM_P2P_MAX_WORLD];
    struct comm_verdict verdict;
};

static enum status cuda_result(cudaError_t error, const char *call) {
    if (error == cudaSuccess) {
        return STATUS_OK;
    }
    cudaGetLastError(); /* told here, it must not be told again by the next launch */
    FAIL(STATUS_IO, "%s: %s", call, cudaGetErrorString(error));
}

/* A kernel that gave up shows in check() alone: in the proof the ranks go on together. */
static enum status enter(const struct comm *comm) {
    if (*comm->group.state == P2P_ABORTED) {
        FAIL(STATUS_CLOSED, "the group's collectives were aborted");
    }
    return cuda_result(cudaSetDevice(comm->ordinal), "cudaSetDevice");
}

/* ---- collectives */

/* Whether a sum goes through the slots. */
static bool is_own_sum(const struct comm *comm, size_t count, enum dtype dtype) {
    size_t most = comm->own_bytes < comm->group.most_bytes ? comm->own_bytes : comm->group.most_bytes;
    return count > 0 && count % 8 == 0 && count <= most / dtype_bytes(dtype);
}

/* Whether a larger one, with the norm behind it, goes through the pipe. */
static bool is_own_pipe(const struct comm *comm, size_t count, enum dtype dtype) {
    return comm->group.world == 2 && count > comm->group.most_bytes / dtype_bytes(dtype) &&
           count <= comm->own_bytes / dtype_bytes(dtype);
}

static void check_aligned(const void *pointer, size_t alignment) {
    CHECK((uintptr_t)pointer % alignment == 0, "%p is no multiple of %zu", pointer, alignment);
}

static enum status all_reduce(struct comm *comm, struct kernel_stream *stream, void *data, size_t count,
                              enum dtype dtype) {
    if (!is_own_sum(comm, count, dtype)) {
        return comm_nccl_ops.all_reduce(comm->nccl, stream, data, count, dtype);
    }
    check_aligned(data, 16);
    TRY(enter(comm));
    return p2p_all_reduce(&comm->group, stream, data, count, dtype);
}

static enum status all_reduce_add_rmsnorm(struct comm *comm, struct kernel_stream *stream, void *data,
                                          const struct op_rmsnorm *args) {
    size_t count = (size_t)args->n_tokens * args->hidden;
    bool in_slots = is_own_sum(comm, count, args->delta_dtype);
    bool fused = (in_slots || is_own_pipe(comm, count, args->delta_dtype)) && args->hidden % 8 == 0 &&
                 args->hidden <= P2P_NORM_MAX_HIDDEN && args->out != NULL;
    CHECK(data == args->delta, "the data to sum is not args->delta");
    if (!fused) {
        TRY(all_reduce(comm, stream, data, count, args->delta_dtype));
        return comm->kernels->rmsnorm(stream, args);
    }
    const void *pointers[] = {data, args->residual, args->weight, args->out};
    for (size_t i = 0; i < sizeof pointers / sizeof pointers[0]; i++) {
        check_aligned(pointers[i], 16);
    }
    TRY(enter(comm));
    return in_slots ? p2p_all_reduce_add_rmsnorm(&comm->group, stream, args)
                    : p2p_pipe_add_rmsnorm(&comm->group, stream, args);
}

static enum status all_gather(struct comm *comm, struct kernel_stream *stream, const void *send, void *recv,
                              size_t bytes) {
    if (bytes == 0 || bytes % 8 != 0 || bytes > COMM_PROOF_GATHER_BYTES || bytes > comm->own_bytes) {
        return comm_nccl_ops.all_gather(comm->nccl, stream, send, recv, bytes);
    }
    check_aligned(send, 8);
    check_aligned(recv, 8);
    TRY(enter(comm));
    return p2p_all_gather(&comm->group, stream, send, recv, bytes);
}

static enum status all_to_all(struct comm *comm, struct kernel_stream *stream, const void *send,
                              const size_t *send_bytes, void *recv, const size_t *recv_bytes) {
    return comm_nccl_ops.all_to_all(comm->nccl, stream, send, send_bytes, recv, recv_bytes);
}

static enum status broadcast(struct comm *comm, struct kernel_stream *stream, void *data, size_t bytes, uint32_t root) {
    return comm_nccl_ops.broadcast(comm->nccl, stream, data, bytes, root);
}

static enum status barrier(struct comm *comm) {
    return comm_nccl_ops.barrier(comm->nccl);
}

/* Our kernels first: NCCL may wait for what runs on the card. */
static void abort_group(struct comm *comm) {
    *comm->group.state = P2P_ABORTED;
    comm_nccl_ops.abort(comm->nccl);
}

static enum status check(struct comm *comm) {
    if (*comm->group.state == P2P_GAVE_UP) {
        FAIL(STATUS_TIMEOUT, "gets no answer from a peer's card");
    }
    return comm_nccl_ops.check(comm->nccl);
}

static void report(const struct comm *comm, struct comm_report *report) {
    *report = (struct comm_report){
        .serves = comm->own_bytes > 0 ? "p2p" : "nccl",
        .own_bytes = comm->own_bytes,
        .row_us = comm->own_bytes > 0 ? comm->verdict.own_us : comm->verdict.trusted_us,
        .trusted_row_us = comm->verdict.trusted_us,
    };
}

/* ---- close */

/* Memory that a peer has mapped is freed only after it has let it go; a peer that died never does. */
static void leave_meeting(struct comm *comm) {
    uint64_t deadline_ns = clock_now_ns() + LEAVE_TIMEOUT_NS;
    struct timespec pause = {.tv_nsec = POLL_NS};
    atomic_store(&comm->meeting->seats[comm->group.rank].left, 1);
    for (uint32_t r = 0; r < comm->group.world; r++) {
        while (atomic_load(&comm->meeting->seats[r].left) == 0 && clock_now_ns() < deadline_ns) {
            nanosleep(&pause, NULL);
        }
    }
}

static void drop_memory(struct comm *comm) {
    for (uint32_t r = 0; r < comm->group.world; r++) {
        if (comm->imported[r]) {
            cudaIpcCloseMemHandle(comm->group.memory[r]);
            comm->imported[r] = false;
        }
    }
    if (comm->meeting != NULL && *comm->group.state != P2P_ABORTED) {
        leave_meeting(comm);
    }
    cudaFree(comm->group.memory[comm->group.rank]);
    comm->group.memory[comm->group.rank] = NULL;
}

static void p2p_close(struct comm *comm) {
    if (comm == NULL) {
        return;
    }
    cudaSetDevice(comm->ordinal);
    if (comm->group.state != NULL) {
        drop_memory(comm);
        cudaFreeHost((void *)comm->group.state);
    }
    if (comm->meeting != NULL) {
        munmap(comm->meeting, COMM_P2P_MEETING_BYTES);
    }
    if (comm->nccl != NULL) {
        comm_nccl_ops.close(comm->nccl);
    }
    cudaGetLastError();
    free(comm);
}

/* ---- open */

/* What lies between two cards: cards behind NVLink do atomic operations in each other's memory, those behind PCIe do
 * not. */
static const char *link_between(int from, int to) {
    int reaches = 0;
    int atomics = 0;
    if (cudaDeviceCanAccessPeer(&reaches, from, to) != cudaSuccess || !reaches) {
        cudaGetLastError();
        return "none";
    }
    cudaDeviceGetP2PAttribute(&atomics, cudaDevP2PAttrNativeAtomicSupported, from, to);
    return atomics ? "NVLink" : "PCIe";
}

/* A line for each card: "card 0 (0000:18:00.0) reaches card 1 by NVLink". */
static void log_topology(const struct comm *comm) {
    for (uint32_t r = 0; r < comm->group.world; r++) {
        int from = comm->meeting->seats[r].ordinal;
        char address[16] = "?";
        char text[COMM_P2P_MAX_WORLD * 24] = "";
        size_t used = 0;
        cudaDeviceGetPCIBusId(address, sizeof address, from);
        for (uint32_t other = 0; other < comm->group.world; other++) {
            int to = comm->meeting->seats[other].ordinal;
            if (other != r) {
                used += (size_t)snprintf(text + used, sizeof text - used, "%s card %d: %s", used > 0 ? "," : "", to,
                                         link_between(from, to));
            }
        }
        log_info("rank %u is card %d (%s); to%s", r, from, address, text);
    }
}

static enum status allocate_state(struct comm *comm) {
    void *state = NULL;
    int processors = 0;
    TRY(cuda_result(cudaSetDevice(comm->ordinal), "cudaSetDevice"));
    TRY(cuda_result(cudaHostAlloc(&state, sizeof *comm->group.state, cudaHostAllocMapped), "cudaHostAlloc"));
    comm->group.state = state;
    *comm->group.state = P2P_GOES_ON;
    TRY(cuda_result(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, comm->ordinal),
                    "cudaDeviceGetAttribute"));
    comm->group.max_blocks = (uint32_t)processors < COMM_P2P_MAX_BLOCKS ? (uint32_t)processors : COMM_P2P_MAX_BLOCKS;
    return STATUS_OK;
}

static enum status allocate_memory(struct comm *comm) {
    struct p2p_group *group = &comm->group;
    char *memory = NULL;
    size_t bytes = comm_p2p_memory_bytes(group->world);
    size_t words_end = comm_p2p_pipe_at(group->world);
    uint32_t epochs[COMM_P2P_MAX_BLOCKS]; /* and the pipe's counts */
    for (uint32_t i = 0; i < COMM_P2P_MAX_BLOCKS; i++) {
        epochs[i] = P2P_FIRST_EPOCH;
    }
    TRY(cuda_result(cudaMalloc((void **)&memory, bytes), "cudaMalloc"));
    group->memory[group->rank] = memory;
    group->packets_bytes = comm_p2p_packets_bytes(group->world);
    group->most_bytes = comm_p2p_most_bytes(group->world);
    group->words_at = comm_p2p_words_at(group->world);
    group->pipe_at = words_end;
    TRY(cuda_result(cudaMemset(memory, 0, bytes), "cudaMemset"));
    TRY(cuda_result(cudaMemcpy(memory + words_end - sizeof epochs, epochs, sizeof epochs, cudaMemcpyHostToDevice),
                    "cudaMemcpy"));
    if (bytes > words_end) {
        size_t counts = COMM_P2P_PIPE_BLOCKS * sizeof epochs[0];
        TRY(cuda_result(cudaMemcpy(memory + bytes - counts, epochs, counts, cudaMemcpyHostToDevice), "cudaMemcpy"));
    }
    return cuda_result(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

static enum status import_memory(struct comm *comm) {
    struct p2p_group *group = &comm->group;
    for (uint32_t r = 0; r < group->world; r++) {
        const struct seat *seat = &comm->meeting->seats[r];
        int reaches = 0;
        if (r == group->rank) {
            continue;
        }
        if (atomic_load(&seat->shown) != DONE) {
            FAIL(STATUS_UNSUPPORTED, "rank %u has no memory to show", r);
        }
        TRY(cuda_result(cudaDeviceCanAccessPeer(&reaches, comm->ordinal, seat->ordinal), "cudaDeviceCanAccessPeer"));
        if (!reaches) {
            FAIL(STATUS_UNSUPPORTED, "card %d does not reach the memory of card %d", comm->ordinal, seat->ordinal);
        }
        void *peer = NULL;
        TRY(cuda_result(cudaIpcOpenMemHandle(&peer, seat->memory, cudaIpcMemLazyEnablePeerAccess),
                        "cudaIpcOpenMemHandle"));
        group->memory[r] = peer;
        group->max_blocks = group->max_blocks < seat->max_blocks ? group->max_blocks : seat->max_blocks;
        comm->imported[r] = true;
    }
    return STATUS_OK;
}

static void note_fault(struct seat *seat, enum status status) {
    snprintf(seat->fault, sizeof seat->fault, "%s", status == STATUS_OK ? "" : status_text());
}

/* Shows the own memory to the others, and opens theirs; all ranks know then whether all of them could. `fault` is why
 * not, "" else. */
static enum status exchange_memory(struct comm *comm, char *fault, size_t size) {
    uint32_t world = comm->group.world;
    struct seat *own = &comm->meeting->seats[comm->group.rank];
    enum status status = allocate_memory(comm);
    if (status == STATUS_OK) {
        status =
            cuda_result(cudaIpcGetMemHandle(&own->memory, comm->group.memory[comm->group.rank]), "cudaIpcGetMemHandle");
    }
    own->ordinal = comm->ordinal;
    own->max_blocks = comm->group.max_blocks;
    note_fault(own, status);
    atomic_store(&own->shown, status == STATUS_OK ? DONE : FAILED);
    TRY(barrier(comm));
    if (status == STATUS_OK) {
        status = import_memory(comm);
        note_fault(own, status);
    }
    atomic_store(&own->opened, status == STATUS_OK ? DONE : FAILED);
    TRY(barrier(comm));
    fault[0] = 0;
    for (uint32_t r = 0; r < world && fault[0] == 0; r++) {
        const struct seat *seat = &comm->meeting->seats[r];
        if (atomic_load(&seat->opened) != DONE) {
            snprintf(fault, size, "NCCL serves everything: on rank %u, %s", r, seat->fault);
        }
    }
    return STATUS_OK;
}

static enum status prove(struct comm *comm, const struct comm_config *config) {
    /* Twice as much as the slots hold lets the proof see the pipe, to which the number of rows makes no difference. */
    size_t most = comm_p2p_most_bytes(config->world) * (config->world == 2 ? 2 : 1);
    struct comm_proof_config proof = {
        .group = config,
        .own_ops = &comm_p2p_ops,
        .own = comm,
        .trusted_ops = &comm_nccl_ops,
        .trusted = comm->nccl,
        .max_bytes = most < config->max_bytes ? most : config->max_bytes,
        .serves_bytes = most < config->max_bytes && config->world > 2 ? most : config->max_bytes,
    };
    comm->own_bytes = proof.max_bytes;
    comm->group.patience = PROOF_PATIENCE;
    enum status status = comm_prove(&proof, &comm->verdict);
    comm->own_bytes = comm->verdict.max_bytes;
    comm->group.patience = 0;
    return status;
}

static enum status open_own(struct comm *comm, const struct comm_config *config) {
    void *memory;
    TRY(memfd_map(config->memory_fd, COMM_P2P_MEETING_BYTES, 1, &memory));
    comm->meeting = memory;
    TRY(allocate_state(comm));
    TRY(exchange_memory(comm, comm->verdict.text, sizeof comm->verdict.text));
    if (config->rank == 0) {
        log_topology(comm);
    }
    if (comm->verdict.text[0] == 0 && config->row_elements > 0) {
        TRY(prove(comm, config));
    }
    if (comm->own_bytes == 0) {
        *comm->group.state = P2P_GOES_ON; /* a kernel that gave up in the proof is no failure of what serves */
    }
    if (config->rank == 0 && comm->verdict.text[0] != 0) {
        log_write(comm->own_bytes > 0 ? LOG_INFO : LOG_WARN, "collectives: %s", comm->verdict.text);
    }
    return STATUS_OK;
}

static enum status p2p_open(const struct comm_config *config, struct comm **out) {
    if (config->world < 2 || config->world > COMM_P2P_MAX_WORLD || config->rank >= config->world) {
        FAIL(STATUS_INVALID, "comm p2p: rank %u of %u; the world may be 2 to %d", config->rank, config->world,
             COMM_P2P_MAX_WORLD);
    }
    struct comm *comm = xcalloc(1, sizeof *comm);
    comm->kernels = config->kernels;
    comm->ordinal = cuda_device_ordinal(config->device);
    comm->group.rank = config->rank;
    comm->group.world = config->world;
    enum status status = comm_nccl_ops.open(config, &comm->nccl);
    if (status == STATUS_OK) {
        status = open_own(comm, config);
    }
    if (status != STATUS_OK) {
        if (comm->nccl != NULL) {
            comm_nccl_ops.abort(comm->nccl); /* destroying would wait for the others, who wait for this rank */
        }
        p2p_close(comm);
        return status;
    }
    *out = comm;
    return STATUS_OK;
}

const struct comm_ops comm_p2p_ops = {
    .name = "p2p",
    .open = p2p_open,
    .close = p2p_close,
    .all_reduce = all_reduce,
    .all_gather = all_gather,
    .all_to_all = all_to_all,
    .broadcast = broadcast,
    .barrier = barrier,
    .abort = abort_group,
    .check = check,
    .all_reduce_add_rmsnorm = all_reduce_add_rmsnorm,
    .report = report,
};
