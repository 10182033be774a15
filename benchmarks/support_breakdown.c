#include "benchmarks/support_breakdown.h"

#include <math.h>
#include <stdlib.h>

#include "benchmarks/support_report.h"
#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/model/forward.h"
#include "runtime/worker/model_executor.h"

#define MIN_OPS 64u /* in a graph of one kind: its launch must not show */
#define PLAYS 10u

struct device {
    struct rank *rank;
    struct model *model;
    const struct kernel_ops *kernels;
    struct kernel_stream *stream;
};

static void put(const struct device *device, void *to, const void *from, size_t bytes) {
    must(device->kernels->copy(device->stream, to, from, bytes, KERNEL_COPY_TO_DEVICE));
    must(device->kernels->stream_sync(device->stream));
}

static void put_rows(const struct device *device, const struct breakdown_step *step) {
    struct step_row *rows = xcalloc(step->rows, sizeof *rows);
    for (uint32_t i = 0; i < step->rows; i++) {
        rows[i] = (struct step_row){.slot = i, .q_len = step->q_len, .pos = step->pos, .flags = STEP_ROW_SAMPLE};
    }
    put(device, device->model->buffers.rows, rows, step->rows * sizeof *rows);
    free(rows);
}

/* Steps move the slots on; this puts them back. */
static void put_lengths(const struct device *device, const struct breakdown_step *step) {
    uint32_t *lengths = xcalloc(step->rows, sizeof *lengths);
    for (uint32_t i = 0; i < step->rows; i++) {
        lengths[i] = step->pos;
    }
    put(device, device->model->slots.len, lengths, step->rows * sizeof *lengths);
    free(lengths);
}

/* Mean time of `count` launches back to back, after one that does not count; *launch_us is what the first of them took
 * of this thread. The ranks begin together when there are collectives in it: kinds without them need not be on every
 * rank, such as sampling when there are fewer rows than ranks. */
