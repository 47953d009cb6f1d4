# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import re
from typing import Any

import pytest
from doorbelld.ctl import client_tables

PEER = {"id": 7, "vectors": 2, "since": 1_700_000_000_000_000}


def client(**more: Any) -> dict[str, Any]:
    known = {"socket": "/s", "vectors-max": 64, "reconnect": True, "state": "connected", "reason": "", "id": 3}
    return {**known, "vectors": 2, "size": 8192, "since": PEER["since"], "rings": [1, 2], "peers": [PEER], **more}


def flat(**more: Any) -> dict[str, Any]:
    return {**client(**{"memory-size": 0, "iv-position": 3, "interrupts": 3}), **more}


ALONE = {"state": "connecting", "reason": "nobody there", "id": None, "vectors": 0, "size": 0, "since": 0, "peers": []}


def test_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    client_tables.clients({"lab": client(), "far": client(**ALONE)})
    said = capsys.readouterr().out
    assert re.search(r"^lab +connected +3 +2 +1 +8K +3 +/s$", said, re.M)
    assert re.search(r"^far +connecting +- +0 +0 +- +3 +/s$", said, re.M)
    assert said.endswith("\n\nfar: nobody there\n")
    client_tables.flats({"mcu": flat(), "off": flat(**ALONE, **{"iv-position": 0})})
    said = capsys.readouterr().out
    assert re.search(r"^mcu +connected +3 +2 +1 +8K +3 +/s$", said, re.M)
    assert re.search(r"^off +connecting +0 +0 +0 +- +3 +/s$", said, re.M)


def test_one_in_detail(capsys: pytest.CaptureFixture[str]) -> None:
    client_tables.status("lab", client(peers=[{**PEER, "pending": [0, 4]}]))
    said = capsys.readouterr().out
    for line in ("Client: lab", "ID: 3", "Memory: 8K (8,192 bytes)", "Rings: 3 (vector 0: 1, vector 1: 2)"):
        assert re.search(rf"^ *{re.escape(line)}$", said, re.M)
    assert re.search(r"^ +7 +2 +2023-\S+ \S+ +4 \(vector 1: 4\)$", said, re.M)
    client_tables.status("mcu", flat(**ALONE, **{"memory-size": 4 << 20, "reconnect": False}))
    said = capsys.readouterr().out
    for line in ("Flat device: mcu", "State: connecting; it does not try again", "Reason: nobody there"):
        assert re.search(rf"^ *{re.escape(line)}$", said, re.M)
    assert "memory of 4M only" in said
    assert "PEER" not in said


def test_whom_a_client_sees(capsys: pytest.CaptureFixture[str]) -> None:
    client_tables.peers("lab", client())
    assert re.search(r"^ +7 +2 +2023-", capsys.readouterr().out, re.M)
    client_tables.peers("lab", client(peers=[]))
    assert capsys.readouterr().out == "Nobody else is in the region of the server at /s.\n"
    client_tables.peers("lab", client(**ALONE))
    assert capsys.readouterr().out == "lab is not connected: nobody there\n"
