/* Decode steps as recorded graphs: one for each padded batch size and each of the two ways to choose a token. */
#ifndef TANDEM_WORKER_GRAPH_CACHE_H
#define TANDEM_WORKER_GRAPH_CACHE_H

#include <stdbool.h>

#include "runtime/base/step.h"
#include "runtime/model/model.h"

struct graph_cache;

/* Graphs that a warm-up makes. */
uint32_t graph_cache_count(uint32_t max_rows);

/* Nothing is recorded yet; the model and the stream are borrowed. */
struct graph_cache *graph_cache_create(struct model *model, struct kernel_stream *stream);

/* The stream must have passed all launches. NULL is fine. */
void graph_cache_destroy(struct graph_cache *cache);

/* Collective. Does once, while nobody waits, what a first step would stop for: every usual batch size is run with
 * padding rows alone, so that code is loaded, buffers are made, ranks connect. `rows` as below. */
enum status graph_cache_warm_up(struct graph_cache *cache, struct step_row *rows);

/* Records the graphs of those sizes. No other thread may be freeing memory of the device meanwhile: that may wait for
 * the device, which ends a recording. */
enum status graph_cache_record(struct graph_cache *cache);

/* Enqueues the step of `n_rows` decode rows, each of which samples. `rows` is pinned host memory for max_rows of them;
 * padding is added behind them, and they must stay until the stream has passed. */
enum status graph_cache_launch(struct graph_cache *cache, struct step_row *rows, uint32_t n_rows, bool greedy);

#endif
