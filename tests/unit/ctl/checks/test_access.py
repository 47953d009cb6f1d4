# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest
from doorbelld.ctl.checks import access
from doorbelld.ctl.checks.view import User, View

from .conftest import Stage, device, levels, only, region

SOCKET = "/run/doorbelld/demo/socket"


def test_a_socket_that_all_can_reach_is_fine(stage: Stage) -> None:
    stage.listen(SOCKET)
    stage.serve(demo=region())
    assert only(access.sockets, stage) == (
        "ok",
        f'region "demo": libvirt-qemu and me can connect to {SOCKET} | ',
    )


def test_no_region_is_nothing_to_look_at(stage: Stage) -> None:
    assert only(access.sockets, stage)[0] == "skipped"


def test_a_socket_that_is_missing(stage: Stage) -> None:
    stage.serve(demo=region())
    level, said = only(access.sockets, stage)
    assert (level, f"{SOCKET} is not there" in said, "restart" in said) == ("wrong", True, True)


def test_a_file_in_its_place(stage: Stage) -> None:
    stage.file(SOCKET, "")
    stage.serve(demo=region())
    assert "is no socket" in only(access.sockets, stage)[1]


def test_a_socket_that_nobody_serves_any_more(stage: Stage) -> None:
    stage.listen(SOCKET).close()
    stage.serve(demo=region())
    level, said = only(access.sockets, stage)
    assert (level, "nobody listens" in said) == ("wrong", True)


def test_qemus_user_may_not_write_to_the_socket(stage: Stage) -> None:
    stage.listen(SOCKET, 0o600)
    stage.serve(demo=region())
    level, said = only(access.sockets, stage)
    assert level == "wrong"
    assert f"libvirt-qemu may not connect to {SOCKET} (" in said
    assert "mode 0600" in said
    assert 'group = "kvm" in [region.demo]' in said


@pytest.mark.parametrize("closed", ["/run", "/run/doorbelld", "/run/doorbelld/demo"])
def test_qemus_user_may_not_pass_a_directory(stage: Stage, closed: str) -> None:
    stage.listen(SOCKET)
    stage.serve(demo=region())
    stage.view.place(closed).chmod(0o700)
    level, said = only(access.sockets, stage)
    assert (level, f"may not pass {closed} (" in said, f"chmod a+x {closed}," in said) == ("wrong", True, True)


def test_who_asks_gets_a_hint(stage: Stage) -> None:
    stage.file("/etc/passwd", "")
    stage.listen(SOCKET, 0o600)
    stage.serve(demo=region())
    stage.view.me = User("somebody", 4321, frozenset((4321,)), "people")
    level, said = only(access.sockets, stage)
    assert (level, "somebody may not connect" in said, 'group = "people"' in said) == ("hint", True, True)


def test_apparmor_that_is_not_there(stage: Stage) -> None:
    assert "not in use" in only(access.apparmor, stage)[1]
    stage.file("/sys/module/apparmor/parameters/enabled", "Y\n")
    assert only(access.apparmor, stage)[0] == "skipped"


def test_apparmor_without_a_rule_for_us(stage: Stage) -> None:
    stage.file("/sys/module/apparmor/parameters/enabled", "Y\n")
    stage.file("/etc/apparmor.d/abstractions/libvirt-qemu", "  /dev/kvm rw,\n  /run/doorbelld/** r,\n")
    stage.serve(demo=region())
    level, said = only(access.apparmor, stage)
    assert level == "hint"
    assert "local/abstractions/libvirt-qemu" in said
    rule = said.partition("anew: ")[2]
    stage.file("/etc/apparmor.d/local/abstractions/libvirt-qemu", rule)
    assert only(access.apparmor, stage)[0] == "ok"


@pytest.mark.parametrize(
    ("rules", "may"),
    [
        ("/run/doorbelld/** rw,", True),
        ("  /run/doorbelld/*/socket rw,", True),
        ("/run/doorbelld/* rw,", False),
        ('owner "/{,var/}run/doorbelld/d[a-f]mo/sock?t" rwk,', True),
        ("@{run}/doorbelld/** w,", True),
        ("rw /run/doorbelld/**,", True),
        ("/run/doorbelld/** r,", False),
        ("# /run/doorbelld/** rw,", False),
        ("/run/doorbelld/** rw,\ndeny /run/** w,", False),
        ("/run/doorbelldX/** rw,", False),
        ("", False),
    ],
)
def test_apparmor_rules(rules: str, may: bool) -> None:
    assert access.permits(rules, SOCKET) is may


class Labelled(View):
    def label(self, path: str) -> str:
        return "system_u:object_r:init_var_run_t:s0"


def test_selinux(stage: Stage) -> None:
    stage.serve(demo=region())
    assert only(access.selinux, stage)[0] == "skipped"
    stage.file("/sys/fs/selinux/enforce", "1")
    (finding,) = access.selinux(Labelled(root=stage.root, known=stage.view.known))
    assert "init_var_run_t" in finding.found
    assert "semanage fcontext" in finding.cure


def test_stale_sockets(stage: Stage) -> None:
    stage.listen(SOCKET)
    stage.serve(demo=region(), far=region("/srv/vm/far/socket"))
    stage.listen("/srv/vm/far/socket")
    assert levels(access.stale, stage) == ["ok"]
    stage.listen("/run/doorbelld/other/socket")
    stage.file("/run/doorbelld/file/socket", "")
    assert levels(access.stale, stage) == ["ok"]
    stage.listen("/srv/vm/gone/socket").close()
    level, said = only(access.stale, stage)
    assert (level, "rm /srv/vm/gone/socket" in said) == ("hint", True)


def test_empty_directory_that_was_left_over_is_named(stage: Stage) -> None:
    stage.serve(demo=region())
    stage.listen(SOCKET)
    stage.file("/run/doorbelld/full/else", "")
    for name in ("selftest-1", "bench-2"):
        (stage.root / "run/doorbelld" / name).mkdir()
    assert only(access.stale, stage) == (
        "hint",
        "/run/doorbelld/bench-2, /run/doorbelld/selftest-1: nothing is in there; a daemon was killed that served it | "
        "rmdir /run/doorbelld/bench-2 /run/doorbelld/selftest-1",
    )


# Devices


def test_sockets_of_devices_are_looked_at_too(stage: Stage) -> None:
    path = "/run/doorbelld/disk0/socket"
    listening = {"disk0": device()}
    stage.serve(listening)
    assert 'device "disk0": ' in only(access.sockets, stage)[1]
    stage.listen(path, 0o600)
    level, said = only(access.sockets, stage)
    assert (level, 'device "disk0": libvirt-qemu may not connect' in said) == ("wrong", True)
    assert 'group = "kvm" in [device.disk0]' in said
    assert levels(access.stale, stage) == ["ok"]
    stage.serve({"disk0": device(connect=True)})  # the front-end's socket is its own business
    assert only(access.sockets, stage)[0] == "skipped"


def test_a_devices_socket_that_is_left_over(stage: Stage) -> None:
    stage.listen("/run/doorbelld/disk0/socket").close()
    stage.serve()
    assert "make disk0 again" in only(access.stale, stage)[1]
