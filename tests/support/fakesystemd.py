# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A service manager to test with: one service, its notification socket, its descriptor store.

Theory of operation: it does what systemd does, as far as the service can tell, and lets a test choose the moment. A
thread obeys the messages on the notification socket in the order in which they came. When the process is dead, what it
had sent before is obeyed first, and only then is the next one started, with all that is in the store, from number 3
on, in the order in which it was stored. Unlike systemd it restarts nothing by itself, and it can be told to be slow, to
have a small store, or to lose an entry.

It needs the standard library only, so that benchmarks can use it too.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

DEADLINE = 20.0
_FIRST = 3
_FDS_MAX = 253
_SHIM = 'LISTEN_PID=$$; export LISTEN_PID; exec "$@"'
"""The variable must name the very process that the service is, which is known only there."""


class FakeSystemd:
    """Runs *command* as a service, with *sockets* (by name) that it listens on for it, and room for *capacity* entries.

    Its own files are in *directory*. The environment is ours and *environment*.
    """

    def __init__(
        self,
        directory: Path,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        sockets: Mapping[str, socket.socket] | None = None,
        capacity: int = 8192,
    ) -> None:
        self.command = list(map(str, command))
        self.capacity = capacity
        self.entries: list[tuple[str, int]] = []
        """The store: names and descriptors, oldest first."""
        self.refused = 0
        """Entries for which there was no room."""
        self.doubled: list[str] = []
        """Names that were stored while they were in the store: nothing that a service should do."""
        self.status = ""
        """What the service last said of itself."""
        self.pid = 0
        """The service's process; 0 if there is none."""
        self._log = directory / "log"
        self._sockets = dict(sockets or {})
        self._environment = {**os.environ, **(environment or {})}
        self._environment["NOTIFY_SOCKET"] = str(directory / "notify")
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(directory / "notify"))
        self._wake, self._waker = socket.socketpair()
        self._awake = threading.Event()
        self._awake.set()
        self._changed = threading.Condition()
        self._ready = False
        self._thread = threading.Thread(target=self._obey, name="fake systemd", daemon=True)
        self._thread.start()

    # The service

    def start(self, *, wait: bool = True) -> Self:
        """Start it, and wait until it is ready unless told otherwise.

        Raises:
            AssertionError: it did not get ready; with its log.
        """
        assert not self.pid
        self.drain()
        self._ready = False
        self.pid = self._spawn()
        if wait:
            self.wait_ready()
        return self

    def _spawn(self) -> int:
        given = [*((name, sock.fileno()) for name, sock in self._sockets.items()), *self.entries]
        environment = {**self._environment, "DOORBELLD_FDSTORE_MAX": str(self.capacity)}
        if given:
            environment |= {"LISTEN_FDS": str(len(given)), "LISTEN_FDNAMES": ":".join(name for name, _ in given)}
        # first out of the way of the numbers that they are to get
        copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST + len(given)) for _, fd in given]
        try:
            return os.posix_spawn(
                "/bin/sh",
                ["sh", "-c", _SHIM, "sh", *self.command],
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, str(self._log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                    *((os.POSIX_SPAWN_DUP2, copy, number) for number, copy in enumerate(copies, _FIRST)),
                ],
                setsigdef=[signal.SIGPIPE],
            )
        finally:
            for copy in copies:
                os.close(copy)

    def wait_ready(self) -> None:
        """Wait until it is ready.

        Raises:
            AssertionError: it ended, or took too long; with its log.
        """
        self.until(lambda: self._ready or self.is_dead, "READY=1")
        if not self._ready:
            raise AssertionError(f"the service ended with {self.reap()} before it was ready:\n{self.log}")

    def send(self, number: int) -> None:
        """Send it a signal after which it gets ready anew, and wait for that."""
        with self._changed:
            self._ready = False
        os.kill(self.pid, number)
        self.wait_ready()

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it with a signal; gives its exit status, or minus the signal. What it had said until then is obeyed."""
        if not self.pid:
            return 0
        os.kill(self.pid, number)
        return self.reap()

    def restart(self, number: int = signal.SIGTERM) -> None:
        """End it with a signal, and start it again."""
        self.end(number)
        self.start()

    def reap(self) -> int:
        """Wait for its end; gives its exit status, or minus the signal. What it had said until then is obeyed.

        Raises:
            AssertionError: it did not end; it is killed then.
        """
        late = not _wait_dead(self.pid, DEADLINE)
        if late:
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        self.drain()
        assert not late, f"the service did not end:\n{self.log}"
        return os.waitstatus_to_exitcode(status)

    @property
    def log(self) -> str:
        """All that it has written."""
        return self._log.read_text(errors="replace")

    @property
    def is_ready(self) -> bool:
        """Whether it has said so."""
        return self._ready

    @property
    def is_dead(self) -> bool:
        """Whether it has ended, and waits for `reap`."""
        return _wait_dead(self.pid, 0.0)

    # The store

    @property
    def names(self) -> list[str]:
        """What is in the store."""
        with self._changed:
            return [name for name, _ in self.entries]

    def lose(self, name: str) -> None:
        """Lose an entry, and say nothing."""
        with self._changed:
            ((index, fd),) = ((index, fd) for index, (there, fd) in enumerate(self.entries) if there == name)
            del self.entries[index]
            os.close(fd)

    @contextlib.contextmanager
    def slow(self) -> Iterator[None]:
        """Read no messages for the body; what a process leaves is still obeyed when it is dead."""
        with self._changed:
            self._awake.clear()
        try:
            yield
        finally:
            self._awake.set()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something that the service brings about by a message.

        Raises:
            AssertionError: it does not, in time.
        """
        deadline = time.monotonic() + DEADLINE
        with self._changed:
            while not condition():
                assert time.monotonic() < deadline, f"in vain: {what}; in the store: {self.names}\n{self.log}"
                self._changed.wait(0.05)  # a death makes no message

    def close(self) -> None:
        """Kill the service, and let go of everything."""
        self.end(signal.SIGKILL)
        self._waker.close()
        self._awake.set()
        self._thread.join()
        for sock in (self._sock, self._wake, *self._sockets.values()):
            sock.close()
        for _, fd in self.entries:
            os.close(fd)
        self.entries.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # Messages

    def drain(self) -> None:
        """Obey all that has come."""
        with self._changed:
            while self._obey_one():
                pass

    def _obey(self) -> None:
        while True:
            self._awake.wait()
            readable, _, _ = select.select([self._sock, self._wake], [], [])
            if self._wake in readable:
                return
            with self._changed:
                if self._awake.is_set():
                    self._obey_one()

    def _obey_one(self) -> bool:
        """Obey the next message; False if there is none."""
        space = socket.CMSG_SPACE(_FDS_MAX * 4)
        try:
            data, controls, _, _ = self._sock.recvmsg(8192, space, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        fds = array.array("i")
        for level, kind, content in controls:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(content)
        said = dict(line.partition("=")[::2] for line in data.decode().splitlines())
        if said.get("FDSTOREREMOVE") == "1":
            self._remove(said["FDNAME"])
        if said.get("FDSTORE") == "1":
            assert said["FDPOLL"] == "0"  # else systemd watches it, and drops it when its other end hangs up
            self._add(said["FDNAME"], fds)
        else:
            for fd in fds:
                os.close(fd)
        self._ready = self._ready or said.get("READY") == "1"
        self.status = said.get("STATUS", self.status)
        self._changed.notify_all()
        return True

    def _add(self, name: str, fds: Sequence[int]) -> None:
        for fd in fds:
            if len(self.entries) >= self.capacity:
                self.refused += 1
                os.close(fd)
                continue
            if any(there == name for there, _ in self.entries):
                self.doubled.append(name)
            self.entries.append((name, fd))

    def _remove(self, name: str) -> None:
        for there, fd in self.entries:
            if there == name:
                os.close(fd)
        self.entries = [entry for entry in self.entries if entry[0] != name]


def _wait_dead(pid: int, seconds: float) -> bool:
    pidfd = os.pidfd_open(pid)
    try:
        return bool(select.select([pidfd], [], [], seconds)[0])
    finally:
        os.close(pidfd)
