# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Queues: a ring of a device, as Python and native devices see it.

A `VirtQueue` is set up as the front-end says (`set_num`, `set_addr`, `set_base`, `set_kick`, `set_call`), started, and
then popped from and pushed to, until `stop`. Its operations mean what libvhost-user's ``vu_queue_*`` mean. What a
driver asks for comes as a `Chain`: buffers of guest memory, first those that the device reads, then those that it
writes.

Who may use it: a queue without a worker, or with a worker that calls a Python handler, belongs to whoever holds the
GIL. One whose worker runs a native device belongs to that worker's thread (`native`) until the worker is quiesced or
the queue is detached; Python then only looks at properties, and may replace the call descriptor.

The descriptors of kick and call are copies of the queue's own. The call descriptor keeps its number for life: replacing
it means putting another file behind that number (dup3), so a thread that signals it never meets a number that was
closed. What it leads to is shared with a front-end, who can make it blocking and fill it at any time. A worker's thread
that serves a native device only harms that device then; whoever holds the GIL signals under a guard (fds/native.pyx).
With F_INBAND_NOTIFICATIONS the session gives its own eventfd as call descriptor and sends the message when that fires.

A `Chain` that Python got is valid until it is pushed or taken back, or the queue stops.
"""

import os
from collections import namedtuple

from libc.stdlib cimport calloc, free
from libc.string cimport memset

from ..fds import native
from .chain import Chain
from .errors import BROKEN, QueueBroken, QueueError, StaleChain

from .chain cimport Chain
from .split cimport (
    BROKEN_DAMAGE,
    BROKEN_NOT,
    BROKEN_TOLD,
    QUEUE_SIZE_MAX,
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_NOTIFY_ON_EMPTY,
    ring_call,
    split_empty,
    split_fail,
    split_fill,
    split_flush,
    split_fresh,
    split_measure,
    split_pop,
    split_rewind,
    split_set_notification,
    split_start,
    split_unpop,
    split_wants_call,
)

cdef extern from "barriers.h" nogil:
    uint16_t load16(const uint16_t *at)
    uint64_t load64(const uint64_t *at)
    uint64_t load64_acquire(const uint64_t *at)
    int load_flag(const int *at)
    void store_flag(int *at, int value)
    void count_up(uint64_t *counter, uint64_t by)
    void count_up_shared(uint64_t *counter, uint64_t by)

F_NOTIFY_ON_EMPTY = 1 << VIRTIO_F_NOTIFY_ON_EMPTY
F_INDIRECT_DESC = 1 << VIRTIO_F_INDIRECT_DESC
F_EVENT_IDX = 1 << VIRTIO_F_EVENT_IDX
RING_FEATURES = F_NOTIFY_ON_EMPTY | F_INDIRECT_DESC | F_EVENT_IDX
"""Feature bits that this layer realises."""

Counters = namedtuple("Counters", "kicks calls requests bytes errors")


cdef class VirtQueue:
    """The device side of one ring (libvhost-user's ``VuVirtq``)."""

    def __init__(self, MemoryMap memory not None, int index=0, uint32_t max_size=1024):
        """Make queue number *index* of a device whose guest memory is *memory*.

        Raises:
            ValueError: *max_size* is no power of two up to 32768.
            OSError: there is no descriptor left.
        """
        if not _is_size(max_size, QUEUE_SIZE_MAX):
            raise ValueError(f"queue {index}: {max_size} is no size of a ring; "
                             f"use a power of two up to {QUEUE_SIZE_MAX}")
        self.memory = memory
        self.index = index
        self.max_size = max_size
        self.chains = {}
        self.filled = set()
        self.told = ""
        # SAFETY: memory.state lives as long as memory, which is held here.
        self.ring.memory = &memory.state
        self.ring.call_fd = os.eventfd(0)

    def __cinit__(self):
        self.kick = -1
        self.ring.call_fd = -1

    def __dealloc__(self):
        # SAFETY: both are NULL or what calloc gave (set_num); a worker holds a reference to the queues it serves.
        free(self.ring.taken)
        free(self.ring.heads)
        for fd in (self.kick, self.ring.call_fd):
            if fd >= 0:
                os.close(fd)

    def close(self):
        """Stop for good and close its descriptors; again does nothing.

        Raises:
            RuntimeError: a worker serves it; detach it first.
        """
        self._check_unwatched()
        self.failure = None
        if self.ring.call_fd < 0:
            return
        self.stop()
        store_flag(&self.ring.call_set, 0)
        for fd in (self.kick, self.ring.call_fd):
            if fd >= 0:
                os.close(fd)
        self.kick = self.ring.call_fd = -1

    # -- what a native device and a worker use

    cdef int pop_chain(self, chain_t *chain) noexcept nogil:
        """Take the next chain: POP_CHAIN, POP_FAULT (fail it), POP_EMPTY or POP_BROKEN."""
        return split_pop(&self.ring, chain)

    cdef bint unpop_chain(self, const chain_t *chain) noexcept nogil:
        """Put the chain that was popped last back; False if it was not the last."""
        return split_unpop(&self.ring, chain.head)

    cdef void push_chain(self, const chain_t *chain, uint32_t written) noexcept nogil:
        """Give a chain back, *written* bytes of it written; the driver sees it after `publish`.

        A chain of a ring that broke, or is gone, is only counted.
        """
        if self.ring.running and split_fresh(&self.ring) > 0:
            split_fill(&self.ring, chain, written, self.ring.pending)
            self.ring.pending += 1
        else:
            self.count_error()

    cdef bint publish(self) noexcept nogil:
        """Let the driver see all that was pushed, and signal it if it wants that; True if it was signalled."""
        cdef uint32_t count = self.ring.pending
        if not count:
            return False
        self.ring.pending = 0
        if split_fresh(&self.ring) <= 0:
            return False
        split_flush(&self.ring, count)
        return split_wants_call(&self.ring) and ring_call(&self.ring)

    cdef bint is_empty(self) noexcept nogil:
        """Tell whether there is nothing to pop."""
        return split_empty(&self.ring)

    cdef uint32_t backlog(self) noexcept nogil:
        """Tell how many chains wait that were seen already."""
        return <uint16_t>(self.ring.shadow_avail - self.ring.last_avail)

    cdef bint want_kicks(self, bint wanted) noexcept nogil:
        """Turn kicks on or off; True if there is something to pop for which none may come."""
        return split_set_notification(&self.ring, wanted)

    cdef void count_error(self) noexcept nogil:
        count_up(&self.ring.counters.errors, 1)

    cdef void count_kick(self) noexcept nogil:
        count_up(&self.ring.counters.kicks, 1)

    cdef bint check_memory(self) noexcept nogil:
        """Tell whether the queue can go on; it can't once it broke, or guest memory did."""
        return split_fresh(&self.ring) >= 0

    # -- set up

    cdef int _check_owner(self) except -1:
        """Raise if a worker's thread may be at the ring just now."""
        if self.native:
            raise RuntimeError(f"queue {self.index} is served by a native device; quiesce the worker or detach it")
        return 0

    cdef int _check_unwatched(self) except -1:
        """Raise if a worker has it."""
        if self.watched:
            raise RuntimeError(f"queue {self.index}: a worker serves it; detach the queue first")
        return 0

    cdef int _check_stopped(self, what) except -1:
        self._check_owner()
        if self.ring.running:
            raise QueueError(f"queue {self.index}: {what} can't be set while it runs; stop it first")
        return 0

    def set_features(self, uint64_t features):
        """Take over what was negotiated; only `RING_FEATURES` matter here.

        Raises:
            QueueError: the queue runs.
        """
        self._check_stopped("features")
        self.features = features
        self.ring.indirect = (features >> VIRTIO_F_INDIRECT_DESC) & 1
        self.ring.event_idx = (features >> VIRTIO_F_EVENT_IDX) & 1
        self.ring.notify_on_empty = (features >> VIRTIO_F_NOTIFY_ON_EMPTY) & 1
        self.ring.generation = 0

    def set_num(self, num):
        """Set the number of entries (VHOST_USER_SET_VRING_NUM).

        Memory for the ring's state is allocated here, by its size: ``max_size`` itself costs nothing.

        Raises:
            QueueError: it is no power of two up to ``max_size``, or the queue runs.
            MemoryError: there is no memory left; nothing changed.
        """
        cdef uint8_t *taken
        cdef uint16_t *heads
        self._check_stopped("its size")
        if not _is_size(num, self.max_size):
            raise QueueError(f"queue {self.index}: a ring of {num} entries can't be; "
                             f"it must be a power of two up to {self.max_size}")
        if num != self.ring.num:
            # SAFETY: the queue is stopped, so nothing looks at the old arrays; both new ones have num elements.
            taken = <uint8_t *>calloc(num, sizeof(uint8_t))
            heads = <uint16_t *>calloc(num, sizeof(uint16_t))
            if taken == NULL or heads == NULL:
                free(taken)
                free(heads)
                raise MemoryError
            free(self.ring.taken)
            free(self.ring.heads)
            self.ring.taken = taken
            self.ring.heads = heads
        self.ring.num = num
        self.ring.generation = 0

    def set_addr(self, desc, used, avail):
        """Say where the areas are, as addresses of the front-end (VHOST_USER_SET_VRING_ADDR); also while it runs.

        Unless the queue runs, what is in the used index becomes ours, and what broke the queue before is forgiven.

        Raises:
            QueueError: an area is not aligned or not in one region of guest memory, or the size is not set yet; nothing
                changed.
        """
        self._check_owner()
        for name, addr, align in (("descriptors", desc, 16), ("used", used, 4), ("available", avail, 2)):
            if not 0 <= addr < 1 << 64:
                raise QueueError(f"queue {self.index}: {name} area at {addr:#x} is no address")
            if addr % align:
                raise QueueError(f"queue {self.index}: {name} area at {addr:#x} must be aligned to {align} bytes")
        if not self.ring.num:
            raise QueueError(f"queue {self.index}: its size must be set before its addresses")
        old = (self.ring.desc_user, self.ring.used_user, self.ring.avail_user)
        broken = self.ring.broken
        self.ring.desc_user, self.ring.used_user, self.ring.avail_user = desc, used, avail
        self.ring.generation = 0
        if not self.ring.running:
            store_flag(&self.ring.broken, BROKEN_NOT)
        # SAFETY: used points to its header where the ring is in memory.
        usable = split_fresh(&self.ring)
        if usable > 0:
            if not self.ring.running:
                self.ring.used_idx = load16(&self.ring.used[1])
            return
        self.ring.desc_user, self.ring.used_user, self.ring.avail_user = old
        self.ring.generation = 0
        self._check_usable()
        store_flag(&self.ring.broken, broken)
        raise QueueError(self._missing(desc, used, avail))

    def _missing(self, desc, used, avail):
        """Say which area is not in memory."""
        event = 2 if self.ring.event_idx else 0
        areas = (("descriptors", desc, self.ring.num * 16), ("used", used, 4 + self.ring.num * 8 + event),
                 ("available", avail, 4 + self.ring.num * 2 + event))
        for name, start, size in areas:
            inside = [region for region in self.memory.regions
                      if region.user_addr <= start and start + size <= region.user_addr + region.size]
            if not inside:
                return (f"queue {self.index}: {name} area at {start:#x} with {size:#x} bytes "
                        f"is not in one region of guest memory; is all of that shared with us (share=on missing?)")
            if all(region.error for region in inside):
                return f"queue {self.index}: {name} area: {self.memory.explain(inside[0].guest_addr, 1)}"
        return f"queue {self.index}: its areas are not aligned in the file that is behind guest memory"

    def set_base(self, base):
        """Say which available entry comes next (VHOST_USER_SET_VRING_BASE).

        Raises:
            QueueError: it has more than 16 bits, or the queue runs.
        """
        self._check_stopped("its base")
        if not 0 <= base < 1 << 16:
            raise QueueError(f"queue {self.index}: {base} is no index of an available ring; it has 16 bits")
        self.ring.last_avail = base
        self.ring.shadow_avail = base

    def set_kick(self, int fd):
        """Take a copy of the descriptor that the driver kicks with; -1 for none (it is to be polled).

        Raises:
            RuntimeError: a worker waits for the old one; detach the queue first.
            OSError: *fd* is none, or there are too many.
        """
        self._check_unwatched()
        old, self.kick = self.kick, os.dup(fd) if fd >= 0 else -1
        if old >= 0:
            os.close(old)

    def set_call(self, int fd):
        """Take a copy of the descriptor that the driver is signalled with, and signal it once; -1 for none.

        Right at any time, whoever serves the queue.

        Raises:
            OSError: *fd* is none.
            QueueError: the queue was closed.
        """
        if self.ring.call_fd < 0:
            raise QueueError(f"queue {self.index} was closed")
        if fd >= 0:
            store_flag(&self.ring.call_blocks, 1)
            os.dup2(fd, self.ring.call_fd, inheritable=False)
            store_flag(&self.ring.call_blocks, os.get_blocking(fd))
            store_flag(&self.ring.call_set, 1)
            self._signal()
            return
        store_flag(&self.ring.call_set, 0)
        try:
            nowhere = os.eventfd(0)
        except OSError:  # no descriptor is left; then what is there stays a while longer, unused
            return
        os.dup2(nowhere, self.ring.call_fd, inheritable=False)
        os.close(nowhere)

    def start(self):
        """Let the ring run from its base; nothing is in flight, kicks are wanted.

        Raises:
            QueueError: it has no size, or its areas are not in memory.
            QueueBroken: it broke, and was not set up anew since.
        """
        self._check_owner()
        if self.ring.running:
            return
        if split_fresh(&self.ring) <= 0:
            self._check_usable()
            raise QueueError(self._missing(self.ring.desc_user, self.ring.used_user, self.ring.avail_user))
        split_start(&self.ring)

    def stop(self):
        """Stop: from now on nothing is popped, pushed or signalled; chains in flight are stale.

        Returns:
            the base to start from again (VHOST_USER_GET_VRING_BASE).
        """
        self._check_owner()
        store_flag(&self.ring.running, 0)
        self._forget_chains()
        self.ring.pending = 0
        return self.ring.last_avail

    def get_base(self):
        """Tell which available entry comes next."""
        return self.ring.last_avail

    def fail(self, str reason not None):
        """Break the queue for a reason that its device or its session has."""
        self._check_owner()
        if not self.ring.broken:
            self.told = reason
            split_fail(&self.ring, BROKEN_TOLD, 0)

    def take_failure(self):
        """Return what the queue's handler raised since the last call, or None."""
        failure, self.failure = self.failure, None
        return failure

    # -- what a Python device uses

    cdef int _check_usable(self) except -1:
        if self.ring.broken:
            raise QueueBroken(f"queue {self.index}: {self.broken}")
        return 0

    cdef int _check_ring(self) except -1:
        """Raise unless guest memory may be written."""
        self._check_owner()
        usable = split_fresh(&self.ring)
        self._check_usable()
        if not self.ring.running:
            raise QueueError(f"queue {self.index} is stopped")
        if not usable:
            raise QueueError(f"queue {self.index}: its ring is not in guest memory just now")
        return 0

    cdef int _check_chain(self, Chain chain) except -1:
        self._check_ring()
        if chain.queue is not self or not chain.live:
            raise StaleChain(f"queue {self.index}: the chain is not in flight here (any more)")
        return 0

    cdef int _forget_chains(self) except -1:
        """End all chains that Python has and that are not in flight, or whose queue stopped."""
        cdef Chain chain
        # SAFETY: heads are below num, as when they were popped.
        for head, chain in list(self.chains.items()):
            if not self.ring.running or not self.ring.taken[<uint16_t>head]:
                del self.chains[head]
                chain._end()
        if not self.ring.running:
            self.filled.clear()
        return 0

    def pop(self):
        """Take the next chain, or None (``vu_queue_pop``). One with a ``fault`` is to be failed and pushed.

        Raises:
            QueueBroken: the driver broke the rules.
        """
        cdef Chain made
        self._check_owner()
        if split_empty(&self.ring):
            self._check_usable()
            return None
        made = Chain.__new__(Chain)
        got = split_pop(&self.ring, &made.chain)
        if got <= 0:
            self._check_usable()
            return None
        made._begin(self, self.index, self.memory, got == POP_FAULT)
        self.chains[made.chain.head] = made
        return made

    def fill(self, Chain chain not None, written=None, uint32_t index=0):
        """Write a used entry, *index* places behind what is published, for `flush` (``vu_queue_fill``).

        *written* is what `Chain.write` wrote where it is not given.

        Raises:
            StaleChain: the chain is not in flight here.
            ValueError: more is said to be written than there is room, or that place is filled.
        """
        cdef uint32_t count
        self._check_chain(chain)
        count = chain._written(written)
        if index >= self.ring.num or index in self.filled:
            raise ValueError(f"queue {self.index}: place {index} is filled already, or the ring has no such place")
        split_fill(&self.ring, &chain.chain, count, index)
        self.filled.add(index)
        del self.chains[chain.chain.head]
        chain._end()

    def flush(self, uint32_t count):
        """Publish the first *count* filled entries (``vu_queue_flush``).

        Raises:
            ValueError: not all of them are filled.
        """
        self._check_ring()
        if not self.filled.issuperset(range(count)):
            raise ValueError(f"queue {self.index}: of {count} entries to publish, not all are filled")
        split_flush(&self.ring, count)
        self.filled = {index - count for index in self.filled if index >= count}

    def push(self, Chain chain not None, written=None):
        """Give a chain back and publish it (``vu_queue_push``); `notify` is the caller's. Arguments as for `fill`."""
        if self.filled:
            raise ValueError(f"queue {self.index}: entries were filled; flush them before pushing")
        self.fill(chain, written)
        self.flush(1)

    def unpop(self, Chain chain not None):
        """Put the chain that was popped last back (``vu_queue_unpop``).

        Raises:
            StaleChain: the chain is not in flight here.
            ValueError: it is not the one that was popped last.
        """
        self._check_chain(chain)
        if not split_unpop(&self.ring, chain.chain.head):
            raise ValueError(f"queue {self.index}: only the chain that was popped last can be put back")
        self._forget_chains()

    def rewind(self, uint32_t count):
        """Put the last *count* chains back (``vu_queue_rewind``); False if some of those were pushed."""
        self._check_ring()
        done = split_rewind(&self.ring, count)
        self._forget_chains()
        return done

    def avail_bytes(self, max_in=0xffffffff, max_out=0xffffffff):
        """Add up the bytes that wait, until both maxima are reached (``vu_queue_get_avail_bytes``).

        Returns:
            ``(in, out)``: bytes that the device may write, and bytes that it may read.

        Raises:
            QueueBroken: the driver broke the rules.
        """
        cdef chain_t scratch
        cdef uint64_t writable = 0
        cdef uint64_t readable = 0
        self._check_owner()
        memset(&scratch, 0, sizeof(scratch))
        split_measure(&self.ring, &scratch, max_in, max_out, &writable, &readable)
        chain_free(&scratch)
        self._check_usable()
        return writable, readable

    def set_notification(self, bint enable):
        """Turn kicks on or off (``vu_queue_set_notification``).

        Returns:
            whether there is something to pop for which no kick may come; always look when it says so.
        """
        self._check_owner()
        return bool(split_set_notification(&self.ring, enable))

    def empty(self):
        """Tell whether there is nothing to pop (``vu_queue_empty``)."""
        self._check_owner()
        return bool(split_empty(&self.ring))

    def notify(self):
        """Signal the driver if it wants to hear of what was published (``vu_queue_notify``); whether it was."""
        self._check_owner()
        return bool(split_wants_call(&self.ring) and self._signal())

    def notify_sync(self):
        """Like `notify` (``vu_queue_notify_sync``): a call descriptor is all that this layer signals with."""
        return self.notify()

    def call(self):
        """Signal the driver, wanted or not; right at any time. False if there is no call descriptor."""
        return bool(self._signal())

    cdef bint _signal(self) except -1:
        """Signal the call descriptor with the GIL held, which a sharer must not make us keep; False if there is none."""
        if not load_flag(&self.ring.call_set):
            return False
        native.ring_one(self.ring.call_fd)
        count_up_shared(&self.ring.counters.calls, 1)
        return True

    # -- how it stands; right at any time

    @property
    def num(self):
        """Entries of the ring; 0 before that is set."""
        return self.ring.num

    @property
    def addresses(self):
        """Addresses of the areas, as the front-end has them: (descriptors, used, available)."""
        return self.ring.desc_user, self.ring.used_user, self.ring.avail_user

    @property
    def running(self):
        """Whether it was started and not stopped."""
        return bool(load_flag(&self.ring.running))

    @property
    def broken(self):
        """Why it does nothing more, or an empty string."""
        why = load_flag(&self.ring.broken)
        if why == BROKEN_TOLD:
            return self.told
        if why == BROKEN_DAMAGE:
            return self.memory.broken or "guest memory was gone"
        return BROKEN[why].format(self.ring.broken_value)

    @property
    def in_memory(self):
        """Whether its areas were found in the current memory table."""
        return load64_acquire(&self.ring.generation) == self.memory.state.generation and self.ring.desc != NULL

    @property
    def in_flight(self):
        """Chains that were popped and not yet published as used."""
        return self.ring.in_flight

    @property
    def available_index(self):
        """The driver's index: how far it has made chains available, modulo 65536."""
        # SAFETY: memory changes only while we hold the GIL and no worker runs; with the current generation, avail is in
        # the current table.
        return load16(&self.ring.avail[1]) if self.in_memory else self.ring.shadow_avail

    @property
    def used_index(self):
        """Our index: how far we have given chains back, modulo 65536."""
        return self.ring.used_idx

    @property
    def kick_fd(self):
        """The queue's own kick descriptor, borrowed, or -1."""
        return self.kick

    @property
    def has_call(self):
        """Whether there is a call descriptor."""
        return bool(load_flag(&self.ring.call_set))

    @property
    def counters(self):
        """`Counters` since the queue was made."""
        # SAFETY: each is one aligned word that one thread at a time writes.
        return Counters(
            load64(&self.ring.counters.kicks), load64(&self.ring.counters.calls), load64(&self.ring.counters.requests),
            load64(&self.ring.counters.bytes), load64(&self.ring.counters.errors),
        )


def _is_size(num, most):
    """Tell whether a ring can have *num* entries."""
    return 0 < num <= most and num & (num - 1) == 0
