# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An ivshmem client: a host process that does all that a guest's device can.

>>> from doorbelld.ivshmem.client import Client
>>> with Client("/run/doorbelld/demo/socket") as client:      # doctest: +SKIP
...     client.wait_for(lambda: client.vectors == 4, timeout=10)     # all doorbells of ours: the greeting is over
...     client.wait_for(lambda: client.peers, timeout=10)            # somebody else is there
...     client.memory[0:5] = b"hello"                                # the shared memory, mapped
...     peer = next(iter(client))                                    # the first of the others
...     client.notify(peer.id, 0)                                    # ring its vector 0
...     for event in client.poll(timeout=10):                        # joins, leaves, and rings of ours
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
import errno
import os
import select
import socket
import time
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeAlias

from ..errors import (
    DoorbellError,
    LimitExceeded,
    ProtocolBroken,
    ServerClosed,
    ServerUnavailable,
)
from ..fds import native
from ..fds.owned import Fd
from ..wire.ivshmem import ProtocolError
from .environment import inherit
from .joined import Joined
from .membership import Change, Membership, VectorAdded, Welcomed
from .receive import CONNECT_SECONDS, Backoff, broken, closed, lost, map_memory, receive, silent, unavailable
from .spec import VECTORS_MAX

_MESSAGES_MAX = 1024  # in one call, so that a server that never stops talking does not keep the caller


@dataclass(frozen=True, slots=True)
class Rung:
    """Our *vector* was rung *count* times since it was last looked at; at least by one peer, nobody knows which."""

    vector: int
    count: int


Event: TypeAlias = Change | Rung


