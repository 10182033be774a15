/* What the simulator plays from a seed: limits, requests, what is wrong with them, and what must come out of each. */
#ifndef TANDEM_TESTS_ENGINE_SUPPORT_SCENARIO_H
#define TANDEM_TESTS_ENGINE_SUPPORT_SCENARIO_H

#include <stdbool.h>

#include "runtime/base/rng.h"
#include "runtime/journal/journal.h"
#include "tests/engine/support_device.h"

#define SCENARIO_REQUESTS 48
#define SCENARIO_LEN 96
#define SCENARIO_STOPS 3
#define SCENARIO_BIAS 3
#define SCENARIO_BLOB 16

enum request_state { REQUEST_TO_COME, REQUEST_LIVE, REQUEST_OVER };

struct request {
    enum request_state state;
    struct journal_params params;
    uint32_t prompt[SCENARIO_LEN], stop_ids[SCENARIO_STOPS];
    struct step_bias bias[SCENARIO_BIAS];
    uint8_t blob[SCENARIO_BLOB];
    struct device_fault fault;
    uint32_t reader_stop; /* the reader ends it after that many tokens; 0: never */
    uint32_t patience;    /* the reader cancels after that many tokens; UINT32_MAX: never */
    uint32_t hurry;       /* its deadline, from when it is submitted; 0: none */
    /* what must come out, undisturbed */
    uint32_t expected[SCENARIO_LEN + 1], n_expected;
    enum journal_finish expected_finish;
    /* what was seen */
    struct journal_handle handle;
    bool notified, ended_by_reader;
    uint32_t n_read;
    uint32_t deaths, read_at_death; /* counted here, not by the engine */
};

struct scenario {
    uint64_t seed, rng;
    struct step_limits limits;
    struct request requests[SCENARIO_REQUESTS];
    uint32_t n_requests;
};

void scenario_make(struct scenario *scenario, uint64_t seed);

/* max_tokens of a request, or what the context leaves of them. */
uint64_t scenario_most_tokens(const struct scenario *scenario, const struct request *request);

static inline uint32_t scenario_pick(struct scenario *scenario, uint32_t below) {
    return (uint32_t)(rng_next(&scenario->rng) % below);
}

static inline bool scenario_chance(struct scenario *scenario, uint32_t percent) {
    return scenario_pick(scenario, 100) < percent;
}

#endif
