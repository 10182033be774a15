/* What is known of each slot, and how rows become tokens: a few thousand integers a step, so one block each. Where two
 * inits or runs of a step write one place, the same thread writes it for both, in their order.
 *
 * The padding slot is the last one. Its rows have q_len 1, its len stays 0 and no id is appended to it, sampled or not:
 * so each padding row is id ids[last][0] (0 in fresh memory) at position 0, attends to itself alone, and has its key
 * and value at position 0 of block 0, which the engine never hands to a sequence. */
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/cuda_ops.h"

#define THREADS 1024u

static __device__ __forceinline__ uint32_t *slot_ids(const struct slot_state &slots, uint32_t slot) {
    return slots.ids + (size_t)slot * (slots.max_len + 1);
}

/* ---- slot_update */

#define SAMPLING_WORDS (uint32_t)(sizeof(struct step_sampling) / sizeof(uint32_t))

static __device__ void apply_init(const struct op_slot_update &args, const struct step_init *init) {
    const struct slot_state &slots = args.slots;
    uint32_t slot = init->slot;
    if (threadIdx.x < SAMPLING_WORDS) {
        ((uint32_t *)&slots.sampling[slot])[threadIdx.x] = ((const uint32_t *)&init->sampling)[threadIdx.x];
    } else if (threadIdx.x == SAMPLING_WORDS) {
        slots.len[slot] = init->len;
    }
    struct step_bias *bias = slots.bias + (size_t)slot * STEP_MAX_LOGIT_BIAS;
    for (uint32_t i = threadIdx.x; i < init->sampling.bias_count; i += THREADS) {
        bias[i] = args.bias[init->sampling.bias_first + i];
    }
}

/* A thread writes the positions that are its number modulo THREADS. */
static __device__ void apply_run(const struct op_slot_update &args, const struct step_run *run) {
    uint32_t *ids = slot_ids(args.slots, run->slot) + run->pos;
    const uint32_t *from = args.ids + run->first;
    for (uint32_t i = (threadIdx.x - run->pos) % THREADS; i < run->count; i += THREADS) {
        ids[i] = from[i];
    }
}

static __global__ void __launch_bounds__(THREADS) slot_update_kernel(struct op_slot_update args) {
    for (uint32_t i = 0; i < args.n_inits; i++) {
        apply_init(args, &args.inits[i]);
    }
    for (uint32_t i = 0; i < args.n_runs; i++) {
        apply_run(args, &args.runs[i]);
    }
    for (uint32_t i = threadIdx.x; i < args.n_blocks; i += THREADS) { /* no step writes an entry twice */
        struct step_block write = args.blocks[i];
        args.slots.block_table[(size_t)write.slot * args.slots.max_blocks + write.index] = write.block;
    }
}

enum status cuda_slot_update(struct kernel_stream *stream, const struct op_slot_update *args) {
    slot_update_kernel<<<1, THREADS, 0, stream->stream>>>(*args);
    return CUDA_LAUNCHED("slot_update");
}

/* ---- rows and what comes before them */

/* Tokens in the upper half, sampled rows in the lower. */
static __device__ __forceinline__ uint64_t row_counts(const struct step_row &row) {
    return (uint64_t)row.q_len << 32 | ((row.flags & STEP_ROW_SAMPLE) != 0 ? 1u : 0u);
}

/* Calls visit(r, row r, the counts of the rows before it) for each row, in some thread. */
template <typename F>
static __device__ __forceinline__ void visit_rows(const struct step_row *rows, uint32_t n_rows, F visit) {
    uint64_t done = 0;
    for (uint32_t first = 0; first < n_rows; first += THREADS) {
        uint32_t r = first + threadIdx.x;
        struct step_row row = {};
        if (r < n_rows) {
            row = rows[r];
        }
        uint64_t total;
        uint64_t before = block_scan(row_counts(row), &total);
        if (r < n_rows) {
            visit(r, row, done + before);
        }
        done += total;
    }
}

/* ---- batch_prepare */

/* The tokens before a row count from the beginning of the part's first row, of which the part skips some. */
static __device__ void prepare_row(const struct op_batch_prepare &args, uint32_t r, const struct step_row &row,
                                   uint64_t before) {
    uint32_t skip = r == 0 ? args.skip : 0;
    uint32_t first = r == 0 ? 0 : (uint32_t)(before >> 32) - args.skip;
    uint32_t end = first + row.q_len - skip;
    bool whole = end <= args.n_tokens;
    uint32_t kv_len = args.slots.len[row.slot] + row.q_len - (whole ? 0 : end - args.n_tokens);
    args.row_start[r] = first;
    args.row_slot[r] = row.slot;
    args.row_kv_len[r] = kv_len;
    if (whole && (row.flags & STEP_ROW_SAMPLE) != 0) {
        uint32_t sampled = (uint32_t)before;
        args.sample_token[sampled] = args.first_token + end - 1;
        args.sample_slot[sampled] = row.slot;
        args.sample_len[sampled] = kv_len;
    }
}

/* The row that a token is of: the last one that starts at it or before. */
static __device__ uint32_t find_row(const uint32_t *row_start, uint32_t n_rows, uint32_t token) {
    uint32_t low = 0;
    uint32_t high = n_rows - 1;
    while (low < high) {
        uint32_t middle = low + (high - low + 1) / 2;
        if (row_start[middle] <= token) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

static __global__ void __launch_bounds__(THREADS) batch_prepare_kernel(struct op_batch_prepare args) {
    visit_rows(args.rows, args.n_rows,
               [&](uint32_t r, const struct step_row &row, uint64_t before) { prepare_row(args, r, row, before); });
    if (threadIdx.x == 0) {
        args.row_start[args.n_rows] = args.n_tokens;
    }
    __syncthreads();
    for (uint32_t token = threadIdx.x; token < args.n_tokens; token += THREADS) {
        uint32_t r = find_row(args.row_start, args.n_rows, token);
        uint32_t slot = args.rows[r].slot;
        uint32_t pos = args.slots.len[slot] + (r == 0 ? args.skip : 0) + token - args.row_start[r];
        args.token_id[token] = slot_ids(args.slots, slot)[pos];
        args.token_pos[token] = pos;
        args.token_row[token] = r;
    }
}

enum status cuda_batch_prepare(struct kernel_stream *stream, const struct op_batch_prepare *args) {
    batch_prepare_kernel<<<1, THREADS, 0, stream->stream>>>(*args);
    return CUDA_LAUNCHED("batch_prepare");
}

/* ---- commit */

static __device__ void commit_row(const struct op_commit &args, const struct step_row &row, uint32_t result) {
    const struct slot_state &slots = args.slots;
    if (row.slot == slots.n_slots - 1) {
        return;
    }
    uint32_t len = slots.len[row.slot] + row.q_len;
    slots.len[row.slot] = len;
    if ((row.flags & STEP_ROW_SAMPLE) != 0 && len < slots.max_len) {
        slot_ids(slots, row.slot)[len] = args.results[result].id;
    }
}

static __global__ void __launch_bounds__(THREADS) commit_kernel(struct op_commit args) {
    visit_rows(args.rows, args.n_rows,
               [&](uint32_t, const struct step_row &row, uint64_t before) { commit_row(args, row, (uint32_t)before); });
}

enum status cuda_commit(struct kernel_stream *stream, const struct op_commit *args) {
    commit_kernel<<<1, THREADS, 0, stream->stream>>>(*args);
    return CUDA_LAUNCHED("commit");
}
