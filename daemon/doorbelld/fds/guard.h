/* SPDX-FileCopyrightText: 2026 The doorbelld authors
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The guard: no system call of a thread blocks for longer than a period while it is armed.
 *
 * It is a POSIX timer that sends this very thread a signal with a handler that does nothing, again and again until it is
 * disarmed. A call that blocks then returns EINTR. Each module that includes this has its own timer for each thread; the
 * signal and its handler are the same for all.
 */
#ifndef DOORBELLD_GUARD_H
#define DOORBELLD_GUARD_H

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>
#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

#define GUARD_SIGNAL (SIGRTMIN + 7)
#define GUARD_PERIOD_NS 10000000L

static __thread timer_t guard_timer;
static __thread pid_t guard_owner; /* the thread that the timer was made for: a fork's child has none */

static void guard_handler(int signal) { (void)signal; }

/* Arm the guard of this thread; 0, or an errno value. */
static inline int guard_arm(long period_ns)
{
    const struct itimerspec period = {{0, period_ns}, {0, period_ns}};
    pid_t self = (pid_t)syscall(SYS_gettid);
    if (guard_owner != self) {
        struct sigaction action;
        struct sigevent event;
        memset(&action, 0, sizeof action);
        action.sa_handler = guard_handler; /* no SA_RESTART: that is the point */
        if (sigaction(GUARD_SIGNAL, &action, NULL))
            return errno;
        memset(&event, 0, sizeof event);
        event.sigev_notify = SIGEV_THREAD_ID;
        event.sigev_signo = GUARD_SIGNAL;
        event.sigev_notify_thread_id = self;
        if (timer_create(CLOCK_MONOTONIC, &event, &guard_timer))
            return errno;
        guard_owner = self;
    }
    return timer_settime(guard_timer, 0, &period, NULL) ? errno : 0;
}

static inline void guard_disarm(void)
{
    static const struct itimerspec off = {{0, 0}, {0, 0}};
    timer_settime(guard_timer, 0, &off, NULL);
}

/* A timer outlives its thread, so who ends a thread ends its guard. */
static inline void guard_delete(void)
{
    if (guard_owner == (pid_t)syscall(SYS_gettid))
        timer_delete(guard_timer);
    guard_owner = 0;
}

/* What was stored before is stored before what comes after: for memory that is read when we are dead. */
static inline void settle_memory(void) { __asm__ volatile("" ::: "memory"); }

#endif
