# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a process costs, from /proc; nothing where that does not show it (another host, a container)."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Usage:
    """A process at one moment: seconds of CPU so far, resident bytes, when it started (seconds since the epoch)."""

    cpu: float
    memory: int
    started: float


def usage(pid: int, proc: Path = _PROC) -> Usage | None:
    """Look at process *pid*; None if it can't be seen. See proc(5) for the fields."""
    try:
        fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
        uptime = float((proc / "uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    user, system, start, pages = (int(fields[place - 3]) for place in (14, 15, 22, 24))
    return Usage((user + system) / _TICKS, pages * _PAGE, time.time() - uptime + start / _TICKS)


def in_words(count: float) -> str:
    """Write a number of bytes for people: 25.3 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def span(seconds: float) -> str:
    """Write a span of time for people: 3 h 5 min."""
    left = max(0, int(seconds))
    parts = []
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"
