# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from doorbelld.ctl.checks import service

from .conftest import Stage, device, levels, only, region

REPOSITORY = Path(__file__).parents[4]
NAME = "org.doorbelld.Doorbell1"
POLICY = f"/usr/share/dbus-1/system.d/{NAME}.conf"
ACTIVATION = f"/usr/share/dbus-1/system-services/{NAME}.service"
ACTIONS = f"/usr/share/polkit-1/actions/{NAME}.policy"
UNIT = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "running",
    "MainPID": "7",
    "User": "doorbelld",
    "UnitFileState": "enabled",
    "FileDescriptorStoreMax": "100",
    "NFileDescriptorStore": "10",
    "PrivateTmp": "yes",
    "ProtectHome": "yes",
}


def unit(stage: Stage, **changes: str) -> None:
    stage.view.unit = {**UNIT, **changes}


def test_a_daemon_that_answers(stage: Stage) -> None:
    stage.serve()
    assert only(service.reached, stage) == ("ok", "doorbelld 1 (pid 7) answers on unix:path=/bus | ")
    stage.view.own_version = "2"
    assert levels(service.reached, stage) == ["ok", "hint"]


def test_no_daemon(stage: Stage) -> None:
    stage.view.trouble, stage.view.cure = "nobody", "start it"
    assert only(service.reached, stage) == ("wrong", "nobody | start it")


def test_libraries(stage: Stage) -> None:
    stage.view.library = "dbus-next 0.2.3"
    assert levels(service.libraries, stage) == ["ok", "hint"]
    stage.view.library = "dbus-fast 5"
    assert levels(service.libraries, stage) == ["ok", "ok"]


@pytest.mark.parametrize(
    ("changes", "level", "said"),
    [
        ({}, "ok", "active (running)"),
        ({"ActiveState": "inactive", "SubState": "dead"}, "wrong", "systemctl start doorbelld"),
        ({"ActiveState": "failed", "Result": "watchdog"}, "wrong", "failed (watchdog)"),
        ({"LoadState": "masked"}, "wrong", "is masked"),
    ],
)
def test_the_units_state(stage: Stage, changes: dict[str, str], level: str, said: str) -> None:
    unit(stage, **changes)
    found = only(service.unit, stage)
    assert found[0] == level
    assert said in found[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"MainPID": "8"}, "is not the unit's"),
        ({"NRestarts": "3"}, "3 times"),
        ({"UnitFileState": "disabled"}, "systemctl enable"),
        ({"NeedDaemonReload": "yes"}, "daemon-reload"),
    ],
)
def test_hints_about_the_unit(stage: Stage, changes: dict[str, str], said: str) -> None:
    unit(stage, **changes)
    good, found = service.unit(stage.view)
    assert (good.level, found.level) == ("ok", "hint")
    assert said in found.found + found.cure


def test_a_sandbox_that_was_opened(stage: Stage) -> None:
    unit(stage)
    assert levels(service.sandbox, stage) == ["ok"]
    unit(stage, ProtectSystem="no", DropInPaths="/etc/systemd/system/doorbelld.service.d/own.conf")
    level, said = only(service.sandbox, stage)
    assert (level, "ProtectSystem=no" in said, "own.conf" in said) == ("hint", True, True)


@pytest.mark.parametrize(
    ("path", "backing", "wrong"),
    [
        ("/tmp/x/socket", "memfd", 1),
        ("/root/socket", "memfd", 1),
        ("/run/doorbelld/x/socket", "file:/var/tmp/memory", 1),
        ("/run/doorbelld/x/socket", "shm:tmp", 0),
        ("/srv/tmp/socket", "file:/srv/memory", 0),
    ],
)
def test_files_that_the_sandbox_hides(stage: Stage, path: str, backing: str, wrong: int) -> None:
    unit(stage)
    stage.serve(demo=region(path, backing=backing))
    assert levels(service.sandbox, stage).count("wrong") == wrong
    unit(stage, MainPID="8")  # the daemon that answers is another one
    assert levels(service.sandbox, stage).count("wrong") == 0


@pytest.mark.parametrize(
    ("used", "limit", "peers", "level"),
    [(20, 1024, 8, "ok"), (20, 1024, 1024, "hint"), (1000, 1024, 8, "wrong")],
)
def test_descriptors(stage: Stage, used: int, limit: int, peers: int, level: str) -> None:
    stage.serve(demo=region(**{"max-peers": peers}))
    assert stage.view.known is not None
    stage.view.known["descriptors"] = {"in-use": used, "limit": limit}
    assert only(service.descriptors, stage)[0] == level


def test_devices_take_descriptors_too(stage: Stage) -> None:
    stage.serve({f"d{number}": device(queues=[{}] * 256) for number in range(2)})
    assert only(service.descriptors, stage)[0] == "hint"


def test_the_sandbox_hides_sockets_of_devices(stage: Stage) -> None:
    unit(stage)
    stage.serve({"disk0": device(socket="/tmp/disk0/socket")})
    assert levels(service.sandbox, stage)[1:] == ["wrong"]


