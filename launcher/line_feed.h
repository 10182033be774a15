/* Lines of standard input, read by a thread of their own: waiting for them must not keep anyone from watching the
 * workers. Bounded: the reader waits while nobody takes. */
#ifndef TANDEM_LAUNCHER_LINE_FEED_H
#define TANDEM_LAUNCHER_LINE_FEED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "runtime/base/status.h"

struct line_feed;

/* Starts reading `file`. */
enum status line_feed_start(FILE *file, struct line_feed **feed);

/* Readable when a line or the end has come since the last line_feed_take. */
int line_feed_fd(const struct line_feed *feed);

/* Takes the next line, NUL-terminated, to be freed by the caller. False when there is none now; then *ended says
 * whether there will be one. */
bool line_feed_take(struct line_feed *feed, char **text, size_t *size, uint64_t *index, bool *ended);

/* False when the file could not be read to its end. Valid once ended. */
bool line_feed_was_whole(const struct line_feed *feed);

/* Frees a feed that has ended; one that still reads is left to the end of the process. */
void line_feed_free(struct line_feed *feed);

#endif
