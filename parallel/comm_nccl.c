#include "parallel/comm_nccl.h"

#include <dlfcn.h>
#include <nccl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "kernels/cuda/handles.h"
#include "parallel/comm.h"
#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"

#define POLL_NS (200 * 1000)
#define SCRATCH_BYTES 256 /* a part of the scratch memory; the host's own collectives use one for each rank */

/* clang-format off */
#define NCCL_CALLS(X)                                                                                  \
    X(GetVersion) X(GetErrorString) X(GetLastError) X(GetUniqueId) X(CommInitRank) X(CommDestroy)      \
    X(CommAbort) X(CommGetAsyncError) X(AllReduce) X(AllGather) X(Broadcast) X(Send) X(Recv)           \
    X(GroupStart) X(GroupEnd)
/* clang-format on */

/* The library, opened once. */
static struct {
    enum status status;
    char text[512];
    int version;
#define CALL(name) __typeof__(nccl##name) *name;
    NCCL_CALLS(CALL)
#undef CALL
} nccl;

struct comm {
    uint32_t rank;
    uint32_t world;
    int ordinal;
    const struct kernel_ops *kernels;
    size_t max_bytes;
    ncclComm_t nccl;
    cudaStream_t stream;  /* of the host's own collectives */
    char *scratch;        /* device memory for them: [2][world][SCRATCH_BYTES] */
    pthread_mutex_t lock; /* one call at a time, and none after an abort, which frees `nccl` */
    bool aborted;
};

/* ---- the library */

static void *symbol_of(void *library, const char *name) {
    void *symbol = dlsym(library, name);
    if (symbol == NULL && nccl.status == STATUS_OK) {
        nccl.status = STATUS_UNSUPPORTED;
        snprintf(nccl.text, sizeof nccl.text, "libnccl.so.2 has no %s; install NCCL 2.18 or newer", name);
    }
    return symbol;
}

static void open_library(void) {
    void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        nccl.status = STATUS_UNSUPPORTED;
        snprintf(nccl.text, sizeof nccl.text,
                 "libnccl.so.2 cannot be loaded (%s); install NCCL, which more than one card needs (tp)", dlerror());
        return;
    }
#define CALL(name) *(void **)&nccl.name = symbol_of(library, "nccl" #name);
    NCCL_CALLS(CALL)
#undef CALL
    if (nccl.status == STATUS_OK) {
        nccl.GetVersion(&nccl.version);
    }
}

void comm_nccl_set_environment(void) {
    /* Multicast over NVLink stays off: where it goes wrong it takes the host's cards out of service for everybody. The
     * ranks are of one host: nobody else needs to reach the port through which they connect. */
    setenv("NCCL_NVLS_ENABLE", "0", 1);
    setenv("NCCL_SOCKET_IFNAME", "lo", 0);
}

static enum status use_library(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, open_library);
    if (nccl.status != STATUS_OK) {
        FAIL(nccl.status, "%s", nccl.text);
    }
    return STATUS_OK;
}

static enum status result_of(ncclResult_t result, const char *call) {
    if (result == ncclSuccess) {
        return STATUS_OK;
    }
    const char *detail = nccl.GetLastError(NULL);
    FAIL(STATUS_CLOSED, "%s: %s%s%s", call, nccl.GetErrorString(result), detail[0] != 0 ? ": " : "", detail);
}

static enum status cuda_result(cudaError_t error, const char *call) {
    if (error == cudaSuccess) {
        return STATUS_OK;
    }
    FAIL(STATUS_IO, "%s: %s", call, cudaGetErrorString(error));
}

/* ---- calls on an open communicator */

/* Takes the lock, unless the communicator is of no use any more. */
static enum status enter(struct comm *comm) {
    pthread_mutex_lock(&comm->lock);
    if (comm->aborted) {
        pthread_mutex_unlock(&comm->lock);
        FAIL(STATUS_CLOSED, "the group's collectives were aborted");
    }
    return STATUS_OK;
}

static enum status leave(struct comm *comm, ncclResult_t result, const char *call) {
    pthread_mutex_unlock(&comm->lock);
    return result_of(result, call);
}

