# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Descriptors to write to that would wait for ever: what a hostile front-end gives to be signalled with."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

KINDS = ("eventfd", "pipe", "socket")


@contextmanager
def full(kind: str) -> Iterator[int]:
    """Give one of *kind* that is blocking, and full."""
    if kind == "eventfd":
        ends = [os.eventfd(0)]
        os.eventfd_write(ends[0], 2**64 - 2)
    else:
        ends = list(os.pipe()) if kind == "pipe" else [end.detach() for end in socket.socketpair()]
        os.set_blocking(ends[-1], False)
        for size in (4096, 1):
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(ends[-1], bytes(size))
        os.set_blocking(ends[-1], True)
    yield ends[-1]
    for end in ends:
        os.close(end)
