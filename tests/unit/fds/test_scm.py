# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages with descriptors: all that one can carry are taken, none is dropped unseen."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
from doorbelld.fds import eventfd, scm
from support.fdcount import no_descriptor_left, no_leaks

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with no_leaks():
        ours, theirs = socket.socketpair()
        with ours, theirs:
            yield ours, theirs


def close_all(fds: list[scm.ForeignFd]) -> None:
    for fd in fds:
        fd.close()


@pytest.mark.parametrize("count", [0, 1, scm.FDS_MAX])
def test_as_many_descriptors_as_a_message_carries_are_taken(pair: Pair, count: int) -> None:
    ours, theirs = pair
    bells = eventfd.make(count)
    assert scm.send(theirs, b"hello", list(bells)) == 5
    for fd in bells:
        os.eventfd_write(fd, 3)
    bells.close()
    data, fds, cut_off = scm.receive(ours, 4096, 1000)
    assert (data, len(fds), cut_off) == (b"hello", count, False)
    assert [os.eventfd_read(fd.fileno()) for fd in fds] == [3] * count
    assert {fd.uid for fd in fds} <= {1000}
    assert not any(os.get_inheritable(fd.fileno()) for fd in fds)
    close_all(fds)


def test_nothing_is_waited_for(pair: Pair) -> None:
    for receive in (scm.receive, scm.receive_all, scm.peek):
        with pytest.raises(BlockingIOError):
            receive(pair[0], 16)


def test_the_end_of_the_stream_is_no_bytes(pair: Pair) -> None:
    pair[1].shutdown(socket.SHUT_WR)
    assert scm.receive(pair[0], 16) == (b"", [], False)
    assert scm.peek(pair[0], 16) == b""


def test_descriptors_for_which_there_is_no_room_are_missed(pair: Pair) -> None:
    ours, theirs = pair
    for _ in range(2):
        with closing(eventfd.make(2)) as bells:
            scm.send(theirs, b"x", list(bells))
    with no_descriptor_left():
        assert scm.receive(ours, 1) == (b"x", [], True)
        with pytest.raises(OSError, match="LimitNOFILE") as caught:
            scm.receive_all(ours, 1)
    assert caught.value.errno == errno.EMFILE


def test_a_look_leaves_bytes_and_descriptors(pair: Pair) -> None:
    ours, theirs = pair
    with closing(eventfd.make(1)) as bells:
        scm.send(theirs, b"hello", list(bells))
    with no_leaks():
        assert scm.peek(ours, 16) == scm.peek(ours, 16) == b"hello"
    data, fds = scm.receive_all(ours, 16)
    assert (data, len(fds)) == (b"hello", 1)
    close_all(fds)


def test_who_is_gone_is_an_error(pair: Pair) -> None:
    ours, theirs = pair
    theirs.close()
    with pytest.raises(BrokenPipeError):
        scm.send(ours, b"x", [])
