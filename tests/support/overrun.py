# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An eventfd whose counter has gone over its limit: what write(2) can't do to one, but aio(7) does for anybody."""

from __future__ import annotations

import ctypes
import os
import platform
import struct

FULL = (1 << 64) - 2
_SETUP, _DESTROY, _SUBMIT = (206, 207, 209) if platform.machine() == "x86_64" else (0, 1, 2)
_IOCB = struct.Struct("=QIIHhIQQqQII")  # linux/aio_abi.h, struct iocb
_RESFD = 1


def overrun(fd: int) -> None:
    """Have the counter of *fd*, a non-blocking eventfd, be one more than anybody can write: poll(2) says POLLERR."""
    with open("/dev/zero", "rb", buffering=0) as source:
        buffer = ctypes.create_string_buffer(512)
        request = ctypes.create_string_buffer(
            _IOCB.pack(0, 0, 0, 0, 0, source.fileno(), ctypes.addressof(buffer), len(buffer), 0, 0, _RESFD, fd)
        )
        requests = (ctypes.c_void_p * 1)(ctypes.addressof(request))
        context = ctypes.c_ulong(0)
        _call(_SETUP, 1, ctypes.byref(context))
        try:
            os.eventfd_write(fd, FULL)
            _call(_SUBMIT, context, 1, requests)
        finally:
            _call(_DESTROY, context)  # waits for what was submitted


def _call(number: int, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, *arguments) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
