/* config.json, generation_config.json and tokenizer_config.json: what is accepted keeps its promises. */
#include <stdint.h>

#include "runtime/base/check.h"
#include "runtime/format/model_config.h"
#include "runtime/format/tokenizer_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *text = (const char *)data;
    struct model_config config = {.bos_id = UINT32_MAX};
    if (model_config_parse(text, size, "config.json", &config) == STATUS_OK) {
        CHECK(config.n_layers > 0 && config.hidden_size > 0 && config.vocab_size > 0, "a size is 0");
        CHECK(config.n_heads % config.n_kv_heads == 0 && config.head_dim % 2 == 0, "heads do not fit");
        CHECK((uint64_t)model_config_q_size(&config) * config.hidden_size < (uint64_t)1 << 41,
              "a product is too large");
        CHECK(config.rope_theta >= 1.0f && config.rope_factor >= 1.0f, "rope");
        CHECK(config.n_eos <= 16 && config.sliding_window == 0, "eos or window");
    }
    struct generation_config generation;
    if (generation_config_parse(text, size, "generation_config.json", &config, &generation) == STATUS_OK) {
        CHECK(generation.temperature >= 0.0f && generation.top_p >= 0.0f && generation.n_eos <= 16, "generation");
    }
    struct tokenizer_config tokenizer;
    if (tokenizer_config_parse(text, size, "tokenizer_config.json", &tokenizer) == STATUS_OK) {
        tokenizer_config_free(&tokenizer);
    }
    return 0;
}
