# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""doorbellctl and vhost-user devices: against a real daemon, with front-ends of our own."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from doorbelld.ring.driver import DriverQueue
from doorbelld.vhost.frontend import BackendFailed, Frontend
from doorbelld.wire.vhost_messages import VringState
from doorbelld.wire.vhost_requests import FrontendRequest
from support.daemon import DEADLINE, Daemon
from support.guest.qemu import Qemu

from .test_ctl import Ctl, Monitor, complete, join
from .test_ctl_live import Running, eventually, terminal

SIZE = 1 << 20
DEVICES = """[region.demo]
[region.both]
[device.both]
type = "loopback"
socket = "{0}/both"
[device.loop]
type = "loopback"
queues = 3
[device.entropy]
type = "rng"
[device.disk]
type = "blk"
path = "{0}/image"
queues = 4
group = "{1}"
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    directory = Path(tempfile.mkdtemp(prefix="db"))
    (directory / "image").write_bytes(bytes(SIZE))
    with Daemon(directory, DEVICES.format(directory, os.getgid())) as running:
        yield running
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def ctl(daemon: Daemon) -> Ctl:
    return Ctl(daemon.bus)


@contextmanager
def attached(daemon: Daemon, device: str = "loop", queues: int = 1) -> Iterator[tuple[Frontend, list[DriverQueue]]]:
    """Be the front-end of a device, with queues that run."""
    with Frontend.connect(str(daemon.socket(device)), timeout=DEADLINE) as frontend:
        yield frontend, frontend.start(queues)


def state(ctl: Ctl, device: str) -> str:
    return str(ctl.json("devices", device, "--json")[device]["state"])


def at_rest(ctl: Ctl, device: str) -> None:
    eventually(lambda: state(ctl, device) == "listening")


def runs(ctl: Ctl, device: str, queues: int = 1) -> None:
    eventually(lambda: sum(queue["started"] for queue in ctl.json("queues", device, "--json")) == queues)


# Looking


def test_the_overview_lists_devices(ctl: Ctl, daemon: Daemon) -> None:
    at_rest(ctl, "loop")
    said = ctl()
    assert "2 regions, 0 peers, 4 devices" in said
    assert re.search(rf"^loop +loopback +listening +- +0/3 +\d+ .* {daemon.socket('loop')}$", said, re.M)
    assert "No front-end is connected. What a guest needs: doorbellctl qemu-args both" in said
    assert ctl.json("--json")["devices"].keys() == {"both", "loop", "entropy", "disk"}
    assert "4 devices, 0 front-ends" in ctl("status", "-n", 0)


def test_without_any_device_it_says_how_to_make_one(short_path: Path) -> None:
    with Daemon(short_path, "") as empty:
        assert "doorbellctl create-device entropy rng" in Ctl(empty.bus)("devices")
        assert Ctl(empty.bus).json("devices", "--json") == {}


def test_devices_and_queues_count_what_is_done(ctl: Ctl, daemon: Daemon) -> None:
    with attached(daemon, queues=2) as (frontend, (first, second)):
        runs(ctl, "loop", 2)
        before = ctl.json("devices", "loop", "--json")["loop"]
        assert before["state"] == "running"
        assert (before["front-end"]["pid"], before["front-end"]["uid"]) == (os.getpid(), os.getuid())
        for _ in range(3):
            assert frontend.request(first, b"hello", 5) == b"hello"
        assert frontend.request(second, b"x", 1) == b"x"
        said = ctl("devices")
        made, idle = (ctl.json("queues", "loop", "--json")[index] for index in (0, 2))
        assert re.search(rf"^loop +loopback +running +\S+ \(pid {os.getpid()}\) +2/3 ", said, re.M)
        requests = sum(queue["requests"] for queue in ctl.json("devices", "--json")["loop"]["queues"])
        assert requests - sum(queue["requests"] for queue in before["queues"]) == 4
        assert (made["index"], made["size"], made["enabled"], made["started"]) == (0, 64, True, True)
        assert (made["available-index"], made["used-index"], made["in-flight"]) == (3, 3, 0)
        assert (idle["index"], idle["size"], idle["started"], idle["broken"]) == (2, 0, False, "")
        assert (
            made.keys()
            == idle.keys()
            == {
                *(
                    "index",
                    "size",
                    "enabled",
                    "started",
                    "available-index",
                    "used-index",
                    "in-flight",
                    "kicks",
                    "calls",
                ),
                *("requests", "bytes", "errors", "broken"),
            }
        )
        said = ctl("queues", "loop")
        assert re.search(r"^ +0 +64 +yes +yes +3 +3 +0 +\d+ +\d+ +\d+ +\d+ B +0$", said, re.M)
        assert re.search(r"^ +2 +- +no +no +0 +0 +0 ", said, re.M)
    at_rest(ctl, "loop")
    assert "loop: its last front-end is gone: it closed its connection" in ctl("devices")


def test_status_of_a_device(ctl: Ctl, daemon: Daemon) -> None:
    said = ctl("status", "disk", "-n", 0)
    assert "Configuration: a disk of 1.0 MiB (2,048 sectors)" in said
    assert f"group {os.getgid()}, mode 0660" in said
    assert "doorbellctl qemu-args disk" in said
    with attached(daemon, "disk", 2):
        said, known = ctl("status", "disk", "-n", 0), ctl.json("status", "disk", "--json")
    assert f"Front-end: pid {os.getpid()}, uid {os.getuid()}" in said
    assert "Memory: 1.0 MiB in 1 region" in said
    assert "2 of 4 queues are not set up by the guest." in said
    assert (known["name"], known["virtio-id"], len(known["memory"]), len(known["queues"])) == ("disk", 2, 1, 4)
    assert "VIRTIO_BLK_F_FLUSH" in known["acked-feature-names"]
    assert "MQ" in known["offered-protocol-feature-names"]
    assert struct.unpack_from("<Q", bytes.fromhex(known["config-space"])) == (2048,)


def test_a_front_end_that_breaks_the_rules_is_told_of(ctl: Ctl, daemon: Daemon) -> None:
    with Frontend.connect(str(daemon.socket("loop")), timeout=DEADLINE) as frontend:
        frontend.send_raw(b"\xff" * 12)
        with pytest.raises(BackendFailed):
            frontend.answer()
    at_rest(ctl, "loop")
    why = ctl.json("devices", "--json")["loop"]["reason"]
    assert why
    assert f"loop: front-end pid {os.getpid()} was disconnected: {why}" in ctl("devices")
    assert f"Reason: front-end pid {os.getpid()} was disconnected: {why}" in ctl("status", "loop")


# Steering


def test_kick_serves_what_waits(ctl: Ctl, daemon: Daemon) -> None:
    with attached(daemon, queues=2) as (frontend, (first, second)):
        assert frontend.request(first, b"a", 1) == b"a"
        assert frontend.request(second, b"b", 1) == b"b"
        for queue, words, told in ((first, ["0"], "queue 0"), (second, [], "queues 0, 1")):
            target = frontend.take(16)
            queue.add([(target, 4)], [(target + 8, 4)])  # and no kick: it got lost
            assert ctl("kick", "loop", *words) == f"kicked {told} of loop\n"
            assert [written for _, written in frontend.wait(queue)] == [4]
        assert ctl.json("kick", "loop", "1", "--json") == {"device": "loop", "queues": [1]}
        assert 'queue 2 of device "loop" is not started' in ctl.refused("kick", "loop", 2)
        assert 'device "loop" has queues 0 to 2, not 3' in ctl.refused("kick", "loop", 3)
    at_rest(ctl, "loop")
    assert 'no queue of device "loop" runs' in ctl.refused("kick", "loop")


def test_notify_interrupts_the_driver(ctl: Ctl, daemon: Daemon) -> None:
    with attached(daemon) as (frontend, (queue,)):
        frontend.request(queue, b"a", 1)
        with pytest.raises(BlockingIOError):
            while True:
                os.eventfd_read(queue.call_fd)
        assert ctl("notify", "loop", 0) == "interrupted the driver of queue 0 of loop\n"
        assert os.eventfd_read(queue.call_fd) == 1
        assert ctl.json("notify", "loop", 0, "--json") == {"device": "loop", "queue": 0}
        assert "does not run" in ctl.refused("notify", "loop", 1)
        assert "has queues 0 to 2, not 9" in ctl.refused("notify", "loop", 9)
        assert '"x" is no queue of device "loop"' in ctl.refused("notify", "loop", "x")
        assert 'no region "loop", but a device' in ctl.refused("notify", "loop", 0, 0)
        assert "queues have no vectors" in ctl.refused("notify", "loop", 0, 0, "--kind", "device")


def test_disconnect_and_reset(ctl: Ctl, daemon: Daemon) -> None:
    with attached(daemon) as (frontend, _):
        runs(ctl, "loop")
        assert ctl("reset", "loop") == "reset loop\n"
        eventually(lambda: state(ctl, "loop") == "connected")
        assert ctl.json("disconnect", "loop", "--yes", "--json") == {"device": "loop"}
        with pytest.raises(BackendFailed):
            frontend.answer()
    at_rest(ctl, "loop")
    assert "its last front-end is gone: disconnected over D-Bus" in ctl("devices")
    for command in ("disconnect", "reset"):
        assert 'device "loop" has no front-end' in ctl.refused(command, "loop")
    assert "leave PEER out" in ctl.refused("disconnect", "loop", 0, "--kind", "device")
    assert "name the PEER to disconnect" in ctl.refused("disconnect", "demo")


def test_refresh_tells_of_a_disk_that_grew(ctl: Ctl, daemon: Daemon) -> None:
    os.truncate(daemon.directory / "image", 2 * SIZE)
    with Monitor(ctl, "disk", "--json") as monitor:
        assert monitor.event()["event"] == "watching"
        assert ctl("refresh", "disk") == "disk looked again\n"
        assert ctl("refresh", "entropy") == "entropy is a rng, which has nothing to look at\n"
        assert monitor.event() == {"event": "device-config", "device": "disk"}
    assert "(4,096 sectors)" in ctl("status", "disk")
    os.truncate(daemon.directory / "image", SIZE)
    ctl("refresh", "disk")
    assert "(2,048 sectors)" in ctl("status", "disk")


# Making


def test_create_and_remove(ctl: Ctl, daemon: Daemon) -> None:
    path = daemon.directory / "own"
    made = ctl.json("create-device", "new", "rng", f"socket={path}", "rate=1M", "mode=0600", "queue-size=8", "--json")
    assert (made["name"], made["type"], made["socket"], made["mode"]) == ("new", "rng", str(path), "0600")
    assert made["queue-size"] == 8
    assert ctl("remove", "new") == "removed device new\n"
    assert not path.exists()
    said = ctl("create-device", "new", "loopback", "queues=2")
    assert said == f"made device new (loopback, 2 queues); it listens at {daemon.socket('new')}\n"
    with attached(daemon, "new") as (frontend, _):
        assert f"(pid {os.getpid()}) connected; to disconnect and remove it, add --yes" in ctl.refused("remove", "new")
        status, asked = ctl.on_terminal("remove", "new", answer="n\n")
        assert (status, 'device "new" stays' in asked) == (1, True)
        assert ctl.json("remove-device", "new", "--yes", "--json") == {"name": "new", "disconnected": 1}
        with pytest.raises(BackendFailed):
            frontend.answer()
    assert 'no device "new"' in ctl.refused("remove-device", "new")
    where = daemon.directory / "nowhere"
    said = ctl("create-device", "new", "loopback", "connect=true", f"socket={where}")
    assert f"it looks for a front-end at {where}" in said
    assert ctl("remove-device", "new") == "removed device new\n"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["create-device", "loop", "rng"], 'device "loop" is there already'),
        (["create-device", "new", "what"], "no device type 'what'; write one of blk, loopback, rng"),
        (["create-device", "new", "blkk"], "no device type 'blkk'; did you mean \"blk\"?"),
        (["create-device", "new", "loopback", "limt=4"], "device.new.limt: unknown key; known here: connect, group, "),
        (["create-device", "new", "blk"], "device.new.path: missing"),
        (["create-device", "new", "blk", "path=/nowhere/x"], "make it, for example: truncate -s 10G /nowhere/x"),
        (["create-device", "new", "rng", "rats=1"], 'did you mean "rate"?'),
        (["create-device", "new", "rng", "rate=2026-01-01"], "can't go over D-Bus"),
        (["devices", "nowhere"], 'no device "nowhere"; there is: both, disk, entropy, loop'),
        (["queues", "nowhere"], 'no device "nowhere"'),
        (["queues", "demo"], 'no device "demo", but a region; doorbellctl status demo shows it'),
        (["kick", "nowhere", "0"], 'no device "nowhere"'),
        (["kick", "demo", "0"], 'no device "demo", but a region'),
        (["reset", "nowhere"], 'no device "nowhere"'),
        (["refresh", "demo"], 'no device "demo", but a region'),
        (["disconnect", "nowhere"], 'no region "nowhere", and no device of that name; there are regions: both, demo;'),
        (["peers", "loop"], 'no region "loop", but a device; doorbellctl status loop shows it'),
        (["read", "loop", "0", "1"], 'no region "loop", but a device'),
        (["status", "both"], "say which with --kind region or --kind device"),
        (["qemu-args", "both"], "--kind"),
        (["remove", "both"], "--kind"),
    ],
)
def test_a_refusal_is_one_line_and_status_1(ctl: Ctl, words: list[str], error: str) -> None:
    said = ctl.refused(*words)
    assert said.startswith("doorbellctl: ")
    assert error in said
    assert said.count("\n") == 1


def test_a_setting_that_is_none(ctl: Ctl) -> None:
    assert "no KEY=VALUE" in ctl.refused("create-device", "new", "rng", "rate", status=2)
    said = ctl.refused("create-device", "new", "blk", "/srv/x", status=2)
    assert '"/srv/x" is no KEY=VALUE; did you mean path=/srv/x?' in said


def test_a_name_of_both_kinds(ctl: Ctl, daemon: Daemon) -> None:
    assert ctl.json("status", "both", "--kind", "device", "--json")["type"] == "loopback"
    assert ctl.json("status", "both", "--kind", "region", "--json")["vectors"] == 4
    assert "ivshmem-doorbell" in ctl("qemu-args", "both", "--kind", "region")
    assert "virtio-id=63" in ctl("qemu-args", "both", "--kind", "device")
    with join(daemon, "both"):
        assert "rang vector 1 of peer 0" in ctl("notify", "both", 0, 1)
        assert "rang all vectors of peer 0" in ctl("notify", "both", 0, "--kind", "region")
        assert "disconnected peer 0" in ctl("disconnect", "both", 0, "--yes")


# Guests


def test_qemu_arguments_of_devices_and_a_region(ctl: Ctl, daemon: Daemon) -> None:
    made = shlex.split(ctl("qemu-args", "disk", "entropy", "demo", "--memory", "2G", "--check"))
    assert made == [
        *("-object", "memory-backend-memfd,id=vumem,size=2G,share=on", "-machine", "memory-backend=vumem"),
        *("-chardev", f"socket,path={daemon.socket('disk')},id=vudisk,reconnect=1"),
        *("-device", "vhost-user-blk-pci,chardev=vudisk,num-queues=4,queue-size=1024"),
        *("-chardev", f"socket,path={daemon.socket('entropy')},id=vuentropy"),
        *("-device", "vhost-user-rng-pci,chardev=vuentropy"),
        *("-chardev", f"socket,path={daemon.socket('demo')},id=ivdemo"),
        *("-device", "ivshmem-doorbell,chardev=ivdemo,vectors=4"),
    ]
    assert shlex.split(ctl("qemu-args", "entropy", "--no-memory")) == made[8:12]
    assert "num-queues=2" in ctl("qemu-args", "disk", "--queues", 2)
    whole = shlex.split(ctl("qemu-args", "entropy", "--all"))
    assert whole[0] == "qemu-system-x86_64"
    assert "-m" not in whole
    found = ctl.json("qemu-args", "loop", "--json")
    printed = "vhost-user-test-device-pci,chardev=vuloop,virtio-id=63,num_vqs=3,config_size=16,vq_size=1024"
    assert found["arguments"][-1] == printed
    assert any("virtio_uml.device=" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["disk", "--vectors", "2"], '"disk" is a device, and --vectors is for regions'),
        (["disk", "--device", "plain"], "--device is for regions"),
        (["demo", "--queues", "2"], '"demo" is a region, and --queues is for devices'),
        (["demo", "--no-memory"], "are for devices"),
        (["disk", "--queues", "5"], "QEMU refuses to start with 5; use 4 or less"),
        (["entropy", "--queues", "1"], "leave --queues out"),
    ],
)
def test_what_does_not_fit_is_refused(ctl: Ctl, words: list[str], error: str) -> None:
    assert error in ctl.refused("qemu-args", *words)


def test_memory_and_none(ctl: Ctl) -> None:
    assert "contradict" in ctl.refused("qemu-args", "disk", "--memory", "1G", "--no-memory", status=2)


def test_libvirt_xml(ctl: Ctl, daemon: Daemon) -> None:
    source = ET.fromstring(ctl("libvirt-xml", "disk", "--check")).find("source")
    assert source is not None
    assert source.get("path") == str(daemon.socket("disk"))
    done = ctl.run("libvirt-xml", "entropy")
    assert ET.fromstring(done.stdout).tag.endswith("}commandline")
    assert b"note: libvirt has no element for a vhost-user device of type rng" in done.stderr
    assert b"<access mode='shared'/>" in done.stderr
    assert "use 4 or less" in ctl.refused("libvirt-xml", "disk", "--queues", 9)


def test_qemu_starts_with_what_is_printed(ctl: Ctl, daemon: Daemon, qemu: Qemu) -> None:
    """Its firmware reads the first sector of the disk, so it gets as far as running a queue."""
    behind = daemon.directory / "behind"
    ctl("create-device", "reverse", "rng", "connect=true", f"socket={behind}")
    words = shlex.split(ctl("qemu-args", "disk", "entropy", "demo", "reverse", "--memory", "256M"))
    quiet = ["-display", "none", "-serial", "none", "-monitor", "none", "-name", "guest=pasted"]
    try:
        with Monitor(ctl, "--json") as monitor:
            assert monitor.event()["event"] == "watching"
            command = qemu.command(["-accel", "tcg", *quiet, *words])
            with subprocess.Popen(command, stdin=subprocess.DEVNULL) as running:
                try:
                    waited = {("disk", "running"), ("entropy", "connected"), ("reverse", "connected")}
                    while waited:
                        event = monitor.event()
                        if event["event"] == "front-end-attached":
                            assert (event["vm"], event["pid"]) == ("pasted", running.pid)
                        waited.discard((event.get("device"), event.get("state")))
                    eventually(lambda: ctl.json("queues", "disk", "--json")[0]["requests"])
                    assert re.search(rf"^disk +blk +running +pasted \({running.pid}\) +1/4 ", ctl("devices"), re.M)
                    findings = json.loads(ctl.run("doctor", "--json").stdout)["findings"]
                    guest = f"guest pasted (pid {running.pid}): "
                    said = [each["found"] for each in findings if each["found"].startswith(guest)]
                    assert said == [f"{guest}as it should be"]
                finally:
                    running.kill()
    finally:
        ctl("remove", "reverse", "--yes")
    at_rest(ctl, "disk")
    at_rest(ctl, "entropy")


# Watching


def test_monitor_tells_of_front_ends(ctl: Ctl, daemon: Daemon) -> None:
    with Monitor(ctl, "loop") as people, Monitor(ctl, "loop", "--json") as monitor:
        assert people.line().endswith("watching device loop; Ctrl-C ends it")
        assert monitor.event()["devices"] == ["both", "disk", "entropy", "loop"]
        with attached(daemon):
            event = monitor.event()
            assert (event["event"], event["device"], event["pid"]) == ("front-end-attached", "loop", os.getpid())
            assert (event["vm"], event["uid"]) == ("", os.getuid())
            while (event := monitor.event()).get("state") != "running":
                assert event == {"event": "device-state", "device": "loop", "state": "connected", "reason": ""}
        left = {"device": "loop", "reason": "it closed its connection", "broken": False}
        assert monitor.event() == {"event": "front-end-detached", **left}
        assert monitor.event()["state"] == "listening"
        assert people.line().endswith(f"loop       front-end attached: pid {os.getpid()}, uid {os.getuid()}")


def test_monitor_tells_of_devices_that_come_and_go(ctl: Ctl, daemon: Daemon) -> None:
    with Monitor(ctl, "seen", "--json") as monitor:
        assert monitor.event()["event"] == "watching"
        ctl("create-device", "seen", "loopback")
        made = {"type": "loopback", "socket": str(daemon.socket("seen"))}
        assert monitor.event() == {"event": "device-added", "device": "seen", **made}
        ctl("remove", "seen")
        while (event := monitor.event())["event"] != "device-removed":
            assert (event["event"], event["state"]) == ("device-state", "stopped")  # told if there is time for it
        assert event == {"event": "device-removed", "device": "seen"}
        assert monitor.stop(signal.SIGTERM) == 0


def test_top_counts_requests(ctl: Ctl, daemon: Daemon) -> None:
    with Running(ctl, "top", "--json", "-d", 0.1) as top, attached(daemon) as (frontend, (queue,)):
        first = top.event()["devices"]["loop"]
        for _ in range(50):
            frontend.request(queue, b"12345678", 8)
        seen: dict[str, Any] = {}
        counted = moved = 0
        while counted < 50:
            frame = top.event()
            seen, seconds = frame["devices"]["loop"], frame["interval"]
            counted += round(seen["requests-per-second"] * seconds)
            moved += round(seen["bytes-per-second"] * seconds)
        assert seen["requests"] - first["requests"] == counted == 50
        assert seen["bytes"] - first["bytes"] == pytest.approx(moved, rel=0.05)  # rates are rounded
        assert (seen["state"], seen["running"], seen["queues"]) == ("running", 1, 3)
        assert top.end() == 0
    assert re.search(r"^loop +loopback +\S+ +\S+ .*0/3 +0.0 +0 B", ctl("top", "-n", 2, "-d", 0.05), re.M)


def test_top_on_a_terminal_shows_devices(ctl: Ctl) -> None:
    from .test_ctl_live import read_until

    with terminal(ctl, "top", "-d", 0.1) as (process, ours, _):
        read_until(ours, b"entropy")
        os.write(ours, b"q")
        read_until(ours, b"\x1b[?1049l")
        assert process.wait(DEADLINE) == 0


# Finding out


def test_doctor_finds_what_keeps_a_disk_from_working(short_path: Path) -> None:
    short_path.chmod(0o755)
    image = short_path / "image"
    image.write_bytes(bytes(SIZE))
    there = f'[device.disk]\ntype = "blk"\npath = "{image}"\nmode = "0666"\n'
    with Daemon(short_path, there) as daemon:
        ctl = Ctl(daemon.bus)

        def found(check: str) -> list[tuple[str, str]]:
            findings = json.loads(ctl.run("doctor", "--json").stdout)["findings"]
            return [(each["level"], each["found"]) for each in findings if each["check"] == check]

        assert found("devices") == [("ok", 'device "disk" is listening')]
        assert found("images")[0][0] == "ok"
        assert found("io_uring")[0][0] in ("ok", "hint")
        assert found("sockets")[0][0] == "ok"
        with Frontend.connect(str(daemon.socket("disk")), timeout=DEADLINE) as frontend:
            frontend.negotiate(protocol=0)
            frontend.make_queue(0)
            with pytest.raises(BackendFailed):  # QEMU without share=on gives no memory at all
                frontend.place(0)
                frontend.answer()
        at_rest(ctl, "disk")
        level, words = found("devices")[0]
        assert (level, "share=on missing?" in words) == ("wrong", True)
        with Frontend.connect(str(daemon.socket("disk")), timeout=DEADLINE) as frontend:
            frontend.start()
            eventually(lambda: found("devices") == [("ok", 'device "disk" is running')])
        image.unlink()
        assert found("images") == [("wrong", f'device "disk": its image {image}: No such file or directory')]
        daemon.socket("disk").unlink()
        (missing,) = found("sockets")
        assert (missing[0], "is not there, so no guest can connect" in missing[1]) == ("wrong", True)


def test_doctor_names_queue_size_while_a_guest_hangs_because_of_it(short_path: Path) -> None:
    """As QEMU does it: it is disconnected for its long ring, connects again, and does not try again."""
    with Daemon(short_path, '[device.entropy]\ntype = "rng"\nqueue-size = 256\n') as daemon:
        ctl, path = Ctl(daemon.bus), str(daemon.socket("entropy"))
        with Frontend.connect(path, timeout=DEADLINE) as frontend:
            frontend.negotiate()
            frontend.send(FrontendRequest.SET_VRING_NUM, VringState(0, 1024))
            with pytest.raises(BackendFailed):
                frontend.answer()
        with Frontend.connect(path, timeout=DEADLINE) as again:
            again.negotiate()
            done = ctl.run("doctor", "--json")
            (finding,) = (each for each in json.loads(done.stdout)["findings"] if each["check"] == "devices")
            assert (done.returncode, finding["level"]) == (1, "wrong")
            assert "a ring of 1024 entries is longer than queue-size = 256 allows" in finding["found"]
            assert "leave queue-size out" in finding["cure"]
            assert "queue-size = 256 allows; set queue-size = 1024" in ctl("status", "entropy")
            assert "Nothing is wrong" not in ctl.run("doctor").stdout.decode()
        assert "SET_VRING_NUM: a ring of 1024 entries is longer than queue-size = 256 allows" in daemon.log


def test_doctor_finds_an_ivshmem_client_at_the_socket_of_a_device(short_path: Path) -> None:
    with Daemon(short_path, '[device.entropy]\ntype = "rng"\nsilence-timeout = "6s"\n') as daemon:
        ctl, path = Ctl(daemon.bus), str(daemon.socket("entropy"))
        with socket.socket(socket.AF_UNIX) as mute:
            mute.connect(path)
            eventually(lambda: "has said nothing" in ctl.json("devices", "--json")["entropy"]["fault"])
            done = ctl.run("doctor", "--json")
            (finding,) = (each for each in json.loads(done.stdout)["findings"] if each["check"] == "devices")
            assert (done.returncode, finding["level"]) == (1, "wrong")
            assert (
                f"front-end pid {os.getpid()}: it has said nothing since it connected; is it an ivshmem device"
                in (finding["found"])
            )
            assert "front-end says nothing" in daemon.log

            def gets_it() -> bool:
                try:
                    with Frontend.connect(path, timeout=DEADLINE) as other:
                        other.start()
                        return len(other.request(other.queues[0], room=16)) == 16
                except (BackendFailed, OSError):
                    return False

            eventually(gets_it)
        assert "doorbellctl" in finding["cure"]


# Completion


def test_names_are_completed(ctl: Ctl) -> None:
    assert sorted(complete(ctl, "queues", "")) == ["both", "disk", "entropy", "loop"]
    assert complete(ctl, "queues", "en") == ["entropy"]
    assert complete(ctl, "kick", "loop", "") == ["0", "1", "2"]
    assert complete(ctl, "notify", "disk", "") == ["0", "1", "2", "3"]
    assert sorted(set(complete(ctl, "status", ""))) == ["both", "demo", "disk", "entropy", "loop"]
    assert sorted(complete(ctl, "status", "--kind", "region", "")) == ["both", "demo"]
    assert complete(ctl, "qemu-args", "disk", "en") == ["entropy"]
    assert sorted(complete(ctl, "create-device", "new", "")) == ["blk", "loopback", "rng"]
    assert complete(ctl, "remove-device", "lo") == ["loop"]
    assert complete(ctl, "kick", "nowhere", "") == []
    assert complete(ctl, "queues", "", DOORBELLD_BUS="unix:path=/nowhere") == []
