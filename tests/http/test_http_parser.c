#include "runtime/http/http_parser.h"
#include "tests/harness/test.h"

/* What became of one input, fed in pieces of `step` bytes. */
struct outcome {
    enum http_event event;
    int error_status;
    char path[64];
    char body[64];
    size_t consumed;
    bool keep_alive;
};

static struct outcome run(const char *bytes, size_t size, size_t step) {
    struct http_parser *parser = http_parser_create();
    struct outcome outcome = {.event = HTTP_NEED_MORE};
    size_t at = 0;
    while (at < size && (outcome.event == HTTP_NEED_MORE || outcome.event == HTTP_HEAD_DONE)) {
        size_t piece = size - at < step ? size - at : step;
        size_t end = at + piece;
        while (at < end && (outcome.event == HTTP_NEED_MORE || outcome.event == HTTP_HEAD_DONE)) {
            size_t consumed;
            outcome.event = http_parser_feed(parser, bytes + at, end - at, &consumed);
            at += consumed;
        }
    }
    outcome.consumed = at;
    outcome.error_status = http_parser_error_status(parser);
    const struct http_request *request = http_parser_request(parser);
    if (outcome.event == HTTP_REQUEST_DONE) {
        snprintf(outcome.path, sizeof outcome.path, "%s", request->path);
        snprintf(outcome.body, sizeof outcome.body, "%.*s", (int)request->body_size,
                 request->body != NULL ? request->body : "");
        outcome.keep_alive = request->keep_alive;
    }
    http_parser_destroy(parser);
    return outcome;
}

/* The vectors of common smuggling attacks: 'A' must be accepted with that body, otherwise the status is given. {P}, {G}
 * and so on stand for the usual beginnings. */
