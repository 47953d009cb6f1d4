# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The API as callers see it: a real daemon, a real bus, busctl and a second client, with both D-Bus libraries below."""

from __future__ import annotations

import array
import json
import mmap
import os
import re
import signal
import socket
import struct
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jeepney import HeaderFields, MessageType
from support.busctl import NAME, NOBODY, ROOT, Busctl, CallFailed, as_nobody
from support.daemon import BIN, Daemon
from support.dbusclient import (
    DEADLINE,
    LIKE_THE_SYSTEM_BUS,
    OBJECT_MANAGER,
    PROPERTIES,
    BusDaemon,
    Client,
    ErrorReply,
    children,
    until,
)
from support.needs import require
from support.rawclient import RawClient

HERE = Path(__file__).parent
XML = HERE.parents[1] / "dbus"
LIBRARIES = ("dbus_next", "dbus_fast")
HOST = 65535
DEMO = "/region/demo"
VECTORS = 4
ONE = struct.pack("=Q", 1)


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment that chooses a D-Bus library."""
    return {"DOORBELLD_DBUS_LIBRARY": request.param}


@pytest.fixture
def daemon(short_path: Path, library: dict[str, str]) -> Iterator[Daemon]:
    require("dbus-daemon", "dbus-daemon")
    with Daemon(short_path, environment=library) as running:
        yield running


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.bus) as connected:
        yield connected


@pytest.fixture
def peer(daemon: Daemon) -> Iterator[RawClient]:
    with RawClient(str(daemon.socket()), keep=True) as connected:
        yield connected.greet(VECTORS)


def rings(peer: RawClient) -> list[int]:
    """Take what was rung on a peer's own doorbells."""
    found = []
    assert peer.id is not None
    for fd in peer.fds[peer.id]:
        try:
            found.append(int.from_bytes(os.read(fd, 8), "little"))
        except BlockingIOError:
            found.append(0)
    return found


class Typed:
    """busctl with the arguments of `Client.call`; notes what was called."""

    def __init__(self, address: str) -> None:
        self._busctl = Busctl(address)
        self.get = self._busctl.get

    def call(self, path: str, interface: str, member: str, signature: str = "", *body: object) -> Any:
        return self._busctl.call(path, interface, member, *([signature, *_words(signature, body)] if signature else []))

    def get_all(self, path: str, interface: str) -> dict[str, Any]:
        said = self._busctl.run("call", NAME, ROOT + path, PROPERTIES, "GetAll", "s", f"{NAME}.{interface}")
        return {name: value["data"] for name, value in json.loads(said)["data"][0].items()}


def _words(signature: str, body: tuple[object, ...]) -> Iterator[object]:
    for kind, value in zip(re.findall(r"a\(qq\)|a\{sv\}|ay|\w", signature), body, strict=True):
        if kind == "a{sv}":
            assert isinstance(value, dict)
            yield len(value)
            for key, (variant, inner) in value.items():
                yield from (key, variant, *_words(variant, (inner,)))
        elif kind in ("ay", "a(qq)"):
            yield len(value)  # type: ignore[arg-type]
            for item in value:  # type: ignore[attr-defined]
                yield from item if isinstance(item, tuple) else (item,)
        else:
            yield str(value).lower() if isinstance(value, bool) else value


@pytest.fixture(params=["busctl", "jeepney"])
def api(request: pytest.FixtureRequest, daemon: Daemon) -> Iterator[Any]:
    """The daemon through busctl, and through a client library; notes in ``called`` what was called."""
    if request.param == "busctl":
        require("busctl", "systemd")
        made: Any = Typed(daemon.bus)
    else:
        made = Client(daemon.bus)
    called: set[tuple[str, str]] = set()
    plain = made.call

    def noted(path: str, interface: str, member: str, *rest: object) -> Any:
        called.add((interface, member))
        return plain(path, interface, member, *rest)

    made.call, made.called = noted, called
    yield made
    if isinstance(made, Client):
        made.connection.close()


def methods_of(interface: str) -> set[tuple[str, str]]:
    root = ET.parse(XML / f"{NAME}.{interface}.xml").getroot()
    return {(interface, str(method.get("name"))) for method in root.iter("method")}


def close(value: Any) -> None:
    """Close the descriptor of a reply, if there is one."""
    if hasattr(value[0], "close"):
        value[0].close()


def listed(value: Any) -> Any:
    """Structs as lists."""
    return [listed(item) for item in value] if isinstance(value, list | tuple) else value


def refused(call: Callable[..., Any], *arguments: object) -> str:
    """Make a call that must fail, and give the error's text."""
    with pytest.raises((ErrorReply, CallFailed)) as caught:
        call(*arguments)
    return str(caught.value)


# Every method and property, from both sides


