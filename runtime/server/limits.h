/* What a client may take of the front-end's time and memory. */
#ifndef TANDEM_SERVER_LIMITS_H
#define TANDEM_SERVER_LIMITS_H

#include <stddef.h>
#include <stdint.h>

struct server_limits {
    uint32_t max_connections; /* more are answered 503 and closed */
    uint32_t max_requests;    /* per connection; then it is closed */
    uint32_t header_ms;       /* from a request's first byte to the end of its head */
    uint32_t body_grace_ms;   /* after that a body must have come at body_bytes_per_s on average */
    uint32_t body_bytes_per_s;
    uint32_t body_ms;         /* from the end of the head to the end of the body */
    uint32_t idle_ms;         /* between requests */
    uint32_t stall_ms;        /* a client that takes no byte that long loses its connection */
    uint32_t linger_ms;       /* a closed connection's unread bytes are drained that long, so that the reply arrives */
    uint32_t ping_ms;         /* an event stream without an event that long gets a comment */
    size_t output_bytes;      /* unsent bytes of a connection; above it its tokens wait in the journal */
    size_t body_total_bytes;  /* bodies of all connections together */
    size_t inline_body_bytes; /* longer bodies are parsed and tokenized on the worker pool */
    uint32_t max_parsing;     /* of those at a time; more are refused with 429 */
};

static inline struct server_limits server_limits_default(void) {
    return (struct server_limits){
        .max_connections = 10000,
        .max_requests = 1000,
        .header_ms = 10000,
        .body_grace_ms = 10000,
        .body_bytes_per_s = 1024,
        .body_ms = 120000,
        .idle_ms = 75000,
        .stall_ms = 30000,
        .linger_ms = 2000,
        .ping_ms = 15000,
        .output_bytes = 1u << 20,
        .body_total_bytes = 256u << 20,
        .inline_body_bytes = 16u << 10,
        .max_parsing = 64,
    };
}

#endif
