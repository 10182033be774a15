#include "tests/engine/support_sim.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/check.h"
#include "runtime/base/hash.h"
#include "runtime/base/log.h"
#include "runtime/engine/engine.h"
#include "tests/engine/support_device.h"
#include "tests/engine/support_scenario.h"

#define DISTURBED_ROUNDS 3000 /* after these nothing dies and nobody cancels any more */
#define MAX_ROUNDS 200000     /* by then all has ended, or something hangs */

struct sim {
    struct scenario scenario;
    struct engine_config config;
    int memfd;
    size_t journal_bytes;
    uint32_t n_slots;
    struct journal *journal;
    struct engine *engine;
    struct device *device; /* NULL while no group is up */
    struct device_config device_config;
    bool frontend_dies;
    uint32_t epoch;
    uint64_t now;
    uint64_t round;
    uint32_t next_request;
    const struct request *suspect;                       /* has a row in the step that is looked at */
    uint32_t death_chance, frontend_chance, slow_chance; /* per 10,000 rounds */
    struct sim_totals *totals;
};

static char seed_text[64];

static void on_abort(int signal_number) {
    ssize_t put = write(2, seed_text, strlen(seed_text));
    (void)put;
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static uint32_t pick(struct sim *sim, uint32_t below) {
    return scenario_pick(&sim->scenario, below);
}

static bool chance(struct sim *sim, uint32_t percent) {
    return scenario_chance(&sim->scenario, percent);
}

static struct request *find(struct sim *sim, uint64_t seed, uint32_t choice) {
    for (uint32_t i = 0; i < sim->scenario.n_requests; i++) {
        struct request *request = &sim->scenario.requests[i];
        if (request->params.sampling.seed == seed && request->params.sampling.choice == choice) {
            return request;
        }
    }
    CHECK(false, "nobody's seed");
    return NULL;
}

/* ---- engine and group */

static void on_notify(void *context, struct journal_handle handle, uint64_t user) {
    struct sim *sim = context;
    struct request *request = &sim->scenario.requests[user];
    CHECK(request->state == REQUEST_LIVE && request->handle.slot == handle.slot &&
              request->handle.generation == handle.generation,
          "news of request %llu, which is not live", (unsigned long long)user);
    request->notified = true;
}

static void on_death(void *context, uint64_t seed, uint32_t choice) {
    struct sim *sim = context;
    struct request *request = find(sim, seed, choice);
    uint32_t n_output;
    enum journal_finish finish;
    if (request->state != REQUEST_LIVE ||
        journal_progress(sim->journal, request->handle, &n_output, &finish) != STATUS_OK || finish != JOURNAL_RUNNING) {
        return;
    }
    if (n_output > request->read_at_death) {
        request->deaths = 0;
    }
    request->deaths++;
    request->read_at_death = n_output;
}

static void on_closed(void *context) {
    struct sim *sim = context;
    if (!sim->frontend_dies) {
        device_in_flight(sim->device, on_death, sim);
        sim->totals->worker_deaths++;
    }
    sim->device = NULL;
}

static struct device_fault fault_of(void *context, uint64_t seed) {
    return find(context, seed, 0)->fault;
}

static void open_engine(struct sim *sim, bool format) {
    enum status status = journal_open(sim->memfd, sim->journal_bytes, sim->n_slots, format, &sim->journal);
    CHECK(status == STATUS_OK, "%s", status_text());
    sim->config.journal = sim->journal;
    sim->engine = engine_create(&sim->config);
    if (!format) {
        engine_recover(sim->engine);
    }
    engine_check(sim->engine);
}

static void add_stats(struct sim *sim) {
    struct engine_stats stats;
    engine_stats(sim->engine, &stats);
    sim->totals->steps += stats.steps;
    sim->totals->preemptions += stats.preemptions;
    sim->totals->replays += stats.replays;
    sim->totals->cached_tokens += stats.cached_tokens;
}

static void frontend_death(struct sim *sim) {
    add_stats(sim);
    sim->frontend_dies = true;
    engine_destroy(sim->engine);
    sim->frontend_dies = false;
    CHECK(sim->device == NULL, "the port outlives the engine");
    journal_close(sim->journal);
    for (uint32_t i = 0; i < sim->scenario.n_requests; i++) {
        sim->scenario.requests[i].notified = true; /* the new front-end looks at everything */
    }
    open_engine(sim, false);
    sim->totals->frontend_deaths++;
    for (uint32_t i = 0; i < sim->scenario.n_requests; i++) {
        struct request *request = &sim->scenario.requests[i];
        uint32_t n_output;
        enum journal_finish finish;
        bool survives = (request->params.flags & JOURNAL_SURVIVES_FRONTEND) != 0;
        if (request->state != REQUEST_LIVE) {
            continue;
        }
        enum status status = journal_progress(sim->journal, request->handle, &n_output, &finish);
        CHECK(status == (survives ? STATUS_OK : STATUS_NOT_FOUND), "request %u after the front-end's death: %s", i,
              status_name(status));
        if (!survives) {
            request->state = REQUEST_OVER;
            sim->totals->lost_with_frontend++;
        }
    }
}

static void on_company(void *context, uint64_t seed, uint32_t choice) {
    struct sim *sim = context;
    CHECK(find(sim, seed, choice) == sim->suspect, "a suspect has company");
}

static void on_row(void *context, uint64_t seed, uint32_t choice) {
    struct sim *sim = context;
    struct request *request = find(sim, seed, choice);
    if (request->state == REQUEST_LIVE && journal_deaths(sim->journal, request->handle) >= 2) {
        sim->suspect = request;
        device_in_flight(sim->device, on_company, sim);
        sim->totals->alone_steps++;
    }
}

static void tick(struct sim *sim) {
    uint32_t before = sim->device != NULL ? device_backlog(sim->device) : 0;
    engine_tick(sim->engine, sim->now);
    engine_check(sim->engine);
    if (sim->device != NULL && device_backlog(sim->device) > 0 && device_backlog(sim->device) >= before) {
        device_newest_rows(sim->device, on_row, sim);
    }
    CHECK(sim->device == NULL || device_backlog(sim->device) <= (sim->config.overlap ? 2 : 1), "%u steps in flight",
          device_backlog(sim->device));
}

/* ---- readers */

static void note(struct sim *sim, uint64_t what, uint64_t value) {
    uint64_t words[2] = {what, value};
    sim->totals->digest = hash64(sim->totals->digest, words, sizeof words);
}

static void check_token(const struct sim *sim, const struct request *request, const struct journal_token *token) {
    uint32_t at = request->n_read;
    CHECK(at < request->n_expected, "request %llu goes on after %u tokens", (unsigned long long)request->params.user,
          request->n_expected);
    CHECK(token->id == request->expected[at], "request %llu: token %u is %u, undisturbed it is %u",
          (unsigned long long)request->params.user, at, token->id, request->expected[at]);
    int32_t n_logprobs = request->params.sampling.n_logprobs;
    if (n_logprobs > 0) {
        /* The draw puts its token first and counts on from it. */
        CHECK(token->n_top == (uint32_t)n_logprobs && token->top_id[0] == token->id &&
                  token->top_id[n_logprobs - 1] ==
                      (token->top_id[0] + (uint32_t)n_logprobs - 1) % sim->scenario.limits.vocab_size &&
                  token->top_logprob[0] - token->top_logprob[n_logprobs - 1] == (float)(n_logprobs - 1),
              "log-probabilities of token %u", at);
    }
}

static void check_error(struct sim *sim, const struct request *request, const struct journal_state *state) {
    if (state->error_code == STATUS_TIMEOUT) {
        CHECK(request->params.deadline_ns != 0 && sim->now >= request->params.deadline_ns, "an early deadline");
        sim->totals->timed_out++;
    } else if (strstr(state->error_text, "finite") != NULL) {
        CHECK(request->fault.nan_from != DEVICE_NEVER && state->n_output == request->n_expected,
              "NaN after %u of %u tokens", state->n_output, request->n_expected);
        sim->totals->not_finite++;
    } else {
        CHECK(strstr(state->error_text, "three times") != NULL && request->deaths >= 3, "%s, after %u deaths",
              state->error_text, request->deaths);
        sim->totals->given_up++;
    }
}

static void check_end(struct sim *sim, struct request *request, const struct journal_state *state) {
    uint32_t n = state->n_output;
    bool natural = state->finish == request->expected_finish && n == request->n_expected;
    CHECK(state->params.user == request->params.user && state->params.n_prompt == request->params.n_prompt,
          "another request's journal slot");
    switch (state->finish) {
    case JOURNAL_FINISH_STOP:
        CHECK(natural || (request->ended_by_reader && n == request->reader_stop), "a stop after %u tokens of %u", n,
              request->n_expected);
        sim->totals->stopped_by_reader += !natural;
        sim->totals->finished_stop += natural;
        break;
    case JOURNAL_FINISH_LENGTH:
        CHECK(natural, "length after %u tokens of %u", n, request->n_expected);
        sim->totals->finished_length++;
        break;
    case JOURNAL_FINISH_CANCELLED:
        CHECK(request->ended_by_reader && n <= request->n_read, "a cancel nobody asked for");
        sim->totals->cancelled++;
        break;
    case JOURNAL_FINISH_ERROR: check_error(sim, request, state); break;
    case JOURNAL_RUNNING: CHECK(false, "not an end"); break;
    }
    sim->totals->tokens += n;
}

static void check_fixed(struct sim *sim, const struct request *request) {
    uint32_t prompt[SCENARIO_LEN], stop_ids[SCENARIO_STOPS];
    struct step_bias bias[SCENARIO_BIAS];
    uint8_t blob[SCENARIO_BLOB];
    enum status status = journal_read_fixed(sim->journal, request->handle, prompt, stop_ids, bias, blob);
    const struct journal_params *params = &request->params;
    CHECK(status == STATUS_OK && memcmp(prompt, request->prompt, params->n_prompt * sizeof prompt[0]) == 0 &&
              memcmp(stop_ids, request->stop_ids, params->n_stop_ids * sizeof stop_ids[0]) == 0 &&
              memcmp(bias, request->bias, params->n_bias * sizeof bias[0]) == 0 &&
              memcmp(blob, request->blob, params->n_blob) == 0,
          "the journal changed what was asked");
}

/* Reads what is new; ends, cancels and releases as its request wants. */
static void read_one(struct sim *sim, struct request *request) {
    request->notified = false;
    struct journal_state state;
    enum status status = journal_state(sim->journal, request->handle, &state);
    CHECK(status == STATUS_OK, "%s", status_text());
    for (; request->n_read < state.n_output; request->n_read++) {
        struct journal_token token;
        status = journal_read(sim->journal, request->handle, request->n_read, 1, &token);
        CHECK(status == STATUS_OK, "%s", status_text());
        check_token(sim, request, &token);
        note(sim, request->params.user, token.id);
    }
    CHECK(request->n_read <= state.n_output || request->ended_by_reader, "tokens were taken back");
    if (state.finish != JOURNAL_RUNNING) {
        check_end(sim, request, &state);
        check_fixed(sim, request);
        note(sim, request->params.user, 1000 + (uint64_t)state.finish);
        request->state = REQUEST_OVER;
        engine_release(sim->engine, request->handle);
        engine_check(sim->engine);
        CHECK(journal_state(sim->journal, request->handle, &state) == STATUS_NOT_FOUND, "a released slot is there");
        return;
    }
    if (request->ended_by_reader) {
        return;
    }
    if (request->reader_stop != 0 && request->n_read >= request->reader_stop) {
        request->ended_by_reader = true;
        engine_end(sim->engine, request->handle, JOURNAL_FINISH_STOP, request->reader_stop);
    } else if (request->n_read >= request->patience) {
        request->ended_by_reader = true;
        engine_end(sim->engine, request->handle, JOURNAL_FINISH_CANCELLED, request->n_read);
    }
    engine_check(sim->engine);
}

static void read_some(struct sim *sim) {
    for (uint32_t i = 0; i < sim->scenario.n_requests; i++) {
        if (sim->scenario.requests[i].state == REQUEST_LIVE && sim->scenario.requests[i].notified && chance(sim, 70)) {
            read_one(sim, &sim->scenario.requests[i]);
        }
    }
}

/* ---- rounds */

static void submit_next(struct sim *sim) {
    if (sim->next_request == sim->scenario.n_requests) {
        return;
    }
    struct request *request = &sim->scenario.requests[sim->next_request];
    if (request->hurry > 0) {
        request->params.deadline_ns = sim->now + request->hurry;
    }
    struct engine_request wanted = {.params = request->params,
                                    .prompt = request->prompt,
                                    .stop_ids = request->stop_ids,
                                    .bias = request->bias,
                                    .blob = request->blob};
    enum status status = engine_submit(sim->engine, &wanted, sim->now, &request->handle);
    engine_check(sim->engine);
    uint64_t positions = request->params.n_prompt + scenario_most_tokens(&sim->scenario, request) - 1;
    bool too_long = positions > (uint64_t)(sim->scenario.limits.n_blocks - 1) * sim->scenario.limits.block_size;
    if (status == STATUS_BUSY) {
        sim->totals->refused_busy++;
        return;
    }
    sim->next_request++;
    sim->totals->requests++;
    CHECK((status == STATUS_LIMIT) == too_long, "%u + %u tokens: %s", request->params.n_prompt,
          request->params.max_tokens, status_name(status));
    if (status == STATUS_OK) {
        request->state = REQUEST_LIVE;
    } else {
        CHECK(status == STATUS_LIMIT || (status == STATUS_TIMEOUT && request->params.deadline_ns <= sim->now), "%s",
              status_text());
        request->state = REQUEST_OVER;
        sim->totals->refused_limit += status == STATUS_LIMIT;
    }
}

static void disturb(struct sim *sim) {
    if (sim->device != NULL && pick(sim, 10000) < sim->death_chance) {
        if (chance(sim, 50)) {
            device_kill(sim->device); /* its link closes */
        } else {
            engine_port_lost(sim->engine, sim->now); /* the supervisor says so */
            engine_check(sim->engine);
        }
    }
    if (pick(sim, 10000) < sim->frontend_chance) {
        frontend_death(sim);
    }
    if (pick(sim, 10000) < 20) {
        struct request *request = &sim->scenario.requests[pick(sim, sim->scenario.n_requests)];
        if (request->state == REQUEST_LIVE && !request->ended_by_reader) {
            request->ended_by_reader = true;
            engine_end(sim->engine, request->handle, JOURNAL_FINISH_CANCELLED, request->n_read);
            engine_check(sim->engine);
        }
    }
}

static void new_group(struct sim *sim) {
    sim->device = device_create(&sim->device_config, ++sim->epoch);
    engine_set_port(sim->engine, device_port(sim->device), sim->now);
    engine_check(sim->engine);
}

static void one_round(struct sim *sim) {
    sim->now += 1 + pick(sim, 20);
    bool slow = pick(sim, 10000) < sim->slow_chance;
    switch (pick(sim, 6)) {
    case 0: submit_next(sim); break;
    case 1: read_some(sim); break;
    case 2:
        if (sim->device != NULL && !slow) {
            device_execute(sim->device);
        }
        break;
    case 3:
        if (sim->device != NULL && !slow) {
            device_report(sim->device);
        }
        break;
    default: tick(sim); break;
    }
    if (sim->device == NULL && chance(sim, 10)) {
        new_group(sim);
    }
    if (sim->round < DISTURBED_ROUNDS) {
        disturb(sim);
    }
}

static bool all_over(const struct sim *sim) {
    for (uint32_t i = 0; i < sim->scenario.n_requests; i++) {
        if (sim->scenario.requests[i].state != REQUEST_OVER) {
            return false;
        }
    }
    return true;
}

/* Nothing is left behind. Steps may still be in flight: rows whose sequence ended. */
static void check_rest(struct sim *sim) {
    size_t used, total;
    struct engine_stats stats;
    engine_stats(sim->engine, &stats);
    journal_usage(sim->journal, &used, &total);
    CHECK(used == 0 && stats.running == 0 && stats.waiting == 0 && stats.blocks_used == 0,
          "%zu journal bytes, %u running, %u waiting, %u blocks are left", used, stats.running, stats.waiting,
          stats.blocks_used);
}

static void setup(struct sim *sim) {
    sim->n_slots = 2 + pick(sim, 2 * sim->scenario.limits.n_slots + 8);
    size_t pool = (size_t)(8 + pick(sim, 64)) * 4096;
    sim->journal_bytes = journal_bytes(sim->n_slots, pool);
    enum status status = memfd_make("sim-journal", sim->journal_bytes, &sim->memfd);
    CHECK(status == STATUS_OK, "%s", status_text());
    sim->death_chance = chance(sim, 50) ? pick(sim, 80) : 0;
    sim->frontend_chance = chance(sim, 30) ? pick(sim, 40) : 0;
    sim->slow_chance = pick(sim, 9000);
    sim->config = (struct engine_config){.limits = sim->scenario.limits,
                                         .queue_max = 1 + pick(sim, 20),
                                         .prefix_cache = chance(sim, 80),
                                         .overlap = chance(sim, 70),
                                         .notify = on_notify,
                                         .context = sim};
    sim->device_config =
        (struct device_config){.limits = sim->scenario.limits, .fault = fault_of, .closed = on_closed, .context = sim};
}

void sim_run(uint64_t seed, struct sim_totals *totals) {
    static struct sim sim;
    memset(&sim, 0, sizeof sim);
    scenario_make(&sim.scenario, seed);
    sim.totals = totals;
    snprintf(seed_text, sizeof seed_text, "the simulator's seed is %llu\n", (unsigned long long)seed);
    signal(SIGABRT, on_abort);
    log_setup(LOG_ERROR, "sim");
    setup(&sim);
    open_engine(&sim, true);
    for (; !all_over(&sim); sim.round++) {
        CHECK(sim.round < MAX_ROUNDS, "requests hang");
        one_round(&sim);
    }
    check_rest(&sim);
    add_stats(&sim);
    sim.frontend_dies = true;
    engine_destroy(sim.engine);
    journal_close(sim.journal);
    close(sim.memfd);
    totals->seeds++;
}
