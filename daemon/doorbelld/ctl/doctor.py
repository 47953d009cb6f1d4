# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command doctor: looks at everything that goes wrong in practice, and says what to do.

It only looks. What it looks at is gathered once, into a `View`; the checks are functions of that, in the order in
which one would ask.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from .. import __version__
from ..bus import library
from ..bus.address import resolve
from ..bus.client import CallFailed
from ..bus.names import BUS_NAME, MANAGER, ROOT
from . import systemd
from .bus_choice import NoDaemon, NotOurBus
from .checks import access, clients, devices, guests, service
from .checks.view import Finding, Level, User, View
from .session import Daemon, Refused, Session, json_option, pass_session, plural

CHECKS: dict[str, Callable[[View], Iterator[Finding]]] = {
    "daemon": service.reached,
    "unit": service.unit,
    "sandbox": service.sandbox,
    "libraries": service.libraries,
    "bus policy": service.bus_policy,
    "activation": service.activation,
    "polkit": service.polkit,
    "descriptors": service.descriptors,
    "descriptor store": service.store,
    "datagrams": service.datagrams,
    "sockets": access.sockets,
    "stale sockets": access.stale,
    "AppArmor": access.apparmor,
    "SELinux": access.selinux,
    "devices": devices.states,
    "images": devices.images,
    "io_uring": devices.uring,
    "clients": clients.joined,
    "guests": guests.guests,
    "huge pages": guests.huge_pages,
}
"""All checks by what they are called, in the order in which they are made."""

_MARKS = {
    Level.OK: ("ok   ", "green"),
    Level.HINT: ("hint ", "yellow"),
    Level.WRONG: ("WRONG", "red"),
    Level.SKIPPED: ("-    ", None),
}


def examine(view: View) -> Iterator[tuple[str, Finding]]:
    """Make all checks."""
    for title, check in CHECKS.items():
        for finding in check(view):
            yield title, finding


def _look(session: Session) -> View:
    """Gather what the checks are about; a daemon that can't be reached is a finding, not an error."""

    async def ask(daemon: Daemon) -> dict[str, Any]:
        client = daemon.client
        found: dict[str, Any] = {
            "address": client.address,
            "on_system_bus": client.address == resolve("system"),
            "pid": int(await client.call_bus("GetConnectionUnixProcessID", "s", BUS_NAME)),
        }
        try:
            found["known"] = await daemon.describe()
            found["library"] = await client.get(ROOT, MANAGER, "Library")
        except CallFailed as error:
            if error.nobody_there:
                raise
            found |= _said_no(error)
        return found

    found: dict[str, Any]
    try:
        found = session.run(ask)
    except NotOurBus as error:
        trouble, _, cure = error.message.rpartition("; ")
        found = {"trouble": trouble, "cure": cure, "on_system_bus": False}
    except NoDaemon as error:
        first, *places = map(str.strip, error.message.splitlines())
        cure = places.pop() if places else "journalctl -u doorbelld -b says why; then systemctl restart doorbelld"
        found = {"trouble": ": ".join(filter(None, (first, "; ".join(places)))), "cure": cure}
        found["on_system_bus"] = session.bus in ("auto", "system")
    except Refused as error:
        found = {"trouble": f"the message bus refuses: {error.message}", "cure": "ask as root"}
        found["on_system_bus"] = session.bus in ("auto", "system")
    view = View(own_version=__version__, own_library=library.describe(), unit=systemd.unit(), **found)
    view.disks = _disks(view)
    groups = frozenset((os.getegid(), *os.getgroups()))
    view.me = User(view.user_name(os.geteuid()), os.geteuid(), groups, view.group_name(os.getegid()))
    return view


def _said_no(error: CallFailed) -> dict[str, str]:
    """Say what to do about a daemon that is there, and answers with an error."""
    if error.kind in ("AccessDenied", "InteractiveAuthorizationRequired"):
        cure = "ask as root, or have an administrator let you (polkit action org.doorbelld.Doorbell1.inspect)"
        return {"trouble": f"the daemon does not talk to you: {error.text}", "cure": cure}
    cure = "its log has the reason (journalctl -u doorbelld -p err); report it, it is a bug"
    return {"trouble": f"the daemon answers with an error: {error.text}", "cure": cure}


def _disks(view: View) -> dict[str, dict[str, Any]]:
    """Give the disks of the configuration that the daemon reads, or that it would read if it ran."""
    from ..config.loader import read_file, read_layered

    words = view.read(f"/proc/{view.pid}/cmdline").split("\0") if view.pid else []
    named = next((file for flag, file in itertools.pairwise(words) if flag == "--config"), "")
    named = named or next((word.partition("=")[2] for word in words if word.startswith("--config=")), "")
    if named and not os.path.isabs(named):
        try:
            named = os.path.join(os.readlink(f"/proc/{view.pid}/cwd"), named)
        except OSError:
            return {}
    tables = (read_file(named) if named else read_layered()).config.layers.tables.get("device", {})
    if not isinstance(tables, dict):
        return {}
    return {name: table for name, table in tables.items() if isinstance(table, dict) and table.get("type") == "blk"}


@click.command()
@click.option("--all", "everything", is_flag=True, help="Also list the checks that had nothing to look at.")
@json_option
@pass_session
def doctor(session: Session, everything: bool) -> None:
    r"""Find out what keeps guests, callers or the daemon from working, and what to do about it.

    It looks at the daemon and its bus, the unit and its sandbox, bus policy and polkit, limits on descriptors,
    whether the users that run guests can reach each socket (permissions, AppArmor, SELinux), sockets that nobody
    serves, devices that broke and why, the images of disks, io_uring, clients that are not connected and why, and the
    command lines of the QEMUs that run. It changes nothing, and connects to nothing but the bus. As root it sees more.

    A hint is not an error: it may be in the way of somebody, or as you want it.

    \b
    Examples:
      sudo doorbellctl doctor
      doorbellctl doctor --json | jq -r '.findings[] | select(.level == "wrong") | .cure'

    \b
    Exit status:
      0   nothing is wrong; there may be hints
      1   something is wrong
    """
    findings = list(examine(_look(session)))
    count = {level: sum(finding.level is level for _, finding in findings) for level in Level}
    if session.json:
        rows = [{"check": title, "level": str(f.level), "found": f.found, "cure": f.cure} for title, f in findings]
        session.emit({"ok": not count[Level.WRONG], "findings": rows})
    else:
        for title, finding in findings:
            if everything or finding.level is not Level.SKIPPED:
                _show(title, finding)
        click.echo()
        if count[Level.WRONG]:
            click.echo(f"{plural(count[Level.WRONG], 'thing')} wrong{_hints(count)}.")
        else:
            click.echo(f"Nothing is wrong{_hints(count)}. doorbellctl selftest tries it out.")
    sys.exit(1 if count[Level.WRONG] else 0)


def _hints(count: dict[Level, int]) -> str:
    return f", {plural(count[Level.HINT], 'hint')}" if count[Level.HINT] else ""


def _show(title: str, finding: Finding) -> None:
    mark, colour = _MARKS[finding.level]
    click.echo(f"{click.style(mark, fg=colour, bold=finding.level is Level.WRONG)}  {title}: {finding.found}")
    if finding.cure:
        click.echo(f"       cure: {finding.cure}")
