# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Callers on D-Bus who may do nothing, and try to hold the daemon up all the same.

They are user nobody, on a bus that lets everybody in and lets everything pass, or on one with the system bus's policy.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from doorbelld.vhost.frontend import Frontend
from support import fakepolkit
from support.busctl import NAME, ROOT
from support.daemon import Daemon
from support.dbusclient import LIKE_THE_SYSTEM_BUS, BusDaemon, Client, ErrorReply
from support.fakepolkit import FakePolkit
from support.heartbeat import Attack, Footprint, Watched, under_way, watched
from support.rawclient import RawClient

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")

DBUS_FILES = Path(__file__).parents[3] / "dbus"
DEADLINE = 60.0
NOBODY = 65534
LARGE = 31 << 20
"""A body as large as dbus-daemon lets pass."""
BEATEN = f"{ROOT}/region/beaten"
REGION = f"{NAME}.Region"
LIBRARIES = ("dbus_fast", "dbus_next")
SERIALS = itertools.count(1000)


@contextmanager
def site(directory: Path, library: str, config: str = "", bus_slack: float = 0.0) -> Iterator[Watched]:
    """Start two daemons, each on a bus of its own that lets everybody in."""
    with ExitStack() as stack:
        buses = {}
        for name in ("attacked", "other"):
            (place := directory / f"{name}-bus").mkdir()
            buses[name] = stack.enter_context(BusDaemon(place)).address
            place.chmod(0o755)
            (place / "bus").chmod(0o777)
        directory.chmod(0o755)
        environment = {"DOORBELLD_DBUS_LIBRARY": library}
        options = {"environment": environment, "log_level": "info"}
        yield stack.enter_context(watched(directory, config, buses=buses, bus_slack=bus_slack, **options))


# What the attackers send


def padded(data: bytes, to: int = 8) -> bytes:
    """Fill up to an alignment."""
    return data + bytes(-len(data) % to)


def text(value: str) -> bytes:
    """Marshal a string or an object path, without what comes before it."""
    return struct.pack("<I", len(value)) + value.encode() + b"\0"


def header(path: str, interface: str, member: str, signature: str, size: int, serial: int, flags: int = 0) -> bytes:
    """Marshal a call to the daemon up to its body of *size* bytes."""
    fields = b""
    for code, kind, value in ((1, "o", path), (2, "s", interface), (3, "s", member), (6, "s", NAME)):
        if value:
            fields = padded(fields) + bytes([code, 1, ord(kind), 0]) + text(value)
    if signature:
        fields = padded(fields) + bytes([8, 1, ord("g"), 0, len(signature)]) + signature.encode() + b"\0"
    return padded(struct.pack("<4BIII", ord("l"), 1, flags, 1, size, serial, len(fields)) + fields)


def connect(address: str) -> tuple[socket.socket, Client]:
    """Connect to a bus: a socket to write on, and the client that says hello on it and reads."""
    client = Client(address)
    return client.connection.sock, client


def kind_of(client: Client, serial: int) -> str:
    """Give the last part of the name of the error that answers *serial*, or ""."""
    try:
        client.receive(serial)
    except ErrorReply as error:
        return error.kind
    return ""


# A body of 31 MiB


def send_large(address: str, path: str, interface: str, member: str, signature: str, times: int) -> None:
    """Call with a body of empty strings, *times* times; print the kinds of the errors."""
    sock, client = connect(address)
    array = bytes(LARGE - 3)  # no padding after the last one
    body = struct.pack("<I", len(array)) + array
    under_way()
    kinds = []
    for _ in range(times):
        serial = next(SERIALS)
        sock.sendall(header(path, interface, member, signature, len(body), serial) + body)
        kinds.append(kind_of(client, serial))
    print(*kinds, flush=True)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("path", "interface", "member", "error"),
    [
        (BEATEN, REGION, "Attach", "AccessDenied"),
        (BEATEN, REGION, "Explode", "UnknownMethod"),
        (BEATEN, "", "Explode", "UnknownMethod"),
        (BEATEN, "a.b", "Explode", "UnknownInterface"),
        (f"{ROOT}/region/none", "a.b", "Explode", "UnknownObject"),
        (ROOT, "org.freedesktop.DBus.Properties", "GetAll", "InvalidArgs"),
    ],
)
def test_a_body_of_31_mib_is_not_even_kept(
    short_path: Path, library: str, path: str, interface: str, member: str, error: str
) -> None:
    with (
        site(short_path, library) as attacked,
        Attack(send_large, attacked.daemon.bus, path, interface, member, "as", 2, uid=NOBODY) as attack,
    ):
        assert attack.line() == " ".join([error] * 2)


