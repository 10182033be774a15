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
#include <stdlib.h>

#include "benchmarks/support_breakdown.h"
#include "benchmarks/support_ceiling.h"
#include "benchmarks/support_group.h"
#include "benchmarks/support_options.h"
#include "benchmarks/support_report.h"
#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/base/clock.h"

#define FLAGS                                                                                                          \
    (1u << OPTION_MODEL | 1u << OPTION_BACKEND | 1u << OPTION_TP | 1u << OPTION_BATCH | 1u << OPTION_CONTEXT |         \
     1u << OPTION_STEPS | 1u << OPTION_TEMPERATURE | 1u << OPTION_RANDOM_WEIGHTS | 1u << OPTION_WORKERS |              \
     1u << OPTION_JSON)
#define MAX_TOKENS 256u
#define MAX_SHAPES 32
#define SPARE_STEPS 8u /* before and between what is measured */

struct shape {
    uint32_t batch, context;
};

struct shape_result {
    struct spread executor, worker; /* us */
    struct breakdown breakdown;
};

/* Of one run; the ranks inherit it. */
static struct {
    struct options options;
    struct shape shapes[MAX_SHAPES];
    uint32_t n_shapes;
    uint32_t room; /* positions that a sequence needs beyond its context */
} bench;

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

/* ---- all measurements in a rank */

static struct breakdown_step breakdown_step(const struct shape *shape) {
    return (struct breakdown_step){.rows = shape->batch,
                                   .q_len = 1,
                                   .pos = shape->context,
                                   .greedy = bench.options.temperature == 0.0f,
                                   .max_kv_len = shape->context + bench.room};
}

static void run_shapes(struct rank *rank) {
    struct shape_result *shared = (struct shape_result *)(void *)rank->shared->result;
    for (uint32_t i = 0; i < bench.n_shapes; i++) {
        struct shape_result result = {.executor = run_executor(rank, &bench.shapes[i])};
        struct breakdown_step step = breakdown_step(&bench.shapes[i]);
        breakdown_run(rank, &step, bench.options.steps, &result.breakdown);
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

/* `one` is the same shape on one rank, NULL when that was not measured. */
static void print_step(uint32_t tp, const struct shape *shape, const struct shape_result *result,
                       const struct ceiling *ceiling, const struct shape_result *one) {
    const struct breakdown *parts = &result->breakdown;
    double floor_us = breakdown_floor_us(ceiling, parts->bytes, parts->flops);
    bool worker = result->worker.mean > 0;
    const struct spread *whole = worker ? &result->worker : &result->executor;
    REPORT_ROW("step", CELL("tp", tp, 0), CELL("batch", shape->batch, 0), CELL("context", shape->context, 0),
               CELL("floor_ms", floor_us * 1e-3, 3), CELL("graph_ms", parts->graph_us * 1e-3, 3),
               CELL("executor_ms", result->executor.mean * 1e-3, 3),
               CELL("worker_ms", worker ? result->worker.mean * 1e-3 : NAN, 3), CELL("p50_ms", whole->median * 1e-3, 3),
               CELL("p99_ms", whole->p99 * 1e-3, 3), CELL("of_floor_%", 100 * floor_us / whole->mean, 1),
               CELL("collectives_%", 100 * breakdown_collective_us(parts) / parts->graph_us, 1),
               CELL("idle_us", whole->mean - parts->graph_us, 0), CELL("launch_us", parts->launch_us, 0),
               CELL("tokens_per_s", shape->batch * 1e6 / whole->mean, 1),
               CELL("efficiency_%", one != NULL ? 100 * one->executor.mean / result->executor.mean / tp : NAN, 1));
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
    bench.options = (struct options){
        .backend = "cuda", .tp = {1, {1}}, .batch = {3, {1, 16, 64}}, .context = {1, {1024}}, .steps = 64};
    options_parse(argc, argv, "bench_decode --model DIR [FLAG ...]", FLAGS, &bench.options);
    bench.room = bench.options.steps + 2 * SPARE_STEPS;
    for (uint32_t c = 0; c < bench.options.context.n; c++) {
        for (uint32_t b = 0; b < bench.options.batch.n; b++) {
            CHECK(bench.n_shapes < MAX_SHAPES, "more than %d shapes", MAX_SHAPES);
            bench.shapes[bench.n_shapes++] =
                (struct shape){.batch = bench.options.batch.at[b], .context = bench.options.context.at[c]};
        }
    }
    report_open("decode", bench.options.json);
    struct ceiling ceiling = ceiling_measure(bench.options.backend, 0);
    ceiling_report(&ceiling);
    static struct shape_result results[OPTIONS_LIST_MAX][MAX_SHAPES];
    for (uint32_t t = 0; t < bench.options.tp.n; t++) {
        uint32_t tp = bench.options.tp.at[t];
        struct group_config config = config_for(tp);
        struct ceiling share = ceiling_share(&ceiling, bench.options.backend, tp);
        group_run(&config, run_shapes, results[t], sizeof results[t]);
        if (bench.options.workers) {
            run_workers(&config, results[t]);
        }
        for (uint32_t i = 0; i < bench.n_shapes; i++) {
            struct breakdown_step step = breakdown_step(&bench.shapes[i]);
            breakdown_report(&results[t][i].breakdown, &share, tp, &step);
        }
        for (uint32_t i = 0; i < bench.n_shapes; i++) {
            const struct shape_result *one = bench.options.tp.at[0] == 1 ? &results[0][i] : NULL;
            print_step(tp, &bench.shapes[i], &results[t][i], &share, one);
        }
    }
    return 0;
}
