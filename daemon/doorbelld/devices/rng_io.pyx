# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The fast part of rng: getrandom(2) into guest memory, in a worker's thread.

A request gets at most `PIECE_MAX` bytes (the specification asks for one or more), so that one for gigabytes does not
occupy the worker. With a rate limit there is a bucket of bytes that fills at that rate, up to an eighth of a second's
worth; a request gets what is in it. Where that is too little to be worth a request, the chain is put back, and a timer
wakes the queue when it is enough: nothing is in flight meanwhile.

The kernel says EFAULT where guest memory is gone. We then touch the place ourselves, so that the SIGBUS guard notes it.
"""

import os

from libc.errno cimport EFAULT, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from doorbelld.ring.loop cimport PROCESS_DONE, PROCESS_MORE, PROCESS_WAIT, loop_now
from doorbelld.ring.queue cimport POP_CHAIN, POP_FAULT, VirtQueue, chain_free, chain_t
from doorbelld.ring.worker cimport Worker

cdef extern from "<sys/random.h>" nogil:
    ssize_t getrandom(void *data, size_t length, unsigned flags)

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *data, size_t count)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    enum: CLOCK_MONOTONIC

cdef extern from "<sys/timerfd.h>" nogil:
    struct itimerspec:
        timespec it_interval
        timespec it_value
    enum: TFD_CLOEXEC, TFD_NONBLOCK
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec *value, itimerspec *before)

cdef enum:
    BUDGET = 64  # requests before others have their turn
    AT_ONCE = 64 * 1024
    WORTH = 64  # bytes; with fewer in the bucket a request waits

PIECE_MAX = AT_ONCE
"""Bytes that a request gets at most."""

cdef uint64_t SECOND = 1_000_000_000


cdef class Source:
    """Random bytes for one queue, at most so many a second."""

    cdef readonly VirtQueue queue
    cdef chain_t chain
    cdef uint64_t rate  # 0: no limit
    cdef uint64_t burst
    cdef uint64_t level  # bytes in the bucket
    cdef uint64_t filled  # when it was last filled up to that
    cdef int timer

    def __cinit__(self):
        self.timer = -1

    def __init__(self, VirtQueue queue not None, uint64_t rate=0):
        """Serve *queue*; *rate* is in bytes a second, 0 for no limit.

        Raises:
            OSError: there is no descriptor left.
        """
        self.queue = queue
        self.rate = rate
        self.burst = max(rate // 8, 1)
        self.level = self.burst
        self.filled = loop_now()
        if rate:
            self.timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)
            if self.timer < 0:
                raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        # SAFETY: the worker held us as long as it could use the chain.
        chain_free(&self.chain)
        if self.timer >= 0:
            os.close(self.timer)

    def attach(self, Worker worker not None):
        """Have *worker* serve the queue."""
        # SAFETY: the worker holds us as long as it uses the pointer.
        worker.attach_native(self.queue, _process, NULL, <void *>self, self)
        if self.timer >= 0:
            worker.watch_native(self.timer, _event, <void *>self, self)

    def detach(self, Worker worker not None):
        """End that; errors as for `Worker.detach`."""
        worker.detach(self.queue)
        if self.timer >= 0:
            worker.unwatch(self.timer)

    cdef int serve(self) noexcept nogil:
        """Serve what waits, up to a budget."""
        cdef int number
        cdef int got = 0
        cdef int said = PROCESS_DONE
        cdef uint64_t room
        for number in range(BUDGET):
            got = self.queue.pop_chain(&self.chain)
            if got <= 0:
                break
            if got == POP_FAULT or self.chain.writable_bytes == 0:
                self.queue.count_error()
                self.queue.push_chain(&self.chain, 0)
                continue
            room = min(self.chain.writable_bytes, <uint64_t>AT_ONCE)
            if self.rate:
                self.fill_bucket()
                if self.level < min(room, min(<uint64_t>WORTH, self.burst)):
                    self.queue.unpop_chain(&self.chain)
                    self.wait_for(min(room, min(<uint64_t>WORTH, self.burst)))
                    said = PROCESS_WAIT
                    break
                room = min(room, self.level)
                self.level -= room
            self.queue.push_chain(&self.chain, self.draw(room))
        else:
            said = PROCESS_MORE
        self.queue.publish()
        return said

    cdef uint32_t draw(self, uint64_t room) noexcept nogil:
        """Put *room* random bytes into the chain; how many it got."""
        cdef uint32_t i = 0
        cdef size_t done = 0  # of that piece
        cdef size_t want
        cdef ssize_t got
        cdef uint64_t total = 0
        # SAFETY: i < writable_count, done < the length of that piece, want within what is left of it. room is not more
        # than all pieces have. The kernel writes no further than want, and fails where the memory is gone.
        while total < room:
            want = min(self.chain.writable[i].iov_len - done, <size_t>(room - total))
            got = getrandom(<uint8_t *>self.chain.writable[i].iov_base + done, want, 0)
            if got < 0:
                if errno == EINTR:
                    continue
                if errno == EFAULT:
                    (<volatile_byte *>self.chain.writable[i].iov_base)[done] = 0
                self.queue.count_error()
                break
            done += got
            total += got
            if done == self.chain.writable[i].iov_len:
                i += 1
                done = 0
        return <uint32_t>total

    cdef void fill_bucket(self) noexcept nogil:
        """Put in what came since the last time."""
        cdef uint64_t now = loop_now()
        cdef uint64_t more = self.rate * (min(now - self.filled, SECOND) // 1000) // 1_000_000
        if self.level + more >= self.burst:
            self.level = self.burst
            self.filled = now
        else:  # what is not worth a byte yet counts the next time
            self.level += more
            self.filled += more * SECOND // self.rate

    cdef void wait_for(self, uint64_t level) noexcept nogil:
        """Have the timer go off when the bucket will hold *level* bytes."""
        cdef itimerspec when
        cdef uint64_t delay = (level - self.level) * SECOND // self.rate + 1000
        when.it_interval.tv_sec = when.it_interval.tv_nsec = 0
        when.it_value.tv_sec = delay // SECOND
        when.it_value.tv_nsec = delay % SECOND
        # SAFETY: the kernel reads one struct.
        timerfd_settime(self.timer, 0, &when, NULL)

    cdef void take_timer(self) noexcept nogil:
        """Take what makes the timer readable."""
        cdef uint64_t count
        # SAFETY: 8 bytes of a variable of 8 bytes.
        read(self.timer, &count, sizeof(count))


cdef extern from *:
    """
    typedef volatile uint8_t volatile_byte;
    """
    ctypedef uint8_t volatile_byte


# SAFETY, for both: device is the Source that `attach` gave, which the worker holds.
cdef int _process(void *device, int queue_index) noexcept nogil:
    return (<Source>device).serve()


cdef void _event(void *device, int fd) noexcept nogil:
    (<Source>device).take_timer()
