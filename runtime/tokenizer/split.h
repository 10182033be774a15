/* Pre-tokenization: cuts a text into the pieces that BPE works on. */
#ifndef TANDEM_TOKENIZER_SPLIT_H
#define TANDEM_TOKENIZER_SPLIT_H

#include <stddef.h>

#include "runtime/base/status.h"
#include "runtime/format/tokenizer_file.h"

struct splitter;

/* Takes one piece, never empty. */
typedef enum status split_piece_fn(void *context, const char *text, size_t size);

/* Known patterns become table-driven scanners, others PCRE2 programs. STATUS_UNSUPPORTED for a pattern that PCRE2 does
 * not read, or reads differently from the reference's Oniguruma. */
enum status splitter_new(const struct tokenizer_file *file, struct splitter **out);
void splitter_free(struct splitter *splitter);

/* Calls `piece` for each piece of `text` (valid UTF-8) in order. Besides the callee's failures: STATUS_LIMIT when PCRE2
 * gives up on a pattern. */
enum status splitter_run(const struct splitter *splitter, const char *text, size_t size, split_piece_fn *piece,
                         void *context);

#endif
