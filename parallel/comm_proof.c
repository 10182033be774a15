#include "parallel/comm_proof.h"

#include <math.h>
#include <stdio.h>

#include "runtime/base/clock.h"
#include "runtime/base/rng.h"

#define GRAPH_LENGTH 40
#define GRAPH_RUNS 3
#define EPS 1e-6f

struct proof {
    const struct comm_proof_config *config;
    const struct kernel_ops *kernels;
    struct kernel_device *device;
    struct kernel_stream *stream;
    uint32_t world;
    size_t row;                    /* elements */
    size_t max_count;              /* elements of the largest message in the smaller format */
    char *values;                  /* what this rank brings, in the format being proven */
    char *own, *trusted;           /* [world][max_bytes] results, and the data of one message */
    char *out;                     /* of norms, not looked at */
    float *residual;               /* [2][max_count] */
    float *weight;                 /* [row] of zeros: only the residual is looked at */
    char *host_own, *host_trusted; /* pinned; [world][max_bytes], at least 4 * max_count */
    struct comm_finding finding;
};

/* ---- the parts that need no device */

static float element(const void *data, size_t i, enum dtype dtype) {
    if (dtype == DTYPE_F32) {
        return ((const float *)data)[i];
    }
    uint16_t half = ((const uint16_t *)data)[i];
    return dtype == DTYPE_BF16 ? bf16_to_f32(half) : f16_to_f32(half);
}

float comm_proof_bound(enum dtype dtype, uint32_t world) {
    float rounding = dtype == DTYPE_F32 ? 0x1p-24f : dtype == DTYPE_F16 ? 0x1p-11f : 0x1p-8f;
    return world <= 2 ? 0.0f : rounding * (float)world * (float)world;
}

size_t comm_proof_compare(const void *own, const void *trusted, size_t count, enum dtype dtype, float bound) {
    if (memcmp(own, trusted, count * dtype_bytes(dtype)) == 0) {
        return count;
    }
    for (size_t i = 0; i < count; i++) {
        if (!(fabsf(element(own, i, dtype) - element(trusted, i, dtype)) <= bound)) { /* NaN is wrong */
            return i;
        }
    }
    return count;
}

/* The slowest rank's times of timed size `index`. */
static void slowest(const struct comm_finding *findings, uint32_t world, uint32_t index, float *own, float *trusted) {
    *own = *trusted = 0.0f;
    for (uint32_t r = 0; r < world; r++) {
        *own = fmaxf(*own, findings[r].timed[index].own_us);
        *trusted = fmaxf(*trusted, findings[r].timed[index].trusted_us);
    }
}

void comm_proof_conclude(const struct comm_finding *findings, uint32_t world, size_t serves_bytes,
                         const char *trusted_name, struct comm_verdict *verdict) {
    *verdict = (struct comm_verdict){0};
    for (uint32_t r = 0; r < world; r++) {
        if (findings[r].fault[0] != 0) {
            snprintf(verdict->text, sizeof verdict->text, "%s serves everything: on rank %u, %s", trusted_name, r,
                     findings[r].fault);
            return;
        }
    }
    uint32_t n_timed = findings[0].n_timed;
    float own = 0.0f;
    float trusted = 0.0f;
    uint32_t wins = 0;
    for (; wins < n_timed; wins++) {
        slowest(findings, world, wins, &own, &trusted);
        if (own > trusted * 1.05f) {
            break;
        }
        verdict->max_bytes = (size_t)findings[0].timed[wins].bytes;
    }
    if (n_timed == 0) {
        snprintf(verdict->text, sizeof verdict->text,
                 "%s serves everything: one row is larger than the %zu KiB of own "
                 "kernels",
                 trusted_name, serves_bytes >> 10);
        return;
    }
    if (wins == 0) {
        snprintf(verdict->text, sizeof verdict->text,
                 "%s serves everything: own kernels take %.1f us, %s %.1f us for the smallest message", trusted_name,
                 (double)own, trusted_name, (double)trusted);
        return;
    }
    if (wins == n_timed) {
        verdict->max_bytes = serves_bytes;
    }
    slowest(findings, world, 0, &verdict->own_us, &verdict->trusted_us);
    snprintf(verdict->text, sizeof verdict->text,
             "own kernels serve up to %zu KiB (%u sizes proven against %s); all-reduce, add and norm of one row take "
             "%.1f us, by %s %.1f us",
             verdict->max_bytes >> 10, findings[0].n_sizes, trusted_name, (double)verdict->own_us, trusted_name,
             (double)verdict->trusted_us);
}

/* ---- sums */

