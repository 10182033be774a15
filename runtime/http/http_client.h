/* A small blocking HTTP/1.1 client for `tandem chat`, benchmarks and tests: one connection, plain TCP, JSON in, JSON or
 * server-sent events out. Response parsing (llhttp) is sans-IO underneath. Not thread-safe; use one per thread. */
#ifndef TANDEM_HTTP_HTTP_CLIENT_H
#define TANDEM_HTTP_HTTP_CLIENT_H

#include <stdbool.h>
#include <stddef.h>

#include "runtime/base/buf.h"
#include "runtime/base/status.h"

struct http_client;

/* Connects to "http://HOST[:PORT][/BASE]" (port 80 unless given; IPv6 hosts in brackets). `api_key` may be NULL; it is
 * sent as a bearer token. STATUS_INVALID for a URL that is none, STATUS_IO, STATUS_TIMEOUT. */
enum status http_client_open(const char *url, const char *api_key, unsigned timeout_ms, struct http_client **client);
void http_client_close(struct http_client *client);

/* Sends a request for BASE + path. `body` NULL means GET, else POST with content type application/json. Reconnects when
 * the server closed an idle connection. Returns once the response's head is there; *http_status is its code. */
enum status http_client_request(struct http_client *client, const char *path, const char *body, size_t body_size,
                                int *http_status);

/* Reads the whole body (after a request) into `body`. STATUS_CLOSED when the connection ends before the body does. */
enum status http_client_body(struct http_client *client, struct buf *body);

/* Waits for the next event of a text/event-stream body and stores its data (comments are skipped). At the proper end of
 * the body returns STATUS_OK with *ended set; STATUS_CLOSED when the connection broke before it. */
enum status http_client_event(struct http_client *client, struct buf *data, bool *ended);

/* The socket, for a caller that polls or wants to shut it down from a signal handler (shutdown(2) makes waiting calls
 * return STATUS_CLOSED); -1 when not connected. */
int http_client_socket(const struct http_client *client);

/* Drops the connection (for instance to cancel a stream); the next request connects again. */
void http_client_drop(struct http_client *client);

#endif
