# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is in a region, in the order of joining.

Each member gets a sequence number that only grows. A peer's place in what it was told is then one number (see
`outbox`), and "the next member to tell" is a binary search, whoever left meanwhile.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass, field

from ..fds.owned import FdSet


@dataclass(eq=False, slots=True)
class Member:
    """Somebody who can be rung: a connected peer, or the host peer.

    ``eventfds[v]`` is the doorbell of vector v. Doorbells belong to the ID: when its owner comes back (`absent`), there
    is a new member with the same doorbells and the same ``key``.
    """

    id: int
    eventfds: FdSet
    seq: int = -1
    """Its place in the order of joining."""
    key: int = -1
    """What its doorbells are known by: ``seq`` of the first member that had them."""
    vault: int = -1
    """The number of the vault with its proxies, in a relayed region (`record.proxies_of`)."""
    values: array[int] = field(init=False)
    """The ID, once per vector: what the messages that tell of this member say."""
    fds: array[int] = field(init=False)
    """The eventfds, borrowed: what goes with those messages."""

    def __post_init__(self) -> None:
        self.fds = self.eventfds.array
        self.values = array("q", [self.id]) * len(self.eventfds)
        self.place_at(self.seq)

    def place_at(self, seq: int) -> None:
        """Set ``seq``, and what else follows from it unless it was given."""
        self.seq = seq
        self.key = seq if self.key < 0 else self.key
        self.vault = seq if self.vault < 0 else self.vault

    @property
    def returned(self) -> bool:
        """Whether another member had its doorbells before."""
        return self.key != self.seq


class Roster:
    """The members of a region.

    Invariants: ``ordered`` is sorted by ``seq``; no two members have the same ID; a ``seq`` is never used twice.
    """

    def __init__(self) -> None:
        self.by_id: dict[int, Member] = {}
        self.doorbells: dict[int, array[int]] = {}
        """The eventfds of each member by its ID: what ringing needs, in the form that native code takes."""
        self.ordered: list[Member] = []
        self._seqs: list[int] = []
        self.next_seq = 0

    def number(self) -> int:
        """Give a sequence number, for a member to be."""
        self.next_seq += 1
        return self.next_seq - 1

    def add(self, member: Member) -> None:
        """Append *member*, and number it if it has no number yet; one that it has is above all others here."""
        if member.seq < 0:
            member.place_at(self.number())
        self.next_seq = max(self.next_seq, member.seq + 1)
        self.by_id[member.id] = member
        self.doorbells[member.id] = member.fds
        self.ordered.append(member)
        self._seqs.append(member.seq)

    def remove(self, member: Member) -> None:
        """Take *member* out."""
        index = self.index(member.seq)
        del self.by_id[member.id], self.doorbells[member.id], self.ordered[index], self._seqs[index]

    def index(self, seq: int) -> int:
        """Find the first member whose number is at least *seq*, as an index of ``ordered``."""
        return bisect_left(self._seqs, seq)
