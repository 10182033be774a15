/* What the sums over cards take, by size: NCCL's and our own, alone and with the addition and the norm behind them.
 *
 *     bench_comm [--cards N] [--hidden H] [--rows MOST] [--dtype bfloat16|float16|float32]
 *
 * Batches are 1, 2, 4 .. MOST rows of H elements; without options it is 2 cards, 4096 rows of 5120 in bfloat16. A rank
 * is a process with a card of its own. Each figure is the time of one call in a graph of 50, the best of several
 * launches. Bus bandwidth is 2 (N - 1) / N x bytes / time, as NCCL's own tests count it; of our own, which push
 * (N - 1) x bytes, it is for comparison. Sizes that go by NCCL in both columns are those that the start-up's proof gave
 * to it. A table goes to standard error, one JSON object per line to standard output. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "parallel/comm.h"
#include "runtime/base/channel.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"

#define GRAPH_LENGTH 50
#define GRAPH_RUNS 7

struct bench {
    const struct kernel_ops *kernels;
    struct kernel_device *device;
    struct kernel_stream *stream;
    uint32_t rank, world;
    uint32_t hidden, max_rows;
    enum dtype dtype;
    const struct comm_ops *ops[2]; /* nccl, p2p */
    struct comm *comm[2];
    int memory_fd[2];
    char *data, *out; /* [max_rows][hidden] of the format */
    float *residual;
    float *weight;
};
enum { NCCL, OWN };
static const char *const names[] = {"nccl", "p2p"};

static void require(enum status status) {
    if (status != STATUS_OK) {
        fprintf(stderr, "bench_comm: %s\n", status_text());
        exit(1);
    }
}

/* ---- what is measured; `rows` rows */

static void reduce(struct bench *bench, int which, uint32_t rows) {
    require(bench->ops[which]->all_reduce(bench->comm[which], bench->stream, bench->data, (size_t)rows * bench->hidden,
                                          bench->dtype));
}

static void norm(struct bench *bench, int which, uint32_t rows) {
    struct op_rmsnorm args = {.residual = bench->residual,
                              .delta = bench->data,
                              .delta_dtype = bench->dtype,
                              .weight = bench->weight,
                              .weight_dtype = DTYPE_F32,
                              .out = bench->out,
                              .out_dtype = bench->dtype,
                              .n_tokens = rows,
                              .hidden = bench->hidden,
                              .eps = 1e-6f};
    if (which == OWN) {
        require(bench->ops[OWN]->all_reduce_add_rmsnorm(bench->comm[OWN], bench->stream, bench->data, &args));
        return;
    }
    reduce(bench, NCCL, rows);
    require(bench->kernels->rmsnorm(bench->stream, &args));
}

/* What greedy rows exchange: 8 bytes each. */
static void gather(struct bench *bench, int which, uint32_t rows) {
    require(
        bench->ops[which]->all_gather(bench->comm[which], bench->stream, bench->data, bench->out, (size_t)rows * 8));
}

/* Microseconds of one call. */
static double measure(struct bench *bench, int which, uint32_t rows,
                      void (*enqueue)(struct bench *bench, int which, uint32_t rows)) {
    struct kernel_graph *graph = NULL;
    double best = INFINITY;
    require(bench->kernels->graph_begin(bench->stream));
    for (int i = 0; i < GRAPH_LENGTH; i++) {
        enqueue(bench, which, rows);
    }
    require(bench->kernels->graph_end(bench->stream, &graph));
    for (int run = 0; run <= GRAPH_RUNS; run++) {
        require(bench->ops[NCCL]->barrier(bench->comm[NCCL]));
        uint64_t start_ns = clock_now_ns();
        require(bench->kernels->graph_launch(graph, bench->stream));
        require(bench->kernels->stream_sync(bench->stream));
        double us = (double)(clock_now_ns() - start_ns) / 1000.0 / GRAPH_LENGTH;
        best = run > 0 ? fmin(best, us) : best;
    }
    bench->kernels->graph_destroy(graph);
    require(bench->ops[which]->check(bench->comm[which]));
    return best;
}

static void print_rows(const struct bench *bench, uint32_t rows, const double us[3][2]) {
    size_t bytes = (size_t)rows * bench->hidden * dtype_bytes(bench->dtype);
    double moved = 2.0 * (bench->world - 1) / bench->world * (double)bytes;
    fprintf(stderr, "%6u %9.1f | %8.2f %8.2f | %8.2f %8.2f | %8.1f %8.1f | %7.2f %7.2f\n", rows, (double)bytes / 1024,
            us[0][NCCL], us[0][OWN], us[1][NCCL], us[1][OWN], moved / us[0][NCCL] / 1e3, moved / us[0][OWN] / 1e3,
            us[2][NCCL], us[2][OWN]);
    printf("{\"bench\":\"comm\",\"cards\":%u,\"rows\":%u,\"bytes\":%zu,\"dtype\":\"%s\",\"nccl_us\":%.2f,"
           "\"own_us\":%.2f,\"nccl_norm_us\":%.2f,\"own_norm_us\":%.2f,\"nccl_bus_gbs\":%.1f,\"own_bus_gbs\":%.1f,"
           "\"nccl_gather_us\":%.2f,\"own_gather_us\":%.2f}\n",
           bench->world, rows, bytes, dtype_name(bench->dtype), us[0][NCCL], us[0][OWN], us[1][NCCL], us[1][OWN],
           moved / us[0][NCCL] / 1e3, moved / us[0][OWN] / 1e3, us[2][NCCL], us[2][OWN]);
}

