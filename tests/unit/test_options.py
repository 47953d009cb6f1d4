# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from doorbelld import options
from doorbelld.errors import InvalidOptions, Problem
from doorbelld.ivshmem.spec import RegionSpec
from doorbelld.options import frozen_differences, option, parse
from hypothesis import given
from hypothesis import strategies as st

ANYTHING = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True)
    | st.text(max_size=12)
    | st.binary(max_size=5)
    | st.lists(st.text(max_size=3), max_size=3)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)
)
CONVERTERS = [
    options.size, options.duration, options.mode, options.boolean, options.text, options.text_list, options.path,
    options.integer(0, 9), options.choice("a", "b"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("convert", "raw", "value"),
    [
        (options.size, 4096, 4096),
        (options.size, "4096", 4096),
        (options.size, "4M", 4 << 20),
        (options.size, "4 MiB", 4 << 20),
        (options.size, " 2g ", 2 << 30),
        (options.size, "1TB", 1 << 40),
        (options.size, "512B", 512),
        (options.duration, "30s", 30.0),
        (options.duration, "1.5 min", 90.0),
        (options.duration, "250ms", 0.25),
        (options.duration, "1us", 1e-6),
        (options.duration, "1h", 3600.0),
        (options.duration, "7", 7.0),
        (options.duration, 7, 7.0),
        (options.duration, 0.5, 0.5),
        (options.duration, 0, 0.0),
        (options.duration, "never", 0.0),
        (options.mode, "0660", 0o660),
        (options.mode, "600", 0o600),
        (options.mode, "0o644", 0o644),
        (options.boolean, True, True),
        (options.boolean, False, False),
        (options.text, "x y", "x y"),
        (options.text_list, ["a", ""], ("a", "")),
        (options.text_list, (), ()),
        (options.integer(1, 3), 3, 3),
        (options.path, "/a b", "/a b"),
        (options.choice("a", "b"), "b", "b"),
    ],
)
def test_converted(convert: Callable[[Any], Any], raw: object, value: object) -> None:
    got = convert(raw)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("convert", "raws"),
    [
        (
            options.size,
            [0, -1, "-1", "0", "1.5M", "M", "", "4X", True, None, 1 << 63, "9999999999T", 4.0, b"4M"],
        ),
        (options.duration, [-1, "-1s", "x", "", "1d", True, None, 1e9, float("nan"), float("inf"), "1e3", [], "1s1"]),
        (options.mode, [0o660, "8", "99", "0888", "", "0660 ", "u+rw", "066000", None, True]),
        (options.boolean, [0, 1, "true", "yes", None]),
        (options.text, ["", "a\nb", "a\0b", "a\r", 3, None, b"x"]),
        (options.text_list, ["abc", [1], None, {"a": 1}]),
        (options.integer(1, 3), [0, 4, True, "2", 2.0, None]),
        (options.path, ["", "a/b", "~/x", "/a\nb", 3]),
        (options.choice("a", "b"), ["c", "", None, 3, ["a"], {}]),
    ],
)
def test_refused_with_cause_and_cure(convert: Callable[[Any], Any], raws: list[object]) -> None:
    for raw in raws:
        with pytest.raises(ValueError, match=r"(?s)^.+; .+") as caught:
            convert(raw)
        assert type(caught.value) is ValueError


@given(ANYTHING)
def test_nothing_else_is_ever_raised(raw: object) -> None:
    for convert in CONVERTERS:
        try:
            convert(raw)
        except ValueError as error:
            assert "; " in str(error)


@dataclass(frozen=True, slots=True)
class Inner:
    depth: int = option(options.integer(0, 9))


def _inner(raw: object) -> Inner:
    assert isinstance(raw, dict)
    return parse(Inner, raw, "")


@dataclass(frozen=True, slots=True)
class Table:
    name: str
    width: int = option(options.integer(0, 9))
    some_words: tuple[str, ...] = option(options.text_list, default=("x",))
    inner: Inner | None = option(_inner, default=None)

    def check(self, prefix: str) -> list[Problem]:
        return [Problem(f"{prefix}.width", "is seven", "use another")] if self.width == 7 else []


