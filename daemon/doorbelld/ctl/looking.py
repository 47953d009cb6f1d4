# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that only look: the overview, status, peers, describe. Those for devices alone are in `devices`."""

from __future__ import annotations

import time
from typing import Any

import click

from . import tables
from .arguments import complete_name, complete_one_of, kind_option, kind_option_of
from .session import Daemon, Session, json_option, pass_session, plural, table_option

_IN_FLIGHT = 64
_LINES = 10
_WITH_PEERS = ("region", "client")


def overview(session: Session) -> None:
    """What bare ``doorbellctl`` does."""

    async def ask(daemon: Daemon) -> tuple[dict[str, Any], str]:
        return await daemon.describe(), daemon.client.address

    known, address = session.run(ask)
    if session.json:
        session.emit(known)
        return
    tables.overview(known, address)


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_name)
@kind_option
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0),
    default=_LINES,
    show_default=True,
    metavar="N",
    help="Lines of the journal; 0 for none.",
)
@table_option
@json_option
@pass_session
def status(session: Session, names: tuple[str, ...], kind: str | None, lines: int) -> None:
    r"""Show how the daemon is, or regions, devices, clients or flat devices in detail, with their lines of the journal.

    The daemon: its unit, for how long it has been running, where, what it costs, what it serves. A region: its
    settings, its peers, and the rings that wait for them. A ring is pending until the peer's side has taken it. QEMU
    takes rings also while its guest is paused or masks its interrupts, so a count that only grows tells of a QEMU that
    hangs or was stopped (SIGSTOP), or of a host process that does not read its doorbells. A device: its settings, its
    front-end and what both agreed on, guest memory, and its queues. A client or a flat device: its place in the region
    that it joined, and who else is there. The counts are looked up without disturbing anything. With --json, several
    NAMEs give a list.

    The journal's lines are there if the daemon logs to it and you may read it (root, group systemd-journal).

    \b
    Examples:
      doorbellctl status
      doorbellctl status demo --lines 50
      doorbellctl status demo -n 0 --json | jq '.peers[].pending'
      doorbellctl status disk0
    """
    if not names:
        _status_of_daemon(session, lines)
        return
    found = []
    for place, name in enumerate(names):
        if place and not session.json:
            click.echo()
        found.append(_status_of_one(session, name, kind or "", lines))
    if session.json:
        session.emit(found[0] if len(found) == 1 else found)


def _status_of_one(session: Session, name: str, kind: str, lines: int) -> dict[str, Any]:
    """Show one thing, unless JSON is wanted; gives what that is to have."""

    async def ask(daemon: Daemon) -> tuple[str, dict[str, Any], list[str]]:
        found, known = await daemon.find(name, kind)
        if found == "device":
            known |= await device_properties(daemon, name)
        elif found in _WITH_PEERS:
            await _add_pending(daemon, found, name, known)
        return found, known, await _whose_journal(daemon)

    from . import client_tables, device_tables, systemd
    from .devices import device_properties

    found, known, whose = session.run(ask)
    journal = systemd.journal([*whose, f"DOORBELLD_{found.upper()}={name}"], lines)
    if session.json:
        return {"name": name, **known, "journal": journal}
    match found:
        case "region":
            tables.status(name, known)
        case "device":
            device_tables.status(name, known)
        case _:
            client_tables.status(name, known)
    _show_journal(journal)
    return {}


async def _whose_journal(daemon: Daemon) -> list[str]:
    """Tell journalctl whose lines: the unit's if the daemon is the system bus's, else those of its process."""
    from ..bus.address import resolve

    if daemon.client.address == resolve("system"):
        return ["-u", "doorbelld"]
    return [f"_PID={await _pid(daemon)}"]


async def _pid(daemon: Daemon) -> int:
    from ..bus.names import BUS_NAME

    return int(await daemon.client.call_bus("GetConnectionUnixProcessID", "s", BUS_NAME))


def _show_journal(lines: list[str]) -> None:
    if lines:
        click.echo()
        for line in lines:
            click.echo(line)


def _status_of_daemon(session: Session, lines: int) -> None:
    async def ask(daemon: Daemon) -> tuple[dict[str, Any], list[str]]:
        from ..bus.names import MANAGER, ROOT

        known = await daemon.describe()
        regions, devices = known["regions"].values(), known["devices"].values()
        joined = [*known["clients"].values(), *known["flats"].values()]
        found = {
            "version": known["version"],
            "pid": await _pid(daemon),
            "bus": daemon.client.address,
            "library": await daemon.client.get(ROOT, MANAGER, "Library"),
            "regions": len(regions),
            "peers": sum(len(region["peers"]) for region in regions),
            "backlog": sum(peer["backlog"] for region in regions for peer in region["peers"]),
            "devices": len(devices),
            "front-ends": sum(device["front-end"] is not None for device in devices),
            "clients": len(known["clients"]),
            "flats": len(known["flats"]),
            "joined": sum(one["state"] == "connected" for one in joined),
            "descriptors": known["descriptors"],
        }
        return found, await _whose_journal(daemon)

    from . import systemd
    from .bus_choice import NoDaemon
    from .process import usage

    unit = systemd.unit()
    try:
        known, whose = session.run(ask)
    except NoDaemon:
        if unit and not session.json:  # as systemctl status does: say what systemd knows of it, and its last words
            tables.facts({"Unit": _unit_in_words(unit)})
            _show_journal(systemd.journal(["-u", "doorbelld"], lines))
        raise
    if unit.get("MainPID") != str(known["pid"]):
        unit = {}  # there is a unit, but it is another daemon that we speak to
    process = usage(known["pid"])
    known |= {
        "uptime": None if process is None else round(time.time() - process.started, 3),
        "cpu": None if process is None else process.cpu,
        "memory": None if process is None else process.memory,
        "unit": unit,
        "journal": systemd.journal(whose, lines),
    }
    if session.json:
        session.emit(known)
        return
    tables.facts(_daemon_in_words(known))
    _show_journal(known["journal"])


