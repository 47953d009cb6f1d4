# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Prints for people: on a terminal with colour and as wide as that is; into a pipe in plain columns, never cut off."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from ..ivshmem.spec import in_units
from . import peernames
from .layout import NONE, Shape, Since, lay_out
from .session import Session, plural

_REGIONS = Shape(("REGION", ">SIZE", ">VECTORS", ">PEERS", "SOCKET"), (">VECTORS", ">SIZE", ">PEERS"), path=True)
_PEERS = Shape(
    ("REGION", ">PEER", "VM (PROGRAM)", ">PID", ">UID", "SINCE", ">BACKLOG"), (">UID", ">PID", "SINCE", ">BACKLOG")
)
_PEERS_OF_ONE = Shape(
    (">PEER", "VM (PROGRAM)", ">PID", ">UID", ">GID", "UNIT", ">VECTORS", "SINCE", ">BACKLOG"),
    (">GID", ">UID", ">VECTORS", ">PID", "SINCE", ">BACKLOG", "UNIT"),
)
_PEERS_IN_DETAIL = Shape(
    (">PEER", "VM (PROGRAM)", ">PID", ">UID", "SINCE", ">BACKLOG", "PENDING"), (">UID", ">PID", "SINCE", ">BACKLOG")
)


def width() -> int | None:
    """Give the columns that there are on the terminal; None where a table is to be whole: in a pipe, or so wished."""
    context = click.get_current_context(silent=True)
    session = context.find_object(Session) if context else None
    if not sys.stdout.isatty() or (session and session.no_trunc):
        return None
    return shutil.get_terminal_size().columns


def table(shape: Shape, rows: Iterable[Sequence[object]]) -> None:
    """Print *rows* below their headings, within the width of the terminal; the first column stands out."""
    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    for place, row in enumerate(lay_out(shape, rows, width())):
        line = row.text.rstrip()
        if colours and place:
            first = len(row.cells[0])
            line = click.style(line[:first], fg="cyan") + line[first:]
        elif colours:
            line = click.style(line, bold=True)
        click.echo(line)
        if row.path:
            click.echo(row.path)


def facts(known: Mapping[str, str]) -> None:
    """Print one fact a line."""
    width = max(map(len, known))
    for key, value in known.items():
        click.echo(f"{click.style(key.rjust(width), bold=True)}: {value}")


def overview(known: dict[str, Any], address: str) -> None:
    """Print everything in short: the regions, and their peers beneath; then devices, clients and flat devices."""
    from . import client_tables, device_tables

    regions: dict[str, dict[str, Any]] = known["regions"]
    devices: dict[str, dict[str, Any]] = known["devices"]
    peers = sum(len(region["peers"]) for region in regions.values())
    used, limit = known["descriptors"]["in-use"], known["descriptors"]["limit"]
    where = address.removeprefix("unix:path=")
    click.echo(f"doorbelld {known['version']} on {where}: {counts(known)}, {used:,} of {limit:,} descriptors in use")
    click.echo()
    if not any(known[kinds] for kinds in ("regions", "devices", "clients", "flats")):
        click.echo(_NOTHING_YET)
        return
    if regions:
        _overview_of_regions(regions, peers)
    if devices:
        click.echo("\n" * bool(regions), nl=False)
        device_tables.overview(devices)
        if not any(device["front-end"] for device in devices.values()):
            name = next(iter(devices))
            click.echo()
            click.echo(f"No front-end is connected. What a guest needs: doorbellctl qemu-args {name}")
    before = bool(regions or devices)
    for there, show in ((known["clients"], client_tables.clients), (known["flats"], client_tables.flats)):
        if there:
            click.echo("\n" * before, nl=False)
            show(there)
            before = True


def counts(known: Mapping[str, Any]) -> str:
    """Say how much there is."""
    peers = sum(len(region["peers"]) for region in known["regions"].values())
    words = f"{plural(len(known['regions']), 'region')}, {plural(peers, 'peer')}"
    others = (("devices", "device"), ("clients", "client"), ("flats", "flat device"))
    return ", ".join([words, *(plural(len(known[kinds]), what) for kinds, what in others if known.get(kinds))])


def _overview_of_regions(regions: Mapping[str, Mapping[str, Any]], peers: int) -> None:
    table(
        _REGIONS,
        ([name, in_units(r["size"]), r["vectors"], len(r["peers"]), r["socket"]] for name, r in regions.items()),
    )
    click.echo()
    if not peers:
        name = next(iter(regions))
        click.echo(f"No peer is connected. What a guest needs to connect: doorbellctl qemu-args {name}")
        return
    table(
        _PEERS,
        (
            [name, p["id"], peernames.cell(p), p["pid"], p["uid"], Since(p["since"]), p["backlog"]]
            for name, region in regions.items()
            for p in region["peers"]
        ),
    )


