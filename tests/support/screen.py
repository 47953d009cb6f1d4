# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A program at a terminal: a pseudo-terminal, and what a person would see on it.

`Screen` knows the escape sequences that readline and our own programs use, and fails on others, so that nothing passes
unseen. `Session` runs a program on one.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from .daemon import DEADLINE

CONTROL = re.compile(r"\x1b\[(\??)([0-9;]*)([A-Za-z@])|\x1b([78DM=>])|([\x07\x08\r\n])|([^\x00-\x1f\x7f])", re.S)


class Screen:
    """What is on a terminal of *rows* and *columns*; rows that scrolled away are in ``gone``."""

    def __init__(self, rows: int = 12, columns: int = 60) -> None:
        self.rows, self.columns = rows, columns
        self.lines = [[" "] * columns for _ in range(rows)]
        self.gone: list[str] = []
        self.row = self.column = 0
        self._saved = (0, 0)
        self._main: tuple[list[list[str]], int, int] | None = None
        self._rest = ""

    @property
    def text(self) -> list[str]:
        """The rows, less what is blank at their ends and at the end of all."""
        rows = ["".join(line).rstrip() for line in self.lines]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    @property
    def all(self) -> list[str]:
        """Everything that was ever on it, in order."""
        return self.gone + self.text

    def feed(self, data: str) -> None:
        """Take what a program writes."""
        data, at = self._rest + data, 0
        while at < len(data):
            match = CONTROL.match(data, at)
            if match is None:
                if data[at] == "\x1b" and re.fullmatch(r"\x1b(\[[?0-9;]*)?", data[at:]):
                    break  # the rest is still to come
                raise AssertionError(f"a sequence that this terminal does not know: {data[at : at + 10]!r}")
            self._do(match)
            at = match.end()
        self._rest = data[at:]

    def _do(self, match: re.Match[str]) -> None:
        private, numbers, final, escape, control, char = match.groups()
        if char:
            if self.column == self.columns:
                self.column = 0
                self._down()
            self.lines[self.row][self.column] = char
            self.column += 1
        elif control:
            self._control(control)
        elif escape:
            self._escape(escape)
        elif not private:
            self._sequence(final, int(numbers.partition(";")[0] or 0))
        elif numbers == "1049":
            self._alternate(final == "h")  # other private ones are modes, such as that of bracketed paste

    def _alternate(self, on: bool) -> None:
        """Go to the alternate screen, or back: what is on the main one stays as it is meanwhile."""
        if on and self._main is None:
            self._main = self.lines, self.row, self.column
            self.lines = [[" "] * self.columns for _ in range(self.rows)]
        elif not on and self._main is not None:
            (self.lines, self.row, self.column), self._main = self._main, None

    def _control(self, control: str) -> None:
        if control == "\r":
            self.column = 0
        elif control == "\n":
            self._down()
        elif control == "\b":
            self.column = max(0, min(self.column, self.columns - 1) - 1)

    def _escape(self, escape: str) -> None:
        if escape == "7":
            self._saved = (self.row, self.column)
        elif escape == "8":
            self.row, self.column = self._saved
        elif escape == "D":
            self._down()
        else:
            raise AssertionError(f"ESC {escape}")

    def _sequence(self, final: str, number: int) -> None:
        line, count = self.lines[self.row], max(1, number)
        match final:
            case "A":
                self.row = max(0, self.row - count)
            case "B":
                self.row = min(self.rows - 1, self.row + count)
            case "C":
                self.column = min(self.columns - 1, self.column + count)
            case "D":
                self.column = max(0, self.column - count)
            case "H":
                self.row = self.column = 0
            case "J" if number == 2:
                self.lines = [[" "] * self.columns for _ in range(self.rows)]
            case "J" if number == 0:
                line[self.column :] = " " * (self.columns - self.column)
                self.lines[self.row + 1 :] = [[" "] * self.columns for _ in range(self.rows - self.row - 1)]
            case "K" if number == 0:
                line[self.column :] = " " * (self.columns - self.column)
            case "L":
                self.lines[self.row : self.row] = [[" "] * self.columns for _ in range(count)]
                del self.lines[self.rows :]
            case "P":
                line[self.column :] = [*line[self.column + count :], *" " * count][: self.columns - self.column]
            case "@":
                line[self.column :] = [*" " * count, *line[self.column :]][: self.columns - self.column]
            case "m":
                pass
            case _:
                raise AssertionError(f"CSI {number} {final}")

    def _down(self) -> None:
        if self.row < self.rows - 1:
            self.row += 1
        else:
            self.gone.append("".join(self.lines.pop(0)).rstrip())
            self.lines.append([" "] * self.columns)


class Session:
    """*command* at a terminal of its own."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        screen: Screen | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.screen = screen or Screen()
        self._command = command
        self._environment = {**os.environ, "TERM": "xterm", **(environment or {})}

    def __enter__(self) -> Session:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", self.screen.rows, self.screen.columns, 0, 0))
        self.modes = termios.tcgetattr(theirs)
        self._theirs = theirs
        self.process = subprocess.Popen(
            self._command, stdin=theirs, stdout=theirs, stderr=theirs, env=self._environment, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._ours, keys.encode())

    def until(self, condition: Callable[[Screen], object]) -> Screen:
        """Read what is shown until *condition* holds; AssertionError with the screen if it never does."""
        until = time.monotonic() + DEADLINE
        while not condition(self.screen):
            left = until - time.monotonic()
            if left <= 0 or not select.select([self._ours], [], [], left)[0]:
                break
            self.screen.feed(os.read(self._ours, 4096).decode())
        shown = "\n".join(self.screen.all)
        assert condition(self.screen), f"it shows, the cursor at {self.screen.row}, {self.screen.column}:\n{shown}"
        return self.screen

    def shows(self, row: str) -> Screen:
        """Read until one row is just *row*."""
        return self.until(lambda screen: row in screen.all)

    def shows_last(self, row: str) -> Screen:
        """Read until the last row is just *row*."""
        return self.until(lambda screen: screen.text[-1:] == [row])

    def left_in_order(self) -> bool:
        """Tell whether the terminal has the modes that it had before."""
        return termios.tcgetattr(self._theirs) == self.modes

    def ends(self) -> int:
        """Wait for the end of the program, reading on; gives its exit status."""
        pidfd = os.pidfd_open(self.process.pid)
        try:
            while self.process.poll() is None:
                ready, _, _ = select.select([pidfd, self._ours], [], [], DEADLINE)
                assert ready, f"{self._command} does not end"
                if self._ours in ready:
                    self.screen.feed(os.read(self._ours, 4096).decode())
            while select.select([self._ours], [], [], 0)[0]:
                self.screen.feed(os.read(self._ours, 4096).decode())
        finally:
            os.close(pidfd)
        return self.process.returncode

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program."""
        self.process.send_signal(number)
