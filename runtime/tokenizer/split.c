#include "runtime/tokenizer/split.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/base/buf.h"
#include "runtime/tokenizer/split_scan.h"
#include "runtime/tokenizer/unicode.h"

/* The patterns that have scanners, as tokenizer.json spells them (JSON unescaped). */
#define CL100K(digits)                                                                                                 \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits                                               \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
static const char qwen2_pattern[] = CL100K("\\p{N}");
static const char llama3_pattern[] = CL100K("\\p{N}{1,3}");
static const char gpt2_pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* Bounds on what one match may cost: a hostile text must not hold a thread. */
#define MATCH_LIMIT 1000000
#define HEAP_LIMIT_KIB 16384

enum step_kind { STEP_QWEN2, STEP_LLAMA3, STEP_GPT2, STEP_EACH_DIGIT, STEP_DIGIT_RUNS, STEP_PCRE2 };

struct step {
    enum step_kind kind;
    bool keep_matches;
    bool keep_gaps;
    pcre2_code *code;
};

struct splitter {
    size_t n_steps;
    struct step steps[TOKENIZER_MAX_STEPS];
    pcre2_match_context *limits; /* NULL without STEP_PCRE2; only read while matching */
};

/* A walk through the steps; the text is the same at every depth. */
struct walk {
    const struct splitter *splitter;
    split_piece_fn *piece;
    void *context;
};

/* White_Space, which is Oniguruma's \s. PCRE2's counts U+180E too. */
#define SPACES "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"

static enum status unsupported_pattern(const char *what) {
    FAIL(STATUS_UNSUPPORTED, "pre_tokenizer.pattern: %s is not served in a split pattern", what);
}

/* One escape at `p`, copied or spelled otherwise. Of the others Oniguruma and PCRE2 agree on these; \h, for one, is a
 * hexadecimal digit there and a space here. */
static enum status translate_escape(const char *p, bool in_class, struct buf *out) {
    if (p[1] == 's') {
        buf_append_text(out, in_class ? SPACES : "[" SPACES "]");
        return STATUS_OK;
    }
    if (p[1] == 'S' && !in_class) {
        buf_append_text(out, "[^" SPACES "]");
        return STATUS_OK;
    }
    bool letter = (p[1] >= 'A' && p[1] <= 'Z') || (p[1] >= 'a' && p[1] <= 'z') || (p[1] >= '0' && p[1] <= '9');
    if (p[1] == 0 || (letter && strchr("rntfvapPdDwWbBx", p[1]) == NULL)) {
        char what[3] = {'\\', p[1], 0};
        return unsupported_pattern(what);
    }
    if (p[1] == 'v') {
        buf_append_text(out, "\\x{b}"); /* a class of vertical spaces in PCRE2 */
    } else {
        buf_append(out, p, 2);
    }
    return STATUS_OK;
}

/* Spells the pattern for PCRE2 where Oniguruma would read it otherwise: spaces as above; && intersects classes, a class
 * can stand within a class, and (?m) lets the dot match newlines: those are refused. */
static enum status translate(const char *pattern, struct buf *out) {
    bool in_class = false;
    for (const char *p = pattern; *p != 0; p++) {
        if (*p == '\\') {
            TRY(translate_escape(p, in_class, out));
            p++;
            continue;
        }
        if (in_class && *p == '[') {
            return unsupported_pattern("a class within a class");
        }
        if (in_class && strncmp(p, "&&", 2) == 0) {
            return unsupported_pattern("&&");
        }
        if (!in_class && strncmp(p, "(?", 2) == 0) {
            size_t flags = strspn(p + 2, "ix-");
            if (p[2 + flags] == 'm' || p[2 + flags] == 'x' || memchr(p + 2, 'x', flags) != NULL) {
                return unsupported_pattern("(?m and (?x");
            }
        }
        if (*p == '[') {
            in_class = true;
        } else if (*p == ']') {
            in_class = false;
        }
        buf_append(out, p, 1);
    }
    return STATUS_OK;
}

static enum status compile(const struct split_step *source, struct splitter *splitter, struct step *step) {
    struct buf pattern = {0};
    enum status result = STATUS_OK;
    uint32_t options = PCRE2_UTF | PCRE2_NO_UTF_CHECK;
    if (source->literal) {
        options |= PCRE2_LITERAL;
        buf_append_text(&pattern, source->pattern);
    } else {
        /* ^ and $ stand at every line in Oniguruma's Ruby syntax. */
        options |= PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
        result = translate(source->pattern, &pattern);
    }
    if (result == STATUS_OK) {
        int error;
        PCRE2_SIZE offset;
        step->kind = STEP_PCRE2;
        step->code = pcre2_compile((PCRE2_SPTR)buf_cstr(&pattern), pattern.size, options, &error, &offset, NULL);
        if (step->code == NULL) {
            PCRE2_UCHAR text[128];
            pcre2_get_error_message(error, text, sizeof text);
            result = status_fail(STATUS_UNSUPPORTED, "pre_tokenizer.pattern: %s", (const char *)text);
        }
    }
    buf_free(&pattern);
    if (result == STATUS_OK && splitter->limits == NULL) {
        splitter->limits = pcre2_match_context_create(NULL);
        pcre2_set_match_limit(splitter->limits, MATCH_LIMIT);
        pcre2_set_heap_limit(splitter->limits, HEAP_LIMIT_KIB);
    }
    return result;
}

