# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import string

import pytest
from doorbelld.ctl.app import SECTIONS
from doorbelld.ctl.suggestion import DESTRUCTIVE, meant, named
from hypothesis import given
from hypothesis import strategies as st

COMMANDS = [name for section in SECTIONS.values() for name in section]
KNOWN = {"regions": {"demo": {}, "both": {}}, "devices": {"disk0": {}, "both": {}}, "clients": {}, "flats": {"mcu": {}}}


@pytest.mark.parametrize("word", ["demo", "memory", "move", "restart", "set", "connect", "rename", "lode", "wait-for"])
def test_word_that_is_unlike_destructive_command_does_not_suggest_it(word: str) -> None:
    assert meant(word, COMMANDS) not in DESTRUCTIVE


@pytest.mark.parametrize(
    ("word", "command"),
    [("remov", "remove"), ("rmeove", "remove"), ("disconect", "disconnect"), ("remove-region", "remove")],
)
def test_slip_of_destructive_command_suggests_it(word: str, command: str) -> None:
    assert meant(word, COMMANDS) == command


@pytest.mark.parametrize(("word", "command"), [("nofity", "notify"), ("peer", "peers"), ("interrupt", "notify")])
def test_harmless_command_is_suggested_for_similar_word(word: str, command: str) -> None:
    assert meant(word, COMMANDS) == command


@given(st.text(string.ascii_lowercase + "-", min_size=1, max_size=14))
def test_word_without_command_names_letters_never_suggests_destructive(word: str) -> None:
    """A destructive command is suggested only where most letters of both words agree, in order."""
    command = meant(word, COMMANDS)
    if command in DESTRUCTIVE and word != "remove-region":
        assert abs(len(word) - len(command)) <= 3
        assert len(set(command) & set(word)) >= 0.75 * len(set(command))


def test_name_of_thing_says_what_it_is_and_how_to_see_it() -> None:
    assert named("demo", KNOWN) == "demo is a region: doorbellctl status demo"
    assert named("mcu", KNOWN) == "mcu is a flat device: doorbellctl status mcu"
    assert named("both", KNOWN) == "both is a region and a device: doorbellctl status both --kind region"
    assert named("nothing", KNOWN) == ""
    assert named("demo", {}) == ""
