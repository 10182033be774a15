/* Milliseconds per decode step of a whole model, by ranks, batch and context, and where they go.
 *
 *   bench_decode --model DIR [--backend cuda] [--tp 1,2] [--batch 1,16,64] [--context 1024] ...
 *
 * Ranks are forked processes with the real communicator, model and executor. Columns of a shape: the floor, that is the
 * bytes a step must read (the rank's matrices, and the KV cache as long as it is) over the read bandwidth measured in
 * the same run; "graph", the recorded step launched back to back: the card is never idle; "executor", steps put in as
 * the worker puts them in, one ahead: what it takes beyond "graph" is the card's idle time and the copies in and out;
 * "worker", with --workers, the same through real worker processes behind the engine's port.
 *
 * Below stand the kinds of op of the step, each played back alone, in a graph: its own floor, and how far it is from
 * it. What they sum up to beyond "graph" is overlap between kernels, what is missing is what one op costs the next. */
#define _GNU_SOURCE
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "benchmarks/support_card.h"
#include "benchmarks/support_group.h"
#include "benchmarks/support_options.h"
#include "benchmarks/support_tape.h"
#include "launcher/child_call.h"
#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/model/forward.h"
#include "runtime/worker/model_executor.h"

#define MAX_TOKENS 256u
#define MAX_SHAPES 32
#define MAX_KINDS 32
#define MIN_OPS 64u /* in a graph of one kind: the launch must not show */
#define PLAYS 10u
#define SPARE_STEPS 8u /* before and between what is measured */
#define CEILING_TIMEOUT_S 60u

struct shape {
    uint32_t batch, context;
};

struct kind_result {
    struct tape_kind kind;
    double us; /* of all ops of the kind, per step */
};

struct spread {
    double mean, median, p99; /* us */
};

struct shape_result {
    double stream_bytes; /* matrices and KV that one step reads */
    double graph_us, launch_us;
    struct spread executor, worker;
    uint32_t n_kinds;
    struct kind_result kinds[MAX_KINDS];
};

/* Of one run; the ranks inherit it. */
static struct {
    struct options options;
    struct shape shapes[MAX_SHAPES];
    uint32_t n_shapes;
    uint32_t room; /* positions that a sequence needs beyond its context */
} bench;

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct spread spread_of(double *values, uint32_t n) {
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum += values[i];
    }
    qsort(values, n, sizeof *values, compare_doubles);
    return (struct spread){.mean = sum / n, .median = values[n / 2], .p99 = values[(n - 1) * 99 / 100]};
}

/* ---- steps of a shape */

static struct bench_step start_step(const struct shape *shape, uint32_t row) {
    return (struct bench_step){.first_row = row,
                               .rows = 1,
                               .q_len = 1,
                               .pos = shape->context - 1,
                               .prompt = shape->context,
                               .slot_blocks = bench_blocks(shape->context + bench.room),
                               .fresh = true,
                               .temperature = bench.options.temperature};
}

static struct bench_step decode_step(const struct shape *shape, uint32_t step) {
    return (struct bench_step){.rows = shape->batch,
                               .q_len = 1,
                               .pos = shape->context + step,
                               .slot_blocks = bench_blocks(shape->context + bench.room)};
}

/* ---- through the executor */

static struct spread run_executor(struct rank *rank, const struct shape *shape) {
    double *us = xcalloc(bench.options.steps, sizeof *us);
    rank_reset(rank);
    for (uint32_t row = 0; row < shape->batch; row++) {
        struct bench_step step = start_step(shape, row);
        rank_step(rank, &step);
        rank_wait(rank);
    }
    group_barrier(rank);
    uint64_t last_ns = 0;
    uint32_t in = 0;
    for (uint32_t out = 0; out < bench.options.steps + SPARE_STEPS; out++) {
        for (; in < out + 2 && in < bench.options.steps + SPARE_STEPS; in++) {
            struct bench_step step = decode_step(shape, in);
            rank_step(rank, &step);
        }
        rank_wait(rank);
        uint64_t now_ns = clock_now_ns();
        if (out >= SPARE_STEPS) {
            us[out - SPARE_STEPS] = (double)(now_ns - last_ns) * 1e-3;
        }
        last_ns = now_ns;
    }
    struct spread spread = spread_of(us, bench.options.steps);
    free(us);
    return spread;
}

