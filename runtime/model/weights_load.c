#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/model/rope.h"
#include "runtime/model/weights_internal.h"

/* Of a tensor, at a time. All threads' stages lie in the processor's cache then: with 2 MiB two H100 at once took 40
 * GB/s each, of the 54 that pinned memory gives; smaller pieces wait for the driver, larger ones for the memory. */
#define JOB_BYTES ((size_t)2 << 20)
#define N_STAGES 2
/* Pieces of rows shorter than a page are picked out of whole rows: a system call each would cost more. (By pieces of
 * 5 KiB 30 GB/s, by whole rows of twice that 15.) */
#define SHORT_RUN 4096
#define MAX_THREADS 16
#define F16_MAX 65504.0f

/* Some rows of one slice, or of the rope table. */
struct job {
    const struct checkpoint_tensor *tensor; /* NULL: rope */
    struct shard_slice slice;
    uint32_t row_first; /* within the slice; of the rope table a position */
    uint32_t n_rows;
};

struct loader {
    const struct weights_load *load;
    const struct checkpoint *checkpoint; /* NULL: rope alone */
    struct job *jobs;
    size_t n_jobs;
    size_t stage_bytes; /* of the largest job */
    uint64_t total;
    atomic_size_t next_job;
    atomic_bool failed;
    pthread_mutex_t lock; /* of what follows */
    uint64_t done;
    enum status status;
    char text[512];
};

/* Where a job's elements wait for their copy to the arena; a thread reads into one while another is copied. */
struct stage {
    void *memory; /* of scratch.pinned */
    struct kernel_event *copied;
};

/* What one thread works with. */
struct scratch {
    struct kernel_stream *stream;
    struct checkpoint_reader *reader; /* NULL: rope alone */
    void *pinned;
    struct stage stages[N_STAGES];
    uint32_t next_stage;
    void *rows; /* whole rows, of which pieces are picked */
    size_t rows_bytes;
    void *stored; /* a job's elements as stored, when they are to be converted */
    size_t stored_bytes;
};

/* ---- the list of jobs */

/* Whether whole rows are read to pick pieces out of them. */
static bool reads_whole_rows(const struct job *job) {
    size_t run = (size_t)job->slice.n_cols * dtype_bytes(job->tensor->dtype);
    return job->slice.n_cols == job->slice.cols || run < SHORT_RUN;
}

/* As many rows of a job's slice (or table) at a time as JOB_BYTES hold. */
static void add_jobs(struct loader *loader, struct job job, uint32_t n_rows, size_t row_bytes) {
    uint32_t step = row_bytes < JOB_BYTES ? (uint32_t)(JOB_BYTES / row_bytes) : 1;
    for (uint32_t row = 0; row < n_rows; row += step) {
        job.row_first = row;
        job.n_rows = n_rows - row < step ? n_rows - row : step;
        loader->jobs = xrealloc(loader->jobs, loader->n_jobs + 1, sizeof loader->jobs[0]);
        loader->jobs[loader->n_jobs++] = job;
    }
}

static uint64_t stored_bytes(const struct job *job) {
    return job->tensor == NULL ? 0 : (uint64_t)job->n_rows * job->slice.n_cols * dtype_bytes(job->tensor->dtype);
}

/* Of a job in the arena: where, and how much. */
static size_t arena_offset(const struct loader *loader, const struct job *job) {
    const struct weights_load *load = loader->load;
    return job->tensor != NULL ? weights_offset(load, &job->slice, job->row_first)
                               : load->layout->rope + (size_t)job->row_first * load->config->head_dim * sizeof(float);
}

static size_t arena_bytes(const struct loader *loader, const struct job *job) {
    const struct weights_load *load = loader->load;
    size_t row = job->tensor != NULL ? job->slice.n_cols * dtype_bytes(weights_dtype(load, &job->slice))
                                     : load->config->head_dim * sizeof(float);
    return job->n_rows * row;
}

static void shape_text(char *text, size_t size, const uint64_t *shape, uint32_t n_dims) {
    size_t used = 0;
    text[0] = '\0';
    for (uint32_t i = 0; i < n_dims && used < size; i++) {
        used += (size_t)snprintf(text + used, size - used, "%s%llu", i > 0 ? ", " : "", (unsigned long long)shape[i]);
    }
}

