# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from typing import Any

import pytest
from doorbelld.ctl.peernames import cell, named, sentence


def peer(number: int = 0, **more: Any) -> dict[str, Any]:
    return {"id": number, "pid": 7, "vm": "", "own": "", "label": "", "program": "", **more}


@pytest.mark.parametrize(
    ("known", "in_cell", "in_sentence"),
    [
        ({"vm": "guest1", "program": "qemu"}, "guest1", "guest1"),
        ({"own": "flat mcu", "program": "doorbelld"}, "flat mcu", "flat mcu"),
        ({"label": "worker", "program": "python3"}, "worker (python3)", "worker (pid 7)"),
        ({"program": "python3"}, "(python3)", "python3 (pid 7)"),
        ({}, "-", "pid 7"),
    ],
)
def test_peer_is_called_by_the_best_name_there_is(known: dict[str, Any], in_cell: str, in_sentence: str) -> None:
    assert (cell(peer(**known)), sentence(peer(**known))) == (in_cell, in_sentence)


def test_label_names_peer_only_if_no_vm_and_nothing_of_ours_has_that_name() -> None:
    peers = [peer(0, label="x"), peer(1, label="mcu"), peer(2, label="y"), peer(3, label="y")]
    assert [named(peers, word) for word in ("x", "y", "z")] == [[0], [2, 3], []]
    assert named([*peers, peer(4, own="flat mcu")], "mcu") == [4]
    assert named([*peers, peer(5, vm="x")], "x") == [5]


def test_daemon_of_an_older_version_tells_less() -> None:
    assert (cell({"id": 0, "pid": 7, "vm": ""}), sentence({"id": 0, "pid": 7, "vm": ""})) == ("-", "pid 7")
