/* The engines: one journal and one thread for each replica, and the numbers by which they know our sequences. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/server/frontend.h"
#include "runtime/server/server_internal.h"

#define EVENTS_PER_WAKE 256 /* then sockets get their turn */

/* ---- numbers */

static void grow_entries(struct server *server) {
    uint32_t n = server->n_entries > 0 ? server->n_entries * 2 : 256;
    server->entries = xrealloc(server->entries, n, sizeof *server->entries);
    for (uint32_t i = n; i-- > server->n_entries;) {
        server->entries[i] = (struct client_entry){.generation = 1, .next_free = server->free_entry};
        server->free_entry = i;
    }
    server->n_entries = n;
}

uint64_t replicas_enter(struct server *server, struct sequence_client *client) {
    if (server->free_entry == UINT32_MAX) {
        grow_entries(server);
    }
    uint32_t index = server->free_entry;
    struct client_entry *entry = &server->entries[index];
    server->free_entry = entry->next_free;
    entry->client = client;
    return (uint64_t)entry->generation << 32 | index;
}

/* The client of a number; NULL for one that has gone out of use. */
static struct sequence_client *find_client(struct server *server, uint64_t user) {
    uint32_t index = (uint32_t)user;
    if (index >= server->n_entries || server->entries[index].generation != user >> 32) {
        return NULL;
    }
    return server->entries[index].client;
}

/* No table has more entries than twice the sequences there can be, rounded up. */
bool replicas_enter_at(struct server *server, uint64_t user, struct sequence_client *client) {
    uint32_t index = (uint32_t)user;
    uint64_t most =
        4ull * server->init.n_replicas * frontend_journal_slots(&server->init.limits, server->init.queue_max);
    if (index >= (most > 256 ? most : 256)) {
        return false;
    }
    while (index >= server->n_entries) {
        grow_entries(server);
    }
    struct client_entry *entry = &server->entries[index];
    if (entry->client != NULL) {
        return false;
    }
    entry->client = client;
    entry->generation = (uint32_t)(user >> 32);
    return true;
}

void replicas_entered(struct server *server) {
    server->free_entry = UINT32_MAX;
    for (uint32_t i = server->n_entries; i-- > 0;) {
        if (server->entries[i].client == NULL) {
            server->entries[i].next_free = server->free_entry;
            server->free_entry = i;
        }
    }
}

void replicas_leave(struct server *server, uint64_t user) {
    struct client_entry *entry = &server->entries[(uint32_t)user];
    CHECK(entry->client != NULL && entry->generation == user >> 32, "a sequence left twice");
    entry->client = NULL;
    entry->generation++;
    entry->next_free = server->free_entry;
    server->free_entry = (uint32_t)user;
}

/* ---- room */

enum status replicas_check(const struct replica *replica, const struct request *request) {
    const struct frontend_init *init = &replica->server->init;
    uint32_t n = request_sequences(request);
    if (n > init->limits.n_slots + init->queue_max) {
        FAIL(STATUS_INVALID, "n: %u answers at once; this server makes %u and lets %u wait: ask for fewer", n,
             init->limits.n_slots, init->queue_max);
    }
    uint64_t need = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct engine_request wanted;
        request_sequence(request, i, &wanted);
        need += journal_need(&wanted.params);
    }
    size_t used;
    size_t room;
    journal_usage(replica->journal, &used, &room);
    if (need > room) {
        FAIL(STATUS_LIMIT,
             "max_tokens: %u answers of this length need %llu bytes of the journal, it has %zu: ask for fewer tokens, "
             "answers or log-probabilities",
             n, (unsigned long long)need, room);
    }
    return STATUS_OK;
}

/* ---- events */

static void on_event(struct server *server, const struct engine_event *event) {
    struct sequence_client *client = find_client(server, event->user);
    if (client != NULL) { /* else it was let go before it heard of this */
        client->on_event(client, event);
    }
}

/* A group that brought a token did not die of what it was given: the supervisor forgives the deaths before. */
static void note_progress(struct replica *replica) {
    if (!replica->up || replica->progressed) {
        return;
    }
    struct engine_stats stats;
    engine_thread_stats(replica->thread, &stats);
    if (stats.generation_tokens > replica->tokens_before) {
        replica->progressed = true;
        struct server *server = replica->server;
        server->progressed(server->callback_context, (uint32_t)(replica - server->replicas));
    }
}