def test_every_method_of_the_manager(api: Any, daemon: Daemon, peer: RawClient) -> None:
    assert listed(api.call("", "Manager", "ListRegions")) == [[["demo", f"{ROOT}{DEMO}"]]]
    ((found,),) = listed(api.call("", "Manager", "ListPeers", "s", "demo"))
    assert found == [0, os.getpid(), os.getuid(), os.getgid(), "", f"{ROOT}{DEMO}/peer/0"]
    api.call("", "Manager", "Notify", "sqq", "demo", 0, 1)
    api.call("", "Manager", "NotifyMany", "sa(qq)", "demo", [(0, 0), (0, 1), (0, 1)])
    assert rings(peer) == [1, 3, 0, 0]
    assert "has no peer 9" in refused(api.call, "", "Manager", "NotifyMany", "sa(qq)", "demo", [(0, 0), (9, 1)])
    assert rings(peer) == [0, 0, 0, 0]
    options = {"size": ("s", "1M"), "vectors": ("u", 2), "host-peer": ("b", False), "mode": ("s", "0600")}
    assert api.call("", "Manager", "CreateRegion", "sa{sv}", "new", options)[0] == f"{ROOT}/region/new"
    assert api.get_all("/region/new", "Region").items() >= {"Size": 1 << 20, "Vectors": 2, "HostPeer": False}.items()
    assert daemon.socket("new").stat().st_mode & 0o777 == 0o600
    said = json.loads(api.call("", "Manager", "Describe")[0])
    assert (list(said["regions"]), said["regions"]["demo"]["peers"][0]["pid"]) == (["demo", "new"], os.getpid())
    api.call("", "Manager", "RemoveRegion", "s", "new")
    assert not daemon.socket("new").exists()
    assert listed(api.call("", "Manager", "ListDevices")) == [[]]
    assert 'no device "d"' in refused(api.call, "", "Manager", "ListQueues", "s", "d")
    assert 'no device "d"' in refused(api.call, "", "Manager", "RemoveDevice", "s", "d")
    assert "no device type" in refused(api.call, "", "Manager", "CreateDevice", "ssa{sv}", "d", "x", {})
    options = {"rate": ("s", "1M"), "poll-us": ("u", 3), "mode": ("s", "0600")}
    made = f"{ROOT}/device/more_2erandom"
    assert api.call("", "Manager", "CreateDevice", "ssa{sv}", "more.random", "rng", options)[0] == made
    assert listed(api.call("", "Manager", "ListDevices")) == [[["more.random", "rng", made]]]
    assert listed(api.call("", "Manager", "ListQueues", "s", "more.random")) == [[[0, f"{made}/queue/0"]]]
    assert daemon.socket("more.random").stat().st_mode & 0o777 == 0o600
    assert json.loads(api.call("", "Manager", "Describe")[0])["devices"]["more.random"]["poll-us"] == 3
    api.call("", "Manager", "RemoveDevice", "s", "more.random")
    assert not daemon.socket("more.random").exists()
    nowhere = str(daemon.directory / "nowhere")
    for kind, element in (("Client", "client"), ("FlatDevice", "flat")):
        made = f"{ROOT}/{element}/lab_2d1"
        arguments = ("ssa{sv}", "lab-1", nowhere, {"reconnect": ("b", False)})
        assert api.call("", "Manager", f"Create{kind}", *arguments)[0] == made
        assert "is there already" in refused(api.call, "", "Manager", f"Create{kind}", *arguments)
        assert listed(api.call("", "Manager", f"List{kind}s")) == [[["lab-1", nowhere, made]]]
        assert "is no option here" in refused(
            api.call, "", "Manager", f"Create{kind}", "ssa{sv}", "x", nowhere, {"socket": ("s", nowhere)}
        )
        api.call("", "Manager", f"Remove{kind}", "s", "lab-1")
        assert "no " in refused(api.call, "", "Manager", f"Remove{kind}", "s", "lab-1")
    daemon.write_config("[region.demo]\n[region.more]\n")
    api.call("", "Manager", "Reload")
    assert daemon.socket("more").exists()
    daemon.write_config("[region.demo]\nsize = 3\n")
    assert "doorbelld.toml:4: region.demo.size" in refused(api.call, "", "Manager", "Reload")
    assert api.called == methods_of("Manager")


def test_every_method_of_a_region(api: Any, daemon: Daemon, peer: RawClient) -> None:
    api.call(DEMO, "Region", "Notify", "qq", 0, 3)
    api.call(DEMO, "Region", "NotifyPeer", "q", 0)
    assert rings(peer) == [1, 1, 1, 2]
    api.call(DEMO, "Region", "Broadcast")
    api.call(DEMO, "Region", "NotifyMany", "a(qq)", [(0, 2), (HOST, 1)])
    assert rings(peer) == [1, 1, 2, 1]
    until(lambda: listed(api.get(DEMO, "Region", "HostRings")) == [0, 1, 0, 0], "the host peer's ring")
    api.call(DEMO, "Region", "WriteMemory", "tay", 100, b"hello")
    assert bytes(api.call(DEMO, "Region", "ReadMemory", "tu", 99, 7)[0]) == b"\0hello\0"
    for call in (("OpenMemory",), ("OpenDoorbell", "qq", 0, 0), ("Attach", "a{sv}", {})):
        close(api.call(DEMO, "Region", *call))
    for call in (("ListPairs",), ("LimitPair", "qqu", 0, HOST, 5), ("PermitPair", "qqb", 0, HOST, False)):
        assert "make it with relay = true" in refused(api.call, DEMO, "Region", *call)
    assert "peers; disconnect them" in refused(api.call, DEMO, "Region", "Clear", "a{sv}", {})
    api.call(DEMO, "Region", "Disconnect", "q", 0)
    peer.until_eof()
    assert api.called == methods_of("Region")


