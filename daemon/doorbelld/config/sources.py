# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the files that make up the configuration, and reads them.

Three folders may hold ``doorbelld.toml`` and drop-ins ``doorbelld.d/*.toml``: that of the administrator, that of this
boot, that of the vendor. Of files with the same name only the one in the first of them counts, and if that is a link
to /dev/null or empty, nothing is read: it masks the others. The main file comes first, then the drop-ins in the order
of their names, whichever folder they lie in.

The folders serve other ends too (sockets in one, our code in another), so what is no file is passed over.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidOptions, Problem
from .places import Path, TooDeep, lines_of

FOLDERS = ("/etc/doorbelld", "/run/doorbelld", "/usr/lib/doorbelld")
"""Where configuration may lie; the first counts most."""
MAIN = "doorbelld.toml"
DROP_INS = "doorbelld.d"
_SUFFIX = ".toml"
_NULL_DEVICE = os.makedev(1, 3)
_UNQUOTED = re.compile(r"""\s*([\w.-]+)\s*=\s*([^\s"'\[\]{}#,=]+)\s*(?:#.*)?$""")
"""A key and one word, as in ``size = 4M``; numbers, dates, true and false are words that TOML takes."""
_CURE_TOML = "see https://toml.io for how TOML is written"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file that counts; or, if it *masks*, one that has nothing read in its place.

    ``hidden`` are the files of the same name that don't count because of it.
    """

    path: str
    masks: bool = False
    hidden: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """A file's tables, and the line of each key in it."""

    file: str
    tables: dict[str, Any]
    lines: dict[Path, int]


def folders(root: str = "/") -> list[str]:
    """Name the folders as they are called below *root*."""
    return [os.path.join(root, folder.lstrip("/")) for folder in FOLDERS]


def find(root: str = "/") -> tuple[list[Entry], list[Problem]]:
    """Find the files in the order in which they are read, and what is wrong with the folders."""
    problems: list[Problem] = []
    mains: list[tuple[str, bool]] = []
    drop_ins: dict[str, list[tuple[str, bool]]] = {}
    for folder in folders(root):
        path = os.path.join(folder, MAIN)
        if (masks := _masks(path)) is not None:
            mains.append((path, masks))
        inside = os.path.join(folder, DROP_INS)
        try:
            names = os.listdir(inside)
        except FileNotFoundError:
            continue
        except OSError as error:
            cure = "make it a folder that doorbelld may read, or remove it"
            problems.append(Problem(shown(inside), f"{error.strerror}", cure))
            continue
        for name in names:
            path = os.path.join(inside, name)
            # a hidden file is an editor's, not a drop-in
            if name.endswith(_SUFFIX) and not name.startswith(".") and (masks := _masks(path)) is not None:
                drop_ins.setdefault(name, []).append((path, masks))
    groups = [mains, *(drop_ins[name] for name in sorted(drop_ins))]
    return [_entry(group) for group in groups if group], problems


def _entry(found: Iterable[tuple[str, bool]]) -> Entry:
    (path, masks), *others = found
    return Entry(path, masks, tuple(other for other, _ in others))


def _masks(path: str) -> bool | None:
    """Tell whether *path* masks; None if it is not there or is no file. What can't be looked at is read, and fails."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        # a link that leads nowhere is there: somebody wants something to be read
        return False if os.path.islink(path) else None
    except OSError:
        return False
    if stat.S_ISCHR(found.st_mode):
        return True if found.st_rdev == _NULL_DEVICE else None
    return found.st_size == 0 if stat.S_ISREG(found.st_mode) else None


def read(path: str, cure: str) -> bytes:
    """Read a file; *cure* is what to do if that fails.

    Raises:
        InvalidOptions: it can't be read.
    """
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError as error:
        raise InvalidOptions([Problem(shown(path), f"{error.strerror}", cure)]) from error


def parse(path: str, raw: bytes) -> Document:
    """Read TOML.

    Raises:
        InvalidOptions: it is none, with the line where that shows.
    """
    file = shown(path)
    try:
        text = raw.decode()
        return Document(file, tomllib.loads(text), lines_of(text))
    except UnicodeDecodeError as error:
        where = f"{file}:{raw.count(10, 0, error.start) + 1}"
        problem = Problem("encoding", f"byte {error.start} is not UTF-8", "save the file as UTF-8", where)
    except TooDeep as error:
        problem = Problem("syntax", str(error), "nest less", f"{file}:{error.line}")
    except (ValueError, RecursionError) as error:  # the latter for brackets in brackets by the thousand
        problem = _syntax(file, text, str(error))
    raise InvalidOptions([problem])


def _syntax(file: str, text: str, said: str) -> Problem:
    match = re.search(r"^(.*) \(at (?:line (\d+), column (\d+)|end of document)\)$", said)
    lines = text.splitlines()
    line = lines[(int(match[2]) if match and match[2] else len(lines)) - 1] if lines else ""
    if (unquoted := _UNQUOTED.match(line)) and not _is_value(unquoted[2]):
        key, value = unquoted.groups()
        where = f"{file}:{match[2]}" if match and match[2] else file
        return Problem("syntax", f"{value} is text without quotes", f'write {key} = "{value}", in quotes', where)
    where = f"{file}:{match[2]}:{match[3]}" if match and match[2] else file
    cause = (match[1] if match else said).rstrip(".")
    return Problem("syntax", cause, _CURE_TOML, where)


def _is_value(word: str) -> bool:
    """Tell whether TOML takes *word* as it is: a number, a date, true or false."""
    try:
        tomllib.loads(f"key = {word}")
    except tomllib.TOMLDecodeError:
        return False
    except ValueError:  # a number, but with more digits than Python takes
        return True
    return True


def shown(path: str) -> str:
    """Write *path* so that it may stand in a message or in a comment: on one line, whatever bytes it is made of."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in path)
