# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads doorbelld.toml: all of it is checked, and all problems are reported at once, before anything is done.

What a ``[region.NAME]`` may say is `RegionSpec`'s business, here it only gets its file and line: tomllib does not
tell lines, so `Lines` looks for the table's header and the key below it.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import InvalidOptions, Problem
from ..ivshmem.spec import RegionSpec
from ..log import LEVELS
from ..options import choice, option, parse, path

RUNTIME_DIRECTORY = "/run/doorbelld"


@dataclass(frozen=True, slots=True)
class DaemonSpec:
    """The ``[daemon]`` table."""

    runtime_directory: str = option(path, default=RUNTIME_DIRECTORY)
    log_level: str = option(choice(*LEVELS), default="info")


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration."""

    daemon: DaemonSpec = field(default_factory=DaemonSpec)
    regions: dict[str, RegionSpec] = field(default_factory=dict)


def load(file: str) -> Config:
    """Read and check *file*.

    Raises:
        InvalidOptions: with all problems, each with file and line.
    """
    try:
        with open(file, "rb") as stream:
            raw = stream.read()
    except OSError as error:
        cure = "name one that is there with --config FILE"
        raise InvalidOptions([Problem(file, f"{error.strerror}", cure)]) from error
    try:
        text = raw.decode()
        tables = tomllib.loads(text)
    except UnicodeDecodeError as error:
        problem = Problem("encoding", f"byte {error.start} is not UTF-8", "save the file as UTF-8", file)
        raise InvalidOptions([problem]) from error
    except (ValueError, RecursionError) as error:  # the latter for brackets in brackets by the thousand
        raise InvalidOptions([_syntax(file, str(error))]) from error
    config, problems = interpret(tables)
    if problems:
        lines = Lines(text)
        placed = sorted(((lines.find(p.key), p) for p in problems), key=lambda pair: pair[0])
        raise InvalidOptions([dataclasses.replace(p, where=f"{file}:{line}") for line, p in placed])
    return config


def interpret(tables: Mapping[str, Any]) -> tuple[Config, list[Problem]]:
    """Check parsed tables; gives what could be read and all problems."""
    problems: list[Problem] = []
    daemon = DaemonSpec()
    regions: dict[str, RegionSpec] = {}
    for key, table in tables.items():
        if key not in ("daemon", "region", "device"):
            problems.append(Problem(key, "unknown table", "known are [daemon], [region.NAME] and [device.NAME]"))
        elif not isinstance(table, dict):
            problems.append(Problem(key, "is no table", f"write [{key}{'' if key == 'daemon' else '.NAME'}]"))
        elif key == "daemon":
            try:
                daemon = parse(DaemonSpec, table, "daemon")
            except InvalidOptions as error:
                problems += error.problems
        elif key == "device":
            problems += [
                Problem(f"device.{name}", "this build has no vhost-user devices yet", "remove the table")
                for name in table
            ]
        else:
            _interpret_regions(table, regions, problems)
    problems += _clashes(regions, daemon.runtime_directory)
    return Config(daemon, regions), problems


def _interpret_regions(table: Mapping[str, Any], regions: dict[str, RegionSpec], problems: list[Problem]) -> None:
    for name, options in table.items():
        if not isinstance(options, dict):
            problems.append(Problem(f"region.{name}", "is no table", f"write [region.{name}]"))
            continue
        try:
            regions[name] = parse(RegionSpec, options, f"region.{name}", name=name)
        except InvalidOptions as error:
            problems += error.problems


def _clashes(regions: Mapping[str, RegionSpec], runtime_directory: str) -> list[Problem]:
    problems: list[Problem] = []
    users: dict[tuple[str, str], str] = {}
    for name, spec in regions.items():
        socket = spec.socket or f"{runtime_directory}/{name}/socket"
        for key, value in (("socket", socket), ("backing", spec.backing.path)):
            user = users.setdefault((key, value), name)
            if value and user != name:
                cause = f"{value} is used by region {user} too"
                problems.append(Problem(f"region.{name}.{key}", cause, "give each its own"))
    return problems


def _syntax(file: str, said: str) -> Problem:
    match = re.search(r"^(.*) \(at (?:line (\d+), column (\d+)|end of document)\)$", said)
    where = f"{file}:{match[2]}:{match[3]}" if match and match[2] else file
    cause = (match[1] if match else said).rstrip(".")
    return Problem("syntax", cause, "see https://toml.io for how TOML is written", where)


class Lines:
    """Finds the line of a dotted key in a text that tomllib has accepted; the nearest table's if there is no better."""

    _HEADER = re.compile(r"^\s*\[(\[)?\s*(.+?)\s*\]?\]\s*(?:#.*)?$")
    _WORD = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
    _KEY = re.compile(rf"^\s*({_WORD}(?:\s*\.\s*{_WORD})*)\s*=")

    def __init__(self, text: str) -> None:
        self._lines: dict[str, int] = {}
        self._implied: dict[str, int] = {}
        prefix = ""
        counts: dict[str, int] = {}
        for number, line in enumerate(text.splitlines(), 1):
            if header := self._HEADER.match(line):
                name = _plain(header[2])
                if header[1]:
                    counts[name] = counts.get(name, -1) + 1
                prefix = _numbered(name, counts)
                self._lines.setdefault(prefix, number)
                for dot in re.finditer(r"\.", prefix):
                    self._implied.setdefault(prefix[: dot.start()], number)
            elif key := self._KEY.match(line):
                dotted = _plain(key[1])
                self._lines.setdefault(f"{prefix}.{dotted}" if prefix else dotted, number)

    def find(self, key: str) -> int:
        """Give the line of *key*, or of the nearest table above it; 1 if there is none."""
        while key:
            for known in (self._lines, self._implied):
                if key in known:
                    return known[key]
            key = key[: max(key.rfind("."), key.rfind("["), 0)]
        return 1


def _numbered(name: str, counts: Mapping[str, int]) -> str:
    """Put the number of the entry at hand behind each array of tables in the dotted *name*."""
    parts = name.split(".")
    said = ""
    for length, part in enumerate(parts, 1):
        said += f".{part}" if said else part
        if (count := counts.get(".".join(parts[:length]))) is not None:
            said += f"[{count}]"
    return said


def _plain(dotted: str) -> str:
    return re.sub(r"""\s*\.\s*""", ".", dotted).replace('"', "").replace("'", "")
