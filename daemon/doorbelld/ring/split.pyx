# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The split ring, device side (VIRTIO 1.2, 2.7): the part that runs without the GIL.

Theory of operation
-------------------
A split ring has three areas in guest memory: a table of descriptors, the *available* ring in which the driver puts the
heads of chains, and the *used* ring in which we give them back. Each ring has a free-running 16-bit index; the place in
the ring is that index modulo the ring's size.

*Nothing in guest memory is read twice.* A driver may change any of it at any time, so a descriptor is copied, and what
was checked is the copy. A chain is translated as a whole before anybody sees it.

*A driver that breaks the rules breaks its ring*, once and with a reason (`broken_t`); from then on `split_pop` says
POP_BROKEN and nothing is written to guest memory. A buffer that lies outside of memory is no such breach (it may be in
a region that was not shared): that chain is POP_FAULT, and is to be pushed as failed. Rings whose own memory is gone
for a moment (a region is removed before it is added again) are empty until it is back.

*A head is in flight at most once*: a driver that makes it available again is broken. So a device can keep what it knows
of a request in an array indexed by head.

*Order.* The entry is read after the index that covers it was loaded with acquire; the index that covers a used entry is
stored with release. Both sides decide whether to signal by a store followed by a load of what the other stored, so a
full fence stands between (`split_wants_call`, `split_set_notification`), and whoever turns notifications on looks
again.

*Pushing in batches.* `split_fill` writes a used entry that the driver can't see yet, `split_flush` publishes the first
of them with one store. `pending` counts those that were filled in sequence.

Invariants
----------
1. ``taken[head]`` is set exactly while a chain with that head is popped and not filled; ``in_flight`` counts those and
   the filled ones that are not published.
2. ``last_avail`` never runs ahead of ``shadow_avail``, which is the available index as last seen.
3. desc, avail and used are all NULL or all valid for ``num`` entries in the table of ``generation``.
"""

from libc.errno cimport EINTR, errno
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from .memory cimport MAP_FAULT, MAP_MANY, region_at, table_find, table_map, table_user

cdef extern from "barriers.h" nogil:
    uint16_t load16(const uint16_t *at)
    uint16_t load16_acquire(const uint16_t *at)
    void store16(uint16_t *at, uint16_t value)
    void store16_release(uint16_t *at, uint16_t value)
    int load_flag(const int *at)
    void store_flag(int *at, int value)
    void store64_release(uint64_t *at, uint64_t value)
    void full_fence()
    void take_copy(void *to, const void *source, size_t length)
    void count_up(uint64_t *counter, uint64_t by)
    void count_up_shared(uint64_t *counter, uint64_t by)

cdef extern from "<unistd.h>" nogil:
    ssize_t write(int fd, const void *data, size_t count)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    enum: POLLOUT
    int poll(pollfd *fds, unsigned long count, int timeout)

cdef enum:
    DESC_SIZE = 16
    USED_ENTRY_SIZE = 8
    RING_HEADER = 2  # 16-bit words before the first entry: flags, index
    FIRST_CAPACITY = 16

cdef uint64_t CHAIN_BYTES_MAX = 1ULL << 32  # 2.7.4.2
cdef region_t NOWHERE  # mapped is 0: nothing is ever found there


cdef void chain_free(chain_t *chain) noexcept nogil:
    """Give the memory of a chain back; it can be used again like a fresh one."""
    # SAFETY: readable is NULL or what realloc gave; writable only points into it.
    free(chain.readable)
    memset(chain, 0, sizeof(chain_t))


cdef int split_fail(ring_t *ring, int why, uint64_t value) noexcept nogil:
    """Break the ring unless it is broken; POP_BROKEN."""
    if not ring.broken:
        ring.broken_value = value
        count_up(&ring.counters.errors, 1)
        store_flag(&ring.broken, why)
    return POP_BROKEN


cdef void _resolve(ring_t *ring) noexcept nogil:
    """Find the ring's areas in the current table, or none of them."""
    cdef uint64_t event = 2 if ring.event_idx else 0
    cdef uint8_t *desc
    cdef uint8_t *avail
    cdef uint8_t *used
    ring.table = ring.memory.table
    ring.damage = ring.memory.damage
    ring.recent = &NOWHERE
    desc = table_user(ring.table, ring.desc_user, ring.num * DESC_SIZE)
    avail = table_user(ring.table, ring.avail_user, 4 + ring.num * 2 + event)
    used = table_user(ring.table, ring.used_user, 4 + ring.num * USED_ENTRY_SIZE + event)
    # SAFETY: invariant 3. Alignment is that of the host's address: a hostile front-end can give a region a user address
    # that is aligned unlike the place in its file.
    if ring.num == 0 or desc == NULL or avail == NULL or used == NULL or (
        (<size_t>desc & 15) | (<size_t>avail & 1) | (<size_t>used & 3)
    ):
        desc = avail = used = NULL
    ring.desc = desc
    ring.avail = <uint16_t *>avail
    ring.used = <uint16_t *>used
    store64_release(&ring.generation, ring.memory.generation)  # last: who looks from outside sees the rest with it