def _daemon_in_words(known: dict[str, Any]) -> dict[str, str]:
    from . import process

    used = known["descriptors"]
    facts = {"doorbelld": known["version"]}
    if unit := known["unit"]:
        facts["Unit"] = _unit_in_words(unit)
        if unit.get("DropInPaths"):
            facts["Drop-ins"] = unit["DropInPaths"]
    facts["Process"] = str(known["pid"])
    if known["uptime"] is not None:
        up = process.span(known["uptime"])
        facts["Process"] += f", up {up}, CPU {known['cpu']:.2f} s, memory {process.in_words(known['memory'])}"
    return facts | {
        "Bus": known["bus"],
        "Library": known["library"],
        "Serves": f"{plural(known['regions'], 'region')}, {plural(known['peers'], 'peer')}, "
        f"{plural(known['backlog'], 'message')} waiting; "
        f"{plural(known['devices'], 'device')}, {plural(known['front-ends'], 'front-end')}" + _joined_in_words(known),
        "Descriptors": f"{used['in-use']:,} of {used['limit']:,} in use",
    }


def _joined_in_words(known: dict[str, Any]) -> str:
    if not known["clients"] + known["flats"]:
        return ""
    words = f"{plural(known['clients'], 'client')}, {plural(known['flats'], 'flat device')}"
    return f"; {words}, {known['joined']} connected"


def _unit_in_words(unit: dict[str, str]) -> str:
    from .systemd import UNIT

    since = f" since {unit['ActiveEnterTimestamp']}" if unit.get("ActiveEnterTimestamp") else ""
    result = "" if unit.get("Result", "success") == "success" else f", {unit['Result']}"
    place = "; ".join(filter(None, (unit.get("FragmentPath"), unit.get("UnitFileState"))))
    return f"{UNIT}, {unit.get('ActiveState')} ({unit.get('SubState')}{result}){since} ({place})"


async def _add_pending(daemon: Daemon, kind: str, name: str, region: dict[str, Any]) -> None:
    """Put ``pending``, the pending count of each vector, beside each peer; a peer that goes meanwhile is left out."""
    import asyncio

    from ..bus import paths
    from ..bus.client import CallFailed
    from ..bus.names import VECTOR

    slots = asyncio.Semaphore(_IN_FLIGHT)
    peer_path = paths.peer if kind == "region" else paths.client_peer

    async def count(peer: dict[str, Any], vector: int) -> int:
        async with slots:
            path = f"{peer_path(name, peer['id'])}/vector/{vector}"
            return int(await daemon.client.get(path, VECTOR, "PendingCount"))

    async def fill(peer: dict[str, Any]) -> dict[str, Any] | None:
        try:
            pending = await asyncio.gather(*(count(peer, vector) for vector in range(peer["vectors"])))
        except CallFailed:
            return None
        return {**peer, "pending": pending}

    filled = await asyncio.gather(*(fill(peer) for peer in region["peers"]))
    region["peers"] = [peer for peer in filled if peer is not None]


@click.command()
@click.argument("name", required=False, default="", shell_complete=complete_one_of(*_WITH_PEERS))
@kind_option_of(*_WITH_PEERS)
@table_option
@json_option
@pass_session
def peers(session: Session, name: str, kind: str | None) -> None:
    r"""List the peers of a region: guests and host processes that are connected now; or those that a client sees.

    Of those in the region of another server no more is known than that it tells: their IDs and their doorbells. Without
    NAME the peers of all regions are listed; with --json as an object with the peers of each.

    \b
    Examples:
      doorbellctl peers
      doorbellctl peers demo
      doorbellctl peers demo --json | jq '.[].vm'
    """
    if not name:
        _peers_of_all(session)
        return
    found, known = session.run(lambda daemon: daemon.find(name, kind, _WITH_PEERS))
    if session.json:
        session.emit(known["peers"])
    elif found == "client":
        from . import client_tables

        client_tables.peers(name, known)
    elif not known["peers"]:
        click.echo(f"No peer is connected to {known['socket']}. What a guest needs: doorbellctl qemu-args {name}")
    else:
        tables.peers_of(known)


def _peers_of_all(session: Session) -> None:
    regions = session.run(lambda daemon: daemon.describe())["regions"]
    if session.json:
        session.emit({name: region["peers"] for name, region in regions.items()})
    elif not any(region["peers"] for region in regions.values()):
        click.echo("No peer is connected to any region. What there is: doorbellctl")
    else:
        tables.peers_of_all(regions)


@click.command()
@json_option
@pass_session
def describe(session: Session) -> None:
    """Print everything there is as JSON: the daemon, regions, peers, host rings, devices, queues, clients."""
    session.emit(session.run(lambda daemon: daemon.describe()))
