/* Streams, events and graphs.
 *
 * A stream is a ring of records {function, copy of its arguments} between the thread that enqueues and the stream's own
 * thread. A wake-up costs more than a small op, so each side wakes the other only when that one sleeps: the thread of a
 * busy stream finds the next record without a system call. Positions count bytes for ever and wrap at 2^32. */
#include <assert.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/device.h"
#include "kernels/cpu/futex.h"
#include "runtime/base/alloc.h"
#include "runtime/base/check.h"

#define RING_BYTES (1u << 18) /* over a thousand ops */
#define RECORD_ALIGNMENT 16u

enum record_kind {
    RECORD_MATH,    /* uses the device's threads and scratch: one at a time among the streams of a device */
    RECORD_SERVICE, /* may wait for another stream, so it holds nothing */
    RECORD_PAD,     /* fills the ring's end */
    RECORD_STOP,    /* ends the stream's thread */
};

struct record {
    void (*run)(struct kernel_device *device, const void *args);
    uint32_t bytes; /* with this head */
    uint32_t kind;
};
static_assert(sizeof(struct record) == RECORD_ALIGNMENT, "arguments follow, aligned");

struct kernel_graph {
    char *records;
    size_t bytes;
    size_t capacity;
    _Atomic uint32_t references; /* the owner's, and one for each launch not yet run */
};

struct kernel_stream {
    struct kernel_device *device;
    pthread_t thread;
    bool spin;
    struct kernel_graph *capture; /* NULL unless between graph_begin and graph_end */
    char *ring;
    _Alignas(64) _Atomic uint32_t tail;    /* bytes enqueued */
    _Atomic uint32_t thread_sleeps;        /* the stream's thread waits on this word */
    _Alignas(64) _Atomic uint32_t head;    /* bytes done */
    _Alignas(64) _Atomic uint32_t wake_at; /* the enqueuing side wants to be woken when head gets there */
    _Atomic uint32_t owner_sleeps;
};

struct kernel_event {
    _Atomic uint32_t recorded; /* records enqueued */
    _Atomic uint32_t done;     /* the latest one that ran */
    _Atomic uint32_t n_sleeping;
    _Atomic uint32_t references; /* the owner's, and one for each record not yet run: whoever syncs may destroy */
};

static bool reached(uint32_t position, uint32_t target) {
    return (int32_t)(position - target) >= 0;
}

/* ---- the stream's thread */

static void record_run(struct kernel_device *device, const struct record *record) {
    if (record->kind == RECORD_MATH) {
        pthread_mutex_lock(&device->math_lock);
        record->run(device, record + 1);
        pthread_mutex_unlock(&device->math_lock);
    } else if (record->kind == RECORD_SERVICE) {
        record->run(device, record + 1);
    }
}

/* Waits until there is something at `head`; returns the tail. */
static uint32_t stream_await_record(struct kernel_stream *stream, uint32_t head) {
    uint64_t spun_since_ns = 0;
    for (;;) {
        uint32_t tail = atomic_load_explicit(&stream->tail, memory_order_acquire);
        if (tail != head) {
            return tail;
        }
        if (stream->spin && spin_pause(&spun_since_ns)) {
            continue;
        }
        atomic_store(&stream->thread_sleeps, 1);
        if (atomic_load(&stream->tail) == head) {
            futex_wait(&stream->thread_sleeps, 1);
        }
        atomic_store(&stream->thread_sleeps, 0);
    }
}

static void stream_pass(struct kernel_stream *stream, uint32_t head) {
    atomic_store(&stream->head, head);
    if (atomic_load(&stream->owner_sleeps) != 0 && reached(head, atomic_load(&stream->wake_at))) {
        atomic_store(&stream->owner_sleeps, 0);
        futex_wake(&stream->owner_sleeps, 1);
    }
}

