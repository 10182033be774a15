#include <math.h>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vec.h"

static void argmax_row(const void *context, uint32_t row, uint32_t thread) {
    (void)thread;
    const struct op_argmax *args = context;
    const struct vec_ops *vec = vec_ops();
    struct token_choice *out = &args->out[row];
    *out = (struct token_choice){-INFINITY, args->first_id};
    uint32_t columns = args->n_valid > args->first_id ? args->n_valid - args->first_id : 0;
    columns = columns < args->n_columns ? columns : args->n_columns;
    if (columns == 0) {
        return;
    }
    const float *x = args->logits + (size_t)row * args->n_columns;
    if (!vec->row_max(x, columns, &out->value)) {
        out->value = NAN;
        return;
    }
    out->id = args->first_id + (uint32_t)vec->first_reaching(x, columns, out->value);
}

static void argmax_run(struct kernel_device *device, const void *context) {
    const struct op_argmax *args = context;
    cpu_rows(device, args->n_rows, args->n_columns, argmax_row, args);
}

enum status cpu_argmax(struct kernel_stream *stream, const struct op_argmax *args) {
    cpu_enqueue(stream, argmax_run, args, sizeof *args);
    return STATUS_OK;
}

/* A row without a finite logit anywhere has no most likely token, and counts as non-finite as well. */
static void merge_row(const struct op_argmax_merge *args, uint32_t row) {
    struct token_choice best = args->choices[row];
    bool nan = isnan(best.value);
    for (uint32_t rank = 1; rank < args->world; rank++) {
        struct token_choice other = args->choices[(size_t)rank * args->n_rows + row];
        nan = nan || isnan(other.value);
        if (other.value > best.value || (other.value == best.value && other.id < best.id)) {
            best = other;
        }
    }
    struct step_result *result = &args->results[row];
    *result = (struct step_result){.id = best.id};
    if (nan || best.value == -INFINITY) {
        *result = (struct step_result){.flags = STEP_RESULT_NONFINITE};
    }
}

static void argmax_merge_run(struct kernel_device *device, const void *context) {
    (void)device;
    const struct op_argmax_merge *args = context;
    for (uint32_t row = 0; row < args->n_rows; row++) {
        merge_row(args, row);
    }
}

enum status cpu_argmax_merge(struct kernel_stream *stream, const struct op_argmax_merge *args) {
    cpu_enqueue(stream, argmax_merge_run, args, sizeof *args);
    return STATUS_OK;
}
