# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The chronicle: a line for what happens, and not a line too many."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import structlog
from doorbelld.fds.peercred import Credentials
from doorbelld.host.events import PeerAdded, PeerRefused, PeerRemoved, RegionAdded, RegionRemoved, Rung
from doorbelld.service.chronicle import Chronicle

SPEC = SimpleNamespace(socket="/run/s", size=4096)


def region(name: str = "demo") -> Any:
    return SimpleNamespace(name=name, spec=SPEC)


def peer(number: int = 3, who: Credentials = Credentials(12, 1000, 100, "guest1", "a.scope", "qemu")) -> Any:  # noqa: B008
    return SimpleNamespace(id=number, who=who)


def told(*events: Any) -> list[dict[str, Any]]:
    chronicle = Chronicle()
    with structlog.testing.capture_logs() as lines:
        for event in events:
            chronicle.hear(event)
    return lines


def test_lines() -> None:
    there = region()
    assert told(
        RegionAdded(there),
        PeerAdded(there, peer()),
        PeerRemoved(there, peer(), "it closed its connection"),
        PeerRefused(there, "no rule admits it"),
        RegionRemoved(there),
    ) == [
        {"event": "region serves", "log_level": "info", "region": "demo", "socket": "/run/s", "size": 4096},
        {
            "event": "peer joined",
            "log_level": "info",
            "region": "demo",
            "peer": 3,
            "vm": "guest1",
            "pid": 12,
            "uid": 1000,
            "unit": "a.scope",
        },
        {
            "event": "peer left",
            "log_level": "info",
            "region": "demo",
            "peer": 3,
            "reason": "it closed its connection",
        },
        {"event": "connection refused", "log_level": "warning", "region": "demo", "reason": "no rule admits it"},
        {"event": "region removed", "log_level": "info", "region": "demo"},
    ]


def test_what_is_not_known_is_left_out_but_zero_is_known() -> None:
    (line,) = told(PeerAdded(region(), peer(0, Credentials(12, 0, 0))))
    assert line == {"event": "peer joined", "log_level": "info", "region": "demo", "peer": 0, "pid": 12, "uid": 0}


def test_rings_are_not_lines() -> None:
    assert told(*(Rung(region(), 0, 1) for _ in range(100))) == []


def test_a_storm_in_one_region_leaves_room_for_another() -> None:
    storm = [PeerRefused(region("loud"), "no") for _ in range(10_000)]
    lines = told(*storm, PeerRefused(region("quiet"), "no"), PeerAdded(region("loud"), peer()))
    assert 0 < sum(line["region"] == "loud" and line["event"] == "connection refused" for line in lines) <= 100
    assert [line["event"] for line in lines if line["region"] == "quiet"] == ["connection refused"]
    assert lines[-1]["event"] == "peer joined"


def test_regions_themselves_are_never_kept_back() -> None:
    assert len(told(*(RegionAdded(region(str(number))) for number in range(500)))) == 500
