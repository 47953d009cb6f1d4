# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may connect, under which ID, and whom they may ring.

A region with no rule admits whoever the socket's owner, group and mode let in. With rules, the first one that matches
counts, and somebody whom none matches is refused. A peer is given the eventfds of those it may ring, and of nobody
else: what it never had it can't use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from ..errors import InvalidOptions, Problem
from ..fds.listener import group_id, user_id
from ..fds.peercred import Credentials
from ..options import boolean, integer, option, parse, path, text, text_list
from ..wire.ivshmem import ID_MAX
from .table import RATE_MAX

HOST = "host"
"""The word for the host peer in ``may-ring``."""
_TAKES_LEAVES = re.compile(r"python[0-9.]*|doorbell.*|ivshmem-client")
"""Programs that take a leave and then a join of the same ID; QEMU, under whatever name, is not among them."""


def _numeric(resolve: Callable[[str], int], raw: object) -> int:
    if isinstance(raw, int) and not isinstance(raw, bool):
        return integer(0, (1 << 32) - 2)(raw)
    name = text(raw)
    try:
        return resolve(name)
    except KeyError:
        raise ValueError(f"{name!r} is not known on this host; write a name that is, or a number") from None


def _uid(raw: object) -> int:
    return _numeric(user_id, raw)


def _gid(raw: object) -> int:
    return _numeric(group_id, raw)


@dataclass(frozen=True, slots=True)
class Match:
    """Conditions that must all hold; ``vm`` and ``unit`` are shell patterns. None at all matches everybody."""

    vm: str | None = option(text, default=None)
    uid: int | None = option(_uid, default=None)
    gid: int | None = option(_gid, default=None)
    unit: str | None = option(text, default=None)
    pid_file: str | None = option(path, default=None)

    def __call__(self, who: Credentials) -> bool:
        """Tell whether *who* fulfils them."""
        return (
            (self.vm is None or (bool(who.vm_name) and fnmatchcase(who.vm_name, self.vm)))
            and (self.uid is None or who.uid == self.uid)
            and (self.gid is None or who.gid == self.gid)
            and (self.unit is None or (bool(who.unit) and fnmatchcase(who.unit, self.unit)))
            and (self.pid_file is None or who.pid == _pid_in(self.pid_file))
        )


def _pid_in(path: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read(32))
    except (OSError, ValueError):
        return -1


def _match(raw: object) -> Match:
    if not isinstance(raw, dict):
        raise ValueError(f'{raw!r} is no table; write one such as {{ vm = "guest1" }}')
    return parse(Match, raw, "")


@dataclass(frozen=True, slots=True)
class PeerRule:
    """One ``[[region.NAME.peer]]``."""

    match: Match = option(_match)
    id: int | None = option(integer(0, ID_MAX), default=None)
    may_ring: tuple[str, ...] = option(text_list, default=("*",))
    rate: int | None = option(integer(0, RATE_MAX), default=None)
    """In a relayed region: how many rings a second each pair passes on that it is the sender of; 0 for no limit."""
    tell_leaves: bool | None = option(boolean, default=None)
    """Whether who matched is told that peers leave and return; None: as `takes_leaves` says of its program."""

    def allows(self, peer_id: int, vm_name: str, is_host: bool) -> bool:
        """Tell whether who matched may ring the peer of that ID and VM name.

        A number is an ID, ``host`` is the host peer, ``*`` is everybody, anything else is a pattern for VM names: a
        VM that calls itself ``7`` or ``host`` gains nothing by it.
        """

        def fits(pattern: str) -> bool:
            if pattern.isdecimal():
                return int(pattern) == peer_id
            if pattern in (HOST, "*"):
                return is_host or pattern == "*"
            return not is_host and bool(vm_name) and fnmatchcase(vm_name, pattern)

        return any(map(fits, self.may_ring))

    def raw(self) -> dict[str, Any]:
        """Put it in the form that `parse_rules` reads one of."""
        return {
            "match": _given(self.match),
            "may-ring": list(self.may_ring),
            **({} if self.id is None else {"id": self.id}),
            **({} if self.rate is None else {"rate": self.rate}),
            **({} if self.tell_leaves is None else {"tell-leaves": self.tell_leaves}),
        }

    @classmethod
    def from_raw(cls, raw: Any) -> PeerRule:
        """Read what `raw` gave."""
        return parse(cls, raw, "peer")

    @property
    def allows_all(self) -> bool:
        """Whether there is nobody that may not be rung."""
        return "*" in self.may_ring


def parse_rules(raw: object) -> tuple[PeerRule, ...]:
    """Read the array of tables; collects the problems of all."""
    if not isinstance(raw, list):
        raise ValueError("is no array of tables; write [[region.NAME.peer]]")
    rules: list[PeerRule] = []
    problems: list[Problem] = []
    for index, table in enumerate(raw):
        try:
            if not isinstance(table, dict):
                raise InvalidOptions([Problem(f"[{index}]", "is no table", "write [[region.NAME.peer]]")])
            rules.append(parse(PeerRule, table, f"[{index}]"))
        except InvalidOptions as error:
            problems += error.problems
    ids = [rule.id for rule in rules if rule.id is not None]
    problems += [
        Problem("", f"ID {peer_id} is given to two rules", "give each its own")
        for peer_id in sorted({peer_id for peer_id in ids if ids.count(peer_id) > 1})
    ]
    if problems:
        raise InvalidOptions(problems)
    return tuple(rules)


def first_match(rules: Iterable[PeerRule], who: Credentials) -> PeerRule | None:
    """Find the rule that counts for *who*."""
    return next((rule for rule in rules if rule.match(who)), None)


def takes_leaves(rule: PeerRule | None, who: Credentials, asked: bool | None = None) -> bool:
    """Tell whether a peer may be told that an ID leaves and later that the same ID joins.

    QEMU corrupts its memory then (docs/decisions/0011). A rule says it, else what was *asked* for, else the program. An
    unknown program may be a QEMU under another name.
    """
    if rule is not None and rule.tell_leaves is not None:
        return rule.tell_leaves
    return bool(_TAKES_LEAVES.fullmatch(who.program)) if asked is None else asked


def describe(match: Match) -> str:
    """Put a match in words, for errors and listings."""
    return ", ".join(f"{key}={value}" for key, value in _given(match).items()) or "anybody"


def _given(match: Match) -> dict[str, Any]:
    pairs = ((f.name.replace("_", "-"), getattr(match, f.name)) for f in fields(match))
    return {key: value for key, value in pairs if value is not None}
