/* The engine's invariants, for tests, the simulator and idle moments. */
#include <string.h>

#include "runtime/base/check.h"
#include "runtime/engine/engine_state.h"

static void check_waiting(const struct engine *engine) {
    uint32_t n = 0, n_new = 0, before = NO_SEQUENCE;
    for (uint32_t i = engine->waiting_first; i != NO_SEQUENCE; i = engine->sequences[i].next) {
        const struct sequence *sequence = &engine->sequences[i];
        CHECK(n++ < engine->n_waiting, "the waiting list is longer than %u", engine->n_waiting);
        n_new += !sequence->ran;
        CHECK(sequence->state == SEQUENCE_WAITING && sequence->prev == before, "waiting sequence %u is mislinked", i);
        CHECK(before == NO_SEQUENCE || engine->sequences[before].order < sequence->order, "sequence %u is out of order",
              i);
        CHECK(sequence->ticket == 0 && sequence->slot == NO_SLOT && sequence->n_blocks == 0 &&
                  sequence->n_planned == 0 && sequence->n_unknown == 0 && !sequence->prefilling,
              "waiting sequence %u holds something", i);
        before = i;
    }
    CHECK(n == engine->n_waiting && n_new == engine->n_waiting_new && before == engine->waiting_last,
          "%u sequences wait, %u of them new", n, n_new);
}

static void check_running_one(const struct engine *engine, uint32_t index, uint32_t *references) {
    const struct sequence *sequence = &engine->sequences[index];
    uint32_t block_size = engine->limits.block_size;
    CHECK(sequence->state == SEQUENCE_RUNNING && sequence->ticket != 0 && sequence->slot < engine->limits.n_slots,
          "running sequence %u has no slot", index);
    CHECK(sequence->n_known < sequence->max_ids && sequence->n_known + sequence->n_unknown <= sequence->max_ids,
          "running sequence %u has %u ids and expects %u, of %u", index, sequence->n_known, sequence->n_unknown,
          sequence->max_ids);
    CHECK(sequence->n_planned <= sequence->n_known + sequence->n_unknown, "sequence %u is planned too far", index);
    CHECK(sequence->n_planned <= sequence->n_blocks * block_size && sequence->n_blocks <= engine->table_len,
          "sequence %u has %u blocks for %u positions", index, sequence->n_blocks, sequence->n_planned);
    CHECK(sequence->n_entered * block_size <= sequence->n_planned, "sequence %u: %u blocks in the cache", index,
          sequence->n_entered);
    const uint32_t *table = sequence_table(engine, sequence);
    for (uint32_t i = 0; i < sequence->n_blocks; i++) {
        CHECK(table[i] > 0 && table[i] < engine->limits.n_blocks, "sequence %u has block %u", index, table[i]);
        references[table[i]]++;
        CHECK(i < sequence->n_entered || references[table[i]] == 1, "private block %u is shared", table[i]);
    }
    for (uint32_t i = 0; i < engine->n_free_slots; i++) {
        CHECK(engine->free_slots[i] != sequence->slot, "slot %u is free and held", sequence->slot);
    }
}

static void check_flights(const struct engine *engine) {
    CHECK(engine->n_flights <= engine->depth && (engine->port != NULL || engine->n_flights == 0), "%u steps in flight",
          engine->n_flights);
    uint32_t expected = 0, counted = 0;
    for (uint32_t i = 0; i < engine->n_running; i++) {
        counted += engine->sequences[engine->running[i]].n_unknown;
    }
    for (uint32_t k = 1; k <= engine->n_flights; k++) {
        const struct flight *flight = &engine->flights[(engine->next_step - k) % ENGINE_MAX_DEPTH];
        CHECK(flight->step_id == engine->next_step - k, "flight %u holds step %llu", k,
              (unsigned long long)flight->step_id);
        for (uint32_t i = 0; i < flight->n_rows; i++) {
            const struct flight_row *row = &flight->rows[i];
            expected += row->sampled && engine->sequences[row->sequence].ticket == row->ticket;
        }
    }
    CHECK(expected == counted, "%u results are on their way, the sequences expect %u", expected, counted);
}

void engine_check(const struct engine *engine) {
    uint32_t *references = engine->references;
    memset(references, 0, engine->limits.n_blocks * sizeof references[0]);
    check_waiting(engine);
    uint32_t n_prefilling = 0, n_suspects = 0, n_live = 0;
    for (uint32_t i = 0; i < engine->n_running; i++) {
        uint32_t index = engine->running[i];
        check_running_one(engine, index, references);
        n_prefilling += engine->sequences[index].prefilling;
        CHECK(i == 0 || engine->sequences[engine->running[i - 1]].order < engine->sequences[index].order,
              "running sequence %u is out of order", index);
    }
    for (uint32_t i = 0; i < engine->n_sequences; i++) {
        const struct sequence *sequence = &engine->sequences[i];
        n_live += sequence_live(sequence);
        n_suspects += sequence_live(sequence) && sequence->deaths > 1;
        uint32_t n_output;
        enum journal_finish finish;
        if (sequence->state == SEQUENCE_FREE) {
            continue;
        }
        CHECK(journal_progress(engine->journal, sequence->handle, &n_output, &finish) == STATUS_OK,
              "sequence %u is not in the journal", i);
        CHECK((finish == JOURNAL_RUNNING) == sequence_live(sequence), "sequence %u and its journal slot disagree", i);
        CHECK(!sequence_live(sequence) || n_output == sequence->n_known - sequence->n_prompt,
              "sequence %u has %u tokens, %u in the journal", i, sequence->n_known - sequence->n_prompt, n_output);
        CHECK(!sequence_live(sequence) || sequence->deadline_ns >= engine->next_deadline_ns,
              "the deadline of sequence %u would be missed", i);
    }
    CHECK(n_live == engine->n_running + engine->n_waiting, "%u live sequences, %u + %u listed", n_live,
          engine->n_running, engine->n_waiting);
    CHECK(n_prefilling == engine->n_prefilling && n_suspects == engine->n_suspects, "%u prefills, %u suspects",
          n_prefilling, n_suspects);
    CHECK(engine->n_free_slots + engine->n_running == engine->limits.n_slots, "%u slots are free, %u held",
          engine->n_free_slots, engine->n_running);
    check_flights(engine);
    kv_blocks_check(engine->kv, references);
}
