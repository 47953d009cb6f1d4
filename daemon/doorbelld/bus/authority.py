# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may do what.

Looking is everybody's (the bus's own policy may be stricter); ringing, opening memory and managing are root's and
the daemon's own user's. Who a caller is comes from the message bus, once per connection: unique names are never given
twice during a bus's life, so an answer stays true and only the size of the cache needs a bound.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ..errors import AccessDenied
from ..fds.peercred import Credentials

_CACHE_MAX = 1024


class Action(Enum):
    """What a call needs leave for."""

    INSPECT = "inspect"
    NOTIFY = "notify"
    OPEN_MEMORY = "open-memory"
    MANAGE = "manage"


@dataclass(slots=True)
class _Question:
    """What the bus was asked, and how many still wait for the answer or have yet to go on with it."""

    answer: asyncio.Future[dict[str, Any]]
    waiting: int = 0

    async def turn(self) -> dict[str, Any]:
        """Give the answer, in the order of calling this, also to who calls when it is there already."""
        turn = asyncio.get_running_loop().create_future()
        self.answer.add_done_callback(lambda _: None if turn.done() else turn.set_result(None))
        await turn
        return self.answer.result()


class Authority:
    """Decides; *ask* fetches ``GetConnectionCredentials`` of a unique name from the bus."""

    def __init__(self, ask: Callable[[str], Awaitable[dict[str, Any]]]) -> None:
        self._ask = ask
        self._known: OrderedDict[str, Credentials] = OrderedDict()
        self._questions: dict[str, _Question] = {}
        self._trusted = {0, os.geteuid()}

    def known(self, sender: str) -> Credentials | None:
        """Tell who *sender* is if that needs no question to the bus."""
        return self._known.get(sender)

    async def learn(self, sender: str) -> Credentials:
        """Tell who *sender* is, asking the bus if need be.

        Who waits for the same answer goes on in the order of asking: the answer is `known` only once the last of them
        has it, so that no later call overtakes an earlier one.

        Raises:
            AccessDenied: the bus does not say.
        """
        if (who := self._known.get(sender)) is not None:
            return who
        known, questions = self._known, self._questions
        if (question := questions.get(sender)) is None:
            question = questions[sender] = _Question(asyncio.ensure_future(self._ask(sender)))
        question.waiting += 1
        try:
            said = await question.turn()
            groups = said.get("UnixGroupIDs") or [-1]
            who = Credentials(int(said.get("ProcessID", 0)), int(said["UnixUserID"]), int(groups[0]))
        except Exception as error:  # whatever the library raises when the bus goes away
            raise AccessDenied(f"the bus does not say who {sender} is") from error
        finally:
            question.waiting -= 1
            if not question.waiting:
                del questions[sender]
        if known is not self._known:
            raise AccessDenied(f"the bus that knew {sender} is gone")
        if not question.waiting:
            self._known[sender] = who
        while len(self._known) > _CACHE_MAX:
            self._known.popitem(last=False)
        return who

    def check(self, action: Action, who: Credentials) -> None:
        """Let *who* do *action*, or raise AccessDenied."""
        if action is not Action.INSPECT and who.uid not in self._trusted:
            raise AccessDenied(
                f"uid {who.uid} may look, but not {action.value}; "
                f"call as root or as the daemon's user (uid {os.geteuid()})"
            )

    def forget(self) -> None:
        """Forget everybody: another bus gives the same names to others."""
        self._known, self._questions = OrderedDict(), {}  # new ones: an answer that is on its way must not get in
