# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What monitor makes of a device's signals."""

from __future__ import annotations

from typing import Any

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
