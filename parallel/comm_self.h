/* The collectives of a group of one. Found through comm_find("self"). */
#ifndef TANDEM_PARALLEL_COMM_SELF_H
#define TANDEM_PARALLEL_COMM_SELF_H

#include "parallel/comm.h"

extern const struct comm_ops comm_self_ops;

#endif
