#include "runtime/journal/journal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/check.h"
#include "runtime/base/hash.h"
#include "runtime/journal/layout.h"

static size_t chunks_offset(uint32_t n_slots) {
    size_t bytes = sizeof(struct header) + (size_t)n_slots * sizeof(struct slot);
    return (bytes + CHUNK_BYTES - 1) / CHUNK_BYTES * CHUNK_BYTES;
}

size_t journal_bytes(uint32_t n_slots, size_t pool_bytes) {
    return chunks_offset(n_slots) + (pool_bytes + CHUNK_BYTES - 1) / CHUNK_BYTES * CHUNK_BYTES;
}

static uint32_t header_crc(const struct header *header) {
    return crc32c(0, header, offsetof(struct header, crc));
}

static enum status check_header(const struct journal *journal) {
    const struct header *header = journal->header;
    if (header->magic != JOURNAL_MAGIC || header->crc != header_crc(header)) {
        FAIL(STATUS_INVALID, "journal: the header is damaged");
    }
    if (header->slot_bytes != sizeof(struct slot) || header->chunk_bytes != CHUNK_BYTES ||
        header->n_slots != journal->n_slots || header->n_chunks != journal->n_chunks) {
        FAIL(STATUS_INVALID, "journal: it was laid out for %u sequences and %u chunks, not %u and %u", header->n_slots,
             header->n_chunks, journal->n_slots, journal->n_chunks);
    }
    return STATUS_OK;
}

static void format_memory(struct journal *journal) {
    /* The slots lose their sequences before the header becomes valid. */
    memset(journal->header, 0, sizeof *journal->header);
    memset((void *)journal->slots, 0, journal->n_slots * sizeof journal->slots[0]);
    *journal->header = (struct header){.magic = JOURNAL_MAGIC,
                                       .slot_bytes = sizeof(struct slot),
                                       .chunk_bytes = CHUNK_BYTES,
                                       .n_slots = journal->n_slots,
                                       .n_chunks = journal->n_chunks};
    journal->header->crc = header_crc(journal->header);
}

enum status journal_open(int fd, size_t bytes, uint32_t n_slots, bool format, struct journal **out) {
    if (n_slots == 0 || bytes < chunks_offset(n_slots) + CHUNK_BYTES ||
        (bytes - chunks_offset(n_slots)) / CHUNK_BYTES > MAX_CHUNKS) {
        FAIL(STATUS_INVALID, "journal: %zu bytes do not suit %u sequences", bytes, n_slots);
    }
    void *memory = NULL;
    TRY(memfd_map(fd, bytes, true, &memory));
    struct journal *journal = xcalloc(1, sizeof *journal);
    journal->memory = memory;
    journal->memory_bytes = bytes;
    journal->header = memory;
    journal->slots = (struct slot *)(void *)((char *)memory + sizeof(struct header));
    journal->chunks = (uint8_t *)memory + chunks_offset(n_slots);
    journal->n_slots = n_slots;
    journal->n_chunks = (uint32_t)((bytes - chunks_offset(n_slots)) / CHUNK_BYTES);
    journal->free_chunks = xcalloc(journal->n_chunks, sizeof(uint32_t));
    journal->free_slots = xcalloc(n_slots, sizeof(uint32_t));
    journal->visit_order = xcalloc(n_slots, sizeof(uint32_t));
    if (format) {
        format_memory(journal);
    }
    enum status status = check_header(journal);
    if (status != STATUS_OK) {
        journal_close(journal);
        return status;
    }
    journal_recover(journal);
    *out = journal;
    return STATUS_OK;
}

void journal_close(struct journal *journal) {
    if (journal != NULL) {
        munmap(journal->memory, journal->memory_bytes);
        free(journal->free_chunks);
        free(journal->free_slots);
        free(journal->visit_order);
        free(journal);
    }
}

