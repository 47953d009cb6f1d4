/* SPDX-FileCopyrightText: 2026 The doorbelld authors
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Who does jobs: io_uring, or a pool of threads where that can't be had.
 *
 * Push, submit, then reap: what was done in place comes back at once, and nothing announces it.
 */
#ifndef DOORBELLD_AIO_H
#define DOORBELLD_AIO_H

#include "pool.h"
#include "uring.h"

struct aio {
    int pooled;
    uint32_t under_way; /* pushed and not reaped */
    uint32_t fresh;     /* of those, not submitted */
    struct uring ring;
    struct pool pool;
};

static void aio_init(struct aio *aio)
{
    memset(aio, 0, sizeof *aio);
    aio->ring.fd = aio->pool.event = -1;
}

/* Open it for *room* jobs at a time; 0, or an errno value. */
static int aio_open(struct aio *aio, int pooled, uint32_t room)
{
    aio->pooled = pooled;
    return pooled ? pool_open(&aio->pool) : uring_open(&aio->ring, room);
}

static void aio_close(struct aio *aio)
{
    uring_close(&aio->ring);
    pool_close(&aio->pool);
}

/* What is readable, level-triggered, when something may be done. */
static inline int aio_fd(const struct aio *aio) { return aio->pooled ? aio->pool.event : aio->ring.fd; }

static inline void aio_clear(struct aio *aio)
{
    if (aio->pooled)
        pool_clear(&aio->pool);
}

static inline void aio_push(struct aio *aio, struct job *job)
{
    aio->under_way++;
    aio->fresh++;
    if (aio->pooled)
        jobs_add(&aio->pool.fresh, job);
    else
        uring_push(&aio->ring, job);
}

static inline void aio_submit(struct aio *aio)
{
    aio->fresh = 0;
    if (aio->pooled)
        pool_submit(&aio->pool);
    else
        uring_submit(&aio->ring);
}

static inline struct job *aio_reap(struct aio *aio)
{
    struct job *job;
    if (!aio->under_way)
        return NULL;
    job = aio->pooled ? pool_reap(&aio->pool) : uring_reap(&aio->ring);
    aio->under_way -= job != NULL;
    return job;
}

#endif
