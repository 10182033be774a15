/* A SUBMIT of the stream protocol (runtime/wire/PROTOCOL.md) to a checked struct request. Its fields are given the JSON
 * form they have in the HTTP API and go through the same mapping (openai.h): one set of checks, defaults and texts. */
#ifndef TANDEM_REQUEST_FRAME_REQUEST_H
#define TANDEM_REQUEST_FRAME_REQUEST_H

#include "runtime/request/request.h"
#include "runtime/wire/tsp.h"

/* `fields` is the payload of a SUBMIT that tsp_decode has passed. `seed` is used when the client gave none. Fails as
 * openai_parse does. Release *out with request_free(). */
enum status frame_request_parse(const struct request_context *context, struct tsp_bytes fields, uint64_t seed,
                                struct request **out);

/* How a failure is told to a client of the stream protocol; the counterpart of openai_error_set. */
enum tsp_code frame_error_code(enum status status);

#endif
