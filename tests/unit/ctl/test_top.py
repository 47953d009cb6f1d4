# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from collections import Counter
from typing import Any

from doorbelld.ctl.process import Usage
from doorbelld.ctl.top import Sample, frame, headline, peer_rows, region_rows


def peer(number: int, backlog: int = 0) -> dict[str, Any]:
    return {"id": number, "vm": "", "pid": 9, "vectors": 2, "since": 0, "backlog": backlog}


def region(*rings: int, peers: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {"vectors": len(rings), "max-peers": 8, "host-rings": list(rings), "peers": list(peers)}


def sample(at: float, *, owner: str = ":1.1", cpu: float | None = None, joins: int = 0, **regions: Any) -> Sample:
    known = {"version": "1", "descriptors": {"limit": 100, "in-use": 9}, "regions": regions}
    usage = None if cpu is None else Usage(cpu, 3 << 20, 0.0)
    return Sample(at, owner, 7, known, usage, Counter(demo=joins), Counter(demo=joins // 2))


def test_the_first_look_has_no_rates() -> None:
    made = frame(None, sample(1.0, cpu=5.0, demo=region(3, 4)))
    assert (made["interval"], made["cpu-percent"], made["memory"]) == (None, None, 3 << 20)
    demo = made["regions"]["demo"]
    assert (demo["rings"], demo["rings-per-second"], demo["joins-per-second"]) == ([3, 4], None, None)
    assert list(region_rows(made)) == [["demo", 0, 0, "-", "-", 7, "-", "-"]]


def test_rates_are_per_second() -> None:
    first = sample(1.0, cpu=5.0, demo=region(3, 4), calm=region(0))
    made = frame(
        first, sample(3.0, cpu=5.5, joins=4, demo=region(3, 14, peers=(peer(0, 2), peer(1, 3))), calm=region(0))
    )
    assert (made["interval"], made["cpu-percent"]) == (2.0, 25.0)
    demo = made["regions"]["demo"]
    assert (demo["rings-per-second"], demo["joins-per-second"], demo["leaves-per-second"]) == ([0.0, 5.0], 2.0, 1.0)
    assert demo["backlog"] == 5
    rows = list(region_rows(made))
    assert rows[0] == ["demo", 2, 5, "5.0", "1: 5", 17, 2.0, 1.0]
    assert rows[1][:4] == ["calm", 0, 0, "0.0"]
    assert [row[1] for row in peer_rows(made)] == [1, 0]
    assert "CPU 25.0 %, memory 3.0 MiB, 9 of 100 descriptors; 2 regions, 2 peers" in headline(made)


def test_a_daemon_started_anew_counts_from_nothing() -> None:
    made = frame(
        sample(1.0, cpu=5.0, demo=region(30)), sample(2.0, owner=":1.2", cpu=0.1, demo=region(2), new=region(4))
    )
    assert made["cpu-percent"] is None
    assert made["regions"]["demo"]["rings-per-second"] == [2.0]
    assert made["regions"]["new"]["rings-per-second"] == [4.0]
    assert "CPU -" in headline(made)


def test_a_daemon_whose_process_is_not_seen() -> None:
    made = frame(sample(1.0, demo=region(0)), sample(2.0, demo=region(1)))
    assert (made["cpu-percent"], made["memory"]) == (None, None)
    assert "memory -" in headline(made)
