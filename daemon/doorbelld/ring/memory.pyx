# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory: what a front-end shares with us, and how its addresses become ours.

Theory of operation
-------------------
A front-end describes guest memory as up to 509 *regions*, each a piece of a file with two addresses: the guest's own
(descriptors use those) and the front-end's (the addresses of rings use those). `MemoryMap` maps them all and
translates.

A translation happens for every buffer of every request, in threads without the GIL, so it takes no lock: the regions of
one moment are a `Snapshot`, sorted and never changed. A change makes a new snapshot, counts the *generation* up and
puts the new one in place. Whoever looked something up keeps the generation with it and looks again when it differs.
That is safe because no thread reads the table during a change: a worker that runs has *pinned* the map, and a pinned
map refuses to change. A Python object that refers to memory holds the snapshot, which keeps everything mapped.

A region that can't be mapped stays in the table, unmapped. An access to it fails like one outside of memory, and
`MemoryMap.explain` says why. A region that can be mapped may lose its file later; see sigbus.h for what happens then.
The map notes it as `MemoryMap.broken`, and stays broken until `MemoryMap.set_table` starts anew.

Invariants
----------
1. Regions of a snapshot do not overlap in guest addresses, and no address in them overflows.
2. A host pointer that `region_at`, `table_map` or `table_user` gave is mapped as long as the snapshot lives.
3. No function here takes ownership of a descriptor; a mapping needs none once it is made.
"""

import os
from collections import namedtuple

from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport errno
from libc.stdlib cimport calloc, free
from libc.string cimport memmove

from .errors import GuestMemoryError

cdef extern from "sigbus.h" nogil:
    struct guarded_t "guarded":
        pass
    guarded_t *guarded_add(void *start, size_t length, size_t page, uint64_t guest_addr, damage_t *damage)
    void guarded_remove(guarded_t *slot)
    int sigbus_install()

cdef extern from "barriers.h" nogil:
    int load_flag(const int *at)

cdef extern from "<sys/mman.h>" nogil:
    enum: PROT_READ, PROT_WRITE, MAP_SHARED, MAP_NORESERVE, MADV_DONTDUMP
    void *MAP_FAILED
    void *mmap(void *addr, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *addr, size_t length)
    int madvise(void *addr, size_t length, int advice)

cdef extern from "<sys/vfs.h>" nogil:
    struct statfs_t "statfs":
        long f_type
        long f_bsize
    int fstatfs(int fd, statfs_t *found)

cdef extern from "<linux/magic.h>" nogil:
    enum: HUGETLBFS_MAGIC

cdef extern from "<unistd.h>" nogil:
    enum: _SC_PAGESIZE
    long sysconf(int name)

SLOTS_MAX = REGIONS_MAX
"""How many regions a map takes (VHOST_USER_GET_MAX_MEM_SLOTS)."""

Region = namedtuple("Region", "guest_addr size user_addr mmap_offset error")


cdef const region_t *table_find(const table_t *table, uint64_t guest_addr) noexcept nogil:
    """Find the region that *guest_addr* lies in, or NULL."""
    cdef uint32_t low = 0
    cdef uint32_t high = table.count
    cdef uint32_t middle
    cdef const region_t *region
    # SAFETY: low <= middle < high <= count, the number of regions there are.
    while low < high:
        middle = (low + high) // 2
        region = &table.regions[middle]
        if guest_addr < region.guest_addr:
            high = middle
        elif guest_addr - region.guest_addr >= region.size:
            low = middle + 1
        else:
            return region
    return NULL


cdef int table_map(const table_t *table, uint64_t guest_addr, uint64_t length, iovec *out, int room) noexcept nogil:
    """Translate *length* bytes at *guest_addr* to at most *room* pieces; their number, or MAP_FAULT or MAP_MANY."""
    cdef const region_t *region
    cdef uint64_t offset
    cdef uint64_t step
    cdef int count = 0
    # SAFETY: out has room pieces, count < room at each write. step is at least 1 and ends inside the region, whose end
    # does not overflow, so neither does guest_addr.
    while length:
        region = table_find(table, guest_addr)
        if region == NULL or not region.mapped:
            return MAP_FAULT
        if count == room:
            return MAP_MANY
        offset = guest_addr - region.guest_addr
        step = min(length, region.size - offset)
        out[count].iov_base = region.host + offset
        out[count].iov_len = step
        count += 1
        guest_addr += step
        length -= step
    return count


cdef uint8_t *table_user(const table_t *table, uint64_t user_addr, uint64_t length) noexcept nogil:
    """Translate a front-end's address if all *length* bytes lie in one mapped region, else return NULL."""
    cdef const region_t *region
    cdef uint64_t offset
    cdef uint32_t i
    # SAFETY: as in region_at.
    for i in range(table.count):
        region = &table.regions[i]
        offset = user_addr - region.user_addr
        if offset < region.mapped and length <= region.mapped - offset:
            return region.host + offset
    return NULL