def test_every_method_of_a_peer_and_of_a_vector(api: Any, daemon: Daemon, peer: RawClient) -> None:
    path = f"{DEMO}/peer/0"
    api.call(path, "Peer", "Notify", "q", 2)
    api.call(path, "Peer", "NotifyAll")
    assert rings(peer) == [1, 1, 2, 1]
    for _ in range(3):
        api.call(f"{path}/vector/3", "Vector", "Notify")
    assert api.get(f"{path}/vector/3", "Vector", "PendingCount") == 3
    assert rings(peer) == [0, 0, 0, 3]
    assert api.get_all(f"{path}/vector/3", "Vector") == {"Index": 3, "PendingCount": 0}
    api.call(f"{DEMO}/peer/{HOST}/vector/1", "Vector", "Notify")
    until(lambda: listed(api.get(DEMO, "Region", "HostRings"))[1] == 1, "the host peer's ring")
    api.call(path, "Peer", "Disconnect")
    peer.until_eof()
    assert api.called == methods_of("Peer") | methods_of("Vector")


def test_every_property(api: Any, daemon: Daemon, peer: RawClient, library: dict[str, str]) -> None:
    region = {
        "Name": "demo",
        "Socket": str(daemon.socket()),
        "Size": 4 << 20,
        "Vectors": VECTORS,
        "Backing": "memfd",
        "MaxPeers": 1024,
        "MaxAbsent": 256,
        "AbsentPeers": [],
        "ClearPolicy": "never",
        "FirstId": 0,
        "HostPeer": True,
        "HostPeerId": HOST,
        "HostRings": [0] * VECTORS,
        "StallTimeoutUSec": 30_000_000,
        "Relay": False,
        "RelayRate": 0,
        "PeerCount": 1,
    }
    assert api.get_all(DEMO, "Region") == region
    assert {name: api.get(DEMO, "Region", name) for name in region} == region
    found = api.get_all(f"{DEMO}/peer/0", "Peer")
    assert found.pop("Since") // 1_000_000 <= os.stat(daemon.config).st_mtime + DEADLINE
    assert isinstance(found.pop("Unit"), str)
    assert found == {
        "Id": 0,
        "Pid": os.getpid(),
        "Uid": os.getuid(),
        "Gid": os.getgid(),
        "VmName": "",
        "Vectors": VECTORS,
        "Backlog": 0,
        "RingsSent": 0,
        "RingsReceived": 0,
    }
    assert {name: api.get(f"{DEMO}/peer/0", "Peer", name) for name in found} == found
    host = api.get_all(f"{DEMO}/peer/{HOST}", "Peer")
    assert (host["Pid"], host["VmName"], host["Vectors"]) == (daemon.pid, "host", VECTORS)
    manager = api.get_all("", "Manager")
    assert manager["Library"].startswith(library["DOORBELLD_DBUS_LIBRARY"].replace("_", "-"))
    assert manager["Version"] == subprocess.check_output([BIN / "doorbelld", "--version"], text=True).split()[1]
    assert manager["DescriptorLimit"] >= 1024
    assert abs(manager["DescriptorsInUse"] - daemon.descriptors()) <= 2
    assert manager["ConfigurationFile"] == str(daemon.config)
    assert set(manager) == {"Version", "Library", "ConfigurationFile", "DescriptorLimit", "DescriptorsInUse"}


# Descriptors


def test_memory_that_was_opened_is_the_memory(client: Client) -> None:
    with client.call(DEMO, "Region", "OpenMemory")[0] as memory:
        with mmap.mmap(memory.fileno(), 4 << 20) as mapped:
            client.call(DEMO, "Region", "WriteMemory", "tay", 4096, b"from the bus")
            assert mapped[4096:4108] == b"from the bus"
            mapped[0:8] = b"from us!"
            mapped[(4 << 20) - 1] = 7
        assert bytes(client.call(DEMO, "Region", "ReadMemory", "tu", 0, 8)[0]) == b"from us!"
        assert bytes(client.call(DEMO, "Region", "ReadMemory", "tu", (4 << 20) - 2, 2)[0]) == b"\0\7"
        with pytest.raises(OSError, match="not permitted"):
            os.ftruncate(memory.fileno(), 0)


def test_a_doorbell_that_was_opened_rings_the_peer(client: Client, peer: RawClient) -> None:
    with client.call(DEMO, "Region", "OpenDoorbell", "qq", 0, 2)[0] as doorbell:
        os.write(doorbell.fileno(), ONE)
        os.write(doorbell.fileno(), ONE)
        assert rings(peer) == [0, 0, 2, 0]
    with client.call(DEMO, "Region", "OpenDoorbell", "qq", HOST, 1)[0] as doorbell:
        client.subscribe()
        os.write(doorbell.fileno(), ONE)
        assert client.until_signal("Rung") == (1, 1)