/* Rows of the next size to check. */
static size_t next_rows(size_t rows) {
    return rows < 32 ? rows + 1 : rows < 512 ? rows + 8 : rows * 2;
}

static enum status put_values(struct proof *proof, enum dtype dtype) {
    uint64_t state = 0x7a11e5 + proof->config->group->rank;
    for (size_t i = 0; i < proof->max_count; i++) {
        float value = (float)((int64_t)(rng_next(&state) >> 40) - (1 << 23)) * 0x1p-23f; /* -1 .. 1 */
        if (dtype == DTYPE_F32) {
            ((float *)proof->host_own)[i] = value;
        } else {
            ((uint16_t *)proof->host_own)[i] = dtype == DTYPE_BF16 ? f32_to_bf16(value) : f32_to_f16(value);
        }
    }
    TRY(proof->kernels->copy(proof->stream, proof->values, proof->host_own, proof->max_count * dtype_bytes(dtype),
                             KERNEL_COPY_TO_DEVICE));
    return proof->kernels->stream_sync(proof->stream);
}

static enum status copy(const struct proof *proof, void *to, const void *from, size_t bytes, enum kernel_copy kind) {
    return proof->kernels->copy(proof->stream, to, from, bytes, kind);
}

/* What went wrong with the own kernels is a finding, and the first one counts. */
static void note_fault(struct proof *proof, const char *what, size_t count, const char *unit, const char *how) {
    if (proof->finding.fault[0] == 0) {
        snprintf(proof->finding.fault, sizeof proof->finding.fault, "%s of %zu %s %s", what, count, unit, how);
    }
}

/* Compares what was just put into the host's buffers, elements of `dtype`. */
static void note_difference(struct proof *proof, const char *what, size_t count, enum dtype dtype, float bound) {
    size_t i = comm_proof_compare(proof->host_own, proof->host_trusted, count, dtype, bound);
    if (i < count) {
        char how[96];
        snprintf(how, sizeof how, "gives %g for element %zu in the place of %g",
                 (double)element(proof->host_own, i, dtype), i, (double)element(proof->host_trusted, i, dtype));
        note_fault(proof, what, count, "elements", how);
    }
}

static struct op_rmsnorm norm_of(const struct proof *proof, size_t count, enum dtype dtype, void *data) {
    return (struct op_rmsnorm){.residual = proof->residual,
                               .delta = data,
                               .delta_dtype = dtype,
                               .weight = proof->weight,
                               .weight_dtype = DTYPE_F32,
                               .out = proof->out,
                               .out_dtype = dtype,
                               .n_tokens = (uint32_t)(count / proof->row),
                               .hidden = (uint32_t)proof->row,
                               .eps = EPS};
}

static enum status own_fused(const struct proof *proof, size_t count, enum dtype dtype) {
    const struct comm_proof_config *config = proof->config;
    struct op_rmsnorm norm = norm_of(proof, count, dtype, proof->own);
    if (config->own_ops->all_reduce_add_rmsnorm != NULL) {
        return config->own_ops->all_reduce_add_rmsnorm(config->own, proof->stream, proof->own, &norm);
    }
    TRY(config->own_ops->all_reduce(config->own, proof->stream, proof->own, count, dtype));
    return proof->kernels->rmsnorm(proof->stream, &norm);
}

static enum status trusted_composed(const struct proof *proof, size_t count, enum dtype dtype) {
    const struct comm_proof_config *config = proof->config;
    struct op_rmsnorm norm = norm_of(proof, count, dtype, proof->own);
    TRY(config->trusted_ops->all_reduce(config->trusted, proof->stream, proof->own, count, dtype));
    return proof->kernels->rmsnorm(proof->stream, &norm);
}

static enum status fetch_both(const struct proof *proof, const void *own, const void *trusted, size_t bytes) {
    TRY(copy(proof, proof->host_own, own, bytes, KERNEL_COPY_TO_HOST));
    TRY(copy(proof, proof->host_trusted, trusted, bytes, KERNEL_COPY_TO_HOST));
    return proof->kernels->stream_sync(proof->stream);
}

