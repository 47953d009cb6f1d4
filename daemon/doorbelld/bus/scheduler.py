# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""When calls begin: a few milliseconds' worth in each turn of the loop, and everybody's by turns.

Theory of operation
-------------------
A call begins as soon as it is read, as long as nothing waits and the calls of this turn have not taken `TURN_SECONDS`.
Others wait here. In each later turn calls begin until the time is over: one user after the other, of a user's callers
one after the other, and the calls of one caller in the order in which they came. Callers that the bus has not been
asked about yet take turns as one user; it is asked as soon as a call has to wait.

A single call may take longer than a turn has. Nothing begins then for as long again, so that calls never take more than
half of the time.

What waits has a bound: `CALLS_MAX` calls and `BYTES_MAX` bytes of a caller, `TOTAL_MAX` bytes together. A call beyond
it is refused at once, which takes microseconds. While the bus takes nothing of what we write, no call begins; and once
`PAUSE_CALLS` wait then, none is read, so that not even refusals are written.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Any

from .transport.call import MethodCall

TURN_SECONDS = 0.003
CALLS_MAX = 4096
BYTES_MAX = 4 << 20
TOTAL_MAX = 32 << 20
PAUSE_CALLS = 2048
_FEW = 16
"""Calls of a caller that may wait when `TOTAL_MAX` bytes do."""


class _Lane:
    """The calls of one caller that wait, the next first."""

    __slots__ = ("calls", "size")

    def __init__(self) -> None:
        self.calls: deque[MethodCall] = deque()
        self.size = 0


class Scheduler:
    """Lets calls *begin*; those that are too many it has *refuse*d, with the reason.

    *user* tells whose a caller is, or None while that is not known; *meet* is to find out. *pause* is told when reading
    has to stop, and when it
    may go on.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        begin: Callable[[Any], object],
        refuse: Callable[[Any, str], None],
        user: Callable[[str], Hashable],
        pause: Callable[[bool], None] = lambda paused: None,
        meet: Callable[[str], None] = lambda sender: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop = loop
        self._clock = clock  # not loop.time, which takes three times as long to give the same
        self._begin = begin
        self._refuse = refuse
        self._user = user
        self._pause = pause
        self._meet = meet
        self._paused = False
        self._waiting = 0
        self._users: OrderedDict[Hashable, OrderedDict[str, _Lane]] = OrderedDict()
        self._homes: dict[str, Hashable] = {}  # under which user each caller waits
        self._size = 0
        self._deadline = 0.0
        self._rest_until = 0.0
        self._pressed = False
        self._turn: asyncio.Handle | None = None

    def turn(self) -> None:
        """Begin a turn: what `take` is given next may begin at once."""
        now = self._clock()
        self._deadline = now + TURN_SECONDS if now >= self._rest_until else 0.0

    def take(self, call: MethodCall) -> None:
        """Have *call* begin now or later, or be refused."""
        if not self._homes and not self._pressed:
            begun = self._clock()
            if begun < self._deadline:
                self._begin(call)
                if self._clock() - begun > TURN_SECONDS:
                    self._rest(begun)
                return
        self._wait(call)

    def press(self, pressed: bool) -> None:
        """Learn whether the bus is slow to take what we write."""
        self._pressed = pressed
        if self._paused and not pressed:
            self._paused = False
            self._pause(False)
        self._go_on()

    def clear(self) -> None:
        """Forget all that wait: the bus over which they came is gone."""
        self._users.clear()
        self._homes.clear()
        self._size = self._waiting = 0
        self._pressed = self._paused = False
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def _wait(self, call: MethodCall) -> None:
        sender = call.sender
        if sender in self._homes:
            lane = self._users[self._homes[sender]][sender]
            count, size = len(lane.calls), lane.size
        else:
            lane, count, size = _Lane(), 0, 0
        weight = call.weight
        if count >= CALLS_MAX or size + weight > BYTES_MAX:
            self._refuse(call, f"{count} of your calls wait already; wait for their answers before you call again")
            return
        if self._size + weight > TOTAL_MAX and count >= _FEW:
            self._refuse(call, "too many calls of all callers wait; call again when yours are answered")
            return
        if not count:
            self._homes[sender] = user = self._user(sender)
            if user is None:
                self._meet(sender)
            self._users.setdefault(user, OrderedDict())[sender] = lane
        lane.calls.append(call)
        lane.size += weight
        self._size += weight
        self._waiting += 1
        if self._pressed and not self._paused and self._waiting > PAUSE_CALLS:
            self._paused = True
            self._pause(True)
        self._go_on()

    def _next(self) -> MethodCall:
        """Take the call whose turn it is; its caller and its user come last now."""
        user, lanes = next(iter(self._users.items()))
        sender, lane = next(iter(lanes.items()))
        call = lane.calls.popleft()
        lane.size -= call.weight
        self._size -= call.weight
        self._waiting -= 1
        if lane.calls:
            lanes.move_to_end(sender)
        else:
            del lanes[sender], self._homes[sender]
        if lanes:
            self._users.move_to_end(user)
        else:
            del self._users[user]
        return call

    def _rest(self, begun: float) -> None:
        """Let nothing begin for as long as what began at *begun* took."""
        now = self._clock()
        self._rest_until = now + (now - begun)
        self._deadline = 0.0

    def _go_on(self) -> None:
        if self._turn is None and self._homes and not self._pressed:
            if self._clock() < self._rest_until:
                self._turn = self._loop.call_at(self._rest_until, self._run)
            else:
                self._turn = self._loop.call_soon(self._run)

    def _run(self) -> None:
        self._turn = None
        begun = self._clock()
        end = begun + TURN_SECONDS
        now = begun
        while self._homes and not self._pressed and now < end:
            self._begin(self._next())
            now = self._clock()
        if now - begun > 2 * TURN_SECONDS:
            self._rest(begun)
        self._go_on()
