#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "benchmarks/support_loopback.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "benchmarks/support_process.h"
#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/base/clock.h"

#define BACKLOG 1024
#define BARE_WINDOW_MS 1500

void sleep_ms(long ms) {
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

int listen_anywhere(uint16_t *port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&address, size) == 0 && listen(fd, BACKLOG) == 0 &&
              getsockname(fd, (struct sockaddr *)&address, &size) == 0,
          "listen: %s", strerror(errno));
    *port = ntohs(address.sin_port);
    return fd;
}

int connect_to(uint16_t port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0, "connect: %s", strerror(errno));
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

void raise_file_limit(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
}

/* ---- processes */

void end_child(pid_t child) {
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

/* CPU time of a process' threads in nanoseconds: the main one, and the others together. */
void read_cpu(pid_t process, uint64_t *main_ns, uint64_t *others_ns) {
    char path[300];
    *main_ns = 0;
    *others_ns = 0;
    snprintf(path, sizeof path, "/proc/%d/task", (int)process);
    DIR *tasks = opendir(path);
    CHECK(tasks != NULL, "%s: %s", path, strerror(errno));
    for (struct dirent *entry; (entry = readdir(tasks)) != NULL;) {
        snprintf(path, sizeof path, "/proc/%d/task/%.32s/schedstat", (int)process, entry->d_name);
        FILE *file = entry->d_name[0] != '.' ? fopen(path, "r") : NULL;
        unsigned long long ns = 0;
        if (file != NULL && fscanf(file, "%llu", &ns) == 1) {
            *(strtol(entry->d_name, NULL, 10) == process ? main_ns : others_ns) += ns;
        }
        if (file != NULL) {
            fclose(file);
        }
    }
    closedir(tasks);
}

/* ---- what a client process tells */

struct tally *tally_create(void) {
    struct tally *tally = mmap(NULL, sizeof *tally, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(tally != MAP_FAILED, "mmap: %s", strerror(errno));
    return tally;
}

void await_all(_Atomic uint32_t *count, uint32_t n) {
    while (atomic_load(count) < n) {
        sleep_ms(1);
    }
}

struct client_socket {
    int fd;
    uint32_t matched; /* bytes of "data: " seen */
    bool started;
};

static void take_bytes(struct client_socket *socket, struct tally *tally, const char *bytes, size_t size) {
    static const char mark[] = "data: ";
    uint64_t events = 0;
    for (size_t i = 0; i < size; i++) {
        socket->matched = bytes[i] == mark[socket->matched] ? socket->matched + 1 : bytes[i] == mark[0];
        if (socket->matched == sizeof mark - 1) {
            socket->matched = 0;
            events++;
        }
    }
    if (!socket->started && (events > 0 || size > 0)) {
        socket->started = true;
        atomic_fetch_add(&tally->started, 1);
    }
    atomic_fetch_add_explicit(&tally->events, events, memory_order_relaxed);
    atomic_fetch_add_explicit(&tally->bytes, size, memory_order_relaxed);
}

static _Noreturn void run_reader(uint16_t port, uint32_t n, const char *request, struct tally *tally) {
    static char bytes[1 << 16];
    struct client_socket *sockets = xcalloc(n, sizeof *sockets);
    int poller = epoll_create1(EPOLL_CLOEXEC);
    for (uint32_t i = 0; i < n; i++) {
        sockets[i].fd = connect_to(port);
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        CHECK(epoll_ctl(poller, EPOLL_CTL_ADD, sockets[i].fd, &event) == 0, "epoll_ctl");
    }
    for (uint32_t i = 0; i < n && request != NULL; i++) {
        CHECK(send(sockets[i].fd, request, strlen(request), 0) == (ssize_t)strlen(request), "send");
    }
    for (;;) {
        struct epoll_event events[256];
        int ready = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            struct client_socket *socket = &sockets[events[i].data.u32];
            ssize_t got = recv(socket->fd, bytes, sizeof bytes, MSG_DONTWAIT);
            if (got > 0) {
                take_bytes(socket, tally, bytes, (size_t)got);
            } else if (got == 0 || errno != EAGAIN) {
                atomic_fetch_add(&tally->ended, 1);
                epoll_ctl(poller, EPOLL_CTL_DEL, socket->fd, NULL);
            }
        }
    }
}

pid_t reader_start(uint16_t port, uint32_t n, const char *request, struct tally *tally) {
    *tally = (struct tally){0};
    pid_t child = child_start();
    if (child == 0) {
        run_reader(port, n, request, tally);
    }
    return child;
}

/* ---- the floor */

static _Noreturn void run_sender(int listener, uint32_t sockets, uint32_t n, size_t size, uint32_t period_us) {
    int *fds = xcalloc(sockets, sizeof *fds);
    char *bytes = xcalloc(size, 1);
    memset(bytes, 'x', size);
    int on = 1;
    for (uint32_t i = 0; i < sockets; i++) {
        fds[i] = accept(listener, NULL, NULL);
        CHECK(fds[i] >= 0, "accept: %s", strerror(errno));
        setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
    for (;;) {
        for (uint32_t i = 0; i < n; i++) {
            CHECK(send(fds[i % sockets], bytes, size, MSG_NOSIGNAL) == (ssize_t)size, "send: %s", strerror(errno));
        }
        if (period_us > 0) {
            sleep_ms(period_us / 1000);
        }
    }
}

struct bare bare_measure(uint32_t sockets, uint32_t n, size_t size, uint32_t period_us, struct tally *tally) {
    uint64_t before[2], after[2], others;
    uint16_t port;
    int listener = listen_anywhere(&port);
    pid_t sender = child_start();
    if (sender == 0) {
        run_sender(listener, sockets, n, size, period_us);
    }
    close(listener);
    pid_t reader = reader_start(port, sockets, NULL, tally);
    await_all(&tally->started, sockets);
    uint64_t bytes = atomic_load(&tally->bytes);
    read_cpu(sender, &before[0], &others);
    read_cpu(reader, &before[1], &others);
    sleep_ms(BARE_WINDOW_MS);
    read_cpu(sender, &after[0], &others);
    read_cpu(reader, &after[1], &others);
    double sends = (double)(atomic_load(&tally->bytes) - bytes) / (double)size;
    end_child(sender);
    end_child(reader);
    return (struct bare){.send_us = (double)(after[0] - before[0]) * 1e-3 / sends,
                         .read_us = (double)(after[1] - before[1]) * 1e-3 / sends};
}
