# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Peer IDs: giving them out without scanning, and not again while somebody may still use the old owner's doorbells.

The lowest free ID is given. Those never given yet are a counter, those given back a heap: either way a free one is
found in O(log n). An ID that was given back rests while peers are still to be told that its owner left (`hold`).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable

from ..wire.ivshmem import ID_MAX


class IdPool:
    """The IDs *first* .. 65535, less those *reserved* for a rule or the host peer, which are given by name only."""

    def __init__(self, first: int = 0, reserved: Iterable[int] = ()) -> None:
        self._first = self._next = first
        self._reserved = frozenset(reserved)
        self._free: list[int] = []
        self._used: set[int] = set()
        self._held: Counter[int] = Counter()

    def take(self) -> int | None:
        """Give the lowest free ID, or None if all are used, held or reserved."""
        if self._free:
            peer_id = heapq.heappop(self._free)
            self._used.add(peer_id)
            return peer_id
        while self._next <= ID_MAX:
            peer_id, self._next = self._next, self._next + 1
            if peer_id not in self._reserved and peer_id not in self._used and not self._held[peer_id]:
                self._used.add(peer_id)
                return peer_id
        return None

    def take_reserved(self, peer_id: int) -> bool:
        """Give this very ID; False if it is used.

        It may still be held: a reserved ID has one owner only, and every peer's stream tells the leave first.
        """
        if peer_id in self._used:
            return False
        self._used.add(peer_id)
        return True

    def reserve(self, reserved: Iterable[int]) -> None:
        """Keep other IDs than before for who asks by name; who has one of them now keeps it while here."""
        before, self._reserved = self._reserved, frozenset(reserved)
        self._free = [peer_id for peer_id in self._free if peer_id not in self._reserved]
        heapq.heapify(self._free)
        for peer_id in before - self._reserved:
            self._rest(peer_id)

    def restore(self, peer_id: int) -> None:
        """Mark an ID as used that was given before a restart."""
        self._used.add(peer_id)

    def give_back(self, peer_id: int) -> None:
        """Take back an ID whose owner is gone."""
        self._used.discard(peer_id)
        self._rest(peer_id)

    def hold(self, peer_id: int) -> None:
        """Keep the ID from being given again, once more."""
        self._held[peer_id] += 1

    def release(self, peer_id: int) -> None:
        """Undo one `hold`."""
        self._held[peer_id] -= 1
        if self._held[peer_id] <= 0:
            del self._held[peer_id]
            self._rest(peer_id)

    def _rest(self, peer_id: int) -> None:
        if (
            self._first <= peer_id < self._next  # below: of before a restart with another first-id
            and peer_id not in self._used
            and peer_id not in self._reserved
            and peer_id not in self._held
        ):
            heapq.heappush(self._free, peer_id)
