# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver side of a split ring: what a guest does. For tests, benchmarks and front-ends of our own.

It works on a `MemoryMap` like the device side does, but addresses of its areas are guest addresses. In its first use it
behaves; `put_descriptor` and its like write anything anywhere, for what a hostile driver does.

Invariants
----------
1. The free descriptors are a list through ``next_free`` from ``first_free``; ``free`` is how many there are.
2. ``lengths[head]`` descriptors belong to the chain at head, from `submit` until `take`.
"""

import os
from collections import namedtuple

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from .errors import QueueError

from .loop cimport loop_now
from .queue cimport VirtQueue
from .split cimport (
    POP_CHAIN,
    QUEUE_SIZE_MAX,
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTQ_AVAIL_F_NO_INTERRUPT,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    VIRTQ_USED_F_NO_NOTIFY,
    chain_free,
    chain_t,
)

cdef extern from "barriers.h" nogil:
    uint16_t load16(const uint16_t *at)
    uint16_t load16_acquire(const uint16_t *at)
    void store16(uint16_t *at, uint16_t value)
    void store16_release(uint16_t *at, uint16_t value)
    void full_fence()
    void relax_cpu()

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    enum: POLLIN
    int poll(pollfd *fds, unsigned long count, int timeout)

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *data, size_t count)
    ssize_t write(int fd, const void *data, size_t count)

cdef enum:
    CHAIN_MAX = 64  # descriptors of a template
    SPINS_A_LOOK = 4096  # rounds of waiting between two looks at the clock

DESC_NEXT = VIRTQ_DESC_F_NEXT
DESC_WRITE = VIRTQ_DESC_F_WRITE
DESC_INDIRECT = VIRTQ_DESC_F_INDIRECT

Layout = namedtuple("Layout", "desc avail used size")
Run = namedtuple("Run", "seconds kicks waits written")


def layout(start, num):
    """Lay out the areas of a ring of *num* entries from *start* on, which is aligned to 16; ``size`` counts all."""
    avail = start + 16 * num
    used = (avail + 6 + 2 * num + 3) & ~3
    return Layout(start, avail, used, used + 6 + 8 * num - start)


cdef class DriverQueue:
    """The driver side of one ring, with eventfds of its own to kick and to be called."""

    def __cinit__(self):
        self.kick_number = self.call_number = -1

    def __init__(self, MemoryMap memory not None, uint32_t num, desc, avail, used, uint64_t features=0):
        """Make a ring of *num* entries with its areas at these guest addresses; they are cleared.

        Raises:
            ValueError: *num* is no power of two up to 32768.
            GuestMemoryError: an area is not in memory.
            QueueError: an area is not in one piece.
            OSError: there are no descriptors left.
        """
        if not 0 < num <= QUEUE_SIZE_MAX or num & (num - 1):
            raise ValueError(f"{num} is no size of a ring; use a power of two up to {QUEUE_SIZE_MAX}")
        self.memory = memory
        self.snapshot = memory.snapshot
        self.num = self.free = num
        self.event_idx = (features >> VIRTIO_F_EVENT_IDX) & 1
        self.indirect = (features >> VIRTIO_F_INDIRECT_DESC) & 1
        self.addresses = (desc, avail, used)
        # SAFETY: each area is as long as what is used of it, in one piece of the snapshot that is held.
        self.desc = <descriptor_t *><size_t>self._area(desc, 16 * num)
        self.avail = <uint16_t *><size_t>self._area(avail, 6 + 2 * num)
        self.used = <uint16_t *><size_t>self._area(used, 6 + 8 * num)
        self.next_free = <uint16_t *>calloc(num, sizeof(uint16_t))
        self.lengths = <uint16_t *>calloc(num, sizeof(uint16_t))
        if self.next_free == NULL or self.lengths == NULL:
            raise MemoryError
        for i in range(num):
            self.next_free[i] = (i + 1) & (num - 1)
        self.kick_number = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.call_number = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __dealloc__(self):
        # SAFETY: both are NULL or what calloc gave.
        free(self.next_free)
        free(self.lengths)
        self.close()

    def close(self):
        """Close its eventfds; again does nothing."""
        for fd in (self.kick_number, self.call_number):
            if fd >= 0:
                os.close(fd)
        self.kick_number = self.call_number = -1

    def _area(self, addr, size):
        """Clear an area and return its host address."""
        cdef unsigned char[::1] whole
        views = self.memory.views(addr, size)
        if len(views) != 1:
            raise QueueError(f"ring area at {addr:#x} with {size:#x} bytes is not in one piece of guest memory")
        whole = views[0]
        whole[:] = 0
        return <size_t>&whole[0]

    @property
    def kick_fd(self):
        """The eventfd to give to the device as its kick descriptor; borrowed."""
        return self.kick_number

    @property
    def call_fd(self):
        """The eventfd to give to the device as its call descriptor; borrowed."""
        return self.call_number

    # -- without the GIL

    cdef int submit(self, const descriptor_t *descriptors, uint32_t count) noexcept nogil:
        """Make a chain of *count* descriptors available, but don't publish; its head, or -1 if it does not fit."""
        cdef uint16_t head = self.first_free
        cdef uint16_t at = head
        cdef uint32_t i
        if count == 0 or count > self.free:
            return -1
        # SAFETY: descriptors has count elements, and at least as many are free (invariant 1).
        for i in range(count):
            self.desc[at] = descriptors[i]
            self.desc[at].next = self.next_free[at]
            if i + 1 < count:
                self.desc[at].flags |= VIRTQ_DESC_F_NEXT
            at = self.next_free[at]
        self.first_free = at
        self.free -= count
        self.lengths[head] = count
        store16(&self.avail[2 + (self.avail_idx & <uint16_t>(self.num - 1))], head)
        self.avail_idx += 1
        self.in_flight += 1
        return head

    cdef void publish(self) noexcept nogil:
        """Let the device see what was submitted."""
        # SAFETY: avail has a header.
        self.published = self.avail_idx
        store16_release(&self.avail[1], self.published)

    cdef bint wants_kick(self) noexcept nogil:
        """Decide whether the device wants to hear of what was published since the last decision."""
        cdef uint16_t old = self.kicked
        cdef uint16_t event
        full_fence()
        # SAFETY: the available event lies behind the used entries.
        self.kicked = self.published
        if not self.event_idx:
            return not load16(&self.used[0]) & VIRTQ_USED_F_NO_NOTIFY
        event = load16(&self.used[2 + 4 * self.num])
        return <uint16_t>(self.published - event - 1) < <uint16_t>(self.published - old)

    cdef bint ring_kick(self) noexcept nogil:
        """Kick if that is wanted; whether it was."""
        cdef uint64_t one = 1
        if not self.wants_kick():
            return False
        # SAFETY: 8 bytes of a variable of 8 bytes.
        write(self.kick_number, &one, sizeof(one))
        return True

    cdef int take(self, uint32_t *written) noexcept nogil:
        """Take the next used entry: its head, or -1 for none, or -2 if it is no chain that is out."""
        cdef uint32_t entry[2]
        cdef uint32_t at
        cdef uint32_t i
        if load16_acquire(&self.used[1]) == self.last_used:
            return -1
        # SAFETY: the place is below num; the head is checked before it is used; lengths says how many follow it.
        memcpy(entry, &self.used[2 + 4 * (self.last_used & (self.num - 1))], sizeof(entry))
        if entry[0] >= self.num or not self.lengths[entry[0]]:
            return -2
        self.last_used += 1
        at = entry[0]
        for i in range(<uint32_t>(self.lengths[entry[0]] - 1)):
            at = self.next_free[at]
        self.next_free[at] = self.first_free
        self.first_free = entry[0]
        self.free += self.lengths[entry[0]]
        self.lengths[entry[0]] = 0
        self.in_flight -= 1
        written[0] = entry[1]
        return entry[0]

    cdef bint want_calls(self, bint wanted) noexcept nogil:
        """Turn calls on or off; True if there is something to take for which none may come."""
        # SAFETY: the used event lies behind the available entries.
        if not self.event_idx:
            store16(&self.avail[0], 0 if wanted else VIRTQ_AVAIL_F_NO_INTERRUPT)
        elif wanted:
            store16(&self.avail[2 + self.num], self.last_used)
        if not wanted:
            return False
        full_fence()
        return load16_acquire(&self.used[1]) != self.last_used

    # -- a driver that behaves

    def add(self, readable=(), writable=(), *, table=None, publish=True):
        """Make a chain available.

        Args:
            readable: buffers for the device to read: (guest address, bytes).
            writable: buffers for it to write.
            table: guest address to build an indirect table at; None for a direct chain.
            publish: whether the device is to see it now.

        Returns:
            its head.

        Raises:
            QueueError: there are too few free descriptors.
        """
        cdef descriptor_t *made
        cdef descriptor_t whole
        buffers = [(*buffer, 0) for buffer in readable] + [(*buffer, VIRTQ_DESC_F_WRITE) for buffer in writable]
        cdef uint32_t count = len(buffers)
        cdef uint32_t i
        made = <descriptor_t *>calloc(count + 1, sizeof(descriptor_t))
        if made == NULL:
            raise MemoryError
        # SAFETY: made has room for all of them, and is freed below.
        try:
            for i, (addr, length, flags) in enumerate(buffers):
                made[i].addr = addr
                made[i].len = length
                made[i].flags = flags
            if table is None:
                head = self.submit(made, count)
            else:
                for i in range(count):
                    made[i].next = i + 1
                    made[i].flags |= VIRTQ_DESC_F_NEXT if i + 1 < count else 0
                self.memory.write(table, (<const unsigned char *>made)[:count * sizeof(descriptor_t)])
                whole.addr = table
                whole.len = count * sizeof(descriptor_t)
                whole.flags = VIRTQ_DESC_F_INDIRECT
                head = self.submit(&whole, 1)
        finally:
            free(made)
        if head < 0:
            raise QueueError(f"a chain of {count} buffers does not fit into {self.free} free descriptors")
        if publish:
            self.publish()
        return head

    def kick(self):
        """Kick the device if it wants that; whether it did."""
        return bool(self.ring_kick())

    def should_kick(self):
        """Decide like `kick`, without kicking."""
        return bool(self.wants_kick())

    def reap(self):
        """Take all used entries: [(head, bytes written)].

        Raises:
            QueueError: the device gave back what it did not have.
        """
        cdef uint32_t written = 0
        cdef int head
        done = []
        while True:
            head = self.take(&written)
            if head == -1:
                return done
            if head < 0:
                raise QueueError(f"used entry {self.last_used} is no chain that is out")
            done.append((head, written))

    def set_calls(self, bint wanted):
        """Turn calls on or off; True if there is something to reap for which none may come."""
        return bool(self.want_calls(wanted))

    def drive(self, templates, count, depth, *, table=None, double timeout=30.0, bint spin=False):
        """Keep *depth* requests in flight until *count* are done, without the GIL.

        Args:
            templates: chains, taken in turn: (readable buffers, writable buffers) as for `add`, 64 at most in each.
            count: requests.
            depth: how many of them at a time, if the ring has room.
            table: guest address to build an indirect table for each template at, 1 KiB each; None for direct chains.
            timeout: seconds without progress after which it gives up.
            spin: look at the used index all the time instead of waiting for calls.

        Returns:
            a `Run`: seconds it took, kicks given, times it waited for a call, bytes the device says it wrote.

        Raises:
            QueueError: nothing came back for *timeout*, or what came back was not out.
        """
        cdef uint32_t kinds = len(templates)
        cdef descriptor_t *all_of_them
        cdef uint32_t *lengths
        cdef uint64_t kicks = 0
        cdef uint64_t waits = 0
        cdef uint64_t written = 0
        cdef uint64_t began
        cdef uint64_t took
        cdef uint64_t done = 0
        cdef uint64_t wanted = count
        cdef uint32_t most = depth
        cdef uint64_t patience = <uint64_t>(timeout * 1e9)
        all_of_them = <descriptor_t *>calloc(max(kinds, 1), CHAIN_MAX * sizeof(descriptor_t))
        lengths = <uint32_t *>calloc(max(kinds, 1), sizeof(uint32_t))
        # SAFETY: both have room for kinds templates of CHAIN_MAX descriptors, which _compile checks.
        try:
            if all_of_them == NULL or lengths == NULL:
                raise MemoryError
            for i, template in enumerate(templates):
                lengths[i] = self._compile(template, None if table is None else table + 1024 * i,
                                           <size_t>&all_of_them[i * CHAIN_MAX])
            if not kinds or not most:
                raise ValueError("nothing to drive with: there must be a template, and a depth above 0")
            began = loop_now()
            with nogil:
                done = self._drive(all_of_them, lengths, kinds, wanted, most, patience, spin, &kicks, &waits, &written)
            took = loop_now() - began
        finally:
            free(all_of_them)
            free(lengths)
        if done < wanted:
            raise QueueError(f"{done} of {count} requests came back, then nothing in {timeout:g} s "
                             f"or what was not out; {self.in_flight} are in flight")
        return Run(took / 1e9, kicks, waits, written)

    def _compile(self, template, table, size_t where):
        """Write the descriptors of a template to *where*; how many there are to submit."""
        cdef descriptor_t *made = <descriptor_t *>where
        cdef uint32_t i
        readable, writable = template
        buffers = [(*buffer, 0) for buffer in readable] + [(*buffer, VIRTQ_DESC_F_WRITE) for buffer in writable]
        if not 0 < len(buffers) <= CHAIN_MAX:
            raise ValueError(f"a template has {len(buffers)} buffers; it can have 1 to {CHAIN_MAX}")
        # SAFETY: where has room for CHAIN_MAX descriptors.
        for i, (addr, length, flags) in enumerate(buffers):
            made[i].addr = addr
            made[i].len = length
            made[i].flags = flags
            if table is not None and i + 1 < len(buffers):
                made[i].flags |= VIRTQ_DESC_F_NEXT
                made[i].next = i + 1
        if table is None:
            return len(buffers)
        self.memory.write(table, (<const unsigned char *>made)[:len(buffers) * sizeof(descriptor_t)])
        made[0].addr = table
        made[0].len = len(buffers) * sizeof(descriptor_t)
        made[0].flags = VIRTQ_DESC_F_INDIRECT
        return 1

    cdef uint64_t _drive(
        self, const descriptor_t *templates, const uint32_t *lengths, uint32_t kinds, uint64_t wanted, uint32_t depth,
        uint64_t patience, bint spin, uint64_t *kicks, uint64_t *waits, uint64_t *written
    ) noexcept nogil:
        """Do what `drive` says; how many requests came back."""
        cdef pollfd call
        cdef uint64_t counter
        cdef uint64_t sent = 0
        cdef uint64_t done = 0
        cdef uint64_t last = loop_now()
        cdef uint32_t kind = 0
        cdef uint32_t spins = 0
        cdef uint32_t length = 0
        cdef bint fresh
        cdef bint progress
        cdef int head
        # SAFETY: kind < kinds; the caller gave as many templates.
        call.fd = self.call_number
        call.events = POLLIN
        self.want_calls(False)
        while done < wanted:
            fresh = False
            while sent < wanted and self.in_flight < depth:
                if self.submit(&templates[kind * CHAIN_MAX], lengths[kind]) < 0:
                    break
                kind = kind + 1 if kind + 1 < kinds else 0
                sent += 1
                fresh = True
            if fresh:
                self.publish()
                if self.ring_kick():
                    kicks[0] += 1
            progress = False
            while True:
                head = self.take(&length)
                if head < 0:
                    break
                written[0] += length
                done += 1
                progress = True
            if head == -2:
                return done
            if progress:
                last = 0
                continue
            if spin:
                relax_cpu()
                spins += 1
                if spins % SPINS_A_LOOK == 0:
                    if not last:
                        last = loop_now()
                    elif loop_now() - last > patience:
                        return done
                continue
            if self.want_calls(True):
                self.want_calls(False)
                continue
            waits[0] += 1
            if poll(&call, 1, <int>(patience // 1_000_000)) == 0:
                return done
            read(self.call_number, &counter, sizeof(counter))
            self.want_calls(False)
        return done

    # -- a driver that does not

    def put_descriptor(self, uint32_t index, uint64_t addr, uint32_t length, uint16_t flags=0, uint16_t next=0, *,
                       table=None):
        """Write one descriptor, whatever it says, into the ring's table or the one at guest address *table*."""
        cdef descriptor_t made
        made.addr, made.len, made.flags, made.next = addr, length, flags, next
        start = self.addresses[0] if table is None else table
        # SAFETY: the bytes of a local variable.
        self.memory.write(start + 16 * index, (<const unsigned char *>&made)[:sizeof(made)])

    def put_available(self, uint32_t place, uint16_t head):
        """Write one available entry."""
        self.memory.write(self.addresses[1] + 4 + 2 * place, head.to_bytes(2, "little"))

    def set_available_index(self, uint16_t index):
        """Write the available index; what `add` does goes on from there."""
        # SAFETY: avail has a header.
        self.avail_idx = self.published = index
        store16_release(&self.avail[1], index)

    def set_used_index(self, uint16_t index):
        """Write the used index, which is the device's, and believe it."""
        # SAFETY: used has a header.
        self.last_used = index
        store16_release(&self.used[1], index)

    @property
    def available_index(self):
        """Our index in memory."""
        return load16(&self.avail[1])

    @property
    def used_index(self):
        """The device's index in memory."""
        return load16_acquire(&self.used[1])

    @property
    def available_event(self):
        """From where on the device wants to be kicked."""
        return load16(&self.used[2 + 4 * self.num])

    @property
    def used_flags(self):
        """The device's flags."""
        return load16(&self.used[0])


def measure(DriverQueue driver not None, VirtQueue queue not None, template, count, batch=64):
    """Measure what popping and pushing costs the device, without any work: nanoseconds for each of *count* requests.

    Each round the driver makes *batch* chains like *template* available, which is not measured; then the device pops
    and pushes all of them, publishes once and decides once about a call, which is.
    """
    cdef descriptor_t descriptors[CHAIN_MAX]
    cdef uint32_t length = driver._compile(template, None, <size_t>&descriptors[0])
    cdef chain_t chain
    cdef uint32_t written
    cdef uint32_t i
    cdef uint64_t began
    cdef uint64_t took = 0
    cdef uint64_t done = 0
    cdef uint64_t wanted = count
    cdef uint32_t most = batch
    cdef int head
    chain.readable = NULL
    chain.capacity = 0
    if queue.native:
        raise RuntimeError("a worker serves this queue")
    # SAFETY: descriptors has room for what _compile writes; chain is freed below.
    with nogil:
        while done < wanted:
            for i in range(most):
                if driver.submit(&descriptors[0], length) < 0:
                    break
            driver.publish()
            began = loop_now()
            while queue.pop_chain(&chain) == POP_CHAIN:
                queue.push_chain(&chain, 0)
            queue.publish()
            took += loop_now() - began
            head = driver.take(&written)
            if head < 0:
                break
            while head >= 0:
                done += 1
                head = driver.take(&written)
        chain_free(&chain)
    if done < wanted:
        raise QueueError(f"only {done} of {count} requests came back: {queue.broken or 'the queue is stopped'}")
    return took / done