/* One size: the plain sum, then the fused one, by its residual, which begins as zeros. */
static enum status check_sum(struct proof *proof, size_t count, enum dtype dtype) {
    const struct comm_proof_config *config = proof->config;
    float bound = comm_proof_bound(dtype, proof->world);
    size_t bytes = count * dtype_bytes(dtype);
    TRY(copy(proof, proof->own, proof->values, bytes, KERNEL_COPY_ON_DEVICE));
    TRY(copy(proof, proof->trusted, proof->values, bytes, KERNEL_COPY_ON_DEVICE));
    TRY(config->trusted_ops->all_reduce(config->trusted, proof->stream, proof->trusted, count, dtype));
    TRY(config->own_ops->all_reduce(config->own, proof->stream, proof->own, count, dtype));
    TRY(fetch_both(proof, proof->own, proof->trusted, bytes));
    note_difference(proof, "all_reduce", count, dtype, bound);
    float *residuals[] = {proof->residual, proof->residual + proof->max_count};
    TRY(proof->kernels->fill(proof->stream, residuals[0], 0, count * sizeof(float)));
    TRY(proof->kernels->fill(proof->stream, residuals[1], 0, count * sizeof(float)));
    TRY(copy(proof, proof->own, proof->values, bytes, KERNEL_COPY_ON_DEVICE));
    struct op_rmsnorm norm = norm_of(proof, count, dtype, proof->trusted);
    norm.residual = residuals[1];
    TRY(proof->kernels->rmsnorm(proof->stream, &norm));
    TRY(own_fused(proof, count, dtype));
    TRY(fetch_both(proof, residuals[0], residuals[1], count * sizeof(float)));
    note_difference(proof, "all_reduce_add_rmsnorm", count, DTYPE_F32, bound);
    return STATUS_OK;
}

static enum status check_gather(struct proof *proof, size_t bytes) {
    const struct comm_proof_config *config = proof->config;
    size_t all = proof->world * bytes;
    TRY(config->trusted_ops->all_gather(config->trusted, proof->stream, proof->values, proof->trusted, bytes));
    TRY(config->own_ops->all_gather(config->own, proof->stream, proof->values, proof->own, bytes));
    TRY(fetch_both(proof, proof->own, proof->trusted, all));
    if (memcmp(proof->host_own, proof->host_trusted, all) != 0) {
        note_fault(proof, "all_gather", bytes, "bytes", "moves others");
    }
    return STATUS_OK;
}

/* Sizes of `first` rows and up, as many as fit and at most `last` rows. */
static enum status check_sizes(struct proof *proof, enum dtype dtype, size_t first, size_t last) {
    size_t row_bytes = proof->row * dtype_bytes(dtype);
    TRY(put_values(proof, dtype));
    for (size_t rows = first; rows <= last && rows * row_bytes <= proof->config->max_bytes; rows = next_rows(rows)) {
        TRY(check_sum(proof, rows * proof->row, dtype));
        if (rows * row_bytes <= COMM_PROOF_GATHER_BYTES) {
            TRY(check_gather(proof, rows * row_bytes));
        }
        proof->finding.n_sizes++;
        if (proof->config->own_ops->check(proof->config->own) != STATUS_OK) {
            note_fault(proof, "all_reduce", rows * proof->row, "elements", status_text());
        }
    }
    return STATUS_OK;
}

/* ---- times */

static enum status time_graph(const struct proof *proof, size_t count, enum dtype dtype,
                              enum status (*enqueue)(const struct proof *proof, size_t count, enum dtype dtype),
                              float *us) {
    struct kernel_graph *graph = NULL;
    enum status status = STATUS_OK;
    TRY(proof->kernels->graph_begin(proof->stream));
    for (int i = 0; i < GRAPH_LENGTH && status == STATUS_OK; i++) {
        status = enqueue(proof, count, dtype);
    }
    enum status ended = proof->kernels->graph_end(proof->stream, &graph);
    TRY(status != STATUS_OK ? status : ended);
    *us = INFINITY;
    for (int run = 0; run <= GRAPH_RUNS && status == STATUS_OK; run++) { /* the first one warms up */
        uint64_t start_ns = clock_now_ns();
        status = proof->kernels->graph_launch(graph, proof->stream);
        status = status == STATUS_OK ? proof->kernels->stream_sync(proof->stream) : status;
        float took = (float)(clock_now_ns() - start_ns) / 1000.0f / GRAPH_LENGTH;
        *us = run > 0 ? fminf(*us, took) : *us;
    }
    proof->kernels->graph_destroy(graph);
    return status;
}

static enum status time_sizes(struct proof *proof, enum dtype dtype) {
    struct comm_finding *finding = &proof->finding;
    size_t row_bytes = proof->row * dtype_bytes(dtype);
    for (size_t rows = 1; rows * row_bytes <= proof->config->max_bytes && finding->n_timed < COMM_PROOF_TIMED_MAX;
         rows *= 2) {
        float own;
        float trusted;
        TRY(proof->kernels->fill(proof->stream, proof->own, 0, rows * row_bytes));
        TRY(time_graph(proof, rows * proof->row, dtype, own_fused, &own));
        TRY(time_graph(proof, rows * proof->row, dtype, trusted_composed, &trusted));
        finding->timed[finding->n_timed].bytes = rows * row_bytes;
        finding->timed[finding->n_timed].own_us = own;
        finding->timed[finding->n_timed++].trusted_us = trusted;
    }
    return STATUS_OK;
}

