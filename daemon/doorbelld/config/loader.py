# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the configuration: all of it is checked, and all problems are reported at once, before anything is done.

`sources` finds and reads the files, `layers` makes one configuration of them and knows who wrote what, and here it is
checked. What a ``[region.NAME]`` may say is `RegionSpec`'s business, what
a ``[device.NAME]`` may say is `DeviceSpec`'s and its type's; ``[client.NAME]`` and ``[flat.NAME]`` are read as regions
are.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .. import devices
from ..errors import InvalidOptions, NoSuchDeviceType, Problem, UnusableDeviceType
from ..ivshmem.clientspec import ClientSpec, FlatSpec
from ..ivshmem.spec import RegionSpec
from ..log import LEVELS
from ..options import choice, option, parse, path
from ..vhost.spec import DeviceSpec
from . import sources
from .layers import Layers
from .places import Path, dotted
from .sources import Entry

RUNTIME_DIRECTORY = "/run/doorbelld"
_PLAIN: Mapping[str, type] = {"region": RegionSpec, "client": ClientSpec, "flat": FlatSpec}
"""The tables of tables whose keys are always the same."""
_CURE_NAMED = "name one that is there with --config FILE"
_CURE_FOUND = "let doorbelld read it, or remove it"

T = TypeVar("T")


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
    devices: dict[str, DeviceSpec] = field(default_factory=dict)
    clients: dict[str, ClientSpec] = field(default_factory=dict)
    flats: dict[str, FlatSpec] = field(default_factory=dict)
    layers: Layers = field(default_factory=Layers, compare=False, repr=False)
    faulty: dict[str, Problem] = field(default_factory=dict)
    """Devices that are left out because the package of their type is wrong, and what is wrong with it."""

    @property
    def files(self) -> tuple[str, ...]:
        """What was read, in that order."""
        return tuple(self.layers.files)

    def warnings(self) -> list[Problem]:
        """Say what this host lacks for what is configured, such as the image of a disk; it may be there later."""
        return self.placed(
            problem for name, device in self.devices.items() for problem in device.warnings(f"device.{name}")
        )

    def placed(self, problems: Iterable[Problem]) -> list[Problem]:
        """Fill in file and line of *problems* with this configuration."""
        return self.layers.placed(problems, self._misnamed)

    def _misnamed(self, path: Path) -> bool:
        """Tell whether there is no option of the name *path*, whatever its value."""
        match path:
            case ("daemon", key):
                return key not in keys_of(DaemonSpec)
            case (str(kind), _, key) if kind in _PLAIN:
                return key not in keys_of(_PLAIN[kind])
            case ("device", str(name), key):
                return key not in keys_of(DeviceSpec) + self._own_keys(name)
            case _:
                return len(path) == 1 and path[0] not in ("daemon", "device", *_PLAIN)

    def _own_keys(self, device: str) -> list[str]:
        try:
            return keys_of(devices.find(self.layers.tables["device"][device]["type"]).Options)
        except (KeyError, TypeError, NoSuchDeviceType):
            return []


@dataclass(frozen=True, slots=True)
class Reading:
    """What was found and read, also where not all is well: the files with their bytes, and what came of them."""

    entries: tuple[Entry, ...]
    texts: Mapping[str, bytes]
    config: Config
    problems: tuple[Problem, ...]

    def checked(self, *, tolerant: bool = False) -> Config:
        """Give the configuration if nothing is wrong with it; if *tolerant*, devices may be `Config.faulty`.

        Raises:
            InvalidOptions: with all problems, each with file and line.
        """
        if problems := [p for p in self.problems if not (tolerant and p in self.config.faulty.values())]:
            raise InvalidOptions(problems)
        return self.config


def load(file: str, *, tolerant: bool = False) -> Config:
    """Read and check *file*, and nothing else; see `Reading.checked` for *tolerant*.

    Raises:
        InvalidOptions: with all problems, each with file and line.
    """
    return read_file(file).checked(tolerant=tolerant)


