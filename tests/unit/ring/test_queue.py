# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from doorbelld.ring.errors import QueueBroken, QueueError
from doorbelld.ring.memory import MemoryMap
from doorbelld.ring.queue import F_EVENT_IDX, F_INDIRECT_DESC, F_NOTIFY_ON_EMPTY, VirtQueue
from support.apart import run_python
from support.fdcount import no_descriptor_left, no_leaks
from support.rings import DATA_AT, RING_AT, SIZE, USER, Guest, guest

BUFFER = [(DATA_AT, 4)]


@pytest.fixture
def memory() -> Iterator[Guest]:
    with no_leaks(), guest() as made:
        yield made


def calls(fd: int) -> int:
    """Take how often *fd* was signalled."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


@pytest.mark.parametrize("size", [0, 3, 65536, 1000])
def test_the_largest_size_is_one_that_a_ring_can_have(size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        VirtQueue(MemoryMap(), 0, size)


@pytest.mark.parametrize("num", [0, 3, 12, 2048, -1, 1 << 40])
def test_set_num_takes_powers_of_two_up_to_the_largest(num: int) -> None:
    queue = VirtQueue(MemoryMap(), 2, 1024)
    with pytest.raises(QueueError, match=r"queue 2: a ring of .* power of two up to 1024"):
        queue.set_num(num)
    queue.set_num(1024)
    assert queue.num == 1024


MEMORY_BY_SIZE = """
    from doorbelld.ring.memory import MemoryMap
    from doorbelld.ring.queue import VirtQueue

    def data_bytes():
        (line,) = (line for line in open("/proc/self/status") if line.startswith("VmData:"))
        return int(line.split()[1]) << 10

    before = data_bytes()
    queues = [VirtQueue(MemoryMap(), 0, 32768) for _ in range(512)]
    for queue in queues:
        queue.set_num(128)
    print(data_bytes() - before < 512 * 16384)
    for queue in queues:
        queue.set_num(32768)
    print(data_bytes() - before > 512 * 65536)
    for queue in queues:
        queue.set_num(128)
        queue.close()
    print(data_bytes() - before < 512 * 65536)
