# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Peers that misbehave, a machine that has nothing left: the daemon goes on serving everybody else, and says why."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import re
import shlex
import signal
import socket
import stat
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import support.daemon
from support.busctl import ROOT
from support.daemon import BIN, Daemon
from support.dbusclient import Client, ErrorReply, until
from support.needs import require
from support.rawclient import RawClient

DEADLINE = 30.0
DEMO = "/region/demo"
HOST = 65535
VECTORS = 8
EIGHT = f"[region.demo]\nvectors = {VECTORS}\n"
ONE = struct.pack("=Q", 1)
NOBODY = 65534
RSS_MARGIN = 24 << 20
"""How much larger than after a first round of the same the daemon may be: room for the allocator, not for a leak."""


@pytest.fixture
def daemon(short_path: Path) -> Iterator[Daemon]:
    require("dbus-daemon", "dbus-daemon")
    with Daemon(short_path, EIGHT, log_level="info") as running:
        yield running
        assert "Traceback" not in running.log


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.bus) as connected:
        yield connected


def connect(daemon: Daemon) -> socket.socket:
    """Connect, and say nothing."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(daemon.socket()))  # which waits while the backlog is full; with a timeout set it would fail
    sock.settimeout(DEADLINE)
    return sock


def rss(daemon: Daemon) -> int:
    """Resident memory in bytes."""
    match = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{daemon.pid}/status").read_text(), re.M)
    assert match is not None
    return int(match[1]) << 10


def settle(client: Client, peers: int) -> None:
    """Wait until *peers* are left."""
    until(lambda: client.get(DEMO, "Region", "PeerCount") == peers, f"{peers} peers")


def catch_up(witness: RawClient, others: set[int]) -> None:
    """Read until the witness knows of exactly *others* besides itself and the host peer, in full."""
    assert witness.id is not None
    expected = {witness.id, HOST, *others}
    while set(witness.doorbells) != expected or any(len(fds) != VECTORS for fds in witness.doorbells.values()):
        assert witness.message(DEADLINE) is not None, f"it knows {sorted(witness.doorbells)}, not {sorted(expected)}"


def agree(peer: RawClient, reference: RawClient) -> None:
    """Read until *peer* knows of the very doorbells that *reference*, who has just been greeted, knows of."""
    while peer.doorbells != reference.doorbells:
        assert peer.message(DEADLINE) is not None, f"{peer.doorbells} is not {reference.doorbells}"


def test_peers_that_speak_are_shown_out_and_others_lose_nothing(daemon: Daemon, client: Client) -> None:
    with RawClient(str(daemon.socket()), keep=True) as witness:
        witness.greet(VECTORS)
        before = daemon.descriptors()
        client.subscribe()
        with open(os.devnull, "rb") as null:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null.fileno()] * 200))]
            for talk in (
                lambda sock: sock.sendall(b"x"),
                lambda sock: sock.sendall(b"GET / HTTP/1.1\r\n\r\n" * 1000),
                lambda sock: sock.sendmsg([b"x"], rights),
                lambda sock: sock.sendmsg([struct.pack("<q", -1)], rights),
            ):
                with connect(daemon) as sock:
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        talk(sock)
                    _, reason = client.until_signal("PeerRemoved")
                    assert re.fullmatch(r"it sent \d+ bytes, and an ivshmem client never sends", reason)
        with connect(daemon) as sock:
            sock.shutdown(socket.SHUT_WR)
            assert client.until_signal("PeerRemoved")[1] == "it closed its connection"
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(4096):
                    pass
        settle(client, 1)
        assert daemon.descriptors() == before
        with RawClient(str(daemon.socket())) as other:
            agree(witness, other.greet(VECTORS))
            assert len(witness.doorbells) == 3
        catch_up(witness, set())


def test_three_thousand_connections_leave_nothing(daemon: Daemon, client: Client) -> None:
    with RawClient(str(daemon.socket())) as witness:
        witness.greet(VECTORS)

        def storm(count: int) -> None:
            for _ in range(count // 50):
                for sock in [connect(daemon) for _ in range(50)]:
                    sock.close()
                witness.take(timeout=0)
            with RawClient(str(daemon.socket())) as last:  # connections are taken in order: all others have been
                last.greet(VECTORS)
            settle(client, 1)
            catch_up(witness, set())

        storm(1000)  # the first round makes the daemon as large as it gets
        descriptors, resident = daemon.descriptors(), rss(daemon)
        storm(3000)
        assert daemon.descriptors() == descriptors
        assert rss(daemon) - resident < RSS_MARGIN
        with RawClient(str(daemon.socket())) as other:
            agree(witness, other.greet(VECTORS))
            assert len(witness.doorbells) == 3


def test_a_silent_peer_costs_little_and_still_learns_everything(daemon: Daemon, client: Client) -> None:
    with (
        RawClient(str(daemon.socket())) as witness,
        RawClient(str(daemon.socket())) as silent,
    ):
        witness.greet(VECTORS)
        silent.greet(VECTORS)  # and from here on it does not read
        assert (witness.id, silent.id) == (0, 1)

        def crowd() -> None:
            peers = [RawClient(str(daemon.socket())) for _ in range(100)]
            for peer in peers:
                peer.greet(VECTORS)
            catch_up(witness, {1, *(peer.id for peer in peers if peer.id is not None)})
            assert len(witness.doorbells) == 103
            for peer in peers:
                peer.close()
            settle(client, 2)
            catch_up(witness, {1})

        crowd()
        descriptors, resident = daemon.descriptors(), rss(daemon)
        for _ in range(3):
            crowd()
        assert daemon.descriptors() == descriptors
        assert rss(daemon) - resident < RSS_MARGIN
        assert client.get(f"{DEMO}/peer/1", "Peer", "Backlog") < 100 * (VECTORS + 1) + 1
        with RawClient(str(daemon.socket())) as other:
            other.greet(VECTORS)
            for peer in (witness, silent):
                agree(peer, other)
            assert len(silent.doorbells) == 4


def test_a_storm_of_rings_does_not_hold_up_the_bus(daemon: Daemon, client: Client) -> None:
    rung = [0, 0]
    with RawClient(str(daemon.socket()), keep=True) as loud:
        loud.greet(VECTORS)
        stop = threading.Event()

        def ring(vector: int) -> None:
            while not stop.is_set():
                os.write(loud.fds[HOST][vector], ONE)
                rung[vector] += 1

        threads = [threading.Thread(target=ring, args=(vector,)) for vector in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(100):
                assert client.get(DEMO, "Region", "PeerCount") == 1
            with RawClient(str(daemon.socket())) as other:
                other.greet(VECTORS)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    until(lambda: client.get(DEMO, "Region", "HostRings")[:2] == rung, "every ring to be counted")


def test_a_doorbell_that_a_peer_spoils_still_works_for_others(daemon: Daemon, client: Client) -> None:
    """All share each eventfd: one who fills its counter, or makes it block, must stop nobody."""
    with RawClient(str(daemon.socket()), keep=True) as rude, RawClient(str(daemon.socket()), keep=True) as victim:
        rude.greet(VECTORS)
        victim.greet(VECTORS)
        catch_up(rude, {1})
        for fds in rude.fds.values():
            for fd in fds:
                with contextlib.suppress(BlockingIOError):
                    os.write(fd, struct.pack("=Q", (1 << 64) - 2))
                os.set_blocking(fd, True)
        for _ in range(3):
            client.call(DEMO, "Region", "Broadcast")
            client.call(DEMO, "Region", "NotifyPeer", "q", HOST)
            client.call(DEMO, "Region", "Notify", "qq", 1, 0)
        assert client.get(f"{DEMO}/peer/1/vector/0", "Vector", "PendingCount") == (1 << 64) - 2
        assert int.from_bytes(os.read(victim.fds[1][0], 8), "little") == (1 << 64) - 2
        client.call(DEMO, "Region", "Notify", "qq", 1, 0)
        assert int.from_bytes(os.read(victim.fds[1][0], 8), "little") == 1
        host = [f"{DEMO}/peer/{HOST}/vector/{vector}" for vector in range(VECTORS)]
        until(lambda: not any(client.get(one, "Vector", "PendingCount") for one in host), "the host peer's rings")
        for _ in range(2):  # more rings than 64 bits can count
            until(lambda: client.get(f"{DEMO}/peer/{HOST}/vector/0", "Vector", "PendingCount") == 0, "the host peer")
            os.write(rude.fds[HOST][0], struct.pack("=Q", (1 << 64) - 2))
        until(lambda: client.get(f"{DEMO}/peer/{HOST}/vector/0", "Vector", "PendingCount") == 0, "the host peer")
        assert len(client.get_all(DEMO, "Region")["HostRings"]) == VECTORS
        client.subscribe()
        client.call(DEMO, "Region", "Notify", "qq", HOST, 3)
        client.until_signal("Rung", lambda body: body[0] == 3)


# A machine that has nothing left


@pytest.fixture
def wrapped(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Have `Daemon` start doorbelld through what is put into this list: shell code, the last word of it an exec."""
    folder = short_path / "bin"
    folder.mkdir()
    lines: list[str] = []
    monkeypatch.setattr(support.daemon, "BIN", folder)

    class Script(list[str]):
        def append(self, line: str) -> None:
            super().append(line)
            (folder / "doorbelld").write_text(f'#!/bin/sh\n{line} {shlex.quote(str(BIN / "doorbelld"))} "$@"\n')
            (folder / "doorbelld").chmod(0o755)

    script = Script(lines)
    script.append("exec")
    yield script


