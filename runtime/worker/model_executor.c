/* The executor that computes: one rank's device, stream, communicator and model. */
#include "runtime/worker/model_executor.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/model/forward.h"
#include "runtime/worker/graph_cache.h"
#include "runtime/worker/slot_mirror.h"
#include "runtime/worker/worker_plan.h"

#define COMM_TIMEOUT_NS (60 * NS_PER_S)
#define LOAD_THREADS_MAX 16 /* of one rank: more bring a card's bus nothing */

/* Host memory of a step in flight; pinned, for copies that overlap. */
struct flight {
    void *body;
    struct step_row *rows; /* of a graph, padding included */
    struct step_result *results;
    struct kernel_event *event;
    uint64_t step_id;
    uint64_t start_ns;
    uint32_t n_results;
};

struct executor {
    struct worker_init init;
    const struct kernel_ops *kernels;
    struct kernel_device *device;
    struct kernel_stream *stream;
    const struct comm_ops *comm_ops;
    struct comm *comm;
    struct plan plan;
    struct model *model;
    struct graph_cache *graphs; /* NULL: every step is enqueued op by op */
    struct slot_mirror *mirror;
    struct flight flights[EXECUTOR_DEPTH];
    uint64_t started;  /* touched by the thread that steps */
    uint64_t finished; /* by the thread that waits, like the next */
    uint64_t last_end_ns;
    struct worker_times times;
    size_t free_bytes; /* of the device, before this executor took of it */
    uint64_t loaded_bytes;
};

/* Says how a part of the plan came out. The card's count is the whole card's, so other programs show in it. */
static void compare(const struct executor *executor, const char *part, size_t planned, size_t *free_bytes) {
    size_t now = 0;
    size_t total = 0;
    if (strcmp(executor->init.backend, "cuda") == 0 &&
        executor->kernels->memory_info(executor->device, &now, &total) == STATUS_OK) {
        log_debug("memory of the card: %s planned %zu MiB, took %lld MiB", part, planned >> 20,
                  ((long long)*free_bytes - (long long)now) / (1 << 20));
        *free_bytes = now;
    }
}

/* ---- what a thread of its own makes while the rest is made */

struct aside {
    enum status (*run)(void *argument);
    void *argument;
    pthread_t thread;
    enum status status; /* valid once the thread has ended */
    char text[512];
};

static void *aside_thread(void *argument) {
    struct aside *aside = argument;
    aside->status = aside->run(aside->argument);
    snprintf(aside->text, sizeof aside->text, "%s", aside->status != STATUS_OK ? status_text() : "");
    return NULL;
}

static enum status begin_aside(struct aside *aside) {
    if (pthread_create(&aside->thread, NULL, aside_thread, aside) != 0) {
        FAIL(STATUS_IO, "cannot start a thread beside the weights and the communicator; raise the limit of processes");
    }
    return STATUS_OK;
}

/* Waits for it; when the rest was made with `status`, that failure is told before its own. */
static enum status end_aside(struct aside *aside, enum status status) {
    pthread_join(aside->thread, NULL);
    if (status == STATUS_OK && aside->status != STATUS_OK) {
        FAIL(aside->status, "%s", aside->text);
    }
    return status;
}

/* ---- weights */

struct loading {
    struct executor *executor;
    const struct executor_config *config;
    struct model_options options;
    struct aside aside;
    atomic_bool cancelled;
};

static uint32_t milliseconds_since(uint64_t start_ns) {
    return (uint32_t)((clock_now_ns() - start_ns) / NS_PER_MS);
}

static void note_progress(void *context, uint64_t done, uint64_t total) {
    struct loading *loading = context;
    loading->executor->loaded_bytes = done;
    if (loading->config->progress != NULL) {
        loading->config->progress(loading->config->context, done, total);
    }
}

static enum status load_weights(void *argument) {
    struct loading *loading = argument;
    const struct worker_init *init = loading->config->init;
    uint64_t start_ns = clock_now_ns();
    struct checkpoint *checkpoint = NULL;
    if (!init->load_dummy) {
        TRY(checkpoint_open(init->model_dir, &checkpoint));
    }
    loading->options.checkpoint = checkpoint;
    enum status status = model_load(loading->executor->model, &loading->options);
    checkpoint_close(checkpoint);
    loading->executor->times.load_ms = milliseconds_since(start_ns);
    return status;
}

