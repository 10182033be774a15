#define _GNU_SOURCE /* sched_getaffinity */
#include "launcher/placement.h"

#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "runtime/base/buf.h"

static bool read_line(const char *directory, const char *name, char *line, int size) {
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%s", directory, name) >= (int)sizeof path) {
        return false;
    }
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return false;
    }
    bool got = fgets(line, size, file) != NULL;
    fclose(file);
    return got;
}

/* "max 100000" or "150000 100000" in cpu.max; two files in version 1. */
static double quota_of(const char *directory) {
    char line[128];
    double quota;
    double period;
    if (read_line(directory, "cpu.max", line, sizeof line)) {
        return sscanf(line, "%lf %lf", &quota, &period) == 2 && quota > 0 && period > 0 ? quota / period : 0;
    }
    char other[128];
    if (read_line(directory, "cpu.cfs_quota_us", line, sizeof line) &&
        read_line(directory, "cpu.cfs_period_us", other, sizeof other)) {
        quota = strtod(line, NULL);
        period = strtod(other, NULL);
        return quota > 0 && period > 0 ? quota / period : 0;
    }
    return 0;
}

/* The least quota of `path` below `root` and of everything above it. */
static double least_quota(const char *root, char *path) {
    double least = 0;
    for (;;) {
        char directory[PATH_MAX];
        snprintf(directory, sizeof directory, "%s%s", root, path);
        double quota = quota_of(directory);
        if (quota > 0 && (least == 0 || quota < least)) {
            least = quota;
        }
        char *slash = strrchr(path, '/');
        if (slash == NULL) {
            return least;
        }
        *slash = 0;
    }
}

double placement_read_quota(const char *proc_cgroup, const char *root) {
    FILE *file = fopen(proc_cgroup, "re");
    if (file == NULL) {
        return 0;
    }
    double least = 0;
    char line[1024];
    while (fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':');
        char *path = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (path == NULL) {
            continue;
        }
        *path++ = 0;
        char mount[PATH_MAX];
        if (strcmp(controllers, ":") == 0) {
            snprintf(mount, sizeof mount, "%s", root); /* version 2 */
        } else if (strstr(controllers, "cpu") != NULL && strstr(controllers, "cpuset") == NULL) {
            snprintf(mount, sizeof mount, "%s/%s", root, controllers + 1);
        } else {
            continue;
        }
        double quota = least_quota(mount, path);
        if (quota > 0 && (least == 0 || quota < least)) {
            least = quota;
        }
    }
    fclose(file);
    return least;
}

static bool is_ours(const struct placement_host *host, long cpu) {
    for (uint32_t i = 0; i < host->n_cpus; i++) {
        if (host->cpus[i] == cpu) {
            return true;
        }
    }
    return false;
}

/* Lines "cpu3 user nice system idle iowait irq softirq steal guest guest_nice"; guests are in user already. proc(5) */
void placement_sum_ticks(const struct placement_host *host, const char *stat, uint64_t *idle, uint64_t *all) {
    *idle = *all = 0;
    for (const char *line = stat; line != NULL; line = strchr(line, '\n') != NULL ? strchr(line, '\n') + 1 : NULL) {
        long cpu;
        unsigned long long ticks[8] = {0};
        if (sscanf(line, "cpu%ld %llu %llu %llu %llu %llu %llu %llu %llu", &cpu, &ticks[0], &ticks[1], &ticks[2],
                   &ticks[3], &ticks[4], &ticks[5], &ticks[6], &ticks[7]) < 5 ||
            !is_ours(host, cpu)) {
            continue;
        }
        *idle += ticks[3] + ticks[4];
        for (int i = 0; i < 8; i++) {
            *all += ticks[i];
        }
    }
}

static bool read_ticks(const struct placement_host *host, uint64_t *idle, uint64_t *all) {
    struct buf stat = {0};
    bool got = buf_read_file(&stat, "/proc/stat", 4u << 20) == STATUS_OK;
    if (got) {
        placement_sum_ticks(host, buf_cstr(&stat), idle, all);
    }
    buf_free(&stat);
    return got;
}

static double measure_busy(const struct placement_host *host, unsigned measure_ms) {
    uint64_t idle_before;
    uint64_t all_before;
    uint64_t idle;
    uint64_t all;
    if (!read_ticks(host, &idle_before, &all_before)) {
        return 0;
    }
    struct timespec pause = {.tv_nsec = (long)measure_ms * 1000000};
    nanosleep(&pause, NULL);
    if (!read_ticks(host, &idle, &all) || all <= all_before) {
        return 0;
    }
    double share = (double)(idle - idle_before) / (double)(all - all_before);
    return share < 1 ? (1 - share) * host->n_cpus : 0;
}

void placement_read_host(struct placement_host *host, unsigned measure_ms) {
    memset(host, 0, sizeof *host);
    cpu_set_t mask;
    if (sched_getaffinity(0, sizeof mask, &mask) == 0) {
        for (int cpu = 0; cpu < CPU_SETSIZE && host->n_cpus < PLACEMENT_MAX_CPUS; cpu++) {
            if (CPU_ISSET((size_t)cpu, &mask)) {
                host->cpus[host->n_cpus++] = cpu;
            }
        }
    } else {
        long count = sysconf(_SC_NPROCESSORS_ONLN);
        for (int cpu = 0; cpu < count && cpu < PLACEMENT_MAX_CPUS; cpu++) {
            host->cpus[host->n_cpus++] = cpu;
        }
    }
    host->busy = measure_busy(host, measure_ms);
    host->quota = placement_read_quota("/proc/self/cgroup", "/sys/fs/cgroup");
}

void placement_choose(const struct placement_host *host, uint32_t n_ranks, struct placement *placement) {
    uint32_t cores = host->n_cpus > 0 ? host->n_cpus : 1;
    bool limited = host->quota > 0 && host->quota < cores;
    if (limited) {
        cores = host->quota >= 1 ? (uint32_t)host->quota : 1;
    }
    uint32_t threads = cores / n_ranks;
    threads = threads < 1 ? 1 : threads;
    threads = threads > PLACEMENT_MAX_THREADS ? PLACEMENT_MAX_THREADS : threads;
    bool fits = threads * n_ranks <= cores && threads * n_ranks <= (double)host->n_cpus - host->busy + 0.5;
    bool consecutive = host->n_cpus > 0;
    for (uint32_t i = 1; i < host->n_cpus; i++) {
        consecutive = consecutive && host->cpus[i] == host->cpus[0] + (int32_t)i;
    }
    *placement = (struct placement){
        .threads = threads,
        .spin = fits && !limited, /* a spinning thread burns the quota that the others need */
        .pinned = fits && !limited && consecutive,
        .lowest_cpu = host->n_cpus > 0 ? host->cpus[0] : 0,
    };
}

int32_t placement_first_cpu(const struct placement *placement, uint32_t rank) {
    return placement->pinned ? placement->lowest_cpu + (int32_t)(rank * placement->threads) : -1;
}
