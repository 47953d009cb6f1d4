# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The XML files are read right, and keep to the conventions of the API."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from doorbelld.bus import interfaces
from doorbelld.bus.names import (
    CLIENT,
    DBUS_PEER,
    DEVICE,
    FLAT,
    INTROSPECTABLE,
    MANAGER,
    OBJECT_MANAGER,
    PEER,
    PROPERTIES,
    QUEUE,
    REGION,
    VECTOR,
)

FILES = sorted((Path(__file__).parents[3] / "dbus").glob("*.xml"))
OURS = (MANAGER, REGION, PEER, VECTOR, DEVICE, QUEUE, CLIENT, FLAT)


def test_there_is_a_file_for_each_interface() -> None:
    assert sorted(file.stem for file in FILES) == sorted(OURS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_conventions(file: Path) -> None:
    (interface,) = ET.parse(file).getroot().findall("interface")
    assert interface.get("name") == file.stem
    for arg in interface.iter("arg"):
        assert re.fullmatch(r"[a-z][a-z_]*", arg.get("name", "")), "arguments are lower_snake and have a name"
    for method in interface.iter("method"):
        assert re.fullmatch(r"([A-Z][a-z]+)+", method.get("name", ""))
        directions = [arg.get("direction") for arg in method.iter("arg")]
        assert set(directions) <= {"in", "out"}, "each argument says which way"
        assert directions.count("out") <= 1
        assert directions == sorted(directions)
    for item in interface.iter("property"):
        assert item.get("access") == "read"
        emits = [note.get("value") for note in item.iter("annotation")]
        assert len(emits) == 1, f"{item.get('name')} says how its changes are told"
        assert emits[0] in ("const", "true", "invalidates", "false")


def test_load() -> None:
    region = interfaces.load(REGION)
    assert region.methods["Notify"] == interfaces.Method("qq", "")
    assert region.methods["OpenDoorbell"] == interfaces.Method("qq", "h")
    assert region.properties["PeerCount"] == interfaces.Property("u", "true")
    assert region.properties["Size"] == interfaces.Property("t", "const")
    assert region.signals == {"PeerAdded": "qo", "PeerRemoved": "qs", "Rung": "qt"}
    assert interfaces.load(REGION) is region
    assert interfaces.load(DEVICE).properties["MemoryRegions"] == interfaces.Property("a(tttts)", "invalidates")


def test_nothing_that_a_guest_can_count_up_tells_of_it() -> None:
    queue, device = interfaces.load(QUEUE).properties, interfaces.load(DEVICE).properties
    assert {item.emits for name, item in queue.items() if name != "Index"} == {"false"}
    assert {device[name].emits for name in ("Requests", "Bytes", "Errors", "Status")} == {"false"}


def test_an_interface_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        interfaces.load("org.doorbelld.Doorbell1.Nothing")


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        (DBUS_PEER, {"Ping": ("", ""), "GetMachineId": ("", "s")}),
        (INTROSPECTABLE, {"Introspect": ("", "s")}),
        (PROPERTIES, {"Get": ("ss", "v"), "GetAll": ("s", "a{sv}"), "Set": ("ssv", "")}),
        (OBJECT_MANAGER, {"GetManagedObjects": ("", "a{oa{sa{sv}}}")}),
    ],
)
def test_the_standard_interfaces(name: str, methods: dict[str, tuple[str, str]]) -> None:
    found = interfaces.standard(name)
    assert {member: (m.takes, m.returns) for member, m in found.methods.items()} == methods


def test_introspection_is_well_formed_and_leaves_the_interfaces_alone() -> None:
    vector = interfaces.load(VECTOR)
    for _ in range(2):
        text = interfaces.introspection([interfaces.standard(DBUS_PEER), vector], ["0", "a_2eb"])
        assert text.startswith("<!DOCTYPE node PUBLIC")
        node = ET.fromstring(text)
        assert [child.get("name") for child in node.findall("interface")] == [DBUS_PEER, VECTOR]
        assert [child.get("name") for child in node.findall("node")] == ["0", "a_2eb"]
    empty = ET.fromstring(interfaces.introspection([], []))
    assert (empty.tag, len(empty)) == ("node", 0)
