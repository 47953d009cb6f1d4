/* SPDX-FileCopyrightText: 2026 The doorbelld authors */
/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pread_loop PATH read|write SECONDS [direct]: 4 KiB at random places of a file, one system call after the other.
 *
 * What a disk can do when nobody stands between. Prints one line of JSON: requests a second.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <fcntl.h>
#include <stdint.h>
#include <unistd.h>

enum { BLOCK = 4096, BATCH = 64, BUFFERS = 64 };

int main(int argc, char **argv)
{
    uint64_t blocks, block, done = 0, seed = 88172645463325252ull;
    double began, until, end;
    unsigned char *buffers;
    int fd, writing;
    if (argc < 4) {
        fprintf(stderr, "usage: pread_loop PATH read|write SECONDS [direct]\n");
        return 2;
    }
    writing = !strcmp(argv[2], "write");
    fd = open(argv[1], (writing ? O_RDWR : O_RDONLY) | (argc > 4 ? O_DIRECT : 0) | O_CLOEXEC);
    if (fd < 0 || !(buffers = aligned_alloc(BLOCK, BUFFERS * BLOCK)))
        fail(argv[1]);
    memset(buffers, 0, BUFFERS * BLOCK);
    blocks = (uint64_t)lseek(fd, 0, SEEK_END) / BLOCK;
    began = end = now();
    until = began + atof(argv[3]);
    while (end < until) {
        for (int i = 0; i < BATCH; i++) {
            unsigned char *buffer = buffers + (done % BUFFERS) * BLOCK; /* as many as requests are in flight elsewhere */
            ssize_t got;
            seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
            block = seed % blocks;
            if (writing)
                memcpy(buffer, &block, sizeof block); /* each block begins with its number */
            got = writing ? pwrite(fd, buffer, BLOCK, (off_t)(block * BLOCK)) :
                            pread(fd, buffer, BLOCK, (off_t)(block * BLOCK));
            if (got != BLOCK || memcmp(buffer, &block, sizeof block))
                fail("a block");
            done++;
        }
        end = now();
    }
    printf("{\"per_second\": %.1f}\n", (double)done / (end - began));
    return 0;
}
