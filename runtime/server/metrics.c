#include "runtime/server/metrics.h"

#include <stdio.h>

#include "runtime/server/server_internal.h"

/* vLLM's buckets, so that its dashboards and alerts read ours. */
static const double ttft_bounds[] = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
                                     1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560};
static const double itl_bounds[] = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
                                    0.75, 1,     2.5,  5,     7.5, 10,   20,  40,  80};
static const double e2e_bounds[] = {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                    30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680};
static const double token_bounds[] = {1,    2,    5,    10,    20,    50,    100,    200,    500,
                                      1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000};
static const double n_bounds[] = {1, 2, 5, 10, 20};

#define SET_BOUNDS(histogram, array)                                                                                   \
    do {                                                                                                               \
        (histogram)->bounds = (array);                                                                                 \
        (histogram)->n_bounds = sizeof(array) / sizeof((array)[0]);                                                    \
    } while (0)

void metrics_init(struct metrics *metrics) {
    *metrics = (struct metrics){0};
    SET_BOUNDS(&metrics->time_to_first_token, ttft_bounds);
    SET_BOUNDS(&metrics->inter_token, itl_bounds);
    SET_BOUNDS(&metrics->per_output_token, itl_bounds);
    SET_BOUNDS(&metrics->e2e, e2e_bounds);
    SET_BOUNDS(&metrics->prompt_tokens, token_bounds);
    SET_BOUNDS(&metrics->generation_tokens, token_bounds);
    SET_BOUNDS(&metrics->max_tokens, token_bounds);
    SET_BOUNDS(&metrics->n, n_bounds);
}

void histogram_observe(struct histogram *histogram, double value) {
    uint32_t i = 0;
    while (i < histogram->n_bounds && value > histogram->bounds[i]) {
        i++;
    }
    histogram->counts[i]++;
    histogram->sum += value;
    histogram->count++;
}

/* ---- exposition */

struct page {
    struct buf *out;
    struct buf model; /* the label model_name="...", escaped */
    const struct server *server;
};

static void write_label_value(struct buf *out, const char *text) {
    for (; *text != 0; text++) {
        if (*text == '\\' || *text == '"') {
            buf_append(out, "\\", 1);
        }
        if (*text == '\n') {
            buf_append(out, "\\n", 2);
        } else {
            buf_append(out, text, 1);
        }
    }
}

