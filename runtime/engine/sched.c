/* What runs in the next step.
 *
 * Decodes first, in order of age, then the running prefills, then new sequences, up to the token budget. A sequence
 * gets the blocks of all its known ids when it gets its slot, so only decodes ever ask for more; when there is none,
 * the youngest running sequence goes back to waiting and is recomputed later. The oldest can take from all others, and
 * a sequence that does not fit in all blocks is refused when it is submitted, so something always goes on.
 *
 * Why slots and blocks may be used again while steps are in flight. Steps reach the device in order, and within a step
 * its writes to slots and tables come before its rows. A sequence that ends at step k may still have a row in step
 * k + 1, which was planned before its end was known. Whatever takes its slot or its blocks is planned after k was
 * applied, hence in step k + 2 or later, and starts by writing the slot's state and table: the stale row sees the old
 * table, and what it writes is overwritten before it is read. It cannot damage the prefix cache either: a block enters
 * it only when all its positions have been computed by finished steps, and a stale row starts at the first position
 * that had not been planned when it was planned, which is behind all of those, so it writes to a later block. The same
 * holds for a sequence that is stopped while rows of it are in flight. */
#include <string.h>

#include "runtime/base/check.h"
#include "runtime/engine/engine_state.h"

static struct flight *next_flight(struct engine *engine) {
    return &engine->flights[engine->next_step % ENGINE_MAX_DEPTH];
}

static uint32_t tokens_left(const struct engine *engine) {
    return engine->limits.max_tokens - step_builder_tokens(engine->builder);
}

static bool rows_left(const struct engine *engine) {
    return step_builder_rows(engine->builder) < engine->limits.max_rows && tokens_left(engine) > 0;
}

/* Ids that will be in the slot when the steps in flight are done, less positions planned: what a row may compute. */
static uint32_t remaining(const struct sequence *sequence) {
    return sequence->n_known + sequence->n_unknown - sequence->n_planned;
}

static void add_row(struct engine *engine, uint32_t index, uint32_t q_len) {
    struct sequence *sequence = &engine->sequences[index];
    bool sampled = q_len == remaining(sequence);
    int added = step_builder_add_row(engine->builder, (struct step_row){.slot = sequence->slot,
                                                                        .q_len = q_len,
                                                                        .pos = sequence->n_planned,
                                                                        .flags = sampled ? STEP_ROW_SAMPLE : 0});
    CHECK(added, "a row does not fit in the step");
    sequence->n_planned += q_len;
    sequence->n_unknown += sampled;
    struct flight *flight = next_flight(engine);
    flight->rows[flight->n_rows++] = (struct flight_row){
        .ticket = sequence->ticket, .sequence = index, .end = sequence->n_planned, .sampled = sampled};
    flight->n_sampled += sampled;
}

/* The running sequence that gives way to `index`, which may be itself. */
static uint32_t choose_victim(const struct engine *engine, uint32_t index) {
    uint32_t at = engine->n_running - 1;
    if (engine->alone == index && engine->running[at] == index && at > 0) {
        at--;
    }
    return engine->running[at];
}

/* Makes the next position's block the sequence's own; false when it had to give way itself. */
static bool extend_table(struct engine *engine, uint32_t index) {
    struct sequence *sequence = &engine->sequences[index];
    if (sequence->n_planned < sequence->n_blocks * engine->limits.block_size) {
        return true;
    }
    uint32_t block;
    while ((block = kv_blocks_take(engine->kv)) == 0) {
        uint32_t victim = choose_victim(engine, index);
        CHECK(victim != index || engine->n_running > 1, "one sequence alone does not fit in all KV blocks");
        sequence_stop(engine, victim);
        engine->stats.preemptions++;
        if (victim == index) {
            return false;
        }
    }
    int added = step_builder_add_block(
        engine->builder, (struct step_block){.slot = sequence->slot, .index = sequence->n_blocks, .block = block});
    CHECK(added, "a block of a decode row does not fit in the step");
    sequence_table(engine, sequence)[sequence->n_blocks++] = block;
    return true;
}

/* Victims are younger than the sequence they make room for, so they have no row in this step yet. */
static void plan_decodes(struct engine *engine) {
    for (uint32_t i = 0; i < engine->n_running && rows_left(engine); i++) {
        uint32_t index = engine->running[i];
        struct sequence *sequence = &engine->sequences[index];
        bool may_run = engine->n_suspects == 0 || engine->alone == index;
        if (!may_run || remaining(sequence) != 1 || sequence->n_known + sequence->n_unknown >= sequence->max_ids) {
            continue;
        }
        uint64_t ticket = sequence->ticket;
        if (extend_table(engine, index)) {
            add_row(engine, index, 1);
        }
        /* Alone, an older victim may have left the array and moved this sequence down. */
        if (sequence->ticket == ticket && (i >= engine->n_running || engine->running[i] != index)) {
            break;
        }
    }
}

