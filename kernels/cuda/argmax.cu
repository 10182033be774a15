#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/logits.cuh"

static __global__ void __launch_bounds__(LOGITS_THREADS) argmax_kernel(struct op_argmax args, uint32_t n_columns) {
    let_dependents_launch();
    wait_for_predecessors();
    struct extremes found = find_extremes(args.logits + (size_t)blockIdx.x * args.n_columns, n_columns);
    if (threadIdx.x == 0) {
        struct token_choice *out = &args.out[blockIdx.x];
        out->value = found.finite ? found.max : NAN;
        out->id = args.first_id + (found.finite ? found.column : 0);
    }
}

enum status cuda_argmax(struct kernel_stream *stream, const struct op_argmax *args) {
    uint32_t columns = args->n_valid > args->first_id ? args->n_valid - args->first_id : 0;
    columns = columns < args->n_columns ? columns : args->n_columns;
    return cuda_status(launch_dependent(stream, argmax_kernel, args->n_rows, LOGITS_THREADS, 0, *args, columns),
                       "argmax");
}

#define MERGE_THREADS 128u

/* A row without a finite logit anywhere has no most likely token, and counts as non-finite as well. */
static __global__ void argmax_merge_kernel(struct op_argmax_merge args) {
    let_dependents_launch();
    wait_for_predecessors();
    uint32_t row = blockIdx.x * MERGE_THREADS + threadIdx.x;
    if (row >= args.n_rows) {
        return;
    }
    struct token_choice best = args.choices[row];
    bool nan = isnan(best.value);
    for (uint32_t rank = 1; rank < args.world; rank++) {
        struct token_choice other = args.choices[(size_t)rank * args.n_rows + row];
        nan = nan || isnan(other.value);
        if (other.value > best.value || (other.value == best.value && other.id < best.id)) {
            best = other;
        }
    }
    bool finite = !nan && best.value > -INFINITY;
    uint32_t *words = (uint32_t *)&args.results[row];
    for (uint32_t i = 0; i < sizeof(struct step_result) / sizeof *words; i++) {
        words[i] = 0;
    }
    args.results[row].id = finite ? best.id : 0;
    args.results[row].flags = finite ? 0 : STEP_RESULT_NONFINITE;
}

enum status cuda_argmax_merge(struct kernel_stream *stream, const struct op_argmax_merge *args) {
    uint32_t blocks = (args->n_rows - 1) / MERGE_THREADS + 1;
    return cuda_status(launch_dependent(stream, argmax_merge_kernel, blocks, MERGE_THREADS, 0, *args), "argmax_merge");
}
