# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Types of devices, found by name through the entry points ``doorbelld.devices``: ours and other packages' alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import NoSuchDeviceType
from ..vhost.device import Device

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

GROUP = "doorbelld.devices"


def _entry_points() -> EntryPoints:
    from importlib.metadata import entry_points  # late: it takes 20 ms, and a daemon without devices does not need it

    return entry_points(group=GROUP)


def names() -> list[str]:
    """List the types that there are."""
    return sorted({entry.name for entry in _entry_points()})


def find(name: str) -> type[Device]:
    """Return the class of devices of type *name*.

    Raises:
        NoSuchDeviceType: there is none, or it can't be loaded; the text is "cause; cure".
    """
    for entry in _entry_points().select(name=name):
        try:
            found = entry.load()
        except Exception as error:  # whatever another package does when it is imported
            cure = f"repair {entry.value} or choose another type"
            raise NoSuchDeviceType(f"type {name!r} can't be loaded: {error}; {cure}") from error
        if not (isinstance(found, type) and issubclass(found, Device)):
            cure = "name a subclass of doorbelld.vhost.device.Device there"
            raise NoSuchDeviceType(f"type {name!r} is {entry.value}, which is no device; {cure}")
        return found
    raise NoSuchDeviceType(f"no device type {name!r}; write one of {', '.join(names()) or 'none: install some'}")
