#include "tests/engine/support_scenario.h"

#include <string.h>

static struct step_sampling random_sampling(struct scenario *scenario, uint64_t seed) {
    struct step_sampling sampling = {.seed = seed, .top_p = 1, .repetition_penalty = 1, .n_logprobs = -1};
    if (scenario_chance(scenario, 50)) {
        sampling.temperature = (float)scenario_pick(scenario, 20) / 10;
        sampling.top_k = scenario_pick(scenario, 5);
        sampling.top_p = (float)(1 + scenario_pick(scenario, 10)) / 10;
        sampling.presence_penalty = (float)scenario_pick(scenario, 3);
    }
    if (scenario_chance(scenario, 30)) {
        sampling.n_logprobs = (int32_t)scenario_pick(scenario, STEP_MAX_LOGPROBS + 1);
    }
    return sampling;
}

static void random_prompt(struct scenario *scenario, struct request *request) {
    uint32_t vocab = scenario->limits.vocab_size;
    uint32_t most = scenario->limits.max_len - 1;
    uint32_t n = 1 + scenario_pick(scenario, scenario_chance(scenario, 20) ? most : most / 2);
    /* A few families of prefixes, so that the cache has something to find. */
    uint32_t family = scenario_pick(scenario, 3),
             shared = scenario_chance(scenario, 60) ? scenario_pick(scenario, n + 1) : 0;
    for (uint32_t i = 0; i < n; i++) {
        request->prompt[i] = i < shared ? (family * 7 + i * 3) % vocab : scenario_pick(scenario, vocab);
    }
    request->params.n_prompt = n;
    request->params.max_tokens =
        1 + scenario_pick(scenario, scenario_chance(scenario, 20) ? 2 * scenario->limits.max_len : 20);
}

uint64_t scenario_most_tokens(const struct scenario *scenario, const struct request *request) {
    uint32_t room = scenario->limits.max_len - request->params.n_prompt;
    return request->params.max_tokens < room ? request->params.max_tokens : room;
}

/* The undisturbed computation. */
static void foresee(const struct scenario *scenario, struct request *request) {
    const struct journal_params *params = &request->params;
    uint32_t ids[SCENARIO_LEN + 1] = {0}, n_ids = params->n_prompt;
    memcpy(ids, request->prompt, n_ids * sizeof ids[0]);
    struct step_sampling sampling = params->sampling;
    sampling.prompt_len = params->n_prompt;
    sampling.bias_count = params->n_bias;
    uint64_t content = 0;
    for (uint32_t pos = 0; pos + 1 < n_ids; pos++) {
        content = model_content(content, ids[pos], pos);
    }
    request->expected_finish = JOURNAL_RUNNING;
    while (request->expected_finish == JOURNAL_RUNNING) {
        if (n_ids > request->fault.nan_from || n_ids > request->fault.kill_from) {
            request->expected_finish = JOURNAL_FINISH_ERROR;
            return;
        }
        struct step_result result;
        content = model_content(content, ids[n_ids - 1], n_ids - 1);
        model_draw(content, &sampling, request->bias, n_ids, scenario->limits.vocab_size, &result);
        ids[n_ids++] = result.id;
        request->expected[request->n_expected++] = result.id;
        for (uint32_t i = 0; i < params->n_stop_ids; i++) {
            if (request->stop_ids[i] == result.id) {
                request->expected_finish = JOURNAL_FINISH_STOP;
            }
        }
        if (request->expected_finish == JOURNAL_RUNNING &&
            request->n_expected == scenario_most_tokens(scenario, request)) {
            request->expected_finish = JOURNAL_FINISH_LENGTH;
        }
    }
}

