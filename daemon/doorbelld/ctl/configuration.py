# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command cat-config: shows the configuration as it lies in its files, or as what it comes to.

It reads the files itself, with the daemon's own code, and so works where no daemon runs. What is wrong goes to standard
error, with the exit status that the daemon would end with; what can be shown nevertheless is shown.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from .session import Session, json_option, pass_session, plural

if TYPE_CHECKING:
    from ..config.loader import Reading


@click.command()
@click.option("--effective", is_flag=True, help="What it comes to: every key with its value and its place.")
@click.option("--config", "file", type=click.Path(), metavar="FILE", help="This file and nothing else.")
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Look below DIR instead of /: for the image of another host.",
)
@json_option
@pass_session
def cat_config(session: Session, effective: bool, file: str | None, root: str | None) -> None:
    r"""Print the configuration files that count, or what they come to.

    doorbelld reads the first doorbelld.toml of /etc/doorbelld, /run/doorbelld and /usr/lib/doorbelld, then the drop-ins
    doorbelld.d/*.toml of all three in the order of their names. Of two with the same name the one in /etc counts, then
    that in /run; a link to /dev/null, or an empty file, masks the others. Where two files set the same key the later
    one counts; a list, such as the rules of a region, is replaced whole. A region can't be unset: put it in a file
    of its own, which can be masked.

    A daemon that was started with --config FILE reads that file alone: if the daemon on the bus was, FILE is printed.
    --config and --root ask no daemon.

    The files may be newer than what the daemon has read: see doorbellctl reload. With --json, what they come to is
    printed as {key: {value, file, line, overridden}}; file is null for a default.

    \b
    Examples:
      doorbellctl cat-config
      doorbellctl cat-config --effective | grep -v default
      ln -s /dev/null /etc/doorbelld/doorbelld.d/50-demo.toml    mask the vendor's drop-in
    """
    from ..config import effective as known
    from ..config.loader import read_file, read_layered

    if file is not None and root is not None:
        raise click.UsageError("--config names the one file to read, --root where to look for files; use one of them")
    if file is None and root is None:
        file = _file_of_daemon(session)
    reading = read_file(file) if file else read_layered(root or "/")
    if session.json:
        session.emit(known.as_plain(reading.config))
    elif effective:
        click.echo(known.as_toml(reading.config), nl=False)
    else:
        _print_files(reading, root or "/")
    if reading.problems:
        count = plural(len(reading.problems), "problem")
        click.echo("\n".join([*map(str, reading.problems), f"{count} in the configuration"]), err=True)
        sys.exit(os.EX_CONFIG)


def _file_of_daemon(session: Session) -> str:
    """Give the file that the daemon on this bus was told to read; empty if it reads the usual folders, or is not there.

    A daemon that does not run is not started for that.
    """
    import asyncio

    from ..bus.client import CallFailed
    from ..bus.names import MANAGER, ROOT
    from ..errors import BusUnavailable
    from .bus_choice import NoDaemon, open_bus

    async def ask() -> str:
        async with await open_bus(session.bus, start=False) as client:
            return str(await client.get(ROOT, MANAGER, "ConfigurationFile"))

    try:
        return asyncio.run(ask())
    except (BusUnavailable, CallFailed, NoDaemon):
        return ""


def _print_files(reading: Reading, root: str) -> None:
    """Print each file below its name, as it is; what does not count is named with the reason."""
    from ..config.sources import folders, shown

    if not reading.entries:
        click.echo(f"# no configuration in {', '.join(map(shown, folders(root)))}: everything is a default")
    for number, entry in enumerate(reading.entries):
        if number:
            click.echo()
        name = shown(entry.path)
        text = reading.texts.get(entry.path)
        remark = ": empty, nothing is read" if entry.masks else ": can not be read" if text is None else ""
        click.echo(f"# {name}{remark}")
        for other in entry.hidden:
            click.echo(f"# {shown(other)}: does not count, {name} {'masks' if entry.masks else 'replaces'} it")
        if text:
            click.echo(text, nl=not text.endswith(b"\n"))
