/* The way from a plug-in back into the program. */
#ifndef TANDEM_KERNELS_CUDA_HOST_H
#define TANDEM_KERNELS_CUDA_HOST_H

struct plugin_host;

/* Where failures and log lines go from now on. */
void host_attach(const struct plugin_host *program);

#endif
