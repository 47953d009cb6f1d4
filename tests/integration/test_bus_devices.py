# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices as callers see them: a real daemon, a real bus, and a front-end of ours that is the guest and its driver."""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doorbelld.ring.driver import DriverQueue
from doorbelld.ring.queue import F_EVENT_IDX, F_NOTIFY_ON_EMPTY
from doorbelld.vhost.frontend import GUEST_BASE, USER_BASE, BackendFailed, Frontend
from doorbelld.wire.vhost_messages import Config, ProtocolFeature
from doorbelld.wire.vhost_requests import FrontendRequest as R
from support.busctl import NAME, NOBODY, ROOT, Busctl, as_nobody
from support.daemon import Daemon
from support.dbusclient import DEADLINE, OBJECT_MANAGER, PROPERTIES, BusDaemon, Client, ErrorReply, until
from support.needs import require

HERE = Path(__file__).parent
XML = HERE.parents[1] / "dbus"
LIBRARIES = ("dbus_next", "dbus_fast")
CONFIG = """
[device.entropy]
type = "rng"
[device.echo]
type = "loopback"
queues = 2
"""
ECHO, ENTROPY = "/device/echo", "/device/entropy"
QUEUES = [f"{ECHO}/queue/0", f"{ECHO}/queue/1"]
NO_ID = 0xFFFFFFFF
LISTED = {f"{ROOT}{path}" for path in (ECHO, *QUEUES, ENTROPY, f"{ENTROPY}/queue/0")}
CHANGED = f"{PROPERTIES}.PropertiesChanged"


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment that chooses a D-Bus library."""
    return {"DOORBELLD_DBUS_LIBRARY": request.param}


@pytest.fixture
def daemon(short_path: Path, library: dict[str, str]) -> Iterator[Daemon]:
    require("dbus-daemon", "dbus-daemon")
    with Daemon(short_path, CONFIG, environment=library) as running:
        yield running
        assert "Traceback" not in running.log


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.bus) as connected:
        yield connected


@pytest.fixture
def connect(daemon: Daemon) -> Iterator[Callable[..., Frontend]]:
    """Connect front-ends to devices, by name, and close them in the end."""
    made: list[Frontend] = []

    def to(name: str = "echo") -> Frontend:
        made.append(Frontend.connect(str(daemon.socket(name)), timeout=DEADLINE))
        return made[-1]

    yield to
    for frontend in made:
        frontend.close()


def listed(value: Any) -> Any:
    """Structs as lists."""
    return [listed(item) for item in value] if isinstance(value, list | tuple) else value


def emits(interface: str) -> dict[str, str]:
    """Tell how changes of each property are told."""
    root = ET.parse(XML / f"{NAME}.{interface}.xml").getroot()
    return {str(item.get("name")): str(item[0].get("value")) for item in root.iter("property")}


class Mirror:
    """What a caller knows of a device that read it once, and from then on listens."""

    def __init__(self, client: Client, path: str = ECHO) -> None:
        client.subscribe()
        self.client, self.path = client, path
        self.known = client.get_all(path, "Device")
        self.told: list[tuple[str, Any]] = []
        """The device's own signals."""

    def until(self, condition: Callable[[dict[str, Any]], object]) -> None:
        """Listen until what is known fulfils *condition*."""
        while not condition(self.known):
            self._take(*self.client.signal())

    def _take(self, path: str, member: str, body: tuple[Any, ...]) -> None:
        if path != ROOT + self.path:
            return
        if member == CHANGED:
            assert body[0] == f"{NAME}.Device"
            self.known |= {name: value for name, (_, value) in body[1].items()}
            for name in body[2]:
                self.known[name] = self.client.get(self.path, "Device", name)
        else:
            self.told.append((member.removeprefix(f"{NAME}.Device."), body))

    def agrees(self) -> bool:
        """Tell whether what has been told by now is how things are."""
        now = self.client.get_all(self.path, "Device")
        while self.client.signals:
            self._take(*self.client.signal())
        return all(self.known[name] == now[name] for name, how in emits("Device").items() if how != "false")


