/* Who holds what of a Qwen2 or Llama model under tensor parallelism: pure arithmetic on the configuration.
 *
 * Column-parallel matrices (query, key, value, gate, up) and the vocabulary (embedding, head) are cut by rows of the
 * stored [out][in] tensors, row-parallel ones (o, down) by columns; norms are held whole; the bias of a row-parallel
 * matrix is rank 0's, since the ranks' outputs are added. Attention is cut by whole groups (a KV head and its query
 * heads), not necessarily evenly: 8 groups over 3 ranks are 3, 3, 2. When there are more ranks than KV heads, the ranks
 * are dealt to the KV heads (the remainder to the first ones), and the query heads of a group are cut over its ranks,
 * each of which holds a copy of that KV head. No rank is ever empty.
 *
 * FFN columns are cut evenly even where heads are not, as long as the ranks meet at the sum behind o and again at the
 * one behind down: a layer takes max(attention) + max(FFN) then, and columns that make up for fewer heads would only
 * add to the second, while at the first the ranks still wait for the one with the most heads. Where sums run beside
 * math (forward.c), ranks wait for each other about once a layer, and shard_balance_ffn evens out heads and columns
 * together: of SmolLM2's 3 groups over 2 ranks, the rank of one takes 59 % of the columns. */
#ifndef TANDEM_MODEL_SHARD_H
#define TANDEM_MODEL_SHARD_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"
#include "runtime/format/model_config.h"

#define SHARD_MAX_WORLD 16
#define SHARD_NAME_MAX 96

struct shard_model {
    uint32_t rank, world;
    uint32_t q_first, n_q;   /* query heads */
    uint32_t kv_first, n_kv; /* KV heads */
    uint32_t ffn_first, n_ffn;
    uint32_t vocab_first, n_vocab;
};

/* The parts of a rank's model that lie in memory as one array. QKV is [(Q + 2 G) D][H], its query rows first, then
 * keys, then values; GATE_UP is [2 F][H], its gate rows first. */
enum shard_place {
    SHARD_EMBED,
    SHARD_HEAD,
    SHARD_FINAL_NORM,
    SHARD_ATTN_NORM, /* from here on once per layer */
    SHARD_QKV,
    SHARD_QKV_BIAS,
    SHARD_O,
    SHARD_O_BIAS,
    SHARD_FFN_NORM,
    SHARD_GATE_UP,
    SHARD_GATE_UP_BIAS,
    SHARD_DOWN,
    SHARD_DOWN_BIAS,
    SHARD_PLACES
};

/* What a rank takes of a stored tensor, and where it goes. A vector counts as a matrix of one column. */
struct shard_slice {
    enum shard_place place;
    uint32_t layer;                                /* 0 outside layers */
    uint32_t n_dims;                               /* of the stored tensor, 1 or 2 */
    uint32_t rows, cols;                           /* its shape */
    uint32_t row_first, n_rows, col_first, n_cols; /* n_rows is 0 where this rank takes nothing */
    uint32_t dest_row;                             /* first row within the place, whose rows are n_cols long */
};

/* The shares of one rank. STATUS_INVALID when rank or world are out of range, STATUS_UNSUPPORTED when the model is too
 * small for the world; the text names the largest world that works. */
enum status shard_model_make(const struct model_config *config, uint32_t rank, uint32_t world,
                             struct shard_model *shard);

/* Deals the FFN columns anew, so that every rank has as much to multiply in a layer, with its matrices and with the
 * keys and values of 512 positions; where heads are even, columns stay even. Every rank of a group must do so, or none.
 */
void shard_balance_ffn(const struct model_config *config, struct shard_model *shard);

/* map[h] = which of the rank's KV heads its query head h reads, for h < n_q. */
void shard_q_to_kv(const struct model_config *config, const struct shard_model *shard, uint32_t *map);

/* Rows and columns of a place on this rank; both 0 where the model (or this rank) has none. The head of a tied model is
 * the embedding: SHARD_HEAD has none. */
void shard_place_shape(const struct model_config *config, const struct shard_model *shard, enum shard_place place,
                       uint32_t *rows, uint32_t *cols);

/* The tensors of the model's checkpoint: their number, the name of each (into `name`, SHARD_NAME_MAX bytes), and what
 * this rank takes of it. */
uint32_t shard_tensor_count(const struct model_config *config);
void shard_tensor(const struct model_config *config, const struct shard_model *shard, uint32_t index, char *name,
                  struct shard_slice *slice);

/* The slice of a tensor by its name; STATUS_NOT_FOUND when the model has no such tensor. */
enum status shard_find(const struct model_config *config, const struct shard_model *shard, const char *name,
                       struct shard_slice *slice);

#endif
