/* SPDX-FileCopyrightText: 2026 The doorbelld authors */
/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * getrandom_loop BYTES SECONDS: getrandom(2) of so many bytes, one system call after the other.
 *
 * What the kernel gives when nobody stands between. Prints one line of JSON: requests a second.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <sys/random.h>

enum { BATCH = 64, BUFFERS = 64 };

int main(int argc, char **argv)
{
    size_t size = argc == 3 ? (size_t)atol(argv[1]) : 0;
    double began = now(), end = began;
    unsigned long done = 0;
    char *buffers;
    if (!size) {
        fprintf(stderr, "usage: getrandom_loop BYTES SECONDS\n");
        return 2;
    }
    if (!(buffers = malloc(size * BUFFERS)))
        fail("malloc");
    while (end < began + atof(argv[2])) {
        for (int i = 0; i < BATCH; i++, done++) /* as many buffers as requests are in flight elsewhere */
            if (getrandom(buffers + done % BUFFERS * size, size, 0) != (ssize_t)size)
                fail("getrandom");
        end = now();
    }
    printf("{\"per_second\": %.1f}\n", (double)done / (end - began));
    return 0;
}