static enum status add_step(const struct split_step *source, struct splitter *splitter) {
    struct step *step = &splitter->steps[splitter->n_steps++];
    step->keep_matches = source->keep_matches;
    step->keep_gaps = source->keep_gaps;
    switch (source->kind) {
    case SPLIT_DIGITS: step->kind = source->each_digit ? STEP_EACH_DIGIT : STEP_DIGIT_RUNS; return STATUS_OK;
    case SPLIT_BYTE_LEVEL_GPT2: step->kind = STEP_GPT2; return STATUS_OK;
    case SPLIT_PATTERN: break;
    }
    /* The known patterns leave no gaps, so that keeping the matches is all that matters. */
    if (!source->literal && source->keep_matches) {
        if (strcmp(source->pattern, qwen2_pattern) == 0) {
            step->kind = STEP_QWEN2;
            return STATUS_OK;
        }
        if (strcmp(source->pattern, llama3_pattern) == 0) {
            step->kind = STEP_LLAMA3;
            return STATUS_OK;
        }
        if (strcmp(source->pattern, gpt2_pattern) == 0) {
            step->kind = STEP_GPT2;
            return STATUS_OK;
        }
    }
    return compile(source, splitter, step);
}

enum status splitter_new(const struct tokenizer_file *file, struct splitter **out) {
    struct splitter *splitter = xcalloc(1, sizeof *splitter);
    for (size_t i = 0; i < file->n_steps; i++) {
        enum status result = add_step(&file->steps[i], splitter);
        if (result != STATUS_OK) {
            splitter_free(splitter);
            return result;
        }
    }
    *out = splitter;
    return STATUS_OK;
}

void splitter_free(struct splitter *splitter) {
    if (splitter == NULL) {
        return;
    }
    for (size_t i = 0; i < splitter->n_steps; i++) {
        pcre2_code_free(splitter->steps[i].code);
    }
    pcre2_match_context_free(splitter->limits);
    free(splitter);
}

static enum status run_from(const struct walk *walk, size_t depth, const char *text, size_t size);

/* Hands a piece to the next step. */
static inline enum status descend(const struct walk *walk, size_t depth, const char *text, size_t size) {
    if (depth + 1 == walk->splitter->n_steps) {
        return walk->piece(walk->context, text, size);
    }
    return run_from(walk, depth + 1, text, size);
}

static enum status run_digits(const struct walk *walk, size_t depth, const char *text, size_t size, bool each) {
    size_t start = 0;
    bool start_is_digit = false;
    for (size_t at = 0, length; at < size; at += length) {
        bool digit = (unicode_flags(unicode_next(text + at, &length)) & UNICODE_DIGIT) != 0;
        if (at > start && (digit != start_is_digit || (digit && each))) {
            TRY(descend(walk, depth, text + start, at - start));
            start = at;
        }
        start_is_digit = digit;
    }
    return descend(walk, depth, text + start, size - start);
}

static enum status run_pcre2(const struct walk *walk, size_t depth, const char *text, size_t size) {
    const struct step *step = &walk->splitter->steps[depth];
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    size_t done = 0; /* end of the last match */
    size_t from = 0; /* where the next search begins */
    enum status result = STATUS_OK;
    while (result == STATUS_OK && from <= size) {
        int found =
            pcre2_match(step->code, (PCRE2_SPTR)text, size, from, PCRE2_NO_UTF_CHECK, match, walk->splitter->limits);
        if (found == PCRE2_ERROR_NOMATCH) {
            break;
        }
        if (found < 0) {
            result =
                status_fail(STATUS_LIMIT, "pre_tokenizer.pattern: the text takes too long to split (code %d)", found);
            break;
        }
        const PCRE2_SIZE *span = pcre2_get_ovector_pointer(match);
        size_t begin = span[0];
        size_t end = span[1];
        if (begin > done && step->keep_gaps) {
            result = descend(walk, depth, text + done, begin - done);
        }
        if (result == STATUS_OK && end > begin && step->keep_matches) {
            result = descend(walk, depth, text + begin, end - begin);
        }
        done = end;
        size_t length = 1;
        if (end == begin && end < size) {
            unicode_next(text + end, &length); /* an empty match cuts, and the search goes on behind it */
        }
        from = end > begin ? end : end + length;
    }
    pcre2_match_data_free(match);
    if (result == STATUS_OK && done < size && step->keep_gaps) {
        result = descend(walk, depth, text + done, size - done);
    }
    return result;
}

static enum status run_from(const struct walk *walk, size_t depth, const char *text, size_t size) {
    enum step_kind kind = walk->splitter->steps[depth].kind;
    switch (kind) {
    case STEP_EACH_DIGIT:
    case STEP_DIGIT_RUNS: return run_digits(walk, depth, text, size, kind == STEP_EACH_DIGIT);
    case STEP_PCRE2: return run_pcre2(walk, depth, text, size);
    case STEP_QWEN2:
    case STEP_LLAMA3:
    case STEP_GPT2: break;
    }
    for (size_t at = 0; at < size;) {
        size_t end =
            kind == STEP_GPT2 ? scan_gpt2(text, at, size) : scan_cl100k(text, at, size, kind == STEP_QWEN2 ? 1 : 3);
        TRY(descend(walk, depth, text + at, end - at));
        at = end;
    }
    return STATUS_OK;
}

enum status splitter_run(const struct splitter *splitter, const char *text, size_t size, split_piece_fn *piece,
                         void *context) {
    if (size == 0) {
        return STATUS_OK;
    }
    if (splitter->n_steps == 0) {
        return piece(context, text, size);
    }
    struct walk walk = {.splitter = splitter, .piece = piece, .context = context};
    return run_from(&walk, 0, text, size);
}
