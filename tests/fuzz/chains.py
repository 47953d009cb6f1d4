# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The target ``chains``: guest memory with anything at all in it.

The first step chooses who serves the ring (Python, an echo, a disk, a source of entropy), and in its data: size,
features, layout of memory, first index. The steps after it (chainsteps.py) are what a driver does: write descriptors,
tables, entries, indexes, anything; change and truncate memory; and what a device does: pop, push, fill, flush, and so
on.

*Python* does the device's steps one by one, and each is compared with the oracle: what was popped, or why the ring
broke, what is in flight, and at the end every byte of guest memory, and the counters.

*Native devices* serve the ring in a worker's thread. An echo is then compared with the oracle doing the same, unless
the driver writes meanwhile, or has the device write into the ring itself. Of the others only this is known: they give
back what they were given, or the ring broke.

In all cases nothing is written outside of guest memory, and nothing read there, which the address sanitizer sees; and
the device gets on.
"""

from __future__ import annotations

import gc
import os
import tempfile
import threading
import time
from dataclasses import dataclass

from doorbelld.devices.blk import Blk, BlkOptions
from doorbelld.devices.rng import Rng
from doorbelld.ring.chain import Chain
from doorbelld.ring.echo import Echo
from doorbelld.ring.errors import QueueError
from doorbelld.ring.queue import F_EVENT_IDX, F_INDIRECT_DESC, F_NOTIFY_ON_EMPTY, VirtQueue
from doorbelld.ring.worker import Worker

from .depth import Depth
from .image import USER, Image
from .oracle import LAP, Oracle, Walk
from .script import Step, parse

DEVICES = ("python", "python", "python", "echo", "blk", "rng")
QUEUE_SIZE = 128
RING_AT = 0x2000
"""Place of the ring in the file."""
DEADLINE = 10.0
WALKS_MAX = 30_000
"""Descriptors that the oracle looks at, for one input; after that it is not asked any more."""


class Chains:
    """The target."""

    def __init__(self, depth: Depth) -> None:
        from .chainsteps import STEPS

        self.depth = depth
        self.steps = STEPS
        self.kinds = len(STEPS)
        self.worker = Worker("fuzz")
        self._file = tempfile.NamedTemporaryFile(prefix="db")  # noqa: SIM115  # closed with the target
        self._file.truncate(64 << 10)
        self.disk = Blk(BlkOptions(self._file.name, aio="threads"), queues=1)
        self.entropy = Rng()
        self._run(b"")  # whatever is made once is made now
        self.threads = threading.active_count()

    def close(self) -> None:
        """Stop the worker."""
        self.worker.stop()
        self.disk.close()
        self._file.close()

    def __call__(self, raw: bytes) -> None:
        """Run one input."""
        fds = len(os.listdir("/proc/self/fd"))
        self._run(raw)
        if len(os.listdir("/proc/self/fd")) != fds:
            gc.collect()
            assert len(os.listdir("/proc/self/fd")) == fds, "descriptors were left open"
        assert threading.active_count() == self.threads, threading.enumerate()

    def _run(self, raw: bytes) -> None:
        first, *steps = parse(raw) or [Step(0)]
        run = Run(self, DEVICES[first.kind % len(DEVICES)], first.data.ljust(5, b"\0"))
        try:
            for step in steps:
                self.steps[step.kind % self.kinds](run, step.data.ljust(9, b"\0"))
                run.look()
            run.end()
        finally:
            run.close()


@dataclass
class Popped:
    """A chain that a device in Python has."""

    chain: Chain
    walk: Walk
    changes: int
    """How often memory had changed when it was popped."""
    taken: int = 0
    """Bytes that were read."""


class Run:
    """One input."""

    def __init__(self, target: Chains, device: str, config: bytes) -> None:
        self.target = target
        self.device = device
        self.image = Image(config[2])
        self.kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.num = 1 << config[0] % 8
        self.ring = self.areas(RING_AT)
        """Places of descriptors, available and used ring in the file."""
        self.next = int.from_bytes(config[3:5], "little")
        """The driver's index."""
        bits = (F_INDIRECT_DESC, F_EVENT_IDX, F_NOTIFY_ON_EMPTY)
        chosen = [bool(config[1] >> i & 1) for i in range(len(bits))]
        self.queue = VirtQueue(self.image.map, 0, QUEUE_SIZE)
        self.queue.set_features(sum(bit for bit, wanted in zip(bits, chosen, strict=True) if wanted))
        self.queue.set_kick(self.kick)
        self.queue.set_call(self.call)
        self.oracle = Oracle(self.image.ought, self.num, *self.ring, indirect=chosen[0], event_idx=chosen[1])
        self.call_on_empty = chosen[2]
        self.exact = True
        """Whether the oracle still knows everything."""
        self.usable = True
        """Whether the ring is in memory."""
        self.broken: set[str] = set()
        """Words of the reasons for which it ought to be broken."""
        self.out: list[Popped] = []
        self.order: list[Popped] = []
        """All that was popped since the start and not taken back."""
        self.filled: set[int] = set()
        self.since: int | None = None
        """Entries that were used since it was last decided about a call."""
        self.changes = 0
        self.requests = self.bytes = self.errors = 0
        self.walked = 0
        self.echo: Echo | None = None
        self.attached = False
        self.image.poke(RING_AT, bytes(self.ring[2] + 6 + 8 * self.num - RING_AT))
        for area in self.ring[1:]:
            self.image.poke(area + 2, self.next.to_bytes(2, "little"))
        self.set_up(RING_AT, self.next)

    def areas(self, at: int) -> tuple[int, int, int]:
        """Lay out a ring."""
        avail = at + 16 * self.num
        return at, avail, (avail + 6 + 2 * self.num + 3) & ~3

    def found(self, areas: tuple[int, int, int]) -> bool:
        """Tell whether a ring is in memory."""
        event = 2 * self.oracle.event_idx
        sizes = (16 * self.num, 4 + 2 * self.num + event, 4 + 8 * self.num + event)
        return all(
            self.image.ought.find_user(USER + area, size) is not None for area, size in zip(areas, sizes, strict=True)
        )

    def set_up(self, at: int, base: int) -> None:
        """Set size, base and addresses of a ring that is stopped, and start it."""
        queue, oracle = self.queue, self.oracle
        areas = self.areas(at)
        good = self.found(areas) and not (areas[0] % 16 or areas[1] % 2 or areas[2] % 4)
        oracle.num = self.num
        queue.set_num(self.num)
        queue.set_base(base)
        oracle.last = oracle.seen = base
        try:
            queue.set_addr(USER + areas[0], USER + areas[2], USER + areas[1])
            queue.start()
        except QueueError as error:
            assert not (good and self.exact), error
            self.target.depth.note(f"not started: {error}")
            return
        assert good or not self.exact, f"a ring at {areas} was taken"
        self.ring = oracle.desc, oracle.avail, oracle.used = areas
        self.usable, self.since = True, None
        self.broken = set()
        oracle.used_idx = self.image.ought.number(oracle.used + 2)
        oracle.set_notification(True)
        self.learn(oracle.available())

    def stop(self) -> None:
        """Stop the ring, whoever serves it."""
        self.detach()
        self.queue.stop()
        self.out.clear()
        self.order.clear()
        self.filled.clear()

    def relocate(self) -> None:
        """Take note that memory changed."""
        self.changes += 1
        self.usable = self.found(self.ring)

    # What the oracle says

    @property
    def alive(self) -> bool:
        """Whether the ring ought to do anything at all."""
        return self.usable and not self.broken and self.queue.running

    def learn(self, said: set[str] | bool) -> bool:
        """Take note of what broke; whether there is something to pop."""
        if isinstance(said, bool):
            return said
        self.broken = said
        self.errors += 1
        return False

    def next_walk(self) -> Walk | None:
        """Tell what ought to be popped next, or None for nothing; then `broken` may say why."""
        oracle = self.oracle
        if not self.alive or not self.learn(oracle.available()):
            return None
        head = oracle.head(oracle.last)
        if head >= self.num:
            self.learn({"which the ring does not have"})
        elif any(each.walk.head == head for each in self.out):
            self.learn({"again while it was in flight"})
        else:
            return self.follow(head)
        return None

    def follow(self, head: int) -> Walk | None:
        """Tell what the chain at *head* is."""
        if self.walked > WALKS_MAX:
            self.exact = False
            return None
        found = self.oracle.walk(head)
        self.walked += found.seen
        if found.wrong:
            self.learn(found.wrong)
            return None
        return found

    def measure(self, most_in: int, most_out: int) -> tuple[int, int]:
        """Add up what waits; the ring breaks where that breaks a rule."""
        oracle = self.oracle
        room = data = 0
        if not self.alive or not self.learn(oracle.available()):
            return 0, 0
        oracle.seen = self.image.ought.number(oracle.avail + 2)
        if (oracle.seen - oracle.last) % LAP > self.num:
            self.learn({"further ahead"})
            return 0, 0
        at = oracle.last
        while at != oracle.seen and (room < most_in or data < most_out):
            if (head := oracle.head(at)) >= self.num:
                self.learn({"which the ring does not have"})
                break
            if (found := self.follow(head)) is None:
                break
            room += found.writable_bytes
            data += found.readable_bytes
            at = (at + 1) % LAP
        return room, data

    def decide(self) -> bool:
        """Tell whether the driver wants to be called (2.7.7, and 6.3 for F_NOTIFY_ON_EMPTY)."""
        ought, oracle = self.image.ought, self.oracle
        if not self.alive:
            return False
        idle = not self.out and not self.filled and ought.number(oracle.avail + 2) == oracle.last
        if self.call_on_empty and idle:
            return True
        if not oracle.event_idx:
            return not ought.number(oracle.avail) & 1
        since, self.since = self.since, 0
        event = ought.number(oracle.avail + 4 + 2 * self.num)
        return since is None or (oracle.used_idx - event - 1) % LAP < since

    def popped(self, chain: Chain, walk: Walk) -> None:
        """Go on after a pop."""
        popped = Popped(chain, walk, self.changes)
        self.out.append(popped)
        self.order.append(popped)

    def filled_with(self, popped: Popped, written: int, index: int) -> None:
        """Go on after a used entry was written."""
        self.out.remove(popped)
        self.filled.add(index)
        self.requests += 1
        self.bytes += popped.walk.readable_bytes + written
        self.oracle.fill(popped.walk.head, written, index)

    def flushed(self, count: int) -> None:
        """Go on after *count* entries were published."""
        self.filled = {index - count for index in self.filled if index >= count}
        self.oracle.flush(count)
        if self.since is not None:
            self.since += count

    def can_put_back(self, count: int) -> bool:
        """Tell whether the last *count* chains are all out."""
        return count <= len(self.order) and all(each in self.out for each in self.order[len(self.order) - count :])

    def put_back(self, count: int) -> None:
        """Go back."""
        back = self.order[len(self.order) - count :]
        del self.order[len(self.order) - count :]
        self.out = [each for each in self.out if each not in back]
        self.oracle.put_back(count)

    def look(self) -> None:
        """Compare what can be seen at any time."""
        queue = self.queue
        if not self.exact or self.attached:
            return
        why = queue.broken
        assert bool(why) == bool(self.broken), f"broken: {why!r}, ought to be {self.broken}"
        assert not why or any(words in why for words in self.broken), f"broken: {why!r}, ought to be {self.broken}"
        if queue.running and not why:
            seen = queue.in_flight, queue.get_base(), queue.used_index
            assert seen == (len(self.out) + len(self.filled), self.oracle.last, self.oracle.used_idx), seen

    # Native devices

    def attach(self) -> None:
        """Have the device serve the ring."""
        if self.attached:
            return
        worker, queue = self.target.worker, self.queue
        worker.quiesce()
        if self.device == "echo":
            self.echo = Echo(queue)
            self.echo.attach(worker)
        elif self.device == "blk":
            self.target.disk.attach(worker, queue)
        else:
            self.target.entropy.attach(worker, queue)
        worker.resume()
        self.attached = True

    def detach(self) -> None:
        """End that; nothing is in flight then."""
        if not self.attached:
            return
        worker, queue = self.target.worker, self.queue
        worker.quiesce()
        if self.echo is not None:
            self.echo.detach(worker)
            self.echo.close()
            self.echo = None
        elif self.device == "blk":
            self.target.disk.detach(worker, queue)
        else:
            self.target.entropy.detach(worker, queue)
        worker.resume()
        self.attached = False
        assert not queue.in_flight or queue.broken, f"{queue.in_flight} in flight"

    def expect_echo(self) -> bool:
        """Do what the echo ought to do; False if that can't be told.

        It publishes once, in the end; if the ring breaks before, never.
        """
        ring = range(self.ring[1], self.ring[2] + 6 + 8 * self.num)
        pending = 0
        while (found := self.next_walk()) is not None:
            if any(at < ring.stop and ring.start < at + length for at, length in found.readable + found.writable):
                return False  # what is there depends on when the worker looks
            self.oracle.last = (self.oracle.last + 1) % LAP
            written = 0 if found.faulty else _echo(self.image.ought.data, found)
            self.oracle.fill(found.head, written, pending)
            pending += 1
            self.requests += 1
            self.bytes += found.readable_bytes + written
            self.errors += found.faulty
        if not self.broken:
            self.oracle.flush(pending)
        return self.exact

    def serve(self) -> None:
        """Kick, and wait until the device has nothing more to do."""
        if self.device == "python" or not self.queue.running:
            return
        self.exact = self.exact and self.device == "echo" and self.expect_echo()
        self.attach()
        os.eventfd_write(self.kick, 1)
        self.settle()
        self.detach()
        if self.exact and self.usable:
            self.forget_notification()

    def settle(self) -> None:
        """Wait until the device is where it ought to be; or, if that is not known, until it gets on no more."""
        queue = self.queue
        idle, before = 0, -1
        until = time.monotonic() + DEADLINE
        while not queue.broken and queue.in_memory and idle < 3:
            if self.exact and not self.broken:
                idle = 3 * (queue.used_index == self.oracle.used_idx)
            elif not self.exact and queue.used_index == queue.available_index:
                return
            elif not self.exact:
                idle = idle + 1 if (now := queue.used_index) == before and not queue.in_flight else 0
                before = now
            assert time.monotonic() < until, f"{queue.in_flight} in flight, {queue.used_index} used, {self.broken}"
            time.sleep(0 if self.exact else 0.0002)

    def forget_notification(self) -> None:
        """Believe what a worker said about kicks, which depends on when it looked."""
        oracle = self.oracle
        for at in (oracle.used, oracle.used + 4 + 8 * self.num)[: 1 + oracle.event_idx]:
            self.image.ought.put(at, os.pread(self.image.fd, 2, at))
        self.since = None

    # The end

    def end(self) -> None:
        """Stop, and compare what is left."""
        self.detach()
        if reason := self.queue.broken:
            self.target.depth.note(f"{self.device}: {reason}")
        counters = self.queue.counters
        if counters.requests:
            self.target.depth.note(f"{self.device}: served")
        if self.exact:
            seen = counters.requests, counters.bytes, counters.errors
            assert seen == (self.requests, self.bytes, self.errors), (
                f"{seen}, {self.requests} {self.bytes} {self.errors}"
            )
        self.image.check(self.exact)

    def close(self) -> None:
        """Give everything back."""
        self.detach()
        self.queue.close()
        self.out.clear()
        self.order.clear()
        self.image.close()
        os.close(self.kick)
        os.close(self.call)


def _echo(data: bytearray, found: Walk) -> int:
    """Copy as the echo does, by the piece."""
    sources, targets = [[*piece] for piece in found.readable], [[*piece] for piece in found.writable]
    total = source = target = 0
    while source < len(sources) and target < len(targets):
        taken, given = sources[source], targets[target]
        step = min(taken[1], given[1])
        data[given[0] : given[0] + step] = data[taken[0] : taken[0] + step]
        total += step
        for piece in (taken, given):
            piece[0] += step
            piece[1] -= step
        source += not taken[1]
        target += not given[1]
    return total & 0xFFFF_FFFF