def problems(raw: dict[str, object]) -> list[str]:
    with pytest.raises(InvalidOptions) as caught:
        parse(Table, raw, "table.x", name="x")
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return [str(problem) for problem in caught.value.problems]


def test_parse() -> None:
    assert parse(Table, {"width": 3}, "p", name="x") == Table("x", 3)
    full = {"width": 3, "some-words": ["a"], "inner": {"depth": 1}}
    assert parse(Table, full, "p", name="x") == Table("x", 3, ("a",), Inner(1))


def test_parse_collects_every_problem() -> None:
    got = problems({"widht": 3, "some_words": [], "some-words": 3, "inner": {"depth": 10, "deep": 1}, "zzz": 1})
    assert got == [
        'table.x.widht: unknown key; did you mean "width"?',
        'table.x.some_words: unknown key; did you mean "some-words"?',
        'table.x.some-words: 3 is not a list of strings; write one such as ["guest1", "7"]',
        "table.x.inner.depth: 10 is out of range; write a number from 0 to 9",
        'table.x.inner.deep: unknown key; did you mean "depth"?',
        "table.x.zzz: unknown key; known here: inner, some-words, width",
        "table.x.width: missing; it has no default, so write it",
    ]


def test_what_is_given_is_no_option() -> None:
    assert problems({"width": 1, "name": "evil"})[0].startswith("table.x.name: unknown key; ")


def test_check_comes_last_and_adds_to_what_is_wrong_already() -> None:
    seven = "table.x.width: is seven; use another"
    assert problems({"width": 7}) == [seven]
    unknown = "table.x.zzz: unknown key; known here: inner, some-words, width"
    assert problems({"width": 7, "zzz": 0}) == [unknown, seven]


def test_values_are_looked_at_together_even_if_one_is_wrong() -> None:
    raw = {"size": "3M", "vectores": 4, "host-peer-id": 0, "mode": 660}
    with pytest.raises(InvalidOptions) as caught:
        parse(RegionSpec, raw, "region.demo", name="demo")
    keys = [problem.key for problem in caught.value.problems]
    assert sorted(keys) == ["region.demo.host-peer-id", "region.demo.mode", "region.demo.size", "region.demo.vectores"]


@dataclass(frozen=True, slots=True)
class HalfFrozen:
    name: str
    low_end: int = option(options.integer(0, 9), default=0, frozen="somebody stands on it")
    high: int = option(options.integer(0, 9), default=0)
    words: tuple[str, ...] = option(options.text_list, default=(), frozen="they were said")


@given(
    st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.integers(0, 2), st.sampled_from([(), ("x",)])),
    st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.integers(0, 2), st.sampled_from([(), ("x",)])),
)
def test_what_is_frozen_and_differs_is_named_with_the_reason(old: tuple[Any, ...], new: tuple[Any, ...]) -> None:
    found = frozen_differences(HalfFrozen(*old), HalfFrozen(*new), "table.x", "make another")
    want = []
    if old[1] != new[1]:
        want.append(Problem("table.x.low-end", "can't change live: somebody stands on it", "make another"))
    if old[3] != new[3]:
        want.append(Problem("table.x.words", "can't change live: they were said", "make another"))
    assert found == want


def test_every_key_of_a_region_is_frozen_or_not_on_purpose() -> None:
    """What guests have taken as given can't change under them; all else can."""
    frozen = {f.name for f in dataclasses.fields(RegionSpec) if f.metadata.get("frozen")}
    live = {f.name for f in dataclasses.fields(RegionSpec)} - frozen - {"name"}
    assert frozen == {"size", "vectors", "socket", "backing", "first_id", "host_peer", "host_peer_id", "relay"}
    access = {"owner", "group", "mode", "peer", "max_peers", "max_absent"}
    assert live == {*access, "clear", "many_vectors", "stall_timeout", "relay_rate", "relay_poll_us"}
