# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What monitor makes of a device's signals."""

from __future__ import annotations

from typing import Any

import pytest
from doorbelld.bus import names, paths
from doorbelld.bus.client import Signal
from doorbelld.ctl.monitor import Event, Interpreter

DISK = paths.device("disk0")
HERE = {"FrontendPid": 7, "FrontendVmName": "guest1", "FrontendUid": 0, "FrontendUnit": ""}
GONE = {"FrontendPid": 0, "FrontendVmName": "", "FrontendUid": 0xFFFFFFFF, "FrontendUnit": ""}


def heard(member: str, *body: Any, path: str = DISK) -> Signal:
    return Signal(":1.1", path, "any", member, list(body))


def changed(**properties: Any) -> Signal:
    return heard("PropertiesChanged", names.DEVICE, properties, [])


def kinds(interpreter: Interpreter, *signals: Signal) -> list[tuple[str, str]]:
    return [(event.kind, event.device) for signal in signals for event in interpreter.events(signal)]


def one(interpreter: Interpreter, signal: Signal) -> Event:
    (event,) = interpreter.events(signal)
    return event


def test_a_front_end_is_told_with_what_is_known_of_it() -> None:
    interpreter = Interpreter()
    assert list(interpreter.events(heard("FrontendAttached", 7))) == []
    attached, state = interpreter.events(changed(State="connected", Reason="", **HERE))
    assert attached.words == "front-end attached: VM guest1, pid 7, uid 0"
    assert attached.values == {"pid": 7, "vm": "guest1", "uid": 0, "unit": ""}
    assert (state.kind, state.words, state.values["state"]) == ("device-state", "is connected", "connected")


def test_one_that_goes_at_once_is_told_before_it_is_gone() -> None:
    interpreter = Interpreter()
    list(interpreter.events(heard("FrontendAttached", 7)))
    attached, detached = interpreter.events(heard("FrontendDetached", "it sent 3 bytes", True))
    assert (attached.kind, attached.values) == ("front-end-attached", {"pid": 7})
    assert detached.words == "front-end broke it: it sent 3 bytes"
    assert detached.values == {"reason": "it sent 3 bytes", "broken": True}
    assert kinds(interpreter, changed(State="listening", Reason="it sent 3 bytes", **GONE)) == [
        ("device-state", "disk0")
    ]


def test_one_whose_place_another_has_taken_is_not_taken_for_that() -> None:
    interpreter = Interpreter()
    list(interpreter.events(heard("FrontendAttached", 6)))
    assert one(interpreter, changed(**HERE)).values == {"pid": 6}


def test_a_state_is_told_once() -> None:
    interpreter = Interpreter()
    assert one(interpreter, changed(State="running", Reason="")).words == "is running"
    assert kinds(interpreter, changed(State="running", Reason=""), changed(Reason="x")) == []
    assert kinds(interpreter, changed(State="connected", Reason="")) == [("device-state", "disk0")]


def test_devices_that_come_and_go() -> None:
    interpreter = Interpreter()
    made = {"Name": "disk0", "Type": "blk", "Socket": "/s", "QueueCount": 4}
    event = one(interpreter, heard("InterfacesAdded", DISK, {names.DEVICE: made}, path=names.ROOT))
    assert (event.kind, event.device, event.words) == ("device-added", "disk0", "device made: blk, 4 queues, /s")
    queue = paths.queue("disk0", 0)
    assert kinds(interpreter, heard("InterfacesAdded", queue, {names.QUEUE: {}}, path=names.ROOT)) == []
    assert kinds(interpreter, heard("InterfacesRemoved", queue, [names.QUEUE], path=names.ROOT)) == []
    assert one(interpreter, changed(ConfigSpace=b"")).kind == "device-config"
    list(interpreter.events(heard("FrontendAttached", 7)))
    assert kinds(interpreter, heard("InterfacesRemoved", DISK, [names.DEVICE], path=names.ROOT)) == [
        ("front-end-attached", "disk0"),
        ("device-removed", "disk0"),
    ]


