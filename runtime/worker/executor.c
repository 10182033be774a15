#include "runtime/worker/executor.h"

#include <string.h>

const struct executor_ops *executor_find(const char *backend) {
    if (strcmp(backend, null_executor_ops.name) == 0) {
        return &null_executor_ops;
    }
    return strcmp(backend, "cpu") == 0 || strcmp(backend, "cuda") == 0 ? &model_executor_ops : NULL;
}

enum status executor_take_body(const struct worker_init *init, const void *body, size_t bytes, uint32_t epoch,
                               uint64_t step_id, void *copy, struct step_view *view) {
    if (bytes > init->max_body_bytes) {
        FAIL(STATUS_INTERNAL, "step %llu: a body of %zu bytes, at most %llu were agreed", (unsigned long long)step_id,
             bytes, (unsigned long long)init->max_body_bytes);
    }
    memcpy(copy, body, bytes);
    TRY(step_body_check(copy, bytes, &init->limits, view));
    if (view->header->epoch != epoch || view->header->step_id != step_id) {
        FAIL(STATUS_INTERNAL, "step: a body of step %llu, epoch %u in the place of step %llu, epoch %u",
             (unsigned long long)view->header->step_id, view->header->epoch, (unsigned long long)step_id, epoch);
    }
    return STATUS_OK;
}
