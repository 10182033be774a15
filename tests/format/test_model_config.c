#include <string.h>

#include "runtime/format/model_config.h"
#include "tests/harness/test.h"

static struct model_config config;

static enum status parse(const char *json) {
    return model_config_parse(json, strlen(json), "config.json", &config);
}

#define SIZES                                                                                                          \
    "\"hidden_size\":64,\"num_hidden_layers\":2,\"num_attention_heads\":8,\"num_key_value_heads\":4,"                  \
    "\"intermediate_size\":172,\"vocab_size\":512"
#define LLAMA "\"architectures\":[\"LlamaForCausalLM\"]," SIZES
#define QWEN2 "\"architectures\":[\"Qwen2ForCausalLM\"]," SIZES

TEST(reads_a_llama) {
    EXPECT_OK(parse("{" LLAMA ",\"max_position_embeddings\":512,\"rms_norm_eps\":1e-5,\"rope_theta\":500000,"
                    "\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,"
                    "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192},\"tie_word_embeddings\":true,"
                    "\"attention_bias\":true,\"mlp_bias\":true,\"torch_dtype\":\"bfloat16\",\"bos_token_id\":1,"
                    "\"eos_token_id\":[2,3],\"head_dim\":16}"));
    EXPECT_EQ(config.arch, MODEL_LLAMA);
    EXPECT_EQ(config.hidden_size, 64);
    EXPECT_EQ(config.n_layers, 2);
    EXPECT_EQ(config.n_heads, 8);
    EXPECT_EQ(config.n_kv_heads, 4);
    EXPECT_EQ(config.head_dim, 16);
    EXPECT_EQ(model_config_q_size(&config), 128);
    EXPECT_EQ(model_config_kv_size(&config), 64);
    EXPECT_EQ(config.max_position, 512);
    EXPECT(config.rms_eps == 1e-5f && config.rope_theta == 500000.0f);
    EXPECT_EQ(config.rope_scaling, ROPE_LLAMA3);
    EXPECT(config.rope_factor == 8.0f && config.rope_low_freq_factor == 1.0f && config.rope_high_freq_factor == 4.0f);
    EXPECT_EQ(config.rope_original_max_position, 8192);
    EXPECT(config.tie_word_embeddings && config.qkv_bias && config.o_bias && config.mlp_bias);
    EXPECT_EQ(config.torch_dtype, DTYPE_BF16);
    EXPECT_EQ(config.bos_id, 1);
    EXPECT_EQ(config.n_eos, 2);
    EXPECT_EQ(config.eos_ids[1], 3);
}

TEST(reads_a_qwen2_in_both_spellings) {
    EXPECT_OK(parse("{" QWEN2 ",\"rope_theta\":10000.0,\"rope_scaling\":null,\"use_sliding_window\":false,"
                    "\"sliding_window\":4096,\"max_window_layers\":1,\"torch_dtype\":\"float16\",\"max_position_"
                    "embeddings\":131072}"));
    EXPECT(config.qkv_bias && !config.o_bias && !config.mlp_bias && !config.tie_word_embeddings);
    EXPECT_EQ(config.torch_dtype, DTYPE_F16);
    EXPECT_EQ(config.rope_scaling, ROPE_PLAIN);
    EXPECT_EQ(config.sliding_window, 0);
    EXPECT_EQ(config.head_dim, 8);
    EXPECT_EQ(config.bos_id, UINT32_MAX);
    EXPECT_OK(parse("{" QWEN2 ",\"rope_parameters\":{\"rope_theta\":1000000.0,\"rope_type\":\"default\"},"
                    "\"layer_types\":[\"full_attention\",\"full_attention\"],\"dtype\":\"float32\"}"));
    EXPECT(config.rope_theta == 1000000.0f);
    EXPECT_EQ(config.torch_dtype, DTYPE_F32);
    EXPECT_OK(parse("{" QWEN2 ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":4}}"));
    EXPECT_EQ(config.rope_scaling, ROPE_LINEAR);
    EXPECT(config.rope_factor == 4.0f);
    EXPECT_OK(parse("{\"model_type\":\"llama\"," SIZES "}"));
    EXPECT_EQ(config.arch, MODEL_LLAMA);
    /* a window that no layer uses, or that is as wide as the context, changes nothing */
    EXPECT_OK(parse("{" QWEN2 ",\"use_sliding_window\":true,\"max_window_layers\":2,\"sliding_window\":16}"));
    EXPECT_OK(parse("{" QWEN2 ",\"use_sliding_window\":true,\"max_window_layers\":0,\"sliding_window\":32768}"));
    EXPECT_OK(parse("{" LLAMA ",\"sliding_window\":16}"));
}

