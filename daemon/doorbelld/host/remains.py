# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What came back of a host's objects after a restart, each under a number of its own: ``<letter><number>.<part>``.

Theory of operation
-------------------
A restore that fails has one of two kinds of reasons. What was kept is of no use (`is_lost`): a part is missing, or the
state can't be read. Then it is dropped, and an object of that name can be made again. Or the reason passes (no
descriptor, no memory, no thread, a socket that can't be had) or may be a bug of ours. Then the keeper goes on keeping
all of it: guests notice nothing, no other object gets the name, and the next start of the daemon tries again. The
removal of the object gives it up.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from json import JSONDecodeError
from types import NoneType
from typing import Any

from ..errors import DoorbellError, StateMismatch, in_words
from ..fds.keeper import Keeper, Kept
from ..fds.ledger import Ledger, NewerState
from ..fds.owned import Fd


@dataclass(frozen=True, slots=True)
class Unusable:
    """What was kept and can't be made anew: its *kind* is that of its table in the configuration.

    Where it stays kept, *cause* says what happened; else it is None.
    """

    name: str
    reason: str
    kind: str = "region"
    cause: Exception | None = None


def is_lost(error: Exception) -> bool:
    """Say whether *error* tells that what was kept is of no use: a part is missing, or nobody can read it.

    If not, it passes, or is a bug of ours: a state that can be read and can't be right may be one that an older version
    wrote well and this one takes for damaged.
    """
    readable = not isinstance(error.__cause__, NoneType | JSONDecodeError | UnicodeDecodeError | OSError)
    return isinstance(error, StateMismatch) and not readable


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
        self.cause: Exception | None = None
        """What happened, if it stays kept though it can't be made anew now."""
        self._names = list(self.kept)
        if (fd := self.kept.take("state")) is None:
            self.trouble = "its state is missing"
            return
        try:
            self.ledger, self.state = read(fd)
            self.name = self.state["name"]
        except NewerState:
            raise
        except Exception as error:  # a bug in the code that reads must not cost what was kept
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Note that *error* keeps it from being made anew."""
        self.trouble = str(error) if isinstance(error, DoorbellError | OSError) else in_words(error)
        self.cause = None if is_lost(error) else error
        link: BaseException | None = error
        while link is not None:
            traceback.clear_frames(link.__traceback__)  # they may hold descriptors
            link = link.__cause__ or link.__context__

    def words(self) -> str:
        """Say what keeps the name of the object, and how to go on."""
        return (
            f"could not be restored ({self.trouble}); what it had is kept: "
            "restart the daemon to try again, or remove it to give that up"
        )

    def drop(self, keeper: Keeper) -> None:
        """Have *keeper* keep nothing of it."""
        for name in self._names:
            keeper.drop(self.prefix + name)

    def close(self) -> None:
        """Let go of it."""
        self.kept.close()
        if self.ledger is not None:
            self.ledger.close()
