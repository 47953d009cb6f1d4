# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands for relayed regions: pairs, which shows who rings whom, and limit, which says how often, and whether at all.

The daemon sees rings between peers only where they pass it, so in other regions there is nothing to show or to limit.
"""

from __future__ import annotations

from typing import Any

import click

from ..ivshmem.table import RATE_MAX
from . import peernames, tables
from .arguments import complete_peer, region_argument
from .layout import Shape
from .session import Daemon, Session, json_option, pass_session, table_option

_PAIRS = Shape(
    ("SENDER", "VM", "TARGET", "VM", ">RINGS", ">DELIVERIES", ">REFUSED", ">LIMIT", "PERMITTED"),
    ("PERMITTED", ">DELIVERIES", ">REFUSED", ">LIMIT"),
)
_KEYS = ("sender", "target", "rings", "deliveries", "refused", "rate", "permitted")


@click.command()
@region_argument
@table_option
@json_option
@pass_session
def pairs(session: Session, region: str) -> None:
    r"""List who rings whom in a relayed region, how often they did, and what limits them.

    RINGS are those that the sender made; DELIVERIES is how often the target was interrupted for them, since rings that
    come together are delivered together. REFUSED ones were thrown away, because the pair was not permitted. LIMIT is in
    deliveries a second. Who was never given another's doorbells is no pair with it.

    \b
    Examples:
      doorbellctl pairs demo
      doorbellctl pairs demo --json | jq '.[] | select(.refused > 0)'
    """

    async def ask(daemon: Daemon) -> tuple[list[list[Any]], dict[str, Any]]:
        return await daemon.call_region(region, "ListPairs"), await daemon.region(region)

    found, known = session.run(ask)
    made = [dict(zip(_KEYS, pair, strict=True)) for pair in found]
    if session.json:
        session.emit(made)
        return
    names = {peer["id"]: peernames.cell(peer) for peer in known["peers"]}
    if known["host-peer"]:
        names[known["host-peer-id"]] = "host"
    if not made:
        click.echo(f"nobody can ring anybody in {region} yet; a guest attaches at {known['socket']}")
        return
    tables.table(
        _PAIRS,
        (
            [
                *(pair["sender"], names.get(pair["sender"], "-"), pair["target"], names.get(pair["target"], "-")),
                *(pair["rings"], pair["deliveries"], pair["refused"]),
                *(f"{pair['rate']}/s" if pair["rate"] else "-", "yes" if pair["permitted"] else "no"),
            ]
            for pair in made
        ),
    )


@click.command()
@region_argument
@click.argument("sender", shell_complete=complete_peer)
@click.argument("target", shell_complete=complete_peer)
@click.option(
    "--rate",
    type=click.IntRange(0, RATE_MAX),
    metavar="N",
    help="Deliver at most so many times a second; 0 ends the limit.",
)
@click.option("--permit/--forbid", "permitted", default=None, help="Whether SENDER may ring TARGET at all.")
@json_option
@pass_session
def limit(session: Session, region: str, sender: str, target: str, rate: int | None, permitted: bool | None) -> None:
    r"""Limit how often one peer of a relayed region interrupts another, or forbid it to.

    SENDER and TARGET are IDs or names of VMs; TARGET may be "host" for the daemon's own place in the region. Rings
    above the limit are not lost: they are delivered with the next one. Rings of a forbidden pair are thrown away. Both
    hold at once, and until one of the two leaves, or until the configuration is changed to say something else of them.

    \b
    Examples:
      doorbellctl limit demo guest1 guest2 --rate 1000
      doorbellctl limit demo 3 host --forbid
      doorbellctl limit demo 3 host --permit --rate 0
    """
    if rate is None and permitted is None:
        raise click.UsageError("say what should hold: --rate N, --forbid or --permit")

    async def change(daemon: Daemon) -> tuple[int, int]:
        ends = await daemon.peer_id(region, sender), await daemon.peer_id(region, target)
        if permitted is not None:
            await daemon.call_region(region, "PermitPair", "qqb", *ends, permitted)
        if rate is not None:
            await daemon.call_region(region, "LimitPair", "qqu", *ends, rate)
        return ends

    one, other = session.run(change)
    verb = "interrupts" if permitted is None else "may ring" if permitted else "may not ring"
    words = f"peer {one} {verb} peer {other} in {region}"
    if rate is not None:
        words += "," * (permitted is not None) + (f" at most {rate:,} times a second" if rate else " without a limit")
    session.done(words, region=region, sender=one, target=other, rate=rate, permitted=permitted)
