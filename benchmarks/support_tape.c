#include "benchmarks/support_tape.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/model/forward.h"

#define KINDS_MAX 32

/* clang-format off */
/* X(op) of every math op that a forward pass may ask for. */
#define MATH_OPS(X)                                                                                   \
    X(batch_prepare) X(embed) X(rmsnorm) X(gemm) X(rope_kv) X(attention) X(gemm_swiglu)               \
    X(gather_rows) X(copy_2d) X(argmax) X(argmax_merge) X(sample) X(commit)
/* clang-format on */

enum op {
#define MEMBER(op) OP_##op,
    MATH_OPS(MEMBER)
#undef MEMBER
        OP_all_reduce,
    OP_all_gather,
    OP_all_to_all,
    OP_all_reduce_add_rmsnorm,
};

struct collective {
    void *data;
    const void *send;
    size_t count; /* elements of a reduction, else bytes */
    enum dtype dtype;
    size_t send_bytes[COMM_MAX_WORLD], recv_bytes[COMM_MAX_WORLD];
    struct op_rmsnorm norm;
};

struct entry {
    enum op op;
    uint32_t kind;
    union {
#define MEMBER(op) struct op_##op op;
        MATH_OPS(MEMBER)
#undef MEMBER
        struct collective comm;
    } args;
};

struct tape {
    struct model *model;
    struct kernel_stream *stream;
    struct tape_load load;
    struct entry *entries;
    size_t n_entries;
    struct tape_kind kinds[KINDS_MAX];
    uint32_t n_kinds;
};

static struct tape *writing; /* the tables' functions have nothing else to go by */

static struct entry *add(enum op op) {
    writing->entries = xrealloc(writing->entries, writing->n_entries + 1, sizeof writing->entries[0]);
    struct entry *entry = &writing->entries[writing->n_entries++];
    memset(entry, 0, sizeof *entry);
    entry->op = op;
    return entry;
}

#define WRITER(op)                                                                                                     \
    static enum status write_##op(struct kernel_stream *stream, const struct op_##op *args) {                          \
        (void)stream;                                                                                                  \
        add(OP_##op)->args.op = *args;                                                                                 \
        return STATUS_OK;                                                                                              \
    }
MATH_OPS(WRITER)
#undef WRITER

static enum status write_all_reduce(struct comm *comm, struct kernel_stream *stream, void *data, size_t count,
                                    enum dtype dtype) {
    (void)comm;
    (void)stream;
    add(OP_all_reduce)->args.comm = (struct collective){.data = data, .count = count, .dtype = dtype};
    return STATUS_OK;
}

static enum status write_all_gather(struct comm *comm, struct kernel_stream *stream, const void *send, void *recv,
                                    size_t bytes) {
    (void)comm;
    (void)stream;
    add(OP_all_gather)->args.comm = (struct collective){.send = send, .data = recv, .count = bytes};
    return STATUS_OK;
}

static enum status write_all_to_all(struct comm *comm, struct kernel_stream *stream, const void *send,
                                    const size_t *send_bytes, void *recv, const size_t *recv_bytes) {
    (void)comm;
    (void)stream;
    struct collective *call = &add(OP_all_to_all)->args.comm;
    *call = (struct collective){.send = send, .data = recv};
    size_t bytes = writing->model->shard.world * sizeof *send_bytes;
    memcpy(call->send_bytes, send_bytes, bytes);
    memcpy(call->recv_bytes, recv_bytes, bytes);
    return STATUS_OK;
}

static enum status write_all_reduce_add_rmsnorm(struct comm *comm, struct kernel_stream *stream, void *data,
                                                const struct op_rmsnorm *args) {
    (void)comm;
    (void)stream;
    add(OP_all_reduce_add_rmsnorm)->args.comm = (struct collective){.data = data, .norm = *args};
    return STATUS_OK;
}

/* ---- kinds */

static const char *product_name(const struct model *model, const struct weight *weight) {
    if (weight->data == model->weights.head.data) {
        return "head";
    }
    for (uint32_t i = 0; i < model->config.n_layers; i++) {
        const struct layer_weights *layer = &model->weights.layers[i];
        const struct {
            const char *name;
            const void *data;
        } names[] = {{"qkv", layer->qkv.data},
                     {"o", layer->o.data},
                     {"gate_up", layer->gate_up.data},
                     {"down", layer->down.data}};
        for (size_t j = 0; j < sizeof names / sizeof names[0]; j++) {
            if (names[j].data == weight->data) {
                return names[j].name;
            }
        }
    }
    return "gemm";
}

/* The product that the entry is; NULL: it is none. */
static const struct op_gemm *product_of(const struct entry *entry) {
    switch (entry->op) {
    case OP_gemm: return &entry->args.gemm;
    case OP_gemm_swiglu: return &entry->args.gemm_swiglu.gemm;
    default: return NULL;
    }
}

