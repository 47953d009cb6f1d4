# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Descriptors that can't be closed in a moment, sent to the daemon wherever it receives any: nobody else notices."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from array import array
from pathlib import Path

import pytest
from doorbelld.vhost.frontend import Frontend
from support.daemon import Daemon
from support.dbusclient import BusDaemon, Client, until
from support.fuse import HangingFiles
from support.heartbeat import Attack, Watched, under_way, watched
from support.rawclient import RawClient

NOBODY = 65534
LINGER = 40
"""Seconds for which a close waits: longer than all deadlines here."""
KEPT: list[object] = []
"""What must stay open while an attack goes on."""
CONFIG = """
[region.attacked]
mode = "0666"
[region.ruled]
mode = "0666"
[[region.ruled.peer]]
match = { uid = "root" }
[device.attacked-rng]
type = "rng"
mode = "0666"
[device.any-rng]
type = "rng"
mode = "0666"
memory = "any"
"""
SET_MEM_TABLE, SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 5, 12, 13, 14
MESSAGES = {
    "memory": struct.pack("=IIIIIQQQQ", SET_MEM_TABLE, 1, 40, 1, 0, 0, 1 << 20, 1 << 30, 0),
    "kick": struct.pack("=IIIQ", SET_VRING_KICK, 1, 8, 0),
    "call": struct.pack("=IIIQ", SET_VRING_CALL, 1, 8, 0),
    "err": struct.pack("=IIIQ", SET_VRING_ERR, 1, 8, 0),
    "half a message": b"\x01",
}


# What attackers do, in processes of their own


def lingering() -> socket.socket:
    """Give a TCP socket whose last close waits: its peer never reads, and its buffer is full."""
    listening, mine = socket.socket(), socket.socket()
    listening.bind((b"127.0.0.1", 0))
    listening.listen()
    mine.connect((b"127.0.0.1", listening.getsockname()[1]))  # bytes: a name in text loads a module, which nobody may
    KEPT.append(listening.accept())
    mine.setblocking(False)
    mine.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER))
    try:
        while True:
            mine.send(bytes(1 << 16))
    except BlockingIOError:
        return mine


def nested() -> socket.socket:
    """Give a UNIX socket in which a lingering one is queued."""
    mine, theirs = socket.socketpair()
    inner = lingering()
    send(mine, b"x", inner.fileno())
    let_go(inner)
    mine.close()
    return theirs


def hanging(path: str) -> socket.socket | int:
    """Give what *path* says: a file, or one of the sockets above."""
    if path in ("lingering", "nested"):
        return lingering() if path == "lingering" else nested()
    fd = os.open(path, os.O_RDWR)
    KEPT.append(fd)  # to close it would hang here, too
    return fd


def send(sock: socket.socket, data: bytes, fd: int) -> None:
    """Send *data* with a descriptor."""
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))])


def send_urgently(sock: socket.socket, fd: int) -> None:
    """Send an urgent byte with a descriptor, and another byte."""
    sock.sendmsg([b"\x01"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))], socket.MSG_OOB)
    sock.send(b"\x01")


def let_go(sent: socket.socket | int) -> None:
    """Close a socket, which we wait for ourselves if the daemon did it first."""
    if isinstance(sent, socket.socket):
        threading.Thread(target=sent.close, daemon=True).start()


def attack_bus(address: str, what: str) -> None:
    """Send *what* with calls on the bus at *address*."""
    from jeepney import DBusAddress, new_method_call
    from jeepney.io.blocking import open_dbus_connection
    from support.busctl import NAME, ROOT

    connection = open_dbus_connection(address, enable_fds=True)
    root = DBusAddress(ROOT, NAME, "org.freedesktop.DBus.Peer")
    for _ in range(4):
        sent = hanging(what)
        connection.send(new_method_call(root, "Ping", "h", (sent,)), serial=next(connection.outgoing_serial))
        let_go(sent)
    under_way()
    time.sleep(LINGER)


def attack_sockets(paths: list[str], messages: list[str], what: str) -> None:
    """Send *what* to each of the sockets with each of the messages, over a connection each."""
    for path in paths:
        for message in messages:
            sent = hanging(what)
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(path)
            with contextlib.suppress(OSError):  # we were refused before that
                send(sock, MESSAGES[message], sent if isinstance(sent, int) else sent.fileno())
            let_go(sent)
            KEPT.append(sock)
    under_way()
    time.sleep(LINGER)


