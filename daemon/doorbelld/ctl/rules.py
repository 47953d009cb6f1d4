# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command rules: who may connect to a region, who may ring whom, and whether somebody would be admitted.

The answer is found as the daemon finds it, with the rules that it has; it is not asked to admit anybody.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from . import tables
from .arguments import region_argument
from .layout import Shape, when
from .session import Session, json_option, pass_session

if TYPE_CHECKING:
    from ..fds.peercred import Credentials
    from ..ivshmem.rules import Match, PeerRule


@click.command()
@region_argument
@click.option("--vm", metavar="NAME", help="Would a VM of this name be admitted?")
@click.option("--uid", metavar="USER", help="Would this user, by name or number?")
@click.option("--gid", metavar="GROUP", help="Would this group, by name or number?")
@click.option("--unit", metavar="UNIT", help="Would this systemd unit?")
@json_option
@pass_session
def rules(session: Session, region: str, vm: str | None, uid: str | None, gid: str | None, unit: str | None) -> None:
    r"""Show who may connect to a region, who may ring whom there, and who was refused lately.

    The first rule that matches counts; somebody whom none matches is refused. MAY RING are IDs, names of VMs, host, or
    * for everybody. With --vm, --uid, --gid or --unit it is told whether such a process would be admitted now, by which
    rule and under which ID, and why not. What is not given matches no condition. Whoever may open the socket is another
    question: doorbellctl status, at Access.

    \b
    Examples:
      doorbellctl rules demo
      doorbellctl rules demo --vm guest1 --uid libvirt-qemu

    \b
    Exit status:
      0   the rules were shown; or such a process would be admitted
      1   it would be refused
    """
    from ..ivshmem.rules import PeerRule

    known = session.run(lambda daemon: daemon.region(region))
    there = [PeerRule.from_raw(raw) for raw in known.get("rules", [])]
    if vm is uid is gid is unit is None:
        if session.json:
            session.emit({"rules": known.get("rules", []), "refusals": known.get("refusals", [])})
        else:
            _show(region, known, there)
        return
    admitted, reasons = judge(region, known, there, _process(vm, uid, gid, unit))
    if session.json:
        session.emit({"admitted": admitted, "reasons": reasons})
    else:
        click.echo("\n".join(reasons))
    sys.exit(0 if admitted else 1)


def _process(vm: str | None, uid: str | None, gid: str | None, unit: str | None) -> Credentials:
    """Make up the process that is asked about; what is not given is nobody's."""
    from ..fds.listener import group_id, user_id
    from ..fds.peercred import Credentials

    def number(option: str, resolve: Callable[[str], int], name: str | None) -> int:
        try:
            return -1 if name is None else resolve(name)
        except KeyError:
            raise click.BadParameter(f"{name!r} is not known on this host; write a number", param_hint=option) from None

    return Credentials(0, number("--uid", user_id, uid), number("--gid", group_id, gid), vm or "", unit or "")


def _show(name: str, region: Mapping[str, Any], there: Sequence[PeerRule]) -> None:
    if there:
        tables.table(Shape((">RULE", "WHO", ">ID", "MAY RING", ">RATE")), map(_row, range(1, len(there) + 1), there))
        click.echo("\nSomebody whom no rule matches is refused.")
    else:
        click.echo(
            f"{name} has no rules: whoever may connect to {region['socket']} is admitted, and may ring everybody."
        )
    if refusals := region.get("refusals"):
        click.echo("\nRefused lately:")
        for refusal in refusals:
            click.echo(f"  {when(refusal['time'])}  {refusal['reason']}")


def _row(number: int, rule: PeerRule) -> list[object]:
    from ..ivshmem.rules import describe

    free = rule.id is None
    rate = "-" if rule.rate is None else f"{rule.rate:,}/s" if rule.rate else "no limit"
    return [number, describe(rule.match), "any" if free else rule.id, ", ".join(rule.may_ring) or "nobody", rate]


def judge(name: str, region: Mapping[str, Any], there: Sequence[PeerRule], who: Credentials) -> tuple[bool, list[str]]:
    """Tell whether *who* would be admitted now, and the reasons."""
    from ..ivshmem.rules import first_match

    if len(region["peers"]) >= region["max-peers"]:
        return False, [f"refused: {name} is full, max-peers is {region['max-peers']}"]
    if not there:
        return True, [f"admitted: {name} has no rules; may ring everybody"]
    if (rule := first_match(there, who)) is None:
        cure = f"add a [[region.{name}.peer]]"
        failed = [
            f"rule {number} wants {why}" for number, rule in enumerate(there, 1) for why in _missing(rule.match, who)
        ]
        return False, [f"refused: no rule of {name} matches; {cure}", *failed]
    number = there.index(rule) + 1
    holder = next((peer for peer in region["peers"] if peer["id"] == rule.id), None)
    if holder is not None:
        who_holds = holder["vm"] or f"pid {holder['pid']}"
        return False, [f"refused: rule {number} gives ID {rule.id}, which {who_holds} has now"]
    ident = "a free ID" if rule.id is None else f"ID {rule.id}"
    return True, [f"admitted: rule {number} gives {ident}; may ring {', '.join(rule.may_ring) or 'nobody'}"]


def _missing(match: Match, who: Credentials) -> Iterator[str]:
    """Name the conditions of *match* that *who* does not fulfil."""
    nothing = dataclasses.replace(match, **{field.name: None for field in dataclasses.fields(match)})
    for field in dataclasses.fields(match):
        wanted = getattr(match, field.name)
        if wanted is not None and not dataclasses.replace(nothing, **{field.name: wanted})(who):
            yield f"{field.name.replace('_', '-')} {wanted}"