def test_with_no_descriptor_left_the_rest_is_served_on(short_path: Path, wrapped: list[str]) -> None:
    wrapped.append("ulimit -n 100; exec")
    with Daemon(short_path, EIGHT) as daemon, Client(daemon.bus) as client, contextlib.ExitStack() as stack:
        assert client.get("", "Manager", "DescriptorLimit") == 100
        assert "max-peers is more than the descriptor limit allows" in daemon.log
        peers = []
        for _ in range(30):
            peer = stack.enter_context(RawClient(str(daemon.socket()), keep=True))
            first = peer.message()
            if first is None or first[0] != 0:
                break
            peers.append(peer.greet(VECTORS))
        count = len(peers)
        assert 3 <= count <= (100 - 10) // (1 + VECTORS)
        until(lambda: "connection refused" in daemon.log, "the refusal in the log")
        (line, *_) = [line for line in daemon.log.splitlines() if "connection refused" in line]
        assert "raise LimitNOFILE=" in line
        # the last descriptors go too: whoever comes is turned away and nobody else notices
        crowd = [stack.enter_context(connect(daemon)) for _ in range(50)]
        for sock in crowd:
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(4096):
                    pass
        assert client.get(DEMO, "Region", "PeerCount") == count
        assert client.get("", "Manager", "DescriptorsInUse") <= 100
        assert f'"in-use": {client.get("", "Manager", "DescriptorsInUse")}' in client.call("", "Manager", "Describe")[0]
        assert set(client.get_all("", "Manager")) >= {"Version", "Library"}
        client.call(DEMO, "Region", "Broadcast")
        for peer in peers:
            assert peer.id is not None
            assert os.read(peer.fds[peer.id][0], 8) == ONE
        peers.pop().close()
        settle(client, count - 1)
        again = stack.enter_context(RawClient(str(daemon.socket())))
        again.greet(VECTORS)
        for peer in peers:
            catch_up(peer, {other.id for other in [*peers, again] if other is not peer and other.id is not None})
        assert "Traceback" not in daemon.log