static ncclDataType_t type_of(enum dtype dtype) {
    switch (dtype) {
    case DTYPE_BF16: return ncclBfloat16;
    case DTYPE_F16: return ncclFloat16;
    case DTYPE_F32: break;
    }
    return ncclFloat32;
}

static enum status reduce_on(struct comm *comm, cudaStream_t stream, void *data, size_t count, enum dtype dtype) {
    TRY(enter(comm));
    return leave(comm, nccl.AllReduce(data, data, count, type_of(dtype), ncclSum, comm->nccl, stream), "ncclAllReduce");
}

static enum status nccl_all_reduce(struct comm *comm, struct kernel_stream *stream, void *data, size_t count,
                                   enum dtype dtype) {
    CHECK(count <= comm->max_bytes / dtype_bytes(dtype), "%zu elements, the group was opened for %zu bytes", count,
          comm->max_bytes);
    return reduce_on(comm, cuda_stream_handle(stream), data, count, dtype);
}

static enum status gather_on(struct comm *comm, cudaStream_t stream, const void *send, void *recv, size_t bytes) {
    TRY(enter(comm));
    return leave(comm, nccl.AllGather(send, recv, bytes, ncclUint8, comm->nccl, stream), "ncclAllGather");
}

static enum status nccl_all_gather(struct comm *comm, struct kernel_stream *stream, const void *send, void *recv,
                                   size_t bytes) {
    CHECK(bytes <= comm->max_bytes, "%zu bytes, the group was opened for %zu", bytes, comm->max_bytes);
    return gather_on(comm, cuda_stream_handle(stream), send, recv, bytes);
}

static enum status nccl_broadcast(struct comm *comm, struct kernel_stream *stream, void *data, size_t bytes,
                                  uint32_t root) {
    CHECK(root < comm->world, "root %u of world %u", root, comm->world);
    CHECK(bytes <= comm->max_bytes, "%zu bytes, the group was opened for %zu", bytes, comm->max_bytes);
    TRY(enter(comm));
    ncclResult_t result =
        nccl.Broadcast(data, data, bytes, ncclUint8, (int)root, comm->nccl, cuda_stream_handle(stream));
    return leave(comm, result, "ncclBroadcast");
}

/* The parts for the others, in one group: NCCL lets all of them travel at once. */
static ncclResult_t exchange_parts(struct comm *comm, cudaStream_t stream, const char *send, const size_t *send_bytes,
                                   char *recv, const size_t *recv_bytes) {
    ncclResult_t result = nccl.GroupStart();
    for (uint32_t r = 0; r < comm->world && result == ncclSuccess; r++) {
        if (r != comm->rank && send_bytes[r] > 0) {
            result = nccl.Send(send, send_bytes[r], ncclUint8, (int)r, comm->nccl, stream);
        }
        if (r != comm->rank && recv_bytes[r] > 0 && result == ncclSuccess) {
            result = nccl.Recv(recv, recv_bytes[r], ncclUint8, (int)r, comm->nccl, stream);
        }
        send += send_bytes[r];
        recv += recv_bytes[r];
    }
    ncclResult_t ended = nccl.GroupEnd();
    return result != ncclSuccess ? result : ended;
}

static enum status nccl_all_to_all(struct comm *comm, struct kernel_stream *stream, const void *send,
                                   const size_t *send_bytes, void *recv, const size_t *recv_bytes) {
    size_t sent = 0;
    size_t own_send = 0;
    size_t own_recv = 0;
    for (uint32_t r = 0; r < comm->world; r++) {
        own_send += r < comm->rank ? send_bytes[r] : 0;
        own_recv += r < comm->rank ? recv_bytes[r] : 0;
        sent += send_bytes[r];
    }
    size_t own = send_bytes[comm->rank];
    CHECK(sent <= comm->max_bytes, "%zu bytes, the group was opened for %zu", sent, comm->max_bytes);
    CHECK(own == recv_bytes[comm->rank], "%zu bytes sent to oneself, %zu expected", own, recv_bytes[comm->rank]);
    if (own > 0) {
        TRY(comm->kernels->copy(stream, (char *)recv + own_recv, (const char *)send + own_send, own,
                                KERNEL_COPY_ON_DEVICE));
    }
    TRY(enter(comm));
    ncclResult_t result = exchange_parts(comm, cuda_stream_handle(stream), send, send_bytes, recv, recv_bytes);
    return leave(comm, result, "ncclSend, ncclRecv");
}