/* The slot a handle names, or NULL when it is stale. Acquire: what admission stored is visible. */
static struct slot *find(const struct journal *journal, struct journal_handle handle) {
    if (handle.slot >= journal->n_slots || handle.generation % 2 == 0) {
        return NULL;
    }
    struct slot *slot = &journal->slots[handle.slot];
    return atomic_load_explicit(&slot->generation, memory_order_acquire) == handle.generation ? slot : NULL;
}

static struct slot *find_own(const struct journal *journal, struct journal_handle handle) {
    struct slot *slot = find(journal, handle);
    CHECK(slot != NULL, "journal slot %u has no generation %u", handle.slot, handle.generation);
    return slot;
}

static enum status gone(void) {
    return status_fail(STATUS_NOT_FOUND, "the sequence is gone from the journal");
}

/* ---- writer */

static uint32_t take_chunk(struct journal *journal) {
    uint32_t n_free = atomic_load_explicit(&journal->n_free_chunks, memory_order_relaxed);
    CHECK(n_free > 0, "the journal's pool is short of what was counted");
    atomic_store_explicit(&journal->n_free_chunks, n_free - 1, memory_order_relaxed);
    return journal->free_chunks[n_free - 1];
}

static void give_chunk(struct journal *journal, uint32_t chunk) {
    uint32_t n_free = atomic_load_explicit(&journal->n_free_chunks, memory_order_relaxed);
    journal->free_chunks[n_free] = chunk;
    atomic_store_explicit(&journal->n_free_chunks, n_free + 1, memory_order_relaxed);
}

static void reserve_chunks(struct journal *journal, struct slot *slot) {
    uint32_t *link = &slot->first_index;
    uint32_t *index = NULL;
    for (uint32_t k = 0; k < slot->n_chunks; k++) {
        if (k < DIRECT_CHUNKS) {
            slot->direct[k] = take_chunk(journal);
            continue;
        }
        uint32_t within = (k - DIRECT_CHUNKS) % INDEX_ENTRIES;
        if (within == 0) {
            *link = take_chunk(journal);
            index = (uint32_t *)(void *)chunk_at(journal, *link);
            link = &index[0];
        }
        index[1 + within] = take_chunk(journal);
    }
}

static void return_chunks(struct journal *journal, const struct slot *slot) {
    uint32_t n_direct = slot->n_chunks < DIRECT_CHUNKS ? slot->n_chunks : DIRECT_CHUNKS;
    for (uint32_t k = 0; k < n_direct; k++) {
        give_chunk(journal, slot->direct[k]);
    }
    uint32_t left = slot->n_chunks - n_direct;
    for (uint32_t chunk = slot->first_index; left > 0;) {
        const uint32_t *index = (const uint32_t *)(const void *)chunk_at(journal, chunk);
        uint32_t here = left < INDEX_ENTRIES ? left : INDEX_ENTRIES;
        for (uint32_t i = 0; i < here; i++) {
            give_chunk(journal, index[1 + i]);
        }
        left -= here;
        uint32_t next = index[0];
        give_chunk(journal, chunk);
        chunk = next;
    }
}

