# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""How far inputs get: which ways to be refused, or served, they reach.

Coverage says which lines ran. This says in the project's own words what happened, and is what tests hold the corpus to.
"""

from __future__ import annotations

import re
from collections import Counter

_NUMBER = re.compile(r"0x[0-9a-f]+|\d+")
_QUOTED = re.compile(r'"[^"]*"')


class Depth:
    """What happened, how often."""

    def __init__(self) -> None:
        self.reached: Counter[str] = Counter()

    def note(self, what: str) -> None:
        """Count *what*; numbers in it do not matter."""
        self.reached[_QUOTED.sub("..", _NUMBER.sub("N", what))] += 1
