# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Several documents as one: merged key by key, and for each key who wrote it.

A table is merged with what is there: of the same key in both, the later one counts. Everything else, arrays of tables
included, is replaced whole, for half of one list and half of another is nobody's intention. What was written before
is remembered, so that a problem is told where it was made and ``doorbellctl cat-config`` can say what overrides what.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import Problem
from .places import Path, dotted
from .sources import Document


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Written:
    """A key's value, as it stands at a place."""

    value: Any
    place: Place


class Layers:
    """Documents, the later ones over the earlier.

    `tables` is what they come to. For each key in it (and nothing else) `history` has all that was written there,
    in the order of reading: the last entry decides. A table's entries are all the documents that write to it.
    """

    def __init__(self, documents: Iterable[Document] = ()) -> None:
        self.files: list[str] = []
        self.tables: dict[str, Any] = {}
        self._history: dict[Path, tuple[Written, ...]] = {}
        for document in documents:
            self._merge(self.tables, document.tables, (), document)
            self.files.append(document.file)

    def history(self, path: Path) -> tuple[Written, ...]:
        """Give all that was written at *path*; nothing, if that is a default."""
        return self._history.get(path, ())

    def placed(self, problems: Iterable[Problem], misnamed: Callable[[Path], bool]) -> list[Problem]:
        """Fill in where *problems* were made, and put them in the order of reading.

        That is the place that decides the key's value, or the table's that should hold the key. What is wrong with a
        table as such, or with the key's name (*misnamed* tells), is wrong wherever it is written, and is told for
        each.
        """
        paths: dict[str, Path] = {}
        for path in self._history:
            paths.setdefault(dotted(path), path)
        placed: list[tuple[tuple[int, int], Problem]] = []
        for problem in problems:
            key = problem.key
            while key and key not in paths:
                key = key[: max(key.rfind("."), key.rfind("["), 0)]
            written = self.history(paths[key]) if key else ()
            everywhere = written and key == problem.key and (self._is_table(written) or misnamed(paths[key]))
            for one in written if everywhere else written[-1:]:
                placed.append((self.order(one.place), dataclasses.replace(problem, where=str(one.place))))
            if not written:
                placed.append(((0, 0), problem))
        placed.sort(key=lambda pair: pair[0])
        return [problem for _, problem in placed]

    def order(self, place: Place) -> tuple[int, int]:
        """Give what sorts places in the order of reading."""
        return self.files.index(place.file), place.line

    @staticmethod
    def _is_table(written: tuple[Written, ...]) -> bool:
        return isinstance(written[-1].value, dict)

    def _merge(self, into: dict[str, Any], tables: Mapping[str, Any], above: Path, document: Document) -> None:
        for key, value in tables.items():
            path = (*above, key)
            old = into.get(key)
            if isinstance(old, dict) != isinstance(value, dict):  # one is no answer to the other
                self._forget(path)
                into.pop(key, None)
            elif isinstance(old, list):
                self._forget(path, but_itself=True)
            self._note(path, value, document)
            if isinstance(value, dict):
                self._merge(into.setdefault(key, {}), value, path, document)
            else:
                into[key] = value
                self._note_inside(path, value, document)

    def _note(self, path: Path, value: Any, document: Document) -> None:
        written = Written(value, Place(document.file, document.lines.get(path, 1)))
        self._history[path] = (*self._history.get(path, ()), written)

    def _note_inside(self, path: Path, value: Any, document: Document) -> None:
        """Note what an array holds, so that problems in it are told at their line."""
        if isinstance(value, dict | list):
            inside: Iterable[tuple[str | int, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in inside:
                self._note((*path, key), item, document)
                self._note_inside((*path, key), item, document)

    def _forget(self, path: Path, but_itself: bool = False) -> None:
        """Drop what was noted at *path* and below."""
        if path not in self._history:
            return
        length = len(path)
        for known in [known for known in self._history if known[:length] == path and len(known) >= length + but_itself]:
            del self._history[known]
