#include "runtime/worker/graph_cache.h"

#include <stdlib.h>

#include "runtime/base/alloc.h"
#include "runtime/model/forward.h"

/* Larger batches are recorded when they first come: their recording is short beside their steps. */
#define WARM_ROWS_MAX 256
#define WARM_LAYERS 2 /* the first one adds nothing to the residual */

struct graph_cache {
    struct model *model;
    struct kernel_stream *stream;
    struct kernel_graph **graph[2]; /* [greedy][rows] */
};

struct graph_cache *graph_cache_create(struct model *model, struct kernel_stream *stream) {
    struct graph_cache *cache = xcalloc(1, sizeof *cache);
    cache->model = model;
    cache->stream = stream;
    for (int greedy = 0; greedy < 2; greedy++) {
        cache->graph[greedy] = xcalloc(model->limits.max_rows + 1, sizeof(struct kernel_graph *));
    }
    return cache;
}

void graph_cache_destroy(struct graph_cache *cache) {
    if (cache == NULL) {
        return;
    }
    for (int greedy = 0; greedy < 2; greedy++) {
        for (uint32_t n = 0; n <= cache->model->limits.max_rows; n++) {
            if (cache->graph[greedy][n] != NULL) {
                cache->model->kernels->graph_destroy(cache->graph[greedy][n]);
            }
        }
        free(cache->graph[greedy]);
    }
    free(cache);
}

/* Batch sizes that graphs are made for: powers of two up to 8, multiples of 8 up to 64, of 16 up to 128, of 32 beyond,
 * and the largest there can be. Each costs time at the start; what padding costs a step is little, for products of many
 * rows are made in tiles of 64 and more. */
static uint32_t padded_rows(uint32_t n_rows, uint32_t max_rows) {
    uint32_t unit = n_rows <= 64 ? 8 : n_rows <= 128 ? 16 : 32;
    uint32_t padded = (n_rows + unit - 1) / unit * unit;
    for (uint32_t small = 1; small < 8; small *= 2) {
        if (n_rows <= small) {
            return small < max_rows ? small : max_rows;
        }
    }
    return padded < max_rows ? padded : max_rows;
}

uint32_t graph_cache_count(uint32_t max_rows) {
    uint32_t most = max_rows < WARM_ROWS_MAX ? max_rows : WARM_ROWS_MAX;
    uint32_t count = 0;
    for (uint32_t n = 1; n <= most; n++) {
        count += padded_rows(n, max_rows) == n;
    }
    return 2 * count;
}

static struct step_batch batch_of(const struct graph_cache *cache, uint32_t n_rows, bool greedy) {
    return (struct step_batch){
        .rows = cache->model->buffers.rows,
        .n_rows = n_rows,
        .n_tokens = n_rows,
        .n_sampled = n_rows,
        .max_kv_len = cache->model->limits.max_len,
        .greedy = greedy,
    };
}

static enum status record(struct graph_cache *cache, uint32_t n_rows, bool greedy) {
    const struct kernel_ops *kernels = cache->model->kernels;
    struct step_batch batch = batch_of(cache, n_rows, greedy);
    TRY(kernels->graph_begin(cache->stream));
    enum status status = forward_enqueue(cache->model, cache->stream, &batch);
    enum status ended = kernels->graph_end(cache->stream, &cache->graph[greedy][n_rows]);
    return status != STATUS_OK ? status : ended;
}

/* Puts the rows where graphs find them, padding behind them. */
static enum status put_rows(struct graph_cache *cache, struct step_row *rows, uint32_t n_rows, uint32_t padded) {
    for (uint32_t i = n_rows; i < padded; i++) {
        rows[i] = (struct step_row){.slot = cache->model->slots.n_slots - 1, .q_len = 1, .flags = STEP_ROW_SAMPLE};
    }
    return cache->model->kernels->copy(cache->stream, cache->model->buffers.rows, rows, padded * sizeof rows[0],
                                       KERNEL_COPY_TO_DEVICE);
}

static uint32_t warm_rows(const struct graph_cache *cache) {
    uint32_t max_rows = cache->model->limits.max_rows;
    return max_rows < WARM_ROWS_MAX ? max_rows : WARM_ROWS_MAX;
}

/* Through the first layers alone: the others run the same code. */
static enum status run_padding(struct graph_cache *cache, uint32_t n_rows, bool greedy) {
    struct step_batch batch = batch_of(cache, n_rows, greedy);
    struct model shallow = *cache->model;
    shallow.config.n_layers = shallow.config.n_layers < WARM_LAYERS ? shallow.config.n_layers : WARM_LAYERS;
    TRY(forward_enqueue(&shallow, cache->stream, &batch));
    return cache->model->kernels->stream_sync(cache->stream);
}

enum status graph_cache_warm_up(struct graph_cache *cache, struct step_row *rows) {
    uint32_t most = warm_rows(cache);
    TRY(put_rows(cache, rows, 0, most));
    for (uint32_t n = 1; n <= most; n++) {
        if (padded_rows(n, cache->model->limits.max_rows) == n) {
            TRY(run_padding(cache, n, true));
        }
    }
    /* Up to the head both ways are one, and the sampler's code does not depend on the rows. */
    TRY(run_padding(cache, 1, false));
    TRY(run_padding(cache, most, false));
    return cache->model->comm_ops->check(cache->model->comm);
}

enum status graph_cache_record(struct graph_cache *cache) {
    for (uint32_t n = 1; n <= warm_rows(cache); n++) {
        for (int greedy = 0; greedy < 2 && padded_rows(n, cache->model->limits.max_rows) == n; greedy++) {
            TRY(record(cache, n, greedy));
        }
    }
    return STATUS_OK;
}

enum status graph_cache_launch(struct graph_cache *cache, struct step_row *rows, uint32_t n_rows, bool greedy) {
    uint32_t padded = padded_rows(n_rows, cache->model->limits.max_rows);
    TRY(put_rows(cache, rows, n_rows, padded));
    if (cache->graph[greedy][padded] == NULL) {
        TRY(record(cache, padded, greedy));
    }
    return cache->model->kernels->graph_launch(cache->graph[greedy][padded], cache->stream);
}
