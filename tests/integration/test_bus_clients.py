# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Clients and flat devices over D-Bus: in the daemon's own region, in another daemon's, in that of another server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.busctl import NAME, ROOT
from support.daemon import Daemon
from support.dbusclient import OBJECT_MANAGER, BusDaemon, Client, ErrorReply, until
from support.fakesystemd import FakeSystemd
from support.needs import require
from support.otherserver import LIES, OtherServer
from support.rawclient import RawClient

from .test_bus import methods_of
from .test_restart import Site

HERE = Path(__file__).parent
HOST = 65535
NOWHERE = 0xFFFFFFFF
VECTORS = 4
LAB, MCU = "/client/lab", "/flat/mcu"
INTMASK, INTSTATUS, IVPOSITION, DOORBELL = range(0, 16, 4)
CONFIG = """[region.demo]
size = "64K"
[client.lab]
socket = "{0}/demo/socket"
[flat.mcu]
socket = "{0}/demo/socket"
memory-size = "64K"
"""


@pytest.fixture(params=["dbus_next", "dbus_fast"])
def library(request: pytest.FixtureRequest) -> dict[str, str]:
    return {"DOORBELLD_DBUS_LIBRARY": request.param}


def daemon_of(directory: Path, config: str = CONFIG, **more: Any) -> Daemon:
    require("dbus-daemon", "dbus-daemon")
    return Daemon(directory, config.format(directory / "run"), **more)


@pytest.fixture
def daemon(short_path: Path) -> Iterator[Daemon]:
    with daemon_of(short_path) as running:
        yield running


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.bus) as connected:
        settled(connected)
        yield connected


@pytest.fixture(scope="module")
def shared() -> Iterator[Client]:
    """A client of a daemon that no test changes."""
    directory = Path(tempfile.mkdtemp(prefix="db"))
    with daemon_of(directory) as running, Client(running.bus) as connected:
        settled(connected)
        yield connected
    shutil.rmtree(directory)


def settled(client: Client, *paths: str) -> None:
    """Wait until all are connected and know of each other and the host peer."""
    for path, interface in ((LAB, "Client"), (MCU, "FlatDevice")):
        if path in (paths or (LAB, MCU)):
            until(lambda path=path, kind=interface: client.get(path, kind, "PeerCount") == 2, f"{path} to be settled")


def refused(call: Callable[..., Any], *arguments: object) -> ErrorReply:
    with pytest.raises(ErrorReply) as caught:
        call(*arguments)
    return caught.value


def fd_of(client: Client, path: str, interface: str, member: str, signature: str = "", *body: object) -> int:
    """Call a method that gives a descriptor."""
    (found,) = client.call(path, interface, member, signature, *body)
    return int(found.to_raw_fd())


# All that they offer


def test_every_method_of_a_client(short_path: Path, library: dict[str, str]) -> None:
    called = set()
    with daemon_of(short_path, environment=library) as daemon, Client(daemon.bus) as client:
        settled(client)

        def call(member: str, signature: str = "", *body: object) -> Any:
            called.add(("Client", member))
            return client.call(LAB, "Client", member, signature, *body)

        before = client.get(MCU, "FlatDevice", "Interrupts")
        call("Notify", "qq", 1, 2)
        call("NotifyPeer", "q", 1)
        call("Broadcast")
        call("NotifyMany", "a(qq)", [(1, 0), (HOST, 3)])
        eventfd = fd_of(client, LAB, "Client", "OpenDoorbell", "qq", 1, 3)
        os.write(eventfd, struct.pack("=Q", 1))
        os.close(eventfd)
        until(lambda: client.get(MCU, "FlatDevice", "Interrupts") - before == 1 + VECTORS + VECTORS + 1 + 1, "rings")
        assert client.get(MCU, "FlatDevice", "Rings") == [3, 2, 3, 3]
        until(lambda: client.get("/region/demo", "Region", "HostRings") == [1, 1, 1, 2], "the host's rings")
        call("WriteMemory", "tay", 100, b"hello")
        assert bytes(call("ReadMemory", "tu", 99, 7)[0]) == b"\0hello\0"
        memory = fd_of(client, LAB, "Client", "OpenMemory")
        assert (os.pread(memory, 5, 100), os.fstat(memory).st_size) == (b"hello", 64 << 10)
        os.close(memory)
        assert [list(row) for row in call("ListPeers")[0]] == [
            [HOST, VECTORS, f"{ROOT}{LAB}/peer/{HOST}"],
            [1, VECTORS, f"{ROOT}{LAB}/peer/1"],
        ]
        called |= {("Client", "OpenDoorbell"), ("Client", "OpenMemory")}
        assert called == methods_of("Client")