class Client(Joined):
    """A peer of an ivshmem region, on the host (the seed's IvshmemClient). Not connected until `connect`, or ``with``.

    To join, ring and be rung::

        from doorbelld.ivshmem.client import Client, Rung
        from doorbelld.ivshmem.membership import PeerJoined, PeerLeft, VectorAdded

        with Client("/run/doorbelld/demo/socket") as client:
            client.wait_for(lambda: client.peers, timeout=10)    # until somebody else is there
            client.notify(next(iter(client)).id, 0)              # ring vector 0 of the first of them
            client.memory[0:5] = b"hello"                        # the memory that all share
            for event in client.poll(timeout=10):                # what happened; waits for something
                match event:
                    case Rung(vector, count): ...                # we were rung
                    case PeerJoined(peer) | PeerLeft(peer): ...  # peer.id, peer.vectors
                    case VectorAdded(peer, vector): ...          # one doorbell more, of a peer's or of our own

    A peer is there with its first doorbell, and the rest follow; to ring one that has not come raises `NoSuchVector`.
    Our own come last, so when ``client.vectors`` has reached what the region gives, all who were there are known.

    In a loop of one's own, wait for ``client`` itself, which is a file object to select, poll and selectors::

        select.select([client, sys.stdin], [], [])
        events = client.handle_fds()

    When the server ends, `ServerClosed` is raised once all that came before was given. `reconnect` joins again, as
    somebody else: the ID, the peers and the memory are new.

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
        super().__init__(os.fspath(path), vectors_max)
        self.notified = notified
        self._sock: socket.socket | None = None
        self._epoll: select.epoll | None = None
        self._own: dict[int, int] = {}  # vector by eventfd
        self._failure: DoorbellError | None = None
        self._unseen: list[Event] = []  # what happened before an error kept it from being given

    # The connection

    @classmethod
    def adopt(
        cls,
        sock: socket.socket,
        *,
        notified: Callable[[Client, int, int], None] | None = None,
        vectors_max: int = VECTORS_MAX,
        timeout: float = CONNECT_SECONDS,
    ) -> Client:
        """Be the client at the other end of *sock*, which is connected to a server (and taken over).

        Raises:
            ServerUnavailable, ServerClosed, ProtocolBroken, LimitExceeded: as `connect`.
        """
        client = cls("", notified=notified, vectors_max=vectors_max)
        client._begin(sock, time.monotonic() + timeout)
        return client

    @classmethod
    def from_environment(
        cls,
        environment: MutableMapping[str, str] | None = None,
        *,
        notified: Callable[[Client, int, int], None] | None = None,
    ) -> Client:
        """Be the peer as which ``doorbellctl attach REGION --exec`` started this process (see `environment`).

        Everybody who was there is known at once. With ``--hand-over`` later joins and leaves come as events; without
        it they do not, and doorbells of who has left ring nobody. `ServerClosed` comes either way when it is over.

        The variables are taken out of *environment* (None: that of the process), and the descriptors are closed with
        the client: a second call, or a child, finds none.

        Raises:
            ServerUnavailable: the process was not started so, or its descriptors were closed on the way.
            ProtocolBroken: what the variables say can't be.
        """
        sock, greeting = inherit(os.environ if environment is None else environment)
        client = cls("", notified=notified)
        client._begin(sock, time.monotonic(), greeting)
        return client

    def connect(self, timeout: float | None = CONNECT_SECONDS) -> Self:
        """Connect, and wait until the server has told our ID and given the memory (ivshmem_client_connect).

        The other peers' doorbells, and then our own, come after that, as events: see `wait_for`.

        Args:
            timeout: how many seconds to wait; None is for ever.

        Raises:
            ServerUnavailable: nobody is there, or says nothing for *timeout* seconds.
            ServerClosed: the server closed the connection, as one does that refuses us.
            ProtocolBroken: whoever is there is no ivshmem server, or refuses us.
            LimitExceeded: there are no descriptors left.
        """
        self.close()
        if not self.path:
            raise ServerUnavailable("this connection was handed to us and can't be made anew; give Client a path")
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

        Args:
            timeout: when to give up; one try is made in any case.
            backoff: the waits between tries; from 0.1 to 5 seconds if not given.

        Raises:
            ServerUnavailable, ServerClosed, ProtocolBroken: what the last try said.
            LimitExceeded: there are no descriptors left; this is not tried again.
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
        self._unseen = []
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
        self._unmap()

    def __enter__(self) -> Self:
        return self if self.connected else self.connect()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _begin(
        self, sock: socket.socket, deadline: float | None, greeting: Iterable[tuple[bytes, Sequence[Fd]]] = ()
    ) -> None:
        self._membership = Membership(self.vectors_max)
        self.doorbells = self._membership.doorbells
        self._sock = sock
        try:
            sock.setblocking(False)
            try:
                self._epoll = select.epoll()
            except OSError as error:
                raise LimitExceeded(f"no descriptor to wait with: {error.strerror}; raise ulimit -n") from error
            self._epoll.register(sock.fileno(), select.EPOLLIN)
            for data, fds in greeting:
                for change in self._membership.feed(data, fds):
                    self._apply(change)
            while not self._membership.welcome:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0 and not self._ready(0):
                    raise silent(self._server)
                self.poll(left)
        except ProtocolError as error:
            self.close()
            raise ProtocolBroken(f"no place in a region: {error}") from error
        except BaseException:
            self.close()
            raise

    # What there is

    @property
    def connected(self) -> bool:
        """Whether there is a connection (as far as is known: see `poll`)."""
        return self._sock is not None

    # What happens

    def fileno(self) -> int:
        """Give one descriptor that is readable when there is something to handle; for select, poll and loops.

        It stays the same until `close`, and is not to be read: `handle_fds` does what there is to do.

        Raises:
            ServerClosed: there is no connection.
        """
        if self._epoll is None:
            raise self._unconnected()
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
            What happened, in order, for each descriptor. When the connection ended, all that came before is given,
            and the next call raises the error.

        Raises:
            ServerClosed: the server closed the connection, or there is none.
            ProtocolBroken: the server sent what may not come.
            LimitExceeded: there was no descriptor left for a doorbell.
        """
        events, self._unseen = self._unseen, []
        if self._sock is None:
            if events:
                return events
            raise self._unconnected()
        if self._failure is None:
            try:
                self._handle(self._ready(0) if ready is None else ready, events)
            except BaseException:  # of who is notified
                self._unseen = events
                raise
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
        if self._unseen:
            return self.handle_fds()
        if self._sock is None:
            raise self._unconnected()
        ready = self._ready(timeout)
        return self.handle_fds(ready) if ready else []

    def wait_for(self, condition: Callable[[], object], timeout: float | None = None) -> list[Event]:
        """Handle events until *condition* holds, which is looked at first, and after each batch of events.

        Returns:
            What happened meanwhile. If an error is raised, the next `poll` gives it.

        Raises:
            TimeoutError: it does not hold after *timeout* seconds.
            ServerClosed, ProtocolBroken, LimitExceeded: as `handle_fds`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        events: list[Event] = []
        try:
            while not condition():
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(f"what was waited for did not happen within {timeout:g} s")
                events += self.poll(left)
        except BaseException:
            self._unseen = events + self._unseen
            raise
        return events

    @property
    def _server(self) -> str:
        return self.path or "the other end of the socket"

    def _ready(self, timeout: float | None) -> list[int]:
        assert self._epoll is not None
        return [fd for fd, _ in self._epoll.poll(None if timeout is None else max(0.0, timeout))]

    def _handle(self, ready: Iterable[int], events: list[Event]) -> None:
        for fd in ready:
            if fd in self._own:
                self._take_rings(fd, events)
            elif self._sock is not None and fd == self._sock.fileno():
                self._take_messages(events)
        if self._failure is not None:  # the last look at our doorbells
            for fd in list(self._own):
                if fd in self._own:
                    self._take_rings(fd, events)

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
            greeted = self._membership.welcome
            try:
                data, fds = receive(self._sock)
                if not data:
                    self._fail(closed(self._server, greeted))
                    return
                for change in self._membership.feed(data, fds):
                    self._apply(change)
                    events.append(change)
                if not greeted and self._membership.welcome:
                    return  # what comes after the greeting (the kernel stopped there) is for who waits for events
            except BlockingIOError:
                return
            except ProtocolError as error:
                self._fail(broken(self._server, error))
            except LimitExceeded as error:
                self._fail(error)
            except OSError as error:
                self._fail(lost(self._server, error))

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
                self._memory = map_memory(self._membership.memory)
                self.own_id = peer_id
            case VectorAdded(peer, vector) if peer is self._membership.own:
                assert self._epoll is not None
                try:
                    self._epoll.register(peer.eventfds[vector], select.EPOLLIN)
                except OSError as error:
                    if error.errno != errno.EPERM:
                        raise LimitExceeded(f"our doorbell can't be watched: {error.strerror}") from error
                    raise ProtocolError(f"what it sent as our doorbell can't be watched: {error.strerror}") from error
                self._own[peer.eventfds[vector]] = vector
