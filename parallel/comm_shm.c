#define _GNU_SOURCE
#include "parallel/comm_shm.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "parallel/reduce.h"
#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/check.h"
#include "runtime/base/clock.h"

#define LINE 64
/* Longer messages travel in pieces of this size, which stay in the second-level cache while two ranks pass them. */
#define SLOT_MAX ((size_t)1 << 20)
#define SLOT_MIN ((size_t)4 << 10)
/* From here on a second gate costs less than having every rank add everything. Not so of two: each would move as much
 * in two shots. */
#define ONE_SHOT_BYTES ((size_t)64 << 10)
/* A longer sum may run beside a stream that computes, whose processor a waiting thread must not spin away; what a
 * wake-up takes is little of it. */
#define SPIN_BYTES ((size_t)128 << 10)
#define SPIN_ROUNDS 20000

static_assert(ATOMIC_INT_LOCK_FREE == 2 && ATOMIC_LLONG_LOCK_FREE == 2, "shared between processes");

/* Opens when all ranks have come. `passed` is the futex word: bit 0 says aborted, the rest counts openings by twos, and
 * wraps. */
struct gate {
    _Alignas(LINE) _Atomic uint64_t arrived;
    _Alignas(LINE) _Atomic uint32_t passed;
    _Atomic uint32_t sleepers;
};

#define GATE_ABORTED 1u
#define GATE_STEP 2u

struct member {
    _Alignas(LINE) _Atomic uint32_t joined;
    uint32_t world;
    uint64_t max_bytes;
    uint64_t exchange_bytes[2]; /* all_to_all, by parity: the largest part this rank sends */
};

struct shared {
    struct gate stream;
    struct gate host;
    _Alignas(LINE) _Atomic uint32_t n_joined; /* futex word */
    struct member member[COMM_MAX_WORLD];
    /* [2][world][slot bytes] follow */
};

struct comm {
    uint32_t rank;
    uint32_t world;
    const struct kernel_ops *kernels;
    bool spin;
    size_t max_bytes;
    size_t slot_bytes;
    struct shared *shared;
    size_t mapped_bytes;   /* 0: the memory is somebody else's mapping */
    uint32_t stream_phase; /* touched by the threads of streams only, in the order of the collectives */
    uint32_t host_phase;
    atomic_bool failed;
};

/* A collective on its way through the stream. */
struct record {
    struct comm *comm;
    const void *send;
    void *recv;
    size_t size; /* bytes, or elements of all_reduce */
    enum dtype dtype;
    uint32_t root;
    uint32_t send_bytes[COMM_MAX_WORLD];
    uint32_t recv_bytes[COMM_MAX_WORLD];
};
static_assert(sizeof(struct record) <= KERNEL_HOST_CALL_BYTES, "travels as a host call's argument");

static size_t round_up(size_t value, size_t unit) {
    return (value + unit - 1) / unit * unit;
}

static size_t slot_size(size_t max_bytes) {
    size_t slot = round_up(max_bytes, LINE);
    return slot < SLOT_MIN ? SLOT_MIN : slot > SLOT_MAX ? SLOT_MAX : slot;
}

size_t comm_shm_bytes(uint32_t world, size_t max_bytes) {
    return sizeof(struct shared) + (size_t)2 * world * slot_size(max_bytes);
}

static long futex(_Atomic uint32_t *word, int operation, uint32_t value, const struct timespec *timeout) {
    return syscall(SYS_futex, word, operation, value, timeout, NULL, 0);
}

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

/* ---- gates */

/* Waits until the gate has opened for the `target`-th time; false when it was aborted. */
static bool gate_wait(struct gate *gate, uint32_t target, bool spins) {
    uint32_t rounds = spins ? SPIN_ROUNDS : 0;
    for (;;) {
        uint32_t seen = atomic_load_explicit(&gate->passed, memory_order_acquire);
        if ((seen & GATE_ABORTED) != 0) {
            return false;
        }
        if ((int32_t)(seen - target) >= 0) {
            return true;
        }
        if (rounds > 0) {
            rounds--;
            relax();
            continue;
        }
        /* Sequentially consistent: either the opener sees this sleeper, or the futex sees the opened gate. */
        atomic_fetch_add(&gate->sleepers, 1);
        futex(&gate->passed, FUTEX_WAIT, seen, NULL);
        atomic_fetch_sub(&gate->sleepers, 1);
    }
}

