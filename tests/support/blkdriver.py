# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A driver for blk, in the process of the device: requests in whatever buffers a test likes."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from doorbelld.devices.blk import Blk, BlkOptions
from doorbelld.ring.queue import F_EVENT_IDX, F_INDIRECT_DESC, VirtQueue
from doorbelld.ring.worker import Worker

from .rings import Guest, Ring

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
UNMAP = 1
SECTOR = 512
NOTHING = 0xEE
"""What the status byte is before the device writes it."""

PATIENCE = 20.0
MEMORY = 16 << 20
_RINGS_AT = 0x1000
_RING_SPACE = 0x4000
_TABLES_AT = 0x2_0000
_TABLE_SPACE = 0x1_0000
_PIECES = 2000
"""At most, of each kind: a table has room for twice as many."""
_TABLES = 32
"""Requests in flight that can have one."""
_BUFFERS_AT = 0x40_0000
_GAP = 24
"""Between buffers, so that none continues the one before, and few are aligned."""


class Answer(NamedTuple):
    status: int
    data: bytes
    written: int
    """What the used ring says."""


class _Sent(NamedTuple):
    status: int
    """Guest address."""
    room: list[tuple[int, int]]


class BlkDriver:
    """A device with its worker, and queues to it."""

    def __init__(
        self,
        path: Path,
        *,
        queues: int = 1,
        workers: int = 1,
        num: int = 64,
        ring_features: int = F_INDIRECT_DESC | F_EVENT_IDX,
        **options: Any,
    ) -> None:
        self.device = Blk(BlkOptions(str(path), **options), queues=queues)
        self.device.ack(self.device.features)
        self.guest = Guest([(0, MEMORY)])
        self.workers = [Worker(f"blk/{number}") for number in range(workers)]
        self.rings: list[Ring] = []
        self._next = _BUFFERS_AT
        self._turn = 0
        self._sent: list[dict[int, _Sent]] = []
        for index in range(queues):
            ring = self.guest.ring(num, ring_features, at=_RINGS_AT + index * _RING_SPACE, index=index)
            self.rings.append(ring)
            self._sent.append({})
            self.attach(index)

    def attach(self, index: int) -> None:
        worker = self.workers[index % len(self.workers)]
        worker.quiesce()
        self.device.attach(worker, self.rings[index].queue)
        worker.resume()

    def detach(self, index: int) -> None:
        worker = self.workers[index % len(self.workers)]
        worker.quiesce()
        self.device.detach(worker, self.rings[index].queue)
        worker.resume()

    def close(self) -> None:
        for index in range(len(self.rings)):
            self.detach(index)
        for worker in self.workers:
            worker.stop()
        self.device.close()
        self.rings.clear()
        self.guest.close()

    def spread(self, length: int, cuts: Sequence[int] = (), align: int = 1) -> list[tuple[int, int]]:
        """Find room for *length* bytes, in buffers as long as *cuts* say by turns; one buffer without."""
        pieces = []
        turn = 0
        least = length // _PIECES + 1
        while length:
            size = min(length, max(least, cuts[turn % len(cuts)])) if cuts else length
            turn += 1
            if self._next + size + _GAP + align > MEMORY:
                self._next = _BUFFERS_AT
            self._next = -(-self._next // align) * align
            pieces.append((self._next, size))
            self._next += size + (_GAP if align == 1 else 0)
            length -= size
        return pieces

    def put(self, pieces: Sequence[tuple[int, int]], data: bytes) -> None:
        for at, size in pieces:
            self.guest.memory.write(at, data[:size])
            data = data[size:]

    def send(
        self,
        kind: int,
        sector: int = 0,
        out: bytes = b"",
        room: int = 0,
        *,
        cuts: Sequence[int] = (),
        queue: int = 0,
        raw: bytes | None = None,
        status: bool = True,
        readable: Sequence[tuple[int, int]] | None = None,
        align: int = 1,
    ) -> int:
        """Make a request available and kick; its head."""
        whole = struct.pack("<IIQ", kind, 0, sector & (1 << 64) - 1) + out if raw is None else raw
        if align > 1:
            inward = self.spread(16) + self.spread(len(whole) - 16, cuts, align)
            outward = self.spread(room, cuts, align) + self.spread(status)
        else:
            inward, outward = self.spread(len(whole), cuts), self.spread(room + status, cuts)
        self.put(inward, whole)
        self.put(outward, bytes([NOTHING]) * (room + status))
        driver = self.rings[queue].driver
        table = None
        if len(inward) + len(outward) > 1:
            table = _TABLES_AT + self._turn % _TABLES * _TABLE_SPACE
            self._turn += 1
        head = driver.add([*inward, *(readable or ())], outward, table=table)
        self._sent[queue][head] = _Sent(outward[-1][0] + outward[-1][1] - 1 if outward else 0, outward)
        driver.kick()
        return head

    def take(self, count: int, queue: int = 0) -> dict[int, Answer]:
        """Wait until *count* requests are done; their answers by head."""
        driver = self.rings[queue].driver
        done: dict[int, Answer] = {}
        while True:
            for head, written in driver.reap():
                sent = self._sent[queue].pop(head)
                data = b"".join(self.guest.memory.read(at, size) for at, size in sent.room)
                done[head] = Answer(data[-1] if data else NOTHING, data[:-1], written)
            if len(done) >= count:
                return done
            if driver.set_calls(True):
                continue
            wait_for(driver.call_fd, self.rings[queue].queue)

    def request(self, kind: int, sector: int = 0, out: bytes = b"", room: int = 0, **how: Any) -> Answer:
        """Make one request and wait for it."""
        head = self.send(kind, sector, out, room, **how)
        return self.take(1, how.get("queue", 0))[head]

    def read(self, sector: int, count: int, **how: Any) -> bytes:
        answer = self.request(IN, sector, room=count * SECTOR, **how)
        assert answer.status == OK and answer.written == count * SECTOR + 1
        return answer.data

    def write(self, sector: int, data: bytes, **how: Any) -> None:
        assert self.request(OUT, sector, data, **how) == (OK, b"", 1)

    def clear(self, kind: int, *ranges: tuple[int, int, int], **how: Any) -> int:
        """Discard or zero ranges: (sector, sectors, flags); the status."""
        return self.request(kind, 0, b"".join(struct.pack("<QII", *one) for one in ranges), **how).status


def wait_for(fd: int, queue: VirtQueue) -> None:
    """Wait for an eventfd, which the device of *queue* signals, and take it."""
    ready, _, _ = select.select([fd], [], [], PATIENCE)
    assert ready, f"the device did not answer; {queue.in_flight} in flight; {queue.broken}"
    os.eventfd_read(fd)


def until(true: Callable[[], object], what: str) -> None:
    """Wait until something is the case that nobody announces."""
    poll = select.poll()
    for _ in range(int(PATIENCE * 1000)):
        if true():
            return
        poll.poll(1)
    raise AssertionError(f"{what}: not within {PATIENCE:g} s")


@contextmanager
def blk_driver(path: Path, **how: Any) -> Iterator[BlkDriver]:
    made = BlkDriver(path, **how)
    try:
        yield made
    finally:
        made.close()