static void on_wake(uv_async_t *async) {
    struct replica *replica = async->data;
    note_progress(replica);
    struct engine_event event;
    for (int i = 0; i < EVENTS_PER_WAKE; i++) {
        if (!engine_thread_event(replica->thread, &event)) {
            return;
        }
        on_event(replica->server, &event);
    }
    uv_async_send(&replica->wake);
}

static void wake(void *context) {
    struct replica *replica = context;
    uv_async_send(&replica->wake);
}

/* ---- life */

static enum status open_replica(struct server *server, struct replica *replica, int journal_fd) {
    const struct frontend_init *init = &server->init;
    replica->server = server;
    uv_async_init(&server->loop, &replica->wake, on_wake);
    replica->wake.data = replica;
    server->n_replicas++;
    uint32_t n_slots = frontend_journal_slots(&init->limits, init->queue_max);
    enum status status =
        journal_open(journal_fd, (size_t)init->journal_bytes, n_slots, init->recover == 0, &replica->journal);
    close(journal_fd); /* the mapping stays */
    TRY(status);
    if (init->recover != 0) {
        tsp_recover(server, replica);
    }
    struct engine_thread_config config = {
        .engine = {.limits = init->limits,
                   .queue_max = init->queue_max,
                   .prefix_cache = init->prefix_cache != 0,
                   .overlap = true,
                   .journal = replica->journal},
        .recover = init->recover != 0,
        .wake = wake,
        .context = replica,
    };
    return engine_thread_start(&config, &replica->thread);
}

enum status replicas_open(struct server *server, const int *journals) {
    server->free_entry = UINT32_MAX;
    for (uint32_t i = 0; i < server->init.n_replicas; i++) {
        enum status status = open_replica(server, &server->replicas[i], journals[i]);
        if (status != STATUS_OK) {
            for (uint32_t rest = i + 1; rest < server->init.n_replicas; rest++) {
                close(journals[rest]);
            }
            return status;
        }
    }
    replicas_entered(server);
    return STATUS_OK;
}

void replicas_close(struct server *server) {
    for (uint32_t i = 0; i < server->n_replicas; i++) {
        struct replica *replica = &server->replicas[i];
        if (replica->thread != NULL) {
            engine_thread_stop(replica->thread);
        }
        if (replica->journal != NULL) {
            journal_close(replica->journal);
        }
        uv_close((uv_handle_t *)&replica->wake, NULL);
    }
    for (uint32_t i = 0; i < server->n_entries; i++) {
        if (server->entries[i].client != NULL) {
            server->entries[i].client->discard(server->entries[i].client);
        }
    }
    free(server->entries);
}

/* ---- choice */

static int rank(const struct replica *replica) {
    return replica->failed ? 2 : replica->up ? 0 : 1;
}

struct replica *replicas_choose(struct server *server) {
    struct replica *best = &server->replicas[0];
    for (uint32_t i = 1; i < server->n_replicas; i++) {
        struct replica *replica = &server->replicas[i];
        if (rank(replica) < rank(best) || (rank(replica) == rank(best) && replica->live < best->live)) {
            best = replica;
        }
    }
    return best;
}

/* ---- groups */

void server_group_up(struct server *server, uint32_t replica_index, struct worker_port *port,
                     const struct worker_ready *ready) {
    struct replica *replica = &server->replicas[replica_index];
    struct engine_stats stats;
    engine_thread_stats(replica->thread, &stats);
    replica->tokens_before = stats.generation_tokens;
    replica->progressed = false;
    replica->up = true;
    replica->failed = false;
    replica->ready = *ready;
    engine_thread_set_port(replica->thread, port);
}

void server_group_down(struct server *server, uint32_t replica_index) {
    struct replica *replica = &server->replicas[replica_index];
    replica->up = false;
    replica->downs++;
    engine_thread_port_lost(replica->thread);
}

void server_group_failed(struct server *server, uint32_t replica_index, const char *cause) {
    struct replica *replica = &server->replicas[replica_index];
    replica->up = false;
    replica->failed = true;
    snprintf(replica->cause, sizeof replica->cause, "%s", cause);
    char text[600];
    snprintf(text, sizeof text, "The model is not available: %s", replica->cause);
    engine_thread_port_lost(replica->thread);
    engine_thread_fail_all(replica->thread, STATUS_CLOSED, text);
}
