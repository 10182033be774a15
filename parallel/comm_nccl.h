/* Collectives between cards of one host by NCCL, which is opened at run time (libnccl.so.2). Part of the cuda plug-ins;
 * found through comm_find("nccl"). Every rank's sums have the same bits; which order they were taken in is NCCL's. */
#ifndef TANDEM_PARALLEL_COMM_NCCL_H
#define TANDEM_PARALLEL_COMM_NCCL_H

/* Of the group's shared memory, in which the ranks meet. */
#define COMM_NCCL_MEETING_BYTES 4096

/* What NCCL is to find in the environment. Not beside threads that read it, as cuBLAS does when it is opened: so while
 * the plug-in is attached. */
void comm_nccl_set_environment(void);

#endif
