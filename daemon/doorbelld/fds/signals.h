/* SPDX-FileCopyrightText: 2026 The doorbelld authors
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Real-time signals of our own, in a process that may have other users of them.
 *
 * No number is reserved for a library. So a signal is taken only if it has no handler and is not ignored, and whoever
 * took one before keeps it.
 */
#ifndef DOORBELLD_SIGNALS_H
#define DOORBELLD_SIGNALS_H

#include <errno.h>
#include <signal.h>
#include <string.h>

/* Have *handler* called for *number*, if nobody has that signal; 0, or an errno value (EBUSY: somebody does). */
static inline int signal_take_this(int number, void (*handler)(int), int flags)
{
    struct sigaction action;
    if (sigaction(number, NULL, &action))
        return errno;
    if ((action.sa_flags & SA_SIGINFO) || action.sa_handler != SIG_DFL)
        return EBUSY;
    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    action.sa_flags = flags;
    return sigaction(number, &action, NULL) ? errno : 0;
}

/* The same for the first real-time signal from *wanted* on, or below it, that nobody has; its number, or 0. */
static inline int signal_take(int wanted, void (*handler)(int), int flags)
{
    int count = SIGRTMAX - SIGRTMIN + 1;
    int i;
    for (i = 0; i < count; i++) {
        int number = SIGRTMIN + (wanted - SIGRTMIN + i) % count;
        if (!signal_take_this(number, handler, flags))
            return number;
    }
    return 0;
}

#endif
