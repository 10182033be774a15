/* Control messages over a real socket. The first byte says how the rest is sent: as it is, or laid over a message of
 * this build; its second bit adds a descriptor. What is received has ended texts and numbers in range. */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/channel.h"
#include "runtime/base/check.h"
#include "runtime/wire/control_msg.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define ENDED(text) CHECK(memchr((text), '\0', sizeof(text)) != NULL, "a text is not ended")

static void check_texts(const struct control_msg *message) {
    if (message->type == CONTROL_INIT) {
        ENDED(message->body.worker.model_dir);
        ENDED(message->body.worker.backend);
        ENDED(message->body.frontend.served_model_name);
        ENDED(message->body.frontend.api_key_file);
        ENDED(message->body.frontend.tokenizer_dir);
    } else if (message->type == CONTROL_READY || message->type == CONTROL_GROUP_UP) {
        ENDED(message->body.ready.device_name);
        ENDED(message->body.ready.comm_name);
    } else if (message->type == CONTROL_ERROR || message->type == CONTROL_GROUP_DOWN) {
        ENDED(message->body.text);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int pair[2] = {-1, -1};
    static struct control_msg sent, got;
    if (pair[0] < 0) {
        CHECK(channel_pair(pair) == STATUS_OK, "%s", status_text());
    }
    if (size < 2 || size > 4096) {
        return 0;
    }
    const void *bytes = data + 1;
    size_t n = size - 1;
    if ((data[0] & 1) != 0) {
        memset(&sent, 'x', sizeof sent);
        sent.magic = CONTROL_MAGIC;
        sent.bytes = sizeof sent;
        size_t skip = 8; /* magic and bytes stay */
        memcpy((char *)&sent + skip, bytes, n < sizeof sent - skip ? n : sizeof sent - skip);
        bytes = &sent;
        n = sizeof sent;
    }
    size_t n_sent = (data[0] & 2) != 0;
    CHECK(channel_send(pair[0], bytes, n, &pair[0], n_sent) == STATUS_OK, "%s", status_text());
    int fds[CHANNEL_MAX_FDS];
    uint32_t n_fds;
    enum status status = control_receive(pair[1], &got, fds, &n_fds, MSG_DONTWAIT);
    CHECK(status == STATUS_OK || (status == STATUS_INTERNAL && n_fds == 0), "%s", status_text());
    if (status == STATUS_OK) {
        CHECK(got.type >= CONTROL_INIT && got.type <= CONTROL_ERROR && got.rank < CONTROL_MAX_WORLD &&
                  got.id_bytes <= CONTROL_COMM_ID_BYTES && n_fds == n_sent,
              "type %u, rank %u", got.type, got.rank);
        check_texts(&got);
    }
    for (uint32_t i = 0; i < n_fds; i++) {
        close(fds[i]);
    }
    return 0;
}
