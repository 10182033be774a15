/* Messages between the processes of one host: SOCK_SEQPACKET pairs, which keep message borders and carry
 * descriptors, and memfds, which outlive the process that fills them. */
#ifndef TANDEM_BASE_CHANNEL_H
#define TANDEM_BASE_CHANNEL_H

#include <stddef.h>

#include "runtime/base/status.h"

#define CHANNEL_MAX_FDS 64

/* A connected pair; both ends close on exec and block. */
enum status channel_pair(int fds[2]);

/* Sends one message with `fd_count` descriptors (copies; the caller keeps its own). STATUS_BUSY when the socket is
 * non-blocking and full, STATUS_CLOSED when the peer is gone. */
enum status channel_send(int fd, const void *bytes, size_t size, const int *fds, size_t fd_count);

/* Receives one message into `bytes`. `*size` is the capacity before and the message's size after; `*fd_count`
 * likewise for descriptors (which close on exec and belong to the caller; `fds` may be NULL when *fd_count is 0).
 * STATUS_CLOSED at the peer's end, STATUS_BUSY when non-blocking and empty, STATUS_INVALID when the message or its
 * descriptors did not fit (the message is gone, its descriptors closed). `flags`: 0 or MSG_DONTWAIT. */
enum status channel_receive(int fd, void *bytes, size_t *size, int *fds, size_t *fd_count, int flags);

/* A sealed-size memfd of `size` zero bytes, close-on-exec, left out of core dumps once mapped by memfd_map. */
enum status memfd_make(const char *name, size_t size, int *fd);

/* Maps the whole memfd, after checking that it holds at least `size` bytes. `writable` 0 maps it read-only.
 * Unmap with munmap(*memory, size). */
enum status memfd_map(int fd, size_t size, int writable, void **memory);

#endif
