# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A keeper as systemd may be: full, or busy."""

from __future__ import annotations

from collections.abc import Callable

from doorbelld.fds.keeper import Satchel


class Store(Satchel):
    """A keeper that can be full, and busy."""

    def __init__(self) -> None:
        super().__init__()
        self.room = 1000
        self.busy = False
        self.waiting: list[Callable[[], None]] = []

    def put(self, name: str, fd: int) -> bool:
        return len(self.copies) < self.room and super().put(name, fd)

    def ready(self, resume: Callable[[], None]) -> bool:
        if self.busy:
            self.waiting.append(resume)
        return not self.busy

    def rest(self) -> None:
        """Be busy no longer."""
        self.busy = False
        while self.waiting:
            self.waiting.pop()()