cdef int split_fresh(ring_t *ring) noexcept nogil:
    """Look the ring's areas up again if the memory table changed.

    Returns:
        1 if the ring can be used, 0 if it is not in memory, POP_BROKEN.
    """
    if ring.broken:
        return POP_BROKEN
    if ring.generation != ring.memory.generation:
        _resolve(ring)
    if load_flag(&ring.damage.happened):
        return split_fail(ring, BROKEN_DAMAGE, 0)
    return ring.desc != NULL


cdef void split_start(ring_t *ring) noexcept nogil:
    """Set the state of a ring that starts at last_avail and used_idx: nothing in flight, notifications on."""
    ring.shadow_avail = ring.last_avail
    ring.signalled_valid = False
    ring.in_flight = 0
    ring.pending = 0
    # SAFETY: both arrays have num elements since num was set.
    memset(ring.taken, 0, ring.num)
    store_flag(&ring.running, 1)
    split_set_notification(ring, True)


cdef inline int _look(ring_t *ring) noexcept nogil:
    """Tell whether there is something to pop (1), or not (0), or POP_BROKEN; shadow_avail is as new as needed."""
    cdef int usable = split_fresh(ring)
    if usable <= 0 or not ring.running:
        return min(usable, 0)
    if ring.shadow_avail != ring.last_avail:
        return 1
    # SAFETY: the ring is in memory (split_fresh), so avail points to its header.
    ring.shadow_avail = load16_acquire(&ring.avail[1])
    if ring.shadow_avail == ring.last_avail:
        if not (ring.event_idx and ring.notification):
            return 0
        # the last pop told the driver from where on to kick; only now it is sure that we see what it added before
        full_fence()
        ring.shadow_avail = load16_acquire(&ring.avail[1])
        if ring.shadow_avail == ring.last_avail:
            return 0
    if <uint16_t>(ring.shadow_avail - ring.last_avail) > ring.num:
        return split_fail(ring, BROKEN_AVAIL, ring.shadow_avail)
    return 1


cdef bint split_empty(ring_t *ring) noexcept nogil:
    """Tell whether there is nothing to pop; a broken ring has nothing."""
    return _look(ring) <= 0


cdef int _grow(ring_t *ring, chain_t *chain) noexcept nogil:
    """Make room for more pieces; 0, or POP_BROKEN if there are too many."""
    cdef uint32_t most = max(<uint32_t>PIECES_MAX, ring.num)
    cdef uint32_t capacity = min(max(chain.capacity * 2, <uint32_t>FIRST_CAPACITY), most)
    cdef void *grown
    if chain.capacity >= most:
        return split_fail(ring, BROKEN_PIECES, most)
    # SAFETY: readable is NULL or what realloc gave; it stays so if this one fails.
    grown = realloc(chain.readable, capacity * sizeof(iovec))
    if grown == NULL:
        return split_fail(ring, BROKEN_NO_MEMORY, capacity)
    chain.readable = <iovec *>grown
    chain.capacity = capacity
    return 0


cdef inline int _add(ring_t *ring, chain_t *chain, uint32_t count, uint64_t addr, uint64_t length) noexcept nogil:
    """Append the pieces of one buffer behind the first *count*; their new number, MAP_FAULT, or MAP_MANY if broken."""
    cdef uint8_t *host
    cdef const region_t *region
    cdef int pieces
    if count == chain.capacity and _grow(ring, chain):
        return MAP_MANY
    # SAFETY: count < capacity, the number of elements of readable; what region_at and table_map give is mapped for as
    # long as the table is not changed, and then nothing is in flight or everything was translated anew.
    host = region_at(ring.recent, addr, length)
    if host != NULL:
        chain.readable[count].iov_base = host
        chain.readable[count].iov_len = length
        return count + 1
    while True:
        pieces = table_map(ring.table, addr, length, &chain.readable[count], <int>(chain.capacity - count))
        if pieces != MAP_MANY:
            break
        if _grow(ring, chain):
            return MAP_MANY
    if pieces < 0:
        return pieces
    region = table_find(ring.table, addr)
    if region != NULL:
        ring.recent = region
    return count + pieces


