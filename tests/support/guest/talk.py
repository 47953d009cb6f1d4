# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Talks with the program in a guest, whatever runs the guest.

Theory of operation: a guest is a process of ours. Its standard output is the kernel's console, beside what the process
itself has to say; a socket pair carries the line protocol of the guest's program. A thread for each of the two collects
lines; whoever waits takes the first line that matches and leaves the others to those who wait for them. Whatever is not
met in time raises GuestError, which shows the end of the log.

The process is killed when the `with` block ends, and by the kernel when the thread that entered the block dies: enter
it in a thread that outlives the guest.
"""

import base64
import contextlib
import re
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

from support.needs import require

BOOT_TIMEOUT = 60.0
"""Seconds; some 2 are enough on an idle machine."""

REPLY_TIMEOUT = 10.0

_LOG_TAIL = 40

_PIECE = 2000
"""Characters of a command at most: a terminal of User-Mode Linux that was sent some 4000 at once may be deaf then."""


class GuestError(Exception):
    """A guest did not do in time what was waited for, or died; the message has the end of its log."""


class CommandError(Exception):
    """The guest's program answered ERR to a command."""


@dataclass(frozen=True)
class Device:
    """An ivshmem device as the agent in the guest sees it."""

    id: int
    vectors: int
    size: int


class _Log:
    """What all ports of a guest said, in the order it came, and to a file if there is one."""

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.Lock()
        self._lines: list[str] = []
        self._file = path.open("w", encoding="utf-8") if path else None
        self._start = time.monotonic()

    def add(self, source: str, line: str) -> None:
        entry = f"{time.monotonic() - self._start:8.3f} {source} {line}"
        with self._lock:
            self._lines.append(entry)
            if self._file:
                print(entry, file=self._file, flush=True)

    def close(self) -> None:
        if self._file:
            self._file.close()

    def text(self, count: int = 0) -> str:
        """The last `count` lines, or all of them."""
        with self._lock:
            return "\n".join(self._lines[-count:])


class _Port:
    """Lines that come from the guest and that nobody has taken yet."""

    def __init__(self, name: str, stream: IO[bytes], log: _Log) -> None:
        self._name = name
        self._stream = stream
        self._log = log
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._collect, name=f"guest {name}", daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        with contextlib.suppress(ConnectionResetError):
            for raw in self._stream:
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                self._log.add(self._name, line)
                with self._changed:
                    self._lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def take(self, pattern: str, timeout: float) -> re.Match[str]:
        """Take the first line in which `pattern` is found.

        Raises TimeoutError, and EOFError when no more lines will come.
        """
        compiled = re.compile(pattern)
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for index, line in enumerate(self._lines):
                    if found := compiled.search(line):
                        del self._lines[index]
                        return found
                if self._ended:
                    raise EOFError
                if not self._changed.wait(deadline - time.monotonic()):
                    raise TimeoutError

    def join(self) -> None:
        self._thread.join()
        self._stream.close()


class Process(Protocol):
    """What of `subprocess.Popen` a guest's process needs."""

    pid: int
    returncode: int | Any

    def poll(self) -> int | None:
        """Tell its status if it has ended."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends, and tell its status; TimeoutExpired if it does not."""

    def kill(self) -> None:
        """Kill it."""


