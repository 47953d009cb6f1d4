# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""From the regions that there are to those that the configuration wants: the difference, and nothing else.

Regions that were made over D-Bus are not the configuration's business, unless it comes to name one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import Problem
from ..ivshmem.spec import RegionSpec
from ..options import frozen_differences
from .host import Host


@dataclass(slots=True)
class Plan:
    """What is to be done, in this order; *problems* are what can't be done live, and is left as it was."""

    gone: list[str] = field(default_factory=list)
    changed: list[RegionSpec] = field(default_factory=list)
    new: list[RegionSpec] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def make_plan(host: Host, wanted: Mapping[str, RegionSpec]) -> Plan:
    """Compare what *host* has with what is *wanted*; changes nothing."""
    plan = Plan()
    plan.gone = [name for name, region in host.regions.items() if region.configured and name not in wanted]
    for name, asked in wanted.items():
        spec = host.with_defaults(asked)
        if (region := host.regions.get(name)) is None:
            plan.new.append(spec)
            continue
        cure = f"doorbellctl remove {name}, then reload; its guests have to connect anew"
        plan.problems += frozen_differences(region.spec, spec, f"region.{name}", cure)
        possible = _with_frozen_of(region.spec, spec)
        if possible != region.spec or not region.configured:
            plan.changed.append(possible)
    return plan


def _with_frozen_of(old: RegionSpec, new: RegionSpec) -> RegionSpec:
    frozen = {f.name: getattr(old, f.name) for f in dataclasses.fields(old) if f.metadata.get("frozen")}
    return dataclasses.replace(new, **frozen)
