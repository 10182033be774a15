#include "runtime/request/output.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/base/check.h"

static const char open_marker[] = "<think>";
static const char close_marker[] = "</think>";

void output_delta_clear(struct output_delta *delta) {
    delta->reasoning.size = 0;
    delta->content.size = 0;
}

void output_delta_free(struct output_delta *delta) {
    buf_free(&delta->reasoning);
    buf_free(&delta->content);
}

/* Borders for Knuth, Morris, Pratt, "Fast pattern matching in strings" (1977): failure[i] is the length of the longest
 * proper prefix of text[0..i] that is also its suffix. */
static uint16_t *kmp_borders(const char *text, size_t size) {
    uint16_t *failure = xcalloc(size, sizeof *failure);
    for (size_t i = 1; i < size; i++) {
        size_t border = failure[i - 1];
        while (border > 0 && text[i] != text[border]) {
            border = failure[border - 1];
        }
        failure[i] = (uint16_t)(text[i] == text[border] ? border + 1 : 0);
    }
    return failure;
}

void output_stream_init(struct output_stream *stream, const struct request_context *context,
                        const struct request *request) {
    *stream = (struct output_stream){.request = request, .context = context};
    detokenizer_init(&stream->detokenizer, context->tokenizer, request->skip_special);
    for (uint32_t i = 0; i < request->n_stops; i++) {
        stream->stop_failure[i] = kmp_borders(request->stops[i].text, request->stops[i].size);
    }
    stream->phase = !request->split_reasoning     ? OUTPUT_CONTENT
                    : request->starts_in_thinking ? OUTPUT_REASONING
                                                  : OUTPUT_BEFORE;
    stream->settled = !request->split_reasoning || request->goes_on_thinking;
    stream->at_start = !request->goes_on_thinking;
}

void output_stream_free(struct output_stream *stream) {
    for (uint32_t i = 0; i < REQUEST_MAX_STOPS; i++) {
        free(stream->stop_failure[i]);
    }
    buf_free(&stream->scratch);
    buf_free(&stream->held);
    buf_free(&stream->marker);
}

/* ---- think splitter: `marker` holds what is not decided yet */

static void add_reasoning(struct output_stream *stream, const char *text, size_t size, struct output_delta *delta) {
    if (stream->request->include_reasoning) {
        buf_append(&delta->reasoning, text, size);
    }
}

/* How many bytes at the end of `text` are a beginning of the closing marker that more text could complete. */
static size_t partial_close(const char *text, size_t size) {
    size_t longest = sizeof close_marker - 2;
    for (size_t n = size < longest ? size : longest; n > 0; n--) {
        if (memcmp(text + size - n, close_marker, n) == 0) {
            return n;
        }
    }
    return 0;
}

/* Leading blanks and a possible <think> wait until it is clear what they are; `last` says that no more comes. */
static void settle_beginning(struct output_stream *stream, bool last) {
    const struct buf *text = &stream->marker;
    size_t blanks = stream->n_blanks;
    while (blanks < text->size && strchr(" \t\r\n", text->data[blanks]) != NULL && text->data[blanks] != 0) {
        blanks++;
    }
    stream->n_blanks = blanks;
    size_t marker_size = sizeof open_marker - 1;
    size_t have = text->size - blanks < marker_size ? text->size - blanks : marker_size;
    bool matches = have == 0 || memcmp(text->data + blanks, open_marker, have) == 0;
    if (matches && have < marker_size && !last) {
        return;
    }
    stream->settled = true;
    if (matches && have == marker_size) {
        buf_consume(&stream->marker, blanks + marker_size);
        stream->phase = OUTPUT_REASONING;
    } else if (stream->phase == OUTPUT_BEFORE) {
        stream->phase = OUTPUT_CONTENT;
    }
}

static void drop_line_breaks(struct buf *text) {
    size_t n = 0;
    while (n < text->size && (text->data[n] == '\n' || text->data[n] == '\r')) {
        n++;
    }
    buf_consume(text, n);
}

/* Text inside the reasoning. Returns true when the marker that ends it was found. */
static bool split_reasoning(struct output_stream *stream, bool last, struct output_delta *delta) {
    struct buf *text = &stream->marker;
    if (stream->at_start) {
        drop_line_breaks(text);
        stream->at_start = text->size == 0;
    }
    for (size_t i = 0; i + sizeof close_marker - 1 <= text->size; i++) {
        if (memcmp(text->data + i, close_marker, sizeof close_marker - 1) == 0) {
            add_reasoning(stream, text->data, i, delta);
            buf_consume(text, i + sizeof close_marker - 1);
            return true;
        }
    }
    size_t kept = last ? 0 : partial_close(text->data, text->size);
    add_reasoning(stream, text->data, text->size - kept, delta);
    buf_consume(text, text->size - kept);
    return false;
}

