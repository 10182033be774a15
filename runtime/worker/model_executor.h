/* A look into the executor that computes, for programs that want more than sampled ids: tests that compare logits or
 * fill memory with poison. */
#ifndef TANDEM_WORKER_MODEL_EXECUTOR_H
#define TANDEM_WORKER_MODEL_EXECUTOR_H

#include "runtime/model/model.h"
#include "runtime/worker/executor.h"

/* The model of an executor made by model_executor_ops; touch its memory only while nothing is in flight. */
struct model *model_executor_model(struct executor *executor);

#endif