static enum status check_tensor(const struct checkpoint_tensor *tensor, const struct shard_slice *slice) {
    uint64_t expected[SAFETENSORS_MAX_DIMS] = {slice->rows, slice->cols};
    if (!tensor->served) {
        FAIL(STATUS_UNSUPPORTED, "tensor %s: dtype %s is not served; F32, BF16 and F16 are", tensor->name,
             tensor->kind);
    }
    if (tensor->n_dims != slice->n_dims || tensor->shape[0] != expected[0] ||
        (slice->n_dims == 2 && tensor->shape[1] != expected[1])) {
        char found[SAFETENSORS_MAX_DIMS * 24];
        char wanted[64];
        shape_text(found, sizeof found, tensor->shape, tensor->n_dims);
        shape_text(wanted, sizeof wanted, expected, slice->n_dims);
        FAIL(STATUS_INVALID, "tensor %s: shape [%s], config.json asks for [%s]", tensor->name, found, wanted);
    }
    return STATUS_OK;
}

static int ends_with(const char *text, const char *end) {
    size_t n = strlen(text);
    size_t m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* Tensors that transformers leaves unread as well: computed tables, and the stored copy of a tied head. */
static int is_ignored(const struct model_config *config, const char *name) {
    return ends_with(name, ".rotary_emb.inv_freq") ||
           (config->tie_word_embeddings && strcmp(name, "lm_head.weight") == 0);
}

static enum status find_missing(const struct loader *loader) {
    const struct weights_load *load = loader->load;
    for (uint32_t i = 0; i < shard_tensor_count(load->config); i++) {
        char name[SHARD_NAME_MAX];
        struct shard_slice slice;
        shard_tensor(load->config, load->shard, i, name, &slice);
        if (checkpoint_find(loader->checkpoint, name) == NULL) {
            FAIL(STATUS_INVALID, "tensor %s is missing from the checkpoint; config.json asks for it", name);
        }
    }
    return STATUS_OK;
}

static enum status list_stored(struct loader *loader) {
    const struct weights_load *load = loader->load;
    TRY(find_missing(loader));
    for (size_t i = 0; i < checkpoint_count(loader->checkpoint); i++) {
        struct job job = {.tensor = checkpoint_tensor_at(loader->checkpoint, i)};
        if (is_ignored(load->config, job.tensor->name)) {
            continue;
        }
        if (shard_find(load->config, load->shard, job.tensor->name, &job.slice) != STATUS_OK) {
            FAIL(STATUS_INVALID, "tensor %s does not belong to the model that config.json describes", job.tensor->name);
        }
        TRY(check_tensor(job.tensor, &job.slice));
        uint32_t columns = reads_whole_rows(&job) ? job.slice.cols : job.slice.n_cols;
        add_jobs(loader, job, job.slice.n_rows, columns * dtype_bytes(job.tensor->dtype));
    }
    return STATUS_OK;
}

/* Sines take a processor as long as a card's bus takes many tensors: the table's jobs are dealt out evenly among the
 * others. */
static void mix_in_rope(struct loader *loader) {
    struct loader rope = {.load = loader->load};
    struct job job = {.tensor = NULL};
    add_jobs(&rope, job, loader->load->max_len, loader->load->config->head_dim * sizeof(float));
    size_t n = loader->n_jobs + rope.n_jobs;
    struct job *mixed = xcalloc(n, sizeof *mixed);
    size_t taken = 0;
    for (size_t i = 0; i < n; i++) {
        bool is_rope = (i + 1) * rope.n_jobs / n > taken;
        mixed[i] = is_rope ? rope.jobs[taken] : loader->jobs[i - taken];
        taken += is_rope;
    }
    free(rope.jobs);
    free(loader->jobs);
    loader->jobs = mixed;
    loader->n_jobs = n;
}

static enum status list_jobs(struct loader *loader) {
    if (loader->checkpoint != NULL) {
        TRY(list_stored(loader));
    }
    mix_in_rope(loader);
    for (size_t i = 0; i < loader->n_jobs; i++) {
        size_t bytes = (arena_bytes(loader, &loader->jobs[i]) + 255) / 256 * 256;
        loader->stage_bytes = bytes > loader->stage_bytes ? bytes : loader->stage_bytes;
        loader->total += stored_bytes(&loader->jobs[i]);
    }
    return STATUS_OK;
}

/* ---- one job */

static void *at_least(void *memory, size_t *have, size_t need) {
    if (*have >= need) {
        return memory;
    }
    free(memory);
    *have = need;
    return xaligned(64, need);
}

/* The job's elements, row after row, into `out`. */
static enum status read_rows(const struct job *job, struct scratch *scratch, void *out) {
    const struct shard_slice *slice = &job->slice;
    size_t element = dtype_bytes(job->tensor->dtype);
    size_t pitch = slice->cols * element;
    size_t run = slice->n_cols * element;
    uint64_t start = (uint64_t)(slice->row_first + job->row_first) * pitch;
    if (run == pitch) {
        return checkpoint_read(scratch->reader, job->tensor, start, out, job->n_rows * pitch);
    }
    if (!reads_whole_rows(job)) {
        for (uint32_t r = 0; r < job->n_rows; r++) {
            TRY(checkpoint_read(scratch->reader, job->tensor, start + r * pitch + slice->col_first * element,
                                (char *)out + r * run, run));
        }
        return STATUS_OK;
    }
    scratch->rows = at_least(scratch->rows, &scratch->rows_bytes, job->n_rows * pitch);
    TRY(checkpoint_read(scratch->reader, job->tensor, start, scratch->rows, job->n_rows * pitch));
    for (uint32_t r = 0; r < job->n_rows; r++) {
        memcpy((char *)out + r * run, (const char *)scratch->rows + r * pitch + slice->col_first * element, run);
    }
    return STATUS_OK;
}

static float to_float(const void *data, size_t i, enum dtype dtype) {
    switch (dtype) {
    case DTYPE_BF16: return bf16_to_f32(((const uint16_t *)data)[i]);
    case DTYPE_F16: return f16_to_f32(((const uint16_t *)data)[i]);
    case DTYPE_F32: break;
    }
    return ((const float *)data)[i];
}

static enum status convert(const char *name, const void *from, enum dtype source, void *to, enum dtype target,
                           size_t count) {
    for (size_t i = 0; i < count; i++) {
        float value = to_float(from, i, source);
        switch (target) {
        case DTYPE_F32: ((float *)to)[i] = value; break;
        case DTYPE_BF16: ((uint16_t *)to)[i] = f32_to_bf16(value); break;
        case DTYPE_F16:
            if (fabsf(value) > F16_MAX && isfinite(value)) {
                FAIL(STATUS_LIMIT, "tensor %s holds %g, float16 ends at %.0f; use dtype bfloat16 or float32", name,
                     (double)value, (double)F16_MAX);
            }
            ((uint16_t *)to)[i] = f32_to_f16(value);
            break;
        }
    }
    return STATUS_OK;
}

/* The job's elements as they go to the arena, into `out`. */
static enum status make_ready(const struct loader *loader, const struct job *job, struct scratch *scratch, void *out) {
    if (job->tensor == NULL) {
        rope_fill(loader->load->config, job->row_first, job->n_rows, out);
        return STATUS_OK;
    }
    enum dtype source = job->tensor->dtype;
    enum dtype target = weights_dtype(loader->load, &job->slice);
    if (source == target) {
        return read_rows(job, scratch, out);
    }
    size_t count = (size_t)job->n_rows * job->slice.n_cols;
    scratch->stored = at_least(scratch->stored, &scratch->stored_bytes, count * dtype_bytes(source));
    TRY(read_rows(job, scratch, scratch->stored));
    return convert(job->tensor->name, scratch->stored, source, out, target, count);
}

static enum status run_job(const struct loader *loader, const struct job *job, struct scratch *scratch) {
    const struct weights_load *load = loader->load;
    struct stage *stage = &scratch->stages[scratch->next_stage++ % N_STAGES];
    TRY(load->kernels->event_sync(stage->copied));
    TRY(make_ready(loader, job, scratch, stage->memory));
    TRY(load->kernels->copy(scratch->stream, (char *)load->arena + arena_offset(loader, job), stage->memory,
                            arena_bytes(loader, job), KERNEL_COPY_TO_DEVICE));
    return load->kernels->event_record(stage->copied, scratch->stream);
}

/* ---- threads */

static void report(struct loader *loader, const struct job *job) {
    const struct weights_load *load = loader->load;
    pthread_mutex_lock(&loader->lock);
    loader->done += stored_bytes(job);
    if (load->progress != NULL && job->tensor != NULL) {
        load->progress(load->context, loader->done, loader->total);
    }
    pthread_mutex_unlock(&loader->lock);
}

static void fail(struct loader *loader, enum status status) {
    pthread_mutex_lock(&loader->lock);
    if (loader->status == STATUS_OK) {
        loader->status = status;
        snprintf(loader->text, sizeof loader->text, "%s", status_text());
    }
    pthread_mutex_unlock(&loader->lock);
    atomic_store(&loader->failed, true);
}

static enum status run_jobs(struct loader *loader, struct scratch *scratch) {
    for (;;) {
        size_t next = atomic_fetch_add(&loader->next_job, 1);
        if (next >= loader->n_jobs || atomic_load(&loader->failed)) {
            return STATUS_OK;
        }
        if (loader->load->cancelled != NULL && atomic_load(loader->load->cancelled)) {
            FAIL(STATUS_CLOSED, "the weights are not wanted any more");
        }
        TRY(run_job(loader, &loader->jobs[next], scratch));
        report(loader, &loader->jobs[next]);
    }
}

static enum status open_scratch(struct loader *loader, struct scratch *scratch) {
    const struct weights_load *load = loader->load;
    scratch->reader = loader->checkpoint != NULL ? checkpoint_reader_open(loader->checkpoint) : NULL;
    TRY(load->kernels->copy_stream_create(load->device, &scratch->stream));
    TRY(load->kernels->host_alloc(load->device, N_STAGES * loader->stage_bytes, &scratch->pinned));
    for (size_t i = 0; i < N_STAGES; i++) {
        scratch->stages[i].memory = (char *)scratch->pinned + i * loader->stage_bytes;
        TRY(load->kernels->event_create(load->device, &scratch->stages[i].copied));
    }
    return STATUS_OK;
}

static void close_scratch(const struct loader *loader, struct scratch *scratch) {
    const struct weights_load *load = loader->load;
    if (scratch->stream != NULL) {
        load->kernels->stream_destroy(scratch->stream);
    }
    for (int i = 0; i < N_STAGES; i++) {
        if (scratch->stages[i].copied != NULL) {
            load->kernels->event_destroy(scratch->stages[i].copied);
        }
    }
    if (scratch->pinned != NULL) {
        load->kernels->host_free(load->device, scratch->pinned);
    }
    checkpoint_reader_close(scratch->reader);
    free(scratch->rows);
    free(scratch->stored);
}

static void *load_thread(void *argument) {
    struct loader *loader = argument;
    struct scratch scratch = {.next_stage = 0};
    enum status status = open_scratch(loader, &scratch);
    if (status == STATUS_OK) {
        status = run_jobs(loader, &scratch);
    }
    if (status == STATUS_OK) {
        status = loader->load->kernels->stream_sync(scratch.stream);
    }
    if (status != STATUS_OK) {
        fail(loader, status);
    }
    close_scratch(loader, &scratch);
    return NULL;
}

static void run_threads(struct loader *loader, uint32_t wanted) {
    pthread_t threads[MAX_THREADS];
    uint32_t started = 0;
    while (started + 1 < wanted && pthread_create(&threads[started], NULL, load_thread, loader) == 0) {
        started++;
    }
    load_thread(loader); /* this thread is one of them, and enough when no other could be had */
    for (uint32_t i = 0; i < started; i++) {
        pthread_join(threads[i], NULL);
    }
}

static enum status run(struct loader *loader) {
    const struct weights_load *load = loader->load;
    uint32_t threads = load->threads < MAX_THREADS ? load->threads : MAX_THREADS;
    TRY(list_jobs(loader));
    run_threads(loader, threads);
    if (loader->status != STATUS_OK) {
        FAIL(loader->status, "%s", loader->text);
    }
    return STATUS_OK;
}

static enum status copy_map(const struct weights_load *load) {
    struct kernel_stream *stream;
    TRY(load->kernels->copy_stream_create(load->device, &stream));
    uint32_t *map = xcalloc(load->shard->n_q, sizeof *map);
    shard_q_to_kv(load->config, load->shard, map);
    enum status status = load->kernels->copy(stream, (char *)load->arena + load->layout->q_to_kv, map,
                                             load->shard->n_q * sizeof *map, KERNEL_COPY_TO_DEVICE);
    enum status synced = load->kernels->stream_sync(stream);
    load->kernels->stream_destroy(stream);
    free(map);
    return status == STATUS_OK ? synced : status;
}

enum status weights_load(const struct weights_load *load, const struct checkpoint *checkpoint) {
    struct loader loader = {.load = load, .checkpoint = checkpoint};
    TRY(copy_map(load));
    if (checkpoint == NULL) {
        TRY(weights_make_up(load));
    }
    pthread_mutex_init(&loader.lock, NULL);
    enum status status = run(&loader);
    pthread_mutex_destroy(&loader.lock);
    free(loader.jobs);
    return status;
}
