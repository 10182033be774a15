/* What the goldens do not hold: refusals, streaming, guarded ranges, hostile lengths, threads. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/base/rng.h"
#include "runtime/base/utf8.h"
#include "tests/harness/test.h"
#include "tests/tokenizer/support_goldens.h"

static enum status parse(const char *json) {
    struct tokenizer *tokenizer = NULL;
    enum status result = tokenizer_parse(json, strlen(json), NULL, 0, &tokenizer);
    if (result == STATUS_OK) {
        tokenizer_free(tokenizer);
    }
    return result;
}

#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"
#define REST "\"pre_tokenizer\":" BYTE_LEVEL ",\"decoder\":{\"type\":\"ByteLevel\"}"
#define MODEL "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}"

TEST(refuses_what_it_cannot_serve) {
    EXPECT_OK(parse("{" MODEL "," REST "}"));
    EXPECT_FAILS(parse("[]"), STATUS_INVALID, "where an object belongs");
    EXPECT_FAILS(parse("{\"model\":"), STATUS_INVALID, "tokenizer.json:1:");
    EXPECT_FAILS(parse("{}"), STATUS_INVALID, "model: is missing");
    EXPECT_FAILS(parse("{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}"), STATUS_UNSUPPORTED, "Unigram");
    EXPECT_FAILS(parse("{\"model\":{\"type\":\"WordPiece\"}}"), STATUS_UNSUPPORTED, "WordPiece");
    EXPECT_FAILS(parse("{\"model\":{\"type\":\"BPE\",\"byte_fallback\":true}}"), STATUS_UNSUPPORTED, "byte_fallback");
    EXPECT_FAILS(parse("{\"model\":{\"type\":\"BPE\",\"dropout\":0.1}}"), STATUS_UNSUPPORTED, "dropout");
    EXPECT_FAILS(parse("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}"), STATUS_INVALID,
                 "vocab.b: id 0");
    EXPECT_FAILS(parse("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]}}"), STATUS_INVALID,
                 "duplicate");
    EXPECT_FAILS(parse("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}"), STATUS_INVALID, "vocab.a");
    EXPECT_FAILS(parse("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":4000000},\"merges\":[]}," REST "}"),
                 STATUS_INVALID, "ids reach 4000000");
    EXPECT_FAILS(parse("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a\"]}," REST "}"),
                 STATUS_INVALID, "merges[0]");
    EXPECT_FAILS(parse("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a a\"]}," REST "}"),
                 STATUS_INVALID, "model.merges[0]: \"aa\"");
    EXPECT_FAILS(parse("{" MODEL ",\"normalizer\":{\"type\":\"NFKC\"}," REST "}"), STATUS_UNSUPPORTED, "NFKC");
    EXPECT_FAILS(parse("{" MODEL ",\"pre_tokenizer\":{\"type\":\"Metaspace\"}}"), STATUS_UNSUPPORTED, "Metaspace");
    EXPECT_FAILS(parse("{" MODEL ",\"pre_tokenizer\":" BYTE_LEVEL "}"), STATUS_UNSUPPORTED, "decoder");
    EXPECT_FAILS(parse("{" MODEL "," REST ",\"version\":\"2.0\"}"), STATUS_UNSUPPORTED, "version");
    EXPECT_FAILS(parse("{" MODEL "," REST ",\"added_tokens\":[{\"id\":3,\"content\":\"x\",\"special\":true,"
                       "\"single_word\":true}]}"),
                 STATUS_UNSUPPORTED, "added_tokens[0]: single_word");
    EXPECT_FAILS(parse("{" MODEL "," REST
                       ",\"added_tokens\":[{\"id\":9,\"content\":\"x\",\"special\":true,\"normalized\":false}]}"),
                 STATUS_INVALID, "added_tokens[0].id: 9");
}

static enum status parse_pattern(const char *pattern) {
    char json[1024];
    snprintf(
        json, sizeof json,
        "{" MODEL ",\"decoder\":{\"type\":\"ByteLevel\"},\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":"
        "[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"%s\"},\"behavior\":\"Isolated\",\"invert\":false}," BYTE_LEVEL
        "]}}",
        pattern);
    return parse(json);
}

TEST(refuses_patterns_that_pcre2_would_read_otherwise) {
    EXPECT_OK(parse_pattern("[a-z]+|\\\\s+"));
    EXPECT_FAILS(parse_pattern("\\\\h+"), STATUS_UNSUPPORTED, "\\h");
    EXPECT_FAILS(parse_pattern("[a&&b]"), STATUS_UNSUPPORTED, "&&");
    EXPECT_FAILS(parse_pattern("[a[b]]"), STATUS_UNSUPPORTED, "a class within a class");
    EXPECT_FAILS(parse_pattern("(?m:.)"), STATUS_UNSUPPORTED, "(?m");
    EXPECT_FAILS(parse_pattern("(a"), STATUS_UNSUPPORTED, "pre_tokenizer.pattern");
}

TEST(refuses_text_that_is_no_utf8) {
    const struct tokenizer *tokenizer = goldens_tokenizer("qwen2");
    struct token_list ids = {0};
    EXPECT_OK(tokenizer_encode(tokenizer, "ab", 2, TOKENIZE_SPECIALS, &ids));
    size_t before = ids.size;
    EXPECT_FAILS(tokenizer_encode(tokenizer, "0123456789\xff", 11, TOKENIZE_SPECIALS, &ids), STATUS_INVALID, "byte 10");
    EXPECT_FAILS(tokenizer_encode(tokenizer, "a\xED\xA0\x80", 4, TOKENIZE_PLAIN, &ids), STATUS_INVALID, "byte 1");
    EXPECT_EQ(ids.size, before);
    token_list_free(&ids);
}

/* Pushes and flush together give what decoding at once gives, and no push ends within a character. */
TEST(streams_whole_characters) {
    const struct tokenizer *tokenizer = goldens_tokenizer("qwen2");
    uint64_t seed = 5;
    uint32_t n_ids = tokenizer_vocab_size(tokenizer);
    for (int round = 0; round < 3000; round++) {
        uint32_t ids[24];
        size_t n = rng_next(&seed) % 24;
        for (size_t i = 0; i < n; i++) {
            ids[i] = (uint32_t)(rng_next(&seed) % (round % 2 == 0 ? n_ids + 2 : 256));
        }
        struct buf whole = {0};
        struct buf streamed = {0};
        bool skip = round % 3 == 0;
        tokenizer_decode(tokenizer, ids, n, skip, &whole);
        struct detokenizer detokenizer;
        detokenizer_init(&detokenizer, tokenizer, skip);
        for (size_t i = 0; i < n; i++) {
            detokenizer_push(&detokenizer, ids[i], &streamed);
            EXPECT(utf8_valid(streamed.data, streamed.size));
        }
        detokenizer_flush(&detokenizer, &streamed);
        EXPECT_EQ(streamed.size, whole.size);
        EXPECT(whole.size == 0 || memcmp(streamed.data, whole.data, whole.size) == 0);
        buf_free(&whole);
        buf_free(&streamed);
    }
}

