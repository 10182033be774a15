#define _DEFAULT_SOURCE /* getrandom */
#include "runtime/engine/engine.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/engine/engine_state.h"

#define DEATHS_MAX 3

struct engine *engine_create(const struct engine_config *config) {
    const struct step_limits *limits = &config->limits;
    CHECK(limits->max_ids >= limits->max_len, "max_ids %u is below max_len %u", limits->max_ids, limits->max_len);
    CHECK(limits->max_rows > 0 && limits->max_tokens > 0 && limits->n_slots > 0, "a step could hold nothing");
    struct engine *engine = xcalloc(1, sizeof *engine);
    engine->config = *config;
    engine->limits = *limits;
    engine->journal = config->journal;
    engine->depth = config->overlap ? ENGINE_MAX_DEPTH : 1;
    uint64_t seed = 0;
    if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) != (ssize_t)sizeof seed) {
        seed = (uint64_t)(size_t)engine; /* as random as the kernel lays out memory */
    }
    engine->kv = kv_blocks_create(limits->n_blocks, limits->block_size, seed);
    engine->builder = step_builder_create(limits);
    engine->n_sequences = journal_slots(config->journal);
    engine->sequences = xcalloc(engine->n_sequences, sizeof engine->sequences[0]);
    engine->stop_ids = xcalloc((size_t)engine->n_sequences * ENGINE_MAX_STOP_IDS, sizeof engine->stop_ids[0]);
    engine->next_order = 1;
    engine->next_ticket = 1;
    engine->waiting_first = engine->waiting_last = NO_SEQUENCE;
    engine->running = xcalloc(limits->n_slots, sizeof engine->running[0]);
    engine->table_len = (limits->max_len + limits->block_size - 1) / limits->block_size;
    engine->tables = xcalloc((size_t)limits->n_slots * engine->table_len, sizeof engine->tables[0]);
    engine->free_slots = xcalloc(limits->n_slots, sizeof engine->free_slots[0]);
    for (uint32_t slot = limits->n_slots; slot-- > 0;) {
        engine->free_slots[engine->n_free_slots++] = slot;
    }
    for (uint32_t i = 0; i < ENGINE_MAX_DEPTH; i++) {
        engine->flights[i].rows = xcalloc(limits->max_rows, sizeof engine->flights[i].rows[0]);
    }
    engine->next_step = 1;
    engine->alone = engine->blocked = NO_SEQUENCE;
    engine->next_deadline_ns = UINT64_MAX;
    engine->dirty = xcalloc(engine->n_sequences, sizeof engine->dirty[0]);
    engine->ids = xcalloc(limits->max_len, sizeof engine->ids[0]);
    engine->hits = xcalloc(engine->table_len, sizeof engine->hits[0]);
    engine->bias = xcalloc(STEP_MAX_LOGIT_BIAS, sizeof engine->bias[0]);
    engine->block_ids = xcalloc(limits->block_size, sizeof engine->block_ids[0]);
    engine->references = xcalloc(limits->n_blocks, sizeof engine->references[0]);
    return engine;
}

void engine_destroy(struct engine *engine) {
    if (engine == NULL) {
        return;
    }
    if (engine->port != NULL) {
        engine->port->ops->close(engine->port);
    }
    kv_blocks_destroy(engine->kv);
    step_builder_destroy(engine->builder);
    for (uint32_t i = 0; i < ENGINE_MAX_DEPTH; i++) {
        free(engine->flights[i].rows);
    }
    free(engine->sequences);
    free(engine->stop_ids);
    free(engine->running);
    free(engine->tables);
    free(engine->free_slots);
    free(engine->dirty);
    free(engine->ids);
    free(engine->hits);
    free(engine->bias);
    free(engine->block_ids);
    free(engine->references);
    free(engine);
}

enum status engine_submit(struct engine *engine, const struct engine_request *request, uint64_t now_ns,
                          struct journal_handle *handle) {
    struct journal_params params;
    TRY(sequence_check(engine, request, &params));
    if (engine->n_waiting_new >= engine->config.queue_max) {
        FAIL(STATUS_BUSY, "%u requests wait already: come again", engine->n_waiting_new);
    }
    if (params.deadline_ns != 0 && params.deadline_ns <= now_ns) {
        FAIL(STATUS_TIMEOUT, "the request's deadline has passed");
    }
    TRY(journal_admit(engine->journal, &params, request->prompt, request->stop_ids, request->bias, request->blob,
                      handle));
    sequence_add(engine, *handle, &params, request->stop_ids, 0);
    return STATUS_OK;
}

void engine_end(struct engine *engine, struct journal_handle handle, enum journal_finish finish, uint32_t n_output) {
    uint32_t index = sequence_find(engine, handle);
    if (index == NO_SEQUENCE || !sequence_live(&engine->sequences[index])) {
        return;
    }
    const struct sequence *sequence = &engine->sequences[index];
    uint32_t n = sequence->n_known - sequence->n_prompt;
    sequence_finish(engine, index, finish, STATUS_OK, NULL, n_output < n ? n_output : n);
    engine_flush(engine);
}

