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

A peer that *keeps* IDs is told less. It is a QEMU, or a program that may be one: QEMU frees what it knows of a peer at
its leave, never allocates it again, and corrupts its memory when the same ID joins later (docs/decisions/0011). So it
is not told that a member left whose doorbells it has; the ID goes on the set of IDs that the peer has *kept*.
Doorbells belong to the ID, so when the owner is back, what the peer has is right again, and the new member is passed
over on the walk. A member that is half told when it leaves is told to the end first. Only an ID that is given up for
good (`give_up`) is told as a leave; it is not used again as long as this peer is connected.

Invariants (`tests/unit/ivshmem/test_outbox.py` tries all interleavings)
----------
1. What was sent, replayed by a client, plus what `batch` still gives, is the roster (as far as visible).
2. The state is a few integers and two lists of IDs: `export` and `restore` are exact, at any message.
3. This module knows no socket; `batch` proposes, `sent` says how much of it went out.
4. A peer that keeps IDs is never told a leave and then a join of the same ID, and never the same ID twice.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Set
from enum import Enum, auto
from typing import Any

from ..wire.ivshmem import ID_MAX, PROTOCOL_VERSION, SHARED_MEMORY
from .roster import Member, Roster

_PREAMBLE = 3  # version, own ID, memory


class Leave(Enum):
    """What a member's leave means for the stream of a peer."""

    NOTHING = auto()
    """The peer was not told of the member, or has kept its ID since an earlier leave."""
    OWED = auto()
    """The peer is to be told the leave."""
    KEPT = auto()
    """The peer has the member's doorbells, keeps the ID from now on, and is told nothing."""