TEST(holds_back_half_a_character) {
    const struct tokenizer *tokenizer = goldens_tokenizer("qwen2");
    struct token_list ids = {0};
    EXPECT_OK(tokenizer_encode(tokenizer, "\xF0\x9F\x98\x80", 4, TOKENIZE_PLAIN, &ids));
    EXPECT(ids.size > 1);
    struct detokenizer detokenizer;
    struct buf out = {0};
    detokenizer_init(&detokenizer, tokenizer, true);
    for (size_t i = 0; i < ids.size; i++) {
        EXPECT_EQ(out.size, 0);
        detokenizer_push(&detokenizer, ids.ids[i], &out);
    }
    EXPECT_TEXT(buf_cstr(&out), "\xF0\x9F\x98\x80");
    out.size = 0;
    detokenizer_push(&detokenizer, ids.ids[0], &out);
    EXPECT_EQ(out.size, 0);
    detokenizer_flush(&detokenizer, &out);
    EXPECT_TEXT(buf_cstr(&out), "\xEF\xBF\xBD");
    buf_free(&out);
    token_list_free(&ids);
}

TEST(guarded_ranges_hide_added_tokens) {
    const struct tokenizer *tokenizer = goldens_tokenizer("tandem-r1-tiny");
    uint32_t think = tokenizer_token_id(tokenizer, "<think>");
    EXPECT(think != TOKEN_NONE);
    static const char text[] = "<think>a<think>b<think>";
    struct text_range ranges[] = {{.begin = 8, .end = 9}, {.begin = 22, .end = 23}};
    struct token_list ids = {0};
    EXPECT_OK(tokenizer_encode_guarded(tokenizer, text, strlen(text), ranges, 2, &ids));
    size_t found = 0;
    for (size_t i = 0; i < ids.size; i++) {
        found += ids.ids[i] == think;
    }
    EXPECT_EQ(found, 1);
    EXPECT_EQ(ids.ids[0], think);
    struct buf back = {0};
    tokenizer_decode(tokenizer, ids.ids, ids.size, false, &back);
    EXPECT_TEXT(buf_cstr(&back), text);
    buf_free(&back);
    token_list_free(&ids);
}

