/* Requests that outlive a front-end: each sequence's journal slot says whose it is and how its output is written. A
 * request is taken over when all its sequences are there and agree; nothing that is read here is believed. */
#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/base/log.h"
#include "runtime/request/request_record.h"
#include "runtime/server/server_internal.h"

#define HEAD_BYTES 28
#define MAX_BLOB_BYTES TSP_MAX_PAYLOAD /* an echo is no longer than half a frame */

struct head {
    uint64_t owner, hash;
    uint32_t index, n_choices, prompt_tokens;
};

void tsp_record_write(const struct tsp_request *request, uint32_t index, struct buf *out) {
    struct byte_writer writer = {.start = (uint8_t *)buf_reserve(out, HEAD_BYTES), .capacity = HEAD_BYTES};
    write_u64(&writer, request->owner);
    write_u64(&writer, request->hash);
    write_u32(&writer, index);
    write_u32(&writer, request->n_choices);
    write_u32(&writer, request->prompt_tokens);
    out->size += writer.size;
    request_record_write(request->request, index / request->request->n, out);
}

/* A sequence that was found. */
struct found {
    struct server *server;
    struct replica *replica;
    struct journal_handle handle;
    struct journal_state state;
    struct head head;
    struct request *request; /* of the record; taken over or freed */
};

static enum status read_blob(struct found *found, const uint8_t *blob, size_t size) {
    struct byte_reader reader = {.next = blob, .left = size};
    struct head *head = &found->head;
    head->owner = read_u64(&reader);
    head->hash = read_u64(&reader);
    head->index = read_u32(&reader);
    head->n_choices = read_u32(&reader);
    head->prompt_tokens = read_u32(&reader);
    if (reader.failed || head->n_choices == 0 || head->n_choices > REQUEST_MAX_SEQUENCES ||
        head->index >= head->n_choices) {
        FAIL(STATUS_INVALID, "its record is malformed");
    }
    /* The prompt's number needs n, which stands second in the record. */
    struct byte_reader ahead = reader;
    read_u32(&ahead);
    uint32_t n = read_u32(&ahead);
    if (n == 0) {
        FAIL(STATUS_INVALID, "its record is malformed");
    }
    TRY(request_record_read(reader.next, reader.left, head->index / n, &found->request));
    if (request_sequences(found->request) != head->n_choices) {
        FAIL(STATUS_INVALID, "its record counts %u sequences, its request %u", head->n_choices,
             request_sequences(found->request));
    }
    return STATUS_OK;
}

static enum status read_found(struct found *found) {
    struct journal *journal = found->replica->journal;
    TRY(journal_state(journal, found->handle, &found->state));
    const struct journal_params *params = &found->state.params;
    if (params->n_blob > MAX_BLOB_BYTES || params->n_stop_ids > REQUEST_MAX_STOP_IDS) {
        FAIL(STATUS_INVALID, "its record is too long");
    }
    uint8_t *blob = xcalloc(params->n_blob + 1, 1);
    uint32_t stop_ids[REQUEST_MAX_STOP_IDS];
    enum status status = journal_read_fixed(journal, found->handle, NULL, stop_ids, NULL, blob);
    if (status == STATUS_OK) {
        status = read_blob(found, blob, params->n_blob);
    }
    free(blob);
    TRY(status);
    memcpy(found->request->stop_ids, stop_ids, params->n_stop_ids * sizeof stop_ids[0]);
    found->request->n_stop_ids = params->n_stop_ids;
    found->request->sampling.n_logprobs = params->sampling.n_logprobs;
    return STATUS_OK;
}

static struct tsp_request *make_request(struct found *found) {
    const struct head *head = &found->head;
    struct tsp_request *request = xcalloc(1, sizeof *request);
    request->server = found->server;
    request->replica = found->replica;
    request->state = TSP_RUNNING;
    memcpy(request->id, found->state.params.request_id, TSP_ID_BYTES);
    request->owner = head->owner;
    request->hash = head->hash;
    request->remembered = true;
    request->until_ms = server_now_ms(found->server) + found->server->init.tsp.resume_window_ms;
    request->arrival_ns = found->state.params.arrival_ns;
    request->deadline_ns = found->state.params.deadline_ns;
    request->prompt_tokens = head->prompt_tokens;
    request->request = found->request;
    found->request = NULL;
    tsp_request_make_choices(request, head->n_choices);
    tsp_enter(request);
    return request;
}

