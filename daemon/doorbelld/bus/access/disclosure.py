# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What of an object is told to whom (docs/decisions/0013).

A signal reaches everybody on the bus who wants it. Where polkit decides who may look, a signal therefore does not say
whose process a peer or a front-end is: these properties are left out of InterfacesAdded, and PropertiesChanged has
them among those to be read again, which takes leave to look.

The addresses that a front-end has its guest's memory at help to attack it. They are shown to root and to the daemon's
own user, who may do everything; others, and all signals, have 0 in their place.
"""

from __future__ import annotations

from typing import Any

from ..names import DEVICE, PEER, REGION

IDENTIFYING = {
    PEER: frozenset(("Pid", "Uid", "Gid", "VmName", "VmNameSource", "Unit")),
    DEVICE: frozenset(
        (
            "FrontendPid",
            "FrontendUid",
            "FrontendGid",
            "FrontendVmName",
            "FrontendVmNameSource",
            "FrontendUnit",
            "MemoryRegions",
        )
    ),
    REGION: frozenset(("AbsentPeers",)),
}
"""The properties that say who somebody is, by interface."""


class Disclosure:
    """What the caller whom we answer at the moment is shown; the loop answers one at a time."""

    __slots__ = ("addresses",)

    def __init__(self) -> None:
        self.addresses = False
        """Whether a front-end's own addresses are shown."""


SHOWN = Disclosure()


class shown:
    """Show that to whoever is answered in the body of a ``with``; each call of a method passes here."""

    __slots__ = ("_addresses", "_before")

    def __init__(self, addresses: bool) -> None:
        self._addresses = addresses

    def __enter__(self) -> None:
        self._before, SHOWN.addresses = SHOWN.addresses, self._addresses

    def __exit__(self, *_: object) -> None:
        SHOWN.addresses = self._before


def of_all(interfaces: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Give of *interfaces*, with their properties, what everybody on the bus may know."""
    return {
        name: {key: value for key, value in properties.items() if key not in IDENTIFYING.get(name, ())}
        for name, properties in interfaces.items()
    }


def changes_for_all(interface: str, changed: dict[str, Any], invalidated: list[str]) -> list[Any]:
    """Give what PropertiesChanged may say to everybody: new values, and which properties are to be read again."""
    private = IDENTIFYING.get(interface, frozenset())
    told = {name: value for name, value in changed.items() if name not in private}
    return [told, invalidated + [name for name in changed if name in private]]
