# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Strangers who take all they can get: they come to the end of their budget, and everybody else goes on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from doorbelld.vhost.frontend import Frontend
from doorbelld.wire.vhost_messages import MemoryRegion, SingleMemoryRegion
from doorbelld.wire.vhost_requests import FrontendRequest
from support.heartbeat import Attack, under_way, watched

NOBODY = 65534
TIB = 1 << 40
SLOT = 1 << 47
"""Guest addresses from one region of the attacker to the next."""
OPEN = 'mode = "0666"\n'


def fill_the_address_space(path: str) -> NoReturn:
    """Share sparse files of all sizes, the largest first, until nothing fits any more, and hold on to them."""
    front = Frontend.connect(path)
    front.negotiate()
    memfd = os.memfd_create("sparse")
    os.ftruncate(memfd, 64 * TIB)
    slots, refused = 0, 0
    for shift in range(46, 13, -1):
        for _ in range(12):
            slots += 1
            region = MemoryRegion(slots * SLOT, 1 << shift, slots * SLOT, 0)
            refused += front.try_to_tell(FrontendRequest.ADD_MEM_REG, SingleMemoryRegion(region), [memfd]) != 0
    under_way(f"{refused} of {slots} refused")
    while True:
        os.read(0, 1)


def test_sparse_memory_of_one_front_end_leaves_room_for_others(short_path: Path) -> None:
    short_path.chmod(0o755)
    config = "".join(f'[device.{name}]\ntype = "rng"\n{OPEN}' for name in ("greedy", "other"))
    with watched(short_path, config) as site:
        with Attack(fill_the_address_space, str(site.daemon.socket("greedy")), uid=NOBODY) as attack:
            print(attack.first)
            with Frontend.connect(str(site.daemon.socket("other")), memory_size=1 << 30) as front:
                (queue,) = front.start(1)
                assert len(front.request(queue, room=64)) == 64
