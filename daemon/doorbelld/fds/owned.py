# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Ownership of file descriptors.

One rule: a descriptor number lives in exactly one `Fd`, or in one `FdSet`, or has been handed on by ``steal``. Who
has the object closes it; closing twice does nothing; a bare ``int`` is always borrowed. Everything is close-on-exec.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator
from types import TracebackType


class Fd:
    """One owned descriptor; closed on `close`, at the end of a ``with``, or when collected."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the number, still owned here.

        Raises:
            ValueError: it was closed or stolen.
        """
        if self._fd < 0:
            raise ValueError("descriptor was closed or handed on")
        return self._fd

    def steal(self) -> int:
        """Hand the number to the caller, who now closes it."""
        fd, self._fd = self.fileno(), -1
        return fd

    def dup(self) -> Fd:
        """Duplicate it, close-on-exec."""
        return Fd(os.dup(self.fileno()))

    def close(self) -> None:
        """Close it; a second time does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close

    def __enter__(self) -> Fd:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Fd({self._fd})"


class FdSet:
    """An ordered set of owned descriptors, kept as the C array that native code takes."""

    __slots__ = ("_fds",)

    def __init__(self, fds: Iterable[int] = ()) -> None:
        self._fds = array("i", fds)

    @property
    def array(self) -> array[int]:
        """The numbers, borrowed; the very array, not a copy."""
        return self._fds

    def steal(self) -> list[int]:
        """Hand all numbers to the caller; the set is empty then."""
        fds, self._fds = self._fds.tolist(), array("i")
        return fds

    def close(self) -> None:
        """Close all; a second time does nothing."""
        for fd in self.steal():
            os.close(fd)

    __del__ = close

    def __len__(self) -> int:
        return len(self._fds)

    def __getitem__(self, index: int) -> int:
        return self._fds[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._fds)

    def __repr__(self) -> str:
        return f"FdSet({self._fds.tolist()})"
