# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is at the other end of a UNIX socket.

Theory of operation
-------------------
pid, uid and gid come from the kernel (SO_PEERCRED, taken at connect time) and can be relied upon.

The *unit* comes from the process's cgroup, by the rule of sd_pid_get_unit(3): the first component of the path that is
no slice. Who runs below that unit can name cgroups of its own as it likes (every user's manager can), and gains nothing
by it. A process in no unit has the path of its cgroup instead, which begins with a slash.

The *VM name* is vouched for where it comes from a scope below machine.slice, which systemd-machined makes for libvirt.
Else it is what the process calls itself on its command line (QEMU's ``-name``). Anybody who may run a QEMU may pick
any, so a rule that trusts such a name should name a uid or a unit too. `Credentials.vm_name_source` says which.

A process may connect, hand the connection to another process and end; its PID then goes to a third one. What is read in
/proc is therefore held against the kernel's own reference to the process (SO_PEERPIDFD, Linux 6.5): if it has ended by
then, unit and VM name are unknown. Older kernels have no such reference, and a PID that is taken again is not noticed.

Reading /proc/PID/cmdline takes the mmap lock of that process, which its owner can hold for as long as it likes (a fault
on a mapped file whose server does not answer). So `identify` leaves it out, and `said_name` reads it; that one is for a
helper thread. /proc/PID/cgroup, comm and exe take no such lock.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import select
import socket
import struct
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from ..errors import printable
from .owned import Fd

Identity = tuple[int, str, str]
_UCRED = struct.Struct("iII")
_READ_MAX = 1 << 16
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]+\.(?:service|scope|socket|mount|swap)")
_MACHINE = re.compile(r"machine-qemu(?:-\d+)?-(.+)\.scope")
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")
_SO_PEERPIDFD = 77
"""asm-generic/socket.h; Python has no name for it."""
_UNABLE = (errno.ENOPROTOOPT, errno.EOPNOTSUPP)


class VmNameSource(StrEnum):
    """Who says what a VM is called."""

    NOBODY = ""
    """It has no name."""
    UNKNOWN = "unknown"
    """Its process has ended, is not to be seen, or does not let its command line be read in time."""
    PROCESS = "process"
    """Its process itself, on its command line."""
    MACHINE = "machine"
    """systemd-machined: the process is in a scope below machine.slice."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A process as the kernel vouches for it, and what could be read of it; empty where it is not known.

    ``unit`` is a systemd unit, or the path of the cgroup of a process that is in none, which begins with a slash.
    """

    pid: int
    uid: int
    gid: int
    vm_name: str = ""
    unit: str = ""
    program: str = ""
    """Base name of what it runs."""
    label: str = ""
    """What it calls itself, if it attached over D-Bus and said so. Nothing vouches for that, so no rule looks at it."""
    unread: bool = False
    """Whether the process may have a VM name, which was not read: not yet, or not in time, or it has ended."""

    @property
    def vm_name_source(self) -> VmNameSource:
        """Who says that the VM has that name."""
        if not self.vm_name:
            return VmNameSource.UNKNOWN if self.unread else VmNameSource.NOBODY
        return VmNameSource.MACHINE if _machine(self.unit) == self.vm_name else VmNameSource.PROCESS

    def export(self) -> dict[str, Any]:
        """Describe it in values that JSON can hold, for the call ``Credentials(**...)``."""
        return asdict(self)

    @property
    def identity(self) -> Identity:
        """Whose process it is, in a form that is the same after the process was started again.

        That is the uid, the service, and the VM name. A scope, and a service that systemd-run made, are left out: they
        are called something else each time.
        """
        lasting = self.unit.endswith(".service") and not self.unit.startswith(("run-", "/"))
        return self.uid, self.unit if lasting else "", self.vm_name


def credentials(sock: socket.socket) -> Credentials:
    """Tell pid, uid and gid of the process that connected *sock* (or listens, for a client's socket)."""
    return Credentials(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def identify(sock: socket.socket) -> Credentials:
    """Like `credentials`, with what of /proc can be read at once; ``unread`` says whether `said_name` is to be read."""
    known = credentials(sock)
    unknown = replace(known, unread=True)
    if known.pid <= 0:  # a process of another PID namespace, which /proc does not show
        return unknown
    try:
        process = process_of(sock)
    except ProcessLookupError:
        return unknown
    unit, machine = unit_of(_read(f"/proc/{known.pid}/cgroup"))
    program = _program(known.pid)
    if process is not None:
        with process:
            if has_ended(process):
                return unknown
    return Credentials(known.pid, known.uid, known.gid, machine, unit, program, unread=not machine)


def process_of(sock: socket.socket) -> Fd | None:
    """Make a pidfd of the process that connected *sock*; None if the kernel can't (before Linux 6.5).

    Raises:
        ProcessLookupError: it has ended.
    """
    try:
        return Fd(sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD))
    except OSError as error:
        if error.errno in _UNABLE:
            return None
        raise ProcessLookupError(error.errno, error.strerror) from error


def has_ended(process: Fd) -> bool:
    """Say whether the process behind a pidfd has ended; as long as it has not, its PID is nobody else's."""
    poll = select.poll()
    poll.register(process.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def is_dead(pid: int) -> bool:
    """Say whether process *pid* is dead but still there: a thread of it is stuck, or nobody has waited for it."""
    return pid > 0 and _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[:1] in ([b"Z"], [b"X"])


def said_name(pid: int, process: Fd | None) -> str:
    """Read what VM the process *pid* says that it is, on its command line; empty if it says nothing, or has ended.

    *process* is a pidfd of it, if there is one, and is closed here. This may wait for ever: it is for a helper thread.
    """
    name = vm_name_of(_read(f"/proc/{pid}/cmdline").split(b"\0"))
    if process is not None:
        with process:
            return "" if has_ended(process) else name
    return name


def process_name(pid: int) -> str:
    """Give the name of a process as ps(1) shows it (/proc/PID/comm); empty if it is gone."""
    return _printable(_read(f"/proc/{pid}/comm").rstrip(b"\n")) if pid > 0 else ""


def vm_name_of(argv: list[bytes]) -> str:
    """Find the VM name in a QEMU command line: ``-name guest=NAME,...`` or ``-name NAME``."""
    for flag, value in itertools.pairwise(argv):
        if flag in (b"-name", b"--name"):
            parts = value.replace(b",,", b"\0").split(b",")
            named = [part[6:] for part in parts if part.startswith(b"guest=")]
            bare = [part for part in parts[:1] if b"=" not in part]
            for name in named or bare:
                return _printable(name.replace(b"\0", b","))
    return ""


def unit_of(cgroup: bytes) -> tuple[str, str]:
    """Find (unit, machine name) in the text of /proc/PID/cgroup; outside of any unit, the cgroup's path.

    systemd's own hierarchy counts: the unified one, or else the one that is called ``systemd``.
    """
    paths: dict[bytes, bytes] = {}
    for line in cgroup.splitlines():
        number, _, rest = line.partition(b":")
        controllers, _, path = rest.partition(b":")
        if controllers == b"name=systemd" or (number == b"0" and not controllers):
            paths[controllers] = path
    path = paths.get(b"") or b""
    if path in (b"", b"/"):
        path = paths.get(b"name=systemd") or path
    slices = []
    for part in path.split(b"/")[1:]:
        name = _printable(part.removeprefix(b"_"))  # systemd puts one before names that the kernel might take
        if name.endswith(".slice"):
            slices.append(name)
        elif _UNIT.fullmatch(name):
            return name, _machine(name) if slices[:1] == ["machine.slice"] else ""
        else:
            break
    return ("" if path == b"/" else _printable(path)), ""


def _machine(unit: str) -> str:
    """Give the name of the VM whose scope *unit* is; empty if it is none of a VM."""
    found = _MACHINE.fullmatch(_unescape(unit))
    return found[1] if found else ""


def _unescape(name: str) -> str:
    plain = _ESCAPE.sub(lambda m: chr(int(m[1], 16)), name)
    return _printable(plain.encode("latin-1", "replace"))


def _program(pid: int) -> str:
    """Give the base name of what a process runs: of its file, if we may see that, else as the process is called."""
    try:
        return _printable(os.path.basename(os.readlink(f"/proc/{pid}/exe").encode()).removesuffix(b" (deleted)"))
    except OSError:
        return process_name(pid)


def _printable(raw: bytes) -> str:
    return printable(raw.decode(errors="replace")[:255], space="?", other="?")


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, _READ_MAX)
    except OSError:
        return b""
    finally:
        os.close(fd)