static void *stream_main(void *argument) {
    struct kernel_stream *stream = argument;
    uint32_t head = 0;
    uint32_t tail = 0;
    for (;;) {
        if (head == tail) {
            tail = stream_await_record(stream, head);
        }
        const struct record *record = (const struct record *)(stream->ring + head % RING_BYTES);
        if (record->kind == RECORD_STOP) {
            return NULL;
        }
        record_run(stream->device, record);
        head += record->bytes;
        stream_pass(stream, head);
    }
}

/* ---- the enqueuing side */

static void stream_wait_head(struct kernel_stream *stream, uint32_t target) {
    while (!reached(atomic_load(&stream->head), target)) {
        atomic_store(&stream->wake_at, target);
        atomic_store(&stream->owner_sleeps, 1);
        if (!reached(atomic_load(&stream->head), target)) {
            futex_wait(&stream->owner_sleeps, 1);
        }
    }
    atomic_store(&stream->owner_sleeps, 0);
}

/* Room for `bytes` in one piece at the tail: the end of the ring is padded out when they would not fit before it. */
static struct record *ring_reserve(struct kernel_stream *stream, uint32_t *tail, uint32_t bytes) {
    uint32_t to_end = RING_BYTES - *tail % RING_BYTES;
    uint32_t padding = to_end < bytes ? to_end : 0;
    uint32_t end = *tail + padding + bytes;
    if (end - atomic_load_explicit(&stream->head, memory_order_acquire) > RING_BYTES) {
        stream_wait_head(stream, end - RING_BYTES / 2);
    }
    if (padding > 0) {
        struct record *pad = (struct record *)(stream->ring + *tail % RING_BYTES);
        *pad = (struct record){.bytes = padding, .kind = RECORD_PAD};
        *tail += padding;
    }
    return (struct record *)(stream->ring + *tail % RING_BYTES);
}

static struct record *graph_reserve(struct kernel_graph *graph, uint32_t bytes) {
    if (graph->bytes + bytes > graph->capacity) {
        graph->capacity = (graph->bytes + bytes) * 2;
        graph->records = xrealloc(graph->records, graph->capacity, 1);
    }
    struct record *record = (struct record *)(graph->records + graph->bytes);
    graph->bytes += bytes;
    return record;
}

static void stream_enqueue(struct kernel_stream *stream, enum record_kind kind,
                           void (*run)(struct kernel_device *device, const void *args), const void *args,
                           size_t bytes) {
    CHECK(bytes <= CPU_RECORD_BYTES, "an op has %zu bytes of arguments, the limit is %d", bytes, CPU_RECORD_BYTES);
    uint32_t whole =
        (uint32_t)((sizeof(struct record) + bytes + RECORD_ALIGNMENT - 1) & ~(size_t)(RECORD_ALIGNMENT - 1));
    uint32_t tail = atomic_load_explicit(&stream->tail, memory_order_relaxed);
    struct record *record =
        stream->capture != NULL ? graph_reserve(stream->capture, whole) : ring_reserve(stream, &tail, whole);
    *record = (struct record){.run = run, .bytes = whole, .kind = kind};
    if (bytes > 0) {
        memcpy(record + 1, args, bytes);
    }
    if (stream->capture != NULL) {
        return;
    }
    atomic_store(&stream->tail, tail + whole);
    if (atomic_load(&stream->thread_sleeps) != 0) {
        atomic_store(&stream->thread_sleeps, 0);
        futex_wake(&stream->thread_sleeps, 1);
    }
}

void cpu_enqueue(struct kernel_stream *stream, void (*run)(struct kernel_device *device, const void *args),
                 const void *args, size_t bytes) {
    stream_enqueue(stream, RECORD_MATH, run, args, bytes);
}

static enum status create(struct kernel_device *device, bool computes, struct kernel_stream **result) {
    struct kernel_stream *stream = xaligned(64, sizeof *stream);
    stream->device = device;
    stream->ring = xaligned(64, RING_BYTES);
    stream->spin = device->config.spin && computes;
    int32_t cpu = computes ? device->config.first_cpu : -1;
    enum status status = cpu_thread_start(&stream->thread, cpu, stream_main, stream);
    if (status != STATUS_OK) {
        free(stream->ring);
        free(stream);
        return status;
    }
    atomic_fetch_add(&device->n_streams, 1);
    *result = stream;
    return STATUS_OK;
}

