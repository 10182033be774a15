/* The life of a sequence: checked, waiting, running, ended. */
#include <string.h>

#include "runtime/base/check.h"
#include "runtime/engine/engine_state.h"

#define DEATHS_SUSPECT 2 /* from here on a sequence is replayed alone */

uint32_t sequence_find(const struct engine *engine, struct journal_handle handle) {
    if (handle.slot >= engine->n_sequences) {
        return NO_SEQUENCE;
    }
    const struct sequence *sequence = &engine->sequences[handle.slot];
    bool same = sequence->state != SEQUENCE_FREE && sequence->handle.generation == handle.generation;
    return same ? handle.slot : NO_SEQUENCE;
}

static enum status check_ids(const struct engine *engine, const struct engine_request *request) {
    uint32_t vocab_size = engine->limits.vocab_size;
    for (uint32_t i = 0; i < request->params.n_prompt; i++) {
        if (request->prompt[i] >= vocab_size) {
            FAIL(STATUS_INVALID, "prompt: id %u at %u is not below the vocabulary's size, %u", request->prompt[i], i,
                 vocab_size);
        }
    }
    for (uint32_t i = 0; i < request->params.n_bias; i++) {
        float value = request->bias[i].value;
        if (request->bias[i].id >= vocab_size || !(value > -1e30f && value < 1e30f)) {
            FAIL(STATUS_INVALID, "logit_bias: entry %u is not a finite value of an id below %u", i, vocab_size);
        }
    }
    return STATUS_OK;
}

enum status sequence_check(const struct engine *engine, const struct engine_request *request,
                           struct journal_params *params) {
    const struct step_limits *limits = &engine->limits;
    *params = request->params;
    if (params->n_prompt == 0) {
        FAIL(STATUS_INVALID, "prompt: it is empty");
    }
    if (params->n_prompt >= limits->max_len) {
        FAIL(STATUS_LIMIT, "prompt: %u tokens leave no room for an answer in a context of %u: shorten it",
             params->n_prompt, limits->max_len);
    }
    if (params->max_tokens == 0) {
        FAIL(STATUS_INVALID, "max_tokens: it must be at least 1");
    }
    if (params->n_stop_ids > ENGINE_MAX_STOP_IDS) {
        FAIL(STATUS_LIMIT, "stop_token_ids: %u of them, at most %u", params->n_stop_ids, ENGINE_MAX_STOP_IDS);
    }
    if (params->n_bias > STEP_MAX_LOGIT_BIAS) {
        FAIL(STATUS_LIMIT, "logit_bias: %u entries, at most %u", params->n_bias, STEP_MAX_LOGIT_BIAS);
    }
    if (params->max_tokens > limits->max_len - params->n_prompt) {
        params->max_tokens = limits->max_len - params->n_prompt;
    }
    params->sampling.prompt_len = params->n_prompt;
    params->sampling.bias_first = 0;
    params->sampling.bias_count = params->n_bias;
    TRY(step_sampling_check(&params->sampling, limits));
    /* The last token is never computed. */
    uint32_t positions = params->n_prompt + params->max_tokens - 1;
    uint32_t blocks = (positions + limits->block_size - 1) / limits->block_size;
    if (blocks > kv_blocks_total(engine->kv)) {
        FAIL(STATUS_LIMIT, "prompt and max_tokens need %u KV blocks of %u tokens, there are %u: ask for fewer tokens",
             blocks, limits->block_size, kv_blocks_total(engine->kv));
    }
    return check_ids(engine, request);
}

/* ---- waiting list */

