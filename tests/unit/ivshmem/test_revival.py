# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
from dataclasses import replace

import pytest
from doorbelld.ivshmem.events import PeerAdded, PeerRemoved, Rung
from doorbelld.ivshmem.revival import LOST
from support.rawclient import DEADLINE

from .conftest import Site, membership


@pytest.mark.parametrize("read", [0, 1, 2, 3, 60, 100, 250])
def test_restart_in_the_middle_of_a_greeting(site: Site, read: int) -> None:
    """The same client sockets go on: no end of stream, and exactly the rest."""
    region = site.open(kept=True, vectors=64, host_peer=True)
    others = [site.join(region) for _ in range(6)]
    client = site.connect(region)
    site.wait(lambda: len(site.of(PeerAdded)) == 7)
    assert client.take(read, DEADLINE) == read
    others.pop(2).close()
    site.gone(1)
    seqs = [member.seq for member in region.roster.ordered]
    bells = membership(region)
    since = {peer.id: (peer.since, peer.who) for peer in region.peers.values()}
    region = site.restart(region)
    assert membership(region) == bells
    assert [member.seq for member in region.roster.ordered] == seqs
    assert {peer.id: (peer.since, peer.who) for peer in region.peers.values()} == since
    late = site.join(region)
    assert late.id in (2, 7)  # 2, unless somebody is still to be told of its leave
    site.settle(region, [client, late, *others])
    want = membership(region)
    for each in (client, late, *others):
        assert not each.eof
        assert each.doorbells == want
    assert client.memory is not None
    assert not region._ids._held
    os.pwrite(client.memory, b"still there", 0)
    assert os.pread(region.memory.fileno(), 11, 0) == b"still there"


def test_restart_again_and_again_while_peers_come_and_go(site: Site) -> None:
    region = site.open(kept=True, vectors=32)
    clients = [site.join(region) for _ in range(8)]
    silent = site.connect(region)
    site.wait(lambda: len(site.of(PeerAdded)) == 9)
    for turn in range(10):
        site.events.clear()
        clients.pop(0).close()
        site.gone(1)
        clients.append(site.join(region))
        silent.take(7 * (turn % 3))
        region = site.restart(region)
    site.settle(region, [*clients, silent])
    want = membership(region)
    assert len(want) == 9
    assert all(client.doorbells == want for client in (*clients, silent))
    assert not region._ids._held


@pytest.mark.parametrize("restarted", [False, True])
def test_an_id_rests_until_everybody_was_told_of_the_leave(site: Site, restarted: bool) -> None:
    region = site.open(kept=True, vectors=64)
    readers = [site.join(region) for _ in range(6)]
    silent = site.connect(region)
    site.wait(lambda: len(site.of(PeerAdded)) == 7)
    readers.pop(0).close()
    site.gone(1)
    if restarted:
        region = site.restart(region)
    readers.append(site.join(region))
    assert readers[-1].id == 7  # not 0: the silent one knows somebody else by that
    site.settle(region, [*readers, silent])
    assert ("left", 0) in silent.log
    assert site.join(region).id == 0


def test_numbers_of_who_left_before_a_restart_are_not_used_again(site: Site) -> None:
    region = site.open(kept=True)
    one, two = site.join(region), site.join(region)
    site.settle(region, [one, two])
    two.close()
    site.gone(1)
    site.settle(region, [one])
    region = site.restart(region)
    three = site.join(region)
    site.settle(region, [one, three])
    assert one.log[-3:] == [("join", 1), ("left", 1), ("join", 1)]
    assert one.doorbells == three.doorbells == membership(region)


def test_rings_during_a_restart_are_not_lost(site: Site) -> None:
    region = site.open(kept=True, vectors=2, host_peer=True)
    client = site.join(region, keep=True)
    os.eventfd_write(client.fds[65535][1], 3)
    site.wait(lambda: site.of(Rung))

    new = site.restart(region, lambda: os.eventfd_write(client.fds[65535][1], 4))
    site.wait(lambda: site.of(Rung))
    assert [(event.vector, event.count) for event in site.of(Rung)] == [(1, 4)]
    assert new.host is not None
    assert new.host.totals == [0, 7]


def test_who_left_during_a_restart_is_missed(site: Site) -> None:
    region = site.open(kept=True)
    one, two = site.join(region), site.join(region)

    new = site.restart(region, two.close)
    site.wait(lambda: any(event.region is new for event in site.of(PeerRemoved)))
    site.settle(new, [one])
    assert one.doorbells == membership(new)
    assert list(one.doorbells) == [0]


def test_a_peer_whose_descriptors_are_missing_has_left(site: Site) -> None:
    region = site.open(kept=True)
    one, two = site.join(region), site.join(region)
    site.settle(region, [one, two])
    site.keeper.drop("r0.1")
    region = site.restart(region)
    assert [(event.peer.id, event.reason) for event in site.of(PeerRemoved)] == [(1, LOST)]
    two.until_eof()
    site.settle(region, [one])
    assert one.doorbells == membership(region)
    assert list(one.doorbells) == [0]


def test_restored_with_another_first_id(site: Site) -> None:
    """Who was there keeps its ID; below the new first one nothing is given out any more."""
    region = site.open(kept=True)
    old = site.join(region)
    site.call(region.change, replace(region.spec, first_id=1), True)
    region = site.restart(region)
    old.close()
    site.gone(1)
    assert site.join(region).id == 1
