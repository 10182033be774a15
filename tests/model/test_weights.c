#include <math.h>
#include <pthread.h>

#include "runtime/model/rope.h"
#include "runtime/model/weights.h"
#include "tests/model/support_checkpoint.h"

#define QWEN                                                                                                           \
    "{\"architectures\":[\"Qwen2ForCausalLM\"],\"model_type\":\"qwen2\",\"hidden_size\":48,\"intermediate_size\":36,"  \
    "\"num_hidden_layers\":2,\"num_attention_heads\":6,\"num_key_value_heads\":3,\"vocab_size\":101,"                  \
    "\"max_position_embeddings\":64,\"rms_norm_eps\":1e-6,\"rope_theta\":10000.0,\"hidden_act\":\"silu\","             \
    "\"tie_word_embeddings\":false,\"torch_dtype\":\"bfloat16\"}"
#define LLAMA_BIASED                                                                                                   \
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":40,\"intermediate_size\":50,"  \
    "\"num_hidden_layers\":1,\"num_attention_heads\":5,\"num_key_value_heads\":5,\"vocab_size\":64,"                   \
    "\"max_position_embeddings\":64,\"rms_norm_eps\":1e-6,\"rope_theta\":10000.0,\"hidden_act\":\"silu\","             \
    "\"attention_bias\":true,\"mlp_bias\":true,\"tie_word_embeddings\":true,\"torch_dtype\":\"float32\"}"
/* Columns long enough that a rank's piece of a row is read by itself. */
#define WIDE                                                                                                           \
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":16,"                           \
    "\"intermediate_size\":5000,\"num_hidden_layers\":1,\"num_attention_heads\":2,\"num_key_value_heads\":2,"          \
    "\"vocab_size\":32,\"max_position_embeddings\":64,\"rms_norm_eps\":1e-6,\"rope_theta\":10000.0,"                   \
    "\"hidden_act\":\"silu\",\"tie_word_embeddings\":true,\"torch_dtype\":\"float32\"}"

static atomic_bool cancelled;

struct loaded {
    struct model_config config;
    struct shard_model shard;
    struct weights_layout layout;
    enum dtype dtype;
    const struct kernel_ops *kernels;
    struct kernel_device *device;
    void *arena;
    struct model_weights weights;
    uint64_t done, total;
};

static void note(void *context, uint64_t done, uint64_t total) {
    struct loaded *loaded = context;
    EXPECT(done > loaded->done && done <= total);
    loaded->done = done;
    loaded->total = total;
}

static enum status load(struct loaded *loaded, const char *dir, enum dtype dtype, uint32_t rank, uint32_t world,
                        bool dummy) {
    struct kernel_device_config device = {.threads = 1, .first_cpu = -1};
    memset(loaded, 0, sizeof *loaded);
    loaded->dtype = dtype;
    loaded->kernels = kernels_find("cpu");
    EXPECT_OK(loaded->kernels->open(&device, &loaded->device));
    EXPECT_OK(model_config_load(dir, &loaded->config));
    EXPECT_OK(shard_model_make(&loaded->config, rank, world, &loaded->shard));
    weights_layout_make(&loaded->config, &loaded->shard, dtype, 64, &loaded->layout);
    EXPECT_OK(loaded->kernels->alloc(loaded->device, loaded->layout.bytes, &loaded->arena));
    struct weights_load args = {.config = &loaded->config,
                                .shard = &loaded->shard,
                                .layout = &loaded->layout,
                                .dtype = dtype,
                                .max_len = 64,
                                .arena = loaded->arena,
                                .kernels = loaded->kernels,
                                .device = loaded->device,
                                .threads = 3,
                                .cancelled = &cancelled,
                                .progress = note,
                                .context = loaded};
    struct checkpoint *checkpoint = NULL;
    if (!dummy) {
        EXPECT_OK(checkpoint_open(dir, &checkpoint));
    }
    enum status status = weights_load(&args, checkpoint);
    checkpoint_close(checkpoint);
    weights_view(&loaded->config, &loaded->shard, dtype, &loaded->layout, loaded->arena, &loaded->weights);
    return status;
}

static void unload(struct loaded *loaded) {
    weights_free(&loaded->weights);
    loaded->kernels->free(loaded->device, loaded->arena);
    loaded->kernels->close(loaded->device);
}

/* For loads that fail. */
static enum status try_load(const char *dir, enum dtype dtype, uint32_t rank, uint32_t world) {
    struct loaded loaded;
    enum status status = load(&loaded, dir, dtype, rank, world, false);
    unload(&loaded);
    return status;
}

