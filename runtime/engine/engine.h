/* The brain of one replica: it alone decides what runs, in which row order. Pure C in one thread: no socket, no clock,
 * no thread of its own. The shell in engine_thread.h drives it; the simulator drives the same code from a seed.
 *
 * Every sequence (one choice of a request) is a journal slot from admission to release. Its tokens appear in the
 * journal; `notify` tells which slots moved. What runs is decided once per step: decodes first, then the running
 * prefill, then new ones, up to max_num_batched_tokens; KV blocks are reserved for the most a step may write, and when
 * they run out the youngest sequence is preempted and recomputed later. In the overlapped loop step k+1 is planned and
 * submitted while step k runs; the plain loop waits for each step and is the specification: both give the same tokens.
 *
 * When the group is lost the engine keeps every live sequence; when a new port arrives it replays them: prefill of
 * prompt and of the tokens already in the journal, then on. A sequence that was in flight at two deaths without a new
 * token of its own is replayed alone; at the third it fails, alone. */
#ifndef TANDEM_ENGINE_ENGINE_H
#define TANDEM_ENGINE_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"
#include "runtime/engine/worker_port.h"
#include "runtime/journal/journal.h"

struct engine;

#define ENGINE_MAX_STOP_IDS 64 /* of one sequence; end ids count */

struct engine_config {
    struct step_limits limits;
    uint32_t queue_max; /* sequences that may wait for their first step; more are refused with STATUS_BUSY */
    bool prefix_cache;
    bool overlap; /* plan step k+1 while k runs */
    struct journal *journal;
    /* A sequence has new tokens or has ended. Called from engine_tick and engine_submit/cancel, many times at most
     * once per tick and sequence. */
    void (*notify)(void *context, struct journal_handle handle, uint64_t user);
    void *context;
};

/* One sequence to run; pointers are borrowed for the call. See struct journal_params for the fields' meaning. */
struct engine_request {
    struct journal_params params;
    const uint32_t *prompt;
    const uint32_t *stop_ids;
    const struct step_bias *bias;
    const void *blob;
};

struct engine_stats {
    uint32_t running, waiting;
    uint32_t blocks_used, blocks_cached, blocks_total; /* used: held by sequences; cached: free, content kept */
    uint64_t steps, prompt_tokens, generation_tokens,
        cached_tokens;                    /* cached: prompt tokens found in the prefix cache */
    uint64_t prefix_queries, prefix_hits; /* in tokens, as vLLM counts them */
    uint64_t preemptions, replays;
    uint64_t finished[5];       /* by enum journal_finish */
    uint64_t plan_ns, apply_ns; /* time of the last step's planning and applying */
};

struct engine *engine_create(const struct engine_config *config);
void engine_destroy(struct engine *engine);

/* Admits a sequence: STATUS_BUSY (queue or journal full: come again), STATUS_LIMIT (could never fit), STATUS_INVALID.
 * It is queued also while no group is up. */
enum status engine_submit(struct engine *engine, const struct engine_request *request, uint64_t now_ns,
                          struct journal_handle *handle);

/* Ends a sequence at `n_output` tokens with FINISH_STOP (a stop text was found by its reader) or FINISH_CANCELLED. A
 * stale handle or one that has ended already is ignored. */
void engine_end(struct engine *engine, struct journal_handle handle, enum journal_finish finish, uint32_t n_output);

/* The reader is done with an ended sequence: its journal slot is freed (as soon as no step in flight names it). */
void engine_release(struct engine *engine, struct journal_handle handle);

/* A new group is up / the group is gone (also reported by the port itself). The engine owns the port. */
void engine_set_port(struct engine *engine, struct worker_port *port, uint64_t now_ns);
void engine_port_lost(struct engine *engine, uint64_t now_ns);

/* Fails every live sequence with this status and text: the group was given up. */
void engine_fail_all(struct engine *engine, enum status status, const char *text);

/* Takes what the port has, applies it, plans and submits. Never blocks. Returns true when it did something and may
 * have more to do at once. */
bool engine_tick(struct engine *engine, uint64_t now_ns);

/* Nothing is running, waiting or in flight. */
bool engine_idle(const struct engine *engine);

/* Descriptors to poll(2) for POLLIN before engine_tick can have more from the port; returns their number, at most
 * ENGINE_MAX_DESCRIPTORS. Ask again before each wait. */
#define ENGINE_MAX_DESCRIPTORS 16
uint32_t engine_descriptors(const struct engine *engine, int *fds);

/* When engine_tick must be called again although nothing arrives (a deadline); UINT64_MAX for never. */
uint64_t engine_next_ns(const struct engine *engine);

void engine_stats(const struct engine *engine, struct engine_stats *stats);

/* Checks every invariant (free + cached + held blocks are all of them, reference counts, table contents); aborts on a
 * violation. For tests, the simulator, and idle moments. */
void engine_check(const struct engine *engine);

/* Takes over the live sequences of a recovered journal; call once, before the first tick. */
void engine_recover(struct engine *engine);

#endif
