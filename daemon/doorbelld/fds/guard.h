/* SPDX-FileCopyrightText: 2026 The doorbelld authors
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The guard: no system call of a thread blocks for longer than a period while it is armed.
 *
 * It is a POSIX timer that sends this very thread a signal with a handler that does nothing, again and again until it is
 * disarmed. A call that blocks then returns EINTR. Each module that includes this has its own timer for each thread. The
 * signal and its handler are the same for all: native.pyx takes one that nobody has (guard_take), the others use it
 * (guard_use).
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

#include "signals.h"
#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

#define GUARD_PERIOD_NS 10000000L

static __thread timer_t guard_timer;
static __thread pid_t guard_owner; /* the thread that the timer was made for: a fork's child has none */

static int guard_signal; /* 0: there is none, and nothing can be armed */

static void guard_handler(int signal) { (void)signal; }

/* Take a signal; its number, or 0 if others have all of them. No SA_RESTART: that is the point. */
static inline int guard_take(void)
{
    if (!guard_signal)
        guard_signal = signal_take(SIGRTMIN + 7, guard_handler, 0);
    return guard_signal;
}

static inline void guard_use(int number) { guard_signal = number; }

/* Arm the guard of this thread; 0, or an errno value. */
static inline int guard_arm(long period_ns)
{
    const struct itimerspec period = {{0, period_ns}, {0, period_ns}};
    pid_t self = (pid_t)syscall(SYS_gettid);
    if (guard_owner != self) {
        struct sigevent event;
        if (!guard_signal)
            return EBUSY;
        memset(&event, 0, sizeof event);
        event.sigev_notify = SIGEV_THREAD_ID;
        event.sigev_signo = guard_signal;
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
