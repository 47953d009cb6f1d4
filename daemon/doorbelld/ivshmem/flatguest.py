# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A flat device on a connection of its own, a blocking `Client`: `flat` has an example."""

from __future__ import annotations

from collections.abc import Callable
from mmap import mmap
from types import TracebackType
from typing import Self

from ..errors import MemoryUnavailable
from .client import Client, Event
from .flat import FlatDevice
from .receive import CONNECT_SECONDS


class FlatGuest(FlatDevice):
    """A device on a connection of its own; made by `FlatDevice.connect`. One thread at a time may use it."""

    def __init__(
        self,
        client: Client,
        *,
        irq: Callable[[int, int], object] | None = None,
        trouble: Callable[[str], object] | None = None,
        memory_size: int = 0,
    ) -> None:
        """Take over *client*."""
        super().__init__(client, irq=irq, trouble=trouble, memory_size=memory_size)
        self.client = client
        """What a guest can't see: who is there, with how many vectors."""
        client.notified = self._notified

    def join(self, timeout: float | None = CONNECT_SECONDS) -> Self:
        """Connect, again if need be (then as another peer); errors as `FlatDevice.connect`."""
        self.client.connect(timeout)
        try:
            self.check_memory(len(self.client.memory))
        except MemoryUnavailable:
            self.close()
            raise
        return self

    @property
    def memory(self) -> mmap:
        """The shared memory, mapped to be read and written; see `Client.memory`."""
        return self.client.memory

    def fileno(self) -> int:
        """Give a descriptor that is readable when there is something for `poll` to handle."""
        return self.client.fileno()

    def poll(self, timeout: float | None = None) -> list[Event]:
        """Wait until something happens, *timeout* seconds at most (None: for ever); pulse the line if we were rung.

        Returns:
            What happened; nothing if nothing did in time.

        Raises:
            ServerClosed, ProtocolBroken, LimitExceeded: as `Client.poll`. The registers can be used even then.
        """
        return self.client.poll(timeout)

    def wait_for(self, condition: Callable[[], object], timeout: float | None = None) -> list[Event]:
        """Handle what happens until *condition* holds; as `Client.wait_for`."""
        return self.client.wait_for(condition, timeout)

    def close(self) -> None:
        """Leave the region; a second time does nothing."""
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _notified(self, _client: Client, vector: int, count: int) -> None:
        self.interrupt(vector, count)
