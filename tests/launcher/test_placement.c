#include <sys/stat.h>
#include <unistd.h>

#include "launcher/backoff.h"
#include "launcher/placement.h"
#include "tests/harness/test.h"

static struct placement_host host_of(uint32_t n_cpus, double quota) {
    struct placement_host host = {.n_cpus = n_cpus, .quota = quota};
    for (uint32_t i = 0; i < n_cpus; i++) {
        host.cpus[i] = (int32_t)i;
    }
    return host;
}

TEST(cores_are_shared_out) {
    struct placement placement;
    struct placement_host host = host_of(8, 0);
    placement_choose(&host, 2, &placement);
    EXPECT_EQ(placement.threads, 4);
    EXPECT(placement.spin && placement.pinned);
    EXPECT_EQ(placement_first_cpu(&placement, 0), 0);
    EXPECT_EQ(placement_first_cpu(&placement, 1), 4);
    placement_choose(&host, 3, &placement);
    EXPECT_EQ(placement.threads, 2);
    EXPECT_EQ(placement_first_cpu(&placement, 2), 4);
}

TEST(more_ranks_than_cores_neither_spin_nor_are_pinned) {
    struct placement placement;
    struct placement_host host = host_of(2, 0);
    placement_choose(&host, 4, &placement);
    EXPECT_EQ(placement.threads, 1);
    EXPECT(!placement.spin && !placement.pinned);
    EXPECT_EQ(placement_first_cpu(&placement, 3), -1);
}

TEST(a_quota_counts_as_fewer_cores) {
    struct placement placement;
    struct placement_host host = host_of(16, 4.5);
    placement_choose(&host, 2, &placement);
    EXPECT_EQ(placement.threads, 2);
    EXPECT(!placement.spin && !placement.pinned);
    host.quota = 0.5;
    placement_choose(&host, 2, &placement);
    EXPECT_EQ(placement.threads, 1);
    host.quota = 100; /* more than there is limits nothing */
    placement_choose(&host, 2, &placement);
    EXPECT_EQ(placement.threads, 8);
    EXPECT(placement.spin && placement.pinned);
}

TEST(a_mask_with_holes_is_not_pinned) {
    struct placement placement;
    struct placement_host host = {.n_cpus = 2, .cpus = {3, 7}};
    placement_choose(&host, 2, &placement);
    EXPECT_EQ(placement.threads, 1);
    EXPECT(placement.spin && !placement.pinned);
    host.cpus[1] = 4;
    placement_choose(&host, 2, &placement);
    EXPECT_EQ(placement_first_cpu(&placement, 1), 4);
}

TEST(this_host_can_be_read) {
    struct placement_host host;
    placement_read_host(&host);
    EXPECT(host.n_cpus >= 1);
    EXPECT(host.quota >= 0);
}

static void write_file(const char *directory, const char *name, const char *text) {
    char path[400];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "w");
    EXPECT(file != NULL);
    fputs(text, file);
    fclose(file);
}

TEST(the_least_quota_on_the_way_up_counts) {
    char root[64] = "/tmp/tandem_cgroup_XXXXXX";
    EXPECT(mkdtemp(root) != NULL);
    char inner[128];
    char outer[128];
    char list[128];
    snprintf(outer, sizeof outer, "%s/a", root);
    snprintf(inner, sizeof inner, "%s/a/b", root);
    snprintf(list, sizeof list, "%s/cgroup", root);
    EXPECT(mkdir(outer, 0700) == 0 && mkdir(inner, 0700) == 0);
    write_file(root, "cgroup", "0::/a/b\n");
    EXPECT(placement_read_quota(list, root) == 0);
    write_file(inner, "cpu.max", "max 100000\n");
    EXPECT(placement_read_quota(list, root) == 0);
    write_file(outer, "cpu.max", "150000 100000\n");
    EXPECT(placement_read_quota(list, root) == 1.5);
    write_file(inner, "cpu.max", "300000 100000\n");
    EXPECT(placement_read_quota(list, root) == 1.5);
    write_file(inner, "cpu.max", "50000 100000\n");
    EXPECT(placement_read_quota(list, root) == 0.5);
    EXPECT(placement_read_quota("/does/not/exist", root) == 0);
}

TEST(version_one_quotas_are_read) {
    char root[64] = "/tmp/tandem_cgroup_XXXXXX";
    EXPECT(mkdtemp(root) != NULL);
    char group[128];
    char list[128];
    snprintf(group, sizeof group, "%s/cpu,cpuacct", root);
    EXPECT(mkdir(group, 0700) == 0);
    snprintf(list, sizeof list, "%s/cgroup", root);
    write_file(root, "cgroup", "5:cpuset:/x\n4:cpu,cpuacct:/\n");
    write_file(group, "cpu.cfs_quota_us", "-1\n");
    write_file(group, "cpu.cfs_period_us", "100000\n");
    EXPECT(placement_read_quota(list, root) == 0);
    write_file(group, "cpu.cfs_quota_us", "250000\n");
    EXPECT(placement_read_quota(list, root) == 2.5);
}

TEST(backoff_grows_from_nothing_to_half_a_minute) {
    EXPECT_EQ(backoff_ms(1, 12345), 0);
    EXPECT_EQ(backoff_ms(2, 0), 100);
    EXPECT_EQ(backoff_ms(3, 0), 600);
    EXPECT_EQ(backoff_ms(4, 0), 3600);
    EXPECT_EQ(backoff_ms(5, 0), 21600);
    EXPECT_EQ(backoff_ms(6, 0), 30000);
    EXPECT_EQ(backoff_ms(4000000000u, UINT64_MAX), 30000);
    for (uint64_t random = 0; random < 1000; random++) {
        EXPECT(backoff_ms(2, random) >= 100 && backoff_ms(2, random) <= 125);
    }
    EXPECT(!backoff_gives_up(4) && backoff_gives_up(5));
}
