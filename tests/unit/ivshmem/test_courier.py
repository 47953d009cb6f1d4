# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The courier against a clock and sockets that do what the test says."""

from __future__ import annotations

import errno
import socket
from array import array
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from doorbelld.ivshmem import courier as module
from doorbelld.ivshmem.courier import BATCH, THROTTLE_SECONDS, Courier, Recipient, State, unread_bytes

STALL = 8.0


class Handle:
    def __init__(self, function: Callable[..., None], args: tuple[Any, ...], when: float = 0.0) -> None:
        self.function, self.args, self.when, self.cancelled = function, args, when, False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """As much of an event loop as the courier uses; time passes when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.soon: deque[Handle] = deque()
        self.timers: list[Handle] = []
        self.writers: dict[int, Handle] = {}
        self.turns = 0

    def time(self) -> float:
        return self.now

    def call_soon(self, function: Callable[..., None], *args: Any) -> Handle:
        self.soon.append(handle := Handle(function, args))
        return handle

    def call_later(self, delay: float, function: Callable[..., None], *args: Any) -> Handle:
        self.timers.append(handle := Handle(function, args, self.now + delay))
        return handle

    def add_writer(self, fd: int, function: Callable[..., None], *args: Any) -> None:
        assert fd not in self.writers
        self.writers[fd] = Handle(function, args)

    def remove_writer(self, fd: int) -> bool:
        return self.writers.pop(fd, None) is not None

    def run(self) -> None:
        while self.soon:
            handle = self.soon.popleft()
            if not handle.cancelled:
                self.turns += 1
                handle.function(*handle.args)

    def writable(self, fd: int) -> None:
        handle = self.writers[fd]
        handle.function(*handle.args)
        self.run()

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while due := [h for h in self.timers if h.when <= until and not h.cancelled]:
            handle = min(due, key=lambda h: h.when)
            self.timers.remove(handle)
            self.now = max(self.now, handle.when)
            handle.function(*handle.args)
            self.run()
        self.now = until


class Box:
    """An outbox with a number of messages in it."""

    def __init__(self, count: int) -> None:
        self.backlog = count

    def batch(self, limit: int) -> tuple[array, array]:
        count = min(limit, self.backlog)
        return array("q", [7] * count), array("i", [-1] * count)

    def sent(self, count: int) -> None:
        self.backlog -= count


class World:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, stall: float = STALL) -> None:
        self.loop = Loop()
        self.lost: list[tuple[Recipient, str]] = []
        self.everybody: list[Recipient] = []
        self.courier: Courier[Recipient] = Courier(
            self.loop,  # type: ignore[arg-type]
            self.fail,
            stall,
            lambda: list(self.everybody),
            lambda *args: self.post(*args),
        )
        self.room: dict[int, int] = {}
        self.errors: dict[int, int] = {}
        self.unread: dict[int, int] = {}
        self.order: list[int] = []
        self.on_fail: Callable[[Recipient], None] = lambda _: None
        monkeypatch.setattr(module, "unread_bytes", lambda fd: self.unread.get(fd, 0))

    def fail(self, recipient: Recipient, reason: str) -> None:
        self.courier.forget(recipient)
        self.lost.append((recipient, reason))
        self.on_fail(recipient)

    def post(self, recipient: Recipient, values: array, fds: array) -> tuple[int, int]:
        fd = recipient.sock_fd
        self.order.append(fd)
        count = min(len(values), self.room.get(fd, 1 << 30))
        self.room[fd] = self.room.get(fd, 1 << 30) - count
        recipient.outbox.sent(count)
        return count, self.errors.get(fd, errno.EAGAIN) if count < len(values) else 0

    def add(self, fd: int, backlog: int, room: int = 1 << 30, unread: int = 0) -> Recipient:
        self.room[fd], self.unread[fd] = room, unread
        return Recipient(fd, Box(backlog))  # type: ignore[arg-type]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_a_long_greeting_does_not_hold_up_a_short_one(world: World) -> None:
    long, short = world.add(1, BATCH * 10), world.add(2, 5)
    world.courier.wake([long, short])
    world.loop.run()
    assert world.order[:2] == [1, 2]
    assert (long.outbox.backlog, short.outbox.backlog) == (0, 0)
    assert long.state is short.state is State.IDLE


def test_it_lets_the_loop_look_at_other_things(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = world.post

    def slow(*args: Any) -> tuple[int, int]:
        world.loop.now += 0.002
        return real(*args)

    monkeypatch.setattr(world, "post", slow)
    world.courier.wake([world.add(1, BATCH * 9)])
    world.loop.run()
    assert world.loop.turns >= 4
    assert len(world.order) == 9 or len(world.order) == 10


def test_waking_twice_is_one_turn(world: World) -> None:
    recipient = world.add(1, 3)
    world.courier.wake([recipient])
    world.courier.wake([recipient, recipient])
    world.loop.run()
    assert world.order == [1]


def test_blocked_waits_for_the_socket_and_goes_on(world: World) -> None:
    recipient = world.add(1, 500, room=100)
    world.courier.wake([recipient])
    world.loop.run()
    assert recipient.state is State.BLOCKED
    assert recipient.outbox.backlog == 400
    world.courier.wake([recipient])
    world.loop.run()
    assert world.order == [1]  # being woken does not make it writable
    world.room[1] = 1 << 30
    world.loop.writable(1)
    assert recipient.outbox.backlog == 0
    assert recipient.state is State.IDLE
    assert not world.loop.writers


@pytest.mark.parametrize("error", [errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM])
def test_throttled_looks_again_by_timer_and_does_not_spin(world: World, error: int) -> None:
    recipient = world.add(1, 10, room=4)
    world.errors[1] = error
    world.courier.wake([recipient])
    world.loop.run()
    assert recipient.state is State.THROTTLED
    assert not world.loop.writers
    world.loop.advance(THROTTLE_SECONDS * 20.5)
    assert len(world.order) <= 22
    world.room[1] = 1 << 30
    world.loop.advance(THROTTLE_SECONDS)
    assert recipient.outbox.backlog == 0
    world.loop.advance(STALL * 2)
    assert not world.lost


@pytest.mark.parametrize(
    ("error", "reason"),
    [(errno.EPIPE, "it closed its connection"), (errno.EACCES, "can't send to it: Permission denied")],
)
def test_another_error_is_its_end(world: World, error: int, reason: str) -> None:
    recipient = world.add(1, 10, room=4)
    world.errors[1] = error
    world.courier.wake([recipient])
    world.loop.run()
    assert world.lost == [(recipient, reason)]


def test_stalled_is_given_up_with_the_reason(world: World) -> None:
    recipient = world.add(1, 500, room=100, unread=1000)
    world.courier.wake([recipient])
    world.loop.run()
    world.loop.advance(STALL * 0.9)
    assert not world.lost
    world.loop.advance(STALL * 0.3)
    assert world.lost == [(recipient, "it took nothing for 8 s while 400 messages waited (stall-timeout)")]
    assert not world.loop.writers


def test_reading_without_making_room_is_no_stall(world: World) -> None:
    recipient = world.add(1, 500, room=100, unread=1000)
    world.courier.wake([recipient])
    world.loop.run()
    for _ in range(20):
        world.loop.advance(STALL * 0.7)
        world.unread[1] -= 1
    assert not world.lost
    world.loop.advance(STALL * 1.3)
    assert len(world.lost) == 1


def test_the_time_before_anything_waited_does_not_count(world: World) -> None:
    """Somebody told long ago, who does not read for a moment when there is news, has its full time."""
    recipient = world.add(1, 100, room=100, unread=1000)
    world.courier.wake([recipient])
    world.loop.run()
    assert recipient.state is State.IDLE
    world.loop.advance(STALL * 100)
    recipient.outbox.backlog = 5
    world.courier.wake([recipient])
    world.loop.run()
    assert recipient.state is State.BLOCKED
    world.loop.advance(STALL * 0.9)
    assert not world.lost
    world.loop.advance(STALL * 0.3)
    assert len(world.lost) == 1


def test_one_that_read_all_is_not_blamed_for_descriptors_in_flight_to_others(world: World) -> None:
    victim, hog = world.add(1, 10, room=4, unread=0), world.add(2, 10, room=4, unread=1000)
    world.errors = {1: errno.ETOOMANYREFS, 2: errno.ETOOMANYREFS}
    world.courier.wake([victim, hog])
    world.loop.run()
    world.loop.advance(STALL * 3)
    assert [recipient for recipient, _ in world.lost] == [hog]
    world.room[1] = 1 << 30
    world.loop.advance(THROTTLE_SECONDS)
    assert victim.outbox.backlog == 0


def test_never_is_never(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, stall=0.0)
    world.courier.wake([world.add(1, 500, room=100, unread=1000)])
    world.loop.run()
    world.loop.advance(1e6)
    assert not world.lost


def test_a_loss_that_brings_others_with_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who listens to the first's end may disconnect the second in the same moment."""
    both = [world.add(1, 500, room=100, unread=9), world.add(2, 500, room=100, unread=9)]
    gone: list[int] = []

    def drop_the_other(recipient: Recipient) -> None:
        for other in both:
            if other is not recipient:
                world.courier.forget(other)
                gone.append(other.sock_fd)

    def unread(fd: int) -> int:
        assert fd not in gone, "looked at a socket that was closed"
        return 9

    world.on_fail = drop_the_other
    monkeypatch.setattr(module, "unread_bytes", unread)
    world.courier.wake(both)
    world.loop.run()
    world.loop.advance(STALL * 1.3)
    assert len(world.lost) == 1