def rest(frontend: Frontend) -> DriverQueue:
    """Start a queue in whose driver nobody but a caller of Notify sets off an interrupt."""
    (ring,) = frontend.start(features=~(F_EVENT_IDX | F_NOTIFY_ON_EMPTY))
    ring.set_calls(False)
    return ring


# What there is


def test_every_property_of_a_device_and_of_a_queue(client: Client, daemon: Daemon) -> None:
    found = client.get_all(ECHO, "Device")
    assert set(found) == set(emits("Device"))
    assert {name: client.get(ECHO, "Device", name) for name in found} == found
    assert found["OfferedFeatures"] & (1 << 32) and found["OfferedFeatures"] & (1 << 30)
    assert {"VIRTIO_F_VERSION_1", "VIRTIO_F_EVENT_IDX"} <= set(found["OfferedFeatureNames"])
    assert found["OfferedProtocolFeatures"] & ProtocolFeature.CONFIG
    assert {"MQ", "CONFIG", "REPLY_ACK"} <= set(found["OfferedProtocolFeatureNames"])
    assert {name: listed(value) for name, value in found.items() if not name.startswith("Offered")} == {
        **{"Name": "echo", "Type": "loopback", "VirtioId": 63, "Socket": str(daemon.socket("echo")), "Connect": False},
        **{
            "QueueCount": 2,
            "PollUSec": 0,
            "State": "listening",
            "Reason": "",
            "Fault": "",
            "Error": "",
            "MemoryRegions": [],
        },
        **{"Status": 0},
        **{"FrontendPid": 0, "FrontendUid": NO_ID, "FrontendGid": NO_ID, "FrontendVmName": "", "FrontendUnit": ""},
        **{"FrontendSince": 0, "AckedFeatures": 0, "AckedFeatureNames": []},
        **{"AckedProtocolFeatures": 0, "AckedProtocolFeatureNames": []},
        **{"ConfigSpace": bytes(16), "Requests": 0, "Bytes": 0, "Errors": 0},
    }
    found = client.get_all(QUEUES[1], "Queue")
    assert set(found) == set(emits("Queue"))
    assert {name: client.get(QUEUES[1], "Queue", name) for name in found} == found
    zeros = ("Size", "AvailableIndex", "UsedIndex", "InFlight", "Kicks", "Calls", "Requests", "Bytes", "Errors")
    assert found == {"Index": 1, "Enabled": False, "Started": False, "Broken": "", **dict.fromkeys(zeros, 0)}
    assert client.get(ENTROPY, "Device", "ConfigSpace") == b""


def test_the_manager_lists_them(client: Client) -> None:
    expected = [["echo", "loopback", ROOT + ECHO], ["entropy", "rng", ROOT + ENTROPY]]
    assert listed(client.call("", "Manager", "ListDevices")[0]) == expected
    queues = [[index, ROOT + path] for index, path in enumerate(QUEUES)]
    assert listed(client.call("", "Manager", "ListQueues", "s", "echo")[0]) == queues
    said = json.loads(client.call("", "Manager", "Describe")[0])["devices"]
    assert list(said) == ["echo", "entropy"]
    assert (said["echo"]["state"], len(said["echo"]["queues"])) == ("listening", 2)
    assert listed(client.call("", "Manager", "ListRegions")[0]) == []


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("devices", f"{ROOT}/device"),
        ("device", f"{ROOT}{ECHO}"),
        ("queues", f"{ROOT}{ECHO}/queue"),
        ("queue", f"{ROOT}{QUEUES[1]}"),
    ],
)
def test_introspection_is_as_frozen(shared: Client, name: str, path: str) -> None:
    golden = HERE / "golden" / f"{name}.xml"
    licence, _, frozen = golden.read_text().partition("-->\n")
    assert "SPDX" in licence
    assert shared.introspect(path) == frozen, f"the API changed: if that is meant, change {golden}"