class Linux:
    """A guest that runs while the `with` block runs; what runs it, a subclass says.

    `name` is what messages call it. `log_file` is where the log is kept as well.
    """

    def __init__(self, name: str, log_file: Path | None = None) -> None:
        self.name = name
        self._log_file = log_file
        self._talking = threading.Lock()

    def _command(self, control: int) -> Sequence[str | Path]:
        """Tell how to start it; `control` is the descriptor that its program is to have as a terminal."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._log = _Log(self._log_file)
        console = self._start()
        self._ports = {
            "console": _Port("console", console, self._log),
            "program": _Port("program", self._control.makefile("rb"), self._log),
        }
        return self

    def _start(self) -> IO[bytes]:
        """Start its process; return its console, and leave the process and the way to its program in attributes."""
        setpriv = require("setpriv", "util-linux")
        self._control, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [setpriv, "--pdeathsig", "KILL", *self._command(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=self._inherited(theirs.fileno()),
            )
        self._process: Process = process
        assert process.stdout is not None
        return process.stdout

    def _inherited(self, control: int) -> Sequence[int]:
        """Tell which descriptors of ours the process has."""
        return [control]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
        for port in self._ports.values():
            port.join()
        self._control.close()
        self._log.close()

    @property
    def pid(self) -> int:
        """The ID of its process."""
        return self._process.pid

    @property
    def log(self) -> str:
        """All that the kernel and the program have said so far, and what was sent to the program."""
        return self._log.text()

    def expect(self, pattern: str, timeout: float = REPLY_TIMEOUT, *, console: bool = False) -> re.Match[str]:
        """Wait for a line of the program (or of the console) in which `pattern` is found, and take it.

        Lines that came earlier and that nobody took count too.
        """
        port = self._ports["console" if console else "program"]
        try:
            return port.take(pattern, timeout)
        except TimeoutError:
            raise self._error(f"no line like {pattern!r} within {timeout:g} s") from None
        except EOFError:
            self._wait(REPLY_TIMEOUT)
            raise self._error(f"no line like {pattern!r} before the end") from None

    def ready(self, timeout: float = BOOT_TIMEOUT) -> list[Device]:
        """Wait until the agent serves its devices; they are in the order of their PCI addresses."""
        found = self.expect(r"^READY devices=(\d+)$|^FAIL", timeout)
        if found[0] == "FAIL":
            raise self._error(f"the agent said {found.string!r}")
        return [self._device(index) for index in range(int(found[1]))]

    def _device(self, index: int) -> Device:
        line = self.expect(rf"^DEVICE {index} id=(\d+) vectors=(\d+) size=(\d+)$")
        return Device(*map(int, line.groups()))

    def send(self, line: str) -> None:
        """Send a command that will not be answered."""
        self._log.add("command", line)
        try:
            self._control.sendall(f"{line}\n".encode())
        except OSError as error:
            raise self._error(f"cannot send {line!r}: {error}") from error

    def command(self, line: str, timeout: float = REPLY_TIMEOUT) -> str:
        """Send a command to the agent and return its answer without the word OK or DATA.

        Raises CommandError when the answer is ERR.
        """
        with self._talking:
            self.send(line)
            kind, _, text = self.expect(r"^(OK|DATA|ERR)\b.*", timeout)[0].partition(" ")
        if kind == "ERR":
            raise CommandError(f"{self.name}: {line!r}: {text}")
        return text

    def run(self, shell: str, timeout: float = BOOT_TIMEOUT) -> str:
        """Run a piece of shell in the guest, and return what it printed, up to 4096 bytes less the last end of line.

        What it leaves behind in the background must not have its output.

        Raises CommandError, with the output, when the status is not 0.
        """
        text = _escape(shell.encode())
        if len(text) > _PIECE:
            self.put("/script", shell)
            text = ". /script"
        return _unescape(self.command(f"run {text}", timeout)).decode().removesuffix("\n")

    def put(self, path: str, text: str) -> None:
        """Write a file in the guest."""
        encoded = base64.b64encode(text.encode()).decode()
        pieces = [encoded[start : start + _PIECE] for start in range(0, len(encoded), _PIECE)]
        for arrow, piece in zip([">", *[">>"] * len(pieces)], pieces, strict=False):
            self.command(f"run echo {piece} {arrow} {path}.64", BOOT_TIMEOUT)
        self.command(f"run base64 -d {path}.64 > {path}", BOOT_TIMEOUT)

    def wait_irq(self, vector: int, timeout: float = REPLY_TIMEOUT, *, device: int = 0) -> int:
        """Wait for the next report of an interrupt; return how many there were on this vector since READY.

        Two rings in close succession may come as one interrupt: the device and the kernel both merge them.
        """
        return int(self.expect(rf"^IRQ {vector} (\d+) device={device}$", timeout)[1])

    def read(self, offset: int, length: int) -> bytes:
        """Read the shared memory as the guest sees it; at most 4096 bytes."""
        return _unescape(self.command(f"read {offset} {length}"))

    def write(self, offset: int, data: bytes) -> None:
        """Let the guest write to the shared memory; at most 4000 bytes."""
        self.command(f"write {offset} {_escape(data)}")

    def quit(self, timeout: float = REPLY_TIMEOUT) -> None:
        """Let the guest power off, and wait until its process has ended."""
        self.command("quit")
        self._wait(timeout)
        if self._process.returncode != 0:
            raise self._error("the guest did not power off")

    def _wait(self, timeout: float) -> None:
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self._error(f"its process should have ended within {timeout:g} s") from None

    def kill(self) -> None:
        """Kill its process, as a crash would end it; nothing if it has ended already."""
        self._process.kill()
        self._process.wait()

    def _error(self, message: str) -> GuestError:
        status = self._process.poll()
        state = "its process runs" if status is None else f"its process ended with status {status}"
        return GuestError(f"{self.name}: {message} ({state}); end of its log:\n{self._log.text(_LOG_TAIL)}")


def _escape(data: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 and byte != 92 else f"\\x{byte:02x}" for byte in data)


def _unescape(text: str) -> bytes:
    return text.encode("ascii").decode("unicode_escape").encode("latin-1")
