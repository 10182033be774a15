/* The simulator: engine, journal, readers and a fake group of workers in one thread, driven from one seed. Requests
 * arrive, share prefixes, come in choices, are cancelled, stop by their reader's word, run into deadlines, draw NaN or
 * kill their workers; workers are slow, stall and die; the front-end dies and recovers its journal. Whatever happens,
 * the tokens of every sequence are those of an undisturbed computation, and the engine's invariants hold after every
 * call. */
#ifndef TANDEM_TESTS_ENGINE_SUPPORT_SIM_H
#define TANDEM_TESTS_ENGINE_SUPPORT_SIM_H

#include <stdint.h>

/* What happened, so that a test can say that the seeds reached it. */
struct sim_totals {
    uint64_t seeds, requests, tokens, steps;
    uint64_t finished_stop, finished_length, stopped_by_reader, cancelled, timed_out, not_finite, given_up;
    uint64_t refused_busy, refused_limit;
    uint64_t worker_deaths, frontend_deaths, lost_with_frontend;
    uint64_t preemptions, replays, cached_tokens, alone_steps;
    uint64_t digest; /* of everything the readers saw, in order */
};

/* Runs one seed and adds to the totals. A violation prints the seed and aborts. */
void sim_run(uint64_t seed, struct sim_totals *totals);

#endif
