/* A thread around an engine, with bounded queues: the front-end's loop is the only producer of commands and the only
 * consumer of events. The thread sleeps in poll(2) on the port's links and an eventfd. */
#ifndef TANDEM_ENGINE_ENGINE_THREAD_H
#define TANDEM_ENGINE_ENGINE_THREAD_H

#include "runtime/engine/engine.h"

struct engine_thread;

enum engine_event_type {
    ENGINE_ADMITTED, /* answer to a submit: `handle` is the sequence's */
    ENGINE_REFUSED,  /* answer to a submit: `status` and `text` say why */
    ENGINE_ADVANCED, /* the sequence has new tokens or has ended: read the journal. At most one is queued per sequence
                      */
};

struct engine_event {
    enum engine_event_type type;
    uint64_t user;
    struct journal_handle handle;
    enum status status;
    char text[160];
};

struct engine_thread_config {
    struct engine_config engine; /* notify and context are the thread's own; leave them empty */
    bool recover;                /* engine_recover first */
    /* Called on the engine thread when events wait and the loop was not yet told (for instance uv_async_send). */
    void (*wake)(void *context);
    void *context;
};

enum status engine_thread_start(const struct engine_thread_config *config, struct engine_thread **thread);
/* Stops and joins. What is live stays in the journal; ends and releases given before are done. */
void engine_thread_stop(struct engine_thread *thread);

/* Commands; all copy what they are given. STATUS_BUSY when the command queue is full (only submit can be: room is kept
 * for the others). `params.user` comes back in events. */
enum status engine_thread_submit(struct engine_thread *thread, const struct engine_request *request);
void engine_thread_end(struct engine_thread *thread, struct journal_handle handle, enum journal_finish finish,
                       uint32_t n_output);
void engine_thread_release(struct engine_thread *thread, struct journal_handle handle);
void engine_thread_set_port(struct engine_thread *thread, struct worker_port *port);
void engine_thread_port_lost(struct engine_thread *thread);
void engine_thread_fail_all(struct engine_thread *thread, enum status status, const char *text);

/* Takes the next event; false when there is none. The reader of ADVANCED reads the journal after this call, so that
 * nothing that came before the event is missed. What came after it may have been read too: an ADVANCED can follow for a
 * sequence whose end was seen and which was released; its handle is stale then, and it is to be ignored. */
bool engine_thread_event(struct engine_thread *thread, struct engine_event *event);

/* A copy of the newest stats, refreshed at each tick. */
void engine_thread_stats(const struct engine_thread *thread, struct engine_stats *stats);

#endif
