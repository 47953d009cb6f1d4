# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The target ``stream``: a front-end that sends anything.

The kind of the first step is a device: one in Python, the same with notifications in band, a disk, a source of entropy.
What the others send goes to the codec alone first, as it is and cut elsewhere, which must make no difference. Then a
front-end connects to the device's socket and does the steps, on the device's own event loop, and

- no exception leaves the backend, and none is left in a task or a callback;
- replies are well-formed, in the order of the requests, one for each that awaits one, none else, without descriptors:
  this is checked without the codec, by a table of its own (rules 1, 2, 3 and 6);
- the device lets go of rings and memory, listens again, and serves the next front-end;
- descriptors and threads are those that there were before.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import socket
import struct
import tempfile
import threading
import zlib
from array import array
from collections.abc import Iterator
from typing import Any

from doorbelld.devices import find
from doorbelld.fds.spare import Spare
from doorbelld.vhost import backend as backend_module
from doorbelld.vhost.backend import Backend
from doorbelld.vhost.device import Device
from doorbelld.vhost.events import DeviceEvent, FrontendAttached, FrontendDetached, RequestRefused, State
from doorbelld.vhost.spec import DeviceSpec
from doorbelld.wire.vhost import Decoder, ProtocolError
from doorbelld.wire.vhost_messages import ProtocolFeature
from doorbelld.wire.vhost_requests import FrontendRequest
from support.devicesite import Echo

from .depth import Depth
from .script import Step, parse

SEND, MESSAGE, WRITE, KICK, PAUSE, TRUNCATE, READ, SAY = range(8)
"""Kinds of steps: raw bytes; request, flags and payload, with the size that belongs to them; into guest memory, at an
offset; kick a descriptor that was sent; let the device work; truncate guest memory; take what was answered; say
something on the back-end channel."""
KINDS = 8
GUEST, EVENT, CHANNEL = 0, 1, 2
"""Kinds of descriptors that seeds use: guest memory, an eventfd, the far end of a channel."""
MEMORY = 1 << 30
"""Bytes of guest memory; only what is touched is there."""
DEADLINE = 20.0
PAUSE_SECONDS = 0.0005
SENT_MAX = 16384
HEADER = struct.Struct("=III")
_ALWAYS = frozenset({1, 6, 11, 15, 17, 22, 24, 26, 28, 30, 31, 36, 40, 41, 42, 43})
"""Requests with a reply of their own, by the specification."""
_GET_CONFIG = 24
_REQUESTS = 48
"""Known ones, and a few more."""
_NEED_REPLY = 8


class InbandEcho(Echo):
    """The same, with what only User-Mode Linux uses."""

    protocol_features = ProtocolFeature.INBAND_NOTIFICATIONS


