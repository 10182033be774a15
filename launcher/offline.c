#include "launcher/offline.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "launcher/bar.h"
#include "launcher/group.h"
#include "launcher/line_feed.h"
#include "launcher/lines.h"
#include "launcher/offline_job.h"
#include "launcher/spawn.h"
#include "runtime/base/alloc.h"
#include "runtime/base/channel.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/rng.h"
#include "runtime/engine/engine_thread.h"

#define STOP_NS NS_PER_S
#define TICK_MS 1000

struct offline {
    const struct serve_plan *plan;
    struct request_context *context;
    struct line_feed *feed;
    struct group *group;
    struct journal *journal;
    struct engine_thread *engine;
    int signal_fd;
    int wake_fd;
    struct job **jobs; /* a ring in input order: `window` places, `n_jobs` taken from `first` on */
    uint32_t window, first, n_jobs;
    uint64_t jobs_before; /* jobs that left the ring: job i of the ring is known to the engine as jobs_before + i */
    uint32_t n_waiting;   /* JOB_WAITING ones in the ring */
    uint32_t n_running;   /* submitted or running ones */
    bool input_ended;
    bool interrupted;
    bool linked;
    bool failed; /* some line was not answered */
    uint64_t random;
    struct bar bar;
};

static struct job *job_at(const struct offline *offline, uint32_t position) {
    return offline->jobs[(offline->first + position) % offline->window];
}

/* ---- the group */

static void on_up(void *context, struct group *group) {
    struct offline *offline = context;
    uint64_t done;
    uint64_t total;
    group_loading(group, &done, &total);
    bar_end(&offline->bar, total, clock_now_ns());
    offline->linked = false;
}

static void on_down(void *context, struct group *group) {
    struct offline *offline = context;
    (void)group;
    offline->linked = false;
    engine_thread_port_lost(offline->engine);
}

static void on_failed(void *context, struct group *group) {
    struct offline *offline = context;
    bar_clear(&offline->bar);
    fprintf(stderr, "tandem generate: %s\n", group_text(group));
    offline->interrupted = true;
    offline->failed = true;
}

static enum status link_engine(struct offline *offline, uint64_t now_ns) {
    if (offline->linked || group_state(offline->group) != GROUP_UP) {
        return STATUS_OK;
    }
    const struct worker_init *init = &offline->plan->init;
    int links[CONTROL_MAX_WORLD];
    int ring_fd;
    uint32_t epoch;
    struct worker_port *port;
    if (group_link(offline->group, links, &ring_fd, &epoch, now_ns) != STATUS_OK) {
        return STATUS_OK; /* the group is being killed; it comes again */
    }
    TRY(port_link_open(links, init->world, ring_fd, epoch, &init->limits, init->max_body_bytes, &port));
    engine_thread_set_port(offline->engine, port);
    offline->linked = true;
    return STATUS_OK;
}

/* ---- jobs */

static void submit(struct offline *offline, uint32_t position) {
    struct job *job = job_at(offline, position);
    struct engine_request wanted;
    request_sequence(job->request, 0, &wanted);
    wanted.params.user = offline->jobs_before + position;
    wanted.params.arrival_ns = clock_now_ns();
    enum status status = engine_thread_submit(offline->engine, &wanted);
    if (status == STATUS_BUSY) {
        return;
    }
    offline->n_waiting--;
    if (status != STATUS_OK) {
        job_fail(job, status_text());
        return;
    }
    job->state = JOB_SUBMITTED;
    offline->n_running++;
}

static void submit_waiting(struct offline *offline) {
    for (uint32_t i = 0; i < offline->n_jobs && offline->n_waiting > 0; i++) {
        if (job_at(offline, i)->state == JOB_WAITING) {
            submit(offline, i);
        }
    }
}

static void take_lines(struct offline *offline) {
    char *text;
    size_t size;
    uint64_t index;
    bool ended = false;
    while (offline->n_jobs < offline->window && line_feed_take(offline->feed, &text, &size, &index, &ended)) {
        struct job *job = job_create(offline->context, text, size, index, rng_next(&offline->random));
        free(text);
        offline->jobs[(offline->first + offline->n_jobs) % offline->window] = job;
        offline->n_jobs++;
        if (job->state == JOB_WAITING) {
            offline->n_waiting++;
            submit(offline, offline->n_jobs - 1);
        }
    }
    offline->input_ended = ended;
}

