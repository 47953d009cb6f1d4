# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Views: code and XML can't drift apart, and what is constant is read once."""

from __future__ import annotations

import pytest
from doorbelld.bus import client_objects, device_objects, objects
from doorbelld.bus.authority import Action
from doorbelld.bus.names import VECTOR
from doorbelld.bus.views import View, method, prop


class Counting(View, interface=VECTOR):
    """A doorbell that counts who looks."""

    def __init__(self) -> None:
        self.looks = {"Index": 0, "PendingCount": 0}

    @method("Notify", Action.NOTIFY, wants_caller=True)
    def notify(self, caller: object) -> None:
        raise NotImplementedError

    @prop("Index")
    def index(self) -> int:
        self.looks["Index"] += 1
        return 3

    @prop("PendingCount")
    def pending(self) -> int:
        self.looks["PendingCount"] += 1
        return self.looks["PendingCount"]


def test_tables_come_from_both() -> None:
    call = Counting.calls["Notify"]
    assert (call.takes, call.returns, call.action, call.wants_caller) == ("", "", Action.NOTIFY, True)
    assert call.function is Counting.notify
    assert set(Counting.getters) == {"Index", "PendingCount"}


def test_properties_are_variants_of_the_declared_type() -> None:
    view = Counting()
    value = view.get("Index")
    assert (value.signature, value.value) == ("q", 3)


def test_constants_are_read_once_and_counters_each_time() -> None:
    view = Counting()
    for number in (1, 2, 3):
        found = view.get_all()
        assert {name: value.value for name, value in found.items()} == {"Index": 3, "PendingCount": number}
    assert view.looks == {"Index": 1, "PendingCount": 3}
    assert {name: value.value for name, value in Counting().get_all().items()} == {"Index": 3, "PendingCount": 1}


def test_what_changed_is_told_as_each_property_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(View, "get", lambda _, name: name.upper())
    view = device_objects.DeviceView.__new__(device_objects.DeviceView)
    told = view.changed({"MemoryRegions", "Reason", "State", "Requests", "Name", "Status"})
    assert told == [{"State": "STATE", "Reason": "REASON"}, ["MemoryRegions"]]
    assert view.changed(()) == [{}, []]


def test_a_method_that_code_lacks() -> None:
    with pytest.raises(ImportError, match=r"methods \{'Notify'\} are not in both"):

        class Lacking(View, interface=VECTOR):
            @prop("Index")
            def index(self) -> int:
                return 0

            @prop("PendingCount")
            def pending(self) -> int:
                return 0


def test_a_property_that_code_lacks() -> None:
    with pytest.raises(ImportError, match=r"properties \{'PendingCount'\} are not in both"):

        class Lacking(View, interface=VECTOR):
            @method("Notify", Action.NOTIFY)
            def notify(self) -> None: ...

            @prop("Index")
            def index(self) -> int:
                return 0


def test_a_property_that_the_xml_lacks() -> None:
    with pytest.raises(ImportError, match=r"properties \{'Colour'\} are not in both"):

        class Extra(View, interface=VECTOR):
            @method("Notify", Action.NOTIFY)
            def notify(self) -> None: ...

            @prop("Index")
            def index(self) -> int:
                return 0

            @prop("PendingCount")
            def pending(self) -> int:
                return 0

            @prop("Colour")
            def colour(self) -> int:
                return 0


def test_a_method_that_the_xml_lacks() -> None:
    with pytest.raises((ImportError, KeyError)):

        class Extra(View, interface=VECTOR):
            @method("Explode", Action.NOTIFY)
            def explode(self) -> None: ...


@pytest.mark.parametrize(
    ("view", "actions"),
    [
        (
            objects.ManagerView,
            {
                Action.INSPECT: {
                    *("ListRegions", "ListPeers", "ListDevices", "ListQueues", "ListClients", "ListFlatDevices"),
                    "Describe",
                },
                Action.NOTIFY: {"Notify", "NotifyMany"},
                Action.MANAGE: {
                    *("CreateRegion", "CreateDevice", "CreateClient", "CreateFlatDevice"),
                    *("RemoveRegion", "RemoveDevice", "RemoveClient", "RemoveFlatDevice", "Reload"),
                },
            },
        ),
        (
            objects.RegionView,
            {
                Action.NOTIFY: {"Notify", "NotifyPeer", "Broadcast", "NotifyMany", "OpenDoorbell"},
                Action.OPEN_MEMORY: {"OpenMemory", "ReadMemory", "WriteMemory"},
                Action.MANAGE: {"Attach", "Clear", "Disconnect", "LimitPair", "PermitPair"},
                Action.INSPECT: {"ListPairs"},
            },
        ),
        (objects.PeerView, {Action.NOTIFY: {"Notify", "NotifyAll"}, Action.MANAGE: {"Disconnect"}}),
        (objects.VectorView, {Action.NOTIFY: {"Notify"}}),
        (device_objects.DeviceView, {Action.MANAGE: {"Disconnect", "Reset", "Refresh"}}),
        (device_objects.QueueView, {Action.NOTIFY: {"Notify", "Kick"}}),
        (
            client_objects.ClientView,
            {
                Action.INSPECT: {"ListPeers"},
                Action.NOTIFY: {"Notify", "NotifyPeer", "Broadcast", "NotifyMany", "OpenDoorbell"},
                Action.OPEN_MEMORY: {"OpenMemory", "ReadMemory", "WriteMemory"},
            },
        ),
        (client_objects.ForeignPeerView, {Action.NOTIFY: {"Notify", "NotifyAll"}, Action.MANAGE: {"Disconnect"}}),
        (
            client_objects.FlatDeviceView,
            {
                Action.INSPECT: {"Read"},
                Action.NOTIFY: {"Write"},
                Action.OPEN_MEMORY: {"OpenMemory", "ReadMemory", "WriteMemory"},
            },
        ),
    ],
)
def test_who_may_call_what(view: type[View], actions: dict[Action, set[str]]) -> None:
    """The table of leaves, written down a second time: a method is never opened to all by a slip."""
    assert {name: call.action for name, call in view.calls.items()} == {
        name: action for action, names in actions.items() for name in names
    }
