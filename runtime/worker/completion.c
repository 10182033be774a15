#include "runtime/worker/completion.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/log.h"
#include "runtime/wire/worker_msg.h"

struct completion {
    struct completion_config config;
    pthread_t thread;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t submitted_more;
    uint64_t submitted;
    uint64_t reported;
    bool stopping;
    int link_fd;
    uint32_t epoch;
    enum status status;
    char text[512];
    void *packet; /* the thread's own */
    size_t packet_bytes;
};

/* False when the thread is to end. */
static bool wait_for_work(struct completion *completion) {
    pthread_mutex_lock(&completion->lock);
    while (completion->submitted == completion->reported && !completion->stopping) {
        pthread_cond_wait(&completion->submitted_more, &completion->lock);
    }
    bool work = completion->submitted > completion->reported;
    pthread_mutex_unlock(&completion->lock);
    return work;
}

/* A link that is gone takes no reports; the loop sees its end by itself. */
static enum status report(struct completion *completion, const struct executor_done *done) {
    if (completion->link_fd < 0) {
        return STATUS_OK;
    }
    uint32_t left = completion->config.sends_results ? done->n_results : 0;
    const struct step_result *results = done->results;
    enum status status = STATUS_OK;
    for (; left > WORKER_MSG_MAX_RESULTS && status == STATUS_OK; left -= WORKER_MSG_MAX_RESULTS) {
        size_t size = worker_msg_encode_results(completion->epoch, done->step_id, results, WORKER_MSG_MAX_RESULTS,
                                                completion->packet, completion->packet_bytes);
        status = channel_send(completion->link_fd, completion->packet, size, NULL, 0);
        results += WORKER_MSG_MAX_RESULTS;
    }
    if (status == STATUS_OK) {
        size_t size = worker_msg_encode_done(completion->epoch, done->step_id, done->device_us, results, left,
                                             completion->packet, completion->packet_bytes);
        status = channel_send(completion->link_fd, completion->packet, size, NULL, 0);
    }
    return status == STATUS_CLOSED ? STATUS_OK : status;
}

static enum status finish_one(struct completion *completion) {
    struct executor_done done;
    TRY(completion->config.ops->wait(completion->config.executor, &done));
    atomic_store(&completion->config.progress->done, done.step_id);
    return report(completion, &done);
}

static void wake_loop(const struct completion *completion) {
    uint64_t one = 1;
    if (write(completion->config.wake_fd, &one, sizeof one) != sizeof one) {
        log_error("cannot wake the loop"); /* the loop looks by itself once in a while */
    }
}

static void *run(void *argument) {
    struct completion *completion = argument;
    while (wait_for_work(completion)) {
        enum status status = finish_one(completion);
        pthread_mutex_lock(&completion->lock);
        completion->reported++;
        if (status != STATUS_OK && completion->status == STATUS_OK) {
            completion->status = status;
            snprintf(completion->text, sizeof completion->text, "%s", status_text());
        }
        pthread_mutex_unlock(&completion->lock);
        wake_loop(completion);
    }
    return NULL;
}

static void release(struct completion *completion) {
    pthread_cond_destroy(&completion->submitted_more);
    pthread_mutex_destroy(&completion->lock);
    free(completion->packet);
    free(completion);
}

enum status completion_start(const struct completion_config *config, struct completion **out) {
    struct completion *completion = xcalloc(1, sizeof *completion);
    completion->config = *config;
    completion->link_fd = -1;
    completion->packet_bytes = worker_msg_max_bytes(config->max_rows);
    completion->packet = xcalloc(1, completion->packet_bytes);
    pthread_mutex_init(&completion->lock, NULL);
    pthread_cond_init(&completion->submitted_more, NULL);
    if (pthread_create(&completion->thread, NULL, run, completion) != 0) {
        release(completion);
        FAIL(STATUS_IO, "cannot start the completion thread");
    }
    *out = completion;
    return STATUS_OK;
}

void completion_stop(struct completion *completion) {
    if (completion == NULL) {
        return;
    }
    pthread_mutex_lock(&completion->lock);
    completion->stopping = true;
    pthread_cond_signal(&completion->submitted_more);
    pthread_mutex_unlock(&completion->lock);
    pthread_join(completion->thread, NULL);
    release(completion);
}

void completion_set_link(struct completion *completion, int link_fd, uint32_t epoch) {
    pthread_mutex_lock(&completion->lock);
    completion->link_fd = link_fd;
    completion->epoch = epoch;
    pthread_mutex_unlock(&completion->lock);
}

void completion_submit(struct completion *completion) {
    pthread_mutex_lock(&completion->lock);
    completion->submitted++;
    pthread_cond_signal(&completion->submitted_more);
    pthread_mutex_unlock(&completion->lock);
}

uint32_t completion_in_flight(struct completion *completion) {
    pthread_mutex_lock(&completion->lock);
    uint32_t count = (uint32_t)(completion->submitted - completion->reported);
    pthread_mutex_unlock(&completion->lock);
    return count;
}

enum status completion_check(struct completion *completion) {
    pthread_mutex_lock(&completion->lock);
    enum status status = completion->status;
    char text[sizeof completion->text];
    snprintf(text, sizeof text, "%s", completion->text);
    pthread_mutex_unlock(&completion->lock);
    if (status != STATUS_OK) {
        FAIL(status, "%s", text);
    }
    return STATUS_OK;
}
