#include "benchmarks/support_trace.h"

#include <ctype.h>
#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "benchmarks/support_report.h"
#include "runtime/base/alloc.h"

#define BUFFER_BYTES ((size_t)8 << 20)
#define FLUSH_FORCED 1u

/* Of a forward pass on cards (kernels/cuda/slots.cu, rows.cu). */
#define FIRST_KERNEL "batch_prepare_kernel"
#define LAST_KERNEL "commit_kernel"

/* CUpti_ActivityKind */
enum { KIND_COPY = 1, KIND_FILL = 2, KIND_KERNEL = 10 };

/* The common beginning of CUpti_ActivityMemcpy*, CUpti_ActivityMemset* and CUpti_ActivityKernel* (cupti_activity.h of
 * CUDA 11 to 13), which differ in what the first 16 bytes hold behind the kind. */
struct record {
    uint32_t kind;
    uint32_t unused[3];
    uint64_t start_ns, end_ns;
};

/* CUpti_ActivityKernel4 and later: where the mangled name is. */
#define KERNEL_NAME_OFFSET 104

struct interval {
    uint64_t start_ns, end_ns;
    char name[48];
};

static struct {
    int (*enable)(int kind);
    int (*flush)(uint32_t flags);
    int (*next)(uint8_t *buffer, size_t bytes, void **record);
    struct interval *seen;
    size_t n, room;
} tracer;

/* "_Z18gemm_tensor_kernelI..." is gemm_tensor_kernel; the names of others stay as they are. */
static void plain_name(const char *mangled, char *out, size_t size) {
    const char *name = mangled;
    int length = (int)size;
    if (strncmp(mangled, "_Z", 2) == 0 && isdigit((unsigned char)mangled[2])) {
        char *end;
        length = (int)strtol(mangled + 2, &end, 10);
        name = end;
    }
    snprintf(out, size, "%.*s", length, name);
}

static void take_record(const void *data) {
    const struct record *record = data;
    if (record->kind != KIND_COPY && record->kind != KIND_FILL && record->kind != KIND_KERNEL) {
        return;
    }
    if (tracer.n == tracer.room) {
        tracer.room = tracer.room > 0 ? 2 * tracer.room : 4096;
        tracer.seen = xrealloc(tracer.seen, tracer.room, sizeof tracer.seen[0]);
    }
    struct interval *interval = &tracer.seen[tracer.n++];
    *interval = (struct interval){.start_ns = record->start_ns, .end_ns = record->end_ns};
    if (record->kind == KIND_KERNEL) {
        const char *name;
        memcpy(&name, (const char *)data + KERNEL_NAME_OFFSET, sizeof name);
        plain_name(name, interval->name, sizeof interval->name);
    } else {
        snprintf(interval->name, sizeof interval->name, "%s", record->kind == KIND_COPY ? "(copy)" : "(fill)");
    }
}

static void on_request(uint8_t **buffer, size_t *bytes, size_t *max_records) {
    *buffer = xaligned(64, BUFFER_BYTES);
    *bytes = BUFFER_BYTES;
    *max_records = 0; /* as many as fit */
}

static void on_complete(void *context, uint32_t stream, uint8_t *buffer, size_t bytes, size_t valid) {
    (void)context;
    (void)stream;
    (void)bytes;
    void *record = NULL;
    while (valid > 0 && tracer.next(buffer, valid, &record) == 0) {
        take_record(record);
    }
    free(buffer);
}

static enum status find_calls(void *library, int (**subscribe)(void *, void *)) {
    const struct {
        const char *name;
        void **call;
    } symbols[] = {{"cuptiActivityEnable", (void **)&tracer.enable},
                   {"cuptiActivityFlushAll", (void **)&tracer.flush},
                   {"cuptiActivityGetNextRecord", (void **)&tracer.next},
                   {"cuptiActivityRegisterCallbacks", (void **)subscribe}};
    for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
        *symbols[i].call = dlsym(library, symbols[i].name);
        if (*symbols[i].call == NULL) {
            FAIL(STATUS_UNSUPPORTED, "CUPTI has no %s", symbols[i].name);
        }
    }
    return STATUS_OK;
}

enum status trace_open(void) {
    static const char *const names[] = {"libcupti.so.13", "libcupti.so.12", "libcupti.so"};
    static const int kinds[] = {KIND_COPY, KIND_FILL, KIND_KERNEL};
    void *library = NULL;
    int (*subscribe)(void *, void *) = NULL;
    for (size_t i = 0; i < sizeof names / sizeof names[0] && library == NULL; i++) {
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    }
    if (library == NULL) {
        FAIL(STATUS_UNSUPPORTED, "no CUPTI (%s): put the folder of libcupti.so.13 into LD_LIBRARY_PATH", dlerror());
    }
    TRY(find_calls(library, &subscribe));
    int error = subscribe((void *)(uintptr_t)on_request, (void *)(uintptr_t)on_complete);
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0] && error == 0; i++) {
        error = tracer.enable(kinds[i]);
    }
    if (error != 0) {
        FAIL(STATUS_UNSUPPORTED, "CUPTI error %d: another profiler at work, or no permission to trace", error);
    }
    return STATUS_OK;
}

