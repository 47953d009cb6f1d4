# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Puts the pages together: each template, its ``@PARTS@`` filled in."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable
from pathlib import Path

from doorbelld import __version__
from doorbelld.ctl.app import SECTIONS
from doorbelld.ctl.app import program as doorbellctl
from doorbelld.main import main as doorbelld
from doorbelld.standalone.blk import program as blk
from doorbelld.standalone.client import program as client
from doorbelld.standalone.rng import program as rng
from doorbelld.standalone.server import program as server

from . import commands, interfaces, keys, roff
from .keys import Unwritten

__all__ = ["PAGES", "PROGRAMS", "Unwritten", "build"]

TEMPLATES = Path(__file__).parent.parent
PROGRAMS = {
    "doorbelld.8": doorbelld,
    "doorbellctl.1": doorbellctl,
    "doorbell-client.1": client,
    "doorbell-server.1": server,
    "doorbelld-vhost-user-blk.1": blk,
    "doorbelld-vhost-user-rng.1": rng,
}
"""Pages of programs, and the commands that those are."""
PAGES = (*PROGRAMS, "doorbelld.toml.5", "org.doorbelld.Doorbell1.5")
_MANUALS = {"1": "User Commands", "5": "File Formats", "8": "System Administration"}
_PART = re.compile(r"@([A-Z ]+)(?: ([a-z]+))?@")


def build(directory: Path) -> None:
    """Make all pages into *directory*.

    Raises:
        Unwritten: something that is to be described is not, or a template names a part that is not there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for page in PAGES:
        lines = roff.tidy(made for line in _template(page) for made in _filled(page, line))
        (directory / page).write_text("\n".join(lines) + "\n", encoding="ascii")


def _template(page: str) -> list[str]:
    return (TEMPLATES / f"{page}.in").read_text(encoding="ascii").splitlines()


def _filled(page: str, line: str) -> list[str]:
    match = _PART.fullmatch(line)
    if match is None:
        return [line]
    part, argument = match.groups()
    if part == "TITLE":
        return [_title(page), *roff.SETTINGS]
    if part == "KEYS":
        return keys.describe(argument, keys.read_prose())
    make = _parts(page).get(part)
    if make is None:
        raise Unwritten(f"{page}.in: there is no part {line}; known are {', '.join(_parts(page))}, TITLE and KEYS")
    return make()


def _parts(page: str) -> dict[str, Callable[[], list[str]]]:
    """Give the makers of the parts that *page* may have."""
    if page.startswith("org."):
        return {
            "ACCESS": interfaces.describe_access,
            "INTERFACES": interfaces.describe,
            "ERRORS": interfaces.describe_errors,
            "OBJECTS": interfaces.describe_objects,
        }
    program, command = page.rpartition(".")[0], PROGRAMS.get(page, doorbelld)
    ctx = commands.context(command, program)
    parts: dict[str, Callable[[], list[str]]] = {
        "SYNOPSIS": lambda: [commands.usage(command, ctx, program)],
        "OPTIONS": lambda: commands.options(command, ctx, with_help=True),
        "EXIT STATUS": lambda: commands.exit_status(command),
        "EXAMPLES": lambda: commands.examples(command),
    }
    if command is doorbellctl:
        parts["COMMANDS"] = lambda: commands.commands(doorbellctl, ctx, SECTIONS)
    return parts


def _title(page: str) -> str:
    name, _, section = page.rpartition(".")
    words = map(roff.quoted, (f"doorbelld {__version__}", _MANUALS[section]))
    return " ".join([".TH", roff.quoted(name.upper()), section, _date(), *words])


def _date() -> str:
    """Give the day of the newest source, or that which who builds a package wants for reproducibility."""
    if (wanted := os.environ.get("SOURCE_DATE_EPOCH")) is not None:
        seconds = float(wanted)
    else:
        project = TEMPLATES.parents[1]
        sources = [file for part in ("daemon", "dbus", "packaging/man") for file in (project / part).rglob("*.*")]
        seconds = max(file.stat().st_mtime for file in sources if file.suffix in (".py", ".xml", ".in", ".toml"))
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()
