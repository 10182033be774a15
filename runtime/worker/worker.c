#define _GNU_SOURCE
#include "runtime/worker/worker.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/wire/step_ring.h"
#include "runtime/wire/worker_msg.h"
#include "runtime/worker/completion.h"
#include "runtime/worker/executor.h"

#define BEAT_MS 500
#define LOADING_MS 100

/* An engine's connection: doorbells come in, reports go out, bodies lie in the ring. */
struct link {
    int fd; /* -1: none */
    int ring_fd;
    uint32_t epoch;
    struct step_ring *ring; /* mapped at the first doorbell: before, the engine may not have set it up */
    uint64_t taken;
    bool closing; /* finish what is committed, then forget it */
};

struct loading {
    pthread_t thread;
    atomic_bool ended;
    atomic_uint_fast64_t done, total;
    enum status status; /* valid once ended */
    char text[512];
};

struct worker {
    int control_fd;
    int wake_fd;
    int comm_fd;
    struct worker_init init;
    struct progress_page *page;
    struct progress_rank *progress;
    const struct executor_ops *ops;
    struct executor *executor;
    struct completion *completion;
    struct loading loading;
    struct link link;
    struct link next; /* came while the old one was still draining */
    bool stop;
};

/* ---- control messages */

static struct control_msg *message_of(const struct worker *worker, enum control_type type) {
    struct control_msg *message = xcalloc(1, sizeof *message);
    message->type = type;
    message->replica = worker->init.replica;
    message->rank = worker->init.rank;
    message->epoch = worker->init.epoch;
    return message;
}

/* A supervisor that is gone is as good as a STOP. */
static enum status send_and_free(struct worker *worker, struct control_msg *message) {
    enum status status = control_send(worker->control_fd, message, NULL, 0);
    free(message);
    if (status == STATUS_CLOSED) {
        worker->stop = true;
        return STATUS_OK;
    }
    return status;
}

static void close_fds(const int *fds, uint32_t n_fds) {
    for (uint32_t i = 0; i < n_fds; i++) {
        close(fds[i]);
    }
}

/* What is not raised is found a beat later. */
static void raise_wake(int wake_fd) {
    uint64_t one = 1;
    if (write(wake_fd, &one, sizeof one) != sizeof one) {
        log_warn("cannot raise the wake-up count");
    }
}

static void beat(struct worker *worker) {
    if (worker->progress != NULL) {
        atomic_fetch_add(&worker->progress->beat, 1);
    }
}

/* Waits up to `timeout_ms` for a message, or until the wake-up count is raised. STATUS_BUSY when there is none. */
static enum status next_control(struct worker *worker, int timeout_ms, struct control_msg *message, int *fds,
                                uint32_t *n_fds) {
    struct pollfd waits[] = {{.fd = worker->control_fd, .events = POLLIN}, {.fd = worker->wake_fd, .events = POLLIN}};
    beat(worker);
    if (poll(waits, 2, timeout_ms) <= 0 || waits[0].revents == 0) {
        FAIL(STATUS_BUSY, "no control message");
    }
    enum status status = control_receive(worker->control_fd, message, fds, n_fds, MSG_DONTWAIT);
    if (status == STATUS_CLOSED || (status == STATUS_OK && message->type == CONTROL_STOP)) {
        worker->stop = true;
        FAIL(STATUS_BUSY, "the supervisor wants no more");
    }
    return status;
}

/* The next message, which must be of that type; returns with worker->stop set when there will be none. */
static enum status expect_control(struct worker *worker, enum control_type type, struct control_msg *message, int *fds,
                                  uint32_t *n_fds) {
    enum status status;
    do {
        status = next_control(worker, BEAT_MS, message, fds, n_fds);
    } while (status == STATUS_BUSY && !worker->stop);
    if (worker->stop) {
        return STATUS_OK;
    }
    TRY(status);
    if (message->type != (uint32_t)type) {
        close_fds(fds, *n_fds);
        FAIL(STATUS_INTERNAL, "control message %u in the place of %d", message->type, (int)type);
    }
    return STATUS_OK;
}

/* ---- start */

