/* How the ops that treat rows one by one spread them over the threads. */
#ifndef TANDEM_KERNELS_CPU_ROWS_H
#define TANDEM_KERNELS_CPU_ROWS_H

#include "kernels/cpu/cpu_device.h"

/* Columns that a row is converted in at a time where its dtype is not fp32; a multiple of 16. */
#define ROW_CHUNK 512

#define ROWS_MIN_ELEMENTS 32768u /* less is less work than waking a thread */
#define ROWS_ITEM_ELEMENTS 8192u /* less is not worth taking one by one from a counter that threads share */

struct cpu_rows_run {
    uint32_t n_rows;
    uint32_t item_rows;
    void (*body)(const void *context, uint32_t row, uint32_t thread);
    const void *context;
};

static inline void cpu_rows_item(const void *context, uint32_t item, uint32_t thread) {
    const struct cpu_rows_run *run = context;
    uint32_t first = item * run->item_rows;
    uint32_t end = run->n_rows - first < run->item_rows ? run->n_rows : first + run->item_rows;
    for (uint32_t row = first; row < end; row++) {
        run->body(run->context, row, thread);
    }
}

/* body(context, row, thread) for each row, of elements_per_row touched elements. */
static inline void cpu_rows(struct kernel_device *device, uint32_t n_rows, size_t elements_per_row,
                            void (*body)(const void *context, uint32_t row, uint32_t thread), const void *context) {
    struct cpu_rows_run run = {n_rows, n_rows > 0 ? n_rows : 1, body, context};
    if (n_rows * elements_per_row >= ROWS_MIN_ELEMENTS) {
        run.item_rows = (uint32_t)(ROWS_ITEM_ELEMENTS / elements_per_row) + 1;
    }
    cpu_parallel(device, (n_rows + run.item_rows - 1) / run.item_rows, cpu_rows_item, &run);
}

static inline size_t row_chunk(size_t n, size_t done) {
    return n - done < ROW_CHUNK ? n - done : ROW_CHUNK;
}

#endif
