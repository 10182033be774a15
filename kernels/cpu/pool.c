/* Helper threads and parallel regions.
 *
 * A region is announced by a gate word: an epoch, an open bit and the number of helpers inside. A helper enters by
 * compare-and-swap while the gate is open, so a region needs no helper to come: when all items are taken, thread 0
 * shuts the gate and waits only for those that are inside. A helper that sleeps or was moved off its processor costs
 * the region nothing but its hands. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>

#include "kernels/cpu/device.h"
#include "kernels/cpu/futex.h"
#include "runtime/base/alloc.h"
#include "runtime/base/check.h"

#define GATE_INSIDE 0x00007fffu
#define GATE_OPEN 0x00008000u
#define GATE_EPOCH_SHIFT 16 /* wraps; a helper that slept through 65,536 regions at most misses one */

struct cpu_helper {
    struct cpu_pool *pool;
    uint32_t thread;
    pthread_t handle;
};

struct cpu_pool {
    uint32_t threads; /* with thread 0, which is the stream's */
    bool spin;
    _Atomic bool stop;
    struct cpu_helper *helpers; /* [threads - 1] */
    uint32_t n_started;
    /* The region, written while the gate is shut. */
    void (*body)(const void *context, uint32_t item, uint32_t thread);
    const void *context;
    uint32_t n_items;
    uint32_t epoch;
    _Alignas(64) _Atomic uint32_t next_item;
    _Alignas(64) _Atomic uint32_t gate;
    _Alignas(64) _Atomic uint32_t doorbell;   /* rung once for each region, and at the end */
    _Alignas(64) _Atomic uint32_t n_sleeping; /* helpers at the doorbell */
    _Atomic uint32_t owner_sleeps;            /* thread 0 waits on the gate */
};

static void pool_take_items(struct cpu_pool *pool, uint32_t thread) {
    for (;;) {
        uint32_t item = atomic_fetch_add_explicit(&pool->next_item, 1, memory_order_relaxed);
        if (item >= pool->n_items) {
            return;
        }
        pool->body(pool->context, item, thread);
    }
}

/* Enters the region if there is one that this helper has not been in. */
static bool helper_enter(struct cpu_pool *pool, uint32_t *seen_epoch) {
    uint32_t gate = atomic_load_explicit(&pool->gate, memory_order_acquire);
    while ((gate & GATE_OPEN) != 0 && gate >> GATE_EPOCH_SHIFT != *seen_epoch) {
        if (atomic_compare_exchange_weak_explicit(&pool->gate, &gate, gate + 1, memory_order_acq_rel,
                                                  memory_order_acquire)) {
            *seen_epoch = gate >> GATE_EPOCH_SHIFT;
            return true;
        }
    }
    return false;
}

static void helper_leave(struct cpu_pool *pool) {
    uint32_t gate = atomic_fetch_sub(&pool->gate, 1) - 1;
    if ((gate & (GATE_INSIDE | GATE_OPEN)) == 0 && atomic_load(&pool->owner_sleeps) != 0) {
        futex_wake(&pool->gate, 1);
    }
}

static void *helper_main(void *argument) {
    struct cpu_helper *helper = argument;
    struct cpu_pool *pool = helper->pool;
    uint32_t seen_epoch = 0;
    uint64_t spun_since_ns = 0;
    for (;;) {
        uint32_t doorbell = atomic_load(&pool->doorbell);
        if (helper_enter(pool, &seen_epoch)) {
            pool_take_items(pool, helper->thread);
            helper_leave(pool);
            spun_since_ns = 0;
            continue;
        }
        if (atomic_load(&pool->stop)) {
            return NULL;
        }
        if (pool->spin && spin_pause(&spun_since_ns)) {
            continue;
        }
        atomic_fetch_add(&pool->n_sleeping, 1);
        futex_wait(&pool->doorbell, doorbell);
        atomic_fetch_sub(&pool->n_sleeping, 1);
        spun_since_ns = 0;
    }
}

