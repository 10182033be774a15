/* What tandem_request_* collect: the fields of a SUBMIT but for those that the session adds. */
#ifndef TANDEM_CLIENT_REQUEST_H
#define TANDEM_CLIENT_REQUEST_H

#include "runtime/client/buffer.h"
#include "runtime/client/include/tandem/client.h"

struct tandem_request {
    struct buffer fields;
    uint64_t given;      /* bit 1 << tag of each field that is there */
    uint64_t timeout_ms; /* 0: none */
    int result;          /* of the first setter that failed */
};

#endif
