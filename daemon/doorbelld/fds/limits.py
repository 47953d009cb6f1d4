# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""How many descriptors there may be, in numbers and in words.

A region of P peers with V vectors each costs about ``P x (1 + V)`` descriptors, and ``P x P x V`` more if it is
relayed, so the soft limit of 1,024 that most processes start with is soon too small. `raise_to_hard` lifts it; `room`
says what the result allows.
"""

from __future__ import annotations

import fcntl
import math
import os
import resource

RESERVE = 64
"""Descriptors kept for the bus, the log, listening sockets and memory."""


_TABLE_MAX = 1 << 16
"""Entries that the descriptor table is grown to at once: half a megabyte of kernel memory."""


def raise_to_hard() -> int:
    """Raise the soft limit on open descriptors to the hard one and return it.

    The kernel's table is grown at once, too. It would double as it fills, and in a process with a second thread each
    doubling waits for all CPUs (synchronize_rcu): 7 ms and more, in the midst of a storm of joins.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with open("/dev/null", "rb") as any_file:
        os.close(fcntl.fcntl(any_file, fcntl.F_DUPFD_CLOEXEC, min(hard, _TABLE_MAX) - 1))
    return hard


def for_other_servers() -> int:
    """Tell up to which number descriptors may be what another server sends: an eighth of all is left to the others."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit - min(max(RESERVE, limit // 8), limit // 2)


def in_use() -> int:
    """Count this process's open descriptors."""
    return len(os.listdir("/proc/self/fd")) - 1  # less the one that lists


def room(vectors: int, limit: int, used: int = 0, relayed: bool = False) -> int:
    """Tell how many peers of *vectors* vectors fit in what *limit* leaves.

    In a *relayed* region each has proxies for each other, and for the host peer, so that is P connections, P x V
    doorbells and P x P x V proxies.
    """
    left = max(0, limit - RESERVE - used)
    if not relayed:
        return left // (1 + vectors)
    linear = 1 + vectors
    return (math.isqrt(linear * linear + 4 * vectors * left) - linear) // (2 * vectors)


def in_words(vectors: int, limit: int, used: int = 0, relayed: bool = False) -> str:
    """Say what *limit* allows: ``room for about 2,000 peers of 8 vectors``."""
    peers = room(vectors, limit, used, relayed)
    rough = round(peers, -len(str(peers)) + 2) if peers >= 100 else peers
    return f"room for about {rough:,} peers of {vectors} vectors{', relayed' if relayed else ''}"
