# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading a server's socket, the words for one that is not there, and the waits between tries."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from doorbelld.errors import LimitExceeded
from doorbelld.ivshmem.receive import Backoff, receive, unavailable
from support.fdcount import no_descriptor_left, no_leaks, open_fds
from support.otherserver import Piece, message, play
from support.rawclient import identity


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with no_leaks():
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            yield ours, theirs


def test_a_read_ends_with_the_message_that_has_the_descriptor(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    play(theirs, [message(0), message(5), message(-1, "memory"), message(7, "eventfd"), message(8)])
    sizes = []
    for _ in range(3):
        data, fds = receive(ours)
        sizes.append((len(data), len(fds)))
        for fd in fds:
            assert fcntl.fcntl(fd.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            fd.close()
    assert sizes == [(24, 1), (8, 1), (8, 0)]


def test_nothing_is_there(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(BlockingIOError):
        receive(pair[0])


def test_the_end(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].close()
    assert receive(pair[0]) == (b"", [])


def test_as_many_descriptors_as_the_kernel_lets_through(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    play(theirs, [message(7, *["eventfd"] * 253)])
    data, fds = receive(ours)
    assert len(data) == 8
    assert len({identity(fd.fileno()) for fd in fds}) == 253
    for fd in fds:
        fd.close()


@pytest.mark.parametrize("room", [0, 1])
def test_no_room_for_a_descriptor(pair: tuple[socket.socket, socket.socket], room: int) -> None:
    """A message without its descriptor would say that somebody left."""
    ours, theirs = pair
    play(theirs, [message(7, "eventfd", "eventfd")])
    before = open_fds()
    spare = [os.dup(0) for _ in range(room)]
    with no_descriptor_left():
        for fd in spare:
            os.close(fd)
        with pytest.raises(LimitExceeded, match="no descriptor left for a doorbell; raise LimitNOFILE="):
            receive(ours)
    assert open_fds() == before


def test_credentials_beside_the_bytes_are_no_descriptors(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    play(theirs, [Piece(b"12345678")])
    assert receive(ours) == (b"12345678", [])


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOENT, "No such file or directory; start the server, or name its socket"),
        (errno.ECONNREFUSED, "Connection refused; nobody listens there; start the server"),
        (errno.EACCES, "Permission denied; ask for permission to write to the socket, by its owner, group and mode"),
        (errno.EPROTOTYPE, "Protocol wrong type for socket; is it an ivshmem server's socket?"),
    ],
)
def test_who_is_not_there_is_named_with_the_cure(number: int, said: str) -> None:
    error = unavailable("/run/s", OSError(number, os.strerror(number)))
    assert str(error) == f"no ivshmem server at /run/s: {said}"


MOUNTS = """\
351 304 254:0 / / ro,nosuid,relatime shared:64 master:1 - ext4 /dev/vda rw
352 351 0:42 / /tmp rw,nosuid,nodev shared:80 master:2 - tmpfs tmpfs rw
371 351 0:46 /systemd/inaccessible/dir /home ro,nosuid,nodev,noexec shared:119 master:6 - tmpfs tmpfs rw
396 352 0:42 /systemd-private-a6a7-doorbelld.service-oPVcJB/tmp /tmp rw,nosuid,nodev shared:81 master:2 - tmpfs tmpfs rw
397 396 0:42 /shown /tmp/shown rw,nosuid,nodev shared:81 master:2 - tmpfs tmpfs rw
403 351 254:0 /var/tmp/systemd-private-a6a7-doorbelld.service-Clj47z/tmp /var/tmp rw shared:131 - ext4 /dev/vda rw
"""


@pytest.mark.parametrize(
    ("path", "number", "hidden"),
    [
        ("/tmp/far/s", errno.ENOENT, "/tmp"),
        ("/var/tmp/s", errno.ENOENT, "/var/tmp"),
        ("/home/s", errno.EACCES, "/home"),
        ("/tmp/far/s", errno.ECONNREFUSED, ""),
        ("/tmp/shown/s", errno.ENOENT, ""),
        ("/tmpfar/s", errno.ENOENT, ""),
        ("/srv/s", errno.EACCES, ""),
        ("s", errno.ENOENT, ""),
    ],
)
def test_what_a_sandbox_hides_is_told(
    path: str, number: int, hidden: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    monkeypatch.setattr("doorbelld.ivshmem.receive._MOUNTS", str(mounts))
    said = str(unavailable(path, OSError(number, os.strerror(number))))
    cure = f"hides {hidden}: systemctl edit it, BindPaths={os.path.dirname(path)} below [Service]"
    assert (cure in said, "sandbox" in said) == (bool(hidden), bool(hidden))


@pytest.mark.parametrize("mounts", ["no such file", "/dev/null", "/proc/self/status"])
def test_without_a_list_of_mounts_the_cure_is_the_ordinary_one(mounts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("doorbelld.ivshmem.receive._MOUNTS", mounts)
    assert str(unavailable("/tmp/s", FileNotFoundError(errno.ENOENT, "gone"))).endswith(
        "gone; start the server, or name its socket"
    )


def test_an_error_without_a_number_has_words_too() -> None:
    assert "AF_UNIX path too long; is it" in str(unavailable("/run/s", OSError("AF_UNIX path too long")))


def test_waits_double_up_to_the_most_and_begin_anew() -> None:
    backoff = Backoff(first=0.5, most=3.0)
    for want in (0.5, 1.0, 2.0, 3.0, 3.0):
        assert want * 0.75 <= backoff.next() <= want
    backoff.reset()
    assert 0.375 <= backoff.next() <= 0.5


def test_waits_of_many_clients_come_apart() -> None:
    assert len({Backoff().next() for _ in range(20)}) > 10