static const struct {
    const char *name;
    const char *bytes;
    size_t size;
    int error_status; /* 0: accepted */
    const char *body;
} vectors[] = {
#define P "POST / HTTP/1.1\r\nHost: a\r\n"
#define G "GET / HTTP/1.1\r\nHost: a\r\n"
#define T "Transfer-Encoding: chunked\r\n"
#define L "Content-Length: 5\r\n"
#define V(name, bytes, error_status, body)                                                                             \
    { name, bytes, sizeof(bytes) - 1, error_status, body }
    V("length and chunked", P "Content-Length: 6\r\n" T "\r\n0\r\n\r\nG", 400, ""),
    V("two lengths that differ", P L "Content-Length: 6\r\n\r\nhello!", 400, ""),
    V("two equal lengths", P L L "\r\nhello", 400, ""),
    V("length with a sign", P "Content-Length: +5\r\n\r\nhello", 400, ""),
    V("length list", P "Content-Length: 5, 5\r\n\r\nhello", 400, ""),
    V("unknown encoding", P "Transfer-Encoding: xchunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 400, ""),
    V("chunked is not last", P "Transfer-Encoding: chunked, identity\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 400, ""),
    V("gzip below chunked", P "Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 400, ""),
    V("chunked in 1.0", "POST / HTTP/1.0\r\nHost: a\r\n" T "\r\n5\r\nhello\r\n0\r\n\r\n", 400, ""),
    V("blank before colon", P "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400, ""),
    V("bare LF lines", "POST / HTTP/1.1\nHost: a\nContent-Length: 5\n\nhello", 400, ""),
    V("bare CR separator", P "X-Abc:\rx" T "\r\n1\r\nA\r\n0\r\n\r\n", 400, ""),
    V("blank before the first header", "POST / HTTP/1.1\r\n Host: a\r\n" L "\r\nhello", 400, ""),
    V("blank before a length", P " " L "\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""),
    V("folded line", P "X: 1\r\n 2\r\n" L "\r\nhello", 400, ""),
    V("chunk size 0x5", P T "\r\n0x5\r\nhello\r\n0\r\n\r\n", 400, ""),
    V("chunk size with blank", P T "\r\n5 \r\nhello\r\n0\r\n\r\n", 400, ""),
    V("chunk extension", P T "\r\n5;a=b\r\nhello\r\n0\r\n\r\n", 0, "hello"),
    V("chunk extension ends in LF", P T "\r\n5;a\nhello\r\n0\r\n\r\n", 400, ""),
    V("no CRLF after chunk data", P T "\r\n5\r\nhelloXX0\r\n\r\n", 400, ""),
    V("chunk size ends in LF", P T "\r\n5\nhello\r\n0\r\n\r\n", 400, ""),
    V("chunk size overflows", P T "\r\n10000000000000005\r\nhello\r\n0\r\n\r\n", 400, ""),
    V("CR X after the head", G "\rXGET /y HTTP/1.1\r\nHost: b\r\n\r\n", 400, ""),
    V("NUL in a value", G "X: a\0b\r\n\r\n", 400, ""),
    V("no Host", "GET / HTTP/1.1\r\n\r\n", 400, ""),
    V("two Hosts", G "Host: b\r\n\r\n", 400, ""),
    V("HTTP/1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", 400, ""),
    V("control byte in the target",
      "GET /a\x01"
      "b HTTP/1.1\r\nHost: a\r\n\r\n",
      400, ""),
    V("body of a GET, next request behind it", G "Content-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\nHost: a\r\n\r\n", 0,
      "abc"),
    V("offer to upgrade is ignored", G "Connection: Upgrade\r\nUpgrade: h2c\r\n\r\nGET /2 HTTP/1.1\r\n", 0, ""),
    V("trailers", P T "\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n", 400, ""),
    V("length beyond the limit", P "Content-Length: 33554433\r\n\r\n", 413, ""),
    V("absolute form of another host", "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""),
    V("absolute form", "GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", 0, ""),
    V("empty line first", "\r\n" G "\r\n", 0, ""),
    V("header name is no token", G "A@B: 1\r\n\r\n", 400, ""),
    V("unknown expectation", G "Expect: money\r\n\r\n", 417, ""),
    V("length over two bodies", P L "\r\nhelloGARBAGE", 0, "hello"),
};

static void check_vector(size_t index, size_t step) {
    struct outcome outcome = run(vectors[index].bytes, vectors[index].size, step);
    if (vectors[index].error_status == 0) {
        if (outcome.event != HTTP_REQUEST_DONE || strcmp(outcome.body, vectors[index].body) != 0) {
            test_fail(__FILE__, __LINE__, "%s in steps of %zu: event %d, body \"%s\", %s", vectors[index].name, step,
                      outcome.event, outcome.body, status_text());
        }
    } else if (outcome.event != HTTP_BAD || outcome.error_status != vectors[index].error_status) {
        test_fail(__FILE__, __LINE__, "%s in steps of %zu: event %d, status %d", vectors[index].name, step,
                  outcome.event, outcome.error_status);
    }
}

TEST(smuggling_vectors_at_every_split) {
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        for (size_t step = 1; step <= vectors[i].size; step++) {
            check_vector(i, step);
        }
    }
}

TEST(request_fields_are_cut_out) {
    const char *text = "POST /v1/x?a=b%20c HTTP/1.1\r\nHost: h:1\r\nCONTENT-type:\t text/plain \r\n"
                       "Content-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\nokNEXT";
    struct http_parser *parser = http_parser_create();
    size_t consumed;
    size_t size = strlen(text);
    EXPECT(!http_parser_in_request(parser));
    EXPECT_EQ(http_parser_feed(parser, text, size, &consumed), HTTP_HEAD_DONE);
    const struct http_request *request = http_parser_request(parser);
    EXPECT_EQ(request->method, HTTP_METHOD_POST);
    EXPECT_TEXT(request->path, "/v1/x");
    EXPECT_TEXT(request->query, "a=b%20c");
    EXPECT_TEXT(http_request_header(request, "content-type"), "text/plain");
    EXPECT(http_request_header(request, "accept") == NULL);
    EXPECT(request->expect_continue);
    EXPECT(!request->keep_alive);
    EXPECT_EQ(request->minor_version, 1);
    EXPECT(http_parser_in_request(parser));
    size_t more;
    EXPECT_EQ(http_parser_feed(parser, text + consumed, size - consumed, &more), HTTP_REQUEST_DONE);
    EXPECT_EQ(consumed + more, size - 4);
    EXPECT_EQ(request->body_size, 2);
    EXPECT_TEXT(request->body, "ok");
    http_parser_destroy(parser);
}

TEST(one_connection_carries_many_requests) {
    const char *text = "POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
                       "GET /2 HTTP/1.0\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n";
    struct http_parser *parser = http_parser_create();
    const char *paths[] = {"/1", "/2", "/3"};
    bool keeps[] = {true, false, true};
    size_t at = 0;
    for (int i = 0; i < 3; i++) {
        enum http_event event;
        do {
            size_t consumed;
            event = http_parser_feed(parser, text + at, strlen(text) - at, &consumed);
            at += consumed;
        } while (event == HTTP_HEAD_DONE || event == HTTP_NEED_MORE);
        EXPECT_EQ(event, HTTP_REQUEST_DONE);
        EXPECT_TEXT(http_parser_request(parser)->path, paths[i]);
        EXPECT_EQ(http_parser_request(parser)->keep_alive, keeps[i]);
        http_parser_next(parser);
    }
    EXPECT_EQ(at, strlen(text));
    http_parser_destroy(parser);
}

/* Its halves may come apart. */
TEST(an_empty_line_begins_no_request) {
    struct http_parser *parser = http_parser_create();
    size_t consumed;
    EXPECT_EQ(http_parser_feed(parser, "\r", 1, &consumed), HTTP_NEED_MORE);
    EXPECT(!http_parser_in_request(parser));
    EXPECT_EQ(http_parser_feed(parser, "\n", 1, &consumed), HTTP_NEED_MORE);
    EXPECT(!http_parser_in_request(parser));
    EXPECT_EQ(http_parser_feed(parser, "G", 1, &consumed), HTTP_NEED_MORE);
    EXPECT(http_parser_in_request(parser));
    http_parser_destroy(parser);
}

TEST(limits_have_their_own_status) {
    struct buf text = {0};
    buf_append_text(&text, "GET /");
    memset(buf_reserve(&text, HTTP_MAX_TARGET_BYTES), 'a', HTTP_MAX_TARGET_BYTES);
    text.size += HTTP_MAX_TARGET_BYTES;
    EXPECT_EQ(run(text.data, text.size, 4096).error_status, 414);
    text.size = 0;
    buf_append_text(&text, "GET / HTTP/1.1\r\nHost: a\r\n");
    for (int i = 0; i < HTTP_MAX_HEADERS; i++) {
        buf_append_text(&text, "a: b\r\n");
    }
    buf_append_text(&text, "\r\n");
    EXPECT_EQ(run(text.data, text.size, 4096).error_status, 431);
    text.size = 0;
    buf_append_text(&text, "GET / HTTP/1.1\r\nHost: a\r\nX: ");
    memset(buf_reserve(&text, HTTP_MAX_HEAD_BYTES), 'a', HTTP_MAX_HEAD_BYTES);
    text.size += HTTP_MAX_HEAD_BYTES;
    EXPECT_EQ(run(text.data, text.size, 4096).error_status, 431);
    buf_free(&text);
    EXPECT_EQ(run("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 27, 27).event, HTTP_BAD);
}
