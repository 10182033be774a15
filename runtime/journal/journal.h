/* The journal: what must not be lost of every live request, in one memfd per replica that outlives the front-end. It
 * is also the output buffer: the engine appends the ids it was given, and HTTP, TCP and recovery read them by cursor.
 *
 * A table of slots and a pool of chunks. A slot holds one sequence (one choice of a request): its parameters, prompt
 * ids, output records. Its worst case (parameters + prompt + max_tokens records) is reserved at admission as a table of
 * chunks (the first few in the slot, the rest in a list of index chunks), so an append cannot fail and any position is
 * found at once. One writer: the engine thread. An append becomes visible by one release store of the slot's count;
 * readers (any thread of the process) load it with acquire. A slot's generation changes when it is freed: a stale
 * handle is told STATUS_NOT_FOUND, never another request's ids. A slot is freed only when its reader asked for it, so
 * nobody reads a slot while it is freed.
 *
 * Bytes found in a journal at recovery are not trusted: every index, count and link is checked before use, and a slot
 * that fails its checks is dropped alone. */
#ifndef TANDEM_JOURNAL_JOURNAL_H
#define TANDEM_JOURNAL_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"
#include "runtime/base/step.h"

struct journal;

/* Names a sequence for ever: slot index and generation. */
struct journal_handle {
    uint32_t slot;
    uint32_t generation;
};

enum journal_finish {
    JOURNAL_RUNNING = 0,
    JOURNAL_FINISH_STOP,   /* an end id, a stop id, or a stop text found by the reader */
    JOURNAL_FINISH_LENGTH, /* max_tokens or the context limit */
    JOURNAL_FINISH_CANCELLED,
    JOURNAL_FINISH_ERROR, /* see error_code */
};

/* What a sequence was asked to be; fixed at admission. */
struct journal_params {
    uint8_t request_id[16]; /* of the request, shared by its choices */
    uint64_t user;          /* the submitter's own number, for recovery */
    uint64_t arrival_ns;    /* CLOCK_MONOTONIC */
    uint64_t deadline_ns;   /* 0: none */
    struct step_sampling sampling;
    uint32_t n_prompt;
    uint32_t max_tokens;
    uint32_t n_stop_ids; /* end ids included, unless ignore_eos */
    uint32_t n_bias;
    uint32_t n_blob; /* bytes of what only the submitter understands (stop texts, API kind, ...) */
    uint32_t flags;  /* JOURNAL_SURVIVES_FRONTEND */
};

enum { JOURNAL_SURVIVES_FRONTEND = 1 }; /* recovered after a front-end's death; else dropped then */

/* One output token. Log-probabilities are stored only when sampling.n_logprobs >= 0, tops only when > 0. */
struct journal_token {
    uint32_t id;
    float logprob;
    uint32_t n_top;
    uint32_t top_id[STEP_MAX_LOGPROBS];
    float top_logprob[STEP_MAX_LOGPROBS];
};

/* Size of a memfd for `n_slots` sequences and a pool of at least `pool_bytes`. */
size_t journal_bytes(uint32_t n_slots, size_t pool_bytes);

/* Maps the memfd; `format` lays out an empty journal first. Without it the content is recovered: header checked,
 * chunk lists walked, unreachable chunks returned to the pool, damaged slots and those without
 * JOURNAL_SURVIVES_FRONTEND dropped. STATUS_INVALID when the header itself is damaged. */
enum status journal_open(int fd, size_t bytes, uint32_t n_slots, bool format, struct journal **journal);
void journal_close(struct journal *journal);

/* ---- writer (engine thread only) */

/* Reserves the worst case and stores parameters, prompt, stop ids, bias and blob. STATUS_BUSY when slots or chunks are
 * short now, STATUS_LIMIT when the request could never fit. */
enum status journal_admit(struct journal *journal, const struct journal_params *params, const uint32_t *prompt,
                          const uint32_t *stop_ids, const struct step_bias *bias, const void *blob,
                          struct journal_handle *handle);
/* Appends one token; at most max_tokens of them. */
void journal_append(struct journal *journal, struct journal_handle handle, const struct journal_token *token);
/* Ends the sequence at its first `n_output` tokens (no more than it has): later ones were computed past a stop and do
 * not count. */
void journal_finish(struct journal *journal, struct journal_handle handle, enum journal_finish finish,
                    enum status error_code, const char *error_text, uint32_t n_output);
/* Frees slot and chunks and changes the generation. */
void journal_release(struct journal *journal, struct journal_handle handle);
/* Deaths of the group that found this sequence in flight with no new token of its own since the death before. */
uint32_t journal_deaths(const struct journal *journal, struct journal_handle handle);
void journal_set_deaths(struct journal *journal, struct journal_handle handle, uint32_t deaths);

/* Calls `visit` for every live sequence, in admission order. */
void journal_each(struct journal *journal, void (*visit)(void *context, struct journal_handle handle), void *context);

/* ---- readers */

/* A sequence as it stands now. `error_text` is "" unless finish is JOURNAL_FINISH_ERROR. */
struct journal_state {
    struct journal_params params;
    uint32_t n_output; /* final once finish is not JOURNAL_RUNNING */
    enum journal_finish finish;
    enum status error_code;
    char error_text[256];
};
enum status journal_state(const struct journal *journal, struct journal_handle handle, struct journal_state *state);

/* Cheap poll for readers: how many tokens there are and whether it has ended. */
enum status journal_progress(const struct journal *journal, struct journal_handle handle, uint32_t *n_output,
                             enum journal_finish *finish);

/* Copies output tokens [first, first + count), which must exist, to `tokens`. */
enum status journal_read(const struct journal *journal, struct journal_handle handle, uint32_t first, uint32_t count,
                         struct journal_token *tokens);
/* As above, ids only. */
enum status journal_read_ids(const struct journal *journal, struct journal_handle handle, uint32_t first,
                             uint32_t count, uint32_t *ids);
/* The fixed parts: `prompt` holds n_prompt ids, and so on; any of them may be NULL. */
enum status journal_read_fixed(const struct journal *journal, struct journal_handle handle, uint32_t *prompt,
                               uint32_t *stop_ids, struct step_bias *bias, void *blob);

/* Part of the prompt: ids [first, first + count), which must exist. */
enum status journal_read_prompt(const struct journal *journal, struct journal_handle handle, uint32_t first,
                                uint32_t count, uint32_t *ids);

/* Sequences the journal has room for: handles' slots are below it. */
uint32_t journal_slots(const struct journal *journal);

/* Bytes of the pool that a sequence of these parameters takes; 0 for parameters that are refused. */
uint64_t journal_need(const struct journal_params *params);

/* Bytes of the pool in use and in all. */
void journal_usage(const struct journal *journal, size_t *used, size_t *total);

#endif
