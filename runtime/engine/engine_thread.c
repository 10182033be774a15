#define _DEFAULT_SOURCE /* eventfd */
#include "runtime/engine/engine_thread.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/spsc.h"

#define TEXT_BYTES sizeof(((struct engine_event *)0)->text)
#define STATS_WORDS ((sizeof(struct engine_stats) + 7) / 8)
#define COMMANDS_PER_SEQUENCE 4 /* an end or two and a release, and one to spare */

enum command_type {
    COMMAND_SUBMIT,
    COMMAND_END,
    COMMAND_RELEASE,
    COMMAND_SET_PORT,
    COMMAND_PORT_LOST,
    COMMAND_FAIL_ALL
};

struct command {
    enum command_type type;
    struct journal_handle handle;
    union {
        struct {
            enum journal_finish finish;
            uint32_t n_output;
        } end;
        struct engine_request *request; /* one allocation with all it points to */
        struct worker_port *port;
        struct {
            enum status status;
            char *text;
        } fail;
    } body;
};

/* An event as it is queued: small, since one travels per token. The text of a refusal comes in its own queue. */
struct queued_event {
    uint32_t type;
    uint32_t status;
    struct journal_handle handle;
    uint64_t user;
};

struct engine_thread {
    _Alignas(64) _Atomic uint32_t sleeping; /* the engine thread is about to wait for its eventfd */
    int eventfd;
    struct engine *engine;
    struct spsc *commands, *events, *refusals;
    _Atomic uint32_t *advanced; /* per journal slot: the generation whose ADVANCED is queued, or 0 */
    pthread_t thread;
    _Alignas(64) _Atomic uint32_t told; /* the consumer was woken and has not emptied the queue since */
    uint32_t n_sequences;
    uint32_t unanswered; /* submits whose answer was not taken yet; the producer's own */
    _Atomic bool stop;
    bool pushed; /* events since the last wake; the engine thread's own */
    /* The newest stats; the version is odd while they are written. */
    _Atomic uint64_t stats_version;
    _Atomic uint64_t stats[STATS_WORDS];
    struct engine_thread_config config;
};

/* ---- engine thread: events */

static void push_event(struct engine_thread *thread, const struct queued_event *event) {
    bool pushed = spsc_push(thread->events, event);
    CHECK(pushed, "the event queue holds more than one event per sequence and submit");
    thread->pushed = true;
}

static void on_notify(void *context, struct journal_handle handle, uint64_t user) {
    struct engine_thread *thread = context;
    /* The exchange orders this with the consumer's: either it has yet to clear the mark, and will then see what the
     * journal holds now, or this queues another event. */
    if (atomic_exchange_explicit(&thread->advanced[handle.slot], handle.generation, memory_order_acq_rel) !=
        handle.generation) {
        push_event(thread, &(struct queued_event){.type = ENGINE_ADVANCED, .handle = handle, .user = user});
    }
}

static void wake_consumer(struct engine_thread *thread) {
    if (thread->pushed) {
        thread->pushed = false;
        if (atomic_exchange_explicit(&thread->told, 1, memory_order_acq_rel) == 0) {
            thread->config.wake(thread->config.context);
        }
    }
}

static void publish_stats(struct engine_thread *thread) {
    struct engine_stats stats;
    uint64_t words[STATS_WORDS] = {0};
    engine_stats(thread->engine, &stats);
    memcpy(words, &stats, sizeof stats);
    uint64_t version = atomic_load_explicit(&thread->stats_version, memory_order_relaxed);
    atomic_store_explicit(&thread->stats_version, version + 1, memory_order_relaxed);
    for (size_t i = 0; i < STATS_WORDS; i++) {
        /* Release: who sees a new word also sees the odd version. */
        atomic_store_explicit(&thread->stats[i], words[i], memory_order_release);
    }
    atomic_store_explicit(&thread->stats_version, version + 2, memory_order_release);
}

/* ---- engine thread: commands */