static void random_request(struct scenario *scenario, uint32_t index) {
    struct request *request = &scenario->requests[index];
    memset(request, 0, sizeof *request);
    struct journal_params *params = &request->params;
    params->sampling = random_sampling(scenario, scenario->seed * 1000 + index);
    random_prompt(scenario, request);
    memcpy(params->request_id, &index, sizeof index);
    params->user = index;
    params->flags = scenario_chance(scenario, 80) ? JOURNAL_SURVIVES_FRONTEND : 0;
    params->n_stop_ids = scenario_pick(scenario, SCENARIO_STOPS + 1);
    for (uint32_t i = 0; i < params->n_stop_ids; i++) {
        request->stop_ids[i] = scenario_pick(scenario, scenario->limits.vocab_size);
    }
    params->n_bias = scenario_chance(scenario, 20) ? scenario_pick(scenario, SCENARIO_BIAS + 1) : 0;
    for (uint32_t i = 0; i < params->n_bias; i++) {
        request->bias[i] = (struct step_bias){.id = scenario_pick(scenario, scenario->limits.vocab_size),
                                              .value = (float)scenario_pick(scenario, 9)};
    }
    params->n_blob = scenario_pick(scenario, sizeof request->blob + 1);
    memset(request->blob, (int)index, sizeof request->blob);
    request->fault = (struct device_fault){.nan_from = DEVICE_NEVER, .kill_from = DEVICE_NEVER};
    if (scenario_chance(scenario, 4)) {
        request->fault.nan_from = scenario_pick(scenario, scenario->limits.max_len);
    } else if (scenario_chance(scenario, 2)) {
        request->fault.kill_from = scenario_pick(scenario, scenario->limits.max_len);
    }
    request->reader_stop = scenario_chance(scenario, 15) ? 1 + scenario_pick(scenario, 12) : 0;
    request->hurry = scenario_chance(scenario, 6) ? 1 + scenario_pick(scenario, 20000) : 0;
    request->patience = scenario_chance(scenario, 12) ? scenario_pick(scenario, 10) : UINT32_MAX;
}

/* Choices of one request: the same but for the choice's number. */
static void random_requests(struct scenario *scenario) {
    scenario->n_requests = 8 + scenario_pick(scenario, SCENARIO_REQUESTS - 8);
    for (uint32_t i = 0; i < scenario->n_requests;) {
        uint32_t n = scenario_chance(scenario, 15) ? 2 + scenario_pick(scenario, 4) : 1;
        random_request(scenario, i);
        for (uint32_t k = 1; k < n && i + k < scenario->n_requests; k++) {
            scenario->requests[i + k] = scenario->requests[i];
            scenario->requests[i + k].params.sampling.choice = k;
            scenario->requests[i + k].params.user = i + k;
        }
        for (uint32_t k = 0; k < n && i + k < scenario->n_requests; k++) {
            foresee(scenario, &scenario->requests[i + k]);
        }
        i += n;
    }
}

static void random_limits(struct scenario *scenario) {
    uint32_t block_size = scenario_chance(scenario, 70) ? 4 : scenario_chance(scenario, 50) ? 16 : 1;
    uint32_t max_len = 16 + scenario_pick(scenario, SCENARIO_LEN - 16);
    uint32_t full = (max_len + block_size - 1) / block_size;
    uint32_t n_slots = 1 + scenario_pick(scenario, 8);
    uint32_t max_tokens =
        scenario_chance(scenario, 20) ? 1 + scenario_pick(scenario, 8) : 8 + scenario_pick(scenario, 64);
    uint32_t n_blocks = 1 + (scenario_chance(scenario, 15)   ? full / 2 + 1
                             : scenario_chance(scenario, 60) ? full + scenario_pick(scenario, full)
                                                             : full * n_slots);
    scenario->limits =
        (struct step_limits){.max_rows = scenario_chance(scenario, 80) ? n_slots : 1 + scenario_pick(scenario, n_slots),
                             .max_tokens = max_tokens,
                             .n_slots = n_slots,
                             .max_len = max_len,
                             .block_size = block_size,
                             .n_blocks = n_blocks,
                             .vocab_size = 5 + scenario_pick(scenario, 60),
                             .max_ids = max_len + max_tokens};
}

void scenario_make(struct scenario *scenario, uint64_t seed) {
    memset(scenario, 0, sizeof *scenario);
    scenario->seed = seed;
    scenario->rng = seed * 0x9E3779B97F4A7C15ull + 1;
    random_limits(scenario);
    random_requests(scenario);
}