def test_attaching_over_the_bus_is_joining(client: Client, peer: RawClient, daemon: Daemon) -> None:
    with (
        client.call(DEMO, "Region", "Attach", "a{sv}", {})[0].to_socket() as sock,
        RawClient(sock=sock, keep=True) as attached,
    ):
        attached.greet(VECTORS)
        assert (attached.id, set(attached.doorbells)) == (1, {0, 1, HOST})
        found = listed(client.call("", "Manager", "ListPeers", "s", "demo")[0])[1]
        assert found[:4] == [1, os.getpid(), os.getuid(), os.getgid()]
        while 1 not in peer.doorbells or len(peer.doorbells[1]) < VECTORS:
            assert peer.message() is not None
        assert peer.doorbells[1] == attached.doorbells[1]
        client.call(DEMO, "Region", "Notify", "qq", 1, 0)
        assert rings(attached) == [1, 0, 0, 0]
        client.subscribe()
    assert client.until_signal("PeerRemoved") == (1, "it closed its connection")


# Introspection


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("top", "/"),
        ("above", "/org"),
        ("manager", ROOT),
        ("regions", f"{ROOT}/region"),
        ("region", f"{ROOT}{DEMO}"),
        ("peers", f"{ROOT}{DEMO}/peer"),
        ("peer", f"{ROOT}{DEMO}/peer/0"),
        ("vectors", f"{ROOT}{DEMO}/peer/0/vector"),
        ("vector", f"{ROOT}{DEMO}/peer/0/vector/3"),
    ],
)
def test_introspection_is_as_frozen(client: Client, peer: RawClient, name: str, path: str) -> None:
    golden = HERE / "golden" / f"{name}.xml"
    licence, _, frozen = golden.read_text().partition("-->\n")
    assert "SPDX" in licence
    assert client.introspect(path) == frozen, f"the API changed: if that is meant, change {golden}"


def test_a_walk_from_the_top_finds_every_object(client: Client, peer: RawClient) -> None:
    found: dict[str, set[str]] = {}

    def walk(path: str) -> None:
        node = ET.fromstring(client.introspect(path))
        found[path] = {str(item.get("name")) for item in node.findall("interface")}
        for child in node.findall("node"):
            walk(f"{path.rstrip('/')}/{child.get('name')}")

    walk("/")
    ours = {path.removeprefix(ROOT): names for path, names in found.items() if any(NAME in name for name in names)}
    assert set(ours) == {"", DEMO, f"{DEMO}/peer/0", *(f"{DEMO}/peer/0/vector/{n}" for n in range(VECTORS))}
    for path, names in ours.items():
        kinds = {name for name in names if name.startswith(NAME)}
        assert len(kinds) == 1
        assert PROPERTIES in names
        assert (OBJECT_MANAGER in names) == (path == "")
    managed = client.raw(ROOT, OBJECT_MANAGER, "GetManagedObjects")[0]
    assert {path.removeprefix(ROOT) for path in managed} == {DEMO, f"{DEMO}/peer/0"}
    for path, interfaces in managed.items():
        assert {name for name in found[path] if name.startswith(NAME)} == set(interfaces)


