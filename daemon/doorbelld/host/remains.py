# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What came back of a host's objects after a restart, each under a number of its own: ``<letter><number>.<part>``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import StateMismatch
from ..fds.keeper import Keeper, Kept
from ..fds.ledger import Ledger, NewerState
from ..fds.owned import Fd


@dataclass(frozen=True, slots=True)
class Unusable:
    """What was kept and can't be made anew: its *kind* is that of its table in the configuration."""

    name: str
    reason: str
    kind: str = "region"


def numbers_in(kept: Kept, letter: str) -> list[int]:
    """Give the numbers of all objects in *kept* whose names begin with *letter*, in order."""
    return sorted({int(match[1]) for name in kept if (match := re.match(rf"{letter}(\d{{1,9}})\.", name))})


class Remains:
    """What of one object came back: all of *kept* below *prefix*.

    *read* opens its ledger and says how things stood; ``trouble`` says if that did not work.

    Raises:
        NewerState: a newer version wrote it.
    """

    def __init__(self, prefix: str, kept: Kept, read: Callable[[Fd], tuple[Ledger, dict[str, Any]]]) -> None:
        self.prefix = prefix
        self.kept = kept.below(prefix)
        self.name = prefix.rstrip(".")
        self.state: dict[str, Any] = {}
        self.ledger: Ledger | None = None
        self.trouble = ""
        self._names = list(self.kept)
        if (fd := self.kept.take("state")) is None:
            self.trouble = "its state is missing"
            return
        try:
            self.ledger, self.state = read(fd)
            self.name = self.state["name"]
        except NewerState:
            raise
        except (StateMismatch, OSError) as error:
            self.trouble = str(error)

    def drop(self, keeper: Keeper) -> None:
        """Have *keeper* keep nothing of it."""
        for name in self._names:
            keeper.drop(self.prefix + name)

    def close(self) -> None:
        """Let go of it."""
        self.kept.close()
        if self.ledger is not None:
            self.ledger.close()
