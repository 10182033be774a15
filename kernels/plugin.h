/* Backends that are shared objects beside the program: what such a plug-in exports, and how it is found.
 *
 * A plug-in exports one symbol, `tandem_plugin`. It holds its own copy of the little it needs of runtime/base, but a
 * failure's text and the log belong to the program: the plug-in gets there by the calls of struct plugin_host, so that
 * nothing depends on how the program was linked.
 *
 * `tandem_cuda13.so` (CUDA 13, drivers from 580) holds code for sm_80 and sm_90, `tandem_cuda11.so` (CUDA 11.8, drivers
 * from 450) for sm_70 and sm_80; each also holds code that the driver compiles for newer cards. */
#ifndef TANDEM_KERNELS_PLUGIN_H
#define TANDEM_KERNELS_PLUGIN_H

#include "kernels/kernels.h"
#include "runtime/base/log.h"

struct comm_ops;

/* What the program does for a plug-in: the functions of status.h and log.h of the same names. */
struct plugin_host {
    const char *(*status_name)(enum status status);
    const char *(*status_text)(void);
    enum status (*status_fail)(enum status status, const char *format, ...) __attribute__((format(printf, 2, 3)));
    void (*log_write)(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));
};

struct plugin {
    /* The hash of the headers that both sides were compiled with (TANDEM_PLUGIN_ID). This member comes first in every
     * build; what follows may only be looked at when it is equal to the program's. */
    const char *build_id;
    void (*attach)(const struct plugin_host *host); /* once, before anything else is called */
    /* Looks at a card. STATUS_NOT_FOUND when the host has none of that number; STATUS_UNSUPPORTED when there is no
     * usable driver, or no code here for that card. */
    enum status (*card)(int ordinal, struct kernel_card *card);
    const struct kernel_ops *kernels;
    const struct comm_ops *const *comms; /* between cards of this host; NULL ends them */
};

/* The plug-in that serves a card: the file that the environment's TANDEM_PLUGIN names, else the first of
 * tandem_cuda13.so and tandem_cuda11.so in the program's directory that is of this build and has code for it. `card` is
 * filled in. Plug-ins stay loaded. STATUS_NOT_FOUND when the host has no such card, STATUS_UNSUPPORTED when no plug-in
 * serves it; the text says of each why, and which to install. */
enum status plugin_for_card(int ordinal, const struct plugin **plugin, struct kernel_card *card);

/* The plug-in whose kernels this process uses; NULL before kernels_find_for was asked for them. */
const struct plugin *plugin_in_use(void);

#endif