/* The first stream is the one that computes; those beside it get no processor of their own and do not spin. */
enum status cpu_stream_create(struct kernel_device *device, struct kernel_stream **result) {
    return create(device, !atomic_exchange(&device->pinned_stream, true), result);
}

enum status cpu_copy_stream_create(struct kernel_device *device, struct kernel_stream **result) {
    return create(device, false, result);
}

static void run_nothing(struct kernel_device *device, const void *args) {
    (void)device;
    (void)args;
}

void cpu_stream_destroy(struct kernel_stream *stream) {
    if (stream == NULL) {
        return;
    }
    CHECK(stream->capture == NULL, "stream_destroy: the stream is capturing a graph");
    stream_enqueue(stream, RECORD_STOP, run_nothing, NULL, 0);
    pthread_join(stream->thread, NULL);
    atomic_fetch_sub(&stream->device->n_streams, 1);
    free(stream->ring);
    free(stream);
}

enum status cpu_stream_sync(struct kernel_stream *stream) {
    CHECK(stream->capture == NULL, "stream_sync: the stream is capturing a graph");
    stream_wait_head(stream, atomic_load_explicit(&stream->tail, memory_order_relaxed));
    return STATUS_OK;
}

/* ---- events */

struct event_args {
    struct kernel_event *event;
    uint32_t ticket;
};

enum status cpu_event_create(struct kernel_device *device, struct kernel_event **event) {
    (void)device;
    *event = xcalloc(1, sizeof **event);
    atomic_store(&(*event)->references, 1);
    return STATUS_OK;
}

void cpu_event_destroy(struct kernel_event *event) {
    if (event != NULL && atomic_fetch_sub(&event->references, 1) == 1) {
        free(event);
    }
}

static void run_event_record(struct kernel_device *device, const void *args) {
    (void)device;
    const struct event_args *call = args;
    uint32_t done = atomic_load(&call->event->done);
    while (!reached(done, call->ticket) && !atomic_compare_exchange_weak(&call->event->done, &done, call->ticket)) {
    }
    if (atomic_load(&call->event->n_sleeping) != 0) {
        futex_wake(&call->event->done, INT_MAX);
    }
    cpu_event_destroy(call->event);
}

static void event_await(struct kernel_event *event, uint32_t ticket) {
    uint32_t done = atomic_load(&event->done);
    while (!reached(done, ticket)) {
        atomic_fetch_add(&event->n_sleeping, 1);
        futex_wait(&event->done, done);
        atomic_fetch_sub(&event->n_sleeping, 1);
        done = atomic_load(&event->done);
    }
}

static void run_event_wait(struct kernel_device *device, const void *args) {
    (void)device;
    const struct event_args *call = args;
    event_await(call->event, call->ticket);
    cpu_event_destroy(call->event);
}

enum status cpu_event_record(struct kernel_event *event, struct kernel_stream *stream) {
    CHECK(stream->capture == NULL, "event_record: a graph holds no events; record it after graph_launch");
    struct event_args args = {.event = event, .ticket = atomic_fetch_add(&event->recorded, 1) + 1};
    atomic_fetch_add(&event->references, 1);
    stream_enqueue(stream, RECORD_SERVICE, run_event_record, &args, sizeof args);
    return STATUS_OK;
}

enum status cpu_event_wait(struct kernel_stream *stream, struct kernel_event *event) {
    CHECK(stream->capture == NULL, "event_wait: a graph holds no events; wait before graph_launch");
    struct event_args args = {.event = event, .ticket = atomic_load(&event->recorded)};
    atomic_fetch_add(&event->references, 1);
    stream_enqueue(stream, RECORD_SERVICE, run_event_wait, &args, sizeof args);
    return STATUS_OK;
}

