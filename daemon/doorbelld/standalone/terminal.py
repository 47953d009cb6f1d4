# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Where lines of commands come from and answers go to: a person at a terminal, or a pipe.

Theory of operation
-------------------
At a terminal (`Terminal`) readline edits the line, in the main thread, and another thread has something to tell at any
moment. readline does not know where on the screen it is: it moves relative to where it left the cursor. So what is
told goes into a line of its own that is inserted above the one that is being typed, and the cursor comes back to where
it was on that line, which has moved down by one; nothing needs to be drawn again, and readline need not know. The line
that is being typed is kept to one row for this (``horizontal-scroll-mode``). All that is written for one thing to tell
is one write(2), so it does not matter what readline writes before and after.

readline waits in select(2), and Python looks at signals only if one comes while it does: one that comes a moment before
is not seen until the next key. So a signal also writes to a pipe (``set_wakeup_fd``), and the thread at its other end
nudges the main thread with another signal until that has left `input`. It must be one that Python knows nothing of:
`input` would run its handler while the exception of the first is set already. SIGWINCH is readline's own, and says
nothing wrong: look at the size of the terminal. `interrupt` goes the same way, with a signal that raises an exception.

With anything else (`Plain`) lines are read as they come, without a prompt, so that output is answers and nothing else;
a terminal that can't insert lines gets a prompt.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Protocol

PROMPT = "cmd> "
HISTORY_MAX = 1000
_DUMB = ("", "dumb", "unknown")
"""What ``$TERM`` says of terminals that know no escape sequences."""
_ABOVE = "\x1bD\x1b[A\x1b7\r\x1b[L{row}\x1b8\x1b[B"
"""Put a row above the cursor's: make sure that there is one below (IND, CUU), remember the place (DECSC), insert a row
(IL), which moves this one down, come back (DECRC), and follow it down (CUD)."""

_NUDGE = signal.SIGWINCH
_INTERRUPT = signal.SIGUSR1
_NUDGE_SECONDS = 0.02
_NUDGES_MAX = 100
"""After so many the main thread does something else than to wait for a line."""
_NONE = b"\0"
"""Stands for no signal in the pipe."""
Complete = Callable[[str, str], list[str]]
"""Gives what the word can become, from the line before it and what there is of it."""


class _Interrupted(Exception):
    """The input ended by our own will."""


class Screen(Protocol):
    """What `Plain` and `Terminal` are. All but `read` may be called from any thread."""

    interactive: bool
    """Whether somebody is there who can type a line again."""

    def read(self) -> str | None:
        """Give the next line; None at the end.

        Raises:
            KeyboardInterrupt: SIGINT came.
        """

    def tell(self, text: str) -> None:
        """Show an answer, or what happened: one line or several."""

    def note(self, text: str) -> None:
        """Show what is about the connection, and is no answer."""

    def interrupt(self) -> None:
        """Have `read` end, as if the input had."""

    def close(self) -> None:
        """Leave everything as it was.

        Raises:
            BrokenPipeError: `read` ended because nobody reads the answers.
        """


def open_screen(complete: Complete) -> Screen:
    """Give what fits standard input and output."""
    if sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "") not in _DUMB:
        with contextlib.suppress(ImportError):  # a Python may lack it
            import readline

            return Terminal(readline, complete)
    return Plain()


class Plain:
    """Lines of standard input as they come; answers on standard output, notes on standard error."""

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty()
        self._input = sys.stdin.fileno()
        self._data = b""
        self._ended = False
        self._broken = False  # nobody reads the answers
        self._end = os.eventfd(0, os.EFD_CLOEXEC)

    def read(self) -> str | None:
        """See `Screen`."""
        if self.interactive:
            sys.stdout.write(PROMPT)
            sys.stdout.flush()
        poll = select.poll()
        poll.register(self._input, select.POLLIN)
        poll.register(self._end, select.POLLIN)
        while b"\n" not in self._data and not self._ended:
            if self._end in dict(poll.poll()):
                return None
            data = os.read(self._input, 4096)
            self._data += data
            self._ended = not data
        if self._broken:
            return None
        line, _, self._data = self._data.partition(b"\n")
        return None if self._ended and not line and not self._data else line.decode(errors="replace")

    def tell(self, text: str) -> None:
        """See `Screen`."""
        try:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
        except BrokenPipeError:
            self._broken = True
            self.interrupt()

    def note(self, text: str) -> None:
        """See `Screen`."""
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def interrupt(self) -> None:
        """See `Screen`."""
        os.eventfd_write(self._end, 1)

    def close(self) -> None:
        """See `Screen`."""
        os.close(self._end)
        if self._broken:
            raise BrokenPipeError