static void pool_ring(struct cpu_pool *pool) {
    atomic_fetch_add(&pool->doorbell, 1);
    if (atomic_load(&pool->n_sleeping) != 0) {
        futex_wake(&pool->doorbell, INT_MAX);
    }
}

static void pool_wait_empty(struct cpu_pool *pool) {
    uint64_t spun_since_ns = 0;
    for (;;) {
        uint32_t gate = atomic_load_explicit(&pool->gate, memory_order_acquire);
        if ((gate & GATE_INSIDE) == 0) {
            return;
        }
        if (pool->spin && spin_pause(&spun_since_ns)) {
            continue;
        }
        atomic_store(&pool->owner_sleeps, 1);
        gate = atomic_load(&pool->gate);
        if ((gate & GATE_INSIDE) != 0) {
            futex_wait(&pool->gate, gate);
        }
        atomic_store(&pool->owner_sleeps, 0);
    }
}

void cpu_parallel(struct kernel_device *device, uint32_t n_items,
                  void (*body)(const void *context, uint32_t item, uint32_t thread), const void *context) {
    struct cpu_pool *pool = device->pool;
    if (pool->threads == 1 || n_items <= 1) {
        for (uint32_t item = 0; item < n_items; item++) {
            body(context, item, 0);
        }
        return;
    }
    pool->body = body;
    pool->context = context;
    pool->n_items = n_items;
    pool->epoch = (pool->epoch + 1) & 0xffffu;
    atomic_store_explicit(&pool->next_item, 0, memory_order_relaxed);
    atomic_store(&pool->gate, pool->epoch << GATE_EPOCH_SHIFT | GATE_OPEN);
    pool_ring(pool);
    pool_take_items(pool, 0);
    atomic_fetch_and(&pool->gate, ~GATE_OPEN);
    pool_wait_empty(pool);
}

uint32_t cpu_threads(const struct kernel_device *device) {
    return device->config.threads;
}

enum status cpu_thread_start(pthread_t *thread, int cpu, void *(*function)(void *), void *argument) {
    pthread_attr_t attributes;
    CHECK(pthread_attr_init(&attributes) == 0, "no memory for thread attributes");
    if (cpu >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET((size_t)cpu, &set);
        CHECK(pthread_attr_setaffinity_np(&attributes, sizeof set, &set) == 0, "no memory for thread attributes");
    }
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(thread, &attributes, function, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (error != 0) {
        errno = error;
        FAIL_ERRNO(STATUS_IO, "cpu backend: starting a compute thread");
    }
    return STATUS_OK;
}

enum status cpu_pool_create(const struct kernel_device_config *config, struct cpu_pool **result) {
    struct cpu_pool *pool = xaligned(64, sizeof *pool);
    pool->threads = config->threads;
    pool->spin = config->spin;
    pool->helpers = xcalloc(config->threads, sizeof *pool->helpers);
    for (uint32_t thread = 1; thread < config->threads; thread++) {
        struct cpu_helper *helper = &pool->helpers[pool->n_started];
        *helper = (struct cpu_helper){.pool = pool, .thread = thread};
        int cpu = config->first_cpu < 0 ? -1 : config->first_cpu + (int)thread;
        enum status status = cpu_thread_start(&helper->handle, cpu, helper_main, helper);
        if (status != STATUS_OK) {
            cpu_pool_destroy(pool);
            return status;
        }
        pool->n_started++;
    }
    *result = pool;
    return STATUS_OK;
}

void cpu_pool_destroy(struct cpu_pool *pool) {
    atomic_store(&pool->stop, true);
    pool_ring(pool);
    for (uint32_t i = 0; i < pool->n_started; i++) {
        pthread_join(pool->helpers[i].handle, NULL);
    }
    free(pool->helpers);
    free(pool);
}
