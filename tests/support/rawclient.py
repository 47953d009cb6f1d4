# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A deliberately simple ivshmem client: a second opinion, with none of doorbelld's code in it.

It checks the stream's order by itself: three messages of preamble; a peer's vectors in one run; no leave of somebody
unknown. Doorbells are known by the kernel's ``eventfd-id``, so that a test can compare them with the server's.
"""

from __future__ import annotations

import os
import re
import select
import socket
import struct
import time

DEADLINE = 20.0


def identity(fd: int) -> int:
    """Tell which eventfd this is, whatever its number."""
    with open(f"/proc/self/fdinfo/{fd}", "rb", buffering=0) as info:
        match = re.search(rb"^eventfd-id:\s*(\d+)$", info.read(4096), re.M)
    assert match, f"descriptor {fd} is no eventfd"
    return int(match[1])


class RawClient:
    """One connection; ``doorbells`` is the membership that it has learnt, as {ID: [eventfd identity, ...]}."""

    def __init__(self, path: str = "", *, sock: socket.socket | None = None, keep: bool = False, step: int = 8) -> None:
        """Connect to *path*, or take over *sock*; *keep* the eventfds in ``fds``; read *step* bytes at a time."""
        if sock is None:
            sock = socket.socket(socket.AF_UNIX)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(DEADLINE), 0))
            sock.connect(path)
        self.sock = sock
        self.keep = keep
        self.step = step
        self.eof = False
        self.messages = 0
        self.version: int | None = None
        self.id: int | None = None
        self.memory: int | None = None
        self.doorbells: dict[int, list[int]] = {}
        self.fds: dict[int, list[int]] = {}
        self.log: list[tuple[str, int]] = []
        """("join", ID) at a peer's first vector, ("left", ID)."""
        self._run: int | None = None
        self._data = b""
        self._fd: int | None = None

    def message(self, timeout: float = DEADLINE) -> tuple[int, bool] | None:
        """Read one message: its value, and whether it had a descriptor; None after silence or at the end."""
        while len(self._data) < 8:
            if not self._receive(timeout):
                return None
        (value,), fd = struct.unpack("<q", self._data), self._fd
        self._data, self._fd = b"", None
        self._apply(value, fd)
        self.messages += 1
        return value, fd is not None

    def take(self, limit: int | None = None, timeout: float = 0.0) -> int:
        """Read until silence of *timeout* seconds, the end, or *limit* messages; return how many."""
        count = 0
        while (limit is None or count < limit) and self.message(timeout) is not None:
            count += 1
        return count

    def greet(self, vectors: int) -> RawClient:
        """Read until all own doorbells have come."""
        while self.id is None or len(self.doorbells.get(self.id, ())) < vectors:
            assert self.message() is not None, f"the greeting stopped after {self.messages} messages"
        return self

    def until_eof(self) -> None:
        """Read to the end of the stream."""
        until = time.monotonic() + DEADLINE
        while self.message(max(0.0, until - time.monotonic())) is not None:
            pass
        assert self.eof, "the server did not close the connection"

    def close(self) -> None:
        """Close everything; a second time does nothing."""
        self.sock.close()
        for fds in self.fds.values():
            for fd in fds:
                os.close(fd)
        self.fds.clear()
        for fd in (self.memory, self._fd):
            if fd is not None:
                os.close(fd)
        self.memory = self._fd = None

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self, timeout: float) -> bool:
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        while True:
            try:
                size = min(self.step, 8 - len(self._data))
                data, control, got, _ = self.sock.recvmsg(size, socket.CMSG_SPACE(8 * 4), flags)
                break
            except BlockingIOError:
                poll = select.poll()
                poll.register(self.sock, select.POLLIN)
                if timeout <= 0 or not poll.poll(timeout * 1000):
                    return False
            except ConnectionResetError:
                data, control, got = b"", [], 0
                break
        assert not got & socket.MSG_CTRUNC, "descriptors were cut off"
        for _, _, raw in control:
            for (fd,) in struct.iter_unpack("i", raw):
                assert self._fd is None, "more than one descriptor with a message"
                self._fd = fd
        self.eof = not data
        self._data += data
        return bool(data)

    def _apply(self, value: int, fd: int | None) -> None:
        if self.messages < 3:
            assert (fd is not None) == (self.messages == 2), f"descriptor misplaced in message {self.messages}"
            if self.messages == 0:
                self.version = value
            elif self.messages == 1:
                self.id = value
            else:
                assert value == -1
                self.memory = fd
        elif fd is None:
            assert value in self.doorbells, f"leave of {value}, who is not there"
            del self.doorbells[value]
            for kept in self.fds.pop(value, ()):
                os.close(kept)
            self.log.append(("left", value))
            self._run = None
        else:
            if value != self._run:
                assert value not in self.doorbells, f"vectors of {value} do not come in one piece"
                self.log.append(("join", value))
            self._run = value
            self.doorbells.setdefault(value, []).append(identity(fd))
            if self.keep:
                self.fds.setdefault(value, []).append(fd)
            else:
                os.close(fd)


class QemuClient(RawClient):
    """One that fails where QEMU corrupts its memory: at the join of an ID that it was told of before."""

    def _apply(self, value: int, fd: int | None) -> None:
        if self.messages >= 3 and fd is not None and value != self._run:
            assert ("join", value) not in self.log, f"ID {value} joins again: {self.log}"
        super()._apply(value, fd)
