/* Ids and texts of every golden, equal to those of the `tokenizers` library. */
#include <stdlib.h>
#include <string.h>

#include "runtime/base/rng.h"
#include "tests/harness/test.h"
#include "tests/tokenizer/support_goldens.h"

struct tally {
    size_t small; /* of tokenizers that every clone holds */
    size_t shared;
};

/* Skips what a clone does not hold; counts the rest. */
static const struct tokenizer *tokenizer_of(const json_t *line, struct tally *tally) {
    const char *name = json_string_value(json_object_get(line, "model"));
    const struct tokenizer *tokenizer = goldens_tokenizer(name);
    bool is_shared = strncmp(name, "r1-", 3) == 0;
    EXPECT(tokenizer != NULL || is_shared);
    tally->shared += is_shared && tokenizer != NULL;
    tally->small += !is_shared;
    return tokenizer;
}

static void expect_ids(const char *what, const json_t *text, const struct token_list *got, const json_t *expected) {
    size_t n;
    uint32_t *ids = goldens_ids(expected, &n);
    bool same = n == got->size && (n == 0 || memcmp(ids, got->ids, n * sizeof *ids) == 0);
    if (!same) {
        test_fail(__FILE__, __LINE__, "%s of \"%s\": %zu ids, expected %zu or other ones", what,
                  json_string_value(text), got->size, n);
    }
    free(ids);
}

static void check_encode(const json_t *line, void *context) {
    const struct tokenizer *tokenizer = tokenizer_of(line, context);
    if (tokenizer == NULL) {
        return;
    }
    const json_t *text = json_object_get(line, "text");
    const json_t *ids = json_object_get(line, "ids");
    const json_t *plain = json_object_get(line, "plain");
    const char *bytes = json_string_value(text);
    size_t size = json_string_length(text);
    struct token_list got = {0};
    EXPECT_OK(tokenizer_encode(tokenizer, bytes, size, TOKENIZE_SPECIALS, &got));
    expect_ids("specials", text, &got, ids);
    got.size = 0;
    EXPECT_OK(tokenizer_encode(tokenizer, bytes, size, TOKENIZE_PLAIN, &got));
    expect_ids("plain", text, &got, plain != NULL ? plain : ids);
    got.size = 0;
    EXPECT_OK(tokenizer_encode_guarded(tokenizer, bytes, size, NULL, 0, &got));
    expect_ids("guarding nothing", text, &got, ids);
    got.size = 0;
    struct text_range all = {.begin = 0, .end = size};
    EXPECT_OK(tokenizer_encode_guarded(tokenizer, bytes, size, &all, 1, &got));
    expect_ids("guarding all", text, &got, plain != NULL ? plain : ids);
    token_list_free(&got);
}

TEST_TIMEOUT(encodes_as_the_reference, 60) {
    struct tally tally = {0};
    goldens_each("encode.jsonl", check_encode, &tally);
    printf("  %zu strings of small tokenizers, %zu of the shared ones\n", tally.small, tally.shared);
    EXPECT(tally.small > 300);
}

static void check_decode(const json_t *line, void *context) {
    const struct tokenizer *tokenizer = tokenizer_of(line, context);
    if (tokenizer == NULL) {
        return;
    }
    size_t n;
    uint32_t *ids = goldens_ids(json_object_get(line, "ids"), &n);
    for (int skip = 0; skip < 2; skip++) {
        const json_t *expected = json_object_get(line, skip ? "visible" : "text");
        struct buf text = {0};
        tokenizer_decode(tokenizer, ids, n, skip, &text);
        EXPECT_EQ(text.size, json_string_length(expected));
        EXPECT(text.size == 0 || memcmp(text.data, json_string_value(expected), text.size) == 0);
        buf_free(&text);
    }
    free(ids);
}

TEST_TIMEOUT(decodes_as_the_reference, 60) {
    struct tally tally = {0};
    goldens_each("decode.jsonl", check_decode, &tally);
    printf("  %zu lists of small tokenizers, %zu of the shared ones\n", tally.small, tally.shared);
    EXPECT(tally.small > 100);
}
