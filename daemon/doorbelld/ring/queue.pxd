# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""C face of a queue: what a native device and a worker use.

A native device pops and pushes from the worker's thread:

    while (got = queue.pop_chain(&chain)) > 0:
        written = serve(&chain) if got == POP_CHAIN else 0
        queue.push_chain(&chain, written)
    queue.publish()
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from .chain cimport Chain
from .memory cimport MemoryMap, iovec
from .split cimport POP_BROKEN, POP_CHAIN, POP_EMPTY, POP_FAULT, chain_free, chain_t, counters_t, ring_t


cdef class VirtQueue:
    cdef ring_t ring
    cdef readonly MemoryMap memory
    cdef readonly int index
    cdef readonly uint32_t max_size
    cdef readonly uint64_t features
    cdef int native  # a worker serves it without the GIL: Python keeps its hands off
    cdef int watched  # a worker waits for its kicks
    cdef int kick  # the queue's own copy, or -1
    cdef dict chains  # by head: those in flight that Python has
    cdef set filled  # indexes filled from Python and not yet flushed
    cdef str told
    cdef object failure  # what the handler raised, until somebody takes it

    # From a worker's thread, or with nobody else at the queue.
    cdef int pop_chain(self, chain_t *chain) noexcept nogil
    cdef bint unpop_chain(self, const chain_t *chain) noexcept nogil
    cdef void push_chain(self, const chain_t *chain, uint32_t written) noexcept nogil
    cdef bint publish(self) noexcept nogil
    cdef bint is_empty(self) noexcept nogil
    cdef uint32_t backlog(self) noexcept nogil
    cdef bint want_kicks(self, bint wanted) noexcept nogil
    cdef void count_error(self) noexcept nogil
    cdef void count_kick(self) noexcept nogil
    cdef bint check_memory(self) noexcept nogil

    cdef bint _signal(self) except -1
    cdef int _check_owner(self) except -1
    cdef int _check_unwatched(self) except -1
    cdef int _check_stopped(self, what) except -1
    cdef int _check_usable(self) except -1
    cdef int _forget_chains(self) except -1
    cdef int _check_chain(self, Chain chain) except -1
    cdef int _check_ring(self) except -1