def test_every_method_of_a_flat_device(short_path: Path, library: dict[str, str]) -> None:
    with daemon_of(short_path, environment=library) as daemon, Client(daemon.bus) as client:
        settled(client)
        assert [client.call(MCU, "FlatDevice", "Read", "u", at)[0] for at in range(0, 16, 4)] == [0, 0, 1, 0]
        client.call(MCU, "FlatDevice", "Write", "uu", INTMASK, 7)
        client.call(MCU, "FlatDevice", "Write", "uu", INTSTATUS, 7)
        client.call(MCU, "FlatDevice", "Write", "uu", DOORBELL, 0 << 16 | 3)
        client.call(MCU, "FlatDevice", "Write", "uu", DOORBELL, HOST << 16)
        until(lambda: client.get(LAB, "Client", "Rings") == [0, 0, 0, 1], "the client's ring")
        until(lambda: client.get("/region/demo", "Region", "HostRings")[0] == 1, "the host's ring")
        client.call(MCU, "FlatDevice", "WriteMemory", "tay", 0, b"ab")
        assert bytes(client.call(LAB, "Client", "ReadMemory", "tu", 0, 2)[0]) == b"ab"
        assert bytes(client.call(MCU, "FlatDevice", "ReadMemory", "tu", 1, 1)[0]) == b"b"
        memory = fd_of(client, MCU, "FlatDevice", "OpenMemory")
        assert os.pread(memory, 2, 0) == b"ab"
        os.close(memory)


@pytest.mark.parametrize(
    ("path", "call", "kind", "words"),
    [
        (LAB, ("Notify", "qq", 9, 0), "NoSuchPeer", "no peer 9"),
        (LAB, ("Notify", "qq", 1, 4), "NoSuchVector", "4"),
        (LAB, ("NotifyPeer", "q", 9), "NoSuchPeer", "no peer 9"),
        (LAB, ("NotifyMany", "a(qq)", [(1, 0), (1, 9)]), "NoSuchVector", "9"),
        (LAB, ("OpenDoorbell", "qq", 9, 0), "NoSuchPeer", "no peer 9"),
        (LAB, ("ReadMemory", "tu", 65536, 1), "InvalidOptions", "not within the 65536 bytes"),
        (LAB, ("WriteMemory", "tay", 65535, b"ab"), "InvalidOptions", "ask for less"),
        (f"{LAB}/peer/1", ("Disconnect",), "AccessDenied", "connected to another server"),
        (f"{LAB}/peer/1", ("Notify", "q", 9), "NoSuchVector", "9"),
        (MCU, ("Read", "u", 1), "InvalidRegister", "INTMASK at 0x0, INTSTATUS at 0x4, IVPOSITION at 0x8, DOORBELL"),
        (MCU, ("Read", "u", 16), "InvalidRegister", "no register at 0x10"),
        (MCU, ("Write", "uu", 16, 0), "InvalidRegister", "no register at 0x10"),
        (MCU, ("Write", "uu", IVPOSITION, 0), "InvalidRegister", "read-only"),
        (MCU, ("Write", "uu", DOORBELL, 9 << 16), "NoSuchPeer", "no peer 9"),
        (MCU, ("Write", "uu", DOORBELL, 0 << 16 | 77), "NoSuchVector", "77"),
        (MCU, ("ReadMemory", "tu", 0, 65537), "InvalidOptions", "not within"),
    ],
)
def test_what_is_not_there_is_an_error(shared: Client, path: str, call: tuple[Any, ...], kind: str, words: str) -> None:
    interface = "Peer" if "/peer/" in path else "Client" if path == LAB else "FlatDevice"
    error = refused(shared.call, path, interface, *call)
    assert (error.kind, words in error.text) == (kind, True), error
    assert shared.get(MCU, "FlatDevice", "Interrupts") == 0, "none is rung"


