# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory that a region shares.

``memfd`` (the default) is sealed against shrinking and growing: without the seals one guest could truncate it, and
all others would die of SIGBUS at their next access. ``hugetlb`` is the same on huge pages, reserved at once.
``shm:NAME`` and ``file:PATH`` can be opened by others by name and outlive the daemon; they can't be sealed, so whoever
may write the file is trusted. Blocks of a file are allocated at creation: a full disk is an error here and now, not a
SIGBUS in a guest later.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from dataclasses import dataclass

from ..errors import MemoryUnavailable
from ..fds.owned import Fd

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, slots=True)
class Backing:
    """Where memory comes from: ``kind`` is memfd, hugetlb, shm or file; ``target`` the name or path, if any."""

    kind: str
    target: str = ""

    @classmethod
    def parse(cls, raw: object) -> Backing:
        """Read ``"memfd"``, ``"hugetlb"``, ``"shm:NAME"`` or ``"file:PATH"``; ValueError with cause and cure."""
        kind, colon, target = raw.partition(":") if isinstance(raw, str) else ("", "", "")
        if kind in ("memfd", "hugetlb") and not colon:
            return cls(kind)
        if kind == "shm" and re.fullmatch(r"/?[^/\0]{1,255}", target) and target.strip("/") not in (".", ".."):
            return cls(kind, target.lstrip("/"))
        if kind == "file" and target.startswith("/") and "\0" not in target:
            return cls(kind, target)
        raise ValueError(f'{raw!r} is no backing; write "memfd", "hugetlb", "shm:NAME" or "file:/PATH"')

    def __str__(self) -> str:
        return f"{self.kind}:{self.target}" if self.target else self.kind

    @property
    def path(self) -> str:
        """The path of named memory; empty for memfds."""
        return f"/dev/shm/{self.target}" if self.kind == "shm" else self.target


def huge_page_size() -> int:
    """Return the default huge page size in bytes; 0 where there are none."""
    with open("/proc/meminfo", encoding="ascii") as info:
        match = re.search(r"^Hugepagesize:\s+(\d+) kB$", info.read(), re.M)
    return int(match[1]) << 10 if match else 0


def create(backing: Backing, size: int, name: str) -> Fd:
    """Make or open the memory of region *name*: exactly *size* bytes.

    Raises:
        MemoryUnavailable: with the cause and the cure.
    """
    try:
        if backing.path:
            return _named(backing.path, size)
        return _anonymous(size, name, huge=backing.kind == "hugetlb")
    except OSError as error:
        raise MemoryUnavailable(f'region "{name}": {backing}: {error.strerror}; {_cure(error, backing)}') from error


def _anonymous(size: int, name: str, huge: bool) -> Fd:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | (os.MFD_HUGETLB if huge else 0)
    with contextlib.ExitStack() as undo:
        fd = undo.enter_context(Fd(os.memfd_create(f"doorbelld:{name}", flags)))
        os.ftruncate(fd.fileno(), size)
        if huge:
            os.posix_fallocate(fd.fileno(), 0, size)
        fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, SEALS)
        undo.pop_all()
    return fd


def _named(path: str, size: int) -> Fd:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd, made = Fd(os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)), True
    except FileExistsError:
        fd, made = Fd(os.open(path, flags)), False
    with contextlib.ExitStack() as undo:
        undo.enter_context(fd)  # at once, not when collected: a file that is unlinked keeps its blocks until then
        if made:
            undo.callback(os.unlink, path)
        status = os.fstat(fd.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise MemoryUnavailable(f"{path}: it is no regular file; name one, or choose another backing")
        found = status.st_size
        if found not in (0, size):
            raise MemoryUnavailable(
                f"{path}: it is {found} bytes long, the region {size}; remove it or set the region's size to {found}"
            )
        os.posix_fallocate(fd.fileno(), 0, size)
        undo.pop_all()
    return fd


def _cure(error: OSError, backing: Backing) -> str:
    if backing.kind == "hugetlb":
        return "reserve huge pages (sysctl vm.nr_hugepages=N) or use backing memfd"
    return {
        errno.ENOSPC: "free some space there or use another backing",
        errno.EDQUOT: "raise the quota or use another backing",
        errno.EFBIG: "the file system or RLIMIT_FSIZE allows no file of that size",
        errno.EACCES: "give the daemon's user access to it",
        errno.EPERM: "give the daemon's user access to it",
        errno.ENOENT: "make its directory",
        errno.ELOOP: "it is a symbolic link; name the file itself",
        errno.EMFILE: "raise the limit on open files (LimitNOFILE=)",
    }.get(error.errno or 0, "choose another backing")
