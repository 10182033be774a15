/* From ids to what the client sees: a pure function of (request, ids), one id at a time, whoever asks: a stream, a
 * whole reply, `tandem generate`. Pushing ids one by one and reading the deltas in any grouping gives the same texts.
 *
 * Three stages. The detokenizer gives whole characters only. The stop scanner looks for the stop texts in the whole
 * output, reasoning included, as vLLM does; what may be the beginning of one is held back until it is known. The match
 * that ends first ends the answer; of those that end at the same byte the longest is cut off. The think splitter sends
 * the text up to "</think>" to the reasoning and the rest to the content. It starts inside the reasoning when the
 * prompt ends in "<think>\n"; else "<think>" counts only as the first thing of the output, blanks aside. Markers count
 * as tokens and as plain text alike, and are not shown. The line breaks right behind "<think>" and between "</think>"
 * and the answer belong to the markers and are dropped; the reasoning's own last line break stays. Where the output
 * goes on with reasoning of the prompt's, its first text is no beginning: there is neither marker nor line break to
 * drop. */
#ifndef TANDEM_REQUEST_OUTPUT_H
#define TANDEM_REQUEST_OUTPUT_H

#include "runtime/base/buf.h"
#include "runtime/request/request.h"

/* New text of a choice. Both are appended to; the owner clears them (size = 0) and frees them. */
struct output_delta {
    struct buf reasoning;
    struct buf content;
};

void output_delta_clear(struct output_delta *delta);
void output_delta_free(struct output_delta *delta);

enum output_state {
    OUTPUT_OPEN,      /* more may come */
    OUTPUT_STOP_ID,   /* the id pushed last is an end id or stop id: it counts, and has no text */
    OUTPUT_STOP_TEXT, /* a stop text was completed by the id pushed last: the engine is to be told */
};

enum output_phase { OUTPUT_BEFORE, OUTPUT_REASONING, OUTPUT_AFTER_THINK, OUTPUT_CONTENT };

struct output_stream {
    const struct request *request;
    const struct request_context *context;
    struct detokenizer detokenizer;
    enum output_state state;
    enum output_phase phase;
    uint32_t n_ids;                            /* pushed so far: what counts as generated */
    uint32_t n_reasoning_ids;                  /* of them pushed while reasoning, the one that ended it included */
    bool settled;                              /* it is known whether the output begins with <think> */
    size_t n_blanks;                           /* until then: blanks that it begins with, as far as looked at */
    bool at_start;                             /* of the reasoning: line breaks are dropped */
    uint16_t stop_matched[REQUEST_MAX_STOPS];  /* bytes of each stop text that the output ends in */
    uint16_t *stop_failure[REQUEST_MAX_STOPS]; /* Knuth-Morris-Pratt borders of each stop text; NULL unless n_stops */
    struct buf scratch;                        /* text of one id */
    struct buf held;                           /* text that may turn out to be part of a stop text */
    struct buf marker;                         /* text that may turn out to be part of a marker */
};

/* Whether the id's bytes are part of the text. Markers are even where the tokenizer calls them special. */
bool output_shows(const struct request_context *context, const struct request *request, uint32_t id);

/* `request` and `context` must outlive the stream. */
void output_stream_init(struct output_stream *stream, const struct request_context *context,
                        const struct request *request);
void output_stream_free(struct output_stream *stream);

/* Takes the next id and appends the text that is sure by now. Once the answer is OUTPUT_STOP_* nothing may be pushed,
 * and output_stream_finish has nothing to add. */
enum output_state output_stream_push(struct output_stream *stream, uint32_t id, struct output_delta *delta);

/* The output ended for another reason (length, cancellation): appends what was held back. */
void output_stream_finish(struct output_stream *stream, struct output_delta *delta);

#endif
