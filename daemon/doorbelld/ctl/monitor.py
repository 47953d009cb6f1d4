# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command monitor: what happens, as it happens, one line each.

It goes on when the daemon goes away, or the bus with it, and tells when it is back; what happened in between can't be
known, so it then says what there is.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from .session import Daemon, Session, complete_region, json_option, pass_session, plural

if TYPE_CHECKING:
    from ..bus.client import Client, Signal

_COLOURS = {
    "peer-added": "green",
    "peer-removed": "yellow",
    "rung": "cyan",
    "region-added": "green",
    "region-removed": "yellow",
    "daemon-gone": "red",
    "daemon-back": "green",
}


@dataclass(frozen=True, slots=True)
class Event:
    """Something to tell: its kind, its region if it has one, words for people, values for programs."""

    kind: str
    region: str
    words: str
    values: dict[str, Any] = field(default_factory=dict)

    def show(self, as_json: bool) -> None:
        """Print it, with the time of now, and flush."""
        now = time.time()
        if as_json:
            record = {"time": round(now, 6), "event": self.kind} | ({"region": self.region} if self.region else {})
            click.echo(json.dumps(record | self.values, ensure_ascii=False))
        else:
            clock = datetime.datetime.fromtimestamp(now).strftime("%H:%M:%S.%f")[:-3]
            subject = self.region or "doorbelld"
            words = click.style(self.words, fg=_COLOURS.get(self.kind))
            click.echo(f"{click.style(clock, dim=True)}  {subject:9}  {words}")
        sys.stdout.flush()


_GONE = Event("daemon-gone", "", "the daemon went away; waiting for it")


class Interpreter:
    """Turns the daemon's signals into events; of one region only, if *only* names it.

    A peer's properties come with InterfacesAdded, just before its PeerAdded, and are kept in between.
    """

    def __init__(self, only: str = "") -> None:
        self._only = only
        self._fresh: dict[str, dict[str, Any]] = {}

    def events(self, heard: Signal) -> Iterator[Event]:
        """Give what *heard* tells: mostly one event, or none."""
        event = self._event(heard)
        if event is not None and self._only in ("", event.region):
            yield event

    def _event(self, heard: Signal) -> Event | None:
        from ..bus import names
        from ..ivshmem.spec import in_units

        region = _region_of(heard.path)
        match heard.member, heard.body:
            case "Rung", [vector, count]:
                times = plural(count, "time")
                values = {"vector": vector, "count": count}
                return Event("rung", region, f"rang the host: vector {vector}, {times}", values)
            case "PeerAdded", [peer, path]:
                known = self._fresh.pop(path, {})
                values = {"peer": peer}
                who = ""
                if known:
                    values |= {"vm": known["VmName"], "pid": known["Pid"], "uid": known["Uid"], "unit": known["Unit"]}
                    name = f"VM {known['VmName']}, " if known["VmName"] else ""
                    who = f": {name}pid {known['Pid']}, uid {known['Uid']}"
                return Event("peer-added", region, f"peer {peer} joined{who}", values)
            case "PeerRemoved", [peer, reason]:
                return Event("peer-removed", region, f"peer {peer} left: {reason}", {"peer": peer, "reason": reason})
            case "InterfacesAdded", [path, interfaces]:
                if (made := interfaces.get(names.REGION)) is not None:
                    values = {"size": made["Size"], "vectors": made["Vectors"], "socket": made["Socket"]}
                    what = f"{in_units(made['Size'])}, {plural(made['Vectors'], 'vector')}, {made['Socket']}"
                    return Event("region-added", made["Name"], f"region made: {what}", values)
                if (peer := interfaces.get(names.PEER)) is not None:
                    self._fresh[path] = peer
            case "InterfacesRemoved", [path, interfaces] if names.REGION in interfaces:
                return Event("region-removed", _region_of(path), "region removed")
        return None


def _region_of(path: str) -> str:
    """Give the name of the region that *path* is or lies in; empty if in none."""
    from ..bus import paths
    from ..bus.names import ROOT

    match path.removeprefix(ROOT).split("/"):
        case ["", "region", element, *_]:
            return paths.unescape(element)
    return ""


@click.command()
@click.argument("region", required=False, default="", shell_complete=complete_region)
@json_option
@pass_session
def monitor(session: Session, region: str) -> None:
    r"""Print what happens, until Ctrl-C: of all regions, or of one.

    Peers joining, and leaving with the reason; rings of the host peer with their counts; regions coming and going;
    the daemon going away and coming back. Guests ring each other without the daemon, so those rings are not seen.
    With --json each event is one JSON object on a line of its own.

    \b
    Examples:
      doorbellctl monitor demo
      doorbellctl monitor --json | jq -r 'select(.event == "rung") | .vector'
    """
    import contextlib

    from .lasting import Stopped, outlive, run_until_stopped

    async def watch(client: Client, back: bool) -> None:
        await _watch_one_bus(client, session, region, back)

    with contextlib.suppress(Stopped):
        run_until_stopped(lambda: outlive(session.bus, watch, lambda: _GONE.show(session.json)))


async def _watch_one_bus(client: Client, session: Session, only: str, back: bool) -> None:
    """Watch until the bus goes away (BusUnavailable)."""
    from ..bus.client import OWNER_CHANGED, CallFailed, Match
    from ..bus.names import ROOT

    interpreter = Interpreter(only)
    async with await client.subscribe(Match(path_namespace=ROOT), OWNER_CHANGED) as signals:
        await _introduce(client, session, only, back)
        lost = 0
        async for heard in signals:
            if heard.member == "NameOwnerChanged":
                if not heard.body[2]:
                    _GONE.show(session.json)
                    continue
                try:
                    await _introduce(client, session, only, back=True)
                except CallFailed as error:
                    if not error.nobody_there:  # gone again: another signal tells
                        raise
                continue
            for event in interpreter.events(heard):
                event.show(session.json)
            if signals.lost > lost:
                count, lost = signals.lost - lost, signals.lost
                words = f"{plural(count, 'event')} lost: what reads this is too slow"
                Event("lost", "", words, {"count": count}).show(session.json)


async def _introduce(client: Client, session: Session, only: str, back: bool) -> None:
    """Say what is watched, and what there is."""
    regions = (await Daemon(client).describe())["regions"]
    peers = sum(len(known["peers"]) for name, known in regions.items() if only in ("", name))
    if not only:
        there = f"{plural(len(regions), 'region')}, {plural(peers, 'peer')}"
    elif only in regions:
        there = f"region {only}, {plural(peers, 'peer')}"
    else:
        there = f"region {only}, which is not there yet"
    values = {"regions": sorted(regions), "peers": peers}
    if back:
        Event("daemon-back", "", f"the daemon is back: {there}", values).show(session.json)
    else:
        Event("watching", "", f"watching {there}; Ctrl-C ends it", values).show(session.json)
