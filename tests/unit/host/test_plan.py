# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The plan: the difference between what there is and what is wanted, and what of it can't be made live."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest
from doorbelld.host.host import Host, Spec
from doorbelld.host.plan import Changes, Plan, make_plan
from doorbelld.ivshmem.clientspec import ClientSpec, FlatSpec
from doorbelld.ivshmem.memory import Backing
from doorbelld.ivshmem.rules import Match, PeerRule
from doorbelld.ivshmem.spec import RegionSpec
from doorbelld.options import integer, option
from doorbelld.vhost.device import Device
from doorbelld.vhost.spec import DeviceSpec
from hypothesis import given
from hypothesis import strategies as st

NAMES = ("a", "b", "c")
FROZEN = {
    "size": 8 << 20,
    "vectors": 8,
    "socket": "/run/elsewhere",
    "backing": Backing("shm", "x"),
    "first_id": 5,
    "host_peer": False,
    "host_peer_id": 99,
}
LIVE = {
    "many_vectors": True,
    "owner": "root",
    "group": "root",
    "mode": 0o600,
    "max_peers": 7,
    "stall_timeout": 1.0,
    "peer": (PeerRule(Match(vm="x")),),
}


class FakeHost:
    """As much of a host as a plan looks at; it must not change it."""

    def __init__(self, there: dict[str, tuple[RegionSpec, bool]]) -> None:
        self.regions = {
            name: SimpleNamespace(spec=self.with_defaults(spec), configured=configured)
            for name, (spec, configured) in there.items()
        }
        self.devices: dict[str, Any] = {}
        self.clients: dict[str, Any] = {}
        self.flats: dict[str, Any] = {}

    def with_defaults(self, spec: Spec) -> Spec:
        return spec if spec.socket else dataclasses.replace(spec, socket=f"/run/d/{spec.name}/socket")


def plan_of(there: dict[str, tuple[RegionSpec, bool]], wanted: dict[str, RegionSpec]) -> Any:
    return make_plan(cast(Host, FakeHost(there)), wanted, {})


def specs(name: str) -> st.SearchStrategy[RegionSpec]:
    changes = st.fixed_dictionaries({}, optional={key: st.just(value) for key, value in {**FROZEN, **LIVE}.items()})
    return changes.map(lambda found: RegionSpec(name, **found))


def some(of: Any) -> Any:
    return st.fixed_dictionaries({}, optional={name: of(name) for name in NAMES})


@given(there=some(lambda name: st.tuples(specs(name), st.booleans())), wanted=some(specs))
def test_against_a_model(there: dict[str, tuple[RegionSpec, bool]], wanted: dict[str, RegionSpec]) -> None:
    """Carried out, it leads to what is wanted but for what is frozen, and touches nothing that was as wanted."""
    plan, filled = plan_of(there, wanted), FakeHost({}).with_defaults
    assert sorted(plan.regions.gone) == sorted(name for name, (_, ours) in there.items() if ours and name not in wanted)
    assert plan.regions.new == [filled(spec) for name, spec in wanted.items() if name not in there]
    keys = []
    for name in wanted.keys() & there.keys():
        (old, configured), new = (filled(there[name][0]), there[name][1]), filled(wanted[name])
        differs = {f.name for f in dataclasses.fields(old) if getattr(old, f.name) != getattr(new, f.name)}
        keys += [f"region.{name}.{key.replace('_', '-')}" for key in differs & FROZEN.keys()]
        changed = [spec for spec in plan.regions.changed if spec.name == name]
        if not configured or differs & LIVE.keys():
            (spec,) = changed
            for field in dataclasses.fields(spec):
                source = old if field.name in FROZEN else new
                assert getattr(spec, field.name) == getattr(source, field.name)
        else:
            assert changed == []
    assert sorted(problem.key for problem in plan.problems) == sorted(keys)
    assert {spec.name for spec in plan.regions.changed} <= wanted.keys() & there.keys()


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("size", "guests have the memory mapped"),
        ("backing", "guests have the memory mapped"),
        ("vectors", "peers were told of so many doorbells"),
        ("socket", "its guests come back to the old path"),
        ("first_id", "IDs were given out from the old one"),
        ("host_peer", "peers were told of the host peer"),
        ("host_peer_id", "peers were told of the host peer"),
    ],
)
def test_what_is_frozen_is_named_with_reason_and_cure(key: str, reason: str) -> None:
    wanted = dataclasses.replace(RegionSpec("a"), **{key: FROZEN[key]})
    plan = plan_of({"a": (RegionSpec("a"), True)}, {"a": wanted})
    assert [str(problem) for problem in plan.problems] == [
        f"region.a.{key.replace('_', '-')}: can't change live: {reason}; "
        "doorbellctl remove a, then reload; its guests have to connect anew"
    ]
    assert (plan.regions.gone, plan.regions.changed, plan.regions.new) == ([], [], [])


