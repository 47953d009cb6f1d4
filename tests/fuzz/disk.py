# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The target ``disk``: blk requests of any form, on disks that are served in different ways.

The kind of the first step is a disk: served inline, by threads, by io_uring, read-only, without discarding and in
memory, or direct. Each other step is a request, whose kind is that of the step, with: sector (2 bytes), count (2),
lengths of buffers (2 times 1), flags, odd bytes, and more, if it has any. What the device answers, and what is in the
image in the end, is what a simple disk would do, by VIRTIO 1.2, 5.2.6.

The rings are those of a driver that behaves; what one does that does not is the target ``chains``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from doorbelld.devices.blk_io import RANGE_SECTORS_MAX, SEGMENTS_MAX, uring_permitted
from doorbelld.devices.image import ImageUnavailable
from support.blkdriver import (
    DISCARD,
    FLUSH,
    GET_ID,
    IN,
    IOERR,
    NOTHING,
    OK,
    OUT,
    SECTOR,
    UNMAP,
    UNSUPP,
    WRITE_ZEROES,
    BlkDriver,
)

from .depth import Depth
from .script import Step, parse

SECTORS = 128
SERIAL = b"serial-0"
ID_BYTES = 20
KINDS = 9
_TYPES = (IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES)
_NAMES = ("IN", "OUT", "FLUSH", "GET_ID", "DISCARD", "WRITE_ZEROES")
_STATUS = ("OK", "IOERR", "UNSUPP")
_RAW, _TOGETHER, _TRUNCATE = range(len(_TYPES), KINDS)
_COUNTS = 36
"""Sectors in a request, less one."""
_HUGE = 0x8000
"""A sector with this bit is one that no disk has."""


class _Asked(NamedTuple):
    """A request, decoded from a step."""

    type: int
    sector: int
    out: bytes
    """What follows the header."""
    room: int
    """For data, before the status."""
    cuts: tuple[int, ...]