static enum status nccl_check(struct comm *comm) {
    TRY(enter(comm));
    ncclResult_t error = ncclSuccess;
    ncclResult_t result = nccl.CommGetAsyncError(comm->nccl, &error);
    return leave(comm, result != ncclSuccess ? result : error, "a collective");
}

static void nccl_abort(struct comm *comm) {
    pthread_mutex_lock(&comm->lock);
    if (!comm->aborted) {
        comm->aborted = true;
        nccl.CommAbort(comm->nccl);
    }
    pthread_mutex_unlock(&comm->lock);
}

static void pause_ns(uint64_t ns) {
    struct timespec time = {.tv_nsec = (long)ns};
    nanosleep(&time, NULL);
}

/* Waits for the host's own collectives, until an error, an abort or `deadline_ns`. */
static enum status wait_for_stream(struct comm *comm, uint64_t deadline_ns) {
    for (;;) {
        cudaError_t error = cudaStreamQuery(comm->stream);
        TRY(nccl_check(comm));
        if (error != cudaErrorNotReady) {
            return cuda_result(error, "waiting for the group");
        }
        if (clock_now_ns() >= deadline_ns) {
            FAIL(STATUS_TIMEOUT, "rank %u of %u waited in vain for a first collective", comm->rank, comm->world);
        }
        pause_ns(POLL_NS);
    }
}

static enum status barrier_until(struct comm *comm, uint64_t deadline_ns) {
    TRY(cuda_result(cudaSetDevice(comm->ordinal), "cudaSetDevice"));
    TRY(reduce_on(comm, comm->stream, comm->scratch, 1, DTYPE_F32));
    return wait_for_stream(comm, deadline_ns);
}

static enum status nccl_barrier(struct comm *comm) {
    return barrier_until(comm, UINT64_MAX);
}

/* ---- opening: the ranks meet in shared memory, then connect */

struct meeting {
    _Atomic uint32_t joined[COMM_MAX_WORLD];
    _Atomic uint32_t has_id;
    ncclUniqueId id; /* of rank 0, once has_id is set */
};
static_assert(sizeof(struct meeting) <= COMM_NCCL_MEETING_BYTES, "the ranks meet in there");

static bool all_met(struct meeting *meeting, uint32_t world) {
    bool all = atomic_load(&meeting->has_id) != 0;
    for (uint32_t r = 0; r < world; r++) {
        all = all && atomic_load(&meeting->joined[r]) != 0;
    }
    return all;
}

static enum status fail_missing(const struct comm_config *config, struct meeting *meeting) {
    char names[COMM_MAX_WORLD * 4] = "";
    size_t used = 0;
    for (uint32_t r = 0; r < config->world; r++) {
        if (atomic_load(&meeting->joined[r]) == 0) {
            used += (size_t)snprintf(names + used, sizeof names - used, "%s%u", used > 0 ? ", " : "", r);
        }
    }
    FAIL(STATUS_TIMEOUT, "rank %u waited %.1f s for the group of %u; missing: %s", config->rank,
         (double)config->timeout_ns / (double)NS_PER_S, config->world, used > 0 ? names : "the id of rank 0");
}

static enum status meet_in(struct meeting *meeting, const struct comm_config *config, uint64_t deadline_ns,
                           ncclUniqueId *id) {
    if (config->rank == 0) {
        TRY(result_of(nccl.GetUniqueId(&meeting->id), "ncclGetUniqueId"));
        atomic_store(&meeting->has_id, 1);
    }
    atomic_store(&meeting->joined[config->rank], 1);
    while (!all_met(meeting, config->world)) {
        if (clock_now_ns() >= deadline_ns) {
            return fail_missing(config, meeting);
        }
        pause_ns(POLL_NS);
    }
    *id = meeting->id;
    return STATUS_OK;
}

