# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Keepers: whoever holds descriptors for us beyond our own end, by name.

systemd's descriptor store is one (`service.store`). A `Satchel` is another: it only collects, for what is handed on
across execve(2). What comes back after a restart is a `Kept`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Protocol

from .owned import Fd


class Keeper(Protocol):
    """Holds copies of descriptors; a name is used once, and given up by `drop`."""

    def put(self, name: str, fd: int) -> bool:
        """Have a copy of *fd* kept as *name*; False if there is no room for it."""

    def drop(self, name: str) -> None:
        """Have the copy closed; nothing happens if there is none."""

    def ready(self, resume: Callable[[], None]) -> bool:
        """Tell whether `put` would take effect at once; if not, call *resume* when it would."""


class Satchel:
    """A keeper that holds its copies itself."""

    def __init__(self) -> None:
        self.copies: dict[str, Fd] = {}

    def put(self, name: str, fd: int) -> bool:
        """Duplicate *fd*.

        Raises:
            OSError: there is no descriptor left.
        """
        self.copies[name] = Fd(os.dup(fd))
        return True

    def drop(self, name: str) -> None:
        """Close the copy."""
        if (fd := self.copies.pop(name, None)) is not None:
            fd.close()

    def ready(self, resume: Callable[[], None]) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """Close all copies."""
        for name in list(self.copies):
            self.drop(name)


class Kept:
    """What came back from a keeper, by name; whoever takes something out owns it."""

    def __init__(self, fds: dict[str, Fd] | None = None) -> None:
        self._fds = fds if fds is not None else {}

    def take(self, name: str) -> Fd | None:
        """Take out what was kept as *name*, if it was."""
        return self._fds.pop(name, None)

    def copy(self, name: str) -> Fd | None:
        """Duplicate what was kept as *name*, if it was, and leave it here.

        Raises:
            OSError: there is no descriptor left.
        """
        return self._fds[name].dup() if name in self._fds else None

    def below(self, prefix: str) -> Kept:
        """Take out all whose names begin with *prefix*, under the rest of their names."""
        return Kept({name[len(prefix) :]: self._fds.pop(name) for name in list(self._fds) if name.startswith(prefix)})

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._fds))

    def __len__(self) -> int:
        return len(self._fds)

    def close(self) -> None:
        """Close what nobody took."""
        for name in list(self._fds):
            self._fds.pop(name).close()
