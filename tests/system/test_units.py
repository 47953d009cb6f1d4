# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The units under a real systemd: starting, activation, reload, stopping, the journal, the sandbox."""

from __future__ import annotations

import re
import socket
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from doorbelld.vhost.frontend import Frontend
from support.busctl import CallFailed
from support.machine.container import Machine, MachineError
from support.machine.service import UNIT, MachineBus, Service
from support.rawclient import RawClient

HOST = 65535
VECTORS = 4
DEMO = [["demo", "/org/doorbelld/Doorbell1/region/demo"]]
SOCKETS = ("doorbelld.socket", "doorbelld@x.socket", "doorbelld-device@x.socket")

PEER = """
import socket, sys
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
got = b""
while len(got) < 8 * (3 + 4):
    got += peer.recv(8)
print("greeted", flush=True)
sys.stdin.read()
"""
"""A peer that looks like a QEMU to whoever reads its command line. It leaves when its standard input ends."""


@pytest.fixture
def peer_of_guest(service: Service) -> Iterator[int]:
    """Let the user "guest" connect to the region demo from within the machine, as a VM called vm1; gives its pid."""
    service.configure('[region.demo]\ngroup = "kvm"\nhost-peer = false\n')
    service.start()
    argv = ("python3", "-c", PEER, "/run/doorbelld/demo/socket", "-name", "guest=vm1")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with service.machine.popen(*argv, user="guest", **pipes) as peer:
        assert peer.stdout is not None
        assert peer.stdout.readline() == "greeted\n"
        yield int(service.machine.run("pgrep", "--full", "guest=vm1").stdout)


# Installation


def test_post_install_says_what_to_do_next(service: Service) -> None:
    assert "systemctl enable --now doorbelld" in service.machine.run("sh", "/tmp/post-install", "/usr").stdout
    assert service.show("ActiveState") == "inactive"
    service.start()
    assert "systemctl restart doorbelld" in service.machine.run("sh", "/tmp/post-install", "/usr").stdout


def test_user_and_directories_are_there(machine: Machine) -> None:
    assert machine.run("id", "--name", "--groups", "--zero", "doorbelld").stdout.split("\0")[:2] == ["doorbelld", "kvm"]
    (line,) = re.findall(r"^doorbelld:.*", machine.path("/etc/passwd").read_text(), re.M)
    assert line.endswith("/nologin")
    owner = machine.run("stat", "--format=%U:%G:%a", "/run/doorbelld").stdout.strip()
    assert owner == "doorbelld:doorbelld:755"


def test_presets_enable_the_service_only(machine: Machine) -> None:
    units = ("doorbelld.service", *SOCKETS)
    machine.systemctl("preset", *units)
    states = [machine.systemctl("is-enabled", unit, check=False).stdout.strip() for unit in units]
    machine.systemctl("disable", *units)
    assert states == ["enabled", *["disabled"] * len(SOCKETS)]


def test_systemd_has_no_complaint(machine: Machine) -> None:
    done = machine.run("systemd-analyze", "verify", "--man=no", UNIT, *SOCKETS, check=False)
    version = int(machine.run("systemctl", "--version").stdout.split()[1])
    known = [] if version >= 254 else ["FileDescriptorStorePreserve"]  # ignored before, and said so
    complaints = [line for line in done.stderr.splitlines() if not any(f"'{key}'" in line for key in known)]
    assert complaints == []


def test_manual_pages_that_the_units_name_are_there(machine: Machine) -> None:
    for unit in (UNIT, *SOCKETS):
        pages = machine.show(unit, "Documentation").replace('"', "").split()
        assert pages
        for page in pages:
            match = re.fullmatch(r"man:(.+)\((\d)\)", page)
            assert match
            assert machine.path(f"/usr/share/man/man{match[2]}/{match[1]}.{match[2]}.gz").exists(), page


def test_exposure_is_small(service: Service) -> None:
    for where in (["--offline=true"], []):
        said = service.machine.run("systemd-analyze", "security", *where, "--threshold=15", "--no-pager", UNIT).stdout
        match = re.search(r"Overall exposure level for doorbelld.service: ([\d.]+)", said)
        assert match
        assert float(match[1]) <= 1.5


# Starting and stopping


def test_started_is_ready(service: Service) -> None:
    service.start()
    assert (service.show("SubState"), service.show("StatusText")) == ("running", "1 region, 0 peers")
    assert service.bus.call("", "Manager", "ListRegions") == [DEMO]
    with RawClient(str(service.socket())) as client:
        client.greet(VECTORS)


def test_status_counts_peers(service: Service) -> None:
    service.start()
    with RawClient(str(service.socket())) as client:
        client.greet(VECTORS)
        service.until("StatusText", lambda text: text == "1 region, 1 peer")
    service.until("StatusText", lambda text: text == "1 region, 0 peers")


