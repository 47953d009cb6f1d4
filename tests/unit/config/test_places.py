# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines of keys: every key that tomllib reads has one, and it is the right one."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from doorbelld.config.places import DEPTH_MAX, Path, TooDeep, dotted, lines_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

TEXT = """# a comment with [brackets] and key = value
top = 1
[daemon]   # the daemon
log-level = "info"

[ region . "quoted.name" ]
'size' = 1
"many"."parts" . here = 2
[region.demo]
socket = "/x # [no.header]"
inline = { a = 1, b = { c = 2 } }
list = [
  { x = 1 }, # ]
  { x = '''
[not.a.header]
y = 1
''' }, [ 3,
  4],
]
[[region.demo.peer]]
id = 1
[[ region.demo.peer ]]
id = 1979-05-27 07:32:00
match = { uid = 3 }
[[region.demo.peer]]
[region.demo.peer.match]
vm = "a\\""
when = 07:32:00
[[region.other.peer]]
id = 9
[region]
"\\u0061" = '\\'
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("top",), 2),
        (("daemon",), 3),
        (("daemon", "log-level"), 4),
        (("region",), 31),
        (("region", "quoted.name"), 6),
        (("region", "quoted.name", "size"), 7),
        (("region", "quoted.name", "many"), 8),
        (("region", "quoted.name", "many", "parts", "here"), 8),
        (("region", "demo", "socket"), 10),
        (("region", "demo", "inline", "b", "c"), 11),
        (("region", "demo", "list"), 12),
        (("region", "demo", "list", 0, "x"), 13),
        (("region", "demo", "list", 1, "x"), 14),
        (("region", "demo", "list", 2), 17),
        (("region", "demo", "list", 2, 1), 18),
        (("region", "demo", "peer"), 20),
        (("region", "demo", "peer", 0, "id"), 21),
        (("region", "demo", "peer", 1), 22),
        (("region", "demo", "peer", 1, "id"), 23),
        (("region", "demo", "peer", 1, "match", "uid"), 24),
        (("region", "demo", "peer", 2, "match"), 26),
        (("region", "demo", "peer", 2, "match", "vm"), 27),
        (("region", "demo", "peer", 2, "match", "when"), 28),
        (("region", "other"), 29),
        (("region", "other", "peer", 0, "id"), 30),
        (("region", "a"), 32),
    ],
)
def test_each_key_has_its_line(path: Path, line: int) -> None:
    assert lines_of(TEXT)[path] == line
    assert lines_of(TEXT.replace("\n", "\r\n"))[path] == line


def paths_in(value: Any, above: Path = ()) -> Iterator[Path]:
    """Name all keys of what tomllib has read."""
    inside: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*above, key)
        yield from paths_in(item, (*above, key))


def test_all_keys_are_found_and_no_others() -> None:
    assert set(lines_of(TEXT)) == set(paths_in(tomllib.loads(TEXT)))


KEYS = st.lists(
    st.sampled_from(["a", "b", "c-1", '"d.e"', "'f]'", '"\\u0061"', '"\\""', "''"]), min_size=1, max_size=3
).map(" . ".join)
BLANKS = st.sampled_from(["", " ", "\n", ' # ] } = "\n\t'])
NUMBERS = ["1", "-2.5e3", "true", "nan", "1979-05-27", "1979-05-27 07:32:00Z", "0xff"]
STRINGS = ['"x"', '"[a]\\"="', "'\\'", '""', "''", "'''\n[a]'\n'''", "'''''x''''"]
STRINGS += ['"""\n[a]\nb = 1\\""" """', '"""""x"" """""']
SCALARS = st.sampled_from(NUMBERS) | st.sampled_from(STRINGS)
VALUES: st.SearchStrategy[str] = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(st.tuples(BLANKS, inner, BLANKS).map("".join), max_size=3).flatmap(
            lambda items: st.sampled_from([f"[{','.join(items)}]", f"[{','.join(items)}{', ' * bool(items)}]"])
        )
        | st.lists(st.tuples(KEYS, st.just(" = "), inner).map("".join), max_size=3).map(lambda i: f"{{{', '.join(i)}}}")
    ),
    max_leaves=6,
)
STATEMENTS = (
    st.tuples(KEYS, st.just("= "), VALUES).map("".join)
    | KEYS.map(lambda key: f"[{key}]")
    | KEYS.map(lambda key: f"[[ {key} ]]")
    | st.just("# [[x]]")
)


@given(st.lists(STATEMENTS, max_size=8))
@settings(deadline=None, max_examples=500)
def test_any_text_has_the_keys_that_tomllib_finds(statements: list[str]) -> None:
    accepted: list[str] = []
    for statement in statements:  # what goes not with the rest is left out: most random texts would be refused
        try:
            tomllib.loads("\n".join([*accepted, statement]))
        except tomllib.TOMLDecodeError:
            continue
        accepted.append(statement)
    text = "\n".join(accepted)
    lines = lines_of(text)
    assert set(lines) == set(paths_in(tomllib.loads(text)))
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


@given(st.text(alphabet="ab.[]{}0,\n\"'=# \\"))
@example('a."b]".c=[[],{}]')
@settings(deadline=None, max_examples=500)
def test_whatever_tomllib_takes_is_walked_to_its_end(text: str) -> None:
    try:
        known = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert set(lines_of(text)) == set(paths_in(known))


@pytest.mark.parametrize("make", [lambda n: f"a = {'[' * n}{']' * n}", lambda n: f"\n{'.'.join('a' * n)} = 1"])
def test_what_is_nested_too_deep(make: Any) -> None:
    assert max(map(len, lines_of(make(DEPTH_MAX)))) == DEPTH_MAX
    with pytest.raises(TooDeep) as caught:
        lines_of(make(DEPTH_MAX + 2))
    assert caught.value.line == 1 + make(1).count("\n")


def test_dotted() -> None:
    assert dotted(("region", "demo", "peer", 0, "id")) == "region.demo.peer[0].id"
    assert dotted(()) == ""
