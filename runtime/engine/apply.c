/* What came back from the workers. */
#include <string.h>

#include "runtime/base/check.h"
#include "runtime/engine/engine_state.h"

/* Offers the blocks that are full and computed up to position `end` to the prefix cache. Called only after a finite
 * result: attention carries a value that is not finite to every later position, so what lies before a finite result is
 * finite. */
static void enter_blocks(struct engine *engine, struct sequence *sequence, uint32_t end) {
    uint32_t block_size = engine->limits.block_size;
    uint32_t n_full = end / block_size;
    if (!engine->config.prefix_cache) {
        return;
    }
    for (; sequence->n_entered < n_full; sequence->n_entered++) {
        sequence_ids(engine, sequence, sequence->n_entered * block_size, block_size, engine->block_ids);
        uint32_t block = sequence_table(engine, sequence)[sequence->n_entered];
        sequence->chain = kv_blocks_enter(engine->kv, block, sequence->chain, engine->block_ids);
    }
}

static void append(struct engine *engine, struct sequence *sequence, const struct step_result *result) {
    struct journal_token token;
    token.id = result->id;
    token.logprob = result->logprob;
    token.n_top = 0;
    if (sequence->n_logprobs > 0) {
        uint32_t wanted = (uint32_t)sequence->n_logprobs;
        token.n_top = result->n_top < wanted ? result->n_top : wanted;
        memcpy(token.top_id, result->top_id, token.n_top * sizeof token.top_id[0]);
        memcpy(token.top_logprob, result->top_logprob, token.n_top * sizeof token.top_logprob[0]);
    }
    journal_append(engine->journal, sequence->handle, &token);
}

static void accept(struct engine *engine, const struct flight_row *row, const struct step_result *result) {
    uint32_t index = row->sequence;
    struct sequence *sequence = &engine->sequences[index];
    sequence->n_unknown--;
    if (sequence->prefilling) {
        sequence->prefilling = false;
        engine->n_prefilling--;
    }
    if ((result->flags & STEP_RESULT_NONFINITE) != 0) {
        sequence_finish(engine, index, JOURNAL_FINISH_ERROR, STATUS_INTERNAL,
                        "the model's output for this request is not a finite number",
                        sequence->n_known - sequence->n_prompt);
        return;
    }
    append(engine, sequence, result);
    sequence->n_known++;
    engine->stats.generation_tokens++;
    sequence_set_deaths(engine, index, 0);
    sequence_touch(engine, index);
    enter_blocks(engine, sequence, row->end);
    enum journal_finish finish = sequence_ends(engine, index, result->id);
    if (finish != JOURNAL_RUNNING) {
        sequence_finish(engine, index, finish, STATUS_OK, NULL, sequence->n_known - sequence->n_prompt);
    }
}

static enum status check_event(const struct engine *engine, const struct flight *flight,
                               const struct port_event *event) {
    if (engine->n_flights == 0 || event->step_id != flight->step_id) {
        FAIL(STATUS_INTERNAL, "the workers report step %llu, which is not the oldest in flight",
             (unsigned long long)event->step_id);
    }
    if (event->n_results != flight->n_sampled) {
        FAIL(STATUS_INTERNAL, "step %llu has %u results for %u sampled rows", (unsigned long long)event->step_id,
             event->n_results, flight->n_sampled);
    }
    for (uint32_t i = 0; i < event->n_results; i++) {
        const struct step_result *result = &event->results[i];
        if ((result->flags & STEP_RESULT_NONFINITE) == 0 && result->id >= engine->limits.vocab_size) {
            FAIL(STATUS_INTERNAL, "step %llu drew id %u, the vocabulary has %u", (unsigned long long)event->step_id,
                 result->id, engine->limits.vocab_size);
        }
        if (result->n_top > STEP_MAX_LOGPROBS) {
            FAIL(STATUS_INTERNAL, "step %llu: result %u has %u top entries", (unsigned long long)event->step_id, i,
                 result->n_top);
        }
    }
    return STATUS_OK;
}

enum status apply_step(struct engine *engine, const struct port_event *event) {
    const struct flight *flight = &engine->flights[(engine->next_step - engine->n_flights) % ENGINE_MAX_DEPTH];
    TRY(check_event(engine, flight, event));
    engine->n_flights--;
    engine->stats.steps++;
    const struct step_result *result = event->results;
    for (uint32_t i = 0; i < flight->n_rows; i++) {
        const struct flight_row *row = &flight->rows[i];
        if (!row->sampled) {
            continue;
        }
        /* A stay that is over: the sequence ended, or gave way and will compute this again. */
        if (engine->sequences[row->sequence].ticket == row->ticket) {
            accept(engine, row, result);
        }
        result++;
    }
    return STATUS_OK;
}