def test_stop_ends_it_in_good_order(service: Service) -> None:
    service.start()
    pid = service.pid
    service.machine.systemctl("stop", UNIT)
    assert (service.show("ActiveState"), service.show("Result"), service.pid) == ("inactive", "success", 0)
    assert not service.machine.path(f"/proc/{pid}").exists()
    with socket.socket(socket.AF_UNIX) as late, pytest.raises(OSError, match=r"refused|No such file"):
        late.connect(str(service.socket()))


def test_restart_serves_the_same_regions(service: Service) -> None:
    service.start()
    pid = service.pid
    service.machine.systemctl("restart", UNIT)
    assert service.pid not in (0, pid)
    assert service.bus.call("", "Manager", "ListRegions") == [DEMO]


@pytest.mark.parametrize("signal", ["KILL", "TERM", "SEGV"])
def test_whatever_ends_it_but_systemctl_it_comes_back(service: Service, signal: str) -> None:
    service.start()
    pid, restarts = service.pid, int(service.show("NRestarts"))
    service.machine.run("kill", f"-{signal}", str(pid))
    service.until_back(pid)
    assert int(service.show("NRestarts")) == restarts + 1
    assert service.bus.call("", "Manager", "ListRegions") == [DEMO]


def test_starts_in_quick_succession_hit_no_limit(service: Service) -> None:
    service.start()
    for _ in range(12):  # the default limit is 5 in 10 s
        pid = service.pid
        service.machine.run("kill", "-KILL", str(pid))
        service.until_back(pid)


def test_wrong_configuration_is_told_and_once_mended_it_starts_by_itself(service: Service) -> None:
    service.configure('[region.demo]\nsize = "3M"\n')
    end = service.machine.journal_end()
    with pytest.raises(MachineError, match="failed"):
        service.start()
    service.machine.await_journal("exited, status=78", f"UNIT={UNIT}", after=end)
    service.machine.await_journal("3M is not a power of two", f"_SYSTEMD_UNIT={UNIT}", after=end)
    service.configure("[region.demo]\n")
    service.until("ActiveState", lambda value: value == "active")


def test_watchdog_and_store_are_set_up(service: Service) -> None:
    service.start()
    assert service.show("WatchdogUSec") == "30s"
    assert service.show("FileDescriptorStoreMax") == "8192"
    environment = service.machine.path(f"/proc/{service.pid}/environ").read_bytes().split(b"\0")
    assert b"DOORBELLD_FDSTORE_MAX=8192" in environment


# Activation


def test_a_call_starts_it(service: Service) -> None:
    assert service.show("ActiveState") == "inactive"
    assert service.bus.call("", "Manager", "ListRegions") == [DEMO]
    assert service.show("ActiveState") == "active"
    owner = service.bus.run("status", "org.doorbelld.Doorbell1")
    assert f'"{service.pid}"' in owner or f"PID={service.pid}" in owner or str(service.pid) in owner
    (status,) = re.findall(r"^Uid:\s+(\d+)", service.machine.path(f"/proc/{service.pid}/status").read_text(), re.M)
    assert int(status) == int(service.machine.run("id", "--user", "doorbelld").stdout)


@pytest.mark.parametrize(("unit", "region"), [("doorbelld.socket", "demo"), ("doorbelld@side-2.socket", "side-2")])
def test_a_guest_that_connects_starts_it(service: Service, unit: str, region: str) -> None:
    service.configure("[region.demo]\n[region.side-2]\n")
    service.machine.systemctl("start", unit)
    assert service.show("ActiveState") == "inactive"
    path = service.socket(region)
    before = path.stat()
    with RawClient(str(path)) as client:
        client.greet(VECTORS)
        service.until("ActiveState", lambda value: value == "active")
        (peers,) = service.bus.call("", "Manager", "ListPeers", "s", region)
        assert [peer[0] for peer in peers] == [client.id]
        assert path.stat().st_ino == before.st_ino, "it made a socket of its own"
        assert service.bus.get(f"/region/{region.replace('-', '_2d')}", "Region", "Socket") == (
            f"/run/doorbelld/{region}/socket"
        )


def test_after_a_stop_the_next_guest_starts_it_again(service: Service) -> None:
    service.machine.systemctl("start", "doorbelld.socket")
    for _ in range(2):
        with RawClient(str(service.socket())) as client:
            client.greet(VECTORS)
        service.until("ActiveState", lambda value: value == "active")
        service.machine.systemctl("stop", UNIT)
        assert service.show("ActiveState") == "inactive"