def test_the_tools_that_people_use(daemon: Daemon, peer: RawClient) -> None:
    require("busctl", "systemd")
    bus = Busctl(daemon.bus)
    tree = bus.run("tree", "--list", NAME).split()
    assert {ROOT, f"{ROOT}{DEMO}", f"{ROOT}{DEMO}/peer/0", f"{ROOT}{DEMO}/peer/0/vector/3"} <= set(tree)
    plain = subprocess.run(
        ["busctl", f"--address={daemon.bus}", "introspect", NAME, f"{ROOT}{DEMO}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows = {fields[0]: fields[1:] for line in plain.splitlines() if (fields := line.split())}
    assert rows[".Notify"][:2] == ["method", "qq"]
    assert rows[".OpenDoorbell"][:3] == ["method", "qq", "h"]
    assert rows[".PeerCount"][:4] == ["property", "u", "1", "emits-change"]
    assert rows[".Size"][:4] == ["property", "t", "4194304", "const"]
    assert rows[".Rung"][:2] == ["signal", "qt"]
    require("gdbus", "libglib2.0-bin")
    command = ["gdbus", "introspect", "--address", daemon.bus, "--dest", NAME, "--object-path", "/", "--recurse"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=True).stdout
    for path in (ROOT, f"{ROOT}{DEMO}/peer/0/vector/3"):
        assert f"node {path} {{" in said
    assert "readonly u PeerCount = 1;" in said


# Signals


def test_comings_and_goings_are_told_in_order_from_the_right_path(client: Client, daemon: Daemon) -> None:
    client.subscribe()
    client.call("", "Manager", "CreateRegion", "sa{sv}", "a.b", {"vectors": ("u", 1)})
    region, peer = f"{ROOT}/region/a_2eb", f"{ROOT}/region/a_2eb/peer/0"
    path, member, (added, interfaces) = client.signal()
    assert (path, member, added) == (ROOT, f"{OBJECT_MANAGER}.InterfacesAdded", region)
    assert interfaces == client.raw(ROOT, OBJECT_MANAGER, "GetManagedObjects")[0][region]
    with RawClient(str(daemon.socket("a.b"))) as joined:
        joined.greet(1)
        path, member, (added, interfaces) = client.signal()
        assert (path, member, added) == (ROOT, f"{OBJECT_MANAGER}.InterfacesAdded", peer)
        assert set(interfaces) == {f"{NAME}.Peer"}
        assert interfaces[f"{NAME}.Peer"]["Pid"] == ("u", os.getpid())
        assert client.signal() == (region, f"{NAME}.Region.PeerAdded", (0, peer))
        count = (f"{NAME}.Region", {"PeerCount": ("u", 1)}, [])
        assert client.signal() == (region, f"{PROPERTIES}.PropertiesChanged", count)
        assert client.get("/region/a_2eb", "Region", "PeerCount") == 1
    assert client.signal() == (region, f"{NAME}.Region.PeerRemoved", (0, "it closed its connection"))
    assert client.signal() == (ROOT, f"{OBJECT_MANAGER}.InterfacesRemoved", (peer, [f"{NAME}.Peer"]))
    count = (f"{NAME}.Region", {"PeerCount": ("u", 0)}, [])
    assert client.signal() == (region, f"{PROPERTIES}.PropertiesChanged", count)
    client.call("", "Manager", "RemoveRegion", "s", "a.b")
    assert client.signal() == (ROOT, f"{OBJECT_MANAGER}.InterfacesRemoved", (region, [f"{NAME}.Region"]))


def test_signals_and_objects_agree_after_a_storm(client: Client, daemon: Daemon) -> None:
    client.subscribe()
    peers = [RawClient(str(daemon.socket())) for _ in range(60)]
    for peer in peers:
        peer.greet(VECTORS)
    for peer in peers[::2]:
        peer.close()
    until(lambda: client.get(DEMO, "Region", "PeerCount") == 30, "the peers that left")
    there: set[str] = set()
    joined: set[int] = set()
    count = None
    while count != 30 or len(there) != 30:
        path, member, body = client.signal()
        if member.endswith("InterfacesAdded"):
            assert path == ROOT
            there.add(body[0])
        elif member.endswith("InterfacesRemoved"):
            there.discard(body[0])
        elif member.endswith("PeerAdded"):
            joined.add(body[0])
        elif member.endswith("PeerRemoved"):
            joined.remove(body[0])
        elif member.endswith("PropertiesChanged"):
            count = body[1]["PeerCount"][1]
    managed = client.raw(ROOT, OBJECT_MANAGER, "GetManagedObjects")[0]
    assert there == {path for path in managed if "/peer/" in path}
    assert len(joined) == 30
    for peer in peers:
        peer.close()


# What is wrong is said, with a name that a program can tell apart

FREEDESKTOP = "org.freedesktop.DBus.Error"
OURS = f"{NAME}.Error"


@pytest.mark.parametrize(
    ("call", "name", "text"),
    [
        ((DEMO, "Region", "Notify", "q", 1), f"{FREEDESKTOP}.InvalidArgs", 'signature "qq", not "q"'),
        ((DEMO, "Region", "Notify", "uu", 0, 0), f"{FREEDESKTOP}.InvalidArgs", 'not "uu"'),
        ((DEMO, "Region", "Explode"), f"{FREEDESKTOP}.UnknownMethod", "no method Explode"),
        ((DEMO, "Manager", "ListRegions"), f"{FREEDESKTOP}.UnknownInterface", "no interface"),
        (("/region/none", "Region", "Broadcast"), f"{FREEDESKTOP}.UnknownObject", "no object at"),
        ((f"{DEMO}/peer/9", "Peer", "NotifyAll"), f"{FREEDESKTOP}.UnknownObject", "no object at"),
        ((f"{DEMO}/peer/0/vector/4", "Vector", "Notify"), f"{FREEDESKTOP}.UnknownObject", "no object at"),
        ((DEMO, "Region", "Notify", "qq", 9, 0), f"{OURS}.NoSuchPeer", "has no peer 9; connected: 0"),
        ((DEMO, "Region", "Notify", "qq", 0, 4), f"{OURS}.NoSuchVector", "vectors 0 to 3, not 4"),
        (("", "Manager", "ListPeers", "s", "x"), f"{OURS}.NoSuchRegion", 'no region "x"; there is: demo'),
        (("", "Manager", "ListPeers", "s", "a\u00e4/'\"<"), f"{OURS}.NoSuchRegion", "a\u00e4/'\"<"),
        (("", "Manager", "CreateRegion", "sa{sv}", "demo", {}), f"{OURS}.RegionExists", "there already"),
        (("", "Manager", "CreateRegion", "sa{sv}", "a b", {}), f"{OURS}.InvalidOptions", "can't be a region's name"),
        (("", "Manager", "CreateRegion", "sa{sv}", "", {}), f"{OURS}.InvalidOptions", "can't be a region's name"),
        (("", "Manager", "CreateRegion", "sa{sv}", "../x", {}), f"{OURS}.InvalidOptions", "can't be a region's name"),
        (
            ("", "Manager", "CreateRegion", "sa{sv}", "x", {"socket": ("s", "/etc/passwd")}),
            f"{OURS}.SocketInUse",
            "something that is no socket",
        ),
        (
            ("", "Manager", "CreateRegion", "sa{sv}", "x", {"socket": ("s", "/etc/passwd/x")}),
            f"{OURS}.SocketUnavailable",
            "choose another socket path",
        ),
        (
            ("", "Manager", "CreateRegion", "sa{sv}", "x", {"backing": ("s", "file:/no/such/file")}),
            f"{OURS}.MemoryUnavailable",
            "make its directory",
        ),
        ((DEMO, "Region", "Disconnect", "q", HOST), f"{OURS}.NoSuchPeer", f"no connected peer {HOST}"),
        ((DEMO, "Region", "ReadMemory", "tu", 4 << 20, 1), f"{OURS}.InvalidOptions", "ask for less"),
        ((DEMO, "Region", "Attach", "a{sv}", {"x": ("i", 1)}), f"{OURS}.InvalidOptions", "x: unknown option"),
        (("", "Manager", "RemoveDevice", "s", "d"), f"{OURS}.NoSuchDevice", 'no device "d"'),
    ],
    ids=lambda value: value[2] if isinstance(value, tuple) else "",
)
def test_typed_errors(shared: tuple[Client, Busctl], call: tuple[Any, ...], name: str, text: str) -> None:
    client, _ = shared
    with pytest.raises(ErrorReply) as caught:
        client.call(*call)
    assert caught.value.name == name
    assert text in caught.value.text


@pytest.fixture(scope="module", params=LIBRARIES)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Busctl]]:
    """One daemon with one peer for many calls that change nothing."""
    require("dbus-daemon", "dbus-daemon")
    import tempfile

    with tempfile.TemporaryDirectory(prefix="db") as directory:
        environment = {"DOORBELLD_DBUS_LIBRARY": request.param}
        with (
            Daemon(Path(directory), environment=environment) as daemon,
            RawClient(str(daemon.socket())) as peer,
            Client(daemon.bus) as client,
        ):
            peer.greet(VECTORS)
            yield client, Busctl(daemon.bus)
            assert "Traceback" not in daemon.log


