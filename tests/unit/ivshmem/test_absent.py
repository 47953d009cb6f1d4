# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Owners that are away: found by ID and by identity, and counted."""

from __future__ import annotations

from doorbelld.fds.owned import FdSet
from doorbelld.fds.peercred import Credentials
from doorbelld.ivshmem.absent import AbsentPeer, AbsentPeers
from doorbelld.ivshmem.roster import Member


def away(peer_id: int, name: str, fixed: bool = False, doorbells: bool = False) -> AbsentPeer:
    member = Member(peer_id, FdSet(), peer_id) if doorbells else None
    return AbsentPeer(peer_id, Credentials(1, 0, 0, name), fixed, 0, member)


def test_absent_peers_are_found_by_identity_the_lowest_id_first() -> None:
    absent = AbsentPeers(9)
    for peer_id, name in ((5, "a"), (3, "a"), (4, "b")):
        absent.add(away(peer_id, name))
    assert [one.id for one in absent.of(Credentials(2, 0, 7, "a"))] == [3, 5]
    assert absent.of(Credentials(2, 1, 7, "a")) == []
    absent.remove(3)
    absent.remove(5)
    absent.remove(5)
    assert absent.of(Credentials(2, 0, 7, "a")) == []
    assert [one.id for one in absent] == [4]
    assert list(absent._ids) == [away(4, "b").who.identity]


def test_only_ids_that_no_rule_fixes_are_counted_and_the_oldest_is_in_excess() -> None:
    absent = AbsentPeers(1)
    absent.add(away(1, "a", fixed=True))
    absent.add(away(2, "b"))
    assert absent.excess() is None
    absent.add(away(3, "c"))
    assert absent.excess() is absent.get(2)
    absent.fix(lambda peer_id: peer_id == 2)
    assert absent.excess() is absent.get(1)
    absent.fix(lambda _: True)
    assert absent.excess() is None
    absent.limit = 0
    absent.fix(lambda _: False)
    for _ in range(3):
        excess = absent.excess()
        assert excess is not None
        absent.remove(excess.id)
    assert absent.excess() is None


def test_only_those_with_doorbells_are_given_up_for_descriptors() -> None:
    absent = AbsentPeers(9)
    absent.add(away(1, "a"))
    absent.add(away(2, "b", doorbells=True))
    assert absent.oldest(with_doorbells=True) is absent.get(2)
    (member,) = absent.doorbells()
    absent.release(member)
    assert absent.doorbells() == []
    assert absent.oldest(with_doorbells=True) is None
    assert len(absent) == 2
