# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Types of devices, found by name through the entry points ``doorbelld.devices``: ours and other packages' alike.

What another package offers is checked here, before anything is made of it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ..errors import NoSuchDeviceType, UnusableDeviceType, in_words
from ..vhost.device import QUEUES_MAX, Device

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

GROUP = "doorbelld.devices"
ID_MAX = 0xFFFF


def _entry_points() -> EntryPoints:
    from importlib.metadata import entry_points  # late: it takes 20 ms, and a daemon without devices does not need it

    return entry_points(group=GROUP)


def names() -> list[str]:
    """List the types that there are."""
    return sorted({entry.name for entry in _entry_points()})


def find(name: str) -> type[Device]:
    """Return the class of devices of type *name*.

    Raises:
        NoSuchDeviceType: there is none; the text is "cause; cure".
        UnusableDeviceType: there is one, but its package is wrong; so then.
    """
    for entry in _entry_points().select(name=name):
        return _load(entry)
    import difflib

    there = names()
    close = difflib.get_close_matches(name, there, 1)
    cure = f'did you mean "{close[0]}"?' if close else f"write one of {', '.join(there) or 'none: install some'}"
    raise NoSuchDeviceType(f"no device type {name!r}; {cure}")


def _load(entry: EntryPoint) -> type[Device]:
    """Import the class of *entry* and check that it is a type of devices.

    Raises:
        UnusableDeviceType: it is not.
    """
    try:
        found = entry.load()
    except BaseException as error:  # whatever another package does when it is imported, SystemExit too
        cause = f'type "{entry.name}": {entry.value} can\'t be imported: {in_words(error)}'
        raise UnusableDeviceType(f"{cause}; repair that package, or choose another type") from error
    try:
        wrong, cure = _wrong_with(found, entry.name)
    except Exception as error:  # of a metaclass, say
        wrong, cure = f"can't be looked at: {in_words(error)}", "make it a plain class"
    if wrong:
        raise UnusableDeviceType(f'type "{entry.name}": {entry.value} {wrong}; {cure}')
    return found  # type: ignore[no-any-return]


def _wrong_with(found: object, name: str) -> tuple[str, str]:
    """Say what is wrong with a class of devices, and the cure; both are empty if nothing is."""
    if not (isinstance(found, type) and issubclass(found, Device)):
        return "is no device", "name a subclass of doorbelld.vhost.device.Device there"
    said, number, most = (getattr(found, key, None) for key in ("name", "id", "queues_max"))
    if not isinstance(said, str) or not said:
        return "has no name", f'write name = "{name}" in the class'
    if said != name:
        return f'has the name "{said}", its entry point says "{name}"', "make them the same"
    if isinstance(number, bool) or not isinstance(number, int):
        return "has no id", "write the virtio device ID in the class, such as id = 62"
    if not 1 <= number <= ID_MAX:
        return f"has the id {number}", f"a virtio device ID is a number from 1 to {ID_MAX}"
    if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= QUEUES_MAX:
        return "has a queues_max that can't be", f"write a number from 1 to {QUEUES_MAX}"
    if not (isinstance(found.Options, type) and dataclasses.is_dataclass(found.Options)):
        return "has Options that are no dataclass", "make them one, of doorbelld.options.option() fields"
    if found.handle is Device.handle and found.attach is Device.attach:
        return "has neither handle() nor attach()", "write one of them: handle() is called for each request"
    return "", ""
