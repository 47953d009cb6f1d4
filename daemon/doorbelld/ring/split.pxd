# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""C face of the split ring: chains, the state of a ring, and what can be done with it."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from .memory cimport damage_t, iovec, memory_state_t, region_t, table_t

cdef enum:  # what a pop says
    POP_BROKEN = -1  # the driver broke the rules; the ring does nothing more
    POP_EMPTY = 0  # nothing there, or the ring does not run, or is not in memory just now
    POP_CHAIN = 1
    POP_FAULT = 2  # a chain, but some of it is not in guest memory: to be failed and pushed

cdef enum:
    QUEUE_SIZE_MAX = 32768  # of a split ring
    PIECES_MAX = 4096  # buffers in a chain, and more only where the ring itself is longer

cdef enum:  # VIRTIO 1.2, 2.7 and 6
    VIRTQ_DESC_F_NEXT = 1
    VIRTQ_DESC_F_WRITE = 2
    VIRTQ_DESC_F_INDIRECT = 4
    VIRTQ_AVAIL_F_NO_INTERRUPT = 1
    VIRTQ_USED_F_NO_NOTIFY = 1
    VIRTIO_F_NOTIFY_ON_EMPTY = 24
    VIRTIO_F_INDIRECT_DESC = 28
    VIRTIO_F_EVENT_IDX = 29

cdef enum broken_t:  # why a ring is broken
    BROKEN_NOT = 0
    BROKEN_AVAIL
    BROKEN_HEAD
    BROKEN_TWICE
    BROKEN_NEXT
    BROKEN_LOOP
    BROKEN_NESTED
    BROKEN_INDIRECT_NEXT
    BROKEN_INDIRECT_SIZE
    BROKEN_INDIRECT_FEATURE
    BROKEN_ORDER
    BROKEN_ZERO
    BROKEN_LENGTH
    BROKEN_PIECES
    BROKEN_NO_MEMORY
    BROKEN_DAMAGE
    BROKEN_TOLD  # by the device or its owner; the text is kept beside

cdef struct descriptor_t:  # struct virtq_desc
    uint64_t addr
    uint32_t len
    uint16_t flags
    uint16_t next

cdef struct chain_t:  # all zero before the first use; chain_free after the last
    uint16_t head  # unlike that of any other chain in flight on the queue
    uint32_t readable_count
    uint32_t writable_count
    uint32_t capacity  # of the array that both of these are in
    uint64_t readable_bytes
    uint64_t writable_bytes
    uint64_t fault_addr  # after POP_FAULT: the first buffer, or table, that is not there
    uint64_t fault_bytes
    iovec *readable
    iovec *writable  # follows the last readable one

cdef struct counters_t:  # written by whoever serves the queue, read by anybody
    uint64_t kicks
    uint64_t calls
    uint64_t requests
    uint64_t bytes
    uint64_t errors

cdef struct ring_t:
    const memory_state_t *memory
    const damage_t *damage
    uint64_t generation  # of the table that the pointers below were found in; 0: not looked up
    const table_t *table
    const region_t *recent  # where the last buffer was
    uint8_t *desc  # NULL, like the other two: the ring is not in memory just now
    uint16_t *avail
    uint16_t *used
    uint64_t desc_user
    uint64_t avail_user
    uint64_t used_user
    uint32_t num
    uint8_t indirect
    uint8_t event_idx
    uint8_t notify_on_empty
    uint8_t notification
    uint8_t signalled_valid
    int running
    uint16_t last_avail
    uint16_t shadow_avail
    uint16_t used_idx
    uint16_t signalled
    uint32_t in_flight  # popped, and not yet published as used
    uint32_t pending  # of those, filled by split_push
    uint8_t *taken  # by head: is it in flight
    uint16_t *heads  # by place in the available ring: what was popped there
    int broken
    uint64_t broken_value
    int call_fd
    int call_set
    int call_blocks  # it may: look before writing to it
    counters_t counters

cdef void chain_free(chain_t *chain) noexcept nogil

cdef int split_fresh(ring_t *ring) noexcept nogil
cdef void split_start(ring_t *ring) noexcept nogil
cdef int split_fail(ring_t *ring, int why, uint64_t value) noexcept nogil
cdef bint split_empty(ring_t *ring) noexcept nogil
cdef int split_pop(ring_t *ring, chain_t *chain) noexcept nogil
cdef bint split_unpop(ring_t *ring, uint16_t head) noexcept nogil
cdef bint split_rewind(ring_t *ring, uint32_t count) noexcept nogil
cdef int split_measure(
    ring_t *ring, chain_t *scratch, uint64_t enough_writable, uint64_t enough_readable, uint64_t *writable,
    uint64_t *readable
) noexcept nogil
cdef void split_fill(ring_t *ring, const chain_t *chain, uint32_t written, uint32_t index) noexcept nogil
cdef void split_flush(ring_t *ring, uint32_t count) noexcept nogil
cdef bint split_wants_call(ring_t *ring) noexcept nogil
cdef bint split_set_notification(ring_t *ring, bint wanted) noexcept nogil
cdef bint ring_call(ring_t *ring) noexcept nogil
