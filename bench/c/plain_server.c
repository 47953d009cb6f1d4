/* SPDX-FileCopyrightText: 2026 The doorbelld authors */
/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * plain_server SOCKET VECTORS: an ivshmem server as simple as it can be, to hold ours against.
 *
 * One poll(2) loop; one blocking sendmsg(2) per message, so it never loses one, and one client that does not read
 * stops it for all. No rules, no state that anybody could look at.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <poll.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define PEERS_MAX 4096
#define VECTORS_MAX 64

struct peer {
    int64_t id;
    int vectors[VECTORS_MAX];
};

static struct peer peers[PEERS_MAX];          /* peers[i] is at sockets[i + 1] */
static struct pollfd sockets[PEERS_MAX + 1];  /* sockets[0] listens */
static int count, vectors, memory;

static void tell(int sock, int64_t value, int fd)
{
    union one_fd control = {0};
    struct iovec data = {&value, sizeof value}; /* little-endian, as is every host that this runs on */
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof control;
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
    }
    sendmsg(sock, &message, MSG_NOSIGNAL); /* an error: it is gone, and poll will say so */
}

static void tell_vectors(int sock, const struct peer *peer)
{
    for (int v = 0; v < vectors; v++)
        tell(sock, peer->id, peer->vectors[v]);
}

static void join(int sock)
{
    static int64_t next_id;
    struct peer *peer = &peers[count];
    if (count == PEERS_MAX) {
        close(sock);
        return;
    }
    peer->id = next_id++ & 0xffff;
    for (int v = 0; v < vectors; v++)
        if ((peer->vectors[v] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) < 0)
            fail("eventfd");
    tell(sock, 0, -1);
    tell(sock, peer->id, -1);
    tell(sock, -1, memory);
    for (int i = 0; i < count; i++)
        tell_vectors(sock, &peers[i]);
    tell_vectors(sock, peer);
    for (int i = 0; i < count; i++)
        tell_vectors(sockets[i + 1].fd, peer);
    sockets[++count] = (struct pollfd){.fd = sock, .events = POLLIN};
}

static void leave(int index)
{
    struct peer gone = peers[index];
    close(sockets[index + 1].fd);
    count--;
    peers[index] = peers[count];
    sockets[index + 1] = sockets[count + 1];
    for (int i = 0; i < count; i++)
        tell(sockets[i + 1].fd, gone.id, -1);
    for (int v = 0; v < vectors; v++)
        close(gone.vectors[v]);
}

int main(int argc, char **argv)
{
    if (argc != 3 || (vectors = atoi(argv[2])) < 1 || vectors > VECTORS_MAX) {
        fprintf(stderr, "usage: plain_server SOCKET VECTORS\n");
        return 2;
    }
    raise_open_files();
    struct sockaddr_un address = unix_address(argv[1]);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    memory = memfd_create("plain_server", MFD_CLOEXEC);
    if (listener < 0 || memory < 0 || ftruncate(memory, 4 << 20))
        fail("socket or memory");
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024))
        fail(argv[1]);
    sockets[0] = (struct pollfd){.fd = listener, .events = POLLIN};
    for (;;) {
        if (poll(sockets, (nfds_t)count + 1, -1) < 0)
            fail("poll");
        for (int i = count; i > 0; i--) /* from the end: leave() moves the last one here */
            if (sockets[i].revents)
                leave(i - 1);
        if (sockets[0].revents) {
            int sock = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
            if (sock < 0)
                fail("accept");
            join(sock);
        }
    }
}
