#include "runtime/journal/layout.h"

#include <string.h>

#include "runtime/base/hash.h"

bool journal_shape(const struct journal_params *params, struct shape *shape) {
    int32_t n_logprobs = params->sampling.n_logprobs;
    if (n_logprobs < -1 || n_logprobs > STEP_MAX_LOGPROBS || params->n_bias > STEP_MAX_LOGIT_BIAS) {
        return false;
    }
    /* id; logprob; n_top; top ids and their logprobs */
    shape->record_bytes = n_logprobs < 0 ? 4 : n_logprobs == 0 ? 8 : 12 + 8 * (uint32_t)n_logprobs;
    uint64_t fixed = 4 * ((uint64_t)params->n_prompt + params->n_stop_ids) +
                     (uint64_t)params->n_bias * sizeof(struct step_bias) + params->n_blob;
    shape->output_start = (fixed + 3) & ~(uint64_t)3;
    shape->total = shape->output_start + (uint64_t)params->max_tokens * shape->record_bytes;
    shape->n_chunks = (shape->total + CHUNK_BYTES - 1) / CHUNK_BYTES;
    shape->n_index =
        shape->n_chunks <= DIRECT_CHUNKS ? 0 : (shape->n_chunks - DIRECT_CHUNKS + INDEX_ENTRIES - 1) / INDEX_ENTRIES;
    return true;
}

uint32_t slot_chunk(const struct journal *journal, const struct slot *slot, uint32_t k) {
    if (k < DIRECT_CHUNKS) {
        return slot->direct[k];
    }
    k -= DIRECT_CHUNKS;
    const uint32_t *index = (const uint32_t *)(const void *)chunk_at(journal, slot->first_index);
    for (; k >= INDEX_ENTRIES; k -= INDEX_ENTRIES) {
        index = (const uint32_t *)(const void *)chunk_at(journal, index[0]);
    }
    return index[1 + k];
}

static uint8_t *stream_at(const struct journal *journal, const struct slot *slot, uint64_t offset, size_t *left) {
    size_t within = offset % CHUNK_BYTES;
    *left = CHUNK_BYTES - within;
    return chunk_at(journal, slot_chunk(journal, slot, (uint32_t)(offset / CHUNK_BYTES))) + within;
}

void stream_write(const struct journal *journal, const struct slot *slot, uint64_t offset, const void *bytes,
                  size_t size) {
    const uint8_t *from = bytes;
    while (size > 0) {
        size_t left;
        uint8_t *to = stream_at(journal, slot, offset, &left);
        size_t part = size < left ? size : left;
        memcpy(to, from, part);
        from += part;
        offset += part;
        size -= part;
    }
}

void stream_read(const struct journal *journal, const struct slot *slot, uint64_t offset, void *bytes, size_t size) {
    uint8_t *to = bytes;
    while (size > 0) {
        size_t left;
        const uint8_t *from = stream_at(journal, slot, offset, &left);
        size_t part = size < left ? size : left;
        memcpy(to, from, part);
        to += part;
        offset += part;
        size -= part;
    }
}

uint32_t slot_fixed_crc(const struct journal *journal, const struct slot *slot) {
    uint32_t crc = crc32c(0, &slot->params, sizeof slot->params);
    uint64_t offset = 0;
    while (offset < slot->output_start) {
        size_t left;
        const uint8_t *from = stream_at(journal, slot, offset, &left);
        size_t part = slot->output_start - offset < left ? (size_t)(slot->output_start - offset) : left;
        crc = crc32c(crc, from, part);
        offset += part;
    }
    return crc;
}
