# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a peer was told, and what it is still to be told: reconciliation instead of a queue.

Theory of operation
-------------------
A peer must see a greeting, then every other member's doorbells in vector order, then its own, then joins and leaves
as they come. A queue of those messages would grow with every join and leave that a slow peer does not read, without
bound. So nothing is queued. The roster is in order of joining and our own entry is in it, hence the whole script is
one walk through the roster, and one number, the *cursor*, says how far this peer has come:

- members before the cursor were told whole; the member at the cursor up to vector *offset*; those behind, not at all;
- who leaves before it was told of is simply no longer met on the walk: neither its join nor its leave is told;
- who leaves after it was told, even in part, is put on the list of leaves that this peer is *owed*. At most one per
  member that was told, and its ID is not given to anybody else meanwhile, so the list is bounded by the IDs.

Leaves go out before further joins, but never between two vectors of one member: a client may count on a member's
vectors coming in one piece. A member that is half told when it leaves is withdrawn at once.

Invariants (`tests/unit/ivshmem/test_outbox.py` tries all interleavings)
----------
1. What was sent, replayed by a client, plus what `batch` still gives, is the roster (as far as visible).
2. The state is three integers and a list of IDs: `export` and `restore` are exact, at any message.
3. This module knows no socket; `batch` proposes, `sent` says how much of it went out.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from typing import Any

from ..wire.ivshmem import ID_MAX, PROTOCOL_VERSION, SHARED_MEMORY
from .roster import Member, Roster

_PREAMBLE = 3  # version, own ID, memory


