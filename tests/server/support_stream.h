/* A client of event streams that checks their grammar: LF only, "data: " and an empty line around each event, one id
 * and one creation time for all, the role first, one finish_reason per choice and nothing behind it, null before it,
 * [DONE] last. */
#ifndef TANDEM_TESTS_SERVER_SUPPORT_STREAM_H
#define TANDEM_TESTS_SERVER_SUPPORT_STREAM_H

#include <jansson.h>

#include "tests/server/support_rig.h"

#define STREAM_MAX_CHOICES 16

struct stream_choice {
    struct buf content;
    struct buf reasoning;
    char finish[32];
    json_t *logprobs; /* all entries of a chat's logprobs.content */
    unsigned n_chunks;
};

struct stream {
    struct stream_choice choices[STREAM_MAX_CHOICES];
    char id[64];
    char error[512];   /* message of an error event */
    unsigned n_events; /* chunks; comments and [DONE] not counted */
    unsigned n_comments, n_usage, n_null_usage;
    long long completion_tokens;
    bool done;  /* [DONE] came */
    bool whole; /* the body ended as it should */
};

json_t *response_json(struct response *response);

/* Checks a body that came to its end or was cut. */
void stream_parse(struct response *response, struct stream *stream);

/* Posts and reads the whole stream, which must begin with 200. */
void rig_stream(struct rig *rig, const char *path, const char *body, struct stream *stream);
void stream_free(struct stream *stream);

#endif
