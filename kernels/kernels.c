/* The registry of backends, and the checked table of each: its own device services, and its math ops behind the shared
 * checks. An op with nothing to do (no rows, no bytes) ends here, so no backend sees one. */
#include "kernels/kernels.h"

#include <pthread.h>
#include <string.h>

#include "kernels/cpu/cpu_device.h"
#include "kernels/kernels_check.h"
#include "kernels/plugin.h"

/* clang-format off */
/* X(backend, op, whether there is something to do) */
#define MATH_OPS(X, backend)                                                                          \
    X(backend, slot_update, (args->n_inits | args->n_runs | args->n_blocks) != 0)                     \
    X(backend, batch_prepare, args->n_rows > 0)                                                       \
    X(backend, embed, args->n_tokens > 0)                                                             \
    X(backend, rmsnorm, args->n_tokens > 0)                                                           \
    X(backend, gemm, args->m > 0)                                                                     \
    X(backend, rope_kv, args->n_tokens > 0)                                                           \
    X(backend, attention, args->n_tokens > 0)                                                         \
    X(backend, swiglu, args->n_tokens > 0)                                                            \
    X(backend, gemm_swiglu, args->gemm.m > 0)                                                         \
    X(backend, gather_rows, args->n_rows > 0)                                                         \
    X(backend, copy_2d, args->width > 0 && args->height > 0)                                          \
    X(backend, random, args->n_rows > 0 && args->n_columns > 0)                                       \
    X(backend, argmax, args->n_rows > 0)                                                              \
    X(backend, argmax_merge, args->n_rows > 0)                                                        \
    X(backend, sample, args->n_rows > 0)                                                              \
    X(backend, commit, args->n_rows > 0)
/* clang-format on */

static const struct kernel_ops *const cpu_plain = &cpu_kernel_ops;
static const struct kernel_ops *cuda_plain; /* of the plug-in in use */
static const struct plugin *cuda_plugin;
static struct kernel_ops cpu_checked;
static struct kernel_ops cuda_checked;

/* A wrapper has nothing but the op's own arguments to go by, so each backend has a set of its own. */
#define WRAPPER(backend, op, some)                                                                                     \
    static enum status checked_##backend##_##op(struct kernel_stream *stream, const struct op_##op *args) {            \
        if (!(some)) {                                                                                                 \
            return STATUS_OK;                                                                                          \
        }                                                                                                              \
        check_##op(args);                                                                                              \
        return backend##_plain->op(stream, args);                                                                      \
    }
MATH_OPS(WRAPPER, cpu)
MATH_OPS(WRAPPER, cuda)

#define SLOT(backend, op, some) backend##_checked.op = checked_##backend##_##op;

static void fill_cpu(void) {
    cpu_checked = cpu_kernel_ops;
    MATH_OPS(SLOT, cpu)
}

static pthread_mutex_t cuda_lock = PTHREAD_MUTEX_INITIALIZER; /* of the cuda_* words above */

static enum status use_cuda(int ordinal) {
    const struct plugin *plugin;
    struct kernel_card card;
    TRY(plugin_for_card(ordinal, &plugin, &card));
    if (cuda_plugin == plugin) {
        return STATUS_OK;
    }
    if (cuda_plugin != NULL) {
        FAIL(STATUS_UNSUPPORTED, "backend cuda: card %d (%s) needs another plug-in than the one that this process uses",
             ordinal, card.name);
    }
    cuda_plugin = plugin;
    cuda_plain = plugin->kernels;
    cuda_checked = *plugin->kernels;
    MATH_OPS(SLOT, cuda)
    return STATUS_OK;
}

static enum status find_cuda(int ordinal) {
    pthread_mutex_lock(&cuda_lock);
    enum status status = use_cuda(ordinal);
    pthread_mutex_unlock(&cuda_lock);
    return status;
}

const struct kernel_ops *kernels_find_for(const char *name, int ordinal) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (strcmp(name, cpu_kernel_ops.name) == 0) {
        pthread_once(&once, fill_cpu);
        return &cpu_checked;
    }
    if (strcmp(name, "cuda") == 0) {
        return find_cuda(ordinal) == STATUS_OK ? &cuda_checked : NULL;
    }
    status_fail(STATUS_UNSUPPORTED, "backend %s is not part of this program", name);
    return NULL;
}

const struct kernel_ops *kernels_find(const char *name) {
    return kernels_find_for(name, 0);
}

const struct kernel_ops *kernels_find_unchecked(const char *name) {
    const struct kernel_ops *checked = kernels_find(name);
    return checked == &cpu_checked ? cpu_plain : checked == &cuda_checked ? cuda_plain : NULL;
}

enum status kernels_card(int ordinal, struct kernel_card *card) {
    const struct plugin *plugin;
    return plugin_for_card(ordinal, &plugin, card);
}

const struct plugin *plugin_in_use(void) {
    pthread_mutex_lock(&cuda_lock);
    const struct plugin *plugin = cuda_plugin;
    pthread_mutex_unlock(&cuda_lock);
    return plugin;
}
