# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that change what there is: create, create-device, remove, reset, refresh, reload.

Those that make clients and flat devices are in `clients` and `flats`.
"""

from __future__ import annotations

import sys
import tomllib
from typing import Any

import click

from ..ivshmem.spec import in_units
from . import device_tables
from .arguments import (
    complete_device,
    complete_name,
    complete_one_of,
    complete_type,
    device_argument,
    kind_option,
    yes_option,
)
from .reloading import ACTIONS, changes_in_words
from .session import KINDS, WORDS, Daemon, Refused, Session, ask_first, json_option, pass_session, place, plural

_KEYS = (
    ("--size", str, "SIZE", "Bytes, or with K, M, G: a power of two. Default: 4M."),
    ("--vectors", int, "N", "Doorbells per peer, 1 to 64. Default: 4."),
    ("--socket", str, "PATH", "Where guests connect. Default: <runtime-directory>/NAME/socket."),
    ("--owner", str, "USER", "Owner of the socket."),
    ("--group", str, "GROUP", "Group of the socket, such as kvm."),
    ("--mode", str, "MODE", "Mode of the socket, in octal. Default: 0660."),
    ("--backing", str, "KIND", "Memory: memfd, hugetlb, shm:NAME or file:PATH. Default: memfd."),
    ("--first-id", int, "ID", "The ID that the first guest gets. Default: 0."),
    ("--host-peer-id", int, "ID", "The daemon's own ID. Default: 65535."),
    ("--max-peers", int, "N", "How many may connect. Default: 1024."),
    ("--stall-timeout", str, "TIME", "Drop a peer that takes nothing for so long; or never. Default: 30s."),
    ("--relay-rate", int, "N", "With --relay: deliveries a second of each pair. Default: 0, no limit."),
)


def _key_options(function: Any) -> Any:
    for flag, kind, metavar, words in reversed(_KEYS):
        function = click.option(flag, type=kind, metavar=metavar, help=words)(function)
    return function


def setting(text: str, hint: str = "--set") -> tuple[str, Any]:
    """Read ``KEY=VALUE``, where VALUE is as in TOML, or bare text; *hint* is where it was written.

    Raises:
        click.BadParameter: there is no ``=``.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        guess = f"; did you mean path={text}?" if text.startswith("/") else ""
        raise click.BadParameter(f'"{text}" is no KEY=VALUE{guess}', param_hint=hint)
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


@click.command()
@click.argument("name")
@_key_options
@click.option("--host-peer/--no-host-peer", default=None, help="Whether guests can ring the host. Default: they can.")
@click.option("--relay", is_flag=True, default=None, help="Have rings pass the daemon, to count and limit them.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any key of a [region.NAME], as in TOML.")
@json_option
@pass_session
def create(session: Session, /, name: str, settings: tuple[str, ...], **given: Any) -> None:
    r"""Make a region and serve it at once, until it is removed or the daemon stops.

    The options are the keys of a [region.NAME] in doorbelld.toml; --set gives any of them.

    \b
    Examples:
      doorbellctl create demo
      doorbellctl create video --size 64M --vectors 8 --group kvm
      doorbellctl create strangers --relay --relay-rate 1000
      doorbellctl create lab --set 'peer=[{match={vm="guest1"}, id=7}]'
    """
    options = {key.replace("_", "-"): value for key, value in given.items() if value is not None}
    options.update(map(setting, settings))

    async def make(daemon: Daemon) -> dict[str, Any]:
        await daemon.call("CreateRegion", "sa{sv}", name, _wrapped(options), timeout=None)
        return await daemon.region(name)

    made = session.run(make)
    if session.json:
        session.emit({"name": name, **made})
        return
    what = f"{in_units(made['size'])}, {plural(made['vectors'], 'vector')} per peer"
    click.echo(f"made region {name} ({what}); guests connect at {made['socket']}")
    if sys.stdout.isatty():
        click.echo(f"next: doorbellctl qemu-args {name}")


def _wrapped(options: dict[str, Any]) -> dict[str, Any]:
    from ..bus import client

    try:
        return client.options(options)
    except TypeError as error:
        raise Refused(str(error)) from None


