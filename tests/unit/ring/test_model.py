# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The device side of a ring against a model that is too simple to be wrong.

The model has no indexes that wrap, no free lists and no memory: only Python lists and counters that grow. After each
step, what is in guest memory is compared with what the model says ought to be there.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field

import pytest
from doorbelld.ring.chain import Chain
from doorbelld.ring.errors import StaleChain
from doorbelld.ring.queue import F_EVENT_IDX, F_INDIRECT_DESC
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.rings import DATA_AT, TABLES_AT, USER, Guest

LAP = 1 << 16
SLOT = 256  # bytes of guest memory for each buffer


@dataclass
class Request:
    head: int
    data: bytes
    room: int
    descriptors: int
    chain: Chain | None = None


@dataclass
class Model:
    base: int
    event_idx: bool
    made: list[Request] = field(default_factory=list)
    """All that was ever made available."""
    popped: int = 0
    """How many of those are popped."""
    out: list[Request] = field(default_factory=list)
    """Popped and not filled."""
    filled: dict[int, tuple[Request, int]] = field(default_factory=dict)
    """Used entries by their place behind what is published."""
    used: list[tuple[Request, int]] = field(default_factory=list)
    reaped: int = 0
    told: int | None = None
    """How many were used when it was last decided about a call."""
    notification: bool = True
    event: int = 0
    """The available event in memory."""
    wants_calls: bool = True
    used_event: int = 0

    @property
    def waiting(self) -> list[Request]:
        return self.made[self.popped :]

    def decide(self) -> bool:
        if not self.event_idx:
            return self.wants_calls
        since, self.told = self.told, len(self.used)
        if since is None:
            return True
        return any((self.base + place) % LAP == self.used_event for place in range(since, len(self.used)))