static uint32_t load_threads(const struct worker_init *init) {
    return init->threads < 1 ? 1 : init->threads > LOAD_THREADS_MAX ? LOAD_THREADS_MAX : init->threads;
}

/* Makes the model and begins to load it. */
static enum status begin_loading(struct loading *loading, const struct plan_input *input) {
    struct executor *executor = loading->executor;
    const struct worker_init *init = loading->config->init;
    loading->options = (struct model_options){
        .input = input,
        .plan = &executor->plan,
        .rank = init->rank,
        .n_valid_ids = init->n_valid_ids,
        .load_threads = load_threads(init),
        .cancelled = &loading->cancelled,
        .progress = note_progress,
        .context = loading,
    };
    uint64_t start_ns = clock_now_ns();
    TRY(model_open(&loading->options, &executor->model));
    executor->times.memory_ms = milliseconds_since(start_ns);
    loading->aside = (struct aside){.run = load_weights, .argument = loading};
    return begin_aside(&loading->aside);
}

/* Without the rest, made with `status`, nobody wants the weights. */
static enum status end_loading(struct loading *loading, enum status status) {
    if (status != STATUS_OK) {
        atomic_store(&loading->cancelled, true);
    }
    return end_aside(&loading->aside, status);
}

/* ---- open and close */

static enum status choose_comm(const struct worker_init *init, const struct comm_ops **ops) {
    if (init->deterministic && strcmp(init->backend, "cuda") == 0 && init->world > 2) {
        FAIL(STATUS_UNSUPPORTED, "deterministic: sums over %u cards are in no fixed order; set tp to 1 or 2",
             init->world);
    }
    *ops = comm_find(comm_name_for(init->backend, init->world, init->deterministic));
    return STATUS_OK;
}

static enum status open_comm(struct executor *executor, const struct executor_config *config,
                             const struct plan_input *input) {
    const struct worker_init *init = config->init;
    uint64_t start_ns = clock_now_ns();
    TRY(choose_comm(init, &executor->comm_ops));
    struct comm_config comm = {
        .rank = init->rank,
        .world = init->world,
        .kernels = executor->kernels,
        .device = executor->device,
        .max_bytes = executor->plan.comm_max_bytes,
        .row_elements = input->config->hidden_size,
        .row_dtype = batch_delta_dtype(executor->kernels->activation_dtype(input->dtype)),
        .memory_fd = config->comm_fd,
        .spin = init->spin != 0,
        .timeout_ns = COMM_TIMEOUT_NS,
    };
    TRY(executor->comm_ops->open(&comm, &executor->comm));
    executor->model->comm_ops = executor->comm_ops;
    executor->model->comm = executor->comm;
    executor->times.comm_ms = milliseconds_since(start_ns);
    return STATUS_OK;
}

static enum status open_flights(struct executor *executor) {
    const struct kernel_ops *kernels = executor->kernels;
    size_t rows = executor->init.limits.max_rows;
    for (int i = 0; i < EXECUTOR_DEPTH; i++) {
        struct flight *flight = &executor->flights[i];
        void *memory[3] = {NULL};
        size_t bytes[3] = {executor->init.max_body_bytes, rows * sizeof(struct step_row),
                           rows * sizeof(struct step_result)};
        enum status status = STATUS_OK;
        for (int j = 0; j < 3 && status == STATUS_OK; j++) {
            status = kernels->host_alloc(executor->device, bytes[j], &memory[j]);
        }
        flight->body = memory[0];
        flight->rows = memory[1];
        flight->results = memory[2];
        TRY(status);
        TRY(kernels->event_create(executor->device, &flight->event));
    }
    return STATUS_OK;
}

/* The padding slot draws greedily; all else of it stays zero. */
static enum status fill_padding_slot(struct executor *executor) {
    struct step_init init = {.slot = executor->init.limits.n_slots};
    init.sampling.top_p = 1.0f;
    init.sampling.repetition_penalty = 1.0f;
    init.sampling.n_logprobs = -1;
    const struct kernel_ops *kernels = executor->kernels;
    TRY(kernels->copy(executor->stream, executor->model->body, &init, sizeof init, KERNEL_COPY_TO_DEVICE));
    struct op_slot_update args = {.slots = executor->model->slots, .inits = executor->model->body, .n_inits = 1};
    TRY(kernels->slot_update(executor->stream, &args));
    return kernels->stream_sync(executor->stream);
}

