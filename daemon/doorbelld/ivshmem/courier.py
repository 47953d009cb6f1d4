# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The courier: moves what outboxes propose into sockets, a batch at a time, without ever blocking.

Theory of operation
-------------------
A recipient is in one of four states::

    IDLE ──wake──> READY ──nothing left──> IDLE
                     │ └──ETOOMANYREFS──> THROTTLED ──timer──> READY
                     └──EAGAIN──> BLOCKED ──writable──> READY

READY recipients wait in one queue and get a turn each: one batch, then the next one's turn, so a peer with a long
greeting does not hold up a peer with a short one. After half a millisecond the courier lets the event loop look at
everything else, and first gives the processor to whoever wants it: on a busy machine those are the readers, and what
they read soon is still in the cache and no longer in flight (a storm of joins on one CPU is a third faster for it).
ETOOMANYREFS means that too many descriptors of ours are in flight to peers that do not read: the socket may well be
writable, so waiting for that would spin; a timer looks again.

A BLOCKED or THROTTLED recipient whose socket has taken nothing, and whose owner has read nothing, for *stall
timeout* seconds is given up. Its own reading shows in SIOCOUTQ even while there is not yet room for more. One that
has read all there was and is THROTTLED all the same waits for others, and is not blamed for it: while that is so, an
IDLE one that has read nothing for as long is, since what lies in its socket is what the others wait for.
"""

from __future__ import annotations

import array
import asyncio
import errno
import fcntl
import math
import os
import termios
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import Generic, TypeVar

from .outbox import Outbox

BATCH = 256
TURN_SECONDS = 0.0005
THROTTLE_SECONDS = 0.01


class State(Enum):
    """What a recipient is waiting for."""

    IDLE = auto()
    READY = auto()
    BLOCKED = auto()
    THROTTLED = auto()


class Recipient:
    """Somebody with a socket and an outbox. Owns neither."""

    def __init__(self, sock_fd: int, outbox: Outbox) -> None:
        self.sock_fd = sock_fd
        self.outbox = outbox
        self.state = State.IDLE
        self.progress = 0.0
        """Loop time when it was last seen to take something, or began to wait."""
        self.unread = 0
        """Bytes the kernel held for it when last looked at."""


R = TypeVar("R", bound=Recipient)


class Courier(Generic[R]):
    """Delivers to any number of recipients.

    ``post(recipient, values, fds)`` sends what an outbox proposed and notes in it what went out; it gives how many
    messages that were, and 0 or the errno value that stopped the rest. *failed* is called with a recipient that is to
    be given up, and the reason.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        failed: Callable[[R, str], None],
        stall_timeout: float,
        everybody: Callable[[], Iterable[R]],
        post: Callable[[R, array.array[int], array.array[int]], tuple[int, int]],
    ) -> None:
        self._loop = loop
        self._post = post
        self._failed = failed
        self.stall_timeout = stall_timeout
        self.turns = 0
        """Turns taken so far: grows while anybody is READY."""
        self._ready: deque[R] = deque()
        self._waiting: set[R] = set()
        self._everybody = everybody
        self._throttled_at = -math.inf
        self._suspects: dict[R, tuple[float, int]] = {}  # idle ones: since when, with how much unread
        self._turn: asyncio.Handle | None = None
        self._patrol: asyncio.TimerHandle | None = None

    def wake(self, recipients: Iterable[R]) -> None:
        """Learn that these may have something to be told."""
        now = self._loop.time()
        for recipient in recipients:
            if recipient.state is State.IDLE:
                recipient.progress = now  # nothing waited until now
                recipient.state = State.READY
                self._ready.append(recipient)
        self._arrange_turn()

    @property
    def busy(self) -> bool:
        """Whether somebody waits for a turn."""
        return bool(self._ready)

    def _arrange_turn(self) -> None:
        if self._ready and self._turn is None:
            self._turn = self._loop.call_soon(self._run)

    def forget(self, recipient: R) -> None:
        """Stop delivering to *recipient*; its socket is about to be closed."""
        if recipient.state is State.READY:
            self._ready.remove(recipient)
        self._unblock(recipient)
        self._suspects.pop(recipient, None)

    def close(self) -> None:
        """Stop everything."""
        for recipient in list(self._waiting):
            self._unblock(recipient)
        self._ready.clear()
        for handle in (self._turn, self._patrol):
            if handle is not None:
                handle.cancel()
        self._turn = self._patrol = None

    def _run(self) -> None:
        os.sched_yield()
        deadline = self._loop.time() + TURN_SECONDS
        self.turns += 1
        self._turn = None
        while self._ready:
            self._deliver(self._ready.popleft())
            if self._loop.time() > deadline:
                break
        self._arrange_turn()

    def _deliver(self, recipient: R) -> None:
        values, fds = recipient.outbox.batch(BATCH)
        if not values:
            recipient.state = State.IDLE
            return
        sent, error = self._post(recipient, values, fds)
        if sent:
            recipient.progress = self._loop.time()
        if not error:
            if len(values) < BATCH:  # that was all there is
                recipient.state = State.IDLE
            else:
                self._ready.append(recipient)
        elif error == errno.EAGAIN:
            recipient.state = State.BLOCKED
            self._loop.add_writer(recipient.sock_fd, self._resume, recipient)
            self._watch(recipient)
        elif error in (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM):
            recipient.state = State.THROTTLED
            self._throttled_at = self._loop.time()
            self._loop.call_later(THROTTLE_SECONDS, self._resume, recipient)
            self._watch(recipient)
        else:
            recipient.state = State.IDLE
            gone = error in (errno.EPIPE, errno.ECONNRESET)
            self._failed(recipient, "it closed its connection" if gone else f"can't send to it: {os.strerror(error)}")

    def change(self, stall_timeout: float) -> None:
        """Go by another stall timeout from now on; 0 for never."""
        self.stall_timeout = stall_timeout
        self._suspects.clear()
        if self._patrol is not None:
            self._patrol.cancel()
            self._patrol = None
        self._arrange_patrol()

    def _watch(self, recipient: R) -> None:
        self._waiting.add(recipient)
        self._arrange_patrol()

    def _arrange_patrol(self) -> None:
        if self._waiting and self._patrol is None and self.stall_timeout:
            self._patrol = self._loop.call_later(self.stall_timeout / 8, self._look_for_stalled)

    def _resume(self, recipient: R) -> None:
        if recipient in self._waiting:
            self._unblock(recipient)
            recipient.state = State.READY  # not by `wake`: it has been waiting all along
            self._ready.append(recipient)
            self._arrange_turn()

    def _unblock(self, recipient: R) -> None:
        if recipient.state is State.BLOCKED:
            self._loop.remove_writer(recipient.sock_fd)
        recipient.state = State.IDLE
        self._waiting.discard(recipient)

    def _look_for_stalled(self) -> None:
        self._patrol = None
        now = self._loop.time()
        for recipient in list(self._waiting):
            if recipient not in self._waiting:  # gone by what its predecessor's end set off
                continue
            unread = unread_bytes(recipient.sock_fd)
            if unread < recipient.unread or not unread:
                recipient.progress = now
            recipient.unread = unread
            if now - recipient.progress >= self.stall_timeout:
                backlog = recipient.outbox.backlog
                self._failed(
                    recipient,
                    f"it took nothing for {self.stall_timeout:g} s while {backlog} messages waited (stall-timeout)",
                )
        throttled = now - self._throttled_at < self.stall_timeout / 4
        if throttled:
            self._look_for_idle(now)
        else:
            self._suspects.clear()
        if self._waiting or throttled:
            self._patrol = self._loop.call_later(self.stall_timeout / 8, self._look_for_stalled)

    def _look_for_idle(self, now: float) -> None:
        """While somebody is throttled, look at those who are owed nothing but have not read what they were sent."""
        for recipient in [r for r in self._everybody() if r.state is State.IDLE]:
            unread = unread_bytes(recipient.sock_fd)
            since, before = self._suspects.get(recipient, (now, unread))
            self._suspects[recipient] = (since if 0 < unread >= before else now, unread)
            if unread and now - self._suspects[recipient][0] >= self.stall_timeout:
                del self._suspects[recipient]
                self._failed(
                    recipient,
                    f"it read nothing for {self.stall_timeout:g} s, and with what is in flight to it, others can't be "
                    "told (stall-timeout)",
                )


def unread_bytes(sock_fd: int) -> int:
    """Tell how much the kernel holds that the other end has not read (in the kernel's own accounting)."""
    held = array.array("i", [0])
    fcntl.ioctl(sock_fd, termios.TIOCOUTQ, held)
    return held[0]
