#include "runtime/http/http_parser.h"

#include <ctype.h>
#include <llhttp.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "runtime/base/alloc.h"
#include "runtime/base/check.h"

enum parser_state { STATE_HEAD, STATE_BODY, STATE_DONE, STATE_BAD };

struct http_parser {
    enum parser_state state;
    struct buf head;   /* the header block as it came, then cut into strings in place */
    size_t line_start; /* of the line that is being received */
    struct buf body;
    llhttp_t llhttp;
    bool message_complete;
    int error_status;
    struct http_header headers[HTTP_MAX_HEADERS];
    struct http_request request;
};

const char *http_request_header(const struct http_request *request, const char *name) {
    for (size_t i = 0; i < request->n_headers; i++) {
        if (strcmp(request->headers[i].name, name) == 0) {
            return request->headers[i].value;
        }
    }
    return NULL;
}

static enum http_event bad(struct http_parser *parser, int error_status, const char *text) {
    parser->state = STATE_BAD;
    parser->error_status = error_status;
    status_fail(STATUS_INVALID, "%s", text);
    return HTTP_BAD;
}

/* ---- llhttp callbacks: it is the judge of grammar and body framing; heads are cut up below */

static int on_body(llhttp_t *llhttp, const char *at, size_t size) {
    struct http_parser *parser = llhttp->data;
    if (parser->body.size + size > HTTP_MAX_BODY_BYTES) {
        parser->error_status = 413;
        return HPE_USER;
    }
    buf_append(&parser->body, at, size);
    return 0;
}

static int on_headers_complete(llhttp_t *llhttp) {
    struct http_parser *parser = llhttp->data;
    llhttp->upgrade = 0; /* an offer to change the protocol may be ignored (RFC 9110 section 7.8) */
    parser->request.keep_alive = llhttp_should_keep_alive(llhttp) != 0;
    return 0;
}

static int on_trailer(llhttp_t *llhttp, const char *at, size_t size) {
    (void)at;
    (void)size;
    struct http_parser *parser = llhttp->data;
    return parser->state == STATE_HEAD ? 0 : HPE_USER;
}

static int on_message_complete(llhttp_t *llhttp) {
    struct http_parser *parser = llhttp->data;
    parser->message_complete = true;
    return HPE_PAUSED;
}

static const llhttp_settings_t callbacks = {
    .on_header_field = on_trailer,
    .on_headers_complete = on_headers_complete,
    .on_body = on_body,
    .on_message_complete = on_message_complete,
};

struct http_parser *http_parser_create(void) {
    struct http_parser *parser = xcalloc(1, sizeof *parser);
    http_parser_next(parser);
    return parser;
}

void http_parser_destroy(struct http_parser *parser) {
    if (parser != NULL) {
        buf_free(&parser->head);
        buf_free(&parser->body);
        free(parser);
    }
}

void http_parser_next(struct http_parser *parser) {
    parser->state = STATE_HEAD;
    parser->head.size = 0;
    parser->line_start = 0;
    parser->message_complete = false;
    parser->error_status = 0;
    parser->request = (struct http_request){.headers = parser->headers, .body = ""};
    if (parser->body.capacity > (1u << 20)) { /* a large body does not pin its memory for an idle connection */
        buf_free(&parser->body);
    }
    parser->body.size = 0;
    llhttp_init(&parser->llhttp, HTTP_REQUEST, &callbacks);
    parser->llhttp.data = parser;
}

bool http_parser_in_request(const struct http_parser *parser) {
    const struct buf *head = &parser->head;
    bool in_head = head->size > 0 && head->data[0] != '\r'; /* which may be the first half of an empty line */
    return parser->state == STATE_BODY || (parser->state == STATE_HEAD && in_head);
}

const struct http_request *http_parser_request(const struct http_parser *parser) {
    return &parser->request;
}

int http_parser_error_status(const struct http_parser *parser) {
    return parser->error_status;
}

/* ---- wall 1: the byte gate */

/* Takes one byte of the header block. Returns NULL, or what is wrong with it. */
static const char *gate_byte(struct http_parser *parser, unsigned char byte) {
    struct buf *head = &parser->head;
    bool after_cr = head->size > 0 && head->data[head->size - 1] == '\r';
    if (after_cr && byte != '\n') {
        return "bare CR in the header block";
    }
    if (byte == '\n' && !after_cr) {
        return "bare LF in the header block; lines end in CRLF";
    }
    if ((byte < 0x20 && byte != '\r' && byte != '\n' && byte != '\t') || byte == 0x7f) {
        return "control byte in the header block";
    }
    if ((byte == ' ' || byte == '\t') && head->size == parser->line_start) {
        return "a header line begins with a blank (folded lines are obsolete)";
    }
    buf_append(head, &byte, 1);
    return NULL;
}

