/* The table of rotary angles. */
#ifndef TANDEM_MODEL_ROPE_H
#define TANDEM_MODEL_ROPE_H

#include "runtime/format/model_config.h"

/* Fills table[count][head_dim] for the positions from `first` on as struct op_rope_kv wants it: per position the
 * cosines of head_dim / 2 angles, then their sines. */
void rope_fill(const struct model_config *config, uint32_t first, uint32_t count, float *table);

#endif
