# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Ringing other peers' doorbells with one system call each: what a client does all day.

Theory of operation
-------------------
An eventfd is shared with every peer that may ring it. O_NONBLOCK belongs to the open file, so any of them can clear it,
fill the counter, and so make our write(2) block for ever (see `native`). `native.ring` looks first and arms a timer for
each call, which is four system calls. Here the timer is left armed while there is ringing: a POSIX timer sends this
very thread a signal every 10 ms; its handler, if it finds the thread inside a write, sets O_NONBLOCK on that eventfd
anew, so that the write, which the kernel restarts, returns. After five such signals without a ring in between the
handler disarms the timer. An idle thread has none, a busy one pays a hundred signals a second.

The signal is SIGRTMIN+8, with SA_RESTART. A thread that blocks it rings without a guard.

Invariants
----------
1. ``bell_fd`` is set before ``bell_armed`` is looked at, and the handler disarms only while ``bell_fd`` is not set: no
   write begins unguarded.
2. No ring takes longer than the timer's period for each time that a sharer of the eventfd clears the flag.
3. No function here takes ownership of a descriptor.
"""

from cpython cimport array
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint64_t

import os

cdef extern from "<unistd.h>" nogil:
    ssize_t write(int fd, const void *data, size_t count)

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <pthread.h>
    #include <signal.h>
    #include <string.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>
    #ifndef sigev_notify_thread_id
    #define sigev_notify_thread_id _sigev_un._tid
    #endif

    #define BELL_SIGNAL (SIGRTMIN + 8)
    #define BELL_PERIOD_NS 10000000L
    #define BELL_IDLE_TICKS 5

    static __thread timer_t bell_timer;
    static __thread volatile int bell_made;  /* this thread has a timer */
    static __thread volatile int bell_armed;
    static __thread volatile int bell_idle;  /* ticks since the last ring */
    static __thread volatile int bell_fd;    /* the eventfd that is being written to, plus one; or 0 */
    static pthread_key_t bell_key;
    static pthread_once_t bell_once = PTHREAD_ONCE_INIT;
    static int bell_failed;

    static void bell_handler(int signal)
    {
        static const struct itimerspec off = {{0, 0}, {0, 0}};
        int saved = errno;
        (void)signal;
        if (bell_fd)
            fcntl(bell_fd - 1, F_SETFL, fcntl(bell_fd - 1, F_GETFL) | O_NONBLOCK);
        else if (bell_made && ++bell_idle > BELL_IDLE_TICKS) {
            timer_settime(bell_timer, 0, &off, NULL);
            bell_armed = 0;
        }
        errno = saved;
    }

    /* A timer outlives its thread, so the thread's end deletes it. */
    static void bell_end(void *made)
    {
        (void)made;
        if (bell_made)
            timer_delete(bell_timer);
        bell_made = 0;
    }

    /* The child of a fork has no timers. */
    static void bell_forked(void) { bell_made = bell_armed = 0; }

    static void bell_set_up(void)
    {
        struct sigaction action;
        memset(&action, 0, sizeof action);
        action.sa_handler = bell_handler;
        action.sa_flags = SA_RESTART;
        if (sigaction(BELL_SIGNAL, &action, NULL))
            bell_failed = errno;
        else if (!(bell_failed = pthread_key_create(&bell_key, bell_end)))
            bell_failed = pthread_atfork(NULL, NULL, bell_forked);
    }

    /* Arm the timer of this thread; 0, or an errno value. */
    static int bell_arm(void)
    {
        static const struct itimerspec period = {{0, BELL_PERIOD_NS}, {0, BELL_PERIOD_NS}};
        pthread_once(&bell_once, bell_set_up);
        if (bell_failed)
            return bell_failed;
        if (!bell_made) {
            struct sigevent event;
            memset(&event, 0, sizeof event);
            event.sigev_notify = SIGEV_THREAD_ID;
            event.sigev_signo = BELL_SIGNAL;
            event.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
            if (timer_create(CLOCK_MONOTONIC, &event, &bell_timer))
                return errno;
            bell_made = 1;
            pthread_setspecific(bell_key, &bell_once); /* any value but NULL */
        }
        bell_armed = 1;
        if (timer_settime(bell_timer, 0, &period, NULL)) {
            bell_armed = 0;
            return errno;
        }
        return 0;
    }

    /* Add one to the eventfd; 0, or an errno value. A full counter counts as rung: the interrupt is pending already. */
    static int bell_ring(int fd)
    {
        static const unsigned long long one = 1;
        int error = 0;
        bell_fd = fd + 1;
        if (!bell_armed)
            error = bell_arm();
        if (!error && write(fd, &one, sizeof one) != sizeof one && errno != EAGAIN && errno != EINTR)
            error = errno;
        bell_idle = 0;
        bell_fd = 0;
        return error;
    }

    static int bell_is_armed(void) { return bell_armed; }
    static int bell_signal(void) { return BELL_SIGNAL; }
    """
    int bell_ring(int fd) nogil
    int bell_is_armed() nogil
    int bell_signal() nogil