static enum status open_device(struct executor *executor) {
    const struct worker_init *init = &executor->init;
    uint64_t start_ns = clock_now_ns();
    size_t total_bytes;
    executor->kernels = kernels_find_for(init->backend, init->device);
    if (executor->kernels == NULL) {
        return STATUS_UNSUPPORTED;
    }
    struct kernel_device_config device = {.ordinal = init->device,
                                          .threads = init->threads,
                                          .first_cpu = init->first_cpu,
                                          .spin = init->spin != 0,
                                          .deterministic = init->deterministic != 0};
    TRY(executor->kernels->open(&device, &executor->device));
    TRY(executor->kernels->memory_info(executor->device, &executor->free_bytes, &total_bytes));
    executor->times.device_ms = milliseconds_since(start_ns);
    return STATUS_OK;
}

static enum status make_plan(struct executor *executor, const struct model_config *model_config,
                             struct plan_input *input) {
    const struct worker_init *init = &executor->init;
    if (model_config->vocab_size != init->limits.vocab_size || init->n_valid_ids < 1 ||
        init->n_valid_ids > model_config->vocab_size) {
        FAIL(STATUS_INTERNAL, "vocab_size is %u and n_valid_ids %u, config.json says %u", init->limits.vocab_size,
             init->n_valid_ids, model_config->vocab_size);
    }
    worker_plan_input(init, model_config, executor->kernels, executor->device, input);
    TRY(plan_make(input, &executor->plan));
    if (executor->plan.n_blocks != init->limits.n_blocks || executor->plan.comm_max_bytes != init->comm_max_bytes) {
        FAIL(STATUS_INTERNAL, "the plan says %u blocks and %zu bytes per collective, INIT %u and %llu",
             executor->plan.n_blocks, executor->plan.comm_max_bytes, init->limits.n_blocks,
             (unsigned long long)init->comm_max_bytes);
    }
    return STATUS_OK;
}

static enum status warm_up(struct executor *executor) {
    uint64_t start_ns = clock_now_ns();
    executor->graphs = graph_cache_create(executor->model, executor->stream);
    TRY(graph_cache_warm_up(executor->graphs, executor->flights[0].rows));
    executor->times.graphs_ms = milliseconds_since(start_ns);
    return STATUS_OK;
}

/* What a rank makes for itself. */
static enum status open_own(void *argument) {
    struct executor *executor = argument;
    TRY(executor->kernels->stream_create(executor->device, &executor->stream));
    TRY(open_flights(executor));
    return fill_padding_slot(executor);
}

/* All that needs no weights. The kernels' libraries come in while the ranks connect. */
static enum status open_rest(struct executor *executor, const struct executor_config *config,
                             const struct plan_input *input) {
    const struct plan_rank *planned = &executor->plan.rank[executor->init.rank];
    size_t free_bytes = executor->free_bytes;
    struct aside own = {.run = open_own, .argument = executor};
    compare(executor, "weights, KV and buffers",
            planned->weight_bytes + planned->kv_bytes + planned->activation_bytes + planned->slot_bytes, &free_bytes);
    TRY(begin_aside(&own));
    TRY(end_aside(&own, open_comm(executor, config, input)));
    compare(executor, "libraries and communicator", planned->backend_bytes + planned->comm_bytes, &free_bytes);
    TRY(config->graphs ? warm_up(executor) : STATUS_OK);
    compare(executor, "first steps", 0, &free_bytes);
    return STATUS_OK;
}

static enum status record_graphs(struct executor *executor) {
    uint64_t start_ns = clock_now_ns();
    size_t free_bytes = 0;
    size_t total_bytes;
    TRY(executor->kernels->memory_info(executor->device, &free_bytes, &total_bytes));
    TRY(graph_cache_record(executor->graphs));
    compare(executor, "graphs", executor->plan.rank[executor->init.rank].graph_bytes, &free_bytes);
    executor->times.graphs_ms += milliseconds_since(start_ns);
    return STATUS_OK;
}

