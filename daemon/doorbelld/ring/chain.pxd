# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""C face of a chain that Python has."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from .memory cimport MemoryMap, Snapshot, iovec
from .split cimport chain_free, chain_t


cdef class Chain:
    cdef chain_t chain
    cdef readonly object queue
    cdef int index  # of that queue
    cdef MemoryMap memory
    cdef Snapshot snapshot
    cdef list inward
    cdef list outward
    cdef uint64_t taken
    cdef readonly uint64_t written
    cdef bint faulty
    cdef bint live

    cdef int _begin(self, object queue, int index, MemoryMap memory, bint faulty) except -1
    cdef int _check(self) except -1
    cdef uint32_t _written(self, written) except? 0xffffffff
    cdef int _end(self) except -1
    cdef list _views(self, const iovec *pieces, uint32_t count, bint readonly)