static float element(const void *data, size_t i, enum dtype dtype) {
    if (dtype == DTYPE_F32) {
        return ((const float *)data)[i];
    }
    uint16_t half = ((const uint16_t *)data)[i];
    return dtype == DTYPE_BF16 ? bf16_to_f32(half) : f16_to_f32(half);
}

/* Rows [first, first + n) of a stored matrix lie in `weight` from row `at` on; columns from `col` on. */
static void expect_rows(const struct weight *weight, uint32_t at, const char *name, uint32_t first, uint32_t n,
                        uint32_t col) {
    for (uint32_t r = 0; r < n; r++) {
        for (uint32_t c = 0; c < weight->k; c++) {
            float found = element(weight->data, (size_t)(at + r) * weight->k + c, weight->format);
            if (found != checkpoint_value(name, first + r, col + c)) {
                test_fail(__FILE__, __LINE__, "%s [%u][%u] is %g instead of %g", name, first + r, col + c,
                          (double)found, (double)checkpoint_value(name, first + r, col + c));
            }
        }
    }
}

static void expect_vector(const float *vector, uint32_t at, const char *name, uint32_t first, uint32_t n) {
    struct weight weight = {.format = DTYPE_F32, .n = n, .k = 1, .data = vector};
    EXPECT(vector != NULL);
    expect_rows(&weight, at, name, first, n, 0);
}

static const char *in_layer(uint32_t layer, const char *name) {
    static char full[SHARD_NAME_MAX];
    snprintf(full, sizeof full, "model.layers.%u.%s", layer, name);
    return full;
}

/* Every array of the rank against the definition, written out once more without the shard code's tables. */
static void expect_layer(const struct loaded *loaded, uint32_t i) {
    const struct layer_weights *layer = &loaded->weights.layers[i];
    const struct shard_model *s = &loaded->shard;
    uint32_t d = loaded->config.head_dim;
    uint32_t h = loaded->config.hidden_size;
    uint32_t q = s->n_q * d;
    uint32_t kv = s->n_kv * d;
    expect_vector(layer->attn_norm, 0, in_layer(i, "input_layernorm.weight"), 0, h);
    expect_vector(layer->ffn_norm, 0, in_layer(i, "post_attention_layernorm.weight"), 0, h);
    EXPECT(layer->qkv.n == q + 2 * kv && layer->qkv.k == h);
    expect_rows(&layer->qkv, 0, in_layer(i, "self_attn.q_proj.weight"), s->q_first * d, q, 0);
    expect_rows(&layer->qkv, q, in_layer(i, "self_attn.k_proj.weight"), s->kv_first * d, kv, 0);
    expect_rows(&layer->qkv, q + kv, in_layer(i, "self_attn.v_proj.weight"), s->kv_first * d, kv, 0);
    if (loaded->config.qkv_bias) {
        expect_vector(layer->qkv_bias, 0, in_layer(i, "self_attn.q_proj.bias"), s->q_first * d, q);
        expect_vector(layer->qkv_bias, q, in_layer(i, "self_attn.k_proj.bias"), s->kv_first * d, kv);
        expect_vector(layer->qkv_bias, q + kv, in_layer(i, "self_attn.v_proj.bias"), s->kv_first * d, kv);
    } else {
        EXPECT(layer->qkv_bias == NULL);
    }
    EXPECT(layer->o.n == h && layer->o.k == q);
    expect_rows(&layer->o, 0, in_layer(i, "self_attn.o_proj.weight"), 0, h, s->q_first * d);
    EXPECT(layer->gate_up.n == 2 * s->n_ffn && layer->down.k == s->n_ffn);
    expect_rows(&layer->gate_up, 0, in_layer(i, "mlp.gate_proj.weight"), s->ffn_first, s->n_ffn, 0);
    expect_rows(&layer->gate_up, s->n_ffn, in_layer(i, "mlp.up_proj.weight"), s->ffn_first, s->n_ffn, 0);
    expect_rows(&layer->down, 0, in_layer(i, "mlp.down_proj.weight"), 0, h, s->ffn_first);
    if (loaded->config.mlp_bias) {
        expect_vector(layer->gate_up_bias, 0, in_layer(i, "mlp.gate_proj.bias"), s->ffn_first, s->n_ffn);
        expect_vector(layer->gate_up_bias, s->n_ffn, in_layer(i, "mlp.up_proj.bias"), s->ffn_first, s->n_ffn);
    }
    if (s->rank == 0 && loaded->config.o_bias) {
        expect_vector(layer->o_bias, 0, in_layer(i, "self_attn.o_proj.bias"), 0, h);
        expect_vector(layer->down_bias, 0, in_layer(i, "mlp.down_proj.bias"), 0, h);
    } else {
        EXPECT(layer->o_bias == NULL && layer->down_bias == NULL);
    }
}