class Outbox:
    """The server's side of one peer's stream.

    *visible* tells which members this peer may know of (its own entry always is); None for all. *told* is called
    with an ID whose leave was owed to this peer, once it was told or need not be any more. *bells* gives the eventfds
    by which this peer rings another member, where they are not those that the member hears (`relay`).
    """

    __slots__ = (
        "_bells",
        "_cursor",
        "_leaves",
        "_memory",
        "_offset",
        "_own",
        "_preamble",
        "_proposed",
        "_roster",
        "_told",
        "_visible",
    )

    def __init__(
        self,
        roster: Roster,
        own: Member,
        memory: int,
        visible: Callable[[Member], bool] | None,
        told: Callable[[int], None],
        bells: Callable[[Member], array[int]] | None = None,
    ) -> None:
        self._bells = bells
        self._roster = roster
        self._own = own
        self._memory = memory
        self._visible = visible
        self._told = told
        self._preamble = 0
        self._cursor = 0
        self._offset = 0
        self._leaves: deque[int] = deque()
        self._proposed = (0, 0)  # by the last batch: how many messages, and the cursor once all of them went out

    def batch(self, limit: int) -> tuple[array[int], array[int]]:
        """Propose the next messages, about *limit* of them: values, and descriptors (-1 for none), both borrowed."""
        values, fds = array("q"), array("i")
        if self._preamble < _PREAMBLE:
            values.extend((PROTOCOL_VERSION, self._own.id, SHARED_MEMORY)[self._preamble :])
            fds.extend((-1, -1, self._memory)[self._preamble :])
        ordered = self._roster.ordered
        index = self._roster.index(self._cursor)
        offset = self._offset
        if offset:  # finish the member that is half told, and only then tell leaves
            values.extend(ordered[index].values[offset:])
            fds.extend(self._fds(ordered[index])[offset:])
            index += 1
        if self._leaves:
            values.extend(self._leaves)
            fds.extend([-1] * len(self._leaves))
        own, visible, bells = self._own, self._visible, self._bells
        start = len(values)
        while len(values) < limit and index < len(ordered):
            member = ordered[index]
            if visible is None or member is own or visible(member):
                values.extend(member.values)
                fds.extend(member.fds if bells is None or member is own else bells(member))
            elif len(values) == start and not offset:
                self._cursor = member.seq + 1  # need not be looked at again
            index += 1
        # a batch ends with a whole member, so what follows is known now, and `sent` need not walk again
        self._proposed = len(values), ordered[index - 1].seq + 1 if index else self._cursor
        return values, fds

    def _fds(self, member: Member) -> array[int]:
        return member.fds if self._bells is None or member is self._own else self._bells(member)

    def sent(self, count: int) -> None:
        """Note that the first *count* messages of the last `batch` went out; nothing may have changed meanwhile."""
        proposed, cursor = self._proposed
        if count == proposed:
            self._preamble, self._cursor, self._offset = _PREAMBLE, max(cursor, self._cursor), 0
            while self._leaves:
                self._told(self._leaves.popleft())
            return
        if self._preamble < _PREAMBLE:
            step = min(count, _PREAMBLE - self._preamble)
            self._preamble += step
            count -= step
        ordered = self._roster.ordered
        index = self._roster.index(self._cursor)
        if self._offset and count:
            count = self._advance(ordered[index], count)
            index += 1
        while count and self._leaves and not self._offset:
            self._told(self._leaves.popleft())
            count -= 1
        own, visible = self._own, self._visible
        while count and index < len(ordered):
            member = ordered[index]
            if visible is None or member is own or visible(member):
                count = self._advance(member, count)
            index += 1

    def _advance(self, member: Member, count: int) -> int:
        """Move the cursor by up to *count* vectors of *member*; return what is left of *count*."""
        step = min(count, len(member.values) - self._offset)
        self._cursor, self._offset = member.seq, self._offset + step
        if self._offset == len(member.values):
            self._cursor, self._offset = member.seq + 1, 0
        return count - step

    def leave(self, member: Member) -> bool:
        """Learn that *member* is about to be taken from the roster; tell whether this peer is owed its leave."""
        if member is self._own or self.blind_to(member):
            return False
        if member.seq > self._cursor or (member.seq == self._cursor and not self._offset):
            return False
        if member.seq == self._cursor:
            self._cursor, self._offset = member.seq + 1, 0
        self._leaves.append(member.id)
        return True

    def blind_to(self, member: Member) -> bool:
        """Tell whether this peer is never told of *member*."""
        return self._visible is not None and member is not self._own and not self._visible(member)

    @property
    def place(self) -> tuple[int, int, int, int]:
        """How far this peer is: messages of the preamble, cursor, offset, leaves owed."""
        return self._preamble, self._cursor, self._offset, len(self._leaves)

    def abandon(self) -> None:
        """Give up what is owed: the peer itself is gone."""
        while self._leaves:
            self._told(self._leaves.popleft())

    @property
    def backlog(self) -> int:
        """Messages that are still to be sent."""
        ordered = self._roster.ordered
        index = self._roster.index(self._cursor)
        rest = sum(
            len(member.values)
            for member in ordered[index:]
            if self._visible is None or member is self._own or self._visible(member)
        )
        return _PREAMBLE - self._preamble + len(self._leaves) + rest - self._offset

    def export(self) -> dict[str, Any]:
        """Put the whole state in a form that JSON can hold."""
        return {
            "preamble": self._preamble,
            "cursor": self._cursor,
            "offset": self._offset,
            "leaves": list(self._leaves),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take the state that `export` gave; the roster must hold what it held then."""
        self._preamble, self._cursor, self._offset = state["preamble"], state["cursor"], state["offset"]
        self._leaves = deque(state["leaves"])

    @property
    def sound(self) -> bool:
        """Whether what was restored is possible, with the roster as it is."""
        numbers = (self._preamble, self._cursor, self._offset, *self._leaves)
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            return False
        if self._preamble > _PREAMBLE or max(self._leaves, default=0) > ID_MAX:
            return False
        index = self._roster.index(self._cursor)
        at = self._roster.ordered[index : index + 1]
        return not self._offset or any(m.seq == self._cursor and self._offset < len(m.values) for m in at)
