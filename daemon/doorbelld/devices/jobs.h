/* SPDX-FileCopyrightText: 2026 The doorbelld authors
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Jobs: operations on a file that may take long, so that somebody else does them.
 */
#ifndef DOORBELLD_JOBS_H
#define DOORBELLD_JOBS_H

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum job_kind { JOB_READ, JOB_WRITE, JOB_SYNC, JOB_ALLOCATE };

struct job {
    enum job_kind kind;
    int fd;
    const struct iovec *pieces; /* of READ and WRITE; they stay where they are until the job is done */
    uint32_t count;
    uint32_t flags; /* RWF_... of READ and WRITE, the mode of ALLOCATE */
    uint64_t offset;
    uint64_t length; /* of ALLOCATE */
    int64_t result;  /* once it is done: bytes, or 0, or a negative errno value */
    struct job *next;
};

/* First in, first out; all zero is an empty one. */
struct job_list {
    struct job *first;
    struct job *last;
};

static inline void jobs_add(struct job_list *list, struct job *job)
{
    job->next = NULL;
    if (list->first)
        list->last->next = job;
    else
        list->first = job;
    list->last = job;
}

static inline struct job *jobs_take(struct job_list *list)
{
    struct job *job = list->first;
    if (job)
        list->first = job->next;
    return job;
}

/*
 * preadv2(2) and pwritev2(2) without what the C library does around them for threads that may be cancelled, which costs
 * some per cent of a call that finds everything in memory. The kernel drops the high half of the offset where the low one
 * has room for all of it.
 */
static inline ssize_t file_read(int fd, const struct iovec *pieces, uint32_t count, uint64_t offset, uint32_t flags)
{
    return syscall(SYS_preadv2, fd, pieces, (unsigned long)count, (unsigned long)offset, (unsigned long)(offset >> 32),
                   flags);
}

static inline ssize_t file_write(int fd, const struct iovec *pieces, uint32_t count, uint64_t offset, uint32_t flags)
{
    return syscall(SYS_pwritev2, fd, pieces, (unsigned long)count, (unsigned long)offset, (unsigned long)(offset >> 32),
                   flags);
}

/* Do the job here and now, however long it takes. */
static void job_run(struct job *job)
{
    int64_t result = -1;
    do {
        switch (job->kind) {
        case JOB_READ:
            result = file_read(job->fd, job->pieces, job->count, job->offset, job->flags);
            break;
        case JOB_WRITE:
            result = file_write(job->fd, job->pieces, job->count, job->offset, job->flags);
            break;
        case JOB_SYNC:
            result = fdatasync(job->fd);
            break;
        case JOB_ALLOCATE:
            result = fallocate(job->fd, (int)job->flags, (off_t)job->offset, (off_t)job->length);
            break;
        }
    } while (result < 0 && errno == EINTR);
    job->result = result < 0 ? -errno : result;
}

#endif
