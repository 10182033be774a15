#define _GNU_SOURCE
#include "runtime/base/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/check.h"

enum status channel_pair(int fds[2]) {
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0) {
        FAIL_ERRNO(STATUS_IO, "socketpair");
    }
    return STATUS_OK;
}

union control {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(CHANNEL_MAX_FDS * sizeof(int))];
};

enum status channel_send(int fd, const void *bytes, size_t size, const int *fds, size_t fd_count) {
    CHECK(size > 0 && fd_count <= CHANNEL_MAX_FDS, "%zu bytes, %zu descriptors", size, fd_count);
    struct iovec part = {.iov_base = (void *)(size_t)bytes, .iov_len = size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    union control control;
    if (fd_count > 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
        memcpy(CMSG_DATA(rights), fds, fd_count * sizeof(int));
    }
    ssize_t sent;
    do {
        sent = sendmsg(fd, &message, MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    if (sent >= 0) {
        return STATUS_OK;
    }
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS) {
        FAIL(STATUS_BUSY, "the peer does not read");
    }
    if (errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN) {
        FAIL(STATUS_CLOSED, "the peer is gone");
    }
    FAIL_ERRNO(STATUS_IO, "sendmsg");
}

static void close_all(const int *fds, size_t count) {
    for (size_t i = 0; i < count; i++) {
        close(fds[i]);
    }
}

/* Copies the descriptors of every SCM_RIGHTS part into `got` (room for CHANNEL_MAX_FDS); returns their number. */
static size_t take_fds(struct msghdr *message, int *got) {
    size_t count = 0;
    for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part != NULL; part = CMSG_NXTHDR(message, part)) {
        if (part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_RIGHTS) {
            size_t here = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            memcpy(got + count, CMSG_DATA(part), here * sizeof(int));
            count += here;
        }
    }
    return count;
}

enum status channel_receive(int fd, void *bytes, size_t *size, int *fds, size_t *fd_count, int flags) {
    struct iovec part = {.iov_base = bytes, .iov_len = *size};
    union control control;
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    ssize_t got;
    do {
        got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | flags);
    } while (got < 0 && errno == EINTR);
    size_t room = fd_count != NULL ? *fd_count : 0;
    *size = 0;
    if (fd_count != NULL) {
        *fd_count = 0;
    }
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        FAIL(STATUS_BUSY, "nothing to read");
    }
    if (got < 0 && errno != ECONNRESET) {
        FAIL_ERRNO(STATUS_IO, "recvmsg");
    }
    if (got <= 0) {
        FAIL(STATUS_CLOSED, "the peer is gone");
    }
    int taken[CHANNEL_MAX_FDS];
    size_t count = take_fds(&message, taken);
    if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0 || count > room) {
        close_all(taken, count);
        FAIL(STATUS_INVALID, "a message of a peer process does not fit");
    }
    *size = (size_t)got;
    if (count > 0) {
        memcpy(fds, taken, count * sizeof(int));
        *fd_count = count;
    }
    return STATUS_OK;
}

enum status memfd_make(const char *name, size_t size, int *fd) {
    int made = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (made < 0) {
        FAIL_ERRNO(STATUS_IO, "memfd_create(%s)", name);
    }
    if (ftruncate(made, (off_t)size) != 0 || fcntl(made, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) != 0) {
        enum status status = status_fail_errno(STATUS_IO, "memfd %s of %zu bytes", name, size);
        close(made);
        return status;
    }
    *fd = made;
    return STATUS_OK;
}

enum status memfd_map(int fd, size_t size, int writable, void **memory) {
    struct stat info;
    if (fstat(fd, &info) != 0) {
        FAIL_ERRNO(STATUS_IO, "fstat of a memfd");
    }
    if (size == 0 || (uint64_t)info.st_size < size) {
        FAIL(STATUS_INVALID, "a memfd holds %lld bytes, %zu are needed", (long long)info.st_size, size);
    }
    void *mapped = mmap(NULL, size, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) {
        FAIL_ERRNO(STATUS_IO, "mmap of %zu bytes", size);
    }
    madvise(mapped, size, MADV_DONTDUMP); /* holds prompts */
    *memory = mapped;
    return STATUS_OK;
}