void engine_release(struct engine *engine, struct journal_handle handle) {
    uint32_t index = sequence_find(engine, handle);
    if (index == NO_SEQUENCE) {
        return;
    }
    struct sequence *sequence = &engine->sequences[index];
    if (sequence_live(sequence)) {
        engine_end(engine, handle, JOURNAL_FINISH_CANCELLED, UINT32_MAX);
    }
    /* Rows in flight may still name it; their ticket tells that its stay is over. */
    sequence->state = SEQUENCE_FREE;
    journal_release(engine->journal, handle);
}

/* ---- the group */

static const char death_text[] = "the workers died three times while they computed this request; it was given up";

/* Counts a death for every sequence that was in flight in the lost steps. */
static void count_deaths(struct engine *engine) {
    for (uint32_t k = engine->n_flights; k > 0; k--) {
        const struct flight *flight = &engine->flights[(engine->next_step - k) % ENGINE_MAX_DEPTH];
        for (uint32_t i = 0; i < flight->n_rows; i++) {
            uint32_t index = flight->rows[i].sequence;
            struct sequence *sequence = &engine->sequences[index];
            if (sequence->ticket != flight->rows[i].ticket) {
                continue;
            }
            sequence->ticket = engine->next_ticket++; /* so that a second row of it does not count */
            if (sequence->deaths + 1 < DEATHS_MAX) {
                sequence_set_deaths(engine, index, sequence->deaths + 1);
            } else {
                log_warn("engine: %s", death_text);
                sequence_finish(engine, index, JOURNAL_FINISH_ERROR, STATUS_INTERNAL, death_text,
                                sequence->n_known - sequence->n_prompt);
            }
        }
    }
}

void engine_port_lost(struct engine *engine, uint64_t now_ns) {
    (void)now_ns;
    if (engine->port == NULL) {
        return;
    }
    engine->port->ops->close(engine->port);
    engine->port = NULL;
    count_deaths(engine);
    engine->n_flights = 0;
    engine->stats.replays += engine->n_running;
    while (engine->n_running > 0) {
        sequence_stop(engine, engine->running[engine->n_running - 1]);
    }
    engine->alone = NO_SEQUENCE;
    engine->blocked = NO_SEQUENCE;
    kv_blocks_reset(engine->kv);
    engine_flush(engine);
}

void engine_set_port(struct engine *engine, struct worker_port *port, uint64_t now_ns) {
    engine_port_lost(engine, now_ns);
    engine->port = port;
    engine->next_step = 1;
}

void engine_fail_all(struct engine *engine, enum status status, const char *text) {
    for (uint32_t i = 0; i < engine->n_sequences; i++) {
        const struct sequence *sequence = &engine->sequences[i];
        if (sequence_live(sequence)) {
            sequence_finish(engine, i, JOURNAL_FINISH_ERROR, status, text, sequence->n_known - sequence->n_prompt);
        }
    }
    engine_flush(engine);
}

/* ---- tick */

/* Ends what is past its deadline; true when there was something. */
static bool expire(struct engine *engine, uint64_t now_ns) {
    if (now_ns < engine->next_deadline_ns) {
        return false;
    }
    bool any = false;
    uint64_t next = UINT64_MAX;
    for (uint32_t i = 0; i < engine->n_sequences; i++) {
        const struct sequence *sequence = &engine->sequences[i];
        if (!sequence_live(sequence)) {
            continue;
        }
        if (sequence->deadline_ns <= now_ns) {
            any = true;
            sequence_finish(engine, i, JOURNAL_FINISH_ERROR, STATUS_TIMEOUT, "the request's deadline has passed",
                            sequence->n_known - sequence->n_prompt);
        } else if (sequence->deadline_ns < next) {
            next = sequence->deadline_ns;
        }
    }
    engine->next_deadline_ns = next;
    return any;
}

/* Takes what the port has; true when there was something. */
static bool take_events(struct engine *engine, uint64_t now_ns) {
    bool any = false;
    struct port_event event;
    while (engine->port != NULL && engine->port->ops->poll(engine->port, &event) == STATUS_OK) {
        any = true;
        if (event.type == PORT_STEP_DONE) {
            uint64_t start_ns = clock_now_ns();
            if (apply_step(engine, &event) == STATUS_OK) {
                engine->stats.apply_ns = clock_now_ns() - start_ns;
                continue;
            }
            log_error("engine: %s", status_text());
            engine->port->ops->give_up(engine->port, status_text());
        }
        engine_port_lost(engine, now_ns);
    }
    return any;
}

