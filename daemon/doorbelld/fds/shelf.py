# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A shelf: what one object has with a keeper, under names that begin alike."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence

from .keeper import Keeper
from .vault import Vault


class Shelf:
    """What is with *keeper* under names that begin with *prefix*; *names* (without it) are there already."""

    def __init__(self, keeper: Keeper, prefix: str, names: Iterable[str] = ()) -> None:
        self._keeper = keeper
        self._prefix = prefix
        self._names = set(names)

    def ready(self, resume: Callable[[], None]) -> bool:
        """See `Keeper.ready`."""
        return self._keeper.ready(resume)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def keep(self, name: str, fd: int) -> bool:
        """Keep *fd*; False if there is no room."""
        if not self._keeper.put(self._prefix + name, fd):
            return False
        self._names.add(name)
        return True

    def stow(self, name: str, fds: Sequence[int], vault: Vault | None = None) -> bool:
        """Keep *fds* in a vault, the one given if there is one; False if there is no room."""
        try:
            with contextlib.closing(vault or Vault()) as filled:
                filled.fill(fds)
                return self.keep(name, filled.door.fileno())
        except OSError:  # no descriptor, or too many in flight
            return False

    def drop(self, name: str) -> None:
        """Keep it no longer."""
        if name in self._names:
            self._names.discard(name)
            self._keeper.drop(self._prefix + name)

    def drop_others(self, names: Collection[str]) -> None:
        """Keep nothing but *names*."""
        for name in sorted(self._names.difference(names)):
            self.drop(name)

    def drop_all(self) -> None:
        """Keep nothing any more."""
        self.drop_others(())