enum status journal_admit(struct journal *journal, const struct journal_params *params, const uint32_t *prompt,
                          const uint32_t *stop_ids, const struct step_bias *bias, const void *blob,
                          struct journal_handle *handle) {
    struct shape shape;
    if (!journal_shape(params, &shape)) {
        FAIL(STATUS_INVALID, "n_logprobs is %d, at most %d; logit_bias has %u entries, at most %d",
             params->sampling.n_logprobs, STEP_MAX_LOGPROBS, params->n_bias, STEP_MAX_LOGIT_BIAS);
    }
    uint64_t needed = shape.n_chunks + shape.n_index;
    if (needed > journal->n_chunks) {
        FAIL(STATUS_LIMIT, "prompt and max_tokens need %llu bytes of the journal, it has %llu: ask for fewer tokens",
             (unsigned long long)needed * CHUNK_BYTES, (unsigned long long)journal->n_chunks * CHUNK_BYTES);
    }
    if (journal->n_free_slots == 0 || needed > atomic_load_explicit(&journal->n_free_chunks, memory_order_relaxed)) {
        FAIL(STATUS_BUSY, "the server holds as many requests as it can: come again");
    }
    uint32_t index = journal->free_slots[--journal->n_free_slots];
    struct slot *slot = &journal->slots[index];
    atomic_store_explicit(&slot->n_appended, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->finish, JOURNAL_RUNNING, memory_order_relaxed);
    atomic_store_explicit(&slot->deaths, 0, memory_order_relaxed);
    slot->n_final = 0;
    slot->error_code = STATUS_OK;
    memset(slot->error_text, 0, sizeof slot->error_text);
    slot->n_chunks = (uint32_t)shape.n_chunks;
    slot->record_bytes = shape.record_bytes;
    slot->output_start = shape.output_start;
    slot->order = journal->next_order++;
    slot->params = *params;
    reserve_chunks(journal, slot);
    uint64_t offset = 0;
    const struct {
        const void *bytes;
        size_t size;
    } parts[] = {{prompt, params->n_prompt * sizeof prompt[0]},
                 {stop_ids, params->n_stop_ids * sizeof stop_ids[0]},
                 {bias, params->n_bias * sizeof bias[0]},
                 {blob, params->n_blob},
                 {"\0\0\0", (4 - params->n_blob % 4) % 4}};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        stream_write(journal, slot, offset, parts[i].bytes, parts[i].size);
        offset += parts[i].size;
    }
    slot->fixed_crc = slot_fixed_crc(journal, slot);
    uint32_t generation = atomic_load_explicit(&slot->generation, memory_order_relaxed) + 1;
    atomic_store_explicit(&slot->generation, generation, memory_order_release);
    *handle = (struct journal_handle){.slot = index, .generation = generation};
    return STATUS_OK;
}

void journal_append(struct journal *journal, struct journal_handle handle, const struct journal_token *token) {
    struct slot *slot = find_own(journal, handle);
    uint32_t n = atomic_load_explicit(&slot->n_appended, memory_order_relaxed);
    CHECK(n < slot->params.max_tokens, "token %u of %u", n, slot->params.max_tokens);
    int32_t n_logprobs = slot->params.sampling.n_logprobs;
    uint64_t at = slot->output_start + (uint64_t)n * slot->record_bytes;
    if (n_logprobs < 0) {
        stream_write(journal, slot, at, &token->id, sizeof token->id);
    } else {
        uint32_t record[3 + 2 * STEP_MAX_LOGPROBS] = {token->id};
        memcpy(&record[1], &token->logprob, sizeof record[1]);
        uint32_t room = (uint32_t)n_logprobs;
        uint32_t n_top = token->n_top < room ? token->n_top : room;
        record[2] = n_top;
        memcpy(&record[3], token->top_id, n_top * sizeof record[0]);
        memcpy(&record[3 + room], token->top_logprob, n_top * sizeof record[0]);
        stream_write(journal, slot, at, record, slot->record_bytes);
    }
    atomic_store_explicit(&slot->n_appended, n + 1, memory_order_release);
}

void journal_finish(struct journal *journal, struct journal_handle handle, enum journal_finish finish,
                    enum status error_code, const char *error_text, uint32_t n_output) {
    struct slot *slot = find_own(journal, handle);
    uint32_t n = atomic_load_explicit(&slot->n_appended, memory_order_relaxed);
    CHECK(finish != JOURNAL_RUNNING && atomic_load_explicit(&slot->finish, memory_order_relaxed) == JOURNAL_RUNNING,
          "a sequence ends twice");
    CHECK(n_output <= n, "a sequence of %u tokens ends at %u", n, n_output);
    slot->n_final = n_output;
    slot->error_code = (uint32_t)error_code;
    snprintf(slot->error_text, sizeof slot->error_text, "%s", error_text != NULL ? error_text : "");
    atomic_store_explicit(&slot->finish, (uint32_t)finish, memory_order_release);
}