"""


def test_memory_is_taken_by_the_size_that_is_set() -> None:
    """In a process of its own: here, memory that earlier tests gave back would serve."""
    done = run_python(MEMORY_BY_SIZE)
    kept = "asan" in os.environ.get("LD_PRELOAD", "")  # it keeps what was given back, to find who uses it still
    assert done.stdout.split()[: 3 - kept] == ["True"] * (3 - kept), done.stderr


@pytest.mark.parametrize(
    ("areas", "said"),
    [
        ((RING_AT + 8, RING_AT, RING_AT), "descriptors area .* aligned to 16"),
        ((RING_AT, RING_AT + 2, RING_AT), "used area .* aligned to 4"),
        ((RING_AT, RING_AT, RING_AT + 1), "available area .* aligned to 2"),
        ((RING_AT, SIZE - 64, RING_AT), "used area .* not in one region"),
        ((RING_AT, RING_AT, SIZE - 16), "available area .* not in one region"),
        ((SIZE - 64, RING_AT, RING_AT), "descriptors area .* not in one region .*share=on missing"),
        ((SIZE + 0x100000, RING_AT, RING_AT), "descriptors area .* not in one region .*share=on missing"),
        ((2**64 - 16 - USER, RING_AT, RING_AT), "descriptors area .* not in one region .*share=on missing"),
        ((2**64 - USER, RING_AT, RING_AT), "is no address"),
        ((-16 - USER, RING_AT, RING_AT), "is no address"),
    ],
)
def test_set_addr_refuses_what_is_not_aligned_or_not_in_memory(
    memory: Guest, areas: tuple[int, int, int], said: str
) -> None:
    queue = memory.ring(16, F_EVENT_IDX).queue
    before = queue.addresses
    with pytest.raises(QueueError, match=said):
        queue.set_addr(*(USER + area for area in areas))
    assert queue.addresses == before
    assert queue.in_memory is False or queue.pop() is None


def test_set_addr_needs_the_size(memory: Guest) -> None:
    with pytest.raises(QueueError, match="size must be set before"):
        VirtQueue(memory.memory).set_addr(USER, USER, USER)


def test_set_addr_names_a_region_that_could_not_be_mapped(memory: Guest) -> None:
    memory.memory.add(SIZE, 0x1000, USER + SIZE, 0, -1)
    queue = memory.ring(8, start=False).queue
    with pytest.raises(QueueError, match=r"descriptors area: guest memory region 0x100000.*share=on missing"):
        queue.set_addr(USER + SIZE, USER, USER)


def test_set_addr_refuses_memory_that_is_aligned_otherwise(memory: Guest) -> None:
    memory.memory.add(SIZE, 0x800, USER + 2 * SIZE, 0x100, memory.fds[0])
    memory.memory.add(2 * SIZE, 0x800, USER + 3 * SIZE, 0x101, memory.fds[0])
    queue = memory.ring(8, start=False).queue
    at = USER + 2 * SIZE
    queue.set_addr(at, at + 0x200, at + 0x400)
    at = USER + 3 * SIZE
    with pytest.raises(QueueError, match="not aligned in the file"):
        queue.set_addr(at, at + 0x200, at + 0x400)


def test_the_used_index_comes_from_memory(memory: Guest) -> None:
    ring = memory.ring(8, base=65530)
    assert (ring.queue.get_base(), ring.queue.used_index) == (65530, 65530)
    for _ in range(10):
        ring.driver.add(BUFFER)
        chain = ring.queue.pop()
        assert chain is not None
        ring.queue.push(chain)
        assert ring.driver.reap() == [(chain.head, 0)]
    assert ring.queue.stop() == ring.queue.used_index == 4


def test_set_addr_of_a_ring_that_runs(memory: Guest) -> None:
    """QEMU does that when it starts to log."""
    ring = memory.ring(8)
    ring.driver.add(BUFFER)
    chain = ring.queue.pop()
    assert chain is not None
    areas = ring.layout
    ring.queue.set_addr(USER + areas.desc, USER + areas.used, USER + areas.avail)
    ring.driver.add(BUFFER)
    ring.queue.push(chain)
    assert ring.queue.pop() is not None
    assert ring.driver.used_index == 1


def test_only_a_stopped_queue_is_set_up(memory: Guest) -> None:
    queue = memory.ring(8).queue
    for change in (lambda: queue.set_num(4), lambda: queue.set_base(1), lambda: queue.set_features(0)):
        with pytest.raises(QueueError, match="stop it first"):
            change()
    queue.stop()
    queue.set_num(4)


@pytest.mark.parametrize("base", [-1, 65536])
def test_a_base_has_16_bits(memory: Guest, base: int) -> None:
    with pytest.raises(QueueError, match="16 bits"):
        memory.ring(8, start=False).queue.set_base(base)


def test_a_queue_without_a_ring_does_not_start(memory: Guest) -> None:
    with pytest.raises(QueueError):
        VirtQueue(memory.memory).start()


def test_a_stopped_queue_touches_nothing(memory: Guest) -> None:
    ring = memory.ring(8)
    for _ in range(3):
        ring.driver.add(BUFFER, BUFFER)
    chain = ring.queue.pop()
    assert chain is not None
    assert ring.queue.stop() == 1
    before = memory.memory.read(0, SIZE)
    assert ring.queue.pop() is None
    assert not ring.queue.notify()
    assert not ring.queue.set_notification(True)
    assert ring.queue.empty()
    with pytest.raises(QueueError):
        ring.queue.push(chain)
    with pytest.raises(QueueError):
        ring.queue.flush(0)
    assert memory.memory.read(0, SIZE) == before
    assert calls(ring.driver.call_fd) == 0


def test_stop_and_start_goes_on_where_it_was(memory: Guest) -> None:
    ring = memory.ring(8)
    heads = [ring.driver.add(BUFFER) for _ in range(3)]
    chain = ring.queue.pop()
    assert chain is not None
    ring.queue.push(chain)
    base = ring.queue.stop()
    areas = ring.layout
    fresh = VirtQueue(memory.memory)
    fresh.set_num(8)
    fresh.set_base(base)
    fresh.set_addr(USER + areas.desc, USER + areas.used, USER + areas.avail)
    fresh.start()
    for head in heads[1:]:
        chain = fresh.pop()
        assert chain is not None and chain.head == head
        fresh.push(chain)
    assert [head for head, _ in ring.driver.reap()] == heads


def test_a_new_call_descriptor_is_signalled_once(memory: Guest) -> None:
    ring = memory.ring(8)
    fresh = os.eventfd(0, os.EFD_NONBLOCK)
    ring.queue.set_call(fresh)
    assert (calls(fresh), calls(ring.driver.call_fd)) == (1, 0)
    ring.driver.add(BUFFER)
    chain = ring.queue.pop()
    assert chain is not None
    ring.queue.push(chain)
    assert ring.queue.notify()
    assert (calls(fresh), calls(ring.driver.call_fd)) == (1, 0)
    ring.queue.set_call(-1)
    assert not ring.queue.has_call
    assert not ring.queue.call()
    ring.queue.set_call(ring.driver.call_fd)
    assert (calls(fresh), calls(ring.driver.call_fd)) == (0, 1)
    os.close(fresh)


def test_set_call_leaves_the_descriptor_to_the_caller(memory: Guest) -> None:
    queue = memory.ring(8).queue
    read, write = os.pipe()  # as User-Mode Linux gives
    queue.set_call(write)
    os.close(write)
    assert os.read(read, 8) == (1).to_bytes(8, "little")
    assert queue.call()
    assert os.read(read, 8) == (1).to_bytes(8, "little")
    os.close(read)
    assert queue.call()  # nobody reads any more: that is the front-end's affair
    with pytest.raises(OSError, match="Bad file descriptor"):
        queue.set_call(write)


def test_a_call_descriptor_goes_even_if_no_descriptor_is_left(memory: Guest) -> None:
    ring = memory.ring(8)
    with no_descriptor_left():
        ring.queue.set_call(-1)
    assert not ring.queue.call() and calls(ring.driver.call_fd) == 0


def test_a_full_call_descriptor_is_signalled_already(memory: Guest) -> None:
    ring = memory.ring(8)
    os.eventfd_write(ring.driver.call_fd, 2**64 - 2)
    assert ring.queue.call()
    assert calls(ring.driver.call_fd) == 2**64 - 2


def test_notify_sync_is_notify(memory: Guest) -> None:
    ring = memory.ring(8)
    ring.driver.add(BUFFER)
    chain = ring.queue.pop()
    assert chain is not None
    ring.queue.push(chain)
    assert ring.queue.notify_sync()
    assert calls(ring.driver.call_fd) == 1


def test_notify_on_empty(memory: Guest) -> None:
    ring = memory.ring(8, F_NOTIFY_ON_EMPTY)
    ring.driver.set_calls(False)
    for _ in range(2):
        ring.driver.add(BUFFER)
    first, second = ring.queue.pop(), ring.queue.pop()
    assert first is not None and second is not None
    ring.queue.push(first)
    assert not ring.queue.notify()
    ring.queue.push(second)
    assert ring.queue.notify()


def test_after_a_whole_lap_without_a_decision_the_driver_is_called(memory: Guest) -> None:
    ring = memory.ring(8, F_EVENT_IDX)
    ring.queue.notify()  # the first one is unconditional
    memory.memory.write(ring.layout.avail + 4 + 16, (40000).to_bytes(2, "little"))
    for _ in range(65536):
        ring.driver.add(BUFFER)
        chain = ring.queue.pop()
        assert chain is not None
        ring.queue.push(chain)
        ring.driver.reap()
    assert ring.queue.notify()


def test_the_first_notification_after_a_start_is_unconditional(memory: Guest) -> None:
    ring = memory.ring(8, F_EVENT_IDX)
    memory.memory.write(ring.layout.avail + 4 + 16, (1000).to_bytes(2, "little"))
    assert ring.queue.notify()
    assert not ring.queue.notify()
    ring.queue.stop()
    ring.queue.start()
    assert ring.queue.notify()


def test_a_ring_that_loses_its_memory_waits_for_it(memory: Guest) -> None:
    """QEMU removes a slot before it adds it again."""
    ring = memory.ring(8)
    ring.driver.add(BUFFER)
    chain = ring.queue.pop()
    assert chain is not None
    ring.driver.add(BUFFER)
    memory.memory.remove(0, SIZE, USER)
    assert ring.queue.pop() is None
    assert not ring.queue.in_memory
    assert ring.queue.broken == ""
    assert not ring.queue.notify()
    with pytest.raises(QueueError, match="not in guest memory"):
        ring.queue.push(chain)
    memory.memory.add(*memory.table[0])
    ring.queue.push(chain)
    assert ring.queue.pop() is not None
    assert ring.driver.used_index == 1


def test_a_place_is_filled_once(memory: Guest) -> None:
    ring = memory.ring(4)
    for _ in range(2):
        ring.driver.add(BUFFER)
    first, second = ring.queue.pop(), ring.queue.pop()
    assert first is not None and second is not None
    ring.queue.fill(first, 0, 1)
    for place in (1, 4, 5):
        with pytest.raises(ValueError, match="filled already, or the ring has no such place"):
            ring.queue.fill(second, 0, place)
    with pytest.raises(ValueError, match="flush them"):
        ring.queue.push(second)
    ring.queue.fill(second, 0, 0)
    ring.queue.flush(2)
    assert [head for head, _ in ring.driver.reap()] == [second.head, first.head]


def test_more_may_be_in_flight_than_the_ring_has_places(memory: Guest) -> None:
    """A filled entry is, and its driver may be so bold as to make the same head available before it is published."""
    ring = memory.ring(2)
    for _ in range(2):
        ring.driver.add(BUFFER)
    first, second = ring.queue.pop(), ring.queue.pop()
    assert first is not None and second is not None
    ring.queue.fill(first, 0, 0)
    ring.queue.fill(second, 0, 1)
    ring.driver.set_available_index(4)
    again = [ring.queue.pop(), ring.queue.pop()]
    assert None not in again and ring.queue.in_flight == 4
    assert not ring.queue.rewind(3)
    assert ring.queue.rewind(2) and (ring.queue.in_flight, ring.queue.get_base()) == (2, 2)
    ring.queue.flush(2)
    assert ring.queue.in_flight == 0


def test_a_head_that_was_pushed_and_popped_again_is_taken_back_once(memory: Guest) -> None:
    ring = memory.ring(4)
    ring.driver.add(BUFFER)
    first = ring.queue.pop()
    assert first is not None
    ring.queue.push(first)
    ring.driver.put_available(1, first.head)
    ring.driver.set_available_index(2)
    second = ring.queue.pop()
    assert second is not None and second.head == first.head
    assert not ring.queue.rewind(2)
    ring.queue.unpop(second)
    assert (ring.queue.in_flight, ring.queue.get_base()) == (0, 1)


def test_addresses_that_are_refused_mend_nothing(memory: Guest) -> None:
    ring = memory.ring(4)
    ring.driver.set_available_index(9)
    with pytest.raises(QueueBroken):
        ring.queue.pop()
    ring.queue.stop()
    desc, avail, used, _ = ring.layout
    with pytest.raises(QueueError, match="not in one region"):
        ring.queue.set_addr(USER + SIZE, USER + used, USER + avail)
    assert "further ahead" in ring.queue.broken
    ring.queue.set_addr(USER + desc, USER + used, USER + avail)
    assert ring.queue.broken == ""


def test_counters(memory: Guest) -> None:
    ring = memory.ring(8)
    assert ring.queue.counters == (0, 1, 0, 0, 0)
    ring.driver.add([(DATA_AT, 10)], [(DATA_AT + 16, 20)])
    chain = ring.queue.pop()
    assert chain is not None
    ring.queue.push(chain, 7)
    ring.queue.notify()
    ring.queue.fail("its disk is gone")
    assert ring.queue.counters == (0, 2, 1, 17, 1)
    assert ring.queue.broken == "its disk is gone"


def test_features_of_the_ring() -> None:
    queue = VirtQueue(MemoryMap())
    queue.set_features(F_INDIRECT_DESC | 1 << 32)
    assert queue.features == F_INDIRECT_DESC | 1 << 32
