# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""QMP, the way in which QEMU is steered: commands with a reply, and events that come in between."""

import contextlib
import json
import socket
import time
from typing import Any

DEADLINE = 30.0


class QmpError(Exception):
    """QEMU refused a command, or closed the connection, or an event did not come in time."""


class Qmp:
    """One QEMU's monitor. Options are spelled as QEMU does, with _ for -."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over *sock*, whose other end QEMU has."""
        sock.settimeout(DEADLINE)
        self._sock = sock
        self._file = sock.makefile("rb")
        self._events: list[dict[str, Any]] = []
        self._greeted = False

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._sock.close()

    def __call__(self, execute: str, /, **arguments: Any) -> Any:
        """Execute a command and return what it returns.

        Raises:
            QmpError: it failed.
        """
        if not self._greeted:
            self._greeted = True
            self._message(DEADLINE)
            self("qmp_capabilities")
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        with contextlib.suppress(BrokenPipeError):  # told of when nothing more can be read
            self._sock.sendall(json.dumps({"execute": execute, "arguments": named}).encode() + b"\n")
        while True:
            message = self._message(DEADLINE)
            if "event" in message:
                self._events.append(message)
            elif "error" in message:
                raise QmpError(f"{execute}: {message['error']['desc']}")
            else:
                return message["return"]

    def await_event(self, name: str, **data: Any) -> dict[str, Any]:
        """Wait for an event whose data are as told, among others, and take it; earlier ones count too.

        Raises:
            QmpError: it does not come in time.
        """
        deadline = time.monotonic() + DEADLINE
        while True:
            for event in self._events:
                have = event.get("data", {})
                if event["event"] == name and data.items() <= have.items():
                    self._events.remove(event)
                    return event
            self._events.append(self._message(deadline - time.monotonic()))

    def _message(self, timeout: float) -> dict[str, Any]:
        self._sock.settimeout(max(timeout, 0.001))
        try:
            line = self._file.readline()
        except TimeoutError:
            raise QmpError(f"QEMU does not say what is waited for; it said {self._events}") from None
        except ConnectionResetError:
            line = b""
        if not line:
            raise QmpError("QEMU hung up")
        message: dict[str, Any] = json.loads(line)
        return message
