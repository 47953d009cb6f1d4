# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Eventfds: the doorbells.

An eventfd is a 64-bit counter. Writing 1 adds one, reading takes all and leaves 0. We share each with whoever may
ring it, so nothing about it can be trusted to stay as we set it (see `native.ring`).
"""

from __future__ import annotations

import os
import re

from .owned import FdSet

_COUNT = re.compile(rb"^eventfd-count:\s*([0-9a-f]+)$", re.M)


def make(count: int) -> FdSet:
    """Make *count* eventfds, non-blocking and close-on-exec.

    Raises:
        OSError: EMFILE, ENFILE or ENOMEM; none is left open then.
    """
    made = FdSet()
    try:
        for _ in range(count):
            made.array.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
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
