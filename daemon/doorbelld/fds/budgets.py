# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Budgets: how much of what all share one stranger may have.

Theory of operation
-------------------
Guest memory, descriptors and connections belong to everybody: where one user takes them all, the next front-end can't
be served, and a VM that is attached already is cut off. So each has a `Budget`: a limit for all together, and a share
of that for each user. Root and the user that the daemon runs as have no share: what the share leaves of the limit is
for them and for other users.

Something is counted when it is set up: when a peer joins, when a front-end attaches or shares memory. Nothing is
counted for a message, a ring or a request. What one connection holds is in an `Account`, which gives all of it back
when the connection ends. A request that does not fit is refused with `LimitExceeded`, which names the budget, who has
most of it, and the key that raises it. Nothing else changes then.

Descriptors are looked at in a second way. The kernel gives out the lowest number that is free. So newcomers may have
numbers below `Budgets.descriptors_end` only: what is above is kept for the devices that there are, whose front-ends
give new descriptors for calls and kicks at any time.

Descriptors that were sent to a peer and that it has not read are *in flight*. Of a process without CAP_SYS_RESOURCE the
kernel lets as many be in flight as it may have open, for all its sockets together. So there, each peer gets a
*window*: its socket takes so many messages and no more until it reads. The windows of all fit the limit, and a peer
that never reads costs the others no more than its own.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import LimitExceeded
from ..options import integer, option, size
from .owned import FdSet

QUEUE_COST = 3
"""Descriptors that each queue of a device may hold: kick, call, error."""
DEVICE_COST = 16
"""Descriptors that a device may hold besides: connection, back-end channel, those of one message."""
NO_LIMIT = 1 << 62
WINDOW_MIN = 6
"""Messages that the smallest send buffer takes."""
WINDOW_MAX = 278
"""Messages that the usual send buffer takes."""
_USER_SHARE = "limits.user-share"
_WINDOWS = 64
_MESSAGE_COST = 768
"""Bytes of a send buffer that a message takes (SKB_TRUESIZE)."""
_MAY_EXCEED = 1 << 21 | 1 << 24
"""CAP_SYS_ADMIN, CAP_SYS_RESOURCE: the limit on descriptors in flight is none for who has one of them."""


@dataclass(frozen=True, slots=True)
class LimitsSpec:
    """The ``[limits]`` table."""

    guest_memory: int = option(size, default=64 << 40)
    device_memory: int = option(size, default=4 << 40)
    connections: int = option(integer(16, 1 << 20), default=16384)
    log_lines: int = option(integer(10, 1 << 20), default=1000)
    user_share: int = option(integer(1, 100), default=90)


def trusted(uid: int) -> bool:
    """Tell whether a user has no share of its own: root, and who the daemon runs as."""
    return uid in (0, os.geteuid())


class Budget:
    """How much there may be of one kind of thing; *key* raises it."""

    def __init__(self, name: str, key: str, show: Callable[[int], str] = str) -> None:
        self.name = name
        self.key = key
        self.limit = NO_LIMIT
        """For all together."""
        self.share = 100
        """Percent of the limit that one user may have."""
        self.used = 0
        self.refused = 0
        """How often something was refused for it."""
        self.users: dict[int, int] = {}
        """What each user has, by uid; who has nothing is not in it."""
        self._show = show

    @property
    def allowed(self) -> int:
        """How much one user may have."""
        return self.limit * self.share // 100

    def why_not(self, uid: int, more: int) -> tuple[str, str] | None:
        """Say why user *uid* may not have so much *more*: the reason, and the key; None if it may."""
        if self.used + more > self.limit:
            return (
                f"{self.name}: {self._show(self.used)} of {self._show(self.limit)} is in use{self._most()}, and "
                f"{self._show(more)} more does not fit; raise {self.key}"
            ), self.key
        has = self.users.get(uid, 0)
        if has + more > self.allowed and not trusted(uid):
            return (
                f"{self.name}: uid {uid} has {self._show(has)} and may have {self._show(self.allowed)} "
                f"({self.share} % of {self._show(self.limit)}, limits.user-share); raise {self.key}"
            ), _USER_SHARE
        return None

    def _most(self) -> str:
        if not self.users:
            return ""
        uid = max(self.users, key=lambda uid: self.users[uid])
        return f", {self._show(self.users[uid])} of it by uid {uid}"

    def change(self, uid: int, by: int) -> None:
        """Count so much more, or less, for user *uid*."""
        self.used += by
        if left := self.users.get(uid, 0) + by:
            self.users[uid] = left
        else:
            self.users.pop(uid, None)


class Account:
    """What one connection of user *uid* to the region or device *name* holds of all budgets, until `close`."""

    __slots__ = ("_budgets", "_held", "_name", "uid")

    def __init__(self, budgets: Budgets, uid: int, name: str) -> None:
        self._budgets = budgets
        self.uid = uid
        self._name = name
        self._held: dict[str, int] = {}

    def hold(self, name: str, amount: int) -> None:
        """Hold *amount* of the budget *name* in all, be it more than now or less.

        Raises:
            LimitExceeded: that is more than there is; what is held is as before.
        """
        more = amount - self._held.get(name, 0)
        if more > 0:
            self._budgets.check(name, self.uid, more)
        self.count(name, more)

    def hold_memory(self, size: int) -> None:
        """Hold *size* bytes of guest memory in all; see `hold`."""
        if size > self._held.get("guest-memory", 0):
            self._budgets.check_device_memory(self._name, size)
        self.hold("guest-memory", size)

    def count(self, name: str, more: int) -> None:
        """Count so much more, or less, whatever the limit is: it is there."""
        self._held[name] = self._held.get(name, 0) + more
        self._budgets.all[name].change(self.uid, more)

    def close(self) -> None:
        """Give everything back; a second time does nothing."""
        for name, amount in self._held.items():
            self._budgets.all[name].change(self.uid, -amount)
        self._held.clear()