def test_socket_of_systemd_is_for_the_group_kvm(service: Service) -> None:
    service.machine.systemctl("start", "doorbelld.socket")
    found = service.machine.run("stat", "--format=%U:%G:%a", "/run/doorbelld/demo", "/run/doorbelld/demo/socket").stdout
    assert found.split() == ["doorbelld:doorbelld:755", "doorbelld:kvm:660"]


# Devices

DISK = """[device.disk]
type = "blk"
path = "/var/lib/doorbelld/disk.img"
cache = "direct"
aio = "io_uring"
[device.entropy]
type = "rng"
"""


@pytest.fixture
def disk(service: Service) -> Iterator[Path]:
    """A disk in the daemon's state directory, in the configuration."""
    image = "/var/lib/doorbelld/disk.img"
    service.configure(DISK)
    service.machine.run("install", "-d", "-o", "doorbelld", "-g", "doorbelld", "/var/lib/doorbelld")
    service.machine.run("truncate", "--size=1M", image)
    service.machine.run("chown", "doorbelld:doorbelld", image)
    yield service.machine.path(image)
    service.machine.run("rm", image)


def write_a_sector(path: Path) -> int:
    """Be a front-end whose driver writes sector 3; the status of the request."""
    with Frontend.connect(str(path)) as frontend:
        queue = frontend.start()[0]
        return frontend.request(queue, struct.pack("<IIQ", 1, 0, 3) + b"x" * 512, room=1)[0]


def test_devices_are_served_in_the_sandbox(service: Service, disk: Path) -> None:
    """Also past the page cache, with io_uring, which the unit permits."""
    service.start()
    assert "2 devices" in service.show("StatusText")
    assert write_a_sector(service.socket("disk")) == 0
    assert disk.read_bytes()[3 * 512 : 4 * 512] == b"x" * 512
    with Frontend.connect(str(service.socket("entropy"))) as frontend:
        queue = frontend.start()[0]
        assert any(frontend.request(queue, room=64))


def test_a_front_end_that_connects_starts_it(service: Service, disk: Path) -> None:
    service.machine.systemctl("start", "doorbelld-device@disk.socket")
    assert service.show("ActiveState") == "inactive"
    before = service.socket("disk").stat()
    assert write_a_sector(service.socket("disk")) == 0
    assert service.show("ActiveState") == "active"
    assert service.socket("disk").stat().st_ino == before.st_ino, "it made a socket of its own"


def test_an_image_out_of_reach_is_told_with_the_cure(service: Service) -> None:
    service.configure(DISK.replace("/var/lib/doorbelld/", "/srv/"))
    service.machine.run("truncate", "--size=1M", "/srv/disk.img")
    service.machine.run("chown", "doorbelld:doorbelld", "/srv/disk.img")
    service.machine.systemctl("start", UNIT, check=False)
    assert "ReadWritePaths=" in service.log()
    service.machine.run("rm", "/srv/disk.img")


# Who may what


def test_root_may_do_everything(service: Service) -> None:
    service.start()
    assert service.bus.call("", "Manager", "ListRegions") == [DEMO]
    service.bus.call("/region/demo", "Region", "Notify", "qq", HOST, 0)
    service.bus.call("/region/demo", "Region", "WriteMemory", "tay", 0, 2, 104, 105)
    assert service.bus.call("/region/demo", "Region", "ReadMemory", "tu", 0, 2) == [[104, 105]]
    service.bus.call("", "Manager", "CreateRegion", "sa{sv}", "more", 0)
    service.bus.call("", "Manager", "RemoveRegion", "s", "more")


CALLS: dict[str, tuple[str, str, str, *tuple[object, ...]]] = {
    "inspect": ("", "Manager", "ListRegions"),
    "notify": ("/region/demo", "Region", "Notify", "qq", HOST, 0),
    "open-memory": ("/region/demo", "Region", "ReadMemory", "tu", 0, 2),
    "manage": ("", "Manager", "CreateRegion", "sa{sv}", "more", 0),
}


@pytest.mark.parametrize("action", CALLS)
def test_a_member_of_the_group_may(service: Service, action: str) -> None:
    service.start()
    MachineBus(service.machine, "permitted").call(*CALLS[action])


@pytest.mark.parametrize("action", CALLS)
def test_a_stranger_may_not(service: Service, action: str) -> None:
    service.start()
    with pytest.raises(CallFailed, match=r"(?i)access denied|authenti|may not"):
        MachineBus(service.machine, "stranger").call(*CALLS[action])
    assert service.bus.call("", "Manager", "ListRegions") == [DEMO]
    assert service.bus.get("/region/demo", "Region", "HostRings") == [0] * VECTORS


def test_the_actions_are_known_to_polkit(machine: Machine) -> None:
    known = machine.run("pkaction").stdout.split()
    assert {f"org.doorbelld.Doorbell1.{action}" for action in CALLS} <= set(known)


