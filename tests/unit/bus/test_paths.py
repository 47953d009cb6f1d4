# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Object paths: any name makes a valid one, and no two the same."""

from __future__ import annotations

import re

import pytest
from doorbelld.bus import paths
from hypothesis import given
from hypothesis import strategies as st

VALID = re.compile(r"/[A-Za-z0-9_]+(/[A-Za-z0-9_]+)*")  # D-Bus Specification, "Valid Object Paths"
ROOT = "/org/doorbelld/Doorbell1"


@given(st.text())
def test_round_trip(name: str) -> None:
    assert paths.unescape(paths.escape(name)) == name


@given(st.text(), st.integers(0, 65535))
def test_every_path_is_valid(name: str, peer_id: int) -> None:
    assert VALID.fullmatch(paths.region(name))
    assert VALID.fullmatch(paths.peer(name, peer_id))
    assert VALID.fullmatch(paths.device(name))
    assert VALID.fullmatch(paths.queue(name, peer_id))
    assert not paths.escape(name)[0].isdigit()


@given(st.text(), st.text())
def test_two_names_make_two_paths(one: str, two: str) -> None:
    assert (paths.escape(one) == paths.escape(two)) == (one == two)


@given(st.from_regex(r"[A-Za-z0-9_]+", fullmatch=True))
def test_any_element_can_be_read(element: str) -> None:
    assert isinstance(paths.unescape(element), str)


@pytest.mark.parametrize(
    ("name", "element"),
    [
        ("demo", "demo"),
        ("a.b-c_d", "a_2eb_2dc_5fd"),
        ("1a1", "_31a1"),
        ("", "_"),
        ("_", "_5f"),
        ("\u00e4", "_c3_a4"),
        ("a/b", "a_2fb"),
    ],
)
def test_examples(name: str, element: str) -> None:
    assert paths.escape(name) == element
    assert paths.region(name) == f"{ROOT}/region/{element}"
    assert paths.peer(name, 7) == f"{ROOT}/region/{element}/peer/7"
    assert paths.device(name) == f"{ROOT}/device/{element}"
    assert paths.queue(name, 7) == f"{ROOT}/device/{element}/queue/7"
