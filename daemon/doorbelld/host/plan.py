# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""From what there is to what the configuration wants: the difference, and nothing else, for all kinds of things.

What was made over D-Bus is not the configuration's business, unless it comes to name it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

from ..errors import Problem, in_words
from ..ivshmem.clientspec import ClientSpec, FlatSpec
from ..ivshmem.spec import RegionSpec
from ..options import frozen_differences
from ..vhost.spec import DeviceSpec
from .host import Host

Spec = TypeVar("Spec", RegionSpec, DeviceSpec, ClientSpec, FlatSpec)
Joining = TypeVar("Joining", ClientSpec, FlatSpec)
Table = TypeVar("Table", bound=Any)
"""A dataclass of options."""


@dataclass(slots=True)
class Changes(Generic[Spec]):
    """What is to be done with things of one kind, in this order."""

    gone: list[str] = field(default_factory=list)
    changed: list[Spec] = field(default_factory=list)
    new: list[Spec] = field(default_factory=list)


@dataclass(slots=True)
class Plan:
    """What is to be done; *problems* are what can't be done live, and is left as it was."""

    regions: Changes[RegionSpec] = field(default_factory=Changes)
    devices: Changes[DeviceSpec] = field(default_factory=Changes)
    problems: list[Problem] = field(default_factory=list)
    clients: Changes[ClientSpec] = field(default_factory=Changes)
    flats: Changes[FlatSpec] = field(default_factory=Changes)


class _Thing(Protocol[Spec]):
    """A region, a device, a client or a flat device, as far as a plan looks at it."""

    spec: Spec
    configured: bool


def make_plan(
    host: Host,
    regions: Mapping[str, RegionSpec],
    devices: Mapping[str, DeviceSpec],
    clients: Mapping[str, ClientSpec] = MappingProxyType({}),
    flats: Mapping[str, FlatSpec] = MappingProxyType({}),
) -> Plan:
    """Compare what *host* has with what is wanted; changes nothing."""
    problems: list[Problem] = []
    return Plan(
        _compare(host.regions, map(host.with_defaults, regions.values()), _approach_region, problems),
        _compare(host.devices, map(host.with_defaults, devices.values()), _approach_device, problems),
        problems,
        _compare(host.clients, clients.values(), _approach_joining, problems),
        _compare(host.flats, flats.values(), _approach_joining, problems),
    )


def _compare(
    there: Mapping[str, _Thing[Spec]],
    wanted: Iterable[Spec],
    approach: Callable[[Spec, Spec, list[Problem]], Spec],
    problems: list[Problem],
) -> Changes[Spec]:
    """Compare things of one kind; *approach* gives what of a new spec is possible, and adds what is not."""
    specs = {spec.name: spec for spec in wanted}
    changes: Changes[Spec] = Changes([name for name, thing in there.items() if thing.configured and name not in specs])
    for name, spec in specs.items():
        if (thing := there.get(name)) is None:
            changes.new.append(spec)
            continue
        possible = approach(thing.spec, spec, problems)
        if possible != thing.spec or not thing.configured:
            changes.changed.append(possible)
    return changes


def _approach_region(old: RegionSpec, new: RegionSpec, problems: list[Problem]) -> RegionSpec:
    cure = f"doorbellctl remove {new.name}, then reload; its guests have to connect anew"
    problems += frozen_differences(old, new, f"region.{new.name}", cure)
    return _with_frozen_of(old, new)


def _approach_device(old: DeviceSpec, new: DeviceSpec, problems: list[Problem]) -> DeviceSpec:
    prefix = f"device.{new.name}"
    cure = f"doorbellctl remove-device {new.name}, then reload; its guest has to connect anew"
    problems += frozen_differences(old, new, prefix, cure)
    own = old.own
    if old.kind is new.kind:
        try:
            problems += frozen_differences(old.own, new.own, prefix, cure)
            own = _with_frozen_of(old.own, new.own)
            if own == old.own:
                own = old.own
        except BaseException as error:  # the values are another package's, and are compared by its code
            cause = f"the options of its type can't be compared: {in_words(error)}"
            problems.append(Problem(prefix, cause, "repair the package of that type"))
            return old
    return dataclasses.replace(_with_frozen_of(old, new), kind=old.kind, own=own)


def _approach_joining(old: Joining, new: Joining, problems: list[Problem]) -> Joining:
    cure = f"doorbellctl remove-{new.KIND} {new.name}, then reload; it joins anew, with another ID"
    problems += frozen_differences(old, new, f"{new.KIND}.{new.name}", cure)
    return _with_frozen_of(old, new)


def _with_frozen_of(old: Table, new: Table) -> Table:
    """Give *new*, but for what of *old* can't change."""
    frozen = {f.name: getattr(old, f.name) for f in dataclasses.fields(old) if f.metadata.get("frozen")}
    return dataclasses.replace(new, **frozen)
