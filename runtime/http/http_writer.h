/* HTTP/1.1 responses and server-sent events, appended to a buf. */
#ifndef TANDEM_HTTP_HTTP_WRITER_H
#define TANDEM_HTTP_HTTP_WRITER_H

#include <stdbool.h>

#include "runtime/base/buf.h"

/* "OK", "Too Many Requests", ...; "Unknown" for others. */
const char *http_reason(int status);

/* A whole response. `extra_headers` is "" or lines that each end in CRLF. With `head_only` (a HEAD request) the body is
 * left out but counted. */
void http_write_response(struct buf *out, int status, const char *content_type, const char *extra_headers,
                         const void *body, size_t body_size, bool keep_alive, bool head_only);

/* The head of an event stream: 200, text/event-stream, chunked, not cached, not buffered by proxies. */
void http_write_stream_head(struct buf *out, const char *extra_headers, bool keep_alive);

/* One event "data: PAYLOAD\n\n" as one chunk. `payload` must hold no line break (JSON from json_writer does not). */
void http_write_event(struct buf *out, const void *payload, size_t size);

/* A comment line ": TEXT\n\n" as one chunk: keeps idle connections open, ignored by clients. */
void http_write_comment(struct buf *out, const char *text);

/* The last chunk: the stream ended as it should. A failed stream never gets one; its connection is closed instead. */
void http_write_stream_end(struct buf *out);

#endif