static void expect_model(const struct loaded *loaded) {
    const struct shard_model *s = &loaded->shard;
    expect_rows(&loaded->weights.embed, 0, "model.embed_tokens.weight", s->vocab_first, s->n_vocab, 0);
    if (loaded->config.tie_word_embeddings) {
        EXPECT(loaded->weights.head.data == loaded->weights.embed.data);
    } else {
        expect_rows(&loaded->weights.head, 0, "lm_head.weight", s->vocab_first, s->n_vocab, 0);
    }
    expect_vector(loaded->weights.final_norm, 0, "model.norm.weight", 0, loaded->config.hidden_size);
    for (uint32_t i = 0; i < loaded->config.n_layers; i++) {
        expect_layer(loaded, i);
    }
    for (uint32_t h = 0; h < s->n_q; h++) {
        uint32_t group = loaded->config.n_heads / loaded->config.n_kv_heads;
        EXPECT_EQ(s->kv_first + loaded->weights.q_to_kv[h], (s->q_first + h) / group);
    }
    EXPECT(loaded->weights.rope[0] == 1.0f);
    EXPECT(loaded->total > 0 && loaded->done == loaded->total);
}

/* The values have few bits, so that every conversion between the formats is exact. */
TEST_TIMEOUT(slices_arrive_in_every_format, 60) {
    static const char *const configs[] = {QWEN, LLAMA_BIASED, WIDE};
    for (size_t c = 0; c < 3; c++) {
        const char *dir = make_model_dir(configs[c]);
        for (int stored = 0; stored < 3; stored++) {
            write_checkpoint(dir, (enum dtype)stored, NULL);
            for (uint32_t world = 1; world <= (c == 0 ? 6 : 2); world++) {
                for (uint32_t rank = 0; rank < world; rank++) {
                    struct loaded loaded;
                    EXPECT_OK(load(&loaded, dir, (enum dtype)((stored + (int)world) % 3), rank, world, false));
                    expect_model(&loaded);
                    unload(&loaded);
                }
            }
        }
    }
}

TEST(wrong_checkpoints_are_named) {
    const char *dir = make_model_dir(QWEN);
    static const char name[] = "model.layers.1.mlp.up_proj.weight";
    struct checkpoint_edit missing = {.leave_out = name};
    write_checkpoint(dir, DTYPE_BF16, &missing);
    EXPECT_FAILS(try_load(dir, DTYPE_BF16, 0, 1), STATUS_INVALID,
                 "tensor model.layers.1.mlp.up_proj.weight is missing");
    struct checkpoint_edit shape = {.reshape = name};
    write_checkpoint(dir, DTYPE_BF16, &shape);
    EXPECT_FAILS(try_load(dir, DTYPE_BF16, 0, 1), STATUS_INVALID, "shape [37, 48], config.json asks for [36, 48]");
    struct checkpoint_edit kind = {.other_kind = name};
    write_checkpoint(dir, DTYPE_F32, &kind);
    EXPECT_FAILS(try_load(dir, DTYPE_BF16, 0, 1), STATUS_UNSUPPORTED, "dtype I32 is not served");
    struct checkpoint_edit extra = {.add = "model.layers.0.self_attn.q_norm.weight"};
    write_checkpoint(dir, DTYPE_BF16, &extra);
    EXPECT_FAILS(try_load(dir, DTYPE_BF16, 0, 1), STATUS_INVALID, "q_norm.weight does not belong");
    struct checkpoint_edit untied = {.leave_out = "lm_head.weight"};
    write_checkpoint(dir, DTYPE_BF16, &untied);
    EXPECT_FAILS(try_load(dir, DTYPE_BF16, 0, 1), STATUS_INVALID, "lm_head.weight is missing");
    struct checkpoint_edit table = {.add = "model.layers.0.self_attn.rotary_emb.inv_freq"};
    write_checkpoint(dir, DTYPE_BF16, &table);
    EXPECT_OK(try_load(dir, DTYPE_BF16, 0, 1));
    dir = make_model_dir(WIDE);
    struct checkpoint_edit tied = {.add = "lm_head.weight"};
    write_checkpoint(dir, DTYPE_F32, &tied);
    EXPECT_OK(try_load(dir, DTYPE_F32, 0, 1));
}

TEST(values_beyond_float16_are_refused) {
    const char *dir = make_model_dir(QWEN);
    struct checkpoint_edit overflow = {.overflow = "model.layers.0.mlp.down_proj.weight"};
    write_checkpoint(dir, DTYPE_BF16, &overflow);
    EXPECT_FAILS(try_load(dir, DTYPE_F16, 0, 1), STATUS_LIMIT,
                 "tensor model.layers.0.mlp.down_proj.weight holds 999424, float16 ends at 65504");
    EXPECT_OK(try_load(dir, DTYPE_F16, 0, 2)); /* not this rank's columns */
    EXPECT_OK(try_load(dir, DTYPE_F32, 0, 1));
}