def test_every_property(client: Client, daemon: Daemon) -> None:
    found = client.get_all(LAB, "Client")
    assert 0 <= time.time() * 1e6 - found.pop("Since") < 60e6
    assert found == {
        "Name": "lab",
        "Socket": str(daemon.socket()),
        "State": "connected",
        "Reason": "",
        "Id": 0,
        "Vectors": VECTORS,
        "PeerCount": 2,
        "Size": 64 << 10,
        "Rings": [0] * VECTORS,
        "Reconnect": True,
    }
    found = client.get_all(MCU, "FlatDevice")
    assert 0 <= time.time() * 1e6 - found.pop("Since") < 60e6
    assert found == {
        "Name": "mcu",
        "Socket": str(daemon.socket()),
        "State": "connected",
        "Reason": "",
        "IvPosition": 1,
        "MemorySize": 64 << 10,
        "Vectors": VECTORS,
        "PeerCount": 2,
        "Rings": [0] * VECTORS,
        "Interrupts": 0,
    }
    peer = client.get_all(f"{LAB}/peer/1", "Peer")
    assert 0 <= time.time() * 1e6 - peer.pop("Since") < 60e6
    unknown = {"Pid": 0, "Uid": NOWHERE, "Gid": NOWHERE, "VmName": "", "Unit": "", "Backlog": 0}
    assert peer == {"Id": 1, "Vectors": VECTORS, "RingsSent": 0, "RingsReceived": 0, **unknown}


def test_one_that_is_nowhere(client: Client, daemon: Daemon) -> None:
    nowhere = str(daemon.directory / "nowhere")
    client.call("", "Manager", "CreateClient", "ssa{sv}", "far", nowhere, {})
    client.call("", "Manager", "CreateFlatDevice", "ssa{sv}", "far", nowhere, {"memory-size": ("s", "4M")})
    found = client.get_all("/client/far", "Client")
    assert found.pop("Reason").startswith(f"no ivshmem server at {nowhere}: No such file or directory")
    assert found == {
        **{"Name": "far", "Socket": nowhere, "State": "connecting", "Id": NOWHERE, "Vectors": 0, "PeerCount": 0},
        **{"Size": 0, "Since": 0, "Rings": [], "Reconnect": True},
    }
    assert client.call("/flat/far", "FlatDevice", "Read", "u", IVPOSITION) == (0,)
    for path, interface, *call in (
        ("/client/far", "Client", "Notify", "qq", 0, 0),
        ("/client/far", "Client", "Broadcast"),
        ("/client/far", "Client", "OpenMemory"),
        ("/client/far", "Client", "ReadMemory", "tu", 0, 0),
        ("/flat/far", "FlatDevice", "Write", "uu", DOORBELL, 0),
        ("/flat/far", "FlatDevice", "WriteMemory", "tay", 0, b""),
    ):
        error = refused(client.call, path, interface, *call)
        assert (error.kind, "No such file or directory" in error.text) == ("ServerClosed", True)
    assert "client far" not in daemon.log
    assert "client can't join its region client=far" in daemon.log
    said = json.loads(client.call("", "Manager", "Describe")[0])
    assert (said["clients"]["far"]["id"], said["flats"]["far"]["memory-size"]) == (None, 4 << 20)


# Objects


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("clients", "/client"),
        ("client", LAB),
        ("client-peers", f"{LAB}/peer"),
        ("peer", f"{LAB}/peer/1"),
        ("client-vectors", f"{LAB}/peer/1/vector"),
        ("vector", f"{LAB}/peer/1/vector/3"),
        ("flats", "/flat"),
        ("flat", MCU),
    ],
)
def test_introspection_is_as_frozen(shared: Client, name: str, path: str) -> None:
    golden = HERE / "golden" / f"{name}.xml"
    _, _, frozen = golden.read_text().partition("-->\n")
    text = shared.introspect(ROOT + path)
    assert text == frozen, f"the API changed: if that is meant, change {golden}"


