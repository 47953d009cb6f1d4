# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An ivshmem client: a host process that does all that a guest's device can.

>>> from doorbelld.ivshmem.client import Client
>>> with Client("/run/doorbelld/demo/socket") as client:      # doctest: +SKIP
...     client.wait_for(lambda: client.peers, timeout=10)     # somebody else is there
...     client.memory[0:5] = b"hello"                         # the shared memory, mapped
...     peer = next(iter(client))                             # the first of the others
...     client.notify(peer.id, 0)                             # ring its vector 0
...     for event in client.poll(timeout=10):                 # joins, leaves, and rings of ours
...         print(event)

Theory of operation
-------------------
The server is the only one that talks; what it says makes a `Membership`. Rings never pass it: to ring is to write to an
eventfd of the peer's, to be rung is to read one of our own. Who rang can't be known.

Nothing happens behind the caller's back. `poll` waits and handles what there is; a caller with a loop of its own waits
for `fileno` (or for each of `fds`) to become readable and calls `handle_fds`. One thread at a time may use a client.
In an event loop, use `aioclient.AsyncClient`.

When the connection ends, what came before is given first; the next call raises `ServerClosed` or `ProtocolBroken`, and
the client has forgotten its peers. `connect` or `reconnect` begins anew, under another ID.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Self, TypeAlias

from ..errors import (
    DoorbellError,
    LimitExceeded,
    NoSuchPeer,
    NoSuchVector,
    ProtocolBroken,
    ServerClosed,
    ServerUnavailable,
)
from ..fds import native
from ..fds.bells import Bells
from ..wire.ivshmem import ProtocolError
from .membership import Change, Membership, RemotePeer, VectorAdded, Welcomed
from .receive import Backoff, receive, unavailable
from .spec import VECTORS_MAX

CONNECT_SECONDS = 10.0
_MESSAGES_MAX = 1024  # in one call, so that a server that never stops talking does not keep the caller


@dataclass(frozen=True, slots=True)
class Rung:
    """Our *vector* was rung *count* times since it was last looked at; at least by one peer, nobody knows which."""

    vector: int
    count: int


Event: TypeAlias = Change | Rung


def missing(doorbells: Mapping[int, object], own_id: int | None, peer_id: int, vector: int | None) -> DoorbellError:
    """Say what is there in place of a doorbell that is not."""
    if own_id is None:
        return NoSuchPeer(f"no peer {peer_id}: not connected to a server; connect first")
    if vector is None:
        there = ", ".join(str(each) for each in sorted(doorbells)[:8] if each != own_id)
        more = " ..." if len(doorbells) > 8 else ""
        return NoSuchPeer(f"no peer {peer_id}; there is: {there or 'nobody else'}{more} (and we are {own_id})")
    count = len(doorbells[peer_id])  # type: ignore[arg-type]
    return NoSuchVector(f"peer {peer_id} has {f'vectors 0 to {count - 1}' if count else 'no vector'}, not {vector}")


