# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Methods that several interfaces have in common: of what has doorbells, and of what shares memory.

They are mixed into the views of regions, of clients and of flat devices; the words for them are in each XML.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from ..errors import InvalidOptions, LimitExceeded, Problem
from ..fds.owned import Fd
from .authority import Action
from .views import method

READ_MAX = 1 << 20

T = TypeVar("T")


def if_room(make: Callable[[], T]) -> T:
    """Give what *make* makes, which takes a descriptor."""
    try:
        return make()
    except OSError as error:
        raise LimitExceeded(f"no descriptor left for it: {error.strerror}; raise LimitNOFILE=") from error


class Ringer(Protocol):
    """A region, or who is in one."""

    def notify(self, peer_id: int, vector: int) -> None:
        """Ring one doorbell."""

    def notify_peer(self, peer_id: int) -> None:
        """Ring all doorbells of a peer."""

    def broadcast(self) -> None:
        """Ring all doorbells of all."""

    def notify_many(self, targets: Sequence[Sequence[int]]) -> None:
        """Ring many (peer, vector), or none."""

    def doorbell(self, peer_id: int, vector: int) -> int:
        """Find the eventfd of a doorbell, borrowed."""


class DoorbellMethods:
    """Ring the doorbells of *ringer*, or have them handed out."""

    _ringer: Ringer

    @method("Notify", Action.NOTIFY)
    def notify(self, peer: int, vector: int) -> None:
        """Ring one doorbell."""
        self._ringer.notify(peer, vector)

    @method("NotifyPeer", Action.NOTIFY)
    def notify_peer(self, peer: int) -> None:
        """Ring all doorbells of a peer."""
        self._ringer.notify_peer(peer)

    @method("Broadcast", Action.NOTIFY)
    def broadcast(self) -> None:
        """Ring everybody."""
        self._ringer.broadcast()

    @method("NotifyMany", Action.NOTIFY)
    def notify_many(self, targets: list[tuple[int, int]]) -> None:
        """Ring many."""
        self._ringer.notify_many(targets)

    @method("OpenDoorbell", Action.NOTIFY)
    def open_doorbell(self, peer: int, vector: int) -> Fd:
        """Hand out an eventfd."""
        doorbell = self._ringer.doorbell(peer, vector)
        return if_room(lambda: Fd(os.dup(doorbell)))


class Shared(Protocol):
    """Memory that is shared."""

    @property
    def size(self) -> int:
        """Bytes."""

    def dup(self) -> Fd:
        """Give another descriptor of it."""

    def read(self, offset: int, length: int) -> bytes:
        """Read within the bounds."""

    def write(self, offset: int, data: bytes) -> None:
        """Write within the bounds."""


class MemoryMethods:
    """Reach the memory that `_shared` finds, or have it handed out."""

    def _shared(self) -> Shared:
        raise NotImplementedError

    @method("OpenMemory", Action.OPEN_MEMORY)
    def open_memory(self) -> Fd:
        """Hand out the memory."""
        return if_room(self._shared().dup)

    @method("ReadMemory", Action.OPEN_MEMORY)
    def read_memory(self, offset: int, length: int) -> bytes:
        """Read some of the memory."""
        return self._within(offset, length).read(offset, length)

    @method("WriteMemory", Action.OPEN_MEMORY)
    def write_memory(self, offset: int, data: bytes) -> None:
        """Write some of the memory."""
        self._within(offset, len(data)).write(offset, bytes(data))

    def _within(self, offset: int, length: int) -> Shared:
        """Give the memory, if *length* bytes at *offset* lie in it and are not too many."""
        shared = self._shared()
        size = shared.size
        if length > READ_MAX or offset > size or length > size - offset:
            cause = f"{length} bytes at {offset} are not within the {size} bytes of the memory, or more than {READ_MAX}"
            raise InvalidOptions([Problem("offset, length", cause, "ask for less")])
        return shared
