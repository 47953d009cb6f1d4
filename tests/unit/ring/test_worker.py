# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest
from doorbelld.ring.driver import DriverQueue, Run
from doorbelld.ring.echo import Echo
from doorbelld.ring.errors import QueueError
from doorbelld.ring.queue import F_EVENT_IDX, F_INDIRECT_DESC, VirtQueue
from doorbelld.ring.worker import LATER, Worker
from support.apart import run_python
from support.fdcount import no_leaks
from support.fullfd import full
from support.rings import DATA_AT, TABLES_AT, USER, Guest, Ring, guest

DEADLINE = 30.0
TEMPLATE = ([(DATA_AT, 16)], [(DATA_AT + 64, 16)])
FEATURES = [0, F_EVENT_IDX, F_INDIRECT_DESC | F_EVENT_IDX]


@pytest.fixture
def memory() -> Iterator[Guest]:
    with no_leaks(), guest() as made:
        yield made


@pytest.fixture
def worker(memory: Guest) -> Iterator[Worker]:
    made = Worker("test")
    yield made
    made.stop()


@pytest.fixture
def helper() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as made:
        yield made


def readable(fd: int, timeout: float = DEADLINE) -> bool:
    return bool(select.select([fd], [], [], timeout)[0])


def wait_used(driver: DriverQueue, index: int) -> None:
    """Wait until the device has used entries up to *index*, which it signals."""
    while driver.used_index != index:
        driver.set_calls(True)
        if driver.used_index == index:
            return
        assert readable(driver.call_fd), f"used index stays at {driver.used_index}, not {index}"
        os.eventfd_read(driver.call_fd)


def wait_holding(device: Echo) -> None:
    """Wait until *device* took a chain; the worker does that soon, or never."""
    deadline = threading.Event()
    timer = threading.Timer(DEADLINE, deadline.set)
    timer.start()
    while not device.is_holding:
        assert not deadline.is_set(), "the device took nothing"
    timer.cancel()


def spin_until(true: Callable[[], object]) -> None:
    """Wait for what nobody announces."""
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline, "waited in vain"


def echo(queue: VirtQueue) -> None:
    """A Python handler."""
    while (chain := queue.pop()) is not None:
        chain.write(chain.read())
        queue.push(chain)
    queue.notify()


@pytest.mark.parametrize("poll_us", [0, 50])
@pytest.mark.parametrize("features", FEATURES)
def test_a_million_requests_and_not_one_lost(memory: Guest, features: int, poll_us: int) -> None:
    ring = memory.ring(256, features)
    memory.memory.write(DATA_AT, b"0123456789abcdef")
    worker = Worker("million", poll_us=poll_us)
    device = Echo(ring.queue)
    device.attach(worker)
    table = TABLES_AT if features & F_INDIRECT_DESC else None
    run = ring.driver.drive([TEMPLATE], 1_000_000, 128, table=table, timeout=DEADLINE)
    worker.stop()
    device.close()
    assert run.written == 16_000_000
    assert memory.memory.read(DATA_AT + 64, 16) == b"0123456789abcdef"
    counters = ring.queue.counters
    assert (counters.requests, counters.bytes, counters.errors) == (1_000_000, 32_000_000, 0)
    assert ring.queue.in_flight == 0


@pytest.mark.parametrize("poll_us", [0, 3])
@pytest.mark.parametrize("features", [0, F_EVENT_IDX])
@pytest.mark.parametrize(("num", "depth"), [(2, 1), (4, 2), (8, 3)])
def test_suppressing_notifications_never_loses_a_wake_up(
    memory: Guest, features: int, poll_us: int, num: int, depth: int
) -> None:
    """At these depths both sides fall asleep all the time; a wake-up that is lost is a driver that waits for ever."""
    ring = memory.ring(num, features, base=60000)
    worker = Worker("stress", poll_us=poll_us)
    device = Echo(ring.queue)
    device.attach(worker)
    ring.driver.drive([TEMPLATE], 60_000, depth, timeout=DEADLINE)
    worker.stop()
    device.close()
    assert ring.queue.counters.requests == 60_000