cdef bint _fetch(ring_t *ring, uint64_t addr, descriptor_t *desc) noexcept nogil:
    """Copy one descriptor of an indirect table that is not in one piece; False if it is not in memory."""
    cdef iovec pieces[DESC_SIZE]
    cdef int count = table_map(ring.table, addr, DESC_SIZE, pieces, DESC_SIZE)
    cdef uint8_t *to = <uint8_t *>desc
    cdef int i
    # SAFETY: a piece has a byte at least, so there are at most as many as bytes; together they have DESC_SIZE.
    for i in range(count):
        take_copy(to, pieces[i].iov_base, pieces[i].iov_len)
        to += pieces[i].iov_len
    return count > 0


cdef int _walk(ring_t *ring, uint16_t head, chain_t *chain) noexcept nogil:
    """Follow the chain at *head* and translate it; POP_CHAIN, POP_FAULT or POP_BROKEN."""
    cdef descriptor_t desc
    cdef const uint8_t *table = ring.desc  # NULL: an indirect one at table_addr, not in one piece
    cdef uint64_t table_addr = 0
    cdef uint32_t limit = ring.num  # descriptors in that table
    cdef uint32_t index = head
    cdef uint32_t seen = 0
    cdef uint32_t readable = 0  # pieces so far
    cdef uint32_t count = 0  # pieces so far, of both kinds
    cdef bint writing = False
    cdef bint indirect = False
    cdef int result = POP_CHAIN
    cdef int now
    chain.head = head
    chain.readable_bytes = 0
    chain.writable_bytes = 0
    while True:
        # SAFETY: index < limit, the number of descriptors in the table, all of which is mapped where table is not NULL.
        if index >= limit:
            return split_fail(ring, BROKEN_NEXT, index)
        if seen == limit:
            return split_fail(ring, BROKEN_LOOP, head)
        seen += 1
        if table != NULL:
            take_copy(&desc, table + <size_t>index * DESC_SIZE, DESC_SIZE)
        elif not _fetch(ring, table_addr + <uint64_t>index * DESC_SIZE, &desc):
            result = _fault(chain, result, table_addr, <uint64_t>limit * DESC_SIZE)
            break
        if desc.flags & VIRTQ_DESC_F_INDIRECT:
            if indirect:
                return split_fail(ring, BROKEN_NESTED, index)
            if not ring.indirect:
                return split_fail(ring, BROKEN_INDIRECT_FEATURE, index)
            if desc.flags & VIRTQ_DESC_F_NEXT:
                return split_fail(ring, BROKEN_INDIRECT_NEXT, index)
            if desc.len == 0 or desc.len % DESC_SIZE:
                return split_fail(ring, BROKEN_INDIRECT_SIZE, desc.len)
            indirect = True
            table_addr = desc.addr
            table = _contiguous(ring, desc.addr, desc.len)
            limit = desc.len // DESC_SIZE
            index = seen = 0
            continue
        if desc.len == 0:
            return split_fail(ring, BROKEN_ZERO, index)
        if desc.flags & VIRTQ_DESC_F_WRITE:
            writing = True
            chain.writable_bytes += desc.len
        elif writing:
            return split_fail(ring, BROKEN_ORDER, index)
        else:
            chain.readable_bytes += desc.len
        if chain.readable_bytes + chain.writable_bytes > CHAIN_BYTES_MAX:
            return split_fail(ring, BROKEN_LENGTH, head)
        if seen > max(<uint32_t>PIECES_MAX, ring.num):  # buffers that are not there take no piece
            return split_fail(ring, BROKEN_PIECES, max(<uint32_t>PIECES_MAX, ring.num))
        now = _add(ring, chain, count, desc.addr, desc.len)
        if now == MAP_FAULT:
            result = _fault(chain, result, desc.addr, desc.len)
        elif now < 0:
            return POP_BROKEN
        else:
            count = now
            if not writing:
                readable = now
        if not desc.flags & VIRTQ_DESC_F_NEXT:
            break
        index = desc.next
    chain.readable_count = readable
    chain.writable_count = count - readable
    # SAFETY: readable has room for one piece at least, or both counts are 0.
    chain.writable = chain.readable + readable if chain.readable != NULL else NULL
    return result


