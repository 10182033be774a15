/* The output parser against a naive one that sees the whole text at once. */
#include "runtime/base/rng.h"
#include "runtime/request/output.h"
#include "tests/harness/test.h"
#include "tests/request/support_context.h"

/* ---- the naive reference: works on the whole text with string searches */

struct expected {
    char reasoning[4096];
    char content[4096];
    bool stopped;
    size_t cut; /* bytes of text behind which nothing counts */
};

/* The first place where any stop text ends; of those that end there the longest is cut. */
static void cut_at_stop(char *text, const struct request *request, struct expected *out) {
    size_t size = strlen(text);
    for (size_t end = 1; end <= size; end++) {
        size_t longest = 0;
        for (uint32_t s = 0; s < request->n_stops; s++) {
            size_t n = request->stops[s].size;
            if (n <= end && memcmp(text + end - n, request->stops[s].text, n) == 0 && n > longest) {
                longest = n;
            }
        }
        if (longest > 0) {
            out->stopped = true;
            out->cut = end;
            text[request->include_stop_text ? end : end - longest] = 0;
            return;
        }
    }
    out->cut = size;
}

static const char *skip_breaks(const char *text) {
    return text + strspn(text, "\r\n");
}

static void split_think(const char *text, const struct request *request, struct expected *out) {
    out->reasoning[0] = 0;
    if (!request->split_reasoning) {
        strcpy(out->content, text);
        return;
    }
    const char *begin = text + strspn(text, " \t\r\n");
    bool marked = strncmp(begin, "<think>", 7) == 0 && !request->goes_on_thinking;
    if (!marked && !request->starts_in_thinking) {
        strcpy(out->content, text);
        return;
    }
    const char *reasoning = request->goes_on_thinking ? text : skip_breaks(marked ? begin + 7 : text);
    const char *close = strstr(reasoning, "</think>");
    strcpy(out->reasoning, reasoning);
    out->content[0] = 0;
    if (close != NULL) {
        out->reasoning[close - reasoning] = 0;
        strcpy(out->content, skip_breaks(close + 8));
    }
}

static void expect(const char *text, const struct request *request, struct expected *out) {
    char copy[4096];
    strcpy(copy, text);
    *out = (struct expected){0};
    cut_at_stop(copy, request, out);
    split_think(copy, request, out);
}

/* ---- text to ids, split at random: any token whose bytes come next will do */

static uint32_t random_token(const struct tokenizer *tokenizer, const char *text, uint64_t *random) {
    uint32_t found = TOKEN_NONE;
    uint32_t n = 0;
    size_t left = strlen(text);
    for (uint32_t id = 0; id < tokenizer_vocab_size(tokenizer); id++) {
        size_t size = 0;
        const char *bytes = tokenizer_token_bytes(tokenizer, id, &size);
        if (!tokenizer_is_special(tokenizer, id) && size > 0 && size <= left && memcmp(bytes, text, size) == 0 &&
            rng_next(random) % ++n == 0) {
            found = id;
        }
    }
    EXPECT(found != TOKEN_NONE);
    return found;
}

/* Checks that the last character in `buf` is whole. */
static void expect_whole(const struct buf *buf) {
    size_t size = buf->size;
    while (size > 0 && (buf->data[size - 1] & 0xC0) == 0x80) {
        size--;
    }
    size_t length = size == 0 || (buf->data[size - 1] & 0x80) == 0 ? buf->size - size : 0;
    static const uint8_t marks[] = {0xC0, 0xE0, 0xF0};
    for (size_t i = 0; size > 0 && i < 3; i++) {
        if ((uint8_t)buf->data[size - 1] >= marks[i]) {
            length = buf->size - size - i - 1;
        }
    }
    EXPECT_EQ(length, 0);
}

