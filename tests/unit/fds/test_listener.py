# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import errno
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from doorbelld.errors import SocketInUse, SocketUnavailable
from doorbelld.fds.listener import PATH_MAX, Listener, group_id, user_id
from support.fdcount import no_leaks


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    with no_leaks():
        yield f"{tmp_path}/s"


def can_connect(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


def test_serves_and_unlinks(path: str) -> None:
    listener = Listener.open(path)
    assert not listener.sock.getblocking()
    assert not listener.sock.get_inheritable()
    assert can_connect(path)
    listener.close()
    assert not os.path.lexists(path)
    listener.close()


def test_makes_its_directory(path: str) -> None:
    listener = Listener.open(f"{path}/a/b")
    assert can_connect(f"{path}/a/b")
    listener.close()


def test_directories_that_it_made_are_removed_with_the_socket(path: str) -> None:
    os.mkdir(path)
    listener = Listener.open(f"{path}/a/b/s")
    listener.close()
    assert os.listdir(path) == []


def test_directory_that_was_there_stays(path: str) -> None:
    os.mkdir(path)
    Listener.open(f"{path}/s").close()
    assert os.listdir(path) == []


def test_directory_with_something_else_in_it_stays(path: str) -> None:
    listener = Listener.open(f"{path}/a/s")
    Path(f"{path}/other").touch()
    listener.close()
    assert os.listdir(path) == ["other"]


def test_failed_open_leaves_no_directory(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkdir(path)
    with pytest.raises(KeyError):
        Listener.open(f"{path}/a/b/s", owner="nobody-of-that-name")
    with pytest.raises(SocketUnavailable):
        Listener.open(f"{path}/a/{'x' * PATH_MAX}/{'y' * 250}")
    assert os.listdir(path) == []


def test_path_that_was_handed_on_keeps_its_directory(path: str) -> None:
    listener = Listener.open(f"{path}/a/s")
    with listener.steal():
        listener.close()
        assert os.path.exists(f"{path}/a/s")


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_mode_whatever_the_umask(path: str, mode: int) -> None:
    before = os.umask(0o077)
    try:
        listener = Listener.open(path, mode=mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == mode
    listener.close()


def test_nobody_may_connect_until_it_is_ready(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = os.chmod

    def chmod(name: str, mode: int) -> None:
        seen.append((stat.S_IMODE(os.stat(name).st_mode), os.stat(name).st_uid, can_connect(name)))
        real(name, mode)

    monkeypatch.setattr(os, "chmod", chmod)
    before = os.umask(0)
    try:
        listener = Listener.open(path, owner=str(os.getuid()))
    finally:
        os.umask(before)
    listener.close()
    assert [entry[:2] for entry in seen] == [(0, os.getuid())]
    assert seen[0][2] is (os.getuid() == 0)  # it listens by then; only root gets past the mode


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_owner_and_group(path: str) -> None:
    listener = Listener.open(path, owner="daemon", group="1234")
    status = os.stat(path)
    assert (status.st_uid, status.st_gid) == (user_id("daemon"), 1234)
    listener.close()


def test_unknown_owner_leaves_nothing(path: str) -> None:
    with pytest.raises(KeyError):
        Listener.open(path, owner="no-such-user-here")
    assert not os.path.lexists(path)


def test_ids() -> None:
    assert (user_id(""), group_id("")) == (-1, -1)
    assert (user_id("root"), group_id("root"), user_id("77"), group_id("78")) == (0, 0, 77, 78)
    with pytest.raises(KeyError):
        group_id("no-such-group-here")


def test_stale_socket_is_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
        dead.listen()
    assert not can_connect(path)
    listener = Listener.open(path)
    assert can_connect(path)
    listener.close()


@pytest.mark.parametrize("state", ["bound", "listening", "full"])
def test_live_server_is_refused_by_pid_and_not_disturbed(path: str, state: str) -> None:
    with ExitStack() as stack:
        live = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        live.bind(path)
        if state != "bound":
            live.listen(0)
        while state == "full":
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            if client.connect_ex(path) == errno.EAGAIN:
                break
        inode = os.stat(path).st_ino
        holder = rf" \(pid {os.getpid()}\)"
        with pytest.raises(SocketInUse, match=f"^{re.escape(path)}: a live server{holder} listens there; stop it"):
            Listener.open(path)
        assert os.stat(path).st_ino == inode
        if state == "listening":
            with pytest.raises(BlockingIOError):
                live.accept()  # to look was not to connect


@pytest.mark.parametrize("kind", ["file", "directory", "link", "fifo"])
def test_what_is_no_socket_is_untouched(path: str, kind: str) -> None:
    if kind == "file":
        Path(path).write_text("precious")
    elif kind == "directory":
        os.mkdir(path)
    elif kind == "link":
        os.symlink("/nowhere", path)
    else:
        os.mkfifo(path)
    before = os.lstat(path)
    with pytest.raises(SocketInUse, match="something that is no socket is there; remove it"):
        Listener.open(path)
    assert os.lstat(path) == before


def test_path_too_long(path: str) -> None:
    with pytest.raises(SocketUnavailable, match=r"too long; choose another socket path$"):
        Listener.open(path + "x" * PATH_MAX)


def test_longest_path_of_all(tmp_path: Path) -> None:
    path = f"{tmp_path}/".ljust(PATH_MAX, "x")
    if len(path) > PATH_MAX:
        pytest.skip("the temporary folder's name is too long for this")
    listener = Listener.open(path)
    assert can_connect(path)
    listener.close()


def test_close_leaves_the_socket_of_a_successor(path: str) -> None:
    first = Listener.open(path)
    os.unlink(path)
    second = Listener.open(path)
    first.close()
    assert can_connect(path)
    second.close()
    assert not os.path.lexists(path)


def test_handed_on_and_adopted(path: str) -> None:
    first = Listener.open(path)
    fd = first.steal()
    first.close()
    assert can_connect(path)
    second = Listener.adopt(fd, path)
    assert can_connect(path)
    second.close()
    assert not os.path.lexists(path)


def test_a_failed_open_leaves_nothing(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def chmod(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "chmod", chmod)
    with pytest.raises(SocketUnavailable, match="not permitted; only root may"):
        Listener.open(path)
    assert not os.path.lexists(path)
