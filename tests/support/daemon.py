# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A doorbelld to test: started as a user starts it, ready when it says so, stopped whatever happens.

Readiness comes through sd_notify's own socket, so nothing polls and nothing sleeps.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from support.dbusclient import until

DEADLINE = 20.0
BIN = Path(sys.executable).parent


def descriptors_of(pid: int) -> int:
    """Count the open descriptors of a process, but for a module that it is just importing."""
    count = 0
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            count += not os.readlink(entry.path).endswith((".py", ".pyc", ".so"))
    return count


class Daemon:
    """A doorbelld process with the configuration *regions* (TOML), on a private bus unless *bus* names another.

    *arguments* are added to its command line. *stdout* and *stderr* are descriptors for it;
    by default it logs to a file.
    """

    def __init__(
        self,
        directory: Path,
        regions: str = "[region.demo]\n",
        *,
        bus: str = "private",
        environment: Mapping[str, str] | None = None,
        log_level: str = "debug",
        arguments: Sequence[str] = (),
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> None:
        self._stdout, self._stderr = stdout, stderr
        self.directory = directory
        self.runtime = directory / "run"
        self.config = directory / "doorbelld.toml"
        self.write_config(regions)
        self.bus = f"unix:path={self.runtime}/bus" if bus == "private" else bus
        self._arguments = ["--bus", bus, "--log-level", log_level, *arguments]
        self._environment = {**os.environ, **(environment or {})}
        self._log_path = directory / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def write_config(self, regions: str) -> None:
        """Replace the configuration file."""
        self.config.write_text(f'[daemon]\nruntime-directory = "{self.runtime}"\n{regions}')

    def start(self) -> Daemon:
        """Start it and wait until it is ready; AssertionError with its log if it is not."""
        notify = self.directory / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening, self._log_path.open("ab") as log:
            notify.unlink(missing_ok=True)
            listening.bind(str(notify))
            listening.settimeout(DEADLINE)
            self.process = subprocess.Popen(
                [BIN / "doorbelld", "--config", self.config, *self._arguments],
                env={**self._environment, "NOTIFY_SOCKET": str(notify)},
                stdin=subprocess.DEVNULL,
                stdout=self._stdout,
                stderr=log if self._stderr is None else self._stderr,
                pipesize=-1,
            )
            pidfd = os.pidfd_open(self.process.pid)
            try:
                self._wait(listening, pidfd)
            finally:
                os.close(pidfd)
        return self

    def _wait(self, listening: socket.socket, pidfd: int) -> None:
        import select

        while True:
            readable, _, _ = select.select([listening, pidfd], [], [], DEADLINE)
            if listening in readable:
                if b"READY=1" in listening.recv(4096):
                    return
            else:
                self.stop()
                raise AssertionError(f"doorbelld did not get ready:\n{self.log}")

    @property
    def pid(self) -> int:
        """The daemon's process."""
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        """All it has logged so far."""
        return self._log_path.read_text()

    def socket(self, region: str = "demo") -> Path:
        """Where guests of *region* connect, unless its configuration says otherwise."""
        return self.runtime / region / "socket"

    def descriptors(self) -> int:
        """How many it has open."""
        return descriptors_of(self.pid)

    def times(self, what: str) -> int:
        """Say how often it has logged *what*."""
        return sum(what in line for line in self.log.splitlines())

    @property
    def alive(self) -> bool:
        """Whether its process is there."""
        return self.process is not None and self.process.poll() is None

    def restart(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Have it execute itself again, do something *meanwhile* over and over, and wait until it is ready.

        It must have been started with ``--exec-restart``.
        """
        before = self.times("] ready ")

        def ready() -> bool:
            meanwhile()
            return self.times("] ready ") > before or not self.alive

        os.kill(self.pid, signal.SIGUSR2)
        until(ready, "the new program")
        assert self.alive, self.log

    def stop(self) -> int:
        """End it with SIGTERM and give its exit status."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"doorbelld did not stop:\n{self.log}") from None
        self.process = None
        return status

    def __enter__(self) -> Daemon:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        status = self.stop()
        if kind is None:
            assert status == 0, self.log
