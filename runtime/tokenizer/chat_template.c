#define _GNU_SOURCE /* memmem */
#include "runtime/tokenizer/chat_template.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/format/tokenizer_file.h"
#include "runtime/tokenizer/chat_render.h"

#define TEMPLATE_LIMIT ((size_t)1 << 20)

/* What transformers appends to the content that is continued, to find it again in the rendered text. */
static const char continue_tag[] = "CONTINUE_FINAL_MESSAGE_TAG ";

struct chat_template {
    const struct chat_kind *kind;
    char *bos;
    char *default_system;
};

static void drop_spaces(struct buf *out) {
    while (out->size > 0 && strchr(" \t\r\n", out->data[out->size - 1]) != NULL) {
        out->size--;
    }
}

/* Brings texts that Jinja takes for the same to one form: a newline in a literal may be written \n; {#- comments #} and
 * the white space before a tag that opens with a dash show nothing; nor does white space at the end. The result is
 * NUL-terminated. */
static void canonical_text(const char *jinja, size_t size, struct buf *out) {
    for (size_t i = 0; i < size; i++) {
        const char *at = jinja + i;
        size_t left = size - i;
        if (left >= 2 && at[0] == '\\' && at[1] == 'n') {
            buf_append(out, "\n", 1);
            i++;
            continue;
        }
        if (left >= 3 && memcmp(at, "{#-", 3) == 0) {
            size_t end = i + 3;
            while (end + 2 <= size && memcmp(jinja + end, "#}", 2) != 0) {
                end++;
            }
            i = end + 1;
            continue;
        }
        if (left >= 3 && at[0] == '{' && (at[1] == '%' || at[1] == '{') && at[2] == '-') {
            drop_spaces(out);
        }
        buf_append(out, at, 1);
    }
    drop_spaces(out);
    buf_cstr(out);
}

static enum status unknown_template(void) {
    struct buf names = {0};
    for (size_t i = 0; i < chat_n_kinds; i++) {
        buf_append_text(&names, i == 0 ? "" : ", ");
        buf_append_text(&names, chat_kinds[i].name);
    }
    enum status result = status_fail(STATUS_UNSUPPORTED,
                                     "chat_template: is none of the known ones (%s); use /v1/completions, or put the "
                                     "text of a known one into chat_template.jinja",
                                     buf_cstr(&names));
    buf_free(&names);
    return result;
}

static struct chat_template *new_template(const struct chat_kind *kind, const char *bos, const char *default_system,
                                          size_t default_size) {
    struct chat_template *chat_template = xcalloc(1, sizeof *chat_template);
    chat_template->kind = kind;
    chat_template->bos = xstrdup(bos != NULL ? bos : "");
    chat_template->default_system = xstrndup(default_system, default_size);
    return chat_template;
}

enum status chat_template_parse(const char *jinja, size_t size, const char *bos_token, const char *eos_token,
                                struct chat_template **out) {
    (void)eos_token; /* no known template shows it as a variable */
    if (size > TEMPLATE_LIMIT) {
        FAIL(STATUS_LIMIT, "chat_template: %zu bytes are above the limit of %zu", size, TEMPLATE_LIMIT);
    }
    struct buf text = {0};
    canonical_text(jinja, size, &text);
    const struct chat_kind *kind = NULL;
    const char *system = "";
    size_t system_size = 0;
    for (size_t i = 0; i < chat_n_kinds && kind == NULL; i++) {
        if (chat_kind_matches(&chat_kinds[i], text.data, text.size, &system, &system_size)) {
            kind = &chat_kinds[i];
        }
    }
    enum status result = STATUS_OK;
    if (kind == NULL) {
        result = unknown_template();
    } else {
        *out = new_template(kind, bos_token, system, system_size);
    }
    buf_free(&text);
    return result;
}

enum status chat_template_named(const char *name, const char *bos_token, const char *eos_token,
                                struct chat_template **out) {
    (void)eos_token;
    for (size_t i = 0; i < chat_n_kinds; i++) {
        if (strcmp(chat_kinds[i].name, name) == 0) {
            *out = new_template(&chat_kinds[i], bos_token, "", 0);
            return STATUS_OK;
        }
    }
    return unknown_template();
}

