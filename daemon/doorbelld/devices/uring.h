/* SPDX-FileCopyrightText: 2026 The doorbelld authors
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * io_uring by its system calls: as much of it as jobs need.
 *
 * Used by one thread at a time. Completions are taken from memory, without a system call; the descriptor of the ring is
 * readable, level-triggered, while there are some. No more jobs may be under way than the ring was opened for, so
 * completions never overflow.
 *
 * A job that the kernel does not take (no memory, say) is done in place, and comes back like all others.
 */
#ifndef DOORBELLD_URING_H
#define DOORBELLD_URING_H

#include <linux/io_uring.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "jobs.h"

#define URING_BATCH 128 /* submissions that one system call can carry */

struct uring {
    int fd; /* -1: closed */
    uint32_t batch;
    uint32_t submit_mask;
    uint32_t complete_mask;
    uint32_t *submit_tail; /* ours alone to write */
    uint32_t *complete_head;
    uint32_t *complete_tail; /* the kernel's to write */
    struct io_uring_sqe *submissions;
    struct io_uring_cqe *completions;
    uint32_t tail;    /* as we have filled it */
    uint32_t waiting; /* filled, and not yet the kernel's */
    struct job_list done; /* in place */
    void *rings;
    size_t rings_size;
    size_t submissions_size;
};

static void uring_close(struct uring *ring)
{
    if (ring->fd < 0)
        return;
    if (ring->submissions)
        munmap(ring->submissions, ring->submissions_size);
    if (ring->rings)
        munmap(ring->rings, ring->rings_size);
    close(ring->fd);
    ring->fd = -1;
}

static int uring_setup(uint32_t entries, struct io_uring_params *params, uint32_t room, uint32_t flags)
{
    memset(params, 0, sizeof *params);
    params->flags = IORING_SETUP_CQSIZE | flags;
    params->cq_entries = room;
    return (int)syscall(SYS_io_uring_setup, entries, params);
}

/* Open a ring for *room* jobs at a time; 0, or an errno value. */
static int uring_open(struct uring *ring, uint32_t room)
{
    struct io_uring_params params;
    uint32_t entries = room < URING_BATCH ? room : URING_BATCH;
    size_t size;
    int error;

    memset(ring, 0, sizeof *ring);
    /* we look at completions when we come around: nobody need interrupt us for them (Linux 5.19) */
    ring->fd = uring_setup(entries, &params, room, IORING_SETUP_COOP_TASKRUN);
    if (ring->fd < 0 && errno == EINVAL)
        ring->fd = uring_setup(entries, &params, room, 0);
    if (ring->fd < 0)
        return errno;
    if (!(params.features & IORING_FEAT_SINGLE_MMAP)) { /* before Linux 5.4 */
        uring_close(ring);
        return ENOSYS;
    }
    ring->rings_size = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
    size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    if (ring->rings_size < size)
        ring->rings_size = size;
    ring->rings = mmap(NULL, ring->rings_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd,
                       IORING_OFF_SQ_RING);
    if (ring->rings == MAP_FAILED) {
        ring->rings = NULL;
        error = errno;
        uring_close(ring);
        return error;
    }
    ring->submissions_size = params.sq_entries * sizeof(struct io_uring_sqe);
    ring->submissions = (struct io_uring_sqe *)mmap(NULL, ring->submissions_size, PROT_READ | PROT_WRITE,
                                                    MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQES);
    if (ring->submissions == MAP_FAILED) {
        ring->submissions = NULL;
        error = errno;
        uring_close(ring);
        return error;
    }
    char *base = (char *)ring->rings;
    uint32_t *array = (uint32_t *)(base + params.sq_off.array);
    for (uint32_t i = 0; i < params.sq_entries; i++)
        array[i] = i; /* each place of the ring has its own submission, for ever */
    ring->batch = params.sq_entries;
    ring->submit_mask = params.sq_entries - 1;
    ring->complete_mask = params.cq_entries - 1;
    ring->submit_tail = (uint32_t *)(base + params.sq_off.tail);
    ring->complete_head = (uint32_t *)(base + params.cq_off.head);
    ring->complete_tail = (uint32_t *)(base + params.cq_off.tail);
    ring->completions = (struct io_uring_cqe *)(base + params.cq_off.cqes);
    return 0;
}

/* Give the kernel what was pushed. */
static void uring_submit(struct uring *ring)
{
    if (!ring->waiting)
        return;
    __atomic_store_n(ring->submit_tail, ring->tail, __ATOMIC_RELEASE);
    while (ring->waiting) {
        long taken = syscall(SYS_io_uring_enter, ring->fd, ring->waiting, 0, 0, NULL, 0);
        if (taken > 0) {
            ring->waiting -= (uint32_t)taken;
        } else if (taken == 0 || errno != EINTR) {
            /* the kernel looks at the ring inside that call only, so what it left is ours to take back */
            ring->tail -= ring->waiting;
            __atomic_store_n(ring->submit_tail, ring->tail, __ATOMIC_RELEASE);
            for (uint32_t i = 0; i < ring->waiting; i++) {
                struct job *job =
                    (struct job *)(uintptr_t)ring->submissions[(ring->tail + i) & ring->submit_mask].user_data;
                job_run(job);
                jobs_add(&ring->done, job);
            }
            ring->waiting = 0;
        }
    }
}

/* Take a job on; the kernel has it after uring_submit. */
static void uring_push(struct uring *ring, struct job *job)
{
    struct io_uring_sqe *entry;
    if (ring->waiting == ring->batch)
        uring_submit(ring);
    entry = &ring->submissions[ring->tail & ring->submit_mask];
    memset(entry, 0, sizeof *entry);
    entry->fd = job->fd;
    entry->off = job->offset;
    entry->user_data = (uint64_t)(uintptr_t)job;
    switch (job->kind) {
    case JOB_READ:
    case JOB_WRITE:
        entry->opcode = job->kind == JOB_READ ? IORING_OP_READV : IORING_OP_WRITEV;
        entry->addr = (uint64_t)(uintptr_t)job->pieces;
        entry->len = job->count;
        entry->rw_flags = (int)job->flags;
        break;
    case JOB_SYNC:
        entry->opcode = IORING_OP_FSYNC;
        entry->fsync_flags = IORING_FSYNC_DATASYNC;
        entry->off = 0;
        break;
    case JOB_ALLOCATE:
        entry->opcode = IORING_OP_FALLOCATE;
        entry->addr = job->length;
        entry->len = job->flags;
        break;
    }
    ring->tail++;
    ring->waiting++;
}

/* Take a job that is done, or NULL. */
static struct job *uring_reap(struct uring *ring)
{
    uint32_t head = *ring->complete_head;
    struct io_uring_cqe *entry;
    struct job *job;
    if (head == __atomic_load_n(ring->complete_tail, __ATOMIC_ACQUIRE))
        return jobs_take(&ring->done);
    entry = &ring->completions[head & ring->complete_mask];
    job = (struct job *)(uintptr_t)entry->user_data;
    job->result = entry->res;
    __atomic_store_n(ring->complete_head, head + 1, __ATOMIC_RELEASE);
    return job;
}

#endif
