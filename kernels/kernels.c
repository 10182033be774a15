/* The registry of backends, and the checked table of each: its own device services, and its math ops behind the shared
 * checks. An op with nothing to do (no rows, no bytes) ends here, so no backend sees one. */
#include "kernels/kernels.h"

#include <pthread.h>
#include <string.h>

#include "kernels/cpu/cpu_device.h"
#include "kernels/kernels_check.h"

/* clang-format off */
/* X(op, whether there is something to do) */
#define MATH_OPS(X)                                                                                   \
    X(slot_update, (args->n_inits | args->n_runs | args->n_blocks) != 0)                              \
    X(batch_prepare, args->n_rows > 0)                                                                \
    X(embed, args->n_tokens > 0)                                                                      \
    X(rmsnorm, args->n_tokens > 0)                                                                    \
    X(gemm, args->m > 0)                                                                              \
    X(rope_kv, args->n_tokens > 0)                                                                    \
    X(attention, args->n_tokens > 0)                                                                  \
    X(swiglu, args->n_tokens > 0)                                                                     \
    X(gather_rows, args->n_rows > 0)                                                                  \
    X(copy_2d, args->width > 0 && args->height > 0)                                                   \
    X(argmax, args->n_rows > 0)                                                                       \
    X(argmax_merge, args->n_rows > 0)                                                                 \
    X(sample, args->n_rows > 0)                                                                       \
    X(commit, args->n_rows > 0)
/* clang-format on */

static struct kernel_ops cpu_checked;

/* A wrapper has nothing but the op's own arguments to go by, so each backend has a set of its own. */
#define CPU_WRAPPER(op, some)                                                                                          \
    static enum status checked_cpu_##op(struct kernel_stream *stream, const struct op_##op *args) {                    \
        if (!(some)) {                                                                                                 \
            return STATUS_OK;                                                                                          \
        }                                                                                                              \
        check_##op(args);                                                                                              \
        return cpu_kernel_ops.op(stream, args);                                                                        \
    }
MATH_OPS(CPU_WRAPPER)

#define CPU_SLOT(op, some) cpu_checked.op = checked_cpu_##op;
static void fill_cpu_checked(void) {
    cpu_checked = cpu_kernel_ops;
    MATH_OPS(CPU_SLOT)
}

const struct kernel_ops *kernels_find_unchecked(const char *name) {
    return strcmp(name, cpu_kernel_ops.name) == 0 ? &cpu_kernel_ops : NULL;
}

const struct kernel_ops *kernels_find(const char *name) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (strcmp(name, cpu_kernel_ops.name) != 0) {
        return NULL;
    }
    pthread_once(&once, fill_cpu_checked);
    return &cpu_checked;
}