cdef class Damage:
    """Where the SIGBUS guard notes what it did; shared by the mappings of a table, and alive as long as one of them."""

    def __cinit__(self):
        self.state = <damage_t *>calloc(1, sizeof(damage_t))
        if self.state == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.state)


cdef class Mapping:
    """One region: mapped from now until nobody refers to this object, or not, and then `error` says why."""

    def __init__(self, guest_addr, size, user_addr, mmap_offset, int fd, Damage damage not None):
        if not 0 < size:
            raise GuestMemoryError(f"memory region at guest address {guest_addr:#x} is empty")
        for name, start in (("guest", guest_addr), ("user", user_addr)):
            if not 0 <= start < start + size < 1 << 64:
                raise GuestMemoryError(f"memory region at {name} address {start:#x} with {size:#x} bytes wraps around")
        if not 0 <= mmap_offset < mmap_offset + size < 1 << 63:
            raise GuestMemoryError(f"memory region at guest address {guest_addr:#x} lies beyond the end of any file: "
                                   f"offset {mmap_offset:#x}, {size:#x} bytes")
        self.region.guest_addr = guest_addr
        self.region.size = size
        self.region.user_addr = user_addr
        self.offset = mmap_offset
        self.damage = damage
        try:
            self._map(fd)
        except OSError as error:
            self.error = error.strerror or str(error)

    cdef int _map(self, int fd) except -1:
        """Map the file; nothing is mapped if that raises."""
        cdef statfs_t found
        cdef uint64_t page = sysconf(_SC_PAGESIZE)
        cdef uint64_t before
        cdef void *base
        state = os.fstat(fd)
        if (state.st_mode & 0o170000) == 0o100000 and <uint64_t>state.st_size < self.offset + self.region.size:
            raise OSError(0, f"its file ends at {state.st_size:#x}, before offset {self.offset:#x} + "
                             f"{self.region.size:#x}")
        # SAFETY: fstatfs writes one struct. A file of huge pages is mapped from and to their boundaries; host lies
        # `before` bytes into what was mapped, and length is at least before + size.
        if fstatfs(fd, &found):
            raise OSError(errno, os.strerror(errno))
        if found.f_type == HUGETLBFS_MAGIC:
            page = found.f_bsize
        before = self.offset & (page - 1)
        self.length = (before + self.region.size + page - 1) & ~(page - 1)
        if sigbus_install():
            raise OSError(errno, os.strerror(errno))
        base = mmap(NULL, self.length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, self.offset - before)
        if base == MAP_FAILED:
            raise OSError(errno, os.strerror(errno))
        self.guard = guarded_add(base, self.length, page, self.region.guest_addr - before, self.damage.state)
        if self.guard == NULL:
            munmap(base, self.length)
            raise MemoryError
        madvise(base, self.length, MADV_DONTDUMP)  # a guest's memory has no place in a core dump of ours
        self.base = <uint8_t *>base
        self.region.host = self.base + before
        self.region.mapped = self.region.size
        return 0

    def __dealloc__(self):
        # SAFETY: base and length are what mmap gave; nobody refers to them any more (invariant 2).
        if self.guard != NULL:
            guarded_remove(<guarded_t *>self.guard)
            munmap(self.base, self.length)