static void run_split(const struct request_context *context, const struct request *request, const char *text,
                      uint64_t *random) {
    struct expected expected;
    expect(text, request, &expected);
    struct output_stream stream;
    struct output_delta delta = {0};
    struct buf reasoning = {0};
    struct buf content = {0};
    output_stream_init(&stream, context, request);
    size_t at = 0;
    uint32_t n = 0;
    while (text[at] != 0 && stream.state == OUTPUT_OPEN) {
        uint32_t id = random_token(context->tokenizer, text + at, random);
        size_t size;
        tokenizer_token_bytes(context->tokenizer, id, &size);
        at += size;
        n++;
        output_stream_push(&stream, id, &delta);
        expect_whole(&delta.reasoning);
        expect_whole(&delta.content);
        buf_append(&reasoning, delta.reasoning.data, delta.reasoning.size);
        buf_append(&content, delta.content.data, delta.content.size);
        output_delta_clear(&delta);
    }
    output_stream_finish(&stream, &delta);
    buf_append(&reasoning, delta.reasoning.data, delta.reasoning.size);
    buf_append(&content, delta.content.data, delta.content.size);
    EXPECT_TEXT(buf_cstr(&reasoning), expected.reasoning);
    EXPECT_TEXT(buf_cstr(&content), expected.content);
    EXPECT_EQ(stream.state == OUTPUT_STOP_TEXT, expected.stopped);
    EXPECT_EQ(stream.n_ids, n);
    if (expected.stopped) { /* the last token is the one that completed the stop text */
        EXPECT(at >= expected.cut);
    }
    output_stream_free(&stream);
    output_delta_free(&delta);
    buf_free(&reasoning);
    buf_free(&content);
}

static void add_stop(struct request *request, const char *text) {
    request->stops[request->n_stops].text = (char *)(size_t)text;
    request->stops[request->n_stops++].size = strlen(text);
}

static const char *const pieces[] = {"<think>", "</think>", "\n", " ",    "a",    "ab",   "abab", "<",  "</",
                                     "th",      "think>",   "é",  "汉字", "😀",    "STOP", "ST",   "OP", "\r\n",
                                     "end.",    "</thin",   "k>", "x",    "1295", "\n\n", "aab"};
static const char *const stops[] = {"STOP", "abab", "aab", "</think>", "字",  "\n\n", "end",
                                    "OPx",  "😀",    "x字", "a😀",       "\né", "é汉"};

static void fuzz_splits(uint64_t seed, unsigned rounds) {
    struct request_context *context = context_load();
    uint64_t random = seed;
    for (unsigned round = 0; round < rounds; round++) {
        struct request request = {.include_reasoning = true, .skip_special = true};
        request.split_reasoning = rng_next(&random) % 4 != 0;
        request.starts_in_thinking = request.split_reasoning && rng_next(&random) % 2 == 0;
        request.goes_on_thinking = request.starts_in_thinking && rng_next(&random) % 2 == 0;
        request.include_stop_text = rng_next(&random) % 4 == 0;
        for (uint64_t n = rng_next(&random) % 4; n > 0; n--) {
            add_stop(&request, stops[rng_next(&random) % (sizeof stops / sizeof stops[0])]);
        }
        char text[1024] = "";
        for (uint64_t n = rng_next(&random) % 14; n > 0; n--) {
            strcat(text, pieces[rng_next(&random) % (sizeof pieces / sizeof pieces[0])]);
        }
        run_split(context, &request, text, &random);
    }
    request_context_free(context);
}

TEST_TIMEOUT(random_texts_in_random_splits, 60) {
    fuzz_splits(1, 6000);
}

static void read_all(const struct request_context *context, const struct request *request, const uint32_t *ids,
                     size_t n, struct output_stream *stream, struct output_delta *delta) {
    output_stream_init(stream, context, request);
    for (size_t i = 0; i < n && stream->state == OUTPUT_OPEN; i++) {
        output_stream_push(stream, ids[i], delta);
    }
    output_stream_finish(stream, delta);
}

/* A token may bring no text: a part of a character, or one that is not shown. The stop text that the output may have
 * begun is then as near as before. */
