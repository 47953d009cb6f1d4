# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a hostile driver can do to a ring: it breaks that ring, with the reason, and nothing else."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from doorbelld.ring.driver import DESC_INDIRECT, DESC_NEXT, DESC_WRITE
from doorbelld.ring.echo import Echo
from doorbelld.ring.errors import QueueBroken
from doorbelld.ring.queue import F_EVENT_IDX, F_INDIRECT_DESC
from doorbelld.ring.worker import Worker
from support.fdcount import no_leaks
from support.rings import DATA_AT, SIZE, TABLES_AT, USER, Guest, Ring, guest

NUM = 8
OUTSIDE = SIZE + 0x1000


@pytest.fixture
def memory() -> Iterator[Guest]:
    with no_leaks(), guest() as made:
        yield made


@pytest.fixture
def ring(memory: Guest) -> Ring:
    return memory.ring(NUM, F_INDIRECT_DESC)


def offer(ring: Ring, head: int = 0) -> None:
    """Make the chain at *head* available, as the first one."""
    ring.driver.put_available(0, head)
    ring.driver.set_available_index(1)


def indirect(ring: Ring, count: int, *, size: int | None = None, flags: int = 0) -> None:
    ring.driver.put_descriptor(0, TABLES_AT, 16 * count if size is None else size, DESC_INDIRECT | flags)
    offer(ring)


def head_outside(ring: Ring) -> None:
    offer(ring, NUM)


def next_outside(ring: Ring) -> None:
    ring.driver.put_descriptor(0, DATA_AT, 1, DESC_NEXT, NUM)
    offer(ring)


def next_outside_of_the_indirect_table(ring: Ring) -> None:
    ring.driver.put_descriptor(0, DATA_AT, 1, DESC_NEXT, 2, table=TABLES_AT)
    indirect(ring, 2)


def loop(ring: Ring) -> None:
    for i in range(NUM):
        ring.driver.put_descriptor(i, DATA_AT, 1, DESC_NEXT, (i + 1) % NUM)
    offer(ring)


def loop_of_one(ring: Ring) -> None:
    ring.driver.put_descriptor(0, DATA_AT, 1, DESC_NEXT, 0)
    offer(ring)


def loop_in_the_indirect_table(ring: Ring) -> None:
    for i in range(3):
        ring.driver.put_descriptor(i, DATA_AT, 1, DESC_NEXT, (i + 1) % 3, table=TABLES_AT)
    indirect(ring, 3)


def indirect_in_indirect(ring: Ring) -> None:
    ring.driver.put_descriptor(0, TABLES_AT, 16, DESC_INDIRECT, table=TABLES_AT)
    indirect(ring, 1)


def indirect_that_goes_on(ring: Ring) -> None:
    indirect(ring, 1, flags=DESC_NEXT)


def indirect_empty(ring: Ring) -> None:
    indirect(ring, 0)


def indirect_of_half_a_descriptor(ring: Ring) -> None:
    indirect(ring, 1, size=24)


def readable_after_writable(ring: Ring) -> None:
    ring.driver.put_descriptor(0, DATA_AT, 1, DESC_WRITE | DESC_NEXT, 1)
    ring.driver.put_descriptor(1, DATA_AT, 1)
    offer(ring)


def readable_after_writable_that_is_not_there(ring: Ring) -> None:
    ring.driver.put_descriptor(0, OUTSIDE, 1, DESC_WRITE | DESC_NEXT, 1)
    ring.driver.put_descriptor(1, DATA_AT, 1)
    offer(ring)


def zero_length(ring: Ring) -> None:
    ring.driver.put_descriptor(0, DATA_AT, 0)
    offer(ring)


def too_long(ring: Ring) -> None:
    ring.driver.put_descriptor(0, DATA_AT, 0xFFFFFFFF, DESC_NEXT, 1)
    ring.driver.put_descriptor(1, DATA_AT, 2)
    offer(ring)


def too_many_buffers(ring: Ring) -> None:
    for i in range(4097):
        ring.driver.put_descriptor(i, DATA_AT, 1, DESC_NEXT, i + 1, table=TABLES_AT)
    indirect(ring, 4098)