def test_what_is_as_it_was_is_left_alone() -> None:
    spec = RegionSpec("a", **LIVE)  # type: ignore[arg-type]
    plan = plan_of({"a": (spec, True)}, {"a": dataclasses.replace(spec)})
    assert (plan.regions.gone, plan.regions.changed, plan.regions.new, plan.problems) == ([], [], [], [])


def test_a_region_that_a_call_made_becomes_the_configurations_once_that_names_it() -> None:
    there = {"a": (RegionSpec("a"), False), "b": (RegionSpec("b"), False)}
    plan = plan_of(there, {"a": RegionSpec("a")})
    assert [spec.name for spec in plan.regions.changed] == ["a"]
    assert (plan.regions.gone, plan.regions.new, plan.problems) == ([], [], [])


# Devices


@dataclasses.dataclass(frozen=True)
class Own:
    """What a type adds."""

    speed: int = option(integer(1, 9), default=1)
    depth: int = option(integer(1, 9), default=1, frozen="the driver was told")


class Deep(Device):
    name, id, Options = "deep", 40, Own


class Other(Device):
    name, id = "other", 41


def device(name: str = "a", kind: type[Device] = Deep, **options: Any) -> DeviceSpec:
    return DeviceSpec.parse(name, {"type": kind.name, **options}, f"device.{name}", lambda _: kind)


def device_plan(there: dict[str, tuple[DeviceSpec, bool]], *wanted: DeviceSpec) -> Plan:
    host = FakeHost({})
    host.devices = {
        name: SimpleNamespace(spec=host.with_defaults(spec), configured=ours) for name, (spec, ours) in there.items()
    }
    return make_plan(cast(Host, host), {}, {spec.name: spec for spec in wanted})


def test_devices_come_and_go_like_regions() -> None:
    there = {"a": (device("a"), True), "b": (device("b"), True), "c": (device("c"), False)}
    plan = device_plan(there, device("b"), device("d"))
    assert plan.devices == Changes(["a"], [], [FakeHost({}).with_defaults(device("d"))])
    assert (plan.regions, plan.problems) == (Changes(), [])


def test_what_of_a_device_can_change_does() -> None:
    plan = device_plan({"a": (device(), True)}, device(mode="0600", speed=3, **{"poll-us": 9}))
    (spec,) = plan.devices.changed
    assert (spec.mode, spec.own.speed, spec.poll_us, plan.problems) == (0o600, 3, 9, [])


class Incomparable:
    """A value of an option, of a package with a mistake."""

    def __init__(self, raw: object) -> None:
        self.raw = raw

    def __eq__(self, other: object) -> bool:
        raise SystemExit(f"{self.raw} is {other}?")

    __hash__ = None  # type: ignore[assignment]


@dataclasses.dataclass(frozen=True)
class Mistaken:
    key: Any = option(Incomparable, default=None)


class Faulty(Device):
    name, id, Options = "faulty", 42, Mistaken