TEST(a_token_without_text_leaves_a_begun_stop_text) {
    struct request_context *context = context_load();
    struct request request = {.skip_special = true, .include_reasoning = true};
    add_stop(&request, "x字y");
    const struct tokenizer *tokenizer = context->tokenizer;
    struct token_list ids = {0};
    EXPECT_OK(tokenizer_encode(tokenizer, "1x字", 5, TOKENIZE_PLAIN, &ids));
    EXPECT(ids.size > 3); /* the character is of several tokens */
    uint32_t read[16];
    size_t n = 0;
    for (size_t i = 0; i < ids.size; i++) {
        read[n++] = ids.ids[i];
        read[n++] = tokenizer_eos_id(tokenizer);
    }
    read[n++] = tokenizer_token_id(tokenizer, "y");
    EXPECT(n <= 16);
    for (int stopped = 0; stopped < 2; stopped++) {
        struct output_stream stream;
        struct output_delta delta = {0};
        read_all(context, &request, read, stopped ? n : n - 1, &stream, &delta);
        EXPECT_EQ(stream.state, stopped ? OUTPUT_STOP_TEXT : OUTPUT_OPEN);
        EXPECT_TEXT(buf_cstr(&delta.content), stopped ? "1" : "1x字");
        output_stream_free(&stream);
        output_delta_free(&delta);
    }
    token_list_free(&ids);
    request_context_free(context);
}

TEST(tokens_are_counted_to_the_stop) {
    struct request_context *context = context_load();
    struct request request = {.skip_special = true, .include_reasoning = true};
    add_stop(&request, "3");
    struct token_list ids = {0};
    EXPECT_OK(tokenizer_encode(context->tokenizer, "1 2 3 4 5", 9, TOKENIZE_PLAIN, &ids));
    struct output_stream stream;
    struct output_delta delta = {0};
    read_all(context, &request, ids.ids, ids.size, &stream, &delta);
    EXPECT_EQ(stream.state, OUTPUT_STOP_TEXT);
    EXPECT_TEXT(buf_cstr(&delta.content), "1 2 ");
    uint32_t expected = 0; /* digits are tokens of their own here: count up to and with the 3 */
    while (strcmp(tokenizer_token_text(context->tokenizer, ids.ids[expected++]), "3") != 0) {
    }
    EXPECT_EQ(stream.n_ids, expected);
    output_stream_free(&stream);
    output_delta_free(&delta);
    token_list_free(&ids);
    request_context_free(context);
}

TEST(an_end_id_counts_and_has_no_text) {
    struct request_context *context = context_load();
    uint32_t eos = tokenizer_eos_id(context->tokenizer);
    struct request request = {.include_reasoning = true, .stop_ids = {eos}, .n_stop_ids = 1}; /* specials shown */
    uint32_t ids[3] = {tokenizer_token_id(context->tokenizer, "a"), eos, 0};
    struct output_stream stream;
    struct output_delta delta = {0};
    read_all(context, &request, ids, 3, &stream, &delta);
    EXPECT_EQ(stream.state, OUTPUT_STOP_ID);
    EXPECT_EQ(stream.n_ids, 2);
    EXPECT_TEXT(buf_cstr(&delta.content), "a");
    output_stream_free(&stream);
    output_delta_free(&delta);
    request_context_free(context);
}

TEST(reasoning_tokens_are_counted) {
    struct request_context *context = context_load();
    struct request request = {
        .split_reasoning = true, .starts_in_thinking = true, .include_reasoning = true, .skip_special = true};
    struct token_list ids = {0};
    EXPECT_OK(tokenizer_encode(context->tokenizer, "1\n</think>\n\n2", 13, TOKENIZE_SPECIALS, &ids));
    struct output_stream stream;
    struct output_delta delta = {0};
    read_all(context, &request, ids.ids, ids.size, &stream, &delta);
    uint32_t close = 0;
    while (ids.ids[close] != context->end_think_id) {
        close++;
    }
    EXPECT_EQ(stream.n_reasoning_ids, close + 1);
    EXPECT_EQ(stream.n_ids, ids.size);
    EXPECT_TEXT(buf_cstr(&delta.reasoning), "1\n");
    EXPECT_TEXT(buf_cstr(&delta.content), "2");
    output_stream_free(&stream);
    output_delta_free(&delta);
    token_list_free(&ids);
    request_context_free(context);
}