@click.command("create-device")
@click.argument("name")
@click.argument("type_", metavar="TYPE", shell_complete=complete_type)
@click.argument("settings", metavar="[KEY=VALUE]...", nargs=-1)
@json_option
@pass_session
def create_device(session: Session, name: str, type_: str, settings: tuple[str, ...]) -> None:
    r"""Make a vhost-user device and serve it at once, until it is removed or the daemon stops.

    TYPE is what it does: blk is a disk, rng gives random bytes, loopback is for trying out; others come with packages
    of their own. The settings are the keys of a [device.NAME] in doorbelld.toml, as in TOML, where text needs no
    quotes. The daemon opens the files that they name, not you.

    \b
    All types have:
      socket, owner, group, mode   where the front-end connects, and who may
      connect=true                 the front-end listens at socket, the daemon connects
      queues, queue-size           how many, and how many entries each, at most
      poll-us                      look for requests for so long before sleeping
      silence-timeout              how long a front-end that says nothing keeps others away

    \b
    A blk has:
      path                         a raw image or a block device
      read-only, cache, aio, threads, serial, block-size, discard

    \b
    An rng has:
      rate                         bytes a second, at most

    \b
    Examples:
      doorbellctl create-device disk0 blk path=/var/lib/doorbelld/disk0.img group=kvm
      doorbellctl create-device disk1 blk path=/dev/vg0/data cache=direct queues=4
      doorbellctl create-device entropy rng rate=1M
    """
    options = dict(setting(text, "[KEY=VALUE]...") for text in settings)

    async def make(daemon: Daemon) -> dict[str, Any]:
        await daemon.call("CreateDevice", "ssa{sv}", name, type_, _wrapped(options), timeout=None)
        return await daemon.device(name)

    made = session.run(make)
    if session.json:
        session.emit({"name": name, **made})
        return
    if words := device_tables.error(made):
        click.echo(f"warning: {name}: {words}", err=True)
    where = f"looks for a front-end at {made['socket']}" if made["connect"] else f"listens at {made['socket']}"
    click.echo(f"made device {name} ({made['type']}, {plural(len(made['queues']), 'queue')}); it {where}")
    if sys.stdout.isatty():
        click.echo(f"next: doorbellctl qemu-args {name}")


@click.command()
@click.argument("name", shell_complete=complete_name)
@kind_option
@yes_option
@json_option
@pass_session
def remove(session: Session, name: str, kind: str | None, yes: bool) -> None:
    """Remove a region, a device, a client or a flat device: who is connected is disconnected, its socket goes.

    What guests were given of a region they keep: the memory that they have mapped, and each other's doorbells. Memory
    with a name (backing shm or file) stays where it is.

    A device is brought to rest first: what it has begun it finishes, and then it never touches the guest's memory
    again. To a guest that uses it, a disk that was removed hangs until a device comes back on the same socket.

    A client or a flat device leaves the region that it joined.

    If somebody is connected you are asked first; without a terminal to ask on, --yes is needed.
    """
    _remove(session, name, kind or "", yes)


@click.command("remove-device")
@click.argument("device", shell_complete=complete_device)
@yes_option
@json_option
@pass_session
def remove_device(session: Session, device: str, yes: bool) -> None:
    """Remove a device, and never a region of the same name: what remove --kind device does."""
    _remove(session, device, "device", yes)


@click.command("remove-client")
@click.argument("client", shell_complete=complete_one_of("client"))
@json_option
@pass_session
def remove_client(session: Session, client: str) -> None:
    """Remove a client, and nothing else of the same name: what remove --kind client does."""
    _remove(session, client, "client", yes=True)


@click.command("remove-flat")
@click.argument("flat", shell_complete=complete_one_of("flat"))
@json_option
@pass_session
def remove_flat(session: Session, flat: str) -> None:
    """Remove a flat device, and nothing else of the same name: what remove --kind flat does."""
    _remove(session, flat, "flat", yes=True)


_REMOVALS = {
    "region": "RemoveRegion",
    "device": "RemoveDevice",
    "client": "RemoveClient",
    "flat": "RemoveFlatDevice",
}


