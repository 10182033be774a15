/* Connections between a group's workers and an engine: made here, handed over, kept by neither. */
#define _GNU_SOURCE /* O_CLOEXEC */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "launcher/group_internal.h"
#include "runtime/base/channel.h"
#include "runtime/base/check.h"
#include "runtime/wire/step_ring.h"

static enum status send_link(struct group *group, uint32_t rank, int link, int ring_fd) {
    struct control_msg *message = group_message(group, CONTROL_LINK);
    int fds[2] = {link, ring_fd};
    enum status status = group_send(group, rank, message, fds, 2);
    free(message);
    return status;
}

/* Workers get the ring by a descriptor that cannot write. */
static enum status open_read_only(int fd, int *out) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    *out = open(path, O_RDONLY | O_CLOEXEC);
    if (*out < 0) {
        FAIL_ERRNO(STATUS_IO, "step ring: opening it for reading");
    }
    return STATUS_OK;
}

static enum status make_links(struct group *group, int *links, uint32_t *n_links, int *ring_fd, int *reader_fd) {
    TRY(memfd_make("tandem-ring", step_ring_bytes(group->config.plan->init.max_body_bytes), ring_fd));
    TRY(open_read_only(*ring_fd, reader_fd));
    for (uint32_t rank = 0; rank < group->world; rank++) {
        int pair[2];
        TRY(channel_pair(pair));
        links[(*n_links)++] = pair[0];
        enum status status = send_link(group, rank, pair[1], *reader_fd);
        close(pair[1]);
        TRY(status);
    }
    return STATUS_OK;
}

enum status group_link(struct group *group, int *links, int *ring_fd, uint32_t *epoch, uint64_t now_ns) {
    CHECK(group->state == GROUP_UP, "a group in state %d cannot be linked", group->state);
    uint32_t n_links = 0;
    int reader_fd = -1;
    *ring_fd = -1;
    *epoch = ++group->epoch;
    enum status status = make_links(group, links, &n_links, ring_fd, &reader_fd);
    if (reader_fd >= 0) {
        close(reader_fd);
    }
    if (status == STATUS_OK) {
        return STATUS_OK;
    }
    for (uint32_t i = 0; i < n_links; i++) {
        close(links[i]);
    }
    if (*ring_fd >= 0) {
        close(*ring_fd);
        *ring_fd = -1;
    }
    snprintf(group->text, sizeof group->text, "cannot link the workers: %s: %s", status_name(status), status_text());
    group_lose(group, now_ns);
    return status;
}
