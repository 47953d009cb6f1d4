# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A page of memory that is not there until a test says so: whoever touches it waits (userfaultfd)."""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import select
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

PAGE = 4096
_SYSCALL = {"x86_64": 323, "aarch64": 282}
_API, _REGISTER, _COPY = 0xC018AA3F, 0xC020AA00, 0xC028AA03
_API_VERSION = 0xAA
_MISSING = 1
_DEADLINE_MS = 20_000


class AbsentPage:
    """The page at *view*, of shared memory that nobody has touched yet."""

    def __init__(self, view: memoryview) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.syscall(_SYSCALL[platform.machine()], os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            pytest.skip(f"userfaultfd: {os.strerror(ctypes.get_errno())}")
        self._at = ctypes.addressof(ctypes.c_char.from_buffer(view))
        assert self._at % PAGE == 0
        fcntl.ioctl(self._fd, _API, struct.pack("QQQ", _API_VERSION, 0, 0))
        fcntl.ioctl(self._fd, _REGISTER, struct.pack("QQQQ", self._at, PAGE, _MISSING, 0))

    def wait_for_touch(self) -> None:
        """Wait until somebody waits for the page."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        assert poll.poll(_DEADLINE_MS), "nobody touched the page"

    def fill(self, data: bytes) -> None:
        """Put the page there; who waits goes on."""
        page = ctypes.create_string_buffer(data.ljust(PAGE, b"\0"), PAGE)
        fcntl.ioctl(self._fd, _COPY, struct.pack("QQQQq", self._at, ctypes.addressof(page), PAGE, 0, 0))

    def close(self) -> None:
        """Let the kernel fill it as usual, and who waits go on."""
        os.close(self._fd)


@contextmanager
def absent_page(view: memoryview) -> Iterator[AbsentPage]:
    """Make the page at *view* absent for the body."""
    made = AbsentPage(view)
    try:
        yield made
    finally:
        made.close()
