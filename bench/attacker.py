# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An attacker, as user nobody, at the lowest priority: ``attacker.py KIND SOCKET...``, until it is ended.

``connect`` connects and hangs up. ``linger`` leaves a lingering TCP socket in each connection. ``junk`` says something
that breaks the protocol. Each goes through the sockets again and again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import sys
from collections.abc import Callable, Sequence

NOBODY = 65534


def connect(sock: socket.socket) -> None:
    """Say nothing."""


def junk(sock: socket.socket) -> None:
    """Send the header of a vhost-user message that there is none of."""
    sock.send(struct.pack("<III", 99, 1, 0))


def linger(sock: socket.socket) -> None:
    """Send a descriptor whose last close waits for its buffer to empty, which never happens."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as mine:
        mine.connect(listener.getsockname())
        mine.setblocking(False)
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
        with contextlib.suppress(BlockingIOError):
            while True:
                mine.send(bytes(1 << 16))
        socket.send_fds(sock, [b"x"], [mine.fileno()])
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))  # not to wait ourselves


KINDS: dict[str, Callable[[socket.socket], None]] = {"connect": connect, "junk": junk, "linger": linger}


def main(kind: str, paths: Sequence[str]) -> None:
    """Attack."""
    os.nice(19)
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    attack = KINDS[kind]
    for path in itertools.cycle(paths):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            attack(sock)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
