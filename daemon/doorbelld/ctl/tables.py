# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Prints for people: on a terminal with colour and as wide as that is; into a pipe in plain columns, never cut off."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from ..ivshmem.spec import in_units
from .session import plural

_PIPE_WIDTH = 4000
_NONE = "-"
RIGHT = ">"
"""Put before a heading: the column's cells are numbers, aligned to the right."""


def when(microseconds: int) -> str:
    """Write a time as the local clock shows it."""
    return datetime.datetime.fromtimestamp(microseconds / 1e6).strftime("%Y-%m-%d %H:%M:%S")


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], emphasis: int = 0) -> None:
    """Print *rows* below *headings* (`RIGHT` before one aligns it right); column *emphasis* stands out."""
    from rich.console import Console
    from rich.table import Table

    on_terminal = sys.stdout.isatty()
    console = Console(
        width=None if on_terminal else _PIPE_WIDTH, markup=False, emoji=False, highlight=False, soft_wrap=False
    )
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for place, heading in enumerate(headings):
        made.add_column(
            heading.removeprefix(RIGHT),
            justify="right" if heading.startswith(RIGHT) else "left",
            overflow="fold",
            style="cyan" if place == emphasis else None,
        )
    for row in rows:
        made.add_row(*(str(cell) for cell in row))
    with console.capture() as captured:
        console.print(made)
    for line in captured.get().splitlines():
        click.echo(line if on_terminal else line.rstrip(), color=on_terminal or None)


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
    click.echo(f"doorbelld {known['version']} on {where}: {counts(known)}, {used} of {limit} descriptors in use")
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
        ("REGION", ">SIZE", ">VECTORS", ">PEERS", "SOCKET"),
        ([name, in_units(r["size"]), r["vectors"], len(r["peers"]), r["socket"]] for name, r in regions.items()),
    )
    click.echo()
    if not peers:
        name = next(iter(regions))
        click.echo(f"No peer is connected. What a guest needs to connect: doorbellctl qemu-args {name}")
        return
    table(
        ("REGION", ">PEER", "VM", ">PID", ">UID", "SINCE", ">BACKLOG"),
        (
            [name, p["id"], p["vm"] or _NONE, p["pid"], p["uid"], when(p["since"]), p["backlog"]]
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
    table(
        (">PEER", "VM", ">PID", ">UID", ">GID", "UNIT", ">VECTORS", "SINCE", ">BACKLOG"),
        (
            [
                *(p["id"], p["vm"] or _NONE, p["pid"], p["uid"], p["gid"], p["unit"] or _NONE),
                *(p["vectors"], when(p["since"]), p["backlog"]),
            ]
            for p in region["peers"]
        ),
    )


def status(name: str, region: dict[str, Any]) -> None:
    """Print one region in detail: what it is, its host peer, its peers and what waits for them."""
    host = region["host-peer"]
    stall = f"{region['stall-timeout']:g} s" if region["stall-timeout"] else "never"
    known = {
        "Region": name,
        "Socket": region["socket"],
        "Access": access(region),
        "Size": f"{in_units(region['size'])} ({region['size']} bytes)",
        "Vectors": f"{region['vectors']} per peer",
        "Backing": region["backing"],
        "Peers": f"{len(region['peers'])} of at most {region['max-peers']}, IDs from {region['first-id']}",
        "Host peer": f"ID {region['host-peer-id']}" if host else "none",
        "Host rings": f"{sum(region['host-rings'])}{_where(region['host-rings'])}" if host else _NONE,
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
        (">PEER", "VM", ">PID", ">UID", "SINCE", ">BACKLOG", "PENDING"),
        (
            [
                *(p["id"], p["vm"] or _NONE, p["pid"], p["uid"], when(p["since"]), p["backlog"]),
                pending_in_words(p["pending"]),
            ]
            for p in region["peers"]
        ),
    )


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
    return f"{sum(pending)}{_where(pending)}"


def _where(counts: Sequence[int]) -> str:
    some = ", ".join(f"vector {vector}: {count}" for vector, count in enumerate(counts) if count)
    return f" ({some})" if some else ""
