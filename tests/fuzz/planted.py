# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A target with an error in it, in memory that Python does not look after: tests see that it is found."""

from __future__ import annotations

import ctypes

from .script import parse


class Planted:
    """Writes one byte too many if the data of a step of kind 1 begins with an exclamation mark."""

    kinds = 2

    def __init__(self) -> None:
        libc = ctypes.CDLL(None)
        self._take, self._fill = libc.malloc, libc.memset
        self._take.restype = ctypes.c_void_p
        self._fill.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)

    def __call__(self, raw: bytes) -> None:
        """Run one input."""
        if any(step.kind == 1 and step.data[:1] == b"!" for step in parse(raw)):
            self._fill(self._take(16), 0, 17)

    def close(self) -> None:
        """There is nothing to close."""
