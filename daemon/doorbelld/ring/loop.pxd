# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""C face of the loop: what a native device gives a worker, and when that is called.

All are called in the worker's thread, without the GIL, one at a time.

process(device, queue index)
    There may be something to pop. Kicks are off. Pop, push and publish, then return PROCESS_DONE if the queue is empty,
    PROCESS_MORE if it is not (to be called again after the others had their turn), or PROCESS_WAIT if nothing can be
    popped before one of the device's own descriptors was served.
busy(device, queue index)
    Whether a chain of that queue is in flight (so that a pause would find guest memory in use). The worker goes on
    serving the device's own descriptors until it is not. NULL for a device that has nothing in flight after process.
event(device, descriptor)
    That descriptor is readable, or may be: after a signal. It is watched level-triggered, so take what makes it so.
"""

from libc.stdint cimport uint32_t, uint64_t

from .queue cimport VirtQueue

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef unsigned long pthread_t

cdef enum:
    PROCESS_DONE = 0
    PROCESS_MORE = 1
    PROCESS_WAIT = 2

ctypedef int (*process_t)(void *device, int queue_index) noexcept nogil
ctypedef bint (*busy_t)(void *device, int queue_index) noexcept nogil
ctypedef void (*event_t)(void *device, int fd) noexcept nogil

cdef struct slot_t:
    void *queue  # a VirtQueue, held by the worker's list; NULL: the slot is free
    void *device
    process_t process
    busy_t busy
    int index
    int python  # the handler is Python's: process turns kicks on by itself, and nobody polls
    int roused  # set from any thread
    int ready
    int armed  # kicks are on
    int waiting
    int draining
    int dead
    int unkicked  # there is no kick descriptor: looked at every millisecond

cdef struct watch_t:
    int fd  # -1: free
    void *device
    event_t event

cdef enum:  # what is wanted of the thread, and what it is doing
    RUN
    PAUSE
    STOP

cdef enum:  # what drains before a pause, if not one slot
    DRAIN_NONE = -1
    DRAIN_ALL = -2

cdef enum:  # what an event is about: a watch (plus its index), control, or else a slot
    EVENT_WATCH = 1 << 29
    EVENT_CONTROL = 1 << 30

cdef uint64_t loop_now() noexcept nogil
cdef void loop_signal(int fd) noexcept nogil


cdef class Loop:
    cdef slot_t *slots
    cdef uint32_t slots_count
    cdef watch_t *watches
    cdef uint32_t watches_count
    cdef int epoll
    cdef int control
    cdef readonly int event_fd  # readable once a queue broke; borrowed
    cdef pthread_mutex_t lock
    cdef pthread_cond_t changed
    cdef int attention  # the thread is to look at want
    cdef int want
    cdef int state
    cdef int drain  # what is to drain before it pauses
    cdef uint64_t poll_ns
    cdef uint64_t window_ns  # how long it is worth polling just now
    cdef uint64_t woken

    cdef void _run(self) noexcept nogil
    cdef bint _attend(self) noexcept nogil
    cdef bint _is_busy(self) noexcept nogil
    cdef bint _serve_ready(self) noexcept nogil
    cdef bint _serve(self, slot_t *slot) noexcept nogil
    cdef bint _look_around(self) noexcept nogil
    cdef bint _arm(self) noexcept nogil
    cdef void _wait(self, int timeout_ms) noexcept nogil
    cdef void _event(self, uint64_t what) noexcept nogil