def attack_urgently(path: str, what: str) -> None:
    """Send *what* to a socket with urgent bytes."""
    for _ in range(4):
        sent = hanging(what)
        assert isinstance(sent, socket.socket)
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        with contextlib.suppress(OSError):  # we were refused before that
            send_urgently(sock, sent.fileno())
        let_go(sent)
        KEPT.append(sock)
    under_way()
    time.sleep(LINGER)


def attack_channel(path: str, what: str) -> None:
    """Send *what* on the back-end channel of a device, of which we have both ends, with urgent bytes."""
    frontend = Frontend.connect(path)
    frontend.start()
    frontend.open_channel()
    assert frontend.channel is not None
    sent = hanging(what)
    assert isinstance(sent, socket.socket)
    send_urgently(frontend.channel, sent.fileno())
    let_go(sent)
    KEPT.append(frontend)
    under_way()
    time.sleep(LINGER)


# What is seen of it


def beats(site: Watched, count: int = 60) -> None:
    """Be greeted *count* times, while the hearts beat."""
    for _ in range(count):
        with RawClient(str(site.daemon.socket("beaten"))) as peer:
            peer.greet(2)
        time.sleep(0.01)


@pytest.fixture
def place(short_path: Path) -> Path:
    """Give a directory that everybody may enter."""
    short_path.chmod(0o755)
    return short_path


@pytest.mark.parametrize("what", ["lingering", "nested"])
def test_lingering_socket_in_a_bus_call_delays_nobody(place: Path, what: str) -> None:
    with watched(place) as site, Attack(attack_bus, site.daemon.bus, what):
        beats(site)


@pytest.mark.parametrize("what", ["lingering", "nested"])
@pytest.mark.parametrize("region", ["attacked", "ruled"])
def test_lingering_socket_sent_to_a_region_delays_nobody(place: Path, region: str, what: str) -> None:
    """A peer never sends anything; "ruled" admits nobody, so what was sent is never read."""
    with watched(place, CONFIG) as site:
        paths = [str(site.daemon.socket(region))] * 4
        with Attack(attack_sockets, paths, ["half a message"], what, uid=NOBODY):
            beats(site)


@pytest.mark.parametrize("what", ["lingering", "nested"])
def test_lingering_socket_sent_to_a_device_delays_nobody(place: Path, what: str) -> None:
    with watched(place, CONFIG) as site:
        paths = [str(site.daemon.socket(name)) for name in ("attacked-rng", "any-rng")]
        with Attack(attack_sockets, paths, [*MESSAGES], what, uid=NOBODY):
            beats(site)


@pytest.mark.parametrize("what", ["lingering", "nested"])
@pytest.mark.parametrize("target", ["attacked", "ruled", "attacked-rng"])
def test_lingering_socket_with_an_urgent_byte_delays_nobody(place: Path, target: str, what: str) -> None:
    """An urgent byte that is not asked for is dropped by the kernel, in the thread that receives what is behind it."""
    with (
        watched(place, CONFIG) as site,
        Attack(attack_urgently, str(site.daemon.socket(target)), what, uid=NOBODY),
    ):
        beats(site)


@pytest.mark.parametrize("what", ["lingering", "nested"])
def test_lingering_socket_on_the_back_end_channel_delays_nobody(place: Path, what: str) -> None:
    with (
        watched(place, CONFIG) as site,
        Attack(attack_channel, str(site.daemon.socket("attacked-rng")), what, uid=NOBODY),
    ):
        beats(site)


def test_peer_that_sends_one_urgent_byte_is_disconnected(place: Path) -> None:
    """Otherwise its socket would be ready for ever and nothing be there to read."""
    with Daemon(place, CONFIG) as daemon, socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(daemon.socket("attacked")))
        peer.send(b"\x01", socket.MSG_OOB)
        until(lambda: daemon.times("an ivshmem client never sends") == 1, "the peer to be disconnected")


