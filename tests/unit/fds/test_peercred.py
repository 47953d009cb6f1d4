# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from doorbelld.fds import peercred
from doorbelld.fds.owned import Fd
from doorbelld.fds.peercred import (
    Credentials,
    credentials,
    identify,
    is_dead,
    process_name,
    process_of,
    said_name,
    unit_of,
    vm_name_of,
)
from doorbelld.ivshmem.rules import Match
from hypothesis import given
from hypothesis import strategies as st
from support.fdcount import no_leaks


def test_credentials_of_ourselves() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert credentials(ours) == Credentials(os.getpid(), os.getuid(), os.getgid())
        who = identify(ours)
    assert (who.pid, who.uid, who.gid, who.vm_name) == (os.getpid(), os.getuid(), os.getgid(), "")
    assert who.program == os.path.basename(os.readlink("/proc/self/exe"))


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
        ("12:cpu:/a.service\n0::/some/cgroup\n", "/some/cgroup", ""),
        ("0::/\n", "", ""),
        ("", "", ""),
        ("1:name=systemd:/system.slice/a.service\n0::/\n", "a.service", ""),  # before the unified hierarchy
        ("1:name=systemd:/system.slice/a.service\n0::/system.slice/b.service\n", "b.service", ""),  # hybrid
        ("0::/user.slice/user-1000.slice/session-2.scope\n", "session-2.scope", ""),
        ("0::/a.slice/_b.service\n", "b.service", ""),
        ("0::/init.scope\n", "init.scope", ""),
        ("0::/machine.slice/machine-x.slice/machine-qemu\\x2d1\\x2da.scope", "machine-qemu\\x2d1\\x2da.scope", "a"),
    ],
)
def test_unit_and_machine(monkeypatch: pytest.MonkeyPatch, cgroup: str, unit: str, vm: str) -> None:
    monkeypatch.setattr(peercred, "_read", {f"/proc/{os.getpid()}/cgroup": cgroup.encode()}.__getitem__)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        who = identify(ours)
    assert (who.unit, who.vm_name) == (unit, vm)
    assert who.vm_name_source == ("machine" if vm else "unknown")


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        # what a user's own manager, and whoever has a cgroup delegated, can name as it likes
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/libvirtd.service", "user@1000.service"),
        ("/user.slice/user-1000.slice/user@1000.service/x/machine-qemu\\x2d1\\x2dweb1.scope", "user@1000.service"),
        ("/user.slice/user-1000.slice/user@1000.service/machine.slice/a.scope", "user@1000.service"),
        ("/user.slice/user-1000.slice/user@1000.service/a::/libvirtd.service", "user@1000.service"),
        ("/system.slice/container.service/libvirtd.service", "container.service"),
        # outside of any unit: a path is no unit, whatever it ends with
        ("/lxc.payload.evil/system.slice/libvirtd.service", "/lxc.payload.evil/system.slice/libvirtd.service"),
        ("/evil/libvirtd.service", "/evil/libvirtd.service"),
        ("/../libvirtd.service", "/../libvirtd.service"),
        ("/system.slice/libvirtd.service (deleted)", "/system.slice/libvirtd.service (deleted)"),
        ("/a.slice/x/libvirtd.service", "/a.slice/x/libvirtd.service"),
        # scopes of machines are below machine.slice
        ("/evil.slice/machine-qemu\\x2d1\\x2dweb1.scope", "machine-qemu\\x2d1\\x2dweb1.scope"),
        ("/evil.slice/machine.slice/machine-qemu\\x2d1\\x2dweb1.scope", "machine-qemu\\x2d1\\x2dweb1.scope"),
        ("/machine.slice/evil-machine-qemu\\x2d1\\x2dweb1.scope", "evil-machine-qemu\\x2d1\\x2dweb1.scope"),
    ],
)
def test_lying_cgroup_passes_for_no_unit_and_no_machine(cgroup: str, unit: str) -> None:
    assert unit_of(f"0::{cgroup}\n".encode()) == (unit, "")
    assert unit_of(f"1:name=systemd:{cgroup}\n0::/\n".encode()) == (unit, "")


def test_path_of_a_cgroup_matches_no_pattern_for_units() -> None:
    lying = Credentials(1, 0, 0, unit="/evil/libvirtd.service")
    assert not any(Match(unit=pattern)(lying) for pattern in ("libvirtd.service", "*.service", "*", "?evil*"))
    assert Match(unit="/evil/*")(lying)
    assert not Match(unit="/*")(replace(lying, unit="libvirtd.service"))
    assert lying.identity == replace(lying, unit="").identity


def test_process_that_handed_its_connection_on_and_ended_is_unknown() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(socket.AF_UNIX) as listening:
        listening.bind("")
        listening.listen()
        child = os.fork()
        if not child:
            with socket.socket(socket.AF_UNIX) as connected:
                connected.connect(listening.getsockname())
                socket.send_fds(theirs, [b"x"], [connected.fileno()])
            os._exit(0)
        accepted, _ = listening.accept()
        _, (handed_on,), _, _ = socket.recv_fds(ours, 1, 1)
        with accepted, Fd(handed_on):
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # its PID is not free yet
            for reap in (lambda: os.waitpid(child, 0), lambda: None):
                who = identify(accepted)
                assert (who.pid, who.unit, who.program, who.vm_name_source) == (child, "", "", "unknown")
                reap()


def test_process_that_ends_while_it_is_looked_at_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peercred, "has_ended", lambda process: True)
    ours, theirs = socket.socketpair()
    with ours, theirs, no_leaks():
        assert identify(ours).vm_name_source == "unknown"
        assert said_name(os.getpid(), process_of(ours)) == ""


def test_kernel_without_pidfds_of_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peercred, "_SO_PEERPIDFD", 9999)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert process_of(ours) is None
        assert identify(ours).program.startswith("python")
    assert said_name(os.getpid(), None) == ""


def test_process_of_another_pid_namespace_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peercred, "credentials", lambda sock: Credentials(0, 7, 7))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert identify(ours) == Credentials(0, 7, 7, unread=True)


def test_credentials_survive_a_restart() -> None:
    who = Credentials(1, 2, 3, "web1", "a.service", "qemu", "label")
    for one in (who, replace(who, unread=True)):
        assert Credentials(**one.export()) == one
    assert who.vm_name_source == "process"
    machine = replace(who, unit="machine-qemu\\x2d1\\x2dweb1.scope")
    assert Credentials(**machine.export()).vm_name_source == "machine"


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


def test_zombie_is_dead_and_others_are_not() -> None:
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert is_dead(child.pid)
    assert not is_dead(child.pid)
    assert not is_dead(os.getpid())
    assert not is_dead(0)