def test_many_queues_of_one_worker(memory: Guest, worker: Worker, helper: ThreadPoolExecutor) -> None:
    rings = [memory.ring(64, F_EVENT_IDX, at=0x1000 + 0x2000 * i, index=i) for i in range(4)]
    devices = [Echo(ring.queue) for ring in rings]
    for device in devices:
        device.attach(worker)
    runs = [helper.submit(ring.driver.drive, [TEMPLATE], 100_000, 32, timeout=DEADLINE) for ring in rings]
    assert [run.result().written for run in runs] == [1_600_000] * 4
    for device in devices:
        device.detach(worker)
        device.close()


def test_a_busy_queue_does_not_starve_the_others(memory: Guest, worker: Worker) -> None:
    """While one is busy, kicks of the others are off: somebody has to look at them all the same."""
    busy, other = memory.ring(8), memory.ring(8, at=0x3000, index=1)
    busy.driver.add(*TEMPLATE)
    worker.attach(busy.queue, lambda queue: None)  # leaves it there, and so is called again and again
    device = Echo(other.queue)
    device.attach(worker)
    other.driver.drive([TEMPLATE], 100, 2, timeout=DEADLINE)
    device.detach(worker)
    device.close()


@pytest.mark.parametrize("features", [0, F_EVENT_IDX])
def test_a_device_without_a_worker_waits_for_kicks_by_itself(
    memory: Guest, helper: ThreadPoolExecutor, features: int
) -> None:
    """Popping until there is nothing more and then waiting for a kick is right, as with libvhost-user."""
    ring = memory.ring(8, features, base=65000)
    run = helper.submit(ring.driver.drive, [TEMPLATE], 20_000, 3, timeout=DEADLINE)
    while ring.queue.counters.requests < 20_000:
        assert readable(ring.driver.kick_fd)
        os.eventfd_read(ring.driver.kick_fd)
        echo(ring.queue)
    assert run.result().written == 320_000


def keep_driving(helper: ThreadPoolExecutor, ring: Ring, count: int) -> Future[Run]:
    return helper.submit(ring.driver.drive, [TEMPLATE], count, 32, timeout=DEADLINE)


@pytest.mark.parametrize("poll_us", [0, 50])
def test_nothing_is_lost_over_changes_of_memory(
    memory: Guest, worker: Worker, helper: ThreadPoolExecutor, poll_us: int
) -> None:
    worker.poll_us = poll_us
    ring = memory.ring(64, F_EVENT_IDX)
    device = Echo(ring.queue)
    device.attach(worker)
    run = keep_driving(helper, ring, 500_000)
    changes = 0
    while not run.done() or changes < 20:
        worker.quiesce()
        assert ring.queue.in_flight == 0
        memory.memory.set_table(memory.table)
        worker.resume()
        changes += 1
    assert run.result().written == 8_000_000
    device.detach(worker)
    device.close()


def test_nothing_is_lost_over_detaching_and_attaching(
    memory: Guest, worker: Worker, helper: ThreadPoolExecutor
) -> None:
    ring = memory.ring(64, F_EVENT_IDX)
    device = Echo(ring.queue)
    device.attach(worker)
    run = keep_driving(helper, ring, 300_000)
    changes = 0
    while not run.done() or changes < 20:
        device.detach(worker)
        base = ring.queue.stop()
        areas = ring.layout
        ring.queue.set_base(base)
        ring.queue.set_addr(USER + areas.desc, USER + areas.used, USER + areas.avail)
        ring.queue.start()
        device.attach(worker)
        changes += 1
    assert run.result().written == 4_800_000
    device.detach(worker)
    device.close()


def test_a_quiet_worker_touches_nothing(memory: Guest, worker: Worker) -> None:
    ring = memory.ring(8)
    device = Echo(ring.queue)
    device.attach(worker)
    worker.quiesce()
    assert worker.quiesced
    ring.driver.add(*TEMPLATE)
    ring.driver.kick()  # if it is wanted: the worker may have been paused before it armed
    assert ring.driver.used_index == 0
    assert ring.queue.pop() is not None, "while it is quiet, the queue is ours"
    ring.queue.rewind(1)
    worker.resume()
    wait_used(ring.driver, 1)
    device.detach(worker)
    device.close()


def test_memory_does_not_change_under_a_worker(memory: Guest, worker: Worker) -> None:
    ring = memory.ring(8)
    worker.attach(ring.queue, echo)
    for change in (
        lambda: memory.memory.set_table(memory.table),
        lambda: memory.memory.add(1 << 30, 4096, 0, 0, -1),
        lambda: memory.memory.remove(*memory.table[0][:3]),
        memory.memory.close,
    ):
        with pytest.raises(RuntimeError, match="quiesce the worker first"):
            change()
    worker.quiesce()
    memory.memory.set_table(memory.table)
    worker.resume()
    with pytest.raises(RuntimeError, match="quiesce the worker first"):
        memory.memory.close()
    worker.detach(ring.queue)
    memory.memory.set_table(memory.table)


