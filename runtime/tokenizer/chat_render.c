#include "runtime/tokenizer/chat_render.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "runtime/base/alloc.h"
#include "runtime/base/hash.h"
#include "runtime/tokenizer/unicode.h"

/* ---- writing */

static void put(struct chat_render *render, const char *literal) {
    buf_append_text(render->out, literal);
}

/* Text that is not the template's. */
static void put_content(struct chat_render *render, const char *text, size_t size) {
    struct chat_content_ranges *ranges = render->ranges;
    size_t begin = render->out->size;
    buf_append(render->out, text, size);
    if (size == 0) {
        return;
    }
    if (ranges->size > 0 && ranges->ranges[ranges->size - 1].end == begin) {
        ranges->ranges[ranges->size - 1].end = begin + size;
        return;
    }
    if (ranges->size == ranges->capacity) {
        ranges->capacity = ranges->capacity > 0 ? 2 * ranges->capacity : 16;
        ranges->ranges = xrealloc(ranges->ranges, ranges->capacity, sizeof *ranges->ranges);
    }
    ranges->ranges[ranges->size++] = (struct text_range){.begin = begin, .end = begin + size};
}

static void put_text(struct chat_render *render, const char *text) {
    put_content(render, text, strlen(text));
}

void chat_ranges_cut(struct chat_content_ranges *ranges, size_t end) {
    while (ranges->size > 0 && ranges->ranges[ranges->size - 1].begin >= end) {
        ranges->size--;
    }
    if (ranges->size > 0 && ranges->ranges[ranges->size - 1].end > end) {
        ranges->ranges[ranges->size - 1].end = end;
    }
}

/* str.isspace(): White_Space and the four separators U+001C..U+001F. */
static bool is_python_space(uint32_t code) {
    return (code >= 0x1C && code <= 0x1F) || (unicode_flags(code) & UNICODE_SPACE) != 0;
}

void chat_trim(const char *text, size_t *begin, size_t *end) {
    size_t length;
    while (*begin < *end && is_python_space(unicode_next(text + *begin, &length))) {
        *begin += length;
    }
    while (*begin < *end) {
        size_t at = *end - 1;
        while (at > *begin && ((unsigned char)text[at] & 0xC0) == 0x80) {
            at--;
        }
        if (!is_python_space(unicode_next(text + at, &length))) {
            break;
        }
        *end = at;
    }
}

static void put_trimmed(struct chat_render *render, const char *text) {
    size_t begin = 0;
    size_t end = strlen(text);
    chat_trim(text, &begin, &end);
    put_content(render, text + begin, end - begin);
}

/* json.dumps(text, ensure_ascii=False), all of it content. */
static void put_json_string(struct chat_render *render, const char *text) {
    struct buf json = {0};
    buf_append(&json, "\"", 1);
    for (const char *p = text; *p != 0; p++) {
        static const char named[] = "\"\"\\\\\bb\ff\nn\rr\tt";
        const char *found = NULL;
        for (const char *n = named; *n != 0 && found == NULL; n += 2) {
            found = *n == *p ? n : NULL;
        }
        if (found != NULL) {
            buf_append(&json, "\\", 1);
            buf_append(&json, found + 1, 1);
        } else if ((unsigned char)*p < 0x20) {
            buf_printf(&json, "\\u%04x", (unsigned)(unsigned char)*p);
        } else {
            buf_append(&json, p, 1);
        }
    }
    buf_append(&json, "\"", 1);
    put_content(render, json.data, json.size);
    buf_free(&json);
}

static enum status need_content(const struct chat_message *message, size_t index) {
    if (message->content == NULL) {
        FAIL(STATUS_INVALID,
             "messages[%zu].content: is null, which the chat template does not take from role \"%.40s\"", index,
             message->role);
    }
    return STATUS_OK;
}

/* ---- DeepSeek-R1 (the distills; the same template for both families)
 *
 * Its quirks are kept: only the last system message counts, and it goes first; the reasoning of earlier answers is cut
 * off; a lone tool call never closes the list of calls; there is no prompt for an answer after a tool's message. */

static enum status r1_system(struct chat_render *render, const struct chat_message *messages, size_t n) {
    const char *system = "";
    for (size_t i = 0; i < n; i++) {
        if (strcmp(messages[i].role, "system") == 0) {
            TRY(need_content(&messages[i], i));
            system = messages[i].content;
        }
    }
    put(render, render->bos);
    put_text(render, system);
    return STATUS_OK;
}

