# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The layers hold: each module imports from those below it only, and what is one module's business stays there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "daemon" / "doorbelld"
ROOT = "doorbelld"
LINES_MAX = 720

LAYERS = (
    ("errors", "options", "stdio", "log"),
    ("fds",),
    ("wire",),
    ("ring",),
    ("ivshmem",),
    ("vhost",),
    ("devices",),
    ("net",),
    ("host",),
    ("bus",),
    ("service",),
    ("standalone",),
    ("config", "ctl", "guide", "daemon", "main", "__main__"),
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}

SANS_IO = ("wire", "ring")
IO = ("socket", "asyncio", "select", "selectors", "ssl", "subprocess")
OWNERS = {
    "dbus_next": ("bus.library",),
    "dbus_fast": ("bus.library",),
    "pyroute2": ("net",),
    "sdnotify": ("service",),
    "structlog": ("log",),
    "rich": ("ctl",),
}
"""Which module (or package) alone may import what is not ours."""
BUS_BELOW_CTL = ("address", "client", "library", "names", "paths", "interfaces", "private")
"""What of the D-Bus layer is of use to a caller; the rest is the daemon's."""


@dataclass(frozen=True)
class Import:
    module: str
    """Who imports, relative to the package: ``bus.router``."""
    target: str
    """What: ``doorbelld.errors.DoorbellError``, ``asyncio``."""
    line: int


def imports(package: Path) -> Iterator[Import]:
    """Find all imports below *package*, relative ones resolved, those inside functions too."""
    for file in sorted(package.rglob("*.py")):
        parts = list(file.relative_to(package).with_suffix("").parts)
        inside = [ROOT, *parts[:-1]]
        module = ".".join(parts if parts[-1] != "__init__" else parts[:-1])
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                for name in node.names:
                    yield Import(module, name.name, node.lineno)
            elif isinstance(node, ast.ImportFrom):
                base = inside[: len(inside) - node.level + 1] if node.level else []
                base = base + (node.module.split(".") if node.module else [])
                for name in node.names:
                    yield Import(module, ".".join([*base, name.name]), node.lineno)


def breaches(package: Path) -> list[str]:
    """Say what in *package* breaks the rules, in words that a person can act on."""
    found = []
    for entry in imports(package):
        where = f"{entry.module}:{entry.line} imports {entry.target}"
        found += [f"{where}: {why}" for why in _ours(entry) + _foreign(entry)]
    for file in sorted(package.rglob("*.py")):
        module = ".".join(file.relative_to(package).with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text())):
            named = isinstance(node, ast.Constant) and re.match(r"dbus_(next|fast)(\.|$)", str(node.value))
            if named and module not in OWNERS["dbus_next"]:
                found.append(f"{module}:{node.lineno} names {named[0]}: only bus.library may")
    for file in sorted([*package.rglob("*.py"), *package.rglob("*.pyx")]):
        if (lines := len(file.read_text().splitlines())) > LINES_MAX:
            found.append(f"{file.relative_to(package)} has {lines} lines: a module stays under about 700")
    return found


def _ours(entry: Import) -> list[str]:
    here, *_ = entry.module.split(".")
    if not entry.target.startswith(f"{ROOT}."):
        return []
    if not here:
        return ["the package itself imports nothing of it"]
    target, *rest = entry.target.split(".")[1:]
    if target == "__version__":
        return []
    if here not in RANKS or target not in RANKS:
        return [f"{here if here not in RANKS else target} is in no layer; give it one in {Path(__file__).name}"]
    if RANKS[target] > RANKS[here]:
        return [f"{here} is below {target}"]
    if here == "ctl" and (
        target in ("host", "service", "daemon", "main", "guide")
        or (target == "ivshmem" and rest[:1] == ["region"])
        or (target == "bus" and rest and rest[0] not in BUS_BELOW_CTL)
    ):
        return ["the command line reaches the daemon over D-Bus only"]
    return []


def _foreign(entry: Import) -> list[str]:
    top = entry.target.split(".")[0]
    problems = []
    if entry.module.split(".")[0] in SANS_IO and top in IO:
        problems.append("this layer does no I/O")
    owners = OWNERS.get(top, ())
    if owners and not any(entry.module == owner or entry.module.startswith(f"{owner}.") for owner in owners):
        problems.append(f"only {' and '.join(owners)} may")
    return problems


def test_doorbelld_holds_its_layers() -> None:
    assert breaches(PACKAGE) == []


def test_the_walk_sees_the_whole_package() -> None:
    seen = {(entry.module, entry.target) for entry in imports(PACKAGE)}
    assert ("bus.router", "doorbelld.errors.DoorbellError") in seen
    assert ("bus.objects", "doorbelld.bus.paths") in seen
    assert ("service.readiness", "sdnotify") in seen  # inside a function
    assert ("ivshmem.events", "doorbelld.ivshmem.peer.Peer") in seen  # under TYPE_CHECKING


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("fds/a.py", "from ..host.host import Host", "fds is below host"),
        ("fds/a.py", "from .. import bus", "fds is below bus"),
        ("fds/a.py", "import doorbelld.bus.router", "fds is below bus"),
        ("wire/a.py", "def f():\n    from ..ivshmem import ids", "wire is below ivshmem"),
        ("errors.py", "from .fds.owned import Fd", "errors is below fds"),
        ("host/sub/a.py", "from ...bus.names import ROOT", "host is below bus"),
        ("wire/a.py", "import asyncio", "does no I/O"),
        ("wire/a.py", "from socket import socket", "does no I/O"),
        ("bus/a.py", "import dbus_next", "only bus.library"),
        ("bus/a.py", "from dbus_fast.aio import MessageBus", "only bus.library"),
        ("bus/a.py", "import importlib\nimportlib.import_module('dbus_next.aio')", "only bus.library"),
        ("host/a.py", "import pyroute2", "only net"),
        ("main.py", "import sdnotify", "only service"),
        ("host/a.py", "import structlog", "only log"),
        ("bus/a.py", "from rich.table import Table", "only ctl"),
        ("ctl/a.py", "from ..host.host import Host", "over D-Bus only"),
        ("ctl/a.py", "from ..daemon import Daemon", "over D-Bus only"),
        ("service/a.py", "from ..daemon import Daemon", "service is below daemon"),
        ("ctl/a.py", "from ..ivshmem.region import Region", "over D-Bus only"),
        ("ctl/a.py", "from ..bus.objects import Tree", "over D-Bus only"),
        ("__init__.py", "from .errors import DoorbellError", "imports nothing"),
        ("extra/a.py", "from ..errors import DoorbellError", "in no layer"),
        ("log.py", "\n" * (LINES_MAX + 1), "under about 700"),
    ],
)
def test_a_breach_is_found(tmp_path: Path, file: str, text: str, said: str) -> None:
    made = tmp_path / file
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_text(text)
    (found,) = breaches(tmp_path)
    assert said in found


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("host/a.py", "from ..ivshmem import region\nfrom . import events"),
        ("bus/library.py", "import dbus_next\nNAMES = ('dbus_fast', 'dbus_next')"),
        ("bus/a.py", "from .. import __version__\nimport asyncio, socket"),
        ("net/a.py", "import pyroute2"),
        ("ctl/a.py", "from ..bus.client import Client\nfrom ..wire.ivshmem import Decoder"),
        ("main.py", "from .config.loader import load\nfrom .service.readiness import Readiness"),
        ("log.py", "\n" * 700),
    ],
)
def test_what_is_allowed_is_not_a_breach(tmp_path: Path, file: str, text: str) -> None:
    made = tmp_path / file
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_text(text)
    assert breaches(tmp_path) == []