def too_many_buffers_that_are_not_there(ring: Ring) -> None:
    for i in range(4097):
        ring.driver.put_descriptor(i, OUTSIDE, 1, DESC_NEXT, i + 1, table=TABLES_AT)
    indirect(ring, 4098)


def available_index_too_far_ahead(ring: Ring) -> None:
    ring.driver.put_descriptor(0, DATA_AT, 1)
    ring.driver.set_available_index(NUM + 1)


def available_index_goes_back(ring: Ring) -> None:
    ring.driver.set_available_index(0xFFFF)


def head_in_flight(ring: Ring) -> None:
    ring.driver.put_descriptor(0, DATA_AT, 1)
    ring.driver.put_available(0, 0)
    ring.driver.put_available(1, 0)
    ring.driver.set_available_index(2)
    assert ring.queue.pop() is not None


HOSTILE: dict[Callable[[Ring], None], str] = {
    head_outside: "descriptor 8 was made available, which the ring does not have",
    next_outside: "goes on at descriptor 8, which its table does not have",
    next_outside_of_the_indirect_table: "goes on at descriptor 2, which its table does not have",
    loop: "the chain at descriptor 0 loops",
    loop_of_one: "the chain at descriptor 0 loops",
    loop_in_the_indirect_table: "the chain at descriptor 0 loops",
    indirect_in_indirect: "an indirect table holds another",
    indirect_that_goes_on: "refers to an indirect table and goes on besides",
    indirect_empty: "an indirect table has 0 bytes",
    indirect_of_half_a_descriptor: "an indirect table has 24 bytes",
    readable_after_writable: r"a buffer for the device to read \(descriptor 1\) follows one for it to write",
    readable_after_writable_that_is_not_there: "follows one for it to write",
    zero_length: "the buffer of descriptor 0 has no bytes",
    too_long: r"more than 2\^32 bytes",
    too_many_buffers: "more than 4096 buffers",
    too_many_buffers_that_are_not_there: "more than 4096 buffers",
    available_index_too_far_ahead: "the available index went to 9",
    available_index_goes_back: "the available index went to 65535",
    head_in_flight: "descriptor 0 was made available again while it was in flight",
}


@pytest.mark.parametrize("attack", HOSTILE, ids=lambda attack: attack.__name__)
def test_it_breaks_the_ring_with_the_reason_and_nothing_else(
    memory: Guest, ring: Ring, attack: Callable[[Ring], None]
) -> None:
    other = memory.ring(NUM, at=0x8000)
    attack(ring)
    before = memory.memory.read(0, DATA_AT)
    with pytest.raises(QueueBroken, match=HOSTILE[attack]):
        ring.queue.pop()
    assert ring.queue.broken != ""
    assert ring.queue.counters.errors == 1
    with pytest.raises(QueueBroken):  # and so it stays
        ring.queue.pop()
    assert not ring.queue.notify()
    assert not ring.queue.set_notification(True)
    assert ring.queue.empty()
    assert memory.memory.read(0, DATA_AT) == before
    other.driver.add([(DATA_AT, 4)])
    assert other.queue.pop() is not None


@pytest.mark.parametrize("attack", [a for a in HOSTILE if a is not head_in_flight], ids=lambda attack: attack.__name__)
def test_counting_bytes_finds_the_same(ring: Ring, attack: Callable[[Ring], None]) -> None:
    attack(ring)
    with pytest.raises(QueueBroken, match=HOSTILE[attack]):
        ring.queue.avail_bytes()


def test_a_chain_may_have_as_many_bytes_as_32_bits_can_not_count() -> None:
    """The used ring says how many were written in 32 bits, though."""
    with guest(((0, 1 << 20), (1 << 32, 1 << 33))) as made:
        ring = made.ring(NUM)
        ring.driver.add([], [(1 << 32, 0xFFFFFFFF), ((1 << 32) + 0xFFFFFFFF, 1)])
        chain = ring.queue.pop()
        assert chain is not None and chain.writable_bytes == 1 << 32
        with pytest.raises(ValueError, match="can't have been written"):
            ring.queue.push(chain, 1 << 32)
        ring.queue.push(chain, 0xFFFFFFFF)
        assert ring.driver.reap() == [(chain.head, 0xFFFFFFFF)]


