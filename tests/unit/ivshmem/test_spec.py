# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json
from dataclasses import replace
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


SPECS = st.builds(
    RegionSpec,
    name=st.just("demo"),
    size=st.integers(12, 40).map(lambda bits: 1 << bits),
    vectors=st.integers(1, module.VECTORS_MAX),
    many_vectors=st.booleans(),
    socket=st.sampled_from(["", "/run/x", "/run/\u00e9 \\"]),
    owner=st.sampled_from(["", "root", "0", "4294967294"]),
    group=st.sampled_from(["", "root", "0"]),
    mode=st.integers(0, 0o7777),
    backing=st.sampled_from([Backing("memfd"), Backing("shm", "x y"), Backing("file", "/tmp/\u00e9:x")]),
    first_id=st.integers(0, 100),
    host_peer=st.booleans(),
    host_peer_id=st.integers(101, 65535),
    max_peers=st.integers(1, 65536),
    stall_timeout=st.floats(0, 1e9, exclude_max=True),
    peer=st.lists(
        st.builds(
            PeerRule,
            match=st.builds(
                Match,
                vm=st.none() | st.sampled_from(["web*", "\u00e9", "7"]),
                uid=st.none() | st.integers(0, (1 << 32) - 2),
                gid=st.none() | st.integers(0, (1 << 32) - 2),
                unit=st.none() | st.just("qemu@*.service"),
                pid_file=st.none() | st.just("/run/pid"),
            ),
            id=st.none(),
            may_ring=st.lists(st.sampled_from(["*", "host", "7", "web*", ""]), max_size=3).map(tuple),
        ),
        max_size=3,
    ).map(lambda rules: tuple(replace(rule, id=[None, index][index % 2]) for index, rule in enumerate(rules))),
)


@given(SPECS)
def test_raw_read_back_is_the_same_also_through_json(spec: RegionSpec) -> None:
    raw = spec.raw()
    assert RegionSpec.from_raw("demo", raw) == RegionSpec.from_raw("demo", json.loads(json.dumps(raw))) == spec


def test_raw_that_does_not_hold_here_and_now_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = RegionSpec("demo", owner="root", size=2 << 20, backing=Backing("hugetlb")).raw()
    monkeypatch.setattr(module, "huge_page_size", lambda: 2 << 20)
    assert RegionSpec.from_raw("demo", raw).owner == "root"
    monkeypatch.setattr(module, "huge_page_size", lambda: 0)
    raw["owner"] = "somebody-who-was-deleted"
    with pytest.raises(InvalidOptions) as caught:
        RegionSpec.from_raw("demo", raw)
    assert [problem.key for problem in caught.value.problems] == ["region.demo.size", "region.demo.owner"]


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
        (
            {"relay-rate": 5},
            "region.demo.relay-rate: limits nothing: without a relay rings do not pass us; set relay = true, or leave "
            "it out",
        ),
        (
            {"relay-poll-us": 5},
            "region.demo.relay-poll-us: waits for nothing: without a relay rings do not pass us; set relay = true, or "
            "leave it out",
        ),
        (
            {"peer": [{"match": {}, "rate": 5}]},
            "region.demo.peer.rate: limits nothing: without a relay rings do not pass us; set relay = true, or leave "
            "it out",
        ),
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
        make(size="3M", vectors=65, **{"relay-rate": 3})
    assert [problem.key for problem in caught.value.problems] == [
        "region.demo.size",
        "region.demo.vectors",
        "region.demo.relay-rate",
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
