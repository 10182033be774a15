/* What the engine is made of. Private to runtime/engine; the parts are sequence.c (a sequence's life), sched.c (what
 * runs in the next step), apply.c (what came back) and engine.c (the public face). */
#ifndef TANDEM_ENGINE_ENGINE_STATE_H
#define TANDEM_ENGINE_ENGINE_STATE_H

#include "runtime/engine/engine.h"
#include "runtime/engine/kv_blocks.h"

#define ENGINE_MAX_DEPTH 2 /* steps in flight */
#define NO_SEQUENCE UINT32_MAX
#define NO_SLOT UINT32_MAX

enum sequence_state {
    SEQUENCE_FREE = 0,
    SEQUENCE_WAITING, /* in the waiting list; holds neither slot nor blocks */
    SEQUENCE_RUNNING, /* in the running array; holds a slot and blocks */
    SEQUENCE_ENDED,   /* only its journal slot is left, until its reader releases it */
};

/* One sequence; its index is its journal slot's. Ids count from the prompt's first: [0, n_prompt) the prompt,
 * [n_prompt, n_known) the output in the journal; up to two more may be on the device, sampled by steps in flight. */
struct sequence {
    /* Names one stay in a slot. Rows of steps in flight carry it: what comes back for a stay that is over is discarded.
     * 0 while not running; never used twice. */
    uint64_t ticket;
    uint64_t order; /* of admission; the smaller, the older */
    uint32_t n_known;
    uint32_t n_planned;  /* positions whose KV is computed or being computed by submitted steps */
    uint32_t n_unknown;  /* ids that steps in flight will sample */
    uint32_t max_ids;    /* it ends when n_known reaches this */
    uint32_t slot;       /* on the device */
    uint32_t n_blocks;   /* held; their numbers lie in engine.tables */
    uint32_t n_entered;  /* leading blocks that were offered to the prefix cache or came from it */
    uint8_t state;       /* enum sequence_state */
    bool prefilling;     /* running, and no token came back since it got its slot */
    bool dirty;          /* listed in engine.dirty */
    bool ran;            /* had a slot before */
    uint64_t chain;      /* serial of the cached chain of n_entered blocks */
    uint32_t deaths;     /* as in the journal */
    uint32_t n_stop_ids; /* listed in engine.stop_ids */
    int32_t n_logprobs;
    uint32_t n_prompt;
    struct journal_handle handle;
    uint64_t user;
    uint64_t deadline_ns; /* UINT64_MAX for none */
    uint32_t prev, next;  /* of the waiting list */
    uint8_t request_id[16];
};

struct flight_row {
    uint64_t ticket;
    uint32_t sequence;
    uint32_t end; /* positions computed after this row */
    bool sampled;
};

/* A step that was submitted and has not come back. */
struct flight {
    uint64_t step_id;
    uint32_t n_rows, n_sampled;
    struct flight_row *rows; /* [max_rows] */
};

struct engine {
    struct engine_config config;
    struct step_limits limits;
    struct journal *journal;
    struct worker_port *port; /* NULL while no group is up */
    struct kv_blocks *kv;
    struct step_builder *builder;
    uint32_t depth; /* steps that may be in flight */

    uint32_t n_sequences; /* of the journal */
    struct sequence *sequences;
    uint32_t *stop_ids; /* [n_sequences][ENGINE_MAX_STOP_IDS] */
    uint64_t next_order, next_ticket;

    uint32_t waiting_first, waiting_last; /* sorted by order */
    uint32_t n_waiting, n_waiting_new;    /* new: without a stay in a slot so far */
    uint32_t *running;                    /* [n_slots], sorted by order */
    uint32_t n_running, n_prefilling;

    uint32_t table_len; /* entries of a block table */
    uint32_t *tables;   /* [n_slots][table_len] */
    uint32_t *free_slots;
    uint32_t n_free_slots;

    struct flight flights[ENGINE_MAX_DEPTH]; /* step s at s % ENGINE_MAX_DEPTH */
    uint32_t n_flights;
    uint64_t next_step;

    uint32_t n_suspects; /* live sequences that must run alone */
    uint32_t alone;      /* the one that does now, or NO_SEQUENCE */

    uint32_t blocked;                        /* the sequence that found too few free blocks when ... */
    uint64_t blocked_freed, blocked_running; /* ... these were as they are */

    uint64_t next_deadline_ns; /* no live sequence has an earlier one */

    uint32_t *dirty; /* sequences to notify about */
    uint32_t n_dirty;
    uint32_t *ids;          /* scratch, [max_len] */
    uint32_t *hits;         /* scratch, [table_len] */
    struct step_bias *bias; /* scratch, [STEP_MAX_LOGIT_BIAS] */
    uint32_t *block_ids;    /* scratch, [block_size] */
    uint32_t *references;   /* scratch of engine_check, [n_blocks] */
    struct engine_stats stats;
};

static inline uint32_t *sequence_table(const struct engine *engine, const struct sequence *sequence) {
    return engine->tables + (size_t)sequence->slot * engine->table_len;
}

static inline bool sequence_live(const struct sequence *sequence) {
    return sequence->state == SEQUENCE_WAITING || sequence->state == SEQUENCE_RUNNING;
}

/* ---- sequence.c */

/* The sequence a handle names, or NO_SEQUENCE when it is stale. */
uint32_t sequence_find(const struct engine *engine, struct journal_handle handle);
/* Checks a request against the limits; STATUS_INVALID or STATUS_LIMIT name the field. Cuts params->max_tokens to what
 * the context allows and sets the fields of params->sampling that follow from others. */
enum status sequence_check(const struct engine *engine, const struct engine_request *request,
                           struct journal_params *params);
/* Fills in the sequence of an admitted journal slot and puts it last in the waiting list. */
uint32_t sequence_add(struct engine *engine, struct journal_handle handle, const struct journal_params *params,
                      const uint32_t *stop_ids, uint32_t n_output);
/* Copies ids [first, first + count), all of them known, from the journal. */
void sequence_ids(const struct engine *engine, const struct sequence *sequence, uint32_t first, uint32_t count,
                  uint32_t *ids);
/* Whether the newest output ends the sequence. */
enum journal_finish sequence_ends(const struct engine *engine, uint32_t index, uint32_t id);
/* From waiting to running: gives it a slot. Its first n_blocks table entries are filled in by the caller. */
void sequence_start(struct engine *engine, uint32_t index);
/* From running to waiting: slot and blocks are free again, what steps in flight compute for it is discarded. */
void sequence_stop(struct engine *engine, uint32_t index);
/* Ends a live sequence in the journal and frees what it holds. */
void sequence_finish(struct engine *engine, uint32_t index, enum journal_finish finish, enum status error_code,
                     const char *error_text, uint32_t n_output);
/* Makes a waiting sequence one that had ended before the engine took it over. */
void sequence_retire(struct engine *engine, uint32_t index);
/* Stores the deaths of a live sequence; keeps the count of suspects. */
void sequence_set_deaths(struct engine *engine, uint32_t index, uint32_t deaths);
/* Remembers to notify; engine_flush does it. */
void sequence_touch(struct engine *engine, uint32_t index);
void engine_flush(struct engine *engine);

/* ---- sched.c */

/* Plans one step into the builder and the next flight; returns false when nothing can run now. */
bool sched_plan(struct engine *engine);

/* ---- apply.c */

/* Applies the results of the oldest step in flight. STATUS_INTERNAL when they do not belong to it. */
enum status apply_step(struct engine *engine, const struct port_event *event);

#endif