static void measure_all(struct bench *bench) {
    static void (*const works[])(struct bench * bench, int which, uint32_t rows) = {reduce, norm, gather};
    if (bench->rank == 0) {
        fprintf(stderr, "%6s %9s | %-17s | %-17s | %-17s | %-15s\n%6s %9s | %8s %8s | %8s %8s | %8s %8s | %7s %7s\n",
                "", "", "all-reduce, us", "+ add + norm, us", "bus GB/s", "gather 8 B/row", "rows", "KiB", "nccl",
                "own", "nccl", "own", "nccl", "own", "nccl", "own");
    }
    for (uint32_t rows = 1; rows <= bench->max_rows; rows *= 2) {
        double us[3][2];
        for (int work = 0; work < 3; work++) {
            for (int which = 0; which < 2; which++) {
                us[work][which] = measure(bench, which, rows, works[work]);
            }
        }
        if (bench->rank == 0) {
            print_rows(bench, rows, us);
        }
    }
}

/* ---- ranks */

static void allocate(struct bench *bench) {
    size_t count = (size_t)bench->max_rows * bench->hidden;
    struct {
        void **memory;
        size_t bytes;
    } wanted[] = {{(void **)&bench->data, count * 4},
                  {(void **)&bench->out, count * 4},
                  {(void **)&bench->residual, count * 4},
                  {(void **)&bench->weight, bench->hidden * sizeof(float)}};
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        require(bench->kernels->alloc(bench->device, wanted[i].bytes, wanted[i].memory)); /* zeros: sums stay small */
    }
}

static void open_comms(struct bench *bench) {
    for (int which = 0; which < 2; which++) {
        size_t before;
        size_t after;
        size_t total;
        struct comm_config config = {.rank = bench->rank,
                                     .world = bench->world,
                                     .kernels = bench->kernels,
                                     .device = bench->device,
                                     .max_bytes = (size_t)bench->max_rows * bench->hidden * 4,
                                     .row_elements = bench->hidden,
                                     .row_dtype = bench->dtype,
                                     .memory_fd = bench->memory_fd[which],
                                     .timeout_ns = 60 * NS_PER_S};
        require(bench->kernels->memory_info(bench->device, &before, &total));
        uint64_t start_ns = clock_now_ns();
        bench->ops[which] = comm_find(names[which]);
        require(bench->ops[which]->open(&config, &bench->comm[which]));
        uint64_t took_ns = clock_now_ns() - start_ns;
        require(bench->kernels->memory_info(bench->device, &after, &total));
        if (bench->rank == 0) {
            fprintf(stderr, "%s: open in %.2f s, %zu MiB of the card's memory\n", names[which], (double)took_ns / 1e9,
                    (before - after) >> 20);
        }
    }
}

static void run_rank(struct bench *bench) {
    char role[16];
    snprintf(role, sizeof role, "r%u", bench->rank);
    log_set_role(role);
    bench->kernels = kernels_find_for("cuda", (int)bench->rank);
    require(bench->kernels != NULL ? STATUS_OK : STATUS_UNSUPPORTED);
    struct kernel_device_config device = {.ordinal = (int)bench->rank, .threads = 1, .first_cpu = -1};
    require(bench->kernels->open(&device, &bench->device));
    require(bench->kernels->stream_create(bench->device, &bench->stream));
    allocate(bench);
    open_comms(bench);
    measure_all(bench);
    bench->kernels->stream_destroy(bench->stream);
    for (int which = 0; which < 2; which++) {
        bench->ops[which]->close(bench->comm[which]);
    }
}

static int run_group(struct bench *bench) {
    pid_t children[COMM_MAX_WORLD];
    int failed = 0;
    for (int which = 0; which < 2; which++) {
        size_t bytes = comm_memory_bytes(names[which], bench->world, (size_t)bench->max_rows * bench->hidden * 4);
        require(memfd_make("comm", bytes, &bench->memory_fd[which]));
    }
    for (bench->rank = 0; bench->rank < bench->world; bench->rank++) {
        children[bench->rank] = fork();
        if (children[bench->rank] == 0) {
            run_rank(bench);
            exit(0);
        }
    }
    for (uint32_t r = 0; r < bench->world; r++) {
        int state = -1;
        waitpid(children[r], &state, 0);
        failed |= state != 0;
    }
    return failed;
}

static int usage(void) {
    fprintf(stderr, "usage: bench_comm [--cards N] [--hidden H] [--rows MOST] [--dtype bfloat16|float16|float32]\n");
    return 2;
}

int main(int argc, char **argv) {
    struct bench bench = {.world = 2, .hidden = 5120, .max_rows = 4096, .dtype = DTYPE_BF16};
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--cards") == 0) {
            bench.world = (uint32_t)strtoul(argv[i + 1], NULL, 10);
        } else if (strcmp(argv[i], "--hidden") == 0) {
            bench.hidden = (uint32_t)strtoul(argv[i + 1], NULL, 10);
        } else if (strcmp(argv[i], "--rows") == 0) {
            bench.max_rows = (uint32_t)strtoul(argv[i + 1], NULL, 10);
        } else if (strcmp(argv[i], "--dtype") != 0 || dtype_parse(argv[i + 1], &bench.dtype) != 0) {
            return usage();
        }
    }
    if (argc % 2 == 0 || bench.world < 2 || bench.world > 8 || bench.hidden < 1 || bench.hidden > 65536 ||
        bench.max_rows < 1 || bench.max_rows > 65536) {
        return usage();
    }
    return run_group(&bench);
}