def test_the_object_manager_lists_what_a_walk_finds(shared: Client) -> None:
    found: set[str] = set()

    def walk(path: str) -> None:
        node = ET.fromstring(shared.introspect(path))
        if any(str(item.get("name")).startswith(f"{NAME}.") for item in node.findall("interface")):
            found.add(path.removeprefix(ROOT))
        for child in node.findall("node"):
            walk(f"{path.rstrip('/')}/{child.get('name')}")

    walk(ROOT)
    managed = shared.raw(ROOT, OBJECT_MANAGER, "GetManagedObjects")[0]
    listed = {path.removeprefix(ROOT) for path in managed}
    assert listed == {*found} - {""} - {path for path in found if "/vector/" in path}
    assert listed == {
        *("/region/demo", "/region/demo/peer/0", "/region/demo/peer/1"),
        *(LAB, f"{LAB}/peer/1", f"{LAB}/peer/{HOST}", MCU),
    }
    for path in (f"{LAB}/peer/2", f"{LAB}/peer/01", f"{LAB}/peer/1/vector/4", "/client/mcu", "/flat/lab", "/flat/x"):
        with pytest.raises(ErrorReply, match="UnknownObject"):
            shared.introspect(ROOT + path)


# Signals


def test_a_peer_is_told_of_as_in_a_region(client: Client, daemon: Daemon) -> None:
    path = f"{ROOT}{LAB}/peer/2"
    client.subscribe(f"type='signal',sender='{NAME}',path_namespace='{ROOT}'")
    with RawClient(str(daemon.socket()), keep=True) as peer:
        peer.greet(VECTORS)
        _, properties = client.until_signal("InterfacesAdded", lambda body: body[0] == path)
        assert properties[f"{NAME}.Peer"]["Vectors"][1] == VECTORS
        assert client.until_signal("Client.PeerAdded") == (2, path)
        changed = lambda body: body[0] == f"{NAME}.Client" and "PeerCount" in body[1]  # noqa: E731
        assert client.until_signal("PropertiesChanged", changed)[1]["PeerCount"] == ("u", 3)
        assert client.get(MCU, "FlatDevice", "PeerCount") == 3
        assert peer.id is not None
        client.call(f"{LAB}/peer/2", "Peer", "Notify", "q", 1)
        client.call(f"{LAB}/peer/2", "Peer", "NotifyAll")
        client.call(f"{LAB}/peer/2/vector/1", "Vector", "Notify")
        assert client.get(f"{LAB}/peer/2/vector/1", "Vector", "PendingCount") == 3
        assert [os.eventfd_read(fd) for fd in peer.fds[peer.id]] == [1, 3, 1, 1]
    assert client.until_signal("Client.PeerRemoved") == (2,)
    assert client.until_signal("InterfacesRemoved", lambda body: body[0] == path)[1] == [f"{NAME}.Peer"]
    assert refused(client.call, f"{LAB}/peer/2", "Peer", "NotifyAll").kind == "UnknownObject"


def test_rings_and_interrupts_are_told(client: Client, daemon: Daemon) -> None:
    client.subscribe()
    with RawClient(str(daemon.socket()), keep=True) as peer:
        peer.greet(VECTORS)
        os.eventfd_write(peer.fds[0][2], 5)
        assert client.until_signal("Client.Rung") == (2, 5)
        os.eventfd_write(peer.fds[1][3], (1 << 64) - 2)
        assert client.until_signal("FlatDevice.Interrupt") == (3, (1 << 64) - 2)
        os.eventfd_write(peer.fds[1][3], 3)
        assert client.until_signal("FlatDevice.Interrupt") == (3, 3)
    assert client.get(MCU, "FlatDevice", "Interrupts") == 1, "it wraps as an eventfd would"


# Other servers