static enum status take_init(struct worker *worker, const struct control_msg *message, const int *fds, uint32_t n_fds) {
    worker->init = message->body.worker;
    const struct worker_init *init = &worker->init;
    if (n_fds < 1 || n_fds > 2 || init->world < 1 || init->world > CONTROL_MAX_WORLD || init->rank >= init->world) {
        close_fds(fds, n_fds);
        FAIL(STATUS_INTERNAL, "INIT for rank %u of %u with %u descriptors", init->rank, init->world, n_fds);
    }
    char role[32];
    snprintf(role, sizeof role, "worker %u r%u", init->replica, init->rank);
    log_set_role(role);
    worker->comm_fd = n_fds > 1 ? fds[1] : -1;
    void *page;
    enum status status = memfd_map(fds[0], sizeof *worker->page, 1, &page);
    close(fds[0]);
    TRY(status);
    worker->page = page;
    worker->progress = &worker->page->rank[init->rank];
    worker->ops = executor_find(init->backend);
    if (worker->ops == NULL) {
        FAIL(STATUS_UNSUPPORTED, "backend %s is not part of this program", init->backend);
    }
    return STATUS_OK;
}

/* The cpu's communicator needs no id, but the order of the messages is the same for every kind. */
static enum status join_group(struct worker *worker) {
    struct control_msg *message = message_of(worker, CONTROL_COMM_ID);
    TRY(send_and_free(worker, message));
    int fds[CHANNEL_MAX_FDS];
    uint32_t n_fds = 0;
    message = xcalloc(1, sizeof *message);
    enum status status = expect_control(worker, CONTROL_COMM_IDS, message, fds, &n_fds);
    if (status == STATUS_OK) {
        close_fds(fds, n_fds);
    }
    free(message);
    return status;
}

static void note_progress(void *context, uint64_t done, uint64_t total) {
    struct loading *loading = context;
    atomic_store(&loading->total, total);
    atomic_store(&loading->done, done);
}

static void *load_thread(void *argument) {
    struct worker *worker = argument;
    struct executor_config config = {
        .init = &worker->init,
        .comm_fd = worker->comm_fd,
        .graphs = strcmp(worker->init.backend, "cpu") != 0, /* a processor gains nothing and computes the padding */
        .progress = note_progress,
        .context = &worker->loading,
    };
    worker->loading.status = worker->ops->open(&config, &worker->executor);
    snprintf(worker->loading.text, sizeof worker->loading.text, "%s", status_text());
    atomic_store(&worker->loading.ended, true);
    raise_wake(worker->wake_fd);
    return NULL;
}

static enum status report_loading(struct worker *worker, uint64_t *reported) {
    uint64_t done = atomic_load(&worker->loading.done);
    if (done == *reported) {
        return STATUS_OK;
    }
    *reported = done;
    struct control_msg *message = message_of(worker, CONTROL_LOADING);
    message->value = done;
    message->total = atomic_load(&worker->loading.total);
    return send_and_free(worker, message);
}

/* Opens the executor in a thread of its own, so that the supervisor is heard and told of the progress meanwhile. */
static enum status load(struct worker *worker) {
    if (pthread_create(&worker->loading.thread, NULL, load_thread, worker) != 0) {
        FAIL(STATUS_IO, "cannot start the loading thread");
    }
    struct control_msg *message = xcalloc(1, sizeof *message);
    enum status status = STATUS_OK;
    uint64_t reported = 0;
    while (!atomic_load(&worker->loading.ended) && status == STATUS_OK) {
        int fds[CHANNEL_MAX_FDS];
        uint32_t n_fds = 0;
        status = next_control(worker, LOADING_MS, message, fds, &n_fds);
        if (worker->stop) {
            _exit(0); /* the loading thread cannot be stopped, and nothing is lost */
        }
        if (status == STATUS_OK) {
            close_fds(fds, n_fds);
            status = status_fail(STATUS_INTERNAL, "control message %u while loading", message->type);
        } else if (status == STATUS_BUSY) {
            status = report_loading(worker, &reported);
        }
    }
    free(message);
    TRY(status);
    pthread_join(worker->loading.thread, NULL);
    if (worker->loading.status != STATUS_OK) {
        FAIL(worker->loading.status, "%s", worker->loading.text);
    }
    return report_loading(worker, &reported);
}

static enum status say_ready(struct worker *worker, uint64_t start_ns) {
    struct control_msg *message = message_of(worker, CONTROL_READY);
    worker->ops->describe(worker->executor, &message->body.ready);
    message->body.ready.times.all_ms = (uint32_t)((clock_now_ns() - start_ns) / NS_PER_MS);
    return send_and_free(worker, message);
}

