# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An ivshmem client for asyncio: what `client.Client` is for programs that wait by themselves.

>>> import asyncio
>>> from doorbelld.ivshmem.aioclient import AsyncClient
>>> from doorbelld.ivshmem.client import Rung
>>> async def main():
...     async with AsyncClient("/run/doorbelld/demo/socket") as client:
...         await client.wait_for(lambda: client.peers, timeout=10)   # somebody else is there
...         client.memory[0:5] = b"hello"                             # the shared memory, mapped
...         client.notify(next(iter(client)).id, 0)                   # ring vector 0 of the first of the others
...         async for event in client:                                # joins, leaves, and rings of ours
...             print(event)
>>> asyncio.run(main())                                               # doctest: +SKIP

Theory of operation
-------------------
A `Link` does the work in the loop, whether anybody reads events or not: ``peers``, ``rings`` and the rest are always as
the server has told. Events are for who wants to know what changed. Who reads slowly is not a reason to stop reading
the server: rings of a vector add up to one event, and when too many changes wait, they are dropped, and what is told
next is the difference between what the reader was told and how things are. So is what the very first reader is told:
all that is there.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeAlias

from ..errors import DoorbellError, ServerClosed, ServerUnavailable
from ..fds.owned import Fd
from .client import Rung
from .joined import Joined
from .link import ClientState, Link
from .membership import Change, PeerJoined, PeerLeft, RemotePeer, StrayLeave, VectorAdded, Welcomed
from .receive import CONNECT_SECONDS, map_memory
from .spec import VECTORS_MAX