/* Moves bytes into the head until the empty line that ends it. Returns true when the head is whole. */
static bool take_head(struct http_parser *parser, const char *bytes, size_t size, size_t *consumed,
                      enum http_event *event) {
    struct buf *head = &parser->head;
    for (size_t i = 0; i < size; i++) {
        const char *wrong = gate_byte(parser, (unsigned char)bytes[i]);
        *consumed = i + 1;
        if (wrong != NULL) {
            *event = bad(parser, 400, wrong);
            return false;
        }
        if (parser->line_start == 0 && head->size > HTTP_MAX_TARGET_BYTES) {
            *event = bad(parser, 414, "the request line is longer than 8 KiB");
            return false;
        }
        if (head->size > HTTP_MAX_HEAD_BYTES) {
            *event = bad(parser, 431, "the header block is longer than 32 KiB");
            return false;
        }
        if (bytes[i] != '\n') {
            continue;
        }
        bool empty_line = head->size - parser->line_start == 2;
        if (empty_line && parser->line_start == 0) {
            head->size = 0; /* an empty line before the request line is ignored (RFC 9112 section 2.2) */
            continue;
        }
        if (empty_line) {
            return true;
        }
        parser->line_start = head->size;
    }
    *event = HTTP_NEED_MORE;
    return false;
}

/* ---- wall 3: cutting up the head and what its fields must say together */

static bool is_token(const char *text) {
    for (const char *p = text; *p != 0; p++) {
        if (!isalnum((unsigned char)*p) && strchr("!#$%&'*+-.^_`|~", *p) == NULL) {
            return false;
        }
    }
    return *text != 0;
}

static enum http_method find_method(const char *name) {
    static const char *const names[] = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"};
    for (int i = 0; i < 6; i++) {
        if (strcmp(name, names[i]) == 0) {
            return (enum http_method)i;
        }
    }
    return HTTP_METHOD_OTHER;
}

/* Cuts "METHOD TARGET HTTP/1.x" at its two blanks. */
static const char *cut_request_line(struct http_request *request, char *line, const char **target) {
    char *first = strchr(line, ' ');
    char *second = first != NULL ? strchr(first + 1, ' ') : NULL;
    if (second == NULL || strchr(second + 1, ' ') != NULL) {
        return "the request line is not METHOD TARGET VERSION";
    }
    *first = 0;
    *second = 0;
    if (strcmp(second + 1, "HTTP/1.1") == 0) {
        request->minor_version = 1;
    } else if (strcmp(second + 1, "HTTP/1.0") != 0) {
        return "version";
    }
    request->method = find_method(line);
    *target = first + 1;
    return NULL;
}

static const char *cut_headers(struct http_parser *parser, char *line, char *end) {
    struct http_request *request = &parser->request;
    while (line < end) {
        char *line_end = strstr(line, "\r\n");
        *line_end = 0;
        char *colon = strchr(line, ':');
        if (colon == NULL) {
            return "a header line has no colon";
        }
        *colon = 0;
        if (!is_token(line)) {
            return "a header name is not a token";
        }
        if (request->n_headers == HTTP_MAX_HEADERS) {
            return "count";
        }
        for (char *p = line; *p != 0; p++) {
            *p = (char)tolower((unsigned char)*p);
        }
        char *value = colon + 1 + strspn(colon + 1, " \t");
        for (char *last = line_end - 1; last >= value && (*last == ' ' || *last == '\t'); last--) {
            *last = 0;
        }
        parser->headers[request->n_headers++] = (struct http_header){.name = line, .value = value};
        line = line_end + 2;
    }
    return NULL;
}

/* The value of a header that may come once; *count tells how often it came. */
static const char *single(const struct http_request *request, const char *name, int *count) {
    const char *value = NULL;
    *count = 0;
    for (size_t i = 0; i < request->n_headers; i++) {
        if (strcmp(request->headers[i].name, name) == 0) {
            value = request->headers[i].value;
            (*count)++;
        }
    }
    return value;
}

static enum http_event check_framing(struct http_parser *parser) {
    struct http_request *request = &parser->request;
    int lengths;
    int encodings;
    const char *length = single(request, "content-length", &lengths);
    const char *encoding = single(request, "transfer-encoding", &encodings);
    if (encodings > 0 &&
        (encodings > 1 || lengths > 0 || request->minor_version == 0 || strcasecmp(encoding, "chunked") != 0)) {
        return bad(parser, 400, "Transfer-Encoding: only `chunked`, once, in HTTP/1.1 and without Content-Length");
    }
    if (lengths > 0) {
        if (lengths > 1 || length[0] == 0 || length[strspn(length, "0123456789")] != 0) {
            return bad(parser, 400, "Content-Length: one decimal number is wanted");
        }
        if (strlen(length) > 10 || strtoull(length, NULL, 10) > HTTP_MAX_BODY_BYTES) {
            return bad(parser, 413, "Content-Length: the body is larger than 32 MiB");
        }
    }
    int expects;
    const char *expect = single(request, "expect", &expects);
    if (expects > 0 && (expects > 1 || strcasecmp(expect, "100-continue") != 0)) {
        return bad(parser, 417, "Expect: only 100-continue is known");
    }
    request->expect_continue = expects > 0 && request->minor_version == 1;
    return HTTP_NEED_MORE;
}