static enum status start(struct worker *worker) {
    int fds[CHANNEL_MAX_FDS];
    uint32_t n_fds = 0;
    struct control_msg *message = xcalloc(1, sizeof *message);
    enum status status = expect_control(worker, CONTROL_INIT, message, fds, &n_fds);
    uint64_t start_ns = clock_now_ns();
    if (status == STATUS_OK && !worker->stop) {
        status = take_init(worker, message, fds, n_fds);
    }
    free(message);
    TRY(status);
    if (!worker->stop) {
        TRY(join_group(worker));
    }
    if (worker->stop) {
        return STATUS_OK;
    }
    TRY(load(worker));
    struct completion_config config = {
        .ops = worker->ops,
        .executor = worker->executor,
        .progress = worker->progress,
        .max_rows = worker->init.limits.max_rows,
        .sends_results = worker->init.rank == 0,
        .wake_fd = worker->wake_fd,
    };
    TRY(completion_start(&config, &worker->completion));
    return say_ready(worker, start_ns);
}

/* ---- links */

static void drop_link(struct link *link) {
    if (link->fd >= 0) {
        close(link->fd);
        close(link->ring_fd);
        step_ring_close(link->ring);
    }
    *link = (struct link){.fd = -1};
}

/* The engine's slots are another engine's from now on. */
static void adopt_next_link(struct worker *worker) {
    worker->link = worker->next;
    worker->next = (struct link){.fd = -1};
    worker->ops->reset(worker->executor);
    atomic_store(&worker->progress->taken, 0);
    atomic_store(&worker->progress->done, 0);
    completion_set_link(worker->completion, worker->link.fd, worker->link.epoch);
}

static enum status map_ring(struct worker *worker) {
    struct link *link = &worker->link;
    if (link->ring != NULL) {
        return STATUS_OK;
    }
    return step_ring_open_reader(link->ring_fd, link->epoch, worker->init.max_body_bytes, &link->ring);
}

/* Takes committed steps while the executor has room. */
static enum status take_steps(struct worker *worker) {
    struct link *link = &worker->link;
    while (link->ring != NULL && link->taken < step_ring_committed(link->ring) &&
           completion_in_flight(worker->completion) < EXECUTOR_DEPTH) {
        const void *body;
        size_t bytes;
        uint64_t step_id = link->taken + 1;
        TRY(step_ring_read(link->ring, step_id, &body, &bytes));
        atomic_store(&worker->progress->taken, step_id);
        TRY(worker->ops->step(worker->executor, body, bytes, link->epoch, step_id));
        link->taken = step_id;
        completion_submit(worker->completion);
    }
    return STATUS_OK;
}

static void note_link_end(struct worker *worker) {
    worker->link.closing = true;
    /* Another rank may have had the doorbell that did not come here. A ring that nobody set up holds no step. */
    if (map_ring(worker) != STATUS_OK) {
        log_info("the link of epoch %u ended before its first step", worker->link.epoch);
    }
}

static bool link_is_drained(struct worker *worker) {
    const struct link *link = &worker->link;
    bool all_taken = link->ring == NULL || link->taken >= step_ring_committed(link->ring);
    return link->closing && all_taken && completion_in_flight(worker->completion) == 0;
}

static enum status read_doorbells(struct worker *worker) {
    struct link *link = &worker->link;
    for (;;) {
        uint8_t packet[64 + WORKER_MSG_TEXT_MAX];
        size_t size = sizeof packet;
        struct worker_msg message;
        enum status status = channel_receive(link->fd, packet, &size, NULL, NULL, MSG_DONTWAIT);
        if (status == STATUS_BUSY) {
            return STATUS_OK;
        }
        if (status == STATUS_CLOSED && link->closing) {
            return STATUS_OK;
        }
        if (status == STATUS_CLOSED) {
            note_link_end(worker); /* the engine's last words come behind a reset */
            continue;
        }
        TRY(status);
        TRY(worker_msg_parse(packet, size, worker->init.limits.max_rows, &message));
        if (message.type == WORKER_MSG_ERROR && message.epoch == link->epoch) {
            FAIL(STATUS_INTERNAL, "the engine gives the group up: %s", message.text);
        }
        if (message.type != WORKER_MSG_STEP) {
            FAIL(STATUS_INTERNAL, "the engine sent message %d", (int)message.type);
        }
        if (message.epoch == link->epoch) {
            TRY(map_ring(worker));
        }
    }
}

static enum status take_link(struct worker *worker, const struct control_msg *message, const int *fds, uint32_t n_fds) {
    if (n_fds != 2) {
        close_fds(fds, n_fds);
        FAIL(STATUS_INTERNAL, "LINK with %u descriptors", n_fds);
    }
    drop_link(&worker->next);
    worker->next = (struct link){.fd = fds[0], .ring_fd = fds[1], .epoch = message->epoch};
    if (worker->link.fd >= 0 && !worker->link.closing) {
        note_link_end(worker);
    }
    return STATUS_OK;
}