def test_the_object_manager_lists_devices_and_queues(client: Client, connect: Callable[..., Frontend]) -> None:
    managed = client.raw(ROOT, OBJECT_MANAGER, "GetManagedObjects")[0]
    assert set(managed) == LISTED
    for path, interfaces in managed.items():
        kind = "Queue" if "/queue/" in path else "Device"
        ((interface, properties),) = interfaces.items()
        assert interface == f"{NAME}.{kind}"
        plain = {key: value for key, (_, value) in properties.items()}
        assert plain == client.get_all(path.removeprefix(ROOT), kind)
    connect().start(2)
    assert set(client.raw(ROOT, OBJECT_MANAGER, "GetManagedObjects")[0]) == LISTED, "a front-end changes nothing"


def test_the_tools_that_people_use(daemon: Daemon) -> None:
    require("busctl", "systemd")
    assert set(Busctl(daemon.bus).run("tree", "--list", NAME).split()) >= LISTED
    done = subprocess.run(
        ["busctl", f"--address={daemon.bus}", "introspect", NAME, ROOT + ECHO],
        **{"capture_output": True, "text": True, "check": True, "timeout": DEADLINE},  # type: ignore[call-overload]
    )
    rows = {fields[0]: fields[1:] for line in done.stdout.splitlines() if (fields := line.split())}
    assert rows[".State"][:4] == ["property", "s", '"listening"', "emits-change"]
    assert rows[".MemoryRegions"][:4] == ["property", "a(tttts)", "0", "emits-invalidation"]
    assert rows[".FrontendDetached"][:2] == ["signal", "sb"]
    assert rows[".Refresh"][:2] == ["method", "-"]


# A front-end's life


def test_a_front_end_is_seen_from_its_coming_to_its_going(
    client: Client, daemon: Daemon, connect: Callable[..., Frontend]
) -> None:
    mirror = Mirror(client)
    frontend = connect()
    mirror.until(lambda known: known["State"] == "connected")
    assert mirror.told == [("FrontendAttached", (os.getpid(),))]
    known = mirror.known
    assert (known["FrontendPid"], known["FrontendUid"]) == (os.getpid(), os.getuid())
    assert (known["FrontendGid"], known["FrontendVmName"], known["Reason"]) == (os.getgid(), "", "")
    assert known["FrontendSince"] // 1_000_000 >= int(os.stat(daemon.config).st_mtime)
    rings = frontend.start(2)
    for ring in rings:
        assert frontend.request(ring, b"hello", 5) == b"hello"
    mirror.until(lambda known: known["State"] == "running" and known["MemoryRegions"] and known["AckedFeatures"])
    until(mirror.agrees, "the rest, of which nothing new is told")
    assert listed(known["MemoryRegions"]) == [[GUEST_BASE, frontend.size, USER_BASE, 0, ""]]
    assert known["AckedFeatures"] == frontend.features
    assert known["AckedProtocolFeatures"] == frontend.protocol_features
    assert {"REPLY_ACK", "CONFIGURE_MEM_SLOTS"} <= set(known["AckedProtocolFeatureNames"])
    frontend.tell(R.SET_CONFIG, Config(2, b"abc"))
    mirror.until(lambda known: known["ConfigSpace"] == b"\0\0abc" + bytes(11))
    frontend.close()
    mirror.until(lambda known: known["State"] == "listening")
    assert mirror.told[1:] == [("FrontendDetached", ("it closed its connection", False))]
    assert (known["Reason"], known["FrontendPid"], known["FrontendUid"]) == ("it closed its connection", 0, NO_ID)
    assert (known["AckedFeatures"], known["AckedProtocolFeatureNames"], known["MemoryRegions"]) == (0, [], [])
    assert known["ConfigSpace"] == bytes(16)
    until(mirror.agrees, "the rest")
    assert client.get(ENTROPY, "Device", "State") == "listening"


