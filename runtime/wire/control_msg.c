#include "runtime/wire/control_msg.h"

#include <assert.h>
#include <stddef.h>
#include <unistd.h>

#include "runtime/base/channel.h"

enum status control_send(int fd, struct control_msg *message, const int *fds, uint32_t n_fds) {
    message->magic = CONTROL_MAGIC;
    message->bytes = sizeof *message;
    return channel_send(fd, message, sizeof *message, fds, n_fds);
}

/* An INIT is ended as both of the bodies it may hold: texts of the same place have the same size, and those that only
 * the front-end has end behind the worker's body. */
static_assert(offsetof(struct worker_init, model_dir) == offsetof(struct frontend_init, model_dir) &&
                  offsetof(struct worker_init, backend) == offsetof(struct frontend_init, served_model_name) &&
                  sizeof(((struct worker_init *)0)->backend) == sizeof(((struct frontend_init *)0)->served_model_name),
              "texts of both INITs lie at the same places");
static_assert(offsetof(struct frontend_init, api_key_file) + CONTROL_PATH_MAX > sizeof(struct worker_init),
              "the end of api_key_file lies behind a worker's INIT");

#define END_TEXT(text) ((text)[sizeof(text) - 1] = '\0')

static void end_texts(struct control_msg *message) {
    switch ((enum control_type)message->type) {
    case CONTROL_INIT:
        END_TEXT(message->body.frontend.model_dir);
        END_TEXT(message->body.frontend.served_model_name);
        END_TEXT(message->body.frontend.api_key_file);
        END_TEXT(message->body.frontend.tokenizer_dir);
        break;
    case CONTROL_READY:
    case CONTROL_GROUP_UP:
        END_TEXT(message->body.ready.device_name);
        END_TEXT(message->body.ready.comm_name);
        break;
    case CONTROL_GROUP_DOWN:
    case CONTROL_ERROR: END_TEXT(message->body.text); break;
    default: break;
    }
}

static enum status check(const struct control_msg *message, size_t size) {
    if (size != sizeof *message || message->magic != CONTROL_MAGIC || message->bytes != sizeof *message) {
        FAIL(STATUS_INTERNAL, "a control message of %zu bytes is not of this build", size);
    }
    if (message->type < CONTROL_INIT || message->type > CONTROL_ERROR) {
        FAIL(STATUS_INTERNAL, "a control message of unknown type %u", message->type);
    }
    if (message->rank >= CONTROL_MAX_WORLD) {
        FAIL(STATUS_INTERNAL, "control message %u: rank is %u, below %u", message->type, message->rank,
             CONTROL_MAX_WORLD);
    }
    if (message->id_bytes > CONTROL_COMM_ID_BYTES) {
        FAIL(STATUS_INTERNAL, "control message %u: id_bytes is %u, at most %u", message->type, message->id_bytes,
             CONTROL_COMM_ID_BYTES);
    }
    return STATUS_OK;
}

enum status control_receive(int fd, struct control_msg *message, int *fds, uint32_t *n_fds, int flags) {
    size_t size = sizeof *message;
    size_t count = CHANNEL_MAX_FDS;
    *n_fds = 0;
    enum status status = channel_receive(fd, message, &size, fds, &count, flags);
    if (status == STATUS_INVALID) {
        return status_prefix(STATUS_INTERNAL, "control message");
    }
    TRY(status);
    status = check(message, size);
    if (status != STATUS_OK) {
        for (size_t i = 0; i < count; i++) {
            close(fds[i]);
        }
        return status;
    }
    end_texts(message);
    *n_fds = (uint32_t)count;
    return STATUS_OK;
}