/* The echo of another prompt than the first one's. */
static void take_echo(struct tsp_request *request, struct found *found) {
    struct request *own = request->request;
    struct request *other = found->request;
    uint32_t prompt = found->head.index / own->n;
    if (other != NULL && other->echo != NULL && own->echo != NULL && own->echo[prompt] == NULL) {
        own->echo[prompt] = other->echo[prompt];
        own->echo_size[prompt] = other->echo_size[prompt];
        other->echo[prompt] = NULL;
    }
}

static enum status add_choice(struct found *found) {
    const struct head *head = &found->head;
    struct tsp_request *request = tsp_find(found->server, found->state.params.request_id, head->owner);
    if (request == NULL) {
        request = make_request(found);
    } else {
        const struct request *own = request->request;
        const struct request *other = found->request;
        if (request->replica != found->replica || request->n_choices != head->n_choices ||
            request->hash != head->hash || own->n != other->n || (own->echo == NULL) != (other->echo == NULL)) {
            FAIL(STATUS_INVALID, "it differs from the rest of its request");
        }
    }
    take_echo(request, found);
    struct tsp_choice *choice = &request->choices[head->index];
    if (choice->admitted) {
        FAIL(STATUS_INVALID, "another sequence has its place");
    }
    if (!replicas_enter_at(found->server, found->state.params.user, &choice->client)) {
        FAIL(STATUS_INVALID, "its number is taken");
    }
    choice->user = found->state.params.user;
    choice->entered = choice->admitted = choice->answered = true;
    choice->handle = found->handle;
    choice->n_seen = found->state.n_output;
    choice->ended = found->state.finish != JOURNAL_RUNNING;
    found->replica->live++;
    request->n_answered++;
    return STATUS_OK;
}

/* The front-end died after it had forgotten the request, before the engine gave the slot back. */
static bool is_forgotten(const struct found *found) {
    return once_has(found->server->tsp.once, found->state.params.request_id, found->head.owner);
}

static void visit(void *context, struct journal_handle handle) {
    struct found *found = context;
    found->handle = handle;
    found->request = NULL;
    enum status status = read_found(found);
    if (status == STATUS_OK && is_forgotten(found)) {
        journal_release(found->replica->journal, handle);
    } else if (status == STATUS_OK) {
        status = add_choice(found);
    }
    request_free(found->request);
    if (status != STATUS_OK) {
        log_warn("a journaled sequence is dropped: %s", status_text());
        journal_release(found->replica->journal, handle);
    }
}

/* The engine does not run yet: the journal is ours to write. */
static void drop(struct tsp_request *request) {
    for (uint32_t i = 0; i < request->n_choices; i++) {
        struct tsp_choice *choice = &request->choices[i];
        if (choice->admitted) {
            journal_release(request->replica->journal, choice->handle);
            replicas_leave(request->server, choice->user);
            request->replica->live--;
        }
    }
    tsp_leave(request);
    tsp_request_free(request);
}

static bool is_whole(const struct tsp_request *request) {
    const struct request *asked = request->request;
    bool whole = request->n_answered == request->n_choices;
    for (uint32_t i = 0; asked->echo != NULL && i < asked->n_prompts; i++) {
        whole = whole && asked->echo[i] != NULL;
    }
    return whole;
}

void tsp_recover(struct server *server, struct replica *replica) {
    struct found found = {.server = server, .replica = replica};
    uint32_t n = 0;
    uv_update_time(&server->loop); /* windows begin now, and not before the tokenizer was loaded */
    journal_each(replica->journal, visit, &found);
    for (struct tsp_request *request = server->tsp.requests, *next; request != NULL; request = next) {
        next = request->next;
        if (request->replica != replica) {
            continue;
        }
        if (is_whole(request)) {
            n++;
        } else {
            log_warn("a journaled request is dropped: %u of its %u sequences were taken", request->n_answered,
                     request->n_choices);
            drop(request);
        }
    }
    if (n > 0) {
        log_info("%u requests are taken over; they wait for their clients", n);
    }
}
