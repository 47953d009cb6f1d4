# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Lays out a table in columns: as wide as it is, or within the width of a terminal.

A table that is too wide for a terminal gets narrower in steps, each only as far as needed:

1. Paths move to a line of their own, below the row that they belong to.
2. Columns are dropped: first those that say nothing, then the others in the order that the `Shape` gives.
3. What is still too wide stays so. Names and paths are never cut, so that they can be copied.

Into a pipe, and with ``--no-trunc``, there is no width, and nothing of this is done.
"""

from __future__ import annotations

import datetime
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .process import span

NONE = "-"
"""A cell that has no value."""
RIGHT = ">"
"""Put before a heading: the column's cells are numbers, aligned to the right."""
_GAP = "  "


@dataclass(frozen=True, slots=True)
class Shape:
    """The columns of a table: their *headings*, and those to *drop*, in this order, where there is no room.

    With *path*, the last column holds paths.
    """

    headings: tuple[str, ...]
    drop: tuple[str, ...] = ()
    path: bool = False


@dataclass(frozen=True, slots=True)
class Since:
    """A cell with the time since when something is so, in microseconds: on a terminal it shows how long ago."""

    microseconds: int

    def __str__(self) -> str:
        return when(self.microseconds)

    def age(self, now: float | None = None) -> str:
        """Write how long ago it was, in its largest unit: 5 min."""
        seconds = (time.time() if now is None else now) - self.microseconds / 1e6
        return " ".join(span(seconds).split()[:2])


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it is printed: its cells, padded; and a path that has a line of its own below, or nothing."""

    cells: tuple[str, ...]
    path: str = ""

    @property
    def text(self) -> str:
        """The row as one line."""
        return _GAP.join(self.cells)


def when(microseconds: int) -> str:
    """Write a time as the local clock shows it."""
    return datetime.datetime.fromtimestamp(microseconds / 1e6).strftime("%Y-%m-%d %H:%M:%S")


def columns_of(text: str) -> int:
    """Count the columns of a terminal that *text* takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def lay_out(shape: Shape, rows: Iterable[Sequence[object]], width: int | None) -> Iterator[Row]:
    """Give the headings and the *rows* of a table, within *width* columns of a terminal; None is no bound."""
    cells = [[_text(cell, width) for cell in row] for row in rows]
    headings = list(shape.headings)
    paths = [""] * len(cells)
    if width is not None:
        if shape.path and _width(headings, cells) > width:
            paths = [row[-1] for row in cells]
            headings, cells = headings[:-1], [row[:-1] for row in cells]
        for heading in _to_drop(shape, headings, cells):
            if _width(headings, cells) <= width:
                break
            at = headings.index(heading)
            del headings[at]
            for row in cells:
                del row[at]
    widths = _widths(headings, cells)
    for row, path in zip([[heading.removeprefix(RIGHT) for heading in headings], *cells], ["", *paths], strict=True):
        padded = (
            _pad(cell, columns, heading.startswith(RIGHT))
            for cell, columns, heading in zip(row, widths, headings, strict=True)
        )
        yield Row(tuple(padded), f"{_GAP}{path}" if path else "")


def _text(cell: object, width: int | None) -> str:
    return cell.age() if width is not None and isinstance(cell, Since) else str(cell)


def _to_drop(shape: Shape, headings: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Give the headings to drop, in order: first those whose columns have no value at all."""
    silent = {heading: all(row[place] == NONE for row in cells) for place, heading in enumerate(headings)}
    return sorted(shape.drop, key=lambda heading: not silent[heading])


def _widths(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> list[int]:
    return [
        max(columns_of(heading.removeprefix(RIGHT)), *(columns_of(row[place]) for row in cells), 0)
        for place, heading in enumerate(headings)
    ]


def _width(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> int:
    return sum(_widths(headings, cells)) + len(_GAP) * (len(headings) - 1)


def _pad(cell: str, columns: int, right: bool) -> str:
    blank = " " * (columns - columns_of(cell))
    return blank + cell if right else cell + blank
