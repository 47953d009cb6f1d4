# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Types are found by name, in this package and in others."""

from __future__ import annotations

import importlib.metadata
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest
from doorbelld import devices
from doorbelld.devices.loopback import Loopback
from doorbelld.devices.rng import Rng
from doorbelld.errors import NoSuchDeviceType


def test_ours() -> None:
    assert devices.find("rng") is Rng and devices.find("loopback") is Loopback
    assert {"rng", "loopback"} <= set(devices.names())


def test_an_unknown_one_names_those_that_there_are() -> None:
    with pytest.raises(NoSuchDeviceType, match=r"no device type 'toaster'; write one of .*rng"):
        devices.find("toaster")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("no_such_module:X", "can't be loaded: No module named"),
        ("doorbelld.devices.rng:NoSuch", "can't be loaded"),
        ("doorbelld.devices.rng:RATE_MAX", "is no device"),
        ("doorbelld.devices.rng:Options", "is no device"),
    ],
)
def test_one_that_is_none(monkeypatch: pytest.MonkeyPatch, value: str, said: str) -> None:
    entries = EntryPoints([EntryPoint("x", value, devices.GROUP)])

    def found(**wanted: Any) -> EntryPoints:
        return entries.select(**wanted)

    monkeypatch.setattr(importlib.metadata, "entry_points", found)
    with pytest.raises(NoSuchDeviceType, match=said):
        devices.find("x")