/* ---- as graphs */

struct device {
    struct rank *rank;
    struct model *model;
    const struct kernel_ops *kernels;
    struct kernel_stream *stream;
};

static void put_rows(const struct device *device, uint32_t n) {
    struct step_row *rows = xcalloc(n, sizeof *rows);
    for (uint32_t i = 0; i < n; i++) {
        rows[i] = (struct step_row){.slot = i, .q_len = 1, .flags = STEP_ROW_SAMPLE};
    }
    must(device->kernels->copy(device->stream, device->model->buffers.rows, rows, n * sizeof *rows,
                               KERNEL_COPY_TO_DEVICE));
    must(device->kernels->stream_sync(device->stream));
    free(rows);
}

/* Mean time of `count` launches back to back, in us; *launch_us is the calling thread's share of one. */
static double time_graph(const struct device *device, struct kernel_graph *graph, uint32_t count, double *launch_us) {
    must(device->kernels->graph_launch(graph, device->stream));
    must(device->kernels->stream_sync(device->stream));
    group_barrier(device->rank);
    uint64_t start_ns = clock_now_ns();
    for (uint32_t i = 0; i < count; i++) {
        must(device->kernels->graph_launch(graph, device->stream));
        if (i == 0 && launch_us != NULL) {
            *launch_us = (double)(clock_now_ns() - start_ns) * 1e-3;
        }
    }
    must(device->kernels->stream_sync(device->stream));
    return (double)(clock_now_ns() - start_ns) * 1e-3 / count;
}

static double time_step(const struct device *device, const struct step_batch *batch, double *launch_us) {
    struct kernel_graph *graph;
    must(device->kernels->graph_begin(device->stream));
    must(forward_enqueue(device->model, device->stream, batch));
    must(device->kernels->graph_end(device->stream, &graph));
    double us = time_graph(device, graph, bench.options.steps, launch_us);
    device->kernels->graph_destroy(graph);
    return us;
}

static double time_kind(const struct device *device, const struct tape *tape, uint32_t kind) {
    uint32_t count = tape_kind(tape, kind)->count;
    uint32_t repeats = (MIN_OPS + count - 1) / count;
    struct kernel_graph *graph;
    must(device->kernels->graph_begin(device->stream));
    for (uint32_t i = 0; i < repeats; i++) {
        must(tape_play(tape, kind));
    }
    must(device->kernels->graph_end(device->stream, &graph));
    double us = time_graph(device, graph, PLAYS, NULL) / repeats;
    device->kernels->graph_destroy(graph);
    return us;
}

static void time_kinds(const struct device *device, const struct step_batch *batch, uint64_t kv_tokens,
                       struct shape_result *result) {
    struct tape *tape;
    must(tape_record(device->model, device->stream, batch, kv_tokens, &tape));
    result->n_kinds = tape_kinds(tape);
    for (uint32_t i = 0; i < result->n_kinds; i++) {
        result->kinds[i].kind = *tape_kind(tape, i);
        bool moot = device->model->shard.world == 1 && result->kinds[i].kind.collective;
        result->kinds[i].us = moot ? 0 : time_kind(device, tape, i);
        result->stream_bytes += result->kinds[i].kind.bytes;
    }
    tape_free(tape);
}

/* The slots stand where run_executor left them. */
static void run_graphs(struct rank *rank, const struct shape *shape, struct shape_result *result) {
    struct model *model = model_executor_model(rank->executor);
    struct device device = {.rank = rank, .model = model, .kernels = model->kernels};
    must(device.kernels->stream_create(model->device, &device.stream));
    put_rows(&device, shape->batch);
    struct step_batch batch = {.rows = model->buffers.rows,
                               .n_rows = shape->batch,
                               .n_tokens = shape->batch,
                               .n_sampled = shape->batch,
                               .max_kv_len = model->limits.max_len,
                               .greedy = bench.options.temperature == 0.0f};
    must(forward_enqueue(model, device.stream, &batch)); /* what a first time costs */
    must(device.kernels->stream_sync(device.stream));
    result->graph_us = time_step(&device, &batch, &result->launch_us);
    uint64_t kv_tokens = (uint64_t)shape->batch * (shape->context + 2 * bench.options.steps);
    time_kinds(&device, &batch, kv_tokens, result);
    device.kernels->stream_destroy(device.stream);
}