def test_python_keeps_its_hands_off_a_native_queue(memory: Guest, worker: Worker) -> None:
    ring = memory.ring(8)
    device = Echo(ring.queue)
    device.attach(worker)
    for use in (ring.queue.pop, ring.queue.stop, ring.queue.notify, ring.queue.empty, lambda: ring.queue.set_base(0)):
        with pytest.raises(RuntimeError, match="native device"):
            use()
    for use in (lambda: ring.queue.set_kick(-1), ring.queue.close):
        with pytest.raises(RuntimeError, match="a worker serves it"):
            use()
    with pytest.raises(QueueError, match="has a worker"):
        worker.attach(ring.queue, echo)
    device.detach(worker)
    assert ring.queue.pop() is None
    device.close()


def test_a_queue_is_started_before_it_is_attached(memory: Guest, worker: Worker) -> None:
    with pytest.raises(QueueError, match="started first"):
        worker.attach(memory.ring(8, start=False).queue, echo)


def test_what_was_there_before_it_was_attached_is_served(memory: Guest, worker: Worker) -> None:
    ring = memory.ring(8)
    ring.driver.add(*TEMPLATE)
    worker.attach(ring.queue, echo)
    wait_used(ring.driver, 1)


def test_without_a_kick_descriptor_a_queue_is_polled(memory: Guest, worker: Worker) -> None:
    ring = memory.ring(8, kick=False)
    device = Echo(ring.queue)
    device.attach(worker)
    ring.driver.drive([TEMPLATE], 50, 2, timeout=DEADLINE)
    device.detach(worker)
    device.close()


def test_a_device_finishes_what_it_has_before_it_is_detached(
    memory: Guest, worker: Worker, helper: ThreadPoolExecutor
) -> None:
    ring = memory.ring(8)
    device = Echo(ring.queue, hold=True)
    device.attach(worker)
    ring.driver.add(*TEMPLATE)
    ring.driver.add(*TEMPLATE)
    ring.driver.kick()
    wait_holding(device)
    for leave in (lambda: device.detach(worker, 0.05), lambda: worker.quiesce(0.05), lambda: worker.stop(0.05)):
        with pytest.raises(TimeoutError, match="in flight were not finished"):
            leave()
    device.release()
    wait_used(ring.driver, 1)
    device.release()
    wait_used(ring.driver, 2)
    device.detach(worker)
    assert (ring.queue.get_base(), ring.queue.in_flight) == (2, 0)
    device.close()


def test_what_drains_takes_nothing_more(memory: Guest, worker: Worker, helper: ThreadPoolExecutor) -> None:
    left_there = False
    for round_ in range(12):  # the worker has to hear of it before the first is released: in a slow process, later
        ring = memory.ring(8, at=0x1000 + 0x200 * round_)
        device = Echo(ring.queue, hold=True)
        device.attach(worker)
        ring.driver.add(*TEMPLATE)
        ring.driver.add(*TEMPLATE)
        ring.driver.kick()
        wait_holding(device)
        leaving = helper.submit(device.detach, worker)
        wait([leaving], 0.001 * 2**round_)
        while not leaving.done():
            device.release()
            wait([leaving], 0.02)
        leaving.result()
        assert ring.queue.get_base() == ring.driver.used_index
        left_there = ring.queue.get_base() == 1
        device.close()
        if left_there:
            break
    assert left_there, "the second one was always taken, though the device was to finish what it had"


def test_a_device_that_waits_goes_on(memory: Guest, worker: Worker) -> None:
    ring = memory.ring(8)
    device = Echo(ring.queue, hold=True)
    device.attach(worker)
    for count in range(1, 6):
        ring.driver.add(*TEMPLATE)
        ring.driver.kick()
        wait_holding(device)
        device.release()
        wait_used(ring.driver, count)
        ring.driver.reap()
    device.detach(worker)
    device.close()