def test_a_queue_shows_what_it_does(client: Client, connect: Callable[..., Frontend]) -> None:
    frontend = connect()
    rings = frontend.start(2, num=32)
    assert client.get_all(QUEUES[1], "Queue").items() >= {"Size": 32, "Enabled": True, "Started": True}.items()
    for count, ring in enumerate(rings, 1):
        for _ in range(count * 2):
            assert frontend.request(ring, b"abc", 3) == b"abc"
    found = client.get_all(QUEUES[1], "Queue")
    assert found.items() >= {"Size": 32, "Enabled": True, "Started": True, "InFlight": 0, "Broken": ""}.items()
    assert found.items() >= {"AvailableIndex": 4, "UsedIndex": 4, "Requests": 4, "Bytes": 24, "Errors": 0}.items()
    assert found["Kicks"] >= 1 and found["Calls"] >= 1
    device = client.get_all(ECHO, "Device")
    assert (device["Requests"], device["Bytes"], device["Errors"]) == (6, 36, 0)
    assert frontend.stop(1) == 4
    assert not client.get(QUEUES[1], "Queue", "Started")
    assert client.get(ECHO, "Device", "State") == "running", "the other one does"
    frontend.stop(0)
    assert client.get(ECHO, "Device", "State") == "connected"


def test_notify_interrupts_the_driver_and_kick_has_its_request_done(
    client: Client, connect: Callable[..., Frontend]
) -> None:
    frontend = connect()
    ring = rest(frontend)
    assert os.eventfd_read(ring.call_fd) == 1, "a new call descriptor is rung once"
    for _ in range(3):
        client.call(QUEUES[0], "Queue", "Notify")
    assert select.select([ring.call_fd], [], [], 0)[0], "when the call returns it has been done"
    assert os.eventfd_read(ring.call_fd) == 3
    assert client.get(QUEUES[0], "Queue", "Calls") == 4
    where = frontend.take(16)
    frontend.memory.write(where, b"ping")
    ring.add([(where, 4)], [(where + 8, 4)])  # and no kick
    client.call(QUEUES[0], "Queue", "Kick")
    assert [written for _, written in frontend.wait(ring)] == [4]
    assert frontend.memory.read(where + 8, 4) == b"ping"
    with pytest.raises(ErrorReply) as caught:
        client.call(QUEUES[1], "Queue", "Kick")
    assert caught.value.name == f"{NAME}.Error.NotRunning"


def test_disconnect_ends_the_connection_and_the_next_one_is_served(
    client: Client, connect: Callable[..., Frontend]
) -> None:
    mirror = Mirror(client)
    frontend = connect()
    frontend.start()
    mirror.until(lambda known: known["FrontendPid"])
    client.call(ECHO, "Device", "Disconnect")
    with pytest.raises(BackendFailed):
        frontend.answer()
    mirror.until(lambda known: known["State"] == "listening" and known["Reason"])
    assert mirror.told[-1] == ("FrontendDetached", ("disconnected over D-Bus", False))
    again = connect()
    (ring,) = again.start()
    assert again.request(ring, b"x", 1) == b"x"
    mirror.until(lambda known: known["State"] == "running")
    assert mirror.known["Reason"] == ""


def test_reset_stops_the_queues_and_the_driver_may_find_out(client: Client, connect: Callable[..., Frontend]) -> None:
    mirror = Mirror(client)
    frontend = connect()
    (ring,) = frontend.start()
    frontend.request(ring, b"x", 1)
    mirror.until(lambda known: known["State"] == "running")
    client.call(ECHO, "Device", "Reset")
    mirror.until(lambda known: known["State"] == "connected" and known["AckedFeatures"] == 0)
    assert client.get(ECHO, "Device", "Status") == 64 == frontend.ask_number(R.GET_STATUS)
    found = client.get_all(QUEUES[0], "Queue")
    assert (found["Started"], found["Enabled"], found["Requests"]) == (False, False, 1)
    with pytest.raises(ErrorReply, match="NotRunning"):
        client.call(QUEUES[0], "Queue", "Notify")
    assert mirror.told == [("FrontendAttached", (os.getpid(),))]


