#include <limits.h>

#include "launcher/backoff.h"
#include "launcher/placement.h"
#include "tests/harness/test.h"
#include "tests/launcher/support_folder.h"

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

TEST(cores_that_others_use_are_not_spun_on) {
    struct placement placement;
    struct placement_host host = host_of(8, 0);
    host.busy = 0.3; /* the noise of an idle host */
    placement_choose(&host, 2, &placement);
    EXPECT(placement.threads == 4 && placement.spin && placement.pinned);
    host.busy = 1;
    placement_choose(&host, 2, &placement);
    EXPECT(placement.threads == 4 && !placement.spin && !placement.pinned);
    placement_choose(&host, 3, &placement); /* six threads, seven free cores */
    EXPECT(placement.threads == 2 && placement.spin && placement.pinned);
}

TEST(ticks_are_summed_over_our_cores) {
    static const char stat[] = "cpu  100 0 0 100 0 0 0 0 0 0\n"
                               "cpu0 1 2 3 40 5 6 7 8 99 99\n"
                               "cpu1 1000 0 0 0 0 0 0 0 0 0\n"
                               "cpu2 10 0 0 90 0 0 0 0 0 0\n"
                               "intr 12 3\n";
    struct placement_host host = {.n_cpus = 2, .cpus = {0, 2}};
    uint64_t idle;
    uint64_t all;
    placement_sum_ticks(&host, stat, &idle, &all);
    EXPECT_EQ(idle, 135);
    EXPECT_EQ(all, 172);
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
    placement_read_host(&host, 20);
    EXPECT(host.n_cpus >= 1);
    EXPECT(host.busy >= 0 && host.busy <= host.n_cpus);
    EXPECT(host.quota >= 0);
}

static double read_quota(void) {
    char list[PATH_MAX];
    snprintf(list, sizeof list, "%s/cgroup", test_folder());
    return placement_read_quota(list, test_folder());
}

TEST(the_least_quota_on_the_way_up_counts) {
    test_folder_mkdir("a");
    test_folder_mkdir("a/b");
    EXPECT(read_quota() == 0);
    test_folder_write("cgroup", "0::/a/b\n");
    EXPECT(read_quota() == 0);
    test_folder_write("a/b/cpu.max", "max 100000\n");
    EXPECT(read_quota() == 0);
    test_folder_write("a/cpu.max", "150000 100000\n");
    EXPECT(read_quota() == 1.5);
    test_folder_write("a/b/cpu.max", "300000 100000\n");
    EXPECT(read_quota() == 1.5);
    test_folder_write("a/b/cpu.max", "50000 100000\n");
    EXPECT(read_quota() == 0.5);
}

TEST(version_one_quotas_are_read) {
    test_folder_mkdir("cpu,cpuacct");
    test_folder_write("cgroup", "5:cpuset:/x\n4:cpu,cpuacct:/\n");
    test_folder_write("cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
    test_folder_write("cpu,cpuacct/cpu.cfs_period_us", "100000\n");
    EXPECT(read_quota() == 0);
    test_folder_write("cpu,cpuacct/cpu.cfs_quota_us", "250000\n");
    EXPECT(read_quota() == 2.5);
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
