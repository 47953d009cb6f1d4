# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines from pipes, and rows that go above the line that is typed. What a person sees is in tests/integration."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from doorbelld.standalone import terminal
from doorbelld.standalone.terminal import Plain, history_file, open_screen
from hypothesis import given
from hypothesis import strategies as st
from support.fdcount import no_leaks
from support.screen import Screen


@contextmanager
def piped(monkeypatch: pytest.MonkeyPatch, data: bytes) -> Iterator[Plain]:
    """Give a `Plain` that reads *data*."""
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        screen = Plain()
        yield screen
        screen.close()


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"one\n", ["one"]),
        (b"one\n\ntwo", ["one", "", "two"]),
        (b"\n", [""]),
        (b"\xff\n", ["\ufffd"]),
        (b"x" * 10000 + b"\ny\n", ["x" * 10000, "y"]),
    ],
)
def test_lines_as_they_come(monkeypatch: pytest.MonkeyPatch, data: bytes, lines: list[str]) -> None:
    with no_leaks(), piped(monkeypatch, data) as screen:
        got = []
        while (line := screen.read()) is not None:
            got.append(line)
        assert got == lines


def test_answers_and_notes_go_apart(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with piped(monkeypatch, b"") as screen:
        screen.tell("answer")
        screen.note("note")
        assert capsys.readouterr() == ("answer\n", "note\n")
        assert not screen.interactive


def test_reading_can_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin, os.fdopen(writing, "w"):
        monkeypatch.setattr("sys.stdin", stdin)
        screen = Plain()
        ender = threading.Thread(target=screen.interrupt)
        ender.start()
        assert screen.read() is None
        ender.join()
        screen.close()


def test_a_pipe_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(writing)
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr("sys.stdout", io.StringIO())
        screen = open_screen(lambda line, word: [])
        assert isinstance(screen, Plain)
        screen.close()


@pytest.mark.parametrize(
    ("state", "file"),
    [
        ("/state", "/state/doorbelld/client_history"),
        ("", "/nest/me/.local/state/doorbelld/client_history"),
        ("relative", "/nest/me/.local/state/doorbelld/client_history"),
    ],
)
def test_where_the_history_is(monkeypatch: pytest.MonkeyPatch, state: str, file: str) -> None:
    monkeypatch.setenv("HOME", "/nest/me")
    monkeypatch.setenv("XDG_STATE_HOME", state)
    assert history_file() == Path(file)


@given(
    rows=st.integers(2, 6),
    before=st.integers(0, 12),
    typed=st.text("abc", max_size=20),
    left=st.integers(0, 20),
    told=st.lists(st.text("XYZ", min_size=1, max_size=20), max_size=8),
)
def test_a_row_goes_above_the_line_wherever_it_is(
    rows: int, before: int, typed: str, left: int, told: list[str]
) -> None:
    screen = Screen(rows, 20)
    screen.feed("".join(f"{number}\r\n" for number in range(before)))
    column = max(0, min(len(typed), 19) - left)
    screen.feed(f"{typed}\r" + (f"\x1b[{column}C" if column else ""))
    screen.feed("".join(terminal._ABOVE.format(row=row) for row in told))
    shown = screen.gone + ["".join(line).rstrip() for line in screen.lines[: screen.row + 1]]
    assert shown == [*map(str, range(before)), *told, typed]
    assert screen.column == column
    assert not any("".join(line).strip() for line in screen.lines[screen.row + 1 :])
