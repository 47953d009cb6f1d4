# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest
from doorbelld.ring.driver import DriverQueue, layout, measure
from doorbelld.ring.errors import GuestMemoryError, QueueError
from doorbelld.ring.queue import F_EVENT_IDX, F_INDIRECT_DESC
from support.fdcount import no_leaks
from support.rings import DATA_AT, SIZE, TABLES_AT, Guest, guest

TEMPLATE = ([(DATA_AT, 16)], [(DATA_AT + 64, 16)])


@pytest.fixture
def memory() -> Iterator[Guest]:
    with no_leaks(), guest() as made:
        yield made


@pytest.mark.parametrize("num", [1, 2, 8, 256, 32768])
def test_areas_are_aligned_and_do_not_overlap(num: int) -> None:
    found = layout(0x1000, num)
    assert found.desc % 16 == found.avail % 2 == found.used % 4 == 0
    assert found.desc + 16 * num <= found.avail
    assert found.avail + 6 + 2 * num <= found.used
    assert found.used + 6 + 8 * num == found.desc + found.size


def test_a_ring_that_can_not_be_is_refused(memory: Guest) -> None:
    with pytest.raises(ValueError, match="power of two"):
        DriverQueue(memory.memory, 6, 0, 0x100, 0x200)
    with pytest.raises(GuestMemoryError):
        DriverQueue(memory.memory, 8, SIZE, 0x100, 0x200)
    memory.memory.add(SIZE, 0x1000, 0, 0, memory.fds[0])
    with pytest.raises(QueueError, match="not in one piece"):
        DriverQueue(memory.memory, 8, SIZE - 16, 0x100, 0x200)


def test_what_a_chain_looks_like_in_memory(memory: Guest) -> None:
    ring = memory.ring(8, F_INDIRECT_DESC)
    direct = ring.driver.add([(1, 2), (3, 4)], [(5, 6)])
    indirect = ring.driver.add([(1, 2)], [(5, 6)], table=TABLES_AT)
    assert (direct, indirect) == (0, 3)
    assert [struct.unpack("<QIHH", memory.memory.read(0x1000 + 16 * i, 16)) for i in range(4)] == [
        (1, 2, 1, 1),
        (3, 4, 1, 2),
        (5, 6, 2, 3),
        (TABLES_AT, 32, 4, 4),
    ]
    assert [struct.unpack("<QIHH", memory.memory.read(TABLES_AT + 16 * i, 16)) for i in range(2)] == [
        (1, 2, 1, 1),
        (5, 6, 2, 2),
    ]
    assert struct.unpack("<4H", memory.memory.read(ring.layout.avail, 8)) == (0, 2, 0, 3)


def test_descriptors_come_back(memory: Guest) -> None:
    ring = memory.ring(4)
    for _ in range(100):
        ring.driver.add([(DATA_AT, 1)] * 3)
        with pytest.raises(QueueError, match="does not fit into 1 free"):
            ring.driver.add([(DATA_AT, 1)] * 2)
        ring.driver.add([(DATA_AT, 1)])
        assert (ring.driver.free, ring.driver.in_flight) == (0, 2)
        chains = [ring.queue.pop(), ring.queue.pop()]
        for chain in reversed(chains):
            assert chain is not None
            ring.queue.push(chain)
        assert len(ring.driver.reap()) == 2
        assert (ring.driver.free, ring.driver.in_flight) == (4, 0)


@pytest.mark.parametrize("features", [0, F_EVENT_IDX])
def test_kicks_are_given_when_they_are_wanted(memory: Guest, features: int) -> None:
    ring = memory.ring(8, features)
    ring.driver.add([(DATA_AT, 1)])
    assert ring.driver.kick()
    assert os.eventfd_read(ring.driver.kick_fd) == 1
    ring.queue.set_notification(False)
    assert ring.queue.pop() is not None
    ring.driver.add([(DATA_AT, 1)])
    assert not ring.driver.kick()
    assert ring.queue.set_notification(True)
    assert ring.queue.pop() is not None
    ring.driver.add([(DATA_AT, 1)])
    assert ring.driver.should_kick()


def test_a_device_that_gives_back_what_it_does_not_have_is_found_out(memory: Guest) -> None:
    ring = memory.ring(8)
    head = ring.driver.add([(DATA_AT, 1)])
    for wrong in (8, head + 1, 1 << 31):
        memory.memory.write(ring.layout.used, struct.pack("<HHII", 0, 1, wrong, 0))
        with pytest.raises(QueueError, match="no chain that is out"):
            ring.driver.reap()
    with pytest.raises(QueueError, match="what was not out"):
        ring.driver.drive([TEMPLATE], 1, 2, timeout=1)


def test_drive_says_when_nothing_comes_back(memory: Guest) -> None:
    ring = memory.ring(8)
    for spin in (False, True):
        with pytest.raises(QueueError, match=r"0 of 5 requests came back, then nothing in 0\.01 s"):
            ring.driver.drive([TEMPLATE], 5, 2, timeout=0.01, spin=spin)


def test_drive_needs_something_to_drive_with(memory: Guest) -> None:
    ring = memory.ring(8)
    for templates, depth in (([], 1), ([TEMPLATE], 0)):
        with pytest.raises(ValueError, match="nothing to drive with"):
            ring.driver.drive(templates, 1, depth)
    for buffers in ([], [(DATA_AT, 1)] * 65):
        with pytest.raises(ValueError, match="1 to 64"):
            ring.driver.drive([(buffers, [])], 1, 1)


def test_measure_counts_what_it_did(memory: Guest) -> None:
    ring = memory.ring(64)
    assert measure(ring.driver, ring.queue, TEMPLATE, 1000, 16) > 0
    assert ring.queue.counters.requests >= 1000
    ring.queue.stop()
    with pytest.raises(QueueError, match="stopped"):
        measure(ring.driver, ring.queue, TEMPLATE, 1000)