static void gate_wake(struct gate *gate) {
    if (atomic_load(&gate->sleepers) > 0) {
        futex(&gate->passed, FUTEX_WAKE, INT_MAX, NULL);
    }
}

static bool gate_pass(const struct comm *comm, struct gate *gate, uint32_t *phase, bool spins) {
    CHECK(comm->world > 0, "a group of none");
    *phase += GATE_STEP;
    uint64_t before = atomic_fetch_add_explicit(&gate->arrived, 1, memory_order_acq_rel);
    if ((before + 1) % comm->world == 0) {
        atomic_fetch_add(&gate->passed, GATE_STEP);
        gate_wake(gate);
    }
    return gate_wait(gate, *phase, spins);
}

/* ---- phases of the stream */

static char *slot_of(const struct comm *comm, uint32_t phase, uint32_t rank) {
    size_t parity = phase / GATE_STEP % 2;
    return (char *)(comm->shared + 1) + (parity * comm->world + rank) * comm->slot_bytes;
}

/* The buffer to write in the coming phase. */
static char *next_slot(const struct comm *comm) {
    return slot_of(comm, comm->stream_phase + GATE_STEP, comm->rank);
}

/* Ends the writing of a phase of a collective of `bytes`; afterwards slot_of(comm, comm->stream_phase, r) holds what
 * rank r wrote. */
static bool pass(struct comm *comm, size_t bytes) {
    if (!gate_pass(comm, &comm->shared->stream, &comm->stream_phase, comm->spin && bytes <= SPIN_BYTES)) {
        atomic_store(&comm->failed, true);
        return false;
    }
    return true;
}

static void copy_bytes(void *to, const void *from, size_t bytes) {
    if (bytes > 0) {
        memcpy(to, from, bytes);
    }
}

/* `count` elements of a sum, which are at `data`. */
static bool reduce_one_shot(const struct record *record, char *data, size_t count) {
    struct comm *comm = record->comm;
    size_t element = dtype_bytes(record->dtype);
    const void *parts[COMM_MAX_WORLD];
    copy_bytes(next_slot(comm), data, count * element);
    if (!pass(comm, record->size * element)) {
        return false;
    }
    for (uint32_t r = 0; r < comm->world; r++) {
        parts[r] = r == comm->rank ? data : slot_of(comm, comm->stream_phase, r);
    }
    reduce_sum(data, parts, comm->world, count, record->dtype);
    return true;
}

/* Rank r adds the r-th slice and hands it to the others: the same additions in the same order as one shot. */
static bool reduce_two_shot(const struct record *record, char *data, size_t count) {
    struct comm *comm = record->comm;
    const void *parts[COMM_MAX_WORLD];
    size_t element = dtype_bytes(record->dtype);
    size_t line = LINE / element;
    size_t slice = round_up((count + comm->world - 1) / comm->world, line);
    size_t mine = comm->rank * slice < count ? comm->rank * slice : count;
    size_t n_mine = count - mine < slice ? count - mine : slice;
    char *slot = next_slot(comm);
    copy_bytes(slot, data, mine * element);
    copy_bytes(slot + (mine + n_mine) * element, data + (mine + n_mine) * element, (count - mine - n_mine) * element);
    if (!pass(comm, record->size * element)) {
        return false;
    }
    for (uint32_t r = 0; r < comm->world; r++) {
        parts[r] = r == comm->rank ? data + mine * element : slot_of(comm, comm->stream_phase, r) + mine * element;
    }
    slot = next_slot(comm);
    reduce_sum(slot + mine * element, parts, comm->world, n_mine, record->dtype);
    copy_bytes(data + mine * element, slot + mine * element, n_mine * element);
    if (!pass(comm, record->size * element)) {
        return false;
    }
    for (uint32_t r = 0; r < comm->world; r++) {
        size_t first = r * slice < count ? r * slice : count;
        size_t n = count - first < slice ? count - first : slice;
        if (r != comm->rank) {
            copy_bytes(data + first * element, slot_of(comm, comm->stream_phase, r) + first * element, n * element);
        }
    }
    return true;
}

