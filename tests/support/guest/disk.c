// SPDX-FileCopyrightText: 2026 The doorbelld authors
// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Does with a disk what busybox does not.
 *
 *   disk zero DEVICE OFFSET LENGTH     has it write zeros by itself (BLKZEROOUT)
 *   disk discard DEVICE OFFSET LENGTH  has it forget what is there (BLKDISCARD); others may have it open, too
 *   disk copy FROM TO LENGTH ADDRESS   reads past the page cache and writes likewise, both at 0; prints how many bytes
 *                                      of the buffer are above a physical address
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* /proc/PID/pagemap */
#define PAGE_PRESENT (1ULL << 63)
#define PAGE_FRAME ((1ULL << 55) - 1)

__attribute__((noreturn)) static void fail(const char *what)
{
    printf("%s: %s\n", what, strerror(errno));
    exit(EXIT_FAILURE);
}

static int open_disk(const char *path, int flags)
{
    int fd = open(path, flags);

    if (fd < 0)
        fail(path);
    return fd;
}

static void clear(const char *device, unsigned long how, const char *offset, const char *length)
{
    uint64_t range[2] = { strtoull(offset, NULL, 0), strtoull(length, NULL, 0) };

    if (ioctl(open_disk(device, O_RDWR), how, range))
        fail(device);
}

static uint64_t physical_address(int pagemap, const char *byte, long page)
{
    uint64_t entry;

    if (pread(pagemap, &entry, sizeof entry, (uintptr_t)byte / page * sizeof entry) != sizeof entry)
        fail("/proc/self/pagemap");
    return entry & PAGE_PRESENT ? (entry & PAGE_FRAME) * page : 0;
}

static void copy(const char *from, const char *to, size_t length, uint64_t address)
{
    int in = open_disk(from, O_RDONLY | O_DIRECT), out = open_disk(to, O_WRONLY | O_DIRECT);
    int pagemap = open_disk("/proc/self/pagemap", O_RDONLY);
    long page = sysconf(_SC_PAGESIZE);
    char *buffer = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    size_t above = 0;

    if (buffer == MAP_FAILED)
        fail("mmap");
    if (pread(in, buffer, length, 0) != (ssize_t)length)
        fail(from);
    for (size_t at = 0; at < length; at += page)
        above += physical_address(pagemap, buffer + at, page) >= address ? page : 0;
    if (pwrite(out, buffer, length, 0) != (ssize_t)length || fsync(out))
        fail(to);
    printf("%zu\n", above);
}

int main(int count, char **words)
{
    if (count == 5 && strcmp(words[1], "zero") == 0) {
        clear(words[2], BLKZEROOUT, words[3], words[4]);
    } else if (count == 5 && strcmp(words[1], "discard") == 0) {
        clear(words[2], BLKDISCARD, words[3], words[4]);
    } else if (count == 6 && strcmp(words[1], "copy") == 0) {
        copy(words[2], words[3], strtoull(words[4], NULL, 0), strtoull(words[5], NULL, 0));
    } else {
        puts("usage: see disk.c");
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
