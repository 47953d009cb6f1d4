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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from .arguments import complete_name
from .session import KINDS, WORDS, Daemon, Session, json_option, pass_session, plural

if TYPE_CHECKING:
    from ..bus.client import Client, Signal

_COLOURS = {
    "peer-added": "green",
    "peer-removed": "yellow",
    "rung": "cyan",
    "region-added": "green",
    "region-removed": "yellow",
    "client-added": "green",
    "client-removed": "yellow",
    "flat-added": "green",
    "flat-removed": "yellow",
    "interrupt": "cyan",
    "front-end-attached": "green",
    "front-end-detached": "yellow",
    "device-added": "green",
    "device-removed": "yellow",
    "daemon-gone": "red",
    "daemon-back": "green",
}


@dataclass(frozen=True, slots=True)
class Event:
    """Something to tell: its kind, its region if it has one, words for people, values for programs.

    Or it is about a device, a client or a flat device.
    """

    kind: str
    region: str
    words: str
    values: dict[str, Any] = field(default_factory=dict)
    device: str = ""
    client: str = ""
    flat: str = ""

    @property
    def about(self) -> dict[str, str]:
        """What it is about: one of `session.KINDS`, and a name; empty if it is about the daemon."""
        return {kind: name for kind in KINDS if (name := getattr(self, kind))}

    def show(self, as_json: bool) -> None:
        """Print it, with the time of now, and flush."""
        now = time.time()
        if as_json:
            record = {"time": round(now, 6), "event": self.kind, **self.about}
            click.echo(json.dumps(record | self.values, ensure_ascii=False))
        else:
            clock = datetime.datetime.fromtimestamp(now).strftime("%H:%M:%S.%f")[:-3]
            subject = next(iter(self.about.values()), "doorbelld")
            colour = "red" if self.values.get("broken") else _COLOURS.get(self.kind)
            words = click.style(self.words, fg=colour)
            click.echo(f"{click.style(clock, dim=True)}  {subject:9}  {words}")
        sys.stdout.flush()


_GONE = Event("daemon-gone", "", "the daemon went away; waiting for it")


