# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Eventfds: the doorbells.

An eventfd is a 64-bit counter. Writing 1 adds one, reading takes all and leaves 0. We share each with whoever may
ring it, so nothing about it can be trusted to stay as we set it (see `native.ring`).
"""

from __future__ import annotations

import errno
import os
import re

from .owned import FdSet

NO_END = 1 << 31

_COUNT = re.compile(rb"^eventfd-count:\s*([0-9a-f]+)$", re.M)


def make(count: int, end: int = NO_END) -> FdSet:
    """Make *count* eventfds, non-blocking and close-on-exec, all with numbers below *end*.

    Raises:
        OSError: EMFILE, ENFILE or ENOMEM; none is left open then.
    """
    made = FdSet()
    try:
        for _ in range(count):
            made.array.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        if max(made.array, default=-1) >= end:
            raise OSError(errno.EMFILE, f"{os.strerror(errno.EMFILE)}, the rest is for those who are attached")
    except BaseException:
        made.close()
        raise
    return made


def pending(fd: int) -> int:
    """Tell the counter of the eventfd *fd* without disturbing it: rings not yet taken by who reads it.

    Raises:
        ValueError: *fd* is no eventfd.
    """
    with open(f"/proc/self/fdinfo/{fd}", "rb", buffering=0) as info:
        match = _COUNT.search(info.read(4096))
    if match is None:
        raise ValueError(f"descriptor {fd} is no eventfd")
    return int(match[1], 16)
