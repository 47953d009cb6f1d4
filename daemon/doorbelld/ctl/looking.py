# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that only look: the overview, status, peers, describe."""

from __future__ import annotations

from typing import Any

import click

from .session import Daemon, Session, json_option, pass_session, region_argument

_IN_FLIGHT = 64


def overview(session: Session) -> None:
    """What bare ``doorbellctl`` does."""

    async def ask(daemon: Daemon) -> tuple[dict[str, Any], str]:
        return await daemon.describe(), daemon.client.address

    known, address = session.run(ask)
    if session.json:
        session.emit(known)
        return
    from . import tables

    tables.overview(known, address)


@click.command()
@region_argument
@json_option
@pass_session
def status(session: Session, region: str) -> None:
    r"""Show one region in detail: its settings, its peers, and the rings that wait for them.

    A ring is pending until the peer's side has taken it: a guest whose count only grows does not serve its
    interrupts, or is paused. The counts are looked up without disturbing anything.

    \b
    Example:
      doorbellctl status demo
    """

    async def ask(daemon: Daemon) -> dict[str, Any]:
        known = await daemon.region(region)
        await _add_pending(daemon, region, known)
        return known

    known = session.run(ask)
    if session.json:
        session.emit({"name": region, **known})
        return
    from . import tables

    tables.status(region, known)


async def _add_pending(daemon: Daemon, name: str, region: dict[str, Any]) -> None:
    """Put ``pending``, the pending count of each vector, beside each peer; a peer that goes meanwhile is left out."""
    import asyncio

    from ..bus import paths
    from ..bus.client import CallFailed
    from ..bus.names import VECTOR

    slots = asyncio.Semaphore(_IN_FLIGHT)

    async def count(peer: dict[str, Any], vector: int) -> int:
        async with slots:
            path = f"{paths.peer(name, peer['id'])}/vector/{vector}"
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
@region_argument
@json_option
@pass_session
def peers(session: Session, region: str) -> None:
    r"""List the peers of a region: guests and host processes that are connected now.

    \b
    Example:
      doorbellctl peers demo
      doorbellctl peers demo --json | jq '.[].vm'
    """
    known = session.run(lambda daemon: daemon.region(region))
    if session.json:
        session.emit(known["peers"])
    elif not known["peers"]:
        click.echo(f"No peer is connected to {known['socket']}. What a guest needs: doorbellctl qemu-args {region}")
    else:
        from . import tables

        tables.peers_of(known)


@click.command()
@json_option
@pass_session
def describe(session: Session) -> None:
    """Print everything there is as JSON: the daemon, regions, peers, host rings."""
    session.emit(session.run(lambda daemon: daemon.describe()))
