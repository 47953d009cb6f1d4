# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A stand-alone back-end program to test: started as a launcher starts it, and ready when it says so."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from doorbelld.vhost.frontend import Frontend

from .blkdriver import IN, NOTHING, OK, SECTOR
from .daemon import BIN, DEADLINE

SECTORS_MAX = 256


class BackendProgram:
    """``doorbelld-vhost-user-KIND`` with its files in *directory*; *fds* are those that it inherits.

    It logs to a file, or to the descriptor *stderr*.
    """

    def __init__(
        self, directory: Path, kind: str, *arguments: object, fds: Sequence[int] = (), stderr: int | None = None
    ) -> None:
        self.command = [str(BIN / f"doorbelld-vhost-user-{kind}"), *map(str, arguments)]
        self.directory = directory
        self._fds = fds
        self._stderr = stderr
        self._log_path = directory / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> BackendProgram:
        """Start it and wait until it is ready; AssertionError with its log if it is not."""
        notify = self.directory / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening, self._log_path.open("ab") as log:
            notify.unlink(missing_ok=True)
            listening.bind(str(notify))
            self.process = subprocess.Popen(
                self.command,
                env={**os.environ, "NOTIFY_SOCKET": str(notify)},
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stderr=log if self._stderr is None else self._stderr,
                pass_fds=self._fds,
            )
            pidfd = os.pidfd_open(self.process.pid)
            try:
                ready, _, _ = select.select([listening, pidfd], [], [], DEADLINE)
                if listening not in ready or b"READY=1" not in listening.recv(4096):
                    self.process.kill()
                    self.process.wait()
                    raise AssertionError(f"{self.command} did not get ready:\n{self.log}")
            finally:
                os.close(pidfd)
        return self

    @property
    def log(self) -> str:
        """All it has logged so far."""
        return self._log_path.read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end and give its exit status."""
        assert self.process is not None
        return self.process.wait(DEADLINE)

    def stop(self) -> int:
        """End it with SIGTERM and give its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def __enter__(self) -> BackendProgram:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class DiskUser:
    """Requests to a disk, through the front-end in another process than the disk's."""

    def __init__(self, frontend: Frontend, most: int = SECTORS_MAX) -> None:
        """Set memory of *frontend* aside for requests of up to *most* sectors."""
        self._frontend = frontend
        self._question = frontend.take(16 + most * SECTOR)
        self._answer = frontend.take(most * SECTOR + 1)

    def request(self, kind: int, sector: int = 0, out: bytes = b"", room: int = 0, queue: int = 0) -> tuple[int, bytes]:
        """Have one request done; gives the status that the disk writes, and the data."""
        memory, driver = self._frontend.memory, self._frontend.queues[queue]
        question = struct.pack("<IIQ", kind, 0, sector) + out
        memory.write(self._question, question)
        memory.write(self._answer + room, bytes([NOTHING]))
        head = driver.add([(self._question, len(question))], [(self._answer, room + 1)])
        driver.kick()
        assert [done for done, _ in self._frontend.wait(driver)] == [head]
        answer = memory.read(self._answer, room + 1)
        return answer[-1], answer[:-1]

    def read(self, sector: int, count: int, queue: int = 0) -> bytes:
        """Read sectors; AssertionError if that fails."""
        status, data = self.request(IN, sector, room=count * SECTOR, queue=queue)
        assert status == OK, f"the disk says {status}"
        return data
