/* SPDX-FileCopyrightText: 2026 The doorbelld authors
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Lists of buffers in guest memory. A list is ours and may be changed; what it points to is not, and may be gone: then
 * the SIGBUS guard sees to it.
 */
#ifndef DOORBELLD_PIECES_H
#define DOORBELLD_PIECES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

#define PIECES_TOUCH_STEP 4096 /* the smallest page there is */

/* Take *length* bytes off the front of the list, which has so many. */
static inline void pieces_skip(struct iovec **pieces, uint32_t *count, uint64_t length)
{
    while (length && length >= (*pieces)->iov_len) {
        length -= (*pieces)->iov_len;
        ++*pieces;
        --*count;
    }
    if (length) {
        (*pieces)->iov_base = (uint8_t *)(*pieces)->iov_base + length;
        (*pieces)->iov_len -= length;
    }
}

/* Copy *length* bytes out of the front of the list, which has so many. */
static inline void pieces_read(const struct iovec *pieces, void *to, uint64_t length)
{
    for (uint8_t *at = (uint8_t *)to; length; pieces++) {
        uint64_t step = length < pieces->iov_len ? length : pieces->iov_len;
        memcpy(at, pieces->iov_base, step);
        at += step;
        length -= step;
    }
    __asm__ volatile("" ::: "memory"); /* what is used afterwards is the copy, never read a second time */
}

/* Copy *length* bytes into the front of the list, which has room for so many. */
static inline void pieces_write(const struct iovec *pieces, const void *from, uint64_t length)
{
    for (const uint8_t *at = (const uint8_t *)from; length; pieces++) {
        uint64_t step = length < pieces->iov_len ? length : pieces->iov_len;
        memcpy(pieces->iov_base, at, step);
        at += step;
        length -= step;
    }
}

/* Have the SIGBUS guard look at each page, after the kernel could not use one of them. */
static inline void pieces_touch(const struct iovec *pieces, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        const volatile uint8_t *base = (const volatile uint8_t *)pieces[i].iov_base;
        for (size_t at = 0; at < pieces[i].iov_len; at += PIECES_TOUCH_STEP)
            (void)base[at];
        if (pieces[i].iov_len)
            (void)base[pieces[i].iov_len - 1];
    }
}

#endif