/* ---- the whole */

static enum status allocate(struct proof *proof) {
    size_t bytes = proof->config->max_bytes;
    size_t most = proof->world * bytes + sizeof proof->finding * (proof->world + 1);
    most = most > proof->max_count * sizeof(float) ? most : proof->max_count * sizeof(float);
    struct {
        void **memory;
        size_t bytes;
    } wanted[] = {{(void **)&proof->values, most},
                  {(void **)&proof->own, most},
                  {(void **)&proof->trusted, most},
                  {(void **)&proof->out, proof->max_count * sizeof(float)},
                  {(void **)&proof->residual, 2 * proof->max_count * sizeof(float)},
                  {(void **)&proof->weight, proof->row * sizeof(float)}};
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        TRY(proof->kernels->alloc(proof->device, wanted[i].bytes, wanted[i].memory));
    }
    TRY(proof->kernels->host_alloc(proof->device, most, (void **)&proof->host_own));
    TRY(proof->kernels->host_alloc(proof->device, most, (void **)&proof->host_trusted));
    return proof->kernels->stream_create(proof->device, &proof->stream);
}

static void release(struct proof *proof) {
    void *device[] = {proof->values, proof->own, proof->trusted, proof->out, proof->residual, proof->weight};
    void *host[] = {proof->host_own, proof->host_trusted};
    if (proof->stream != NULL) {
        proof->kernels->stream_destroy(proof->stream);
    }
    for (size_t i = 0; i < sizeof device / sizeof device[0]; i++) {
        if (device[i] != NULL) {
            proof->kernels->free(proof->device, device[i]);
        }
    }
    for (size_t i = 0; i < sizeof host / sizeof host[0]; i++) {
        if (host[i] != NULL) {
            proof->kernels->host_free(proof->device, host[i]);
        }
    }
}

/* All ranks' findings so far, in rank order; valid until the next copy to host_trusted. */
static enum status exchange(struct proof *proof, const struct comm_finding **findings, bool *faulty) {
    const struct comm_proof_config *config = proof->config;
    size_t bytes = sizeof proof->finding;
    memcpy(proof->host_own, &proof->finding, bytes);
    TRY(copy(proof, proof->values, proof->host_own, bytes, KERNEL_COPY_TO_DEVICE));
    TRY(config->trusted_ops->all_gather(config->trusted, proof->stream, proof->values, proof->trusted, bytes));
    TRY(copy(proof, proof->host_trusted, proof->trusted, proof->world * bytes, KERNEL_COPY_TO_HOST));
    TRY(proof->kernels->stream_sync(proof->stream));
    *findings = (const struct comm_finding *)(const void *)proof->host_trusted;
    *faulty = false;
    for (uint32_t r = 0; r < proof->world; r++) {
        *faulty = *faulty || (*findings)[r].fault[0] != 0;
    }
    return STATUS_OK;
}

/* Ranks go on, or leave, together: one that found a fault must not leave the others in collectives that it skips. After
 * the first size is a first look, for own kernels that get no answer take their time to say so. */
static enum status run(struct proof *proof, const struct comm_finding **findings) {
    enum dtype dtype = proof->config->group->row_dtype;
    bool faulty = false;
    TRY(allocate(proof));
    TRY(check_sizes(proof, dtype, 1, 1));
    TRY(exchange(proof, findings, &faulty));
    if (faulty) {
        return STATUS_OK;
    }
    TRY(check_sizes(proof, dtype, 2, SIZE_MAX));
    if (dtype != DTYPE_F32) {
        TRY(check_sizes(proof, DTYPE_F32, 1, SIZE_MAX));
    }
    TRY(exchange(proof, findings, &faulty));
    if (faulty) {
        return STATUS_OK;
    }
    TRY(time_sizes(proof, dtype));
    return exchange(proof, findings, &faulty);
}

enum status comm_prove(const struct comm_proof_config *config, struct comm_verdict *verdict) {
    struct proof proof = {.config = config, .kernels = config->group->kernels, .device = config->group->device};
    proof.world = config->group->world;
    proof.row = config->group->row_elements;
    proof.max_count = config->max_bytes / dtype_bytes(config->group->row_dtype);
    const struct comm_finding *findings = NULL;
    enum status status = run(&proof, &findings);
    if (status == STATUS_OK) {
        comm_proof_conclude(findings, proof.world, config->serves_bytes, config->trusted_ops->name, verdict);
    }
    release(&proof);
    return status;
}
