/* How the ops that treat rows one by one spread them over the threads. */
#ifndef TANDEM_KERNELS_CPU_ROWS_H
#define TANDEM_KERNELS_CPU_ROWS_H

#include "kernels/cpu/cpu_device.h"

/* Columns that a row is converted in at a time where its dtype is not fp32; a multiple of 16. */
#define ROW_CHUNK 512

/* body(context, row, thread) for each row; alone when all of it (elements_per_row touched elements each) is less work
 * than waking a thread. */
static inline void cpu_rows(struct kernel_device *device, uint32_t n_rows, size_t elements_per_row,
                            void (*body)(const void *context, uint32_t row, uint32_t thread), const void *context) {
    if (n_rows * elements_per_row < 32768) {
        for (uint32_t row = 0; row < n_rows; row++) {
            body(context, row, 0);
        }
        return;
    }
    cpu_parallel(device, n_rows, body, context);
}

static inline size_t row_chunk(size_t n, size_t done) {
    return n - done < ROW_CHUNK ? n - done : ROW_CHUNK;
}

#endif
