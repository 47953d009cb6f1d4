# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from doorbelld.ctl.checks import devices

from .conftest import Stage, device, levels, only

IMAGE = "/var/lib/images/disk0"
UNIT = {
    "MainPID": "7",
    "User": "doorbelld",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "StateDirectory": "doorbelld",
}


# How they are


def test_no_device_is_nothing_to_look_at(stage: Stage) -> None:
    assert only(devices.states, stage)[0] == "skipped"
    stage.serve()
    assert only(devices.states, stage)[0] == "skipped"


def test_a_device_that_listens_is_fine(stage: Stage) -> None:
    stage.serve({"disk0": device(), "disk1": device(reason="it closed its connection")})
    assert [finding.found for finding in devices.states(stage.view)] == [
        'device "disk0" is listening',
        'device "disk1" is listening',
    ]


@pytest.mark.parametrize(
    ("more", "level", "said", "cure"),
    [
        ({"state": "broken", "reason": "it sent rubbish"}, "wrong", "is broken: it sent rubbish", "journalctl"),
        ({"state": "broken", "reason": "x (share=on missing?)"}, "wrong", "is broken", "all its memory share=on"),
        ({"fault": "x (share=on missing?)"}, "wrong", "x (share=on missing?)", "all its memory share=on"),
        ({"fault": "x was disconnected: queue 0: a loop"}, "wrong", "queue 0: a loop", "DEVICE=disk0"),
        (
            {"state": "connected", "fault": "longer than queue-size = 256 allows; set queue-size = 1024"},
            "wrong",
            "longer than queue-size = 256 allows",
            "leave queue-size out",
        ),
        ({"reason": "its connection broke: x"}, "hint", "its last front-end is gone: its connection", "DEVICE=disk0"),
        (
            {"memory": [{"guest-addr": 4096, "size": 8192, "error": "No such device"}]},
            "wrong",
            "(0x1000, 8192 bytes) can't be reached: No such device",
            "share=on",
        ),
        (
            {"queues": [{"index": 3, "errors": 0, "broken": "a loop"}]},
            "wrong",
            "queue 3 is broken: a loop",
            "disconnect disk0",
        ),
        ({"queues": [{"index": 0, "errors": 2, "broken": ""}] * 2}, "hint", "4 requests failed", "dmesg"),
        ({"state": "connecting", "connect": True}, "hint", "nobody listens there", "qemu-args disk0"),
    ],
)
def test_what_is_wrong_with_a_device(stage: Stage, more: dict[str, Any], level: str, said: str, cure: str) -> None:
    stage.serve({"disk0": device(**more)})
    found = only(devices.states, stage)
    assert found[0] == level
    words, _, advice = found[1].partition(" | ")
    assert said in words
    assert cure in advice


def test_a_front_end_that_can_not_be_connected_to(stage: Stage) -> None:
    stage.listen("/run/doorbelld/disk0/socket")
    stage.serve({"disk0": device(state="connecting", connect=True)})
    level, said = only(devices.states, stage)
    assert (level, "though somebody listens there" in said, "whether root may" in said) == ("hint", True, True)


# Images


def disk(stage: Stage, path: str = IMAGE, mode: int = 0o666, **more: Any) -> Path:
    stage.view.disks = {"disk0": {"path": path, **more}}
    place = stage.file(path, "")
    for directory in (place.parent, *place.parent.parents):
        if directory == stage.root:
            break
        directory.chmod(0o755)
    place.chmod(mode)
    return place


def test_no_disk_is_nothing_to_look_at(stage: Stage) -> None:
    assert only(devices.images, stage)[0] == "skipped"
    stage.view.disks = {"broken": {"type": "blk"}}
    assert only(devices.images, stage)[0] == "skipped"


def test_an_image_that_the_daemon_may_use(stage: Stage) -> None:
    disk(stage)
    stage.view.unit = {"User": "doorbelld"}
    assert only(devices.images, stage) == ("ok", f'device "disk0": doorbelld may use {IMAGE} | ')


def test_an_image_that_is_gone(stage: Stage) -> None:
    disk(stage).unlink()
    level, said = only(devices.images, stage)
    assert (level, f"{IMAGE}: No such file" in said, "[device.disk0]" in said) == ("wrong", True, True)


@pytest.mark.parametrize(
    ("mode", "read_only", "said"),
    [
        (0o644, False, "may not read and write"),
        (0o600, True, "may not read "),
        (0o644, True, ""),
    ],
)
def test_an_image_of_somebody_else(stage: Stage, mode: int, read_only: bool, said: str) -> None:
    disk(stage, mode=mode, **{"read-only": read_only})
    stage.view.unit = {"User": "doorbelld"}
    level, found = only(devices.images, stage)
    assert level == ("wrong" if said else "ok")
    assert said in found
    assert ("chown doorbelld" in found) == bool(said)
    assert ("read-only = true" in found) == (bool(said) and not read_only)


