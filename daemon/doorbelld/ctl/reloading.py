# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a reload of the configuration did, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .session import WORDS

ACTIONS = ("made", "removed", "changed")


def changes_in_words(changes: Iterable[Sequence[str]]) -> str:
    """Write *changes* (action, kind and name each), sorted by action: "made region demo; removed device d0"."""
    changes = list(changes)
    parts = [
        (action, ", ".join(f"{WORDS.get(kind, kind)} {name}" for did, kind, name in changes if did == action))
        for action in ACTIONS
    ]
    return "; ".join(f"{action} {things}" for action, things in parts if things)
