/* Step bodies: what passes the check can be applied to slots of exactly the promised sizes. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/wire/step_body.h"

#define SLOTS 4
#define MAX_LEN 40
#define TABLE 10
#define BLOCKS 21
#define VOCABULARY 100
#define MAX_TOKENS 32

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void apply(const struct step_view *view) {
    /* On the heap, so that a byte outside is seen. */
    uint32_t *ids = xcalloc((size_t)SLOTS * MAX_LEN, sizeof ids[0]);
    uint32_t *table = xcalloc((size_t)SLOTS * TABLE, sizeof table[0]);
    uint8_t *block_used = xcalloc(BLOCKS, 1), *known = xcalloc(VOCABULARY, 1), *row_of = xcalloc(SLOTS, 1);
    float sum = 0;
    for (uint32_t i = 0; i < view->header->n_inits; i++) {
        const struct step_init *init = &view->inits[i];
        ids[(size_t)init->slot * MAX_LEN + init->len] = 0;
        CHECK(init->sampling.temperature >= 0 && init->sampling.top_p > 0, "init %u", i);
        for (uint32_t k = 0; k < init->sampling.bias_count; k++) {
            const struct step_bias *bias = &view->bias[init->sampling.bias_first + k];
            known[bias->id]++;
            CHECK(isfinite(bias->value), "bias of init %u", i);
            sum += bias->value;
        }
    }
    for (uint32_t i = 0; i < view->header->n_runs; i++) {
        const struct step_run *run = &view->runs[i];
        memcpy(ids + (size_t)run->slot * MAX_LEN + run->pos, view->ids + run->first, run->count * sizeof ids[0]);
    }
    for (uint32_t i = 0; i < SLOTS * MAX_LEN; i++) {
        known[ids[i]]++;
    }
    for (uint32_t i = 0; i < view->header->n_blocks; i++) {
        table[view->blocks[i].slot * TABLE + view->blocks[i].index] = view->blocks[i].block;
        block_used[view->blocks[i].block]++;
    }
    uint32_t n_tokens = 0, n_sampled = 0;
    for (uint32_t i = 0; i < view->header->n_rows; i++) {
        const struct step_row *row = &view->rows[i];
        CHECK(row_of[row->slot]++ == 0, "two rows of slot %u", row->slot);
        for (uint32_t pos = row->pos; pos < row->pos + row->q_len; pos++) {
            known[ids[row->slot * MAX_LEN + pos]]++;
            n_tokens++;
        }
        n_sampled += (row->flags & STEP_ROW_SAMPLE) != 0;
    }
    CHECK(n_tokens == view->header->n_tokens && n_tokens <= MAX_TOKENS && n_sampled == view->header->n_sampled,
          "%u tokens, %u sampled, sum %f", n_tokens, n_sampled, (double)sum);
    free(ids);
    free(table);
    free(block_used);
    free(known);
    free(row_of);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const struct step_limits limits = {.max_rows = 3,
                                              .max_tokens = MAX_TOKENS,
                                              .n_slots = SLOTS,
                                              .max_len = MAX_LEN,
                                              .block_size = 4,
                                              .n_blocks = BLOCKS,
                                              .vocab_size = VOCABULARY,
                                              .max_ids = MAX_LEN + MAX_TOKENS};
    if (size > 4096) {
        return 0;
    }
    void *body = xaligned(8, (size + 7) & ~(size_t)7);
    if (size > 0) {
        memcpy(body, data, size);
    }
    struct step_view view;
    if (step_body_check(body, size, &limits, &view) == STATUS_OK) {
        apply(&view);
    }
    free(body);
    return 0;
}
