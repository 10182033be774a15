#include "runtime/model/shard.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/check.h"

#define BALANCE_CONTEXT 512 /* positions: of a prompt of twice as many tokens, or a short answer */

/* Columns and vocabulary rows go in multiples of this where the whole is one: cards like aligned rows. */
#define GRANULE 16

/* How a stored tensor is cut. */
enum cut { CUT_NONE, CUT_Q_ROWS, CUT_KV_ROWS, CUT_FFN_ROWS, CUT_VOCAB_ROWS, CUT_Q_COLS, CUT_FFN_COLS, CUT_RANK_0 };

enum need { NEED_ALWAYS, NEED_UNTIED, NEED_QKV_BIAS, NEED_O_BIAS, NEED_MLP_BIAS };

struct part {
    const char *name; /* behind "model.layers.N." for the parts of a layer */
    enum shard_place place;
    enum cut cut;
    enum need need;
    uint8_t matrix; /* columns: of a matrix, else a vector */
    uint8_t order;  /* among the tensors fused into one place */
};

static const struct part global_parts[] = {
    {"model.embed_tokens.weight", SHARD_EMBED, CUT_VOCAB_ROWS, NEED_ALWAYS, 1, 0},
    {"lm_head.weight", SHARD_HEAD, CUT_VOCAB_ROWS, NEED_UNTIED, 1, 0},
    {"model.norm.weight", SHARD_FINAL_NORM, CUT_NONE, NEED_ALWAYS, 0, 0},
};

static const struct part layer_parts[] = {
    {"input_layernorm.weight", SHARD_ATTN_NORM, CUT_NONE, NEED_ALWAYS, 0, 0},
    {"self_attn.q_proj.weight", SHARD_QKV, CUT_Q_ROWS, NEED_ALWAYS, 1, 0},
    {"self_attn.k_proj.weight", SHARD_QKV, CUT_KV_ROWS, NEED_ALWAYS, 1, 1},
    {"self_attn.v_proj.weight", SHARD_QKV, CUT_KV_ROWS, NEED_ALWAYS, 1, 2},
    {"self_attn.q_proj.bias", SHARD_QKV_BIAS, CUT_Q_ROWS, NEED_QKV_BIAS, 0, 0},
    {"self_attn.k_proj.bias", SHARD_QKV_BIAS, CUT_KV_ROWS, NEED_QKV_BIAS, 0, 1},
    {"self_attn.v_proj.bias", SHARD_QKV_BIAS, CUT_KV_ROWS, NEED_QKV_BIAS, 0, 2},
    {"self_attn.o_proj.weight", SHARD_O, CUT_Q_COLS, NEED_ALWAYS, 1, 0},
    {"self_attn.o_proj.bias", SHARD_O_BIAS, CUT_RANK_0, NEED_O_BIAS, 0, 0},
    {"post_attention_layernorm.weight", SHARD_FFN_NORM, CUT_NONE, NEED_ALWAYS, 0, 0},
    {"mlp.gate_proj.weight", SHARD_GATE_UP, CUT_FFN_ROWS, NEED_ALWAYS, 1, 0},
    {"mlp.up_proj.weight", SHARD_GATE_UP, CUT_FFN_ROWS, NEED_ALWAYS, 1, 1},
    {"mlp.gate_proj.bias", SHARD_GATE_UP_BIAS, CUT_FFN_ROWS, NEED_MLP_BIAS, 0, 0},
    {"mlp.up_proj.bias", SHARD_GATE_UP_BIAS, CUT_FFN_ROWS, NEED_MLP_BIAS, 0, 1},
    {"mlp.down_proj.weight", SHARD_DOWN, CUT_FFN_COLS, NEED_ALWAYS, 1, 0},
    {"mlp.down_proj.bias", SHARD_DOWN_BIAS, CUT_RANK_0, NEED_MLP_BIAS, 0, 0},
};

#define N_GLOBAL (sizeof global_parts / sizeof global_parts[0])
#define N_LAYER (sizeof layer_parts / sizeof layer_parts[0])

