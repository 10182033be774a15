/* The card's own account of what it did: begin and end of every kernel, copy and fill, as CUPTI records them
 * (libcupti.so.13 or .12, opened at run time; it comes with the CUDA toolkit, and with the Python package
 * nvidia-cuda-cupti, whose folder LD_LIBRARY_PATH must name). Recording costs time, so the figures of a traced run are
 * those of the trace alone. */
#ifndef TANDEM_BENCHMARKS_SUPPORT_TRACE_H
#define TANDEM_BENCHMARKS_SUPPORT_TRACE_H

#include <stdint.h>

#include "runtime/base/status.h"

#define TRACE_KERNELS 64

struct trace_kernel {
    char name[48];
    uint32_t count;
    double us; /* of all of them */
};

struct trace {
    uint32_t n_steps;
    uint32_t n_records; /* kernels, copies and fills */
    double span_us;     /* from the first one's begin to the last one's end */
    double busy_us;     /* when at least one of them ran */
    double between_us;  /* when nothing ran between the end of a step's commit and the next one's batch_prepare */
    uint32_t n_gaps;    /* times that nothing ran */
    double gap_p50_us, gap_max_us;
    uint32_t n_kernels;
    struct trace_kernel kernels[TRACE_KERNELS]; /* by time, longest first */
};

/* Before anything is done with a card in this process. STATUS_UNSUPPORTED without the library. */
enum status trace_open(void);

/* Forgets what was recorded so far; to be called while the card rests, like trace_read. */
enum status trace_start(void);

/* What was recorded since trace_start, from the end of step `skip` (1 or more) to the end of the last one. Steps are
 * told apart by the kernels that a forward pass ends and begins with. */
enum status trace_read(uint32_t skip, struct trace *trace);

#endif
