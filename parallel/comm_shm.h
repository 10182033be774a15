/* Collectives through memory that the ranks of one host share. Found through comm_find("shm").
 *
 * The memory holds a gate for the streams, one for host barriers, and two buffers per rank. Every collective is one or
 * more *phases*: a rank writes into its own buffer of that phase's parity, passes the gate (which opens when all have
 * come), and reads the others' buffers. Two buffers are enough: whoever has passed gate s has seen every rank come to
 * it, and a rank comes to gate s only after it has read all it wanted of phase s - 1; so at phase s + 1 nobody reads
 * the buffers of phase s - 1 any more. */
#ifndef TANDEM_PARALLEL_COMM_SHM_H
#define TANDEM_PARALLEL_COMM_SHM_H

#include "parallel/comm.h"

extern const struct comm_ops comm_shm_ops;

/* As comm_ops.open, on memory that is mapped already: comm_shm_bytes() bytes, zeroed, aligned to 64, borrowed until
 * close. For ranks that are threads of one process and share one mapping. */
enum status comm_shm_attach(const struct comm_config *config, void *memory, struct comm **comm);

#endif
