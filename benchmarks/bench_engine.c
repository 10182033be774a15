/* What the engine itself costs per step: planning (the step body included) and applying, with every sequence decoding,
 * against a port in the same thread that answers each step at once. Prints the median and the 99th percentile over all
 * steps, and what is left over per step for queues and notifications.
 *
 *   bench_engine [STEPS] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/engine/engine.h"

#define PROMPT 40
#define VOCABULARY 1000

struct null_port {
    struct worker_port port; /* first */
    void *body;
    uint64_t submitted, done;
    uint32_t n_sampled[8]; /* of step s at s % 8 */
    struct step_result *results;
};

static void *null_reserve(struct worker_port *port) {
    return ((struct null_port *)port)->body;
}

static uint64_t null_submit(struct worker_port *port, size_t bytes) {
    struct null_port *null = (struct null_port *)port;
    (void)bytes;
    const struct step_header *header = null->body;
    null->n_sampled[++null->submitted % 8] = header->n_sampled;
    return null->submitted;
}

static enum status null_poll(struct worker_port *port, struct port_event *event) {
    struct null_port *null = (struct null_port *)port;
    if (null->done == null->submitted) {
        return STATUS_BUSY;
    }
    null->done++;
    uint32_t n = null->n_sampled[null->done % 8];
    for (uint32_t i = 0; i < n; i++) {
        null->results[i].id = (uint32_t)(null->done * 7 + i) % VOCABULARY;
    }
    *event =
        (struct port_event){.type = PORT_STEP_DONE, .step_id = null->done, .n_results = n, .results = null->results};
    return STATUS_OK;
}

static uint32_t null_descriptors(struct worker_port *port, int *fds) {
    (void)port;
    (void)fds;
    return 0;
}

static void null_give_up(struct worker_port *port, const char *reason) {
    CHECK(false, "the engine gives epoch %u up: %s", port->epoch, reason);
}

static void null_close(struct worker_port *port) {
    struct null_port *null = (struct null_port *)port;
    free(null->body);
    free(null->results);
    free(null);
}

static struct worker_port *null_port_create(const struct step_limits *limits) {
    static const struct worker_port_ops ops = {.reserve = null_reserve,
                                               .submit = null_submit,
                                               .poll = null_poll,
                                               .descriptors = null_descriptors,
                                               .give_up = null_give_up,
                                               .close = null_close};
    struct null_port *null = xcalloc(1, sizeof *null);
    null->port = (struct worker_port){.ops = &ops, .epoch = 1, .world = 1};
    null->body = xaligned(64, step_body_max_bytes(limits));
    null->results = xcalloc(limits->max_rows, sizeof null->results[0]);
    return &null->port;
}

static int compare(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static uint64_t notified;

static void on_notify(void *context, struct journal_handle handle, uint64_t user) {
    (void)context;
    (void)handle;
    notified += user;
}

static void must(enum status status) {
    CHECK(status == STATUS_OK, "%s", status_text());
}

static struct engine *prepare(const struct step_limits *limits, uint32_t n, uint32_t n_steps,
                              struct journal **journal) {
    int fd;
    size_t bytes = journal_bytes(n, (size_t)n * ((PROMPT + n_steps) * 4 + 8192));
    must(memfd_make("bench-journal", bytes, &fd));
    must(journal_open(fd, bytes, n, true, journal));
    close(fd);
    struct engine_config config = {.limits = *limits,
                                   .queue_max = n,
                                   .prefix_cache = true,
                                   .overlap = true,
                                   .journal = *journal,
                                   .notify = on_notify};
    struct engine *engine = engine_create(&config);
    uint32_t prompt[PROMPT];
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t k = 0; k < PROMPT; k++) {
            prompt[k] = (i * 31 + k) % VOCABULARY;
        }
        struct engine_request request = {
            .params = {.user = i,
                       .sampling = {.seed = i, .top_p = 1, .repetition_penalty = 1, .n_logprobs = -1},
                       .n_prompt = PROMPT,
                       .max_tokens = n_steps},
            .prompt = prompt};
        memcpy(request.params.request_id, &i, sizeof i);
        struct journal_handle handle;
        must(engine_submit(engine, &request, 1, &handle));
    }
    engine_set_port(engine, null_port_create(limits), 1);
    return engine;
}

static void measure(uint32_t n, uint32_t n_steps) {
    uint32_t max_len = 16 * ((PROMPT + n_steps) / 16 + 2);
    struct step_limits limits = {.max_rows = n,
                                 .max_tokens = n > 2048 ? n : 2048,
                                 .n_slots = n,
                                 .max_len = max_len,
                                 .block_size = 16,
                                 .n_blocks = n * (max_len / 16 + 1) + 1,
                                 .vocab_size = VOCABULARY,
                                 .max_ids = max_len + 2048};
    struct journal *journal;
    struct engine *engine = prepare(&limits, n, n_steps, &journal);
    struct engine_stats stats;
    do {
        engine_tick(engine, 1);
        engine_stats(engine, &stats);
    } while (stats.waiting > 0);
    uint64_t *plan = xcalloc(n_steps, sizeof plan[0]), *both = xcalloc(n_steps, sizeof both[0]);
    uint32_t count = 0;
    uint64_t steps_before = stats.steps, start_ns = clock_thread_ns();
    while (count + 8 < n_steps) {
        engine_tick(engine, 1);
        engine_stats(engine, &stats);
        if (stats.running < n) {
            break;
        }
        plan[count] = stats.plan_ns;
        both[count++] = stats.plan_ns + stats.apply_ns;
    }
    double whole_us = (double)(clock_thread_ns() - start_ns) / 1e3 / (double)(stats.steps - steps_before);
    qsort(plan, count, sizeof plan[0], compare);
    qsort(both, count, sizeof both[0], compare);
    uint32_t half = count / 2, most = (uint32_t)((uint64_t)count * 99 / 100);
    printf("%10u %10u %12.1f %12.1f %12.1f %12.1f %14.1f\n", n, count, (double)plan[half] / 1e3,
           (double)both[half] / 1e3, (double)both[most] / 1e3, whole_us, whole_us / n * 1e3);
    engine_check(engine);
    free(plan);
    free(both);
    engine_destroy(engine);
    journal_close(journal);
}

int main(int argc, char **argv) {
    uint32_t n_steps = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 2000;
    printf("%10s %10s %12s %12s %12s %12s %14s\n", "sequences", "steps", "plan p50 us", "both p50 us", "both p99 us",
           "CPU us/step", "CPU ns/token");
    const uint32_t counts[] = {1, 64, 256, 1024};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        measure(counts[i], n_steps);
    }
    return notified == UINT64_MAX;
}