def test_a_queue_that_waits_does_not_hold_up_another(memory: Guest, worker: Worker) -> None:
    slow, quick = memory.ring(8), memory.ring(8, at=0x3000, index=1)
    holder, device = Echo(slow.queue, hold=True), Echo(quick.queue)
    holder.attach(worker)
    device.attach(worker)
    slow.driver.add(*TEMPLATE)
    slow.driver.kick()
    wait_holding(holder)
    quick.driver.drive([TEMPLATE], 1000, 4, timeout=DEADLINE)
    device.detach(worker)  # does not wait for the other one
    assert holder.is_holding
    holder.release()
    wait_used(slow.driver, 1)
    holder.detach(worker)
    device.close()
    holder.close()


@pytest.mark.parametrize("features", FEATURES)
def test_a_python_handler_serves(memory: Guest, worker: Worker, features: int) -> None:
    ring = memory.ring(64, features)
    memory.memory.write(DATA_AT, b"0123456789abcdef")
    worker.attach(ring.queue, echo)
    table = TABLES_AT if features & F_INDIRECT_DESC else None
    run = ring.driver.drive([TEMPLATE], 20_000, 16, table=table, timeout=DEADLINE)
    assert run.written == 320_000
    assert memory.memory.read(DATA_AT + 64, 16) == b"0123456789abcdef"
    assert ring.queue.counters.kicks > 0


def test_a_pause_that_is_given_up_wakes_the_worker(memory: Guest, worker: Worker, helper: ThreadPoolExecutor) -> None:
    """It was given up while kicks were off, so none would."""
    slow, other = memory.ring(8), memory.ring(64, F_EVENT_IDX, at=0x3000, index=1)
    holder, device = Echo(slow.queue, hold=True), Echo(other.queue)
    holder.attach(worker)
    device.attach(worker)
    slow.driver.add(*TEMPLATE)
    slow.driver.kick()
    wait_holding(holder)
    run = keep_driving(helper, other, 100_000)
    for _ in range(5):
        with pytest.raises(TimeoutError):
            worker.quiesce(0.01)
    assert run.result().written == 1_600_000
    holder.release()
    for each in (holder, device):
        each.detach(worker)
        each.close()


def test_many_memories_are_truncated_at_once(helper: ThreadPoolExecutor) -> None:
    """Faults in several threads, some of them in the same memory."""
    with contextlib.ExitStack() as stack:
        victims = [stack.enter_context(guest()) for _ in range(3)]
        rings = [
            victim.ring(64, F_EVENT_IDX, at=at, index=i) for victim in victims for i, at in enumerate((0x1000, 0x3000))
        ]
        workers = [Worker(f"victim{i}") for i in range(len(rings))]
        devices = [Echo(ring.queue) for ring in rings]
        for device, worker in zip(devices, workers, strict=True):
            device.attach(worker)
        runs = [helper.submit(ring.driver.drive, [TEMPLATE], 1 << 40, 16, timeout=0.2) for ring in rings]
        spin_until(lambda: all(ring.queue.counters.requests for ring in rings))
        for victim in victims:
            os.ftruncate(victim.fds[0], 0x2000)
        for ring, run, worker in zip(rings, runs, workers, strict=True):
            assert isinstance(run.exception(), QueueError)
            os.eventfd_write(ring.driver.kick_fd, 1)
            assert readable(worker.event_fd)
        assert all("is gone" in victim.memory.broken for victim in victims)
        for device, worker in zip(devices, workers, strict=True):
            device.detach(worker)
            device.close()
            worker.stop()


def test_a_python_handler_that_raises_breaks_its_queue(memory: Guest, worker: Worker) -> None:
    ring, other = memory.ring(8), memory.ring(8, at=0x3000, index=1)

    def fail(queue: VirtQueue) -> None:
        raise ValueError("no ink")

    worker.attach(other.queue, echo)
    worker.attach(ring.queue, fail)
    assert readable(worker.event_fd)
    assert ring.queue.broken == "its handler raised ValueError: no ink"
    other.driver.drive([TEMPLATE], 100, 2, timeout=DEADLINE)


def test_a_busy_handler_leaves_the_interpreter_to_others(memory: Guest, worker: Worker) -> None:
    ring = memory.ring(8)
    ring.driver.add(*TEMPLATE)
    calls = turns = 0

    def busy(queue: VirtQueue) -> None:
        nonlocal calls
        calls += 1
        until = time.perf_counter() + 100e-6
        while time.perf_counter() < until:
            pass
        if calls >= 3000 and (chain := queue.pop()) is not None:  # until then it is called again and again
            queue.push(chain)

    worker.attach(ring.queue, busy)
    while calls < 3000:
        turns += 1
        time.sleep(0)  # lets go of the interpreter, and wants it back
    assert turns > 10  # about 50: one for each interval in which the interpreter passes it on


