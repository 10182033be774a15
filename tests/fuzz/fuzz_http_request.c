/* The request parser: any bytes, cut at any place, must give the same outcome as in one piece. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/check.h"
#include "runtime/base/hash.h"
#include "runtime/http/http_parser.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Runs the bytes in pieces of `step` and returns a digest of everything a caller could see. */
static uint64_t digest(const char *bytes, size_t size, size_t step) {
    struct http_parser *parser = http_parser_create();
    uint64_t hash = 0;
    size_t at = 0;
    bool bad = false;
    while (at < size && !bad) {
        size_t piece = size - at < step ? size - at : step;
        size_t consumed = 0;
        enum http_event event = http_parser_feed(parser, bytes + at, piece, &consumed);
        CHECK(consumed <= piece, "%zu of %zu bytes", consumed, piece);
        CHECK(consumed > 0 || event == HTTP_REQUEST_DONE || event == HTTP_BAD, "no progress");
        at += consumed;
        const struct http_request *request = http_parser_request(parser);
        if (event == HTTP_REQUEST_DONE) {
            hash = hash64(hash, request->path, strlen(request->path) + 1);
            hash = hash64(hash, request->query, strlen(request->query) + 1);
            hash = hash64(hash, request->body, request->body_size);
            for (size_t i = 0; i < request->n_headers; i++) {
                hash = hash64(hash, request->headers[i].name, strlen(request->headers[i].name) + 1);
                hash = hash64(hash, request->headers[i].value, strlen(request->headers[i].value) + 1);
            }
            hash = hash64(hash, &at, sizeof at);
            http_parser_next(parser);
        } else if (event == HTTP_BAD) {
            int status = http_parser_error_status(parser);
            hash = hash64(hash, &status, sizeof status);
            bad = true;
        }
    }
    http_parser_destroy(parser);
    return hash;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1 || size > 4096) {
        return 0;
    }
    const char *bytes = (const char *)data + 1;
    uint64_t whole = digest(bytes, size - 1, size);
    uint64_t pieces = digest(bytes, size - 1, 1 + data[0] % 32u);
    CHECK(whole == pieces, "the outcome depends on how the bytes arrive");
    return 0;
}
