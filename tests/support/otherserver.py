# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An ivshmem server with none of doorbelld's code in it: a second opinion, and one that can be told to lie.

Honest, it does as QEMU's own (``contrib/ivshmem-server``, version 7.2) was seen to do:

- IDs count up from 0, wrap after 65535, and skip those that are taken; an ID is not given again at once;
- a client is greeted with version 0, its ID, -1 with the memory; the *others are told of it* before it is told of the
  others (in the order in which they joined), and of its own doorbells last;
- when anything comes from a client, or it ends, it is gone: the others get its ID without a descriptor;
- with ``drops=True``, a message for which there is no room is lost, and nobody is told (QEMU's does that always);
  else it waits. A greeting for which there is no room (version, ID, memory) ends the connection. Seen with QEMU's: of
  64 vectors and 21 clients, the last was told 275 doorbells of five others and none of its own, and stayed so; when
  others left, it was told leaves of those it had never heard of. (Past 1,024 descriptors QEMU's ends, with
  "select error"; ours goes on.)

In a test, in a thread of its own::

    with OtherServer(path, vectors=4) as server:
        ...                                     # clients come and go
        server.wait_for(lambda: server.ids == [0, 1])
        server.say(1, message(7))               # one more message for client 1: "7 left"
        server.kick(1)                          # close its connection

``split=3`` sends each message in two pieces, of 3 bytes and the rest; ``delay`` waits so many seconds after each piece.
With ``script`` each client is sent just that, whatever it is, and then hears nothing; see `message`, `greeting`,
`HANG_UP` and `LIES`. `play` sends a script into any socket, without a server.

As a program: ``python otherserver.py PATH [--vectors N] [--size N] [--shm NAME] [--drops] [--split N] [--delay S]
[--lie NAME]``; it prints a line when it listens, and ends with its standard input.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import select
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

DEADLINE = 20.0
_ID_END = 1 << 16
_GREETING = 3


@dataclass(frozen=True)
class Piece:
    """Bytes that go out at once, with descriptors: numbers (borrowed), or names of what is made afresh (`_make`)."""

    data: bytes
    gifts: tuple[int | str, ...] = ()


HANG_UP = Piece(b"")
"""In a script: close the connection here."""
Script = Sequence[Piece]


def message(value: int, *gifts: int | str) -> Piece:
    """Make a message; *gifts* are ``"eventfd"``, ``"memory"``, ``"empty"`` (memory of no bytes), ``"pipe"`` or
    ``"null"`` (no eventfds), ``"full"`` (an eventfd whose counter is full), or numbers of descriptors."""
    return Piece(struct.pack("<q", value), gifts)


def greeting(own: int = 0) -> list[Piece]:
    """Make what each client is told first: version, its ID, the memory."""
    return [message(0), message(own), message(-1, "memory")]


def cut(script: Iterable[Piece], at: int) -> list[Piece]:
    """Split each message after *at* bytes; the descriptors come with the first piece."""
    pieces: list[Piece] = []
    for piece in script:
        pieces += [Piece(piece.data[:at], piece.gifts), Piece(piece.data[at:])] if 0 < at < len(piece.data) else [piece]
    return pieces


def end_after(script: Iterable[Piece], size: int) -> list[Piece]:
    """Send *size* bytes of a script, and hang up."""
    pieces = []
    for piece in script:
        if size <= 0:
            break
        pieces.append(Piece(piece.data[:size], piece.gifts))
        size -= len(piece.data)
    return [*pieces, HANG_UP]


LIES: dict[str, Script] = {
    "version 1": [message(1), *greeting()[1:]],
    "refused": [message(-2), HANG_UP],
    "version with a descriptor": [message(0, "eventfd"), *greeting()[1:]],
    "id 70000": [message(0), message(70000), message(-1, "memory")],
    "id -1": [message(0), message(-1), message(-1, "memory")],
    "-1 without fd": [message(0), message(0), message(-1)],
    "memory is 0": [message(0), message(0), message(0, "memory")],
    "memory is a pipe": [message(0), message(0), message(-1, "pipe")],
    "memory is empty": [message(0), message(0), message(-1, "empty")],
    "two memories": [message(0), message(0), message(-1, "memory", "memory")],
    "-1 again": [*greeting(), message(-1, "memory")],
    "peer 70000": [*greeting(), message(70000, "eventfd")],
    "1,000 vectors": [*greeting(), *[message(1, "eventfd")] * 1000],
    "1,000 own vectors": [*greeting(), *[message(0, "eventfd")] * 1000],
    "two fds": [*greeting(), message(1, "eventfd", "eventfd")],
    "200 fds": [*greeting(), message(1, *["eventfd"] * 200)],
    "fd twice in a message": [
        *greeting(),
        Piece(message(1).data[:4], ("eventfd",)),
        Piece(message(1).data[4:], ("eventfd",)),
    ],
    "own vector is a file": [*greeting(), message(0, "null")],
    "vector is a pipe": [*greeting(), message(1, "pipe")],
    "we left": [*greeting(), message(0, "eventfd"), message(0)],
    "-1 left": [*greeting(), message(-1)],
    "silence": [],
    "half a version": [Piece(message(0).data[:4])],
    "end at once": [HANG_UP],
}
"""What a server may do wrong, by name. "silence" and "half a version" keep the connection; the rest need no more."""


def play(sock: socket.socket, script: Script) -> None:
    """Send a script into *sock*, which is blocking and has room; at `HANG_UP`, end its sending side."""
    for piece in script:
        if piece is HANG_UP:
            sock.shutdown(socket.SHUT_WR)
        else:
            _send(sock, piece)


def _make(what: str) -> list[int]:
    """Make a gift; the first is given, all are ours to close."""
    if what == "pipe":
        return list(os.pipe())
    if what == "null":
        return [os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)]
    if what in ("memory", "empty"):
        fd = os.memfd_create("lie")
        os.ftruncate(fd, 65536 if what == "memory" else 0)
        return [fd]
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    if what == "full":
        os.eventfd_write(fd, (1 << 64) - 2)
    return [fd]