class Interpreter:
    """Turns the daemon's signals into events; of one region, device, client or flat device only, if *only* names it.

    A peer's properties come with InterfacesAdded, just before its PeerAdded, and are kept in between. Those of a
    front-end come just after FrontendAttached, which waits for them.
    """

    def __init__(self, only: str = "") -> None:
        self._only = only
        self._fresh: dict[str, dict[str, Any]] = {}
        self._attached: dict[str, int] = {}
        self._states: dict[str, str] = {}
        self._spaces: dict[str, bytes] = {}
        self._joined: dict[str, tuple[str, str]] = {}

    def events(self, heard: Signal) -> Iterator[Event]:
        """Give what *heard* tells: mostly one event, or none."""
        found: Iterator[Event | None]
        if heard.member == "Reloaded":
            found = iter((_reloaded(heard),))
        elif (kind := _kind_of(heard.path)) in _JOINED:
            found = self._of_joined(heard, kind)
        elif (added := _added(heard)) in _JOINED:
            found = self._come_or_gone(heard, added)
        else:
            found = iter((self._of_region(heard), *self._of_device(heard)))
        for event in found:
            if event is not None and self._only in ("", *event.about.values()):
                yield event

    def _of_region(self, heard: Signal) -> Event | None:
        from ..bus import names
        from ..ivshmem.spec import in_units

        region = _name_of(heard.path, "region")
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
                return Event("region-removed", _name_of(path, "region"), "region removed")
        return None

    def _of_device(self, heard: Signal) -> Iterator[Event]:
        from ..bus import names

        path, name = heard.path, _name_of(heard.path, "device")
        match heard.member, heard.body:
            case "FrontendAttached", [pid]:
                yield from self._attach(path)
                self._attached[path] = pid
            case "FrontendDetached", [reason, broken]:
                yield from self._attach(path)
                words = f"front-end {'broke it' if broken else 'detached'}: {reason}"
                yield Event("front-end-detached", "", words, {"reason": reason, "broken": broken}, name)
            case "PropertiesChanged", [names.DEVICE, changed, _]:
                if "FrontendPid" in changed:
                    yield from self._attach(path, changed)
                state = changed.get("State", "")
                if state and state != self._states.get(path):
                    self._states[path] = state
                    values = {"state": state, "reason": changed.get("Reason", "")}
                    yield Event("device-state", "", f"is {state}", values, name)
                if self._config_changed(path, changed):
                    yield Event("device-config", "", "its configuration changed", {}, name)
            case "InterfacesAdded", [_, {names.DEVICE: made}]:
                values = {"type": made["Type"], "socket": made["Socket"]}
                words = f"device made: {made['Type']}, {plural(made['QueueCount'], 'queue')}, {made['Socket']}"
                yield Event("device-added", "", words, values, made["Name"])
            case "InterfacesRemoved", [gone, interfaces] if names.DEVICE in interfaces:
                yield from self._attach(gone)
                self._states.pop(gone, None)
                self._spaces.pop(gone, None)
                yield Event("device-removed", "", "device removed", {}, _name_of(gone, "device"))

    def _of_joined(self, heard: Signal, kind: str) -> Iterator[Event]:
        """Give what a client or a flat device tells."""
        about = {kind: _name_of(heard.path, kind)}
        match heard.member, heard.body:
            case ("Rung" | "Interrupt") as member, [vector, count]:
                times, values = plural(count, "time"), {"vector": vector, "count": count}
                what = "interrupt" if member == "Interrupt" else "rung"
                yield Event(what, "", f"{'was ' * (what == 'rung')}{what}: vector {vector}, {times}", values, **about)
            case "PeerAdded", [peer, _]:
                yield Event("peer-added", "", f"sees peer {peer}", {"peer": peer}, **about)
            case "PeerRemoved", [peer]:
                yield Event("peer-removed", "", f"sees peer {peer} no more", {"peer": peer}, **about)
            case "PropertiesChanged", [_, {"State": state, **changed}, _]:
                values = {"state": state, "reason": changed.get("Reason", "")}
                if (state, values["reason"]) != self._joined.get(heard.path):
                    self._joined[heard.path] = state, values["reason"]
                    words = ": ".join(filter(None, (f"is {state}", values["reason"])))
                    yield Event(f"{kind}-state", "", words, values, **about)

    def _come_or_gone(self, heard: Signal, kind: str) -> Iterator[Event]:
        match heard.member, heard.body:
            case "InterfacesAdded", [_, interfaces]:
                made = next(iter(interfaces.values()))
                words = f"{WORDS[kind]} made, of the server at {made['Socket']}"
                yield Event(f"{kind}-added", "", words, {"socket": made["Socket"]}, **{kind: made["Name"]})
            case "InterfacesRemoved", [gone, _]:
                self._joined.pop(gone, None)
                yield Event(f"{kind}-removed", "", f"{WORDS[kind]} removed", {}, **{kind: _name_of(gone, kind)})

    def _config_changed(self, path: str, changed: Mapping[str, Any]) -> bool:
        """Tell whether a configuration space is another now; it also comes along with what was negotiated."""
        if (space := changed.get("ConfigSpace")) is None:
            return False
        before, self._spaces[path] = self._spaces.get(path), space
        return before != space if before is not None else "AckedFeatures" not in changed

    def _attach(self, path: str, known: Mapping[str, Any] | None = None) -> Iterator[Event]:
        """Tell of a front-end that was attached and has waited for being *known*."""
        if (pid := self._attached.pop(path, None)) is None:
            return
        values: dict[str, Any] = {"pid": pid}
        words = f"front-end attached: pid {pid}"
        if known and known["FrontendPid"] == pid:
            vm, uid = known["FrontendVmName"], known["FrontendUid"]
            values |= {"vm": vm, "uid": uid, "unit": known["FrontendUnit"]}
            words = f"front-end attached: {f'VM {vm}, ' if vm else ''}pid {pid}, uid {uid}"
        yield Event("front-end-attached", "", words, values, _name_of(path, "device"))


