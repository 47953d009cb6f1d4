# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMUs that were refused, until they have read that they were.

A QEMU that meets the end of the stream early reads it over and over, at full speed, with its guest stopped; on a
version that it does not know it gives up with an error. When a device is plugged in, QEMU connects first and reads
later, and drops what it has not read if the connection ends in between. So the refusal stays there until QEMU hangs up,
which it does once it has read it; but no longer than `PATIENCE`, and for the latest `WAITING_MAX` only.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from ..wire.ivshmem import REFUSAL, encode

PATIENCE = 60.0
"""Seconds."""

WAITING_MAX = 16


class Refused:
    """The refused ones of a region."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[socket.socket, asyncio.TimerHandle] = {}

    def tell(self, sock: socket.socket) -> None:
        """Take over a connection, send the refusal, and close it once it was read."""
        if len(self._waiting) >= WAITING_MAX:
            self._let_go(next(iter(self._waiting)))
        send_refusal(sock)
        self._waiting[sock] = self._loop.call_later(PATIENCE, self._let_go, sock)
        self._loop.add_reader(sock.fileno(), self._let_go, sock)

    def close(self) -> None:
        """Let go of all."""
        for sock in list(self._waiting):
            self._let_go(sock)

    def _let_go(self, sock: socket.socket) -> None:
        self._loop.remove_reader(sock.fileno())
        self._waiting.pop(sock).cancel()
        end_connection(sock)


def send_refusal(sock: socket.socket) -> None:
    """Send a version that nobody knows."""
    with contextlib.suppress(OSError):
        sock.send(encode(REFUSAL), socket.MSG_DONTWAIT)


def end_connection(sock: socket.socket) -> None:
    """Close a connection for everybody who has a copy of it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
