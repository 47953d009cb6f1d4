# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory and rings in one process: the device's side and the driver's, over the same files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from doorbelld.ring.driver import DriverQueue, Layout, layout
from doorbelld.ring.memory import MemoryMap
from doorbelld.ring.queue import VirtQueue

USER = 0x7F00_0000_0000
"""A front-end's address of guest address 0."""
RING_AT = 0x1000
DATA_AT = 0x4_0000
TABLES_AT = 0x8_0000
SIZE = 1 << 20


class Ring(NamedTuple):
    driver: DriverQueue
    queue: VirtQueue
    layout: Layout


class Guest:
    """Memory of one or more regions, each a file of its own, mapped twice."""

    def __init__(self, regions: Sequence[tuple[int, int]] = ((0, SIZE),)) -> None:
        self.fds = [os.memfd_create("guest") for _ in regions]
        for fd, (_, size) in zip(self.fds, regions, strict=True):
            os.ftruncate(fd, size)
        self.table = [(at, size, USER + at, 0, fd) for fd, (at, size) in zip(self.fds, regions, strict=True)]
        self.memory = MemoryMap()
        self.memory.set_table(self.table)
        self.seen_by_driver = MemoryMap()
        self.seen_by_driver.set_table(self.table)
        self.rings: list[Ring] = []

    def ring(
        self,
        num: int = 8,
        features: int = 0,
        *,
        at: int = RING_AT,
        base: int = 0,
        index: int = 0,
        kick: bool = True,
        start: bool = True,
    ) -> Ring:
        """Make both sides of a ring at guest address *at*, with both indexes at *base*."""
        areas = layout(at, num)
        driver = DriverQueue(self.seen_by_driver, num, areas.desc, areas.avail, areas.used, features)
        driver.set_available_index(base)
        driver.set_used_index(base)
        queue = VirtQueue(self.memory, index)
        queue.set_features(features)
        queue.set_num(num)
        queue.set_base(base)
        queue.set_addr(USER + areas.desc, USER + areas.used, USER + areas.avail)
        if kick:
            queue.set_kick(driver.kick_fd)
        queue.set_call(driver.call_fd)
        os.eventfd_read(driver.call_fd)  # a new call descriptor is signalled once
        if start:
            queue.start()
        made = Ring(driver, queue, areas)
        self.rings.append(made)
        return made

    def close(self) -> None:
        """Close the rings and the files; what is mapped goes when nobody refers to it."""
        for ring in self.rings:
            ring.queue.close()
            ring.driver.close()
        self.memory.close()
        self.seen_by_driver.close()
        for fd in self.fds:
            os.close(fd)


@contextmanager
def guest(regions: Sequence[tuple[int, int]] = ((0, SIZE),)) -> Iterator[Guest]:
    """Make a `Guest` for the body."""
    made = Guest(regions)
    yield made
    made.close()
