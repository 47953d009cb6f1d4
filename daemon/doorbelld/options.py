# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Typed options: one table describes what a thing can be told, in TOML and over D-Bus alike.

A table is a dataclass whose fields carry an `Option` in their metadata. `parse` reads a mapping (from tomllib or
from an ``a{sv}``) against it and collects **every** problem before it raises, each with a cause and a cure. The
converters below are pure functions from a raw value to a typed one; they raise `ValueError` with the words
"cause; cure".
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from .errors import InvalidOptions, Problem

T = TypeVar("T")

_SIZE = re.compile(r"\s*(\d{1,18})\s*([KMGT]?)(?:i?B)?\s*", re.I | re.A)
_DURATION = re.compile(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*(us|ms|s|min|h|)\s*", re.A)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "": 1.0}


def size(raw: object) -> int:
    """Read bytes as an integer or as ``"4M"`` (K, M, G, T; powers of 1024; an ``iB`` or ``B`` after them is fine)."""
    if isinstance(raw, int) and not isinstance(raw, bool):
        value = raw
    else:
        match = _SIZE.fullmatch(raw) if isinstance(raw, str) else None
        if not match:
            raise ValueError(f'{raw!r} is not a size; write bytes or K, M, G, such as "4M"')
        value = int(match[1]) * _UNITS[match[2].upper()]
    if not 0 < value < 1 << 63:
        raise ValueError(f'{raw!r} is out of range; write a positive size such as "4M"')
    return value


def duration(raw: object) -> float:
    """Read seconds as a number or as ``"30s"`` (us, ms, s, min, h); 0 and ``"never"`` both give 0.0."""
    if raw == "never":
        return 0.0
    if isinstance(raw, int | float) and not isinstance(raw, bool):
        value = float(max(-1, min(raw, 1 << 63))) if isinstance(raw, int) else raw  # not every int fits a float
    else:
        match = _DURATION.fullmatch(raw) if isinstance(raw, str) else None
        if not match:
            raise ValueError(f'{raw!r} is not a duration; write seconds or us, ms, s, min, h, such as "30s"')
        value = float(match[1]) * _SECONDS[match[2]]
    if not 0 <= value < 1e9:
        raise ValueError(f'{raw!r} is out of range; write a duration such as "30s", or "never"')
    return value


def mode(raw: object) -> int:
    """Read an octal file mode written as a string, ``"0660"``."""
    if isinstance(raw, str) and re.fullmatch(r"0?o?[0-7]{3,4}", raw):
        return int(raw.replace("o", ""), 8)
    raise ValueError(f'{raw!r} is not a file mode; write it in octal and in quotes, such as "0660"')


def boolean(raw: object) -> bool:
    """Read true or false."""
    if isinstance(raw, bool):
        return raw
    raise ValueError(f"{raw!r} is not a boolean; write true or false without quotes")


def text(raw: object) -> str:
    """Read a string that is not empty and has no NUL or line break in it."""
    if isinstance(raw, str) and raw and not re.search(r"[\0\r\n]", raw):
        return raw
    raise ValueError(f"{raw!r} is not a name; write a string in quotes")


def text_list(raw: object) -> tuple[str, ...]:
    """Read a list of strings."""
    if isinstance(raw, list | tuple) and all(isinstance(item, str) for item in raw):
        return tuple(raw)
    raise ValueError(f'{raw!r} is not a list of strings; write one such as ["guest1", "7"]')


def integer(low: int, high: int) -> Callable[[object], int]:
    """Make a converter for a whole number from *low* to *high*."""

    def convert(raw: object) -> int:
        if isinstance(raw, bool) or not isinstance(raw, int):
            raise ValueError(f"{raw!r} is not a whole number; write one from {low} to {high}")
        if not low <= raw <= high:
            raise ValueError(f"{raw} is out of range; write a number from {low} to {high}")
        return raw

    return convert


def path(raw: object) -> str:
    """Read an absolute path."""
    value = text(raw)
    if not value.startswith("/"):
        raise ValueError(f"{value!r} is not an absolute path; begin it with /")
    return value


def choice(*allowed: str) -> Callable[[object], str]:
    """Make a converter for one of the words *allowed*."""

    def convert(raw: object) -> str:
        if raw not in allowed:
            raise ValueError(f"{raw!r} is not known; write one of {', '.join(allowed)}")
        return str(raw)

    return convert


def option(convert: Callable[[Any], Any], *, frozen: str = "", **field: Any) -> Any:
    """Declare a dataclass field as an option; its key is the field's name with ``-`` for ``_``.

    *frozen* says why it can't change while what it describes is in use; empty if it can.
    """
    return dataclasses.field(metadata={"convert": convert, "frozen": frozen}, **field)


def frozen_differences(old: Any, new: Any, prefix: str, cure: str) -> list[Problem]:
    """Say what differs between two tables of the same kind and can't change live, with the reason."""
    return [
        Problem(f"{prefix}.{f.name.replace('_', '-')}", f"can't change live: {f.metadata['frozen']}", cure)
        for f in dataclasses.fields(old)
        if f.metadata.get("frozen") and getattr(old, f.name) != getattr(new, f.name)
    ]


def parse(table: type[T], raw: Mapping[str, object], prefix: str, *, others: Collection[str] = (), **given: Any) -> T:
    """Build *table* (a dataclass of options) from *raw*.

    *prefix* is put before each key in what is reported (``region.demo``); *given* are fields that are not options;
    *others* are keys that stand beside those of *table* and are read elsewhere.
    A ``check(prefix) -> list[Problem]`` method of *table*, if any, then looks at the values together.

    Raises:
        InvalidOptions: with all problems found.
    """
    fields = {
        f.name.replace("_", "-"): f
        for f in dataclasses.fields(table)  # type: ignore[arg-type]
        if "convert" in f.metadata
    }
    values: dict[str, Any] = dict(given)
    problems: list[Problem] = []
    for key, value in raw.items():
        name = f"{prefix}.{key}"
        if (field := fields.get(key)) is None:
            problems.append(Problem(name, "unknown key", _did_you_mean(key, [*fields, *others])))
            continue
        try:
            values[field.name] = field.metadata["convert"](value)
        except ValueError as error:
            cause, _, cure = str(error).partition("; ")
            problems.append(Problem(name, cause, cure))
        except InvalidOptions as error:
            problems += [dataclasses.replace(p, key=f"{name}{p.key}") for p in error.problems]
    problems += [
        Problem(f"{prefix}.{key}", "missing", "it has no default, so write it")
        for key, field in fields.items()
        if _required(field) and key not in raw
    ]
    bad = {problem.key for problem in problems}
    if all(field.name in values for field in fields.values() if _required(field)):
        # with defaults for what is wrong, so that what is wrong with the values together is told in the same breath
        made = table(**values)
        problems += [p for p in getattr(made, "check", lambda _: [])(prefix) if p.key not in bad]
        if not problems:
            return made
    raise InvalidOptions(problems)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _did_you_mean(key: str, known: list[str]) -> str:
    import difflib  # for a mistake only

    close = difflib.get_close_matches(key.replace("_", "-"), known, 1)
    return f'did you mean "{close[0]}"?' if close else f"known here: {', '.join(sorted(known))}"