def test_with_really_no_descriptor_left_the_bus_still_answers(short_path: Path, wrapped: list[str]) -> None:
    wrapped.append("ulimit -n 64; exec")
    with Daemon(short_path, "[region.demo]\nvectors = 1\n") as daemon, Client(daemon.bus) as client:
        with contextlib.ExitStack() as stack:

            def fill() -> bool:
                peer = stack.enter_context(RawClient(str(daemon.socket())))
                first = peer.message()
                return first is not None and first[0] == 0

            while fill():
                pass
            left = 64 - daemon.descriptors()
            assert left <= 2
            held = []
            kinds = set()
            for _ in range(3):  # the replies that still can, take what is left for a moment only
                for call in (("OpenMemory",), ("OpenDoorbell", "qq", HOST, 0), ("Attach", "a{sv}", {})):
                    try:
                        held.append(client.call(DEMO, "Region", *call)[0])
                    except ErrorReply as error:
                        kinds.add(error.kind)
                        assert "raise LimitNOFILE=" in error.text
            assert kinds <= {"LimitExceeded"}
            for fd in held:
                fd.close()
            with pytest.raises(ErrorReply) as caught:
                client.call("", "Manager", "CreateRegion", "sa{sv}", "new", {"vectors": ("u", 8)})
            assert caught.value.kind in ("LimitExceeded", "MemoryUnavailable", "SocketUnavailable")
            assert not daemon.socket("new").exists()
            assert client.get(DEMO, "Region", "HostRings") == [0]
        settle(client, 0)
        path = client.call("", "Manager", "CreateRegion", "sa{sv}", "new", {"vectors": ("u", 8)})[0]
        assert path == f"{ROOT}/region/new"
        assert "Traceback" not in daemon.log


