# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing may leak: descriptors and threads are counted around a piece of a test."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def open_fds() -> dict[int, str]:
    """Map each open descriptor to what it leads to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the one that listed
            continue
    return found


@contextmanager
def no_leaks() -> Iterator[None]:
    """Fail if the body leaves descriptors or threads behind, or closes some that were not its own."""
    gc.collect()
    fds, threads = open_fds(), set(threading.enumerate())
    yield
    gc.collect()
    after = open_fds()
    leaked = {fd: target for fd, target in after.items() if fd not in fds}
    lost = {fd: target for fd, target in fds.items() if after.get(fd) != target}
    assert not leaked, f"leaked descriptors: {leaked}"
    assert not lost, f"descriptors that were open before are gone or lead elsewhere: {lost}"
    started = [thread for thread in threading.enumerate() if thread not in threads]
    assert not started, f"leaked threads: {started}"
