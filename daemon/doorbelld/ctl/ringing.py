# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that ring: notify, broadcast; and disconnect."""

from __future__ import annotations

import click

from .session import (
    UINT16_MAX,
    Daemon,
    Session,
    json_option,
    pass_session,
    peer_argument,
    plural,
    region_argument,
)


@click.command()
@region_argument
@peer_argument
@click.argument("vector", type=click.IntRange(0, UINT16_MAX), required=False)
@json_option
@pass_session
def notify(session: Session, region: str, peer: str, vector: int | None) -> None:
    r"""Ring a doorbell of a peer, or all of its doorbells if no VECTOR is given.

    PEER is an ID, the name of a VM (QEMU's -name), or "host" for the daemon's own place in the region.

    \b
    Examples:
      doorbellctl notify demo 0 2         vector 2 of peer 0
      doorbellctl notify demo guest1      all vectors of the VM guest1
    """

    async def ring(daemon: Daemon) -> int:
        number = await daemon.peer_id(region, peer)
        if vector is None:
            await daemon.call_region(region, "NotifyPeer", "q", number)
        else:
            await daemon.call("Notify", "sqq", region, number, vector)
        return number

    number = session.run(ring)
    what = "all vectors" if vector is None else f"vector {vector}"
    session.done(f"rang {what} of peer {number} in {region}", region=region, peer=number, vector=vector)


@click.command()
@region_argument
@json_option
@pass_session
def broadcast(session: Session, region: str) -> None:
    """Ring all doorbells of all connected peers of a region (but not the host peer's)."""

    async def ring(daemon: Daemon) -> int:
        await daemon.call_region(region, "Broadcast")
        return len((await daemon.region(region))["peers"])

    count = session.run(ring)
    session.done(f"rang all vectors of {plural(count, 'peer')} in {region}", region=region, peers=count)


@click.command()
@region_argument
@peer_argument
@json_option
@pass_session
def disconnect(session: Session, region: str, peer: str) -> None:
    """Drop a peer's connection.

    PEER is an ID or the name of a VM. The others are told that it left, so nobody rings it any more. What it was given
    it keeps: the memory, and the doorbells of those who were there. QEMU does not connect again by itself; the guest
    is a peer again once it is started anew.
    """

    async def drop(daemon: Daemon) -> int:
        number = await daemon.peer_id(region, peer)
        await daemon.call_region(region, "Disconnect", "q", number)
        return number

    number = session.run(drop)
    session.done(f"disconnected peer {number} of {region}", region=region, peer=number)
