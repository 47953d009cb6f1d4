# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""C face of the guest memory map."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "damage.h" nogil:
    struct damage_t "damage":
        int happened
        uint64_t guest_addr

cdef enum:
    REGIONS_MAX = 509

cdef enum:  # instead of a number of pieces
    MAP_FAULT = -1  # some of it lies outside of guest memory, or in a region that could not be mapped
    MAP_MANY = -2  # more pieces than there is room for

cdef struct region_t:
    uint64_t guest_addr
    uint64_t size
    uint64_t user_addr
    uint64_t mapped  # as size; 0 if it could not be mapped
    uint8_t *host

cdef struct table_t:
    uint32_t count
    region_t *regions  # by guest address

cdef struct memory_state_t:  # where a map is now; its address stays as long as the MemoryMap
    uint64_t generation  # grows with every change of the table
    const table_t *table
    const damage_t *damage

cdef inline uint8_t *region_at(const region_t *region, uint64_t guest_addr, uint64_t length) noexcept nogil:
    """Translate a guest address if all *length* bytes lie in the mapped *region*, else return NULL."""
    cdef uint64_t offset = guest_addr - region.guest_addr  # wraps, and is then too large, for an address below
    # SAFETY: host has mapped bytes; both comparisons are without overflow.
    if offset < region.mapped and length <= region.mapped - offset:
        return region.host + offset
    return NULL

cdef const region_t *table_find(const table_t *table, uint64_t guest_addr) noexcept nogil
cdef int table_map(const table_t *table, uint64_t guest_addr, uint64_t length, iovec *out, int room) noexcept nogil
cdef uint8_t *table_user(const table_t *table, uint64_t user_addr, uint64_t length) noexcept nogil


cdef class Damage:
    cdef damage_t *state


cdef class Mapping:
    cdef region_t region
    cdef readonly uint64_t offset
    cdef readonly str error
    cdef uint8_t *base
    cdef size_t length
    cdef void *guard
    cdef Damage damage

    cdef int _map(self, int fd) except -1


cdef class Snapshot:
    cdef table_t table
    cdef list mappings


cdef class MemoryMap:
    cdef memory_state_t state
    cdef Snapshot snapshot
    cdef Damage damage
    cdef int pins  # running workers that read the table

    cdef int map_gpa(self, uint64_t guest_addr, uint64_t length, iovec *out, int room) noexcept nogil
    cdef int pin(self) except -1
    cdef void unpin(self) noexcept
    cdef int _put(self, Snapshot snapshot) except -1
    cdef int _check_unpinned(self) except -1
    cdef object view(self, Snapshot snapshot, const iovec *piece, bint readonly)
