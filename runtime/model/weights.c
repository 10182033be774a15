#include "runtime/model/weights.h"

#include <stdlib.h>

#include "runtime/base/alloc.h"

#define ALIGNMENT 256

static size_t take(size_t *used, size_t bytes) {
    size_t at = *used;
    *used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return at;
}

static int is_matrix(enum shard_place place) {
    return place == SHARD_EMBED || place == SHARD_HEAD || place == SHARD_QKV || place == SHARD_O ||
           place == SHARD_GATE_UP || place == SHARD_DOWN;
}

void weights_layout_make(const struct model_config *config, const struct shard_model *shard, enum dtype dtype,
                         uint32_t max_len, struct weights_layout *layout) {
    size_t used = 0;
    size_t layers_at = 0;
    for (int place = 0; place < SHARD_PLACES; place++) {
        uint32_t rows;
        uint32_t cols;
        if (place == SHARD_ATTN_NORM) {
            layers_at = used;
        }
        shard_place_shape(config, shard, (enum shard_place)place, &rows, &cols);
        size_t element = dtype_bytes(is_matrix((enum shard_place)place) ? dtype : DTYPE_F32);
        layout->place[place] = take(&used, (size_t)rows * cols * element);
    }
    layout->layer_bytes = used - layers_at;
    used = layers_at + config->n_layers * layout->layer_bytes;
    layout->rope = take(&used, (size_t)max_len * config->head_dim * sizeof(float));
    layout->q_to_kv = take(&used, shard->n_q * sizeof(uint32_t));
    layout->bytes = used;
}

struct view {
    const struct model_config *config;
    const struct shard_model *shard;
    const struct weights_layout *layout;
    enum dtype dtype;
    char *arena;
};

static const void *array_of(const struct view *view, enum shard_place place, uint32_t layer) {
    uint32_t rows;
    uint32_t cols;
    shard_place_shape(view->config, view->shard, place, &rows, &cols);
    return rows == 0 ? NULL : view->arena + view->layout->place[place] + layer * view->layout->layer_bytes;
}

static struct weight matrix_of(const struct view *view, enum shard_place place, uint32_t layer) {
    struct weight weight = {.format = view->dtype, .data = array_of(view, place, layer)};
    shard_place_shape(view->config, view->shard, place, &weight.n, &weight.k);
    return weight;
}

void weights_view(const struct model_config *config, const struct shard_model *shard, enum dtype dtype,
                  const struct weights_layout *layout, void *arena, struct model_weights *weights) {
    struct view view = {config, shard, layout, dtype, arena};
    weights->embed = matrix_of(&view, SHARD_EMBED, 0);
    weights->head = config->tie_word_embeddings ? weights->embed : matrix_of(&view, SHARD_HEAD, 0);
    weights->final_norm = array_of(&view, SHARD_FINAL_NORM, 0);
    weights->rope = (const float *)(const void *)(view.arena + layout->rope);
    weights->q_to_kv = (const uint32_t *)(const void *)(view.arena + layout->q_to_kv);
    weights->layers = xcalloc(config->n_layers, sizeof weights->layers[0]);
    for (uint32_t i = 0; i < config->n_layers; i++) {
        weights->layers[i] = (struct layer_weights){
            .attn_norm = array_of(&view, SHARD_ATTN_NORM, i),
            .qkv = matrix_of(&view, SHARD_QKV, i),
            .qkv_bias = array_of(&view, SHARD_QKV_BIAS, i),
            .o = matrix_of(&view, SHARD_O, i),
            .o_bias = array_of(&view, SHARD_O_BIAS, i),
            .ffn_norm = array_of(&view, SHARD_FFN_NORM, i),
            .gate_up = matrix_of(&view, SHARD_GATE_UP, i),
            .gate_up_bias = array_of(&view, SHARD_GATE_UP_BIAS, i),
            .down = matrix_of(&view, SHARD_DOWN, i),
            .down_bias = array_of(&view, SHARD_DOWN_BIAS, i),
        };
    }
}

void weights_free(struct model_weights *weights) {
    free(weights->layers);
    weights->layers = NULL;
}
