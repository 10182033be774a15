#include "runtime/format/model_config.h"

#include <float.h>
#include <stdio.h>
#include <string.h>

#include "runtime/base/buf.h"
#include "runtime/format/json_in.h"

#define CONFIG_LIMIT ((size_t)4 << 20)

/* Far above every published model; their products fit 40 bits. */
#define MAX_WIDTH (1u << 20)
#define MAX_LAYERS 4096u
#define MAX_VOCAB (1u << 24)
#define MAX_POSITION (1u << 28)
#define MAX_HEAD_DIM 1024u

/* Stores the list of strings' first entry, or NULL when there is no such key. */
static enum status first_architecture(const json_t *root, const char **out) {
    const json_t *list = NULL;
    *out = NULL;
    TRY(json_in_array(root, "architectures", false, &list));
    if (list == NULL || json_array_size(list) == 0) {
        return STATUS_OK;
    }
    const json_t *first = json_array_get(list, 0);
    if (!json_is_string(first)) {
        FAIL(STATUS_INVALID, "architectures[0]: %s where a string belongs", json_in_type_name(first));
    }
    *out = json_string_value(first);
    return STATUS_OK;
}

static enum status parse_arch(const json_t *root, struct model_config *config) {
    const char *name = NULL;
    const char *key = "architectures";
    TRY(first_architecture(root, &name));
    if (name == NULL) {
        key = "model_type";
        TRY(json_in_string(root, "model_type", true, &name, NULL));
    }
    if (strcmp(name, "Qwen2ForCausalLM") == 0 || strcmp(name, "qwen2") == 0) {
        config->arch = MODEL_QWEN2;
    } else if (strcmp(name, "LlamaForCausalLM") == 0 || strcmp(name, "llama") == 0) {
        config->arch = MODEL_LLAMA;
    } else {
        FAIL(STATUS_UNSUPPORTED, "%s: \"%.100s\" is not served; Qwen2ForCausalLM and LlamaForCausalLM are", key, name);
    }
    return STATUS_OK;
}

static enum status parse_sizes(const json_t *root, struct model_config *config) {
    TRY(json_in_u32(root, "hidden_size", 1, MAX_WIDTH, true, &config->hidden_size));
    TRY(json_in_u32(root, "num_hidden_layers", 1, MAX_LAYERS, true, &config->n_layers));
    TRY(json_in_u32(root, "num_attention_heads", 1, MAX_WIDTH, true, &config->n_heads));
    config->n_kv_heads = config->n_heads;
    TRY(json_in_u32(root, "num_key_value_heads", 1, MAX_WIDTH, false, &config->n_kv_heads));
    TRY(json_in_u32(root, "intermediate_size", 1, MAX_WIDTH, true, &config->intermediate_size));
    TRY(json_in_u32(root, "vocab_size", 1, MAX_VOCAB, true, &config->vocab_size));
    config->max_position = config->arch == MODEL_QWEN2 ? 32768 : 2048; /* the classes' defaults */
    TRY(json_in_u32(root, "max_position_embeddings", 1, MAX_POSITION, false, &config->max_position));
    TRY(json_in_u32(root, "head_dim", 2, MAX_HEAD_DIM, false, &config->head_dim));

    if (config->n_heads % config->n_kv_heads != 0) {
        FAIL(STATUS_INVALID, "num_key_value_heads: %u does not divide num_attention_heads, %u", config->n_kv_heads,
             config->n_heads);
    }
    if (config->head_dim == 0) {
        if (config->hidden_size % config->n_heads != 0) {
            FAIL(STATUS_INVALID, "num_attention_heads: %u does not divide hidden_size, %u, and head_dim is not given",
                 config->n_heads, config->hidden_size);
        }
        config->head_dim = config->hidden_size / config->n_heads;
    }
    if (config->head_dim % 2 != 0 || config->head_dim > MAX_HEAD_DIM) {
        FAIL(STATUS_INVALID, "head_dim: %u is not an even number in 2..%u, as rotary positions need", config->head_dim,
             MAX_HEAD_DIM);
    }
    if ((uint64_t)config->n_heads * config->head_dim > MAX_WIDTH) {
        FAIL(STATUS_INVALID, "num_attention_heads x head_dim: %u x %u is above %u", config->n_heads, config->head_dim,
             MAX_WIDTH);
    }
    return STATUS_OK;
}

