# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Into the background, as daemons of old do it, but with an end that tells the truth.

Theory of operation
-------------------
`enter` forks. The child goes on in a session of its own; the parent waits at a pipe until the child says that it serves
(`Launch.done`), and only then ends with 0, so that the next line of a script finds a server. A child that ends before
that has told why on the standard error that both have, and the parent ends with its status.

Who serves in the background lets go of the terminal and of pipes: a script that reads our output to its end would wait
for ever. Standard error stays if it leads to a file, since then somebody wants to read it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
from types import FrameType

from .. import stdio
from ..errors import DoorbellError

_DONE = b"\n"


class Unwritable(DoorbellError):
    """The PID file can't be written."""


class Launch:
    """The child's side of going to the background."""

    def __init__(self, pipe: int) -> None:
        """Take over *pipe*, at the other end of which the parent waits."""
        self._pipe = pipe

    def done(self) -> bool:
        """Let go of the terminal, and have the parent end; tells whether it was still there."""
        _flush()
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in (0, 1) if leads_to_a_file(2) else (0, 1, 2):
            os.dup2(nothing, fd)
        os.close(nothing)
        stdio.renew()
        try:
            os.write(self._pipe, _DONE)
        except BrokenPipeError:
            return False
        finally:
            os.close(self._pipe)
        return True


def enter() -> Launch:
    """Fork; returns in the child only, which is in a session of its own and in the root directory then.

    The parent ends (`SystemExit`) with the child's status, or with 0 once the child serves.
    """
    _flush()
    reading, writing = os.pipe()
    if child := os.fork():
        os.close(writing)
        with open(reading, "rb", buffering=0) as pipe:
            sys.exit(_wait(child, pipe.fileno()))
    os.close(reading)
    os.setsid()
    os.chdir("/")
    return Launch(writing)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _wait(child: int, pipe: int) -> int:
    """Wait until *child* serves or ends; gives the status to end with."""

    def stop(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    if os.read(pipe, len(_DONE)) == _DONE:
        return os.EX_OK
    return abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) or 1


def leads_to_a_file(fd: int) -> bool:
    """Tell whether *fd* is open on a regular file."""
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:
        return False


class PidFile:
    """A file with our process ID in it, from the moment it is made until `remove`.

    It is written in place, whatever it is: somebody who wants none gives ``/dev/null``. But a symbolic link is not
    followed: where others may make one, /tmp say, it could lead to any file of ours.
    """

    def __init__(self, path: str) -> None:
        """Write it.

        Raises:
            Unwritable: with the cause and the cure.
        """
        self._path = path
        self._line = b"%d\n" % os.getpid()
        try:
            fd = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK | os.O_NOFOLLOW, 0o644
            )
            with open(fd, "wb", buffering=0) as file:
                status = os.fstat(fd)
                self._inode = (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None
                if self._inode:
                    file.truncate()
                file.write(self._line)
        except OSError as error:
            cure = "name a file that can be written with -p, or stay in the foreground with -F"
            raise Unwritable(f"PID file {path}: {error.strerror}; {cure}") from error

    def remove(self) -> None:
        """Remove the file, if it is still the one that we wrote, and of no other process by now."""
        with contextlib.suppress(OSError), open(self._path, "rb") as file:
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) == self._inode and file.read(32) == self._line:
                os.unlink(self._path)
