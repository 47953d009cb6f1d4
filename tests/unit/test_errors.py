# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import dataclasses

from doorbelld import errors
from doorbelld.errors import DoorbellError, InvalidOptions, Problem


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
