# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a refused QEMU reads, and for how long."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from doorbelld.ivshmem import refused, region
from doorbelld.ivshmem.events import PeerRefused
from doorbelld.ivshmem.refused import WAITING_MAX, Refused
from doorbelld.wire.ivshmem import REFUSAL
from support.rawclient import DEADLINE

from .conftest import Site

TOLD = struct.pack("<q", REFUSAL)


@pytest.fixture
def tell(site: Site) -> Callable[[Refused], socket.socket]:
    """Give a function that has a connection refused, and returns its other end."""

    def told(waiting: Refused) -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.settimeout(DEADLINE)
        site.call(waiting.tell, ours)
        return theirs

    return told


def open_still(sock: socket.socket) -> bool:
    return not select.select([sock], [], [], 0)[0]


def test_the_connection_is_open_until_the_other_end_hangs_up(
    site: Site, tell: Callable[[Refused], socket.socket]
) -> None:
    waiting = Refused(site.loop)
    with tell(waiting) as theirs:
        assert theirs.recv(16) == TOLD
        assert open_still(theirs)
        theirs.shutdown(socket.SHUT_WR)
        assert theirs.recv(1) == b""


def test_the_latest_wait_and_all_end_with_the_region(site: Site, tell: Callable[[Refused], socket.socket]) -> None:
    waiting = Refused(site.loop)
    ends = [tell(waiting) for _ in range(WAITING_MAX + 2)]
    assert [end.recv(16) for end in ends] == [TOLD] * len(ends)
    assert [end.recv(1) for end in ends[:2]] == [b"", b""]
    assert all(open_still(end) for end in ends[2:])
    site.call(waiting.close)
    assert [end.recv(1) for end in ends[2:]] == [b""] * WAITING_MAX
    for end in ends:
        end.close()


def test_patience_ends(site: Site, tell: Callable[[Refused], socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refused, "PATIENCE", 0.05)
    with tell(Refused(site.loop)) as theirs:
        assert theirs.recv(16) == TOLD
        assert theirs.recv(1) == b""


def test_a_region_tells_a_qemu_and_others_see_the_end(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    known = region.identify
    made = site.open(kept=True, max_peers=1)
    site.join(made)
    site.connect(made).until_eof()
    monkeypatch.setattr(region, "identify", lambda sock: replace(known(sock), program="qemu-system-x86_64"))
    theirs = site.connect(made).sock
    assert theirs.recv(16) == TOLD
    assert open_still(theirs)
    site.wait(lambda: len(site.of(PeerRefused)) == 2)
    site.call(made.close)
    theirs.settimeout(DEADLINE)
    assert theirs.recv(1) == b""
