/* What a card can do at best, measured: every benchmark on cards prints its figures beside these, taken in the same
 * run. Asks the driver (libcuda.so.1, opened at run time) and runs a kernel of its own, which the driver compiles. */
#ifndef TANDEM_BENCHMARKS_SUPPORT_CARD_H
#define TANDEM_BENCHMARKS_SUPPORT_CARD_H

#include "runtime/base/status.h"

struct card_ceiling {
    char name[64];
    double read_rate; /* bytes a second: the best of several passes over memory much larger than the caches */
};

/* STATUS_UNSUPPORTED without a driver or such a card; STATUS_LIMIT when there is no room for the memory that is read
 * (2 GiB). Leaves this process with a CUDA context: call it in a child (launcher/child_call.h) before forking. */
enum status card_measure(int ordinal, struct card_ceiling *ceiling);

#endif