static void run_all_reduce(void *argument) {
    const struct record *record = argument;
    struct comm *comm = record->comm;
    size_t element = dtype_bytes(record->dtype);
    size_t most = comm->slot_bytes / element;
    bool one_shot = comm->world <= 2 || record->size * element <= ONE_SHOT_BYTES;
    for (size_t at = 0; at < record->size && !atomic_load(&comm->failed); at += most) {
        size_t count = record->size - at < most ? record->size - at : most;
        char *data = (char *)record->recv + at * element;
        if (!(one_shot ? reduce_one_shot(record, data, count) : reduce_two_shot(record, data, count))) {
            return;
        }
    }
}

static void run_all_gather(void *argument) {
    const struct record *record = argument;
    struct comm *comm = record->comm;
    for (size_t at = 0; at < record->size && !atomic_load(&comm->failed); at += comm->slot_bytes) {
        size_t bytes = record->size - at < comm->slot_bytes ? record->size - at : comm->slot_bytes;
        copy_bytes(next_slot(comm), (const char *)record->send + at, bytes);
        if (!pass(comm, record->size)) {
            return;
        }
        for (uint32_t r = 0; r < comm->world; r++) {
            copy_bytes((char *)record->recv + r * record->size + at, slot_of(comm, comm->stream_phase, r), bytes);
        }
    }
}

static void run_broadcast(void *argument) {
    const struct record *record = argument;
    struct comm *comm = record->comm;
    for (size_t at = 0; at < record->size && !atomic_load(&comm->failed); at += comm->slot_bytes) {
        size_t bytes = record->size - at < comm->slot_bytes ? record->size - at : comm->slot_bytes;
        char *data = (char *)record->recv + at;
        if (comm->rank == record->root) {
            copy_bytes(next_slot(comm), data, bytes);
        }
        if (!pass(comm, record->size)) {
            return;
        }
        if (comm->rank != record->root) {
            copy_bytes(data, slot_of(comm, comm->stream_phase, record->root), bytes);
        }
    }
}

static uint64_t largest(const uint32_t *sizes, uint32_t count) {
    uint64_t most = 0;
    for (uint32_t i = 0; i < count; i++) {
        most = sizes[i] > most ? sizes[i] : most;
    }
    return most;
}

/* Bytes of a part of `bytes` that travel in the round which starts at `at`. */
static size_t round_bytes(size_t bytes, size_t at, size_t share) {
    return bytes <= at ? 0 : bytes - at < share ? bytes - at : share;
}

/* A slot is cut into one share for each receiver. How many rounds it takes, the ranks tell each other in the first. */
static void run_all_to_all(void *argument) {
    const struct record *record = argument;
    struct comm *comm = record->comm;
    size_t share = comm->slot_bytes / comm->world / LINE * LINE;
    uint64_t rest = 1; /* the first round always happens */
    for (size_t at = 0; at < rest && !atomic_load(&comm->failed); at += share) {
        uint32_t parity = (comm->stream_phase + GATE_STEP) / GATE_STEP % 2;
        char *slot = next_slot(comm);
        const char *part = record->send;
        for (uint32_t r = 0; r < comm->world; r++) {
            size_t bytes = round_bytes(record->send_bytes[r], at, share);
            copy_bytes(slot + r * share, part + (bytes > 0 ? at : 0), bytes);
            part += record->send_bytes[r];
        }
        comm->shared->member[comm->rank].exchange_bytes[parity] = largest(record->send_bytes, comm->world);
        if (!pass(comm, largest(record->send_bytes, comm->world))) {
            return;
        }
        char *to = record->recv;
        for (uint32_t r = 0; r < comm->world; r++) {
            size_t bytes = round_bytes(record->recv_bytes[r], at, share);
            copy_bytes(to + (bytes > 0 ? at : 0), slot_of(comm, comm->stream_phase, r) + comm->rank * share, bytes);
            to += record->recv_bytes[r];
            uint64_t sends = comm->shared->member[r].exchange_bytes[parity];
            rest = sends > rest ? sends : rest;
        }
    }
}

/* ---- the table */

static enum status shm_check(struct comm *comm) {
    if (atomic_load(&comm->failed)) {
        FAIL(STATUS_CLOSED, "the group's collectives were aborted");
    }
    return STATUS_OK;
}