def test_a_region_of_another_daemon_that_goes_and_comes_back(short_path: Path) -> None:
    for name in ("near", "far"):
        (short_path / name).mkdir()
    other = daemon_of(short_path / "far", "[region.lab]\nvectors = 2\n")
    config = f'[client.lab]\nsocket = "{other.socket("lab")}"\n'
    with daemon_of(short_path / "near", config) as near, Client(near.bus) as client:
        assert client.get(LAB, "Client", "State") == "connecting"
        client.subscribe()
        with other:
            client.until_signal("PropertiesChanged", lambda body: body[1].get("State") == ("s", "connected"))
            with Client(other.bus) as far:
                until(lambda: client.get(LAB, "Client", "PeerCount") == 1, "the host peer")
                assert far.get("/region/lab", "Region", "PeerCount") == 1
                client.call(LAB, "Client", "Notify", "qq", HOST, 1)
                until(lambda: far.get("/region/lab", "Region", "HostRings") == [0, 1], "the ring there")
                until(lambda: client.get(LAB, "Client", "Vectors") == 2, "doorbells")
                far.call("/region/lab", "Region", "NotifyPeer", "q", 0)
                assert {client.until_signal("Client.Rung"), client.until_signal("Client.Rung")} == {(0, 1), (1, 1)}
        assert client.until_signal("Client.PeerRemoved") == (HOST,)
        until(lambda: client.get(LAB, "Client", "State") == "connecting", "the end")
        assert client.get(LAB, "Client", "Reason")
        with other:
            client.until_signal("PropertiesChanged", lambda body: body[1].get("State") == ("s", "connected"))
            until(lambda: client.get(LAB, "Client", "PeerCount") == 1, "the host peer")
            assert client.get(LAB, "Client", "Rings") == [1, 1], "they count on"
    assert "client joined a region" in near.log
    assert "client lost its region" in near.log


def test_a_server_of_another_kind(short_path: Path) -> None:
    path = str(short_path / "other")
    config = f'[client.lab]\nsocket = "{path}"\n[flat.mcu]\nsocket = "{path}"\nmemory-size = "64K"\n'
    with OtherServer(path, vectors=VECTORS) as server, daemon_of(short_path, config) as daemon:
        server.wait_for(lambda: len(server.ids) == 2)
        with Client(daemon.bus) as client:
            for place, interface in ((LAB, "Client"), (MCU, "FlatDevice")):
                until(lambda place=place, kind=interface: client.get(place, kind, "PeerCount") == 1, "one another")
                until(lambda place=place, kind=interface: client.get(place, kind, "Vectors") == VECTORS, "doorbells")
            client.subscribe()
            mine, its = client.get(LAB, "Client", "Id"), client.get(MCU, "FlatDevice", "IvPosition")
            assert {mine, its} == {0, 1}
            client.call(LAB, "Client", "Notify", "qq", its, 2)
            assert client.until_signal("FlatDevice.Interrupt") == (2, 1)
            client.call(MCU, "FlatDevice", "Write", "uu", DOORBELL, mine << 16 | 1)
            assert client.until_signal("Client.Rung") == (1, 1)
            client.call(MCU, "FlatDevice", "WriteMemory", "tay", 5, b"x")
            assert os.pread(server.memory, 1, 5) == b"x"
            server.kick(mine)
            client.until_signal("PropertiesChanged", lambda body: body[1].get("State") == ("s", "connecting"))
            client.until_signal("PropertiesChanged", lambda body: body[1].get("State") == ("s", "connected"))
            until(lambda: client.get(LAB, "Client", "Id") == 2, "another ID")


def test_a_server_that_lies(client: Client, daemon: Daemon) -> None:
    """The client says what is wrong with it, and nobody else suffers."""
    path = str(daemon.directory / "liar")
    for lie, words in (("version 1", "version 1"), ("id 70000", "70000"), ("-1 without fd", "MEMORY")):
        with OtherServer(path, script=LIES[lie]):
            made = ("liar", path, {"reconnect": ("b", False)})
            client.call("", "Manager", "CreateClient", "ssa{sv}", *made)
            until(lambda: client.get("/client/liar", "Client", "State") == "broken", lie)
            reason = client.get("/client/liar", "Client", "Reason")
            assert words in reason
            assert client.get("/client/liar", "Client", "Id") == NOWHERE
            client.call("", "Manager", "RemoveClient", "s", "liar")
    with OtherServer(path, size=4096):
        client.call("", "Manager", "CreateFlatDevice", "ssa{sv}", "small", path, {"memory-size": ("u", 8192)})
        until(lambda: client.get("/flat/small", "FlatDevice", "State") == "broken", "the wrong size")
        assert "4096 bytes" in client.get("/flat/small", "FlatDevice", "Reason")
        client.call("", "Manager", "RemoveFlatDevice", "s", "small")
    assert client.get(LAB, "Client", "PeerCount") == 2


# Coming and going


