/* config.json and generation_config.json of a Hugging Face model directory, as checked structs. Field names and
 * defaults: transformers' Qwen2Config, LlamaConfig and GenerationConfig. */
#ifndef TANDEM_FORMAT_MODEL_CONFIG_H
#define TANDEM_FORMAT_MODEL_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/dtype.h"
#include "runtime/base/status.h"

enum model_arch { MODEL_QWEN2, MODEL_LLAMA };

enum rope_scaling { ROPE_PLAIN, ROPE_LINEAR, ROPE_LLAMA3 };

/* After a successful parse: every count is at least 1, n_heads % n_kv_heads == 0, head_dim is even, and every product
 * of two fields that sizes a tensor fits 40 bits. */
struct model_config {
    enum model_arch arch;
    uint32_t hidden_size;
    uint32_t n_layers;
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim; /* given, else hidden_size / n_heads */
    uint32_t intermediate_size;
    uint32_t vocab_size;   /* rows of the embedding: may exceed what the tokenizer knows */
    uint32_t max_position; /* max_position_embeddings */
    float rms_eps;
    float rope_theta;
    enum rope_scaling rope_scaling;
    float rope_factor;                   /* linear, llama3; 1 for plain */
    float rope_low_freq_factor;          /* llama3 */
    float rope_high_freq_factor;         /* llama3 */
    uint32_t rope_original_max_position; /* llama3 */
    bool tie_word_embeddings;
    bool qkv_bias;           /* always for Qwen2, attention_bias for Llama */
    bool o_bias;             /* attention_bias of Llama */
    bool mlp_bias;           /* Llama */
    uint32_t sliding_window; /* always 0: a config that uses its window is STATUS_UNSUPPORTED */
    enum dtype torch_dtype;  /* of the stored weights as declared (torch_dtype or dtype); float32 when absent */
    uint32_t bos_id;         /* UINT32_MAX when absent; generation_config.json and the tokenizer know better */
    uint32_t eos_ids[16];
    uint32_t n_eos;
};

/* Parses the text of a config.json. STATUS_INVALID for a missing, ill-typed or impossible field, STATUS_UNSUPPORTED
 * for a well-formed model that is not served (another architecture, quantised weights, another rope, activation or
 * window); the text begins with `name_for_errors` and names the field. *out is written only on success. */
enum status model_config_parse(const char *json, size_t size, const char *name_for_errors, struct model_config *out);

/* Reads DIR/config.json. */
enum status model_config_load(const char *dir, struct model_config *out);

/* Query weights per head, keys and values: n_heads * head_dim and n_kv_heads * head_dim. */
static inline uint32_t model_config_q_size(const struct model_config *config) {
    return config->n_heads * config->head_dim;
}
static inline uint32_t model_config_kv_size(const struct model_config *config) {
    return config->n_kv_heads * config->head_dim;
}

struct generation_config {
    uint32_t eos_ids[16];
    uint32_t n_eos;
    uint32_t bos_id; /* UINT32_MAX: none */
    bool do_sample;
    float temperature;        /* default of a request: 0 when do_sample is false; 1 when it is true and none is given */
    float top_p;              /* 1 = off */
    float min_p;              /* 0 = off */
    uint32_t top_k;           /* 0 = off */
    float repetition_penalty; /* 1 = off */
};

/* Parses the text of a generation_config.json; `config` gives eos and bos where the text has none. */
enum status generation_config_parse(const char *json, size_t size, const char *name_for_errors,
                                    const struct model_config *config, struct generation_config *out);

/* Reads DIR/generation_config.json; a missing file means eos and bos of `config` and greedy decoding. */
enum status generation_config_load(const char *dir, const struct model_config *config, struct generation_config *out);

#endif
