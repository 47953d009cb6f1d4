# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The D-Bus interfaces, from ``dbus/*.xml``; what they mean is in the comment before each element there.

Which leave a method needs (inspect, notify, open-memory, manage) is asked of the views that answer it.
"""

from __future__ import annotations

import inspect
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from doorbelld import errors
from doorbelld.bus import client_objects, device_objects, names, objects, paths
from doorbelld.bus.interfaces import Interface
from doorbelld.bus.views import View
from doorbelld.devices import image
from doorbelld.vhost import errors as device_errors

from . import roff

XML = Path(__file__).parents[3] / "dbus"
_EXAMPLE = paths.region("NAME")
_DEVICE = paths.device("NAME")
_CLIENT = paths.client("NAME")
_PLACES = {
    names.MANAGER: names.ROOT,
    names.REGION: _EXAMPLE,
    names.PEER: f"{_EXAMPLE}/peer/ID, {_CLIENT}/peer/ID",
    names.VECTOR: f"{_EXAMPLE}/peer/ID/vector/NUMBER, {_CLIENT}/peer/ID/vector/NUMBER",
    names.DEVICE: _DEVICE,
    names.QUEUE: f"{_DEVICE}/queue/NUMBER",
    names.CLIENT: _CLIENT,
    names.FLAT: paths.flat("NAME"),
}
"""Our interfaces, in a reader's order, and where their objects are."""

_LEAVE = {
    "no": "no",
    "yes": "yes",
    "auth_self": "after authenticating",
    "auth_admin": "after authenticating as an administrator, each time",
    "auth_self_keep": "after authenticating",
    "auth_admin_keep": "after authenticating as an administrator",
}
_ACCESS = {"read": "Read-only.", "write": "Write-only.", "readwrite": "Can be set."}
_CHANGES = {
    "const": "It never changes.",
    "false": "Changes are not told: read it anew.",
    "true": "Changes are told with PropertiesChanged.",
    "invalidates": "PropertiesChanged tells that it changed, but not to what.",
}
_FLAGS = {"const": "const", "false": "-", "true": "emits-change", "invalidates": "emits-invalidation"}


def files() -> list[Path]:
    """Name the files of all interfaces: in a reader's order, unknown ones last."""
    order = list(_PLACES)
    return sorted(XML.glob("*.xml"), key=lambda file: (order.index(file.stem) if file.stem in order else 99, file.stem))


def describe() -> list[str]:
    """Write a section for each interface."""
    made = []
    for file in files():
        parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))
        root = ET.fromstring(file.read_text(encoding="utf-8"), parser)
        for element, said in _with_comments(root):
            if element.tag == "interface":
                made += _interface(element, said)
    return made


def _with_comments(parent: ET.Element) -> Iterator[tuple[ET.Element, str]]:
    """Give the elements below *parent*, each with the comment before it."""
    said = ""
    for child in parent:
        if child.tag is ET.Comment:  # type: ignore[comparison-overlap]  # a comment's tag is the function
            said = inspect.cleandoc(child.text or "").strip()
        else:
            yield child, said
            said = ""


def _interface(element: ET.Element, said: str) -> list[str]:
    name = element.get("name", "")
    known = Interface.of(element)
    made = [f".SH {roff.quoted(name)}", *roff.prose(said)]
    if name in _PLACES:
        made += [".PP", "Objects:", roff.bold(_PLACES[name])]
    made += [".PP", *_overview(known)]
    for title, tag in (("Methods", "method"), ("Signals", "signal"), ("Properties", "property")):
        members = [(member, words) for member, words in _with_comments(element) if member.tag == tag]
        if members:
            made.append(f".SS {title}")
        for member, words in members:
            member_name, body = member.get("name", ""), roff.prose(words)
            if tag == "method":
                body.append(rf"Access:\~{roff.bold(_action(name, member_name))}.")
                head = _head(member)
            elif tag == "signal":
                head = _head(member)
            else:
                head = f"{roff.bold(member_name)} ({roff.escape(member.get('type', ''))})"
                changes = _CHANGES[known.properties[member_name].emits]
                body += roff.sentences(f"{_ACCESS[member.get('access', 'read')]} {changes}")
            made += roff.tagged(head, body)
    return made


def _action(interface: str, method: str) -> str:
    """Ask the view of *interface* what leave *method* needs."""
    for view in (*vars(objects).values(), *vars(device_objects).values(), *vars(client_objects).values()):
        if inspect.isclass(view) and issubclass(view, View) and view is not View and view.interface.name == interface:
            return view.calls[method].action.value
    raise LookupError(f"nothing answers for {interface}")


def _overview(known: Interface) -> list[str]:
    """Write what ``busctl introspect`` shows of an interface."""
    rows = [("NAME", "TYPE", "SIGNATURE", "RESULT", "FLAGS")]
    for name, method in known.methods.items():
        rows.append((f".{name}", "method", method.takes or "-", method.returns or "-", "-"))
    for name, prop in known.properties.items():
        rows.append((f".{name}", "property", prop.type, "-", _FLAGS[prop.emits]))
    rows += [(f".{name}", "signal", signature or "-", "-", "-") for name, signature in known.signals.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return roff.verbatim("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _head(member: ET.Element) -> str:
    """Write a method or a signal with its arguments: type and name of each."""
    given = [arg for arg in member.iter("arg") if member.tag == "signal" or arg.get("direction", "in") == "in"]
    back = [arg for arg in member.iter("arg") if arg not in given]
    head = f"{roff.bold(member.get('name', ''))}({', '.join(map(_argument, given))})"
    return f"{head} \\(-> {', '.join(map(_argument, back))}" if back else head


def _argument(arg: ET.Element) -> str:
    return f"{roff.escape(arg.get('type', ''))} {roff.italic(arg.get('name', ''))}"


def describe_objects() -> list[str]:
    """Write where which objects are."""
    made = []
    for interface, place in _PLACES.items():
        made += roff.tagged(roff.bold(place), [roff.escape(interface)])
    return made


def describe_access() -> list[str]:
    """Write the actions that polkit decides about, from its policy file."""
    made = []
    for action in ET.parse(XML / f"{names.BUS_NAME}.policy").getroot().iter("action"):
        said = {child.tag: child.text or "" for child in action.iter()}
        active, others = (_LEAVE[said[key]] for key in ("allow_active", "allow_any"))
        implied = [
            name.rpartition(".")[2]
            for note in action.iter("annotate")
            if (note.get("key") or "").endswith(".imply")
            for name in (note.text or "").split()
        ]
        words = f"{said['description']}. Active local users: {active}; others: {others}."
        if implied:
            words += f" Who may do this may do {', '.join(f'`{one}`' for one in implied)} too."
        made += roff.tagged(roff.bold(action.get("id", "")), roff.prose(words))
    return made


def known_errors() -> list[type[errors.DoorbellError]]:
    """Give the errors that a caller may get."""
    return [
        error
        for module in (errors, device_errors, image)
        for error in vars(module).values()
        if inspect.isclass(error)
        and issubclass(error, errors.DoorbellError)
        and error is not errors.DoorbellError
        and error.__module__ == module.__name__
    ]


def describe_errors() -> list[str]:
    """Write the errors, from their classes."""
    made = []
    for error in known_errors():
        said = inspect.getdoc(error) or ""
        made += roff.tagged(roff.bold(f"{names.ERROR_PREFIX}.{error.__name__}"), roff.prose(said))
    return made
