/* SPDX-FileCopyrightText: 2026 The doorbelld authors */
/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * ring_pair SOCKET VECTORS ROUNDS [PAUSE|storm]: two ivshmem peers that ring each other by turns through their eventfds.
 *
 * Each runs in a thread of its own, on a CPU of its own if there are two, and waits in poll(2), as the vCPU thread of
 * an idle guest would. Prints one line of JSON about the round trips, in microseconds. PAUSE is microseconds of silence
 * before each. In a storm one rings as fast as it can and the other counts what comes; printed is how many rings a
 * second arrived, until the last.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <unistd.h>

struct end {
    int sock;
    int64_t id;
    int own, other; /* the eventfds of both peers' vector 0, as this one was given them */
};

static long rounds;

/* Read one message; the descriptor that came with it, or -1. */
static int receive(int sock, int64_t *value)
{
    union one_fd control;
    struct iovec data = {value, sizeof *value};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    int fd = -1;
    if (recvmsg(sock, &message, MSG_WAITALL | MSG_CMSG_CLOEXEC) != sizeof *value)
        fail("recvmsg");
    if (message.msg_controllen >= CMSG_LEN(sizeof fd))
        memcpy(&fd, CMSG_DATA(&control.header), sizeof fd);
    return fd;
}

static void enter(struct end *end, const char *path)
{
    struct sockaddr_un address = unix_address(path);
    int64_t value;
    if ((end->sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) < 0)
        fail("socket");
    if (connect(end->sock, (struct sockaddr *)&address, sizeof address))
        fail(path);
    receive(end->sock, &value);
    receive(end->sock, &end->id);
    close(receive(end->sock, &value));
}

/* Read until all vectors of *id* came; the eventfd of the first. */
static int doorbell_of(const struct end *end, int64_t id, int vectors)
{
    int first = -1;
    while (vectors) {
        int64_t value;
        int fd = receive(end->sock, &value);
        if (value == id && fd >= 0 && first < 0)
            first = fd;
        else if (fd >= 0)
            close(fd);
        vectors -= value == id && fd >= 0;
    }
    return first;
}

/* Stay on the first or the last of the CPUs that this process may use. */
static void settle(int last)
{
    cpu_set_t may, chosen;
    CPU_ZERO(&chosen);
    if (sched_getaffinity(0, sizeof may, &may))
        fail("sched_getaffinity");
    for (int cpu = 0, left = CPU_COUNT(&may); left; cpu++) {
        if (!CPU_ISSET(cpu, &may))
            continue;
        if (!--left || !last) {
            CPU_SET(cpu, &chosen);
            break;
        }
    }
    if (sched_setaffinity(0, sizeof chosen, &chosen))
        fail("sched_setaffinity");
}

static void await(int fd)
{
    struct pollfd ready = {.fd = fd, .events = POLLIN};
    uint64_t count;
    while (read(fd, &count, sizeof count) != sizeof count)
        poll(&ready, 1, -1);
}

static void ring(int fd)
{
    static const uint64_t one = 1;
    if (write(fd, &one, sizeof one) != sizeof one)
        fail("ring");
}

static void *answer(void *data)
{
    const struct end *end = data;
    settle(1);
    for (long i = 0; i < rounds; i++) {
        await(end->own);
        ring(end->other);
    }
    return NULL;
}

static void *count(void *data)
{
    const struct end *end = data;
    settle(1);
    for (uint64_t came = 0, some; came < (uint64_t)rounds; came += some) {
        struct pollfd ready = {.fd = end->own, .events = POLLIN};
        while (read(end->own, &some, sizeof some) != sizeof some)
            poll(&ready, 1, -1);
    }
    return NULL;
}

static void storm(const struct end *a, struct end *b)
{
    pthread_t thread;
    double start = now();
    if (pthread_create(&thread, NULL, count, b))
        fail("thread");
    settle(0);
    for (long i = 0; i < rounds; i++)
        ring(a->other);
    pthread_join(thread, NULL);
    printf("{\"per_second\": %.0f}\n", (double)rounds / (now() - start));
}

int main(int argc, char **argv)
{
    struct end a, b;
    pthread_t thread;
    if (argc < 4 || argc > 5 || (rounds = atol(argv[3])) < 1) {
        fprintf(stderr, "usage: ring_pair SOCKET VECTORS ROUNDS [PAUSE|storm]\n");
        return 2;
    }
    int stormy = argc == 5 && !strcmp(argv[4], "storm");
    useconds_t pause = argc == 5 && !stormy ? (useconds_t)atol(argv[4]) : 0;
    int vectors = atoi(argv[2]);
    double *samples = calloc((size_t)rounds, sizeof *samples);
    raise_open_files();
    enter(&a, argv[1]);
    a.own = doorbell_of(&a, a.id, vectors);
    enter(&b, argv[1]);
    b.other = doorbell_of(&b, a.id, vectors);
    b.own = doorbell_of(&b, b.id, vectors);
    a.other = doorbell_of(&a, b.id, vectors);
    if (stormy) {
        storm(&a, &b);
        return 0;
    }
    if (pthread_create(&thread, NULL, answer, &b))
        fail("thread");
    settle(0);
    for (long i = 0; i < rounds; i++) {
        if (pause)
            usleep(pause);
        double start = now();
        ring(a.other);
        await(a.own);
        samples[i] = now() - start;
    }
    pthread_join(thread, NULL);
    print_statistics(samples, (size_t)rounds);
    return 0;
}
