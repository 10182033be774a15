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
 * Above stand the kinds of op of the step, each played back alone, in a graph: its own floor, and how far it is from
 * it. What they sum up to beyond "graph" is overlap between kernels, what is missing is what one op costs the next.
 *
 * --no-ops leaves out "graph" and the table of ops: only what a user sees is measured, in seconds.
 *
 * --trace has the card itself tell when which kernel ran (benchmarks/support_trace.h): each kernel's time within the
 * step, and how long the card had nothing to do. */
#include <math.h>
#include <poll.h>
#include <stdlib.h>

#include "benchmarks/support_breakdown.h"
#include "benchmarks/support_ceiling.h"
#include "benchmarks/support_group.h"
#include "benchmarks/support_options.h"
#include "benchmarks/support_report.h"
#include "benchmarks/support_trace.h"
#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/base/clock.h"

#define FLAGS                                                                                                          \
    (1u << OPTION_MODEL | 1u << OPTION_BACKEND | 1u << OPTION_TP | 1u << OPTION_BATCH | 1u << OPTION_CONTEXT |         \
     1u << OPTION_STEPS | 1u << OPTION_TEMPERATURE | 1u << OPTION_RANDOM_WEIGHTS | 1u << OPTION_WORKERS |              \
     1u << OPTION_TRACE | 1u << OPTION_NO_OPS | 1u << OPTION_JSON)
#define MAX_TOKENS 256u
#define MAX_SHAPES 32
#define SPARE_STEPS 8u /* before and between what is measured */

struct shape {
    uint32_t batch, context;
};