enum status trace_start(void) {
    if (tracer.flush(FLUSH_FORCED) != 0) {
        FAIL(STATUS_INTERNAL, "CUPTI does not hand over its records");
    }
    tracer.n = 0;
    return STATUS_OK;
}

/* ---- summary */

static int compare_starts(const void *a, const void *b) {
    uint64_t x = ((const struct interval *)a)->start_ns;
    uint64_t y = ((const struct interval *)b)->start_ns;
    return (x > y) - (x < y);
}

static int compare_times(const void *a, const void *b) {
    double x = ((const struct trace_kernel *)a)->us;
    double y = ((const struct trace_kernel *)b)->us;
    return (x < y) - (x > y);
}

static void add_kernel(struct trace *trace, const struct interval *interval) {
    uint32_t i = 0;
    while (i < trace->n_kernels && strcmp(trace->kernels[i].name, interval->name) != 0) {
        i++;
    }
    if (i == TRACE_KERNELS) {
        i--; /* the last line takes what is left */
    }
    if (i == trace->n_kernels) {
        trace->n_kernels++;
        snprintf(trace->kernels[i].name, sizeof trace->kernels[i].name, "%s", interval->name);
    }
    trace->kernels[i].count++;
    trace->kernels[i].us += (double)(interval->end_ns - interval->start_ns) * 1e-3;
}

/* The records behind the end of step `skip` up to the end of the last whole step; their number is *n. */
static const struct interval *whole_steps(uint32_t skip, uint32_t *n_steps, size_t *n) {
    const struct interval *first = NULL;
    *n = 0;
    *n_steps = 0;
    for (size_t i = 0; i < tracer.n; i++) {
        if (strcmp(tracer.seen[i].name, LAST_KERNEL) != 0) {
            continue;
        }
        if (skip > 0) {
            skip--;
            first = &tracer.seen[i + 1];
        } else if (first != NULL) {
            *n = (size_t)(&tracer.seen[i + 1] - first);
            (*n_steps)++;
        }
    }
    return first;
}

static void sum_up(const struct interval *records, size_t n, double *gaps, struct trace *trace) {
    uint64_t end_ns = records[-1].end_ns; /* of the step before */
    uint64_t start_ns = end_ns;
    double idle_us = 0;
    bool between = true;
    for (size_t i = 0; i < n; i++) {
        const struct interval *record = &records[i];
        if (record->start_ns > end_ns) {
            double gap_us = (double)(record->start_ns - end_ns) * 1e-3;
            gaps[trace->n_gaps++] = gap_us;
            idle_us += gap_us;
            trace->between_us += between ? gap_us : 0;
        }
        between = strcmp(record->name, LAST_KERNEL) == 0 || (between && strcmp(record->name, FIRST_KERNEL) != 0);
        end_ns = record->end_ns > end_ns ? record->end_ns : end_ns;
        add_kernel(trace, record);
    }
    trace->span_us = (double)(end_ns - start_ns) * 1e-3;
    trace->busy_us = trace->span_us - idle_us;
}

enum status trace_read(uint32_t skip, struct trace *trace) {
    *trace = (struct trace){.n_records = 0};
    size_t n = 0;
    if (tracer.flush(FLUSH_FORCED) != 0) {
        FAIL(STATUS_INTERNAL, "CUPTI does not hand over its records");
    }
    if (tracer.n > 0) {
        qsort(tracer.seen, tracer.n, sizeof tracer.seen[0], compare_starts);
    }
    const struct interval *records = whole_steps(skip, &trace->n_steps, &n);
    if (n == 0) {
        FAIL(STATUS_INTERNAL, "CUPTI recorded no step: none of %zu records is a " LAST_KERNEL, tracer.n);
    }
    double *gaps = xcalloc(n, sizeof *gaps);
    trace->n_records = (uint32_t)n;
    sum_up(records, n, gaps, trace);
    if (trace->n_gaps > 0) {
        struct spread spread = spread_of(gaps, trace->n_gaps);
        trace->gap_p50_us = spread.median;
        trace->gap_max_us = spread.max;
    }
    free(gaps);
    qsort(trace->kernels, trace->n_kernels, sizeof trace->kernels[0], compare_times);
    return STATUS_OK;
}
