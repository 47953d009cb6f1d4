# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""C face of the driver side."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from .memory cimport MemoryMap, Snapshot
from .split cimport descriptor_t


cdef class DriverQueue:
    cdef MemoryMap memory
    cdef Snapshot snapshot  # where the pointers below were found
    cdef descriptor_t *desc
    cdef uint16_t *avail
    cdef uint16_t *used
    cdef readonly tuple addresses
    cdef readonly uint32_t num
    cdef bint event_idx
    cdef bint indirect
    cdef uint16_t *next_free  # by descriptor: the next one in the list of free ones
    cdef uint16_t first_free
    cdef readonly uint32_t free
    cdef uint16_t *lengths  # by head: descriptors of a chain that is out; 0: none is
    cdef uint16_t avail_idx  # with what is not published
    cdef uint16_t published
    cdef uint16_t kicked  # the index at the last decision
    cdef uint16_t last_used
    cdef readonly uint32_t in_flight
    cdef int kick_number
    cdef int call_number

    cdef int submit(self, const descriptor_t *descriptors, uint32_t count) noexcept nogil
    cdef void publish(self) noexcept nogil
    cdef bint wants_kick(self) noexcept nogil
    cdef int take(self, uint32_t *written) noexcept nogil
    cdef bint want_calls(self, bint wanted) noexcept nogil
    cdef bint ring_kick(self) noexcept nogil
    cdef uint64_t _drive(
        self, const descriptor_t *templates, const uint32_t *lengths, uint32_t kinds, uint64_t wanted, uint32_t depth,
        uint64_t patience, bint spin, uint64_t *kicks, uint64_t *waits, uint64_t *written
    ) noexcept nogil