static enum http_event check_target(struct http_parser *parser, const char *target) {
    struct http_request *request = &parser->request;
    int hosts;
    const char *host = single(request, "host", &hosts);
    if (hosts > 1 || (hosts == 0 && request->minor_version == 1)) {
        return bad(parser, 400, "Host: exactly one is wanted");
    }
    if (strncasecmp(target, "http://", 7) == 0) { /* absolute form: its authority must be the Host */
        const char *authority = target + 7;
        size_t size = strcspn(authority, "/?");
        if (host == NULL || strlen(host) != size || strncasecmp(host, authority, size) != 0) {
            return bad(parser, 400, "the target's authority is not the Host");
        }
        target = authority[size] == 0 ? "/" : authority + size;
    }
    if (target[0] != '/' && !(request->method == HTTP_METHOD_OPTIONS && strcmp(target, "*") == 0)) {
        return bad(parser, 400, "the target does not begin with '/'");
    }
    char *query = strchr(target, '?');
    request->path = target;
    request->query = "";
    if (query != NULL) {
        *query = 0;
        request->query = query + 1;
    }
    return HTTP_NEED_MORE;
}

/* The head is whole: wall 2 over its bytes, then cut and check. */
static enum http_event finish_head(struct http_parser *parser) {
    struct buf *head = &parser->head;
    enum llhttp_errno error = llhttp_execute(&parser->llhttp, head->data, head->size);
    if (error != HPE_OK && error != HPE_PAUSED) {
        return bad(parser, 400, llhttp_get_error_reason(&parser->llhttp));
    }
    struct http_request *request = &parser->request;
    buf_cstr(head);
    char *line_end = strstr(head->data, "\r\n");
    *line_end = 0;
    const char *target = NULL;
    const char *wrong = cut_request_line(request, head->data, &target);
    if (wrong != NULL && strcmp(wrong, "version") == 0) {
        return bad(parser, 505, "only HTTP/1.0 and HTTP/1.1 are spoken here");
    }
    if (wrong == NULL) {
        wrong = cut_headers(parser, line_end + 2, head->data + head->size - 2);
    }
    if (wrong != NULL) {
        bool too_many = strcmp(wrong, "count") == 0;
        return bad(parser, too_many ? 431 : 400, too_many ? "more than 100 header fields" : wrong);
    }
    enum http_event event = check_framing(parser);
    if (event != HTTP_BAD) {
        event = check_target(parser, target);
    }
    if (event == HTTP_BAD) {
        return event;
    }
    parser->state = parser->message_complete ? STATE_DONE : STATE_BODY;
    return parser->message_complete ? HTTP_REQUEST_DONE : HTTP_HEAD_DONE;
}

static enum http_event take_body(struct http_parser *parser, const char *bytes, size_t size, size_t *consumed) {
    enum llhttp_errno error = llhttp_execute(&parser->llhttp, bytes, size);
    *consumed = error == HPE_OK ? size : (size_t)(llhttp_get_error_pos(&parser->llhttp) - bytes);
    if (parser->message_complete) {
        parser->state = STATE_DONE;
        parser->request.body = buf_cstr(&parser->body);
        parser->request.body_size = parser->body.size;
        return HTTP_REQUEST_DONE;
    }
    if (error != HPE_OK) {
        bool too_large = parser->error_status == 413;
        return bad(parser, too_large ? 413 : 400,
                   too_large ? "the body is larger than 32 MiB" : "the body's chunks are malformed or carry trailers");
    }
    return HTTP_NEED_MORE;
}

enum http_event http_parser_feed(struct http_parser *parser, const char *bytes, size_t size, size_t *consumed) {
    CHECK(parser->state == STATE_HEAD || parser->state == STATE_BODY, "fed after the end of a request");
    *consumed = 0;
    if (parser->state == STATE_BODY) {
        return size > 0 ? take_body(parser, bytes, size, consumed) : HTTP_NEED_MORE;
    }
    enum http_event event;
    if (!take_head(parser, bytes, size, consumed, &event)) {
        return event;
    }
    return finish_head(parser);
}