@pytest.fixture
def tiny_disk(short_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    require("mount", "mount")
    disk = short_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", disk], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("a file system can't be mounted here: that needs root and CAP_SYS_ADMIN")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk(tiny_disk: Path, short_path: Path) -> None:
    cure = "No space left on device; free some space there or use another backing"
    with Daemon(short_path) as daemon, Client(daemon.bus) as client:
        backing = ("s", f"file:{tiny_disk}/memory")
        with pytest.raises(ErrorReply) as caught:
            client.call("", "Manager", "CreateRegion", "sa{sv}", "new", {"backing": backing})
        assert caught.value.kind == "MemoryUnavailable"
        assert cure in caught.value.text
        assert f"file:{tiny_disk}/memory" in caught.value.text
        assert list(tiny_disk.iterdir()) == []
        assert not daemon.socket("new").exists()
        client.call("", "Manager", "CreateRegion", "sa{sv}", "new", {"backing": backing, "size": ("s", "512K")})
        assert (tiny_disk / "memory").stat().st_size == 512 << 10
        client.call("", "Manager", "RemoveRegion", "s", "new")
        assert (tiny_disk / "memory").exists()  # memory with a name stays
        (tiny_disk / "memory").unlink()
        config = short_path / "second.toml"
        config.write_text(
            f'[daemon]\nruntime-directory = "{short_path}/second"\n[region.demo]\nbacking = "file:{tiny_disk}/memory"\n'
        )
        done = subprocess.run(
            [BIN / "doorbelld", "--config", config, "--bus", daemon.bus],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert done.returncode == os.EX_CANTCREAT
        assert cure in done.stderr
        assert "Traceback" not in done.stderr
        assert list(tiny_disk.iterdir()) == []


# No privilege


@pytest.fixture
def unprivileged(short_path: Path, wrapped: list[str]) -> Path:
    """Have `Daemon` run as nobody; gives a directory of nobody's own."""
    require("setpriv", "util-linux")
    if os.getuid():
        pytest.skip("only root can become somebody else")
    short_path.chmod(0o755)
    own = short_path / "own"
    own.mkdir()
    os.chown(own, NOBODY, NOBODY)
    setpriv = f"exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups"
    reads = "--inh-caps=+dac_read_search --ambient-caps=+dac_read_search"  # Python may be in a folder of root's
    wrapped.append(f"umask 022; {setpriv} {reads} --")
    return own


def test_an_unprivileged_daemon_serves_on_a_bus_of_its_own(unprivileged: Path) -> None:
    (unprivileged / "run").mkdir()
    os.chown(unprivileged / "run", NOBODY, NOBODY)
    with _as_nobody(unprivileged) as daemon, Client(daemon.bus) as client:
        assert os.stat(f"/proc/{daemon.pid}").st_uid == NOBODY
        assert stat.S_IMODE(daemon.socket().stat().st_mode) == 0o660
        assert daemon.socket().stat().st_uid == NOBODY
        with RawClient(str(daemon.socket()), keep=True) as peer:
            peer.greet(4)
            client.call(DEMO, "Region", "Notify", "qq", 0, 1)  # we are root: trusted, as is nobody
            assert os.read(peer.fds[0][1], 8) == ONE
        for key, value in (("group", "0"), ("owner", "0"), ("group", "root")):
            with pytest.raises(ErrorReply) as caught:
                options = {key: ("s", value), "backing": ("s", f"file:{unprivileged}/memory")}
                client.call("", "Manager", "CreateRegion", "sa{sv}", "new", options)
            assert caught.value.kind == "SocketUnavailable"
            assert "only root may give a socket to another owner or group; leave owner and group out" in str(
                caught.value
            )
            assert not (unprivileged / "memory").exists()
            assert not daemon.socket("new").exists()
        for options, kind in (
            ({"socket": ("s", "/proc/x/socket")}, "SocketUnavailable"),
            ({"socket": ("s", "/usr/x/socket")}, "SocketUnavailable"),
            ({"backing": ("s", "file:/usr/memory")}, "MemoryUnavailable"),
            ({"backing": ("s", "file:/etc/passwd")}, "MemoryUnavailable"),
        ):
            with pytest.raises(ErrorReply) as caught:
                client.call("", "Manager", "CreateRegion", "sa{sv}", "new", options)
            assert caught.value.kind == kind
            assert "; " in caught.value.text
        client.call("", "Manager", "CreateRegion", "sa{sv}", "new", {"group": ("s", str(NOBODY))})
        assert "Traceback" not in daemon.log


def test_an_unprivileged_daemon_whose_directory_is_not_its_own_says_so(unprivileged: Path, short_path: Path) -> None:
    config = unprivileged / "doorbelld.toml"
    for region, status in (("", os.EX_UNAVAILABLE), ("[region.demo]\n", os.EX_CANTCREAT)):
        config.write_text(f'[daemon]\nruntime-directory = "{short_path}/not-mine"\n{region}')
        done = subprocess.run(
            [short_path / "bin" / "doorbelld", "--config", config, "--bus", "private"],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert done.returncode == status, done.stderr
        assert "Permission denied" in done.stderr
        assert "Traceback" not in done.stderr


@contextlib.contextmanager
def _as_nobody(own: Path) -> Iterator[Daemon]:
    """A daemon that writes its log and readiness where nobody may."""
    daemon = Daemon(own)
    before = os.umask(0)  # for the socket that it tells its readiness to, which is root's
    try:
        daemon.start()
    finally:
        os.umask(before)
    with contextlib.ExitStack() as stack:
        stack.callback(daemon.stop)
        yield daemon


def test_a_daemon_that_is_killed_leaves_a_socket_that_the_next_takes_over(short_path: Path) -> None:
    daemon = Daemon(short_path, EIGHT).start()
    assert daemon.process is not None
    with RawClient(str(daemon.socket())) as peer:
        peer.greet(VECTORS)
        daemon.process.send_signal(signal.SIGKILL)
        daemon.process.wait(DEADLINE)
        daemon.process = None
        while peer.message() is not None:
            pass
        assert peer.eof
    assert daemon.socket().exists()
    with socket.socket(socket.AF_UNIX) as refused:
        assert refused.connect_ex(str(daemon.socket())) == errno.ECONNREFUSED
    until(lambda: not _listens(daemon.bus), "the private bus to end with its daemon")
    with daemon, RawClient(str(daemon.socket())) as peer:
        assert peer.greet(VECTORS).id == 0


def _listens(address: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(address.removeprefix("unix:path=")) == 0
