# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Standard error that nobody reads: pipes and terminals whose reader went away, or stopped."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import termios
import tty
from types import TracebackType

from .daemon import DEADLINE

UNREAD = ("reader gone", "pipe full", "terminal closed", "terminal stopped")


class Unread:
    """A stream for a program: ``theirs`` is the program's end; *way* is how `spoil` ends its being read."""

    def __init__(self, way: str) -> None:
        self._way = way
        self._ours, self.theirs = pty.openpty() if "terminal" in way else os.pipe()
        if "terminal" in way:
            tty.setraw(self.theirs)

    def spoil(self) -> None:
        """Stop reading, once and for all or until `mend`."""
        if self._way in ("reader gone", "terminal closed"):
            os.close(self._ours)
            self._ours = -1
        elif self._way == "terminal stopped":
            termios.tcflow(self.theirs, termios.TCOOFF)
        else:
            filling = os.open(f"/proc/self/fd/{self.theirs}", os.O_WRONLY | os.O_NONBLOCK)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(filling, b".\n" * 2048)
            os.close(filling)

    def mend(self) -> None:
        """Read what is there, and from now on what comes."""
        if self._way == "terminal stopped":
            termios.tcflow(self.theirs, termios.TCOON)
        while select.select([self._ours], [], [], 0)[0]:
            os.read(self._ours, 1 << 16)

    def until(self, wanted: bytes) -> bytes:
        """Read until *wanted* came; gives all that was read."""
        got = b""
        while wanted not in got:
            assert select.select([self._ours], [], [], DEADLINE)[0], f"{wanted!r} did not come, but {got[-1000:]!r}"
            got += os.read(self._ours, 1 << 16)
        return got

    def blocks(self) -> bool:
        """Tell whether the description that other processes share still blocks."""
        return os.get_blocking(self.theirs)

    def __enter__(self) -> Unread:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for fd in (self._ours, self.theirs):
            if fd >= 0:
                os.close(fd)