class Stream:
    """The target."""

    name = "stream"
    kinds = KINDS

    def __init__(self, depth: Depth) -> None:
        self.depth = depth
        self.folder = tempfile.mkdtemp(prefix="db")
        self.loop = asyncio.new_event_loop()
        self.failures: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.failures.append(context))
        self.events: list[DeviceEvent] = []
        self.spare = Spare()
        backend_module.GRACE = 0.0  # a ring that broke is not forgiven: no input waits for that
        image = os.path.join(self.folder, "image")
        with open(image, "wb") as file:
            file.truncate(64 << 10)
        self.backends = [
            self._open("echo", Echo),
            self._open("inband", InbandEcho),
            self._open("blk", find("blk"), path=image, queues=2, aio="threads"),
            self._open("rng", find("rng")),
        ]
        for backend in self.backends:  # whatever is made once is made now
            self.loop.run_until_complete(self._next_front_end(backend))
        self.served = 0
        self.threads = threading.active_count()
        self.fds: set[str] = set()

    def _open(self, name: str, kind: type[Device], **options: Any) -> Backend:
        raw = {"type": kind.name, "socket": f"{self.folder}/{name}", **options}
        spec = DeviceSpec.parse(name, raw, f"device.{name}", lambda _: kind)

        async def run() -> Backend:
            return Backend.open(spec, self.loop, self.events.append, self.spare)

        return self.loop.run_until_complete(run())

    def close(self) -> None:
        """Remove all devices."""
        for backend in self.backends:
            self.loop.run_until_complete(backend.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.folder)

    def __call__(self, raw: bytes) -> None:
        """Run one input."""
        first, *rest = parse(raw) or [Step(0)]
        backend = self.backends[first.kind % len(self.backends)]
        steps = [step._replace(kind=step.kind % KINDS) for step in rest]
        chunks = list(_chunks(steps))
        self._try_codec(chunks, zlib.crc32(raw))
        self.events.clear()
        self.fds = _descriptors()
        self.served = sum(state.requests for state in backend.queues())
        self.loop.run_until_complete(asyncio.wait_for(self._converse(backend, steps), DEADLINE))
        self._check(backend)

    # The codec alone

    def _try_codec(self, chunks: list[tuple[bytes, int]], dice: int) -> None:
        """Feed it as it is, and cut elsewhere: the same must come out, and every descriptor must be closed once."""
        whole = _decode(chunks)
        cut = []
        for data, fds in chunks:
            at = 0
            while len(data) - at > 1:
                dice = (dice * 1103515245 + 12345) & 0x7FFFFFFF
                step = min(len(data) - at - 1, (dice >> 16) % 24 + 1)
                cut.append((data[at : at + step], 0))
                at += step
            cut.append((data[at:], fds))
        again = _decode(cut)
        assert whole == again, f"cut elsewhere, the stream says something else: {whole} != {again}"

    # A whole backend

    async def _converse(self, backend: Backend, steps: list[Step]) -> None:
        with _FrontEnd(backend.spec.socket) as front_end:
            for step in steps:
                if not await front_end.do(step):
                    break
            await front_end.finish()
            sent, received = bytes(front_end.sent), bytes(front_end.received)
        check_replies(sent, received)
        await self._until_listening(backend)
        await self._next_front_end(backend)

    async def _until_listening(self, backend: Backend) -> None:
        while backend.session is not None or backend.state is not State.LISTENING:
            await asyncio.sleep(0)

    async def _next_front_end(self, backend: Backend) -> None:
        """One that behaves is served."""
        with _FrontEnd(backend.spec.socket) as front_end:
            await front_end.do(Step(SEND, HEADER.pack(FrontendRequest.GET_FEATURES, 1, 0)))
            await front_end.finish()
            answer = bytes(front_end.received)
        assert answer == HEADER.pack(1, 5, 8) + struct.pack("=Q", backend.offered_features), answer
        await self._until_listening(backend)

    def _check(self, backend: Backend) -> None:
        assert not self.failures, self.failures
        task = backend._task
        assert task is not None and task.done() and task.exception() is None
        for event in self.events:
            if isinstance(event, RequestRefused):
                self.depth.note(f"refused: {event.request}: {event.reason}")
        gone = [event for event in self.events if isinstance(event, FrontendDetached)]
        came = [event for event in self.events if isinstance(event, FrontendAttached)]
        assert len(gone) == len(came) == 2 and not gone[1].broken and all(event.reason for event in gone), self.events
        self.depth.note(f"{'broken' if gone[0].broken else 'gone'}: {gone[0].reason}")
        if sum(state.requests for state in backend.queues()) > self.served:
            self.depth.note(f"served: {backend.name}")
        assert backend.memory_regions == []
        for state in backend.queues():
            assert not state.started and not state.enabled and not state.in_flight and not state.broken, state
        if _descriptors() != self.fds:
            gc.collect()
            assert _descriptors() == self.fds, f"descriptors: {_names(self.fds)}"
        assert threading.active_count() == self.threads, threading.enumerate()


class _Token:
    """Stands for a descriptor in the codec."""

    def __init__(self) -> None:
        self.closed = 0

    def fileno(self) -> int:
        return 0

    def close(self) -> None:
        self.closed += 1


def _decode(chunks: list[tuple[bytes, int]]) -> list[tuple[Any, ...]]:
    decoder = Decoder(FrontendRequest)
    given: list[_Token] = []
    found: list[tuple[Any, ...]] = []
    try:
        for data, count in chunks:
            fresh: Any = [_Token() for _ in range(count)]
            given += fresh
            for message in decoder.feed(data, fresh):
                found.append((message.request, message.flags, message.payload, len(message.fds)))
                message.close()
    except ProtocolError as error:
        found.append(("error", str(error)))
        assert decoder.pending == 0
    else:
        found.append(("pending", decoder.pending))
    decoder.close()
    assert all(token.closed == 1 for token in given), [token.closed for token in given]
    return found


def _chunks(steps: list[Step]) -> Iterator[tuple[bytes, int]]:
    for step in steps:
        if data := bytes_of(step):
            yield data, len(step.fds)


def bytes_of(step: Step) -> bytes:
    """Return what a step sends."""
    if step.kind == SEND:
        return step.data
    if step.kind == MESSAGE and len(step.data) >= 2:
        request, flags, payload = step.data[0] % _REQUESTS, step.data[1], step.data[2:]
        if flags < 0xF0:  # mostly those that there are; anything at all can be sent as raw bytes
            flags = 1 | flags & _NEED_REPLY
        return HEADER.pack(request, flags, len(payload)) + payload
    return b""


