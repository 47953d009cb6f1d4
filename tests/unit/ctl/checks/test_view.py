# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from doorbelld.ctl.checks.view import User, View, allowed

QEMU = User("qemu", 64055, frozenset((109, 44)), "kvm")
READ, WRITE, PASS = 4, 2, 1


def status(mode: int, uid: int = 1, gid: int = 2) -> os.stat_result:
    return os.stat_result((mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "may"),
    [
        (0o002, 1, 2, True),
        (0o660, 1, 2, False),
        (0o660, 1, 109, True),
        (0o660, 1, 44, True),
        (0o602, 1, 109, False),  # the group's bits count for its members, whatever others get
        (0o600, 64055, 2, True),
        (0o062, 64055, 109, False),  # and the owner's for the owner
    ],
)
def test_permission_bits(mode: int, uid: int, gid: int, may: bool) -> None:
    assert allowed(QEMU, status(mode, uid, gid), None, WRITE) is may


def test_root_may_everything() -> None:
    assert allowed(User("root", 0, frozenset()), status(0), None, WRITE)


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32


@pytest.mark.parametrize(
    ("entries", "may"),
    [
        ([(USER, 6, 64055), (MASK, 7, 0)], True),
        ([(USER, 6, 64055), (MASK, 5, 0)], False),
        ([(USER, 4, 64055), (GROUP, 6, 109), (MASK, 7, 0)], False),
        ([(USER, 6, 1234), (MASK, 7, 0)], False),
        ([(GROUP, 6, 109), (MASK, 7, 0)], True),
        ([(GROUP, 4, 109), (GROUP, 6, 44), (MASK, 7, 0)], True),
        ([(GROUP, 6, 77), (MASK, 7, 0)], False),
    ],
)
def test_access_control_lists(entries: list[tuple[int, int, int]], may: bool) -> None:
    whole = acl((USER_OBJ, 6, 0), (GROUP_OBJ, 6, 0), *entries, (OTHER, 0, 0))
    assert allowed(QEMU, status(0o770), whole, WRITE) is may


def test_the_kernel_writes_lists_as_they_are_read(tmp_path: Path) -> None:
    whole = acl((USER_OBJ, 7, 0xFFFFFFFF), (USER, 1, 64055), (GROUP_OBJ, 0, 0xFFFFFFFF), (MASK, 1, 0xFFFFFFFF))
    whole += struct.pack("<HHI", OTHER, 0, 0xFFFFFFFF)
    (tmp_path / "there").mkdir()
    try:
        os.setxattr(tmp_path / "there", "system.posix_acl_access", whole)
    except OSError as error:
        pytest.skip(f"this file system keeps no access control lists: {error.strerror}")
    view = View(root=tmp_path)
    found = (tmp_path / "there").stat()
    assert allowed(QEMU, found, view.acl("/there"), PASS)
    assert not allowed(QEMU, found, view.acl("/there"), READ)
    assert not allowed(User("else", 5, frozenset()), found, view.acl("/there"), PASS)


def test_users_and_groups(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("broken\nqemu:x:107:109:QEMU:/:/bin/false\n")
    (tmp_path / "etc/group").write_text("kvm:x:109:\nvideo:x:44:a,qemu\nother:x:5:qemus\n")
    view = View(root=tmp_path)
    assert view.user("qemu") == User("qemu", 107, frozenset((109, 44)), "kvm")
    assert view.user("nobody") is None
    assert (view.user_name(107), view.user_name(1), view.group_name(44)) == ("qemu", "1", "video")


def test_links_are_followed_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "run/doorbelld").mkdir(parents=True)
    (tmp_path / "var").mkdir()
    (tmp_path / "var/run").symlink_to("../run")
    assert View(root=tmp_path).real("/var/run/doorbelld") == "/run/doorbelld"
    assert View().real("/proc/self/../version") == "/proc/version"


def test_whom_the_daemon_runs_as(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/:/\ndoorbelld:x:990:991::/:/\n")
    (tmp_path / "etc/group").write_text("doorbelld:x:991:\n")
    (tmp_path / "proc/7").mkdir(parents=True)
    view = View(root=tmp_path, pid=7)
    mine = os.getuid()
    assert (view.daemon_user.name, view.daemon_user.uid) == (view.user_name(mine), mine)
    view.unit = {"User": "doorbelld"}
    assert view.daemon_user == User("doorbelld", 990, frozenset((991,)), "doorbelld")
    (tmp_path / "proc/7/status").write_text("Groups:\t5 6\n")
    assert view.daemon_user.groups == {5, 6, 991}
    view.unit = {}
    view.pid = 8
    assert (view.daemon_user.name, view.daemon_user.uid) == ("root", 0)