def _reloaded(heard: Signal) -> Event:
    """Tell of a reload of the configuration."""
    from .reloading import ACTIONS, changes_in_words

    (changes,) = heard.body
    values = {action: [f"{kind} {name}" for did, kind, name in changes if did == action] for action in ACTIONS}
    words = f"configuration reloaded: {changes_in_words(changes) or 'nothing changed'}"
    return Event("configuration-reloaded", "", words, values)


_JOINED = ("client", "flat")
"""Kinds that are in the regions of others."""


def _kind_of(path: str) -> str:
    """Tell which kind of thing *path* is, or lies in; empty if in none."""
    from ..bus.names import ROOT

    return path.removeprefix(f"{ROOT}/").partition("/")[0] if path.startswith(f"{ROOT}/") else ""


def _added(heard: Signal) -> str:
    """Tell whether it is a client or a flat device that came or went, not a peer below: which; else empty."""
    from ..bus.names import CLIENT, FLAT

    if heard.member in ("InterfacesAdded", "InterfacesRemoved"):
        for kind, interface in (("client", CLIENT), ("flat", FLAT)):
            if interface in heard.body[1]:
                return kind
    return ""


def _name_of(path: str, kind: str) -> str:
    """Give the name of the region, or what else is the *kind*, that *path* is or lies in; empty if in none."""
    from ..bus import paths
    from ..bus.names import ROOT

    match path.removeprefix(ROOT).split("/"):
        case ["", found, element, *_] if found == kind:
            return paths.unescape(element)
    return ""


@click.command()
@click.argument("name", required=False, default="", shell_complete=complete_name)
@json_option
@pass_session
def monitor(session: Session, name: str) -> None:
    r"""Print what happens, until Ctrl-C: of all regions, devices, clients and flat devices, or of one.

    Peers joining, and leaving with the reason; rings of the host peer with their counts; front-ends of devices
    coming, and going with the reason; devices that begin to run, stop or break; rings of clients and interrupts of flat
    devices, whom they see, and how they stand with their servers; all of these coming and going; reloads of the
    configuration, with what they changed; the daemon going away and coming back. A ring does not say who rang: only a
    relay knows (pairs shows it), in a region with relay = true. Guests ring each other without the daemon, so those
    rings are not seen, and the requests to devices are not told one by one: see top. With --json each event is one
    JSON object on a line of its own.

    \b
    Examples:
      doorbellctl monitor demo
      doorbellctl monitor --json | jq -r 'select(.event == "rung") | .vector'
      doorbellctl monitor --json | jq -r 'select(.broken) | .device + ": " + .reason'
    """
    import contextlib

    from .lasting import Stopped, outlive, run_until_stopped

    async def watch(client: Client, back: bool) -> None:
        await _watch_one_bus(client, session, name, back)

    with contextlib.suppress(Stopped):
        run_until_stopped(lambda: outlive(session, watch, lambda: _GONE.show(session.json)))


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
    from .tables import counts

    known = await Daemon(client).describe()
    kinds = [kind for kind in KINDS if only in known[f"{kind}s"]]
    peers = sum(len(region["peers"]) for name, region in known["regions"].items() if only in ("", name))
    if not only:
        there = counts(known)
    elif not kinds:
        there = f"{only}, which is not there yet"
    else:
        there = " and ".join(f"{WORDS[kind]} {only}" for kind in kinds)
        there += f", {plural(peers, 'peer')}" * ("region" in kinds)
    values = {f"{kind}s": sorted(known[f"{kind}s"]) for kind in KINDS} | {"peers": peers}
    if back:
        Event("daemon-back", "", f"the daemon is back: {there}", values).show(session.json)
    else:
        Event("watching", "", f"watching {there}; Ctrl-C ends it", values).show(session.json)
