/* A cpu device: its configuration, its threads, and its memory. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels/cpu/device.h"
#include "runtime/base/alloc.h"
#include "runtime/base/check.h"

#define MAX_THREADS 1024u /* well below what a gate word counts */

static size_t scratch_bytes(const struct kernel_device *device) {
    return (1 + device->config.threads) * CPU_SCRATCH_BYTES;
}

enum status cpu_open(const struct kernel_device_config *config, struct kernel_device **result) {
    if (config->ordinal != 0) {
        FAIL(STATUS_INVALID, "devices: the cpu backend has only device 0, not %d", config->ordinal);
    }
    if (config->threads < 1 || config->threads > MAX_THREADS) {
        FAIL(STATUS_INVALID, "threads: %u is not between 1 and %u", config->threads, MAX_THREADS);
    }
    if (config->first_cpu >= 0) {
        cpu_set_t allowed;
        CPU_ZERO(&allowed);
        if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) {
            FAIL_ERRNO(STATUS_IO, "cpu backend: asking for the allowed processors");
        }
        for (uint32_t i = 0; i < config->threads; i++) {
            size_t cpu = (size_t)config->first_cpu + i;
            if (cpu >= CPU_SETSIZE || !CPU_ISSET(cpu, &allowed)) {
                FAIL(STATUS_INVALID,
                     "first_cpu: processor %zu is not there or not allowed to this process; use fewer "
                     "threads, or -1 to leave them unpinned",
                     cpu);
            }
        }
    }
    struct kernel_device *device = xaligned(64, sizeof *device);
    device->config = *config;
    CHECK(pthread_mutex_init(&device->math_lock, NULL) == 0, "no mutex");
    enum status status = cpu_pool_create(config, &device->pool);
    if (status != STATUS_OK) {
        pthread_mutex_destroy(&device->math_lock);
        free(device);
        return status;
    }
    device->scratch = mmap(NULL, scratch_bytes(device), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(device->scratch != MAP_FAILED, "out of memory for the scratch of %u threads", config->threads);
    madvise(device->scratch, scratch_bytes(device), MADV_HUGEPAGE);
    *result = device;
    return STATUS_OK;
}

void *cpu_shared_scratch(const struct kernel_device *device) {
    return device->scratch;
}

void *cpu_thread_scratch(const struct kernel_device *device, uint32_t thread) {
    return device->scratch + (1 + thread) * CPU_SCRATCH_BYTES;
}

void cpu_close(struct kernel_device *device) {
    if (device == NULL) {
        return;
    }
    CHECK(atomic_load(&device->n_streams) == 0, "close: a stream of the device is still alive");
    cpu_pool_destroy(device->pool);
    munmap(device->scratch, scratch_bytes(device));
    pthread_mutex_destroy(&device->math_lock);
    free(device);
}

/* The first number of a file after `label`, times `unit`; SIZE_MAX when there is none ("max" in cgroup files). */
static size_t read_number(const char *path, const char *label, size_t unit) {
    char text[4096];
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return SIZE_MAX;
    }
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = 0;
    const char *found = strstr(text, label);
    unsigned long long number;
    if (found == NULL || sscanf(found + strlen(label), "%llu", &number) != 1) {
        return SIZE_MAX;
    }
    return (size_t)number * unit;
}

/* What the host has, or the container's limit where that is less. Page cache counts as free in both. */
enum status cpu_memory_info(struct kernel_device *device, size_t *free_bytes, size_t *total_bytes) {
    (void)device;
    size_t total = read_number("/proc/meminfo", "MemTotal:", 1024);
    size_t available = read_number("/proc/meminfo", "MemAvailable:", 1024);
    if (total == SIZE_MAX || available == SIZE_MAX) {
        FAIL(STATUS_IO, "/proc/meminfo: MemTotal or MemAvailable is missing; mount /proc");
    }
    size_t limit = read_number("/sys/fs/cgroup/memory.max", "", 1);
    size_t used = read_number("/sys/fs/cgroup/memory.current", "", 1);
    size_t cache = read_number("/sys/fs/cgroup/memory.stat", "\nfile ", 1);
    if (limit < total && used != SIZE_MAX) {
        size_t held = cache < used ? used - cache : used;
        size_t left = held < limit ? limit - held : 0;
        total = limit;
        available = left < available ? left : available;
    }
    *free_bytes = available;
    *total_bytes = total;
    return STATUS_OK;
}

/* ---- memory: mapped, in huge pages where there are some (a weight matrix is read from end to end, and a page table
 * walk every 4 KiB costs a good part of the bandwidth), and present from the start, as on a card: what does not fit
 * shows here and not in the middle of a step. */

#define HUGE_PAGE ((size_t)2 << 20)

struct memory_head { /* in front of what the caller gets */
    void *mapping;
    size_t bytes; /* of the mapping */
};

#define HEAD_BYTES ((size_t)256)

static void populate(char *memory, size_t bytes) {
#ifdef MADV_POPULATE_WRITE
    if (madvise(memory, bytes, MADV_POPULATE_WRITE) == 0) {
        return;
    }
#endif
    for (size_t i = 0; i < bytes; i += 4096) {
        ((volatile char *)memory)[i] = 0;
    }
}

enum status cpu_alloc(struct kernel_device *device, size_t bytes, void **memory) {
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    TRY(cpu_memory_info(device, &free_bytes, &total_bytes));
    if (bytes > free_bytes) {
        FAIL(STATUS_LIMIT, "memory: %zu MiB are wanted and %zu MiB are free; lower memory_limit_gib or max_model_len",
             bytes >> 20, free_bytes >> 20);
    }
    bool huge = bytes >= HUGE_PAGE;
    size_t unit = huge ? HUGE_PAGE : 4096;
    size_t used = (HEAD_BYTES + bytes + unit - 1) / unit * unit;
    size_t mapped = huge ? used + HUGE_PAGE : used;
    char *mapping = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) {
        FAIL_ERRNO(STATUS_LIMIT, "memory: mapping %zu MiB", mapped >> 20);
    }
    char *start = mapping;
    if (huge) {
        start += (HUGE_PAGE - (uintptr_t)mapping % HUGE_PAGE) % HUGE_PAGE;
        madvise(start, used, MADV_HUGEPAGE);
    }
    populate(start, used);
    struct memory_head *head = (struct memory_head *)start;
    *head = (struct memory_head){.mapping = mapping, .bytes = mapped};
    *memory = start + HEAD_BYTES;
    return STATUS_OK;
}

void cpu_free(struct kernel_device *device, void *memory) {
    (void)device;
    if (memory != NULL) {
        const struct memory_head *head = (const struct memory_head *)((char *)memory - HEAD_BYTES);
        CHECK(munmap(head->mapping, head->bytes) == 0, "free: this was not allocated here");
    }
}
