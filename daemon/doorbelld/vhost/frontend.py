# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The other side: a front-end and driver of our own, for tests and benchmarks of any back-end.

It is blocking and plain, one thread, one device. It shares one memfd as guest memory, from which `Frontend.take` cuts
pieces, and lays its rings there. Every step can be made by itself (`ask`, `tell`), or all with `Frontend.start`.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Sequence

from ..errors import DoorbellError
from ..fds.owned import Fd
from ..ring.driver import DriverQueue, layout
from ..ring.memory import MemoryMap
from ..wire.vhost import Decoder, Message, encode
from ..wire.vhost_messages import (
    CONFIG_MAX,
    U64,
    Config,
    Empty,
    Feature,
    Flags,
    MemoryRegion,
    MemoryTable,
    Payload,
    ProtocolFeature,
    SingleMemoryRegion,
    VringAddr,
    VringAddrFlag,
    VringFd,
    VringState,
)
from ..wire.vhost_requests import BackendRequest, FrontendRequest
from .channel import receive

GUEST_BASE = 0x1_0000_0000
USER_BASE = 0x7F00_0000_0000
_R = FrontendRequest


class BackendFailed(DoorbellError):
    """The back-end closed the connection, was silent, or refused."""


class Frontend:
    """A connection to a back-end, with guest memory and queues."""

    def __init__(self, sock: socket.socket, *, memory_size: int = 1 << 20, timeout: float = 10.0) -> None:
        """Take over the connected *sock*; each wait ends after *timeout* seconds."""
        sock.setblocking(True)
        sock.settimeout(timeout)
        self.sock = sock
        self.timeout = timeout
        self.features = 0
        self.protocol_features = ProtocolFeature(0)
        self.queues: dict[int, DriverQueue] = {}
        self.channel: socket.socket | None = None
        self.size = memory_size
        self.memfd = Fd(os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        os.ftruncate(self.memfd.fileno(), memory_size)
        self.memory = MemoryMap()
        self.memory.set_table([(GUEST_BASE, memory_size, USER_BASE, 0, self.memfd.fileno())])
        self._decoder = Decoder(FrontendRequest, replies=True)
        self._channel_decoder = Decoder(BackendRequest)
        self._used = 0

    @classmethod
    def connect(cls, path: str, *, memory_size: int = 1 << 20, timeout: float = 10.0) -> Frontend:
        """Connect to the back-end that listens at *path*.

        Raises:
            OSError: nobody does.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(path)
            return cls(sock, memory_size=memory_size, timeout=timeout)
        except BaseException:
            sock.close()
            raise

    def close(self) -> None:
        """Close everything; a second time does nothing."""
        self.sock.close()
        if self.channel is not None:
            self.channel.close()
        for queue in self.queues.values():
            queue.close()
        self.memory.close()
        self.memfd.close()
        self._decoder.close()
        self._channel_decoder.close()

    def __enter__(self) -> Frontend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Messages

    def send(
        self,
        request: FrontendRequest,
        payload: Payload | None = None,
        fds: Sequence[int] = (),
        need_reply: bool = False,
    ) -> None:
        """Send a request; *fds* stay the caller's."""
        flags = Flags.VERSION | Flags.NEED_REPLY if need_reply else Flags.VERSION
        message = Message(request, Empty() if payload is None else payload, tuple(Fd(os.dup(fd)) for fd in fds), flags)
        try:
            data, numbers = encode(message)
            self.send_raw(data, numbers)
        finally:
            message.close()

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send any bytes at all, the descriptors with the first of them.

        Raises:
            BackendFailed: the connection is closed.
        """
        try:
            sent = socket.send_fds(self.sock, [data], list(fds)) if fds else self.sock.send(data)
            if sent < len(data):
                self.sock.sendall(data[sent:])
        except OSError as error:
            raise BackendFailed(f"the back-end takes nothing: {error}") from error

    def answer(self) -> Message:
        """Wait for a reply; its descriptors are the caller's.

        Raises:
            BackendFailed: none comes.
        """
        return self._next(self.sock, self._decoder)

    def _next(self, sock: socket.socket, decoder: Decoder) -> Message:
        deadline = time.monotonic() + self.timeout
        for message in decoder.feed(b""):
            return message
        while True:
            if not _readable(sock, deadline - time.monotonic()):
                raise BackendFailed(f"the back-end said nothing for {self.timeout:g} s")
            try:
                data, fds = receive(sock)
            except OSError as error:
                raise BackendFailed(f"the back-end ended the connection: {error}") from error
            if not data:
                raise BackendFailed("the back-end ended the connection")
            for message in decoder.feed(data, fds):
                return message

    def ask(self, request: FrontendRequest, payload: Payload | None = None, fds: Sequence[int] = ()) -> Payload:
        """Send a request that has a reply of its own, and return that.

        Raises:
            BackendFailed: another one comes, or none.
        """
        self.send(request, payload, fds)
        reply = self.answer()
        if reply.request != request:
            raise BackendFailed(f"asked for {request.name}, the reply is to {reply.request.name}")
        return reply.payload

    def ask_number(self, request: FrontendRequest) -> int:
        """Ask for a number."""
        reply = self.ask(request)
        if not isinstance(reply, U64):
            raise BackendFailed(f"the reply to {request.name} is no number")
        return reply.value

    def tell(self, request: FrontendRequest, payload: Payload | None = None, fds: Sequence[int] = ()) -> None:
        """Send a request that has no reply, and have it acknowledged if that was negotiated.

        Raises:
            BackendFailed: it was refused.
        """
        if not self.protocol_features & ProtocolFeature.REPLY_ACK:
            self.send(request, payload, fds)
        elif (result := self.try_to_tell(request, payload, fds)) != 0:
            raise BackendFailed(f"the back-end refused {request.name} with {result}")

    def try_to_tell(self, request: FrontendRequest, payload: Payload | None = None, fds: Sequence[int] = ()) -> int:
        """Send a request, ask for an acknowledgement, and return it: 0 is success."""
        self.send(request, payload, fds, need_reply=True)
        reply = self.answer().payload
        return reply.value if isinstance(reply, U64) else -1

    # Step by step

    def negotiate(self, features: int = ~0, protocol: int = ~0) -> None:
        """Accept what is offered of *features* and of *protocol* features."""
        self.features = self.ask_number(_R.GET_FEATURES) & features
        if self.features & Feature.PROTOCOL_FEATURES:
            offered = self.ask_number(_R.GET_PROTOCOL_FEATURES)
            accepted = ProtocolFeature(offered & protocol & sum(ProtocolFeature))
            self.send(_R.SET_PROTOCOL_FEATURES, U64(accepted))
            self.protocol_features = accepted
        self.tell(_R.SET_OWNER)
        self.tell(_R.SET_FEATURES, U64(self.features))

    def share(self) -> None:
        """Share guest memory, in a slot if those were negotiated, else in a table."""
        region = MemoryRegion(GUEST_BASE, self.size, USER_BASE, 0)
        if self.protocol_features & ProtocolFeature.CONFIGURE_MEM_SLOTS:
            self.tell(_R.ADD_MEM_REG, SingleMemoryRegion(region), [self.memfd.fileno()])
        else:
            self.tell(_R.SET_MEM_TABLE, MemoryTable((region,)), [self.memfd.fileno()])

    def take(self, size: int, align: int = 4096) -> int:
        """Cut *size* bytes off guest memory and return their guest address.

        Raises:
            MemoryError: there is none left.
        """
        start = -(-self._used // align) * align
        if start + size > self.size:
            raise MemoryError(f"guest memory of {self.size} bytes has no {size} bytes left")
        self._used = start + size
        return GUEST_BASE + start

    def make_queue(self, index: int, num: int = 64) -> DriverQueue:
        """Lay a ring of *num* entries in guest memory; the back-end is told by `place`, `connect_fds`, `enable`."""
        areas = layout(self.take(layout(0, num).size), num)
        self.queues[index] = DriverQueue(self.memory, num, areas.desc, areas.avail, areas.used, self.features)
        return self.queues[index]

    def place(self, index: int, base: int = 0) -> None:
        """Tell size, base and addresses of a queue."""
        queue = self.queues[index]
        self.tell(_R.SET_VRING_NUM, VringState(index, queue.num))
        self.tell(_R.SET_VRING_BASE, VringState(index, base))
        self.tell(_R.SET_VRING_ADDR, self.addresses(index))

    def addresses(self, index: int) -> VringAddr:
        """Return where a queue is, in our addresses."""
        desc, avail, used = (addr - GUEST_BASE + USER_BASE for addr in self.queues[index].addresses)
        return VringAddr(index, VringAddrFlag(0), desc, used, avail, 0)

    def connect_fds(self, index: int) -> None:
        """Give the call descriptor of a queue, and the kick descriptor."""
        queue = self.queues[index]
        self.tell(_R.SET_VRING_CALL, VringFd(index), [queue.call_fd])
        self.tell(_R.SET_VRING_KICK, VringFd(index), [queue.kick_fd])

    def enable(self, index: int, enabled: bool = True) -> None:
        """Enable a queue; without protocol features all are."""
        if self.features & Feature.PROTOCOL_FEATURES:
            self.tell(_R.SET_VRING_ENABLE, VringState(index, int(enabled)))

    def start(self, queues: int = 1, num: int = 64, features: int = ~0, protocol: int = ~0) -> list[DriverQueue]:
        """Do all that is to be done before requests: negotiate, share, set up and enable *queues* queues."""
        self.negotiate(features, protocol)
        self.share()
        for index in range(queues):
            self.make_queue(index, num)
            self.place(index)
            self.connect_fds(index)
            self.enable(index)
        return [self.queues[index] for index in range(queues)]

    def stop(self, index: int) -> int:
        """Stop a queue and return its base."""
        reply = self.ask(_R.GET_VRING_BASE, VringState(index, 0))
        if not isinstance(reply, VringState):
            raise BackendFailed("the reply to GET_VRING_BASE is no ring state")
        return reply.num

    # Requests

    def wait(self, queue: DriverQueue) -> list[tuple[int, int]]:
        """Wait for requests to be done; returns (head, bytes written) each.

        Raises:
            BackendFailed: none was, in time.
        """
        deadline = time.monotonic() + self.timeout
        while not (done := queue.reap()):
            if queue.set_calls(True):
                continue
            if not _readable(queue.call_fd, deadline - time.monotonic()):
                raise BackendFailed(f"no request was done for {self.timeout:g} s")
            os.eventfd_read(queue.call_fd)
        return done

    def request(self, queue: DriverQueue, data: bytes = b"", room: int = 0) -> bytes:
        """Have one request done: the device reads *data* and may write *room* bytes; returns what it wrote."""
        mark = self._used
        source, target = self.take(len(data), 16), self.take(room, 16)
        self.memory.write(source, data)
        head = queue.add([(source, len(data))] if data else [], [(target, room)] if room else [])
        queue.kick()
        done = self.wait(queue)
        self._used = mark
        if [each for each, _ in done] != [head]:
            raise BackendFailed(f"asked for request {head}, done are {done}")
        return self.memory.read(target, done[0][1])

    # Configuration, and the back-end channel

    def config(self, offset: int = 0, size: int = CONFIG_MAX) -> bytes:
        """Read the configuration space.

        Raises:
            BackendFailed: there is none.
        """
        reply = self.ask(_R.GET_CONFIG, Config(offset, bytes(size)))
        if not isinstance(reply, Config):
            raise BackendFailed("the back-end has no such configuration")
        return reply.payload

    def open_channel(self) -> None:
        """Give the back-end a channel on which it asks."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        with theirs:
            self.channel = ours
            self.tell(_R.SET_BACKEND_REQ_FD, None, [theirs.fileno()])

    def hear(self) -> Message:
        """Wait for what the back-end asks.

        Raises:
            BackendFailed: it asks nothing.
        """
        if self.channel is None:
            raise BackendFailed("there is no back-end channel")
        return self._next(self.channel, self._channel_decoder)

    def acknowledge(self, message: Message, result: int = 0) -> None:
        """Answer what the back-end asked."""
        data, _ = encode(message.ack(result))
        if self.channel is not None:
            self.channel.sendall(data)


def _readable(file: int | socket.socket, timeout: float) -> bool:
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout) * 1000))