@pytest.mark.parametrize("target", ["attacked", "ruled", "attacked-rng"])
def test_file_whose_close_hangs_delays_nobody_and_its_user_is_refused(place: Path, target: str) -> None:
    with watched(place, CONFIG) as site, HangingFiles(place / "fuse", "FLUSH", "GETATTR", "STATFS") as files:
        daemon = site.daemon
        messages = [*MESSAGES] if target.endswith("rng") else ["half a message"]
        with Attack(attack_sockets, [str(daemon.socket(target))], messages, files.path(), uid=NOBODY):
            beats(site)
            if target.endswith("rng"):  # elsewhere it is never received
                until(lambda: daemon.times("descriptor can't be closed") == 1, "the stuck one to be told of")
                with Client(daemon.bus) as client:
                    assert client.get("", "Manager", "StuckDescriptors") >= 1
                with Attack(attack_sockets, [str(daemon.socket("attacked"))], ["half a message"], "nested", uid=NOBODY):
                    until(lambda: "that uid 65534 sent can't be closed" in daemon.log, "the user to be refused")
                with RawClient(str(daemon.socket("attacked"))) as other:
                    other.greet(4)
            files.close()


def test_file_whose_close_hangs_in_a_bus_call_delays_nobody(place: Path) -> None:
    with (
        watched(place) as site,
        HangingFiles(place / "fuse", "FLUSH") as files,
        Attack(attack_bus, site.daemon.bus, files.path()),
    ):
        until(lambda: site.daemon.times("descriptor can't be closed") == 1, "the stuck one to be told of")
        beats(site)
        files.close()


@pytest.mark.parametrize("operation", ["GETATTR", "STATFS", "READ"])
def test_guest_memory_on_a_file_system_that_hangs_delays_nobody(place: Path, operation: str) -> None:
    with watched(place, CONFIG) as site, HangingFiles(place / "fuse", operation) as files:
        paths = [str(site.daemon.socket("any-rng"))]
        with Attack(attack_sockets, paths, ["memory"], files.path(), uid=NOBODY):
            beats(site)
            files.close()  # else who sent it could not end


def test_killed_daemon_with_a_stuck_thread_does_not_block_its_successor(place: Path) -> None:
    daemon = Daemon(place, CONFIG).start()
    assert daemon.process is not None
    with HangingFiles(place / "fuse", "FLUSH") as files:
        with Attack(attack_sockets, [str(daemon.socket("attacked-rng"))], ["kick"], files.path(), uid=NOBODY):
            until(lambda: daemon.times("descriptor can't be closed") == 1, "a stuck thread")
            dead, daemon.process = daemon.process, None
            dead.send_signal(signal.SIGKILL)
            stat = Path(f"/proc/{dead.pid}/stat")
            until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z", "the process to be dead")
            assert dead.poll() is None, "nothing of it is stuck"
            with daemon, RawClient(str(daemon.socket("attacked"))) as peer:
                assert peer.greet(4).id == 0
            files.close()
        dead.wait(20)


def test_killed_daemon_with_a_stuck_thread_leaves_its_name_to_its_successor(place: Path) -> None:
    """Its connection to the bus stays, and nobody else may have the name while it lives."""
    with BusDaemon(place) as bus, HangingFiles(place / "fuse", "FLUSH") as files:
        daemon = Daemon(place, CONFIG, bus=bus.address).start()
        assert daemon.process is not None
        with Attack(attack_sockets, [str(daemon.socket("attacked-rng"))], ["kick"], files.path(), uid=NOBODY):
            until(lambda: daemon.times("descriptor can't be closed") == 1, "a stuck thread")
            (place / "second").mkdir()
            with pytest.raises(AssertionError, match="another doorbelld owns it"):
                Daemon(place / "second", bus=bus.address).start()
            dead, daemon.process = daemon.process, None
            dead.send_signal(signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                dead.wait(0.5)
            assert dead.poll() is None, "nothing of it is stuck"
            for _ in range(2):
                with daemon, Client(bus.address) as client:
                    assert client.get("/region/attacked", "Region", "PeerCount") == 0
            files.close()
        dead.wait(20)


def test_daemon_with_a_stuck_thread_leaves_its_paths_free(place: Path) -> None:
    daemon = Daemon(place, CONFIG).start()
    assert daemon.process is not None
    with HangingFiles(place / "fuse", "FLUSH") as files:
        with Attack(attack_sockets, [str(daemon.socket("attacked-rng"))], ["kick"], files.path(), uid=NOBODY):
            until(lambda: daemon.times("descriptor can't be closed") == 1, "a stuck thread")
            dying, daemon.process = daemon.process, None
            dying.send_signal(signal.SIGTERM)
            until(lambda: not daemon.socket("attacked").exists(), "the sockets to be removed")
            with daemon, RawClient(str(daemon.socket("attacked"))) as peer:
                assert peer.greet(4).id == 0
            files.close()
        assert dying.wait(20) == 0
