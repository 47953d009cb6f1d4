# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The chronicle: a line for what happens, and not a line too many."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from doorbelld.errors import ServerUnavailable
from doorbelld.fds.peercred import Credentials
from doorbelld.host.events import (
    ClientAdded,
    ClientChanged,
    ClientPeerAdded,
    ClientPeerRemoved,
    ClientRemoved,
    ClientRung,
    ClientStateChanged,
    ClientUnkept,
    ConfigChanged,
    DeviceAdded,
    DeviceChanged,
    DeviceRemoved,
    FaultChanged,
    FrontendAttached,
    FrontendDetached,
    FrontendRefused,
    FrontendSilent,
    HostEvent,
    Negotiated,
    PeerAdded,
    PeerRefused,
    PeerRemoved,
    QueueChanged,
    RegionAdded,
    RegionChanged,
    RegionRemoved,
    RequestRefused,
    Rung,
    StateChanged,
    Unkept,
)
from doorbelld.ivshmem.clientspec import ClientSpec, FlatSpec
from doorbelld.ivshmem.hostclient import HostClient, HostFlat
from doorbelld.ivshmem.link import ClientState
from doorbelld.ivshmem.revival import LOST
from doorbelld.log import KEPT_BACK
from doorbelld.service.chronicle import Chronicle
from doorbelld.vhost.events import State

SPEC = SimpleNamespace(socket="/run/s", size=4096)


def region(name: str = "demo") -> Any:
    return SimpleNamespace(name=name, spec=SPEC)


def peer(number: int = 3, who: Credentials = Credentials(12, 1000, 100, "guest1", "a.scope", "qemu")) -> Any:  # noqa: B008
    return SimpleNamespace(id=number, who=who)


def told(*events: Any) -> list[dict[str, Any]]:
    chronicle = Chronicle()
    with structlog.testing.capture_logs() as lines:
        for event in events:
            chronicle.hear(event)
    return lines


def test_lines() -> None:
    there = region()
    assert told(
        RegionAdded(there),
        PeerAdded(there, peer()),
        PeerRemoved(there, peer(), "it closed its connection"),
        PeerRefused(there, "no rule admits it"),
        RegionRemoved(there),
    ) == [
        {"event": "region serves", "log_level": "info", "region": "demo", "socket": "/run/s", "size": 4096},
        {
            "event": "peer joined",
            "log_level": "info",
            "region": "demo",
            "peer": 3,
            "vm": "guest1",
            "pid": 12,
            "uid": 1000,
            "unit": "a.scope",
        },
        {
            "event": "peer left",
            "log_level": "info",
            "region": "demo",
            "peer": 3,
            "reason": "it closed its connection",
        },
        {"event": "connection refused", "log_level": "warning", "region": "demo", "reason": "no rule admits it"},
        {"event": "region removed", "log_level": "info", "region": "demo"},
    ]


def test_lines_around_a_restart() -> None:
    there = region()
    there.peers = {3: peer(), 4: peer(4)}
    assert told(
        PeerRemoved(there, peer(7), LOST),
        RegionAdded(there, revived=True),
        RegionChanged(there),
        Unkept(there, "the store is full"),
    ) == [
        {
            "event": "connection ended while the daemon was away",
            "log_level": "info",
            "region": "demo",
            "peer": 7,
        },
        {"event": "region restored", "log_level": "info", "region": "demo", "peers": 2},
        {"event": "region changed", "log_level": "info", "region": "demo"},
        {
            "event": "not everything of a region can be kept over a restart",
            "log_level": "warning",
            "region": "demo",
            "reason": "the store is full",
        },
    ]


def test_what_is_not_known_is_left_out_but_zero_is_known() -> None:
    (line,) = told(PeerAdded(region(), peer(0, Credentials(12, 0, 0))))
    assert line == {"event": "peer joined", "log_level": "info", "region": "demo", "peer": 0, "pid": 12, "uid": 0}


def test_rings_are_not_lines() -> None:
    assert told(*(Rung(region(), 0, 1) for _ in range(100))) == []


def test_a_full_store_is_no_storm_of_lines() -> None:
    assert 0 < len(told(*(Unkept(region(), "the store is full") for _ in range(10_000)))) <= 100


def test_a_storm_in_one_region_leaves_room_for_another() -> None:
    storm = [PeerRefused(region("loud"), "no") for _ in range(10_000)]
    lines = told(*storm, PeerRefused(region("quiet"), "no"), PeerAdded(region("loud"), peer()))
    assert 0 < sum(line["region"] == "loud" and line["event"] == "connection refused" for line in lines) <= 100
    assert [line["event"] for line in lines if line["region"] == "quiet"] == ["connection refused"]
    assert lines[-1]["event"] == "peer joined"


def test_the_end_of_a_storm_is_told_without_another_line() -> None:
    timers: list[tuple[float, Callable[[], None]]] = []
    chronicle = Chronicle(lambda delay, call: timers.append((delay, call)))
    with structlog.testing.capture_logs() as lines:
        for _ in range(1000):
            chronicle.hear(PeerRefused(region("loud"), "no"))
        through = len(lines)
        ((delay, call),) = timers
        assert delay > 0
        call()
    (line,) = lines[through:]
    assert (line["event"], line["log_level"], line["lines"]) == (KEPT_BACK, "warning", 1000 - through)
    assert line["region"] == "loud"


def test_regions_themselves_are_never_kept_back() -> None:
    assert len(told(*(RegionAdded(region(str(number))) for number in range(500)))) == 500


# Devices


def device(name: str = "disk") -> Any:
    return SimpleNamespace(name=name, spec=SimpleNamespace(type="blk", socket="/run/d"))


WHO = Credentials(12, 1000, 100, "guest1", "a.scope", "qemu")


