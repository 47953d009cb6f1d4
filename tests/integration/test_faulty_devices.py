# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices of another package whose code is wrong: the daemon, its regions and all other devices go on."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from doorbelld.vhost.frontend import BackendFailed, Frontend
from support.daemon import BIN, DEADLINE, Daemon
from support.dbusclient import Client, ErrorReply
from support.devicepackage import device_package
from support.needs import require

from .test_ctl import Ctl
from .test_ctl_live import eventually

PLAIN = """
from doorbelld.vhost.device import Device

class Its(Device):
    name = "NAME"
    id = 62

    def handle(self, queue, chain):
        chain.write(chain.read().upper())
        queue.push(chain)
"""
TYPES = {
    "right": PLAIN + "    def counters(self):\n        return {'things-done': 3000}\n",
    "blind": PLAIN + "    def counters(self):\n        raise ValueError('boom')\n"
    "    def get_config(self):\n        raise SystemExit(1)\n",
    "unborn": PLAIN + "    def __init__(self, *args, **kwargs):\n        raise KeyboardInterrupt\n",
    "clumsy": PLAIN.replace("chain.write", "self.table[chain.read()]"),
    "nameless": PLAIN.replace('    name = "NAME"\n', ""),
    "idless": PLAIN.replace("    id = 62\n", ""),
    "misnamed": PLAIN.replace("NAME", "other"),
    "leaving": "raise SystemExit('bye')",
}
REFUSED = {
    "nameless": 'has no name; write name = "nameless" in the class',
    "idless": "has no id; write the virtio device ID in the class, such as id = 62",
    "misnamed": 'has the name "other", its entry point says "misnamed"; make them the same',
    "leaving": "can't be imported: SystemExit: bye; repair that package, or choose another type",
}


@pytest.fixture
def environment(short_path: Path) -> dict[str, str]:
    types = {name: source.replace("NAME", name) for name, source in TYPES.items()}
    return device_package(short_path / "packages", types)


@pytest.fixture
def daemon(short_path: Path, environment: dict[str, str]) -> Iterator[Daemon]:
    require("dbus-daemon", "dbus-daemon")
    with Daemon(short_path, "[region.mine]\n", environment=environment) as running:
        yield running


@pytest.fixture
def ctl(daemon: Daemon) -> Ctl:
    return Ctl(daemon.bus)


def test_a_device_whose_counters_and_configuration_fail_hides_nothing(daemon: Daemon, ctl: Ctl) -> None:
    said = ctl("create-device", "b", "blind")
    assert "made device b (blind, 1 queue)" in said
    seen = ctl()
    assert "mine" in seen and "b: its code fails: " in seen and "counters() raised ValueError: boom" in seen
    known = ctl.json("describe")["devices"]["b"]
    assert (known["counters"], known["state"]) == ({}, "listening")
    assert "counters() raised ValueError: boom" in known["error"]
    assert "mine" in ctl("status", "mine")
    assert "Error" in ctl("status", "b")
    with Client(daemon.bus) as client:
        error = client.get("/device/b", "Device", "Error")
        assert "counters() raised ValueError: boom" in error and "get_config() raised SystemExit: 1" in error
    for line in ("raise ValueError('boom')", "raise SystemExit(1)"):
        assert daemon.log.count(line) == 1, "it is told once, with its traceback"
    found = [finding["found"] for finding in json.loads(ctl.run("doctor", "--json").stdout)["findings"]]
    assert any('device "b": its code fails: ' in words for words in found)
    assert ctl("remove", "b") == "removed device b\n"
    assert ctl.json("devices", "--json") == {}


def test_a_device_that_can_not_be_made_leaves_nothing(daemon: Daemon, ctl: Ctl) -> None:
    before = daemon.descriptors(), len(os.listdir(f"/proc/{daemon.pid}/task"))
    for _ in range(3):
        said = ctl.refused("create-device", "u", "unborn")
        assert 'type "unborn" can\'t be made: Its() raised KeyboardInterrupt; repair their_devices.unborn' in said
    for kind, words in REFUSED.items():
        assert words in ctl.refused("create-device", "x", kind)
    assert 'did you mean "right"?' in ctl.refused("create-device", "x", "rigth")
    eventually(lambda: (daemon.descriptors(), len(os.listdir(f"/proc/{daemon.pid}/task"))) == before)
    assert not daemon.socket("u").exists() and list(ctl.json("describe")["devices"]) == []
    assert "raise KeyboardInterrupt" in daemon.log
    assert "removed region mine" in ctl("remove", "mine")


def test_an_error_of_a_handler_is_logged_with_its_line(daemon: Daemon, ctl: Ctl) -> None:
    ctl("create-device", "c", "clumsy")
    for _ in range(2):
        with Frontend.connect(str(daemon.socket("c")), timeout=DEADLINE) as frontend:
            (ring,) = frontend.start()
            ring.add([(frontend.take(8), 1)])
            ring.kick()
            with pytest.raises(BackendFailed):
                frontend.answer()
        eventually(lambda: ctl.json("devices", "c", "--json")["c"]["state"] == "listening")
    assert daemon.log.count("self.table[chain.read()]") == 1
    assert "handle() raised AttributeError: 'Its' object has no attribute 'table'" in ctl("status", "c")


def test_own_counters_are_shown(ctl: Ctl) -> None:
    ctl("create-device", "r", "right")
    assert "things-done 3,000" in ctl("status", "r")


FAULTY = """
[region.mine]
[device.good]
type = "right"
[device.u]
type = "unborn"
[device.i]
type = "idless"
[device.disk]
type = "blk"
path = "/nonexistent/image"
"""


def test_faulty_devices_in_the_configuration_are_left_out(short_path: Path, environment: dict[str, str]) -> None:
    with Daemon(short_path, FAULTY, environment=environment) as daemon:
        ctl = Ctl(daemon.bus)
        known = ctl.json("describe")
        assert (list(known["regions"]), list(known["devices"])) == (["mine"], ["good"])
        for name in ("u", "i", "disk"):
            assert any("can't serve device" in line and f"device={name}" in line for line in daemon.log.splitlines())
        assert "device.i.type" in ctl.refused("reload"), "a reload is strict, and does nothing"
        daemon.write_config("[region.mine]\n[device.good]\ntype = 'right'\n")
        ctl("reload")


def test_the_check_is_strict_about_faulty_devices(short_path: Path, environment: dict[str, str]) -> None:
    file = short_path / "checked.toml"
    file.write_text("".join(f"[device.{name}]\ntype = '{name}'\n" for name in REFUSED))
    done = subprocess.run(
        [BIN / "doorbelld", "--config", file, "--check"],
        **{"env": {**os.environ, **environment}, "capture_output": True, "text": True, "timeout": DEADLINE},
        check=False,
    )
    assert done.returncode == 78
    for number, (name, words) in enumerate(REFUSED.items(), 1):
        assert f"{file}:{number * 2}: device.{name}.type:" in done.stderr and words in done.stderr


def test_d_bus_names_the_error(daemon: Daemon) -> None:
    with Client(daemon.bus) as client:
        for kind, name in (("unborn", "DeviceFaulty"), ("idless", "UnusableDeviceType"), ("blkk", "NoSuchDeviceType")):
            with pytest.raises(ErrorReply) as caught:
                client.call("", "Manager", "CreateDevice", "ssa{sv}", "x", kind, {})
            assert caught.value.kind == name