class Outbox:
    """The server's side of one peer's stream.

    *visible* tells which members this peer may know of (its own entry always is); None for all. *told* is called
    with an ID whose leave was owed to this peer, once it was told or need not be any more. *bells* gives the eventfds
    by which this peer rings another member, where they are not those that the member hears (`relay`). *keeps* says
    whether the peer keeps IDs, instead of being told of leaves.
    """

    __slots__ = (
        "_bells",
        "_cursor",
        "_kept",
        "_leaves",
        "_memory",
        "_offset",
        "_own",
        "_part",
        "_preamble",
        "_proposed",
        "_roster",
        "_told",
        "_visible",
        "keeps",
    )

    def __init__(
        self,
        roster: Roster,
        own: Member,
        memory: int,
        visible: Callable[[Member], bool] | None,
        told: Callable[[int], None],
        bells: Callable[[Member], array[int]] | None = None,
        *,
        keeps: bool = False,
    ) -> None:
        self.keeps = keeps
        self._bells = bells
        self._roster = roster
        self._own = own
        self._memory = memory
        self._visible = visible
        self._told = told
        self._preamble = 0
        self._cursor = 0
        self._offset = 0
        self._part: Member | None = None  # the member of which `_offset` vectors were told; it may have left
        self._leaves: deque[int] = deque()
        self._kept: set[int] = set()
        self._proposed = (0, 0)  # by the last batch: how many messages, and the cursor once all of them went out

    def batch(self, limit: int) -> tuple[array[int], array[int]]:
        """Propose the next messages, about *limit* of them: values, and descriptors (-1 for none), both borrowed."""
        values, fds = array("q"), array("i")
        if self._preamble < _PREAMBLE:
            values.extend((PROTOCOL_VERSION, self._own.id, SHARED_MEMORY)[self._preamble :])
            fds.extend((-1, -1, self._memory)[self._preamble :])
        ordered = self._roster.ordered
        index = self._roster.index(self._cursor)
        if self._part is not None:  # finish the member that is half told, and only then tell leaves
            values.extend(self._part.values[self._offset :])
            fds.extend(self._fds(self._part)[self._offset :])
            index += index < len(ordered) and ordered[index] is self._part
        if self._leaves:
            values.extend(self._leaves)
            fds.extend([-1] * len(self._leaves))
        own, bells, everybody = self._own, self._bells, self._visible is None and not self._kept
        start, cursor = len(values), self._cursor
        while len(values) < limit and index < len(ordered):
            member = ordered[index]
            if everybody or self._to_tell(member):
                values.extend(member.values)
                fds.extend(member.fds if bells is None or member is own else bells(member))
            elif len(values) == start and self._part is None:
                self._cursor = member.seq + 1  # need not be looked at again
            index += 1
        # a batch ends with a whole member, so what follows is known now, and `sent` need not walk again
        if self._part is not None:
            cursor = self._part.seq + 1
        self._proposed = len(values), max(cursor, ordered[index - 1].seq + 1 if index else 0)
        return values, fds

    def _to_tell(self, member: Member) -> bool:
        """Tell whether the walk stops at *member*."""
        return member is self._own or not (member.id in self._kept or self.blind_to(member))

    def _fds(self, member: Member) -> array[int]:
        return member.fds if self._bells is None or member is self._own else self._bells(member)

    def sent(self, count: int) -> None:
        """Note that the first *count* messages of the last `batch` went out; nothing may have changed meanwhile."""
        proposed, cursor = self._proposed
        if count == proposed:
            self._preamble, self._cursor, self._offset, self._part = _PREAMBLE, max(cursor, self._cursor), 0, None
            while self._leaves:
                self._told(self._leaves.popleft())
            return
        if self._preamble < _PREAMBLE:
            step = min(count, _PREAMBLE - self._preamble)
            self._preamble += step
            count -= step
        if self._part is not None and count:
            count = self._advance(self._part, count)
        while count and self._leaves and self._part is None:
            self._told(self._leaves.popleft())
            count -= 1
        ordered = self._roster.ordered
        index = self._roster.index(self._cursor)
        while count and index < len(ordered):
            member = ordered[index]
            if self._to_tell(member):
                count = self._advance(member, count)
            index += 1

    def _advance(self, member: Member, count: int) -> int:
        """Move the cursor by up to *count* vectors of *member*; return what is left of *count*."""
        step = min(count, len(member.values) - self._offset)
        self._cursor, self._offset, self._part = member.seq, self._offset + step, member
        if self._offset == len(member.values):
            self._pass(member)
        return count - step

    def _pass(self, member: Member) -> None:
        """Put the cursor behind *member*."""
        self._cursor, self._offset, self._part = member.seq + 1, 0, None

    def leave(self, member: Member) -> Leave:
        """Learn that *member* is about to be taken from the roster; tell what that means for this peer."""
        told = member.seq < self._cursor or member is self._part
        if not told or member is self._own or member.id in self._kept or self.blind_to(member):
            return Leave.NOTHING
        if self.keeps:
            self._kept.add(member.id)
            return Leave.KEPT
        self._owe(member.id)
        return Leave.OWED

    def give_up(self, peer_id: int) -> bool:
        """Learn that the doorbells of an ID are given up; tell whether this peer kept it and is owed its leave now."""
        if peer_id not in self._kept:
            return False
        self._kept.discard(peer_id)
        self._owe(peer_id)
        return True

    def cut_off(self, peer_id: int) -> None:
        """Learn that an ID that this peer has kept gets other doorbells: it is told no more of the former ones."""
        if self._part is not None and self._part.id == peer_id and peer_id in self._kept:
            self._pass(self._part)

    def _owe(self, peer_id: int) -> None:
        if self._part is not None and self._part.id == peer_id:
            self._pass(self._part)
        self._leaves.append(peer_id)

    def blind_to(self, member: Member) -> bool:
        """Tell whether this peer is never told of *member*, since it may not ring it."""
        return self._visible is not None and member is not self._own and not self._visible(member)

    @property
    def kept(self) -> Set[int]:
        """IDs whose doorbells this peer has, and of which it is told neither that they leave nor that they join."""
        return self._kept

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
        index = self._roster.index(self._cursor)
        rest = sum(
            len(member.values)
            for member in self._roster.ordered[index:]
            if member is not self._part and self._to_tell(member)
        )
        half = len(self._part.values) - self._offset if self._part is not None else 0
        return _PREAMBLE - self._preamble + len(self._leaves) + half + rest

    def export(self) -> dict[str, Any]:
        """Put the whole state in a form that JSON can hold."""
        return {
            "preamble": self._preamble,
            "cursor": self._cursor,
            "offset": self._offset,
            "part": self._part and self._part.id,
            "leaves": list(self._leaves),
            "kept": sorted(self._kept),
        }

    def restore(self, state: dict[str, Any], absent: Iterable[Member] = ()) -> None:
        """Take the state that `export` gave; the roster must hold what it held then, *absent* those who had left.

        Raises:
            ValueError: there can be no such state.
        """
        self._preamble, self._cursor, self._offset = state["preamble"], state["cursor"], state["offset"]
        self._leaves, self._kept = deque(state["leaves"]), set(state["kept"])
        numbers = (self._preamble, self._cursor, self._offset, *self._leaves, *self._kept)
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError("a number in the state of a stream is none")
        if self._preamble > _PREAMBLE or max((*self._leaves, *self._kept), default=0) > ID_MAX:
            raise ValueError("a number in the state of a stream is too large")
        if self._offset:
            around = (*self._roster.ordered, *absent)
            half = next((m for m in around if m.id == state["part"] and self._offset < len(m.values)), None)
            if half is None or (half.seq != self._cursor and half.id not in self._kept):
                raise ValueError("a stream stopped in the middle of a member that is not there")
            # it may have left and come back since: its doorbells are the same, its place in the order is not
            self._part = half if half.seq == self._cursor else Member(half.id, half.eventfds, self._cursor, half.key)