static bool submit_steps(struct engine *engine) {
    bool any = false;
    while (engine->port != NULL && engine->n_flights < engine->depth &&
           (engine->n_running > 0 || engine->n_waiting > 0)) {
        uint64_t start_ns = clock_now_ns();
        if (!sched_plan(engine)) {
            break;
        }
        void *body = engine->port->ops->reserve(engine->port);
        size_t bytes = step_builder_finish(engine->builder, engine->next_step, engine->port->epoch, body);
        engine->stats.plan_ns = clock_now_ns() - start_ns;
        uint64_t step_id = engine->port->ops->submit(engine->port, bytes);
        CHECK(step_id == engine->next_step, "the port numbers step %llu as %llu", (unsigned long long)engine->next_step,
              (unsigned long long)step_id);
        engine->next_step++;
        engine->n_flights++;
        any = true;
    }
    return any;
}

bool engine_tick(struct engine *engine, uint64_t now_ns) {
    bool took = take_events(engine, now_ns);
    bool expired = expire(engine, now_ns);
    bool submitted = submit_steps(engine);
    engine_flush(engine);
    return took || expired || submitted;
}

bool engine_idle(const struct engine *engine) {
    return engine->n_running == 0 && engine->n_waiting == 0 && engine->n_flights == 0;
}

uint32_t engine_descriptors(const struct engine *engine, int *fds) {
    if (engine->port == NULL) {
        return 0;
    }
    CHECK(engine->port->world <= ENGINE_MAX_DESCRIPTORS, "a port of %u ranks", engine->port->world);
    return engine->port->ops->descriptors(engine->port, fds);
}

uint64_t engine_next_ns(const struct engine *engine) {
    return engine->next_deadline_ns;
}

void engine_stats(const struct engine *engine, struct engine_stats *stats) {
    *stats = engine->stats;
    stats->running = engine->n_running;
    stats->waiting = engine->n_waiting;
    stats->blocks_total = kv_blocks_total(engine->kv);
    stats->blocks_cached = kv_blocks_cached(engine->kv);
    stats->blocks_used = stats->blocks_total - kv_blocks_free(engine->kv);
}

/* ---- recovery */

/* Journal text that was checked for damage is still checked against this engine's limits. */
static enum status recover_check(struct engine *engine, const struct journal_state *state, struct journal_handle handle,
                                 uint32_t *stop_ids) {
    const struct journal_params *params = &state->params;
    if (params->n_prompt == 0 || params->n_prompt >= engine->limits.max_len ||
        params->n_stop_ids > ENGINE_MAX_STOP_IDS || params->n_bias > STEP_MAX_LOGIT_BIAS ||
        params->max_tokens > engine->limits.max_len - params->n_prompt) {
        FAIL(STATUS_INVALID, "it does not fit the limits");
    }
    TRY(journal_read_fixed(engine->journal, handle, engine->ids, stop_ids, engine->bias, NULL));
    struct engine_request request = {.params = *params, .prompt = engine->ids, .bias = engine->bias};
    struct journal_params checked;
    TRY(sequence_check(engine, &request, &checked));
    if (checked.max_tokens != params->max_tokens || checked.sampling.prompt_len != params->sampling.prompt_len ||
        checked.sampling.bias_first != params->sampling.bias_first ||
        checked.sampling.bias_count != params->sampling.bias_count) {
        FAIL(STATUS_INVALID, "its parameters do not fit each other");
    }
    TRY(journal_read_ids(engine->journal, handle, 0, state->n_output, engine->ids));
    for (uint32_t i = 0; i < state->n_output; i++) {
        if (engine->ids[i] >= engine->limits.vocab_size) {
            FAIL(STATUS_INVALID, "output id %u is not below the vocabulary's size", engine->ids[i]);
        }
    }
    return STATUS_OK;
}

static void recover_one(void *context, struct journal_handle handle) {
    struct engine *engine = context;
    struct journal_state state;
    uint32_t stop_ids[ENGINE_MAX_STOP_IDS];
    if (journal_state(engine->journal, handle, &state) != STATUS_OK) {
        return;
    }
    if (recover_check(engine, &state, handle, stop_ids) != STATUS_OK) {
        log_warn("engine: a journaled request is dropped: %s", status_text());
        journal_release(engine->journal, handle);
        return;
    }
    uint32_t index = sequence_add(engine, handle, &state.params, stop_ids, state.n_output);
    uint32_t deaths = journal_deaths(engine->journal, handle);
    engine->sequences[index].deaths = 0;
    sequence_set_deaths(engine, index, deaths < DEATHS_MAX ? deaths : DEATHS_MAX - 1);
    if (state.finish != JOURNAL_RUNNING) {
        sequence_retire(engine, index);
        return;
    }
    /* The writer may have died between a sequence's last token and its end. */
    enum journal_finish finish =
        state.n_output > 0 ? sequence_ends(engine, index, engine->ids[state.n_output - 1]) : JOURNAL_RUNNING;
    if (finish != JOURNAL_RUNNING) {
        sequence_finish(engine, index, finish, STATUS_OK, NULL, state.n_output);
    }
}

void engine_recover(struct engine *engine) {
    journal_each(engine->journal, recover_one, engine);
    engine_flush(engine);
}
