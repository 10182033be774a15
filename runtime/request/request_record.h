/* What of a request is needed to write its output, as bytes: kept in the journal beside the ids, so that a front-end
 * that was not there when the request came goes on with its answer. Prompts, stop ids and sampling are the journal's
 * own fields. */
#ifndef TANDEM_REQUEST_REQUEST_RECORD_H
#define TANDEM_REQUEST_REQUEST_RECORD_H

#include "runtime/base/buf.h"
#include "runtime/request/request.h"

/* Appends the record of the sequences of one prompt. */
void request_record_write(const struct request *request, uint32_t prompt, struct buf *out);

/* Makes a request of a record of `prompt`: good for request_sequences() and output_stream_init(), its prompts empty,
 * its stop ids and n_logprobs left to the caller. STATUS_INVALID when the bytes are no record. Release with
 * request_free(). */
enum status request_record_read(const void *bytes, size_t size, uint32_t prompt, struct request **out);

#endif
