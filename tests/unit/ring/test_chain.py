# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from collections.abc import Iterator

import pytest
from doorbelld.ring.chain import Chain
from doorbelld.ring.errors import StaleChain
from support.fdcount import no_leaks
from support.rings import DATA_AT, SIZE, Guest, Ring, guest

EDGE = 0x80000


@pytest.fixture
def memory() -> Iterator[Guest]:
    with no_leaks(), guest(((0, EDGE), (EDGE, SIZE - EDGE))) as made:
        yield made


@pytest.fixture
def ring(memory: Guest) -> Ring:
    return memory.ring(8)


def pop(ring: Ring) -> Chain:
    chain = ring.queue.pop()
    assert chain is not None
    return chain


def test_buffers_are_seen_without_copying(memory: Guest, ring: Ring) -> None:
    head = ring.driver.add([(DATA_AT, 4), (DATA_AT + 8, 2)], [(DATA_AT + 16, 3)])
    chain = pop(ring)
    assert (chain.head, chain.queue) == (head, ring.queue)
    memory.seen_by_driver.write(DATA_AT, b"late")
    assert bytes(chain.readable[0]) == b"late"
    assert [len(view) for view in chain.readable] == [4, 2]
    assert all(view.readonly for view in chain.readable)
    chain.writable[0][:] = b"abc"
    assert memory.seen_by_driver.read(DATA_AT + 16, 3) == b"abc"


def test_a_buffer_that_crosses_regions_comes_in_pieces(memory: Guest, ring: Ring) -> None:
    ring.driver.add([(EDGE - 3, 8)], [(EDGE - 1, 2)])
    memory.seen_by_driver.write(EDGE - 3, b"abcdefgh")
    chain = pop(ring)
    assert [bytes(view) for view in chain.readable] == [b"abc", b"defgh"]
    assert [len(view) for view in chain.writable] == [1, 1]
    assert (chain.readable_bytes, chain.writable_bytes) == (8, 2)
    assert chain.read() == b"abcdefgh"
    assert chain.write(b"XY") == 2
    assert memory.seen_by_driver.read(EDGE - 1, 2) == b"XY"


def test_read_and_write_go_on_where_they_were(memory: Guest, ring: Ring) -> None:
    ring.driver.add([(DATA_AT, 3), (DATA_AT + 3, 4)], [(DATA_AT + 16, 2), (DATA_AT + 32, 3)])
    memory.seen_by_driver.write(DATA_AT, b"abcdefg")
    chain = pop(ring)
    assert [chain.read(2), chain.read(2), chain.read(0), chain.read(99), chain.read(1)] == [
        b"ab",
        b"cd",
        b"",
        b"efg",
        b"",
    ]
    assert [chain.write(b"1"), chain.write(b""), chain.write(b"234"), chain.write(b"567"), chain.write(b"8")] == [
        1,
        0,
        3,
        1,
        0,
    ]
    assert chain.written == 5
    assert memory.seen_by_driver.read(DATA_AT + 16, 2) + memory.seen_by_driver.read(DATA_AT + 32, 3) == b"12345"
    ring.queue.push(chain)
    assert ring.driver.reap() == [(chain.head, 5)]


def test_what_is_said_to_be_written_fits(ring: Ring) -> None:
    ring.driver.add([(DATA_AT, 3)], [(DATA_AT, 3)])
    chain = pop(ring)
    for count in (-1, 4, 1 << 40):
        with pytest.raises(ValueError, match="can't have been written"):
            ring.queue.push(chain, count)
    ring.queue.push(chain, 3)


def test_a_chain_ends_when_it_is_pushed(ring: Ring) -> None:
    ring.driver.add([(DATA_AT, 3)], [(DATA_AT, 3)])
    chain = pop(ring)
    (readable,), (writable,) = chain.readable, chain.writable
    ring.queue.push(chain)
    for use in (chain.read, lambda: chain.write(b"x"), lambda: chain.readable, lambda: ring.queue.push(chain)):
        with pytest.raises(StaleChain):
            use()
    for view in (readable, writable):
        with pytest.raises(ValueError, match="released"):
            view[0]


def test_a_chain_ends_when_the_queue_stops(ring: Ring) -> None:
    ring.driver.add([(DATA_AT, 3)])
    chain = pop(ring)
    ring.queue.stop()
    with pytest.raises(StaleChain):
        chain.read()
    ring.queue.start()
    with pytest.raises(StaleChain):
        ring.queue.push(chain)


def test_buffers_may_overlap(memory: Guest, ring: Ring) -> None:
    """A device that copies one to the other without a copy between must be right about it, whatever a driver does."""
    memory.memory.write(DATA_AT, bytes(range(200)))
    ring.driver.add([(DATA_AT, 100)], [(DATA_AT + 10, 100)])
    chain = pop(ring)
    assert chain.write(chain.readable[0]) == 100
    assert memory.memory.read(DATA_AT, 120) == bytes([*range(10), *range(100), *range(110, 120)])


def test_a_chain_of_another_queue_is_refused(memory: Guest, ring: Ring) -> None:
    other = memory.ring(8, at=0x8000)
    other.driver.add([(DATA_AT, 3)])
    chain = pop(other)
    with pytest.raises(StaleChain):
        ring.queue.push(chain)
    other.queue.push(chain)


def test_after_a_change_of_memory_a_chain_can_only_be_pushed(memory: Guest, ring: Ring) -> None:
    ring.driver.add([(DATA_AT, 3)], [(DATA_AT, 3)])
    chain = pop(ring)
    (view,) = chain.writable
    memory.memory.set_table(memory.table)
    with pytest.raises(StaleChain, match="guest memory changed"):
        chain.read()
    with pytest.raises(StaleChain, match="guest memory changed"):
        chain.write(b"x")
    view[:] = b"old"  # the old mapping is still there
    ring.queue.push(chain)
    assert ring.driver.reap() == [(chain.head, 0)]


def test_a_view_that_somebody_keeps_does_no_harm(memory: Guest, ring: Ring) -> None:
    ring.driver.add([(DATA_AT, 3)])
    chain = pop(ring)
    kept = chain.readable[0][1:]
    held = memoryview(chain.readable[0])
    ring.queue.push(chain)
    memory.memory.close()
    assert (bytes(kept), bytes(held)) == (bytes(2), bytes(3))
