/* One line of `tandem generate`, from its JSON to the line that is written for it. */
#ifndef TANDEM_LAUNCHER_OFFLINE_JOB_H
#define TANDEM_LAUNCHER_OFFLINE_JOB_H

#include "runtime/engine/engine_thread.h"
#include "runtime/request/output.h"

enum job_state {
    JOB_WAITING, /* to be submitted (again) */
    JOB_SUBMITTED,
    JOB_RUNNING, /* the engine has it: `handle` is valid */
    JOB_DONE,    /* `line` is what is to be written */
};

struct job {
    enum job_state state;
    uint64_t index; /* of the line */
    bool failed;
    struct request *request;
    struct output_stream output;
    struct output_delta text;
    struct journal_handle handle;
    struct token_list ids;
    struct buf line;
};

/* Makes a job of a line. A line that cannot be taken is a job that is done, and has failed. */
struct job *job_create(const struct request_context *context, const char *text, size_t size, uint64_t index,
                       uint64_t seed);
void job_free(struct job *job);

/* Reads what the journal has of a running job, and finishes it when it has ended: then its slot was released. Returns
 * whether tokens were new. */
bool job_advance(struct job *job, const struct journal *journal, struct engine_thread *engine,
                 const struct request_context *context);

/* Ends a job with an error. */
void job_fail(struct job *job, const char *text);

#endif
