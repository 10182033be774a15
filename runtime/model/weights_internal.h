/* What the ways to fill an arena share. */
#ifndef TANDEM_MODEL_WEIGHTS_INTERNAL_H
#define TANDEM_MODEL_WEIGHTS_INTERNAL_H

#include "runtime/model/weights.h"

/* Format of a slice in the arena. */
static inline enum dtype weights_dtype(const struct weights_load *load, const struct shard_slice *slice) {
    return slice->n_dims == 1 ? DTYPE_F32 : load->dtype;
}

/* Where row `row` of a slice goes, in bytes from the arena's beginning. */
static inline size_t weights_offset(const struct weights_load *load, const struct shard_slice *slice, uint32_t row) {
    return load->layout->place[slice->place] + slice->layer * load->layout->layer_bytes +
           (size_t)(slice->dest_row + row) * slice->n_cols * dtype_bytes(weights_dtype(load, slice));
}

static inline uint64_t weights_slice_bytes(const struct weights_load *load, const struct shard_slice *slice) {
    return (uint64_t)slice->n_rows * slice->n_cols * dtype_bytes(weights_dtype(load, slice));
}

/* weights_load without a checkpoint, the tables excepted. */
enum status weights_make_up(const struct weights_load *load);

#endif