void journal_release(struct journal *journal, struct journal_handle handle) {
    struct slot *slot = find_own(journal, handle);
    atomic_store_explicit(&slot->generation, handle.generation + 1, memory_order_release);
    return_chunks(journal, slot);
    journal->free_slots[journal->n_free_slots++] = handle.slot;
}

uint32_t journal_deaths(const struct journal *journal, struct journal_handle handle) {
    return atomic_load_explicit(&find_own(journal, handle)->deaths, memory_order_relaxed);
}

void journal_set_deaths(struct journal *journal, struct journal_handle handle, uint32_t deaths) {
    atomic_store_explicit(&find_own(journal, handle)->deaths, deaths, memory_order_relaxed);
}

/* Heap sort by admission order: no recursion, no memory. */
static void sift_down(const struct journal *journal, uint32_t *heap, uint32_t root, uint32_t size) {
    for (uint32_t child; (child = 2 * root + 1) < size; root = child) {
        if (child + 1 < size && journal->slots[heap[child + 1]].order > journal->slots[heap[child]].order) {
            child++;
        }
        if (journal->slots[heap[root]].order >= journal->slots[heap[child]].order) {
            return;
        }
        uint32_t other = heap[root];
        heap[root] = heap[child];
        heap[child] = other;
    }
}

void journal_each(struct journal *journal, void (*visit)(void *context, struct journal_handle handle), void *context) {
    uint32_t *order = journal->visit_order;
    uint32_t n = 0;
    for (uint32_t i = 0; i < journal->n_slots; i++) {
        if (atomic_load_explicit(&journal->slots[i].generation, memory_order_acquire) % 2 == 1) {
            order[n++] = i;
        }
    }
    for (uint32_t i = n / 2; i-- > 0;) {
        sift_down(journal, order, i, n);
    }
    for (uint32_t size = n; size > 1; size--) {
        uint32_t last = order[0];
        order[0] = order[size - 1];
        order[size - 1] = last;
        sift_down(journal, order, 0, size - 1);
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t generation = atomic_load_explicit(&journal->slots[order[i]].generation, memory_order_acquire);
        if (generation % 2 == 1) {
            visit(context, (struct journal_handle){.slot = order[i], .generation = generation});
        }
    }
}

/* ---- readers */

/* Tokens and end of a slot. The end is loaded first: once it is there, the count of tokens is the final one. */
static uint32_t progress(const struct slot *slot, enum journal_finish *finish) {
    *finish = (enum journal_finish)atomic_load_explicit(&slot->finish, memory_order_acquire);
    if (*finish != JOURNAL_RUNNING) {
        return slot->n_final;
    }
    return atomic_load_explicit(&slot->n_appended, memory_order_acquire);
}

enum status journal_state(const struct journal *journal, struct journal_handle handle, struct journal_state *state) {
    const struct slot *slot = find(journal, handle);
    if (slot == NULL) {
        return gone();
    }
    state->params = slot->params;
    state->n_output = progress(slot, &state->finish);
    state->error_code = STATUS_OK;
    state->error_text[0] = '\0';
    if (state->finish != JOURNAL_RUNNING) {
        state->error_code = (enum status)slot->error_code;
        memcpy(state->error_text, slot->error_text, sizeof state->error_text);
    }
    return STATUS_OK;
}

enum status journal_progress(const struct journal *journal, struct journal_handle handle, uint32_t *n_output,
                             enum journal_finish *finish) {
    const struct slot *slot = find(journal, handle);
    if (slot == NULL) {
        return gone();
    }
    *n_output = progress(slot, finish);
    return STATUS_OK;
}

/* Tokens past a shortened end stay readable until the release: a reader may be between its look at the count and its
 * read when the end comes. */
static enum status check_range(const struct slot *slot, uint32_t first, uint32_t count) {
    uint32_t n = atomic_load_explicit(&slot->n_appended, memory_order_acquire);
    if (first > n || count > n - first) {
        FAIL(STATUS_INVALID, "tokens %u + %u of %u", first, count, n);
    }
    return STATUS_OK;
}