/* *any_call: whether a call was rendered in this chat before. */
static enum status r1_calls(struct chat_render *render, const struct chat_message *message, size_t index,
                            bool *any_call) {
    for (size_t i = 0; i < message->n_tool_calls; i++) {
        const struct chat_tool_call *call = &message->tool_calls[i];
        if (call->type == NULL || call->name == NULL || call->arguments == NULL) {
            FAIL(STATUS_INVALID, "messages[%zu].tool_calls[%zu].%s: is missing", index, i,
                 call->type == NULL   ? "type"
                 : call->name == NULL ? "function.name"
                                      : "function.arguments");
        }
        bool first = !*any_call;
        put(render, first ? "<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>" : "\n<｜tool▁call▁begin｜>");
        put_text(render, call->type);
        put(render, "<｜tool▁sep｜>");
        put_text(render, call->name);
        put(render, "\n```json\n");
        put_text(render, call->arguments);
        put(render, "\n```<｜tool▁call▁end｜>");
        if (!first) {
            put(render, "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>");
        }
        *any_call = true;
    }
    return STATUS_OK;
}

/* What stands behind the last </think>. */
static const char *r1_answer(const char *content) {
    for (const char *next; (next = strstr(content, "</think>")) != NULL;) {
        content = next + strlen("</think>");
    }
    return content;
}

static enum status render_r1(struct chat_render *render, const struct chat_message *messages, size_t n,
                             const char *prompt) {
    bool any_call = false;
    bool any_output = false;
    bool is_tool = false;
    TRY(r1_system(render, messages, n));
    for (size_t i = 0; i < n; i++) {
        const struct chat_message *message = &messages[i];
        if (strcmp(message->role, "user") == 0) {
            TRY(need_content(message, i));
            is_tool = false;
            put(render, "<｜User｜>");
            put_text(render, message->content);
        } else if (strcmp(message->role, "assistant") == 0 && message->content == NULL) {
            is_tool = false;
            TRY(r1_calls(render, message, i, &any_call));
        } else if (strcmp(message->role, "assistant") == 0) {
            put(render, is_tool ? "<｜tool▁outputs▁end｜>" : "<｜Assistant｜>");
            put_text(render, is_tool ? message->content : r1_answer(message->content));
            put(render, "<｜end▁of▁sentence｜>");
            is_tool = false;
        } else if (strcmp(message->role, "tool") == 0) {
            TRY(need_content(message, i));
            put(render, any_output ? "\n<｜tool▁output▁begin｜>" : "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>");
            put_text(render, message->content);
            put(render, "<｜tool▁output▁end｜>");
            any_output = true;
            is_tool = true;
        } else if (strcmp(message->role, "system") != 0) {
            FAIL(STATUS_INVALID, "messages[%zu].role: \"%.40s\" is none of system, user, assistant and tool", i,
                 message->role);
        }
    }
    if (is_tool) {
        put(render, "<｜tool▁outputs▁end｜>");
    } else if (render->options->add_generation_prompt) {
        put(render, prompt);
    }
    return STATUS_OK;
}

static enum status render_r1_a(struct chat_render *render, const struct chat_message *messages, size_t n) {
    return render_r1(render, messages, n, "<｜Assistant｜>");
}

static enum status render_r1_b(struct chat_render *render, const struct chat_message *messages, size_t n) {
    return render_r1(render, messages, n, "<｜Assistant｜><think>\n");
}

/* ---- Llama 3 */

static void llama_header(struct chat_render *render, const char *role) {
    put(render, "<|start_header_id|>");
    put_text(render, role);
    put(render, "<|end_header_id|>\n\n");
}