static enum status meet(const struct comm_config *config, uint64_t deadline_ns, ncclUniqueId *id) {
    if (config->world == 1) {
        return result_of(nccl.GetUniqueId(id), "ncclGetUniqueId");
    }
    void *memory;
    TRY(memfd_map(config->memory_fd, COMM_NCCL_MEETING_BYTES, 1, &memory));
    enum status status = meet_in(memory, config, deadline_ns, id);
    munmap(memory, COMM_NCCL_MEETING_BYTES);
    return status;
}

/* Connecting has no deadline of its own, so a thread does it. NCCL's non-blocking communicators would have one, but
 * start a thread for every later collective. */
struct connecting {
    pthread_mutex_t lock; /* of what the thread leaves behind */
    pthread_cond_t changed;
    bool ended;
    bool abandoned; /* nobody waits any more: the thread frees this */
    int ordinal, rank, world;
    ncclUniqueId id;
    ncclComm_t comm;
    enum status status;
    char text[512];
};

static void free_connecting(struct connecting *connecting) {
    pthread_cond_destroy(&connecting->changed);
    pthread_mutex_destroy(&connecting->lock);
    free(connecting);
}

static enum status connect_now(struct connecting *connecting) {
    TRY(cuda_result(cudaSetDevice(connecting->ordinal), "cudaSetDevice"));
    return result_of(nccl.CommInitRank(&connecting->comm, connecting->world, connecting->id, connecting->rank),
                     "ncclCommInitRank");
}

static void *connect_thread(void *argument) {
    struct connecting *connecting = argument;
    enum status status = connect_now(connecting);
    pthread_mutex_lock(&connecting->lock);
    connecting->ended = true;
    connecting->status = status;
    snprintf(connecting->text, sizeof connecting->text, "%s", status != STATUS_OK ? status_text() : "");
    bool abandoned = connecting->abandoned;
    pthread_cond_signal(&connecting->changed);
    pthread_mutex_unlock(&connecting->lock);
    if (abandoned) {
        free_connecting(connecting);
    }
    return NULL;
}

static enum status start_connecting(const struct comm_config *config, const ncclUniqueId *id, struct connecting **out) {
    struct connecting *connecting = xcalloc(1, sizeof *connecting);
    pthread_condattr_t monotonic;
    pthread_t thread;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&connecting->lock, NULL);
    pthread_cond_init(&connecting->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    connecting->ordinal = cuda_device_ordinal(config->device);
    connecting->rank = (int)config->rank;
    connecting->world = (int)config->world;
    connecting->id = *id;
    if (pthread_create(&thread, NULL, connect_thread, connecting) != 0) {
        free_connecting(connecting);
        FAIL(STATUS_IO, "cannot start the thread that connects the group");
    }
    pthread_detach(thread);
    *out = connecting;
    return STATUS_OK;
}

static enum status connect_group(const struct comm_config *config, const ncclUniqueId *id, uint64_t deadline_ns,
                                 ncclComm_t *comm) {
    struct connecting *connecting = NULL;
    TRY(start_connecting(config, id, &connecting));
    struct timespec deadline = {.tv_sec = (time_t)(deadline_ns / NS_PER_S), .tv_nsec = (long)(deadline_ns % NS_PER_S)};
    int waited = 0;
    pthread_mutex_lock(&connecting->lock);
    while (!connecting->ended && waited == 0) {
        waited = pthread_cond_timedwait(&connecting->changed, &connecting->lock, &deadline);
    }
    bool ended = connecting->ended;
    connecting->abandoned = !ended;
    pthread_mutex_unlock(&connecting->lock);
    if (!ended) {
        FAIL(STATUS_TIMEOUT,
             "rank %u: all %u ranks came, but NCCL did not connect them within %.1f s; a card that hangs or two ranks "
             "on one card are the usual causes, NCCL_DEBUG=INFO tells more",
             config->rank, config->world, (double)config->timeout_ns / (double)NS_PER_S);
    }
    enum status status = connecting->status;
    *comm = connecting->comm;
    if (status != STATUS_OK) {
        status = status_fail(status, "rank %u of %u: %s", config->rank, config->world, connecting->text);
    }
    free_connecting(connecting);
    return status;
}