enum status chat_template_parse_config(const char *json, size_t json_size, struct chat_template **out) {
    struct tokenizer_config config;
    TRY(tokenizer_config_parse(json, json_size, "tokenizer_config.json", &config));
    enum status result;
    if (config.chat_template == NULL) {
        result = status_fail(STATUS_NOT_FOUND, "tokenizer_config.json: has no chat_template");
    } else {
        result = chat_template_parse(config.chat_template, config.chat_template_size, config.bos_token,
                                     config.eos_token, out);
    }
    tokenizer_config_free(&config);
    return result;
}

/* Parses the text of chat_template.jinja with the BOS of tokenizer_config.json, where there is one. */
static enum status parse_jinja_file(const struct buf *jinja, struct buf *config_text, struct chat_template **out) {
    struct tokenizer_config config = {0};
    if (config_text->size > 0) {
        TRY(tokenizer_config_parse(buf_cstr(config_text), config_text->size, "tokenizer_config.json", &config));
    }
    enum status result = chat_template_parse(jinja->data, jinja->size, config.bos_token, config.eos_token, out);
    tokenizer_config_free(&config);
    return result;
}

enum status chat_template_load(const char *dir, struct chat_template **out) {
    struct buf path = {0};
    struct buf jinja = {0};
    struct buf config = {0};
    buf_printf(&path, "%s/tokenizer_config.json", dir);
    enum status result = buf_read_file(&config, buf_cstr(&path), TOKENIZER_FILE_LIMIT);
    bool no_config = result == STATUS_NOT_FOUND;
    if (result == STATUS_OK || no_config) {
        path.size = 0;
        buf_printf(&path, "%s/chat_template.jinja", dir);
        result = buf_read_file(&jinja, buf_cstr(&path), TEMPLATE_LIMIT);
        if (result == STATUS_OK) {
            result = parse_jinja_file(&jinja, &config, out);
        } else if (result == STATUS_NOT_FOUND && no_config) {
            result = status_fail(STATUS_NOT_FOUND, "neither chat_template.jinja nor tokenizer_config.json");
        } else if (result == STATUS_NOT_FOUND) {
            result = chat_template_parse_config(buf_cstr(&config), config.size, out);
        }
        if (result != STATUS_OK) {
            status_prefix(result, "%s", dir);
        }
    }
    buf_free(&path);
    buf_free(&jinja);
    buf_free(&config);
    return result;
}

void chat_template_free(struct chat_template *chat_template) {
    if (chat_template != NULL) {
        free(chat_template->bos);
        free(chat_template->default_system);
        free(chat_template);
    }
}

const char *chat_template_name(const struct chat_template *chat_template) {
    return chat_template->kind->name;
}

void chat_content_ranges_free(struct chat_content_ranges *ranges) {
    free(ranges->ranges);
    *ranges = (struct chat_content_ranges){0};
}

/* Start of the last occurrence of `part` in text[0..size); SIZE_MAX when there is none. */
static size_t find_last(const char *text, size_t size, const char *part, size_t part_size) {
    for (size_t at = size; at + 1 > part_size; at--) {
        if (memcmp(text + at - part_size, part, part_size) == 0) {
            return at - part_size;
        }
    }
    return SIZE_MAX;
}

/* Whether `text` opens a <think> that it does not close. */
static bool opens_thinking(const char *text, size_t size) {
    size_t open = find_last(text, size, "<think>", 7);
    size_t close = find_last(text, size, "</think>", 8);
    return open != SIZE_MAX && (close == SIZE_MAX || close < open);
}