class DiskRequests:
    """The target."""

    kinds = KINDS

    def __init__(self, depth: Depth) -> None:
        self.depth = depth
        self._folder = Path(tempfile.mkdtemp(prefix="db"))
        self._memory = Path(tempfile.mkdtemp(prefix="db", dir="/dev/shm"))
        self._fresh = b"".join(struct.pack("<I", sector + 1) * (SECTOR // 4) for sector in range(SECTORS))
        deferred = "io_uring" if uring_permitted() else "threads"
        self._disks = [
            self._open("inline", self._folder, inline=True),
            self._open("threads", self._memory, aio="threads"),
            self._open(deferred, self._memory, aio=deferred),
            self._open("read-only", self._memory, inline=True, read_only=True),
            self._open("memory", self._memory, inline=True, discard=False),
        ]
        with contextlib.suppress(ImageUnavailable):  # a file system without direct I/O
            self._disks.append(self._open("direct", self._folder, cache="direct"))

    def _open(self, name: str, folder: Path, *, inline: bool = False, **options: Any) -> _Disk:
        path = folder / name
        path.write_bytes(self._fresh)
        driver = BlkDriver(path, serial=SERIAL.decode(), **options)
        driver.device.disk.inline = inline
        return _Disk(name, path, driver, self._fresh)

    def close(self) -> None:
        """Close all disks."""
        for disk in self._disks:
            disk.driver.close()
        shutil.rmtree(self._folder)
        shutil.rmtree(self._memory)

    def __call__(self, raw: bytes) -> None:
        """Run one input."""
        first, *steps = parse(raw) or [Step(0)]
        disk = self._disks[first.kind % len(self._disks)]
        disk.begin()
        for step in steps:
            disk.do(step, self.depth)
        disk.end()


class _Disk:
    """One disk, and what ought to be on it."""

    def __init__(self, name: str, path: Path, driver: BlkDriver, fresh: bytes) -> None:
        self.name = name
        self.path = path
        self.driver = driver
        self._fresh = fresh
        self._ought = bytearray(fresh)
        self._exact = True
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def begin(self) -> None:
        """Have what was there at first."""
        os.ftruncate(self._file, len(self._fresh))
        os.pwrite(self._file, self._fresh, 0)
        self._ought[:] = self._fresh
        self._exact = True

    def end(self) -> None:
        """Compare the image with what it ought to be."""
        queue = self.driver.rings[0].queue
        assert queue.in_flight == 0 and not queue.broken, queue.broken
        found = os.pread(self._file, len(self._fresh) + 1, 0)
        assert found == self._ought or not self._exact, f"{self.name}: the image is not what it ought to be"
        assert len(found) <= len(self._fresh)

    def do(self, step: Step, depth: Depth) -> None:
        """Make the request of a step, and compare the answer."""
        kind, data = step.kind % KINDS, step.data.ljust(8, b"\0")
        if kind == _TRUNCATE:  # under the device: what it answers then depends on what was where
            self._exact = False
            os.ftruncate(self._file, int.from_bytes(data[:2], "little") % len(self._fresh))
            return
        if kind == _TOGETHER:
            self._together(data)
            return
        if kind == _RAW:
            self._raw(data)
            return
        asked = _decode(_TYPES[kind], data)
        status, read, written = self._expect(asked)
        got = self.driver.request(asked.type, asked.sector, asked.out, asked.room, cuts=asked.cuts)
        depth.note(f"{self.name}: {_NAMES[kind]}: {_STATUS[got.status]}")
        if not self._exact:
            assert got.status in (OK, IOERR, UNSUPP)
            return
        assert (got.status, got.written) == (status, written), f"{self.name}: {asked}: {got.status}, {got.written}"
        assert got.data[: len(read)] == read, f"{self.name}: {asked} read something else"
        if asked.type != IN or status == OK:
            assert got.data[len(read) :].count(NOTHING) == len(got.data) - len(read), "more was written"

    def _expect(self, asked: _Asked) -> tuple[int, bytes, int]:
        """Do it; the status, what is read, and how much is said to be written."""
        failed = int(asked.room == 0)
        start, options = asked.sector * SECTOR, self.driver.device.options
        if asked.type == FLUSH:
            return OK, b"", failed
        if asked.type == GET_ID:
            name = SERIAL.ljust(ID_BYTES, b"\0")[: asked.room]
            return OK, name, len(name) + (len(name) == asked.room)
        if asked.type == IN:
            if asked.room % SECTOR or start + asked.room > len(self._ought):
                return IOERR, b"", failed
            return OK, bytes(self._ought[start : start + asked.room]), asked.room + 1
        if asked.type == OUT:
            if options.read_only or len(asked.out) % SECTOR or start + len(asked.out) > len(self._ought):
                return IOERR, b"", failed
            self._ought[start : start + len(asked.out)] = asked.out
            return OK, b"", failed
        if asked.type == DISCARD and not options.discard:
            return UNSUPP, b"", failed
        return self._expect_clearing(asked, UNMAP if asked.type == WRITE_ZEROES else 0, options.read_only), b"", failed

    def _expect_clearing(self, asked: _Asked, allowed: int, read_only: bool) -> int:
        size = len(asked.out)
        if read_only or not size or size % 16 or size > 16 * SEGMENTS_MAX:
            return IOERR
        ranges = [*struct.iter_unpack("<QII", asked.out)]
        for sector, count, flags in ranges:
            if flags & ~allowed:
                return UNSUPP
            if sector + count > len(self._ought) // SECTOR or count > RANGE_SECTORS_MAX:
                return IOERR
        for sector, count, _ in ranges:
            self._ought[sector * SECTOR : (sector + count) * SECTOR] = bytes(count * SECTOR)
        return OK

    def _together(self, data: bytes) -> None:
        """Read some sectors with as many requests at a time."""
        first, count = data[0] % SECTORS, data[2] % 16 + 1
        sectors = [sector % SECTORS for sector in range(first, first + count)]
        heads = [self.driver.send(IN, sector, room=SECTOR, cuts=_cuts(data)) for sector in sectors]
        answers: dict[int, Any] = {}
        while len(answers) < count:
            answers |= self.driver.take(1)
        for head, sector in zip(heads, sectors, strict=True):
            if self._exact:
                assert answers[head].data == self._ought[sector * SECTOR : (sector + 1) * SECTOR]

    def _raw(self, data: bytes) -> None:
        """Ask with any header, or half of one, and room or none; what an unknown type brings is checked."""
        room, status, whole = int.from_bytes(data[2:4], "little") % 2048, not data[6] & 1, data[8:]
        if not whole and not room and not status:
            return
        known = len(whole) >= 16 and int.from_bytes(whole[:4], "little") in _TYPES
        self._exact = self._exact and not known
        got = self.driver.request(0, raw=whole, room=room, status=status, cuts=_cuts(data))
        if not status and not room:
            assert got.written == 0
            return
        assert got.written <= room + status
        assert known or got.status == (UNSUPP if len(whole) >= 16 else IOERR)


def _cuts(data: bytes) -> tuple[int, ...]:
    return tuple(cut + 1 for cut in data[4:6] if cut)


def _decode(kind: int, data: bytes) -> _Asked:
    """Read the data of a step."""
    sector, count = struct.unpack_from("<HH", data)
    sector = (sector << 48) + sector if sector & _HUGE else sector % (SECTORS + 8)
    odd = data[7] if data[6] & 0x80 else 0
    out, room = b"", 0
    if kind == IN:
        room = count % _COUNTS * SECTOR + odd
    elif kind == OUT:
        length = count % _COUNTS * SECTOR + odd
        out = (data[8:] or b"\xa7").ljust(SECTOR, data[:1]) * (length // SECTOR + 1)
        out = out[:length]
        room = data[6] & 3  # for nothing
    elif kind == GET_ID:
        room = count % 64
    elif kind in (DISCARD, WRITE_ZEROES):
        ranges = [struct.pack("<QII", sector, count % (SECTORS + 2), data[6] & 3)]
        ranges += [
            struct.pack("<QII", data[at] % SECTORS, data[at + 1] % 16, data[at + 2] & 1 if data[at + 2] < 0xF0 else 2)
            for at in range(8, len(data) - 2, 3)
        ]
        out = b"".join(ranges) + bytes(odd)
    return _Asked(kind, sector, out, room, _cuts(data))