/* ---- shares */

/* Units [*first, *first + *count) of `units` for member `rank` of `world`: equal, the remainder to the first. */
static void deal(uint32_t units, uint32_t rank, uint32_t world, uint32_t *first, uint32_t *count) {
    uint32_t base = units / world;
    uint32_t rest = units % world;
    *first = rank * base + (rank < rest ? rank : rest);
    *count = base + (rank < rest);
}

/* So that each of `world` ranks can have `least` of them. */
static uint32_t granule_of(uint32_t columns, uint32_t world, uint32_t least) {
    return columns % GRANULE == 0 && columns / GRANULE >= world * least ? GRANULE : 1;
}

static void deal_columns(uint32_t columns, uint32_t rank, uint32_t world, uint32_t *first, uint32_t *count) {
    uint32_t granule = granule_of(columns, world, 1);
    deal(columns / granule, rank, world, first, count);
    *first *= granule;
    *count *= granule;
}

static void deal_heads(const struct model_config *config, struct shard_model *shard) {
    uint32_t group = config->n_heads / config->n_kv_heads;
    if (shard->world <= config->n_kv_heads) {
        deal(config->n_kv_heads, shard->rank, shard->world, &shard->kv_first, &shard->n_kv);
        shard->q_first = shard->kv_first * group;
        shard->n_q = shard->n_kv * group;
        return;
    }
    for (uint32_t head = 0; head < config->n_kv_heads; head++) {
        uint32_t first;
        uint32_t count;
        deal(shard->world, head, config->n_kv_heads, &first, &count);
        if (shard->rank >= first && shard->rank < first + count) {
            deal(group, shard->rank - first, count, &shard->q_first, &shard->n_q);
            shard->q_first += head * group;
            shard->kv_first = head;
            shard->n_kv = 1;
        }
    }
}

enum status shard_model_make(const struct model_config *config, uint32_t rank, uint32_t world,
                             struct shard_model *shard) {
    if (world < 1 || world > SHARD_MAX_WORLD || rank >= world) {
        FAIL(STATUS_INVALID, "tp: rank %u of %u; the world may be 1 to %d", rank, world, SHARD_MAX_WORLD);
    }
    const struct {
        const char *name;
        uint32_t count;
    } units[] = {{"query heads", config->n_heads},
                 {"feed-forward columns", config->intermediate_size},
                 {"vocabulary rows", config->vocab_size}};
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (world > units[i].count) {
            FAIL(STATUS_UNSUPPORTED, "tp: %u ranks are more than this model has %s; use tp of at most %u", world,
                 units[i].name, units[i].count);
        }
    }
    *shard = (struct shard_model){.rank = rank, .world = world};
    deal_heads(config, shard);
    deal_columns(config->intermediate_size, rank, world, &shard->ffn_first, &shard->n_ffn);
    deal_columns(config->vocab_size, rank, world, &shard->vocab_first, &shard->n_vocab);
    return STATUS_OK;
}

/* Rows of qkv and columns of o, and as many more as it takes a token to multiply with the keys and values of
 * BALANCE_CONTEXT positions; a column of the feed-forward has three of the kind. */
static uint64_t attention_size(const struct model_config *config, uint32_t rank, uint32_t world) {
    struct shard_model shard = {.rank = rank, .world = world};
    deal_heads(config, &shard);
    uint64_t context = (uint64_t)2 * BALANCE_CONTEXT * shard.n_q * config->head_dim / config->hidden_size;
    return (uint64_t)(2 * shard.n_q + 2 * shard.n_kv) * config->head_dim + context;
}

