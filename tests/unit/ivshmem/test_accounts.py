# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the peers of a region hold is counted exactly, over leaves and restarts, and a user leaves room to others."""

from __future__ import annotations

import os
import socket

import pytest
from doorbelld.errors import LimitExceeded
from doorbelld.fds.budgets import LimitsSpec
from doorbelld.fds.peercred import Credentials
from doorbelld.ivshmem.region import Region
from doorbelld.ivshmem.rules import Match, PeerRule
from support.rawclient import RawClient

from .conftest import Site

USER, OTHER = 1 << 20, (1 << 20) + 1
VECTORS = 3


def join(site: Site, region: Region, uid: int, vm: str = "") -> RawClient:
    fd = site.call(region.attach, Credentials(os.getpid(), uid, uid, vm))
    client = RawClient(sock=socket.socket(fileno=fd.steal()))
    site.clients.append(client)
    return client.greet(VECTORS)


def held(site: Site, region: Region) -> tuple[int, int]:
    """Give what is counted, and what there is."""

    def look() -> tuple[int, int]:
        pairs = len(list(region.relay.of_all())) if region.relay is not None else 0
        return region.budgets.descriptors.used, len(region.peers) * (1 + VECTORS) + pairs * VECTORS

    counted, there = site.call(look)
    return counted, there


@pytest.mark.parametrize("relay", [False, True])
@pytest.mark.parametrize("host", [False, True])
def test_what_is_counted_is_what_there_is(site: Site, relay: bool, host: bool) -> None:
    region = site.open(kept=True, vectors=VECTORS, relay=relay, host_peer=host)
    clients = [join(site, region, uid) for uid in (USER, OTHER, USER, USER)]
    counted, there = held(site, region)
    assert counted == there
    assert there == 4 * (1 + VECTORS) + relay * (4 * 3 + host * 4) * VECTORS
    for gone, client in enumerate((clients[1], clients[3]), 1):
        client.close()
        site.gone(gone)
        assert len(set(held(site, region))) == 1
    join(site, region, OTHER)
    assert len(set(held(site, region))) == 1
    region = site.restart(region)
    counted, there = held(site, region)
    assert counted == there
    assert region.budgets.connections.users == {USER: 2, OTHER: 1}
    site.call(region.close)
    assert site.call(lambda: [budget.used for budget in region.budgets.all.values()]) == [0] * 4


def test_pairs_for_which_there_is_no_room_refuse_the_newcomer_only(site: Site) -> None:
    region = site.open(vectors=VECTORS, relay=True)
    join(site, region, USER)
    region.budgets.descriptors.limit = 2 * (1 + VECTORS) + VECTORS
    with pytest.raises(LimitExceeded, match="raise LimitNOFILE="):
        join(site, region, 0)
    assert held(site, region) == (1 + VECTORS, 1 + VECTORS)
    region.budgets.descriptors.limit += VECTORS
    join(site, region, 0)


def test_the_last_peers_are_for_root_and_for_whom_a_rule_gives_an_id(site: Site) -> None:
    rules = (PeerRule(Match(vm="known"), id=7), PeerRule(Match()))
    region = site.open(vectors=VECTORS, max_peers=4, peer=rules)
    region.budgets.change(LimitsSpec(user_share=50))
    leaving = join(site, region, USER)
    join(site, region, USER)
    with pytest.raises(LimitExceeded, match=r"has 2 of max-peers = 4, and may have 2 \(limits.user-share\)"):
        join(site, region, USER)
    assert region.budgets.connections.refused == 1
    join(site, region, USER, "known")
    join(site, region, 0)
    with pytest.raises(LimitExceeded, match="has its 4 peers; raise max-peers"):
        join(site, region, OTHER)
    leaving.close()
    join(site, region, OTHER)  # whose end had not been read yet
