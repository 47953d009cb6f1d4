# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What we ask of the D-Bus library beyond itself; on which of them, the environment says."""

from __future__ import annotations

from doorbelld.bus.library import Message, MessageType, Variant, parse, text, unwrap
from hypothesis import example, given
from hypothesis import strategies as st


@given(st.text(st.characters()))
@example("a\0b\udc80c\ud800")
def test_any_words_fit_a_message(words: str) -> None:
    fit = text(words)
    message = Message(
        message_type=MessageType.SIGNAL, path="/a", interface="a.b", member="C", signature="s", body=[fit], serial=1
    )
    assert parse(message._marshall(True)).body == [fit]
    assert "\0" not in fit
    if "\0" not in words and not any("\ud800" <= char <= "\udfff" for char in words):
        assert fit == words


def test_variants_are_taken_out_at_all_depths() -> None:
    value = {"a": Variant("av", [Variant("a{sv}", {"b": Variant("(us)", [1, "x"])})])}
    assert unwrap(value) == {"a": [{"b": [1, "x"]}]}