enum status cpu_event_sync(struct kernel_event *event) {
    event_await(event, atomic_load(&event->recorded));
    return STATUS_OK;
}

/* ---- graphs */

enum status cpu_graph_begin(struct kernel_stream *stream) {
    CHECK(stream->capture == NULL, "graph_begin: the stream is capturing already");
    stream->capture = xcalloc(1, sizeof *stream->capture);
    atomic_store(&stream->capture->references, 1);
    return STATUS_OK;
}

enum status cpu_graph_end(struct kernel_stream *stream, struct kernel_graph **graph) {
    CHECK(stream->capture != NULL, "graph_end: there was no graph_begin");
    *graph = stream->capture;
    stream->capture = NULL;
    return STATUS_OK;
}

static void graph_release(struct kernel_graph *graph) {
    if (atomic_fetch_sub(&graph->references, 1) == 1) {
        free(graph->records);
        free(graph);
    }
}

static void run_graph(struct kernel_device *device, const void *args) {
    struct kernel_graph *graph = *(struct kernel_graph *const *)args;
    size_t at = 0;
    while (at < graph->bytes) {
        const struct record *record = (const struct record *)(graph->records + at);
        record_run(device, record);
        at += record->bytes;
    }
    graph_release(graph);
}

enum status cpu_graph_launch(struct kernel_graph *graph, struct kernel_stream *stream) {
    CHECK(stream->capture == NULL, "graph_launch: a graph holds no other graph");
    atomic_fetch_add(&graph->references, 1);
    stream_enqueue(stream, RECORD_SERVICE, run_graph, &graph, sizeof graph);
    return STATUS_OK;
}

void cpu_graph_destroy(struct kernel_graph *graph) {
    if (graph != NULL) {
        graph_release(graph);
    }
}

/* ---- copies and calls */

struct copy_args {
    void *dst;
    const void *src;
    size_t bytes;
    int byte;
};

static void run_copy(struct kernel_device *device, const void *args) {
    (void)device;
    const struct copy_args *call = args;
    memmove(call->dst, call->src, call->bytes);
}

enum status cpu_copy(struct kernel_stream *stream, void *dst, const void *src, size_t bytes, enum kernel_copy kind) {
    (void)kind; /* one memory */
    if (bytes > 0) {
        struct copy_args args = {.dst = dst, .src = src, .bytes = bytes};
        stream_enqueue(stream, RECORD_SERVICE, run_copy, &args, sizeof args);
    }
    return STATUS_OK;
}

static void run_fill(struct kernel_device *device, const void *args) {
    (void)device;
    const struct copy_args *call = args;
    memset(call->dst, call->byte, call->bytes);
}

enum status cpu_fill(struct kernel_stream *stream, void *dst, int byte, size_t bytes) {
    if (bytes > 0) {
        struct copy_args args = {.dst = dst, .bytes = bytes, .byte = byte};
        stream_enqueue(stream, RECORD_SERVICE, run_fill, &args, sizeof args);
    }
    return STATUS_OK;
}

struct host_call_args {
    void (*function)(void *argument);
    _Alignas(16) unsigned char argument[KERNEL_HOST_CALL_BYTES];
};

static void run_host_call(struct kernel_device *device, const void *args) {
    (void)device;
    struct host_call_args call; /* the callee may write to its argument; a graph's copy must stay as it is */
    memcpy(&call, args, sizeof call);
    call.function(call.argument);
}

enum status cpu_host_call(struct kernel_stream *stream, void (*function)(void *argument), const void *argument,
                          size_t bytes) {
    CHECK(bytes <= KERNEL_HOST_CALL_BYTES, "host_call: %zu bytes of argument, the limit is %d", bytes,
          KERNEL_HOST_CALL_BYTES);
    struct host_call_args args = {.function = function};
    if (bytes > 0) {
        memcpy(args.argument, argument, bytes);
    }
    stream_enqueue(stream, RECORD_SERVICE, run_host_call, &args, sizeof args);
    return STATUS_OK;
}
