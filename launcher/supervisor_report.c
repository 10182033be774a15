#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "launcher/descriptors.h"
#include "launcher/supervisor_internal.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"

/* "1,025". */
static const char *grouped(uint64_t number, char out[32]) {
    char plain[24];
    int length = snprintf(plain, sizeof plain, "%llu", (unsigned long long)number);
    int used = 0;
    for (int i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0) {
            out[used++] = ',';
        }
        out[used++] = plain[i];
    }
    out[used] = 0;
    return out;
}

static uint32_t larger(uint32_t a, uint32_t b) {
    return a > b ? a : b;
}

void supervisor_describe_start(const struct group *group, uint32_t world, struct buf *out) {
    struct worker_times longest = {0};
    uint64_t loaded = 0;
    for (uint32_t rank = 0; rank < world; rank++) {
        const struct worker_times *times = &group_ready(group, rank)->times;
        loaded += group_ready(group, rank)->loaded_bytes;
        longest.device_ms = larger(longest.device_ms, times->device_ms);
        longest.memory_ms = larger(longest.memory_ms, times->memory_ms);
        longest.load_ms = larger(longest.load_ms, times->load_ms);
        longest.comm_ms = larger(longest.comm_ms, times->comm_ms);
        longest.graphs_ms = larger(longest.graphs_ms, times->graphs_ms);
        longest.all_ms = larger(longest.all_ms, times->all_ms);
    }
    uint32_t all_ms = group_start_ms(group);
    double rate = longest.load_ms > 0 ? (double)loaded / world / longest.load_ms / 1e6 : 0;
    buf_printf(out,
               "processes %.2f, device %.2f, memory %.2f, weights %.2f (%.1f GB/s a rank) beside communicator %.2f and "
               "graphs %.2f",
               (all_ms - (double)longest.all_ms) / 1e3, longest.device_ms / 1e3, longest.memory_ms / 1e3,
               longest.load_ms / 1e3, rate, longest.comm_ms / 1e3, longest.graphs_ms / 1e3);
}

static void report_start(const struct supervisor *supervisor) {
    const struct serve_plan *plan = supervisor->plan;
    struct buf text = {0};
    supervisor_describe_start(supervisor->groups[0], plan->init.world, &text);
    fprintf(stderr, "  %-8s %.2f s: plan %.2f, %s\n", "start", (double)(clock_now_ns() - plan->start_ns) / 1e9,
            plan->plan_ms / 1e3, buf_cstr(&text));
    buf_free(&text);
}

/* What the plan said, beside what the card says. */
static void report_card(const struct worker_ready *ready) {
    uint64_t planned = ready->weight_bytes + ready->kv_bytes + ready->other_bytes;
    char texts[4][BAR_BYTES_MAX];
    fprintf(stderr, "  %-8s planned %s, the card counts %s; %s of %s are free\n", "",
            bar_bytes((double)planned, texts[0]), bar_bytes((double)ready->taken_bytes, texts[1]),
            bar_bytes((double)ready->free_bytes, texts[2]), bar_bytes((double)ready->total_bytes, texts[3]));
}

static void report_ranks(const struct supervisor *supervisor, uint32_t replica) {
    for (uint32_t rank = 0; rank < supervisor->plan->init.world; rank++) {
        const struct worker_ready *ready = group_ready(supervisor->groups[replica], rank);
        char label[32];
        char weights[BAR_BYTES_MAX];
        char kv[BAR_BYTES_MAX];
        char other[BAR_BYTES_MAX];
        if (supervisor->plan->n_replicas > 1) {
            snprintf(label, sizeof label, "rank %u.%u", replica, rank);
        } else {
            snprintf(label, sizeof label, "rank %u", rank);
        }
        fprintf(stderr, "  %-8s %s weights, %s KV, %s other (%s)\n", label,
                bar_bytes((double)ready->weight_bytes, weights), bar_bytes((double)ready->kv_bytes, kv),
                bar_bytes((double)ready->other_bytes, other), ready->device_name);
        if (ready->total_bytes > 0) {
            report_card(ready);
        }
    }
}