def test_indirect_without_the_feature_is_refused(memory: Guest) -> None:
    ring = memory.ring(NUM)
    ring.driver.put_descriptor(0, DATA_AT, 1, table=TABLES_AT)
    indirect(ring, 1)
    with pytest.raises(QueueBroken, match="VIRTIO_F_INDIRECT_DESC was not negotiated"):
        ring.queue.pop()


def test_a_ring_that_broke_works_again_when_it_is_set_up_anew(ring: Ring) -> None:
    loop(ring)
    with pytest.raises(QueueBroken):
        ring.queue.pop()
    ring.queue.stop()
    with pytest.raises(QueueBroken):
        ring.queue.start()
    ring.driver.set_available_index(0)
    ring.queue.set_base(0)
    areas = ring.layout
    ring.queue.set_addr(USER + areas.desc, USER + areas.used, USER + areas.avail)
    ring.queue.start()
    ring.driver.add([(DATA_AT, 4)])
    assert ring.queue.pop() is not None


def test_an_indirect_chain_may_be_longer_than_the_ring(ring: Ring) -> None:
    count = 515
    head = ring.driver.add([(DATA_AT + i, 1) for i in range(count)], table=TABLES_AT)
    chain = ring.queue.pop()
    assert chain is not None
    assert (chain.head, len(chain.readable)) == (head, count)


def test_descriptors_before_an_indirect_one(memory: Guest, ring: Ring) -> None:
    memory.memory.write(DATA_AT, b"abcdef")
    ring.driver.put_descriptor(0, DATA_AT, 2, DESC_NEXT, 1)
    ring.driver.put_descriptor(1, TABLES_AT, 32, DESC_INDIRECT | DESC_WRITE)  # F_WRITE is to be ignored there
    ring.driver.put_descriptor(0, DATA_AT + 2, 4, DESC_NEXT, 1, table=TABLES_AT)
    ring.driver.put_descriptor(1, DATA_AT + 8, 8, DESC_WRITE, table=TABLES_AT)
    offer(ring)
    chain = ring.queue.pop()
    assert chain is not None
    assert (chain.read(), chain.writable_bytes) == (b"abcdef", 8)


def test_an_indirect_table_may_cross_regions() -> None:
    with guest(((0, 0x80000), (0x80000, 0x80000))) as made:
        ring = made.ring(NUM, F_INDIRECT_DESC)
        for back in range(1, 16 * 3):  # descriptors are cut at each byte
            made.memory.write(DATA_AT, b"%4d" % back)
            ring.driver.add([(DATA_AT, 3), (DATA_AT + 3, 1)], [(DATA_AT + 4, 9)], table=0x80000 - back)
            chain = ring.queue.pop()
            assert chain is not None
            assert chain.read() == b"%4d" % back
            assert chain.writable_bytes == 9
            ring.queue.push(chain)
            ring.driver.reap()


