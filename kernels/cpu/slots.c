/* What is known of each slot, and how rows become tokens. All of it is a few hundred integers a step, so it runs on the
 * stream's thread alone.
 *
 * The padding slot is the last one. Its rows have q_len 1, its len stays 0 and no id is appended to it, sampled or not:
 * so each padding row is id ids[last][0] (0 in fresh memory) at position 0, attends to itself alone, and has its key
 * and value at position 0 of block 0, which the engine never hands to a sequence. */
#include <string.h>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/cpu_ops.h"

static uint32_t *slot_ids(const struct slot_state *slots, uint32_t slot) {
    return slots->ids + (size_t)slot * (slots->max_len + 1);
}

static void slot_update_run(struct kernel_device *device, const void *context) {
    (void)device;
    const struct op_slot_update *args = context;
    const struct slot_state *slots = &args->slots;
    for (uint32_t i = 0; i < args->n_inits; i++) {
        const struct step_init *init = &args->inits[i];
        slots->len[init->slot] = init->len;
        slots->sampling[init->slot] = init->sampling;
        struct step_bias *bias = slots->bias + (size_t)init->slot * STEP_MAX_LOGIT_BIAS;
        for (uint32_t j = 0; j < init->sampling.bias_count; j++) {
            bias[j] = args->bias[init->sampling.bias_first + j];
        }
    }
    for (uint32_t i = 0; i < args->n_runs; i++) {
        const struct step_run *run = &args->runs[i];
        memcpy(slot_ids(slots, run->slot) + run->pos, args->ids + run->first, run->count * sizeof *args->ids);
    }
    for (uint32_t i = 0; i < args->n_blocks; i++) {
        const struct step_block *write = &args->blocks[i];
        slots->block_table[(size_t)write->slot * slots->max_blocks + write->index] = write->block;
    }
}

enum status cpu_slot_update(struct kernel_stream *stream, const struct op_slot_update *args) {
    cpu_enqueue(stream, slot_update_run, args, sizeof *args);
    return STATUS_OK;
}

static void batch_prepare_run(struct kernel_device *device, const void *context) {
    (void)device;
    const struct op_batch_prepare *args = context;
    uint32_t token = 0;
    uint32_t sampled = 0;
    for (uint32_t r = 0; r < args->n_rows; r++) {
        const struct step_row *row = &args->rows[r];
        uint32_t skip = r == 0 ? args->skip : 0;
        uint32_t pos = args->slots.len[row->slot] + skip;
        uint32_t left = row->q_len - skip;
        uint32_t n = left < args->n_tokens - token ? left : args->n_tokens - token;
        const uint32_t *ids = slot_ids(&args->slots, row->slot);
        args->row_start[r] = token;
        args->row_slot[r] = row->slot;
        args->row_kv_len[r] = pos + n;
        for (uint32_t i = 0; i < n; i++, token++) {
            args->token_id[token] = ids[pos + i];
            args->token_pos[token] = pos + i;
            args->token_row[token] = r;
        }
        if (n == left && (row->flags & STEP_ROW_SAMPLE) != 0) {
            args->sample_token[sampled] = args->first_token + token - 1;
            args->sample_slot[sampled] = row->slot;
            args->sample_len[sampled++] = pos + n;
        }
    }
    args->row_start[args->n_rows] = token;
}

enum status cpu_batch_prepare(struct kernel_stream *stream, const struct op_batch_prepare *args) {
    cpu_enqueue(stream, batch_prepare_run, args, sizeof *args);
    return STATUS_OK;
}

static void commit_run(struct kernel_device *device, const void *context) {
    (void)device;
    const struct op_commit *args = context;
    const struct slot_state *slots = &args->slots;
    uint32_t sampled = 0;
    for (uint32_t r = 0; r < args->n_rows; r++) {
        const struct step_row *row = &args->rows[r];
        bool draws = (row->flags & STEP_ROW_SAMPLE) != 0;
        uint32_t result = sampled;
        sampled += draws;
        if (row->slot == slots->n_slots - 1) {
            continue;
        }
        uint32_t len = slots->len[row->slot] + row->q_len;
        slots->len[row->slot] = len;
        if (draws && len < slots->max_len) {
            slot_ids(slots, row->slot)[len] = args->results[result].id;
        }
    }
}

enum status cpu_commit(struct kernel_stream *stream, const struct op_commit *args) {
    cpu_enqueue(stream, commit_run, args, sizeof *args);
    return STATUS_OK;
}
