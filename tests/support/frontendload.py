# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Front-ends under full load, each in a process of its own, for whoever wants to kill them.

Theory of operation: `Nursery` starts this module as a process, which forks a front-end for each line that it reads: so
a new one costs milliseconds. A front-end tells its process ID, then writes a dot for each message to the back-end and
for each round of requests; who reads the dots knows how far it has come. It goes on until it is killed, or until
SIGTERM if it is a steady one, and checks whatever comes back. All keep as many requests in flight as they have room.

Of a disk it expects that each sector is what `sector` says, and it writes only that.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from doorbelld.ring.driver import DriverQueue
from doorbelld.vhost.frontend import Frontend

from support.apart import start_module

PATIENCE = 20.0
SECTOR = 512
SECTORS = 8192
"""Of the disks."""
BLK_IN, BLK_OUT = 0, 1
_MOST = 32
"""Sectors of a request, at most."""
_DEPTH = 12
"""Requests in flight, for each queue."""
_QUEUES = {"blk": 2, "rng": 1, "loopback": 1}


def sector(number: int) -> bytes:
    """Tell what is in a sector of a disk."""
    return struct.pack("<Q", number ^ 0x5EC7_0000_0000_0000) * (SECTOR // 8)


def disk_content() -> bytes:
    """Tell what is on a disk."""
    return b"".join(map(sector, range(SECTORS)))


class Load(Frontend):
    """A front-end, and what it does: a subclass says how a request is made and what must come of it."""

    dots = False
    DATA = SECTOR * _MOST

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send a message, after a dot."""
        self.dot()
        super().send_raw(data, fds)

    def dot(self) -> None:
        """Tell that there is progress."""
        if self.dots:
            os.write(1, b".")

    def begin(self, kind: str) -> None:
        """Set up queues and memory."""
        self.kind = kind
        self.start(_QUEUES[kind])
        self.room = [[self.take(self.DATA + 64) for _ in range(_DEPTH)] for _ in self.queues]
        self.out: list[dict[int, tuple[int, bytes]]] = [{} for _ in self.queues]
        """By queue and head: where in memory the request is, and what must be there when it is done."""
        self.done = 0

    def round(self, index: int) -> None:
        """Make as many requests as there is room for, and wait until some are done."""
        queue = self.queues[index]
        while self.room[index]:
            at = self.room[index].pop()
            head, expected = getattr(self, f"add_{self.kind}")(queue, at)
            self.out[index][head] = at, expected
        queue.kick()
        self.settle(index)
        self.dot()

    def settle(self, index: int) -> None:
        """Wait until some requests are done, and check them."""
        for head, written in self.wait(self.queues[index]):
            at, expected = self.out[index].pop(head)
            self.room[index].append(at)
            found = self.memory.read(at, written if self.kind == "rng" else len(expected))
            if self.kind == "rng":
                assert written and any(found), f"{written} bytes of entropy: {found[:16]!r}"
            else:
                assert found == expected, f"got {found[:32]!r}.. instead of {expected[:32]!r}.."
            self.done += 1

    def finish(self) -> None:
        """Wait until nothing is in flight."""
        for index, out in enumerate(self.out):
            while out:
                self.settle(index)

    def add_blk(self, queue: DriverQueue, at: int) -> tuple[int, bytes]:
        """Read or write some sectors; the status comes behind them, the header is further on."""
        count = random.randint(1, _MOST)
        first = random.randrange(SECTORS - count)
        content = b"".join(map(sector, range(first, first + count)))
        kind = random.choice([BLK_IN, BLK_OUT])
        header = at + self.DATA + 16
        self.memory.write(header, struct.pack("<IIQ", kind, 0, first))
        data, status = (at, len(content)), (at + len(content), 1)
        self.memory.write(at, (content if kind == BLK_OUT else bytes(len(content))) + b"\xee")
        readable, writable = [(header, 16)], [status]
        (readable.append if kind == BLK_OUT else lambda it: writable.insert(0, it))(data)
        return queue.add(readable, writable), content + b"\0"

    def add_rng(self, queue: DriverQueue, at: int) -> tuple[int, bytes]:
        """Ask for random bytes."""
        self.memory.write(at, bytes(4096))
        return queue.add([], [(at, 4096)]), b""

    def add_loopback(self, queue: DriverQueue, at: int) -> tuple[int, bytes]:
        """Send something; it comes back to the first half of the room."""
        said = random.randbytes(random.randint(1, 1000))
        self.memory.write(at + 1024, said)
        return queue.add([(at + 1024, len(said))], [(at, len(said))]), said


def _child(kind: str, path: str, how: str) -> None:
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    print(f"pid {os.getpid()}", flush=True)
    Load.dots = how == "hasty"
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    with contextlib.closing(Load(sock, timeout=PATIENCE)) as load:
        load.begin(kind)
        while not (stopping and load.done):
            for index in load.queues:
                load.round(index)
        load.finish()
        print(f"done {load.done}", flush=True)


def _main() -> NoReturn:
    """Fork a front-end for each line, one after the other."""
    for line in sys.stdin:
        kind, path, how, seed = line.split()
        pid = os.fork()
        if pid == 0:
            random.seed(int(seed))
            try:
                _child(kind, path, how)
            except BaseException as error:
                print(f"\nfailed {type(error).__name__}: {error}", flush=True)
                os._exit(1)
            os._exit(0)
        os.waitpid(pid, 0)
    sys.exit()


class Nursery:
    """Where front-ends come from, one after the other; the `with` block ends the last one."""

    def __init__(self) -> None:
        self._process = start_module("support.frontendload", start_new_session=True)
        self._rest = b""
        self.pid = 0

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: Any) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def start(self, kind: str, path: str, *, steady: bool = False, seed: int = 0) -> None:
        """Start a front-end for the device behind *path*; the one before must have ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{kind} {path} {'steady' if steady else 'hasty'} {seed}\n".encode())
        self._process.stdin.flush()
        self.pid = int(self._line("pid "))

    def kill_after(self, dots: int) -> None:
        """Kill the front-end as soon as it has come so far."""
        while dots > 0:
            self._fill()
            assert b"failed" not in self._rest, self._rest.lstrip(b".").decode()
            dots -= self._rest.count(b".")
            self._rest = self._rest.lstrip(b".")
        os.kill(self.pid, signal.SIGKILL)

    def finish(self) -> int:
        """Let a steady front-end come to its end; how many requests it made.

        Raises:
            AssertionError: something that came back was wrong, or nothing came.
        """
        os.kill(self.pid, signal.SIGTERM)
        return int(self._line("done "))

    def _line(self, start: str) -> str:
        """Read up to a line that begins so, and give the rest of it."""
        while True:
            while b"\n" not in self._rest:
                self._fill()
            line, _, self._rest = self._rest.partition(b"\n")
            text = line.lstrip(b".").decode()
            assert not text.startswith("failed"), text
            if text.startswith(start):
                return text.removeprefix(start)

    def _fill(self) -> None:
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], PATIENCE)[0], "a front-end is stuck"
        data = os.read(self._process.stdout.fileno(), 1 << 16)
        assert data, "the front-ends have ended"
        self._rest += data


if __name__ == "__main__":
    _main()
