# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import time

from doorbelld.ctl.layout import Shape, Since, columns_of, lay_out
from hypothesis import given
from hypothesis import strategies as st

SHAPE = Shape(("NAME", ">COUNT", "VM", "SOCKET"), ("VM", ">COUNT"), path=True)
ROWS = [["demo", 5, "guest1", "/run/demo/socket"], ["other", 12345, "-", "/run/other/socket"]]


def lines(width: int | None, shape: Shape = SHAPE, rows: list[list[object]] = ROWS) -> list[str]:  # type: ignore[assignment]
    return [line.rstrip() for row in lay_out(shape, rows, width) for line in (row.text, row.path) if line.strip()]


def test_table_without_width_is_whole() -> None:
    assert lines(None) == [
        "NAME   COUNT  VM      SOCKET",
        "demo       5  guest1  /run/demo/socket",
        "other  12345  -       /run/other/socket",
    ]
    assert lines(40) == lines(None)


def test_path_that_does_not_fit_gets_line_of_its_own() -> None:
    assert lines(30) == [
        "NAME   COUNT  VM",
        "demo       5  guest1",
        "  /run/demo/socket",
        "other  12345  -",
        "  /run/other/socket",
    ]


def test_columns_are_dropped_in_order_until_the_rest_fits() -> None:
    assert lines(15)[::2] == ["NAME   COUNT", "  /run/demo/socket", "  /run/other/socket"]
    assert lines(5) == ["NAME", "demo", "  /run/demo/socket", "other", "  /run/other/socket"]


def test_name_that_is_too_wide_is_not_cut() -> None:
    assert lines(10, rows=[["n" * 30, 1, "-", "/s"]])[1:] == ["n" * 30, "  /s"]


def test_column_without_values_is_dropped_first() -> None:
    silent = Shape(("A", "B", "C"), ("B", "C"))
    assert lines(6, silent, [["1", "bbb", "-"]]) == ["A  B", "1  bbb"]


def test_table_without_rows_has_its_headings() -> None:
    assert lines(None, rows=[]) == ["NAME  COUNT  VM  SOCKET"]


def test_since_is_age_on_terminal_and_date_elsewhere() -> None:
    shape, now = Shape(("SINCE",)), time.time()
    rows: list[list[object]] = [[Since(int((now - 325) * 1e6))]]
    assert lines(80, shape, rows) == ["SINCE", "5 min"]
    assert lines(None, shape, rows)[1] == time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now - 325))
    ages = [Since(0).age(seconds) for seconds in (-1, 59, 3599, 3600, 86399, 86400 * 400)]
    assert ages == ["0 s", "59 s", "59 min", "1 h", "23 h", "400 d"]


def test_wide_characters_take_two_columns() -> None:
    assert [columns_of(text) for text in ("vm", "機械", "e\u0301")] == [2, 4, 1]
    assert lines(None, Shape(("A", "B")), [["機械", "x"], ["vm", "y"]]) == ["A     B", "機械  x", "vm    y"]


@given(st.lists(st.lists(st.text(), min_size=4, max_size=4)), st.integers(1, 200))
def test_names_and_paths_are_whole_at_any_width(cells: list[list[str]], width: int) -> None:
    rows = list(lay_out(SHAPE, cells, width))
    assert len(rows) == len(cells) + 1
    for row, (name, _, _, path) in zip(rows[1:], cells, strict=True):
        assert row.cells[0].startswith(name)
        assert (row.path or row.text).rstrip(" ").endswith(path.rstrip(" "))
