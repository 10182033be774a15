/* Counters and histograms of the front-end, and the text that /metrics answers with (Prometheus exposition format
 * 0.0.4). Names that begin with "vllm:" mean what vLLM means by them. */
#ifndef TANDEM_SERVER_METRICS_H
#define TANDEM_SERVER_METRICS_H

#include <stdint.h>

#include "runtime/base/buf.h"

struct server;

#define METRICS_MAX_BUCKETS 24

struct histogram {
    const double *bounds; /* ascending */
    uint32_t n_bounds;
    uint64_t counts[METRICS_MAX_BUCKETS + 1]; /* not cumulative; the last one is above all bounds */
    double sum;
    uint64_t count;
};

void histogram_observe(struct histogram *histogram, double value);

enum metrics_reason { REJECTED_BUSY, REJECTED_UNAVAILABLE, REJECTED_INVALID, REJECTED_REASONS };

struct metrics {
    struct histogram time_to_first_token, inter_token, per_output_token, e2e, prompt_tokens, generation_tokens,
        max_tokens, n;
    uint64_t success_stop, success_length;
    uint64_t failed; /* calls that ended in an error after they were admitted */
    uint64_t rejected[REJECTED_REASONS];
    uint64_t disconnected; /* clients that went away before their answer was whole */
    uint64_t stalled_clients;
    uint64_t connections; /* accepted so far */
};

void metrics_init(struct metrics *metrics);

/* Appends everything, engines' figures included. */
void metrics_write(struct server *server, struct buf *out);

#endif