def _send(sock: socket.socket, piece: Piece) -> int:
    made: list[int] = []
    try:
        fds = []
        for gift in piece.gifts:
            if isinstance(gift, str):
                made += (new := _make(gift))
                gift = new[0]
            fds.append(gift)
        return socket.send_fds(sock, [piece.data], fds) if fds else sock.send(piece.data, socket.MSG_NOSIGNAL)
    finally:
        for fd in made:
            os.close(fd)


@dataclass(eq=False)
class _Peer:
    sock: socket.socket
    id: int = -1
    eventfds: list[int] = field(default_factory=list)
    waiting: deque[Piece] = field(default_factory=deque)
    not_before: float = 0.0
    sent: int = 0


class OtherServer:
    """See the module. *memory* and each member's doorbells stay ours; a test borrows them."""

    def __init__(
        self,
        path: str,
        *,
        vectors: int = 4,
        size: int = 65536,
        shm: str = "",
        drops: bool = False,
        split: int = 0,
        delay: float = 0.0,
        script: Script | None = None,
    ) -> None:
        """Listen at *path*; *shm* names POSIX shared memory to be used in place of a memfd. `start` begins to serve."""
        assert not (drops and split), "half a message can't be dropped"
        self.path = path
        self.vectors = vectors
        self.drops = drops
        self.split = split
        self.delay = delay
        self.script = script
        self.accepted = 0
        """How many connections there were so far."""
        self.dropped = 0
        """How many messages were lost (``drops``)."""
        self._news = threading.Condition(threading.RLock())
        self._peers: list[_Peer] = []
        self._next_id = 0
        self._over = False
        if shm:
            flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
            self.memory = os.open(f"/dev/shm/{shm}", flags, 0o600)
        else:
            self.memory = os.memfd_create("otherserver")
        os.ftruncate(self.memory, size)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(4096)
        self._listener.setblocking(False)
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, name="otherserver")

    # What a test uses

    @property
    def ids(self) -> list[int]:
        """The members, in the order of joining."""
        with self._news:
            return [peer.id for peer in self._peers if peer.id >= 0]

    @property
    def connections(self) -> int:
        """How many clients are connected, members or not."""
        with self._news:
            return len(self._peers)

    def eventfds(self, peer_id: int) -> list[int]:
        """Give the doorbells of a member, to be compared or rung."""
        with self._news:
            return list(self._find(peer_id).eventfds)

    def wait_for(self, condition: Callable[[], object], timeout: float = DEADLINE) -> None:
        """Wait until *condition* holds; it is looked at when clients come, go, or have been sent something."""
        with self._news:
            assert self._news.wait_for(condition, timeout), f"waited in vain; members: {self.ids}"

    def say(self, peer_id: int, *pieces: Piece) -> None:
        """Send a member something more, after what waits for it."""
        with self._news:
            self._queue(self._find(peer_id), pieces)
        os.eventfd_write(self._bell, 1)

    def kick(self, peer_id: int) -> None:
        """Close a member's connection, after what waits for it was sent; the others are told."""
        self.say(peer_id, HANG_UP)

    def start(self) -> OtherServer:
        """Begin to serve."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End all connections and close everything; the clients see the end of the stream."""
        with self._news:
            self._over = True
        os.eventfd_write(self._bell, 1)
        if self._thread.ident is not None:
            self._thread.join(DEADLINE)
        for peer in self._peers:
            self._close(peer)
        self._peers.clear()
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        os.close(self.memory)
        os.close(self._bell)

    def __enter__(self) -> OtherServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # The server

    def _serve(self) -> None:
        while True:
            with self._news:
                if self._over:
                    return
                now, pauses, poll = time.monotonic(), [], select.poll()
                poll.register(self._listener, select.POLLIN)
                poll.register(self._bell, select.POLLIN)
                for peer in self._peers:
                    resting = peer.not_before > now
                    if resting:
                        pauses.append(peer.not_before - now)
                    poll.register(peer.sock, select.POLLIN | (select.POLLOUT if peer.waiting and not resting else 0))
            ready = dict(poll.poll(1000 * min(pauses) + 1 if pauses else None))
            with self._news:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._bell)
                if self._listener.fileno() in ready:
                    self._accept()
                for peer in list(self._peers):
                    if peer.sock.fileno() >= 0 and ready.get(peer.sock.fileno(), 0) & ~select.POLLOUT:
                        self._leave(peer)
                for peer in list(self._peers):
                    self._flush(peer)
                self._news.notify_all()

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        sock.setblocking(False)
        self.accepted += 1
        peer = _Peer(sock)
        if self.script is not None:
            self._peers.append(peer)
            self._queue(peer, self.script)
            return
        taken = {other.id for other in self._peers}
        while self._next_id in taken:
            self._next_id = (self._next_id + 1) % _ID_END
        peer.id, self._next_id = self._next_id, (self._next_id + 1) % _ID_END
        peer.eventfds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(self.vectors)]
        self._queue(peer, [message(0), message(peer.id), message(-1, self.memory)])
        for other in self._peers:
            self._queue(other, [message(peer.id, fd) for fd in peer.eventfds])
        for other in self._peers:
            self._queue(peer, [message(other.id, fd) for fd in other.eventfds])
        self._peers.append(peer)
        self._queue(peer, [message(peer.id, fd) for fd in peer.eventfds])

    def _leave(self, peer: _Peer) -> None:
        if peer in self._peers:
            self._peers.remove(peer)
            if peer.id >= 0:
                for other in self._peers:
                    self._queue(other, [message(peer.id)])
            self._close(peer)

    def _close(self, peer: _Peer) -> None:
        peer.sock.close()
        for fd in peer.eventfds:
            os.close(fd)
        for piece in peer.waiting:
            for gift in piece.gifts:
                if isinstance(gift, int) and gift != self.memory:
                    os.close(gift)
        peer.waiting.clear()

    def _queue(self, peer: _Peer, pieces: Iterable[Piece]) -> None:
        # what waits outlives whom it tells of: it has descriptors of its own
        own = [
            Piece(piece.data, tuple(g if isinstance(g, str) or g == self.memory else os.dup(g) for g in piece.gifts))
            if piece.gifts
            else piece
            for piece in pieces
        ]
        peer.waiting += cut(own, self.split) if self.split else own
        if self.drops and not self.delay:
            self._flush(peer)

    def _flush(self, peer: _Peer) -> None:
        while peer.waiting and peer.sock.fileno() >= 0 and peer.not_before <= time.monotonic():
            piece = peer.waiting[0]
            if piece is HANG_UP:
                self._leave(peer)
                return
            try:
                _send(peer.sock, piece)
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS:
                    peer.not_before = time.monotonic() + 0.01
                elif not isinstance(error, BlockingIOError):
                    self._leave(peer)
                elif self.drops:
                    if peer.id >= 0 and peer.sent < _GREETING:
                        self._leave(peer)
                        return
                    self.dropped += 1
                    self._sent(peer)
                    continue
                return
            self._sent(peer)
            if self.delay:
                peer.not_before = time.monotonic() + self.delay

    def _sent(self, peer: _Peer) -> None:
        peer.sent += 1
        for gift in peer.waiting.popleft().gifts:
            if isinstance(gift, int) and gift != self.memory:
                os.close(gift)

    def _find(self, peer_id: int) -> _Peer:
        return next(peer for peer in self._peers if peer.id == peer_id)


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("--vectors", type=int, default=4)
    parser.add_argument("--size", type=int, default=65536)
    parser.add_argument("--shm", default="")
    parser.add_argument("--drops", action="store_true")
    parser.add_argument("--split", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--lie", choices=LIES)
    options = vars(parser.parse_args())
    lie = options.pop("lie")
    with OtherServer(options.pop("path"), script=None if lie is None else LIES[lie], **options) as server:
        print(f"listening at {server.path}", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
