# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing may leak: descriptors, threads and mapped guest memory are counted around a piece of a test."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import threading
from collections import Counter
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


def mapped_memory() -> Counter[str]:
    """Count mappings of files in memory, by the file."""
    with open("/proc/self/maps") as maps:
        rows = [line.split(None, 5) for line in maps]
    return Counter(f"{row[5].rstrip()} {row[4]}" for row in rows if row[5:] and row[5].startswith("/memfd:"))


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Have the kernel give us no descriptor in the body."""
    taken = []
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_fds()) + 1, before[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in taken:
            os.close(fd)


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


@contextmanager
def no_memory_left() -> Iterator[None]:
    """Fail if the body leaves guest memory mapped."""
    gc.collect()
    before = mapped_memory()
    yield
    gc.collect()
    left = mapped_memory() - before
    assert not left, f"mappings that are left: {left}"
