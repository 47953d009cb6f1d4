# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory for the target ``chains``: a small file, regions of it, and what a driver puts there.

Regions lie in the middle of the file, and not at the boundaries of pages. What is around them is mapped with them, but
is none of the guest's memory: a canary, which the address sanitizer guards too, if it is there.

Guest addresses come from inputs in two bytes: four bits choose a place of interest, twelve are an offset from it.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from doorbelld.ring.memory import MemoryMap

from .oracle import Memory, Region

SIZE = 0x20000
USER = 0x7F00_0000_0000
START = 0x10000
"""Guest address of the first region, but in the last layout."""
PAGE = 4096
TABLES = 4
_END = 1 << 64

_LAYOUTS: tuple[tuple[tuple[int, int, int, bool], ...], ...] = (
    # guest address, size, offset in the file, whether it can be mapped
    ((START, 0x10000, 0x1000, True),),
    ((START, 0x8000, 0x1010, True), (START + 0x8000, 0x8000, 0xA020, True)),
    # borders in the middle of descriptors
    ((START, 0x4008, 0x1010, True), (START + 0x4008, 0x41F5, 0x6010, True), (START + 0x81FD, 0x3003, 0xC005, True)),
    ((START, 0x8000, 0x2000, True), (START + 0x8000, 0x1000, 0, False), (START + 0xA000, 0x4000, 0xB000, True)),
    ((_END - 0x10001, 0x10000, 0x1000, True),),
    tuple((START + 0x2000 * i, 0x2000, 0x1000 + 0x3000 * i, True) for i in range(8)),
)
LAYOUTS = len(_LAYOUTS)


class Image:
    """The file, the map that the device has of it, and what ought to be in it."""

    def __init__(self, layout: int) -> None:
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        self.hollow = os.memfd_create("hollow", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, SIZE)
        os.pwrite(self.fd, _CANARY, 0)
        self._intact = SIZE
        self.map = MemoryMap()
        self._poisoned: list[tuple[int, int]] = []
        self._guests: set[Region] = set()  # all that was ever the guest's
        self.ought = Memory(_CANARY, [])
        self.change(layout)

    def change(self, layout: int) -> None:
        """Go over to another layout."""
        regions = [
            Region(guest, size, USER + offset, offset, mapped)
            for guest, size, offset, mapped in _LAYOUTS[layout % LAYOUTS]
        ]
        self.set(regions)

    def set(self, regions: list[Region]) -> None:
        """Have these regions."""
        self._unpoison()
        self.map.set_table([self.row(region) for region in regions])
        self.ought.regions = regions
        self._guests.update(regions)
        self._poison()

    def row(self, region: Region) -> tuple[int, int, int, int, int]:
        """Describe a region in the way the map takes it."""
        return region.guest, region.size, region.user, region.offset, self.fd if region.mapped else self.hollow

    def add(self, region: Region) -> None:
        """Add one."""
        self.map.add(*self.row(region))
        self.ought.regions = [*self.ought.regions, region]
        self._guests.add(region)

    def remove(self, region: Region) -> None:
        """Remove one."""
        self._unpoison()
        self.map.remove(region.guest, region.size, region.user)
        self.ought.regions = [each for each in self.ought.regions if each is not region]
        self._poison()

    def close(self) -> None:
        """Give everything back."""
        self._unpoison()
        self.map.close()
        os.close(self.fd)
        os.close(self.hollow)

    # What a driver does

    def poke(self, at: int, data: bytes) -> None:
        """Write into the file."""
        os.pwrite(self.fd, data, at)
        self.ought.put(at, data)

    def write(self, guest: int, data: bytes) -> None:
        """Write at a guest address, if there is memory."""
        places = self.ought.find(guest, len(data)) if guest + len(data) < _END else None
        for at, length in places or ():
            self.poke(at, data[:length])
            data = data[length:]

    def truncate(self, size: int) -> None:
        """Take away what is behind *size*; what comes back by writing there is new."""
        os.ftruncate(self.fd, size)
        self._intact = min(self._intact, size)

    def address(self, code: int, ring: tuple[int, int, int]) -> int:
        """Make a guest address out of two bytes; *ring* are the places of the areas in the file."""
        regions = self.ought.regions or [Region(START, PAGE, USER, 0, False)]
        first, last = regions[0], regions[-1]
        second = regions[1] if len(regions) > 1 else first
        desc, avail, used = (first.guest + at - first.offset for at in ring)
        bases = (
            *(first.guest + 0x3000, first.guest + first.size - 0x800, second.guest, last.guest + last.size - 0x800),
            *(desc, avail, used),
            *(self.table(number) for number in range(TABLES)),
            *(0, _END - 0x1000, USER + first.offset, second.guest + second.size - 0x10, first.guest + 0x2000),
        )
        return (bases[code >> 12] + (code & 0xFFF)) % _END

    def table(self, number: int) -> int:
        """Return where an indirect table is: in the first region, over its end, in the last one, over its end."""
        regions = self.ought.regions or [Region(START, PAGE, USER, 0, False)]
        first, last = regions[0], regions[-1]
        return (
            first.guest + 0x2800,
            first.guest + first.size - 0x18,
            last.guest + 0x400,
            last.guest + last.size - 0x24,
        )[number % TABLES]

    # What is to be left alone

    def check(self, exact: bool) -> None:
        """Compare the file with what it ought to be: all of it, or what was never in a region."""
        found = os.pread(self.fd, self._intact, 0)
        ought = self.ought.data
        if not exact:
            ought = bytearray(_CANARY)
            for region in self._guests:
                if region.mapped:
                    end = region.offset + region.size
                    ought[region.offset : end] = found[region.offset : end]
        assert found == ought[: self._intact], _difference(found, ought)

    def _poison(self) -> None:
        if _poison is None:
            return
        there = {region.guest_addr for region in self.map.regions if not region.error}
        for region in self.ought.regions:
            if region.guest in there:
                (view, *_) = self.map.views(region.guest, 1)
                start = ctypes.addressof(ctypes.c_char.from_buffer(view))
                end = start + region.size
                self._poisoned += [(start & -PAGE, start), (end, -(-end // PAGE) * PAGE)]
        for start, end in self._poisoned:
            _poison(start, end - start)

    def _unpoison(self) -> None:
        for start, end in self._poisoned:
            _unpoison(start, end - start)
        self._poisoned.clear()


def _difference(found: bytes, ought: bytes | bytearray) -> str:
    at = next(i for i in range(SIZE) if found[i] != ought[i])
    return (
        f"memory differs from offset {at:#x} on: {found[at : at + 16].hex()}, ought to be {ought[at : at + 16].hex()}"
    )


def _sanitizer(name: str) -> Any:
    try:
        function = getattr(ctypes.CDLL(None), name)
    except AttributeError:
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return function


_CANARY = bytes(0xA5 if at % 2 else 0x5A for at in range(SIZE))
_poison = _sanitizer("__asan_poison_memory_region")
_unpoison = _sanitizer("__asan_unpoison_memory_region")
