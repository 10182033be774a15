/* What the machine under a benchmark can do at best, measured in the same run, card or processor. */
#ifndef TANDEM_BENCHMARKS_SUPPORT_CEILING_H
#define TANDEM_BENCHMARKS_SUPPORT_CEILING_H

#include <stdint.h>

struct ceiling {
    char name[64];
    double read_rate;  /* bytes a second: of one card, or of all threads together */
    double arithmetic; /* flop a second: of one card the best 8192 x 8192 x 8192 bf16 product, of a processor its fused
                          multiply-adds in fp32 */
};

/* Measures in a child, so that its memory and its CUDA context do not stay; `threads` are the cpu's, 0 for one on each
 * core. Aborts when there is no such machine. */
struct ceiling ceiling_measure(const char *backend, uint32_t threads);

/* One of `world` ranks' share: cards are a rank's own, a processor's memory and cores are not. */
struct ceiling ceiling_share(const struct ceiling *ceiling, const char *backend, uint32_t world);

/* Prints it as a row of the report. */
void ceiling_report(const struct ceiling *ceiling);

#endif
