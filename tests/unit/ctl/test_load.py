# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from collections import Counter
from typing import Any

from doorbelld.ctl.load import Sample, all_tables, device_rows, frame, headline, peer_rows, region_rows
from doorbelld.ctl.process import Usage


def peer(number: int, backlog: int = 0) -> dict[str, Any]:
    return {"id": number, "vm": "", "pid": 9, "vectors": 2, "since": 0, "backlog": backlog}


def region(*rings: int, peers: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {"vectors": len(rings), "max-peers": 8, "host-rings": list(rings), "peers": list(peers)}


def device(*requests: int, started: bool = True, **more: Any) -> dict[str, Any]:
    """Describe a device whose queues have done so many requests, of 512 bytes each."""
    counts = [{"requests": count, "bytes": count * 512, "kicks": count, "calls": count // 2} for count in requests]
    queues = [{**each, "errors": 0, "in-flight": 1, "started": started} for each in counts]
    return {"type": "blk", "state": "running", "reason": "", "front-end": None, "queues": queues, **more}


def sample(
    at: float,
    *,
    owner: str = ":1.1",
    cpu: float | None = None,
    joins: int = 0,
    devices: dict[str, Any] | None = None,
    **regions: Any,
) -> Sample:
    known = {"version": "1", "descriptors": {"limit": 100, "in-use": 9}, "regions": regions, "devices": devices or {}}
    usage = None if cpu is None else Usage(cpu, 3 << 20, 0.0)
    return Sample(at, owner, 7, known, usage, Counter(demo=joins), Counter(demo=joins // 2))


def test_the_first_look_has_no_rates() -> None:
    made = frame(None, sample(1.0, cpu=5.0, demo=region(3, 4)))
    assert (made["interval"], made["cpu-percent"], made["memory"]) == (None, None, 3 << 20)
    demo = made["regions"]["demo"]
    assert (demo["rings"], demo["rings-per-second"], demo["joins-per-second"]) == ([3, 4], None, None)
    assert list(region_rows(made)) == [["demo", 0, 0, "-", "-", 7, "-", "-"]]


def relayed(*rings: tuple[int, int], since: int = 0) -> dict[str, Any]:
    """Describe a relayed region whose peers made and got so many rings."""
    made = [
        {**peer(number), "since": since, "rings-sent": sent, "rings-received": received}
        for number, (sent, received) in enumerate(rings)
    ]
    return {**region(0, 0, peers=tuple(made)), "pairs": []}


def test_rings_between_peers_are_seen_where_a_relay_sees_them() -> None:
    first = frame(None, sample(1.0, demo=relayed((5, 6))))
    assert peer_rows(first)[0][-2:] == ["-", "-"]
    before = sample(1.0, demo=relayed((5, 6), (0, 0)), plain=region(0, peers=(peer(0),)))
    now = sample(3.0, demo=relayed((9, 6), (4, 1), (6, 0)), plain=region(0, peers=(peer(0),)))
    rows = peer_rows(frame(before, now))
    assert [(row[0], row[1], *row[-2:]) for row in rows] == [
        ("demo", 2, 3.0, 0.0),
        ("demo", 0, 2.0, 0.0),
        ("demo", 1, 2.0, 0.5),
        ("plain", 0, "-", "-"),
    ]
    again = frame(before, sample(3.0, demo=relayed((4, 2), since=1)))
    assert again["regions"]["demo"]["peers"][0]["sent-per-second"] == 2.0  # another peer of the same ID


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


def test_requests_and_bytes_are_per_second_over_all_queues() -> None:
    who = {"vm": "guest1", "pid": 5}
    made = frame(
        sample(1.0, devices={"disk0": device(100, 0), "idle": device(7, started=False)}),
        sample(3.0, devices={"disk0": device(300, 50, **{"front-end": who}), "idle": device(7, started=False)}),
    )
    disk = made["devices"]["disk0"]
    assert (disk["requests"], disk["requests-per-second"]) == (350, 125.0)
    assert (disk["bytes-per-second"], disk["kicks-per-second"], disk["calls-per-second"]) == (64000.0, 125.0, 62.5)
    assert (disk["queues"], disk["running"], disk["in-flight"]) == (2, 2, 2)
    busy, idle = device_rows(made)
    assert busy == ["disk0", "blk", "running", "guest1 (5)", "2/2", 125.0, "62.5 KiB", 2, 125.0, 62.5, 0]
    assert (idle[0], idle[4], idle[5]) == ("idle", "0/1", 0.0)
    assert "0 peers, 2 devices" in headline(made)


def test_the_first_look_at_a_device_has_no_rates() -> None:
    made = frame(None, sample(1.0, devices={"disk0": device(100)}))
    assert made["devices"]["disk0"]["requests-per-second"] is None
    assert next(device_rows(made))[5:7] == ["-", "-"]


def test_a_device_made_anew_counts_from_nothing() -> None:
    first = sample(1.0, devices={"disk0": device(900)})
    again = frame(first, sample(2.0, devices={"disk0": device(30), "new": device(4)}))
    assert [each["requests-per-second"] for each in again["devices"].values()] == [30.0, 4.0]
    restarted = frame(first, sample(2.0, owner=":1.2", devices={"disk0": device(1000)}))
    assert restarted["devices"]["disk0"]["requests-per-second"] == 1000.0


def test_tables_without_rows_are_left_out() -> None:
    assert list(all_tables(frame(None, sample(1.0)))) == []
    made = frame(None, sample(1.0, devices={"disk0": device(1)}, demo=region(1)))
    assert [shape.headings[0] for shape, _ in all_tables(made)] == ["REGION", "DEVICE"]