static enum status parse_rope_kind(const json_t *rope, struct model_config *config) {
    const char *type = "default";
    TRY(json_in_string(rope, "type", false, &type, NULL)); /* the older spelling */
    TRY(json_in_string(rope, "rope_type", false, &type, NULL));
    if (strcmp(type, "default") == 0) {
        return STATUS_OK;
    }
    if (strcmp(type, "linear") == 0) {
        config->rope_scaling = ROPE_LINEAR;
        return json_in_float(rope, "factor", 1.0f, 1e6f, true, &config->rope_factor);
    }
    if (strcmp(type, "llama3") != 0) {
        FAIL(STATUS_UNSUPPORTED, "rope_type: \"%.40s\" is not served; default, linear and llama3 are", type);
    }
    config->rope_scaling = ROPE_LLAMA3;
    TRY(json_in_float(rope, "factor", 1.0f, 1e6f, true, &config->rope_factor));
    TRY(json_in_float(rope, "low_freq_factor", FLT_MIN, 1e6f, true, &config->rope_low_freq_factor));
    TRY(json_in_float(rope, "high_freq_factor", FLT_MIN, 1e6f, true, &config->rope_high_freq_factor));
    TRY(json_in_u32(rope, "original_max_position_embeddings", 1, MAX_POSITION, true,
                    &config->rope_original_max_position));
    if (config->rope_high_freq_factor <= config->rope_low_freq_factor) {
        FAIL(STATUS_INVALID, "high_freq_factor: %g is not above low_freq_factor, %g",
             (double)config->rope_high_freq_factor, (double)config->rope_low_freq_factor);
    }
    return STATUS_OK;
}

static enum status refuse_partial_rotary(const json_t *object) {
    float part = 1.0f;
    TRY(json_in_float(object, "partial_rotary_factor", 0.0f, 1.0f, false, &part));
    if (part < 1.0f) {
        FAIL(STATUS_UNSUPPORTED, "partial_rotary_factor: %g is not served; whole heads (1.0) are", (double)part);
    }
    return STATUS_OK;
}

/* rope_theta and rope_scaling stood at the top up to transformers 4; since 5 both lie in rope_parameters. */
static enum status parse_rope(const json_t *root, struct model_config *config) {
    config->rope_factor = 1.0f;
    config->rope_theta = 10000.0f;
    TRY(json_in_float(root, "rope_theta", 1.0f, 1e12f, false, &config->rope_theta));
    TRY(refuse_partial_rotary(root));
    const char *key = "rope_parameters";
    const json_t *rope = NULL;
    TRY(json_in_object(root, key, false, &rope));
    if (rope == NULL) {
        key = "rope_scaling";
        TRY(json_in_object(root, key, false, &rope));
    }
    if (rope == NULL) {
        return STATUS_OK;
    }
    enum status result = json_in_float(rope, "rope_theta", 1.0f, 1e12f, false, &config->rope_theta);
    if (result == STATUS_OK) {
        result = refuse_partial_rotary(rope);
    }
    if (result == STATUS_OK) {
        result = parse_rope_kind(rope, config);
    }
    return result == STATUS_OK ? STATUS_OK : status_prefix(result, "%s", key);
}

/* Qwen2 names a window in every config and mostly switches it off. It is harmless, too, when no layer uses it or when
 * it is as wide as the context. Llama's class ignores the key. */
static enum status refuse_window(const json_t *root, const struct model_config *config) {
    if (config->arch != MODEL_QWEN2) {
        return STATUS_OK;
    }
    bool use = false;
    uint32_t window = 4096; /* the class's defaults */
    uint32_t full_layers = 28;
    TRY(json_in_bool(root, "use_sliding_window", false, &use));
    TRY(json_in_u32(root, "sliding_window", 0, UINT32_MAX, false, &window));
    TRY(json_in_u32(root, "max_window_layers", 0, UINT32_MAX, false, &full_layers));
    bool slides = use && full_layers < config->n_layers;
    const json_t *types = NULL;
    TRY(json_in_array(root, "layer_types", false, &types));
    if (types != NULL) {
        slides = false;
        size_t index;
        json_t *type;
        json_array_foreach(types, index, type) {
            if (!json_is_string(type)) {
                FAIL(STATUS_INVALID, "layer_types[%zu]: %s where a string belongs", index, json_in_type_name(type));
            }
            slides = slides || strcmp(json_string_value(type), "full_attention") != 0;
        }
    }
    if (slides && window < config->max_position) {
        FAIL(STATUS_UNSUPPORTED,
             "sliding_window: %u is in use, and attention here is full; set use_sliding_window to "
             "false only if the model was trained without it",
             window);
    }
    return STATUS_OK;
}