TEST(refuses_and_names_the_field) {
    config.hidden_size = 77;
    EXPECT_FAILS(parse("{" LLAMA), STATUS_INVALID, "config.json:1:");
    EXPECT_FAILS(parse("3"), STATUS_INVALID, "a whole number where an object belongs");
    EXPECT_FAILS(parse("{" LLAMA ",\"vocab_size\":3}"), STATUS_INVALID, "duplicate");
    EXPECT_FAILS(parse("{}"), STATUS_INVALID, "config.json: model_type: is missing");
    EXPECT_FAILS(parse("{\"architectures\":[\"MixtralForCausalLM\"]}"), STATUS_UNSUPPORTED,
                 "\"MixtralForCausalLM\" is not served; Qwen2ForCausalLM and LlamaForCausalLM are");
    EXPECT_FAILS(parse("{\"architectures\":[1]}"), STATUS_INVALID, "architectures[0]: a whole number");
    EXPECT_FAILS(parse("{\"model_type\":\"llama\"}"), STATUS_INVALID, "hidden_size: is missing");
    EXPECT_FAILS(parse("{\"model_type\":\"llama\",\"hidden_size\":\"64\"}"), STATUS_INVALID,
                 "hidden_size: a string where a whole number belongs");
    EXPECT_FAILS(parse("{\"model_type\":\"llama\",\"hidden_size\":-1}"), STATUS_INVALID, "hidden_size: -1 is outside");
    EXPECT_FAILS(parse("{\"model_type\":\"llama\",\"hidden_size\":64.5}"), STATUS_INVALID, "hidden_size: a number");
    EXPECT_FAILS(parse("{\"model_type\":\"llama\",\"hidden_size\":9999999999}"), STATUS_INVALID, "hidden_size");
    EXPECT_FAILS(parse("{" LLAMA ",\"quantization_config\":{\"quant_method\":\"awq\"}}"), STATUS_UNSUPPORTED,
                 "quantised by awq");
    EXPECT_FAILS(parse("{" LLAMA ",\"head_dim\":7}"), STATUS_INVALID, "head_dim: 7 is not an even number");
    EXPECT_FAILS(parse("{" LLAMA ",\"hidden_act\":\"gelu\"}"), STATUS_UNSUPPORTED, "hidden_act");
    EXPECT_FAILS(parse("{" LLAMA ",\"rms_norm_eps\":-1}"), STATUS_INVALID, "rms_norm_eps: -1 is outside");
    EXPECT_FAILS(parse("{" LLAMA ",\"rope_theta\":0}"), STATUS_INVALID, "rope_theta: 0 is outside");
    EXPECT_FAILS(parse("{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4}}"), STATUS_UNSUPPORTED,
                 "rope_scaling: rope_type: \"yarn\"");
    EXPECT_FAILS(parse("{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}}"), STATUS_INVALID,
                 "rope_scaling: low_freq_factor: is missing");
    EXPECT_FAILS(parse("{" LLAMA ",\"rope_parameters\":{\"partial_rotary_factor\":0.5}}"), STATUS_UNSUPPORTED,
                 "rope_parameters: partial_rotary_factor");
    EXPECT_FAILS(parse("{" LLAMA ",\"torch_dtype\":\"float64\"}"), STATUS_UNSUPPORTED, "torch_dtype: \"float64\"");
    EXPECT_FAILS(parse("{" LLAMA ",\"tie_word_embeddings\":1}"), STATUS_INVALID, "tie_word_embeddings: a whole number");
    EXPECT_FAILS(parse("{" LLAMA ",\"eos_token_id\":[1,\"x\"]}"), STATUS_INVALID, "eos_token_id[1]: no token id");
    EXPECT_FAILS(parse("{" LLAMA ",\"eos_token_id\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]}"), STATUS_LIMIT,
                 "eos_token_id: 17 ids");
    EXPECT_FAILS(parse("{" QWEN2 ",\"use_sliding_window\":true,\"max_window_layers\":1,\"sliding_window\":16}"),
                 STATUS_UNSUPPORTED, "sliding_window: 16 is in use");
    EXPECT_FAILS(parse("{" QWEN2 ",\"layer_types\":[\"full_attention\",\"sliding_attention\"],\"sliding_window\":16}"),
                 STATUS_UNSUPPORTED, "sliding_window");
    EXPECT_FAILS(parse("{\"model_type\":\"llama\",\"hidden_size\":64,\"num_hidden_layers\":2,\"num_attention_heads\":8,"
                       "\"num_key_value_heads\":3,\"intermediate_size\":1,\"vocab_size\":1}"),
                 STATUS_INVALID, "num_key_value_heads: 3 does not divide");
    EXPECT_FAILS(parse("{\"model_type\":\"llama\",\"hidden_size\":65,\"num_hidden_layers\":2,\"num_attention_heads\":8,"
                       "\"intermediate_size\":1,\"vocab_size\":1}"),
                 STATUS_INVALID, "num_attention_heads: 8 does not divide hidden_size");
    EXPECT_FAILS(parse("{\"model_type\":\"llama\",\"hidden_size\":64,\"num_hidden_layers\":2,\"num_attention_heads\":"
                       "1000000,\"head_dim\":1024,\"intermediate_size\":1,\"vocab_size\":1}"),
                 STATUS_INVALID, "num_attention_heads x head_dim");
    EXPECT_EQ(config.hidden_size, 77); /* a failure writes nothing */
}