static enum status open_parts(struct executor *executor, const struct executor_config *config) {
    struct model_config model_config;
    struct plan_input input;
    struct loading loading = {.executor = executor, .config = config};
    TRY(model_config_load(config->init->model_dir, &model_config));
    TRY(open_device(executor));
    TRY(make_plan(executor, &model_config, &input));
    TRY(begin_loading(&loading, &input));
    TRY(end_loading(&loading, open_rest(executor, config, &input)));
    return config->graphs ? record_graphs(executor) : STATUS_OK;
}

static void close_flights(struct executor *executor) {
    for (int i = 0; i < EXECUTOR_DEPTH; i++) {
        struct flight *flight = &executor->flights[i];
        void *memory[] = {flight->body, flight->rows, flight->results};
        for (int j = 0; j < 3; j++) {
            if (memory[j] != NULL) {
                executor->kernels->host_free(executor->device, memory[j]);
            }
        }
        if (flight->event != NULL) {
            executor->kernels->event_destroy(flight->event);
        }
    }
}

static void model_executor_close(struct executor *executor) {
    if (executor == NULL) {
        return;
    }
    if (executor->stream != NULL) {
        executor->kernels->stream_destroy(executor->stream);
    }
    graph_cache_destroy(executor->graphs);
    close_flights(executor);
    model_close(executor->model);
    if (executor->comm != NULL) {
        executor->comm_ops->close(executor->comm);
    }
    if (executor->device != NULL) {
        executor->kernels->close(executor->device);
    }
    slot_mirror_destroy(executor->mirror);
    free(executor);
}

static enum status model_executor_open(const struct executor_config *config, struct executor **out) {
    struct executor *executor = xcalloc(1, sizeof *executor);
    executor->init = *config->init;
    executor->mirror = slot_mirror_create(&config->init->limits);
    enum status status = open_parts(executor, config);
    if (status != STATUS_OK) {
        model_executor_close(executor);
        return status;
    }
    *out = executor;
    return STATUS_OK;
}

/* What the card itself says; on the processor it would be the whole host's. */
static void describe_card(const struct executor *executor, struct worker_ready *ready) {
    struct kernel_card card;
    if (kernels_card(executor->init.device, &card) == STATUS_OK) {
        snprintf(ready->device_name, sizeof ready->device_name, "%s", card.name);
        ready->free_bytes = card.free_bytes;
        ready->total_bytes = card.total_bytes;
        ready->taken_bytes = executor->free_bytes > card.free_bytes ? executor->free_bytes - card.free_bytes : 0;
    }
}

static void model_executor_describe(const struct executor *executor, struct worker_ready *ready) {
    const struct plan_rank *used = &executor->plan.rank[executor->init.rank];
    ready->weight_bytes = used->weight_bytes;
    ready->kv_bytes = used->kv_bytes;
    ready->other_bytes = used->total_bytes - used->weight_bytes - used->kv_bytes;
    ready->loaded_bytes = executor->loaded_bytes;
    ready->times = executor->times;
    snprintf(ready->device_name, sizeof ready->device_name, "%s", executor->kernels->name);
    if (strcmp(executor->kernels->name, "cuda") == 0) {
        describe_card(executor, ready);
    }
    struct comm_report report = {.serves = executor->comm_ops->name};
    if (executor->comm_ops->report != NULL) {
        executor->comm_ops->report(executor->comm, &report);
    }
    snprintf(ready->comm_name, sizeof ready->comm_name, "%s", report.serves);
    ready->comm_own_bytes = report.own_bytes;
    ready->comm_row_us = report.row_us;
}

/* ---- steps */

/* Where an array of the host's body lies in the device's. */
static const void *on_device(const struct executor *executor, const struct flight *flight, const void *array) {
    return (const char *)executor->model->body + ((const char *)array - (const char *)flight->body);
}