static enum status refuse_quantised(const json_t *root) {
    const json_t *quant = NULL;
    TRY(json_in_object(root, "quantization_config", false, &quant));
    if (quant != NULL) {
        const char *method = "an unnamed method";
        TRY(json_in_string(quant, "quant_method", false, &method, NULL));
        FAIL(STATUS_UNSUPPORTED,
             "quantization_config: weights quantised by %.40s are not served; use the bfloat16, "
             "float16 or float32 checkpoint",
             method);
    }
    return STATUS_OK;
}

static enum status parse_dtype(const json_t *root, struct model_config *config) {
    const char *name = "float32";
    const char *key = "torch_dtype";
    TRY(json_in_string(root, "torch_dtype", false, &name, NULL));
    if (json_is_string(json_object_get(root, "dtype"))) {
        key = "dtype"; /* the newer spelling wins */
        TRY(json_in_string(root, "dtype", false, &name, NULL));
    }
    const char *plain = strncmp(name, "torch.", 6) == 0 ? name + 6 : name;
    if (dtype_parse(plain, &config->torch_dtype) != 0) {
        FAIL(STATUS_UNSUPPORTED, "%s: \"%.40s\" is not served; bfloat16, float16 and float32 are", key, name);
    }
    return STATUS_OK;
}

static enum status parse_biases(const json_t *root, struct model_config *config) {
    const char *activation = "silu";
    TRY(json_in_string(root, "hidden_act", false, &activation, NULL));
    if (strcmp(activation, "silu") != 0) {
        FAIL(STATUS_UNSUPPORTED, "hidden_act: \"%.40s\" is not served; silu is", activation);
    }
    TRY(json_in_bool(root, "tie_word_embeddings", false, &config->tie_word_embeddings));
    if (config->arch == MODEL_QWEN2) {
        config->qkv_bias = true;
        return STATUS_OK;
    }
    bool attention_bias = false;
    TRY(json_in_bool(root, "attention_bias", false, &attention_bias));
    TRY(json_in_bool(root, "mlp_bias", false, &config->mlp_bias));
    config->qkv_bias = attention_bias;
    config->o_bias = attention_bias;
    return STATUS_OK;
}

/* One id or a list of ids; absent leaves *count alone. */
static enum status parse_ids(const json_t *root, const char *key, uint32_t ids[16], uint32_t *count) {
    const json_t *value = json_object_get(root, key);
    if (!json_is_array(value)) {
        if (value == NULL || json_is_null(value)) {
            return STATUS_OK;
        }
        TRY(json_in_u32(root, key, 0, INT32_MAX, true, &ids[0]));
        *count = 1;
        return STATUS_OK;
    }
    if (json_array_size(value) > 16) {
        FAIL(STATUS_LIMIT, "%s: %zu ids are above the limit of 16", key, json_array_size(value));
    }
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *id = json_array_get(value, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT32_MAX) {
            FAIL(STATUS_INVALID, "%s[%zu]: no token id", key, i);
        }
        ids[i] = (uint32_t)json_integer_value(id);
    }
    *count = (uint32_t)json_array_size(value);
    return STATUS_OK;
}

static enum status parse_config(const json_t *root, struct model_config *config) {
    TRY(parse_arch(root, config));
    TRY(refuse_quantised(root));
    TRY(parse_sizes(root, config));
    config->rms_eps = 1e-6f; /* the classes' default */
    TRY(json_in_float(root, "rms_norm_eps", 0.0f, 1.0f, false, &config->rms_eps));
    TRY(parse_rope(root, config));
    TRY(parse_biases(root, config));
    TRY(refuse_window(root, config));
    TRY(parse_dtype(root, config));
    uint32_t bos[16] = {UINT32_MAX};
    uint32_t n_bos = 0;
    TRY(parse_ids(root, "bos_token_id", bos, &n_bos));
    config->bos_id = n_bos > 0 ? bos[0] : UINT32_MAX;
    return parse_ids(root, "eos_token_id", config->eos_ids, &config->n_eos);
}

