# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that reach the other side: notify, broadcast, kick; and disconnect.

To notify is to interrupt a guest: at a vector of a peer, or for a queue of a device. Peers are those of a region of
ours, or those that a client of ours sees in the region of another server. To kick goes the other way, as if the guest
had written to a queue's kick eventfd.
"""

from __future__ import annotations

from typing import Any

import click

from . import peernames
from .arguments import (
    complete_one_of,
    complete_peer,
    complete_queue,
    complete_vector,
    device_argument,
    kind_option_of,
    yes_option,
)
from .session import UINT16_MAX, Daemon, Refused, Session, ask_first, json_option, pass_session, plural

_WITH_PEERS = ("region", "client")


@click.command()
@click.argument("name", shell_complete=complete_one_of("region", "device", "client"))
@click.argument("peer", metavar="PEER|QUEUE", shell_complete=complete_peer)
@click.argument("vector", type=click.IntRange(0, UINT16_MAX), required=False, shell_complete=complete_vector)
@kind_option_of("region", "device", "client")
@json_option
@pass_session
def notify(session: Session, name: str, peer: str, vector: int | None, kind: str | None) -> None:
    r"""Interrupt a guest: ring a peer of a region, or tell the driver of a device that a queue has news.

    NAME is a region, a client or a device. Of a region, PEER is an ID, the name of a VM (QEMU's -name), or "host" for
    the daemon's own place in it; of a client, the ID of a peer that it sees in the region that it joined. Without
    VECTOR all of its doorbells are rung. Of a device, QUEUE is a number.

    \b
    Examples:
      doorbellctl notify demo 0 2         vector 2 of peer 0
      doorbellctl notify demo guest1      all vectors of the VM guest1
      doorbellctl notify lab 1 0          vector 0 of peer 1 in another server's region
      doorbellctl notify disk0 3          the driver of queue 3 of a device
    """

    async def interrupt(daemon: Daemon) -> tuple[str, int]:
        among = _WITH_PEERS if vector is not None else ("region", "device", "client")
        found = kind or await daemon.kind_of(name, among)
        if found == "device":
            queue = _queue(name, peer, vector)
            await daemon.call_queue(name, queue, "Notify")
            return found, queue
        number = await daemon.peer_id(name, peer, found)
        if vector is None:
            await daemon.call_one(found, name, "NotifyPeer", "q", number)
        else:
            await daemon.call_one(found, name, "Notify", "qq", number, vector)
        return found, number

    found, number = session.run(interrupt)
    if found == "device":
        session.done(f"interrupted the driver of queue {number} of {name}", device=name, queue=number)
        return
    what = "all vectors" if vector is None else f"vector {vector}"
    session.done(f"rang {what} of peer {number} in {name}", **{found: name}, peer=number, vector=vector)


def _queue(device: str, word: str, vector: int | None) -> int:
    if vector is not None:
        raise Refused(f'"{device}" is a device, and its queues have no vectors; leave the last argument out')
    if not (word.isascii() and word.isdecimal() and int(word) <= UINT16_MAX):
        raise Refused(f'"{word}" is no queue of device "{device}"; write its number: doorbellctl queues {device}')
    return int(word)


@click.command()
@device_argument
@click.argument("queue", type=click.IntRange(0, UINT16_MAX), required=False, shell_complete=complete_queue)
@json_option
@pass_session
def kick(session: Session, device: str, queue: int | None) -> None:
    r"""Have a device look at a queue now, as if the guest had kicked it; at all queues that run, without QUEUE.

    That helps where a kick got lost, and shows whether one did: a request that waited is served at once.

    \b
    Examples:
      doorbellctl kick disk0 3
      doorbellctl kick disk0 && doorbellctl queues disk0
    """

    async def work(daemon: Daemon) -> list[int]:
        wanted = [queue] if queue is not None else _that_run(device, await daemon.device(device))
        for index in wanted:
            await daemon.call_queue(device, index, "Kick")
        return wanted

    kicked = session.run(work)
    which = f"{'queue' if len(kicked) == 1 else 'queues'} {', '.join(map(str, kicked))}"
    session.done(f"kicked {which} of {device}", device=device, queues=kicked)


def _that_run(name: str, device: dict[str, Any]) -> list[int]:
    running = [queue["index"] for queue in device["queues"] if queue["started"] and queue["enabled"]]
    if not running:
        raise Refused(f'no queue of device "{name}" runs; a driver has to set one up: doorbellctl status {name}')
    return running


@click.command()
@click.argument("name", shell_complete=complete_one_of(*_WITH_PEERS))
@kind_option_of(*_WITH_PEERS)
@json_option
@pass_session
def broadcast(session: Session, name: str, kind: str | None) -> None:
    """Ring all doorbells of all connected peers of a region (but not the host peer's), or of all that a client sees."""

    async def ring(daemon: Daemon) -> tuple[str, int]:
        found, known = await daemon.find(name, kind, _WITH_PEERS)
        await daemon.call_one(found, name, "Broadcast")
        return found, len(known["peers"])

    found, count = session.run(ring)
    session.done(f"rang all vectors of {plural(count, 'peer')} in {name}", **{found: name}, peers=count)


@click.command()
@click.argument("name", shell_complete=complete_one_of("region", "device"))
@click.argument("peer", required=False, shell_complete=complete_peer)
@kind_option_of("region", "device")
@yes_option
@json_option
@pass_session
def disconnect(session: Session, name: str, peer: str | None, kind: str | None, yes: bool) -> None:
    """Drop the connection of a peer of a region, or that of a device's front-end.

    NAME is a region, and then PEER is an ID or the name of a VM; or it is a device, and then there is no PEER.

    The other peers are told that it left, so nobody rings it any more. What it was given it keeps: the memory, and the
    doorbells of those who were there, though in a relayed region it reaches nobody by them any more. QEMU does not
    connect again by itself; the guest is a peer again once it is started anew.

    A device is brought to rest first, so that it never touches the guest's memory afterwards, and listens again for
    the next front-end. QEMU connects again if its chardev has reconnect=.

    You are asked first; without a terminal to ask on, --yes is needed.
    """

    async def find(daemon: Daemon) -> tuple[int | None, str]:
        found = kind or ("region" if peer is not None else await daemon.kind_of(name, ("region", "device")))
        if found == "device":
            if peer is not None:
                raise Refused(f'device "{name}" has one front-end and no peers; leave PEER out')
            return None, _front_end_again(name, await daemon.device(name))
        if peer is None:
            raise Refused(f'"{name}" is a region; name the PEER to disconnect: doorbellctl peers {name}')
        number = await daemon.peer_id(name, peer)
        return number, _peer_again(name, number, await daemon.region(name))

    number, cause = session.run(find)
    if cause and not yes:
        ask_first(cause, "disconnect it", f"{name} is as it was")
    if number is None:
        session.run(lambda daemon: daemon.call_device(name, "Disconnect"))
        session.done(f"disconnected the front-end of {name}", device=name)
    else:
        session.run(lambda daemon: daemon.call_region(name, "Disconnect", "q", number))
        session.done(f"disconnected peer {number} of {name}", region=name, peer=number)


def _peer_again(region: str, peer_id: int, known: dict[str, Any]) -> str:
    """Say what it takes for a peer of a region to be one again; empty if it is not there."""
    peer = next((peer for peer in known["peers"] if peer["id"] == peer_id), None)
    if peer is None:
        return ""
    again = "restarts" if peer["vm"] else "connects again"
    return f'{peernames.sentence(peer)}, peer {peer_id} of region "{region}", is a peer again when it {again}'


def _front_end_again(device: str, known: dict[str, Any]) -> str:
    """Say what it takes for a device's front-end to be one again; empty if there is none."""
    if (who := known["front-end"]) is None:
        return ""
    return (
        f'{peernames.sentence(who)}, the front-end of device "{device}", has no device until it connects again (QEMU '
        "does so if its chardev has reconnect=)"
    )
