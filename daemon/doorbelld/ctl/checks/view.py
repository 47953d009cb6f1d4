# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The system as checks see it, and what they find.

A check reads files below `View.root` only, and what was asked of the daemon and of systemd before; so a test can stage
any system in a directory.
"""

from __future__ import annotations

import enum
import errno
import os
import re
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HIDING = {"PrivateTmp": ("/tmp/", "/var/tmp/"), "ProtectHome": ("/home/", "/root/", "/run/user/")}
"""Directories by the setting of a unit that gives it others in their place."""


class Level(enum.StrEnum):
    """How bad it is: `WRONG` does not work, `HINT` may be in the way of somebody, `SKIPPED` has nothing to look at."""

    OK = "ok"
    HINT = "hint"
    WRONG = "wrong"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and the cure if it is not fine."""

    level: Level
    found: str
    cure: str = ""


def fine(found: str) -> Finding:
    """All is well."""
    return Finding(Level.OK, found)


def hint(found: str, cure: str) -> Finding:
    """It may be in somebody's way."""
    return Finding(Level.HINT, found, cure)


def wrong(found: str, cure: str) -> Finding:
    """It does not work so."""
    return Finding(Level.WRONG, found, cure)


def skipped(found: str) -> Finding:
    """There is nothing to look at here."""
    return Finding(Level.SKIPPED, found)


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who opens files: name, uid, all groups, and the name of the first of them."""

    name: str
    uid: int
    groups: frozenset[int]
    group: str = ""


@dataclass(slots=True)
class View:
    """The system below *root*, and what the daemon and systemd say of themselves."""

    root: Path = Path("/")
    known: dict[str, Any] | None = None
    """What the daemon describes; None if it was not reached, for the reason in ``trouble``."""
    trouble: str = ""
    cure: str = ""
    address: str = ""
    on_system_bus: bool = True
    pid: int = 0
    library: str = ""
    own_library: str = ""
    own_version: str = ""
    disks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The disks of the configuration that the daemon reads, with their keys as they stand there."""
    unit: Mapping[str, str] = field(default_factory=dict)
    """Properties of the unit, as systemctl names them; empty where there is none."""
    me: User = field(default_factory=lambda: User("root", 0, frozenset((0,))))

    @property
    def regions(self) -> dict[str, dict[str, Any]]:
        """The daemon's regions by name."""
        return dict(self.known["regions"]) if self.known else {}

    @property
    def devices(self) -> dict[str, dict[str, Any]]:
        """The daemon's devices by name."""
        return dict(self.known["devices"]) if self.known else {}

    @property
    def clients(self) -> dict[str, dict[str, Any]]:
        """The daemon's clients by name."""
        return dict(self.known.get("clients", {})) if self.known else {}

    @property
    def flats(self) -> dict[str, dict[str, Any]]:
        """The daemon's flat devices by name."""
        return dict(self.known.get("flats", {})) if self.known else {}

    @property
    def daemon_user(self) -> User:
        """Whom the daemon runs as: the unit's user, or that of its process; root if neither can be seen."""
        uid, name = 0, self.unit.get("User") or "root"
        if not self.unit and self.pid:
            try:
                uid = self.place(f"/proc/{self.pid}").stat().st_uid
            except OSError:
                uid = 0
            name = self.user_name(uid)
        found = self.user(name) or User(name, uid, frozenset())
        groups = re.search(r"^Groups:(.*)$", self.read(f"/proc/{self.pid}/status"), re.M)  # more than passwd knows
        more = frozenset(map(int, groups[1].split())) if groups else frozenset()
        return User(found.name, found.uid, found.groups | more, found.group)

    @property
    def of_unit(self) -> bool:
        """Whether the daemon that answers is the unit's."""
        return bool(self.pid) and self.unit.get("MainPID") == str(self.pid)

    def place(self, path: str) -> Path:
        """Tell where *path*, an absolute one, lies below the root."""
        return self.root / path.lstrip("/")

    def read(self, path: str) -> str:
        """Read a file; empty if it can't be read."""
        try:
            return self.place(path).read_text(errors="replace")
        except OSError:
            return ""

    def first_of(self, *paths: str) -> str:
        """Give the first of *paths* that is there; empty if none is."""
        return next((path for path in paths if self.place(path).exists()), "")

    def user(self, name: str) -> User | None:
        """Look up a user by name in passwd and group; None if there is none."""
        for entry in self._table("/etc/passwd", 4):
            if entry[0] == name:
                members = {int(group[2]) for group in self._table("/etc/group", 4) if name in group[3].split(",")}
                return User(name, int(entry[2]), frozenset({int(entry[3]), *members}), self.group_name(int(entry[3])))
        return None

    def user_name(self, uid: int) -> str:
        """Name a user; its number if it has no name."""
        return next((entry[0] for entry in self._table("/etc/passwd", 3) if int(entry[2]) == uid), str(uid))

    def group_name(self, gid: int) -> str:
        """Name a group; its number if it has no name."""
        return next((entry[0] for entry in self._table("/etc/group", 3) if int(entry[2]) == gid), str(gid))

    def _table(self, path: str, least: int) -> Iterator[list[str]]:
        for line in self.read(path).splitlines():
            entry = line.split(":")
            if len(entry) >= least and entry[2].isdecimal():
                yield entry

    def real(self, path: str) -> str:
        """Follow the links in *path*."""
        found = os.path.realpath(self.place(path))
        return "/" + os.path.relpath(found, os.path.realpath(self.root)) if str(self.root) != "/" else found

    def acl(self, path: str) -> bytes | None:
        """Give a file's access control list as the kernel keeps it; None if it has none."""
        return self._attribute(path, "system.posix_acl_access")

    def label(self, path: str) -> str:
        """Give a file's SELinux context; empty if it has none."""
        return (self._attribute(path, "security.selinux") or b"").rstrip(b"\0").decode(errors="replace")

    def _attribute(self, path: str, name: str) -> bytes | None:
        try:
            return os.getxattr(self.place(path), name)
        except OSError:
            return None

    def served(self, path: str) -> bool | None:
        """Tell whether somebody listens on a UNIX stream socket, without connecting; None if that can't be told.

        A datagram socket can't connect to a stream socket: EPROTOTYPE if somebody holds that, ECONNREFUSED if nobody.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            try:
                refused = probe.connect_ex(str(self.place(path)))
            except OSError:  # a path that is too long
                return None
        return {0: True, errno.EPROTOTYPE: True, errno.ECONNREFUSED: False}.get(refused)

    def processes(self) -> Iterator[tuple[int, list[str]]]:
        """Give all processes that can be seen, with their command lines."""
        for place in self.place("/proc").glob("[0-9]*/cmdline"):
            try:
                words = place.read_bytes().decode(errors="replace").split("\0")[:-1]
            except OSError:
                continue
            if words:
                yield int(place.parent.name), words


_ACL_HEADER = struct.Struct("<I")
_ACL_ENTRY = struct.Struct("<HHI")


class _Tag(enum.IntEnum):
    """Whom an entry of an access control list is about (linux/posix_acl_xattr.h)."""

    USER_OBJ = 0x01
    USER = 0x02
    GROUP_OBJ = 0x04
    GROUP = 0x08
    MASK = 0x10
    OTHER = 0x20


def allowed(user: User, status: os.stat_result, acl: bytes | None, want: int) -> bool:
    """Tell whether *user* gets the permission *want* (1 pass, 2 write, 4 read), as acl(5) decides it."""
    if user.uid == 0:
        return True
    if user.uid == status.st_uid:
        return bool(status.st_mode >> 6 & want)
    if acl is None:
        shift = 3 if status.st_gid in user.groups else 0
        return bool(status.st_mode >> shift & want)
    entries = list(_ACL_ENTRY.iter_unpack(acl[_ACL_HEADER.size :]))
    mask = next((bits for tag, bits, _ in entries if tag == _Tag.MASK), 0o7)
    for tag, bits, who in entries:
        if tag == _Tag.USER and who == user.uid:
            return bool(bits & mask & want)
    mine = [
        bits
        for tag, bits, who in entries
        if (tag == _Tag.GROUP_OBJ and status.st_gid in user.groups) or (tag == _Tag.GROUP and who in user.groups)
    ]
    if mine:
        return any(bits & mask & want for bits in mine)
    return bool(status.st_mode & want)


def hidden(unit: Mapping[str, str]) -> tuple[str, ...]:
    """List the directories of the host that the settings of *unit* hide from it."""
    return tuple(place for key, places in _HIDING.items() if unit.get(key) == "yes" for place in places)
