/* Shared argument checks: each aborts with the op and the field named when the arguments cannot be right. What they
 * can look at is the host's side only: the values behind device pointers are the caller's promise. */
#ifndef TANDEM_KERNELS_KERNELS_CHECK_H
#define TANDEM_KERNELS_KERNELS_CHECK_H

#include "kernels/kernels.h"

void check_slot_update(const struct op_slot_update *args);
void check_batch_prepare(const struct op_batch_prepare *args);
void check_embed(const struct op_embed *args);
void check_rmsnorm(const struct op_rmsnorm *args);
void check_gemm(const struct op_gemm *args);
void check_rope_kv(const struct op_rope_kv *args);
void check_attention(const struct op_attention *args);
void check_swiglu(const struct op_swiglu *args);
void check_gemm_swiglu(const struct op_gemm_swiglu *args);
void check_gather_rows(const struct op_gather_rows *args);
void check_copy_2d(const struct op_copy_2d *args);
void check_random(const struct op_random *args);
void check_argmax(const struct op_argmax *args);
void check_argmax_merge(const struct op_argmax_merge *args);
void check_sample(const struct op_sample *args);
void check_commit(const struct op_commit *args);

#endif
