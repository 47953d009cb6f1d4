# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The keys of doorbelld.toml: types and defaults from the tables of options, what they mean from ``keys.toml``."""

from __future__ import annotations

import dataclasses
import inspect
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from doorbelld import devices
from doorbelld.config.loader import DaemonSpec
from doorbelld.ivshmem.clientspec import ClientSpec, FlatSpec
from doorbelld.ivshmem.rules import Match, PeerRule
from doorbelld.ivshmem.spec import RegionSpec, in_units
from doorbelld.vhost.access import FrontendRule
from doorbelld.vhost.spec import DeviceSpec

from . import roff

TABLES: dict[str, type] = {
    "daemon": DaemonSpec,
    "region": RegionSpec,
    "peer": PeerRule,
    "match": Match,
    "device": DeviceSpec,
    "rule": FrontendRule,
    "blk": devices.find("blk").Options,
    "rng": devices.find("rng").Options,
    "client": ClientSpec,
    "flat": FlatSpec,
}
"""The tables by the name that ``keys.toml`` and the template give them."""
PROSE = Path(__file__).parent.parent / "keys.toml"

_TYPES = {
    "size": "a size",
    "_size_or_none": "a size, or 0",
    "duration": "a duration",
    "mode": "a mode",
    "boolean": "true or false",
    "text": "a string",
    "text_list": "a list of strings",
    "path": "an absolute path",
    "Backing.parse": "a backing",
    "parse_rules": "an array of tables",
    "_match": "a table",
    "_uid": "a user, by name or number",
    "_gid": "a group, by name or number",
    "_block_size": "512, 1024, 2048 or 4096",
    "_serial": "a string",
    "_rate": "a size",
}


class Unwritten(Exception):
    """A key that nobody has described, or a description of a key that is not there."""


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """One key: its name in TOML, its type in words, its default as TOML writes it (empty: none).

    `frozen` says why it can't change while what it describes is in use; empty if it can.
    """

    name: str
    type: str
    default: str
    frozen: str


def keys(table: type) -> Iterator[Key]:
    """Give the keys that *table*, a dataclass of options, declares."""
    for field in dataclasses.fields(table):
        if (convert := field.metadata.get("convert")) is not None:
            frozen = field.metadata.get("frozen", "")
            yield Key(field.name.replace("_", "-"), _type(convert), _default(field, convert), frozen)


def _type(convert: Any) -> str:
    name = convert.__qualname__
    given = inspect.getclosurevars(convert).nonlocals if "<locals>" in name else {}
    match name.partition(".<locals>")[0]:
        case "integer":
            return f"a number from {given['low']} to {given['high']}"
        case "choice":
            return ", ".join(f'"{word}"' for word in given["allowed"][:-1]) + f' or "{given["allowed"][-1]}"'
    if name not in _TYPES:
        raise Unwritten(f"values read by {name}() are not described yet: add it to _TYPES in {Path(__file__).name}")
    return _TYPES[name]


def _default(field: dataclasses.Field[Any], convert: Any) -> str:
    value = field.default if field.default is not dataclasses.MISSING else None
    if value is None or value in ("", ()):
        return ""
    match convert.__qualname__:
        case "size":
            return f'"{in_units(value)}"'
        case "duration":
            return f'"{value:g}s"' if value else '"never"'
        case "mode":
            return f'"{value:04o}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{item}"' for item in value) + "]"
    return str(value) if isinstance(value, int) else f'"{value}"'


def read_prose() -> dict[str, dict[str, str]]:
    """Read what is written of each key, by table and key."""
    return tomllib.loads(PROSE.read_text(encoding="utf-8"))


def describe(name: str, prose: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Write all keys of the table *name*.

    Raises:
        Unwritten: *prose* lacks one, or describes one that is not there.
    """
    said, made = dict(prose.get(name, {})), []
    for key in keys(TABLES[name]):
        if key.name not in said:
            raise Unwritten(f"nothing is written of {name}.{key.name}: describe it in {PROSE.name}")
        body = roff.prose(said.pop(key.name))
        if key.frozen:
            body += roff.sentences(f"It can't change by a reload: {key.frozen}.")
        if key.default:
            body.append(f"Default: {roff.bold(key.default)}.")
        made += roff.tagged(f"{roff.bold(key.name)} = {roff.italic(key.type)}", body)
    if said:
        raise Unwritten(f"there is no key {', '.join(f'{name}.{key}' for key in said)}: remove it from {PROSE.name}")
    return made