/* What the ranks found out of the ways between them. */
static void report_collectives(const struct worker_ready *ready) {
    char most[BAR_BYTES_MAX];
    if (ready->comm_own_bytes > 0) {
        fprintf(stderr, "  %-8s %s up to %s, %.1f us for one row\n", "sums", ready->comm_name,
                bar_bytes((double)ready->comm_own_bytes, most), (double)ready->comm_row_us);
    } else {
        fprintf(stderr, "  %-8s %s\n", "sums", ready->comm_name);
    }
}

void supervisor_report(const struct supervisor *supervisor) {
    const struct serve_plan *plan = supervisor->plan;
    const struct placement *placement = &plan->placement;
    char number[32];
    char tokens[32];
    fprintf(stderr, "\n  %-8s %s, %s, up to %s tokens\n", "model", supervisor->config->served_model_name,
            dtype_name((enum dtype)plan->init.dtype), grouped(plan->init.limits.max_len, number));
    if (plan->init.load_dummy) {
        fprintf(stderr, "  %-8s random weights (load_format dummy): answers mean nothing\n", "");
    }
    if (supervisor->config->tokenizer != NULL) {
        fprintf(stderr, "  %-8s tokenizer of %s\n", "", supervisor->config->tokenizer);
    }
    fprintf(stderr, "  %-8s %u x %s", "TP", plan->init.world, plan->init.backend);
    if (strcmp(plan->init.backend, "cuda") != 0) {
        fprintf(stderr, ", %u thread%s each%s", placement->threads, placement->threads > 1 ? "s" : "",
                placement->pinned ? ", pinned" : "");
    }
    if (plan->n_replicas > 1) {
        fprintf(stderr, ", %u replicas", plan->n_replicas);
    }
    fputc('\n', stderr);
    for (uint32_t replica = 0; replica < plan->n_replicas; replica++) {
        report_ranks(supervisor, replica);
        if (plan->init.world > 1) {
            report_collectives(group_ready(supervisor->groups[replica], 0));
        }
    }
    fprintf(stderr, "  %-8s %s blocks of %u: %s tokens\n", "KV", grouped(plan->plan.n_blocks - 1, number),
            plan->init.limits.block_size, grouped(plan->plan.kv_tokens, tokens));
    report_start(supervisor);
    fprintf(stderr, "  %-8s http://%s/v1\n", "address", supervisor->http.address);
    fprintf(stderr, "  %-8s tcp://%s\n\n", "", supervisor->tcp.address);
}

static void audit_one(const struct supervisor *supervisor, pid_t pid, enum descriptor_holder holder, const char *name) {
    struct buf differences = {0};
    const struct serve_plan *plan = supervisor->plan;
    bool cards = strcmp(plan->init.backend, "cuda") == 0;
    if (pid == 0 ||
        descriptors_audit(pid, holder, plan->n_replicas, plan->init.world, cards, &differences) != STATUS_OK) {
        return; /* it has just ended */
    }
    if (differences.size > 0) {
        log_debug("descriptors of %s (%d): %s", name, (int)pid, buf_cstr(&differences));
    } else {
        log_debug("descriptors of %s (%d): as listed", name, (int)pid);
    }
    buf_free(&differences);
}

void supervisor_audit(const struct supervisor *supervisor) {
    audit_one(supervisor, getpid(), HELD_BY_SUPERVISOR, "the supervisor");
    audit_one(supervisor, supervisor->front.child.pid, HELD_BY_FRONTEND, "the front-end");
    for (uint32_t replica = 0; replica < supervisor->plan->n_replicas; replica++) {
        for (uint32_t rank = 0; rank < supervisor->plan->init.world; rank++) {
            char name[32];
            snprintf(name, sizeof name, "worker %u r%u", replica, rank);
            audit_one(supervisor, group_pid(supervisor->groups[replica], rank), HELD_BY_WORKER, name);
        }
    }
}
