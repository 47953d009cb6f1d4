# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import fcntl
import os

import pytest
from doorbelld.fds.owned import Fd, FdSet
from support.fdcount import no_leaks


def null() -> int:
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_close_is_idempotent_and_does_not_close_a_reused_number() -> None:
    with no_leaks():
        number = null()
        fd = Fd(number)
        fd.close()
        again = null()
        assert again == number
        fd.close()
        del fd
        assert is_open(again)
        os.close(again)


def test_collected_and_with() -> None:
    with no_leaks():
        number = null()
        fd = Fd(number)
        assert repr(fd) == f"Fd({number})"
        del fd
        assert not is_open(number)
        with Fd(null()) as fd:
            number = fd.fileno()
        assert not is_open(number)


def test_steal_hands_on() -> None:
    with no_leaks():
        fd = Fd(null())
        number = fd.steal()
        with pytest.raises(ValueError, match="closed or handed on"):
            fd.fileno()
        with pytest.raises(ValueError, match="closed or handed on"):
            fd.steal()
        with pytest.raises(ValueError, match="closed or handed on"):
            fd.dup()
        fd.close()
        assert is_open(number)
        os.close(number)


def test_dup_is_another_and_close_on_exec() -> None:
    with no_leaks(), Fd(null()) as fd, fd.dup() as twin:
        assert twin.fileno() != fd.fileno()
        assert fcntl.fcntl(twin.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        fd.close()
        assert is_open(twin.fileno())


def test_set() -> None:
    with no_leaks():
        numbers = [null() for _ in range(3)]
        fds = FdSet(numbers)
        assert list(fds) == numbers == fds.array.tolist()
        assert (len(fds), fds[1], repr(fds)) == (3, numbers[1], f"FdSet({numbers})")
        fds.close()
        assert len(fds) == 0
        assert not any(map(is_open, numbers))
        fds.close()


def test_set_steal_and_collect() -> None:
    with no_leaks():
        fds = FdSet([null(), null()])
        stolen = fds.steal()
        del fds
        assert all(map(is_open, stolen))
        other = FdSet(stolen)
        del other
        assert not any(map(is_open, stolen))