TEST(reasoning_that_goes_on_keeps_its_line_breaks) {
    struct request_context *context = context_load();
    struct request request = {.split_reasoning = true,
                              .starts_in_thinking = true,
                              .goes_on_thinking = true,
                              .include_reasoning = true,
                              .skip_special = true};
    struct token_list ids = {0};
    EXPECT_OK(tokenizer_encode(context->tokenizer, "\n\n2</think>\n\n3", 14, TOKENIZE_SPECIALS, &ids));
    struct output_stream stream;
    struct output_delta delta = {0};
    read_all(context, &request, ids.ids, ids.size, &stream, &delta);
    EXPECT_TEXT(buf_cstr(&delta.reasoning), "\n\n2");
    EXPECT_TEXT(buf_cstr(&delta.content), "3");
    output_stream_free(&stream);
    output_delta_free(&delta);
    token_list_free(&ids);
    request_context_free(context);
}

/* Blanks may stand before <think> in any number: looking at all of them anew for each would take minutes. */
TEST(many_blanks_before_the_answer_are_looked_at_once) {
    struct request_context *context = context_load();
    struct request request = {.split_reasoning = true, .include_reasoning = true, .skip_special = true};
    struct token_list ids = {0};
    EXPECT_OK(tokenizer_encode(context->tokenizer, "\n<think>1", 9, TOKENIZE_SPECIALS, &ids));
    EXPECT_EQ(ids.size, 3);
    for (int thinks = 0; thinks < 2; thinks++) {
        struct output_stream stream;
        struct output_delta delta = {0};
        size_t n = 400000;
        output_stream_init(&stream, context, &request);
        for (size_t i = 0; i < n; i++) {
            output_stream_push(&stream, ids.ids[0], &delta);
        }
        EXPECT_EQ(delta.content.size + delta.reasoning.size, 0);
        for (size_t i = thinks ? 1 : 2; i < 3; i++) {
            output_stream_push(&stream, ids.ids[i], &delta);
        }
        EXPECT_EQ(delta.content.size, thinks ? 0 : n + 1);
        EXPECT_EQ(delta.reasoning.size, thinks ? 1 : 0);
        output_stream_free(&stream);
        output_delta_free(&delta);
    }
    token_list_free(&ids);
    request_context_free(context);
}

TEST(half_a_character_at_the_end_is_replaced) {
    struct request_context *context = context_load();
    struct request request = {.include_reasoning = true, .skip_special = true};
    struct token_list ids = {0};
    EXPECT_OK(tokenizer_encode(context->tokenizer, "a😀", 5, TOKENIZE_PLAIN, &ids));
    EXPECT_EQ(ids.size, 5); /* one token per byte */
    struct output_stream stream;
    struct output_delta delta = {0};
    output_stream_init(&stream, context, &request);
    for (int i = 0; i < 3; i++) {
        output_stream_push(&stream, ids.ids[i], &delta);
        EXPECT_EQ(delta.content.size, 1);
    }
    output_stream_finish(&stream, &delta);
    EXPECT_TEXT(buf_cstr(&delta.content), "a\xEF\xBF\xBD");
    output_stream_free(&stream);
    output_delta_free(&delta);
    token_list_free(&ids);
    request_context_free(context);
}

TEST(hidden_reasoning_is_not_shown) {
    struct request_context *context = context_load();
    struct request request = {.split_reasoning = true, .starts_in_thinking = true, .skip_special = true};
    struct token_list ids = {0};
    EXPECT_OK(tokenizer_encode(context->tokenizer, "secret</think>open", 18, TOKENIZE_SPECIALS, &ids));
    struct output_stream stream;
    struct output_delta delta = {0};
    read_all(context, &request, ids.ids, ids.size, &stream, &delta);
    EXPECT_EQ(delta.reasoning.size, 0);
    EXPECT_TEXT(buf_cstr(&delta.content), "open");
    output_stream_free(&stream);
    output_delta_free(&delta);
    token_list_free(&ids);
    request_context_free(context);
}
