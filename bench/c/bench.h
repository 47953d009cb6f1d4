/* SPDX-FileCopyrightText: 2026 The doorbelld authors */
/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the benchmark programs share: a clock, a socket address, statistics, dying with a reason. */
#ifndef BENCH_H
#define BENCH_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

union one_fd { /* room for the control message that carries one descriptor */
    struct cmsghdr header;
    char space[CMSG_SPACE(sizeof(int))];
};

static inline void fail(const char *what)
{
    perror(what);
    exit(1);
}

/* Seconds of CLOCK_MONOTONIC, the clock of Python's time.monotonic(). */
static inline double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static inline struct sockaddr_un unix_address(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        fprintf(stderr, "%s: too long for a socket\n", path);
        exit(1);
    }
    strcpy(address.sun_path, path);
    return address;
}

static inline void raise_open_files(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit))
        fail("getrlimit");
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit))
        fail("setrlimit");
}

static inline int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Print one line of JSON about *count* samples (seconds), in microseconds; sorts them. */
static inline void print_statistics(double *samples, size_t count)
{
    double sum = 0;
    qsort(samples, count, sizeof *samples, by_value);
    for (size_t i = 0; i < count; i++)
        sum += samples[i];
    printf("{\"count\": %zu, \"min\": %.3f, \"median\": %.3f, \"p99\": %.3f, \"max\": %.3f, \"mean\": %.3f}\n", count,
           samples[0] * 1e6, samples[count / 2] * 1e6, samples[count * 99 / 100] * 1e6, samples[count - 1] * 1e6,
           sum / (double)count * 1e6);
}

#endif
