# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is at the other end of a UNIX socket.

pid, uid and gid come from the kernel (SO_PEERCRED, taken at connect time) and can be relied upon. The systemd unit
comes from the process's cgroup, which it can't choose by itself. The VM name is what the process calls itself on
its command line (QEMU's ``-name``) unless systemd-machined knows better; whoever may run a QEMU may pick any, so a
rule that trusts a VM name should name a uid or a unit too.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
import struct
from dataclasses import dataclass

Identity = tuple[int, str, str]
_UCRED = struct.Struct("iII")
_READ_MAX = 1 << 16
_MACHINE = re.compile(r"machine-qemu(?:-\d+)?-(.+)\.scope$")
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A process as the kernel vouches for it, and what could be read of it; empty where it is not known.

    ``unit`` is a systemd unit, or the path of the cgroup of a process that is in none.
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

    @property
    def identity(self) -> Identity:
        """Whose process it is, in a form that is the same after the process was started again.

        That is the uid, the service, and the VM name. A scope, and a service that systemd-run made, are left out: they
        are called something else each time.
        """
        lasting = self.unit.endswith(".service") and not self.unit.startswith("run-")
        return self.uid, self.unit if lasting else "", self.vm_name


def credentials(sock: socket.socket) -> Credentials:
    """Tell pid, uid and gid of the process that connected *sock* (or listens, for a client's socket)."""
    return Credentials(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def identify(sock: socket.socket) -> Credentials:
    """Like `credentials`, with VM name and unit looked up in /proc."""
    known = credentials(sock)
    unit, machine = _unit(_read(f"/proc/{known.pid}/cgroup"))
    argv = _read(f"/proc/{known.pid}/cmdline").split(b"\0")
    program = _printable(os.path.basename(argv[0]))
    return Credentials(known.pid, known.uid, known.gid, machine or vm_name_of(argv), unit, program)


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


def _unit(cgroup: bytes) -> tuple[str, str]:
    """Find (unit, machine name) in the text of /proc/PID/cgroup; outside of any unit, the cgroup's path."""
    for line in cgroup.splitlines():
        _, unified, path = line.partition(b"::")
        if not unified:
            continue
        for part in reversed(path.split(b"/")):
            if part.endswith((b".service", b".scope")):
                unit = _printable(part)
                plain = _ESCAPE.sub(lambda m: bytes([int(m[1], 16)]), part)
                machine = _MACHINE.search(_printable(plain))
                return unit, machine[1] if machine else ""
        return _printable(path).lstrip("/"), ""
    return "", ""


def _printable(raw: bytes) -> str:
    return "".join(c if c.isprintable() else "?" for c in raw.decode(errors="replace"))[:255]


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
