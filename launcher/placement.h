/* Which processor cores the ranks compute on. Pure arithmetic, apart from placement_read_host. */
#ifndef TANDEM_LAUNCHER_PLACEMENT_H
#define TANDEM_LAUNCHER_PLACEMENT_H

#include <stdbool.h>
#include <stdint.h>

#define PLACEMENT_MAX_CPUS 1024
#define PLACEMENT_MAX_THREADS 64 /* of one rank: more only wait for memory */

/* What this process may use. */
struct placement_host {
    uint32_t n_cpus;                  /* of the affinity mask */
    int32_t cpus[PLACEMENT_MAX_CPUS]; /* their numbers, ascending */
    double quota;                     /* cores' worth of time a cgroup allows; 0: no limit */
};

/* The affinity mask of the calling process, and the least cpu.max (cgroup v2) or cpu.cfs_quota_us (v1) of its cgroup
 * and those above it. What cannot be read counts as no limit. */
void placement_read_host(struct placement_host *host);

/* As the cgroup part of placement_read_host, below other roots than /proc/self/cgroup and /sys/fs/cgroup. */
double placement_read_quota(const char *proc_cgroup, const char *root);

struct placement {
    uint32_t threads; /* of each rank */
    bool spin;        /* all ranks' threads have a core of their own, so that a waiting one may keep it busy */
    bool pinned;      /* rank i runs on cpus first_cpu .. first_cpu + threads - 1 */
    int32_t lowest_cpu;
};

/* Threads per rank: the cores divided by the ranks, at least one. Threads are pinned and spin only while all of them
 * have a core of their own; pinned only on cores whose numbers follow each other and that no quota takes away. */
void placement_choose(const struct placement_host *host, uint32_t n_ranks, struct placement *placement);

/* First core of the i-th rank of all, -1 when not pinned. */
int32_t placement_first_cpu(const struct placement *placement, uint32_t rank);

#endif
