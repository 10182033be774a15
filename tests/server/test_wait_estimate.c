/* The wait of a queue, from the ends that were seen. */
#include "runtime/server/wait_estimate.h"
#include "tests/harness/test.h"

TEST(nothing_is_guessed) {
    struct wait_estimate estimate = {0};
    wait_estimate_note(&estimate, 0, 50, 0);
    wait_estimate_note(&estimate, 3, 50, 900);
    EXPECT_EQ(wait_estimate_ms(&estimate, 50), 0);
}

TEST(a_queue_takes_its_length_times_the_time_between_two_ends) {
    struct wait_estimate estimate = {0};
    wait_estimate_note(&estimate, 10, 50, 0);
    wait_estimate_note(&estimate, 14, 46, 800);
    EXPECT_EQ(wait_estimate_ms(&estimate, 46), 46 * 200);
    EXPECT_EQ(wait_estimate_ms(&estimate, 0), 0);
}

TEST(time_without_a_queue_does_not_count) {
    struct wait_estimate estimate = {0};
    wait_estimate_note(&estimate, 0, 8, 0);
    wait_estimate_note(&estimate, 4, 4, 400);
    wait_estimate_note(&estimate, 8, 0, 800);
    for (uint64_t now = 900; now < 100000; now += 100) {
        wait_estimate_note(&estimate, 8, 0, now);
    }
    wait_estimate_note(&estimate, 8, 5, 100000);
    wait_estimate_note(&estimate, 12, 5, 100400);
    EXPECT_EQ(wait_estimate_ms(&estimate, 1), 100);
}

TEST(a_change_shows_and_one_outlier_does_not_rule) {
    struct wait_estimate estimate = {0};
    uint64_t ends = 0;
    uint64_t now = 0;
    wait_estimate_note(&estimate, ends, 9, now);
    for (int i = 0; i < 20; i++) {
        wait_estimate_note(&estimate, ends += 4, 9, now += 400);
    }
    wait_estimate_note(&estimate, ends += 4, 9, now += 4000);
    EXPECT(wait_estimate_ms(&estimate, 1) > 100 && wait_estimate_ms(&estimate, 1) < 400);
    for (int i = 0; i < 40; i++) {
        wait_estimate_note(&estimate, ends += 4, 9, now += 4000);
    }
    EXPECT(wait_estimate_ms(&estimate, 1) > 950 && wait_estimate_ms(&estimate, 1) <= 1000);
}

TEST(few_ends_in_a_long_time_are_a_sample_too) {
    struct wait_estimate estimate = {0};
    wait_estimate_note(&estimate, 0, 9, 0);
    wait_estimate_note(&estimate, 1, 9, 20000);
    EXPECT_EQ(wait_estimate_ms(&estimate, 1), 0);
    wait_estimate_note(&estimate, 1, 9, 30000);
    EXPECT_EQ(wait_estimate_ms(&estimate, 1), 30000);
}
