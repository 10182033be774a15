/* Seeds of the simulator. TANDEM_SIM_SEEDS says how many (300), TANDEM_SIM_FIRST where to begin (1); a failure prints
 * its seed. */
#include "tests/engine/support_sim.h"
#include "tests/harness/test.h"

static uint64_t setting(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text != NULL ? strtoull(text, NULL, 10) : otherwise;
}

TEST_TIMEOUT(seeds_are_clean, 3600) {
    struct sim_totals totals = {0};
    uint64_t first = setting("TANDEM_SIM_FIRST", 1), count = setting("TANDEM_SIM_SEEDS", 300);
    for (uint64_t seed = first; seed < first + count; seed++) {
        sim_run(seed, &totals);
    }
    printf("%llu seeds: %llu requests, %llu tokens, %llu steps\n", (unsigned long long)totals.seeds,
           (unsigned long long)totals.requests, (unsigned long long)totals.tokens, (unsigned long long)totals.steps);
    const struct {
        const char *name;
        uint64_t value;
    } reached[] = {{"stop", totals.finished_stop},
                   {"length", totals.finished_length},
                   {"stopped by the reader", totals.stopped_by_reader},
                   {"cancelled", totals.cancelled},
                   {"timed out", totals.timed_out},
                   {"not finite", totals.not_finite},
                   {"given up", totals.given_up},
                   {"refused: busy", totals.refused_busy},
                   {"refused: limit", totals.refused_limit},
                   {"worker deaths", totals.worker_deaths},
                   {"front-end deaths", totals.frontend_deaths},
                   {"lost with the front-end", totals.lost_with_frontend},
                   {"preemptions", totals.preemptions},
                   {"replays", totals.replays},
                   {"cached tokens", totals.cached_tokens},
                   {"steps alone", totals.alone_steps}};
    for (size_t i = 0; i < sizeof reached / sizeof reached[0]; i++) {
        printf("  %-24s %llu\n", reached[i].name, (unsigned long long)reached[i].value);
        EXPECT(reached[i].value > 0 || count < 300);
    }
}

/* The same seed is the same run: what a failure prints can be replayed. */
TEST(a_seed_replays) {
    for (uint64_t seed = 1; seed <= 5; seed++) {
        struct sim_totals once = {0}, again = {0};
        sim_run(seed, &once);
        sim_run(seed, &again);
        EXPECT(memcmp(&once, &again, sizeof once) == 0);
        EXPECT(once.digest != 0);
    }
}