def test_removing_tells_of_peers_first(client: Client) -> None:
    client.subscribe(f"type='signal',sender='{NAME}',path_namespace='{ROOT}'")
    client.call("", "Manager", "RemoveClient", "s", "lab")
    gone = [client.until_signal("InterfacesRemoved") for _ in range(3)]
    assert [(path.removeprefix(ROOT), names) for path, names in gone if "/client/" in path] == [
        (f"{LAB}/peer/{HOST}", [f"{NAME}.Peer"]),
        (f"{LAB}/peer/1", [f"{NAME}.Peer"]),
        (LAB, [f"{NAME}.Client"]),
    ]
    until(lambda: client.get("/region/demo", "Region", "PeerCount") == 1, "the region to notice")
    client.call("", "Manager", "RemoveFlatDevice", "s", "mcu")
    assert client.until_signal("InterfacesRemoved", lambda body: body[0] == ROOT + MCU)[1] == [f"{NAME}.FlatDevice"]
    assert "client" not in client.introspect(ROOT).partition("</interface>\n  <node")[2]


def test_nothing_is_left_of_those_that_went(client: Client, daemon: Daemon) -> None:
    def come_and_go() -> None:
        for kind in ("Client", "FlatDevice"):
            client.call("", "Manager", f"Create{kind}", "ssa{sv}", "brief", str(daemon.socket()), {})
        until(lambda: client.get("/region/demo", "Region", "PeerCount") == 4, "both to join")
        for kind in ("Client", "FlatDevice"):
            client.call("", "Manager", f"Remove{kind}", "s", "brief")
        until(lambda: client.get("/region/demo", "Region", "PeerCount") == 2, "both to leave")
        settled(client)

    come_and_go()
    before = daemon.descriptors()
    for _ in range(10):
        come_and_go()
    until(lambda: daemon.descriptors() <= before, f"no more than {before} descriptors")


def test_a_reload_applies_the_difference(client: Client, daemon: Daemon) -> None:
    run = daemon.runtime
    client.call("", "Manager", "CreateClient", "ssa{sv}", "called", str(daemon.socket()), {})
    daemon.write_config(CONFIG.format(run).replace("[client.lab]", "[client.lab]\nreconnect = false\n[client.new]"))
    error = refused(client.call, "", "Manager", "Reload")
    assert "client.lab.socket: missing" in error.text
    kept = f'[region.demo]\nsize = "64K"\n[client.lab]\nsocket = "{run}/demo/socket"\nreconnect = false\n'
    daemon.write_config(kept + f'[client.new]\nsocket = "{run}/demo/socket"\n')
    client.call("", "Manager", "Reload")
    assert [name for name, _, _ in client.call("", "Manager", "ListClients")[0]] == ["called", "lab", "new"]
    assert client.call("", "Manager", "ListFlatDevices")[0] == []
    assert client.get(LAB, "Client", "Id") == 0, "it stays connected"
    assert client.get(LAB, "Client", "Reconnect") is False
    daemon.write_config(kept.replace("demo/socket", "else/socket"))
    error = refused(client.call, "", "Manager", "Reload")
    assert "client.lab.socket: can't change live" in error.text
    assert "doorbelld.toml:6" in error.text
    assert client.get("/client/new", "Client", "State") == "connected"


# Restart


def test_they_survive_being_executed_anew(short_path: Path) -> None:
    with daemon_of(short_path, arguments=["--exec-restart"]) as daemon:
        with Client(daemon.bus) as client:
            settled(client)
            since = client.get(LAB, "Client", "Since"), client.get(MCU, "FlatDevice", "Since")
        with RawClient(str(daemon.socket()), keep=True) as peer:
            peer.greet(VECTORS)
            rung = 0

            def ring() -> None:
                nonlocal rung
                os.eventfd_write(peer.fds[0][1], 1)
                os.eventfd_write(peer.fds[1][2], 1)
                rung += 1

            for _ in range(3):
                daemon.restart(ring)
                peer.take()
                assert peer.log.count(("left", 0)) == peer.log.count(("left", 1)) == 0, "nobody notices"
            with Client(daemon.bus) as client:
                until(lambda: client.get(LAB, "Client", "Rings") == [0, rung, 0, 0], "each ring")
                until(lambda: client.get(MCU, "FlatDevice", "Rings") == [0, 0, rung, 0], "each interrupt")
                assert (client.get(LAB, "Client", "Id"), client.get(MCU, "FlatDevice", "IvPosition")) == (0, 1)
                assert (client.get(LAB, "Client", "Since"), client.get(MCU, "FlatDevice", "Since")) == since
                assert client.get(LAB, "Client", "PeerCount") == 3
                client.subscribe()
                os.eventfd_write(peer.fds[0][3], 1)
                assert client.until_signal("Client.Rung") == (3, 1)
                client.call(MCU, "FlatDevice", "Write", "uu", DOORBELL, 2 << 16)
                assert os.eventfd_read(peer.fds[2][0]) == 1
    assert "client restored client=lab" in daemon.log
    assert "flat device restored flat=mcu" in daemon.log