def test_an_image_in_a_closed_directory(stage: Stage) -> None:
    disk(stage).parent.chmod(0o700)
    stage.view.unit = {"User": "doorbelld"}
    level, said = only(devices.images, stage)
    assert (level, "may not pass /var/lib/images" in said) == ("wrong", True)


def test_groups_that_only_the_process_has_count(stage: Stage) -> None:
    place = disk(stage, mode=0o660)
    stage.view.unit = {"User": "doorbelld"}
    assert only(devices.images, stage)[0] == "wrong"
    stage.file("/proc/7/status", f"Name:\tx\nGroups:\t5 {place.stat().st_gid} \n")
    assert only(devices.images, stage)[0] == "ok"


@pytest.mark.parametrize(
    ("path", "unit", "read_only", "said"),
    [
        (IMAGE, {}, False, "does not let it write"),
        (IMAGE, {}, True, ""),
        (IMAGE, {"ReadWritePaths": "-/srv +/var/lib/images"}, False, ""),
        (IMAGE, {"ReadWritePaths": "/var/lib/image"}, False, "ReadWritePaths=/var/lib/images"),
        (IMAGE, {"ProtectSystem": "no"}, False, ""),
        ("/var/lib/doorbelld/disk0", {}, False, ""),
        ("/run/user/7/disk0", {"ReadWritePaths": "/run/user/7"}, True, "hides /run/user/7/disk0"),
        ("/run/user/7/disk0", {"BindPaths": "/run/user/7:/run/user/7:rbind"}, False, ""),
        ("/tmp/disk0", {}, True, "BindPaths=/tmp"),
        ("/tmp/disk0", {"PrivateTmp": "no"}, True, ""),
    ],
)
def test_an_image_and_the_sandbox(stage: Stage, path: str, unit: dict[str, str], read_only: bool, said: str) -> None:
    disk(stage, path, **{"read-only": read_only})
    stage.view.unit = {**UNIT, **unit}
    level, found = only(devices.images, stage)
    assert level == ("wrong" if said else "ok")
    assert said in found
    stage.view.pid = 8  # another daemon answers than the unit's
    assert only(devices.images, stage)[0] == "ok"


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes block devices")
@pytest.mark.parametrize(
    ("unit", "level"),
    [
        ({}, "wrong"),
        ({"PrivateDevices": "no"}, "wrong"),
        ({"PrivateDevices": "no", "DeviceAllow": "char-rtc r /dev/vdz rw"}, "ok"),
        ({"PrivateDevices": "no", "DeviceAllow": "block-virtblk rw"}, "ok"),
        ({"PrivateDevices": "yes", "DeviceAllow": "/dev/vdz rw"}, "wrong"),
    ],
)
def test_a_block_device_and_the_sandbox(stage: Stage, unit: dict[str, str], level: str) -> None:
    place = disk(stage, "/dev/vdz")
    place.unlink()
    try:
        os.mknod(place, 0o060666, os.makedev(1, 0))
    except PermissionError:
        pytest.skip("not even root makes block devices here")
    place.chmod(0o666)
    stage.view.unit = {**UNIT, **unit}
    assert only(devices.images, stage)[0] == level


# io_uring


@pytest.mark.parametrize(
    ("disabled", "group", "groups", "filters", "said"),
    [
        ("", "", "", "", ""),
        ("0", "-1", "", "", ""),
        ("1", "-1", "", "", "is not in the group that may"),
        ("1", "990", "", "", ""),
        ("1", "77", "5 77", "", ""),
        ("2", "990", "", "", "nobody may use it"),
        ("0", "-1", "", "read write io_uring_setup", ""),
        ("0", "-1", "", "read write", "the sandbox of the unit forbids it"),
        ("0", "-1", "", "~io_uring_setup:EPERM mount", "the sandbox of the unit forbids it"),
        ("0", "-1", "", "~mount", ""),
    ],
)
def test_whether_disks_may_use_it(
    stage: Stage, disabled: str, group: str, groups: str, filters: str, said: str
) -> None:
    stage.serve({"disk0": device()})
    stage.view.unit = {"MainPID": "7", "User": "doorbelld", "SystemCallFilter": filters}
    for name, value in (("io_uring_disabled", disabled), ("io_uring_group", group)):
        if value:
            stage.file(f"/proc/sys/kernel/{name}", f"{value}\n")
    stage.file("/proc/7/status", f"Groups:\t{groups}\n")
    level, found = only(devices.uring, stage)
    assert level == ("hint" if said else "ok")
    assert said in found


def test_root_may_and_without_disks_it_does_not_matter(stage: Stage) -> None:
    stage.file("/proc/sys/kernel/io_uring_disabled", "1\n")
    stage.serve({"disk0": device()})
    assert levels(devices.uring, stage) == ["ok"]
    stage.serve({"entropy": device(**{"virtio-id": 4})})
    assert levels(devices.uring, stage) == ["skipped"]
