# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from typing import Any

import pytest
from doorbelld.errors import InvalidOptions
from doorbelld.ivshmem.clientspec import ClientSpec, FlatSpec
from doorbelld.options import frozen_differences


@pytest.mark.parametrize("kind", [ClientSpec, FlatSpec])
def test_what_is_asked_for_comes_back(kind: type[ClientSpec]) -> None:
    raw: dict[str, Any] = {"socket": "/run/s", "vectors-max": 2048, "reconnect": False}
    if kind is FlatSpec:
        raw["memory-size"] = "4M"
    spec = kind.from_raw("demo", raw)
    assert (spec.name, spec.socket, spec.vectors_max, spec.reconnect) == ("demo", "/run/s", 2048, False)
    assert spec.as_options() == {**raw, **({"memory-size": 4 << 20} if kind is FlatSpec else {})}
    assert kind.from_raw("demo", spec.raw()) == spec


def test_defaults() -> None:
    assert ClientSpec.from_raw("a", {"socket": "/s"}) == ClientSpec("a", "/s", 64, True)
    assert FlatSpec.from_raw("a", {"socket": "/s"}) == FlatSpec("a", "/s", 64, True, 0)
    assert FlatSpec.from_raw("a", FlatSpec("a", "/s").raw()).memory_size == 0


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({}, "socket: missing"),
        ({"socket": "s"}, "not an absolute path"),
        ({"socket": "/" + "s" * 108}, "longer than a UNIX socket's path"),
        ({"socket": "/s", "vectors-max": 0}, "out of range"),
        ({"socket": "/s", "vectors-max": 2049}, "out of range"),
        ({"socket": "/s", "reconnect": 1}, "not a boolean"),
        ({"socket": "/s", "memory-size": -1}, "flat.demo.memory-size"),
        ({"socket": "/s", "memory-size": False}, "not a size"),
        ({"socket": "/s", "vectors": 3}, "unknown key"),
    ],
)
def test_what_can_not_be_asked_for(raw: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidOptions, match=said):
        FlatSpec.from_raw("demo", raw)


@pytest.mark.parametrize("name", ["", "a/b", "-a", "a" * 65])
def test_names_that_can_not_be(name: str) -> None:
    with pytest.raises(InvalidOptions, match="can't be the name"):
        ClientSpec.from_raw(name, {"socket": "/s"})


def test_what_can_not_change_live() -> None:
    old = FlatSpec("a", "/s")
    assert [p.key for p in frozen_differences(old, FlatSpec("a", "/t", 8, False, 4096), "flat.a", "")] == [
        "flat.a.socket",
        "flat.a.memory-size",
    ]