class Budgets:
    """All budgets of a process; before `change` and `reserve` are called there is no limit.

    *told* is called with the name of a budget, the reason, and the key that it is about, each time that something is
    refused.
    """

    def __init__(self, told: Callable[[str, str, str], None] = lambda name, reason, key: None) -> None:
        self._told = told
        self.spec = LimitsSpec()
        self.memory = Budget("guest-memory", "limits.guest-memory", show_bytes)
        self.descriptors = Budget("descriptors", "LimitNOFILE=")
        self.connections = Budget("connections", "limits.connections")
        self.in_flight = Budget("in-flight", "LimitNOFILE=")
        budgets = (self.memory, self.descriptors, self.connections, self.in_flight)
        self.all = {budget.name: budget for budget in budgets}
        self.descriptors_end = 1 << 31
        """The descriptor number below which all of a newcomer's must lie."""

    def change(self, spec: LimitsSpec) -> None:
        """Go by *spec* from now on; who has more than that keeps it."""
        self.spec = spec
        self.memory.limit, self.connections.limit = spec.guest_memory, spec.connections
        for budget in self.all.values():
            budget.share = spec.user_share

    def reserve(self, descriptor_limit: int, in_use: int, devices: int, queues: int) -> None:
        """Keep descriptors for so many *devices* with so many *queues* in all; at most half of what there is.

        Of the rest, users share what we have not *in use* for ourselves.
        """
        kept = min(devices * DEVICE_COST + queues * QUEUE_COST, descriptor_limit // 2)
        self.descriptors_end = descriptor_limit - kept
        self.descriptors.limit = max(0, self.descriptors_end - max(0, in_use - self.descriptors.used))
        self.in_flight.limit = NO_LIMIT if _privileged() else descriptor_limit

    def check(self, name: str, uid: int, more: int) -> None:
        """See whether user *uid* may have so much *more* of the budget *name*.

        Raises:
            LimitExceeded: it may not.
        """
        if (why := self.all[name].why_not(uid, more)) is not None:
            raise self.refuse(name, *why)

    def check_device_memory(self, device: str, amount: int) -> None:
        """See whether the front-end of *device* may share *amount* bytes.

        Raises:
            LimitExceeded: it may not.
        """
        if amount > self.spec.device_memory:
            has = f'the front-end of device "{device}" shares {show_bytes(amount)}'
            most = show_bytes(self.spec.device_memory)
            key = "limits.device-memory"
            raise self.refuse("guest-memory", f"guest-memory: {has}, and may {most}; raise {key}", key)

    def peers_of_a_user(self, max_peers: int) -> int:
        """Tell how many of the *max_peers* peers of a region one user may be."""
        return max_peers - max_peers * (100 - self.spec.user_share) // 100

    def refuse(self, name: str, reason: str, key: str = _USER_SHARE) -> LimitExceeded:
        """Count a refusal, tell it, and give the error to raise."""
        self.all[name].refused += 1
        self._told(name, reason, key)
        return LimitExceeded(reason)

    def for_newcomer(self, made: FdSet) -> FdSet:
        """Give *made* back, if a newcomer may have descriptors with these numbers.

        Raises:
            OSError: it may not (EMFILE); they are closed then.
        """
        if max(made, default=-1) >= self.descriptors_end:
            made.close()
            self.descriptors.refused += 1
            what = f"{os.strerror(errno.EMFILE)}, the last ones are for devices"
            self._told(self.descriptors.name, f"descriptors: {what}; raise LimitNOFILE=", self.descriptors.key)
            raise OSError(errno.EMFILE, what)
        return made

    def window(self, uid: int) -> int:
        """Tell how many messages the socket of a new peer of user *uid* is to take; 0 where there is no limit.

        That is a small part of what is left, so the more peers there are, the less each gets.
        """
        if self.in_flight.limit == NO_LIMIT:
            return 0
        left = self.in_flight.limit - self.in_flight.used
        if not trusted(uid):
            left = min(left, self.in_flight.allowed - self.in_flight.users.get(uid, 0))
        return max(WINDOW_MIN, min(left // _WINDOWS, WINDOW_MAX))

    def show(self, descriptors_in_use: int) -> dict[str, tuple[int, int, int]]:
        """Give used, limit and refused of each budget."""
        shown = {name: (budget.used, budget.limit, budget.refused) for name, budget in self.all.items()}
        shown["descriptors"] = (descriptors_in_use, self.descriptors_end, self.descriptors.refused)
        return shown


def narrow(sock: socket.socket, window: int) -> None:
    """Let *sock* take so many messages that nobody reads, or a few more; as many as usual where *window* is 0."""
    if 0 < window < WINDOW_MAX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, window * _MESSAGE_COST // 2)  # the kernel doubles it


def _privileged() -> bool:
    with open("/proc/self/status") as status:
        words = next(line.split() for line in status if line.startswith("CapEff:"))
    return bool(int(words[1], 16) & _MAY_EXCEED)


def show_bytes(amount: int) -> str:
    """Write a number of bytes in the largest unit that says it in at most one decimal: ``1.5T``."""
    for shift, unit in ((40, "T"), (30, "G"), (20, "M"), (10, "K")):
        if amount >= 1 << shift:
            return f"{amount / (1 << shift):.1f}".removesuffix(".0") + unit
    return str(amount)