static void waiting_insert(struct engine *engine, uint32_t index) {
    struct sequence *all = engine->sequences;
    struct sequence *sequence = &all[index];
    /* A new one belongs at the end, one that ran before near the front: look at the end first. */
    uint32_t before = NO_SEQUENCE, after = engine->waiting_last;
    if (after != NO_SEQUENCE && all[after].order > sequence->order) {
        before = engine->waiting_first;
        while (all[before].order < sequence->order) {
            before = all[before].next;
        }
        after = all[before].prev;
    }
    sequence->prev = after;
    sequence->next = before;
    *(after != NO_SEQUENCE ? &all[after].next : &engine->waiting_first) = index;
    *(before != NO_SEQUENCE ? &all[before].prev : &engine->waiting_last) = index;
    sequence->state = SEQUENCE_WAITING;
    engine->n_waiting++;
    engine->n_waiting_new += !sequence->ran;
}

static void waiting_remove(struct engine *engine, uint32_t index) {
    struct sequence *all = engine->sequences;
    struct sequence *sequence = &all[index];
    *(sequence->prev != NO_SEQUENCE ? &all[sequence->prev].next : &engine->waiting_first) = sequence->next;
    *(sequence->next != NO_SEQUENCE ? &all[sequence->next].prev : &engine->waiting_last) = sequence->prev;
    engine->n_waiting--;
    engine->n_waiting_new -= !sequence->ran;
}

uint32_t sequence_add(struct engine *engine, struct journal_handle handle, const struct journal_params *params,
                      const uint32_t *stop_ids, uint32_t n_output) {
    uint32_t index = handle.slot;
    struct sequence *sequence = &engine->sequences[index];
    CHECK(sequence->state == SEQUENCE_FREE, "journal slot %u is given twice", index);
    *sequence = (struct sequence){
        .order = engine->next_order++,
        .n_known = params->n_prompt + n_output,
        .max_ids = params->n_prompt + params->max_tokens,
        .slot = NO_SLOT,
        .n_stop_ids = params->n_stop_ids,
        .n_logprobs = params->sampling.n_logprobs,
        .n_prompt = params->n_prompt,
        .handle = handle,
        .user = params->user,
        .deadline_ns = params->deadline_ns != 0 ? params->deadline_ns : UINT64_MAX,
    };
    memcpy(sequence->request_id, params->request_id, sizeof sequence->request_id);
    if (params->n_stop_ids > 0) {
        memcpy(engine->stop_ids + (size_t)index * ENGINE_MAX_STOP_IDS, stop_ids,
               params->n_stop_ids * sizeof stop_ids[0]);
    }
    if (sequence->deadline_ns < engine->next_deadline_ns) {
        engine->next_deadline_ns = sequence->deadline_ns;
    }
    waiting_insert(engine, index);
    return index;
}

void sequence_ids(const struct engine *engine, const struct sequence *sequence, uint32_t first, uint32_t count,
                  uint32_t *ids) {
    CHECK(first + count <= sequence->n_known, "ids %u + %u of %u", first, count, sequence->n_known);
    uint32_t n_prompt = sequence->n_prompt;
    uint32_t from_prompt = first >= n_prompt ? 0 : first + count <= n_prompt ? count : n_prompt - first;
    enum status status = STATUS_OK;
    if (from_prompt > 0) {
        status = journal_read_prompt(engine->journal, sequence->handle, first, from_prompt, ids);
    }
    if (status == STATUS_OK && from_prompt < count) {
        status = journal_read_ids(engine->journal, sequence->handle, first + from_prompt - n_prompt,
                                  count - from_prompt, ids + from_prompt);
    }
    CHECK(status == STATUS_OK, "the journal lost a live sequence: %s", status_text());
}

enum journal_finish sequence_ends(const struct engine *engine, uint32_t index, uint32_t id) {
    const struct sequence *sequence = &engine->sequences[index];
    const uint32_t *stop_ids = engine->stop_ids + (size_t)index * ENGINE_MAX_STOP_IDS;
    for (uint32_t i = 0; i < sequence->n_stop_ids; i++) {
        if (stop_ids[i] == id) {
            return JOURNAL_FINISH_STOP;
        }
    }
    return sequence->n_known >= sequence->max_ids ? JOURNAL_FINISH_LENGTH : JOURNAL_RUNNING;
}

/* ---- running */