def test_a_stranger_cannot_take_the_name(service: Service) -> None:
    with pytest.raises(CallFailed, match=r"denied|not allowed"):
        MachineBus(service.machine, "stranger").run(
            *("call", "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus"),
            *("RequestName", "su", "org.doorbelld.Doorbell1", "4"),
        )


# Reload


def test_reload_applies_the_difference(service: Service) -> None:
    service.start()
    pid = service.pid
    with RawClient(str(service.socket())) as client:
        client.greet(VECTORS)
        service.configure("[region.demo]\n[region.more]\n")
        service.machine.systemctl("reload", UNIT)
        assert [name for name, _ in service.bus.call("", "Manager", "ListRegions")[0]] == ["demo", "more"]
        assert service.show("ActiveState") == "active"
        assert service.pid == pid
        client.take()
        assert not client.eof


def test_reload_of_a_wrong_configuration_fails_with_the_reason(service: Service) -> None:
    service.start()
    pid = service.pid
    service.configure('[region.demo]\nvectors = "many"\n')
    end = service.machine.journal_end()
    assert service.machine.systemctl("reload", UNIT, check=False).returncode != 0
    service.machine.await_journal("region.demo.vectors", f"_SYSTEMD_UNIT={UNIT}", after=end)
    assert (service.show("ActiveState"), service.pid) == ("active", pid)
    assert service.bus.call("", "Manager", "ListRegions") == [DEMO]


# The journal


def test_journal_is_found_by_field(service: Service) -> None:
    end = service.machine.journal_end()
    service.configure("[region.demo]\n[region.more]\n")
    service.start()
    with RawClient(str(service.socket())) as client:
        client.greet(VECTORS)
    entry = service.machine.await_journal("peer left", "DOORBELLD_REGION=demo", after=end)
    assert entry["DOORBELLD_PEER"] == str(client.id)
    assert entry["_SYSTEMD_UNIT"] == UNIT
    assert entry["SYSLOG_IDENTIFIER"] == "doorbelld"
    found = service.machine.journal("DOORBELLD_REGION=demo", after=end)
    assert {each["DOORBELLD_REGION"] for each in found} == {"demo"}
    assert all(re.fullmatch("[0-9a-f]{32}", each["MESSAGE_ID"]) for each in found)


def test_journal_explains(service: Service) -> None:
    end = service.machine.journal_end()
    service.start()
    service.machine.await_journal("ready", f"_SYSTEMD_UNIT={UNIT}", after=end)
    words = ["--catalog", "--no-pager", f"--since={end}", f"_SYSTEMD_UNIT={UNIT}"]
    said = service.machine.run("journalctl", *words).stdout
    assert "Subject: doorbelld is ready" in said
    assert "Documentation: man:doorbelld(8)" in said
    assert "@DOORBELLD" not in said, "a field that the catalog names is not there"


# The sandbox, from outside and from what must work within it


def test_the_process_has_no_privilege(service: Service) -> None:
    service.start()
    text = service.machine.path(f"/proc/{service.pid}/status").read_text()
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert {key: int(status[key], 16) for key in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == dict.fromkeys(
        ("CapPrm", "CapEff", "CapBnd", "CapAmb"), 0
    )
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_a_guest_is_known_by_user_name_and_process(service: Service, peer_of_guest: int) -> None:
    uid = int(service.machine.run("id", "--user", "guest").stdout)
    gid = int(service.machine.run("id", "--group", "guest").stdout)
    ((peer, *rest, _),) = service.bus.call("", "Manager", "ListPeers", "s", "demo")[0]
    assert rest == [peer_of_guest, uid, gid, "vm1"]
    assert service.bus.get(f"/region/demo/peer/{peer}", "Peer", "Unit") != ""


def test_who_is_not_in_the_group_cannot_connect(service: Service, peer_of_guest: int) -> None:
    done = service.machine.run(*("python3", "-c", PEER, "/run/doorbelld/demo/socket"), user="stranger", check=False)
    assert "PermissionError" in done.stderr


def test_memory_with_a_name_outlives_the_daemon(service: Service) -> None:
    service.configure('[region.demo]\nbacking = "shm:named"\n')
    service.start()
    service.bus.call("/region/demo", "Region", "WriteMemory", "tay", 0, 2, 104, 105)
    service.machine.systemctl("stop", UNIT)
    memory = service.machine.path("/dev/shm/named")
    try:
        assert memory.read_bytes()[:2] == b"hi"
        assert stat.S_IMODE(memory.stat().st_mode) == 0o600
    finally:
        memory.unlink()


def test_programs_of_the_machine_find_the_daemon(service: Service) -> None:
    service.start()
    assert "demo" in service.machine.run("doorbellctl").stdout
    assert "demo" in service.machine.run("doorbellctl", user="permitted").stdout