def test_one_turn_at_a_time_whatever_fails(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure that wakes others while the courier works must not leave it with two turns on the loop."""
    bystander = world.add(9, 0)
    world.on_fail = lambda _: (setattr(bystander.outbox, "backlog", BATCH * 4), world.courier.wake([bystander]))
    failing = world.add(1, 10, room=0)
    world.errors[1] = errno.EPIPE
    real = world.post

    def slow(*args: Any) -> tuple[int, int]:
        world.loop.now += 1
        return real(*args)

    monkeypatch.setattr(world, "post", slow)
    world.courier.wake([failing])
    handle = world.loop.soon.popleft()
    handle.function(*handle.args)
    assert len(world.loop.soon) == 1
    world.loop.run()
    assert bystander.outbox.backlog == 0


def test_forget_in_every_state(world: World) -> None:
    ready, blocked, throttled = world.add(1, 9), world.add(2, 9, room=1), world.add(3, 9, room=1)
    world.errors[3] = errno.ETOOMANYREFS
    world.courier.wake([blocked, throttled])
    world.loop.run()
    world.courier.wake([ready])
    for recipient in (ready, blocked, throttled):
        world.courier.forget(recipient)
        assert recipient.state is State.IDLE
    assert not world.loop.writers
    world.order.clear()
    world.loop.advance(STALL * 2)
    world.loop.run()
    assert not world.order
    assert not world.lost


def test_close_stops_everything(world: World) -> None:
    world.courier.wake([world.add(1, 9, room=1)])
    world.loop.run()
    world.courier.wake([world.add(2, 9)])
    world.courier.close()
    world.order.clear()
    world.loop.advance(STALL * 2)
    world.loop.run()
    assert not world.order
    assert not world.loop.writers
    assert not world.lost


def test_unread_bytes() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert unread_bytes(ours.fileno()) == 0
        ours.send(b"12345678")
        ours.send(b"12345678")
        both = unread_bytes(ours.fileno())
        theirs.recv(8)
        one = unread_bytes(ours.fileno())
        assert both > one > 0
        theirs.recv(8)
        assert unread_bytes(ours.fileno()) == 0


def throttle(world: World) -> Recipient:
    """Somebody who can't be told because of the descriptors that are in flight to others."""
    throttled = world.add(2, 9, room=0)
    world.errors[2] = errno.ETOOMANYREFS
    world.courier.wake([throttled])
    world.loop.run()
    return throttled


def test_an_idle_peer_that_reads_nothing_is_given_up_while_others_are_throttled(world: World) -> None:
    idle = world.add(1, 0, unread=5000)
    world.everybody = [idle, throttle(world)]
    world.loop.advance(STALL * 0.9)
    assert not world.lost
    world.loop.advance(STALL * 0.4)
    assert [recipient for recipient, _ in world.lost] == [idle]
    assert "others can't be told" in world.lost[0][1]


def test_an_idle_peer_that_reads_slowly_is_kept_while_others_are_throttled(world: World) -> None:
    world.everybody = [world.add(1, 0, unread=5000), throttle(world)]
    for _ in range(4):
        world.loop.advance(STALL * 0.7)
        world.unread[1] -= 100
    assert not world.lost


def test_an_idle_peer_may_leave_things_unread_as_long_as_nobody_waits(world: World) -> None:
    idle, other = world.add(1, 0, unread=5000), world.add(3, 9, room=0)
    world.everybody = [idle, other]
    world.courier.wake([other])  # blocked, not throttled
    world.loop.run()
    world.unread[3] = 1
    world.loop.advance(STALL * 3)
    assert [recipient for recipient, _ in world.lost] == [other]