static void run_shapes(struct rank *rank) {
    struct shape_result *shared = (struct shape_result *)(void *)rank->shared->result;
    for (uint32_t i = 0; i < bench.n_shapes; i++) {
        struct shape_result result = {.n_kinds = 0};
        result.executor = run_executor(rank, &bench.shapes[i]);
        run_graphs(rank, &bench.shapes[i], &result);
        if (rank->init.rank == 0) {
            shared[i] = result;
        }
    }
}

/* ---- through worker processes */

static void submit(struct worker_port *port, struct step_builder *builder, const struct worker_init *init,
                   const struct bench_step *step, uint64_t *step_id) {
    void *body = port->ops->reserve(port);
    size_t bytes = bench_step_build(builder, init, step, *step_id + 1, body);
    *step_id = port->ops->submit(port, bytes);
}

static void await_step(struct worker_port *port) {
    struct port_event event;
    while (port->ops->poll(port, &event) == STATUS_BUSY) {
        int fds[CONTROL_MAX_WORLD];
        struct pollfd polled[CONTROL_MAX_WORLD];
        uint32_t n = port->ops->descriptors(port, fds);
        for (uint32_t i = 0; i < n; i++) {
            polled[i] = (struct pollfd){.fd = fds[i], .events = POLLIN};
        }
        poll(polled, n, -1);
    }
    CHECK(event.type == PORT_STEP_DONE, "a worker is gone");
}

static struct spread run_port(struct worker_port *port, const struct worker_init *init, const struct shape *shape,
                              uint64_t *step_id) {
    struct step_builder *builder = step_builder_create(&init->limits);
    double *us = xcalloc(bench.options.steps, sizeof *us);
    for (uint32_t row = 0; row < shape->batch; row++) {
        struct bench_step step = start_step(shape, row);
        submit(port, builder, init, &step, step_id);
        await_step(port);
    }
    uint64_t last_ns = 0;
    uint32_t in = 0;
    for (uint32_t out = 0; out < bench.options.steps + SPARE_STEPS; out++) {
        for (; in < out + 2 && in < bench.options.steps + SPARE_STEPS; in++) {
            struct bench_step step = decode_step(shape, in);
            submit(port, builder, init, &step, step_id);
        }
        await_step(port);
        uint64_t now_ns = clock_now_ns();
        if (out >= SPARE_STEPS) {
            us[out - SPARE_STEPS] = (double)(now_ns - last_ns) * 1e-3;
        }
        last_ns = now_ns;
    }
    struct spread spread = spread_of(us, bench.options.steps);
    free(us);
    step_builder_destroy(builder);
    return spread;
}

static void run_workers(const struct group_config *config, struct shape_result *results) {
    struct worker_init init;
    struct plan plan;
    struct workers workers;
    uint64_t step_id = 0;
    group_init(config, &init, &plan);
    workers_start(&init, &workers);
    for (uint32_t i = 0; i < bench.n_shapes; i++) {
        results[i].worker = run_port(workers.port, &init, &bench.shapes[i], &step_id);
    }
    workers_stop(&workers);
}

/* ---- output */

