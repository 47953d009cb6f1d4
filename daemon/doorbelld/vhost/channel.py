# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The second channel, on which a back-end asks ("Back-end message types").

Nothing ever waits for it: who has something to say leaves it here, and goes on. What is said is a state ("the
configuration changed", "look at queue 3"), so there is room for one message of a kind and queue, and a later one takes
its place: the backlog is bounded, however slow the front-end is.

With REPLY_ACK each message asks for an acknowledgement, and the next one goes out after it. A front-end that gives
none for `ANSWER_TIMEOUT` seconds has failed.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from array import array
from collections.abc import Callable
from typing import Any, Protocol

from ..fds.owned import Fd
from ..wire.vhost import Decoder, Message, ProtocolError, encode
from ..wire.vhost_messages import Empty, Flags, HostNotifierArea, Payload, VringState
from ..wire.vhost_requests import BackendRequest

ANSWER_TIMEOUT = 60.0
_READ = 4096
_CMSG_FDS = 253  # SCM_MAX_FD: what one message of the kernel's can carry


class Timer(Protocol):
    """What `Reactor.call_later` gives."""

    def cancel(self) -> None:
        """Forget the call."""


class Reactor(Protocol):
    """The part of an event loop that is needed here; asyncio's fits."""

    def add_reader(self, fd: Any, callback: Callable[..., object], *args: Any) -> Any:
        """Call when *fd* is readable."""

    def remove_reader(self, fd: Any) -> bool:
        """Forget that."""

    def add_writer(self, fd: Any, callback: Callable[..., object], *args: Any) -> Any:
        """Call when *fd* is writable."""

    def remove_writer(self, fd: Any) -> bool:
        """Forget that."""

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call after *delay* seconds."""


def receive(sock: socket.socket) -> tuple[bytes, list[Fd]]:
    """Take what is there, with all descriptors, owned; no bytes at the end of the stream.

    Raises:
        BlockingIOError: nothing is there.
        OSError: the connection broke.
    """
    flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    data, control, told, _ = sock.recvmsg(_READ, socket.CMSG_SPACE(_CMSG_FDS * array("i").itemsize), flags)
    numbers = array("i")
    for level, kind, raw in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers.frombytes(raw[: len(raw) - len(raw) % numbers.itemsize])
    fds = [Fd(number) for number in numbers]
    if told & socket.MSG_CTRUNC:  # the kernel dropped some, for there is no room for them in our table
        for fd in fds:
            fd.close()
        raise OSError(
            errno.EMFILE, "no descriptor is left for those that it sent; raise LimitNOFILE= or the hard limit"
        )
    return data, fds


def send(sock: socket.socket, data: bytes, fds: list[int]) -> int:
    """Send as much as goes, the descriptors with the first byte; they stay the caller's.

    Raises:
        BlockingIOError: nothing goes just now.
        OSError: the connection broke.
    """
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    return sock.sendmsg([data], control, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class BackChannel:
    """Our end of the second channel, on the socket *fd*, which is taken over.

    *failed* is called with a reason when the front-end breaks the rules of it; the channel is closed then.
    """

    def __init__(self, reactor: Reactor, fd: Fd, *, ask: bool, fds: bool, failed: Callable[[str], None]) -> None:
        """*ask* for acknowledgements (REPLY_ACK); *fds* may be sent (BACKEND_SEND_FD).

        Raises:
            OSError: *fd* is no socket.
        """
        self._sock = socket.socket(fileno=fd.fileno())
        if self._sock.family != socket.AF_UNIX:
            self._sock.detach()
            raise OSError(errno.ENOTSOCK, "the descriptor for the back-end channel is no UNIX socket")
        fd.steal()
        self._reactor = reactor
        self._ask = ask
        self._fds = fds
        self._failed = failed
        self._decoder = Decoder(BackendRequest, replies=True)
        self._waiting: dict[tuple[BackendRequest, int], Message] = {}
        self._asked: BackendRequest | None = None
        self._timer: Timer | None = None
        self.open = True
        """Whether the front-end can still be told anything."""
        reactor.add_reader(self._sock.fileno(), self._hear)

    def config_changed(self) -> None:
        """Tell that the configuration space changed (CONFIG_CHANGE_MSG)."""
        self._leave(BackendRequest.CONFIG_CHANGE_MSG, Empty())

    def call(self, index: int) -> None:
        """Interrupt in band: queue *index* has something (VRING_CALL)."""
        self._leave(BackendRequest.VRING_CALL, VringState(index, 0), index)

    def error(self, index: int) -> None:
        """Tell in band that queue *index* broke (VRING_ERR)."""
        self._leave(BackendRequest.VRING_ERR, VringState(index, 0), index)

    def host_notifier(self, index: int, area: tuple[Fd, int, int] | None) -> bool:
        """Offer a page of a device as the doorbell of queue *index*, or withdraw it (VRING_HOST_NOTIFIER_MSG).

        *area* is (descriptor, size, offset); the descriptor is taken over. False if it can't be sent.
        """
        if area is None:
            self._leave(
                BackendRequest.VRING_HOST_NOTIFIER_MSG, HostNotifierArea(index, nofd=True, size=0, offset=0), index
            )
            return True
        fd, size, offset = area
        if not self._fds or not self.open:
            fd.close()
            return False
        area_of = HostNotifierArea(index, nofd=False, size=size, offset=offset)
        self._leave(BackendRequest.VRING_HOST_NOTIFIER_MSG, area_of, index, (fd,))
        return True

    def close(self) -> None:
        """Close it; what waits is dropped."""
        if not self.open:
            return
        self.open = False
        fd = self._sock.fileno()
        self._reactor.remove_reader(fd)
        self._reactor.remove_writer(fd)
        if self._timer is not None:
            self._timer.cancel()
        for message in self._waiting.values():
            message.close()
        self._waiting.clear()
        self._decoder.close()
        self._sock.close()

    def _leave(self, request: BackendRequest, payload: Payload, index: int = -1, fds: tuple[Fd, ...] = ()) -> None:
        flags = Flags.VERSION | Flags.NEED_REPLY if self._ask else Flags.VERSION
        message = Message(request, payload, fds, flags)
        if not self.open:
            message.close()
            return
        if (before := self._waiting.get((request, index))) is not None:
            before.close()
        self._waiting[request, index] = message
        self._pump()

    def _pump(self) -> None:
        """Send what may go out now."""
        while self.open and self._asked is None and self._waiting:
            key = next(iter(self._waiting))
            message = self._waiting[key]
            data, fds = encode(message)
            try:
                # A few dozen bytes go in one piece or not at all: a stream socket takes them as one buffer.
                send(self._sock, data, fds)
            except BlockingIOError:
                self._reactor.add_writer(self._sock.fileno(), self._writable)
                return
            except OSError:  # the front-end closed its end, as it may
                self.close()
                return
            del self._waiting[key]
            message.close()
            if self._ask:
                self._asked = key[0]
                self._timer = self._reactor.call_later(ANSWER_TIMEOUT, self._give_up, key[0])

    def _writable(self) -> None:
        self._reactor.remove_writer(self._sock.fileno())
        self._pump()

    def _give_up(self, asked: BackendRequest) -> None:
        self._fail(f"the front-end did not answer {asked.name} on the back-end channel for {ANSWER_TIMEOUT:g} s")

    def _fail(self, reason: str) -> None:
        self.close()
        self._failed(reason)

    def _hear(self) -> None:
        try:
            data, fds = receive(self._sock)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not data:
            self.close()
            return
        try:
            for message in self._decoder.feed(data, fds):
                self._answered(message)
        except ProtocolError as error:
            self._fail(f"back-end channel: {error}")
            return
        self._pump()

    def _answered(self, message: Message) -> None:
        with contextlib.closing(message):
            if message.request != self._asked:
                raise ProtocolError(f"an answer to {message.request.name}, which was not asked")
            self._asked = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
