/* What a server of the stream protocol grants its clients; the configuration's section `tcp`. */
#ifndef TANDEM_WIRE_TSP_LIMITS_H
#define TANDEM_WIRE_TSP_LIMITS_H

#include <stdint.h>

struct tsp_limits {
    uint32_t resume_window_ms; /* a request lives that long without a connection, its answer without an ACK */
    uint32_t ping_ms;          /* silence after which PING is sent, and after which again the connection is closed */
    uint32_t max_connections;
    uint32_t max_streams;       /* of a connection, not acknowledged */
    uint32_t max_frame_bytes;   /* of a payload that comes in */
    uint32_t send_buffer_bytes; /* of a connection; above it its streams wait in the journal */
};

static inline struct tsp_limits tsp_limits_default(void) {
    return (struct tsp_limits){.resume_window_ms = 60000,
                               .ping_ms = 20000,
                               .max_connections = 1024,
                               .max_streams = 1024,
                               .max_frame_bytes = 4u << 20,
                               .send_buffer_bytes = 1u << 20};
}

#endif