TEST(a_load_that_is_not_wanted_any_more_ends) {
    const char *dir = make_model_dir(QWEN);
    write_checkpoint(dir, DTYPE_BF16, NULL);
    EXPECT_OK(try_load(dir, DTYPE_BF16, 0, 1));
    atomic_store(&cancelled, true);
    EXPECT_FAILS(try_load(dir, DTYPE_BF16, 0, 1), STATUS_CLOSED, "not wanted any more");
    atomic_store(&cancelled, false);
}

TEST(made_up_weights_are_the_same_in_every_world) {
    const char *dir = make_model_dir(QWEN);
    struct loaded whole;
    EXPECT_OK(load(&whole, dir, DTYPE_F32, 0, 1, true));
    for (uint32_t rank = 0; rank < 3; rank++) {
        struct loaded part;
        EXPECT_OK(load(&part, dir, DTYPE_F32, rank, 3, true));
        const struct weight *from = &whole.weights.layers[1].down;
        const struct weight *to = &part.weights.layers[1].down;
        for (uint32_t r = 0; r < to->n; r++) {
            EXPECT(memcmp((const float *)to->data + r * to->k,
                          (const float *)from->data + r * from->k + part.shard.ffn_first, to->k * 4) == 0);
        }
        EXPECT(memcmp(part.weights.embed.data,
                      (const float *)whole.weights.embed.data + part.shard.vocab_first * whole.config.hidden_size,
                      (size_t)part.shard.n_vocab * whole.config.hidden_size * 4) == 0);
        EXPECT(memcmp(part.weights.final_norm, whole.weights.final_norm, 48 * 4) == 0);
        unload(&part);
    }
    unload(&whole);
}

/* tests/data/rope_reference.txt holds what transformers computes in float32; tests/tools/make_rope_reference.py. */
static int read_rope_config(FILE *file, struct model_config *config) {
    char name[64];
    char kind[16];
    memset(config, 0, sizeof *config);
    if (fscanf(file, " config %63s %u %f %15s %f %f %f %u", name, &config->head_dim, &config->rope_theta, kind,
               &config->rope_factor, &config->rope_low_freq_factor, &config->rope_high_freq_factor,
               &config->rope_original_max_position) != 8) {
        return 0;
    }
    config->rope_scaling = kind[0] == 'p' ? ROPE_PLAIN : strcmp(kind, "linear") == 0 ? ROPE_LINEAR : ROPE_LLAMA3;
    return 1;
}

/* The last bit of a frequency. */
static double frequency_bound(const struct model_config *config, unsigned i) {
    return pow((double)config->rope_theta, -2.0 * i / config->head_dim) * 0x1p-23;
}

TEST_TIMEOUT(rope_is_that_of_transformers, 60) {
    enum { POSITIONS = 131072 };
    FILE *file = fopen(TANDEM_SOURCE_DIR "/tests/data/rope_reference.txt", "r");
    EXPECT(file != NULL);
    struct model_config config;
    unsigned tables = 0;
    unsigned differ = 0;
    unsigned angles = 0;
    unsigned outlier = 0; /* the one frequency that torch's vector pow rounds the other way than its scalar pow */
    while (read_rope_config(file, &config)) {
        float *table = malloc((size_t)POSITIONS * config.head_dim * sizeof *table);
        unsigned position;
        unsigned i;
        unsigned bits[2];
        rope_fill(&config, 0, POSITIONS / 3, table); /* in two pieces */
        rope_fill(&config, POSITIONS / 3, POSITIONS - POSITIONS / 3, table + (size_t)(POSITIONS / 3) * config.head_dim);
        while (fscanf(file, "%u %u %x %x", &position, &i, &bits[0], &bits[1]) == 4) {
            const float *row = table + (size_t)position * config.head_dim;
            for (uint32_t half = 0; half < 2; half++) {
                float found = row[half * config.head_dim / 2 + i];
                float wanted = bits_to_f32(bits[half]);
                angles++;
                differ += found != wanted;
                if (fabsf(found - wanted) > 0x1p-24f) { /* more than the last bit of numbers near one */
                    EXPECT(position > 0 && (outlier == 0 || outlier == tables * 1000 + i));
                    EXPECT(fabs((double)found - (double)wanted) < position * frequency_bound(&config, i));
                    outlier = tables * 1000 + i;
                }
            }
        }
        free(table);
        tables++;
    }
    fclose(file);
    EXPECT_EQ(tables, 6);
    printf("  %u of %u numbers differ in their last bit\n", differ, angles);
}