cdef inline const uint8_t *_contiguous(ring_t *ring, uint64_t addr, uint64_t length) noexcept nogil:
    """Translate all of *length* bytes, or return NULL if they are not in one region."""
    cdef const region_t *region
    cdef const uint8_t *host = region_at(ring.recent, addr, length)
    if host != NULL:
        return host
    region = table_find(ring.table, addr)
    # SAFETY: table_find gives NULL or a region of the table that is in place.
    return region_at(region, addr, length) if region != NULL else NULL


cdef int _fault(chain_t *chain, int result, uint64_t addr, uint64_t length) noexcept nogil:
    """Note the first buffer of a chain that is not in memory."""
    if result != POP_FAULT:
        chain.fault_addr = addr
        chain.fault_bytes = length
    return POP_FAULT


cdef int split_pop(ring_t *ring, chain_t *chain) noexcept nogil:
    """Take the next chain; what *chain* held before is overwritten, its memory is used again."""
    cdef uint16_t place
    cdef uint16_t head
    cdef int result = _look(ring)
    if result <= 0:
        return result
    # SAFETY: num is a power of two, so place < num, the number of entries of the available ring and of heads; that
    # head < num is checked before it is used as an index.
    place = ring.last_avail & <uint16_t>(ring.num - 1)
    head = load16(&ring.avail[RING_HEADER + place])
    if head >= ring.num:
        return split_fail(ring, BROKEN_HEAD, head)
    if ring.taken[head]:
        return split_fail(ring, BROKEN_TWICE, head)
    result = _walk(ring, head, chain)
    if result < 0:
        return result
    ring.taken[head] = 1
    ring.heads[place] = head
    ring.last_avail += 1
    ring.in_flight += 1
    if ring.event_idx and ring.notification:
        _set_avail_event(ring)
    return result


cdef bint split_unpop(ring_t *ring, uint16_t head) noexcept nogil:
    """Take the most recent pop back; False if it was not of *head*, or that was pushed."""
    # SAFETY: see split_pop.
    if ring.heads[<uint16_t>(ring.last_avail - 1) & <uint16_t>(ring.num - 1)] != head:
        return False
    return split_rewind(ring, 1)


cdef bint split_rewind(ring_t *ring, uint32_t count) noexcept nogil:
    """Take the *count* most recent pops back; False, and nothing is done, if some of those were pushed."""
    cdef uint16_t mask = <uint16_t>(ring.num - 1)
    cdef uint32_t i = 0
    cdef uint16_t head
    if count > ring.num or not ring.running:
        return False
    # A head that was popped twice is in flight by the later pop, which comes first here.
    # SAFETY: count <= num, so no place is visited twice; see split_pop for the indexes.
    while i < count:
        head = ring.heads[<uint16_t>(ring.last_avail - i - 1) & mask]
        if not ring.taken[head]:
            break
        ring.taken[head] = 0
        i += 1
    if i < count:
        while i:
            ring.taken[ring.heads[<uint16_t>(ring.last_avail - i) & mask]] = 1
            i -= 1
        return False
    ring.last_avail -= count
    ring.in_flight -= count
    return True


cdef int split_measure(
    ring_t *ring, chain_t *scratch, uint64_t enough_writable, uint64_t enough_readable, uint64_t *writable,
    uint64_t *readable
) noexcept nogil:
    """Add up the bytes of the chains that wait, until there are enough of both kinds; 0 or POP_BROKEN.

    A chain that is not in memory counts too.
    """
    cdef uint16_t at = ring.last_avail
    cdef uint16_t head
    cdef int got
    writable[0] = readable[0] = 0
    got = _look(ring)
    if got <= 0:
        return got
    ring.shadow_avail = load16_acquire(&ring.avail[1])
    if <uint16_t>(ring.shadow_avail - at) > ring.num:
        return split_fail(ring, BROKEN_AVAIL, ring.shadow_avail)
    # SAFETY: see split_pop.
    while at != ring.shadow_avail and (writable[0] < enough_writable or readable[0] < enough_readable):
        head = load16(&ring.avail[RING_HEADER + (at & <uint16_t>(ring.num - 1))])
        if head >= ring.num:
            return split_fail(ring, BROKEN_HEAD, head)
        if _walk(ring, head, scratch) < 0:
            return POP_BROKEN
        writable[0] += scratch.writable_bytes
        readable[0] += scratch.readable_bytes
        at += 1
    return 0