def test_lines_of_a_device() -> None:
    there = device()
    lines = told(
        DeviceAdded(there),
        FrontendAttached(there, WHO),
        StateChanged(there, State.LISTENING, State.CONNECTED, ""),
        Negotiated(there),
        QueueChanged(there, 1),
        FrontendSilent(there, WHO, "is it lost?"),
        FaultChanged(there),
        RequestRefused(there, "SET_CONFIG", "it may not"),
        ConfigChanged(there),
        FrontendDetached(there, WHO, "it closed its connection", False),
        FrontendDetached(there, WHO, "queue 0: a loop", True),
        FrontendRefused(there, "no rule admits it"),
        DeviceChanged(there),
        DeviceRemoved(there),
    )
    assert all(line.pop("device") == "disk" for line in lines)
    assert lines == [
        {"event": "device serves", "log_level": "info", "type": "blk", "socket": "/run/d"},
        {
            "event": "front-end attached",
            "log_level": "info",
            "vm": "guest1",
            "pid": 12,
            "uid": 1000,
            "unit": "a.scope",
        },
        {"event": "device state", "log_level": "debug", "old": "listening", "new": "connected"},
        {"event": "device negotiated", "log_level": "debug"},
        {"event": "device queue", "log_level": "debug", "queue": 1},
        {"event": "front-end says nothing", "log_level": "warning", "pid": 12, "reason": "is it lost?"},
        {
            "event": "request of a front-end refused",
            "log_level": "warning",
            "request": "SET_CONFIG",
            "reason": "it may not",
        },
        {"event": "device tells its front-end of a change", "log_level": "info"},
        {"event": "front-end detached", "log_level": "info", "pid": 12, "reason": "it closed its connection"},
        {"event": "front-end broke the device", "log_level": "warning", "pid": 12, "reason": "queue 0: a loop"},
        {"event": "front-end refused", "log_level": "warning", "reason": "no rule admits it"},
        {"event": "device changed", "log_level": "info"},
        {"event": "device removed", "log_level": "info"},
    ]


def test_a_front_end_can_not_fill_the_log() -> None:
    there = device()
    storms = [
        FrontendAttached(there, WHO),
        FrontendDetached(there, WHO, "gone", False),
        FrontendDetached(there, WHO, "broken", True),
        FrontendRefused(there, "no"),
        FrontendSilent(there, WHO, "no"),
        RequestRefused(there, "SET_CONFIG", "no"),
        ConfigChanged(there),
    ]
    lines = told(*(event for event in storms for _ in range(5_000)), FrontendAttached(device("quiet"), WHO))
    assert len(storms) <= len(lines) <= 100 * len(storms)
    assert lines[-1]["device"] == "quiet"


# Clients and flat devices


def joined(make: type[HostClient] = HostClient) -> Any:
    spec: Any = FlatSpec("mcu", "/s") if make is HostFlat else ClientSpec("lab", "/s")
    loop: Any = SimpleNamespace()
    return make(spec, loop, lambda _: None)


@pytest.mark.parametrize(
    ("make", "key", "word", "added"),
    [(HostClient, "client", "client", "client is there"), (HostFlat, "flat", "flat device", "flat device serves")],
)
def test_a_life_in_the_region_of_another_server(make: type[HostClient], key: str, word: str, added: str) -> None:
    one = joined(make)
    connecting, connected, closed = ClientState.CONNECTING, ClientState.CONNECTED, ClientState.CLOSED
    one.link.failure = ServerUnavailable("no server")
    one.link.reason = "no server"
    about = {key: one.name}
    assert told(
        ClientAdded(one),
        ClientStateChanged(one, connecting, connecting),
        ClientStateChanged(one, connecting, connected),
        ClientRung(one, 0, 1),
        ClientStateChanged(one, connected, connecting),
        ClientChanged(one),
        ClientUnkept(one, "no room"),
        ClientStateChanged(one, connected, closed),
        ClientRemoved(one),
        ClientAdded(one, revived=True),
    ) == [
        {"event": added, "log_level": "info", **about, "server": "/s"},
        {"event": f"{word} can't join its region", "log_level": "warning", **about, "reason": "no server"},
        {"event": f"{word} joined a region", "log_level": "info", **about, "id": None},
        {"event": f"{word} lost its region", "log_level": "warning", **about, "reason": "no server"},
        {"event": f"{word} changed", "log_level": "info", **about},
        {
            **{"event": f"not everything of a {word} can be kept over a restart", "log_level": "warning"},
            **{**about, "reason": "no room"},
        },
        {"event": f"{word} removed", "log_level": "info", **about},
        {"event": f"{word} restored", "log_level": "info", **about, "server": "/s", "state": "connecting"},
        {"event": f"{word} lost its region", "log_level": "warning", **about, "reason": "no server"},
    ]
    one.link.failure = None  # it only waits for the greeting
    assert [line["event"] for line in told(ClientAdded(one, revived=True))] == [f"{word} restored"]
    assert told(ClientStateChanged(one, connecting, connecting)) == []
    peers = told(ClientPeerAdded(one, 7), ClientPeerRemoved(one, 7))
    assert [(line["log_level"], line[key], line["peer"]) for line in peers] == [("debug", one.name, 7)] * 2


@pytest.mark.parametrize("make", [HostClient, HostFlat])
def test_a_server_that_comes_and_goes_is_no_storm_of_lines(make: type[HostClient]) -> None:
    one = joined(make)
    connecting, connected = ClientState.CONNECTING, ClientState.CONNECTED
    storm: list[HostEvent] = []
    for _ in range(5_000):
        storm += [ClientStateChanged(one, connecting, connected), ClientStateChanged(one, connected, connecting)]
    assert 0 < len(told(*storm)) <= 200
