/* The worker process: one rank of one replica. */
#ifndef TANDEM_WORKER_WORKER_H
#define TANDEM_WORKER_WORKER_H

/* Serves the supervisor on `control_fd` (SOCK_SEQPACKET, taken over) until it says STOP or goes away: takes INIT, joins
 * the group, loads the weights, says READY, and then runs the steps of whatever link it is given. INT and TERM are
 * ignored, and the process dies with its parent. Returns the exit status: 0 after STOP or the supervisor's end, 1 after
 * an error, which was sent to the supervisor (and to the engine, when there is a link) and logged. */
int worker_main(int control_fd);

#endif