def send_options(address: str, uid: int) -> None:
    """Call methods as they want to be called, with 31 MiB of options, or of doorbells, or of bytes."""
    sock, client = connect(address)
    option = padded(struct.pack("<I", 0) + b"\0" + b"\1y\0" + b"\0")
    options = struct.pack("<I", LARGE) + b"\0" * 4 + option * (LARGE // len(option))
    options = struct.pack("<I", LARGE - 7) + options[4:-7]
    doorbells = struct.pack("<II", LARGE - 4, 0) + bytes(LARGE - 4)
    memory = struct.pack("<QI", 0, LARGE) + bytes(LARGE)
    under_way()
    kinds = []
    for path, interface, member, signature, body in (
        (BEATEN, REGION, "Attach", "a{sv}", options),
        (ROOT, f"{NAME}.Manager", "CreateRegion", "sa{sv}", text("new") + options),
        (BEATEN, REGION, "NotifyMany", "a(qq)", doorbells),
        (BEATEN, REGION, "WriteMemory", "tay", memory),
    ):
        serial = next(SERIALS)
        sock.sendall(header(path, interface, member, signature, len(body), serial) + body)
        kinds.append(kind_of(client, serial))
    print(*kinds, flush=True)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("uid", "error"), [(NOBODY, "AccessDenied"), (0, "LimitsExceeded")])
def test_arguments_of_31_mib_of_the_right_kind(short_path: Path, library: str, uid: int, error: str) -> None:
    with (
        site(short_path, library) as attacked,
        Attack(send_options, attacked.daemon.bus, uid, uid=uid) as attack,
    ):
        assert attack.line() == " ".join([error] * 4)


# Many calls