_NOTHING_YET = """\
It serves no region yet, and no device. Make one, see what a guest needs to connect, and try it out:

  doorbellctl create demo --size 4M --vectors 4
  doorbellctl create-device entropy rng
  doorbellctl qemu-args demo entropy
  doorbellctl selftest demo

What is made so is gone when the daemon stops; what is to stay is a [region.demo] or a [device.entropy] in its
configuration (/etc/doorbelld/doorbelld.toml, then doorbellctl reload)."""


def peers_of(region: dict[str, Any]) -> None:
    """Print the peers of a region, in full."""
    table(_PEERS_OF_ONE, _everybody(region))


def peers_of_all(regions: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the peers of all *regions*, in full."""
    shape = Shape(("REGION", *_PEERS_OF_ONE.headings), _PEERS_OF_ONE.drop)
    table(shape, ([name, *row] for name, region in regions.items() for row in _everybody(region)))


def _everybody(region: Mapping[str, Any]) -> Iterator[list[object]]:
    """Make the rows of a region's peers, and of those that are absent."""
    yield from map(_peer, region["peers"])
    for p in region.get("absent", ()):
        vectors = region["vectors"]
        yield [p["id"], p["vm"] or NONE, "absent", p["uid"], NONE, p["unit"] or NONE, vectors, Since(p["left"]), NONE]


def _peer(p: Mapping[str, Any]) -> list[object]:
    return [
        *(p["id"], peernames.cell(p), p["pid"], p["uid"], p["gid"], p["unit"] or NONE),
        *(p["vectors"], Since(p["since"]), p["backlog"]),
    ]


def status(name: str, region: dict[str, Any]) -> None:
    """Print one region in detail: what it is, its host peer, its peers and what waits for them."""
    host = region["host-peer"]
    stall = f"{region['stall-timeout']:g} s" if region["stall-timeout"] else "never"
    known = {
        "Region": name,
        "Socket": region["socket"],
        "Access": access(region),
        "Size": f"{in_units(region['size'])} ({region['size']:,} bytes)",
        "Vectors": f"{region['vectors']} per peer",
        "Backing": region["backing"],
        "Peers": f"{len(region['peers'])} of at most {region['max-peers']:,}, IDs from {region['first-id']}",
        **_absent(region),
        "Host peer": f"ID {region['host-peer-id']}" if host else "none",
        "Host rings": f"{sum(region['host-rings']):,}{_where(region['host-rings'])}" if host else NONE,
        "Stall limit": stall,
        "Relay": _relay(region),
        "Rules": _rules(name, region),
    }
    facts(known)
    click.echo()
    if not region["peers"]:
        click.echo(f"No peer is connected. What a guest needs to connect: doorbellctl qemu-args {name}")
        return
    table(
        _PEERS_IN_DETAIL,
        (
            [
                *(p["id"], peernames.cell(p), p["pid"], p["uid"], Since(p["since"]), p["backlog"]),
                pending_in_words(p["pending"]),
            ]
            for p in region["peers"]
        ),
    )


def _absent(region: Mapping[str, Any]) -> dict[str, str]:
    """Say whose IDs wait for them; an older daemon does not tell."""
    absent = region.get("absent", [])
    who = (f"{p['id']} for " + (p["vm"] or f"uid {p['uid']}") for p in absent[:5])
    return {"Absent": f"IDs that wait: {', '.join(who)}{', ...' * (len(absent) > 5)}"} if absent else {}


def _relay(region: Mapping[str, Any]) -> str:
    """Say whether rings pass the daemon, and what limits them."""
    if not region["relay"]:
        return "off: peers ring each other without the daemon"
    rate = f"at most {region['relay-rate']:,} deliveries a second of each pair" if region["relay-rate"] else "no limit"
    return f"on: rings pass the daemon, {rate}"


def _rules(name: str, region: Mapping[str, Any]) -> str:
    """Say how many rules there are; an older daemon does not tell."""
    rules = region.get("rules", [])
    if not rules:
        return "none: whoever may connect to the socket is admitted"
    return f"{plural(len(rules), 'rule')} for who may connect and ring: doorbellctl rules {name}"


def access(known: Mapping[str, Any]) -> str:
    """Say who may connect to the socket of a region or a device."""
    owner = f"user {known['owner']}" if known["owner"] else "the daemon's user"
    group = f"group {known['group']}" if known["group"] else "the daemon's group"
    return f"{owner}, {group}, mode {known['mode']}"


def pending_in_words(pending: Sequence[int]) -> str:
    """Write how many rings wait for a peer, and at which vectors."""
    return f"{sum(pending):,}{_where(pending)}"


def _where(counts: Sequence[int]) -> str:
    some = ", ".join(f"vector {vector}: {count:,}" for vector, count in enumerate(counts) if count)
    return f" ({some})" if some else ""
