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
    double busy;                      /* cores' worth of them that other programs keep busy */
    double quota;                     /* cores' worth of time a cgroup allows; 0: no limit */
};

/* The affinity mask of the calling process, how busy others keep its cores during the next `measure_ms` (the call takes
 * that long), and the least cpu.max (cgroup v2) or cpu.cfs_quota_us (v1) of its cgroup and those above it. What cannot
 * be read counts as no load and no limit. */
void placement_read_host(struct placement_host *host, unsigned measure_ms);

/* As the cgroup part of placement_read_host, below other roots than /proc/self/cgroup and /sys/fs/cgroup. */
double placement_read_quota(const char *proc_cgroup, const char *root);

struct placement {
    uint32_t threads; /* of each rank */
    bool spin;        /* all ranks' threads have a core of their own, so that a waiting one may keep it busy */
    bool pinned;      /* rank i runs on cpus first_cpu .. first_cpu + threads - 1 */
    int32_t lowest_cpu;
};

/* Sums the idle and all ticks of the host's cores in a text like /proc/stat. */
void placement_sum_ticks(const struct placement_host *host, const char *stat, uint64_t *idle, uint64_t *all);

/* Threads per rank: the cores divided by the ranks, at least one. Threads are pinned and spin only where all of them
 * find a core that is free: one that spins on a core which others want waits for its turn when its partners have come,
 * which costs a scheduler's time slice where a futex costs microseconds. Pinned only on cores whose numbers follow each
 * other. A quota would be burnt by spinning. */
void placement_choose(const struct placement_host *host, uint32_t n_ranks, struct placement *placement);

/* First core of the i-th rank of all, -1 when not pinned. */
int32_t placement_first_cpu(const struct placement *placement, uint32_t rank);

#endif