class Client(Bells):
    """A peer of an ivshmem region, on the host (the seed's IvshmemClient). Not connected until `connect`, or ``with``.

    Args:
        path: the server's UNIX socket.
        notified: called with ``(client, vector, count)`` for each own doorbell that was rung, besides the `Rung` that
            is given (the seed's IvshmemClientNotifCb).
        vectors_max: how many vectors of a peer are taken; a server that sends more breaks the protocol.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        notified: Callable[[Client, int, int], None] | None = None,
        vectors_max: int = VECTORS_MAX,
    ) -> None:
        """See the class (ivshmem_client_init)."""
        self.path = os.fspath(path)
        self.notified = notified
        self.vectors_max = vectors_max
        self._sock: socket.socket | None = None
        self._epoll: select.epoll | None = None
        self._membership = Membership(vectors_max)
        self._memory: mmap.mmap | None = None
        self._own: dict[int, int] = {}  # vector by eventfd
        self._failure: DoorbellError | None = None

    # The connection

    @classmethod
    def adopt(cls, sock: socket.socket, *, vectors_max: int = VECTORS_MAX, timeout: float = CONNECT_SECONDS) -> Client:
        """Be the client at the other end of *sock*, which is connected to a server (and taken over).

        Raises:
            ServerUnavailable, ProtocolBroken: as `connect`.
        """
        client = cls("", vectors_max=vectors_max)
        client._begin(sock, time.monotonic() + timeout)
        return client

    def connect(self, timeout: float | None = CONNECT_SECONDS) -> Self:
        """Connect, and wait until the server has told our ID and given the memory (ivshmem_client_connect).

        The other peers' doorbells, and then our own, come after that: see `wait_for`.

        Raises:
            ServerUnavailable: nobody is there, or says nothing for *timeout* seconds.
            ProtocolBroken: whoever is there is no ivshmem server, or refuses us.
            LimitExceeded: there are no descriptors left.
        """
        self.close()
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        except OSError as error:
            raise LimitExceeded(f"no descriptor for a connection: {error.strerror}; raise ulimit -n") from error
        try:
            sock.settimeout(timeout)
            sock.connect(self.path)
        except OSError as error:
            sock.close()
            raise unavailable(self.path, error) from error
        except BaseException:
            sock.close()
            raise
        self._begin(sock, deadline)
        return self

    def reconnect(self, timeout: float | None = None, backoff: Backoff | None = None) -> Self:
        """Connect, trying again and again, for *timeout* seconds at most (None: for ever), with growing waits.

        Raises:
            ServerUnavailable, ProtocolBroken: what the last try said.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        backoff = backoff or Backoff()
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                return self.connect(CONNECT_SECONDS if left is None else min(left, CONNECT_SECONDS))
            except (ServerUnavailable, ServerClosed, ProtocolBroken):
                wait = backoff.next()
                if deadline is not None and time.monotonic() + wait >= deadline:
                    raise
            time.sleep(wait)

    def close(self) -> None:
        """Leave: close the connection, all doorbells and the memory (ivshmem_client_close). A second time is nothing.

        While somebody holds a view of the memory (a memoryview, an array made of it) it stays mapped for them.
        """
        self._failure = None
        self._own.clear()
        self.own_id = None
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        self._membership.close()
        self.doorbells = {}
        if self._memory is not None:
            with contextlib.suppress(BufferError):
                self._memory.close()
            self._memory = None

    def __enter__(self) -> Self:
        return self if self.connected else self.connect()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _begin(self, sock: socket.socket, deadline: float | None) -> None:
        self._membership = Membership(self.vectors_max)
        self.doorbells = self._membership.doorbells
        self._sock = sock
        try:
            sock.setblocking(False)
            self._epoll = select.epoll()
            self._epoll.register(sock.fileno(), select.EPOLLIN)
            while not self._membership.welcome:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0 and not self._ready(0):
                    raise ServerUnavailable(f"the server at {self.path or 'the socket'} accepts and says nothing")
                for _ in self.poll(left):
                    pass
        except BaseException:
            self.close()
            raise

    # What there is

    @property
    def connected(self) -> bool:
        """Whether there is a connection (as far as is known: see `poll`)."""
        return self._sock is not None

    @property
    def id(self) -> int:
        """Our own ID.

        Raises:
            ServerClosed: there is no connection.
        """
        if self.own_id is None:
            raise ServerClosed(f"not connected to {self.path or 'a server'}; connect first")
        return self.own_id

    @property
    def vectors(self) -> int:
        """How many doorbells of our own have come so far."""
        return self._membership.own.vectors

    @property
    def peers(self) -> Mapping[int, RemotePeer]:
        """The others by ID, in the order of joining; a view that changes as they come and go."""
        return MappingProxyType(self._membership.peers)

    def __iter__(self) -> Iterator[RemotePeer]:
        """Go over the others as they are now; the loop may handle events meanwhile."""
        return iter(list(self._membership.peers.values()))

    def search_peer(self, peer_id: int) -> RemotePeer:
        """Find a peer, or ourselves, by ID (ivshmem_client_search_peer).

        Raises:
            NoSuchPeer: naming who is there instead.
        """
        if (peer := self._membership.search(peer_id)) is None:
            raise self.missing(peer_id, None)
        return peer

    @property
    def memory(self) -> mmap.mmap:
        """The shared memory, mapped to be read and written.

        A server whose memory is not sealed can truncate it; to touch what is gone then ends the process (SIGBUS).
        doorbelld's memory of the kinds memfd and hugetlb is sealed.

        Raises:
            ServerClosed: there is no connection.
        """
        if self._memory is None:
            raise ServerClosed(f"not connected to {self.path or 'a server'}; connect first")
        return self._memory

    def dump(self) -> str:
        """Describe the client, its peers and all vectors, for people (ivshmem_client_dump)."""
        if self.own_id is None:
            return f"not connected to {self.path or 'a server'}"
        lines = [f"our ID: {self.own_id}", f"memory: {len(self.memory)} bytes", *_vectors(self._membership.own)]
        for peer in self:
            lines += [f"peer {peer.id}", *_vectors(peer)]
        return "\n".join(lines)

    def missing(self, peer_id: int, vector: int | None) -> DoorbellError:
        """See `Bells.missing`."""
        return missing(self.doorbells, self.own_id, peer_id, vector)

    # What happens

    def fileno(self) -> int:
        """Give one descriptor that is readable when there is something to handle; for select, poll and loops."""
        if self._epoll is None:
            raise ServerClosed(f"not connected to {self.path or 'a server'}; connect first")
        return self._epoll.fileno()

    def fds(self) -> list[int]:
        """Give all descriptors that are to be watched: the connection and our own doorbells (ivshmem_client_get_fds).

        They change while our doorbells come; `fileno` is one that does not.
        """
        return [] if self._sock is None else [self._sock.fileno(), *self._own]

    def handle_fds(self, ready: Iterable[int] | None = None) -> list[Event]:
        """Handle what there is, without waiting (ivshmem_client_handle_fds).

        Args:
            ready: descriptors that were found readable; those that are not ours are ignored. None: find out.

        Returns:
            What happened, in order, for each descriptor.

        Raises:
            ServerClosed: the server closed the connection.
            ProtocolBroken: the server sent what may not come.
            LimitExceeded: there was no descriptor left for a doorbell.
        """
        if self._sock is None:
            raise ServerClosed(f"not connected to {self.path or 'a server'}; connect first")
        events: list[Event] = []
        for fd in self._ready(0) if ready is None else ready:
            if fd in self._own:
                self._take_rings(fd, events)
            elif self._sock is not None and fd == self._sock.fileno():
                self._take_messages(events)
        if self._failure is not None and not events:
            failure = self._failure
            self.close()
            raise failure
        return events

    def poll(self, timeout: float | None = None) -> list[Event]:
        """Wait until something happens, *timeout* seconds at most (None: for ever), and handle it.

        Returns:
            What happened; nothing if nothing did in time.

        Raises:
            ServerClosed, ProtocolBroken, LimitExceeded: as `handle_fds`.
        """
        if self._sock is None:
            raise ServerClosed(f"not connected to {self.path or 'a server'}; connect first")
        ready = self._ready(timeout)
        return self.handle_fds(ready) if ready else []

    def wait_for(self, condition: Callable[[], object], timeout: float | None = None) -> list[Event]:
        """Handle events until *condition* holds.

        Returns:
            What happened meanwhile.

        Raises:
            TimeoutError: it does not hold after *timeout* seconds.
            ServerClosed, ProtocolBroken, LimitExceeded: as `handle_fds`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        events: list[Event] = []
        while not condition():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"what was waited for did not happen within {timeout:g} s")
            events += self.poll(left)
        return events

    def _ready(self, timeout: float | None) -> list[int]:
        assert self._epoll is not None
        return [fd for fd, _ in self._epoll.poll(None if timeout is None else max(0.0, timeout))]

    def _take_rings(self, fd: int, events: list[Event]) -> None:
        count, error = native.drain(fd)
        if error:
            self._fail(ProtocolBroken(f"doorbell {self._own[fd]} can't be read: {os.strerror(error)}"))
        if count:
            vector = self._own[fd]
            events.append(Rung(vector, count))
            if self.notified is not None:
                self.notified(self, vector, count)

    def _take_messages(self, events: list[Event]) -> None:
        assert self._sock is not None
        for _ in range(_MESSAGES_MAX):
            if self._failure is not None:
                return
            try:
                data, fds = receive(self._sock)
                if not data:
                    self._fail(ServerClosed(f"the server at {self.path or 'the socket'} closed the connection"))
                    return
                for change in self._membership.feed(data, fds):
                    self._apply(change)
                    events.append(change)
                    if self._sock is None:  # closed by who heard of it
                        return
            except BlockingIOError:
                return
            except ProtocolError as error:
                broken = ProtocolBroken(f"the server at {self.path or 'the socket'} breaks the protocol: {error}")
                broken.__cause__ = error
                self._fail(broken)
            except LimitExceeded as error:
                self._fail(error)
            except OSError as error:
                self._fail(ServerClosed(f"the connection to {self.path or 'the server'} broke: {error.strerror}"))

    def _fail(self, failure: DoorbellError) -> None:
        """Remember why the connection is over; it is told when all that came before was."""
        self._failure = self._failure or failure
        if self._sock is not None:
            with contextlib.suppress(OSError):  # it stays readable from now on, so whoever waits for it comes
                self._sock.shutdown(socket.SHUT_RDWR)

    def _apply(self, change: Change) -> None:
        match change:
            case Welcomed(peer_id):
                assert self._membership.memory is not None
                fd = self._membership.memory.fileno()
                try:
                    self._memory = mmap.mmap(fd, os.fstat(fd).st_size)
                except (OSError, ValueError) as error:
                    raise ProtocolError(f"what it sent as memory can't be mapped: {error}") from error
                self.own_id = peer_id
            case VectorAdded(peer, vector) if peer is self._membership.own:
                assert self._epoll is not None
                try:
                    self._epoll.register(peer.eventfds[vector], select.EPOLLIN)
                except OSError as error:
                    raise ProtocolError(f"what it sent as our doorbell can't be watched: {error.strerror}") from error
                self._own[peer.eventfds[vector]] = vector


def _vectors(peer: RemotePeer) -> Iterator[str]:
    for vector, fd in enumerate(peer.eventfds):
        yield f"  vector {vector}: eventfd {fd}"