static void plan_prefills(struct engine *engine) {
    for (uint32_t i = 0; i < engine->n_running && engine->n_prefilling > 0 && rows_left(engine); i++) {
        uint32_t index = engine->running[i];
        const struct sequence *sequence = &engine->sequences[index];
        uint32_t left = remaining(sequence);
        if ((engine->n_suspects == 0 || engine->alone == index) && left > 1) {
            add_row(engine, index, left < tokens_left(engine) ? left : tokens_left(engine));
        }
    }
}

/* ---- admission */

/* Whether another choice of the same request is computing blocks of the prompt that this one could share soon. */
static bool sibling_prefills(const struct engine *engine, const struct sequence *sequence) {
    uint32_t n_shared = (sequence->n_prompt - 1) / engine->limits.block_size;
    if (!engine->config.prefix_cache || engine->n_prefilling == 0 || n_shared == 0) {
        return false;
    }
    uint32_t left = engine->n_prefilling; /* most of them are young */
    for (uint32_t i = engine->n_running; left > 0 && i-- > 0;) {
        const struct sequence *other = &engine->sequences[engine->running[i]];
        if (other->prefilling && other->n_entered < n_shared &&
            memcmp(other->request_id, sequence->request_id, sizeof other->request_id) == 0) {
            return true;
        }
        left -= other->prefilling;
    }
    return false;
}

/* Takes references on the leading blocks found in the cache; returns their number. The last known id is always
 * computed again, since its logits are wanted. */
static uint32_t share_prefix(struct engine *engine, const struct sequence *sequence, uint64_t *chain) {
    uint32_t block_size = engine->limits.block_size;
    uint32_t most = engine->config.prefix_cache ? (sequence->n_known - 1) / block_size : 0;
    uint32_t n_hits = 0;
    *chain = KV_ROOT;
    while (n_hits < most) {
        uint32_t block = kv_blocks_find(engine->kv, *chain, engine->ids + (size_t)n_hits * block_size, chain);
        if (block == 0) {
            break;
        }
        kv_blocks_share(engine->kv, block);
        engine->hits[n_hits++] = block;
    }
    return n_hits;
}

static void unshare(struct engine *engine, uint32_t n_hits) {
    while (n_hits > 0) {
        kv_blocks_give(engine->kv, engine->hits[--n_hits]);
    }
}

static void count_admission(struct engine *engine, const struct sequence *sequence, uint32_t cached) {
    if (sequence->ran) {
        return;
    }
    engine->stats.prompt_tokens += sequence->n_prompt;
    if (engine->config.prefix_cache) {
        cached = cached < sequence->n_prompt ? cached : sequence->n_prompt; /* a recovered one finds its output too */
        engine->stats.prefix_queries += sequence->n_prompt;
        engine->stats.prefix_hits += cached;
        engine->stats.cached_tokens += cached;
    }
}

/* Writes the slot's start into the step: sampling state and all known ids. False when the step has no room. */
static bool add_start(struct engine *engine, const struct sequence *sequence, uint32_t slot, uint32_t len) {
    struct journal_state state;
    enum status status = journal_state(engine->journal, sequence->handle, &state);
    CHECK(status == STATUS_OK, "the journal lost a live sequence");
    if (state.params.n_bias > 0) {
        status = journal_read_fixed(engine->journal, sequence->handle, NULL, NULL, engine->bias, NULL);
        CHECK(status == STATUS_OK, "the journal lost a live sequence");
    }
    struct step_init init = {.slot = slot, .len = len, .sampling = state.params.sampling};
    if (!step_builder_add_init(engine->builder, init, engine->bias)) {
        return false;
    }
    int added = step_builder_add_run(engine->builder, slot, 0, engine->ids, sequence->n_known);
    CHECK(added, "the ids of a sequence do not fit in the step");
    return true;
}

