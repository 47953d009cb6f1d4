# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import subprocess
import sys

import pytest
from doorbelld.fds import limits


def test_raise_to_hard() -> None:
    script = """if True:
        import resource
        from doorbelld.fds import limits
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        assert limits.raise_to_hard() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    """
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(("limit", "theirs"), [(524_288, 458_752), (1024, 896), (100, 50)])
def test_some_are_left_to_others(monkeypatch: pytest.MonkeyPatch, limit: int, theirs: int) -> None:
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: (limit, limit))
    assert limits.for_other_servers() == theirs


def test_in_use() -> None:
    before = limits.in_use()
    fd = os.open("/dev/null", os.O_RDONLY)
    assert limits.in_use() == before + 1
    os.close(fd)
    assert limits.in_use() == before


@pytest.mark.parametrize(
    ("vectors", "limit", "used", "peers"),
    [(8, limits.RESERVE + 90, 0, 10), (8, limits.RESERVE + 90, 9, 9), (8, 10, 0, 0), (1, limits.RESERVE + 3, 0, 1)],
)
def test_room(vectors: int, limit: int, used: int, peers: int) -> None:
    assert limits.room(vectors, limit, used) == peers


@pytest.mark.parametrize("vectors", [1, 3, 8, 64])
def test_room_where_relayed(vectors: int) -> None:
    """As many as fit: a connection, doorbells, and proxies to each other and to the host peer."""
    for left in (0, vectors, 2 * vectors + 1, 1000, 20_000, 1 << 20):
        peers = limits.room(vectors, limits.RESERVE + left, relayed=True)
        most, more = (n * (1 + vectors) + n * n * vectors for n in (peers, peers + 1))
        assert most <= left < more


def test_in_words() -> None:
    assert limits.in_words(8, 20_000, relayed=True) == "room for about 49 peers of 8 vectors, relayed"
    assert limits.in_words(8, 20_000) == "room for about 2,200 peers of 8 vectors"
    assert limits.in_words(64, 1024) == "room for about 14 peers of 64 vectors"
    assert limits.in_words(4, 0) == "room for about 0 peers of 4 vectors"
