# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A connection to an ivshmem server in an event loop; it comes back when it ends.

Theory of operation
-------------------
A `Link` never waits and never raises for what the server does. It connects, feeds what comes into a `Membership`, a
bounded number of messages at each turn of the loop, and reads our own doorbells. What happens is told by callbacks;
what is wrong is its ``reason``. A server may be absent, full, silent, gone, or no ivshmem server at all: all of that
ends the connection, and with ``reconnect`` there is another one after a wait that grows.

What is read comes through a `Source`. The plain one is recvmsg(2). Another one (`clientjournal`) keeps what is read
before it takes it, so that the connection outlives this process.

Invariants
----------
1. Who is in ``membership`` was told by the server that we are connected to now; without a connection it is empty.
2. All descriptors of a connection are closed when it ends, but not before its doorbells were read for a last time.
3. What a caller calls tells nothing that it does not say; the rest is told from the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from enum import Enum
from typing import Protocol, TypeAlias

from ..errors import DoorbellError, LimitExceeded, MemoryUnavailable, ServerClosed, ServerUnavailable
from ..fds import eventfd
from ..fds.owned import Fd
from ..wire.ivshmem import MESSAGE, OutOfPlace, ProtocolError
from .hostpeer import DoorbellReader
from .membership import Change, Membership, PeerLeft, VectorAdded, Welcomed
from .receive import Backoff, broken, closed, lost, receive, silent, unavailable

SILENT_SECONDS = 10.0
"""A server that has not greeted us by then is given up."""
_BUSY_SECONDS = 0.01  # until a keeper that is busy is asked again
TURN = 256
"""Messages that are read at one turn of the loop."""
Pieces: TypeAlias = Generator[tuple[bytes, list[Fd]]]


class ClientState(Enum):
    """How things stand with the server."""

    CONNECTING = "connecting"
    """There is no welcome yet, or no more; ``reason`` says why."""
    CONNECTED = "connected"
    """We have an ID and the memory."""
    BROKEN = "broken"
    """The server broke the protocol or refused us, or it is gone and we don't reconnect; ``reason`` says which."""
    CLOSED = "closed"
    """We left."""


class Source(Protocol):
    """How a link reads, and where it notes what it does."""

    def ready(self) -> bool:
        """Tell whether `begin` may be called now."""

    def begin(self, sock: socket.socket) -> None:
        """Learn of a socket that is to be connected."""

    def take(self, sock: socket.socket, resume: Callable[[], None]) -> tuple[int, Pieces] | None:
        """Read what is there: when (us), and what ``Membership.feed`` takes, piece by piece; b"" is the end.

        None: not now; *resume* is called when.

        Raises:
            OSError, LimitExceeded: as `receive`.
        """

    def forget(self, fds: Iterator[int]) -> None:
        """Learn that these are about to be closed, while the connection goes on."""

    def settle(self) -> None:
        """Learn that all that was read was handled."""

    def slot(self, vector: int) -> memoryview | None:
        """See `DoorbellReader`."""

    def rung(self, vector: int, count: int) -> None:
        """Learn that one of our doorbells was read."""

    def end(self) -> None:
        """Learn that the connection has ended: nobody is there any more. The socket is open still."""


class PlainSource:
    """Reads, and notes nothing."""

    def ready(self) -> bool:
        """See `Source`."""
        return True

    def begin(self, sock: socket.socket) -> None:
        """See `Source`."""

    def take(self, sock: socket.socket, resume: Callable[[], None]) -> tuple[int, Pieces] | None:
        """See `Source`."""
        return time.time_ns() // 1000, self._pieces(sock)

    def forget(self, fds: Iterator[int]) -> None:
        """See `Source`."""

    def settle(self) -> None:
        """See `Source`."""

    def slot(self, vector: int) -> memoryview | None:
        """See `Source`."""
        return None

    def rung(self, vector: int, count: int) -> None:
        """See `Source`."""

    def end(self) -> None:
        """See `Source`."""

    def _pieces(self, sock: socket.socket) -> Pieces:
        with contextlib.suppress(BlockingIOError):
            for _ in range(TURN):
                yield receive(sock)