TEST(caps_depth_and_size) {
    char deep[300];
    memset(deep, '[', sizeof deep);
    EXPECT_FAILS(model_config_parse(deep, sizeof deep, "config.json", &config), STATUS_INVALID,
                 "nested deeper than 64");
    char *large = calloc(1, 5 << 20);
    memset(large, ' ', 5 << 20);
    EXPECT_FAILS(model_config_parse(large, 5 << 20, "config.json", &config), STATUS_LIMIT, "above the limit");
    free(large);
    EXPECT_FAILS(model_config_parse("\xff", 1, "config.json", &config), STATUS_INVALID, "config.json:1:");
    EXPECT_FAILS(model_config_load("/nonexistent", &config), STATUS_NOT_FOUND, "/nonexistent/config.json");
}

static enum status parse_generation(const char *json, struct generation_config *out) {
    return generation_config_parse(json, strlen(json), "generation_config.json", &config, out);
}

TEST(reads_generation_defaults) {
    struct generation_config got;
    EXPECT_OK(parse("{" LLAMA ",\"bos_token_id\":1,\"eos_token_id\":2}"));
    EXPECT_OK(parse_generation("{\"bos_token_id\":151646,\"eos_token_id\":[5,6],\"do_sample\":true,\"temperature\":0.6,"
                               "\"top_p\":0.95}",
                               &got));
    EXPECT_EQ(got.bos_id, 151646);
    EXPECT_EQ(got.n_eos, 2);
    EXPECT_EQ(got.eos_ids[1], 6);
    EXPECT(got.do_sample && got.temperature == 0.6f && got.top_p == 0.95f);
    EXPECT(got.min_p == 0.0f && got.top_k == 0 && got.repetition_penalty == 1.0f);
    EXPECT_OK(parse_generation("{\"temperature\":0.6,\"top_k\":20,\"min_p\":0.1,\"repetition_penalty\":1.1}", &got));
    EXPECT(got.temperature == 0.0f && got.top_k == 20 && got.min_p == 0.1f && got.repetition_penalty == 1.1f);
    EXPECT_EQ(got.bos_id, 1);
    EXPECT_EQ(got.n_eos, 1);
    EXPECT_EQ(got.eos_ids[0], 2);
    EXPECT_OK(parse_generation("{\"do_sample\":true}", &got));
    EXPECT(got.temperature == 1.0f);
    EXPECT_FAILS(parse_generation("{\"top_p\":1.5}", &got), STATUS_INVALID, "generation_config.json: top_p: 1.5");
    EXPECT_FAILS(parse_generation("{\"temperature\":-1}", &got), STATUS_INVALID, "temperature");
    EXPECT_FAILS(parse_generation("{\"repetition_penalty\":0}", &got), STATUS_INVALID, "repetition_penalty");
    EXPECT_FAILS(parse_generation("[]", &got), STATUS_INVALID, "where an object belongs");
    EXPECT_OK(generation_config_load("/nonexistent", &config, &got));
    EXPECT_EQ(got.eos_ids[0], 2);
    EXPECT(!got.do_sample && got.temperature == 0.0f);
}

TEST(reads_the_shared_model) {
    if (model_config_load(TANDEM_SOURCE_DIR "/../shared/models/stories260k", &config) == STATUS_NOT_FOUND) {
        test_skip("no ../shared");
    }
    EXPECT_EQ(config.vocab_size, 512);
    EXPECT_EQ(config.head_dim, 8);
    EXPECT(config.tie_word_embeddings);
}
