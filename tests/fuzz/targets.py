# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The targets by name; each is imported when it is wanted, so that it may be instrumented."""

from __future__ import annotations

from typing import Protocol

from .depth import Depth

NAMES = ("stream", "chains", "disk")
"""Those that there are, beside one with an error in it (planted.py)."""


class Target(Protocol):
    """What runs one input."""

    kinds: int
    """How many kinds of steps it knows."""

    def __call__(self, raw: bytes, /) -> None:
        """Run one input.

        Raises:
            AssertionError: something is not as it must be.
        """

    def close(self) -> None:
        """Let go of everything."""


def make(name: str, depth: Depth) -> Target:
    """Make the target *name*, which notes in *depth* how far inputs get."""
    if name == "stream":
        from .stream import Stream

        return Stream(depth)
    if name == "chains":
        from .chains import Chains

        return Chains(depth)
    if name == "disk":
        from .disk import DiskRequests

        return DiskRequests(depth)
    if name == "planted":
        from .planted import Planted

        return Planted()
    raise ValueError(f"{name!r} is no target; there are {', '.join(NAMES)}")
