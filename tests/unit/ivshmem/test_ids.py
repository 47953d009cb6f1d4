# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from collections import Counter

from doorbelld.ivshmem.ids import IdPool
from doorbelld.wire.ivshmem import ID_MAX
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule


class IdPoolMachine(RuleBasedStateMachine):
    """The model scans; the pool must never scan, and give the same."""

    @initialize(
        first=st.integers(ID_MAX - 12, ID_MAX) | st.just(0),
        offsets=st.frozensets(st.integers(0, 12), max_size=4),
        before=st.frozensets(st.integers(0, 12), max_size=4),
        held=st.lists(st.integers(0, 12), max_size=4),
    )
    def start(self, first: int, offsets: frozenset[int], before: frozenset[int], held: list[int]) -> None:
        self.first = first
        base = min(first, ID_MAX - 12)
        self.reserved = {base + offset for offset in offsets}
        self.pool = IdPool(first, self.reserved)
        self.used = {base + offset for offset in before}
        self.held = Counter(base + offset for offset in held)
        for peer_id in self.used:  # what a restart finds
            assert self.pool.take_this(peer_id)
        for peer_id in self.held.elements():
            self.pool.hold(peer_id)
        self.remembered: Counter[int] = Counter()
        self.retired: dict[int, int] = {}
        self.seq = 0

    def lowest(self) -> int | None:
        return next(
            (
                peer_id
                for peer_id in range(self.first, ID_MAX + 1)
                if peer_id not in self.used | self.reserved | self.retired.keys()
                and not self.held[peer_id]
                and not self.remembered[peer_id]
            ),
            None,
        )

    @rule()
    def take(self) -> None:
        want = self.lowest()
        assert self.pool.take() == want
        if want is not None:
            self.used.add(want)

    @rule(offset=st.integers(0, 12))
    def take_this(self, offset: int) -> None:
        """The owner of an ID is back, or a rule gives it."""
        peer_id = min(self.first, ID_MAX - 12) + offset
        given = peer_id not in self.used and peer_id not in self.retired
        assert self.pool.take_this(peer_id) is given
        if given:
            self.used.add(peer_id)

    @rule(offsets=st.frozensets(st.integers(0, 12), max_size=4))
    def reserve(self, offsets: frozenset[int]) -> None:
        """The configuration is read again: other rules, other reserved IDs."""
        base = min(self.first, ID_MAX - 12)
        self.reserved = {base + offset for offset in offsets}
        self.pool.reserve(self.reserved)

    @precondition(lambda self: self.used)
    @rule(data=st.data(), holds=st.integers(0, 2), remembers=st.integers(0, 2))
    def leave(self, data: st.DataObject, holds: int, remembers: int) -> None:
        """A peer goes while *holds* others are still to be told, and others remember it."""
        peer_id = data.draw(st.sampled_from(sorted(self.used)))
        for _ in range(holds):
            self.pool.hold(peer_id)
            self.held[peer_id] += 1
        for _ in range(remembers):
            self.pool.remember(peer_id)
            self.remembered[peer_id] += 1
        self.pool.give_back(peer_id)
        self.used.remove(peer_id)

    @precondition(lambda self: +self.remembered)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        peer_id = data.draw(st.sampled_from(sorted(+self.remembered)))
        assert self.pool.is_remembered(peer_id)
        self.pool.forget(peer_id)
        self.remembered[peer_id] -= 1
        assert self.pool.is_remembered(peer_id) is (self.remembered[peer_id] > 0)

    @precondition(lambda self: +self.remembered)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        """An absent owner is given up: its ID is retired."""
        peer_id = data.draw(st.sampled_from(sorted(+self.remembered)))
        if peer_id not in self.used:
            self.seq += 1
            self.pool.retire(peer_id, self.seq)
            self.retired[peer_id] = self.seq

    @rule(oldest=st.none() | st.integers(0, 40))
    def unretire(self, oldest: int | None) -> None:
        """The oldest peer that remembers anything is one that came later."""
        self.pool.unretire(oldest)
        self.retired = {k: seq for k, seq in self.retired.items() if oldest is not None and seq > oldest}
        assert list(self.pool.retired) == sorted(self.retired, key=lambda k: self.retired[k])

    @precondition(lambda self: +self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        peer_id = data.draw(st.sampled_from(sorted(+self.held)))
        self.pool.release(peer_id)
        self.held[peer_id] -= 1

    @invariant()
    def free_list_stays_small(self) -> None:
        if hasattr(self, "pool"):
            assert len(self.pool._free) == len(set(self.pool._free)) <= 64


TestIdPool = IdPoolMachine.TestCase
TestIdPool.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_all_of_them_and_no_more() -> None:
    pool = IdPool(0, [5, ID_MAX])
    taken = [pool.take() for _ in range(ID_MAX - 1)]
    assert taken == [peer_id for peer_id in range(ID_MAX) if peer_id != 5]
    assert pool.take() is None
    pool.give_back(77)
    assert pool.take() == 77
    assert pool.take() is None
    assert pool.take_this(ID_MAX)


def test_one_that_was_reserved_for_a_while_rests_like_any_other() -> None:
    """It was free before that and after that, and is not free twice."""
    pool = IdPool()
    assert [pool.take(), pool.take()] == [0, 1]
    pool.give_back(0)
    pool.reserve([0])
    pool.reserve([])
    assert pool.take() == 0
    pool.hold(0)
    pool.give_back(0)
    assert pool.take() == 2  # somebody is still to be told that 0 left
    pool.release(0)
    assert [pool.take(), pool.take()] == [0, 3]


def test_who_has_an_id_that_becomes_reserved_keeps_it() -> None:
    pool = IdPool()
    assert pool.take() == 0
    pool.reserve([0, 1])
    assert not pool.take_this(0)
    assert pool.take() == 2
    pool.give_back(0)
    assert pool.take() == 3
    assert pool.take_this(0)
