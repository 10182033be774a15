#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "launcher/descriptors.h"
#include "launcher/supervisor_internal.h"
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
    }
}

void supervisor_report(const struct supervisor *supervisor) {
    const struct serve_plan *plan = supervisor->plan;
    const struct placement *placement = &plan->placement;
    char number[32];
    char tokens[32];
    fprintf(stderr, "\n  %-8s %s, %s, up to %s tokens\n", "model", supervisor->config->served_model_name,
            dtype_name((enum dtype)plan->init.dtype), grouped(plan->init.limits.max_len, number));
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
    }
    fprintf(stderr, "  %-8s %s blocks of %u: %s tokens\n", "KV", grouped(plan->plan.n_blocks - 1, number),
            plan->init.limits.block_size, grouped(plan->plan.kv_tokens, tokens));
    fprintf(stderr, "  %-8s http://%s/v1\n", "address", supervisor->http.address);
    fprintf(stderr, "  %-8s tcp://%s\n\n", "", supervisor->tcp.address);
}

static void audit_one(const struct supervisor *supervisor, pid_t pid, enum descriptor_holder holder, const char *name) {
    struct buf differences = {0};
    const struct serve_plan *plan = supervisor->plan;
    if (pid == 0 || descriptors_audit(pid, holder, plan->n_replicas, plan->init.world, &differences) != STATUS_OK) {
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
