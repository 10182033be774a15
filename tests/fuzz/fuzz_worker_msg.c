/* Packets from a worker: what parses is encoded to the same bytes again. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/check.h"
#include "runtime/wire/worker_msg.h"

#define MAX_ROWS 64

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void same(const uint8_t *data, size_t size, const uint8_t *again, size_t again_size) {
    CHECK(size == again_size && memcmp(data, again, size) == 0, "a message of %zu bytes encodes to %zu", size,
          again_size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct worker_msg message;
    static struct step_result results[MAX_ROWS];
    static uint8_t again[MAX_ROWS * 256];
    if (size > 4096 || worker_msg_parse(data, size, MAX_ROWS, &message) != STATUS_OK) {
        return 0;
    }
    if (message.type == WORKER_MSG_STEP) {
        same(data, size, again, worker_msg_encode_step(message.epoch, message.step_id, again, sizeof again));
    } else if (message.type == WORKER_MSG_STEP_DONE || message.type == WORKER_MSG_RESULTS) {
        uint32_t n = message.n_results;
        for (uint32_t i = 0; i < n; i++) {
            worker_msg_next_result(&message, &results[i]);
        }
        CHECK(message.results_bytes == 0, "%zu bytes are left", message.results_bytes);
        size_t again_size =
            message.type == WORKER_MSG_RESULTS
                ? worker_msg_encode_results(message.epoch, message.step_id, results, n, again, sizeof again)
                : worker_msg_encode_done(message.epoch, message.step_id, message.device_us, results, n, again,
                                         sizeof again);
        same(data, size, again, again_size);
    } else {
        CHECK(strlen(message.text) < WORKER_MSG_TEXT_MAX, "the text is not ended");
    }
    return 0;
}