class Link:
    """A connection to the server at *path*, or to the one behind a socket that is adopted; see the module.

    Args:
        path: the server's UNIX socket.
        loop: where it all happens.
        changed: called with each change of the membership, in order.
        rung: called with each ``(vector, count)`` of our own doorbells.
        moved: called with each ``(old, new)`` state, and with twice the same when there is another reason.
        accept: called with the memory; raises ProtocolError or MemoryUnavailable if it can't be used.
        vectors_max: how many vectors of a peer are taken.
        reconnect: whether to connect again when the connection can't be had or ends.
        quiet: see `DoorbellReader`.
        fd_end: descriptors of this number and above are not for the server to use up.
    """

    def __init__(
        self,
        path: str,
        loop: asyncio.AbstractEventLoop,
        *,
        changed: Callable[[Change], None],
        rung: Callable[[int, int], None],
        moved: Callable[[ClientState, ClientState], None],
        accept: Callable[[Fd], None],
        vectors_max: int,
        reconnect: bool,
        quiet: float | None = None,
        fd_end: int | None = None,
    ) -> None:
        self.path = path
        self.state = ClientState.CONNECTING
        self.reason = "not tried yet"
        """Why we are not connected; empty if we are."""
        self.failure: DoorbellError | None = None
        """The error that ``reason`` is of, if it is of one."""
        self.since = 0
        """When we were welcomed, in us of CLOCK_REALTIME; 0 if we are not."""
        self.now = 0
        """When what is being handled was read, in us of CLOCK_REALTIME."""
        self.membership = Membership(vectors_max)
        self.totals: list[int] = []
        """Rings taken so far, by own vector; they count on when the connection is another."""
        self.taken = 0
        """Bytes read on this connection."""
        self.tail: list[tuple[bytes, list[int]]] = []
        """Pieces of a message that is not whole yet."""
        self.source: Source = PlainSource()
        self.reconnect = reconnect
        self.sock: socket.socket | None = None
        self._loop = loop
        self._changed = changed
        self._rung = rung
        self._moved = moved
        self._accept = accept
        self._quiet = quiet
        self._fd_end = fd_end
        self._reader: DoorbellReader | None = None
        self._watched = False
        self._reading = False
        self._timer: asyncio.TimerHandle | None = None
        self._backoff = Backoff()
        self._begun = 0.0

    # Beginning and end

    def start(self) -> None:
        """Begin to connect, once the loop runs."""
        self._timer = self._loop.call_later(0, self._try)

    def adopt(self, sock: socket.socket) -> None:
        """Be the client at the other end of *sock*, which is taken over."""
        sock.setblocking(False)
        self.sock = sock
        self.source.begin(sock)
        self._await_welcome()

    def replay(self, sock: socket.socket, read: Iterable[tuple[int, Pieces]]) -> None:
        """Be where another process was with *sock*, which is taken over: *read* is what it read, and when."""
        sock.setblocking(False)
        self.sock = sock
        for when, pieces in read:
            if self.sock is not sock:
                break
            self.now = when
            self._handle(pieces)

    def rest(self, reason: str) -> None:
        """Be where another process was that had given up, for *reason*."""
        self.state, self.reason = ClientState.BROKEN, reason

    def go_on(self) -> None:
        """Go on after `replay`."""
        if self.sock is None or not _connected(self.sock):
            if self._timer is None and (self.reconnect or self.state is not ClientState.BROKEN):
                self.start()
        elif self.membership.welcome:
            self._reading = True
            self._watch()
        else:
            self._await_welcome()

    def fail(self, failure: DoorbellError) -> None:
        """End the connection, which is of no use; or say why there is none."""
        self._end(failure)

    def read_by(self, source: Source) -> None:
        """Read by another source from now on."""
        self.source = source
        self._watch()

    def restart(self, reconnect: bool) -> None:
        """Have another *reconnect*: connect again if it is over and need not be."""
        self.reconnect = reconnect
        if reconnect and self.sock is None and self._timer is None and self.state is not ClientState.CLOSED:
            self.start()

    def close(self, reason: str = "we left") -> None:
        """Leave; a second time does nothing. Nothing is told but rings that are there."""
        if self.state is ClientState.CLOSED:
            return
        self._hang_up()
        self.state, self.reason, self.failure = ClientState.CLOSED, reason, None

    def let_go(self) -> None:
        """Close what we have without a word to the server, as the end of the process would."""
        self._rest()
        if self.sock is not None:
            self.sock.close()
            self.sock = None
        self.membership.close()
        self.state = ClientState.CLOSED

    @property
    def over(self) -> bool:
        """Whether it is not connected, and nothing is done about it."""
        return self.sock is None and self._timer is None

    def __repr__(self) -> str:
        return f"Link({self.path!r}, {self.state.value})"

    # Connecting

    def _try(self) -> None:
        self._timer = None
        if self.sock is None and not self.source.ready():
            self._timer = self._loop.call_later(_BUSY_SECONDS, self._try)
            return
        try:
            if self.sock is None:
                self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
                self.sock.setblocking(False)
                self.source.begin(self.sock)
        except OSError as error:
            self._postpone(LimitExceeded(f"no descriptor for a connection: {error.strerror}; raise LimitNOFILE="))
            return
        try:
            self.sock.connect(self.path)
        except BlockingIOError:
            self._postpone(ServerUnavailable(f"the server at {self.path} lets nobody in just now; is it stopped?"))
        except OSError as error:
            self._postpone(unavailable(self.path, error))
        else:
            self._await_welcome()

    def _await_welcome(self) -> None:
        self._reading = True
        self._watch()
        self._timer = self._loop.call_later(SILENT_SECONDS, self._silent)
        if self.state is ClientState.CONNECTING:
            self._move(ClientState.CONNECTING, f"waiting for the greeting of the server at {self._server}")

    def _silent(self) -> None:
        self._timer = None
        self._end(silent(self._server))

    def _postpone(self, failure: DoorbellError, state: ClientState = ClientState.CONNECTING) -> None:
        """Try again later, if at all."""
        if self.reconnect and self.path:
            self._timer = self._loop.call_later(self._backoff.next(), self._try)
        else:
            state = ClientState.BROKEN
            self._drop_socket()
        if self.state is ClientState.BROKEN:  # it is broken until it works again
            state = ClientState.BROKEN
        self._move(state, str(failure), failure)

    def _move(self, state: ClientState, reason: str, failure: DoorbellError | None = None) -> None:
        old, same = self.state, (self.state, self.reason) == (state, reason)
        self.state, self.reason, self.failure = state, reason, failure
        if not same:
            self._moved(old, state)

    @property
    def _server(self) -> str:
        return self.path or "the other end"

    # Reading

    def _watch(self) -> None:
        if self.sock is not None and self._reading and not self._watched:
            self._loop.add_reader(self.sock.fileno(), self._readable)
            self._watched = True

    def _unwatch(self) -> None:
        if self.sock is not None and self._watched:
            self._loop.remove_reader(self.sock.fileno())
        self._watched = False

    def _readable(self) -> None:
        """Read and handle what the server said, up to what is enough for one turn of the loop."""
        assert self.sock is not None
        with self._ending_on_errors():
            found = self.source.take(self.sock, self._watch)
            if found is None:
                self._unwatch()
                return
            self.now, pieces = found
            self._handle(pieces)

    def _handle(self, pieces: Pieces) -> None:
        sock = self.sock
        with self._ending_on_errors(), contextlib.closing(pieces):
            for data, fds in pieces:
                if not data:
                    raise closed(self._server, self.membership.welcome)
                self._feed(data, fds)
                if self.sock is not sock:  # closed by who heard of it
                    return
            self.source.settle()

    @contextlib.contextmanager
    def _ending_on_errors(self) -> Iterator[None]:
        try:
            yield
        except ProtocolError as error:
            self._end(broken(self._server, error), ClientState.BROKEN)
        except MemoryUnavailable as error:
            self._end(error, ClientState.BROKEN)
        except DoorbellError as error:
            refused = isinstance(error, ServerClosed) and not self.membership.welcome
            self._end(error, ClientState.BROKEN if refused else ClientState.CONNECTING)
        except OSError as error:
            self._end(lost(self._server, error))

    def _feed(self, data: bytes, fds: list[Fd]) -> None:
        sock, membership = self.sock, self.membership
        self.taken += len(data)
        self.note_tail(data, [fd.fileno() for fd in fds])
        self._leave_room(fds)
        for change in membership.feed(data, fds):
            self._apply(change)
            if self.sock is not sock:
                return

    def _leave_room(self, fds: list[Fd]) -> None:
        if self._fd_end is not None and self._reading and any(fd.fileno() >= self._fd_end for fd in fds):
            for fd in fds:
                fd.close()
            raise LimitExceeded(
                f"the server at {self._server} sent so many doorbells that few descriptors are left for others; "
                "raise LimitNOFILE="
            )

    def note_tail(self, data: bytes, fds: list[int]) -> None:
        """Note which part of *data*, that was just taken, is of a message that is not whole yet."""
        rest = self.taken % MESSAGE.size
        self.tail = [*self.tail, (data, fds)] if rest else []
        over = sum(len(piece) for piece, _ in self.tail) - rest
        while over > 0:
            piece, with_it = self.tail[0]
            if len(piece) <= over:
                del self.tail[0]
            else:
                self.tail[0] = piece[over:], with_it
            over -= len(piece)

    def _apply(self, change: Change) -> None:
        match change:
            case Welcomed():
                assert self.membership.memory is not None
                self._accept(self.membership.memory)
                self._welcome()
            case VectorAdded(peer, vector):
                if peer is self.membership.own:
                    _check_doorbell(peer.eventfds[vector])
                    self._hear()
            case PeerLeft(peer):
                self.source.forget(iter(peer.eventfds))
        self._changed(change)

    def _welcome(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.since, self._begun = self.now, time.monotonic()
        self._move(ClientState.CONNECTED, "")

    # Our own doorbells

    def _hear(self) -> None:
        """Listen to all doorbells of ours that have come."""
        if self._reader is None:
            self._reader = DoorbellReader(
                self._loop,
                self.membership.own.eventfds,
                self._take_rings,
                self._slot,
                self.totals,
                self._quiet,
            )
        else:
            self._reader.grown()

    def _slot(self, vector: int) -> memoryview | None:
        return self.source.slot(vector)  # whichever it is by then

    def _take_rings(self, vector: int, count: int) -> None:
        self.source.rung(vector, count)
        self._rung(vector, count)

    # The end

    def _end(self, failure: DoorbellError, state: ClientState = ClientState.CONNECTING) -> None:
        """The connection is over, for the reason that *failure* says."""
        if self.since and time.monotonic() - self._begun > self._backoff.most:  # it was a good one
            self._backoff.reset()
        self._hang_up()
        if self.state is not ClientState.CLOSED:  # by who heard a last ring
            self._postpone(failure, state)

    def _hang_up(self) -> None:
        """End the connection, if there is one, and forget everybody."""
        if self._reader is not None and self.state is not ClientState.CLOSED:
            self._reader.sweep()
        self._rest()
        self.membership, gone = Membership(self.membership.vectors_max), self.membership
        self.taken, self.tail, self.since = 0, [], 0
        self._drop_socket()
        gone.close()

    def _rest(self) -> None:
        """Wait for nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._reading = False
        self._unwatch()

    def _drop_socket(self) -> None:
        sock, self.sock = self.sock, None
        if sock is not None:
            self.source.end()
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # for everybody who has a copy of it
            sock.close()


def _connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _check_doorbell(fd: int) -> None:
    """Look whether *fd*, which we are going to read again and again, is an eventfd.

    Raises:
        OutOfPlace: it is none.
    """
    try:
        eventfd.pending(fd)
    except ValueError as error:
        raise OutOfPlace("what it sent as our doorbell is no eventfd") from error
