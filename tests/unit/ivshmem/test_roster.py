# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from array import array

from doorbelld.fds import eventfd
from doorbelld.fds.owned import FdSet
from doorbelld.ivshmem.roster import Member, Roster
from hypothesis import given
from hypothesis import strategies as st
from support.fdcount import no_leaks


def test_member_knows_its_messages() -> None:
    with no_leaks():
        member = Member(7, eventfd.make(3))
        assert member.values == array("q", [7, 7, 7])
        member.eventfds.close()


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7))))
def test_order_numbers_and_search(steps: list[tuple[bool, int]]) -> None:
    roster, model = Roster(), []
    for joins, peer_id in steps:
        present = roster.by_id.get(peer_id)
        if joins and present is None:
            member = Member(peer_id, FdSet())
            roster.add(member)
            model.append(member)
        elif not joins and present is not None:
            roster.remove(present)
            model.remove(present)
        assert roster.ordered == model
        assert roster.by_id == {member.id: member for member in model}
        seqs = [member.seq for member in model]
        assert seqs == sorted(set(seqs))
        assert all(seq < roster.next_seq for seq in seqs)
        for seq in range(roster.next_seq + 1):
            assert roster.index(seq) == sum(s < seq for s in seqs)


def test_numbers_survive_a_restart_and_are_never_used_twice() -> None:
    roster = Roster()
    roster.add(Member(1, FdSet(), seq=4))
    roster.add(Member(2, FdSet(), seq=9))
    roster.add(Member(3, FdSet()))
    assert [member.seq for member in roster.ordered] == [4, 9, 10]
    roster.remove(roster.by_id[3])
    roster.add(Member(3, FdSet()))
    assert roster.by_id[3].seq == 11


def test_a_number_that_was_given_is_gone_even_if_nobody_gets_it() -> None:
    """A connection gets its number when it is accepted; it may be turned away, and others admitted meanwhile."""
    roster = Roster()
    first, second = roster.number(), roster.number()
    roster.add(Member(1, FdSet(), seq=first))
    assert roster.number() == second + 1
    roster.add(Member(2, FdSet()))
    assert roster.by_id[2].seq == second + 2
    assert roster.next_seq == second + 3


def test_doorbells_are_those_who_are_there() -> None:
    with no_leaks():
        roster, one, two = Roster(), Member(1, eventfd.make(2)), Member(2, eventfd.make(1))
        roster.add(one)
        roster.add(two)
        assert roster.doorbells == {1: one.fds, 2: two.fds}
        roster.remove(one)
        assert roster.doorbells == {2: two.fds}
        one.eventfds.close()
        two.eventfds.close()
