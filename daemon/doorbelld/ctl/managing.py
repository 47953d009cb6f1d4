# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that change what there is: create, remove, reload."""

from __future__ import annotations

import sys
import tomllib
from typing import Any

import click

from ..ivshmem.spec import in_units
from .session import Daemon, Refused, Session, complete_region, json_option, pass_session, plural

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
)


def _key_options(function: Any) -> Any:
    for flag, kind, metavar, words in reversed(_KEYS):
        function = click.option(flag, type=kind, metavar=metavar, help=words)(function)
    return function


def setting(text: str) -> tuple[str, Any]:
    """Read ``KEY=VALUE``, where VALUE is as in TOML, or bare text.

    Raises:
        click.BadParameter: there is no ``=``.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.BadParameter(f'"{text}" is no KEY=VALUE', param_hint="--set")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


@click.command()
@click.argument("name")
@_key_options
@click.option("--host-peer/--no-host-peer", default=None, help="Whether guests can ring the host. Default: they can.")
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
      doorbellctl create lab --set 'peer=[{match={vm="guest1"}, id=7}]'
    """
    options = {key.replace("_", "-"): value for key, value in given.items() if value is not None}
    options.update(map(setting, settings))

    async def make(daemon: Daemon) -> dict[str, Any]:
        from ..bus import client

        try:
            wrapped = client.options(options)
        except TypeError as error:
            raise Refused(str(error)) from None
        await daemon.call("CreateRegion", "sa{sv}", name, wrapped, timeout=None)
        return await daemon.region(name)

    made = session.run(make)
    if session.json:
        session.emit({"name": name, **made})
        return
    what = f"{in_units(made['size'])}, {plural(made['vectors'], 'vector')} per peer"
    click.echo(f"made region {name} ({what}); guests connect at {made['socket']}")
    if sys.stdout.isatty():
        click.echo(f"next: doorbellctl qemu-args {name}")


@click.command()
@click.argument("name", shell_complete=complete_region)
@click.option("--yes", is_flag=True, help="Do not ask, whoever is connected.")
@json_option
@pass_session
def remove(session: Session, name: str, yes: bool) -> None:
    """Remove a region: its peers are disconnected, its socket goes.

    What guests were given they keep: the memory that they have mapped, and each other's doorbells. Memory with a name
    (backing shm or file) stays where it is. If peers are connected you are asked first; without a terminal to ask on,
    --yes is needed.
    """
    known = session.run(lambda daemon: daemon.region(name))
    if known["peers"] and not yes:
        who = ", ".join(peer["vm"] or f"pid {peer['pid']}" for peer in known["peers"][:5])
        who += ", ..." * (len(known["peers"]) > 5)
        connected = f"{plural(len(known['peers']), 'peer')} ({who})"
        if not sys.stdin.isatty():
            raise Refused(f'region "{name}" has {connected} connected; to disconnect them and remove it, add --yes')
        if not click.confirm(f"Region {name} has {connected} connected. Disconnect and remove?", err=True):
            raise Refused(f'region "{name}" stays')
    session.run(lambda daemon: daemon.call("RemoveRegion", "s", name))
    session.done(f"removed region {name}", name=name, disconnected=len(known["peers"]))


@click.command()
@json_option
@pass_session
def reload(session: Session) -> None:
    """Have the daemon read its configuration again.

    Regions that are new in it are made, those gone from it are removed, the others are left alone, as are those
    that were made with create. If anything is wrong with it, nothing is changed and all problems are listed.
    """

    async def work(daemon: Daemon) -> list[str]:
        await daemon.call("Reload", timeout=None)
        return sorted((await daemon.describe())["regions"])

    regions = session.run(work)
    session.done(f"configuration reloaded; regions: {', '.join(regions) or 'none'}", regions=regions)