static void do_submit(struct engine_thread *thread, struct engine_request *request, uint64_t now_ns) {
    struct queued_event event = {.type = ENGINE_ADMITTED, .user = request->params.user};
    enum status status = engine_submit(thread->engine, request, now_ns, &event.handle);
    if (status != STATUS_OK) {
        char text[TEXT_BYTES];
        strncpy(text, status_text(), sizeof text - 1);
        text[sizeof text - 1] = '\0';
        event.type = ENGINE_REFUSED;
        event.status = (uint32_t)status;
        bool pushed = spsc_push(thread->refusals, text);
        CHECK(pushed, "more refusals than submits");
    }
    push_event(thread, &event);
    free(request);
}

static void do_command(struct engine_thread *thread, struct command *command, uint64_t now_ns) {
    struct engine *engine = thread->engine;
    switch (command->type) {
    case COMMAND_SUBMIT: do_submit(thread, command->body.request, now_ns); break;
    case COMMAND_END: engine_end(engine, command->handle, command->body.end.finish, command->body.end.n_output); break;
    case COMMAND_RELEASE: engine_release(engine, command->handle); break;
    case COMMAND_SET_PORT: engine_set_port(engine, command->body.port, now_ns); break;
    case COMMAND_PORT_LOST: engine_port_lost(engine, now_ns); break;
    case COMMAND_FAIL_ALL:
        engine_fail_all(engine, command->body.fail.status, command->body.fail.text);
        free(command->body.fail.text);
        break;
    }
}

static bool take_commands(struct engine_thread *thread, uint64_t now_ns) {
    struct command command;
    bool any = false;
    while (spsc_pop(thread->commands, &command)) {
        do_command(thread, &command, now_ns);
        any = true;
    }
    return any;
}

/* Waits for a command, a word from the workers, or the next deadline. */
static void wait_for_work(struct engine_thread *thread, uint64_t now_ns) {
    /* Exchanges on both sides: whoever comes second sees what the first did before. */
    atomic_exchange_explicit(&thread->sleeping, 1, memory_order_acq_rel);
    if (spsc_count(thread->commands) == 0 && !atomic_load_explicit(&thread->stop, memory_order_acquire)) {
        int fds[ENGINE_MAX_DESCRIPTORS];
        struct pollfd polled[ENGINE_MAX_DESCRIPTORS + 1] = {{.fd = thread->eventfd, .events = POLLIN}};
        uint32_t n = engine_descriptors(thread->engine, fds);
        for (uint32_t i = 0; i < n; i++) {
            polled[1 + i] = (struct pollfd){.fd = fds[i], .events = POLLIN};
        }
        uint64_t next_ns = engine_next_ns(thread->engine);
        int timeout_ms = -1;
        if (next_ns != UINT64_MAX) {
            uint64_t left_ms = next_ns <= now_ns ? 0 : (next_ns - now_ns) / NS_PER_MS + 1;
            timeout_ms = left_ms < 60000 ? (int)left_ms : 60000;
        }
        poll(polled, 1 + n, timeout_ms);
        if ((polled[0].revents & POLLIN) != 0) {
            uint64_t count;
            ssize_t got = read(thread->eventfd, &count, sizeof count);
            CHECK(got == (ssize_t)sizeof count || errno == EAGAIN, "an eventfd cannot be read");
        }
    }
    atomic_exchange_explicit(&thread->sleeping, 0, memory_order_acq_rel);
}

static void *run(void *argument) {
    struct engine_thread *thread = argument;
    while (!atomic_load_explicit(&thread->stop, memory_order_acquire)) {
        uint64_t now_ns = clock_now_ns();
        bool busy = take_commands(thread, now_ns);
        busy |= engine_tick(thread->engine, now_ns);
        /* First the figures: whoever is woken finds in them what it is woken for. */
        if (busy) {
            publish_stats(thread);
        }
        wake_consumer(thread);
        if (!busy) {
            wait_for_work(thread, now_ns);
        }
    }
    return NULL;
}

