# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Owners of IDs that are away: who gets which ID again, and the doorbells that wait for them.

An ID belongs to whom a rule fixes it for, or else to the identity that had it last (`Credentials.identity`). When the
owner comes back, it gets the same ID. Where a connected peer remembers that ID, the owner also gets the same doorbells:
they are kept meanwhile, and `AbsentPeer.member` has them.

How many are kept is bounded. When there are too many, the one that has been away for the longest is given up. IDs that
a rule fixes do not count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..fds.peercred import Credentials, Identity
from .roster import Member


@dataclass(slots=True, eq=False)
class AbsentPeer:
    """An ID whose owner is away."""

    id: int
    who: Credentials
    """Its last holder."""
    fixed: bool
    """Whether a rule fixes the ID now; not counted then."""
    left: int
    """When it left: microseconds of CLOCK_REALTIME."""
    member: Member | None = None
    """Its doorbells, if a connected peer remembers them; owned by the region."""

    def export(self) -> dict[str, Any]:
        """Describe it for the region's state."""
        member = self.member
        return {
            "id": self.id,
            "who": dataclasses.asdict(self.who),
            "fixed": self.fixed,
            "left": self.left,
            "doorbells": member and {"seq": member.seq, "key": member.key, "vault": member.vault},
        }


class AbsentPeers:
    """The absent peers of a region, in the order of leaving; at most *limit* whose IDs no rule fixes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._by_id: dict[int, AbsentPeer] = {}
        self._ids: dict[Identity, set[int]] = {}
        self._doorbells: dict[int, Member] = {}
        self._counted = 0  # those that the limit counts

    def add(self, absent: AbsentPeer) -> None:
        """Add one; `excess` tells what is too much then."""
        self.remove(absent.id)
        self._by_id[absent.id] = absent
        self._ids.setdefault(absent.who.identity, set()).add(absent.id)
        self._counted += not absent.fixed
        if absent.member is not None:
            self._doorbells[absent.id] = absent.member

    def fix(self, is_fixed: Callable[[int], bool]) -> None:
        """Learn for which IDs there are rules now."""
        for absent in self:
            absent.fixed = is_fixed(absent.id)
        self._counted = sum(not absent.fixed for absent in self)

    def remove(self, peer_id: int) -> AbsentPeer | None:
        """Take one out, if it is there."""
        if (absent := self._by_id.pop(peer_id, None)) is not None:
            ids = self._ids[absent.who.identity]
            ids.discard(peer_id)
            if not ids:
                del self._ids[absent.who.identity]
            self._counted -= not absent.fixed
            self._doorbells.pop(peer_id, None)
        return absent

    def get(self, peer_id: int) -> AbsentPeer | None:
        """Find one by ID."""
        return self._by_id.get(peer_id)

    def of(self, who: Credentials) -> list[AbsentPeer]:
        """Find all that belong to *who* by its identity, the lowest ID first."""
        return [self._by_id[peer_id] for peer_id in sorted(self._ids.get(who.identity, ()))]

    def excess(self) -> AbsentPeer | None:
        """Find the one to give up next, if there are more than the limit."""
        return self.oldest() if self._counted > self.limit else None

    def oldest(self, with_doorbells: bool = False) -> AbsentPeer | None:
        """Find the one that has been away for the longest and that no rule fixes; only one *with_doorbells*, if so."""
        return next((a for a in self if not a.fixed and (a.member is not None or not with_doorbells)), None)

    def release(self, member: Member) -> None:
        """Note that the region closes the doorbells that *member* has; the ID stays its owner's."""
        self._by_id[member.id].member = None
        del self._doorbells[member.id]

    def doorbells(self) -> list[Member]:
        """Give all doorbells that are kept."""
        return list(self._doorbells.values())

    def waiting(self) -> Iterator[AbsentPeer]:
        """Give those whose doorbells are kept: nobody else gets their IDs."""
        return (absent for absent in self if absent.member is not None)

    def __iter__(self) -> Iterator[AbsentPeer]:
        return iter(self._by_id.values())

    def __len__(self) -> int:
        return len(self._by_id)