static enum status enqueue(struct kernel_stream *stream, void (*run)(void *), const struct record *record) {
    TRY(shm_check(record->comm));
    return record->comm->kernels->host_call(stream, run, record, sizeof *record);
}

static enum status shm_all_reduce(struct comm *comm, struct kernel_stream *stream, void *data, size_t count,
                                  enum dtype dtype) {
    CHECK(count <= comm->max_bytes / dtype_bytes(dtype), "%zu elements, the group was opened for %zu bytes", count,
          comm->max_bytes);
    struct record record = {.comm = comm, .recv = data, .size = count, .dtype = dtype};
    return enqueue(stream, run_all_reduce, &record);
}

static enum status shm_all_gather(struct comm *comm, struct kernel_stream *stream, const void *send, void *recv,
                                  size_t bytes) {
    CHECK(bytes <= comm->max_bytes, "%zu bytes, the group was opened for %zu", bytes, comm->max_bytes);
    struct record record = {.comm = comm, .send = send, .recv = recv, .size = bytes};
    return enqueue(stream, run_all_gather, &record);
}

static enum status shm_all_to_all(struct comm *comm, struct kernel_stream *stream, const void *send,
                                  const size_t *send_bytes, void *recv, const size_t *recv_bytes) {
    struct record record = {.comm = comm, .send = send, .recv = recv};
    size_t sent = 0;
    for (uint32_t r = 0; r < comm->world; r++) {
        CHECK(send_bytes[r] <= UINT32_MAX && recv_bytes[r] <= UINT32_MAX, "a part of 4 GiB or more");
        record.send_bytes[r] = (uint32_t)send_bytes[r];
        record.recv_bytes[r] = (uint32_t)recv_bytes[r];
        sent += send_bytes[r];
    }
    CHECK(sent <= comm->max_bytes, "%zu bytes, the group was opened for %zu", sent, comm->max_bytes);
    CHECK(send_bytes[comm->rank] == recv_bytes[comm->rank], "%zu bytes sent to oneself, %zu expected",
          send_bytes[comm->rank], recv_bytes[comm->rank]);
    return enqueue(stream, run_all_to_all, &record);
}

static enum status shm_broadcast(struct comm *comm, struct kernel_stream *stream, void *data, size_t bytes,
                                 uint32_t root) {
    CHECK(root < comm->world, "root %u of world %u", root, comm->world);
    CHECK(bytes <= comm->max_bytes, "%zu bytes, the group was opened for %zu", bytes, comm->max_bytes);
    struct record record = {.comm = comm, .recv = data, .size = bytes, .root = root};
    return enqueue(stream, run_broadcast, &record);
}

static enum status shm_barrier(struct comm *comm) {
    TRY(shm_check(comm));
    if (!gate_pass(comm, &comm->shared->host, &comm->host_phase, comm->spin)) {
        atomic_store(&comm->failed, true);
    }
    return shm_check(comm);
}

/* The mark is shared: a group that lost one rank is of no use to the others. */
static void shm_abort(struct comm *comm) {
    struct gate *gates[] = {&comm->shared->stream, &comm->shared->host};
    atomic_store(&comm->failed, true);
    for (int i = 0; i < 2; i++) {
        atomic_fetch_or(&gates[i]->passed, GATE_ABORTED);
        futex(&gates[i]->passed, FUTEX_WAKE, INT_MAX, NULL);
    }
}

static void shm_close(struct comm *comm) {
    if (comm == NULL) {
        return;
    }
    if (comm->mapped_bytes > 0) {
        munmap(comm->shared, comm->mapped_bytes);
    }
    free(comm);
}

/* ---- opening */

static enum status fail_missing(const struct comm *comm, uint64_t timeout_ns) {
    char names[COMM_MAX_WORLD * 4] = "";
    size_t used = 0;
    for (uint32_t r = 0; r < comm->world; r++) {
        if (atomic_load(&comm->shared->member[r].joined) == 0) {
            used += (size_t)snprintf(names + used, sizeof names - used, "%s%u", used > 0 ? ", " : "", r);
        }
    }
    FAIL(STATUS_TIMEOUT, "rank %u waited %.1f s for the group of %u; missing: %s", comm->rank,
         (double)timeout_ns / (double)NS_PER_S, comm->world, names);
}