static enum status enqueue_writes(struct executor *executor, const struct flight *flight,
                                  const struct step_view *view) {
    const struct step_header *header = view->header;
    TRY(executor->kernels->copy(executor->stream, executor->model->body, flight->body, header->bytes,
                                KERNEL_COPY_TO_DEVICE));
    if (header->n_inits == 0 && header->n_runs == 0 && header->n_blocks == 0) {
        return STATUS_OK;
    }
    struct op_slot_update args = {
        .slots = executor->model->slots,
        .inits = on_device(executor, flight, view->inits),
        .runs = on_device(executor, flight, view->runs),
        .ids = on_device(executor, flight, view->ids),
        .blocks = on_device(executor, flight, view->blocks),
        .bias = on_device(executor, flight, view->bias),
        .n_inits = header->n_inits,
        .n_runs = header->n_runs,
        .n_ids = header->n_runs > 0 ? header->n_ids : 0,
        .n_blocks = header->n_blocks,
        .n_bias = header->n_bias,
    };
    return executor->kernels->slot_update(executor->stream, &args);
}

static enum status enqueue_rows(struct executor *executor, struct flight *flight, const struct step_view *view) {
    const struct step_header *header = view->header;
    if (header->n_rows == 0) {
        return STATUS_OK;
    }
    if (executor->graphs != NULL && header->n_tokens == header->n_rows && header->n_sampled == header->n_rows) {
        memcpy(flight->rows, view->rows, header->n_rows * sizeof flight->rows[0]);
        return graph_cache_launch(executor->graphs, flight->rows, header->n_rows, slot_mirror_greedy(executor->mirror));
    }
    struct step_batch batch = {
        .rows = on_device(executor, flight, view->rows),
        .host_rows = view->rows,
        .n_rows = header->n_rows,
        .n_tokens = header->n_tokens,
        .n_sampled = header->n_sampled,
        .max_kv_len = slot_mirror_max_kv_len(executor->mirror),
        .greedy = slot_mirror_greedy(executor->mirror),
    };
    return forward_enqueue(executor->model, executor->stream, &batch);
}

static enum status model_executor_step(struct executor *executor, const void *body, size_t bytes, uint32_t epoch,
                                       uint64_t step_id) {
    struct flight *flight = &executor->flights[executor->started % EXECUTOR_DEPTH];
    struct step_view view;
    TRY(executor_take_body(&executor->init, body, bytes, epoch, step_id, flight->body, &view));
    TRY(slot_mirror_apply(executor->mirror, &view));
    flight->step_id = step_id;
    flight->n_results = view.header->n_sampled;
    flight->start_ns = clock_now_ns();
    TRY(enqueue_writes(executor, flight, &view));
    TRY(enqueue_rows(executor, flight, &view));
    if (flight->n_results > 0) {
        TRY(executor->kernels->copy(executor->stream, flight->results, executor->model->buffers.results,
                                    flight->n_results * sizeof flight->results[0], KERNEL_COPY_TO_HOST));
    }
    TRY(executor->kernels->event_record(flight->event, executor->stream));
    executor->started++;
    return STATUS_OK;
}

static enum status model_executor_wait(struct executor *executor, struct executor_done *done) {
    struct flight *flight = &executor->flights[executor->finished++ % EXECUTOR_DEPTH];
    TRY(executor->kernels->event_sync(flight->event));
    TRY(executor->comm_ops->check(executor->comm));
    /* The device works on one step at a time: a step begins when it was enqueued or when the one before it ended. */
    uint64_t end_ns = clock_now_ns();
    uint64_t start_ns = flight->start_ns > executor->last_end_ns ? flight->start_ns : executor->last_end_ns;
    executor->last_end_ns = end_ns;
    *done = (struct executor_done){.step_id = flight->step_id,
                                   .device_us = (uint32_t)((end_ns - start_ns) / 1000),
                                   .n_results = flight->n_results,
                                   .results = flight->results};
    return STATUS_OK;
}

static void model_executor_reset(struct executor *executor) {
    slot_mirror_reset(executor->mirror);
}

static void model_executor_abort(struct executor *executor) {
    executor->comm_ops->abort(executor->comm);
}

struct model *model_executor_model(struct executor *executor) {
    return executor->model;
}

const struct executor_ops model_executor_ops = {
    .name = "model",
    .open = model_executor_open,
    .close = model_executor_close,
    .describe = model_executor_describe,
    .step = model_executor_step,
    .wait = model_executor_wait,
    .reset = model_executor_reset,
    .abort = model_executor_abort,
};