void shard_balance_ffn(const struct model_config *config, struct shard_model *shard) {
    uint64_t world = shard->world;
    uint64_t columns = config->intermediate_size;
    uint64_t before[SHARD_MAX_WORLD + 1] = {0}; /* attention of the ranks before one */
    uint64_t most = 0;
    for (uint32_t r = 0; r < world; r++) {
        uint64_t size = attention_size(config, r, shard->world);
        before[r + 1] = before[r] + size;
        most = size > most ? size : most;
    }
    /* No rank is left with less than half an even share: that is at least one column or granule, rounding included. */
    uint64_t excess = most * world - before[world];
    if (excess == 0 || 2 * excess > 3 * columns || columns < 4 * world) {
        return;
    }
    uint32_t granule = granule_of(config->intermediate_size, shard->world, 4);
    uint32_t border[2]; /* columns of the ranks before this one, and with it */
    for (uint32_t i = 0; i < 2; i++) {
        uint64_t ranks = shard->rank + i;
        uint64_t thirds = ranks * (3 * columns + before[world]) - world * before[ranks]; /* of columns, times world */
        border[i] = (uint32_t)((thirds / (3 * world) + granule / 2) / granule * granule);
    }
    shard->ffn_first = border[0];
    shard->n_ffn = border[1] - border[0];
}

void shard_q_to_kv(const struct model_config *config, const struct shard_model *shard, uint32_t *map) {
    uint32_t group = config->n_heads / config->n_kv_heads;
    for (uint32_t h = 0; h < shard->n_q; h++) {
        map[h] = (shard->q_first + h) / group - shard->kv_first;
    }
}

/* ---- tensors */

static int is_needed(const struct model_config *config, const struct part *part) {
    switch (part->need) {
    case NEED_ALWAYS: return 1;
    case NEED_UNTIED: return !config->tie_word_embeddings;
    case NEED_QKV_BIAS: return config->qkv_bias;
    case NEED_O_BIAS: return config->o_bias;
    case NEED_MLP_BIAS: return config->mlp_bias;
    }
    return 0;
}

/* Length of the axis that is cut, and this rank's range of it. */
static uint32_t cut_range(const struct model_config *config, const struct shard_model *shard, enum cut cut,
                          uint32_t *first, uint32_t *count) {
    uint32_t d = config->head_dim;
    switch (cut) {
    case CUT_Q_ROWS:
    case CUT_Q_COLS:
        *first = shard->q_first * d;
        *count = shard->n_q * d;
        return config->n_heads * d;
    case CUT_KV_ROWS:
        *first = shard->kv_first * d;
        *count = shard->n_kv * d;
        return config->n_kv_heads * d;
    case CUT_FFN_ROWS:
    case CUT_FFN_COLS:
        *first = shard->ffn_first;
        *count = shard->n_ffn;
        return config->intermediate_size;
    case CUT_VOCAB_ROWS:
        *first = shard->vocab_first;
        *count = shard->n_vocab;
        return config->vocab_size;
    case CUT_NONE:
    case CUT_RANK_0: break;
    }
    *first = 0;
    *count = cut == CUT_RANK_0 && shard->rank != 0 ? 0 : config->hidden_size;
    return config->hidden_size;
}

/* Rows of the tensors that lie before this one in its place. */
static uint32_t rows_before(const struct shard_model *shard, const struct model_config *config,
                            const struct part *part) {
    uint32_t d = config->head_dim;
    switch (part->place) {
    case SHARD_QKV:
    case SHARD_QKV_BIAS:
        return part->order == 0 ? 0 : part->order == 1 ? shard->n_q * d : (shard->n_q + shard->n_kv) * d;
    case SHARD_GATE_UP:
    case SHARD_GATE_UP_BIAS: return part->order == 0 ? 0 : shard->n_ffn;
    default: return 0;
    }
}

static void slice_of(const struct model_config *config, const struct shard_model *shard, const struct part *part,
                     uint32_t layer, struct shard_slice *slice) {
    uint32_t first;
    uint32_t count;
    uint32_t length = cut_range(config, shard, part->cut, &first, &count);
    *slice = (struct shard_slice){.place = part->place, .layer = layer, .n_dims = part->matrix ? 2 : 1};
    if (part->cut == CUT_Q_COLS || part->cut == CUT_FFN_COLS) {
        slice->rows = slice->n_rows = config->hidden_size;
        slice->cols = length;
        slice->col_first = first;
        slice->n_cols = count;
        return;
    }
    slice->rows = length;
    slice->row_first = first;
    slice->n_rows = count;
    slice->cols = slice->n_cols = part->matrix ? config->hidden_size : 1;
    slice->dest_row = rows_before(shard, config, part);
}