static void nccl_close(struct comm *comm) {
    if (comm == NULL) {
        return;
    }
    cudaSetDevice(comm->ordinal);
    if (comm->nccl != NULL && !comm->aborted) {
        nccl.CommDestroy(comm->nccl);
    }
    if (comm->stream != NULL) {
        cudaStreamDestroy(comm->stream);
    }
    cudaFree(comm->scratch);
    pthread_mutex_destroy(&comm->lock);
    free(comm);
}

/* Connections are made by the first collective of a kind: now, and not while a graph is recorded. */
static enum status warm_up(struct comm *comm, uint64_t deadline_ns) {
    size_t bytes[COMM_MAX_WORLD];
    for (uint32_t r = 0; r < comm->world; r++) {
        bytes[r] = SCRATCH_BYTES;
    }
    char *recv = comm->scratch + comm->world * SCRATCH_BYTES;
    TRY(gather_on(comm, comm->stream, comm->scratch, recv, SCRATCH_BYTES));
    TRY(enter(comm));
    TRY(leave(comm, exchange_parts(comm, comm->stream, comm->scratch, bytes, recv, bytes), "ncclSend, ncclRecv"));
    return barrier_until(comm, deadline_ns);
}

static enum status open_parts(struct comm *comm, const struct comm_config *config) {
    uint64_t deadline_ns = clock_now_ns() + config->timeout_ns;
    ncclUniqueId id;
    TRY(meet(config, deadline_ns, &id));
    TRY(connect_group(config, &id, deadline_ns, &comm->nccl));
    TRY(cuda_result(cudaSetDevice(comm->ordinal), "cudaSetDevice"));
    TRY(cuda_result(cudaStreamCreateWithFlags(&comm->stream, cudaStreamNonBlocking), "cudaStreamCreate"));
    size_t bytes = 2 * comm->world * SCRATCH_BYTES;
    TRY(cuda_result(cudaMalloc((void **)&comm->scratch, bytes), "cudaMalloc"));
    TRY(cuda_result(cudaMemsetAsync(comm->scratch, 0, bytes, comm->stream), "cudaMemset"));
    return warm_up(comm, deadline_ns);
}

static enum status nccl_open(const struct comm_config *config, struct comm **out) {
    if (config->world < 1 || config->world > COMM_MAX_WORLD || config->rank >= config->world) {
        FAIL(STATUS_INVALID, "comm nccl: rank %u of %u; the world may be 1 to %d", config->rank, config->world,
             COMM_MAX_WORLD);
    }
    TRY(use_library());
    struct comm *comm = xcalloc(1, sizeof *comm);
    comm->rank = config->rank;
    comm->world = config->world;
    comm->ordinal = cuda_device_ordinal(config->device);
    comm->kernels = config->kernels;
    comm->max_bytes = config->max_bytes;
    pthread_mutex_init(&comm->lock, NULL);
    enum status status = open_parts(comm, config);
    if (status != STATUS_OK) {
        if (comm->nccl != NULL) {
            nccl_abort(comm); /* destroying would wait for the others */
        }
        nccl_close(comm);
        return status;
    }
    log_debug("NCCL %d connects %u ranks", nccl.version, comm->world);
    *out = comm;
    return STATUS_OK;
}

extern const struct comm_ops comm_nccl_ops;

const struct comm_ops comm_nccl_ops = {
    .name = "nccl",
    .open = nccl_open,
    .close = nccl_close,
    .all_reduce = nccl_all_reduce,
    .all_gather = nccl_all_gather,
    .all_to_all = nccl_all_to_all,
    .broadcast = nccl_broadcast,
    .barrier = nccl_barrier,
    .abort = nccl_abort,
    .check = nccl_check,
};
