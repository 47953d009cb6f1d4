# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""C face of a disk: what its queues go by."""

from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    VIRTIO_BLK_ID_BYTES = 20  # VIRTIO 1.2, 5.2.6

cdef extern from *:
    """
    static inline int flag_get(const int *at) { return __atomic_load_n(at, __ATOMIC_RELAXED); }
    static inline void flag_set(int *at, int value) { __atomic_store_n(at, value, __ATOMIC_RELAXED); }
    static inline uint64_t word_get(const uint64_t *at) { return __atomic_load_n(at, __ATOMIC_RELAXED); }
    static inline void word_set(uint64_t *at, uint64_t value) { __atomic_store_n(at, value, __ATOMIC_RELAXED); }
    """
    int flag_get(const int *at) nogil
    void flag_set(int *at, int value) nogil
    uint64_t word_get(const uint64_t *at) nogil
    void word_set(uint64_t *at, uint64_t value) nogil

cdef enum:  # how reads, or writes, may be done inline
    INLINE_NEVER
    INLINE_NOWAIT
    INLINE_ALWAYS

cdef struct disk_t:
    int fd
    int read_only
    int discard  # whether holes may be made
    int reads  # INLINE_...
    int writes
    int no_holes  # the file has none
    int no_ranges  # nor can it zero a range
    int writethrough
    int direct
    uint64_t memory_align  # of buffers, for direct I/O
    uint64_t block  # of lengths
    uint64_t capacity  # in sectors
    uint8_t[VIRTIO_BLK_ID_BYTES] serial


cdef class Disk:
    cdef disk_t state
    cdef readonly object file
    cdef int in_memory
