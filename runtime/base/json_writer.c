#include "runtime/base/json_writer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/utf8.h"

static void begin_value(struct json_writer *writer) {
    if (writer->comma) {
        buf_append(writer->out, ",", 1);
    }
    writer->comma = true;
}

static void open_level(struct json_writer *writer, const char *bracket) {
    begin_value(writer);
    buf_append(writer->out, bracket, 1);
    writer->comma = false;
}

static void close_level(struct json_writer *writer, const char *bracket) {
    buf_append(writer->out, bracket, 1);
    writer->comma = true;
}

void json_begin_object(struct json_writer *writer) {
    open_level(writer, "{");
}
void json_end_object(struct json_writer *writer) {
    close_level(writer, "}");
}
void json_begin_array(struct json_writer *writer) {
    open_level(writer, "[");
}
void json_end_array(struct json_writer *writer) {
    close_level(writer, "]");
}

void json_key(struct json_writer *writer, const char *key) {
    begin_value(writer);
    buf_append(writer->out, "\"", 1);
    buf_append_text(writer->out, key);
    buf_append(writer->out, "\":", 2);
    writer->comma = false;
}

static void append_escape(struct buf *out, unsigned char byte) {
    static const char *const short_escapes[32] = {
        ['\b'] = "\\b", ['\t'] = "\\t", ['\n'] = "\\n", ['\f'] = "\\f", ['\r'] = "\\r"};
    if (byte < 32 && short_escapes[byte] != NULL) {
        buf_append(out, short_escapes[byte], 2);
    } else if (byte == '"' || byte == '\\') {
        char escape[2] = {'\\', (char)byte};
        buf_append(out, escape, 2);
    } else {
        buf_printf(out, "\\u%04x", byte);
    }
}

void json_bytes(struct json_writer *writer, const char *text, size_t size) {
    begin_value(writer);
    struct buf *out = writer->out;
    if (size == 0) {
        buf_append(out, "\"\"", 2);
        return;
    }
    buf_append(out, "\"", 1);
    size_t plain = 0; /* start of the bytes not yet copied */
    size_t at = 0;
    while (at < size) {
        unsigned char byte = (unsigned char)text[at];
        size_t step = 1;
        bool copy = byte >= 0x20 && byte != '"' && byte != '\\' && byte != 0x7f;
        if (byte >= 0x80) {
            uint32_t code;
            step = utf8_decode(text + at, size - at, &code);
            copy = step > 0;
        }
        if (copy) {
            at += step;
            continue;
        }
        buf_append(out, text + plain, at - plain);
        if (byte >= 0x80) {
            buf_append(out, "\xEF\xBF\xBD", 3);
        } else {
            append_escape(out, byte);
        }
        at++;
        plain = at;
    }
    buf_append(out, text + plain, at - plain);
    buf_append(out, "\"", 1);
}

void json_text(struct json_writer *writer, const char *text) {
    if (text == NULL) {
        json_none(writer);
    } else {
        json_bytes(writer, text, strlen(text));
    }
}

void json_uint(struct json_writer *writer, uint64_t value) {
    begin_value(writer);
    char digits[20];
    size_t at = sizeof digits;
    do {
        digits[--at] = (char)('0' + value % 10);
        value /= 10;
    } while (value > 0);
    buf_append(writer->out, digits + at, sizeof digits - at);
}

void json_int(struct json_writer *writer, int64_t value) {
    if (value >= 0) {
        json_uint(writer, (uint64_t)value);
        return;
    }
    begin_value(writer);
    buf_printf(writer->out, "%lld", (long long)value);
}

void json_float(struct json_writer *writer, float value) {
    begin_value(writer);
    if (!isfinite(value)) {
        buf_append(writer->out, "null", 4);
        return;
    }
    char text[32];
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value) {
            break;
        }
    }
    buf_append_text(writer->out, text);
}

void json_bool(struct json_writer *writer, bool value) {
    begin_value(writer);
    buf_append_text(writer->out, value ? "true" : "false");
}

void json_none(struct json_writer *writer) {
    begin_value(writer);
    buf_append(writer->out, "null", 4);
}