def test_a_front_end_that_breaks_the_rules_is_told_of(client: Client, connect: Callable[..., Frontend]) -> None:
    bystander = connect("entropy")
    (ring,) = bystander.start()
    mirror = Mirror(client)
    frontend = connect()
    frontend.send_raw(b"GET / HTTP/1.1\r\n\r\n")
    mirror.until(lambda known: known["State"] == "listening" and known["Reason"])
    assert mirror.told[0] == ("FrontendAttached", (os.getpid(),))
    ((member, (reason, broken)),) = mirror.told[1:]
    assert (member, reason, broken) == ("FrontendDetached", mirror.known["Reason"], True)
    assert mirror.known["Fault"] == f"front-end pid {os.getpid()} was disconnected: {reason}"
    # descriptors that go in a circle break a queue, which has a moment to be stopped
    frontend = connect()
    (ring_of_echo,) = frontend.start()
    ring_of_echo.put_descriptor(0, GUEST_BASE, 1, 1, 0)
    ring_of_echo.put_available(0, 0)
    ring_of_echo.set_available_index(1)
    os.eventfd_write(ring_of_echo.kick_fd, 1)
    until(lambda: client.get(QUEUES[0], "Queue", "Broken"), "the circle to be found")
    mirror.until(lambda known: known["State"] == "listening" and known["Reason"].startswith("queue 0: "))
    assert mirror.told[-1] == ("FrontendDetached", (mirror.known["Reason"], True))
    assert len(bystander.request(ring, room=16)) == 16
    assert client.get(ENTROPY, "Device", "FrontendPid") == os.getpid()


def test_a_device_that_looks_for_its_front_end(client: Client, short_path: Path) -> None:
    path = short_path / "theirs"
    options = {"connect": ("b", True), "socket": ("s", str(path))}
    client.call("", "Manager", "CreateDevice", "ssa{sv}", "seeker", "loopback", options)
    mirror = Mirror(client, "/device/seeker")
    assert (mirror.known["Connect"], mirror.known["State"]) == (True, "connecting")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.settimeout(DEADLINE)
        with Frontend(listening.accept()[0], timeout=DEADLINE) as frontend:
            (ring,) = frontend.start()
            assert frontend.request(ring, b"x", 1) == b"x"
            mirror.until(lambda known: known["State"] == "running")
    mirror.until(lambda known: known["State"] == "connecting")


def test_many_requests_are_no_signal_storm(client: Client, connect: Callable[..., Frontend]) -> None:
    frontend = connect()
    (ring,) = frontend.start(num=64)
    where = frontend.take(64)
    frontend.request(ring, b"x", 1)
    mirror = Mirror(client)
    until(mirror.agrees, "the start")
    client.call("", "Manager", "CreateRegion", "sa{sv}", "before", {})
    client.until_signal("InterfacesAdded")
    count = 20_000
    ring.drive([([(where, 8)], [(where + 8, 8)])], count, 32, timeout=DEADLINE)
    client.call("", "Manager", "CreateRegion", "sa{sv}", "after", {})
    path, member, body = client.signal()
    assert (path, member, body[0]) == (ROOT, f"{OBJECT_MANAGER}.InterfacesAdded", f"{ROOT}/region/after"), body
    assert client.get(ECHO, "Device", "Requests") == count + 1
    assert client.get(QUEUES[0], "Queue", "UsedIndex") == (count + 1) % 65536


def test_a_reload_tells_what_it_changed(client: Client, daemon: Daemon) -> None:
    mirror = Mirror(client)
    daemon.write_config(CONFIG + "poll-us = 25\n[device.more]\ntype = 'rng'\n")
    client.call("", "Manager", "Reload")
    mirror.until(lambda known: known["PollUSec"] == 25)
    assert client.get("/device/more", "Device", "State") == "listening"
    daemon.write_config(CONFIG.replace("queues = 2", "queues = 3"))
    with pytest.raises(ErrorReply, match=r"device\.echo\.queues"):
        client.call("", "Manager", "Reload")
    daemon.write_config("")
    client.call("", "Manager", "Reload")
    assert client.raw(ROOT, OBJECT_MANAGER, "GetManagedObjects")[0] == {}


