# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Images of disks: opening and locking a raw file or a block device, and asking what it is like.

*Locks.* An image that two use at once is soon lost. QEMU guards against that with locks on single bytes of the image,
one for each thing that a user does and one for each that it wants nobody else to do. We do the same with the same
bytes, so that nobody, QEMU or us, writes to what another writes to or relies on. They are locks of the open file
(F_OFD_SETLK), and go when it is closed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import stat
import struct
from dataclasses import dataclass

from ..errors import DoorbellError
from ..fds.owned import Fd
from .blk_io import SECTOR
from .disk import direct_alignment

DIRECT_ALIGN = 4096
"""Alignment for direct I/O where nobody tells: a page, which is right everywhere."""
PHYSICAL_MAX = 1 << 16

# linux/fs.h
_BLKSSZGET = 0x1268
_BLKIOMIN = 0x1278
_BLKIOOPT = 0x1279
_BLKALIGNOFF = 0x127A
_BLKPBSZGET = 0x127B

_FLOCK = struct.Struct("=hh4xqqi4x")
# what QEMU calls permissions, by number: 0 consistent read, 1 write, 2 write unchanged, 3 resize
_USES = 100
_FORBIDS = 200
_WRITE = 1
_RESIZE = 3


class ImageUnavailable(DoorbellError):
    """The image of a disk can't be had: not there, no permission, in use, or no disk."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """How an image likes to be used; all in bytes."""

    block: int
    """Smallest unit; a power of two."""
    physical: int
    """What the disk itself writes at once; a power of two."""
    misaligned: int
    """From the start to the first byte that is aligned to that."""
    least: int
    """Smaller requests cost more."""
    best: int
    """What long transfers should come in; 0 if it does not matter."""
    memory_align: int
    """Alignment of buffers that direct I/O needs."""


class Image:
    """An open and locked image."""

    def __init__(self, path: str, *, read_only: bool, direct: bool) -> None:
        """Open the image at *path*, past the page cache if *direct*.

        Raises:
            ImageUnavailable: the text names the cause and the cure.
        """
        self.path = path
        flags = os.O_RDONLY if read_only else os.O_RDWR
        try:
            # O_NONBLOCK: opening a FIFO or a terminal by mistake is not to hang; it means nothing for files and disks
            self.file = Fd(os.open(path, flags | (os.O_DIRECT if direct else 0) | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as error:
            raise ImageUnavailable(f"image {path}: {error.strerror}; {cure(path, error.errno, read_only)}") from error
        try:
            self._block_device = self._check()
            self._lock(read_only)
            self.geometry = self._geometry(direct)
        except OSError as error:
            self.file.close()
            raise ImageUnavailable(f"image {path}: {error.strerror}; it is no usable disk, name another") from error
        except BaseException:
            self.file.close()
            raise

    @property
    def sectors(self) -> int:
        """How many whole sectors it has now."""
        return os.lseek(self.file.fileno(), 0, os.SEEK_END) // SECTOR

    def _check(self) -> bool:
        """Tell whether it is a block device; it may be a regular file else."""
        mode = os.fstat(self.file.fileno()).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise ImageUnavailable(f"image {self.path} is neither a file nor a block device; name one that is")
        return stat.S_ISBLK(mode)

    def _lock(self, read_only: bool) -> None:
        """Say what we do and what nobody else may do, and see whether somebody else minds, or does."""
        ours = () if read_only else (_USES + _WRITE, _USES + _RESIZE)
        for byte in (*ours, _FORBIDS + _WRITE, _FORBIDS + _RESIZE):
            if self._lock_byte(fcntl.F_OFD_SETLK, fcntl.F_RDLCK, byte) is None:
                return  # there are no locks here
        theirs = () if read_only else (_FORBIDS + _WRITE, _FORBIDS + _RESIZE)
        for byte in (*theirs, _USES + _WRITE, _USES + _RESIZE):
            if self._lock_byte(fcntl.F_OFD_GETLK, fcntl.F_WRLCK, byte) != fcntl.F_UNLCK:
                what = "is written to" if _USES <= byte < _FORBIDS else "is in use"
                raise ImageUnavailable(
                    f"image {self.path} {what} by another device or program; stop that, or make a copy of the image"
                )

    def _lock_byte(self, command: int, kind: int, byte: int) -> int | None:
        """Lock one byte, or ask about it; the kind of lock that comes back, None if there are no locks."""
        wanted = _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)
        try:
            found = fcntl.fcntl(self.file.fileno(), command, wanted)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOLCK, errno.ENOTSUP):
                return None
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise ImageUnavailable(
                    f"image {self.path} is locked by another program; stop that, or make a copy of the image"
                ) from error
            raise
        return int(_FLOCK.unpack(found)[0])

    def _geometry(self, direct: bool) -> Geometry:
        fd = self.file.fileno()
        block, physical, misaligned, least, best = SECTOR, os.fstat(fd).st_blksize, 0, 0, 0
        memory_align = SECTOR
        if self._block_device:
            block, physical, misaligned, least, best = (
                _ask(fd, what) for what in (_BLKSSZGET, _BLKPBSZGET, _BLKALIGNOFF, _BLKIOMIN, _BLKIOOPT)
            )
            memory_align = block
        if direct and (said := direct_alignment(fd)) is not None:
            memory_align, block = said[0], max(said[1], block)
        elif direct and not self._block_device:
            memory_align = block = DIRECT_ALIGN
        block = max(block, SECTOR)
        physical = 1 << min(max(physical, block), PHYSICAL_MAX).bit_length() - 1
        return Geometry(block, physical, max(misaligned, 0), max(least, physical), best, memory_align)


def _ask(fd: int, what: int) -> int:
    """Ask a block device for a number."""
    return int(struct.unpack("i", fcntl.ioctl(fd, what, bytes(4)))[0])


def cure(path: str, number: int | None, read_only: bool) -> str:
    """Say what to do about the image at *path*, which can't be opened because of the error *number*."""
    if number == errno.ENOENT:
        return f"make it, for example: truncate -s 10G {shlex.quote(path)}"
    if number == errno.EROFS and not read_only:
        return "set read-only = true, or, if that is the sandbox of the unit, allow it with ReadWritePaths="
    if number in (errno.EACCES, errno.EPERM) and not read_only:
        return "give the daemon permission to write, or set read-only = true"
    if number in (errno.EACCES, errno.EPERM):
        return "give the daemon permission to read"
    if number == errno.EINVAL:
        return 'direct I/O is not possible there, so set cache = "buffered"'
    if number == errno.EISDIR:
        return "name a file or a block device"
    return "see to that, or name another"