def load_layered(root: str = "/", *, tolerant: bool = False) -> Config:
    """Read and check what lies in the usual folders (below *root*): the main file and its drop-ins.

    See `Reading.checked` for *tolerant*.

    Raises:
        InvalidOptions: with all problems of all files, each with file and line.
    """
    return read_layered(root).checked(tolerant=tolerant)


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
    made: dict[str, DeviceSpec] = {}
    plain: dict[str, dict[str, Any]] = {kind: {} for kind in _PLAIN}
    faulty: dict[str, Problem] = {}
    for key, table in layers.tables.items():
        if key not in ("daemon", "device", *_PLAIN):
            known = "known are [daemon], [region.NAME], [device.NAME], [client.NAME] and [flat.NAME]"
            problems.append(Problem(key, "unknown table", known))
        elif not isinstance(table, dict):
            problems.append(Problem(key, "is no table", f"write [{key}{'' if key == 'daemon' else '.NAME'}]"))
        elif key == "daemon":
            try:
                daemon = parse(DaemonSpec, table, "daemon")
            except InvalidOptions as error:
                problems += error.problems
        elif key == "device":
            usable, faulty = _usable(table)
            _interpret(usable, key, lambda name, raw, at: DeviceSpec.parse(name, raw, at, devices.find), made, problems)
        else:
            _interpret(table, key, _reader(_PLAIN[key]), plain[key], problems)
    problems += _clashes(plain["region"], made, daemon.runtime_directory, layers)
    config = Config(daemon, plain["region"], made, plain["client"], plain["flat"], layers)
    config.faulty.update({name: config.placed([problem])[-1] for name, problem in faulty.items()})
    return config, config.placed([*problems, *faulty.values()])


def _usable(table: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Problem]]:
    """Part devices from those whose type another package got wrong."""
    usable, faulty = dict(table), dict[str, Problem]()
    for name, options in table.items():
        try:
            devices.find(options["type"])
        except UnusableDeviceType as error:
            cause, _, cure = str(error).rpartition("; ")
            faulty[name] = Problem(f"device.{name}.type", cause, cure)
            del usable[name]
        except (TypeError, KeyError, NoSuchDeviceType):
            continue  # it is told where the table is read
    return usable, faulty


def _reader(spec: type[T]) -> Callable[[str, Mapping[str, Any], str], T]:
    """Give what reads a table into a *spec* of that name."""
    return lambda name, raw, at: parse(spec, raw, at, name=name)


def _interpret(
    table: Mapping[str, Any],
    kind: str,
    read: Callable[[str, Mapping[str, Any], str], T],
    into: dict[str, T],
    problems: list[Problem],
) -> None:
    for name, options in table.items():
        if not isinstance(options, dict):
            problems.append(Problem(f"{kind}.{name}", "is no table", f"write [{kind}.{name}]"))
            continue
        try:
            into[name] = read(name, options, f"{kind}.{name}")
        except InvalidOptions as error:
            problems += error.problems


def _clashes(
    regions: Mapping[str, RegionSpec], devices: Mapping[str, DeviceSpec], runtime_directory: str, layers: Layers
) -> list[Problem]:
    """Find what two regions or devices want for themselves; wrong is the one that was written last."""
    problems: list[Problem] = []
    users: dict[tuple[str, str], Path] = {}
    wanted: list[tuple[tuple[int, int], Path, str]] = []

    def want(wanting: Path, value: str) -> None:
        written = layers.history(wanting)
        wanted.append((layers.order(written[-1].place) if written else (-1, 0), wanting, value))

    for name, region in regions.items():
        want(("region", name, "socket"), region.socket or default_socket(runtime_directory, name))
        want(("region", name, "backing"), region.backing.path)
    for name, device in devices.items():
        want(("device", name, "socket"), device.socket or default_socket(runtime_directory, name))
    for _, wanting, value in sorted(wanted, key=lambda one: one[0]):
        user = users.setdefault((str(wanting[-1]), value), wanting)
        if value and user != wanting:
            written = layers.history(user)
            by = f"{user[0]} {user[1]} too" + (f" ({written[-1].place})" if written else "")
            problems.append(Problem(dotted(wanting), f"{value} is used by {by}", "give each its own"))
    return problems


def default_socket(runtime_directory: str, name: str) -> str:
    """Say where the clients of region or device *name* connect unless it says otherwise."""
    return os.path.join(runtime_directory, name, "socket")


def keys_of(table: type) -> list[str]:
    """Name the keys of a table of options, in the order in which they are declared."""
    return [f.name.replace("_", "-") for f in dataclasses.fields(table) if "convert" in f.metadata]