def at_another_server(directory: Path, stack: contextlib.ExitStack) -> tuple[OtherServer, BusDaemon, FakeSystemd]:
    """Have a service manager run a daemon with a client and a flat device in the region of another server."""
    path = str(directory / "other")
    server = stack.enter_context(OtherServer(path, vectors=VECTORS))
    bus = stack.enter_context(BusDaemon(directory))
    site = Site(directory, bus.address, stack)
    site.configure(f'[client.lab]\nsocket = "{path}"\n[flat.mcu]\nsocket = "{path}"\n')
    systemd = site.manage().start()
    server.wait_for(lambda: len(server.ids) == 2)
    return server, bus, systemd


def test_they_survive_a_restart_in_the_region_of_another_server(short_path: Path) -> None:
    """The server, which is another process, sees nothing; peers that come and go meanwhile are told of."""
    with contextlib.ExitStack() as stack:
        server, bus, systemd = at_another_server(short_path, stack)
        with Client(bus.address) as client:
            client.wait_for_daemon()
            mine, its = client.get(LAB, "Client", "Id"), client.get(MCU, "FlatDevice", "IvPosition")
            until(lambda: client.get(MCU, "FlatDevice", "Vectors") == VECTORS, "doorbells")
            until(lambda: client.get(LAB, "Client", "Vectors") == VECTORS, "doorbells")
        bells = {peer: server.eventfds(peer) for peer in (mine, its)}
        systemd.end()
        assert server.connections == 2
        os.eventfd_write(bells[mine][0], 3)
        os.eventfd_write(bells[its][1], 4)
        late = stack.enter_context(RawClient(str(short_path / "other"), keep=True))
        late.greet(VECTORS)
        systemd.start()
        with Client(bus.address) as client:
            client.wait_for_daemon()
            assert (client.get(LAB, "Client", "Id"), client.get(MCU, "FlatDevice", "IvPosition")) == (mine, its)
            until(lambda: client.get(LAB, "Client", "Rings") == [3, 0, 0, 0], "rings of meanwhile")
            until(lambda: client.get(MCU, "FlatDevice", "Interrupts") == 4, "interrupts of meanwhile")
            until(lambda: client.get(LAB, "Client", "PeerCount") == 2, "who came meanwhile")
            client.call(LAB, "Client", "NotifyPeer", "q", late.id)
            assert late.id is not None
            assert [os.eventfd_read(fd) for fd in late.fds[late.id]] == [1] * VECTORS
            client.subscribe()
            os.eventfd_write(late.fds[its][3], 1)
            assert client.until_signal("FlatDevice.Interrupt") == (3, 1)
        assert server.accepted == 3


def test_state_that_is_of_no_use_is_told_and_made_anew(short_path: Path) -> None:
    """What of a client was damaged is let go of; it joins as another peer, since the configuration wants it."""
    with contextlib.ExitStack() as stack:
        server, _, systemd = at_another_server(short_path, stack)
        systemd.end()
        for name in ("c1.state", "f1.state"):
            systemd.lose(name)
        systemd.start()
        server.wait_for(lambda: server.accepted == 4 and len(server.ids) == 2)
        assert "state of a client can't be used client=c1" in systemd.log
        assert "state of a flat device can't be used flat=f1" in systemd.log
        until(lambda: not any(name.startswith(("c1.", "f1.")) for name in systemd.names), "left-overs to go")
