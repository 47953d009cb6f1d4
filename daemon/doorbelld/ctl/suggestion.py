# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What doorbellctl says of a word that is no command: what it names, or which command was meant.

A person who repeats a command as suggested must not lose anything. So a command that takes something away is suggested
for a synonym of its name, or for a word that is that name but for a slip of the finger; for nothing else.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from .session import KINDS, WORDS

DESTRUCTIVE = frozenset(
    ("remove", "remove-device", "remove-client", "remove-flat", "disconnect", "reset", "reload", "write", "clear")
)
"""Commands that take something away from somebody."""
_SYNONYMS = {"interrupt": "notify", "remove-region": "remove", "create-region": "create"}
"""What people call a command that is called otherwise."""
_SLIP = 0.83
"""How much of two words must agree (`difflib` ratio) for one to be a slip of the other: one letter in six or so."""


def meant(word: str, commands: Collection[str]) -> str:
    """Give the command that *word* probably means, of *commands*; empty if there is none, or it is not safe to say."""
    if word in _SYNONYMS:
        return _SYNONYMS[word]
    slips = difflib.get_close_matches(word, commands, 1, _SLIP)
    harmless = [command for command in commands if command not in DESTRUCTIVE]
    return next(iter(slips or difflib.get_close_matches(word, harmless, 1)), "")


def named(word: str, known: Mapping[str, Any]) -> str:
    """Say what *word* is the name of, in a description of the daemon, and what to type; empty if of nothing."""
    kinds = [kind for kind in KINDS if word in known.get(f"{kind}s", ())]
    if not kinds:
        return ""
    flag = f" --kind {kinds[0]}" if len(kinds) > 1 else ""
    return f"{word} is a {' and a '.join(WORDS[kind] for kind in kinds)}: doorbellctl status {word}{flag}"