void sequence_start(struct engine *engine, uint32_t index) {
    struct sequence *sequence = &engine->sequences[index];
    waiting_remove(engine, index);
    sequence->state = SEQUENCE_RUNNING;
    sequence->ticket = engine->next_ticket++;
    sequence->slot = engine->free_slots[--engine->n_free_slots];
    sequence->prefilling = true;
    sequence->ran = true;
    sequence->n_unknown = 0;
    engine->n_prefilling++;
    uint32_t at = engine->n_running++;
    for (; at > 0 && engine->sequences[engine->running[at - 1]].order > sequence->order; at--) {
        engine->running[at] = engine->running[at - 1];
    }
    engine->running[at] = index;
}

static void leave_slot(struct engine *engine, uint32_t index) {
    struct sequence *sequence = &engine->sequences[index];
    const uint32_t *table = sequence_table(engine, sequence);
    for (uint32_t i = sequence->n_blocks; i-- > 0;) {
        kv_blocks_give(engine->kv, table[i]);
    }
    sequence->n_blocks = 0;
    sequence->n_entered = 0;
    sequence->chain = KV_ROOT;
    sequence->n_planned = 0;
    sequence->n_unknown = 0;
    sequence->ticket = 0;
    engine->free_slots[engine->n_free_slots++] = sequence->slot;
    sequence->slot = NO_SLOT;
    engine->n_prefilling -= sequence->prefilling;
    sequence->prefilling = false;
    uint32_t at = engine->n_running;
    while (engine->running[--at] != index) {
        CHECK(at > 0, "sequence %u is not among the running", index);
    }
    engine->n_running--;
    memmove(engine->running + at, engine->running + at + 1, (engine->n_running - at) * sizeof engine->running[0]);
}

void sequence_stop(struct engine *engine, uint32_t index) {
    leave_slot(engine, index);
    waiting_insert(engine, index);
}

void sequence_finish(struct engine *engine, uint32_t index, enum journal_finish finish, enum status error_code,
                     const char *error_text, uint32_t n_output) {
    struct sequence *sequence = &engine->sequences[index];
    CHECK(sequence_live(sequence), "sequence %u ends twice", index);
    sequence_set_deaths(engine, index, 0);
    if (sequence->state == SEQUENCE_RUNNING) {
        leave_slot(engine, index);
    } else {
        waiting_remove(engine, index);
    }
    sequence->state = SEQUENCE_ENDED;
    if (engine->alone == index) {
        engine->alone = NO_SEQUENCE;
    }
    journal_finish(engine->journal, sequence->handle, finish, error_code, error_text, n_output);
    engine->stats.finished[finish]++;
    sequence_touch(engine, index);
}

void sequence_retire(struct engine *engine, uint32_t index) {
    sequence_set_deaths(engine, index, 0);
    waiting_remove(engine, index);
    engine->sequences[index].state = SEQUENCE_ENDED;
}

void sequence_set_deaths(struct engine *engine, uint32_t index, uint32_t deaths) {
    struct sequence *sequence = &engine->sequences[index];
    if (sequence->deaths == deaths) {
        return;
    }
    engine->n_suspects -= sequence->deaths >= DEATHS_SUSPECT;
    engine->n_suspects += deaths >= DEATHS_SUSPECT;
    sequence->deaths = deaths;
    journal_set_deaths(engine->journal, sequence->handle, deaths);
}

void sequence_touch(struct engine *engine, uint32_t index) {
    struct sequence *sequence = &engine->sequences[index];
    if (!sequence->dirty) {
        sequence->dirty = true;
        engine->dirty[engine->n_dirty++] = index;
    }
}

void engine_flush(struct engine *engine) {
    for (uint32_t i = 0; i < engine->n_dirty; i++) {
        struct sequence *sequence = &engine->sequences[engine->dirty[i]];
        sequence->dirty = false;
        if (engine->config.notify != NULL) {
            engine->config.notify(engine->config.context, sequence->handle, sequence->user);
        }
    }
    engine->n_dirty = 0;
}