static enum status read_control(struct worker *worker) {
    int fds[CHANNEL_MAX_FDS];
    uint32_t n_fds = 0;
    struct control_msg *message = xcalloc(1, sizeof *message);
    enum status status = next_control(worker, 0, message, fds, &n_fds);
    if (status == STATUS_BUSY) {
        status = STATUS_OK;
    } else if (status == STATUS_OK && message->type == CONTROL_LINK) {
        status = take_link(worker, message, fds, n_fds);
    } else if (status == STATUS_OK) {
        close_fds(fds, n_fds);
        if (message->type != CONTROL_DRAIN) { /* which is the engine's business */
            status = status_fail(STATUS_INTERNAL, "control message %u to a worker that serves", message->type);
        }
    }
    free(message);
    return status;
}

/* ---- the loop */

static enum status serve_once(struct worker *worker) {
    struct link *link = &worker->link;
    struct pollfd waits[] = {
        {.fd = worker->control_fd, .events = POLLIN},
        {.fd = worker->wake_fd, .events = POLLIN},
        {.fd = link->closing ? -1 : link->fd, .events = POLLIN},
    };
    if (poll(waits, 3, BEAT_MS) < 0 && errno != EINTR) {
        FAIL_ERRNO(STATUS_IO, "poll");
    }
    beat(worker);
    if (waits[1].revents != 0) {
        uint64_t count;
        if (read(worker->wake_fd, &count, sizeof count) != sizeof count) {
            FAIL_ERRNO(STATUS_IO, "reading the wake-up count");
        }
        TRY(completion_check(worker->completion));
    }
    if (waits[2].revents != 0) {
        TRY(read_doorbells(worker));
    }
    if (waits[0].revents != 0) {
        TRY(read_control(worker));
    }
    TRY(take_steps(worker));
    if (link_is_drained(worker)) {
        completion_set_link(worker->completion, -1, 0);
        drop_link(link);
    }
    if (link->fd < 0 && worker->next.fd >= 0) {
        adopt_next_link(worker);
    }
    return STATUS_OK;
}

static enum status serve(struct worker *worker) {
    while (!worker->stop) {
        TRY(serve_once(worker));
    }
    return STATUS_OK;
}

/* Whoever hears it: the engine ends the group, the supervisor tells why. */
static void report_failure(struct worker *worker, enum status status) {
    char text[512];
    snprintf(text, sizeof text, "%s: %s", status_name(status), status_text());
    log_error("%s", text);
    struct control_msg *message = message_of(worker, CONTROL_ERROR);
    snprintf(message->body.text, sizeof message->body.text, "%s", text);
    send_and_free(worker, message);
    if (worker->link.fd >= 0) {
        uint8_t packet[64 + WORKER_MSG_TEXT_MAX];
        size_t size = worker_msg_encode_error(worker->link.epoch, worker->link.taken, text, packet, sizeof packet);
        channel_send(worker->link.fd, packet, size, NULL, 0);
    }
}

static void clean_up(struct worker *worker) {
    completion_stop(worker->completion);
    worker->ops->close(worker->executor);
    drop_link(&worker->link);
    drop_link(&worker->next);
    munmap(worker->page, sizeof *worker->page);
    if (worker->comm_fd >= 0) {
        close(worker->comm_fd);
    }
    close(worker->wake_fd);
    close(worker->control_fd);
}

static enum status settle_in(void) {
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) {
        FAIL_ERRNO(STATUS_IO, "prctl(PR_SET_PDEATHSIG)");
    }
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    return STATUS_OK;
}

int worker_main(int control_fd) {
    struct worker worker = {.control_fd = control_fd, .comm_fd = -1, .link = {.fd = -1}, .next = {.fd = -1}};
    worker.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    enum status status = worker.wake_fd >= 0 ? settle_in() : status_fail_errno(STATUS_IO, "eventfd");
    if (status == STATUS_OK) {
        status = start(&worker);
    }
    if (status == STATUS_OK) {
        status = serve(&worker);
    }
    if (status != STATUS_OK) {
        report_failure(&worker, status);
        _exit(1); /* threads may wait for ranks that will never come */
    }
    if (worker.completion == NULL || completion_in_flight(worker.completion) > 0) {
        _exit(0); /* told to stop in the middle of something that nobody wants any more */
    }
    clean_up(&worker);
    return 0;
}