CHANGES_MAX = 1024
"""How many changes wait for their reader; with one more, they become a difference."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection ended, and with it everybody left; *reason* says why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Reconnected:
    """A server has welcomed us again, now as *id*; who is there is told from here on."""

    id: int


AsyncEvent: TypeAlias = Change | Rung | Disconnected | Reconnected


class AsyncClient(Joined):
    """A peer of an ivshmem region, in an event loop. Not connected until `connect`, or ``async with``.

    To join, ring and be rung::

        async with AsyncClient("/run/doorbelld/demo/socket") as client:
            await client.wait_for(lambda: client.peers, timeout=10)
            client.notify(next(iter(client)).id, 0)
            async for event in client:
                match event:
                    case Rung(vector, count): ...                # we were rung
                    case PeerJoined(peer) | PeerLeft(peer): ...  # peer.id; who left has no doorbells any more
                    case VectorAdded(peer, vector): ...          # one doorbell more, of a peer's or of our own
                    case Disconnected(reason): ...               # everybody is gone
                    case Reconnected(id): ...                    # and we are back, as somebody else

    To ring never waits: ``notify``, ``notify_all_vectors`` and ``notify_broadcast`` are plain methods. A peer is there
    with its first doorbell, and the rest follow. Use it in the loop that `connect` was called in, and nowhere else.

    Args:
        path: the server's UNIX socket.
        reconnect: whether to join again when the connection ends, for ever, with growing waits. If not, iteration ends
            with the connection.
        notified: called with ``(client, vector, count)`` for each own doorbell that was rung, besides the `Rung`.
        vectors_max: how many vectors of a peer are taken; a server that sends more breaks the protocol.
        quiet: how long a doorbell that was rung is left alone, in seconds, so that a storm of rings costs a bounded
            number of events; None is a millisecond. 0 reads each at once.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        reconnect: bool = True,
        notified: Callable[[AsyncClient, int, int], None] | None = None,
        vectors_max: int = VECTORS_MAX,
        quiet: float | None = None,
    ) -> None:
        """See the class."""
        super().__init__(os.fspath(path), vectors_max)
        self.notified = notified
        self._reconnect = reconnect
        self._quiet = quiet
        self._link: Link | None = None
        self._news = asyncio.Event()
        self._queue: deque[tuple[AsyncEvent, int]] = deque()  # and the connection that it is of
        self._rings: dict[int, int] = {}  # those that the queue has a Rung of
        self._connection = 0  # how many there were
        self._told_connection = 0  # which one the reader knows of
        self._told: dict[int, tuple[RemotePeer, int]] = {}  # whom, and how many of their doorbells
        self._behind = True  # the queue is not all that the reader is to be told

    # The connection

    @classmethod
    async def adopt(
        cls,
        sock: socket.socket,
        *,
        notified: Callable[[AsyncClient, int, int], None] | None = None,
        vectors_max: int = VECTORS_MAX,
        timeout: float | None = CONNECT_SECONDS,
        quiet: float | None = None,
    ) -> AsyncClient:
        """Be the client at the other end of *sock*, which is connected to a server (and taken over).

        Raises:
            ServerUnavailable, ServerClosed, ProtocolBroken, LimitExceeded: as `connect`.
        """
        client = cls("", reconnect=False, notified=notified, vectors_max=vectors_max, quiet=quiet)
        client._begin().adopt(sock)
        await client._welcomed(timeout)
        return client

    async def connect(self, timeout: float | None = CONNECT_SECONDS) -> Self:
        """Connect, and wait until the server has told our ID and given the memory.

        With ``reconnect`` it tries again and again, for *timeout* seconds (None: for ever).

        Raises:
            ServerUnavailable: nobody is there, or says nothing, or not in time.
            ServerClosed, ProtocolBroken: whoever is there refuses us, or is no ivshmem server.
            LimitExceeded: there are no descriptors left.
        """
        self.close()
        self._begin().start()
        await self._welcomed(timeout)
        return self

    def close(self) -> None:
        """Leave: close the connection, all doorbells and the memory. A second time is nothing. Iteration ends."""
        link, self._link = self._link, None
        if link is not None:
            link.close()
            self._forget()
            self._stir()

    async def __aenter__(self) -> Self:
        return self if self._link is not None else await self.connect()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self) -> Link:
        self._link = Link(
            self.path,
            asyncio.get_running_loop(),
            changed=self._changed,
            rung=self._rung,
            moved=self._moved,
            accept=self._accept,
            vectors_max=self.vectors_max,
            reconnect=self._reconnect,
            quiet=self._quiet,
        )
        return self._link

    async def _welcomed(self, timeout: float | None) -> None:
        try:
            await self.wait_for(lambda: self.connected, timeout)
        except BaseException as error:
            reason, failure = self.reason, self._link and self._link.failure
            self.close()
            if isinstance(error, TimeoutError):
                raise failure or ServerUnavailable(reason) from error
            raise

    # What there is

    @property
    def connected(self) -> bool:
        """Whether a server has welcomed us, and the connection has not ended."""
        return self.own_id is not None

    @property
    def reason(self) -> str:
        """Why we are not connected; empty if we are."""
        return "connect first" if self._link is None else self._link.reason

    @property
    def rings(self) -> list[int]:
        """How often we were rung, by own vector; they count on over connections."""
        return [] if self._link is None else self._link.totals

    # What happens

    async def wait_for(self, condition: Callable[[], object], timeout: float | None = None) -> None:
        """Wait until *condition* holds; it is looked at whenever something has happened.

        Raises:
            TimeoutError: it does not hold after *timeout* seconds.
            ServerClosed, ServerUnavailable, ProtocolBroken, LimitExceeded: there is no connection, and will be none.
        """
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    if self._over:
                        raise (self._link and self._link.failure) or self._unconnected()
                    await self._news.wait()
        except TimeoutError:
            if timeout is None:  # it is the condition's own
                raise
            raise TimeoutError(f"what was waited for did not happen within {timeout:g} s") from None

    def __aiter__(self) -> AsyncIterator[AsyncEvent]:
        """Give events, for as long as there is a connection or will be one. One reader at a time."""
        return self

    async def __anext__(self) -> AsyncEvent:
        """Give the next event."""
        while (event := self._next()) is None:
            if self._over:
                raise StopAsyncIteration
            await self._news.wait()
        return event

    @property
    def _over(self) -> bool:
        return self._link is None or (self._link.over and self._link.state is not ClientState.CONNECTED)

    def _next(self) -> AsyncEvent | None:
        if not self._queue and self._behind:
            self._catch_up()
        if not self._queue:
            return None
        event, connection = self._queue.popleft()
        match event:
            case Rung(vector):
                return Rung(vector, self._rings.pop(vector))
            case Welcomed() | Reconnected():
                self._told_connection = connection
            case Disconnected():
                self._told.clear()
                self._told_connection = 0
            case PeerLeft(peer):
                self._told.pop(peer.id, None)
            case PeerJoined(peer):
                self._told[peer.id] = peer, 0
            case VectorAdded(peer, vector):
                self._told[peer.id] = peer, vector + 1
        return event

    def _catch_up(self) -> None:
        """Queue the difference between what the reader was told and how things are."""
        self._behind = False
        told, tell = dict(self._told), self._enqueue
        if self._told_connection and (self._told_connection != self._connection or not self.connected):
            tell(Disconnected(self.reason or "the connection ended, and there is another one"))
            told.clear()
        if self.own_id is None:
            return
        if self._told_connection != self._connection:
            tell(Welcomed(self.own_id) if self._connection == 1 else Reconnected(self.own_id))
        for peer, _ in told.values():
            if self._membership.search(peer.id) is not peer:
                tell(PeerLeft(peer))
        for peer in (*self._membership.peers.values(), self._membership.own):
            known, vectors = told.get(peer.id, (None, 0))
            if known is not peer:
                vectors = 0
                if peer is not self._membership.own:
                    tell(PeerJoined(peer))
            for vector in range(vectors, peer.vectors):
                tell(VectorAdded(peer, vector))

    def _tell(self, event: AsyncEvent) -> None:
        if not self._behind:
            self._enqueue(event)
            if len(self._queue) - len(self._rings) > CHANGES_MAX:
                self._behind = True
                self._queue = deque(each for each in self._queue if isinstance(each[0], Rung))
        self._stir()

    def _enqueue(self, event: AsyncEvent) -> None:
        self._queue.append((event, self._connection))

    def _stir(self) -> None:
        """Wake all who wait."""
        self._news.set()
        self._news = asyncio.Event()

    # What the link tells

    def _accept(self, memory: Fd) -> None:
        self._memory = map_memory(memory)

    def _changed(self, change: Change) -> None:
        match change:
            case Welcomed(peer_id) if self._connection > 1:
                self._tell(Reconnected(peer_id))
            case StrayLeave() if self._behind:
                pass  # it makes no difference
            case _:
                self._tell(change)

    def _rung(self, vector: int, count: int) -> None:
        if vector not in self._rings:
            self._rings[vector] = 0
            self._enqueue(Rung(vector, 0))
        self._rings[vector] += count
        if self.notified is not None:
            self.notified(self, vector, count)
        self._stir()

    def _moved(self, old: ClientState, new: ClientState) -> None:
        assert self._link is not None
        if new is ClientState.CONNECTED:
            self._connection += 1
            self._membership = self._link.membership
            self.doorbells, self.own_id = self._membership.doorbells, self._membership.id
        elif old is ClientState.CONNECTED:
            self._forget()
            self._tell(Disconnected(self.reason))
        self._stir()

    def _forget(self) -> None:
        self.own_id = None
        self.doorbells = {}
        self._unmap()

    def missing(self, peer_id: int | None, vector: int | None) -> DoorbellError:
        """See `Joined.missing`."""
        return self._unconnected() if self.own_id is None else super().missing(peer_id, vector)

    def _unconnected(self) -> ServerClosed:
        return ServerClosed(f"not connected to {self.path or 'a server'}: {self.reason}")
