/* MB/s of tokenizer_encode and tokenizer_decode on a text file, one thread:
 *     bench_tokenizer MODEL_DIR TEXT_FILE
 * tests/tools/tokenizer_diff.py --bench prints it beside the reference's figure on the same text. */
#include <stdio.h>
#include <string.h>

#include "runtime/base/buf.h"
#include "runtime/base/clock.h"
#include "runtime/tokenizer/tokenizer.h"

#define ROUNDS 5

/* Megabytes per second of the best of ROUNDS. */
static double best_rate(double best, size_t bytes, uint64_t start_ns) {
    double rate = (double)bytes / 1e6 / ((double)(clock_now_ns() - start_ns) / 1e9);
    return rate > best ? rate : best;
}

static enum status measure(const struct tokenizer *tokenizer, const struct buf *text, double load_ms) {
    struct token_list ids = {0};
    struct buf back = {0};
    double encode = 0;
    double decode = 0;
    enum status result = STATUS_OK;
    for (int round = 0; round < ROUNDS && result == STATUS_OK; round++) {
        ids.size = 0;
        back.size = 0;
        uint64_t start = clock_now_ns();
        result = tokenizer_encode(tokenizer, text->data, text->size, TOKENIZE_SPECIALS, &ids);
        encode = best_rate(encode, text->size, start);
        start = clock_now_ns();
        tokenizer_decode(tokenizer, ids.ids, ids.size, false, &back);
        decode = best_rate(decode, back.size, start);
    }
    if (result == STATUS_OK) {
        printf("  tandem: encode %.1f MB/s, decode %.1f MB/s, %.1f MB, %zu ids (one thread), loaded in %.0f ms\n",
               encode, decode, (double)text->size / 1e6, ids.size, load_ms);
    }
    token_list_free(&ids);
    buf_free(&back);
    return result;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: bench_tokenizer MODEL_DIR TEXT_FILE\n");
        return 2;
    }
    struct tokenizer *tokenizer = NULL;
    struct buf text = {0};
    uint64_t start = clock_now_ns();
    enum status result = tokenizer_load(argv[1], &tokenizer);
    double load_ms = (double)(clock_now_ns() - start) / 1e6;
    if (result == STATUS_OK) {
        result = buf_read_file(&text, argv[2], (size_t)1 << 30);
    }
    if (result == STATUS_OK) {
        result = measure(tokenizer, &text, load_ms);
    }
    if (result != STATUS_OK) {
        fprintf(stderr, "%s\n", status_text());
    }
    buf_free(&text);
    tokenizer_free(tokenizer);
    return result != STATUS_OK;
}