# Making and removing


def test_a_device_comes_and_goes_with_its_queues(
    client: Client, daemon: Daemon, connect: Callable[..., Frontend]
) -> None:
    client.subscribe()
    options = {"queues": ("u", 2), "queue-size": ("u", 128), "poll-us": ("u", 9), "mode": ("s", "0600")}
    made = client.call("", "Manager", "CreateDevice", "ssa{sv}", "a.b", "loopback", options)[0]
    assert made == f"{ROOT}/device/a_2eb"
    objects = [made, f"{made}/queue/0", f"{made}/queue/1"]
    managed = client.raw(ROOT, OBJECT_MANAGER, "GetManagedObjects")[0]
    for path in objects:
        assert client.signal() == (ROOT, f"{OBJECT_MANAGER}.InterfacesAdded", (path, managed[path]))
    found = client.get_all("/device/a_2eb", "Device")
    assert (found["Name"], found["QueueCount"], found["PollUSec"]) == ("a.b", 2, 9)
    assert daemon.socket("a.b").stat().st_mode & 0o777 == 0o600
    frontend = connect("a.b")
    (ring,) = frontend.start(num=128)
    frontend.request(ring, b"x", 1)
    client.until_signal("PropertiesChanged", lambda body: body[1].get("State") == ("s", "running"))
    client.call("", "Manager", "RemoveDevice", "s", "a.b")
    with pytest.raises(BackendFailed):
        frontend.answer()
    assert not daemon.socket("a.b").exists()
    assert client.until_signal("FrontendDetached") == ("the device is removed", False)
    for path, kind in ((objects[1], "Queue"), (objects[2], "Queue"), (made, "Device")):
        body = client.until_signal("InterfacesRemoved")
        assert listed(body) == [path, [f"{NAME}.{kind}"]]
    assert set(client.raw(ROOT, OBJECT_MANAGER, "GetManagedObjects")[0]) == LISTED
    with pytest.raises(ErrorReply, match="UnknownObject"):
        client.get("/device/a_2eb/queue/0", "Queue", "Size")
    # and again, under the same name: nothing of the old one is left
    client.call("", "Manager", "CreateDevice", "ssa{sv}", "a.b", "rng", {})
    assert client.get("/device/a_2eb", "Device", "Type") == "rng"
    assert client.get("/device/a_2eb", "Device", "QueueCount") == 1


def test_devices_that_come_and_go_leave_nothing_behind(client: Client, daemon: Daemon) -> None:
    def some(count: int) -> None:
        for _ in range(count):
            client.call("", "Manager", "CreateDevice", "ssa{sv}", "new", "loopback", {"queues": ("u", 4)})
            client.get_all("/device/new/queue/3", "Queue")
            client.call("", "Manager", "RemoveDevice", "s", "new")

    some(2)
    before = daemon.descriptors(), len(os.listdir(f"/proc/{daemon.pid}/task"))
    some(20)
    assert (daemon.descriptors(), len(os.listdir(f"/proc/{daemon.pid}/task"))) == before