def test_errors_of_properties(shared: tuple[Client, Busctl]) -> None:
    client, busctl = shared
    path, region = f"{ROOT}{DEMO}", f"{NAME}.Region"
    for call, kind in (
        (("Get", "ss", region, "Colour"), "UnknownProperty"),
        (("Get", "ss", "a.b", "Size"), "UnknownInterface"),
        (("GetAll", "s", "a.b"), "UnknownInterface"),
        (("Set", "ssv", region, "Size", ("t", 1)), "PropertyReadOnly"),
        (("Set", "ssv", region, "PeerCount", ("u", 1)), "PropertyReadOnly"),
        (("Set", "ssv", region, "Colour", ("u", 1)), "UnknownProperty"),
        (("Get", "s", region), "InvalidArgs"),
    ):
        with pytest.raises(ErrorReply) as caught:
            client.raw(path, PROPERTIES, *call)
        assert caught.value.name == f"{FREEDESKTOP}.{kind}"
    with pytest.raises(CallFailed, match=r"can't be set|read-only|not writable"):
        busctl.run("set-property", NAME, path, region, "Size", "t", "1")


def test_every_problem_of_the_options_is_in_the_one_error(shared: tuple[Client, Busctl]) -> None:
    client, busctl = shared
    options = {"size": ("s", "3Q"), "vectors": ("i", 0), "colour": ("s", "red"), "backing": ("ay", b"x")}
    with pytest.raises(ErrorReply) as caught:
        client.call("", "Manager", "CreateRegion", "sa{sv}", "new", options)
    assert caught.value.kind == "InvalidOptions"
    lines = caught.value.text.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"region.new.{key}" for key in options]
    assert all("; " in line for line in lines)
    with pytest.raises(CallFailed) as said:
        busctl.call("", "Manager", "CreateRegion", "sa{sv}", "new", 2, "size", "s", "3Q", "vectors", "i", 0)
    assert "region.new.size" in str(said.value)
    assert "region.new.vectors" in str(said.value)


@pytest.mark.parametrize("name", ["a.b-c_d", "1x", "_no", "0", "x" * 64])
def test_odd_names(shared: tuple[Client, Busctl], name: str) -> None:
    client, busctl = shared
    if name == "_no":
        assert "can't be a region's name" in refused(client.call, "", "Manager", "CreateRegion", "sa{sv}", name, {})
        return
    options = {"size": ("s", "4K"), "vectors": ("u", 1)}
    path = client.call("", "Manager", "CreateRegion", "sa{sv}", name, options)[0]
    assert busctl.get(path.removeprefix(ROOT), "Region", "Name") == name
    assert [name, path] in listed(client.call("", "Manager", "ListRegions")[0])
    assert path in client.raw(ROOT, OBJECT_MANAGER, "GetManagedObjects")[0]
    client.call("", "Manager", "RemoveRegion", "s", name)
    assert "no object at" in refused(client.get, path.removeprefix(ROOT), "Region", "Name")