FAULTS: dict[str, Callable[[Ring], None]] = {
    "a buffer": lambda ring: ring.driver.put_descriptor(0, OUTSIDE, 16),
    "the end of a buffer": lambda ring: ring.driver.put_descriptor(0, SIZE - 8, 16),
    "an address that wraps": lambda ring: ring.driver.put_descriptor(0, 2**64 - 8, 16),
    "an indirect table": lambda ring: ring.driver.put_descriptor(0, OUTSIDE, 16, DESC_INDIRECT),
    "the end of an indirect table": lambda ring: ring.driver.put_descriptor(0, SIZE - 16, 32, DESC_INDIRECT),
    "an indirect table that wraps": lambda ring: ring.driver.put_descriptor(0, 2**64 - 16, 32, DESC_INDIRECT),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_lies_outside_of_memory_fails_that_request_only(ring: Ring, name: str) -> None:
    ring.driver.put_descriptor(0, DATA_AT, 4, DESC_NEXT, 1, table=SIZE - 16)
    FAULTS[name](ring)
    ring.driver.put_descriptor(1, DATA_AT, 4)
    ring.driver.put_available(0, 0)
    ring.driver.put_available(1, 1)
    ring.driver.set_available_index(2)
    bad, good = ring.queue.pop(), ring.queue.pop()
    assert bad is not None and good is not None
    assert "guest memory" in bad.fault
    assert good.fault == ""
    ring.queue.push(bad, 0)
    ring.queue.push(good, 0)
    assert ring.driver.used_index == 2
    assert ring.queue.broken == ""


def test_of_a_chain_that_fails_the_rest_is_there(memory: Guest, ring: Ring) -> None:
    """So that a block device can still write its status."""
    ring.driver.put_descriptor(0, DATA_AT, 4, DESC_NEXT, 1)
    ring.driver.put_descriptor(1, OUTSIDE, 4, DESC_WRITE | DESC_NEXT, 2)
    ring.driver.put_descriptor(2, DATA_AT + 8, 1, DESC_WRITE)
    offer(ring)
    chain = ring.queue.pop()
    assert chain is not None
    assert [len(view) for view in chain.readable] == [4]
    assert [len(view) for view in chain.writable] == [1]
    assert f"{OUTSIDE:#x}" in chain.fault


def test_truncated_memory_breaks_the_ring_and_nothing_else(memory: Guest) -> None:
    with guest() as victim:
        ring, other = victim.ring(NUM), memory.ring(NUM)
        ring.driver.add([(DATA_AT, 4)], [(DATA_AT + 8, 4)])
        os.ftruncate(victim.fds[0], DATA_AT)
        chain = ring.queue.pop()
        assert chain is not None
        assert chain.read() == bytes(4)
        with pytest.raises(QueueBroken, match=f"guest memory at {DATA_AT:#x} and above is gone"):
            ring.queue.push(chain, 0)
        assert ring.driver.used_index == 0
        other.driver.add([(DATA_AT, 4)])
        assert other.queue.pop() is not None


def test_a_truncated_ring_breaks(memory: Guest) -> None:
    with guest() as victim:
        ring = victim.ring(NUM)
        os.ftruncate(victim.fds[0], 0)
        for _ in range(2):
            try:
                assert ring.queue.pop() is None  # the first look finds zeroes, and the damage is noted
            except QueueBroken as error:
                assert "gone" in str(error)
        assert "gone" in ring.queue.broken


def test_a_driver_that_changes_everything_all_the_time_gets_nowhere(memory: Guest) -> None:
    """What was checked is what is used: a worker serves a ring while another thread writes at random into it."""
    features = F_INDIRECT_DESC | F_EVENT_IDX
    ring = memory.ring(NUM, features)
    end = threading.Event()

    def scribble() -> None:
        dice = random.Random(4)
        area = ring.layout
        lengths = [0, 1, 16, 48, 4096, 0xFFFFFFFF]
        places = [DATA_AT, TABLES_AT, OUTSIDE, SIZE - 8, area.desc, area.used]
        while not end.is_set():
            table = dice.choice([None, TABLES_AT])
            at, length = dice.choice(places), dice.choice(lengths)
            ring.driver.put_descriptor(
                dice.randrange(NUM), at, length, dice.randrange(8), dice.randrange(9), table=table
            )
            ring.driver.put_available(dice.randrange(NUM), dice.randrange(9))
            if dice.random() < 0.3:
                ring.driver.set_available_index(ring.driver.used_index + dice.randrange(4) & 0xFFFF)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    thread = threading.Thread(target=scribble)
    thread.start()
    reasons = set()
    device = Echo(ring.queue)
    for _ in range(150):
        worker = Worker("victim", poll_us=20)
        device.attach(worker)
        worker.rouse(ring.queue)
        device.detach(worker)
        worker.stop()
        reasons.add(ring.queue.broken.rstrip("0123456789"))
        base = ring.queue.stop()
        ring.queue.set_base(base)
        area = ring.layout
        ring.queue.set_addr(USER + area.desc, USER + area.used, USER + area.avail)
        ring.queue.start()
    end.set()
    thread.join()
    sys.setswitchinterval(interval)
    assert len(reasons) > 1, "nothing that was written broke the ring"
    assert memory.memory.broken == ""