def test_a_handler_may_come_back_later(memory: Guest, worker: Worker) -> None:
    ring = memory.ring(8)
    calls = []
    open_for = threading.Semaphore(1)

    def one_at_a_time(queue: VirtQueue) -> int | None:
        calls.append(queue)
        if not open_for.acquire(blocking=False):
            return LATER
        chain = queue.pop()
        if chain is None:
            open_for.release()
            return None
        queue.push(chain)
        queue.notify()
        return LATER

    ring.driver.add(*TEMPLATE)
    ring.driver.add(*TEMPLATE)
    worker.attach(ring.queue, one_at_a_time)
    wait_used(ring.driver, 1)
    worker.quiesce()  # so that what it was going to do is done
    assert len(calls) <= 2
    worker.resume()
    assert ring.driver.used_index == 1
    open_for.release()
    worker.rouse(ring.queue)
    wait_used(ring.driver, 2)


def test_a_worker_can_not_pause_itself(memory: Guest, worker: Worker) -> None:
    ring = memory.ring(8)
    said: list[BaseException] = []

    def handler(queue: VirtQueue) -> None:
        try:
            worker.quiesce()
        except RuntimeError as error:
            said.append(error)
        echo(queue)

    ring.driver.add(*TEMPLATE)
    worker.attach(ring.queue, handler)
    wait_used(ring.driver, 1)
    assert "from another thread" in str(said[0])


def test_a_queue_that_broke_is_told_once_and_the_others_go_on(memory: Guest, worker: Worker) -> None:
    ring, other = memory.ring(8), memory.ring(8, at=0x3000, index=1)
    devices = [Echo(ring.queue), Echo(other.queue)]
    for device in devices:
        device.attach(worker)
    ring.driver.put_available(0, 99)
    ring.driver.set_available_index(1)
    ring.driver.kick()
    assert readable(worker.event_fd)
    assert os.eventfd_read(worker.event_fd) == 1
    assert "descriptor 99" in ring.queue.broken
    ring.driver.kick()
    other.driver.drive([TEMPLATE], 1000, 4, timeout=DEADLINE)
    assert not readable(worker.event_fd, 0)
    for device in devices:
        device.detach(worker)
        device.close()


def test_truncated_memory_breaks_its_queue_and_no_other(
    memory: Guest, worker: Worker, helper: ThreadPoolExecutor
) -> None:
    other = memory.ring(64, F_EVENT_IDX)
    survivor = Echo(other.queue)
    survivor.attach(worker)
    run = keep_driving(helper, other, 300_000)
    for _ in range(20):
        with guest() as victim:
            ring = victim.ring(8)
            device = Echo(ring.queue)
            device.attach(worker)
            ring.driver.drive([TEMPLATE], 100, 4, timeout=DEADLINE)
            os.ftruncate(victim.fds[0], DATA_AT)
            ring.driver.add(*TEMPLATE)
            ring.driver.kick()
            assert readable(worker.event_fd)
            assert "is gone" in ring.queue.broken
            device.detach(worker)
            device.close()
            os.eventfd_read(worker.event_fd)
    assert run.result().written == 4_800_000
    assert memory.memory.broken == ""
    survivor.detach(worker)
    survivor.close()


def test_a_call_descriptor_that_blocks_is_got_out_of(memory: Guest, worker: Worker) -> None:
    """A front-end shares its eventfd with us: it can make it blocking, and fill it, whenever it likes."""
    ring = memory.ring(8)
    shared = os.eventfd(0, os.EFD_NONBLOCK)
    ring.queue.set_call(shared)
    os.eventfd_write(shared, 2**64 - 3)  # 1 is there already
    os.set_blocking(shared, True)
    device = Echo(ring.queue)
    device.attach(worker)
    for index in range(1, 4):
        ring.driver.add(*TEMPLATE)
        os.eventfd_write(ring.driver.kick_fd, 1)
        spin_until(lambda index=index: ring.driver.used_index == index)  # published before it is signalled
        if index == 1:
            worker.quiesce()
            worker.resume()
    device.detach(worker)
    assert ring.queue.counters.calls >= 4
    device.close()
    os.close(shared)


