# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import errno
import fcntl
import os
import resource

import pytest
from doorbelld.fds import eventfd
from support.fdcount import no_leaks


def test_make() -> None:
    with no_leaks():
        made = eventfd.make(5)
        assert len(set(made)) == 5
        for fd in made:
            assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
        made.close()


def test_make_is_all_or_nothing() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with no_leaks():
        lowest = os.open("/dev/null", os.O_RDONLY)
        os.close(lowest)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 3, hard))
            with pytest.raises(OSError) as caught:
                eventfd.make(100)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert caught.value.errno == errno.EMFILE
        del caught


@pytest.mark.parametrize("count", [0, 1, 10, 255, (1 << 64) - 2])
def test_pending_looks_without_disturbing(count: int) -> None:
    with no_leaks():
        made = eventfd.make(1)
        os.eventfd_write(made[0], count)
        assert eventfd.pending(made[0]) == count
        assert eventfd.pending(made[0]) == count
        if count:
            assert os.eventfd_read(made[0]) == count
        assert eventfd.pending(made[0]) == 0
        made.close()


def test_pending_of_something_else() -> None:
    with open("/dev/null", "rb") as file, pytest.raises(ValueError, match="is no eventfd"):
        eventfd.pending(file.fileno())