struct shape_result {
    struct spread executor, worker; /* us */
    struct breakdown breakdown;     /* all 0 in a traced run */
    struct trace trace;
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

/* ---- one step ahead, as the engine does it */

/* Something that takes steps: an executor in this process, or a port to workers. */
struct taker {
    void (*put)(void *context, const struct bench_step *step);
    void (*wait)(void *context);
    void *context;
};

static void start_rows(const struct taker *taker, const struct shape *shape) {
    for (uint32_t row = 0; row < shape->batch; row++) {
        struct bench_step step = start_step(shape, row);
        taker->put(taker->context, &step);
        taker->wait(taker->context);
    }
}

/* Time between the ends of two steps. */
static struct spread run_steps(const struct taker *taker, const struct shape *shape) {
    double *us = xcalloc(bench.options.steps, sizeof *us);
    uint64_t last_ns = 0;
    uint32_t in = 0;
    for (uint32_t out = 0; out < bench.options.steps + SPARE_STEPS; out++) {
        for (; in < out + 2 && in < bench.options.steps + SPARE_STEPS; in++) {
            struct bench_step step = decode_step(shape, in);
            taker->put(taker->context, &step);
        }
        taker->wait(taker->context);
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

/* ---- through the executor */

static void put_into_rank(void *context, const struct bench_step *step) {
    rank_step(context, step);
}

static void wait_for_rank(void *context) {
    rank_wait(context);
}

static void run_executor(struct rank *rank, const struct shape *shape, struct shape_result *result) {
    struct taker taker = {put_into_rank, wait_for_rank, rank};
    rank_reset(rank);
    start_rows(&taker, shape);
    if (bench.options.trace) {
        must(trace_start());
    }
    group_barrier(rank);
    result->executor = run_steps(&taker, shape);
    if (bench.options.trace) {
        must(trace_read(SPARE_STEPS, &result->trace));
    }
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
        struct shape_result result = {.executor = {.mean = 0}};
        struct breakdown_step step = breakdown_step(&bench.shapes[i]);
        run_executor(rank, &bench.shapes[i], &result);
        if (bench.options.no_ops) {
            breakdown_count(rank, &step, &result.breakdown);
        } else if (!bench.options.trace) {
            breakdown_run(rank, &step, bench.options.steps, &result.breakdown);
        }
        if (rank->init.rank == 0) {
            shared[i] = result;
        }
    }
}

/* ---- through worker processes */

struct port_taker {
    struct worker_port *port;
    const struct worker_init *init;
    struct step_builder *builder;
    uint64_t step_id;
};

static void put_into_port(void *context, const struct bench_step *step) {
    struct port_taker *taker = context;
    void *body = taker->port->ops->reserve(taker->port);
    size_t bytes = bench_step_build(taker->builder, taker->init, step, taker->step_id + 1, body);
    taker->step_id = taker->port->ops->submit(taker->port, bytes);
}

static void wait_for_port(void *context) {
    struct worker_port *port = ((struct port_taker *)context)->port;
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

static void run_workers(const struct group_config *config, struct shape_result *results) {
    struct worker_init init;
    struct workers workers;
    group_init(config, &init);
    workers_start(&init, &workers);
    struct port_taker context = {.port = workers.port, .init = &init, .builder = step_builder_create(&init.limits)};
    struct taker taker = {put_into_port, wait_for_port, &context};
    for (uint32_t i = 0; i < bench.n_shapes; i++) {
        start_rows(&taker, &bench.shapes[i]);
        results[i].worker = run_steps(&taker, &bench.shapes[i]);
    }
    step_builder_destroy(context.builder);
    workers_stop(&workers);
}

/* ---- output */

/* `one` is the same shape on one rank, NULL when that was not measured. */
static void report_step(uint32_t tp, const struct shape *shape, const struct shape_result *result,
                        const struct ceiling *ceiling, const struct shape_result *one) {
    const struct breakdown *parts = &result->breakdown;
    double floor_us = breakdown_floor_us(ceiling, parts->bytes, parts->flops);
    bool worker = result->worker.mean > 0;
    bool ops = !bench.options.no_ops;
    const struct spread *whole = worker ? &result->worker : &result->executor;
    REPORT_ROW("step", CELL("tp", tp, 0), CELL("batch", shape->batch, 0), CELL("context", shape->context, 0),
               CELL("floor_ms", floor_us * 1e-3, 3), CELL("graph_ms", ops ? parts->graph_us * 1e-3 : NAN, 3),
               CELL("executor_ms", result->executor.mean * 1e-3, 3),
               CELL("worker_ms", worker ? result->worker.mean * 1e-3 : NAN, 3), CELL("p50_ms", whole->median * 1e-3, 3),
               CELL("p99_ms", whole->p99 * 1e-3, 3), CELL("of_floor_%", 100 * floor_us / whole->mean, 1),
               CELL("collectives_%", ops ? 100 * breakdown_collective_us(parts) / parts->graph_us : NAN, 1),
               CELL("idle_us", ops ? whole->mean - parts->graph_us : NAN, 0),
               CELL("launch_us", ops ? parts->launch_us : NAN, 0),
               CELL("tokens_per_s", shape->batch * 1e6 / whole->mean, 1),
               CELL("efficiency_%", one != NULL ? 100 * one->executor.mean / result->executor.mean / tp : NAN, 1));
}

/* Of rank 0. */
static void report_trace(uint32_t tp, const struct shape *shape, const struct trace *trace) {
    double steps = trace->n_steps;
    for (uint32_t i = 0; i < trace->n_kernels; i++) {
        const struct trace_kernel *kernel = &trace->kernels[i];
        REPORT_ROW("kernel", CELL_WIDE("kernel", kernel->name), CELL("tp", tp, 0), CELL("batch", shape->batch, 0),
                   CELL("context", shape->context, 0), CELL("count", kernel->count / steps, 1),
                   CELL("step_us", kernel->us / steps, 1), CELL("each_us", kernel->us / kernel->count, 2));
    }
    REPORT_ROW("trace", CELL("tp", tp, 0), CELL("batch", shape->batch, 0), CELL("context", shape->context, 0),
               CELL("step_ms", trace->span_us / steps * 1e-3, 3), CELL("busy_ms", trace->busy_us / steps * 1e-3, 3),
               CELL("idle_us", (trace->span_us - trace->busy_us) / steps, 1),
               CELL("between_us", trace->between_us / steps, 1), CELL("kernels", trace->n_records / steps, 1),
               CELL("gaps", trace->n_gaps / steps, 1), CELL("gap_p50_us", trace->gap_p50_us, 2),
               CELL("gap_max_us", trace->gap_max_us, 1));
}

static struct group_config config_for(uint32_t tp) {
    struct group_config config = {.model_dir = bench.options.model,
                                  .backend = bench.options.backend,
                                  .world = tp,
                                  .dummy = bench.options.random_weights,
                                  .trace = bench.options.trace,
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

/* Of the t-th number of ranks. */
static void report_results(uint32_t t, const struct ceiling *ceiling, struct shape_result (*results)[MAX_SHAPES]) {
    uint32_t tp = bench.options.tp.at[t];
    for (uint32_t i = 0; i < bench.n_shapes && bench.options.trace; i++) {
        report_trace(tp, &bench.shapes[i], &results[t][i].trace);
    }
    for (uint32_t i = 0; i < bench.n_shapes && !bench.options.trace && !bench.options.no_ops; i++) {
        struct breakdown_step step = breakdown_step(&bench.shapes[i]);
        breakdown_report(&results[t][i].breakdown, ceiling, tp, &step);
    }
    for (uint32_t i = 0; i < bench.n_shapes && !bench.options.trace; i++) {
        const struct shape_result *one = bench.options.tp.at[0] == 1 ? &results[0][i] : NULL;
        report_step(tp, &bench.shapes[i], &results[t][i], ceiling, one);
    }
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
        report_results(t, &share, results);
    }
    return 0;
}
