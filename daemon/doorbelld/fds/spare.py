# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A descriptor kept in reserve for when the table is full.

With no descriptor free, a waiting connection can't even be accepted to be closed, so the listening socket stays
readable and the event loop spins. Giving up the spare for a moment makes room for exactly that.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .owned import Fd


class Spare:
    """One descriptor in reserve."""

    def __init__(self) -> None:
        self._fd: Fd | None = None
        self._take()

    @contextlib.contextmanager
    def lent(self) -> Iterator[bool]:
        """Free the spare for the body; yields whether there was one."""
        had = self._fd is not None
        self.close()
        try:
            yield had
        finally:
            self._take()

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            self._fd = Fd(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))

    def close(self) -> None:
        """Give it up for good."""
        if self._fd is not None:
            self._fd.close()
            self._fd = None