/* ---- start and stop */

static void wake_thread(struct engine_thread *thread) {
    if (atomic_exchange_explicit(&thread->sleeping, 0, memory_order_acq_rel) == 1) {
        uint64_t one = 1;
        ssize_t put = write(thread->eventfd, &one, sizeof one);
        CHECK(put == (ssize_t)sizeof one || errno == EAGAIN, "an eventfd cannot be written");
    }
}

/* Commands that the thread did not come to: what frees things in the journal, which outlives the thread, is done. */
static void settle_command(struct engine_thread *thread, struct command *command) {
    switch (command->type) {
    case COMMAND_SUBMIT: free(command->body.request); break;
    case COMMAND_SET_PORT: command->body.port->ops->close(command->body.port); break;
    case COMMAND_FAIL_ALL: free(command->body.fail.text); break;
    case COMMAND_END:
    case COMMAND_RELEASE: do_command(thread, command, 0); break;
    case COMMAND_PORT_LOST: break;
    }
}

static void free_thread(struct engine_thread *thread) {
    struct command command;
    while (spsc_pop(thread->commands, &command)) {
        settle_command(thread, &command);
    }
    engine_destroy(thread->engine);
    spsc_destroy(thread->commands);
    spsc_destroy(thread->events);
    spsc_destroy(thread->refusals);
    free((void *)thread->advanced);
    close(thread->eventfd);
    free(thread);
}

enum status engine_thread_start(const struct engine_thread_config *config, struct engine_thread **out) {
    struct engine_thread *thread = xaligned(64, sizeof *thread);
    thread->config = *config;
    thread->eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (thread->eventfd < 0) {
        free(thread);
        FAIL_ERRNO(STATUS_IO, "eventfd");
    }
    uint32_t n = journal_slots(config->engine.journal);
    thread->n_sequences = n;
    thread->commands = spsc_create(n * (COMMANDS_PER_SEQUENCE + 1) + 64, sizeof(struct command));
    /* An answer per submit (at most n are unanswered), an ADVANCED per sequence, and one more for each that was
     * admitted since in the place of one whose ADVANCED was not taken. */
    thread->events = spsc_create(3 * n, sizeof(struct queued_event));
    thread->refusals = spsc_create(n, TEXT_BYTES);
    thread->advanced = xcalloc(n, sizeof thread->advanced[0]);
    struct engine_config engine_config = config->engine;
    engine_config.notify = on_notify;
    engine_config.context = thread;
    thread->engine = engine_create(&engine_config);
    if (config->recover) {
        engine_recover(thread->engine);
    }
    publish_stats(thread);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&thread->thread, NULL, run, thread);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        errno = error;
        enum status status = status_fail_errno(STATUS_IO, "the engine's thread");
        free_thread(thread);
        return status;
    }
    *out = thread;
    return STATUS_OK;
}

void engine_thread_stop(struct engine_thread *thread) {
    if (thread == NULL) {
        return;
    }
    atomic_store_explicit(&thread->stop, true, memory_order_release);
    wake_thread(thread);
    pthread_join(thread->thread, NULL);
    free_thread(thread);
}

/* ---- producer */

static void push_command(struct engine_thread *thread, const struct command *command) {
    bool pushed = spsc_push(thread->commands, command);
    CHECK(pushed, "more than %d commands per sequence wait for the engine", COMMANDS_PER_SEQUENCE);
    wake_thread(thread);
}