# Load and hostility from the bus's side


def test_a_caller_who_does_not_read_for_a_while_loses_nothing_and_holds_up_nobody(
    client: Client, daemon: Daemon, peer: RawClient
) -> None:
    serials = []
    for number in range(600):
        if number % 3 == 0:
            serials.append(
                client.send(client.message(f"{ROOT}{DEMO}", f"{NAME}.Region", "ReadMemory", "tu", 0, 50_000))
            )
        elif number % 3 == 1:
            serials.append(client.send(client.message(f"{ROOT}{DEMO}", f"{NAME}.Region", "Notify", "qq", 0, 0)))
        else:
            serials.append(client.send(client.message(ROOT, f"{NAME}.Manager", "Describe")))
    with Client(daemon.bus) as other:
        assert other.get(DEMO, "Region", "PeerCount") == 1
    replies = []
    while len(replies) < len(serials):
        message = client.next()
        assert message.header.message_type is MessageType.method_return
        replies.append(message.header.fields[HeaderFields.reply_serial])
    assert replies == serials
    assert rings(peer) == [200, 0, 0, 0]
    client.raw(ROOT, "org.freedesktop.DBus.Peer", "Ping")


def test_while_the_bus_stands_still_guests_are_served_and_no_ring_is_lost(
    client: Client, daemon: Daemon, peer: RawClient
) -> None:
    client.subscribe(f"type='signal',sender='{NAME}',member='Rung'")
    (bus,) = children(daemon.pid)
    os.kill(bus, signal.SIGSTOP)
    try:
        total = 0
        with RawClient(str(daemon.socket()), keep=True) as other:
            other.greet(VECTORS)
            for _ in range(20_000):
                for vector in range(VECTORS):
                    os.write(other.fds[HOST][vector], ONE)
                    total += 1
        while ("left", 1) not in peer.log:
            assert peer.message() is not None
    finally:
        os.kill(bus, signal.SIGCONT)
    assert sum(client.get(DEMO, "Region", "HostRings")) <= total
    heard = 0
    while heard < total:
        heard += client.until_signal("Rung")[1]
    assert heard == total == sum(client.get(DEMO, "Region", "HostRings"))


def test_descriptors_that_a_caller_sends_are_closed(client: Client, daemon: Daemon) -> None:
    client.raw(ROOT, "org.freedesktop.DBus.Peer", "Ping")
    before = daemon.descriptors()
    with open(os.devnull, "rb") as null:
        for path, interface, member in (
            (ROOT, "org.freedesktop.DBus.Peer", "Ping"),
            (ROOT + DEMO, f"{NAME}.Region", "Notify"),
            ("/nowhere", None, "Nothing"),
        ):
            for _ in range(70):
                client.send(client.message(path, interface, member, "h" * 16, *[null] * 16), quiet=True)
    with pytest.raises(ErrorReply, match="InvalidArgs"):
        client.raw(ROOT, "org.freedesktop.DBus.Peer", "Ping", "s", "x")
    assert daemon.descriptors() == before


def test_a_thousand_calls_with_descriptors_leak_none(client: Client, daemon: Daemon, peer: RawClient) -> None:
    def some(count: int) -> None:
        for _ in range(count):
            for call in (("OpenMemory",), ("OpenDoorbell", "qq", 0, 1), ("OpenDoorbell", "qq", HOST, 0)):
                client.call(DEMO, "Region", *call)[0].close()
            if _ % 10 == 0:
                client.call(DEMO, "Region", "Attach", "a{sv}", {})[0].close()
        until(lambda: client.get(DEMO, "Region", "PeerCount") == 1, "those who attached to leave")

    some(10)
    before = daemon.descriptors()
    some(340)
    assert daemon.descriptors() == before


def _restarts(daemon: Daemon, kill: Callable[[], None], start: Callable[[], None], cycles: int) -> list[int]:
    """Kill the bus and start it again, with guests coming and going meanwhile; give the descriptors after each."""
    counts = []
    with RawClient(str(daemon.socket()), keep=True) as stays:
        stays.greet(VECTORS)
        for cycle in range(1, cycles + 1):
            kill()
            with RawClient(str(daemon.socket()), keep=True) as comes:
                comes.greet(VECTORS)
                while len(stays.doorbells.get(1, ())) < VECTORS:
                    assert stays.message() is not None, "no join while there is no bus"
                assert stays.doorbells[1] == comes.doorbells[1]
                os.write(stays.fds[1][0], ONE)
                assert rings(comes) == [1, 0, 0, 0]
            while stays.log.count(("left", 1)) < cycle:
                assert stays.message() is not None, "no leave while there is no bus"
            start()
            until(lambda: _reachable(daemon.bus), "the bus")
            with Client(daemon.bus) as client:
                client.wait_for_daemon()
                assert client.get(DEMO, "Region", "PeerCount") == 1
                client.call(DEMO, "Region", "Notify", "qq", 0, 1)
                assert rings(stays) == [0, 1, 0, 0]
            counts.append(daemon.descriptors())
    return counts


