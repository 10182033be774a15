/* The sum that defines an all_reduce: fp32, rank order, one rounding at the end. */
#ifndef TANDEM_PARALLEL_REDUCE_H
#define TANDEM_PARALLEL_REDUCE_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"

/* out[i] = ((parts[0][i] + parts[1][i]) + ...) + parts[world - 1][i]. `out` may be one of the parts. */
void reduce_sum(void *out, const void *const *parts, uint32_t world, size_t count, enum dtype dtype);

#endif
