# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks: an open file or block device, and how it may be used.

A `Disk` is shared by the queues of a device. What may change while workers run is one aligned word each, looked at by
itself when a request begins, and so needs no lock.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #include <fcntl.h>
    #include <linux/magic.h>
    #include <sys/syscall.h>
    #include <sys/vfs.h>
    #include <unistd.h>

    #ifndef STATX_DIOALIGN
    #define STATX_DIOALIGN 0x2000U
    #endif

    /* Whether the file lives in memory, so that using it does not wait for a disk. */
    static int is_in_memory(int fd)
    {
        struct statfs found;
        return !fstatfs(fd, &found) &&
               (found.f_type == TMPFS_MAGIC || found.f_type == RAMFS_MAGIC || found.f_type == HUGETLBFS_MAGIC);
    }

    /* How direct I/O is to be aligned; 0 if the kernel (Linux 6.1) and the file system say so. */
    static int statx_direct(int fd, uint32_t *memory, uint32_t *offset)
    {
        struct { uint32_t mask; uint8_t before[148]; uint32_t memory, offset; uint8_t after[96]; } found;
        _Static_assert(sizeof found == 256, "struct statx has 256 bytes");
        if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &found))
            return -1;
        if (!(found.mask & STATX_DIOALIGN) || !found.memory || !found.offset)
            return -1;
        *memory = found.memory;
        *offset = found.offset;
        return 0;
    }
    """
    int is_in_memory(int fd) nogil
    int statx_direct(int fd, uint32_t *memory, uint32_t *offset) nogil


def direct_alignment(int fd):
    """Tell how direct I/O to *fd* must be aligned: (memory, offset and length) in bytes, or None if nobody says."""
    cdef uint32_t memory = 0
    cdef uint32_t offset = 0
    # SAFETY: both are written only if that succeeds.
    if statx_direct(fd, &memory, &offset):
        return None
    return memory, offset


cdef class Disk:
    """A file or block device that is a disk."""

    def __init__(
        self, file, *, bint read_only=False, bint direct=False, bint discard=True, bytes serial=b"",
        uint64_t memory_align=1, uint64_t block=512,
    ):
        """Use *file*, an `Fd` that is taken over.

        Args:
            file: where the data is.
            read_only: whether writing fails.
            direct: whether it was opened with O_DIRECT.
            discard: whether discarding, and zeroes where the driver permits it, makes holes.
            serial: what GET_ID says; up to 20 bytes.
            memory_align: of buffers for direct I/O, in bytes, a power of two.
            block: of lengths for direct I/O, in bytes, a power of two.
        """
        self.file = file
        self.state.fd = file.fileno()
        self.state.read_only = read_only
        self.state.direct = direct
        self.state.discard = discard
        self.state.memory_align = memory_align
        self.state.block = block
        self.in_memory = is_in_memory(self.state.fd)
        # SAFETY: the slice has at most as many bytes as the array, which is all zero.
        serial = serial[:VIRTIO_BLK_ID_BYTES]
        memcpy(self.state.serial, <const char *>serial, len(serial))
        self.inline = True

    @property
    def capacity(self):
        """Size in sectors; what lies beyond can't be read or written."""
        return word_get(&self.state.capacity)

    @capacity.setter
    def capacity(self, uint64_t sectors):
        word_set(&self.state.capacity, sectors)

    @property
    def writethrough(self):
        """Whether a write is on the disk when it is said to be done, not only after the next flush."""
        return bool(flag_get(&self.state.writethrough))

    @writethrough.setter
    def writethrough(self, bint wanted):
        flag_set(&self.state.writethrough, wanted)

    @property
    def inline(self):
        """Whether reads or writes may be done inline; setting it has both tried again, or never."""
        return flag_get(&self.state.reads) != INLINE_NEVER or flag_get(&self.state.writes) != INLINE_NEVER

    @inline.setter
    def inline(self, bint wanted):
        how = INLINE_ALWAYS if self.in_memory else INLINE_NOWAIT
        if not wanted or self.state.direct:
            how = INLINE_NEVER
        flag_set(&self.state.reads, how)
        flag_set(&self.state.writes, how)
