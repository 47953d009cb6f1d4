# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The interfaces, read from ``dbus/*.xml``: the source of truth for signatures, properties and introspection."""

from __future__ import annotations

import copy
import functools
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from .names import DBUS_PEER, INTROSPECTABLE, OBJECT_MANAGER, PROPERTIES

_FOLDER = Path(__file__).parents[1] / "interfaces"
_EMITS = "org.freedesktop.DBus.Property.EmitsChangedSignal"
_DOCTYPE = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    '"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)
_STANDARD = {
    DBUS_PEER: """<method name="Ping"/><method name="GetMachineId">
        <arg name="machine_uuid" type="s" direction="out"/></method>""",
    INTROSPECTABLE: """<method name="Introspect"><arg name="xml_data" type="s" direction="out"/></method>""",
    PROPERTIES: """<method name="Get"><arg name="interface_name" type="s" direction="in"/>
        <arg name="property_name" type="s" direction="in"/><arg name="value" type="v" direction="out"/></method>
        <method name="GetAll"><arg name="interface_name" type="s" direction="in"/>
        <arg name="properties" type="a{sv}" direction="out"/></method>
        <method name="Set"><arg name="interface_name" type="s" direction="in"/>
        <arg name="property_name" type="s" direction="in"/><arg name="value" type="v" direction="in"/></method>
        <signal name="PropertiesChanged"><arg name="interface_name" type="s"/>
        <arg name="changed_properties" type="a{sv}"/><arg name="invalidated_properties" type="as"/></signal>""",
    OBJECT_MANAGER: """<method name="GetManagedObjects">
        <arg name="objects" type="a{oa{sa{sv}}}" direction="out"/></method>
        <signal name="InterfacesAdded"><arg name="object_path" type="o"/>
        <arg name="interfaces" type="a{sa{sv}}"/></signal>
        <signal name="InterfacesRemoved"><arg name="object_path" type="o"/>
        <arg name="interfaces" type="as"/></signal>""",
}


@dataclass(frozen=True, slots=True)
class Method:
    """A method's signatures."""

    takes: str
    returns: str


@dataclass(frozen=True, slots=True)
class Property:
    """A property's type and how its changes are told: true, invalidates, const or false."""

    type: str
    emits: str


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface, by name."""

    name: str
    methods: dict[str, Method]
    properties: dict[str, Property]
    signals: dict[str, str]
    element: ET.Element

    @classmethod
    def of(cls, element: ET.Element) -> Interface:
        """Read an ``<interface>`` element."""

        def joined(item: ET.Element, direction: str) -> str:
            return "".join(arg.get("type", "") for arg in item.iter("arg") if arg.get("direction", "in") == direction)

        def emits(item: ET.Element) -> str:
            return next((a.get("value", "") for a in item.iter("annotation") if a.get("name") == _EMITS), "true")

        return cls(
            element.get("name", ""),
            {m.get("name", ""): Method(joined(m, "in"), joined(m, "out")) for m in element.iter("method")},
            {p.get("name", ""): Property(p.get("type", ""), emits(p)) for p in element.iter("property")},
            {s.get("name", ""): "".join(a.get("type", "") for a in s.iter("arg")) for s in element.iter("signal")},
            element,
        )


@functools.cache
def load(name: str) -> Interface:
    """Read the interface *name* from its file."""
    text = (_FOLDER / f"{name}.xml").read_text(encoding="utf-8")
    element = ET.fromstring(text).find("interface")
    if element is None or element.get("name") != name:
        raise ImportError(f"{name}.xml does not describe {name}")
    return Interface.of(element)


@functools.cache
def standard(name: str) -> Interface:
    """Give one of the org.freedesktop.DBus interfaces that every object has."""
    return Interface.of(ET.fromstring(f'<interface name="{name}">{_STANDARD[name]}</interface>'))


def introspection(interfaces: list[Interface], children: list[str]) -> str:
    """Write the answer to ``Introspect``: *interfaces* and the names of child nodes."""
    node = ET.Element("node")
    node.extend(copy.deepcopy(interface.element) for interface in interfaces)
    for child in children:
        ET.SubElement(node, "node", name=child)
    ET.indent(node)
    return _DOCTYPE + ET.tostring(node, encoding="unicode") + "\n"