enum status journal_read(const struct journal *journal, struct journal_handle handle, uint32_t first, uint32_t count,
                         struct journal_token *tokens) {
    const struct slot *slot = find(journal, handle);
    if (slot == NULL) {
        return gone();
    }
    TRY(check_range(slot, first, count));
    int32_t n_logprobs = slot->params.sampling.n_logprobs;
    uint32_t room = n_logprobs > 0 ? (uint32_t)n_logprobs : 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t record[3 + 2 * STEP_MAX_LOGPROBS] = {0};
        stream_read(journal, slot, slot->output_start + (uint64_t)(first + i) * slot->record_bytes, record,
                    slot->record_bytes);
        struct journal_token *token = &tokens[i];
        token->id = record[0];
        memcpy(&token->logprob, &record[1], sizeof token->logprob);
        token->n_top = record[2] < room ? record[2] : room;
        memcpy(token->top_id, &record[3], token->n_top * sizeof record[0]);
        memcpy(token->top_logprob, &record[3 + room], token->n_top * sizeof record[0]);
    }
    return STATUS_OK;
}

enum status journal_read_ids(const struct journal *journal, struct journal_handle handle, uint32_t first,
                             uint32_t count, uint32_t *ids) {
    const struct slot *slot = find(journal, handle);
    if (slot == NULL) {
        return gone();
    }
    TRY(check_range(slot, first, count));
    if (slot->record_bytes == sizeof ids[0]) {
        stream_read(journal, slot, slot->output_start + (uint64_t)first * sizeof ids[0], ids, count * sizeof ids[0]);
        return STATUS_OK;
    }
    for (uint32_t i = 0; i < count; i++) {
        stream_read(journal, slot, slot->output_start + (uint64_t)(first + i) * slot->record_bytes, &ids[i],
                    sizeof ids[0]);
    }
    return STATUS_OK;
}

enum status journal_read_fixed(const struct journal *journal, struct journal_handle handle, uint32_t *prompt,
                               uint32_t *stop_ids, struct step_bias *bias, void *blob) {
    const struct slot *slot = find(journal, handle);
    if (slot == NULL) {
        return gone();
    }
    const struct journal_params *params = &slot->params;
    uint64_t offset = 0;
    const struct {
        void *bytes;
        size_t size;
    } parts[] = {{prompt, params->n_prompt * sizeof prompt[0]},
                 {stop_ids, params->n_stop_ids * sizeof stop_ids[0]},
                 {bias, params->n_bias * sizeof bias[0]},
                 {blob, params->n_blob}};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        if (parts[i].bytes != NULL) {
            stream_read(journal, slot, offset, parts[i].bytes, parts[i].size);
        }
        offset += parts[i].size;
    }
    return STATUS_OK;
}

enum status journal_read_prompt(const struct journal *journal, struct journal_handle handle, uint32_t first,
                                uint32_t count, uint32_t *ids) {
    const struct slot *slot = find(journal, handle);
    if (slot == NULL) {
        return gone();
    }
    if (first > slot->params.n_prompt || count > slot->params.n_prompt - first) {
        FAIL(STATUS_INVALID, "prompt ids %u + %u of %u", first, count, slot->params.n_prompt);
    }
    stream_read(journal, slot, (uint64_t)first * sizeof ids[0], ids, count * sizeof ids[0]);
    return STATUS_OK;
}

uint32_t journal_slots(const struct journal *journal) {
    return journal->n_slots;
}

uint64_t journal_need(const struct journal_params *params) {
    struct shape shape;
    return journal_shape(params, &shape) ? (uint64_t)(shape.n_chunks + shape.n_index) * CHUNK_BYTES : 0;
}

void journal_usage(const struct journal *journal, size_t *used, size_t *total) {
    uint32_t n_free = atomic_load_explicit(&journal->n_free_chunks, memory_order_relaxed);
    *total = (size_t)journal->n_chunks * CHUNK_BYTES;
    *used = (size_t)(journal->n_chunks - n_free) * CHUNK_BYTES;
}