class Terminal:
    """A line that is edited with *readline* at the bottom, and above it what happens."""

    interactive = True

    def __init__(self, readline: ModuleType, complete: Complete) -> None:
        """Begin; `read` is for the main thread only."""
        self._readline = readline
        self._complete = complete
        self._choices: list[str] = []
        self._over = self._reading = self._closing = False
        self._before = (readline.get_completer(), readline.get_completer_delims())
        self._lines = 0  # that `input` was through with, one way or the other
        self._handler = signal.signal(_INTERRUPT, self._interrupted)
        self._signals, pipe = os.pipe()
        os.set_blocking(pipe, False)
        self._pipes = (pipe, signal.set_wakeup_fd(pipe, warn_on_full_buffer=False))
        self._nudger = threading.Thread(target=self._nudge, name="nudger", daemon=True)
        self._nudger.start()
        self._history = history_file()
        readline.parse_and_bind("tab: complete")
        readline.parse_and_bind("set horizontal-scroll-mode on")
        readline.set_completer(self._choice)
        readline.set_completer_delims(" ;")
        readline.set_history_length(HISTORY_MAX)
        with contextlib.suppress(OSError):  # there is none yet, or it can't be read: then there is none
            readline.read_history_file(self._history)
        self._known = readline.get_current_history_length()

    def read(self) -> str | None:
        """See `Screen`."""
        try:
            while True:
                try:
                    self._reading = True  # first: whoever interrupts sees this, or we see what they did
                    if self._over:
                        break
                    try:
                        return input(PROMPT)
                    finally:
                        self._lines += 1
                except KeyboardInterrupt:  # as a shell: the line is given up
                    self._write("^C\r\n")
                except (EOFError, _Interrupted):
                    break
        finally:
            self._reading = False
        self._write("\r\n")
        return None

    def tell(self, text: str) -> None:
        """See `Screen`."""
        columns = shutil.get_terminal_size().columns
        lines = text.splitlines()
        rows = (line[at : at + columns] for line in lines for at in range(0, max(len(line), 1), columns))
        self._write("".join(_ABOVE.format(row=row) for row in rows))

    note = tell

    def interrupt(self) -> None:
        """See `Screen`."""
        self._over = True
        os.write(self._pipes[0], _NONE)

    def _nudge(self) -> None:
        """Be the thread that sees to it that the main thread notices signals."""
        main = threading.main_thread().ident
        assert main is not None
        while came := os.read(self._signals, 1):
            if came[0] == _INTERRUPT:
                continue
            with_signal, before = _INTERRUPT if came == _NONE else _NUDGE, self._lines
            for _ in range(_NUDGES_MAX):
                time.sleep(_NUDGE_SECONDS)
                if not self._reading or self._lines != before or self._closing:
                    break
                signal.pthread_kill(main, with_signal)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal of `interrupt`, in the main thread."""
        if self._over and self._reading:
            self._reading = False
            raise _Interrupted

    def close(self) -> None:
        """See `Screen`; the history is written."""
        self._closing = True
        signal.set_wakeup_fd(self._pipes[1])
        os.close(self._pipes[0])
        self._nudger.join()
        os.close(self._signals)
        signal.signal(_INTERRUPT, self._handler)
        self._readline.set_completer(self._before[0])
        self._readline.set_completer_delims(self._before[1])
        new = self._readline.get_current_history_length() - self._known
        with contextlib.suppress(OSError):  # no home, or one for reading only: a comfort less, and no more
            self._history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._history.touch(mode=0o600)
            self._readline.append_history_file(max(new, 0), self._history)

    def _write(self, text: str) -> None:
        data = text.encode(errors="replace")
        while data:
            data = data[os.write(sys.stdout.fileno(), data) :]

    def _choice(self, text: str, state: int) -> str | None:
        """Be readline's completer: give the choice of that number."""
        if state == 0:
            line = self._readline.get_line_buffer()[: self._readline.get_begidx()]
            self._choices = self._complete(line, text)
        return self._choices[state] if state < len(self._choices) else None


def history_file() -> Path:
    """Say where the history is, by the XDG Base Directory Specification."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return Path(state if os.path.isabs(state) else os.path.expanduser("~/.local/state")) / "doorbelld/client_history"
