# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A native device that writes back what it reads: the smallest there is, for tests, for benchmarks, and to learn from.

Its ``process`` pops until the queue is empty and publishes once. With *hold* it takes one chain at a time and keeps it
until `Echo.release`, like a device that waits for a disk: it says PROCESS_WAIT, is busy meanwhile, and goes on in the
callback of its eventfd.
"""

import os

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memmove

from .queue cimport POP_CHAIN, POP_FAULT, VirtQueue, chain_free, chain_t
from .worker cimport PROCESS_DONE, PROCESS_MORE, PROCESS_WAIT, Worker

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *data, size_t count)

cdef extern from "barriers.h" nogil:
    int load_flag(const int *at)
    void store_flag(int *at, int value)

cdef enum:
    BUDGET = 256  # chains before other queues have their turn


cdef class Echo:
    """The device, of one queue."""

    cdef readonly VirtQueue queue
    cdef chain_t chain
    cdef bint hold
    cdef int door
    cdef int holding

    def __cinit__(self):
        self.door = -1

    def __init__(self, VirtQueue queue not None, *, bint hold=False):
        self.queue = queue
        self.hold = hold
        self.door = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __dealloc__(self):
        # SAFETY: the worker held us as long as it could use the chain.
        chain_free(&self.chain)
        self.close()

    def close(self):
        """Close its eventfd, after `detach`; again does nothing."""
        if self.door >= 0:
            os.close(self.door)
        self.door = -1

    def attach(self, Worker worker not None):
        """Have *worker* serve the queue with this device."""
        # SAFETY: the worker holds us as long as it uses the pointer.
        worker.attach_native(self.queue, _process, _busy, <void *>self, self)
        worker.watch_native(self.door, _event, <void *>self, self)

    def detach(self, Worker worker not None, double timeout=10.0):
        """End that; errors as for `Worker.detach`."""
        worker.detach(self.queue, timeout)
        worker.unwatch(self.door)

    def release(self):
        """Let the chain that is held be finished."""
        os.eventfd_write(self.door, 1)

    @property
    def is_holding(self):
        """Whether it holds a chain."""
        return bool(load_flag(&self.holding))

    cdef int work(self) noexcept nogil:
        """Take what there is."""
        cdef int budget
        cdef int got = 0
        for budget in range(BUDGET):
            if self.holding:
                return PROCESS_WAIT
            got = self.queue.pop_chain(&self.chain)
            if got <= 0:
                break
            if self.hold:
                store_flag(&self.holding, 1)
            else:
                self.finish(got)
        self.queue.publish()
        return PROCESS_MORE if got > 0 else PROCESS_DONE

    cdef void finish(self, int got) noexcept nogil:
        """Answer the chain."""
        if got == POP_FAULT:
            self.queue.count_error()
        self.queue.push_chain(&self.chain, echo(&self.chain) if got == POP_CHAIN else 0)

    cdef void go_on(self) noexcept nogil:
        """Finish the chain that is held."""
        cdef uint64_t count
        # SAFETY: 8 bytes of a variable of 8 bytes.
        if read(self.door, &count, sizeof(count)) == sizeof(count) and self.holding:
            self.finish(POP_CHAIN)
            self.queue.publish()
            store_flag(&self.holding, 0)


cdef uint32_t echo(const chain_t *chain) noexcept nogil:
    """Copy what there is to read to where there is room; how many bytes."""
    cdef uint32_t source = 0
    cdef uint32_t target = 0
    cdef size_t taken = 0  # of that source
    cdef size_t given = 0  # to that target
    cdef size_t step
    cdef uint32_t total = 0
    # SAFETY: both indexes stay below their counts, and step within what is left of both pieces, which a driver may have
    # laid over each other.
    while source < chain.readable_count and target < chain.writable_count:
        step = min(chain.readable[source].iov_len - taken, chain.writable[target].iov_len - given)
        memmove(<uint8_t *>chain.writable[target].iov_base + given, <uint8_t *>chain.readable[source].iov_base + taken,
                step)
        taken += step
        given += step
        total += <uint32_t>step
        if taken == chain.readable[source].iov_len:
            source += 1
            taken = 0
        if given == chain.writable[target].iov_len:
            target += 1
            given = 0
    return total


# SAFETY, for the three: device is the Echo that `attach` gave, which the worker holds.
cdef int _process(void *device, int queue_index) noexcept nogil:
    return (<Echo>device).work()


cdef bint _busy(void *device, int queue_index) noexcept nogil:
    return (<Echo>device).holding


cdef void _event(void *device, int fd) noexcept nogil:
    (<Echo>device).go_on()
