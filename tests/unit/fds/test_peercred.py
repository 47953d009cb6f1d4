# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from doorbelld.fds import peercred
from doorbelld.fds.peercred import Credentials, credentials, identify, process_name, vm_name_of
from hypothesis import given
from hypothesis import strategies as st


def test_credentials_of_ourselves() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert credentials(ours) == Credentials(os.getpid(), os.getuid(), os.getgid())
        who = identify(ours)
    assert (who.pid, who.uid, who.gid, who.vm_name) == (os.getpid(), os.getuid(), os.getgid(), "")


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["qemu", "-name", "guest=web1,debug-threads=on"], "web1"),
        (["qemu", "-name", "debug-threads=on,guest=web1"], "web1"),
        (["qemu", "--name", "web1"], "web1"),
        (["qemu", "-name", "web1,process=x"], "web1"),
        (["qemu", "-name", "a,,b,debug-threads=on"], "a,b"),
        (["qemu", "-name", "process=x"], ""),
        (["qemu", "-name"], ""),
        (["qemu", "-m", "4G"], ""),
        (["qemu", "-name", "guest=ev\nil\x1b"], "ev?il?"),
        (["qemu", "-name", "x" * 999], "x" * 255),
        ([], ""),
    ],
)
def test_vm_name(argv: list[str], name: str) -> None:
    assert vm_name_of([arg.encode() for arg in argv]) == name


@given(st.lists(st.sampled_from([b"-name", b"guest=", b",", b",,", b"=", b"\xff\xfe", b""]) | st.binary(max_size=9)))
def test_vm_name_of_anything_is_printable(argv: list[bytes]) -> None:
    assert vm_name_of([b"-name", *argv]).isprintable()


@pytest.mark.parametrize(
    ("cgroup", "unit", "vm"),
    [
        ("0::/system.slice/foo.service\n", "foo.service", ""),
        (
            "0::/machine.slice/machine-qemu\\x2d12\\x2dweb1.scope/libvirt/emulator",
            "machine-qemu\\x2d12\\x2dweb1.scope",
            "web1",
        ),
        ("0::/machine.slice/machine-qemu\\x2dmy\\x2dvm.scope\n", "machine-qemu\\x2dmy\\x2dvm.scope", "my-vm"),
        ("12:cpu:/a.service\n0::/user.slice/session-2.scope", "session-2.scope", ""),
        ("12:cpu:/a.service\n", "", ""),
        ("12:cpu:/a.service\n0::/some/cgroup\n", "some/cgroup", ""),
        ("0::/\n", "", ""),
        ("", "", ""),
    ],
)
def test_unit_and_machine(monkeypatch: pytest.MonkeyPatch, cgroup: str, unit: str, vm: str) -> None:
    files = {f"/proc/{os.getpid()}/cgroup": cgroup.encode(), f"/proc/{os.getpid()}/cmdline": b"qemu\0-name\0own\0"}
    monkeypatch.setattr(peercred, "_read", files.__getitem__)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        who = identify(ours)
    assert (who.unit, who.vm_name) == (unit, vm or "own")


def test_a_process_that_is_gone_is_unknown() -> None:
    assert peercred._read("/proc/0/cgroup") == b""
    assert peercred._read("/proc/self") == b""


def test_process_name_is_what_ps_shows() -> None:
    assert process_name(os.getpid()) == Path("/proc/self/comm").read_text().rstrip("\n")
    assert process_name(0) == process_name(1 << 30) == ""


def test_identity_is_the_same_after_a_restart_and_nobody_elses() -> None:
    who = Credentials(1, 107, 107, "web1", "libvirtd.service", "qemu")
    assert who.identity == replace(who, pid=2, gid=3, program="x", label="y").identity
    others = [
        replace(who, uid=0),
        replace(who, vm_name="web2"),
        replace(who, vm_name=""),
        replace(who, unit="x.service"),
    ]
    # a name can't pass for another unit
    others += [
        replace(who, unit="a.service, VM b.service", vm_name="c"),
        replace(who, vm_name="-"),
        replace(who, unit=""),
    ]
    others += [replace(who, unit="a.service", vm_name="b.service, VM c")]
    assert len({who.identity, *(other.identity for other in others)}) == 1 + len(others)


@pytest.mark.parametrize(
    "unit", ["run-u17.service", "run-r1f.scope", "machine-qemu-3-x.scope", "session-4.scope", "a/b"]
)
def test_units_that_are_called_something_else_each_time_are_no_part_of_the_identity(unit: str) -> None:
    assert Credentials(1, 0, 0, "x", unit).identity == Credentials(1, 0, 0, "x").identity
