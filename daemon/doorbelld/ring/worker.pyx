# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Workers: threads that serve queues.

The thread runs a loop (loop.pyx has the theory of it). Everything here happens outside of that thread, and pauses it
where it changes what the thread uses.

*Python devices.* A Python handler is called with the GIL. The state of its queue belongs to whoever holds the GIL, so
for such a queue the worker does nothing without it, and does not poll. While there is something to do it keeps the GIL
for a *stint*, and leaves it to the interpreter to pass it on. Who lets go of it and takes it again at once, time after
time, starves all others: each time they wake too late, and their patience, after which the interpreter would see to
them, begins anew.

A thread that does not answer may be stuck in a write to a call descriptor that a hostile sharer made blocking and full;
a signal gets it out of there. A worker that is shared by devices lets one that misbehaves delay the others: give each
device workers of its own.

Invariants
----------
1. While the thread runs, every queue of a native device is `native`, and the memory of every queue is pinned.
2. Everything that the thread reaches through a pointer is held in ``held`` or ``watched``.
"""

import os
import signal
import sys
import threading

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from ..errors import in_words
from ..fds import native
from .errors import QueueBroken, QueueError

from .loop cimport (
    DRAIN_ALL,
    DRAIN_NONE,
    EVENT_CONTROL,
    EVENT_WATCH,
    PAUSE,
    PROCESS_DONE,
    PROCESS_MORE,
    PROCESS_WAIT,
    RUN,
    STOP,
    Loop,
    epoll_event,
    loop_now,
    loop_signal,
    pthread_cond_t,
    pthread_mutex_t,
    slot_t,
    timespec,
    watch_t,
)

cdef extern from "barriers.h" nogil:
    int load_flag(const int *at)
    void store_flag(int *at, int value)
    uint64_t load64(const uint64_t *at)
    void store64(uint64_t *at, uint64_t value)

cdef extern from "<time.h>" nogil:
    enum: CLOCK_MONOTONIC

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_condattr_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_condattr_init(pthread_condattr_t *)
    int pthread_condattr_setclock(pthread_condattr_t *, int)
    int pthread_cond_init(pthread_cond_t *, pthread_condattr_t *)
    int pthread_cond_destroy(pthread_cond_t *)
    int pthread_cond_timedwait(pthread_cond_t *, pthread_mutex_t *, const timespec *)
    int pthread_cond_broadcast(pthread_cond_t *)
    pthread_t pthread_self()
    int pthread_kill(pthread_t, int)

cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL
    uint32_t EPOLLIN, EPOLLET
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int what, int fd, epoll_event *event)

cdef extern from "<sys/prctl.h>" nogil:
    enum: PR_SET_NAME
    int prctl(int option, ...)

cdef extern from *:
    """
    #include <signal.h>
    #include <string.h>

    #define PROD_SIGNAL (SIGRTMIN + 6)

    static void prod_handler(int number) { (void)number; }

    /* Make PROD_SIGNAL do nothing but end a system call, once in a process; 0, or an errno value. */
    static int prod_install(void)
    {
        static int installed;
        struct sigaction action;
        if (installed)
            return 0;
        memset(&action, 0, sizeof action);
        action.sa_handler = prod_handler; /* no SA_RESTART: that is the point */
        if (sigaction(PROD_SIGNAL, &action, NULL))
            return errno;
        installed = 1;
        return 0;
    }
    """
    enum: PROD_SIGNAL
    int prod_install() nogil

cdef enum:
    PATIENCE_NS = 20_000_000  # before a thread that does not answer is prodded
    STINT = 2  # times the interval after which the interpreter passes the GIL on

LATER = PROCESS_WAIT
"""What a Python handler returns to be left alone until `Worker.rouse`, though its queue is not empty."""


cdef class _Handler:
    """A Python handler, as a native device."""

    cdef VirtQueue queue
    cdef object function
    cdef const int *attention  # of the loop that this is for
    cdef uint64_t stint_ns

    cdef int serve(self) except -1:
        """Call it for a stint, while there is something to do; what `process` returns."""
        cdef uint64_t until = loop_now() + self.stint_ns
        cdef int said
        # SAFETY: the loop holds this object, so it is there.
        while True:
            said = self.run()
            if said != PROCESS_MORE or load_flag(self.attention) or loop_now() >= until:
                return said

    cdef int run(self) except -1:
        """Call it once."""
        cdef VirtQueue queue = self.queue
        queue.want_kicks(False)
        try:
            said = self.function(queue)
        except QueueBroken:
            return PROCESS_DONE
        except BaseException as error:
            queue.failure = error
            queue.fail(f"its handler raised {in_words(error)}")
            return PROCESS_DONE
        if not queue.check_memory():
            return PROCESS_DONE
        if said == PROCESS_WAIT:
            return PROCESS_WAIT
        return PROCESS_MORE if queue.want_kicks(True) else PROCESS_DONE


cdef int _hand_over(void *device, int queue_index) noexcept with gil:
    # SAFETY: device is a _Handler, which `held` holds (invariant 2).
    return (<_Handler>device).serve()


cdef class Worker(Loop):
    """A thread that serves queues; it runs from the start, and `stop` must be called in the end."""

    def __cinit__(self):
        self.epoll = self.control = self.event_fd = -1

    def __init__(self, name="worker", *, poll_us=0):
        """Start the thread.

        Args:
            name: of the thread, as ``top -H`` shows it.
            poll_us: microseconds for which it looks at queues that fell empty before it sleeps, at most; 0 for never.

        Raises:
            OSError: there are no descriptors left.
        """
        cdef pthread_condattr_t attributes
        self.name = name
        self.held = []
        self.watched = {}
        self.poll_us = poll_us
        self.state = self.want = PAUSE
        self.finished = True
        # SAFETY: plain initialisation, once; destroyed with the object, when the thread is gone.
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_mutex_init(&self.lock, NULL)
        pthread_cond_init(&self.changed, &attributes)
        if prod_install():
            raise OSError(errno, os.strerror(errno))
        self.control = os.eventfd(0)
        self.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, os.strerror(errno))
        self._add(self.control, EVENT_CONTROL, EPOLLIN | EPOLLET)
        self.finished = False
        self.thread = threading.Thread(target=self._main, name=name, daemon=True)
        self.thread.start()
        self._go_on()

    def __dealloc__(self):
        # SAFETY: the thread held a reference, so it is gone, and nobody waits.
        free(self.slots)
        free(self.watches)
        pthread_cond_destroy(&self.changed)
        pthread_mutex_destroy(&self.lock)
        for fd in (self.epoll, self.control, self.event_fd):
            if fd >= 0:
                os.close(fd)

    # -- from outside

    cdef int _check_outside(self) except -1:
        if self.finished:
            raise RuntimeError(f"worker {self.name!r} was stopped")
        if threading.current_thread() is self.thread:
            raise RuntimeError(f"worker {self.name!r} can't pause itself; do that from another thread")
        return 0

    cdef int _reach(self, int want, int drain, double timeout) except -1:
        """Ask the thread for another state and wait until it is reached; whether it was."""
        cdef uint64_t deadline = loop_now() + <uint64_t>(min(timeout, 1e9) * 1e9)
        cdef uint64_t until
        cdef uint64_t now
        cdef timespec wake
        # SAFETY: all under the lock, which the thread takes without the GIL and never for long.
        with nogil:
            pthread_mutex_lock(&self.lock)
            self.want = want
            self.drain = drain
            store_flag(&self.attention, 1)
            pthread_cond_broadcast(&self.changed)
            loop_signal(self.control)
            while self.state != want:
                now = loop_now()
                if now >= deadline:
                    break
                until = min(deadline, now + PATIENCE_NS)
                wake.tv_sec = until // 1_000_000_000
                wake.tv_nsec = until % 1_000_000_000
                # the thread ends after it has said so, under the lock: before that there is somebody to prod
                if (
                    pthread_cond_timedwait(&self.changed, &self.lock, &wake) and self.state != want and self.self_id
                ):
                    pthread_kill(self.self_id, PROD_SIGNAL)
            if self.state != want:  # it goes on as before, and has to know
                self.want = RUN
                loop_signal(self.control)
            pthread_mutex_unlock(&self.lock)
        return self.state == want

    cdef int _pause(self, int drain, double timeout) except -1:
        """Pause the thread, unless it is quiesced."""
        self._check_outside()
        if self.quiesced:
            return 0
        if not self._reach(PAUSE, drain, timeout):
            raise TimeoutError(f"worker {self.name!r}: requests in flight were not finished in {timeout:g} s")
        return 0

    cdef int _go_on(self) except -1:
        """End what `_pause` began."""
        if not self.quiesced:
            self._reach(RUN, DRAIN_NONE, 1e9)
        return 0

    cdef int _mark(self, bint running) except -1:
        """Take all queues from Python, or give them back."""
        cdef VirtQueue queue
        cdef uint32_t i
        # SAFETY: the thread is paused; held has as many elements as there are slots.
        for i in range(self.slots_count):
            if self.slots[i].queue == NULL:
                continue
            queue = self.held[i][0]
            if running:
                queue.memory.pin()
                queue.native = not self.slots[i].python
            else:
                queue.memory.unpin()
                queue.native = 0
        return 0

    def _add(self, int fd, uint64_t what, uint32_t events):
        cdef epoll_event event
        event.events = events
        event.data.u64 = what
        # SAFETY: the kernel reads one struct.
        if epoll_ctl(self.epoll, EPOLL_CTL_ADD, fd, &event):
            raise OSError(errno, os.strerror(errno))

    cdef int _slot_of(self, VirtQueue queue) except -1:
        for i, entry in enumerate(self.held):
            if entry is not None and entry[0] is queue:
                return i
        raise ValueError(f"queue {queue.index} is not attached to worker {self.name!r}")

    cdef int _place(
        self, VirtQueue queue, process_t process, busy_t busy, void *device, object keep, bint python
    ) except -1:
        """Put a queue into a free slot; the thread is paused."""
        cdef slot_t *slot
        cdef slot_t *grown
        cdef uint32_t i = 0
        # SAFETY: i < slots_count at each access; realloc'ed while the thread does not look (the thread is paused).
        while i < self.slots_count and self.slots[i].queue != NULL:
            i += 1
        if i == self.slots_count:
            grown = <slot_t *>realloc(self.slots, (i + 1) * sizeof(slot_t))
            if grown == NULL:
                raise MemoryError
            self.slots = grown
            self.slots_count += 1
            self.held.append(None)
            self.slots[i].queue = NULL
        if queue.kick >= 0:
            self._add(queue.kick, i, EPOLLIN | EPOLLET)
        slot = &self.slots[i]
        memset(slot, 0, sizeof(slot_t))
        slot.queue = <void *>queue
        slot.device = device
        slot.process = process
        slot.busy = busy
        slot.index = queue.index
        slot.python = python
        slot.unkicked = queue.kick < 0
        self.held[i] = (queue, keep)
        queue.watched = 1
        if not self.quiesced:
            queue.memory.pin()
            queue.native = not python
        return 0

    cdef int attach_native(
        self, VirtQueue queue, process_t process, busy_t busy, void *device, object keep
    ) except -1:
        """Serve *queue* with a native device; *keep* is held as long as the worker may use *device*.

        Raises:
            QueueError: the queue does not run, or has a worker.
        """
        self._check_outside()
        if not queue.ring.running or queue.watched:
            raise QueueError(f"queue {queue.index} {'has a worker' if queue.watched else 'must be started first'}")
        self._pause(DRAIN_NONE, 1e9)
        try:
            self._place(queue, process, busy, device, keep, False)
        finally:
            self._go_on()
        return 0

    def attach(self, VirtQueue queue not None, handler):
        """Serve *queue* with ``handler(queue)``, called in the worker's thread when there may be something to pop.

        The handler pops until there is nothing more; it returns `LATER` to leave something for after `rouse`. An
        exception of it breaks the queue.

        Raises:
            QueueError: the queue does not run, or has a worker.
        """
        cdef _Handler device = _Handler()
        device.queue = queue
        device.function = handler
        device.attention = &self.attention
        device.stint_ns = <uint64_t>(STINT * sys.getswitchinterval() * 1e9)
        self._check_outside()
        if not queue.ring.running or queue.watched:
            raise QueueError(f"queue {queue.index} {'has a worker' if queue.watched else 'must be started first'}")
        self._pause(DRAIN_NONE, 1e9)
        try:
            self._place(queue, _hand_over, NULL, <void *>device, device, True)
        finally:
            self._go_on()

    def detach(self, VirtQueue queue not None, double timeout=10.0):
        """Serve *queue* no more; returns when its native device has nothing in flight, and nobody touches its ring.

        Raises:
            ValueError: it is not attached here.
            TimeoutError: the device did not finish; the queue is served as before.
        """
        cdef uint32_t i = self._slot_of(queue)
        self._pause(<int>i, timeout)
        # SAFETY: the thread is paused; the slot is the queue's. The kick descriptor is still the one that was added.
        if not self.slots[i].unkicked:
            epoll_ctl(self.epoll, EPOLL_CTL_DEL, queue.kick, NULL)
        self.slots[i].queue = NULL
        self.held[i] = None
        queue.watched = 0
        if not self.quiesced:
            queue.memory.unpin()
            queue.native = 0
        self._go_on()

    cdef int watch_native(self, int fd, event_t event, void *device, object keep) except -1:
        """Call *event* whenever *fd* is readable; *keep* is held as long as the worker may use *device*."""
        cdef watch_t *grown
        cdef uint32_t i = 0
        self._pause(DRAIN_NONE, 1e9)
        # SAFETY: as in _place.
        try:
            while i < self.watches_count and self.watches[i].fd >= 0:
                i += 1
            if i == self.watches_count:
                grown = <watch_t *>realloc(self.watches, (i + 1) * sizeof(watch_t))
                if grown == NULL:
                    raise MemoryError
                self.watches = grown
                self.watches_count += 1
                self.watches[i].fd = -1
            self._add(fd, EVENT_WATCH | i, EPOLLIN)
            self.watches[i].fd = fd
            self.watches[i].event = event
            self.watches[i].device = device
            self.watched[fd] = keep
        finally:
            self._go_on()
        return 0

    def unwatch(self, int fd):
        """Watch the descriptor *fd* of a native device no more.

        Raises:
            KeyError: it is not watched.
        """
        cdef uint32_t i
        self.watched[fd]
        self._pause(DRAIN_NONE, 1e9)
        # SAFETY: the thread is paused, i < watches_count.
        for i in range(self.watches_count):
            if self.watches[i].fd == fd:
                epoll_ctl(self.epoll, EPOLL_CTL_DEL, fd, NULL)
                self.watches[i].fd = -1
        del self.watched[fd]
        self._go_on()

    def quiesce(self, double timeout=10.0):
        """Pause the thread: no ring, no guest memory is touched from now on, nothing native is in flight.

        Waits without the GIL; where a device may take long, call it from a helper thread.

        Raises:
            TimeoutError: a device did not finish what was in flight; everything goes on as before.
        """
        if not self.quiesced:
            self._pause(DRAIN_ALL, timeout)
            self.quiesced = True
            self._mark(False)

    def resume(self):
        """End `quiesce`: each queue is served once, whether or not a kick came meanwhile."""
        self._check_outside()
        if self.quiesced:
            self._mark(True)
            self.quiesced = False
            self._go_on()

    def rouse(self, VirtQueue queue not None):
        """Have *queue* served once, though no kick came; from any thread.

        Raises:
            ValueError: it is not attached here.
        """
        # SAFETY: slots change only under the GIL, which we hold.
        store_flag(&self.slots[self._slot_of(queue)].roused, 1)
        loop_signal(self.control)

    def stop(self, double timeout=10.0):
        """Let the devices finish what is in flight, detach all queues and end the thread; again does nothing.

        Raises:
            TimeoutError: a device did not finish; everything goes on as before.
        """
        if self.finished:
            return
        self.quiesce(timeout)
        for entry in self.held:
            if entry is not None:
                self.detach(entry[0])
        for fd in list(self.watched):
            self.unwatch(fd)
        self._reach(STOP, DRAIN_NONE, 1e9)
        self.thread.join()
        self.finished = True
        for fd in (self.epoll, self.control, self.event_fd):
            os.close(fd)
        self.epoll = self.control = self.event_fd = -1

    @property
    def poll_us(self):
        """See `__init__`; may be set at any time."""
        return load64(&self.poll_ns) // 1000

    @poll_us.setter
    def poll_us(self, value):
        if not 0 <= value <= 1_000_000:
            raise ValueError(f"poll_us: {value} is no time to poll; use 0 to 1000000 microseconds")
        store64(&self.poll_ns, value * 1000)

    @property
    def wakeups(self):
        """How often the thread slept and was woken."""
        return load64(&self.woken)

    def _main(self):
        name = self.name.encode()[:15]
        cdef const char *raw = name
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {
            signal.SIGBUS, signal.SIGSEGV, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, PROD_SIGNAL, native.GUARD,
        })
        # SAFETY: a string of at most 15 bytes that lives until the end of this function.
        prctl(PR_SET_NAME, raw)
        self.self_id = pthread_self()
        # SAFETY: everything the loop uses is held by this object, which our caller holds.
        with nogil:
            self._run()
        native.end_guard()