static void print_shape(uint32_t tp, const struct shape *shape, const struct shape_result *result, double rate) {
    double floor_us = result->stream_bytes / rate * 1e6;
    double sum_us = 0;
    double collectives_us = 0;
    printf("\nTP %u, batch %u, context %u: ms a step: floor %.3f, graph %.3f (%.0f %%), executor %.3f (p50 %.3f, p99 "
           "%.3f)",
           tp, shape->batch, shape->context, floor_us * 1e-3, result->graph_us * 1e-3, 100 * floor_us / result->graph_us,
           result->executor.mean * 1e-3, result->executor.median * 1e-3, result->executor.p99 * 1e-3);
    if (result->worker.mean > 0) {
        printf(", worker %.3f (p50 %.3f, p99 %.3f)", result->worker.mean * 1e-3, result->worker.median * 1e-3,
               result->worker.p99 * 1e-3);
    }
    printf("; idle %.0f us; launch %.0f us\n", result->executor.mean - result->graph_us, result->launch_us);
    printf("  %-24s %6s %10s %9s %10s %7s %8s\n", "op", "count", "us/step", "us/op", "floor us", "floor %", "GB/s");
    for (uint32_t i = 0; i < result->n_kinds; i++) {
        const struct kind_result *line = &result->kinds[i];
        sum_us += line->us;
        collectives_us += line->kind.collective ? line->us : 0;
        double own_us = line->kind.bytes / rate * 1e6;
        printf("  %-24s %6u %10.1f %9.2f %10.1f %7.0f %8.0f\n", line->kind.name, line->kind.count, line->us,
               line->us / line->kind.count, own_us, line->us > 0 ? 100 * own_us / line->us : 0,
               line->us > 0 ? line->kind.bytes / line->us * 1e-3 : 0);
    }
    printf("  %-24s %6s %10.1f  (graph %.1f; collectives %.0f %%)\n", "sum", "", sum_us, result->graph_us,
           100 * collectives_us / result->graph_us);
    fflush(stdout);
}

static enum status measure_card(void *argument) {
    return card_measure(0, argument);
}

static struct group_config config_for(uint32_t tp) {
    struct group_config config = {.model_dir = bench.options.model,
                                  .backend = bench.options.backend,
                                  .world = tp,
                                  .dummy = bench.options.random_weights,
                                  .max_tokens = MAX_TOKENS};
    for (uint32_t i = 0; i < bench.n_shapes; i++) {
        const struct shape *shape = &bench.shapes[i];
        uint32_t len = shape->context + bench.room;
        config.max_rows = shape->batch > config.max_rows ? shape->batch : config.max_rows;
        config.max_len = len > config.max_len ? len : config.max_len;
        uint32_t tokens = shape->batch * (len + 16);
        config.kv_tokens = tokens > config.kv_tokens ? tokens : config.kv_tokens;
    }
    return config;
}

int main(int argc, char **argv) {
    bench.options = (struct options){.backend = "cuda",
                                     .tp = {1, {1}},
                                     .batch = {3, {1, 16, 64}},
                                     .context = {1, {1024}},
                                     .steps = 64};
    options_parse(argc, argv, "bench_decode --model DIR [FLAG ...]", &bench.options);
    bench.room = 2 * bench.options.steps + 4 * SPARE_STEPS;
    for (uint32_t c = 0; c < bench.options.context.n; c++) {
        for (uint32_t b = 0; b < bench.options.batch.n; b++) {
            CHECK(bench.n_shapes < MAX_SHAPES, "more than %d shapes", MAX_SHAPES);
            bench.shapes[bench.n_shapes++] =
                (struct shape){.batch = bench.options.batch.at[b], .context = bench.options.context.at[c]};
        }
    }
    struct card_ceiling card = {.read_rate = 0};
    must(child_call(measure_card, &card, sizeof card, CEILING_TIMEOUT_S));
    printf("%s: %.0f GB/s read\n", card.name, card.read_rate * 1e-9);
    for (uint32_t t = 0; t < bench.options.tp.n; t++) {
        struct shape_result results[MAX_SHAPES];
        struct group_config config = config_for(bench.options.tp.at[t]);
        group_run(&config, run_shapes, results, sizeof results);
        if (bench.options.workers) {
            run_workers(&config, results);
        }
        for (uint32_t i = 0; i < bench.n_shapes; i++) {
            print_shape(config.world, &bench.shapes[i], &results[i], card.read_rate);
        }
    }
    return 0;
}
