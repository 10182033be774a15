/* HTTP/1.1 requests, sans-IO: bytes in, one request out. Three walls in depth (RFC 9112; request smuggling):
 *   1. a byte gate over the header block: no bare CR or LF, no NUL or other control byte, no folded line, no space
 *      before a colon, header names are tokens;
 *   2. llhttp in strict mode for the grammar and the body's framing;
 *   3. semantic checks: exactly one Host, Transfer-Encoding only as `chunked`, only in 1.1 and never beside
 *      Content-Length, one Content-Length, no trailers, no second request until the first was answered.
 * What fails a wall is answered with a 4xx and the connection closed: nothing behind it can be trusted to be framed. */
#ifndef TANDEM_HTTP_HTTP_PARSER_H
#define TANDEM_HTTP_HTTP_PARSER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/buf.h"
#include "runtime/base/status.h"

#define HTTP_MAX_HEAD_BYTES (32u << 10)
#define HTTP_MAX_TARGET_BYTES (8u << 10)
#define HTTP_MAX_HEADERS 100
#define HTTP_MAX_BODY_BYTES (32u << 20)

enum http_method {
    HTTP_METHOD_GET,
    HTTP_METHOD_HEAD,
    HTTP_METHOD_POST,
    HTTP_METHOD_PUT,
    HTTP_METHOD_DELETE,
    HTTP_METHOD_OPTIONS,
    HTTP_METHOD_OTHER,
};

struct http_header {
    const char *name;  /* lower case */
    const char *value; /* outer blanks removed */
};

struct http_request {
    enum http_method method;
    const char *path;  /* decoded of nothing, up to '?': "/v1/models" */
    const char *query; /* behind '?', "" if none */
    int minor_version; /* 0 or 1 of HTTP/1.x */
    bool keep_alive;
    bool expect_continue; /* the client waits for "100 Continue" */
    const struct http_header *headers;
    size_t n_headers;
    const char *body; /* "" if none */
    size_t body_size;
};

/* The value of a header by its lower-case name; NULL when absent. */
const char *http_request_header(const struct http_request *request, const char *name);

enum http_event {
    HTTP_NEED_MORE,    /* everything was consumed; feed more */
    HTTP_HEAD_DONE,    /* the head is parsed (request's head fields are valid) and a body follows; feed the rest. Comes
                          once, so that an unwanted or unauthorised request can be refused before its body is taken */
    HTTP_REQUEST_DONE, /* the whole request is there; bytes behind it were not consumed */
    HTTP_BAD,          /* answer `error_status` and close; the text is in status_text() */
};

struct http_parser;

struct http_parser *http_parser_create(void);
void http_parser_destroy(struct http_parser *parser);

/* Feeds bytes; *consumed tells how many were taken. After REQUEST_DONE call http_parser_next before feeding again;
 * after BAD nothing more. `request` stays valid until then. */
enum http_event http_parser_feed(struct http_parser *parser, const char *bytes, size_t size, size_t *consumed);
const struct http_request *http_parser_request(const struct http_parser *parser);
int http_parser_error_status(const struct http_parser *parser); /* 400, 413, 414, 431, 501, 505 */

/* Forgets the answered request and gets ready for the next one of the connection. */
void http_parser_next(struct http_parser *parser);

/* True when bytes of a request have come that is not yet whole: for the header and body deadlines. */
bool http_parser_in_request(const struct http_parser *parser);

#endif
