#include "launcher/line_feed.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "launcher/lines.h"
#include "runtime/base/alloc.h"
#include "runtime/base/check.h"

#define FEED_LINES 64

struct feed_line {
    char *text;
    size_t size;
    uint64_t index;
};

struct line_feed {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t taken;
    int wake_fd;
    FILE *file;
    struct feed_line lines[FEED_LINES];
    uint32_t first, count;
    bool ended;
    bool whole;
};

static void wake(struct line_feed *feed) {
    uint64_t one = 1;
    CHECK(write(feed->wake_fd, &one, sizeof one) == sizeof one, "an eventfd does not take a count");
}

static void put(struct line_feed *feed, const struct feed_line *line) {
    pthread_mutex_lock(&feed->mutex);
    while (feed->count == FEED_LINES) {
        pthread_cond_wait(&feed->taken, &feed->mutex);
    }
    feed->lines[(feed->first + feed->count++) % FEED_LINES] = *line;
    pthread_mutex_unlock(&feed->mutex);
    wake(feed);
}

static void *read_lines(void *argument) {
    struct line_feed *feed = argument;
    struct line_reader reader = {.file = feed->file};
    const char *text;
    size_t size;
    while (line_read(&reader, &text, &size)) {
        struct feed_line line = {.text = xstrndup(text, size), .size = size, .index = reader.index};
        put(feed, &line);
    }
    bool whole = ferror(feed->file) == 0;
    free(reader.line);
    pthread_mutex_lock(&feed->mutex);
    feed->ended = true;
    feed->whole = whole;
    pthread_mutex_unlock(&feed->mutex);
    wake(feed);
    return NULL;
}

enum status line_feed_start(FILE *file, struct line_feed **out) {
    struct line_feed *feed = xcalloc(1, sizeof *feed);
    feed->file = file;
    feed->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_init(&feed->mutex, NULL);
    pthread_cond_init(&feed->taken, NULL);
    if (feed->wake_fd < 0 || pthread_create(&feed->thread, NULL, read_lines, feed) != 0) {
        free(feed);
        FAIL_ERRNO(STATUS_IO, "cannot read standard input in a thread");
    }
    *out = feed;
    return STATUS_OK;
}

int line_feed_fd(const struct line_feed *feed) {
    return feed->wake_fd;
}

bool line_feed_take(struct line_feed *feed, char **text, size_t *size, uint64_t *index, bool *ended) {
    uint64_t count;
    ssize_t ignored = read(feed->wake_fd, &count, sizeof count); /* nothing to read is fine */
    (void)ignored;
    pthread_mutex_lock(&feed->mutex);
    bool got = feed->count > 0;
    *ended = !got && feed->ended;
    if (got) {
        struct feed_line *line = &feed->lines[feed->first];
        *text = line->text;
        *size = line->size;
        *index = line->index;
        feed->first = (feed->first + 1) % FEED_LINES;
        feed->count--;
        pthread_cond_signal(&feed->taken);
    }
    pthread_mutex_unlock(&feed->mutex);
    return got;
}

bool line_feed_was_whole(const struct line_feed *feed) {
    return feed->whole;
}

void line_feed_free(struct line_feed *feed) {
    pthread_mutex_lock(&feed->mutex);
    bool ended = feed->ended && feed->count == 0;
    pthread_mutex_unlock(&feed->mutex);
    if (!ended) {
        return;
    }
    pthread_join(feed->thread, NULL);
    pthread_mutex_destroy(&feed->mutex);
    pthread_cond_destroy(&feed->taken);
    close(feed->wake_fd);
    free(feed);
}