static enum status wait_for_members(const struct comm *comm, uint64_t timeout_ns) {
    uint64_t start = clock_now_ns();
    for (;;) {
        uint32_t joined = atomic_load(&comm->shared->n_joined);
        if (joined >= comm->world) {
            return STATUS_OK;
        }
        uint64_t waited = clock_now_ns() - start;
        if (waited >= timeout_ns) {
            return fail_missing(comm, timeout_ns);
        }
        uint64_t left = timeout_ns - waited;
        struct timespec timeout = {.tv_sec = (time_t)(left / NS_PER_S), .tv_nsec = (long)(left % NS_PER_S)};
        futex(&comm->shared->n_joined, FUTEX_WAIT, joined, &timeout);
    }
}

static enum status join(struct comm *comm, uint64_t timeout_ns) {
    struct member *me = &comm->shared->member[comm->rank];
    uint32_t nobody = 0;
    me->world = comm->world;
    me->max_bytes = comm->max_bytes;
    if (!atomic_compare_exchange_strong(&me->joined, &nobody, 1)) {
        FAIL(STATUS_INTERNAL, "rank %u has joined this group before", comm->rank);
    }
    atomic_fetch_add(&comm->shared->n_joined, 1);
    futex(&comm->shared->n_joined, FUTEX_WAKE, INT_MAX, NULL);
    TRY(wait_for_members(comm, timeout_ns));
    for (uint32_t r = 0; r < comm->world; r++) {
        const struct member *other = &comm->shared->member[r];
        if (atomic_load(&other->joined) == 0 || other->world != comm->world || other->max_bytes != comm->max_bytes) {
            FAIL(STATUS_INTERNAL, "rank %u of %u (%zu bytes) and rank %u of %u (%llu bytes) are not of one group",
                 comm->rank, comm->world, comm->max_bytes, r, other->world, (unsigned long long)other->max_bytes);
        }
    }
    return STATUS_OK;
}

static enum status check_config(const struct comm_config *config) {
    if (config->world < 1 || config->world > COMM_MAX_WORLD || config->rank >= config->world) {
        FAIL(STATUS_INVALID, "comm shm: rank %u of %u; the world may be 1 to %d", config->rank, config->world,
             COMM_MAX_WORLD);
    }
    if (config->max_bytes == 0 || config->max_bytes > UINT32_MAX) {
        FAIL(STATUS_INVALID, "comm shm: max_bytes %zu is not in 1 .. 4294967295", config->max_bytes);
    }
    return STATUS_OK;
}

enum status comm_shm_attach(const struct comm_config *config, void *memory, struct comm **out) {
    TRY(check_config(config));
    struct comm *comm = xcalloc(1, sizeof *comm);
    comm->rank = config->rank;
    comm->world = config->world;
    comm->kernels = config->kernels;
    comm->spin = config->spin;
    comm->max_bytes = config->max_bytes;
    comm->slot_bytes = slot_size(config->max_bytes);
    comm->shared = memory;
    enum status status = join(comm, config->timeout_ns);
    if (status != STATUS_OK) {
        shm_close(comm);
        return status;
    }
    *out = comm;
    return STATUS_OK;
}

static enum status shm_open_group(const struct comm_config *config, struct comm **out) {
    TRY(check_config(config));
    size_t bytes = comm_shm_bytes(config->world, config->max_bytes);
    void *memory;
    TRY(memfd_map(config->memory_fd, bytes, 1, &memory));
    enum status status = comm_shm_attach(config, memory, out);
    if (status != STATUS_OK) {
        munmap(memory, bytes);
        return status;
    }
    (*out)->mapped_bytes = bytes;
    return STATUS_OK;
}

const struct comm_ops comm_shm_ops = {
    .name = "shm",
    .open = shm_open_group,
    .close = shm_close,
    .all_reduce = shm_all_reduce,
    .all_gather = shm_all_gather,
    .all_to_all = shm_all_to_all,
    .broadcast = shm_broadcast,
    .barrier = shm_barrier,
    .abort = shm_abort,
    .check = shm_check,
};
