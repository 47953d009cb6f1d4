/* SPDX-FileCopyrightText: 2026 The doorbelld authors
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A few threads that do jobs, where io_uring is not permitted (seccomp, kernel.io_uring_disabled) or not there.
 *
 * The threads start with the first job. Who pushes and reaps is one thread, and they inherit its signal mask. `event` is
 * an eventfd, readable while somebody finished a job after pool_clear.
 */
#ifndef DOORBELLD_POOL_H
#define DOORBELLD_POOL_H

#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>

#include "jobs.h"

#define POOL_THREADS 4

struct pool {
    int event; /* -1: closed */
    int count; /* of threads; -1: not started */
    int stop;
    uint32_t waiting; /* jobs in todo */
    uint32_t idle;    /* threads that wait for one */
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct job_list fresh; /* pushed; ours alone, like taken */
    struct job_list taken; /* done, to be reaped */
    struct job_list todo;  /* these are under the lock */
    struct job_list done;
    pthread_t threads[POOL_THREADS];
};

/* Open a pool; 0, or an errno value. */
static int pool_open(struct pool *pool)
{
    memset(pool, 0, sizeof *pool);
    pool->count = -1;
    pool->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (pool->event < 0)
        return errno;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->more, NULL);
    return 0;
}

static void *pool_main(void *argument)
{
    struct pool *pool = (struct pool *)argument;
    struct job *job;
    uint64_t one = 1;
    int first;
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        while (!(job = jobs_take(&pool->todo)) && !pool->stop) {
            pool->idle++;
            pthread_cond_wait(&pool->more, &pool->lock);
            pool->idle--;
        }
        if (!job)
            break;
        pool->waiting--;
        pthread_mutex_unlock(&pool->lock);
        job_run(job);
        pthread_mutex_lock(&pool->lock);
        first = !pool->done.first;
        jobs_add(&pool->done, job);
        if (first && write(pool->event, &one, sizeof one) < 0) {
            /* it can't be full: it counts from 0 each time */
        }
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

/* End the threads; nothing may be under way. */
static void pool_close(struct pool *pool)
{
    if (pool->event < 0)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->stop = 1;
    pthread_cond_broadcast(&pool->more);
    pthread_mutex_unlock(&pool->lock);
    for (int i = 0; i < pool->count; i++)
        pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->more);
    pthread_mutex_destroy(&pool->lock);
    close(pool->event);
    pool->event = -1;
}

/* Give the threads what was pushed; without threads, do it here. */
static void pool_submit(struct pool *pool)
{
    struct job *job;
    uint32_t wake;
    if (!pool->fresh.first)
        return;
    if (pool->count < 0)
        for (pool->count = 0; pool->count < POOL_THREADS; pool->count++)
            if (pthread_create(&pool->threads[pool->count], NULL, pool_main, pool))
                break;
    if (pool->count == 0) {
        while ((job = jobs_take(&pool->fresh))) {
            job_run(job);
            jobs_add(&pool->taken, job);
        }
        return;
    }
    pthread_mutex_lock(&pool->lock);
    while ((job = jobs_take(&pool->fresh))) {
        jobs_add(&pool->todo, job);
        pool->waiting++;
    }
    for (wake = pool->waiting < pool->idle ? pool->waiting : pool->idle; wake; wake--)
        pthread_cond_signal(&pool->more);
    pthread_mutex_unlock(&pool->lock);
}

/* Take a job that is done, or NULL. */
static struct job *pool_reap(struct pool *pool)
{
    if (!pool->taken.first) {
        pthread_mutex_lock(&pool->lock);
        pool->taken = pool->done;
        pool->done.first = NULL;
        pthread_mutex_unlock(&pool->lock);
    }
    return jobs_take(&pool->taken);
}

/* Take what makes `event` readable. */
static void pool_clear(struct pool *pool)
{
    uint64_t count;
    if (read(pool->event, &count, sizeof count) < 0) {
        /* nobody wrote to it since */
    }
}

#endif