static double time_graph(const struct device *device, struct kernel_graph *graph, bool together, uint32_t count,
                         double *launch_us) {
    must(device->kernels->graph_launch(graph, device->stream));
    must(device->kernels->stream_sync(device->stream));
    if (together) {
        group_barrier(device->rank);
    }
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

static double time_step(const struct device *device, const struct step_batch *batch, uint32_t launches,
                        double *launch_us) {
    struct kernel_graph *graph;
    must(device->kernels->graph_begin(device->stream));
    must(forward_enqueue(device->model, device->stream, batch));
    must(device->kernels->graph_end(device->stream, &graph));
    double us = time_graph(device, graph, true, launches, launch_us);
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
    double us = time_graph(device, graph, tape_kind(tape, kind)->collective, PLAYS, NULL) / repeats;
    device->kernels->graph_destroy(graph);
    return us;
}

/* The step on tape, and what stands on it. */
static struct tape *record_kinds(const struct device *device, const struct step_batch *batch,
                                 const struct breakdown_step *step, struct breakdown *breakdown) {
    struct tape *tape;
    uint64_t q_len = step->q_len;
    struct tape_load load = {.kv_tokens = (uint64_t)step->rows * (step->pos + q_len),
                             .pairs = step->rows * (q_len * step->pos + q_len * (q_len + 1) / 2)};
    must(tape_record(device->model, device->stream, batch, &load, &tape));
    breakdown->n_kinds = tape_kinds(tape);
    CHECK(breakdown->n_kinds <= BREAKDOWN_KINDS, "%u kinds of op", breakdown->n_kinds);
    for (uint32_t i = 0; i < breakdown->n_kinds; i++) {
        const struct tape_kind *kind = tape_kind(tape, i);
        breakdown->kinds[i].kind = *kind;
        breakdown->bytes += kind->bytes;
        breakdown->flops += kind->flops;
    }
    return tape;
}

static struct step_batch batch_of(const struct model *model, const struct breakdown_step *step) {
    return (struct step_batch){.rows = model->buffers.rows,
                               .n_rows = step->rows,
                               .n_tokens = step->rows * step->q_len,
                               .n_sampled = step->rows,
                               .max_kv_len = step->max_kv_len,
                               .greedy = step->greedy};
}

static struct device device_of(struct rank *rank, struct breakdown *breakdown) {
    struct model *model = model_executor_model(rank->executor);
    struct device device = {.rank = rank, .model = model, .kernels = model->kernels};
    *breakdown = (struct breakdown){.n_kinds = 0};
    must(device.kernels->stream_create(model->device, &device.stream));
    return device;
}

void breakdown_count(struct rank *rank, const struct breakdown_step *step, struct breakdown *breakdown) {
    struct device device = device_of(rank, breakdown);
    struct step_batch batch = batch_of(device.model, step);
    tape_free(record_kinds(&device, &batch, step, breakdown));
    device.kernels->stream_destroy(device.stream);
}

void breakdown_run(struct rank *rank, const struct breakdown_step *step, uint32_t launches,
                   struct breakdown *breakdown) {
    struct device device = device_of(rank, breakdown);
    struct model *model = device.model;
    put_rows(&device, step);
    put_lengths(&device, step);
    struct step_batch batch = batch_of(model, step);
    must(forward_enqueue(model, device.stream, &batch)); /* what a first time costs */
    must(device.kernels->stream_sync(device.stream));
    put_lengths(&device, step);
    if (launches > 0) {
        breakdown->graph_us = time_step(&device, &batch, launches, &breakdown->launch_us);
        put_lengths(&device, step);
    }
    struct tape *tape = record_kinds(&device, &batch, step, breakdown);
    for (uint32_t i = 0; i < breakdown->n_kinds; i++) {
        bool moot = model->shard.world == 1 && breakdown->kinds[i].kind.collective;
        breakdown->kinds[i].us = moot ? 0 : time_kind(&device, tape, i);
    }
    tape_free(tape);
    device.kernels->stream_destroy(device.stream);
}

/* ---- output */

double breakdown_floor_us(const struct ceiling *ceiling, double bytes, double flops) {
    double read_us = bytes / ceiling->read_rate * 1e6;
    double arithmetic_us = flops / ceiling->arithmetic * 1e6;
    return read_us > arithmetic_us ? read_us : arithmetic_us;
}

double breakdown_collective_us(const struct breakdown *breakdown) {
    double us = 0;
    for (uint32_t i = 0; i < breakdown->n_kinds; i++) {
        us += breakdown->kinds[i].kind.collective ? breakdown->kinds[i].us : 0;
    }
    return us;
}

static void report_kind(const char *name, double count, double us, double floor_us, double step_us, uint32_t world,
                        const struct breakdown_step *step) {
    REPORT_ROW("op", CELL_TEXT("op", name), CELL("tp", world, 0), CELL("rows", step->rows, 0),
               CELL("q_len", step->q_len, 0), CELL("context", step->pos, 0), CELL("count", count, 0),
               CELL("step_us", us, 1), CELL("op_us", us / count, 2), CELL("floor_us", floor_us, 1),
               CELL("of_floor_%", floor_us > 0 && us > 0 ? 100 * floor_us / us : NAN, 0),
               CELL("of_all_%", 100 * us / step_us, 1));
}

void breakdown_report(const struct breakdown *breakdown, const struct ceiling *ceiling, uint32_t world,
                      const struct breakdown_step *step) {
    double sum_us = 0;
    double floor_us = 0;
    for (uint32_t i = 0; i < breakdown->n_kinds; i++) {
        sum_us += breakdown->kinds[i].us;
    }
    for (uint32_t i = 0; i < breakdown->n_kinds; i++) {
        const struct tape_kind *kind = &breakdown->kinds[i].kind;
        double own_us = breakdown_floor_us(ceiling, kind->bytes, kind->flops);
        floor_us += own_us;
        if (breakdown->kinds[i].us > 0) {
            report_kind(kind->name, kind->count, breakdown->kinds[i].us, own_us, sum_us, world, step);
        }
    }
    report_kind("sum of them", NAN, sum_us, floor_us, sum_us, world, step);
}
