# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Standard output and standard error that never block and never raise.

Theory of operation
-------------------
A program that serves others must not stop because nobody reads what it says: the pipe's reader was killed (EPIPE), the
terminal was closed (EIO) or is stopped with Ctrl-S, the pipe is full. `Output` writes what the kernel takes at once.
The rest of a text that was written in part is kept and goes first next time. All other text is dropped, and whoever
logs counts it.

O_NONBLOCK belongs to the open file description, which the shell and other processes share; so it is not set there.
`Output` finds out what the descriptor is, once:

- socket: send(2) with MSG_DONTWAIT.
- pipe or terminal: it opens /proc/self/fd/N again, which gives a description of its own, with O_NONBLOCK.
- pipe or terminal that it may not open, such as one of another user: a pipe of our own, out of which a helper thread
  writes to the descriptor, and waits if it must.
- everything else, such as a file: write(2). A file never says EAGAIN; a slow file system is waited for.

docs/decisions/0012-log.md says what else was considered.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import select
import signal
import socket
import stat
import sys
import threading
from typing import Any

LAST_WORDS = 1.0
"""Seconds that the helper thread has to write what is left when the program ends."""


class Output(io.RawIOBase):
    """Writes to the descriptor *fd* without waiting.

    An open stream in the sense of `io`: it can be the buffer of an `io.TextIOWrapper`. Threads may share it.
    """

    def __init__(self, fd: int) -> None:
        self.lost = 0
        """Lines that were dropped and that the reader has not been told of."""
        self._fd = fd
        self._own: int | None = None  # what to write to in its place
        self._socket: socket.socket | None = None
        self._helper: threading.Thread | None = None
        self._rest = b""  # of what was written in part
        self._lock = threading.RLock()  # a destructor may print in the middle of a write
        self._prepare()

    def _prepare(self) -> None:
        """Find out what the descriptor is, and how to write to it."""
        try:
            mode = os.fstat(self._fd).st_mode
            if stat.S_ISSOCK(mode):
                self._socket = socket.socket(fileno=os.dup(self._fd))
            elif stat.S_ISFIFO(mode) or (stat.S_ISCHR(mode) and os.isatty(self._fd)):
                try:
                    self._own = self._open_again()
                except OSError:
                    self._start_helper()
        except OSError:
            pass  # it is not open, or there are no descriptors left: then writing fails, or it waits

    def _open_again(self) -> int:
        """Open the same file with a description of its own."""
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(f"/proc/self/fd/{self._fd}", flags)

    def _start_helper(self) -> None:
        reading, self._own = os.pipe()
        os.set_blocking(self._own, False)
        self._helper = threading.Thread(target=_carry, args=(reading, self._fd), name="output", daemon=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # the thread inherits it
        try:
            self._helper.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        atexit.register(self._end)

    @property
    def writing_fd(self) -> int:
        """The descriptor to write to for code that can't come through here; writing does not block if it is ours."""
        return self._fd if self._own is None else self._own

    def renew(self) -> None:
        """Write to what the descriptor is now, after a dup2(2) to it."""
        with self._lock:
            self._release()
            self._prepare()

    def _release(self) -> None:
        if self._own is not None:
            os.close(self._own)
        if self._socket is not None:
            self._socket.close()
        if self._helper is not None:
            self._helper.join(LAST_WORDS)
            atexit.unregister(self._end)
        self._own, self._socket, self._helper, self._rest = None, None, None, b""

    def _end(self) -> None:
        """Write nothing from now on."""
        with self._lock:
            self._release()
            self._fd = -1

    def put(self, data: bytes) -> bool:
        """Write *data*, or nothing of it; tells whether it was written. What was not is not counted here."""
        with self._lock:
            if self._rest:
                self._rest = self._rest[self._write_now(self._rest) :]
            if self._rest:
                return False
            written = self._write_now(data)
            if written:
                self._rest = data[written:]
            return written > 0 or not data

    def _write_now(self, data: bytes) -> int:
        """Write as much of *data* as is possible now; gives how many bytes that is."""
        done = 0
        with contextlib.suppress(OSError, ValueError):  # ValueError: it was closed
            while done < len(data):
                done += self._write_some(memoryview(data)[done:])
        return done

    def _write_some(self, data: memoryview) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return os.write(self.writing_fd, data)

    # What `io` asks for

    def write(self, data: Any) -> int:
        """Write *data*, or count its lines as lost; gives its length in any case."""
        taken = bytes(data)
        if not self.put(taken):
            self.lost += taken.count(b"\n")
        return len(taken)

    def writable(self) -> bool:
        """Tell that this can be written to."""
        return True

    def isatty(self) -> bool:
        """Tell whether this is a terminal."""
        return os.isatty(self._fd)

    def fileno(self) -> int:
        """Give the descriptor that this was made of; writing to it may block."""
        return self._fd

    def close(self) -> None:
        """Close what was opened; the descriptor that was given stays open."""
        if not self.closed:
            super().close()
            self._end()


def _carry(reading: int, fd: int) -> None:
    """Be the helper thread: write to *fd* what comes out of the pipe *reading*."""
    with open(reading, "rb", buffering=0) as pipe, contextlib.suppress(OSError):
        while data := pipe.read(select.PIPE_BUF):
            while data:
                data = data[os.write(fd, data) :]


def have_streams() -> None:
    """Open the descriptors 0, 1 and 2 if they were closed before our start; else other files get their numbers."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    for fd, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115  (it lasts as long as we do)


def shield(*names: str) -> None:
    """Put an `Output` in place of ``sys.stdout``, ``sys.stderr``: of all that use them, libraries too."""
    have_streams()
    for name in names:
        stream = getattr(sys, name)
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
        if not isinstance(getattr(stream, "buffer", None), Output):
            output = Output({"stdout": 1, "stderr": 2}[name])
            setattr(sys, name, io.TextIOWrapper(output, "utf-8", "backslashreplace", write_through=True))


def renew() -> None:
    """Write to what the descriptors 1 and 2 are now, where `shield` is in effect."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(buffer := getattr(stream, "buffer", None), Output):
            buffer.renew()


def stderr() -> Output:
    """Give the `Output` that ``sys.stderr`` is, or else a new one for descriptor 2."""
    buffer = getattr(sys.stderr, "buffer", None)
    return buffer if isinstance(buffer, Output) else Output(2)
