# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The loop of a worker's thread: it serves queues, without the GIL.

Theory of operation
-------------------
A worker is one thread with one epoll set: the kick descriptors of its queues, descriptors of its devices (*watches*,
say an eventfd of io_uring), and an eventfd of its own, *control*. In turns it serves every queue that is ready, by
calling the device's ``process`` (loop.pxd says what that has to do), until none is. Then it *polls* for a while: kicks
are off, and it looks at the queues themselves. When that was in vain it *arms*, which means turning kicks on and
looking once more, and sleeps. io_uring ends a sleep with a signal of its own kind before its descriptor is readable, so
after a signal all watches are looked at.

*The polling window* adapts between 0 and ``poll_us``. It doubles when a sleep ended sooner than ``poll_us`` (polling
longer would have caught that), and halves when one lasted longer.

*Kicks are edge-triggered and never read.* Each kick makes a new edge, so nothing is lost, a system call is saved, and
there is no descriptor on which a hostile sharer could make us block or spin.

*Pausing.* Everything that changes what the thread uses (queues, watches, guest memory) happens while it is paused, that
is, waits on a condition variable. Before it pauses for `Worker.quiesce` or `Worker.detach`, the queues in question
*drain*: nothing is popped from them any more, and watches are served until their devices are not ``busy``. After a
pause each queue is served once, whatever happened, so no kick is lost over one.

*Breaking.* A queue that broke is not served again before the next pause, and `event_fd` becomes readable.