enum status model_config_parse(const char *json, size_t size, const char *name_for_errors, struct model_config *out) {
    json_t *root;
    TRY(json_in_parse(json, size, CONFIG_LIMIT, name_for_errors, &root));
    struct model_config config = {0};
    enum status result = json_in_expect_object(root, name_for_errors);
    if (result == STATUS_OK) {
        result = parse_config(root, &config);
        if (result != STATUS_OK) {
            status_prefix(result, "%s", name_for_errors);
        }
    }
    json_decref(root);
    if (result == STATUS_OK) {
        *out = config;
    }
    return result;
}

/* Reads DIR/FILE, at most CONFIG_LIMIT bytes; `path` gets its name. */
static enum status read_config(const char *dir, const char *file, char *path, size_t path_size, struct buf *text) {
    int length = snprintf(path, path_size, "%s/%s", dir, file);
    if (length < 0 || (size_t)length >= path_size) {
        FAIL(STATUS_INVALID, "%.100s...: the path is too long", dir);
    }
    return buf_read_file(text, path, CONFIG_LIMIT);
}

enum status model_config_load(const char *dir, struct model_config *out) {
    char path[4096];
    struct buf text = {0};
    enum status result = read_config(dir, "config.json", path, sizeof path, &text);
    if (result == STATUS_OK) {
        result = model_config_parse(buf_cstr(&text), text.size, path, out);
    }
    buf_free(&text);
    return result;
}

static enum status parse_generation(const json_t *root, struct generation_config *config) {
    uint32_t bos[16] = {UINT32_MAX};
    uint32_t n_bos = 0;
    TRY(parse_ids(root, "bos_token_id", bos, &n_bos));
    if (n_bos > 0) {
        config->bos_id = bos[0];
    }
    TRY(parse_ids(root, "eos_token_id", config->eos_ids, &config->n_eos));
    TRY(json_in_bool(root, "do_sample", false, &config->do_sample));
    config->temperature = 1.0f;
    TRY(json_in_float(root, "temperature", 0.0f, 100.0f, false, &config->temperature));
    if (!config->do_sample) {
        config->temperature = 0.0f;
    }
    TRY(json_in_float(root, "top_p", 0.0f, 1.0f, false, &config->top_p));
    TRY(json_in_float(root, "min_p", 0.0f, 1.0f, false, &config->min_p));
    TRY(json_in_u32(root, "top_k", 0, INT32_MAX, false, &config->top_k));
    return json_in_float(root, "repetition_penalty", FLT_MIN, 100.0f, false, &config->repetition_penalty);
}

static struct generation_config generation_defaults(const struct model_config *config) {
    struct generation_config defaults = {
        .n_eos = config->n_eos, .bos_id = config->bos_id, .top_p = 1.0f, .repetition_penalty = 1.0f};
    memcpy(defaults.eos_ids, config->eos_ids, sizeof defaults.eos_ids);
    return defaults;
}

enum status generation_config_parse(const char *json, size_t size, const char *name_for_errors,
                                    const struct model_config *config, struct generation_config *out) {
    json_t *root;
    TRY(json_in_parse(json, size, CONFIG_LIMIT, name_for_errors, &root));
    struct generation_config parsed = generation_defaults(config);
    enum status result = json_in_expect_object(root, name_for_errors);
    if (result == STATUS_OK) {
        result = parse_generation(root, &parsed);
        if (result != STATUS_OK) {
            status_prefix(result, "%s", name_for_errors);
        }
    }
    json_decref(root);
    if (result == STATUS_OK) {
        *out = parsed;
    }
    return result;
}

enum status generation_config_load(const char *dir, const struct model_config *config, struct generation_config *out) {
    char path[4096];
    struct buf text = {0};
    enum status result = read_config(dir, "generation_config.json", path, sizeof path, &text);
    if (result == STATUS_NOT_FOUND) {
        *out = generation_defaults(config);
        result = STATUS_OK;
    } else if (result == STATUS_OK) {
        result = generation_config_parse(buf_cstr(&text), text.size, path, config, out);
    }
    buf_free(&text);
    return result;
}
