/* Hand-written scanners for the split patterns of the served model families. Each takes the piece text[at..size) (valid
 * UTF-8, at < size) and returns where its first match ends. The patterns match everywhere: a match always begins at
 * `at`. Texts of the patterns: split.c. */
#ifndef TANDEM_TOKENIZER_SPLIT_SCAN_H
#define TANDEM_TOKENIZER_SPLIT_SCAN_H

#include <stddef.h>

/* Qwen2 (max_digits 1) and Llama 3 (max_digits 3). */
size_t scan_cl100k(const char *text, size_t at, size_t size, unsigned max_digits);

/* GPT-2, which ByteLevel applies with use_regex. */
size_t scan_gpt2(const char *text, size_t at, size_t size);

#endif