/* Routes what `marker` holds; `last` means that no more comes. */
static void split(struct output_stream *stream, bool last, struct output_delta *delta) {
    struct buf *text = &stream->marker;
    if (!stream->settled) {
        settle_beginning(stream, last);
    }
    if (!stream->settled) {
        return;
    }
    if (stream->phase == OUTPUT_REASONING && split_reasoning(stream, last, delta)) {
        stream->phase = OUTPUT_AFTER_THINK;
    }
    if (stream->phase == OUTPUT_AFTER_THINK) {
        drop_line_breaks(text);
        if (text->size > 0) {
            stream->phase = OUTPUT_CONTENT;
        }
    }
    if (stream->phase == OUTPUT_CONTENT) {
        buf_append(&delta->content, text->data, text->size);
        text->size = 0;
    }
}

static void route(struct output_stream *stream, const char *text, size_t size, bool last, struct output_delta *delta) {
    if (stream->phase == OUTPUT_CONTENT) {
        buf_append(&delta->content, text, size);
        return;
    }
    buf_append(&stream->marker, text, size);
    split(stream, last, delta);
}

/* ---- stop scanner */

/* Advances every stop text by one byte. Returns the length of the longest that is complete, or 0; *held is the longest
 * beginning of any that the output now ends in. */
static size_t advance_stops(struct output_stream *stream, char byte, size_t *held) {
    size_t complete = 0;
    size_t longest = 0;
    for (uint32_t s = 0; s < stream->request->n_stops; s++) {
        const struct request_stop *stop = &stream->request->stops[s];
        size_t matched = stream->stop_matched[s];
        while (matched > 0 && stop->text[matched] != byte) {
            matched = stream->stop_failure[s][matched - 1];
        }
        matched += stop->text[matched] == byte;
        if (matched == stop->size) {
            complete = matched > complete ? matched : complete;
            matched = stream->stop_failure[s][matched - 1];
        }
        stream->stop_matched[s] = (uint16_t)matched;
        longest = matched > longest ? matched : longest;
    }
    *held = longest;
    return complete;
}

/* Scans the new text; hands on what cannot be part of a stop text any more. Returns true at a stop. */
static bool scan_stops(struct output_stream *stream, const char *text, size_t size, struct output_delta *delta) {
    struct buf *held = &stream->held;
    size_t keep = held->size; /* no text: it may still begin a stop text */
    for (size_t i = 0; i < size; i++) {
        buf_append(held, &text[i], 1);
        size_t stop = advance_stops(stream, text[i], &keep);
        if (stop > 0) {
            size_t shown = stream->request->include_stop_text ? held->size : held->size - stop;
            route(stream, held->data, shown, true, delta);
            held->size = 0;
            return true;
        }
    }
    size_t sure = held->size - keep;
    route(stream, held->data, sure, false, delta);
    buf_consume(held, sure);
    return false;
}

/* ---- the whole */

static bool is_stop_id(const struct request *request, uint32_t id) {
    for (uint32_t i = 0; i < request->n_stop_ids; i++) {
        if (request->stop_ids[i] == id) {
            return true;
        }
    }
    return false;
}

bool output_shows(const struct request_context *context, const struct request *request, uint32_t id) {
    bool marker = id == context->think_id || id == context->end_think_id;
    return marker || !(request->skip_special && tokenizer_is_special(context->tokenizer, id));
}

static void detokenize(struct output_stream *stream, uint32_t id) {
    stream->scratch.size = 0;
    stream->detokenizer.skip_special = !output_shows(stream->context, stream->request, id);
    detokenizer_push(&stream->detokenizer, id, &stream->scratch);
}

enum output_state output_stream_push(struct output_stream *stream, uint32_t id, struct output_delta *delta) {
    CHECK(stream->state == OUTPUT_OPEN, "an id behind the end of an answer");
    stream->n_ids++;
    stream->n_reasoning_ids += stream->phase == OUTPUT_REASONING;
    if (is_stop_id(stream->request, id)) {
        output_stream_finish(stream, delta);
        stream->state = OUTPUT_STOP_ID;
        return stream->state;
    }
    detokenize(stream, id);
    if (stream->request->n_stops == 0) {
        route(stream, stream->scratch.data, stream->scratch.size, false, delta);
    } else if (scan_stops(stream, stream->scratch.data, stream->scratch.size, delta)) {
        stream->state = OUTPUT_STOP_TEXT;
    }
    return stream->state;
}

void output_stream_finish(struct output_stream *stream, struct output_delta *delta) {
    if (stream->state != OUTPUT_OPEN) {
        return;
    }
    struct buf *text = &stream->scratch;
    text->size = 0;
    detokenizer_flush(&stream->detokenizer, text);
    if (stream->request->n_stops > 0) {
        if (scan_stops(stream, text->data, text->size, delta)) {
            return;
        }
        text = &stream->held;
    }
    route(stream, text->data, text->size, true, delta);
    text->size = 0;
}