def check_replies(sent: bytes, received: bytes) -> None:
    """Compare replies with requests, by the specification and without our codec."""
    awaited = []
    at = 0
    while len(sent) - at >= HEADER.size:
        request, flags, size = HEADER.unpack_from(sent, at)
        if len(sent) - at - HEADER.size < size:
            break
        if request in _ALWAYS or flags & _NEED_REPLY:
            awaited.append((request, size))
        at += HEADER.size + size
    at = 0
    for request, asked in awaited:
        if at == len(received):
            return
        assert len(received) - at >= HEADER.size, "half a reply"
        answered, flags, size = HEADER.unpack_from(received, at)
        assert answered == request, f"a reply to request {answered}, where {request} awaits one"
        assert flags == 5, f"flags {flags:#x} in the reply to request {request}"
        sizes = (asked, 0) if request == _GET_CONFIG else (8,)
        assert size in sizes, f"a reply of {size} bytes to request {request}"
        at += HEADER.size + size
    assert at == len(received), f"{len(received) - at} bytes that nothing asked for"


class _FrontEnd:
    """One conversation, on the event loop of the device."""

    def __init__(self, path: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._sock.connect(path)
        self._memory = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self._memory, MEMORY)
        self._kept = contextlib.ExitStack()
        self._kicks: list[int] = []
        self._channel: socket.socket | None = None
        self.sent = bytearray()
        self.received = bytearray()

    def __enter__(self) -> _FrontEnd:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()
        self._kept.close()
        os.close(self._memory)

    async def do(self, step: Step) -> bool:
        """Do a step; False once the device has closed the connection."""
        kind, data = step.kind, step.data
        if raw := bytes_of(step):
            return await self._send(raw, step.fds)
        if kind == WRITE and len(data) > 4:
            with contextlib.suppress(OSError):
                os.pwrite(self._memory, data[4:], int.from_bytes(data[:4], "little") % MEMORY)
        elif kind == KICK and self._kicks:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(self._kicks[(data or b"\0")[0] % len(self._kicks)], 1)
        elif kind == PAUSE:
            await asyncio.sleep(PAUSE_SECONDS)
        elif kind == TRUNCATE:
            os.ftruncate(self._memory, int.from_bytes(data[:4], "little") % MEMORY)
        elif kind == READ:
            return self._read()
        elif kind == SAY and self._channel is not None:
            with contextlib.suppress(OSError):
                self._channel.send(data)
                self._channel.recv(4096)
        return True

    async def finish(self) -> None:
        """Say goodbye, and read until the device has closed the connection."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while data := await self._loop.sock_recv(self._sock, 65536):
                self.received += data

    async def _send(self, data: bytes, kinds: bytes) -> bool:
        if len(self.sent) + len(data) > SENT_MAX:
            return True
        with contextlib.ExitStack() as ours:
            numbers = array("i", [self._descriptor(kind, ours) for kind in kinds])
            control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if numbers else []
            while data:
                try:
                    count = self._sock.sendmsg([data], control, socket.MSG_NOSIGNAL)
                except BlockingIOError:
                    if not self._read():
                        return False
                    await asyncio.sleep(0)
                    continue
                except OSError:
                    return False
                self.sent += data[:count]
                data, control = data[count:], []
        return True

    def _read(self) -> bool:
        try:
            while data := self._sock.recv(65536):
                self.received += data
        except BlockingIOError:
            return True
        except ConnectionError:
            pass
        return False

    def _descriptor(self, kind: int, ours: contextlib.ExitStack) -> int:
        """Make a descriptor of a kind; it is closed with *ours*, or with the conversation."""
        kind %= 12
        if kind == GUEST:
            return self._memory
        if kind == CHANNEL:
            self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            self._kept.enter_context(self._channel)
            return ours.enter_context(theirs).fileno()
        if kind in (EVENT, 3):
            number = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC | (os.EFD_SEMAPHORE if kind == 3 else 0))
            self._kept.callback(os.close, number)
            self._kicks.append(number)
            return number
        if kind == 4:
            return self._sock.fileno()
        if kind in (5, 6):
            ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            (ours if kind == 5 else self._kept).callback(os.close, ends[0])
            self._kept.callback(os.close, ends[1])
            return ends[kind - 5]
        if kind == 7:
            number = os.memfd_create("empty", os.MFD_CLOEXEC)
        elif kind == 8:
            number = os.open(f"/proc/self/fd/{self._memory}", os.O_RDONLY | os.O_CLOEXEC)
        else:
            number = os.open(("/", "/dev/null", "/dev/zero")[kind - 9], os.O_RDONLY | os.O_CLOEXEC)
        ours.callback(os.close, number)
        return number


def _descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def _names(before: set[str]) -> dict[str, str]:
    found = {}
    for number in _descriptors() ^ before:
        with contextlib.suppress(OSError):
            found[number] = os.readlink(f"/proc/self/fd/{number}")
    return found