cdef class Snapshot:
    """The regions of one generation, by guest address; keeps them mapped."""

    def __init__(self, mappings):
        cdef Mapping mapping
        cdef Mapping before = None
        self.mappings = sorted(mappings, key=_guest_addr)
        if len(self.mappings) > REGIONS_MAX:
            raise GuestMemoryError(f"{len(self.mappings)} memory regions are too many; at most {REGIONS_MAX}")
        for mapping in self.mappings:
            if before is not None and mapping.region.guest_addr - before.region.guest_addr < before.region.size:
                raise GuestMemoryError(f"memory regions {_named(before)} and {_named(mapping)} overlap")
            before = mapping
        self.table.regions = <region_t *>calloc(len(self.mappings) + 1, sizeof(region_t))
        if self.table.regions == NULL:
            raise MemoryError
        # SAFETY: regions has room for one more than there are mappings.
        for mapping in self.mappings:
            self.table.regions[self.table.count] = mapping.region
            self.table.count += 1

    def __dealloc__(self):
        free(self.table.regions)


cdef class _Piece:
    """Bytes of guest memory, for a memoryview to look at; keeps the snapshot."""

    cdef Snapshot snapshot
    cdef void *start
    cdef Py_ssize_t length
    cdef bint readonly

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        # SAFETY: start and length were translated in the snapshot that is held here.
        PyBuffer_FillInfo(buffer, self, self.start, self.length, self.readonly, flags)


