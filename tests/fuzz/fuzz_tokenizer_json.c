/* Up to a 0 byte a tokenizer.json, behind it a text for it: whatever loads encodes any UTF-8, and decodes to UTF-8, at
 * once as by the token. */
#include <stdint.h>
#include <string.h>

#include "runtime/base/buf.h"
#include "runtime/base/check.h"
#include "runtime/base/utf8.h"
#include "runtime/tokenizer/chat_template.h"
#include "runtime/tokenizer/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void run(const struct tokenizer *tokenizer, const char *text, size_t size, enum tokenize_flags flags) {
    struct token_list ids = {0};
    if (tokenizer_encode(tokenizer, text, size, flags, &ids) == STATUS_OK) {
        CHECK(utf8_valid(text, size), "took what is no UTF-8");
        struct buf whole = {0};
        struct buf streamed = {0};
        struct detokenizer detokenizer;
        tokenizer_decode(tokenizer, ids.ids, ids.size, flags == TOKENIZE_PLAIN, &whole);
        detokenizer_init(&detokenizer, tokenizer, flags == TOKENIZE_PLAIN);
        for (size_t i = 0; i < ids.size; i++) {
            CHECK(ids.ids[i] < tokenizer_vocab_size(tokenizer), "id %u", ids.ids[i]);
            detokenizer_push(&detokenizer, ids.ids[i], &streamed);
        }
        detokenizer_flush(&detokenizer, &streamed);
        CHECK(whole.size == streamed.size && (whole.size == 0 || memcmp(whole.data, streamed.data, whole.size) == 0),
              "streaming differs");
        CHECK(utf8_valid(whole.data, whole.size), "decoded to what is no UTF-8");
        buf_free(&whole);
        buf_free(&streamed);
    }
    struct text_range middle = {.begin = size / 3, .end = size / 2};
    ids.size = 0;
    if (middle.begin < middle.end) {
        (void)tokenizer_encode_guarded(tokenizer, text, size, &middle, 1, &ids);
    }
    token_list_free(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *end = size > 0 ? memchr(data, 0, size) : NULL;
    size_t json_size = end != NULL ? (size_t)(end - data) : size;
    const char *text = (const char *)data + json_size + (end != NULL);
    size_t text_size = size - json_size - (end != NULL);
    struct tokenizer *tokenizer = NULL;
    if (tokenizer_parse((const char *)data, json_size, NULL, 0, &tokenizer) == STATUS_OK) {
        run(tokenizer, text, text_size, TOKENIZE_SPECIALS);
        run(tokenizer, text, text_size, TOKENIZE_PLAIN);
        tokenizer_free(tokenizer);
    }
    struct chat_template *chat_template = NULL;
    if (chat_template_parse((const char *)data, json_size, "<s>", "</s>", &chat_template) == STATUS_OK) {
        chat_template_free(chat_template);
    }
    return 0;
}
