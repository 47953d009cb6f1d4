# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from doorbelld.ctl import process


def test_our_own_usage() -> None:
    found = process.usage(os.getpid())
    assert found is not None
    assert found.cpu > 0
    assert 1 << 20 < found.memory < 1 << 40
    assert 0 < found.started < time.time() + 1


def test_a_process_that_is_not_there(tmp_path: Path) -> None:
    assert process.usage(os.getpid(), tmp_path) is None


def test_a_name_with_brackets(tmp_path: Path) -> None:
    fields = ["S", *("0" for _ in range(10)), "300", "200", *("0" for _ in range(6)), "500", "0", "3", "0"]
    (tmp_path / "5").mkdir()
    (tmp_path / "5/stat").write_text(f"5 (a) b) c) {' '.join(fields)}\n")
    (tmp_path / "uptime").write_text("1000.0 1.0\n")
    found = process.usage(5, tmp_path)
    assert found is not None
    assert (found.cpu, found.memory) == (500 / os.sysconf("SC_CLK_TCK"), 3 * os.sysconf("SC_PAGE_SIZE"))


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (5 << 40, "5120.0 GiB")]
)
def test_bytes_in_words(count: int, words: str) -> None:
    assert process.in_words(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(-1, "0 s"), (0.9, "0 s"), (61, "1 min 1 s"), (3600, "1 h"), (200000, "2 d 7 h")]
)
def test_spans_in_words(seconds: float, words: str) -> None:
    assert process.span(seconds) == words
