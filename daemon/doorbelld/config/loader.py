# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the configuration: all of it is checked, and all problems are reported at once, before anything is done.

`sources` finds and reads the files, `layers` makes one configuration of them and knows who wrote what, and here it is
checked. What a ``[region.NAME]`` may say is `RegionSpec`'s business.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import InvalidOptions, Problem
from ..ivshmem.spec import RegionSpec
from ..log import LEVELS
from ..options import choice, option, parse, path
from . import sources
from .layers import Layers
from .places import Path
from .sources import Entry

RUNTIME_DIRECTORY = "/run/doorbelld"
_CURE_NAMED = "name one that is there with --config FILE"
_CURE_FOUND = "let doorbelld read it, or remove it"


@dataclass(frozen=True, slots=True)
class DaemonSpec:
    """The ``[daemon]`` table."""

    runtime_directory: str = option(path, default=RUNTIME_DIRECTORY)
    log_level: str = option(choice(*LEVELS), default="info")


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration, and (in `layers`) where it comes from."""

    daemon: DaemonSpec = field(default_factory=DaemonSpec)
    regions: dict[str, RegionSpec] = field(default_factory=dict)
    layers: Layers = field(default_factory=Layers, compare=False, repr=False)

    @property
    def files(self) -> tuple[str, ...]:
        """What was read, in that order."""
        return tuple(self.layers.files)

    def placed(self, problems: Iterable[Problem]) -> list[Problem]:
        """Fill in file and line of *problems* with this configuration."""
        return self.layers.placed(problems, misnamed)


@dataclass(frozen=True, slots=True)
class Reading:
    """What was found and read, also where not all is well: the files with their bytes, and what came of them."""

    entries: tuple[Entry, ...]
    texts: Mapping[str, bytes]
    config: Config
    problems: tuple[Problem, ...]

    def checked(self) -> Config:
        """Give the configuration if nothing is wrong with it.

        Raises:
            InvalidOptions: with all problems, each with file and line.
        """
        if self.problems:
            raise InvalidOptions(self.problems)
        return self.config


def load(file: str) -> Config:
    """Read and check *file*, and nothing else.

    Raises:
        InvalidOptions: with all problems, each with file and line.
    """
    return read_file(file).checked()


def load_layered(root: str = "/") -> Config:
    """Read and check what lies in the usual folders (below *root*): the main file and its drop-ins.

    Raises:
        InvalidOptions: with all problems of all files, each with file and line.
    """
    return read_layered(root).checked()


def read_file(file: str) -> Reading:
    """Read *file*, whatever is wrong with it."""
    return _read([Entry(file)], [], _CURE_NAMED)


def read_layered(root: str = "/") -> Reading:
    """Read what lies in the usual folders (below *root*), whatever is wrong with it."""
    return _read(*sources.find(root), _CURE_FOUND)


def _read(entries: list[Entry], problems: list[Problem], cure: str) -> Reading:
    texts: dict[str, bytes] = {}
    documents = []
    for entry in entries:
        if entry.masks:
            continue
        try:
            texts[entry.path] = sources.read(entry.path, cure)
            documents.append(sources.parse(entry.path, texts[entry.path]))
        except InvalidOptions as error:
            problems += error.problems
    config, found = interpret(Layers(documents))
    return Reading(tuple(entries), texts, config, (*problems, *found))


def interpret(layers: Layers) -> tuple[Config, list[Problem]]:
    """Check merged tables; gives what could be read and all problems, with their places."""
    problems: list[Problem] = []
    daemon = DaemonSpec()
    regions: dict[str, RegionSpec] = {}
    for key, table in layers.tables.items():
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
    problems += _clashes(regions, daemon.runtime_directory, layers)
    config = Config(daemon, regions, layers)
    return config, config.placed(problems)


def _interpret_regions(table: Mapping[str, Any], regions: dict[str, RegionSpec], problems: list[Problem]) -> None:
    for name, options in table.items():
        if not isinstance(options, dict):
            problems.append(Problem(f"region.{name}", "is no table", f"write [region.{name}]"))
            continue
        try:
            regions[name] = parse(RegionSpec, options, f"region.{name}", name=name)
        except InvalidOptions as error:
            problems += error.problems


def _clashes(regions: Mapping[str, RegionSpec], runtime_directory: str, layers: Layers) -> list[Problem]:
    """Find what two regions want for themselves; wrong is the one that was written last."""
    problems: list[Problem] = []
    users: dict[tuple[str, str], str] = {}
    wanted = []
    for name, spec in regions.items():
        socket = spec.socket or default_socket(runtime_directory, name)
        for key, value in (("socket", socket), ("backing", spec.backing.path)):
            written = layers.history(("region", name, key))
            wanted.append((layers.order(written[-1].place) if written else (-1, 0), name, key, value))
    for _, name, key, value in sorted(wanted, key=lambda one: one[0]):
        user = users.setdefault((key, value), name)
        if value and user != name:
            written = layers.history(("region", user, key))
            by = f"region {user} too" + (f" ({written[-1].place})" if written else "")
            problems.append(Problem(f"region.{name}.{key}", f"{value} is used by {by}", "give each its own"))
    return problems


def default_socket(runtime_directory: str, name: str) -> str:
    """Say where the clients of region *name* connect unless it says otherwise."""
    return os.path.join(runtime_directory, name, "socket")


def keys_of(table: type) -> list[str]:
    """Name the keys of a table of options, in the order in which they are declared."""
    return [f.name.replace("_", "-") for f in dataclasses.fields(table) if "convert" in f.metadata]


def misnamed(path: Path) -> bool:
    """Tell whether there is no option of the name *path*, whatever its value."""
    match path:
        case ("daemon", key):
            return key not in keys_of(DaemonSpec)
        case ("region", _, key):
            return key not in keys_of(RegionSpec)
        case _:
            return len(path) == 1 and path[0] not in ("daemon", "region", "device")
