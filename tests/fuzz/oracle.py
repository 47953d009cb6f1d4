# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a device has to see in guest memory (VIRTIO 1.2, 2.7): plain, slow, and written without a look at ring/.

`Memory` is a file with regions of guest addresses in it. `Oracle` follows a split ring there, as bytes say at that
moment, and keeps what the specification has a device remember. Where a driver breaks several rules with one descriptor,
the oracle does not care which of them it is blamed for.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

NEXT, WRITE, INDIRECT = 1, 2, 4
PIECES_MAX = 4096
LAP = 1 << 16


class Region(NamedTuple):
    """A piece of the file that is guest memory; one that is not mapped holds nothing."""

    guest: int
    size: int
    user: int
    offset: int
    mapped: bool = True


class Memory:
    """The file behind guest memory, as it ought to be."""

    def __init__(self, data: bytes, regions: list[Region]) -> None:
        self.data = bytearray(data)
        self.regions = regions

    def find(self, guest: int, length: int) -> list[tuple[int, int]] | None:
        """Translate to places in the file: (offset, bytes); None if some of it is not there."""
        places = []
        while length:
            for region in self.regions:
                if region.mapped and 0 <= guest - region.guest < region.size:
                    break
            else:
                return None
            skip = guest - region.guest
            step = min(length, region.size - skip)
            places.append((region.offset + skip, step))
            guest += step
            length -= step
        return places

    def find_user(self, user: int, length: int) -> int | None:
        """Translate a front-end's address to a place in the file, if all is in one region."""
        for region in self.regions:
            if region.mapped and user - region.user >= 0 and user - region.user + length <= region.size:
                return region.offset + user - region.user
        return None

    def read(self, places: list[tuple[int, int]]) -> bytes:
        """Return the bytes at *places*."""
        return b"".join(bytes(self.data[at : at + length]) for at, length in places)

    def number(self, at: int) -> int:
        """Return the 16 bits at *at*."""
        return int.from_bytes(self.data[at : at + 2], "little")

    def put(self, at: int, data: bytes) -> None:
        """Write *data* at *at*."""
        self.data[at : at + len(data)] = data


@dataclass
class Walk:
    """A chain, as it was found."""

    head: int
    readable: list[tuple[int, int]] = field(default_factory=list)
    """Places in the file."""
    writable: list[tuple[int, int]] = field(default_factory=list)
    readable_bytes: int = 0
    writable_bytes: int = 0
    seen: int = 0
    """Descriptors, of both kinds of table."""
    faulty: bool = False
    wrong: set[str] = field(default_factory=set)
    """Rules that were broken, each by some words of the reason."""


@dataclass
class Oracle:
    """The device's side of one ring."""

    memory: Memory
    num: int
    desc: int
    avail: int
    used: int
    """Where they are in the file."""
    indirect: bool
    event_idx: bool
    last: int = 0
    """What is popped next, modulo 65536; and so on."""
    seen: int = 0
    used_idx: int = 0
    notification: bool = True

    def available(self) -> set[str] | bool:
        """Tell whether there is something to pop, or which rule is broken."""
        if self.seen == self.last:
            self.seen = self.memory.number(self.avail + 2)
            if (self.seen - self.last) % LAP > self.num:
                return {"further ahead"}
        return self.seen != self.last

    def head(self, at: int) -> int:
        """Return what is in the available ring."""
        return self.memory.number(self.avail + 4 + 2 * (at % self.num))

    def popped(self) -> None:
        """Go on after a pop."""
        self.last = (self.last + 1) % LAP
        if self.notification:
            self.ask_for_kicks()

    def put_back(self, count: int) -> None:
        """Go back."""
        self.last = (self.last - count) % LAP

    def ask_for_kicks(self) -> None:
        """Write the available event."""
        if self.event_idx:
            self.memory.put(self.used + 4 + 8 * self.num, struct.pack("<H", self.last))

    def set_notification(self, wanted: bool) -> None:
        """Write what says whether kicks are wanted."""
        self.notification = wanted
        if not self.event_idx:
            self.memory.put(self.used, struct.pack("<H", not wanted))
        elif wanted:
            self.ask_for_kicks()

    def fill(self, head: int, written: int, index: int) -> None:
        """Write a used entry."""
        place = (self.used_idx + index) % self.num
        self.memory.put(self.used + 4 + 8 * place, struct.pack("<II", head, written))

    def flush(self, count: int) -> None:
        """Publish."""
        self.used_idx = (self.used_idx + count) % LAP
        self.memory.put(self.used + 2, struct.pack("<H", self.used_idx))

    def walk(self, head: int) -> Walk:
        """Follow the chain at *head*, which the ring has."""
        found = Walk(head)
        table: int | None = None  # guest address of an indirect one
        limit, index, seen = self.num, head, 0
        most = max(PIECES_MAX, self.num)
        while not found.wrong:
            if index >= limit:
                found.wrong.add("which its table does not have")
                break
            if seen == limit:
                found.wrong.add("loops")
                break
            seen += 1
            found.seen += 1
            if table is None:
                places: list[tuple[int, int]] | None = [(self.desc + 16 * index, 16)]
            else:
                places = self.memory.find(table + 16 * index, 16)
            if places is None:
                found.faulty = True
                break
            address, length, flags, following = struct.unpack("<QIHH", self.memory.read(places))
            if flags & INDIRECT:
                self._check_indirect(found, table is not None, flags, length)
                if not found.wrong:
                    table, limit, index, seen = address, length // 16, 0, 0
                continue
            if not length:
                found.wrong.add("has no bytes")
            if not flags & WRITE and found.writable_bytes:
                found.wrong.add("follows one for it to write")
            places = self.memory.find(address, length)
            here = found.writable if flags & WRITE else found.readable
            if places is None:
                found.faulty = True
            else:
                here += places
            if flags & WRITE:
                found.writable_bytes += length
            else:
                found.readable_bytes += length
            if found.readable_bytes + found.writable_bytes > 1 << 32:
                found.wrong.add("more than 2^32 bytes")
            if max(seen, len(found.readable) + len(found.writable)) > most:
                found.wrong.add("buffers")
            if not flags & NEXT:
                break
            index = following
        return found

    def _check_indirect(self, found: Walk, nested: bool, flags: int, length: int) -> None:
        if nested:
            found.wrong.add("holds another")
        if not self.indirect:
            found.wrong.add("INDIRECT_DESC was not negotiated")
        if flags & NEXT:
            found.wrong.add("goes on besides")
        if not length or length % 16:
            found.wrong.add("not a multiple of 16")