@pytest.mark.parametrize("kind", ["eventfd", "pipe", "socket"])
def test_a_call_descriptor_that_would_block_is_not_written_to(memory: Guest, worker: Worker, kind: str) -> None:
    with full(kind) as call:
        ring = memory.ring(8)
        ring.queue.set_call(call)
        device = Echo(ring.queue)
        device.attach(worker)
        for index in range(1, 4):
            ring.driver.add(*TEMPLATE)
            os.eventfd_write(ring.driver.kick_fd, 1)
            spin_until(lambda index=index: ring.driver.used_index == index)
        assert ring.queue.counters.calls >= 4  # it is signalled as much as it can be
        device.detach(worker)
        device.close()


def test_nobody_who_has_the_interpreter_waits_for_a_call_descriptor() -> None:
    """Not even one that is made blocking after we looked; in a process of its own, which stands still if that fails."""
    code = """
        import os
        from doorbelld.ring.worker import Worker
        from support.rings import DATA_AT, guest

        def serve(queue):
            while (chain := queue.pop()) is not None:
                queue.push(chain)
                queue.notify()

        with guest() as memory:
            ring, worker = memory.ring(8), Worker()
            blocking, late = os.eventfd(0), os.eventfd(0, os.EFD_NONBLOCK)
            os.eventfd_write(blocking, 2**64 - 2)
            ring.queue.set_call(blocking)
            assert ring.queue.call() and ring.queue.notify()
            worker.attach(ring.queue, serve)
            for index in range(1, 5):
                if index == 3:
                    ring.queue.set_call(late)
                    os.eventfd_write(late, 2**64 - 3)
                    os.set_blocking(late, True)
                ring.driver.add([(DATA_AT, 4)])
                os.eventfd_write(ring.driver.kick_fd, 1)
                while ring.driver.used_index != index:
                    pass
            assert ring.queue.call()
            worker.stop()
            print("done")
    """
    done = run_python(code)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_a_call_descriptor_is_replaced_under_load(memory: Guest, worker: Worker, helper: ThreadPoolExecutor) -> None:
    ring = memory.ring(64, F_EVENT_IDX)
    device = Echo(ring.queue)
    device.attach(worker)
    run = keep_driving(helper, ring, 300_000)
    while not run.done():
        ring.queue.set_call(-1)  # masked: what is published now is not signalled
        ring.queue.set_call(ring.driver.call_fd)  # unmasked: signalled once, so nothing is lost
    assert run.result().written == 4_800_000
    device.detach(worker)
    device.close()


def test_polling_saves_kicks(memory: Guest, worker: Worker) -> None:
    ring = memory.ring(64, F_EVENT_IDX)
    device = Echo(ring.queue)
    device.attach(worker)
    worker.poll_us = 1_000_000
    ring.driver.drive([TEMPLATE], 1000, 1, timeout=DEADLINE)  # the window opens
    run = ring.driver.drive([TEMPLATE], 5000, 1, timeout=DEADLINE)
    assert run.kicks < 2500
    worker.poll_us = 0
    device.detach(worker)
    device.close()


@pytest.mark.parametrize("value", [-1, 1_000_001])
def test_poll_us_is_bounded(worker: Worker, value: int) -> None:
    with pytest.raises(ValueError, match="poll_us"):
        worker.poll_us = value


def test_stop_again_does_nothing_and_all_is_gone(memory: Guest) -> None:
    with no_leaks():
        worker = Worker("short")
        device = Echo(memory.ring(8).queue)
        device.attach(worker)
        assert "short" in {thread.name for thread in threading.enumerate()}
        worker.stop()
        worker.stop()
        device.close()
        for ring in memory.rings:
            ring.queue.close()
            ring.driver.close()
        memory.rings.clear()
        with pytest.raises(RuntimeError, match="was stopped"):
            worker.resume()


def test_the_kernel_knows_the_name_of_the_thread() -> None:
    worker = Worker("queue-of-a-device-with-a-name")
    names = set()
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/comm") as comm:
            names.add(comm.read().strip())
    worker.stop()
    assert "queue-of-a-devi" in names


def test_what_is_not_attached_is_not_detached(memory: Guest, worker: Worker) -> None:
    ring = memory.ring(8, index=3)
    for change in (worker.detach, worker.rouse):
        with pytest.raises(ValueError, match="queue 3 is not attached"):
            change(ring.queue)
    with pytest.raises(KeyError):
        worker.unwatch(0)
