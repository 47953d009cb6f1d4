# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the line of each key in a TOML text, which tomllib reads but does not tell.

Theory of operation: tomllib has accepted the text, so what remains is to walk over it without judging: headers, keys,
and values, of which only strings, arrays and inline tables need a look, since they may hold what looks like a key and
is none. A key is a `Path` from the top, with the number of the entry behind an array: ``("region", "demo", "peer", 0,
"id")``. Every key that tomllib has made is found, tables that a header only implies included.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from collections.abc import Iterator

Path = tuple[str | int, ...]

DEPTH_MAX = 32
"""Tables in tables that anybody may want; what walks over them may then recurse."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+"{3,5}'
    r"|'''(?:[^']|'(?!''))*+'{3,5}"
    r'|"(?:[^"\\]|\\.)*+"'
    r"|'[^']*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n]*")
_BLANK = re.compile(r"[ \t]*")
_BLANK_LINES = re.compile(r"(?:[ \t\n]|#[^\n]*)*")


class TooDeep(ValueError):
    """Tables or arrays are nested deeper than `DEPTH_MAX`; *line* says where."""

    def __init__(self, line: int) -> None:
        super().__init__(f"nested more than {DEPTH_MAX} levels deep")
        self.line = line


def lines_of(text: str) -> dict[Path, int]:
    """Give the line of each key of *text*, counted from 1; a table's is its header's, if it has one.

    Raises:
        TooDeep: it is nested deeper than a configuration needs.
    """
    return _Walk(text.replace("\r\n", "\n")).lines


def dotted(path: Path) -> str:
    """Write *path* as problems name it: ``region.demo.peer[0].id``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


class _Walk:
    """One walk over a text; `lines` is what came of it."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self._text = text
        self._at = 0
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._implied: set[Path] = set()
        self._last: dict[Path, int] = {}  # the number of the entry at hand, for each array of tables
        table: Path = ()
        while self._skip(_BLANK_LINES) < len(text):
            if text[self._at] == "[":
                table = self._header()
            else:
                self._assignment(table)

    def _header(self) -> Path:
        line = self._line()
        is_array = self._text.startswith("[[", self._at)
        self._at += 1 + is_array
        parts = list(self._key())
        self._at += 1 + is_array
        path: Path = ()
        for part in parts[:-1]:
            path = self._note((*path, part), line, implied=True)
            if path in self._last:
                path = (*path, self._last[path])
        path = self._note((*path, parts[-1]), line)
        if is_array:
            self._last[path] = self._last.get(path, -1) + 1
            path = self._note((*path, self._last[path]), line)
        return path

    def _assignment(self, path: Path) -> None:
        line = self._line()
        parts = list(self._key())
        for part in parts[:-1]:
            path = self._note((*path, part), line, implied=True)
        path = self._note((*path, parts[-1]), line)
        self._at += 1  # the equals sign
        self._skip(_BLANK)
        self._value(path)

    def _value(self, path: Path) -> None:
        first = self._text[self._at]
        if first in "\"'":
            self._skip(_STRING)
        elif first in "[{":
            self._at += 1
            index = 0
            while self._text[self._skip(_BLANK_LINES)] not in "]}":
                if first == "{":
                    self._assignment(path)
                else:
                    self._value(self._note((*path, index), self._line()))
                    index += 1
                if self._text[self._skip(_BLANK_LINES)] == ",":
                    self._at += 1
            self._at += 1
        else:
            self._skip(_SCALAR)

    def _key(self) -> Iterator[str]:
        """Walk over a key and the blanks around it, giving its parts."""
        while True:
            start = self._skip(_BLANK)
            if self._text[start] in "\"'":
                yield tomllib.loads(f"_ = {self._text[start : self._skip(_STRING)]}")["_"]
            else:
                yield self._text[start : self._skip(_BARE)]
            if self._text[self._skip(_BLANK)] != ".":
                return
            self._at += 1

    def _note(self, path: Path, line: int, implied: bool = False) -> Path:
        if len(path) > DEPTH_MAX:
            raise TooDeep(line)
        if path not in self.lines or (path in self._implied and not implied):
            self.lines[path] = line
            self._implied.discard(path)
            if implied:
                self._implied.add(path)
        return path

    def _skip(self, what: re.Pattern[str]) -> int:
        if match := what.match(self._text, self._at):
            self._at = match.end()
        return self._at

    def _line(self) -> int:
        return bisect_right(self._starts, self._at)