def _remove(session: Session, name: str, kind: str, yes: bool) -> None:
    async def ask(daemon: Daemon) -> tuple[str, list[str]]:
        found = await daemon.kind_of(name, [kind] if kind else KINDS)
        return found, await _connected(daemon, found, name)

    found, names = session.run(ask)
    there = _in_words(found, names)
    if there and not yes:
        ask_first(f'{found} "{name}" has {there} connected', "disconnect and remove it", f'{found} "{name}" stays')
    session.run(lambda daemon: daemon.call(_REMOVALS[found], "s", name, timeout=None))
    session.done(f"removed {WORDS[found]} {name}", name=name, disconnected=len(names))


async def _connected(daemon: Daemon, kind: str, name: str) -> list[str]:
    """Name those who are connected to a region or a device; nobody where it is we who connect.

    What is asked for is the least that tells: a thing can be removed though it can't be described.
    """
    from ..bus.client import CallFailed

    if kind == "region":
        return [vm or f"pid {pid}" for _, pid, _, _, vm, _ in await daemon.call("ListPeers", "s", name)]
    if kind != "device":
        return []
    path, interface = place(kind, name)
    try:
        told = [await daemon.client.get(path, interface, key) for key in ("FrontendPid", "FrontendVmName", "State")]
    except CallFailed:
        return []  # it is not there, which RemoveDevice says better
    pid, vm, state = told
    return [vm or f"pid {pid}"] if state in ("connected", "running") else []


def _in_words(kind: str, names: list[str]) -> str:
    """Say who is connected; empty if nobody is."""
    if kind == "device":
        return f"a front-end ({names[0]})" if names else ""
    return f"{plural(len(names), 'peer')} ({', '.join(names[:5])}{', ...' * (len(names) > 5)})" if names else ""


@click.command()
@device_argument
@json_option
@pass_session
def refresh(session: Session, device: str) -> None:
    r"""Have a device look again at what is behind it: a disk at the size of its image.

    The guest is told at once if that has changed.

    \b
    Example:
      truncate -s 20G disk0.img && doorbellctl refresh disk0
    """

    async def work(daemon: Daemon) -> dict[str, Any]:
        await daemon.call_device(device, "Refresh")
        return await daemon.device(device)

    known = session.run(work)
    something = bool(known.get("refreshable", True))
    words = f"{device} looked again" if something else f"{device} is a {known['type']}, which has nothing to look at"
    session.done(words, device=device, refreshable=something)


@click.command()
@device_argument
@json_option
@pass_session
def reset(session: Session, device: str) -> None:
    """Give a device the state that it had at first: its queues stop, and the guest has to set them up anew.

    For a device whose driver in the guest is stuck; what the guest has not got an answer for, it does not get. The
    front-end stays connected. Where it takes note of the device's status, the driver is told that the device needs a
    reset; else the device hangs in the guest until its driver is loaded anew.
    """
    session.run(lambda daemon: daemon.call_device(device, "Reset"))
    session.done(f"reset {device}", device=device)


@click.command()
@json_option
@pass_session
def reload(session: Session) -> None:
    """Have the daemon read its configuration again.

    What is new in it is made, what is gone from it is removed, the rest is left alone, as is what was made over D-Bus
    (create, create-device and the like). What was made, removed and changed is listed. If anything is wrong with the
    configuration, or would change what can't change while it is served, nothing is done and all problems are listed.
    """

    async def work(daemon: Daemon) -> tuple[list[list[str]] | None, dict[str, list[str]]]:
        from ..bus.client import Match, Signal
        from ..bus.names import MANAGER, ROOT

        heard: list[Signal] = []
        match = Match(path=ROOT, interface=MANAGER, member="Reloaded")
        async with await daemon.client.subscribe(match, callback=heard.append):
            await daemon.call("Reload", timeout=None)
        known = await daemon.describe()
        changes = [list(change) for change in heard[-1].body[0]] if heard else None
        return changes, {f"{kind}s": sorted(known[f"{kind}s"]) for kind in KINDS}

    changes, there = session.run(work)
    lists = {action: [f"{kind} {name}" for did, kind, name in changes or () if did == action] for action in ACTIONS}
    if changes is None:  # an older daemon does not tell
        words = "configuration reloaded"
    else:
        words = f"configuration reloaded: {changes_in_words(changes) or 'nothing changed'}"
    session.done(words, **there, **lists)