/* Gives a waiting sequence its slot, its blocks and its first row; false when it does not fit now. */
static bool admit(struct engine *engine, uint32_t index) {
    struct sequence *sequence = &engine->sequences[index];
    uint32_t block_size = engine->limits.block_size;
    uint32_t n_blocks = (sequence->n_known + block_size - 1) / block_size;
    if (sequence->n_known > step_builder_ids_left(engine->builder) ||
        n_blocks > step_builder_blocks_left(engine->builder)) {
        return false;
    }
    /* Nothing has changed since it found too few blocks. */
    if (engine->blocked == index && engine->blocked_freed == kv_blocks_freed(engine->kv) &&
        engine->blocked_running == engine->n_running && engine->n_running > 0) {
        return false;
    }
    sequence_ids(engine, sequence, 0, sequence->n_known, engine->ids);
    uint64_t chain;
    uint32_t n_hits = share_prefix(engine, sequence, &chain);
    /* Blocks that the running ones are about to ask for are left to them, or this one would soon give way again. */
    uint32_t spare = kv_blocks_total(engine->kv) / 16;
    spare = engine->n_running < spare ? engine->n_running : spare;
    uint32_t slot = engine->free_slots[engine->n_free_slots - 1];
    bool short_of_blocks = n_blocks - n_hits + spare > kv_blocks_free(engine->kv);
    if (short_of_blocks || !add_start(engine, sequence, slot, n_hits * block_size)) {
        unshare(engine, n_hits);
        engine->blocked = short_of_blocks ? index : NO_SEQUENCE;
        engine->blocked_freed = kv_blocks_freed(engine->kv);
        engine->blocked_running = engine->n_running;
        return false;
    }
    count_admission(engine, sequence, n_hits * block_size);
    sequence_start(engine, index);
    CHECK(sequence->slot == slot, "slot %u, not %u", sequence->slot, slot);
    uint32_t *table = sequence_table(engine, sequence);
    for (uint32_t i = 0; i < n_blocks; i++) {
        table[i] = i < n_hits ? engine->hits[i] : kv_blocks_take(engine->kv);
        int added =
            step_builder_add_block(engine->builder, (struct step_block){.slot = slot, .index = i, .block = table[i]});
        CHECK(added && table[i] != 0, "the blocks of a sequence do not fit in the step");
    }
    sequence->n_blocks = n_blocks;
    sequence->n_entered = n_hits;
    sequence->chain = chain;
    sequence->n_planned = n_hits * block_size;
    uint32_t left = remaining(sequence);
    add_row(engine, index, left < tokens_left(engine) ? left : tokens_left(engine));
    return true;
}

static void plan_new(struct engine *engine) {
    uint32_t next;
    for (uint32_t index = engine->waiting_first; index != NO_SEQUENCE; index = next) {
        next = engine->sequences[index].next;
        if (!rows_left(engine) || engine->n_free_slots == 0) {
            return;
        }
        if (sibling_prefills(engine, &engine->sequences[index])) {
            continue;
        }
        if (!admit(engine, index)) {
            return;
        }
    }
}

/* ---- one alone */

/* Chooses which suspect is tried now. A trial begins with nothing else in flight, so that a death tells. */
static bool choose_alone(struct engine *engine) {
    if (engine->alone != NO_SEQUENCE && engine->sequences[engine->alone].deaths > 1) {
        return true;
    }
    engine->alone = NO_SEQUENCE;
    if (engine->n_flights > 0) {
        return false;
    }
    for (uint32_t index = engine->waiting_first; index != NO_SEQUENCE; index = engine->sequences[index].next) {
        if (engine->sequences[index].deaths > 1) {
            engine->alone = index;
            return true;
        }
    }
    CHECK(false, "%u suspects, none of them waiting", engine->n_suspects);
    return false;
}

/* The others that run keep their slots and wait; when the suspect needs their room, the youngest give way. */
static void plan_alone(struct engine *engine) {
    uint32_t index = engine->alone;
    if (engine->sequences[index].state == SEQUENCE_RUNNING) {
        plan_decodes(engine);
        plan_prefills(engine);
        return;
    }
    while ((engine->n_free_slots == 0 || !admit(engine, index)) && engine->n_running > 0) {
        sequence_stop(engine, engine->running[engine->n_running - 1]);
        engine->stats.preemptions++;
    }
}

bool sched_plan(struct engine *engine) {
    struct flight *flight = next_flight(engine);
    flight->step_id = engine->next_step;
    flight->n_rows = 0;
    flight->n_sampled = 0;
    step_builder_reset(engine->builder);
    if (engine->n_suspects == 0) {
        engine->alone = NO_SEQUENCE;
        plan_decodes(engine);
        plan_prefills(engine);
        plan_new(engine);
    } else if (choose_alone(engine)) {
        plan_alone(engine);
    }
    return flight->n_rows > 0;
}