static void take_event(struct offline *offline, const struct engine_event *event) {
    struct job *job = job_at(offline, (uint32_t)(event->user - offline->jobs_before));
    if (event->type == ENGINE_REFUSED) {
        offline->n_running--;
        /* While others run there will be room; alone it never fits. */
        if (event->status == STATUS_BUSY && offline->n_running > 0) {
            job->state = JOB_WAITING;
            offline->n_waiting++;
        } else {
            job_fail(job, event->text);
        }
        return;
    }
    if (event->type == ENGINE_ADMITTED) {
        job->handle = event->handle;
        job->state = JOB_RUNNING;
    }
    if (job->state == JOB_RUNNING && job_advance(job, offline->journal, offline->engine, offline->context)) {
        group_forgive(offline->group);
    }
    offline->n_running -= job->state == JOB_DONE;
}

/* An event may come for a job that a stop text ended a moment ago, and that was written. */
static bool is_stale(const struct offline *offline, const struct engine_event *event) {
    return event->user < offline->jobs_before ||
           job_at(offline, (uint32_t)(event->user - offline->jobs_before))->state == JOB_DONE;
}

static void take_events(struct offline *offline) {
    uint64_t count;
    ssize_t ignored = read(offline->wake_fd, &count, sizeof count); /* nothing to read is fine */
    (void)ignored;
    struct engine_event event;
    while (engine_thread_event(offline->engine, &event)) {
        if (!is_stale(offline, &event)) {
            take_event(offline, &event);
        }
    }
}

/* Writes the answers that are next in input order. */
static enum status write_done(struct offline *offline) {
    while (offline->n_jobs > 0 && job_at(offline, 0)->state == JOB_DONE) {
        struct job *job = job_at(offline, 0);
        bool written = line_write(stdout, &job->line);
        offline->failed = offline->failed || job->failed;
        job_free(job);
        offline->first = (offline->first + 1) % offline->window;
        offline->n_jobs--;
        offline->jobs_before++;
        if (!written) {
            FAIL_ERRNO(STATUS_IO, "standard output");
        }
    }
    return STATUS_OK;
}

/* ---- the loop */

static void read_signals(struct offline *offline, uint64_t now_ns) {
    struct signalfd_siginfo info;
    while (read(offline->signal_fd, &info, sizeof info) == sizeof info) {
        if (info.ssi_signo != SIGCHLD) {
            offline->interrupted = true;
            offline->failed = true;
        }
    }
    group_reap(offline->group, now_ns);
}

static void show_loading(struct offline *offline, uint64_t now_ns) {
    if (group_state(offline->group) == GROUP_STARTING) {
        uint64_t done;
        uint64_t total;
        group_loading(offline->group, &done, &total);
        bar_update(&offline->bar, done, total, now_ns);
    }
}

static enum status loop_once(struct offline *offline) {
    struct pollfd entries[3 + CONTROL_MAX_WORLD];
    bool has_room = offline->n_jobs < offline->window && !offline->input_ended;
    entries[0] = (struct pollfd){.fd = offline->signal_fd, .events = POLLIN};
    entries[1] = (struct pollfd){.fd = offline->wake_fd, .events = POLLIN};
    entries[2] = (struct pollfd){.fd = has_room ? line_feed_fd(offline->feed) : -1, .events = POLLIN};
    uint32_t count = 3 + group_poll(offline->group, entries + 3);
    uint64_t now_ns = clock_now_ns();
    uint64_t next_ns = group_next_ns(offline->group);
    uint64_t wait_ms = next_ns <= now_ns ? 0 : (next_ns - now_ns) / NS_PER_MS + 1;
    if (poll(entries, count, wait_ms < TICK_MS ? (int)wait_ms : TICK_MS) < 0 && errno != EINTR) {
        FAIL_ERRNO(STATUS_IO, "poll");
    }
    now_ns = clock_now_ns();
    for (uint32_t i = 3; i < count; i++) {
        if (entries[i].revents != 0) {
            group_readable(offline->group, entries[i].fd, now_ns);
        }
    }
    if (entries[0].revents != 0) {
        read_signals(offline, now_ns);
    }
    group_tick(offline->group, now_ns);
    show_loading(offline, now_ns);
    TRY(link_engine(offline, now_ns));
    take_events(offline);
    TRY(write_done(offline));
    submit_waiting(offline);
    uint64_t written;
    do { /* lines that are done at once, being wrong, make room for more */
        written = offline->jobs_before;
        take_lines(offline);
        TRY(write_done(offline));
    } while (offline->jobs_before != written && !offline->input_ended);
    return STATUS_OK;
}

