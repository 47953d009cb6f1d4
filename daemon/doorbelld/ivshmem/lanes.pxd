# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the forwarder works on: records, the lanes and channels that go by them, and the heap of those that are held."""

from libc.errno cimport ENOMEM
from libc.stdint cimport UINT64_MAX, uint64_t
from libc.stdlib cimport free, realloc

cdef extern from "guard.h" nogil:
    void settle_memory()

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    enum: RWF_NOWAIT
    ssize_t preadv2(int fd, const iovec *vectors, int count, long offset, int flags)

cdef enum:  # words of a record
    SENDER = 0  # its number + 1; 0: the record is free
    TARGET = 1
    RATE = 2  # deliveries a second; 0: no limit
    FORBIDDEN = 3
    PLACE = 4  # of the first proxy in its vault
    HEAD = 8

cdef enum:  # words of a channel in a record
    TAKEN = 0
    RINGS = 1
    PASSED = 2
    REFUSED = 3
    DELIVERIES = 4
    CHANNEL = 5

cdef enum:
    SECOND_NS = 1_000_000_000

cdef struct Lane:
    uint64_t *record
    Lane *target  # the target's own lane
    uint64_t interval  # nanoseconds from one token to the next; 0: no limit
    uint64_t slack  # how far ahead of `next` a delivery may be: the burst
    uint64_t next  # when the next token is due
    bint wary  # of an own lane: this target made a write block
    int count
    Channel *channels

cdef struct Channel:
    Lane *lane
    uint64_t *record
    uint64_t key
    uint64_t due
    uint64_t wait  # until the next try, after the last one failed
    Py_ssize_t place  # in the heap, or -1
    int source
    int sink
    bint granted  # it is held for a token that is reserved for it

cdef struct Heap:
    Channel **at
    Py_ssize_t held
    Py_ssize_t room


cdef inline bint take(Channel *channel) noexcept nogil:
    """Have the kernel put the count of a proxy into the record; False if there is none."""
    cdef iovec vector
    vector.iov_base = &channel.record[TAKEN]
    vector.iov_len = sizeof(uint64_t)
    # SAFETY: an eventfd writes 8 bytes, and there they are.
    if preadv2(channel.source, &vector, 1, -1, RWF_NOWAIT) != sizeof(uint64_t):
        return False
    if channel.record[TAKEN] == UINT64_MAX:  # only the kernel itself can add so much, and nobody can write it
        channel.record[TAKEN] -= 1
    channel.record[RINGS] += channel.record[TAKEN]
    settle_memory()
    return True


cdef inline void settle(Channel *channel) noexcept nogil:
    """Note that what was taken is delivered."""
    settle_memory()
    channel.record[TAKEN] = 0
    settle_memory()
    channel.record[PASSED] = channel.record[RINGS] - channel.record[REFUSED]


cdef inline void refuse(Channel *channel) noexcept nogil:
    """Note that what was taken is thrown away."""
    settle_memory()
    channel.record[TAKEN] = 0
    settle_memory()
    channel.record[REFUSED] = channel.record[RINGS] - channel.record[PASSED]


cdef inline void set_rate(Lane *lane) noexcept nogil:
    """Go by the rate in the record, with a full bucket: a tenth of a second's tokens, but at least one."""
    cdef uint64_t rate = lane.record[RATE]
    lane.interval = SECOND_NS // rate if rate else 0
    lane.slack = (max(rate // 10, <uint64_t>1) - 1) * lane.interval
    lane.next = 0


cdef inline void free_lane(Lane *lane) noexcept nogil:
    # SAFETY: whoever calls this has the last reference.
    if lane != NULL:
        free(lane.channels)
    free(lane)


# The heap: channels by the time at which they are due


cdef inline int heap_grow(Heap *heap, Py_ssize_t wanted) noexcept nogil:
    """Make room for *wanted* channels; 0, or an errno value."""
    cdef Channel **at
    if wanted <= heap.room:
        return 0
    # SAFETY: who calls holds the mutex under which the heap is used.
    at = <Channel **>realloc(heap.at, 2 * wanted * sizeof(Channel *))
    if at == NULL:
        return ENOMEM
    heap.at = at
    heap.room = 2 * wanted
    return 0


cdef inline void heap_put(Heap *heap, Py_ssize_t place, Channel *channel) noexcept nogil:
    # SAFETY: place < held + 1 <= room: there is room for all channels that there are.
    heap.at[place] = channel
    channel.place = place


cdef inline void heap_rise(Heap *heap, Py_ssize_t place) noexcept nogil:
    cdef Channel *channel = heap.at[place]
    while place and heap.at[(place - 1) // 2].due > channel.due:
        heap_put(heap, place, heap.at[(place - 1) // 2])
        place = (place - 1) // 2
    heap_put(heap, place, channel)


cdef inline void heap_sink(Heap *heap, Py_ssize_t place) noexcept nogil:
    cdef Channel *channel = heap.at[place]
    cdef Py_ssize_t child
    while 2 * place + 1 < heap.held:
        child = 2 * place + 1
        if child + 1 < heap.held and heap.at[child + 1].due < heap.at[child].due:
            child += 1
        if heap.at[child].due >= channel.due:
            break
        heap_put(heap, place, heap.at[child])
        place = child
    heap_put(heap, place, channel)


cdef inline void hold(Heap *heap, Channel *channel, uint64_t due, bint granted) noexcept nogil:
    """Put a channel in."""
    channel.due = due
    channel.granted = granted
    heap_put(heap, heap.held, channel)
    heap.held += 1
    heap_rise(heap, heap.held - 1)


cdef inline void unhold(Heap *heap, Channel *channel) noexcept nogil:
    """Take a channel out."""
    cdef Py_ssize_t place = channel.place
    heap.held -= 1
    channel.place = -1
    if place != heap.held:
        heap_put(heap, place, heap.at[heap.held])
        heap_sink(heap, place)
        heap_rise(heap, place)


cdef inline uint64_t heap_due(const Heap *heap) noexcept nogil:
    """Tell when the first is due, 1 at least; 0: there is none."""
    return max(heap.at[0].due, <uint64_t>1) if heap.held else 0