def test_a_disk_of_another_size(client: Client, short_path: Path) -> None:
    image = short_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    options = {"path": ("s", str(image)), "read-only": ("b", True), "queues": ("u", 1)}
    client.call("", "Manager", "CreateDevice", "ssa{sv}", "disk", "blk", options)
    mirror = Mirror(client, "/device/disk")
    assert "VIRTIO_BLK_F_RO" in mirror.known["OfferedFeatureNames"]

    def sectors(known: dict[str, Any]) -> int:
        return int(struct.unpack_from("<Q", known["ConfigSpace"])[0])

    assert sectors(mirror.known) == 2048
    os.truncate(image, 3 << 20)
    client.call("/device/disk", "Device", "Refresh")
    mirror.until(lambda known: sectors(known) == 6144)
    options["path"] = ("s", f"{short_path}/none.img")
    with pytest.raises(ErrorReply) as caught:
        client.call("", "Manager", "CreateDevice", "ssa{sv}", "other", "blk", options)
    assert caught.value.name == f"{NAME}.Error.ImageUnavailable"
    assert set(client.raw(ROOT, OBJECT_MANAGER, "GetManagedObjects")[0]) == LISTED | {
        f"{ROOT}/device/disk",
        f"{ROOT}/device/disk/queue/0",
    }


# What is wrong is said


@pytest.fixture(scope="module", params=LIBRARIES)
def shared(request: pytest.FixtureRequest) -> Iterator[Client]:
    """One daemon for many calls that change nothing."""
    require("dbus-daemon", "dbus-daemon")
    with tempfile.TemporaryDirectory(prefix="db") as directory:
        environment = {"DOORBELLD_DBUS_LIBRARY": request.param}
        config = f"[region.demo]\n{CONFIG}"
        with Daemon(Path(directory), config, environment=environment) as daemon, Client(daemon.bus) as client:
            yield client
            assert "Traceback" not in daemon.log


FREEDESKTOP = "org.freedesktop.DBus.Error"
OURS = f"{NAME}.Error"
CREATE = ("", "Manager", "CreateDevice", "ssa{sv}")


@pytest.mark.parametrize(
    ("call", "name", "text"),
    [
        (("", "Manager", "ListQueues", "s", "x"), f"{OURS}.NoSuchDevice", 'no device "x"; there is: echo, entropy'),
        (("", "Manager", "RemoveDevice", "s", "demo"), f"{OURS}.NoSuchDevice", 'no device "demo"'),
        ((*CREATE, "new", "net9", {}), f"{OURS}.NoSuchDeviceType", "write one of blk, loopback, rng"),
        ((*CREATE, "echo", "rng", {}), f"{OURS}.DeviceExists", 'device "echo" is there already'),
        ((*CREATE, "demo", "rng", {}), f"{OURS}.SocketInUse", "demo/socket"),
        ((*CREATE, "new", "rng", {"socket": ("s", "/etc/passwd/x")}), f"{OURS}.SocketUnavailable", "choose another"),
        ((*CREATE, "../new", "rng", {}), f"{OURS}.InvalidOptions", "can't be a device's name"),
        ((*CREATE, "new", "rng", {"type": ("s", "rng")}), f"{OURS}.InvalidOptions", "device.new.type: is no option"),
        ((*CREATE, "new", "blk", {}), f"{OURS}.InvalidOptions", "device.new.path: missing"),
        ((ECHO, "Device", "Disconnect"), f"{OURS}.NotConnected", 'device "echo" has no front-end'),
        ((ECHO, "Device", "Reset"), f"{OURS}.NotConnected", "nothing to reset"),
        ((QUEUES[0], "Queue", "Notify"), f"{OURS}.NotRunning", 'queue 0 of device "echo"'),
        ((QUEUES[1], "Queue", "Kick"), f"{OURS}.NotRunning", 'queue 1 of device "echo"'),
        ((f"{ECHO}/queue/2", "Queue", "Notify"), f"{FREEDESKTOP}.UnknownObject", "no object at"),
        ((f"{ECHO}/queue/01", "Queue", "Notify"), f"{FREEDESKTOP}.UnknownObject", "no object at"),
        (("/device/none", "Device", "Reset"), f"{FREEDESKTOP}.UnknownObject", "no object at"),
        ((ECHO, "Region", "Broadcast"), f"{FREEDESKTOP}.UnknownInterface", "no interface"),
        ((ECHO, "Device", "Reset", "s", "x"), f"{FREEDESKTOP}.InvalidArgs", 'not "s"'),
        ((ECHO, "Device", "Explode"), f"{FREEDESKTOP}.UnknownMethod", "no method Explode"),
    ],
    ids=lambda value: value[2] if isinstance(value, tuple) else "",
)
def test_typed_errors(shared: Client, call: tuple[Any, ...], name: str, text: str) -> None:
    with pytest.raises(ErrorReply) as caught:
        shared.call(*call)
    assert caught.value.name == name
    assert text in caught.value.text