def test_a_configuration_that_comes_along_is_told_if_it_changed() -> None:
    interpreter = Interpreter()
    negotiated = {"AckedFeatures": 1}
    assert kinds(interpreter, changed(ConfigSpace=b"a", **negotiated), changed(ConfigSpace=b"a", **negotiated)) == []
    assert one(interpreter, changed(ConfigSpace=b"b", **negotiated)).kind == "device-config"
    assert one(interpreter, changed(ConfigSpace=b"c")).kind == "device-config"
    assert kinds(interpreter, changed(AckedFeatures=0)) == []


def test_only_one_of_them() -> None:
    assert kinds(Interpreter("disk1"), changed(State="running")) == []
    assert kinds(Interpreter("disk0"), changed(State="running")) == [("device-state", "disk0")]


# Clients and flat devices

LAB, MCU = paths.client("lab-1"), paths.flat("mcu")


@pytest.mark.parametrize(
    ("signal", "told"),
    [
        (heard("Rung", 2, 5, path=LAB), ("rung", "lab-1", "was rung: vector 2, 5 times", {"vector": 2, "count": 5})),
        (
            heard("Interrupt", 0, 1, path=MCU),
            ("interrupt", "mcu", "interrupt: vector 0, 1 time", {"vector": 0, "count": 1}),
        ),
        (heard("PeerAdded", 7, f"{LAB}/peer/7", path=LAB), ("peer-added", "lab-1", "sees peer 7", {"peer": 7})),
        (heard("PeerRemoved", 7, path=LAB), ("peer-removed", "lab-1", "sees peer 7 no more", {"peer": 7})),
        (
            heard("InterfacesAdded", LAB, {names.CLIENT: {"Name": "lab-1", "Socket": "/s"}}, path=names.ROOT),
            ("client-added", "lab-1", "client made, of the server at /s", {"socket": "/s"}),
        ),
        (
            heard("InterfacesAdded", MCU, {names.FLAT: {"Name": "mcu", "Socket": "/s"}}, path=names.ROOT),
            ("flat-added", "mcu", "flat device made, of the server at /s", {"socket": "/s"}),
        ),
        (
            heard("InterfacesRemoved", MCU, [names.FLAT], path=names.ROOT),
            ("flat-removed", "mcu", "flat device removed", {}),
        ),
    ],
)
def test_what_clients_and_flat_devices_tell(signal: Signal, told: tuple[str, str, str, dict[str, Any]]) -> None:
    event = one(Interpreter(), signal)
    assert (event.kind, *event.about.values(), event.words, event.values) == told
    assert (event.client == "mcu", event.flat == "lab-1") == (False, False)
    assert list(Interpreter("another").events(signal)) == []
    assert list(Interpreter(told[1]).events(signal)) == [event]


def test_peers_that_a_client_sees_are_not_told_twice() -> None:
    peer = heard("InterfacesAdded", f"{LAB}/peer/7", {names.PEER: {"VmName": ""}}, path=names.ROOT)
    assert list(Interpreter().events(peer)) == []


def test_a_state_of_a_client_is_told_with_its_reason_and_once() -> None:
    interpreter = Interpreter()

    def state(value: str, reason: str) -> Signal:
        return heard("PropertiesChanged", names.CLIENT, {"State": value, "Reason": reason, "Id": 3}, [], path=LAB)

    event = one(interpreter, state("connecting", "no server"))
    assert (event.kind, event.words) == ("client-state", "is connecting: no server")
    assert list(interpreter.events(state("connecting", "no server"))) == []
    assert one(interpreter, state("connecting", "it is full")).values["reason"] == "it is full"
    assert one(interpreter, state("connected", "")).words == "is connected"
    assert list(interpreter.events(heard("PropertiesChanged", names.CLIENT, {"PeerCount": 3}, [], path=LAB))) == []
