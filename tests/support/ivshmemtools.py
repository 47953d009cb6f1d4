# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""``doorbell-server`` and ``doorbell-client`` to test: started as scripts start them, stopped whatever happens."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .daemon import BIN, DEADLINE

SERVER = BIN / "doorbell-server"
CLIENT = BIN / "doorbell-client"


def run(program: Path, *arguments: object, given: str = "", **more: object) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with *given* on standard input."""
    command = [str(program), *map(str, arguments)]
    return subprocess.run(
        command, input=given, capture_output=True, text=True, check=False, timeout=DEADLINE, **more  # type: ignore[call-overload]
    )  # fmt: skip


@contextmanager
def shared_name(size: int | None = None) -> Iterator[str]:
    """Give the name of a shared memory object of *size*, or of none yet; nothing is left of it."""
    name = f"doorbell-test-{secrets.token_hex(4)}"
    path = Path("/dev/shm", name)
    if size is not None:
        path.write_bytes(bytes(size))
    try:
        yield name
    finally:
        path.unlink(missing_ok=True)


class Background:
    """``doorbell-server`` in the background of *directory*; ``with`` has it end, if it has not."""

    def __init__(self, directory: Path, *arguments: object) -> None:
        self.socket = directory / "socket"
        self.pid_file = directory / "pid"
        self.log_path = directory / "server.log"
        self.arguments = ("-S", self.socket, "-p", self.pid_file, *arguments)
        self._pidfd = -1

    def start(self) -> Background:
        """Start it; AssertionError with what it says if it can't serve."""
        with self.log_path.open("a") as log:
            command = [SERVER, *map(str, self.arguments)]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=log, check=False, timeout=DEADLINE)
        assert done.returncode == 0, self.log
        self._pidfd = os.pidfd_open(self.pid)
        return self

    @property
    def pid(self) -> int:
        """Its process ID, as the file says."""
        return int(self.pid_file.read_text())

    @property
    def log(self) -> str:
        """All that it has said."""
        return self.log_path.read_text()

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal and wait for its end."""
        signal.pidfd_send_signal(self._pidfd, number)
        self.wait()

    def wait(self) -> None:
        """Wait for its end."""
        assert select.select([self._pidfd], [], [], DEADLINE)[0], "it does not end"
        os.close(self._pidfd)
        self._pidfd = -1

    def __enter__(self) -> Background:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self.wait()


class Foreground:
    """``doorbell-server -F``, ready when it says so to ``$NOTIFY_SOCKET``."""

    def __init__(self, directory: Path, *arguments: object, umask: int = -1) -> None:
        self.socket = directory / "socket"
        self._log_path = directory / "server.log"
        self._notify = directory / "notify"
        self._command = [SERVER, *map(str, arguments)]
        self._umask = umask

    def __enter__(self) -> Foreground:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening, self._log_path.open("ab") as log:
            listening.bind(str(self._notify))
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stderr=log, cwd=self._log_path.parent, umask=self._umask,
                env={**os.environ, "NOTIFY_SOCKET": str(self._notify)},
            )  # fmt: skip
            pidfd = os.pidfd_open(self.process.pid)
            ready, _, _ = select.select([listening, pidfd], [], [], DEADLINE)
            os.close(pidfd)
            if listening not in ready or b"READY=1" not in listening.recv(4096):
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"it did not get ready:\n{self.log}")
        return self

    @property
    def log(self) -> str:
        """All that it has said."""
        return self._log_path.read_text()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send it a signal; gives its exit status."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Piped:
    """``doorbell-client`` at pipes: lines go in, lines come out; *notes* is its standard error."""

    def __init__(self, path: Path, *arguments: object) -> None:
        self._command = [CLIENT, "-S", str(path), *map(str, arguments)]

    def __enter__(self) -> Piped:
        pipes = subprocess.PIPE
        self.process = subprocess.Popen(self._command, stdin=pipes, stdout=pipes, stderr=pipes, bufsize=0)
        assert self.process.stdout is not None and self.process.stderr is not None
        self._streams = {"answers": self.process.stdout.fileno(), "notes": self.process.stderr.fileno()}
        self.said = dict.fromkeys(self._streams, "")
        return self

    def write(self, text: str) -> None:
        """Write to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())

    def until(self, pattern: str, stream: str = "answers") -> re.Match[str]:
        """Read until *pattern* is found in what it said since the last such call; that much is forgotten."""

        def found() -> re.Match[str] | None:
            return re.search(pattern, self.said[stream], re.M)

        self._read(found, stream)
        match = found()
        assert match, f"no {pattern!r} in {self.said}"
        self.said[stream] = self.said[stream][match.end() :]
        return match

    def ends(self) -> int:
        """Close its standard input, read on to the end, and give its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        for stream in self._streams:
            self._read(lambda: False, stream)
        return self.process.wait(DEADLINE)

    def _read(self, enough: Callable[[], object], stream: str) -> None:
        until = time.monotonic() + DEADLINE
        while not enough():
            left = max(0.0, until - time.monotonic())
            if not select.select([self._streams[stream]], [], [], left)[0]:
                return
            if not (data := os.read(self._streams[stream], 4096)):
                return
            self.said[stream] += data.decode()

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
