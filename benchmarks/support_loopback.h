/* TCP over the loopback between processes of a benchmark: clients, what they tell, and what bare sends cost. */
#ifndef TANDEM_BENCHMARKS_SUPPORT_LOOPBACK_H
#define TANDEM_BENCHMARKS_SUPPORT_LOOPBACK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

void sleep_ms(long ms);

/* A listening socket on any free port. */
int listen_anywhere(uint16_t *port);
int connect_to(uint16_t port);

/* As many descriptors as this user may have. */
void raise_file_limit(void);

/* ---- processes */

/* Kills it, and waits for its end. */
void end_child(pid_t child);

/* CPU time of a process' threads in nanoseconds as the kernel counts it, so that what else runs on the machine shows
 * little: the main one, and the others together. */
void read_cpu(pid_t process, uint64_t *main_ns, uint64_t *others_ns);

/* ---- what a client process tells, in shared memory */

struct tally {
    _Atomic uint64_t bytes;
    _Atomic uint64_t events; /* or tokens */
    _Atomic uint32_t started;
    _Atomic uint32_t ended;
    _Atomic bool stop; /* said to the client */
};

/* Maps one for this process and its children to come. */
struct tally *tally_create(void);

void await_all(_Atomic uint32_t *count, uint32_t n);

/* A process that connects `n` times, sends `request` (NULL: nothing) on each, reads from all and throws away. Its
 * events are "data: " lines. */
pid_t reader_start(uint16_t port, uint32_t n, const char *request, struct tally *tally);

/* ---- the floor */

struct bare {
    double send_us, read_us; /* CPU time of sender and reader, for each send */
};

/* What a process costs that does nothing but send `size` bytes `n` times in turn over `sockets` sockets, without end or
 * every `period_us`, to one that reads and throws away. */
struct bare bare_measure(uint32_t sockets, uint32_t n, size_t size, uint32_t period_us, struct tally *tally);

#endif