/* The end of transformers' render_jinja_template(): cuts the text where the tag stands. */
static enum status cut_at_tag(struct chat_render *render, size_t start, const struct chat_message *last, size_t index) {
    struct buf *out = render->out;
    size_t tag_size = strlen(continue_tag);
    size_t begin = 0;
    size_t end = strlen(last->content);
    chat_trim(last->content, &begin, &end);
    size_t at = find_last(out->data + start, out->size - start, continue_tag, tag_size - 1);
    /* Both texts are the client's and may be long: memmem takes linear time. */
    if (at == SIZE_MAX || memmem(out->data + start, out->size - start, last->content + begin, end - begin) == NULL) {
        FAIL(STATUS_INVALID,
             "messages[%zu].content: the template does not show it whole, so that it cannot be continued", index);
    }
    size_t cut = start + at;
    bool spaced = out->size - cut >= tag_size && out->data[cut + tag_size - 1] == ' ';
    size_t from = start;
    out->size = cut;
    if (!spaced) {
        chat_trim(out->data, &from, &out->size);
    }
    chat_ranges_cut(render->ranges, out->size);
    return STATUS_OK;
}

static enum status render_continued(struct chat_render *render, const struct chat_message *messages, size_t n,
                                    bool *starts_in_thinking) {
    const struct chat_message *last = &messages[n - 1];
    if (last->content == NULL) {
        FAIL(STATUS_INVALID, "messages[%zu].content: is null, and continue_final_message is set", n - 1);
    }
    size_t start = render->out->size;
    struct chat_message *copy = xcalloc(n, sizeof *copy);
    memcpy(copy, messages, n * sizeof *copy);
    struct buf content = {0};
    buf_append_text(&content, last->content);
    buf_append_text(&content, continue_tag);
    copy[n - 1].content = buf_cstr(&content);
    enum status result = render->kind->render(render, copy, n);
    if (result == STATUS_OK) {
        result = cut_at_tag(render, start, last, n - 1);
    }
    buf_free(&content);
    free(copy);
    *starts_in_thinking = opens_thinking(last->content, strlen(last->content));
    return result;
}

/* The shapes that no template takes. */
static enum status check_messages(const struct chat_message *messages, size_t n,
                                  const struct chat_template_options *options) {
    if (n == 0) {
        FAIL(STATUS_INVALID, "messages: is empty");
    }
    for (size_t i = 0; i < n; i++) {
        if (messages[i].role == NULL || messages[i].role[0] == 0) {
            FAIL(STATUS_INVALID, "messages[%zu].role: is missing", i);
        }
    }
    if (options->continue_final_message && options->add_generation_prompt) {
        FAIL(STATUS_INVALID, "continue_final_message: excludes add_generation_prompt");
    }
    return STATUS_OK;
}

enum status chat_template_render_ranges(const struct chat_template *chat_template, const struct chat_message *messages,
                                        size_t n_messages, const struct chat_template_options *options, struct buf *out,
                                        bool *starts_in_thinking, struct chat_content_ranges *ranges) {
    TRY(check_messages(messages, n_messages, options));
    size_t start = out->size;
    struct chat_render render = {.kind = chat_template->kind,
                                 .bos = chat_template->bos,
                                 .default_system = chat_template->default_system,
                                 .options = options,
                                 .out = out,
                                 .ranges = ranges};
    enum status result;
    if (options->continue_final_message) {
        result = render_continued(&render, messages, n_messages, starts_in_thinking);
    } else {
        result = render.kind->render(&render, messages, n_messages);
        *starts_in_thinking =
            result == STATUS_OK && out->size - start >= 8 && memcmp(out->data + out->size - 8, "<think>\n", 8) == 0;
    }
    if (result != STATUS_OK) {
        out->size = start;
        ranges->size = 0;
    }
    return result;
}

enum status chat_template_render(const struct chat_template *chat_template, const struct chat_message *messages,
                                 size_t n_messages, const struct chat_template_options *options, struct buf *out,
                                 bool *starts_in_thinking) {
    struct chat_content_ranges ranges = {0};
    enum status result =
        chat_template_render_ranges(chat_template, messages, n_messages, options, out, starts_in_thinking, &ranges);
    chat_content_ranges_free(&ranges);
    return result;
}