SIGNAL = bell_signal()
"""The signal of the guard."""


def armed():
    """Tell whether the guard of this thread is armed just now."""
    return bool(bell_is_armed())


cdef class Bells:
    """Everybody's doorbells, to be rung; what a client inherits from.

    ``doorbells`` maps a peer's ID to its eventfds (``array('i')``, borrowed), in vector order; our own are there too.
    A subclass says in `missing` what it is that is not there.
    """

    cdef public dict doorbells
    """The eventfds of everybody by ID."""
    cdef public object own_id
    """Our own ID; None while there is none."""

    def __cinit__(self, *args, **kwargs):
        self.doorbells = {}
        self.own_id = None

    def missing(self, peer_id, vector):
        """Make the error for a doorbell that is not there.

        *vector* is None if it is the peer that is not; both are, if we are not there ourselves.
        """
        return LookupError(peer_id, vector)

    def notify(self, peer_id, vector):
        """Ring one doorbell of a peer: one system call (the seed's ivshmem_client_notify).

        Args:
            peer_id: the peer's ID; our own is allowed.
            vector: the number of its doorbell, from 0.

        Raises:
            NoSuchPeer, NoSuchVector: naming what is there instead.
            ServerClosed: there is no connection.
            OSError: what the server gave as the doorbell can't be rung.
        """
        cdef array.array of
        cdef Py_ssize_t index
        entry = self.doorbells.get(peer_id)
        if entry is None:
            raise self.missing(peer_id, None)
        of = entry
        try:
            index = vector
        except OverflowError:
            index = -1
        if not 0 <= index < len(of):
            raise self.missing(peer_id, vector)
        # SAFETY: the index is inside the array, which nobody resizes while we have the GIL.
        cdef int error = bell_ring(of.data.as_ints[index])
        if error:
            raise OSError(error, os.strerror(error))

    def notify_all_vectors(self, peer_id):
        """Ring all doorbells of a peer (the seed's ivshmem_client_notify_all_vects).

        Args:
            peer_id: the peer's ID; our own is allowed.

        Raises:
            NoSuchPeer: naming who is there instead.
            ServerClosed: there is no connection.
            OSError: one of the doorbells can't be rung; the others were.
        """
        entry = self.doorbells.get(peer_id)
        if entry is None:
            raise self.missing(peer_id, None)
        cdef int error = _ring(entry)
        if error:
            raise OSError(error, os.strerror(error))

    def notify_broadcast(self):
        """Ring all doorbells of all peers but ourselves (the seed's ivshmem_client_notify_broadcast).

        Raises:
            ServerClosed: there is no connection.
            OSError: one of the doorbells can't be rung; the others were.
        """
        cdef int error = 0
        cdef int one
        if self.own_id is None:
            raise self.missing(None, None)
        for peer_id, entry in self.doorbells.items():
            if peer_id != self.own_id:
                one = _ring(entry)
                error = error or one
        if error:
            raise OSError(error, os.strerror(error))


cdef int _ring(array.array of) except -1:
    """Ring all; 0, or the errno value of the first that failed."""
    cdef int error = 0
    cdef int one
    cdef Py_ssize_t i
    # SAFETY: i is inside the array, which nobody resizes while we have the GIL.
    for i in range(len(of)):
        one = bell_ring(of.data.as_ints[i])
        error = error or one
    return error
