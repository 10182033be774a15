/* Chat templates. The Jinja text of tokenizer_config.json is not interpreted: known templates are recognised by their
 * content and rendered by C code that is exact against Jinja2 as transformers' apply_chat_template runs it.
 * Unknown ones are refused. */
#ifndef TANDEM_TOKENIZER_CHAT_TEMPLATE_H
#define TANDEM_TOKENIZER_CHAT_TEMPLATE_H

#include <stdbool.h>
#include <stddef.h>

#include "runtime/base/buf.h"
#include "runtime/base/status.h"
#include "runtime/tokenizer/tokenizer.h"

struct chat_template;

struct chat_tool_call {
    const char *type;      /* "function" */
    const char *name;      /* function.name */
    const char *arguments; /* function.arguments: a JSON text */
    const char *id;        /* NULL: none */
};

/* Texts are NUL-terminated UTF-8 and stay the caller's. */
struct chat_message {
    const char *role;    /* "system", "user", "assistant", "tool"; templates may take others */
    const char *content; /* NULL: null or absent */
    const char *name;    /* NULL: none; no known template shows it */
    const struct chat_tool_call *tool_calls;
    size_t n_tool_calls;
    const char *tool_call_id; /* NULL: none */
};

struct chat_template_options {
    bool add_generation_prompt;
    bool continue_final_message; /* the answer goes on from the last message's content; excludes the former */
    const char *tools_json;      /* a JSON array of tools; NULL: none. A template without tools ignores it, as in
                                    transformers; STATUS_UNSUPPORTED for Llama 3.1 and 3.2, which show them */
    const char *date_string;     /* "26 Jul 2024": shown by Llama 3.1 and 3.2; NULL: their default (3.2: today) */
};

/* `text` is a tokenizer_config.json (`json_size` bytes). STATUS_NOT_FOUND when it holds no chat_template,
 * STATUS_UNSUPPORTED when it is none of the known ones (the text names those). */
enum status chat_template_parse_config(const char *json, size_t json_size, struct chat_template **out);

/* From a Jinja text itself (chat_template.jinja); `bos_token` and `eos_token` are the texts the template may show. */
enum status chat_template_parse(const char *jinja, size_t size, const char *bos_token, const char *eos_token,
                                struct chat_template **out);

/* The known template of this name (see chat_template_name), without its text. */
enum status chat_template_named(const char *name, const char *bos_token, const char *eos_token,
                                struct chat_template **out);

/* Reads DIR/chat_template.jinja where there is one, else chat_template of DIR/tokenizer_config.json. */
enum status chat_template_load(const char *dir, struct chat_template **out);
void chat_template_free(struct chat_template *chat_template);

/* "DeepSeek-R1 B", "Llama 3.1", ... */
const char *chat_template_name(const struct chat_template *chat_template);

/* Appends the rendered text, which is to be encoded with TOKENIZE_SPECIALS (it begins with BOS where the template
 * has one). *starts_in_thinking tells whether the answer begins inside the reasoning: the template's last words, or the
 * message that is continued, open a <think> and do not close it. STATUS_INVALID names the message
 * ("messages[2].role: ...") that the template cannot take; then *out is as it was. */
enum status chat_template_render(const struct chat_template *chat_template, const struct chat_message *messages,
                                 size_t n_messages, const struct chat_template_options *options, struct buf *out,
                                 bool *starts_in_thinking);

/* The ranges of a rendered text that came from messages and tools and not from the template, ascending, as
 * tokenizer_encode_guarded() takes them. Zero-initialise it. */
struct chat_content_ranges {
    struct text_range *ranges;
    size_t size;
    size_t capacity;
};

/* As chat_template_render, and fills `ranges` (counted from the beginning of *out). */
enum status chat_template_render_ranges(const struct chat_template *chat_template, const struct chat_message *messages,
                                        size_t n_messages, const struct chat_template_options *options, struct buf *out,
                                        bool *starts_in_thinking, struct chat_content_ranges *ranges);
void chat_content_ranges_free(struct chat_content_ranges *ranges);

#endif
