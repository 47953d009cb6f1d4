# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A peer that is no guest: speaks the client's side of the ivshmem protocol, for the self-test.

It takes what the server tells (through `wire.ivshmem.Decoder`), maps the memory, counts its own rings, and rings
others as a guest would: by their eventfds, without the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import socket
import time
from array import array
from collections.abc import Callable

from ..fds import native
from ..fds.owned import Fd
from ..wire.ivshmem import Decoder, Kind, Message, ProtocolError

_FDS = socket.CMSG_SPACE(4)
_CHUNK = 8  # one message: its descriptor then can't be confused with the next one's


class SimulatedPeer:
    """A connected peer; its *name* is for messages only."""

    def __init__(self, name: str, sock: socket.socket) -> None:
        self.name = name
        self.id = -1
        self.memory: mmap.mmap | None = None
        self.doorbells: dict[int, list[Fd]] = {}
        """Doorbells by peer ID; our own are under our own ID."""
        self.rings: list[int] = []
        """Rings taken so far, by own vector."""
        self.last_ring = 0.0
        """When the last ring was taken, in seconds of `time.perf_counter`."""
        self.closed = ""
        """Why the connection is over, once it is."""
        self._sock = sock
        self._decoder = Decoder()
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._readable)

    @classmethod
    def connect(cls, name: str, path: str) -> SimulatedPeer:
        """Connect to a region's socket; OSError if that can't be."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(path)
        except BaseException:
            sock.close()
            raise
        return cls(name, sock)

    async def until(self, fulfilled: Callable[[], bool], seconds: float) -> bool:
        """Wait until *fulfilled*, for *seconds* at most; False if it is not by then, or the connection is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not fulfilled() and not self.closed:
                    self._changed.clear()
                    await self._changed.wait()
        return fulfilled()

    def knows(self, peer_id: int, vectors: int) -> bool:
        """Tell whether all doorbells of a peer have come."""
        return len(self.doorbells.get(peer_id, ())) == vectors

    def ring(self, peer_id: int, vector: int) -> None:
        """Ring a peer as a guest does."""
        native.ring_one(self.doorbells[peer_id][vector].fileno())

    def close(self) -> None:
        """Leave; a second time does nothing."""
        if self._sock.fileno() < 0:
            return
        self._hang_up("we left")
        for fd in self.doorbells.get(self.id, ()):
            self._loop.remove_reader(fd.fileno())
        for fds in self.doorbells.values():
            for fd in fds:
                fd.close()
        self.doorbells.clear()
        self._decoder.close()
        if self.memory is not None:
            self.memory.close()

    def _hang_up(self, reason: str) -> None:
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
        self.closed = self.closed or reason
        self._changed.set()

    def _readable(self) -> None:
        try:
            while True:
                data, ancillary, _, _ = self._sock.recvmsg(_CHUNK, _FDS, socket.MSG_CMSG_CLOEXEC)
                rights = array("i")
                for _, kind, raw in ancillary:
                    if kind == socket.SCM_RIGHTS:
                        rights.frombytes(raw)
                fds = [Fd(number) for number in rights]
                if not data:
                    self._hang_up("the daemon closed the connection")
                    return
                for message in self._decoder.feed(data, fds):
                    self._take(message)
        except BlockingIOError:
            self._changed.set()
        except (OSError, ProtocolError) as error:
            self._hang_up(str(error))

    def _take(self, message: Message) -> None:
        match message.kind:
            case Kind.OWN_ID:
                self.id = message.value
            case Kind.MEMORY if message.fd is not None:
                size = os.fstat(message.fd.fileno()).st_size
                self.memory = mmap.mmap(message.fd.fileno(), size)
                message.fd.close()
            case Kind.VECTOR if message.fd is not None:
                fds = self.doorbells.setdefault(message.value, [])
                fds.append(message.fd)
                if message.value == self.id:
                    self.rings.append(0)
                    self._loop.add_reader(message.fd.fileno(), self._rung, message.fd, len(fds) - 1)
            case Kind.LEFT:
                for fd in self.doorbells.pop(message.value, ()):
                    fd.close()

    def _rung(self, fd: Fd, vector: int) -> None:
        self.last_ring = time.perf_counter()
        count, _ = native.drain(fd.fileno())
        self.rings[vector] += count
        self._changed.set()