def test_a_device_whose_options_can_not_be_compared_stays_and_is_named() -> None:
    there = {"a": (device(kind=Faulty, key=1), True), "b": (device("b"), True)}
    plan = device_plan(there, device(kind=Faulty, key=2), device("b", speed=3))
    (problem,) = plan.problems
    assert problem.key == "device.a" and "can't be compared: SystemExit: 2 is" in problem.cause
    assert [spec.name for spec in plan.devices.changed] == ["b"]


def test_what_of_a_device_is_frozen_is_named_also_what_its_type_has_frozen() -> None:
    plan = device_plan({"a": (device(), True)}, device(socket="/run/elsewhere", depth=2, speed=2))
    assert [str(problem) for problem in plan.problems] == [
        f"device.a.{key}: can't change live: {why}; "
        "doorbellctl remove-device a, then reload; its guest has to connect anew"
        for key, why in (("socket", "front-ends come back to the old path"), ("depth", "the driver was told"))
    ]
    (spec,) = plan.devices.changed  # what is possible of it
    assert (spec.socket, spec.own.depth, spec.own.speed) == ("/run/d/a/socket", 1, 2)


def test_a_device_of_another_type_is_another_device() -> None:
    plan = device_plan({"a": (device(), True)}, device(kind=Other))
    assert [problem.key for problem in plan.problems] == ["device.a.type"]
    assert plan.devices.changed == []


def test_a_device_that_a_call_made_becomes_the_configurations_once_that_names_it() -> None:
    plan = device_plan({"a": (device(), False)}, device())
    assert [spec.name for spec in plan.devices.changed] == ["a"]


# Clients and flat devices


def joined_plan(there: dict[str, tuple[ClientSpec, bool]], wanted: dict[str, ClientSpec], kind: str) -> Any:
    host = FakeHost({})
    things = {name: SimpleNamespace(spec=spec, configured=ours) for name, (spec, ours) in there.items()}
    setattr(host, kind, things)
    plan: Any = make_plan(cast(Host, host), {}, {}, **{kind: wanted})  # type: ignore[arg-type]
    return getattr(plan, kind), plan.problems


@pytest.mark.parametrize(("table", "kind"), [(ClientSpec, "clients"), (FlatSpec, "flats")])
def test_clients_and_flat_devices_come_and_go_like_regions(table: type[ClientSpec], kind: str) -> None:
    old, other = table("a", "/s"), table("b", "/s")
    found, problems = joined_plan({"a": (old, True), "mine": (table("mine", "/s"), False)}, {"b": other}, kind)
    assert (found, problems) == (Changes(gone=["a"], new=[other]), [])
    changed = dataclasses.replace(old, reconnect=False, vectors_max=8)
    found, problems = joined_plan({"a": (old, True)}, {"a": changed}, kind)
    assert (found, problems) == (Changes(changed=[changed]), [])
    found, problems = joined_plan({"a": (old, True)}, {"a": old}, kind)
    assert (found, problems) == (Changes(), [])
    found, _ = joined_plan({"a": (old, False)}, {"a": old}, kind)
    assert found == Changes(changed=[old])


def test_what_of_a_client_or_a_flat_device_is_frozen_is_named() -> None:
    client = ClientSpec("a", "/old")
    found, problems = joined_plan({"a": (client, True)}, {"a": ClientSpec("a", "/new", reconnect=False)}, "clients")
    assert found.changed == [ClientSpec("a", "/old", reconnect=False)]
    assert [(p.key, p.cure) for p in problems] == [
        ("client.a.socket", "doorbellctl remove-client a, then reload; it joins anew, with another ID")
    ]
    flat = FlatSpec("a", "/s")
    found, problems = joined_plan({"a": (flat, True)}, {"a": FlatSpec("a", "/s", memory_size=4096)}, "flats")
    assert (found.changed, [p.key for p in problems]) == ([], ["flat.a.memory-size"])
    assert problems[0].cure.startswith("doorbellctl remove-flat a, then reload")
