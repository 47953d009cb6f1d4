# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Types are found by name, in this package and in others."""

from __future__ import annotations

import importlib.metadata
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
from doorbelld import devices
from doorbelld.devices.loopback import Loopback
from doorbelld.devices.rng import Rng
from doorbelld.errors import NoSuchDeviceType, UnusableDeviceType


def test_ours() -> None:
    assert devices.find("rng") is Rng and devices.find("loopback") is Loopback
    assert {"rng", "loopback"} <= set(devices.names())


def test_an_unknown_one_names_those_that_there_are() -> None:
    with pytest.raises(NoSuchDeviceType, match=r"no device type 'toaster'; write one of .*rng"):
        devices.find("toaster")


def test_a_name_that_is_nearly_one_is_guessed() -> None:
    with pytest.raises(NoSuchDeviceType, match=r"no device type 'blkk'; did you mean \"blk\"\?"):
        devices.find("blkk")


def offered(monkeypatch: pytest.MonkeyPatch, value: str, name: str = "x") -> None:
    """Have a package offer the type *name*, which is *value*."""
    entries = EntryPoints([EntryPoint(name, value, devices.GROUP)])

    def found(**wanted: Any) -> EntryPoints:
        return entries.select(**wanted)

    monkeypatch.setattr(importlib.metadata, "entry_points", found)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("no_such_module:X", "can't be imported: ModuleNotFoundError: No module named"),
        ("doorbelld.devices.rng:NoSuch", "can't be imported: AttributeError"),
        ("doorbelld.devices.rng:RATE_MAX", "is no device"),
        ("doorbelld.devices.rng:Options", "is no device"),
        ("doorbelld.devices.rng:Rng", 'has the name "rng", its entry point says "x"; make them the same'),
        ("doorbelld.vhost.device:Device", 'has no name; write name = "x" in the class'),
    ],
)
def test_a_type_that_can_not_be_used_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, value: str, said: str
) -> None:
    offered(monkeypatch, value)
    with pytest.raises(UnusableDeviceType, match=said):
        devices.find("x")


GOOD = """
from doorbelld.vhost.device import Device
class X(Device):
    name = "x"
    id = 62
    def handle(self, queue, chain): pass
"""


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise ValueError('boom')", "can't be imported: ValueError: boom; repair that package"),
        ("raise SystemExit(1)", "can't be imported: SystemExit: 1"),
        ("raise KeyboardInterrupt", "can't be imported: KeyboardInterrupt"),
        ("def f(): f()\nf()", "can't be imported: RecursionError"),
        (GOOD.replace("id = 62", "pass"), "has no id; write the virtio device ID in the class, such as id = 62"),
        (GOOD.replace("62", "'62'"), "has no id"),
        (GOOD.replace("62", "True"), "has no id"),
        (GOOD.replace("62", "0"), "has the id 0; a virtio device ID is a number from 1 to 65535"),
        (GOOD.replace('"x"', "7"), "has no name"),
        (GOOD + "    queues_max = 1000", "has a queues_max that can't be; write a number from 1 to 256"),
        (GOOD + "    Options = int", "has Options that are no dataclass"),
        (GOOD.replace("handle", "handel"), r"has neither handle\(\) nor attach\(\)"),
    ],
)
def test_a_module_of_another_package_that_is_wrong_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, said: str
) -> None:
    (tmp_path / "faulty_package.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    offered(monkeypatch, "faulty_package:X")
    try:
        with pytest.raises(UnusableDeviceType, match=said):
            devices.find("x")
    finally:
        sys.modules.pop("faulty_package", None)


def test_a_module_of_another_package_that_is_right_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "right_package.py").write_text(GOOD)
    monkeypatch.syspath_prepend(tmp_path)
    offered(monkeypatch, "right_package:X")
    try:
        assert devices.find("x").id == 62
    finally:
        del sys.modules["right_package"]