static void write_family(struct page *page, const char *name, const char *type, const char *help) {
    buf_printf(page->out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* One sample; `labels` is "" or further labels, each with a comma in front. */
static void write_sample(struct page *page, const char *name, const char *labels, double value) {
    buf_printf(page->out, "%s{%s%s} %.17g\n", name, buf_cstr(&page->model), labels, value);
}

static void write_single(struct page *page, const char *name, const char *type, const char *help, double value) {
    write_family(page, name, type, help);
    write_sample(page, name, "", value);
}

static void write_histogram(struct page *page, const char *name, const char *help, const struct histogram *histogram) {
    write_family(page, name, "histogram", help);
    char series[128];
    char label[64];
    uint64_t total = 0;
    snprintf(series, sizeof series, "%s_bucket", name);
    for (uint32_t i = 0; i < histogram->n_bounds; i++) {
        total += histogram->counts[i];
        snprintf(label, sizeof label, ",le=\"%.15g\"", histogram->bounds[i]);
        write_sample(page, series, label, (double)total);
    }
    write_sample(page, series, ",le=\"+Inf\"", (double)histogram->count);
    snprintf(series, sizeof series, "%s_sum", name);
    write_sample(page, series, "", histogram->sum);
    snprintf(series, sizeof series, "%s_count", name);
    write_sample(page, series, "", (double)histogram->count);
}

/* ---- figures of the engines, one sample for each replica */

struct engine_figures {
    const struct replica *replica;
    struct engine_stats stats;
    size_t journal_used, journal_total;
};

struct engine_family {
    const char *name, *type, *help;
    double (*value)(const struct engine_figures *figures);
};

#define FIGURE(function, expression)                                                                                   \
    static double function(const struct engine_figures *f) {                                                           \
        return (double)(expression);                                                                                   \
    }
FIGURE(running, f->stats.running)
FIGURE(waiting, f->stats.waiting)
FIGURE(cache_usage, f->stats.blocks_total > 0 ? (double)f->stats.blocks_used / f->stats.blocks_total : 0)
FIGURE(prefix_queries, f->stats.prefix_queries)
FIGURE(prefix_hits, f->stats.prefix_hits)
FIGURE(preemptions, f->stats.preemptions)
FIGURE(prompt_tokens, f->stats.prompt_tokens)
FIGURE(generation_tokens, f->stats.generation_tokens)
FIGURE(steps, f->stats.steps)
FIGURE(replays, f->stats.replays)
FIGURE(plan_seconds, (double)f->stats.plan_ns / 1e9)
FIGURE(apply_seconds, (double)f->stats.apply_ns / 1e9)
FIGURE(group_up, f->replica->up)
FIGURE(group_losses, f->replica->downs)
FIGURE(comm_own_bytes, f->replica->ready.comm_own_bytes)
FIGURE(comm_row_seconds, (double)f->replica->ready.comm_row_us / 1e6)
FIGURE(journal_used, f->journal_used)
FIGURE(journal_size, f->journal_total)

static const struct engine_family engine_families[] = {
    {"vllm:num_requests_running", "gauge", "Sequences in the running batch.", running},
    {"vllm:num_requests_waiting", "gauge", "Sequences that wait for their first step.", waiting},
    {"vllm:kv_cache_usage_perc", "gauge", "Share of the KV blocks held by sequences, 0 to 1.", cache_usage},
    {"vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache.", prefix_queries},
    {"vllm:prefix_cache_hits_total", "counter", "Prompt tokens found in the prefix cache.", prefix_hits},
    {"vllm:num_preemptions_total", "counter", "Sequences preempted for lack of KV blocks.", preemptions},
    {"vllm:prompt_tokens_total", "counter", "Prompt tokens processed.", prompt_tokens},
    {"vllm:generation_tokens_total", "counter", "Tokens generated.", generation_tokens},
    {"tandem_engine_steps_total", "counter", "Steps done by the workers.", steps},
    {"tandem_sequence_replays_total", "counter", "Sequences replayed after a group was lost.", replays},
    {"tandem_engine_plan_seconds", "gauge", "CPU time of the last step's planning.", plan_seconds},
    {"tandem_engine_apply_seconds", "gauge", "CPU time of applying the last step's results.", apply_seconds},
    {"tandem_group_up", "gauge", "Whether the workers of the replica are serving.", group_up},
    {"tandem_group_losses_total", "counter", "Times the workers of the replica were lost.", group_losses},
    {"tandem_collectives_own_max_bytes", "gauge", "Largest sum over ranks by own kernels, proven at start; 0: none.",
     comm_own_bytes},
    {"tandem_collectives_row_seconds", "gauge", "Sum, add and norm of one row as measured at start; 0: not measured.",
     comm_row_seconds},
    {"tandem_journal_used_bytes", "gauge", "Journal pool in use.", journal_used},
    {"tandem_journal_size_bytes", "gauge", "Journal pool in all.", journal_size},
};

static void write_engines(struct page *page) {
    const struct server *server = page->server;
    struct engine_figures figures[SERVER_MAX_REPLICAS];
    for (uint32_t i = 0; i < server->n_replicas; i++) {
        figures[i].replica = &server->replicas[i];
        engine_thread_stats(server->replicas[i].thread, &figures[i].stats);
        journal_usage(server->replicas[i].journal, &figures[i].journal_used, &figures[i].journal_total);
    }
    char label[32];
    for (size_t f = 0; f < sizeof engine_families / sizeof engine_families[0]; f++) {
        const struct engine_family *family = &engine_families[f];
        write_family(page, family->name, family->type, family->help);
        for (uint32_t i = 0; i < server->n_replicas; i++) {
            snprintf(label, sizeof label, ",engine=\"%u\"", i);
            write_sample(page, family->name, label, family->value(&figures[i]));
        }
    }
    write_family(page, "tandem_collectives_info", "gauge", "What serves decode-sized sums over the ranks.");
    for (uint32_t i = 0; i < server->n_replicas; i++) {
        char serves[64];
        snprintf(serves, sizeof serves, ",engine=\"%u\",serves=\"%s\"", i, server->replicas[i].ready.comm_name);
        write_sample(page, "tandem_collectives_info", serves, 1);
    }
    char config[160];
    const struct step_limits *limits = &server->init.limits;
    write_family(page, "vllm:cache_config_info", "gauge", "Size of the KV cache.");
    snprintf(config, sizeof config, ",block_size=\"%u\",num_gpu_blocks=\"%u\",enable_prefix_caching=\"%s\"",
             limits->block_size, limits->n_blocks, server->init.prefix_cache != 0 ? "True" : "False");
    write_sample(page, "vllm:cache_config_info", config, 1);
}

static void write_frontend(struct page *page) {
    const struct metrics *metrics = &page->server->metrics;
    write_family(page, "vllm:request_success_total", "counter", "Answers finished, by reason.");
    write_sample(page, "vllm:request_success_total", ",finished_reason=\"stop\"", (double)metrics->success_stop);
    write_sample(page, "vllm:request_success_total", ",finished_reason=\"length\"", (double)metrics->success_length);
    write_family(page, "tandem_requests_rejected_total", "counter", "Requests answered with an error at once.");
    static const char *const reasons[] = {",reason=\"busy\"", ",reason=\"unavailable\"", ",reason=\"invalid\""};
    for (int i = 0; i < REJECTED_REASONS; i++) {
        write_sample(page, "tandem_requests_rejected_total", reasons[i], (double)metrics->rejected[i]);
    }
    write_single(page, "tandem_streams_failed_total", "counter", "Answers that failed after they were taken up.",
                 (double)metrics->failed);
    write_single(page, "tandem_client_disconnects_total", "counter", "Clients gone before their answer was whole.",
                 (double)metrics->disconnected);
    write_single(page, "tandem_client_stalls_total", "counter", "Connections closed because the client took no bytes.",
                 (double)metrics->stalled_clients);
    write_single(page, "tandem_connections_total", "counter", "Connections accepted.", (double)metrics->connections);
    write_single(page, "tandem_connections", "gauge", "Connections open now.", page->server->n_connections);
    write_single(page, "tandem_calls", "gauge", "Requests being answered now.", page->server->n_calls);
}

static void write_tsp(struct page *page) {
    const struct server *server = page->server;
    const struct tsp_metrics *metrics = &server->tsp.metrics;
    write_single(page, "tandem_tcp_connections_total", "counter", "Connections of the stream protocol accepted.",
                 (double)metrics->connections);
    write_single(page, "tandem_tcp_connections", "gauge", "Connections of the stream protocol open now.",
                 server->tsp.n_connections);
    write_single(page, "tandem_tcp_streams", "gauge", "Streams on them, up to their acknowledgement.",
                 tsp_streams(server));
    write_single(page, "tandem_tcp_requests", "gauge", "Requests that are known: running, or kept for their clients.",
                 server->tsp.n_requests);
    write_single(page, "tandem_tcp_forgotten_requests", "gauge", "Ids that are remembered as over.",
                 once_count(server->tsp.once));
    write_single(page, "tandem_tcp_submits_total", "counter", "Requests taken up for the first time.",
                 (double)metrics->submits);
    write_single(page, "tandem_stream_resumes_total", "counter", "Requests taken up again by a client.",
                 (double)metrics->resumes);
    write_single(page, "tandem_tcp_expired_total", "counter", "Requests whose resume window ended.",
                 (double)metrics->expired);
}

void metrics_write(struct server *server, struct buf *out) {
    struct page page = {.out = out, .server = server};
    const struct metrics *metrics = &server->metrics;
    buf_append_text(&page.model, "model_name=\"");
    write_label_value(&page.model, server->context->model);
    buf_append_text(&page.model, "\"");
    write_engines(&page);
    write_frontend(&page);
    write_tsp(&page);
    write_histogram(&page, "vllm:time_to_first_token_seconds", "From the request to its first token.",
                    &metrics->time_to_first_token);
    write_histogram(&page, "vllm:inter_token_latency_seconds", "Between two tokens of an answer.",
                    &metrics->inter_token);
    write_histogram(&page, "vllm:request_time_per_output_token_seconds", "Mean time between the tokens of an answer.",
                    &metrics->per_output_token);
    write_histogram(&page, "vllm:e2e_request_latency_seconds", "From the request to the end of its answer.",
                    &metrics->e2e);
    write_histogram(&page, "vllm:request_prompt_tokens", "Prompt tokens of a request.", &metrics->prompt_tokens);
    write_histogram(&page, "vllm:request_generation_tokens", "Tokens of an answer.", &metrics->generation_tokens);
    write_histogram(&page, "vllm:request_params_max_tokens", "max_tokens of a request.", &metrics->max_tokens);
    write_histogram(&page, "vllm:request_params_n", "n of a request.", &metrics->n);
    buf_free(&page.model);
}