MANAGED = (ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
CROWD = 100
FLOODED = 1.0
"""Seconds that the bus may take longer to pass on an answer, while it is flooded."""
CROWDED = "[region.crowd]\nvectors = 1\n"


@contextmanager
def crowd(attacked: Watched) -> Iterator[None]:
    """Have many peers in a region, so that there is much to tell."""
    with ExitStack() as stack:
        for _ in range(CROWD):
            stack.enter_context(RawClient(str(attacked.daemon.socket("crowd")))).greet(1)
        attacked.before = Footprint.of(attacked.daemon.pid)
        yield


def flood(address: str, call: list[str], signature: str, argument: str, callers: int, times: int, read: bool) -> None:
    """Send a call *times* times on each of many connections; read the answers, or never."""
    connections = [connect(address) for _ in range(callers)]
    body = text(argument) if signature else b""
    under_way()
    for _ in range(times // 100):
        batch = b"".join(
            header(call[0], call[1], call[2], signature, len(body), next(SERIALS)) + body for _ in range(100)
        )
        for sock, _ in connections:
            sock.sendall(batch)
    if read:
        answers = 0
        for _, client in connections:
            for _ in range(times):
                client.next()
                answers += 1
        print(answers, flush=True)
    else:
        print("sent", flush=True)
        time.sleep(DEADLINE)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("call", "signature", "argument", "callers", "times"),
    [
        (MANAGED, "", "", 1, 100),
        (MANAGED, "", "", 5, 100),
        ((f"{ROOT}/region/crowd", "org.freedesktop.DBus.Properties", "GetAll"), "s", REGION, 20, 200),
        ((ROOT, f"{NAME}.Manager", "Describe"), "", "", 2, 100),
        ((f"{ROOT}/region/none", "a.b", "Explode"), "", "", 20, 200),
    ],
    ids=["objects", "objects-of-many", "properties", "describe", "nothing"],
)
def test_floods_of_small_calls(
    short_path: Path, library: str, call: tuple[str, str, str], signature: str, argument: str, callers: int, times: int
) -> None:
    with site(short_path, library, CROWDED, FLOODED) as attacked, crowd(attacked):
        arguments = (attacked.daemon.bus, call, signature, argument, callers, times)
        with Attack(flood, *arguments, True, uid=NOBODY) as attack:
            assert int(attack.line()) == callers * times


@pytest.mark.parametrize("library", LIBRARIES)
def test_callers_that_never_read_their_answers(short_path: Path, library: str) -> None:
    with site(short_path, library, CROWDED, FLOODED) as attacked, crowd(attacked):
        with Attack(flood, attacked.daemon.bus, MANAGED, "", "", 5, 200, False, uid=NOBODY) as attack:
            assert attack.line() == "sent"
            with Client(attacked.daemon.bus) as client:
                assert len(client.raw(*MANAGED)[0]) >= CROWD
        with Client(attacked.daemon.bus) as client:
            assert len(client.raw(*MANAGED)[0]) >= CROWD


# What is hard to parse, and what never ends


def send_odd(address: str) -> None:
    """Send what nests deeply, what stops half-way, and signals and answers that nobody waits for."""
    sock, client = connect(address)
    under_way()
    kinds = []
    nested = b"".join(b"\1v\0" for _ in range(30)) + b"\1y\0\0"
    deep = padded(text("a.b"), 4) + text("x") + nested
    for _ in range(100):
        serial = next(SERIALS)
        sock.sendall(header(BEATEN, "org.freedesktop.DBus.Properties", "Set", "ssv", len(deep), serial) + deep)
        kinds.append(kind_of(client, serial))
    long_path = "/" + "a" * (8 << 20)
    sock.sendall(header(long_path, "a.b", "C", "", 0, next(SERIALS)))
    for kind in ("signal", "answer", "error", "odd"):
        for large in (b"", bytes(LARGE)):
            other, _ = connect(address)
            with contextlib.suppress(OSError):
                other.sendall(unasked(kind, large, client.connection.unique_name))
    halves = []
    for _ in range(50):
        other, _ = connect(address)
        other.sendall(header(BEATEN, REGION, "Broadcast", "", 0, next(SERIALS))[:-5])
        halves.append(other)
    serial = next(SERIALS)
    sock.sendall(header(BEATEN, REGION, "Explode", "", 0, serial))
    kinds.append(kind_of(client, serial))
    print(*sorted(set(kinds)), flush=True)


def unasked(kind: str, body: bytes, name: str) -> bytes:
    """Marshal a message to the daemon that is no call, with a body of bytes."""
    number = {"signal": 4, "answer": 2, "error": 3, "odd": 77}[kind]
    fields = b""
    for code, sort, value in ((1, "o", "/a"), (2, "s", "org.freedesktop.PolicyKit1.Authority"), (3, "s", "Changed")):
        if kind in ("signal", "odd"):
            fields = padded(fields) + bytes([code, 1, ord(sort), 0]) + text(value)
    if kind in ("answer", "error"):
        fields = padded(fields) + b"\5\1u\0" + struct.pack("<I", 2)
    if kind == "error":
        fields = padded(fields) + b"\4\1s\0" + text("a.b")
    fields = padded(fields) + b"\6\1s\0" + text(NAME)
    if body:
        fields = padded(fields) + b"\x08\1g\0\2ay\0"
        body = struct.pack("<I", len(body)) + body
    return padded(struct.pack("<4BIII", ord("l"), number, 1, 1, len(body), 7, len(fields)) + fields) + body


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_nests_or_never_ends_or_nobody_asked_for(short_path: Path, library: str) -> None:
    with site(short_path, library) as attacked, Attack(send_odd, attacked.daemon.bus, uid=NOBODY) as attack:
        assert attack.line() == "UnknownInterface UnknownMethod"


# Who may not look


def refusals(client: Client, name: str, peer: int) -> list[tuple[str, str]]:
    """Ask for a region in every way there is: the errors."""
    path, found = f"/region/{name}", []
    for call in (
        lambda: client.get(path, "Region", "Size"),
        lambda: client.get_all(path, "Region"),
        lambda: client.call(path, "Region", "Notify", "qq", peer, 0),
        lambda: client.call(path, "Region", "Notify", "q", peer),
        lambda: client.call(path, "Region", "Attach", "a{sv}", {}),
        lambda: client.call(path, "Region", "Explode"),
        lambda: client.raw(ROOT + path, None, "Broadcast"),
        lambda: client.raw(ROOT + path, "a.b", "C"),
        lambda: client.introspect(ROOT + path),
        lambda: client.introspect(f"{ROOT}{path}/peer"),
        lambda: client.call(f"{path}/peer/{peer}", "Peer", "Notify", "q", 0),
        lambda: client.call("", "Manager", "ListPeers", "s", name),
        lambda: client.call("", "Manager", "RemoveRegion", "s", name),
        lambda: client.call("", "Manager", "CreateRegion", "sa{sv}", name, {}),
    ):
        with pytest.raises(ErrorReply) as caught:
            call()
        found.append((caught.value.name, caught.value.text))
    return found


@pytest.mark.parametrize("library", LIBRARIES)
def test_who_may_not_look_learns_neither_names_nor_who_is_there(short_path: Path, library: str) -> None:
    short_path.chmod(0o755)
    policy = f"""{LIKE_THE_SYSTEM_BUS}<include>{DBUS_FILES / NAME}.conf</include>
      <policy user="root"><allow own="{fakepolkit.NAME}"/></policy>
      <policy context="default"><allow send_destination="{fakepolkit.NAME}"/>
      <allow receive_sender="{fakepolkit.NAME}"/></policy>"""
    with BusDaemon(short_path, policy, "system") as bus:
        (short_path / "bus").chmod(0o777)
        environment = {"DOORBELLD_DBUS_LIBRARY": library, "DBUS_SYSTEM_BUS_ADDRESS": bus.address}
        config = '[region.secret]\nvectors = 1\n[device.disk]\ntype = "rng"\n'
        with Daemon(short_path, config, bus="system", environment=environment) as daemon:
            with fakepolkit.being(NOBODY):
                stranger, listener = Client(bus.address), Client(bus.address)
            with FakePolkit(bus.address, fakepolkit.NO), stranger, listener, Client(bus.address) as root:
                for rule in ("type='signal'", f"type='signal',sender='{NAME}',path_namespace='{ROOT}'"):
                    listener.subscribe(rule)
                with pytest.raises(ErrorReply):
                    listener.subscribe("eavesdrop='true'")
                    listener.bus("BecomeMonitor", "asu", [], 0)
                root.subscribe()
                there = refusals(stranger, "secret", 65535)
                missing = refusals(stranger, "public", 7)
                assert there == missing
                assert {name for name, _ in there} == {f"{NAME}.Error.AccessDenied"}
                with RawClient(str(daemon.socket("secret"))) as peer:
                    peer.greet(1)
                    frontend = Frontend.connect(str(daemon.socket("disk")))
                    frontend.start(1)
                    root.until_signal("PropertiesChanged", lambda body: body[1].get("State", "")[1:] == ("running",))
                    pid = root.get("/region/secret/peer/0", "Peer", "Pid")
                    assert pid == root.get("/device/disk", "Device", "FrontendPid") == os.getpid()
                    assert root.get_all("/device/disk", "Device")["MemoryRegions"][0][2] != 0
                    frontend.close()
                root.until_signal("PeerRemoved")
                told = []
                while not told or told[-1][1] != f"{REGION}.PeerRemoved":
                    told.append(listener.signal())
                assert {name.rpartition(".")[2] for _, name, _ in told} >= {"InterfacesAdded", "FrontendAttached"}
                for path, name, body in told:
                    assert str(pid) not in re.findall(r"[0-9]+", repr(body)), (path, name, body)
                    assert "VmName" not in re.sub(r"'FrontendVmName\w*'", "", repr(body)), (path, name, body)
        assert "Traceback" not in daemon.log
