/* The forward pass of Qwen2 and Llama, written once for every backend and world. */
#ifndef TANDEM_MODEL_FORWARD_H
#define TANDEM_MODEL_FORWARD_H

#include "runtime/model/model.h"

/* Enqueues one step: from the slots' ids to the results of the sampled rows in model->buffers.results (in row order,
 * the same on every rank), and the commit that appends them to their slots. The slots' writes of the step must be
 * enqueued before. Every rank of the group must enqueue the same steps in the same order. Without host_rows, what is
 * enqueued depends on the batch's counts and flags alone, so that it can be recorded in a graph.
 *
 * In a world of more than one, a step of at least twice kernels->half_step_tokens tokens with host_rows goes through
 * the layers in two halves: while the sum over the ranks of one half is on its way on the model's side stream, the
 * other half computes. So a rank need not wait whenever another one is late.
 *
 * The residual stream and the logits are fp32; sums over ranks are taken in fp32 of parts in batch_delta_dtype. After a
 * greedy step, model->buffers.logits holds this rank's columns of the logits of the last pass over the head. */
enum status forward_enqueue(struct model *model, struct kernel_stream *stream, const struct step_batch *batch);

#endif
