# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import dataclasses

import pytest
from doorbelld import errors
from doorbelld.errors import LINES_LIMIT, DoorbellError, InvalidOptions, Problem, escaped, printable, printable_lines


def test_problem_in_words() -> None:
    problem = Problem("region.a.size", "3M is not a power of two", "use 4M")
    assert str(problem) == "region.a.size: 3M is not a power of two; use 4M"
    placed = dataclasses.replace(problem, where="/etc/x.toml:3")
    assert str(placed) == "/etc/x.toml:3: region.a.size: 3M is not a power of two; use 4M"


def test_invalid_options_lists_all() -> None:
    both = [Problem("a", "b", "c"), Problem("d", "e", "f")]
    error = InvalidOptions(both)
    assert error.problems == tuple(both)
    assert str(error) == "a: b; c\nd: e; f"


def test_one_hierarchy_each_explained() -> None:
    classes = [thing for thing in vars(errors).values() if isinstance(thing, type) and issubclass(thing, Exception)]
    assert len(classes) > 5
    assert all(issubclass(kind, DoorbellError) and kind.__doc__ for kind in classes)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain words", "plain words"),
        ("\x1b]0;title\x07\x1b[2J", "\ufffd]0;title\ufffd\ufffd[2J"),
        ("two\nlines\tand\rmore", "two lines and more"),
        ("\u202egnp.exe\u2066", "\ufffdgnp.exe\ufffd"),  # bidi: it would read exe.png
        ("\x9b2J\udc80\0", "\ufffd2J\ufffd\ufffd"),
        ("x" * 300, "x" * 252 + "..."),
    ],
)
def test_text_of_anybody_is_made_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert all(line.isprintable() for line in printable_lines(text).split("\n"))
    assert (
        printable_lines("two\nlines\x1b") == "two\nlines\ufffd" and len(printable_lines("x" * 100_000)) == LINES_LIMIT
    )
    assert escaped(text).isprintable() and escaped("a\nb\x1b", keep="\n") == "a\nb\\x1b"