static void wake(void *context) {
    struct offline *offline = context;
    uint64_t one = 1;
    ssize_t ignored = write(offline->wake_fd, &one, sizeof one); /* it is full when it was not read for ages: awake */
    (void)ignored;
}

static enum status start_engine(struct offline *offline, const struct config *config) {
    const struct serve_plan *plan = offline->plan;
    int journal_fd;
    TRY(memfd_make("tandem-journal", plan->journal_bytes, &journal_fd));
    enum status status = journal_open(journal_fd, plan->journal_bytes, plan->journal_slots, true, &offline->journal);
    close(journal_fd); /* the mapping stays */
    TRY(status);
    struct engine_thread_config engine_config = {
        .engine = {.limits = plan->init.limits,
                   .queue_max = plan->queue_max,
                   .prefix_cache = config->engine.prefix_cache,
                   .overlap = true,
                   .journal = offline->journal},
        .wake = wake,
        .context = offline,
    };
    return engine_thread_start(&engine_config, &offline->engine);
}

static enum status start(struct offline *offline, const struct config *config) {
    const struct serve_plan *plan = offline->plan;
    spawn_seal();
    TRY(spawn_signals(&offline->signal_fd));
    offline->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (offline->wake_fd < 0) {
        FAIL_ERRNO(STATUS_IO, "eventfd");
    }
    TRY(request_context_load(config->model, config_tokenizer(config), config->served_model_name,
                             plan->init.limits.max_len, plan->init.n_valid_ids, &offline->context));
    /* Enough to keep every row busy while the next ones wait. */
    uint32_t most = plan->init.limits.n_slots + plan->queue_max;
    offline->window = plan->init.limits.n_slots * 2 + 16;
    offline->window = offline->window < most ? offline->window : most;
    offline->jobs = xcalloc(offline->window, sizeof(struct job *));
    TRY(start_engine(offline, config));
    TRY(line_feed_start(stdin, &offline->feed));
    struct group_config group_config = {
        .plan = plan, .up = on_up, .down = on_down, .failed = on_failed, .context = offline};
    offline->group = group_create(&group_config);
    group_start(offline->group, clock_now_ns());
    return STATUS_OK;
}

/* Lets the workers exit by themselves for a second. */
static void stop_group(struct offline *offline) {
    uint64_t deadline_ns = clock_now_ns() + STOP_NS;
    group_stop(offline->group);
    while (!group_empty(offline->group) && clock_now_ns() < deadline_ns) {
        struct pollfd entry = {.fd = offline->signal_fd, .events = POLLIN};
        poll(&entry, 1, 50);
        read_signals(offline, clock_now_ns());
    }
    group_destroy(offline->group);
}

static void clean_up(struct offline *offline) {
    if (offline->engine != NULL) {
        engine_thread_stop(offline->engine);
    }
    if (offline->group != NULL) {
        bool failed = offline->failed;
        stop_group(offline);
        offline->failed = failed; /* a Ctrl-C behind the last line takes nothing back */
    }
    for (uint32_t i = 0; i < offline->n_jobs; i++) {
        job_free(job_at(offline, i));
    }
    free(offline->jobs);
    if (offline->journal != NULL) {
        journal_close(offline->journal);
    }
    if (offline->feed != NULL) {
        offline->failed = offline->failed || (offline->input_ended && !line_feed_was_whole(offline->feed));
        line_feed_free(offline->feed);
    }
    request_context_free(offline->context);
    close(offline->wake_fd);
    close(offline->signal_fd);
}

int offline_run(const struct config *config, const struct serve_plan *plan) {
    struct offline offline = {.plan = plan, .signal_fd = -1, .wake_fd = -1, .random = clock_now_ns()};
    enum status status = start(&offline, config);
    while (status == STATUS_OK && !offline.interrupted && !(offline.input_ended && offline.n_jobs == 0)) {
        status = loop_once(&offline);
    }
    if (fflush(stdout) != 0 && status == STATUS_OK) {
        status = status_fail_errno(STATUS_IO, "standard output");
    }
    if (status != STATUS_OK) {
        fprintf(stderr, "tandem generate: %s\n", status_text());
    }
    clean_up(&offline);
    return status == STATUS_OK && !offline.failed ? 0 : 1;
}
