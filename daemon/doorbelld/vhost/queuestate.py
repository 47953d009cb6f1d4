# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A queue as whoever watches a device sees it."""

from __future__ import annotations

from dataclasses import dataclass

from ..ring.queue import VirtQueue


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue as it was at one moment; counters are those since the device was made."""

    index: int
    size: int
    """Entries of the ring, 0 before the front-end has said so."""
    enabled: bool
    started: bool
    available_index: int
    """How far the driver has made requests available, modulo 65536."""
    used_index: int
    """How far they were given back."""
    in_flight: int
    kicks: int
    calls: int
    requests: int
    bytes: int
    errors: int
    broken: str
    """Why it does nothing more, or empty."""


def look(queue: VirtQueue, enabled: bool) -> QueueState:
    """Look at *queue* now, whoever serves it."""
    running = queue.running
    return QueueState(
        queue.index,
        queue.num,
        enabled,
        running,
        queue.available_index,
        queue.used_index,
        queue.in_flight,
        *queue.counters,
        queue.broken if running else "",
    )