static const char *kind_name(const struct tape *tape, const struct entry *entry) {
    static const char *const names[] = {
#define MEMBER(op) [OP_##op] = #op,
        MATH_OPS(MEMBER)
#undef MEMBER
            [OP_all_reduce] = "all_reduce",
        [OP_all_gather] = "all_gather",
        [OP_all_to_all] = "all_to_all",
        [OP_all_reduce_add_rmsnorm] = "all_reduce_add_rmsnorm",
    };
    const struct op_gemm *product = product_of(entry);
    return product != NULL ? product_name(tape->model, &product->weight) : names[entry->op];
}

static double bytes_of(const struct tape *tape, const struct entry *entry) {
    const struct op_gemm *product = product_of(entry);
    if (product != NULL) {
        return (double)product->weight.n * product->weight.k * (double)dtype_bytes(product->weight.format);
    }
    if (entry->op == OP_attention) {
        const struct kv_layout *kv = &entry->args.attention.kv;
        return (double)tape->load.kv_tokens * 2.0 * kv->n_heads * kv->head_dim * (double)dtype_bytes(kv->dtype);
    }
    return 0;
}

static double flops_of(const struct tape *tape, const struct entry *entry) {
    const struct op_gemm *product = product_of(entry);
    if (product != NULL) {
        return 2.0 * product->m * product->weight.n * product->weight.k;
    }
    if (entry->op == OP_attention) {
        const struct op_attention *args = &entry->args.attention;
        return 4.0 * (double)tape->load.pairs * args->n_q_heads * args->kv.head_dim;
    }
    return 0;
}

static void sort_entry(struct tape *tape, struct entry *entry) {
    const char *name = kind_name(tape, entry);
    uint32_t kind = 0;
    while (kind < tape->n_kinds && strcmp(tape->kinds[kind].name, name) != 0) {
        kind++;
    }
    if (kind == tape->n_kinds) {
        CHECK(kind < KINDS_MAX, "more than %d kinds of op", KINDS_MAX);
        tape->kinds[tape->n_kinds++].collective = entry->op >= OP_all_reduce;
        snprintf(tape->kinds[kind].name, sizeof tape->kinds[kind].name, "%s", name);
    }
    entry->kind = kind;
    tape->kinds[kind].count++;
    tape->kinds[kind].bytes += bytes_of(tape, entry);
    tape->kinds[kind].flops += flops_of(tape, entry);
}

/* ---- record and play */

enum status tape_record(struct model *model, struct kernel_stream *stream, const struct step_batch *batch,
                        const struct tape_load *load, struct tape **out) {
    const struct kernel_ops *kernels = model->kernels;
    const struct comm_ops *comm_ops = model->comm_ops;
    struct kernel_ops written = *kernels;
    struct comm_ops written_comm = *comm_ops;
#define SLOT(op) written.op = write_##op;
    MATH_OPS(SLOT)
#undef SLOT
    written_comm.all_reduce = write_all_reduce;
    written_comm.all_gather = write_all_gather;
    written_comm.all_to_all = write_all_to_all;
    if (comm_ops->all_reduce_add_rmsnorm != NULL) {
        written_comm.all_reduce_add_rmsnorm = write_all_reduce_add_rmsnorm;
    }
    struct tape *tape = xcalloc(1, sizeof *tape);
    tape->model = model;
    tape->stream = stream;
    tape->load = *load;
    writing = tape;
    model->kernels = &written;
    model->comm_ops = &written_comm;
    enum status status = forward_enqueue(model, stream, batch);
    model->kernels = kernels;
    model->comm_ops = comm_ops;
    writing = NULL;
    for (size_t i = 0; i < tape->n_entries; i++) {
        sort_entry(tape, &tape->entries[i]);
    }
    *out = tape;
    return status;
}

void tape_free(struct tape *tape) {
    free(tape->entries);
    free(tape);
}

uint32_t tape_kinds(const struct tape *tape) {
    return tape->n_kinds;
}

const struct tape_kind *tape_kind(const struct tape *tape, uint32_t kind) {
    return &tape->kinds[kind];
}

static enum status play_entry(const struct tape *tape, const struct entry *entry) {
    const struct kernel_ops *kernels = tape->model->kernels;
    const struct comm_ops *comm_ops = tape->model->comm_ops;
    struct comm *comm = tape->model->comm;
    const struct collective *call = &entry->args.comm;
    switch (entry->op) {
#define CASE(op)                                                                                                       \
    case OP_##op: return kernels->op(tape->stream, &entry->args.op);
        MATH_OPS(CASE)
#undef CASE
    case OP_all_reduce: return comm_ops->all_reduce(comm, tape->stream, call->data, call->count, call->dtype);
    case OP_all_gather: return comm_ops->all_gather(comm, tape->stream, call->send, call->data, call->count);
    case OP_all_to_all:
        return comm_ops->all_to_all(comm, tape->stream, call->send, call->send_bytes, call->data, call->recv_bytes);
    case OP_all_reduce_add_rmsnorm:
        return comm_ops->all_reduce_add_rmsnorm(comm, tape->stream, call->data, &call->norm);
    }
    return STATUS_OK;
}

enum status tape_play(const struct tape *tape, uint32_t kind) {
    for (size_t i = 0; i < tape->n_entries; i++) {
        if (tape->entries[i].kind == kind) {
            TRY(play_entry(tape, &tape->entries[i]));
        }
    }
    return STATUS_OK;
}