def _reachable(address: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(address.removeprefix("unix:path=")) == 0


def test_a_private_bus_that_is_killed_comes_back(daemon: Daemon) -> None:
    def kill() -> None:
        (bus,) = children(daemon.pid)
        pidfd = os.pidfd_open(bus)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            import select

            assert select.select([pidfd], [], [], DEADLINE)[0]
        finally:
            os.close(pidfd)

    counts = _restarts(daemon, kill, lambda: None, cycles=10)
    assert len(set(counts)) == 1, counts
    assert daemon.log.count("on the message bus again") == 10
    assert "Traceback" not in daemon.log
    (_,) = children(daemon.pid)


def test_a_bus_that_is_started_again_is_joined_again(short_path: Path, library: dict[str, str]) -> None:
    with (
        BusDaemon(short_path) as bus,
        Daemon(short_path, bus=bus.address, environment=library) as daemon,
    ):
        counts = _restarts(daemon, bus.kill, lambda: bus.start() and None, cycles=10)
        assert len(set(counts)) == 1, counts
        assert "Traceback" not in daemon.log


# Who may, and on which bus


def _stranger_may_look_only(bus: BusDaemon, daemon: Daemon) -> None:
    def busctl(*arguments: str) -> subprocess.CompletedProcess[str]:
        return as_nobody("busctl", f"--address={bus.address}", *arguments)

    path, region = f"{ROOT}{DEMO}", f"{NAME}.Region"
    done = busctl("get-property", NAME, path, region, "PeerCount")
    assert (done.returncode, done.stdout) == (0, "u 0\n"), done.stderr
    assert busctl("tree", NAME).returncode == 0
    assert f'"{path}"' in busctl("call", NAME, ROOT, f"{NAME}.Manager", "ListRegions").stdout
    for call in (("Notify", "qq", "0", "0"), ("OpenMemory",), ("Attach", "a{sv}", "0"), ("Broadcast",)):
        done = busctl("call", NAME, path, region, *call)
        assert done.returncode != 0
        assert f"uid {NOBODY} may look, but not" in done.stderr
        assert "call as root or as the daemon's user (uid 0)" in done.stderr
    done = busctl("call", NAME, ROOT, f"{NAME}.Manager", "RemoveRegion", "s", "demo")
    assert "may look, but not manage" in done.stderr
    assert daemon.socket().exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_another_user_may_look_but_not_touch(short_path: Path, library: dict[str, str]) -> None:
    short_path.chmod(0o755)
    with BusDaemon(short_path) as bus, Daemon(short_path, bus=bus.address, environment=library) as daemon:
        _stranger_may_look_only(bus, daemon)


@pytest.mark.skipif(os.getuid() != 0, reason="the policy is for a daemon that is root's")
def test_the_policy_for_the_system_bus(short_path: Path) -> None:
    short_path.chmod(0o755)
    ours = XML / f"{NAME}.conf"
    closed = BusDaemon(short_path, LIKE_THE_SYSTEM_BUS)
    with closed, pytest.raises(AssertionError, match=r"org\.doorbelld\.Doorbell1\.conf"):
        Daemon(short_path, bus=closed.address).start()
    bus = BusDaemon(short_path, f"{LIKE_THE_SYSTEM_BUS}<include>{ours}</include>")
    with bus, Daemon(short_path, bus=bus.address) as daemon:
        _stranger_may_look_only(bus, daemon)
        done = as_nobody("busctl", f"--address={bus.address}", "call", "org.freedesktop.DBus", "/org/freedesktop/DBus",
                         "org.freedesktop.DBus", "RequestName", "su", NAME, "4")  # fmt: skip
        assert done.returncode != 0
        with Client(bus.address) as client:
            client.subscribe()
            client.call(DEMO, "Region", "Notify", "qq", HOST, 0)
            assert client.until_signal("Rung") == (0, 1)


def test_a_name_that_is_taken_is_69(daemon: Daemon, short_path: Path, library: dict[str, str]) -> None:
    config = short_path / "second.toml"
    config.write_text(f'[daemon]\nruntime-directory = "{short_path}/second"\n[region.other]\n')
    done = subprocess.run(
        [BIN / "doorbelld", "--config", config, "--bus", daemon.bus],
        env={**os.environ, **library},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == os.EX_UNAVAILABLE
    assert "another doorbelld owns it; stop that one, or use another --bus" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (short_path / "second/other/socket").exists()
    with Client(daemon.bus) as client:
        assert client.get(DEMO, "Region", "PeerCount") == 0


def test_too_many_descriptors_in_one_message_do_not_hurt(daemon: Daemon, client: Client) -> None:
    with open(os.devnull, "rb") as null:
        rights = array.array("i", [null.fileno()] * 16)
        with socket.socket(socket.AF_UNIX) as rude:
            rude.connect(daemon.bus.removeprefix("unix:path="))
            rude.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    assert client.get(DEMO, "Region", "PeerCount") == 0