cdef class MemoryMap:
    """The guest memory that a front-end shares with us now."""

    def __cinit__(self):
        self.damage = Damage()
        self._put(Snapshot(()))

    cdef int _put(self, Snapshot snapshot) except -1:
        """Make *snapshot* the current one."""
        self.snapshot = snapshot
        # SAFETY: nobody reads state now (pin), and both objects are held by this one.
        self.state.table = &snapshot.table
        self.state.damage = self.damage.state
        self.state.generation += 1
        return 0

    cdef int _check_unpinned(self) except -1:
        if self.pins:
            raise RuntimeError("guest memory can't change while a worker uses it; quiesce the worker first")
        return 0

    def set_table(self, regions):
        """Replace all regions (VHOST_USER_SET_MEM_TABLE); a map that was broken is whole again.

        Args:
            regions: tuples (guest address, size, user address, offset in the file, descriptor); the descriptors stay
                the caller's. One that can't be mapped is no error yet: see `explain`.

        Raises:
            GuestMemoryError: a region is empty or wraps around, two overlap, or there are too many; nothing changed.
            RuntimeError: a worker runs.
        """
        self._check_unpinned()
        regions = list(regions)
        if len(regions) > REGIONS_MAX:
            raise GuestMemoryError(f"{len(regions)} memory regions are too many; at most {REGIONS_MAX}")
        cdef Damage damage = Damage()
        cdef Snapshot snapshot = Snapshot([Mapping(*region, damage) for region in regions])
        self.damage = damage
        self._put(snapshot)

    def add(self, guest_addr, size, user_addr, mmap_offset, fd):
        """Add a region (VHOST_USER_ADD_MEM_REG); arguments and errors as for `set_table`."""
        self._check_unpinned()
        if len(self.snapshot.mappings) >= REGIONS_MAX:
            raise GuestMemoryError(f"there are {REGIONS_MAX} memory regions, and no room for one more")
        fresh = Mapping(guest_addr, size, user_addr, mmap_offset, fd, self.damage)
        self._put(Snapshot([*self.snapshot.mappings, fresh]))

    def remove(self, guest_addr, size, user_addr):
        """Remove the region that matches in all three (VHOST_USER_REM_MEM_REG).

        Raises:
            GuestMemoryError: there is none.
            RuntimeError: a worker runs.
        """
        self._check_unpinned()
        cdef Mapping mapping
        for mapping in self.snapshot.mappings:
            if (mapping.region.guest_addr, mapping.region.size, mapping.region.user_addr) == (
                guest_addr, size, user_addr
            ):
                self._put(Snapshot([other for other in self.snapshot.mappings if other is not mapping]))
                return
        raise GuestMemoryError(f"no memory region at guest address {guest_addr:#x} with {size:#x} bytes "
                               f"and user address {user_addr:#x} to remove")

    def close(self):
        """Forget all regions; they are unmapped as soon as nobody looks at them.

        Raises:
            RuntimeError: a worker runs.
        """
        self._check_unpinned()
        self._put(Snapshot(()))

    @property
    def generation(self):
        """How often the table changed; whatever was looked up in another generation is stale."""
        return self.state.generation

    @property
    def broken(self):
        """Why memory can't be relied upon any more, or an empty string."""
        # SAFETY: state.damage is held by self.damage; the flag is set after the address.
        if load_flag(&self.state.damage.happened) != 1:
            return ""
        return (f"guest memory at {self.state.damage.guest_addr:#x} and above is gone: its file was truncated, "
                f"or has no pages left")

    @property
    def regions(self):
        """All regions by guest address, as `Region` tuples; ``error`` says why one is not mapped."""
        cdef Mapping mapping
        return [
            Region(mapping.region.guest_addr, mapping.region.size, mapping.region.user_addr, mapping.offset,
                   mapping.error or "")
            for mapping in self.snapshot.mappings
        ]

    cdef int map_gpa(self, uint64_t guest_addr, uint64_t length, iovec *out, int room) noexcept nogil:
        """Translate to pieces; see `table_map`."""
        return table_map(self.state.table, guest_addr, length, out, room)

    cdef int pin(self) except -1:
        """Promise to read the table from another thread, until `unpin`."""
        self.pins += 1
        return 0

    cdef void unpin(self) noexcept:
        self.pins -= 1

    cdef object view(self, Snapshot snapshot, const iovec *piece, bint readonly):
        """Make a memoryview of one piece that was translated in *snapshot*."""
        cdef _Piece made = _Piece.__new__(_Piece)
        made.snapshot = snapshot
        made.start = piece.iov_base
        made.length = piece.iov_len
        made.readonly = readonly
        return memoryview(made)

    def views(self, guest_addr, length, *, bint readonly=False):
        """Look at *length* bytes of guest memory without copying: one memoryview for each region they lie in.

        The views stay valid, if useless, after the table has changed.

        Raises:
            GuestMemoryError: some of it is not there.
        """
        cdef iovec pieces[REGIONS_MAX]
        cdef int count
        cdef int i
        if not (0 <= guest_addr < 1 << 64 and 0 <= length < 1 << 63):
            raise GuestMemoryError(self.explain(guest_addr, length))
        # SAFETY: pieces has REGIONS_MAX elements; an address crosses no region twice.
        count = table_map(self.state.table, guest_addr, length, pieces, REGIONS_MAX)
        if count < 0:
            raise GuestMemoryError(self.explain(guest_addr, length))
        return [self.view(self.snapshot, &pieces[i], readonly) for i in range(count)]

    def read(self, guest_addr, length):
        """Copy *length* bytes of guest memory out.

        Raises:
            GuestMemoryError: some of it is not there.
        """
        return b"".join(self.views(guest_addr, length, readonly=True))

    def write(self, guest_addr, const unsigned char[::1] data not None):
        """Copy *data* into guest memory.

        Raises:
            GuestMemoryError: some of it is not there; nothing was written.
        """
        cdef Py_ssize_t done = 0
        cdef unsigned char[::1] piece
        for view in self.views(guest_addr, len(data)):
            piece = view
            # SAFETY: the views together are as long as data.
            memmove(&piece[0], &data[done], len(piece))
            done += len(piece)

    def explain(self, guest_addr, length):
        """Say why *length* bytes at *guest_addr* can't be used: which region is not mapped, or where memory ends."""
        cdef Mapping mapping
        end = guest_addr + length
        for mapping in self.snapshot.mappings:
            start = mapping.region.guest_addr
            if mapping.error and start < end and guest_addr < start + mapping.region.size:
                return (f"guest memory region {_named(mapping)} could not be mapped: {mapping.error}; "
                        f"is it shared with us (share=on missing?)")
        return f"{length:#x} bytes at guest address {guest_addr:#x} are not, or not all, in guest memory"


def _guest_addr(Mapping mapping not None):
    return mapping.region.guest_addr


def _named(Mapping mapping not None):
    return f"{mapping.region.guest_addr:#x}+{mapping.region.size:#x}"
