# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a region can be told: the keys of ``[region.NAME]`` and of D-Bus's ``CreateRegion``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import Problem
from ..fds.listener import PATH_MAX, group_id, user_id
from ..options import boolean, choice, duration, integer, mode, option, parse, path, size, text
from ..wire.ivshmem import ID_MAX
from .memory import Backing, huge_page_size
from .rules import PeerRule, parse_rules
from .table import RATE_MAX

VECTORS_MAX = 64
"""Vectors of a peer that every client takes (the seed's IVSHMEM_CLIENT_MAX_VECTORS)."""
MSIX_VECTORS_MAX = 2048
SIZE_MIN = 4096
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MAPPED = "guests have the memory mapped"
_HOST_TOLD = "peers were told of the host peer"


@dataclass(frozen=True, slots=True)
class RegionSpec:
    """A region as it was asked for. ``socket`` is empty until the host has filled in its default."""

    name: str
    size: int = option(size, default=4 << 20, frozen=_MAPPED)
    vectors: int = option(integer(1, MSIX_VECTORS_MAX), default=4, frozen="peers were told of so many doorbells")
    many_vectors: bool = option(boolean, default=False)
    socket: str = option(path, default="", frozen="its guests come back to the old path")
    owner: str = option(text, default="")
    group: str = option(text, default="")
    mode: int = option(mode, default=0o660)
    backing: Backing = option(Backing.parse, default=Backing("memfd"), frozen=_MAPPED)
    first_id: int = option(integer(0, ID_MAX), default=0, frozen="IDs were given out from the old one")
    host_peer: bool = option(boolean, default=True, frozen=_HOST_TOLD)
    host_peer_id: int = option(integer(0, ID_MAX), default=ID_MAX, frozen=_HOST_TOLD)
    max_peers: int = option(integer(1, ID_MAX + 1), default=1024)
    max_absent: int = option(integer(0, ID_MAX + 1), default=256)
    clear: str = option(choice("never", "when-empty"), default="never")
    stall_timeout: float = option(duration, default=30.0)
    relay: bool = option(boolean, default=False, frozen="peers hold each other's doorbells, or ours")
    relay_rate: int = option(integer(0, RATE_MAX), default=0)
    relay_poll_us: int = option(integer(0, 1_000_000), default=0)
    peer: tuple[PeerRule, ...] = option(parse_rules, default=())

    def check(self, prefix: str) -> list[Problem]:
        """Look at the values together."""
        problems: list[Problem] = []

        def problem(key: str, cause: str, cure: str) -> None:
            problems.append(Problem(f"{prefix}.{key}" if key else prefix, cause, cure))

        if not NAME.fullmatch(self.name):
            problem("", f"{self.name!r} can't be a region's name", "use letters, digits, _ . -, at most 64")
        if self.size & (self.size - 1):
            up = 1 << self.size.bit_length()
            problem("size", f"{in_units(self.size)} is not a power of two (QEMU needs one)", f"use {in_units(up)}")
        elif self.size < SIZE_MIN:
            problem("size", f"{self.size} bytes is less than a page", f"use {in_units(SIZE_MIN)} or more")
        elif self.backing.kind == "hugetlb" and (not (huge := huge_page_size()) or self.size % huge):
            cure = f"use a multiple of {in_units(huge)}" if huge else "this host has none; use backing memfd"
            problem("size", f"{in_units(self.size)} is no whole number of huge pages", cure)
        if self.vectors > VECTORS_MAX and not self.many_vectors:
            cause = f"{self.vectors} is more than the {VECTORS_MAX} that every client takes"
            problem("vectors", cause, f"use at most {VECTORS_MAX}, or set many-vectors if all of yours take more")
        if len(self.socket.encode()) > PATH_MAX:
            problem(
                "socket", f"{self.socket} is longer than a UNIX socket's path may be", f"use {PATH_MAX} bytes or less"
            )
        if self.host_peer and self.host_peer_id == self.first_id:
            problem(
                "host-peer-id", f"{self.host_peer_id} is the ID that the first client gets", "use another, or first-id"
            )
        if self.host_peer and any(rule.id == self.host_peer_id for rule in self.peer):
            problem("host-peer-id", f"{self.host_peer_id} is given to a peer rule too", "give each its own")
        for key, resolve in (("owner", user_id), ("group", group_id)):
            try:
                resolve(getattr(self, key))
            except KeyError:
                problem(key, f"no {key} {getattr(self, key)!r} on this host", "write a name that is there, or a number")
        if not self.relay:
            cure = "set relay = true, or leave it out"
            if self.relay_rate:
                problem("relay-rate", "limits nothing: without a relay rings do not pass us", cure)
            if self.relay_poll_us:
                problem("relay-poll-us", "waits for nothing: without a relay rings do not pass us", cure)
            if any(rule.rate for rule in self.peer):
                problem("peer.rate", "limits nothing: without a relay rings do not pass us", cure)
        return problems

    def as_options(self) -> dict[str, Any]:
        """Put it in plain values, the form that it is asked for in, less the rules."""
        return {
            "size": self.size,
            "vectors": self.vectors,
            "many-vectors": self.many_vectors,
            "socket": self.socket,
            "owner": self.owner,
            "group": self.group,
            "mode": f"{self.mode:04o}",
            "backing": str(self.backing),
            "first-id": self.first_id,
            "host-peer": self.host_peer,
            "host-peer-id": self.host_peer_id,
            "max-peers": self.max_peers,
            "max-absent": self.max_absent,
            "clear": self.clear,
            "stall-timeout": self.stall_timeout,
            "relay": self.relay,
            "relay-rate": self.relay_rate,
            "relay-poll-us": self.relay_poll_us,
        }

    def raw(self) -> dict[str, Any]:
        """Put it in the form that `parse` reads, rules and all; only the name goes beside it."""
        options = {key: value for key, value in self.as_options().items() if value != ""}
        return {**options, "peer": [rule.raw() for rule in self.peer]}

    @classmethod
    def from_raw(cls, name: str, raw: Mapping[str, Any]) -> RegionSpec:
        """Read what `raw` gave.

        Raises:
            InvalidOptions: it does not hold here and now.
        """
        return parse(cls, raw, f"region.{name}", name=name)


def in_units(count: int) -> str:
    """Write a number of bytes as a person would: 4194304 as 4M, 3145728 as 3M, 5000 as 5000."""
    for unit in ("T", "G", "M", "K"):
        step = 1 << (" KMGT".index(unit) * 10)
        if count >= step and count % step == 0:
            return f"{count // step}{unit}"
    return str(count)
