# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from typing import Any

import pytest
from doorbelld.errors import InvalidOptions
from doorbelld.ivshmem import spec as module
from doorbelld.ivshmem.memory import Backing
from doorbelld.ivshmem.rules import Match, PeerRule
from doorbelld.ivshmem.spec import RegionSpec, in_units
from doorbelld.options import parse, size
from hypothesis import given
from hypothesis import strategies as st


def make(name: str = "demo", **raw: Any) -> RegionSpec:
    return parse(RegionSpec, {key.replace("_", "-"): value for key, value in raw.items()}, f"region.{name}", name=name)


def test_defaults() -> None:
    spec = make()
    assert (spec.size, spec.vectors, spec.mode, spec.stall_timeout) == (4 << 20, 4, 0o660, 30.0)
    assert (spec.backing, spec.first_id, spec.host_peer, spec.host_peer_id) == (Backing("memfd"), 0, True, 65535)


def test_as_options_is_the_form_it_is_asked_for_in() -> None:
    spec = make(size="64M", vectors=8, socket="/run/x", mode="0600", backing="shm:x", stall_timeout="90s", first_id=1)
    again = {key: value for key, value in spec.as_options().items() if value != ""}
    assert parse(RegionSpec, again, "region.demo", name="demo") == spec


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ({"size": "3M"}, "region.demo.size: 3M is not a power of two (QEMU needs one); use 4M"),
        ({"size": 4097}, "region.demo.size: 4097 is not a power of two (QEMU needs one); use 8K"),
        ({"size": 2048}, "region.demo.size: 2048 bytes is less than a page; use 4K or more"),
        ({"size": "4K", "backing": "hugetlb"}, "4K is no whole number of huge pages; use a multiple of 2M"),
        ({"vectors": 65}, "65 is more than the 64 that every client takes; use at most 64, or set many-vectors"),
        ({"vectors": 2049, "many_vectors": True}, "2049 is out of range; write a number from 1 to 2048"),
        ({"socket": "/" + "x" * 107}, "is longer than a UNIX socket's path may be; use 107 bytes or less"),
        ({"socket": "/" + "é" * 54}, "is longer than a UNIX socket's path may be"),
        ({"socket": "x"}, "region.demo.socket: 'x' is not an absolute path; begin it with /"),
        ({"first_id": 9, "host_peer_id": 9}, "9 is the ID that the first client gets; use another, or first-id"),
        ({"host_peer_id": 5, "peer": [{"match": {}, "id": 5}]}, "host-peer-id: 5 is given to a peer rule too"),
        ({"owner": "no-such-user"}, "region.demo.owner: no owner 'no-such-user' on this host; write a name"),
        ({"group": "no-such-group"}, "region.demo.group: no group 'no-such-group' on this host; write a name"),
        ({"relay": True}, "region.demo.relay: relay mode is not there yet; leave it out or write false"),
        ({"vektors": 3}, 'region.demo.vektors: unknown key; did you mean "vectors"?'),
        ({"peer": [{"match": {"vm": ""}}]}, "region.demo.peer[0].match.vm: '' is not a name"),
    ],
)
def test_problems(monkeypatch: pytest.MonkeyPatch, raw: dict[str, Any], problem: str) -> None:
    monkeypatch.setattr(module, "huge_page_size", lambda: 2 << 20)
    with pytest.raises(InvalidOptions) as caught:
        make(**raw)
    assert len(caught.value.problems) == 1
    assert problem in str(caught.value)


def test_all_problems_at_once() -> None:
    with pytest.raises(InvalidOptions) as caught:
        make(size="3M", vectors=65, relay=True)
    assert [problem.key for problem in caught.value.problems] == [
        "region.demo.size",
        "region.demo.vectors",
        "region.demo.relay",
    ]


def test_no_huge_pages_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "huge_page_size", lambda: 0)
    with pytest.raises(InvalidOptions, match="this host has none; use backing memfd"):
        make(size="2M", backing="hugetlb")


@pytest.mark.parametrize("name", ["", "-x", ".x", "a b", "a/b", "x" * 65, "é", "a\n"])
def test_names_that_can_not_be(name: str) -> None:
    with pytest.raises(InvalidOptions, match="can't be a region's name; use letters"):
        make(name)


@pytest.mark.parametrize("name", ["a", "0", "A-b_c.d", "x" * 64])
def test_names_that_can_be(name: str) -> None:
    assert make(name).name == name


def test_a_rule_may_have_an_id() -> None:
    spec = make(peer=[{"match": {"vm": "a"}, "id": 5}], host_peer_id=6)
    assert spec.peer == (PeerRule(Match(vm="a"), id=5),)
    assert make(many_vectors=True, vectors=2048).vectors == 2048


@given(st.integers(1, 10**18 - 1))
def test_units_read_back(count: int) -> None:
    assert size(in_units(count)) == count


def test_units() -> None:
    assert [in_units(count) for count in (1 << 22, 3 << 20, 5000, 1 << 10, 1 << 40, 1 << 30)] == [
        "4M", "3M", "5000", "1K", "1T", "1G",
    ]  # fmt: skip
