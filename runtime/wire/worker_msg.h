/* Messages on the SOCK_SEQPACKET link between the engine and one worker. Little-endian, one message per packet.
 *
 *   engine -> worker   STEP       doorbell: steps up to step_id are committed in the ring
 *   worker -> engine   STEP_DONE  step_id, device time, and from rank 0 the results of the sampled rows in their order
 *   worker -> engine   RESULTS    from rank 0, before STEP_DONE: results of that step that find no room in it
 *   worker -> engine   ERROR      a text; the worker exits after it
 *   engine -> worker   ERROR      why the engine gives the group up; the worker exits
 *
 * Each starts with u32 type, u32 epoch, u64 step_id. A message of another epoch is dropped by its receiver. */
#ifndef TANDEM_WIRE_WORKER_MSG_H
#define TANDEM_WIRE_WORKER_MSG_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"
#include "runtime/base/step.h"

enum worker_msg_type {
    WORKER_MSG_STEP = 1,
    WORKER_MSG_STEP_DONE = 2,
    WORKER_MSG_ERROR = 3,
    WORKER_MSG_RESULTS = 4,
};

#define WORKER_MSG_TEXT_MAX 512
#define WORKER_MSG_MAX_RESULTS 1024 /* of one packet: it passes a socket whose buffer has the default size */

struct worker_msg {
    enum worker_msg_type type;
    uint32_t epoch;
    uint64_t step_id;
    uint32_t device_us;     /* STEP_DONE: time between the step's first and last operation */
    uint32_t n_results;     /* STEP_DONE, RESULTS */
    const uint8_t *results; /* likewise: packed, read with worker_msg_next_result; points into the packet */
    size_t results_bytes;
    char text[WORKER_MSG_TEXT_MAX]; /* ERROR, NUL-terminated */
};

/* The largest packet of a group that computes that many rows at once. */
size_t worker_msg_max_bytes(uint32_t max_rows);

/* Encodes into `out`; returns the size. `results`, at most WORKER_MSG_MAX_RESULTS, are packed: only n_top entries of
 * each row travel. */
size_t worker_msg_encode_step(uint32_t epoch, uint64_t step_id, void *out, size_t capacity);
size_t worker_msg_encode_done(uint32_t epoch, uint64_t step_id, uint32_t device_us, const struct step_result *results,
                              uint32_t n_results, void *out, size_t capacity);
size_t worker_msg_encode_results(uint32_t epoch, uint64_t step_id, const struct step_result *results,
                                 uint32_t n_results, void *out, size_t capacity);
size_t worker_msg_encode_error(uint32_t epoch, uint64_t step_id, const char *text, void *out, size_t capacity);

/* Parses one packet completely (results included); STATUS_INVALID names what is wrong. */
enum status worker_msg_parse(const void *bytes, size_t size, uint32_t max_rows, struct worker_msg *message);

/* Takes the next result off a parsed message; call n_results times. */
void worker_msg_next_result(struct worker_msg *message, struct step_result *result);

#endif
