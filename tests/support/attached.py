# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A program that ``doorbellctl attach`` starts, and how a test talks to it: a line with a command, a line of JSON.

As ``raw`` it looks at the environment by itself, as a program in any language would; as ``client`` it is a
`Client.from_environment`. This file is both sides, so it must import little.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

DEADLINE = 30.0


class Attached:
    """A ``doorbellctl attach`` that starts this program: *process* has pipes at both ends."""

    def __init__(self, process: subprocess.Popen[Any]) -> None:
        self.process = process
        self._rest = b""
        self.known: dict[str, Any] = {}

    @classmethod
    def start(cls, region: str, kind: str, environment: Mapping[str, str], *words: object) -> Attached:
        """Start one here, with *words* for ``attach``, and the program as *kind*."""
        ctl = Path(sys.executable).parent / "doorbellctl"
        command = [str(ctl), "attach", region, *map(str, words), "--exec", sys.executable, __file__, kind]
        pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
        return cls(subprocess.Popen(command, env=environment, **pipes))

    def greet(self) -> Attached:
        """Wait until the program runs, and have what it knows in ``known``."""
        self.known = self.answer()
        return self

    @property
    def id(self) -> int:
        """Its ID in the region."""
        return int(self.known["id"])

    def tell(self, *words: object) -> None:
        """Give it a command; the answer comes later."""
        assert self.process.stdin is not None
        os.write(self.process.stdin.fileno(), " ".join(map(str, words)).encode() + b"\n")

    def answer(self) -> Any:
        """Wait for an answer."""
        assert self.process.stdout is not None
        while b"\n" not in self._rest:
            assert select.select([self.process.stdout], [], [], DEADLINE)[0], "it says nothing"
            piece = os.read(self.process.stdout.fileno(), 65536)
            assert piece, f"it ended: {self.process.stderr.read().decode() if self.process.stderr else ''}"
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def ask(self, *words: object) -> Any:
        """Give it a command, and wait for the answer."""
        self.tell(*words)
        return self.answer()

    def complaint(self) -> str:
        """Wait for a line on standard error."""
        assert self.process.stderr is not None
        assert select.select([self.process.stderr], [], [], DEADLINE)[0], "it does not complain"
        return self.process.stderr.readline().decode()

    def status(self) -> int:
        """Wait for its end, and give the exit status."""
        return self.process.wait(DEADLINE)

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate(timeout=DEADLINE)  # the end of its input ends it


def _open_descriptors() -> list[int]:
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the one that lists
            os.fstat(fd)
            found.append(fd)
    return sorted(found)


class Raw:
    """Looks at the environment by itself."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, lambda number, _: self.signals.append(number))
        self.variables = {name: value for name, value in os.environ.items() if name.startswith("DOORBELL_")}
        self.own = self._numbers("FDS")
        self.peers = {peer: self._numbers(f"PEER_{peer}") for peer in self._numbers("PEERS")}
        self.known = {
            "id": int(os.environ["DOORBELL_ID"]),
            "pid": os.getpid(),
            "bus": os.environ["DOORBELLD_BUS"],
            "variables": self.variables,
            "open": _open_descriptors(),
            "blocking": [os.get_blocking(fd) for fd in self.own],
            "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        }

    @staticmethod
    def _numbers(name: str) -> list[int]:
        return [int(word) for word in os.environ[f"DOORBELL_{name}"].split()]

    def take(self, vector: int) -> int:
        """Wait for a ring, as a shell does; gives the count."""
        return os.eventfd_read(self.own[vector])

    def ring(self, peer: int, vector: int) -> None:
        """Ring a peer."""
        os.eventfd_write(self.peers[peer][vector], 1)

    def read(self, offset: int, length: int) -> str:
        """Read some of the memory."""
        return os.pread(int(os.environ["DOORBELL_MEMORY_FD"]), length, offset).decode()

    def gone(self) -> bool:
        """Wait until it is over."""
        fd = int(os.environ["DOORBELL_GONE_FD"])
        return bool(select.select([fd], [], [], DEADLINE)[0]) and os.read(fd, 1) == b""

    def caught(self, last: int) -> list[int]:
        """Wait for the signal *last*; gives those that came so far."""
        while last not in self.signals:
            select.select([], [], [], 0.01)
        return self.signals


class Member:
    """Is a `Client.from_environment`."""

    def __init__(self) -> None:
        from doorbelld.ivshmem.client import Client, Rung

        self._rung = Rung
        self.client = Client.from_environment()
        self.rings: list[int] = [0] * self.client.vectors
        self.known = {"id": self.client.id, "pid": os.getpid(), "peers": list(self.client.peers)}

    def _until(self, condition: Any) -> None:
        while not condition():
            for event in self.client.poll(DEADLINE):
                if isinstance(event, self._rung):
                    self.rings[event.vector] += event.count

    def take(self, vector: int) -> int:
        """Wait for a ring; gives the count."""
        self._until(lambda: self.rings[vector])
        count, self.rings[vector] = self.rings[vector], 0
        return count

    def heard(self, least: int) -> list[int]:
        """Wait until it was rung *least* times in all and once more saw nothing; gives how often, by vector."""
        self._until(lambda: sum(self.rings) >= least)
        while events := self.client.poll(0):
            for event in events:
                if isinstance(event, self._rung):
                    self.rings[event.vector] += event.count
        return self.rings

    def ring(self, peer: int, vector: int) -> None:
        """Ring a peer."""
        self.client.notify(peer, vector)

    def read(self, offset: int, length: int) -> str:
        """Read some of the memory."""
        return bytes(self.client.memory[offset : offset + length]).decode()

    def joined(self, peer: int, vectors: int) -> list[int]:
        """Wait until a peer is wholly there; gives all."""
        self._until(lambda: len(self.client.doorbells.get(peer, ())) >= vectors)
        return list(self.client.peers)

    def left(self, peer: int) -> list[int]:
        """Wait until a peer is gone; gives all."""
        self._until(lambda: peer not in self.client.peers)
        return list(self.client.peers)

    def gone(self) -> str:
        """Wait until it is over; gives the error's name."""
        try:
            self._until(lambda: False)
        except Exception as error:
            return type(error).__name__
        return ""


def main() -> None:
    """Be the program."""
    program: Any = Raw() if sys.argv[1] == "raw" else Member()
    print(json.dumps(program.known), flush=True)
    for line in sys.stdin:
        word, *arguments = line.split()
        if word == "exit":
            sys.exit(int(arguments[0]))
        if word == "die":
            os.kill(os.getpid(), int(arguments[0]))
        print(json.dumps(getattr(program, word)(*map(int, arguments))), flush=True)


if __name__ == "__main__":
    main()