/* The request and everything it points to in one allocation. */
static struct engine_request *copy_request(const struct engine_request *request) {
    const struct journal_params *params = &request->params;
    const struct {
        const void *bytes;
        size_t size;
    } parts[] = {{request->prompt, params->n_prompt * sizeof request->prompt[0]},
                 {request->stop_ids, params->n_stop_ids * sizeof request->stop_ids[0]},
                 {request->bias, params->n_bias * sizeof request->bias[0]},
                 {request->blob, params->n_blob}};
    size_t total = sizeof *request;
    for (size_t i = 0; i < 4; i++) {
        total += parts[i].size;
    }
    struct engine_request *copy = xrealloc(NULL, 1, total);
    char *at = (char *)(copy + 1);
    void *placed[4];
    for (size_t i = 0; i < 4; i++) {
        placed[i] = at;
        if (parts[i].size > 0) {
            memcpy(at, parts[i].bytes, parts[i].size);
            at += parts[i].size;
        }
    }
    *copy = (struct engine_request){
        .params = *params, .prompt = placed[0], .stop_ids = placed[1], .bias = placed[2], .blob = placed[3]};
    return copy;
}

enum status engine_thread_submit(struct engine_thread *thread, const struct engine_request *request) {
    if (thread->unanswered >= thread->n_sequences) {
        FAIL(STATUS_BUSY, "%u requests wait for the engine: come again", thread->unanswered);
    }
    thread->unanswered++;
    push_command(thread, &(struct command){.type = COMMAND_SUBMIT, .body.request = copy_request(request)});
    return STATUS_OK;
}

void engine_thread_end(struct engine_thread *thread, struct journal_handle handle, enum journal_finish finish,
                       uint32_t n_output) {
    push_command(
        thread,
        &(struct command){.type = COMMAND_END, .handle = handle, .body.end = {.finish = finish, .n_output = n_output}});
}

void engine_thread_release(struct engine_thread *thread, struct journal_handle handle) {
    push_command(thread, &(struct command){.type = COMMAND_RELEASE, .handle = handle});
}

void engine_thread_set_port(struct engine_thread *thread, struct worker_port *port) {
    push_command(thread, &(struct command){.type = COMMAND_SET_PORT, .body.port = port});
}

void engine_thread_port_lost(struct engine_thread *thread) {
    push_command(thread, &(struct command){.type = COMMAND_PORT_LOST});
}

void engine_thread_fail_all(struct engine_thread *thread, enum status status, const char *text) {
    push_command(thread,
                 &(struct command){.type = COMMAND_FAIL_ALL, .body.fail = {.status = status, .text = xstrdup(text)}});
}

/* ---- consumer */

static bool pop_event(struct engine_thread *thread, struct engine_event *event) {
    struct queued_event queued;
    if (!spsc_pop(thread->events, &queued)) {
        return false;
    }
    event->type = (enum engine_event_type)queued.type;
    event->user = queued.user;
    event->handle = queued.handle;
    event->status = (enum status)queued.status;
    event->text[0] = '\0';
    if (event->type == ENGINE_ADVANCED) {
        /* From here on the engine queues another one; a mark of a later generation stays. */
        uint32_t generation = queued.handle.generation;
        atomic_compare_exchange_strong_explicit(&thread->advanced[queued.handle.slot], &generation, 0,
                                                memory_order_acq_rel, memory_order_acquire);
        return true;
    }
    thread->unanswered--;
    if (event->type == ENGINE_REFUSED) {
        bool popped = spsc_pop(thread->refusals, event->text);
        CHECK(popped, "a refusal has no text");
    }
    return true;
}

bool engine_thread_event(struct engine_thread *thread, struct engine_event *event) {
    if (pop_event(thread, event)) {
        return true;
    }
    /* Whatever is queued from here on wakes again; what was queued before is looked for once more. */
    atomic_exchange_explicit(&thread->told, 0, memory_order_acq_rel);
    return pop_event(thread, event);
}

void engine_thread_stats(const struct engine_thread *thread, struct engine_stats *stats) {
    uint64_t words[STATS_WORDS], before, after;
    do {
        before = atomic_load_explicit(&thread->stats_version, memory_order_acquire);
        for (size_t i = 0; i < STATS_WORDS; i++) {
            words[i] = atomic_load_explicit(&thread->stats[i], memory_order_acquire);
        }
        after = atomic_load_explicit(&thread->stats_version, memory_order_relaxed);
    } while (before != after || before % 2 == 1);
    memcpy(stats, words, sizeof *stats);
}
