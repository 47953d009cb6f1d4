# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Merging: later over earlier, tables key by key, everything else whole; and who wrote what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from doorbelld.config.layers import Layers
from doorbelld.config.places import Path, lines_of
from doorbelld.config.sources import Document, parse
from doorbelld.errors import Problem
from hypothesis import given, settings
from hypothesis import strategies as st


def layers(*texts: str) -> Layers:
    """Make layers of files called a, b, ..."""
    return Layers(parse(name, text.encode()) for name, text in zip("abcdef", texts, strict=False))


def written(made: Layers, *path: str | int) -> list[tuple[Any, str]]:
    return [(one.value, str(one.place)) for one in made.history(path)]


def places(made: Layers, *keys: str, misnamed: bool = False) -> list[str]:
    problems = [Problem(key, "cause", "cure") for key in keys]
    return [f"{p.where} {p.key}" for p in made.placed(problems, lambda _: misnamed)]


def test_nothing() -> None:
    made = Layers()
    assert (made.tables, made.files, made.history(("x",))) == ({}, [], ())
    assert places(made, "x") == [" x"]


def test_history() -> None:
    made = layers("[t]\nx = 1\ny = 1\n", "t.x = 2\n", "# nothing\n", "\n[t]\nx = 3\n[u]\n")
    assert made.tables == {"t": {"x": 3, "y": 1}, "u": {}}
    assert made.files == ["a", "b", "c", "d"]
    assert written(made, "t", "x") == [(1, "a:2"), (2, "b:1"), (3, "d:3")]
    assert written(made, "t", "y") == [(1, "a:3")]
    assert [place for _, place in written(made, "t")] == ["a:1", "b:1", "d:2"]
    assert written(made, "t", "z") == []


def test_arrays_are_replaced_whole() -> None:
    made = layers("[[t.p]]\nx = 1\n[[t.p]]\ny = 2\n", "[[t.p]]\nz = 3\n")
    assert made.tables == {"t": {"p": [{"z": 3}]}}
    assert [place for _, place in written(made, "t", "p")] == ["a:1", "b:1"]
    assert written(made, "t", "p", 0, "z") == [(3, "b:2")]
    assert written(made, "t", "p", 0, "x") == written(made, "t", "p", 1) == []


def test_a_table_and_what_is_none_replace_each_other() -> None:
    made = layers("x = 1\n[t]\na.b = 2\n", "t = 3\n[x]\ny = 4\n")
    assert made.tables == {"x": {"y": 4}, "t": 3}
    assert written(made, "t") == [(3, "b:1")]
    assert written(made, "t", "a", "b") == written(made, "t", "a") == []
    assert written(made, "x") == [({"y": 4}, "b:2")]


def test_problems_are_placed_where_the_value_is_decided_in_the_order_of_reading() -> None:
    made = layers("[t]\nx = 1\ny = 1\n", "[t]\nx = 2\n[[t.p]]\nz = 1\n")
    assert places(made, "t.p[0].z", "t.x", "t.y") == ["a:3 t.y", "b:2 t.x", "b:4 t.p[0].z"]
    assert places(made, "t.missing", "t.p[0].q", "t.p[7].q") == ["b:1 t.missing", "b:3 t.p[0].q", "b:3 t.p[7].q"]
    assert places(made, "none") == [" none"]


def test_what_is_wrong_by_its_name_is_told_for_each_place() -> None:
    made = layers("[t]\nx = 1\n", "[t]\nx = 2\n")
    assert places(made, "t") == ["a:1 t", "b:1 t"]
    assert places(made, "t.x", misnamed=True) == ["a:2 t.x", "b:2 t.x"]
    assert places(made, "t.x.y", misnamed=True) == ["b:2 t.x.y"]


ITEMS = st.integers(0, 9) | st.dictionaries(st.sampled_from("ab"), st.integers())
SCALARS = st.integers(0, 9) | st.lists(ITEMS, max_size=2)
TABLES: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from("abc"),
    st.recursive(SCALARS, lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=6),
    max_size=3,
)


def leaves(tables: dict[str, Any], above: Path = ()) -> Iterator[tuple[Path, Any]]:
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key), value


def nodes(value: Any, above: Path = ()) -> Iterator[Path]:
    inside: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*above, key)
        yield from nodes(item, (*above, key))


@given(st.lists(TABLES, max_size=5))
@settings(deadline=None, max_examples=400)
def test_each_leaf_is_the_last_that_nothing_above_or_below_has_replaced(documents: list[dict[str, Any]]) -> None:
    """The model: leaves are applied one by one in the order of reading; one drops those above and below it."""
    made = Layers(Document(str(number), tables, {}) for number, tables in enumerate(documents))
    model: dict[Path, list[tuple[Any, str]]] = {}
    for number, tables in enumerate(documents):
        for table in (path for path in nodes(tables) if all(isinstance(part, str) for part in path)):
            if isinstance(_at(tables, table), dict):
                model.pop(table, None)
        for path, value in leaves(tables):
            for other in [p for p in model if len(p) > len(path) and p[: len(path)] == path]:
                del model[other]
            model.setdefault(path, []).append((value, f"{number}:1"))
    assert dict(leaves(made.tables)) == {path: history[-1][0] for path, history in model.items()}
    assert {path: written(made, *path) for path, _ in leaves(made.tables)} == model


def _at(tables: Any, path: Path) -> Any:
    for part in path:
        tables = tables[part]
    return tables


@given(st.lists(TABLES, max_size=4))
@settings(deadline=None)
def test_there_is_a_history_for_what_is_there_and_for_nothing_else(documents: list[dict[str, Any]]) -> None:
    made = Layers(Document(str(number), tables, {}) for number, tables in enumerate(documents))
    known = set(nodes(made.tables))
    everything = {path for tables in documents for path in nodes(tables)}
    assert all(made.history(path) for path in known)
    assert not any(made.history(path) for path in everything - known)
    for path in known:
        last = made.history(path)[-1].value
        assert isinstance(last, dict) if isinstance(_at(made.tables, path), dict) else last == _at(made.tables, path)


def test_what_was_read_is_not_changed() -> None:
    text = "[t]\nx = 1\n"
    first, second = parse("a", text.encode()), parse("b", b"[t]\ny = 2\n")
    made = Layers([first, second])
    assert (first.tables, second.tables) == ({"t": {"x": 1}}, {"t": {"y": 2}})
    assert made.tables == {"t": {"x": 1, "y": 2}}
    assert first.lines == lines_of(text)


def test_many_regions_take_no_more_than_their_share() -> None:
    text = "".join(f"[region.r{n}]\nsize = 1\nvectors = 2\n[[region.r{n}.peer]]\nid = 1\n" for n in range(2000))
    made = layers(text, "".join(f"[region.r{n}]\nsize = 2\n" for n in range(2000)))
    assert len(made.tables["region"]) == 2000
    assert written(made, "region", "r1999", "size") == [(1, "a:9997"), (2, "b:4000")]
