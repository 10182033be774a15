#include "runtime/http/http_writer.h"

#include <stdio.h>
#include <string.h>

const char *http_reason(int status) {
    switch (status) {
    case 200: return "OK";
    case 204: return "No Content";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 413: return "Content Too Large";
    case 414: return "URI Too Long";
    case 415: return "Unsupported Media Type";
    case 417: return "Expectation Failed";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 503: return "Service Unavailable";
    case 504: return "Gateway Timeout";
    case 505: return "HTTP Version Not Supported";
    default: return "Unknown";
    }
}

void http_write_response(struct buf *out, int status, const char *content_type, const char *extra_headers,
                         const void *body, size_t body_size, bool keep_alive, bool head_only) {
    buf_printf(out, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n%sConnection: %s\r\n\r\n", status,
               http_reason(status), content_type, body_size, extra_headers, keep_alive ? "keep-alive" : "close");
    if (!head_only) {
        buf_append(out, body, body_size);
    }
}

void http_write_stream_head(struct buf *out, const char *extra_headers, bool keep_alive) {
    buf_printf(out,
               "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
               "X-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n%sConnection: %s\r\n\r\n",
               extra_headers, keep_alive ? "keep-alive" : "close");
}

/* Wraps prefix + payload + "\n\n" into one chunk. */
static void write_chunk(struct buf *out, const char *prefix, const void *payload, size_t size) {
    size_t total = strlen(prefix) + size + 2;
    char line[24];
    int digits = snprintf(line, sizeof line, "%zx\r\n", total);
    buf_append(out, line, (size_t)digits);
    buf_append_text(out, prefix);
    buf_append(out, payload, size);
    buf_append(out, "\n\n\r\n", 4);
}

void http_write_event(struct buf *out, const void *payload, size_t size) {
    write_chunk(out, "data: ", payload, size);
}

void http_write_comment(struct buf *out, const char *text) {
    write_chunk(out, ": ", text, strlen(text));
}

void http_write_stream_end(struct buf *out) {
    buf_append(out, "0\r\n\r\n", 5);
}