TEST(knows_its_tokens) {
    const struct tokenizer *tokenizer = goldens_tokenizer("tandem-r1-tiny");
    uint32_t bos = tokenizer_bos_id(tokenizer);
    uint32_t eos = tokenizer_eos_id(tokenizer);
    EXPECT_TEXT(tokenizer_token_text(tokenizer, bos), "<｜begin▁of▁sentence｜>");
    EXPECT_TEXT(tokenizer_token_text(tokenizer, eos), "<｜end▁of▁sentence｜>");
    EXPECT(tokenizer_is_special(tokenizer, bos) && tokenizer_is_special(tokenizer, eos));
    EXPECT(!tokenizer_is_special(tokenizer, tokenizer_token_id(tokenizer, "<think>")));
    EXPECT_EQ(tokenizer_token_id(tokenizer, "no such token"), TOKEN_NONE);
    uint32_t size = tokenizer_vocab_size(tokenizer);
    size_t bytes;
    EXPECT(tokenizer_token_bytes(tokenizer, size, &bytes) == NULL && bytes == 0);
    EXPECT(tokenizer_token_text(tokenizer, size) == NULL && !tokenizer_is_special(tokenizer, UINT32_MAX));
    for (uint32_t id = 0; id < size; id++) {
        const char *text = tokenizer_token_text(tokenizer, id);
        if (text != NULL) {
            EXPECT_EQ(tokenizer_token_id(tokenizer, text), id);
            EXPECT(tokenizer_token_bytes(tokenizer, id, &bytes) != NULL && bytes > 0);
            EXPECT(bytes <= tokenizer_max_token_bytes(tokenizer));
        }
    }
    size_t space;
    EXPECT_EQ(*tokenizer_token_bytes(tokenizer, tokenizer_token_id(tokenizer, "Ġ"), &space), ' ');
}

/* One word of a megabyte must not take quadratic time; the test's deadline is the judge. */
TEST(long_words_stay_cheap) {
    static const char *const units[] = {
        "a", "ab", "\xE0\xB8\x81\xE0\xB9\x89", "\xE2\x80\x83", "e\xCC\x81", "\xCC\x81\xCC\xA3", "<", "<|endles",
        "'", " "};
    const struct tokenizer *tokenizer = goldens_tokenizer("qwen2");
    for (size_t u = 0; u < sizeof units / sizeof units[0]; u++) {
        size_t unit = strlen(units[u]);
        size_t size = (1 << 20) / unit * unit;
        char *text = xcalloc(size, 1);
        for (size_t i = 0; i < size; i++) {
            text[i] = units[u][i % unit];
        }
        struct token_list ids = {0};
        EXPECT_OK(tokenizer_encode(tokenizer, text, size, TOKENIZE_SPECIALS, &ids));
        EXPECT(ids.size > 0);
        token_list_free(&ids);
        free(text);
    }
}

static void *encode_many(void *context) {
    const struct tokenizer *tokenizer = goldens_tokenizer("deepseek");
    struct token_list *ids = context;
    static const char text[] = "caf\xC3\xA9 12345 \xE4\xB8\x96\xE7\x95\x8C <|end|> it's -- abc\n\n";
    for (int i = 0; i < 300; i++) {
        ids->size = 0;
        EXPECT_OK(tokenizer_encode(tokenizer, text, strlen(text), TOKENIZE_SPECIALS, ids));
    }
    return NULL;
}

TEST(threads_share_a_tokenizer) {
    EXPECT(goldens_tokenizer("deepseek") != NULL);
    struct token_list ids[4] = {{0}};
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        EXPECT_EQ(pthread_create(&threads[i], NULL, encode_many, &ids[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        EXPECT_EQ(ids[i].size, ids[0].size);
        EXPECT(memcmp(ids[i].ids, ids[0].ids, ids[0].size * sizeof *ids[0].ids) == 0);
    }
    for (int i = 0; i < 4; i++) {
        token_list_free(&ids[i]);
    }
}
