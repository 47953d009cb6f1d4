# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import re
from typing import Any

import pytest
from doorbelld.ctl import device_tables

WHO = {"pid": 7, "uid": 1, "gid": 2, "vm": "guest1", "unit": "", "since": 1_700_000_000_000_000}


def queue(index: int = 0, **more: Any) -> dict[str, Any]:
    keys = ("size", "available-index", "used-index", "in-flight", "kicks", "calls", "requests", "bytes", "errors")
    return {"index": index, "enabled": False, "started": False, "broken": "", **dict.fromkeys(keys, 0), **more}


def device(**more: Any) -> dict[str, Any]:
    known = {"type": "blk", "virtio-id": 2, "socket": "/s", "owner": "", "group": "kvm", "mode": "0660"}
    state = {
        "connect": False,
        "poll-us": 0,
        "state": "listening",
        "reason": "",
        "fault": "",
        "front-end": None,
        "memory": [],
    }
    names = {f"{which}-feature-names": [] for which in ("offered", "acked", "offered-protocol", "acked-protocol")}
    return {**known, **state, **names, "status": 0, "config-space": "", "queues": [queue(0), queue(1)], **more}


def test_a_line_for_each_device(capsys: pytest.CaptureFixture[str]) -> None:
    busy = [queue(0, started=True, requests=3, bytes=2048, errors=1), queue(1, started=True, requests=4), queue(2)]
    device_tables.overview(
        {"disk0": device(state="running", queues=busy, **{"front-end": WHO}), "idle": device(reason="it sent rubbish")}
    )
    said = capsys.readouterr().out
    assert re.search(r"^disk0 +blk +running +guest1 \(7\) +2/3 +7 +2.0 KiB +1 +/s$", said, re.M)
    assert re.search(r"^idle +blk +listening +- +0/2 +0 +0 B +0 +/s$", said, re.M)
    assert said.endswith("\n\nidle: its last front-end is gone: it sent rubbish\n")


def test_reasons() -> None:
    assert device_tables.reason(device()) == ""
    assert device_tables.reason(device(state="broken", reason="x")) == "broken: x"


def test_all_there_is_of_queues(capsys: pytest.CaptureFixture[str]) -> None:
    known = queue(3, size=128, enabled=True, started=True, kicks=9, calls=8, requests=7, bytes=600, errors=5)
    device_tables.queues(
        [queue(), {**known, "available-index": 77, "used-index": 66, "in-flight": 11, "broken": "bad"}]
    )
    said = capsys.readouterr().out
    assert re.search(r"^ +3 +128 +yes +yes +77 +66 +11 +9 +8 +7 +600 B +5$", said, re.M)
    assert re.search(r"^ +0 +- +no +no +0 ", said, re.M)
    assert "queue 3 is broken: bad" in said


def test_status_of_a_device_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    memory = [
        {"guest-addr": 0, "size": 1 << 20, "error": ""},
        {"guest-addr": 1 << 32, "size": 1 << 20, "error": "No such device"},
    ]
    features = {
        "offered-feature-names": ["VIRTIO_BLK_F_RO", "VIRTIO_F_VERSION_1"],
        "acked-feature-names": ["VIRTIO_F_VERSION_1"],
        "offered-protocol-feature-names": ["MQ"],
        "acked-protocol-feature-names": ["MQ"],
    }
    space = (2048).to_bytes(8, "little").hex()
    device_tables.status(
        "disk0", device(memory=memory, status=0xF, **features, **{"front-end": WHO, "config-space": space})
    )
    said = capsys.readouterr().out
    for words in (
        "Type: blk (virtio ID 2)",
        "Front-end: pid 7, uid 1, gid 2, VM guest1, since 2023-11-1",
        "Features: VERSION_1 (not: RO)",
        "Protocol: MQ\n",
        "Status: ACKNOWLEDGE DRIVER DRIVER_OK FEATURES_OK",
        "Memory: 2.0 MiB in 2 regions; 0x100000000: No such device",
        "Configuration: a disk of 1.0 MiB (2,048 sectors)",
        "No queue is set up by the guest yet.",
    ):
        assert words in said


def test_status_of_a_device_that_nobody_uses(capsys: pytest.CaptureFixture[str]) -> None:
    space = bytes([1, 2, 0, 0]).hex()
    device_tables.status("d", device(connect=True, reason="x", **{"virtio-id": 63, "config-space": space}))
    said = capsys.readouterr().out
    assert "Socket: /s (the front-end listens)" in said
    assert "Access" not in said
    assert "Reason: its last front-end is gone: x" in said
    assert "Configuration: 4 bytes: 01 02 and zeros" in said
    assert "doorbellctl qemu-args d" in said


def test_queues_that_are_not_set_up_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    used = queue(0, size=64, enabled=True, started=True)
    device_tables.status("d", device(queues=[used, *map(queue, range(1, 16))], **{"front-end": WHO}))
    assert "15 of 16 queues are not set up by the guest." in capsys.readouterr().out