class RingMachine(RuleBasedStateMachine):
    @initialize(
        num=st.sampled_from([1, 2, 4, 16]),
        event_idx=st.booleans(),
        indirect=st.booleans(),
        base=st.sampled_from([0, 1, LAP - 3, LAP - 1, 12345]),
    )
    def begin(self, num: int, event_idx: bool, indirect: bool, base: int) -> None:
        features = (F_EVENT_IDX if event_idx else 0) | (F_INDIRECT_DESC if indirect else 0)
        # two regions, so that some buffers cross
        self.guest = Guest(((0, DATA_AT + 0x1000), (DATA_AT + 0x1000, 0x100000)))
        self.ring = self.guest.ring(num, features, base=base)
        self.indirect = indirect
        self.model = Model(base, event_idx, event=base)
        self.count = 0

    def teardown(self) -> None:
        if hasattr(self, "guest"):
            del self.ring
            self.guest.close()

    @rule(
        reads=st.lists(st.integers(1, SLOT), max_size=3),
        writes=st.lists(st.integers(1, SLOT), max_size=3),
        table=st.booleans(),
        seed=st.integers(0, 255),
    )
    def add(self, reads: list[int], writes: list[int], table: bool, seed: int) -> None:
        table = table and self.indirect
        descriptors = 1 if table else len(reads) + len(writes)
        if not reads + writes or descriptors > self.ring.driver.free:
            return
        at = DATA_AT + 0x1000 - 600 + (self.count % 64) * 7 * SLOT
        readable, writable, data = [], [], b""
        for length in reads:
            piece = bytes((seed + i) % 256 for i in range(length))
            self.guest.seen_by_driver.write(at, piece)
            readable.append((at, length))
            data += piece
            at += SLOT
        for length in writes:
            writable.append((at, length))
            at += SLOT
        place = TABLES_AT + (self.count % 64) * 128 if table else None
        head = self.ring.driver.add(readable, writable, table=place)
        self.model.made.append(Request(head, data, sum(writes), descriptors))
        self.count += 1

    @rule()
    def pop(self) -> None:
        chain = self.ring.queue.pop()
        if not self.model.waiting:
            assert chain is None
            return
        request = self.model.waiting[0]
        assert chain is not None
        assert (chain.head, chain.readable_bytes, chain.writable_bytes) == (
            request.head,
            len(request.data),
            request.room,
        )
        assert b"".join(chain.readable) == request.data
        assert sum(map(len, chain.writable)) == request.room
        assert chain.fault == ""
        request.chain = chain
        self.model.popped += 1
        self.model.out.append(request)
        if self.model.event_idx and self.model.notification:
            self.model.event = self.model.base + self.model.popped

    def give_back(self, request: Request) -> Chain:
        self.model.out.remove(request)
        chain = request.chain
        assert chain is not None
        return chain

    @precondition(lambda self: self.model.out and not self.model.filled)
    @rule(data=st.data())
    def push(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.model.out))
        written = data.draw(st.integers(0, request.room))
        self.ring.queue.push(self.give_back(request), written)
        self.model.used.append((request, written))

    @precondition(lambda self: self.model.out)
    @rule(data=st.data())
    def fill(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.model.out))
        written = data.draw(st.integers(0, request.room))
        in_flight = len(self.model.out) + len(self.model.filled)
        index = data.draw(st.sampled_from([i for i in range(in_flight) if i not in self.model.filled]))
        self.ring.queue.fill(self.give_back(request), written, index)
        self.model.filled[index] = (request, written)

    @rule(count=st.integers(0, 6))
    def flush(self, count: int) -> None:
        if not all(i in self.model.filled for i in range(count)):
            with pytest.raises(ValueError, match="not all are filled"):
                self.ring.queue.flush(count)
            return
        self.ring.queue.flush(count)
        self.model.used += [self.model.filled[i] for i in range(count)]
        self.model.filled = {i - count: entry for i, entry in self.model.filled.items() if i >= count}

    @precondition(lambda self: self.model.out)
    @rule(data=st.data())
    def unpop(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.model.out))
        chain = request.chain
        assert chain is not None
        if request is not self.model.made[self.model.popped - 1]:
            with pytest.raises(ValueError, match="popped last"):
                self.ring.queue.unpop(chain)
            return
        self.ring.queue.unpop(chain)
        self.model.out.remove(request)
        self.model.popped -= 1
        with pytest.raises(StaleChain):
            chain.read()

    @rule(count=st.integers(0, 5))
    def rewind(self, count: int) -> None:
        last = self.model.made[max(0, self.model.popped - count) : self.model.popped]
        right = len(last) == count and all(request in self.model.out for request in last)
        assert self.ring.queue.rewind(count) == right
        if right:
            self.model.out = [request for request in self.model.out if request not in last]
            self.model.popped -= count

    @rule(most_in=st.sampled_from([0, 1, 300, 1 << 32]), most_out=st.sampled_from([0, 1, 300, 1 << 32]))
    def avail_bytes(self, most_in: int, most_out: int) -> None:
        room = data = 0
        for request in self.model.waiting:
            if room >= most_in and data >= most_out:
                break
            room += request.room
            data += len(request.data)
        assert self.ring.queue.avail_bytes(most_in, most_out) == (room, data)

    @rule()
    def empty(self) -> None:
        assert self.ring.queue.empty() == (not self.model.waiting)

    @rule(enable=st.booleans())
    def set_notification(self, enable: bool) -> None:
        assert self.ring.queue.set_notification(enable) == (enable and bool(self.model.waiting))
        self.model.notification = enable
        if enable and self.model.event_idx:
            self.model.event = self.model.base + self.model.popped

    @rule(calls=st.booleans(), back=st.integers(-3, 3))
    def want_calls(self, calls: bool, back: int) -> None:
        self.model.wants_calls = calls
        self.model.used_event = (self.model.base + len(self.model.used) + back) % LAP
        avail = self.ring.layout.avail
        if self.model.event_idx:
            self.guest.seen_by_driver.write(
                avail + 4 + 2 * self.ring.driver.num, struct.pack("<H", self.model.used_event)
            )
        else:
            self.guest.seen_by_driver.write(avail, struct.pack("<H", not calls))

    @rule()
    def notify(self) -> None:
        wanted = self.model.decide()
        assert self.ring.queue.notify() == wanted
        assert self.called() == wanted

    def called(self) -> bool:
        try:
            return os.eventfd_read(self.ring.driver.call_fd) > 0
        except BlockingIOError:
            return False

    @rule()
    def reap(self) -> None:
        expected = [(request.head, written) for request, written in self.model.used[self.model.reaped :]]
        assert self.ring.driver.reap() == expected
        self.model.reaped = len(self.model.used)

    @rule()
    def stop_and_start(self) -> None:
        if self.model.out or self.model.filled:
            return
        base = self.ring.queue.stop()
        assert base == (self.model.base + self.model.popped) % LAP
        queue, areas = self.ring.queue, self.ring.layout
        queue.set_base(base)
        queue.set_addr(USER + areas.desc, USER + areas.used, USER + areas.avail)
        queue.start()
        self.model.told = None
        self.model.notification = True
        self.model.event = self.model.base + self.model.popped

    @invariant()
    def memory_is_as_it_ought_to_be(self) -> None:
        if not hasattr(self, "ring"):
            return
        model, driver, queue = self.model, self.ring.driver, self.ring.queue
        assert queue.broken == ""
        assert driver.used_index == queue.used_index == (model.base + len(model.used)) % LAP
        assert queue.get_base() == (model.base + model.popped) % LAP
        assert queue.available_index == (model.base + len(model.made)) % LAP
        assert queue.in_flight == len(model.out) + len(model.filled)
        if model.event_idx:
            assert driver.available_event == model.event % LAP
            assert driver.used_flags == 0
        else:
            assert driver.used_flags == (not model.notification)
        for back, (request, written) in enumerate(reversed(model.used[-driver.num :]), 1):
            place = (model.base + len(model.used) - back) % driver.num
            if place not in {(model.base + len(model.used) + index) % driver.num for index in model.filled}:
                entry = self.guest.seen_by_driver.read(self.ring.layout.used + 4 + 8 * place, 8)
                assert struct.unpack("<II", entry) == (request.head, written)


RingMachine.TestCase.settings = settings(
    max_examples=120, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
test_the_ring_agrees_with_the_model = RingMachine.TestCase