cdef void split_fill(ring_t *ring, const chain_t *chain, uint32_t written, uint32_t index) noexcept nogil:
    """Write the used entry *index* places behind the last published one; the chain is done with."""
    cdef uint32_t place = (ring.used_idx + index) & (ring.num - 1)
    cdef uint32_t entry[2]
    # SAFETY: place < num, the number of used entries, which follow 4 bytes of header; the caller knows that the ring is
    # in memory. head < num since it was popped, and stays so: num does not change while the ring runs.
    entry[0] = chain.head
    entry[1] = written
    memcpy(<uint8_t *>ring.used + 4 + place * USED_ENTRY_SIZE, entry, USED_ENTRY_SIZE)
    ring.taken[chain.head] = 0
    count_up(&ring.counters.requests, 1)
    count_up(&ring.counters.bytes, chain.readable_bytes + written)


cdef void split_flush(ring_t *ring, uint32_t count) noexcept nogil:
    """Publish the *count* used entries behind the last published one."""
    cdef uint16_t old = ring.used_idx
    ring.used_idx = <uint16_t>(old + count)
    # SAFETY: as in split_fill.
    store16_release(&ring.used[1], ring.used_idx)
    ring.in_flight -= count
    # a whole lap without a decision: the last one can't be compared with any more
    if <uint16_t>(ring.used_idx - ring.signalled) < count:
        ring.signalled_valid = False


cdef bint split_wants_call(ring_t *ring) noexcept nogil:
    """Decide whether the driver wants to hear of what was published since the last decision."""
    cdef uint16_t old = ring.signalled
    cdef bint valid = ring.signalled_valid
    cdef uint16_t event
    if not ring.running or split_fresh(ring) <= 0:
        return False
    full_fence()
    # SAFETY: the ring is in memory, with the used event behind the available entries if that feature was accepted.
    if ring.notify_on_empty and not ring.in_flight and load16(&ring.avail[1]) == ring.last_avail:
        return True
    if not ring.event_idx:
        return not load16(&ring.avail[0]) & VIRTQ_AVAIL_F_NO_INTERRUPT
    ring.signalled = ring.used_idx
    ring.signalled_valid = True
    if not valid:
        return True
    event = load16(&ring.avail[RING_HEADER + ring.num])
    return <uint16_t>(ring.used_idx - event - 1) < <uint16_t>(ring.used_idx - old)


cdef inline void _set_avail_event(ring_t *ring) noexcept nogil:
    # SAFETY: the ring is in memory, with the available event behind the used entries if that feature was accepted.
    store16(<uint16_t *>(<uint8_t *>ring.used + 4 + ring.num * USED_ENTRY_SIZE), ring.last_avail)


cdef bint split_set_notification(ring_t *ring, bint wanted) noexcept nogil:
    """Ask the driver to kick, or not to bother; True if there is something to pop though it may not kick for that."""
    ring.notification = wanted
    if not ring.running or split_fresh(ring) <= 0:
        return False
    # SAFETY: the ring is in memory.
    if not ring.event_idx:
        store16(&ring.used[0], 0 if wanted else VIRTQ_USED_F_NO_NOTIFY)
    elif wanted:
        _set_avail_event(ring)  # without, it stays where it is, a lap behind
    if not wanted:
        return False
    full_fence()
    return _look(ring) > 0


cdef bint ring_call(ring_t *ring) noexcept nogil:
    """Signal the call descriptor, if there is one; whether there is. In a worker's thread, for that can be prodded."""
    cdef uint64_t one = 1
    cdef pollfd look
    if not load_flag(&ring.call_set):
        return False
    count_up_shared(&ring.counters.calls, 1)
    # SAFETY: an eventfd (or UML's socket) takes 8 bytes. One that is full is signalled already. The number is the
    # queue's own and always open; what it leads to is replaced under it.
    if load_flag(&ring.call_blocks):
        look.fd = ring.call_fd
        look.events = POLLOUT
        look.revents = 0
        if poll(&look, 1, 0) == 0:
            return True
    if write(ring.call_fd, &one, sizeof(one)) < 0 and errno == EINTR:
        # it blocked: whoever shares it made it so, and full; a worker that did not answer was sent a signal
        store_flag(&ring.call_blocks, 1)
    return True
