# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Chains: what a driver asks for, as Python sees it.

A chain is valid from `VirtQueue.pop` until it is pushed or taken back, or the queue stops; then its views are released
and using it raises `StaleChain`. When the memory table changes meanwhile it can still be pushed, but not be read or
written any more. Whatever view somebody kept keeps the old memory mapped, and does no harm.
"""

from libc.string cimport memmove

from .errors import StaleChain


cdef class Chain:
    """What a driver asks for: buffers to read, then buffers to write (libvhost-user's ``VuVirtqElement``)."""

    def __dealloc__(self):
        # SAFETY: the views do not look at this memory, but at what it points to.
        chain_free(&self.chain)

    cdef int _begin(self, object queue, int index, MemoryMap memory, bint faulty) except -1:
        """Take over what was just popped into `chain`."""
        self.queue = queue
        self.index = index
        self.memory = memory
        self.snapshot = memory.snapshot
        self.faulty = faulty
        self.live = True
        return 0

    cdef int _check(self) except -1:
        """Raise unless the buffers can be used."""
        if not self.live:
            raise StaleChain(f"queue {self.index}: the chain was pushed or taken back, or the queue stopped")
        if self.snapshot is not self.memory.snapshot:
            raise StaleChain(f"queue {self.index}: guest memory changed since the chain was popped; push it")
        return 0

    cdef uint32_t _written(self, written) except? 0xffffffff:
        """Check how much is said to be written."""
        count = self.written if written is None else written
        if not 0 <= count <= min(self.chain.writable_bytes, 0xffffffff):
            raise ValueError(f"queue {self.index}: {count} bytes can't have been written to a chain with room for "
                             f"{self.chain.writable_bytes}")
        return count

    cdef int _end(self) except -1:
        """Release what was given out."""
        self.live = False
        self.snapshot = None
        for views in (self.inward, self.outward):
            for view in views or ():
                try:
                    view.release()
                except BufferError:  # somebody looks through it just now; the memory stays mapped meanwhile
                    pass
        self.inward = self.outward = None
        return 0

    cdef list _views(self, const iovec *pieces, uint32_t count, bint readonly):
        cdef uint32_t i
        # SAFETY: count pieces were translated in the snapshot.
        return [self.memory.view(self.snapshot, &pieces[i], readonly) for i in range(count)]

    @property
    def head(self):
        """Number of the first descriptor; unlike that of any other chain in flight on the queue."""
        return self.chain.head

    @property
    def readable(self):
        """Views of the buffers that the device reads; one that crosses regions comes in pieces."""
        self._check()
        if self.outward is None:
            self.outward = self._views(self.chain.readable, self.chain.readable_count, True)
        return self.outward

    @property
    def writable(self):
        """Views of the buffers that the device writes."""
        self._check()
        if self.inward is None:
            self.inward = self._views(self.chain.writable, self.chain.writable_count, False)
        return self.inward

    @property
    def readable_bytes(self):
        """Bytes to read, of all buffers."""
        return self.chain.readable_bytes

    @property
    def writable_bytes(self):
        """Bytes to write, of all buffers."""
        return self.chain.writable_bytes

    @property
    def fault(self):
        """What of it is not in guest memory, in words, or an empty string."""
        if not self.faulty:
            return ""
        return self.memory.explain(self.chain.fault_addr, self.chain.fault_bytes)

    def read(self, length=None):
        """Copy the next *length* bytes, or all that are left, out of the readable buffers; fewer at their end.

        Raises:
            StaleChain: the buffers are gone.
        """
        self._check()
        cdef uint64_t total = _sum(self.chain.readable, self.chain.readable_count)
        cdef uint64_t count = total - self.taken
        if length is not None:
            count = min(count, max(length, 0))
        data = bytearray(count)
        cdef unsigned char[::1] into = data
        if count:
            # SAFETY: data has count bytes, which is not more than what is left.
            _copy(self.chain.readable, self.taken, &into[0], count, False)
        self.taken += count
        return bytes(data)

    def write(self, const unsigned char[::1] data not None):
        """Copy *data* behind what was written before, as much as there is room for.

        Returns:
            how many bytes that were.

        Raises:
            StaleChain: the buffers are gone.
        """
        self._check()
        cdef uint64_t room = _sum(self.chain.writable, self.chain.writable_count) - self.written
        cdef uint64_t count = min(room, <uint64_t>data.shape[0])
        if count:
            # SAFETY: data has count bytes, which is not more than there is room for; _copy only reads them.
            _copy(self.chain.writable, self.written, <uint8_t *>&data[0], count, True)
        self.written += count
        return count


cdef uint64_t _sum(const iovec *pieces, uint32_t count) noexcept nogil:
    """Add up the bytes of all pieces."""
    cdef uint64_t total = 0
    cdef uint32_t i
    # SAFETY: there are count pieces.
    for i in range(count):
        total += pieces[i].iov_len
    return total


cdef void _copy(const iovec *pieces, uint64_t skip, uint8_t *ours, uint64_t count, bint inward) noexcept nogil:
    """Copy *count* bytes between the pieces, from byte *skip* on, and *ours*."""
    cdef uint64_t step
    cdef uint8_t *theirs
    # SAFETY: the pieces have skip + count bytes, which the caller checked, so the walk ends before they do.
    while skip >= pieces.iov_len:
        skip -= pieces.iov_len
        pieces += 1
    while count:
        theirs = <uint8_t *>pieces.iov_base + skip
        step = min(count, pieces.iov_len - skip)
        if inward:
            memmove(theirs, ours, step)  # ours may be a view of what is readable, and that overlap what is writable
        else:
            memmove(ours, theirs, step)
        ours += step
        count -= step
        pieces += 1
        skip = 0