void shard_place_shape(const struct model_config *config, const struct shard_model *shard, enum shard_place place,
                       uint32_t *rows, uint32_t *cols) {
    *rows = 0;
    *cols = 0;
    for (size_t i = 0; i < N_GLOBAL + N_LAYER; i++) {
        const struct part *part = i < N_GLOBAL ? &global_parts[i] : &layer_parts[i - N_GLOBAL];
        if (part->place == place && is_needed(config, part)) {
            struct shard_slice slice;
            slice_of(config, shard, part, 0, &slice);
            *rows += slice.n_rows;
            *cols = slice.n_rows > 0 ? slice.n_cols : *cols;
        }
    }
}

static uint32_t count_needed(const struct model_config *config, const struct part *parts, size_t n) {
    uint32_t count = 0;
    for (size_t i = 0; i < n; i++) {
        count += is_needed(config, &parts[i]) != 0;
    }
    return count;
}

uint32_t shard_tensor_count(const struct model_config *config) {
    return count_needed(config, global_parts, N_GLOBAL) + config->n_layers * count_needed(config, layer_parts, N_LAYER);
}

static const struct part *nth_needed(const struct model_config *config, const struct part *parts, size_t n,
                                     uint32_t index) {
    for (size_t i = 0; i < n; i++) {
        if (is_needed(config, &parts[i]) && index-- == 0) {
            return &parts[i];
        }
    }
    check_failed(__FILE__, __LINE__, "index", "no such tensor");
}

void shard_tensor(const struct model_config *config, const struct shard_model *shard, uint32_t index, char *name,
                  struct shard_slice *slice) {
    CHECK(index < shard_tensor_count(config), "tensor %u", index);
    uint32_t n_global = count_needed(config, global_parts, N_GLOBAL);
    uint32_t per_layer = count_needed(config, layer_parts, N_LAYER);
    if (index < n_global) {
        const struct part *part = nth_needed(config, global_parts, N_GLOBAL, index);
        snprintf(name, SHARD_NAME_MAX, "%s", part->name);
        slice_of(config, shard, part, 0, slice);
        return;
    }
    uint32_t layer = (index - n_global) / per_layer;
    const struct part *part = nth_needed(config, layer_parts, N_LAYER, (index - n_global) % per_layer);
    snprintf(name, SHARD_NAME_MAX, "model.layers.%u.%s", layer, part->name);
    slice_of(config, shard, part, layer, slice);
}

/* "model.layers.12.rest": stores 12 and returns "rest"; NULL for any other form, also 012 and +12. */
static const char *layer_part_name(const char *name, uint32_t *layer) {
    static const char prefix[] = "model.layers.";
    if (strncmp(name, prefix, sizeof prefix - 1) != 0) {
        return NULL;
    }
    const char *digits = name + sizeof prefix - 1;
    size_t n = strspn(digits, "0123456789");
    if (n == 0 || n > 6 || (n > 1 && digits[0] == '0') || digits[n] != '.') {
        return NULL;
    }
    *layer = (uint32_t)strtoul(digits, NULL, 10);
    return digits + n + 1;
}

enum status shard_find(const struct model_config *config, const struct shard_model *shard, const char *name,
                       struct shard_slice *slice) {
    uint32_t layer = 0;
    const char *rest = layer_part_name(name, &layer);
    const struct part *parts = rest != NULL ? layer_parts : global_parts;
    size_t n = rest != NULL ? N_LAYER : N_GLOBAL;
    for (size_t i = 0; i < n && layer < config->n_layers; i++) {
        if (strcmp(parts[i].name, rest != NULL ? rest : name) == 0 && is_needed(config, &parts[i])) {
            slice_of(config, shard, &parts[i], layer, slice);
            return STATUS_OK;
        }
    }
    FAIL(STATUS_NOT_FOUND, "tensor %s is not part of this model", name);
}
