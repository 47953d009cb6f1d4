# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may attach to a device: ``[[device.NAME.peer]]``, the rules of regions less what is about ringing.

A device with no rule admits whoever the socket's owner, group and mode let in. With rules, somebody whom none matches
is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import AccessDenied, InvalidOptions, Problem
from ..fds.peercred import Credentials
from ..ivshmem.rules import Match
from ..options import option, parse


def _match(raw: object) -> Match:
    if not isinstance(raw, dict):
        raise ValueError(f'{raw!r} is no table; write one such as {{ vm = "guest1" }}')
    return parse(Match, raw, "")


@dataclass(frozen=True, slots=True)
class FrontendRule:
    """One ``[[device.NAME.peer]]``."""

    match: Match = option(_match)


def parse_rules(raw: object) -> tuple[FrontendRule, ...]:
    """Read the array of tables; collects the problems of all."""
    if not isinstance(raw, list):
        raise ValueError("is no array of tables; write [[device.NAME.peer]]")
    rules: list[FrontendRule] = []
    problems: list[Problem] = []
    for index, table in enumerate(raw):
        try:
            if not isinstance(table, dict):
                raise InvalidOptions([Problem(f"[{index}]", "is no table", "write [[device.NAME.peer]]")])
            rules.append(parse(FrontendRule, table, f"[{index}]"))
        except InvalidOptions as error:
            problems += error.problems
    if problems:
        raise InvalidOptions(problems)
    return tuple(rules)


def admit(name: str, rules: Iterable[FrontendRule], who: Credentials) -> None:
    """See whether *who* may attach to device *name*.

    Raises:
        AccessDenied: saying who it is, and what would let them in.
    """
    rules = tuple(rules)
    if not rules or any(rule.match(who) for rule in rules):
        return
    vm = f'"{who.vm_name}"' if who.vm_name else "unknown"
    raise AccessDenied(
        f'no rule of device "{name}" admits pid {who.pid}, uid {who.uid}, VM {vm}, '
        f"unit {who.unit or 'unknown'}; add a [[device.{name}.peer]]"
    )


def raw_rules(rules: Iterable[FrontendRule]) -> list[dict[str, Any]]:
    """Put rules in the form that `parse_rules` reads."""
    return [
        {
            "match": {
                key.replace("_", "-"): value
                for key in ("vm", "uid", "gid", "unit", "pid_file")
                if (value := getattr(rule.match, key)) is not None
            }
        }
        for rule in rules
    ]
