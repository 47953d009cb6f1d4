# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys of a device: those of all types, those of its own, and what is wrong with either."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from doorbelld.devices import find
from doorbelld.errors import InvalidOptions
from doorbelld.options import frozen_differences, integer, option
from doorbelld.vhost.device import Device
from doorbelld.vhost.features import offered_protocol_features
from doorbelld.vhost.spec import DeviceSpec
from doorbelld.wire.vhost_messages import ProtocolFeature


@dataclass(frozen=True, slots=True)
class Options:
    depth: int = option(integer(1, 9), default=3)


class Deep(Device):
    name = "deep"
    id = 41
    Options = Options
    queues_max = 4


def parse(**raw: Any) -> DeviceSpec:
    keys = {key.replace("_", "-"): value for key, value in raw.items()}
    return DeviceSpec.parse("d", keys, "device.d", lambda name: Deep if name == "deep" else find(name))


def problems(**raw: Any) -> dict[str, str]:
    with pytest.raises(InvalidOptions) as caught:
        parse(**raw)
    assert all(problem.cure for problem in caught.value.problems)
    return {problem.key: problem.cause for problem in caught.value.problems}


def test_defaults() -> None:
    spec = parse(type="deep")
    assert (spec.kind, spec.own.depth, spec.queues, spec.queue_size, spec.poll_us) == (Deep, 3, None, None, 0)
    device = spec.make()
    assert isinstance(device, Deep) and (device.queues, device.queue_size, device.options.depth) == (1, 32768, 3)


def test_what_is_given_reaches_the_device() -> None:
    device = parse(type="deep", queues=3, queue_size=128, depth=7).make()
    assert (device.queues, device.queue_size, device.options.depth) == (3, 128, 7)


def test_all_problems_are_told_at_once() -> None:
    found = problems(type="deep", queues=5, queue_size=96, depth=10, socket="here", mode=7, nonsense=1)
    assert set(found) == {f"device.d.{key}" for key in ("depth", "socket", "mode", "nonsense", "queues", "queue-size")}


@pytest.mark.parametrize(
    ("raw", "key", "cause"),
    [
        ({}, "type", "missing"),
        ({"type": 4}, "type", "is not a name"),
        ({"type": "toaster"}, "type", "no device type 'toaster'"),
        ({"type": "deep", "connect": True}, "socket", "connect is true"),
        ({"type": "deep", "socket": "/" + "x" * 110}, "socket", "longer"),
        ({"type": "deep", "owner": "nobody-of-that-name"}, "owner", "no owner"),
        ({"type": "deep", "group": "nobody-of-that-name"}, "group", "no group"),
        ({"type": "deep", "poll-us": 2_000_000}, "poll-us", "out of range"),
        ({"type": "rng", "rate": "2T"}, "rate", "out of range"),
        ({"type": "rng", "queues": 2}, "queues", "more than a rng device can have"),
    ],
)
def test_problems(raw: dict[str, Any], key: str, cause: str) -> None:
    found = problems(**raw)
    assert list(found) == [f"device.d.{key}"] and cause in found[f"device.d.{key}"]


def test_names() -> None:
    with pytest.raises(InvalidOptions, match="can't be a device's name"):
        DeviceSpec.parse("a/b", {"type": "deep"}, "device.a/b", lambda _: Deep)


def test_options_can_be_read_again() -> None:
    spec = parse(type="deep", socket="/run/x", queues=2, mode="0600", owner="root")
    options = {key: value for key, value in spec.as_options().items() if value != ""}
    assert DeviceSpec.parse("d", options, "device.d", lambda _: Deep) == spec


def test_what_can_not_change_live() -> None:
    old, new = parse(type="deep", socket="/a", poll_us=1), parse(type="deep", socket="/b", queues=2, poll_us=2)
    found = {problem.key for problem in frozen_differences(old, new, "device.d", "restart")}
    assert found == {"device.d.socket", "device.d.queues"}


def test_inband_notifications_are_offered_where_the_configuration_asks_for_them() -> None:
    for asked in (False, True):
        spec = DeviceSpec.parse("a", {"type": "loopback", "inband": asked}, "device.a", find)
        device = spec.make()
        assert spec.as_options()["inband"] is asked
        assert bool(offered_protocol_features(device) & ProtocolFeature.INBAND_NOTIFICATIONS) is asked
        device.close()