def test_every_problem_of_the_options_is_in_the_one_error(shared: Client) -> None:
    options = {
        "rate": ("s", "fast"),
        "mode": ("s", "rwx"),
        "queues": ("u", 3),
        "queue-size": ("u", 100),
        "owner": ("s", "nobody-of-that-name"),
        "colour": ("s", "red"),
        "type": ("s", "blk"),
    }
    with pytest.raises(ErrorReply) as caught:
        shared.call(*CREATE, "new", "rng", options)
    assert caught.value.kind == "InvalidOptions"
    lines = caught.value.text.splitlines()
    assert sorted(line.split(":")[0] for line in lines) == sorted(f"device.new.{key}" for key in options)
    assert all("; " in line for line in lines)
    assert "new" not in json.loads(shared.call("", "Manager", "Describe")[0])["devices"]


def test_properties_can_not_be_set(shared: Client) -> None:
    for path, kind, name in ((ECHO, "Device", "State"), (QUEUES[0], "Queue", "Size")):
        with pytest.raises(ErrorReply) as caught:
            shared.raw(ROOT + path, PROPERTIES, "Set", "ssv", f"{NAME}.{kind}", name, ("s", "x"))
        assert caught.value.kind == "PropertyReadOnly"


@pytest.mark.parametrize("name", ["a.b-c_d", "1x", "x" * 64])
def test_odd_names(shared: Client, name: str) -> None:
    path = shared.call(*CREATE, name, "rng", {})[0]
    try:
        assert shared.get(path.removeprefix(ROOT), "Device", "Name") == name
        assert [name, "rng", path] in listed(shared.call("", "Manager", "ListDevices")[0])
        assert {path, f"{path}/queue/0"} <= set(shared.raw(ROOT, OBJECT_MANAGER, "GetManagedObjects")[0])
    finally:
        shared.call("", "Manager", "RemoveDevice", "s", name)


# Who may


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_another_user_may_look_but_not_touch(short_path: Path, library: dict[str, str]) -> None:
    require("busctl", "systemd")
    short_path.chmod(0o755)
    with BusDaemon(short_path) as bus, Daemon(short_path, CONFIG, bus=bus.address, environment=library) as daemon:

        def busctl(*arguments: str) -> subprocess.CompletedProcess[str]:
            return as_nobody("busctl", f"--address={bus.address}", *arguments)

        done = busctl("get-property", NAME, ROOT + ECHO, f"{NAME}.Device", "State")
        assert (done.returncode, done.stdout) == (0, 's "listening"\n'), done.stderr
        assert f'"{ROOT}{ECHO}"' in busctl("call", NAME, ROOT, f"{NAME}.Manager", "ListDevices").stdout
        for path, interface, action, *call in (
            ("", "Manager", "manage", "CreateDevice", "ssa{sv}", "new", "rng", "0"),
            ("", "Manager", "manage", "RemoveDevice", "s", "echo"),
            *((ECHO, "Device", "manage", member) for member in ("Disconnect", "Reset", "Refresh")),
            *((QUEUES[0], "Queue", "notify", member) for member in ("Notify", "Kick")),
        ):
            done = busctl("call", NAME, ROOT + path, f"{NAME}.{interface}", *call)
            assert done.returncode != 0
            assert f"uid {NOBODY} may look, but not {action}" in done.stderr
        with Client(bus.address) as client:
            assert set(client.raw(ROOT, OBJECT_MANAGER, "GetManagedObjects")[0]) == LISTED
        assert daemon.socket("echo").exists()
