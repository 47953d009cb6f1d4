# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest
from doorbelld.errors import NoSuchPeer, NoSuchVector, ServerClosed
from doorbelld.ivshmem.joined import Joined, missing


@pytest.mark.parametrize(
    ("own", "peer", "vector", "kind", "said"),
    [
        (None, 3, 0, ServerClosed, "no peer 3: not connected"),
        (None, None, None, ServerClosed, "nobody to ring"),
        (7, 9, None, NoSuchPeer, r"no peer 9; there is: 0, 1 \(and we are 7\)"),
        (7, 1, 5, NoSuchVector, "peer 1 has vectors 0 to 1, not 5"),
        (7, 0, 0, NoSuchVector, "peer 0 has no vector, not 0"),
        (7, 7, 0, NoSuchVector, "we, peer 7, have no vector yet"),
    ],
)
def test_words_for_what_is_not_there(
    own: int | None, peer: int | None, vector: int | None, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        raise missing({0: [], 1: [4, 5]}, own, peer, vector)


def test_the_list_of_others_is_short() -> None:
    said = str(missing({key: [] for key in range(100)}, 3, 200, None))
    assert "0, 1, 2, 4, 5, 6, 7, 8 ..." in said


def test_nobody_is_there_before_it_is_connected() -> None:
    joined = Joined("/run/s")
    assert (joined.vectors, dict(joined.peers), list(joined)) == (0, {}, [])
    assert joined.dump() == "not connected to /run/s"
    for look in (lambda: joined.id, lambda: joined.memory, lambda: joined.memory_fd, lambda: joined.search_peer(1)):
        with pytest.raises(ServerClosed, match="connect first"):
            look()
