# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Who gets which ID, and whose doorbells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import pytest
from doorbelld.errors import LimitExceeded
from doorbelld.ivshmem import region as region_module
from doorbelld.ivshmem.events import AbsentGivenUp
from doorbelld.ivshmem.peer import Peer
from doorbelld.ivshmem.record import replay
from doorbelld.ivshmem.rules import Match, PeerRule
from support.regionbench import Bench

ANYBODY = PeerRule(Match())


def seven(vm: str) -> tuple[PeerRule, ...]:
    """Fix ID 7 for a VM."""
    return PeerRule(Match(vm=vm), id=7), ANYBODY


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(**getattr(request, "param", {}))
    yield made
    made.close()


def change(bench: Bench, peer: tuple[PeerRule, ...], **more: int) -> None:
    bench.region.change(replace(bench.region.spec, peer=peer, **more), configured=True)


def join(bench: Bench, name: str, keeps: bool = True) -> Peer:
    peer = bench.join(name, keeps)
    assert peer is not None
    bench.pump()
    return peer


def doorbells(bench: Bench, peer: Peer) -> list[int]:
    return bench.clients[peer.member.seq].doorbells[peer.id]


def test_owner_comes_back_to_its_doorbells(bench: Bench) -> None:
    observer, owner = join(bench, "x"), join(bench, "a")
    before = doorbells(bench, owner)
    bench.leave(owner)
    assert join(bench, "b").id == 2
    again = join(bench, "a")
    assert (again.id, doorbells(bench, again)) == (1, before)
    assert bench.clients[observer.member.seq].log == [("join", i) for i in (65535, 0, 1, 2)]


@pytest.mark.parametrize(
    "names", [("a", "c", False), ("[ac]", "[ac]", True), ("a", "[ac]", True), ("[ac]", "c", False)]
)
def test_doorbells_of_an_id_go_to_who_is_under_the_same_rule(bench: Bench, names: tuple[str, str, bool]) -> None:
    """The rule of the moment must be the one by which the last holder would get the ID."""
    before, after, handed_on = names
    change(bench, seven(before))
    join(bench, "x")
    owner = join(bench, "a")
    was = doorbells(bench, owner)
    bench.leave(owner)
    change(bench, seven(after))
    newcomer = join(bench, "c")
    assert newcomer.id == 7
    assert (doorbells(bench, newcomer) == was) is handed_on


def test_doorbells_of_an_id_are_not_handed_on_to_a_vm_that_their_holder_may_not_ring(bench: Bench) -> None:
    change(bench, (PeerRule(Match(vm="[ac]"), id=7), PeerRule(Match(vm="x"), may_ring=("a",))))
    join(bench, "x")
    owner = join(bench, "a")
    was = doorbells(bench, owner)
    bench.leave(owner)
    assert doorbells(bench, join(bench, "c")) != was


@pytest.mark.parametrize("max_absent", [0, 1])
def test_max_absent_ends_beside_an_id_that_a_rule_fixes_now(bench: Bench, max_absent: int) -> None:
    """An ID that a rule fixes is not counted, from when the rule says so."""
    join(bench, "x")
    leavers = [join(bench, name) for name in "abc"]
    for peer in leavers:
        bench.leave(peer)
    change(bench, (PeerRule(Match(vm="a"), id=1), ANYBODY), max_absent=max_absent)
    assert [absent.id for absent in bench.region.admission.absent] == [1, 3][: 1 + max_absent]
    assert bench.plain(replay(bench.lines())) == bench.export()
    change(bench, (), max_absent=0)
    assert not len(bench.region.admission.absent)


def test_doorbells_are_given_up_even_for_their_own_owner(bench: Bench) -> None:
    """There are no descriptors left for its connection: it gets another ID then, and observers are told the leave."""
    observer, owner = join(bench, "x"), join(bench, "a")
    bench.leave(owner)
    with mock.patch.object(
        region_module, "_doorbells", side_effect=[LimitExceeded("none"), region_module._doorbells(3)]
    ):
        again = join(bench, "a")
    assert (again.id, again.vectors) == (2, 3)
    assert [event.absent.id for event in bench.events if isinstance(event, AbsentGivenUp)] == [1]
    assert bench.clients[observer.member.seq].log[-3:] == [("join", 1), ("left", 1), ("join", 2)]


@pytest.mark.parametrize("told", range(3 + 3 + 3, 3 + 3 + 3 + 4))
@pytest.mark.parametrize("times", [1, 2, 3])
def test_owner_that_was_half_told_comes_back_before_a_restart(bench: Bench, told: int, times: int) -> None:
    """Whoever was told of half of its vectors is told the others, from the state that is kept."""
    observer = bench.join("x", True)
    owner = bench.join("a")
    assert observer is not None
    bench.post(observer, 64, told)
    for _ in range(times):
        assert owner is not None
        bench.leave(owner)
        owner = bench.join("a")
    before = bench.export()
    bench.restart()
    assert bench.export() == before
    bench.pump()
    assert bench.clients[observer.member.seq].log == [("join", i) for i in (65535, 0, 1)]


def test_id_whose_doorbells_were_cut_off_is_refused_to_nobody_whom_a_rule_names(bench: Bench) -> None:
    """Who has the former doorbells is told nothing at all, not even when the state is replayed."""
    change(bench, seven("a"))
    observer, owner = bench.join("x", True), bench.join("a", True)
    assert observer is not None and owner is not None
    bench.post(observer, 64, 3 + 3 + 3 + 1)
    bench.leave(owner)
    absent = bench.region.admission.absent.get(7)
    assert absent is not None
    bench.region.admission.give_up(absent, "as if there were no descriptors left")
    assert bench.plain(replay(bench.lines())) == bench.export()
    bench.restart()
    assert join(bench, "a").id == 7
    assert ("left", 7) not in bench.clients[observer.member.seq].log
