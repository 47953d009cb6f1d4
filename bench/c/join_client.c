/* SPDX-FileCopyrightText: 2026 The doorbelld authors */
/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * join_client SOCKET PEERS VECTORS EXTRA [hold]: connect PEERS ivshmem clients at once, read until each knows everybody.
 *
 * In the end each connection must have got 3 + VECTORS x (PEERS + EXTRA) messages, be it in its greeting or as joins;
 * EXTRA members (a host peer, clients of other programs) are there already. Descriptors are received and closed at
 * once, by the batch, so that this side is not what is measured. Prints one line of JSON; with "hold" it then keeps
 * the connections, reading what comes, until its standard input is closed.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#define BATCH 128
#define PATIENCE_MS 30000
#define STDIN_MARK 0xffffffffu

static struct mmsghdr messages[BATCH];
static struct iovec vectors[BATCH];
static union one_fd controls[BATCH];
static char data[BATCH][64];
static unsigned long descriptors;

static void close_all(const int *fds, int count)
{
    int low = fds[0], high = fds[0];
    for (int i = 1; i < count; i++) {
        low = fds[i] < low ? fds[i] : low;
        high = fds[i] > high ? fds[i] : high;
    }
    if (high - low + 1 == count) { /* the usual case: nothing else opens descriptors here */
        close_range((unsigned)low, (unsigned)high, 0);
        return;
    }
    for (int i = 0; i < count; i++)
        close(fds[i]);
}

/* Read a batch from *sock*; the number of bytes, 0 when there was nothing. */
static long receive(int sock)
{
    int fds[BATCH], fd_count = 0;
    long bytes = 0;
    for (int i = 0; i < BATCH; i++) {
        messages[i].msg_hdr.msg_control = &controls[i];
        messages[i].msg_hdr.msg_controllen = sizeof controls[i];
    }
    int taken = recvmmsg(sock, messages, BATCH, MSG_DONTWAIT | MSG_CMSG_CLOEXEC, NULL);
    if (taken < 0) {
        if (errno == EAGAIN || errno == EINTR)
            return 0;
        fail("recvmmsg");
    }
    for (int i = 0; i < taken; i++) {
        if (!messages[i].msg_len) {
            fprintf(stderr, "the server closed a connection\n");
            exit(1);
        }
        bytes += messages[i].msg_len;
        if (messages[i].msg_hdr.msg_controllen >= CMSG_LEN(sizeof(int)))
            memcpy(&fds[fd_count++], CMSG_DATA(&controls[i].header), sizeof(int));
    }
    if (fd_count)
        close_all(fds, fd_count);
    descriptors += (unsigned long)fd_count;
    return bytes;
}

int main(int argc, char **argv)
{
    if (argc < 5) {
        fprintf(stderr, "usage: join_client SOCKET PEERS VECTORS EXTRA [hold]\n");
        return 2;
    }
    int peers = atoi(argv[2]), opened = 0, whole = 0, hold = argc > 5;
    long per_peer = atol(argv[3]) * (peers + atol(argv[4])), wanted = (3 + per_peer) * 8;
    int *socks = calloc((size_t)peers, sizeof *socks);
    long *got = calloc((size_t)peers, sizeof *got);
    struct epoll_event events[64], event = {.events = EPOLLIN};
    struct sockaddr_un address = unix_address(argv[1]);
    raise_open_files();
    for (int i = 0; i < BATCH; i++) {
        vectors[i] = (struct iovec){data[i], sizeof data[i]};
        messages[i].msg_hdr.msg_iov = &vectors[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < peers; i++)
        if ((socks[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) < 0)
            fail("socket");

    double start = now();
    while (whole < peers) {
        while (opened < peers) {
            if (connect(socks[opened], (struct sockaddr *)&address, sizeof address)) {
                if (errno == EAGAIN) /* the backlog is full: read a while */
                    break;
                fail(argv[1]);
            }
            event.data.u32 = (unsigned)opened;
            if (epoll_ctl(epoll, EPOLL_CTL_ADD, socks[opened++], &event))
                fail("epoll_ctl");
        }
        int ready = epoll_wait(epoll, events, 64, opened < peers ? 1 : PATIENCE_MS);
        if (!ready && opened == peers) {
            fprintf(stderr, "nothing came for %d s, and %d of %d peers still wait\n", PATIENCE_MS / 1000,
                    peers - whole, peers);
            return 1;
        }
        for (int i = 0; i < ready; i++) {
            unsigned peer = events[i].data.u32;
            long before = got[peer];
            got[peer] += receive(socks[peer]);
            whole += before < wanted && got[peer] >= wanted;
            if (got[peer] > wanted) {
                fprintf(stderr, "a peer got more than its %ld messages\n", wanted / 8);
                return 1;
            }
        }
    }
    double seconds = now() - start;

    if (descriptors != (unsigned long)peers * (unsigned long)(per_peer + 1)) {
        fprintf(stderr, "%lu descriptors came instead of %lu\n", descriptors,
                (unsigned long)peers * (unsigned long)(per_peer + 1));
        return 1;
    }
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"seconds\": %.6f, \"messages\": %ld, \"client_cpu\": %.6f}\n", seconds, wanted / 8 * peers,
           (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
               (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6);
    fflush(stdout);

    event.data.u32 = STDIN_MARK;
    if (hold && epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event))
        fail("standard input");
    while (hold) {
        int ready = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.u32 == STDIN_MARK)
                hold = 0;
            else
                receive(socks[events[i].data.u32]);
        }
    }
    return 0;
}