Invariants
----------
1. Slots and watches change only while the thread is paused or gone.
2. All that a slot or a watch points to lives as long as it is there (worker.pyx holds it).
3. Of a queue with a Python handler, the thread changes nothing without the GIL.
"""

cdef extern from "barriers.h" nogil:
    int load_flag(const int *at)
    void store_flag(int *at, int value)
    uint64_t load64(const uint64_t *at)
    void count_up(uint64_t *counter, uint64_t by)
    void relax_cpu()

cdef extern from "<time.h>" nogil:
    enum: CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *now)

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *)
    int pthread_cond_broadcast(pthread_cond_t *)

cdef extern from "<sys/epoll.h>" nogil:
    int epoll_wait(int epoll, epoll_event *events, int room, int timeout_ms)

cdef extern from "<unistd.h>" nogil:
    ssize_t write(int fd, const void *data, size_t count)

cdef enum:
    EVENTS_MAX = 64
    SPINS_A_LOOK = 16  # rounds of polling between two looks at the descriptors
    UNKICKED_MS = 1
    WINDOW_MIN = 4000  # ns; where growing starts


cdef uint64_t loop_now() noexcept nogil:
    """Tell the monotonic time in nanoseconds."""
    cdef timespec now
    # SAFETY: writes one struct.
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1_000_000_000 + <uint64_t>now.tv_nsec


cdef void loop_signal(int fd) noexcept nogil:
    """Add one to an eventfd of our own."""
    cdef uint64_t one = 1
    # SAFETY: reads 8 bytes of a variable of 8 bytes. Nobody else has this eventfd, and it is never full.
    write(fd, &one, sizeof(one))


cdef class Loop:
    """What the thread of a `Worker` does."""

    cdef void _run(self) noexcept nogil:
        """Serve, poll, arm, sleep, until it is told to stop."""
        cdef uint64_t most
        cdef uint64_t began = 0
        cdef uint64_t slept
        cdef uint32_t spins = 0
        cdef bint served = True
        # SAFETY: invariant 2.
        while True:
            if load_flag(&self.attention) and self._attend():
                return
            if self._serve_ready():
                served = True
                if self._look_around():  # while one queue is busy, the others are not armed
                    if self.watches_count or self.slots_count > 1:
                        self._wait(0)
                    continue
            most = load64(&self.poll_ns)
            if self.window_ns and most:
                if served:
                    began = loop_now()
                    served = False
                if loop_now() - began < min(self.window_ns, most):
                    if not self._look_around():
                        relax_cpu()
                        spins += 1
                        if spins % SPINS_A_LOOK == 0:
                            self._wait(0)
                    continue
            if self._arm():
                continue
            slept = loop_now()
            self._wait(-1)
            slept = loop_now() - slept
            count_up(&self.woken, 1)
            if slept < most:
                self.window_ns = min(max(self.window_ns * 2, <uint64_t>WINDOW_MIN), most)
            else:
                self.window_ns //= 2

    cdef bint _attend(self) noexcept nogil:
        """Do what is wanted; whether that is to stop."""
        cdef slot_t *slot
        cdef uint32_t i
        cdef bint stop
        # SAFETY: slots are ours, but for the time that we wait here (invariant 1).
        pthread_mutex_lock(&self.lock)
        while True:
            if self.want == PAUSE:
                for i in range(self.slots_count):
                    self.slots[i].draining = self.drain == DRAIN_ALL or self.drain == <int>i
                if self._is_busy():
                    pthread_mutex_unlock(&self.lock)
                    return False
                if self.state != PAUSE:
                    self.state = PAUSE
                    pthread_cond_broadcast(&self.changed)
                pthread_cond_wait(&self.changed, &self.lock)
                continue
            stop = self.want == STOP
            self.state = self.want
            store_flag(&self.attention, 0)
            for i in range(self.slots_count):
                slot = &self.slots[i]
                slot.draining = slot.waiting = slot.armed = slot.dead = 0
                slot.ready = 1
            pthread_cond_broadcast(&self.changed)
            pthread_mutex_unlock(&self.lock)
            return stop

    cdef bint _is_busy(self) noexcept nogil:
        """Tell whether a queue that drains has something in flight."""
        cdef slot_t *slot
        cdef uint32_t i
        # SAFETY: i < slots_count; busy belongs to device, which is held.
        for i in range(self.slots_count):
            slot = &self.slots[i]
            if slot.queue != NULL and slot.draining and slot.busy != NULL and slot.busy(slot.device, slot.index):
                return True
        return False

    cdef bint _serve_ready(self) noexcept nogil:
        """Serve each queue that is ready; whether there was one."""
        cdef slot_t *slot
        cdef bint found = False
        cdef uint32_t i
        # SAFETY: i < slots_count.
        for i in range(self.slots_count):
            slot = &self.slots[i]
            if slot.ready and slot.queue != NULL and not (slot.draining or slot.dead):
                self._serve(slot)
                found = True
        return found

    cdef bint _serve(self, slot_t *slot) noexcept nogil:
        """Call the device once; whether the queue is alive."""
        cdef int said
        # SAFETY: queue and device are held (invariant 2); a native one is ours alone. Of one that has a
        # Python handler only a flag is read.
        slot.ready = slot.armed = slot.waiting = 0
        if not slot.python:
            (<VirtQueue>slot.queue).want_kicks(False)
        said = slot.process(slot.device, slot.index)
        if load_flag(&(<VirtQueue>slot.queue).ring.broken) or not (
            slot.python or (<VirtQueue>slot.queue).check_memory()
        ):
            slot.dead = 1
            loop_signal(self.event_fd)
            return False
        slot.ready = said == PROCESS_MORE
        slot.waiting = said == PROCESS_WAIT
        slot.armed = slot.python
        return True

    cdef bint _look_around(self) noexcept nogil:
        """Mark the native queues that are not empty as ready; whether any queue is."""
        cdef slot_t *slot
        cdef bint found = False
        cdef uint32_t i
        # SAFETY: as in _serve.
        for i in range(self.slots_count):
            slot = &self.slots[i]
            if slot.queue == NULL or slot.draining or slot.dead:
                continue
            if not (slot.ready or slot.python or slot.waiting or (<VirtQueue>slot.queue).is_empty()):
                slot.ready = 1
            found = found or slot.ready
        return found

    cdef bint _arm(self) noexcept nogil:
        """Turn kicks on where they are off; whether a queue turned out not to be empty."""
        cdef slot_t *slot
        cdef bint found = False
        cdef uint32_t i
        # SAFETY: as in _serve.
        for i in range(self.slots_count):
            slot = &self.slots[i]
            if slot.queue == NULL or slot.python or slot.draining or slot.dead or slot.waiting or slot.armed:
                continue
            slot.armed = 1
            if (<VirtQueue>slot.queue).want_kicks(True) or not (<VirtQueue>slot.queue).check_memory():
                slot.ready = 1  # a queue that broke just now is found out by serving it
                found = True
        return found

    cdef void _wait(self, int timeout_ms) noexcept nogil:
        """Wait for descriptors and note what they say."""
        cdef epoll_event events[EVENTS_MAX]
        cdef int count
        cdef uint32_t i
        if timeout_ms < 0:
            for i in range(self.slots_count):
                if self.slots[i].queue != NULL and self.slots[i].unkicked:
                    timeout_ms = UNKICKED_MS
        # SAFETY: the kernel writes at most EVENTS_MAX events; their numbers are those that we gave it.
        count = epoll_wait(self.epoll, events, EVENTS_MAX, timeout_ms)
        for i in range(<uint32_t>max(count, 0)):
            self._event(events[i].data.u64)
        if count < 0:
            for i in range(self.watches_count):
                if self.watches[i].fd >= 0:
                    self._event(EVENT_WATCH | i)
        if timeout_ms == UNKICKED_MS:
            for i in range(self.slots_count):
                if self.slots[i].unkicked:
                    self.slots[i].ready = 1

    cdef void _event(self, uint64_t what) noexcept nogil:
        """Note one event."""
        cdef watch_t *watch
        cdef slot_t *slot
        cdef uint32_t i
        # SAFETY: numbers of slots and watches are below their counts, which only grow; the batch of events is handled
        # without a pause in between, so each is still what it was.
        if what == EVENT_CONTROL:
            for i in range(self.slots_count):
                if load_flag(&self.slots[i].roused):
                    store_flag(&self.slots[i].roused, 0)
                    self.slots[i].ready = 1
        elif what & EVENT_WATCH:
            watch = &self.watches[what - EVENT_WATCH]
            watch.event(watch.device, watch.fd)
            for i in range(self.slots_count):
                slot = &self.slots[i]
                # a device that waited may go on; what broke just now is found out by serving it
                if slot.waiting or (
                    slot.queue != NULL and not slot.python and not (<VirtQueue>slot.queue).check_memory()
                ):
                    slot.ready = 1
        elif self.slots[what].queue != NULL:
            self.slots[what].ready = 1
            (<VirtQueue>self.slots[what].queue).count_kick()