def test_a_limit_that_was_lowered(stage: Stage) -> None:
    stage.serve()
    stage.file("/proc/7/limits", "Limit  Soft Limit  Hard Limit  Units\nMax open files    512    1024   files\n")
    assert levels(service.descriptors, stage) == ["ok", "hint"]
    stage.file("/proc/7/limits", "Max open files    1024    1024   files\n")
    assert levels(service.descriptors, stage) == ["ok"]


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, "ok"),
        ({"FileDescriptorStoreMax": "0"}, "wrong"),
        ({"NFileDescriptorStore": "100"}, "wrong"),
        ({"FileDescriptorStoreMax": "39"}, "hint"),
    ],
)
def test_the_descriptor_store(stage: Stage, changes: dict[str, str], level: str) -> None:
    unit(stage, **changes)
    stage.serve(demo=region())
    assert only(service.store, stage)[0] == level


def test_datagrams(stage: Stage) -> None:
    assert only(service.datagrams, stage)[0] == "skipped"
    unit(stage)
    stage.file("/proc/sys/net/unix/max_dgram_qlen", "10\n")
    assert only(service.datagrams, stage)[0] == "hint"
    stage.file("/proc/sys/net/unix/max_dgram_qlen", "512\n")
    assert only(service.datagrams, stage)[0] == "ok"


def delivered(stage: Stage, path: str) -> None:
    stage.file(path, (REPOSITORY / "dbus" / Path(path).name).read_text())


def test_what_we_deliver_is_fine(stage: Stage) -> None:
    unit(stage)
    for path in (POLICY, ACTIVATION, ACTIONS):
        delivered(stage, path)
    stage.file("/usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service", "")
    for check in (service.bus_policy, service.activation, service.polkit):
        assert only(check, stage)[0] == "ok"


@pytest.mark.parametrize("check", [service.bus_policy, service.activation, service.polkit])
def test_a_private_bus_needs_none_of_it(stage: Stage, check: Any) -> None:
    stage.serve()
    stage.view.on_system_bus = False
    assert only(check, stage)[0] == "skipped"


def test_no_bus_policy(stage: Stage) -> None:
    assert only(service.bus_policy, stage)[0] == "wrong"
    stage.file(POLICY, "<busconfig>")
    assert "can't be read" in only(service.bus_policy, stage)[1]


@pytest.mark.parametrize(
    ("rules", "may"),
    [
        ('<policy user="doorbelld"><allow own="{name}"/></policy>', True),
        ('<policy user="root"><allow own="{name}"/></policy>', False),
        ('<policy user="doorbelld"><allow own="org.else"/></policy>', False),
        ('<policy user="doorbelld"><allow own_prefix="org.doorbelld"/></policy>', True),
        ('<policy user="doorbelld"><allow own_prefix="org.door"/></policy>', False),
        ('<policy context="default"><allow own="*"/></policy>', True),
        (
            '<policy user="doorbelld"><allow own="{name}"/></policy><policy context="default"><deny own="*"/></policy>',
            True,
        ),
        (
            '<policy context="mandatory"><deny own="{name}"/></policy>'
            '<policy user="doorbelld"><allow own="{name}"/></policy>',
            False,
        ),
        ('<policy user="doorbelld"><allow send_destination="{name}"/></policy>', False),
    ],
)
def test_who_may_own_the_name(stage: Stage, rules: str, may: bool) -> None:
    text = f"<busconfig>{rules.format(name=NAME)}</busconfig>"
    assert service.may_own(ET.fromstring(text), "doorbelld") is may
    unit(stage)
    stage.file(POLICY, text)
    assert only(service.bus_policy, stage)[0] == ("ok" if may else "wrong")


@pytest.mark.parametrize(
    ("lines", "level"),
    [
        (f"[D-BUS Service]\nName={NAME}\nExec=/usr/bin/doorbelld --bus system\n", "wrong"),
        (f"[D-BUS Service]\nName={NAME}\nExec=/bin/there\n", "ok"),
        ("[D-BUS Service]\nName=org.else\nExec=/bin/there\n", "wrong"),
        ("[Else]\n", "wrong"),
        ("what\n", "wrong"),
    ],
)
def test_activation(stage: Stage, lines: str, level: str) -> None:
    assert only(service.activation, stage)[0] == "hint"
    stage.file("/bin/there", "")
    stage.file(ACTIVATION, lines)
    assert only(service.activation, stage)[0] == level


def test_polkit(stage: Stage) -> None:
    assert "not installed" in only(service.polkit, stage)[1]
    stage.file("/usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service", "")
    assert "does not know our actions" in only(service.polkit, stage)[1]
    stage.file(ACTIONS, f'<policyconfig><action id="{NAME}.inspect"/></policyconfig>')
    assert "lacks the actions notify, open-memory, manage" in only(service.polkit, stage)[1]
    stage.file(ACTIONS, "<policyconfig>")
    assert only(service.polkit, stage)[0] == "wrong"
