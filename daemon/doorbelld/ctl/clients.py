# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands for clients, the daemon's places in the regions of other servers: clients, create-client."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from . import client_tables
from .arguments import complete_one_of
from .session import WORDS, Daemon, Session, json_option, pass_session, place, table_option

_SETTLING_SECONDS = 0.5
"""How long to wait for a server, if it does not let us in at once."""
_NO_CLIENT = """\
It has no client. Have it join the region of another ivshmem server, and see who is there:

  doorbellctl create-client lab /tmp/ivshmem_socket
  doorbellctl peers lab"""


@click.command()
@click.argument("client", required=False, default="", shell_complete=complete_one_of("client"))
@table_option
@json_option
@pass_session
def clients(session: Session, client: str) -> None:
    r"""List the clients, or one: the daemon's places in the regions of other ivshmem servers.

    A client is connecting until its server lets it in; then it is connected, and has an ID there. It is broken if the
    server breaks the protocol or turns it away. Why it is not connected stands below. Its peers are rung with notify,
    its memory is read with read and write.

    \b
    Examples:
      doorbellctl clients
      doorbellctl clients --json | jq -r 'to_entries[] | select(.value.state != "connected") | .key'
    """

    async def ask(daemon: Daemon) -> dict[str, Any]:
        return {client: await daemon.one("client", client)} if client else dict((await daemon.describe())["clients"])

    known = session.run(ask)
    if session.json:
        session.emit(known)
    elif not known:
        click.echo(_NO_CLIENT)
    else:
        client_tables.clients(known)


@click.command("create-client")
@click.argument("name")
@click.argument("socket", type=click.Path())
@click.option("--vectors-max", type=click.IntRange(1), metavar="N", help="Doorbells taken of a peer. Default: 64.")
@click.option("--reconnect/--no-reconnect", default=None, help="Whether it comes back by itself. Default: it does.")
@json_option
@pass_session
def create_client(session: Session, /, name: str, socket: str, **given: Any) -> None:
    r"""Have the daemon join the region of the ivshmem server at SOCKET, until that client is removed.

    The server may be QEMU's ivshmem-server, another host daemon's, or the socket of a region of this daemon. It need
    not be there yet. Without a slash in it, SOCKET may be the name of a region of this daemon. The options are the keys
    of a [client.NAME] in doorbelld.toml. The daemon connects, not you: its user must be allowed to.

    \b
    Example:
      doorbellctl create-client lab /tmp/ivshmem_socket
    """
    make(session, "client", name, socket, given)


async def _server(daemon: Daemon, socket: str) -> str:
    """Give the path of the server's socket: that of a region of the daemon's own, if *socket* names one."""
    if "/" not in socket and any(row[0] == socket for row in await daemon.call("ListRegions")):
        from ..bus.names import REGION

        return str(await daemon.client.get(place("region", socket)[0], REGION, "Socket"))
    return os.path.realpath(socket)


def make(session: Session, kind: str, name: str, socket: str, given: dict[str, Any]) -> None:
    """Make a client or a flat device, and say how it goes: a server that is there lets it in at once."""
    import asyncio
    import contextlib

    options = {key.replace("_", "-"): value for key, value in given.items() if value is not None}
    member = "CreateClient" if kind == "client" else "CreateFlatDevice"

    async def work(daemon: Daemon) -> dict[str, Any]:
        from ..bus import client
        from ..bus.names import PROPERTIES

        path, _ = place(kind, name)
        changes = client.Match(path=path, interface=PROPERTIES, member="PropertiesChanged")
        async with await daemon.client.subscribe(changes) as signals:
            await daemon.call(member, "ssa{sv}", name, await _server(daemon, socket), client.options(options))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SETTLING_SECONDS):
                    while (known := await daemon.one(kind, name))["state"] == "connecting":
                        await anext(signals)
            return known

    made = session.run(work)
    if session.json:
        session.emit({"name": name, **made})
        return
    server = made["socket"]
    if made["state"] == "connected":
        click.echo(f"made {WORDS[kind]} {name} of the server at {server}: connected, ID {made['id']}")
    else:
        why = made["reason"] or made["state"]
        click.echo(f"made {WORDS[kind]} {name}, which is waiting for the server at {server}: {why}")
    if sys.stdout.isatty():
        click.echo(f"next: doorbellctl {'peers' if kind == 'client' else 'status'} {name}")
