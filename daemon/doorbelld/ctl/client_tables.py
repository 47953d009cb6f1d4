# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Prints clients and flat devices for people, and whom they see in the regions that they joined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from ..ivshmem.spec import in_units
from . import tables
from .layout import NONE, Shape, Since, when

_CLIENTS = Shape(
    ("CLIENT", "STATE", ">ID", ">VECTORS", ">PEERS", ">SIZE", ">RINGS", "SERVER"),
    (">VECTORS", ">SIZE", ">RINGS"),
    path=True,
)
_FLATS = Shape(
    ("FLAT DEVICE", "STATE", ">IVPOSITION", ">VECTORS", ">PEERS", ">SIZE", ">INTERRUPTS", "SERVER"),
    (">VECTORS", ">SIZE", ">INTERRUPTS"),
    path=True,
)


def is_flat(known: Mapping[str, Any]) -> bool:
    """Tell a flat device from a client, by what is described of it."""
    return "iv-position" in known


def clients(known: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a line for each client, and beneath why some are not connected."""
    tables.table(
        _CLIENTS,
        (
            [
                *(name, one["state"], _id(one), one["vectors"], len(one["peers"]), _size(one), sum(one["rings"])),
                one["socket"],
            ]
            for name, one in known.items()
        ),
    )
    _reasons(known)


def flats(known: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a line for each flat device, and beneath why some are not connected."""
    tables.table(
        _FLATS,
        (
            [
                *(name, one["state"], one["iv-position"], one["vectors"], len(one["peers"]), _size(one)),
                *(one["interrupts"], one["socket"]),
            ]
            for name, one in known.items()
        ),
    )
    _reasons(known)


def _reasons(known: Mapping[str, Mapping[str, Any]]) -> None:
    if reasons := [f"{name}: {one['reason']}" for name, one in known.items() if one["reason"]]:
        click.echo()
        click.echo("\n".join(reasons))


def _id(one: Mapping[str, Any]) -> object:
    return NONE if one["id"] is None else one["id"]


def _size(one: Mapping[str, Any]) -> str:
    return in_units(one["size"]) if one["size"] else NONE


def peers(name: str, client: Mapping[str, Any]) -> None:
    """Print the peers that a client sees."""
    if client["state"] != "connected":
        click.echo(f"{name} is not connected: {client['reason']}")
    elif not client["peers"]:
        click.echo(f"Nobody else is in the region of the server at {client['socket']}.")
    else:
        _peers(client)


def _peers(client: Mapping[str, Any]) -> None:
    pending = "pending" in next(iter(client["peers"]))
    tables.table(
        Shape((">PEER", ">VECTORS", "SEEN SINCE", *(["PENDING"] * pending))),
        (
            [
                *(peer["id"], peer["vectors"], Since(peer["since"])),
                *([tables.pending_in_words(peer["pending"])] if pending else []),
            ]
            for peer in client["peers"]
        ),
    )


def status(name: str, known: Mapping[str, Any]) -> None:
    """Print a client or a flat device in detail: its place in the region, and who else is there."""
    tables.facts(dict(_facts(name, known)))
    if known["peers"]:
        click.echo()
        _peers(known)


def _facts(name: str, known: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield ("Flat device" if is_flat(known) else "Client"), name
    yield "Server", known["socket"]
    again = "tries again" if known["reconnect"] else "does not try again"
    if known["state"] == "connected":
        yield "State", f"connected since {when(known['since'])}"
        yield ("IVPosition" if is_flat(known) else "ID"), str(known["id"])
        yield "Vectors", f"{known['vectors']} of its own, at most {known['vectors-max']} of each peer"
        yield "Memory", f"{in_units(known['size'])} ({known['size']:,} bytes)"
        yield "Peers", str(len(known["peers"]))
    else:
        yield "State", f"{known['state']}; it {again}"
        yield "Reason", known["reason"]
    if is_flat(known):
        if known["memory-size"]:
            yield "Takes", f"memory of {in_units(known['memory-size'])} only"
        yield "Interrupts", tables.pending_in_words(known["rings"])
    else:
        yield "Rings", tables.pending_in_words(known["rings"])