static void llama_prompt(struct chat_render *render) {
    put(render, "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

static enum status render_llama3(struct chat_render *render, const struct chat_message *messages, size_t n) {
    put(render, render->bos);
    for (size_t i = 0; i < n; i++) {
        TRY(need_content(&messages[i], i));
        llama_header(render, messages[i].role);
        put_trimmed(render, messages[i].content);
        put(render, "<|eot_id|>");
    }
    if (render->options->add_generation_prompt) {
        llama_prompt(render);
    }
    return STATUS_OK;
}

/* 3.1 and 3.2 differ in the date that stands in for none. Tools and tool calls would have to be shown as Python prints
 * JSON; they are refused. */
static enum status render_llama31(struct chat_render *render, const struct chat_message *messages, size_t n,
                                  const char *default_date) {
    if (render->options->tools_json != NULL) {
        FAIL(STATUS_UNSUPPORTED, "tools: are not served with the chat template %s", render->kind->name);
    }
    const char *date = render->options->date_string != NULL ? render->options->date_string : default_date;
    put(render, render->bos);
    put(render, "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: ");
    put_text(render, date);
    put(render, "\n\n");
    size_t first = 0;
    if (strcmp(messages[0].role, "system") == 0) {
        TRY(need_content(&messages[0], 0));
        put_trimmed(render, messages[0].content);
        first = 1;
    }
    put(render, "<|eot_id|>");
    for (size_t i = first; i < n; i++) {
        const struct chat_message *message = &messages[i];
        if (message->n_tool_calls > 0) {
            FAIL(STATUS_UNSUPPORTED, "messages[%zu].tool_calls: are not served with the chat template %s", i,
                 render->kind->name);
        }
        TRY(need_content(message, i));
        bool tool = strcmp(message->role, "tool") == 0 || strcmp(message->role, "ipython") == 0;
        llama_header(render, tool ? "ipython" : message->role);
        if (tool) {
            put_json_string(render, message->content);
        } else {
            put_trimmed(render, message->content);
        }
        put(render, "<|eot_id|>");
    }
    if (render->options->add_generation_prompt) {
        llama_prompt(render);
    }
    return STATUS_OK;
}

static enum status render_llama31_fixed(struct chat_render *render, const struct chat_message *messages, size_t n) {
    return render_llama31(render, messages, n, "26 Jul 2024");
}

static enum status render_llama32(struct chat_render *render, const struct chat_message *messages, size_t n) {
    static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    time_t now = time(NULL);
    struct tm day;
    localtime_r(&now, &day);
    char date[32];
    snprintf(date, sizeof date, "%02d %.3s %d", day.tm_mday, months + 3 * (size_t)day.tm_mon, day.tm_year + 1900);
    return render_llama31(render, messages, n, date);
}

/* ---- ChatML, with a system message of its own where the chat has none (SmolLM2, Qwen2) */

static enum status render_chatml(struct chat_render *render, const struct chat_message *messages, size_t n) {
    if (strcmp(messages[0].role, "system") != 0) {
        put(render, "<|im_start|>system\n");
        put(render, render->default_system);
        put(render, "<|im_end|>\n");
    }
    for (size_t i = 0; i < n; i++) {
        TRY(need_content(&messages[i], i));
        put(render, "<|im_start|>");
        put_text(render, messages[i].role);
        put(render, "\n");
        put_text(render, messages[i].content);
        put(render, "<|im_end|>\n");
    }
    if (render->options->add_generation_prompt) {
        put(render, "<|im_start|>assistant\n");
    }
    return STATUS_OK;
}

/* ---- the table */

static const char chatml_head[] = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' "
                                  "%}{{ '<|im_start|>system\n";
static const char chatml_tail[] =
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/* Sizes and hashes: tests/tools/make_tokenizer_goldens.py prints them. */
const struct chat_kind chat_kinds[] = {
    {.name = "DeepSeek-R1 A", .size = 2229, .hash = 0x0deeef206efd3d61ull, .render = render_r1_a},
    {.name = "DeepSeek-R1 B", .size = 2237, .hash = 0xf51c12e66332fba8ull, .render = render_r1_b},
    {.name = "Llama 3", .size = 389, .hash = 0x3ad12ab82c77200bull, .render = render_llama3},
    {.name = "Llama 3.1", .size = 3617, .hash = 0xc0fbaa0751d1bb8bull, .render = render_llama31_fixed},
    {.name = "Llama 3.2", .size = 3113, .hash = 0xb5c2dc420b6e5b55ull, .render = render_llama32},
    {.name = "ChatML (SmolLM2)", .head = chatml_head, .tail = chatml_tail, .render = render_chatml},
};
const size_t chat_n_kinds = sizeof chat_kinds / sizeof chat_kinds[0];

bool chat_kind_matches(const struct chat_kind *kind, const char *text, size_t size, const char **system,
                       size_t *system_size) {
    if (kind->head == NULL) {
        return size == kind->size && hash64(0, text, size) == kind->hash;
    }
    size_t head = strlen(kind->head);
    size_t tail = strlen(kind->tail);
    if (size < head + tail || memcmp(text, kind->head, head) != 0 ||
        memcmp(text + size - tail, kind->tail, tail) != 0) {
        return false;
    }
    /* The literal must end where the tail begins: no quote, no escape. */
    if (memchr(text + head, '\'', size - head - tail) != NULL ||
        memchr(text + head, '\\', size - head - tail) != NULL) {
        return false;
    }
    *system = text + head;
    *system_size = size - head - tail;
    return true;
}
