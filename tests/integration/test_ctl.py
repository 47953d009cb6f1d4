# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""doorbellctl, as it is typed, against a real daemon. What it prints is looked at for what it says, not for how."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doorbelld import __version__
from doorbelld.bus.private import PrivateBus
from doorbelld.ctl.app import SECTIONS
from doorbelld.ctl.completion import PROGRAMS
from support.busctl import NOBODY, Busctl, without_rights
from support.daemon import BIN, DEADLINE, Daemon
from support.fuse import HangingFiles
from support.rawclient import RawClient
from support.surroundings import ctl_elsewhere

COMMANDS = [name for section in SECTIONS.values() for name in section]
CONFIG = "[region.demo]\n"
VECTORS = 3
NOTHING_ELSE: dict[str, list[str]] = {"devices": [], "clients": [], "flats": []}


class Ctl:
    """doorbellctl with *bus* as its default."""

    def __init__(self, bus: str) -> None:
        self.environment = {**os.environ, "DOORBELLD_BUS": bus}
        self.command = [str(BIN / "doorbellctl")]

    def feed(self, data: bytes, *words: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
        """Run it in pipes, with *data* as its input."""
        return subprocess.run(
            [*self.command, *map(str, words)],
            input=data,
            capture_output=True,
            timeout=DEADLINE,
            env={**self.environment, **environment},
            check=False,
        )

    def run(self, *words: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
        """Run it in pipes."""
        return self.feed(b"", *words, **environment)

    def __call__(self, *words: object, **environment: str) -> str:
        """Run it and give what it printed; it must succeed."""
        done = self.run(*words, **environment)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def json(self, *words: object, **environment: str) -> Any:
        """Run it and read the JSON that it printed."""
        return json.loads(self(*words, **environment))

    def refused(self, *words: object, status: int = 1, **environment: str) -> str:
        """Run it; it must fail with *status* and nothing but words on standard error, which are given."""
        done = self.run(*words, **environment)
        error = done.stderr.decode()
        assert done.returncode == status, error
        assert done.stdout == b""
        assert "Traceback" not in error
        return error

    def on_terminal(self, *words: object, answer: str = "") -> tuple[int, str]:
        """Run it on a terminal, type *answer* once it asks, and give its status and all it wrote."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [BIN / "doorbellctl", *map(str, words)], stdin=theirs, stdout=theirs, stderr=theirs, env=self.environment
        )
        os.close(theirs)
        written = b""
        try:
            while select.select([ours], [], [], DEADLINE)[0]:
                try:
                    written += os.read(ours, 4096)
                except OSError:
                    break
                if answer and b"?" in written:
                    os.write(ours, answer.encode())
                    answer = ""
            return process.wait(DEADLINE), written.decode()
        finally:
            process.kill()
            process.wait()
            os.close(ours)


class Monitor:
    """A running ``doorbellctl monitor``."""

    def __init__(self, ctl: Ctl, *words: str) -> None:
        self.process = subprocess.Popen(
            [BIN / "doorbellctl", "monitor", *words], stdout=subprocess.PIPE, env=ctl.environment
        )
        self._rest = b""

    def line(self) -> str:
        """Wait for the next line."""
        assert self.process.stdout is not None
        while b"\n" not in self._rest:
            assert select.select([self.process.stdout], [], [], DEADLINE)[0], "the monitor says nothing"
            piece = os.read(self.process.stdout.fileno(), 4096)
            assert piece, "the monitor ended"
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def event(self) -> dict[str, Any]:
        """Wait for the next line and read it as JSON, without its time."""
        event: dict[str, Any] = json.loads(self.line())
        assert event.pop("time") > 1.7e9
        return event

    def stop(self, number: int = signal.SIGINT) -> int:
        """End it as Ctrl-C does, and give its status."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon for all tests of a module, configured as that says in ``CONFIG``."""
    directory = Path(tempfile.mkdtemp(prefix="db"))
    with Daemon(directory, request.module.CONFIG) as running:
        yield running
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def ctl(daemon: Daemon) -> Ctl:
    return Ctl(daemon.bus)


@pytest.fixture
def region(request: pytest.FixtureRequest, ctl: Ctl) -> Iterator[str]:
    """A region of the test's own."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[-40:].strip("-")
    ctl("create", name, "--size", "64K", "--vectors", VECTORS)
    yield name
    ctl.run("remove", name, "--yes")


def join(daemon: Daemon, region: str) -> RawClient:
    return RawClient(str(daemon.socket(region))).greet(VECTORS)


@contextlib.contextmanager
def guest(daemon: Daemon, region: str, name: str) -> Iterator[int]:
    """A peer whose command line is that of the VM *name*; gives its process ID."""
    code = f"import socket, sys; s = socket.socket(1); s.connect({str(daemon.socket(region))!r}); s.recv(8); "
    command = [sys.executable, "-c", f"{code} print(flush=True); sys.stdin.read()", "-name", name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            yield process.pid
        finally:
            process.communicate()


# Looking


def test_an_empty_daemon_says_what_to_do_next(short_path: Path) -> None:
    with Daemon(short_path, "") as empty:
        said = Ctl(empty.bus)()
        assert "no region yet, and no device" in said
        assert "doorbellctl create demo" in said
        assert Ctl(empty.bus).json("--json")["regions"] == {}


def test_the_overview_lists_regions_and_peers(ctl: Ctl, daemon: Daemon, region: str) -> None:
    said = ctl()
    assert re.search(rf"^{region} +64K +3 +0 +{daemon.socket(region)}$", said, re.M)
    assert "doorbellctl qemu-args" in said
    with join(daemon, region):
        said = ctl()
    assert re.search(rf"^{region} +64K +3 +1 +{daemon.socket(region)}$", said, re.M)
    assert re.search(
        rf"^{region} +0 +\(\S+\) +{os.getpid()} +{os.getuid()} +20\d\d-\d\d-\d\d [\d:]{{8}} +0$", said, re.M
    )
    assert f"on {daemon.runtime}/bus: 2 regions, 1 peer" in said


def test_a_pipe_gets_plain_columns_that_are_never_cut_off(ctl: Ctl, daemon: Daemon) -> None:
    path = daemon.directory / ("long-" * 16) / "s"
    ctl("create", "long", "--socket", path)
    try:
        said = ctl(COLUMNS="40", TERM="xterm-256color")
        assert re.search(rf"^long .* {path}$", said, re.M)
        assert said.isascii()
        assert "\x1b" not in said
        assert not re.search(r" $", said, re.M)
    finally:
        ctl("remove", "long")


def test_a_terminal_gets_colours(ctl: Ctl) -> None:
    status, said = ctl.on_terminal()
    assert status == 0
    assert "\x1b[" in said
    assert "demo" in said


def test_json_is_the_same_wherever_the_flag_stands(ctl: Ctl, daemon: Daemon, region: str) -> None:
    assert ctl.json("--json")["regions"].keys() == ctl.json("describe")["regions"].keys() == {"demo", region}
    with join(daemon, region):
        before, after = ctl.json("--json", "peers", region), ctl.json("peers", region, "--json")
    assert before == after
    (peer,) = before
    assert (peer["id"], peer["pid"], peer["uid"], peer["vectors"]) == (0, os.getpid(), os.getuid(), 3)


def test_status_has_everything_and_what_is_pending(ctl: Ctl, daemon: Daemon, region: str) -> None:
    assert "doorbellctl qemu-args" in ctl("status", region)
    with join(daemon, region):
        ctl("notify", region, 0, 2)
        ctl("notify", region, 0, 2)
        said, known = ctl("status", region), ctl.json("status", region, "--json")
    for words in (str(daemon.socket(region)), "65,536 bytes", "memfd", "1 of at most 1,024", "ID 65535", "mode 0660"):
        assert words in said
    assert re.search(rf"^ +0 .* {os.getpid()} .* 2 \(vector 2: 2\)$", said, re.M)
    assert (known["name"], known["size"], known["peers"][0]["pending"]) == (region, 65536, [0, 0, 2])


def test_peers_of_all_regions_and_status_of_several_things(ctl: Ctl, daemon: Daemon, region: str) -> None:
    assert "No peer is connected to any region" in ctl("peers")
    with join(daemon, region), join(daemon, region):
        said, known = ctl("peers"), ctl.json("peers", "--json")
        assert [len(known[name]) for name in ("demo", region)] == [0, 2]
        assert [row.split()[:2] for row in said.splitlines()] == [["REGION", "PEER"], [region, "0"], [region, "1"]]
        both = ctl.json("status", "demo", region, "--json")
        assert [(one["name"], len(one["peers"])) for one in both] == [("demo", 0), (region, 2)]
        assert re.findall(r"Region: (\S+)", ctl("status", "demo", region)) == ["demo", region]
    assert 'no region "nowhere"' in ctl.refused("status", "nowhere", "demo")


def test_peers_are_in_the_order_of_their_ids(ctl: Ctl, daemon: Daemon, region: str) -> None:
    with join(daemon, region) as first, join(daemon, region):
        first.close()
        while len(ctl.json("peers", region, "--json")) > 1:
            pass
        with join(daemon, region):
            ids = [peer["id"] for peer in ctl.json("peers", region, "--json")]
            assert ids == sorted(ids)
            assert len(ids) == 2


def test_peers(ctl: Ctl, daemon: Daemon, region: str) -> None:
    assert "No peer is connected" in ctl("peers", region)
    assert ctl.json("peers", region, "--json") == []
    with join(daemon, region), join(daemon, region):
        said = ctl("peers", region)
    assert len(re.findall(rf"^ +[01] .* {os.getpid()} +{os.getuid()} +{os.getgid()} ", said, re.M)) == 2


# Ringing


def pending(ctl: Ctl, region: str) -> list[list[int]]:
    return [peer["pending"] for peer in ctl.json("status", region, "--json")["peers"]]


def test_notify_and_broadcast(ctl: Ctl, daemon: Daemon, region: str) -> None:
    with join(daemon, region), join(daemon, region):
        assert f"rang vector 1 of peer 0 in {region}" in ctl("notify", region, 0, 1)
        assert pending(ctl, region) == [[0, 1, 0], [0, 0, 0]]
        assert ctl.json("notify", region, 1, "--json") == {"region": region, "peer": 1, "vector": None}
        assert pending(ctl, region) == [[0, 1, 0], [1, 1, 1]]
        assert "2 peers" in ctl("broadcast", region)
        assert pending(ctl, region) == [[1, 2, 1], [2, 2, 2]]
        ctl("notify", region, "host", 2)
        with Busctl(daemon.bus).monitor("Rung") as rung:
            ctl("notify", region, "host", 0)
            assert next(rung) == [0, 1]


def test_a_peer_may_be_named_after_its_vm(ctl: Ctl, daemon: Daemon, region: str) -> None:
    with join(daemon, region), guest(daemon, region, "guest=friend,debug-threads=on"):
        assert "peer 1" in ctl("notify", region, "friend", 0)
        assert pending(ctl, region)[1] == [1, 0, 0]
        assert 'no peer "foe"; connected: 0 (' in ctl.refused("notify", region, "foe", 0)
        assert "friend" in ctl.refused("remove", region)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["notify", "nowhere", "0", "0"], 'no region "nowhere"; there is: '),
        (["notify", "nowhere", "0"], 'no region "nowhere", and no device of that name; there are regions: demo'),
        (["notify", "demo", "9", "0"], 'region "demo" has no peer 9'),
        (["notify", "demo", "9"], 'region "demo" has no peer 9'),
        (["notify", "demo", "65535", "4"], "has vectors 0 to 3, not 4"),
        (["broadcast", "nowhere"], 'no region "nowhere"'),
        (["status", "nowhere"], 'no region "nowhere"'),
        (["peers", "nowhere"], 'no region "nowhere"'),
        (["remove", "nowhere"], 'no region "nowhere"'),
        (["read", "nowhere", "0", "1"], 'no region "nowhere"'),
        (["write", "nowhere", "0", "x"], 'no region "nowhere"'),
        (["qemu-args", "nowhere"], 'no region "nowhere"'),
        (["libvirt-xml", "nowhere"], 'no region "nowhere"'),
        (["disconnect", "demo", "65535"], 'region "demo" has no connected peer 65535'),
        (["create", "demo"], 'region "demo" is there already'),
        (["read", "demo", "4M", "1"], "not within the 4194304 bytes"),
        (["write", "demo", "4194303", "xy"], "not within the 4194304 bytes"),
    ],
)
def test_a_refusal_is_one_line_and_status_1(ctl: Ctl, words: list[str], error: str) -> None:
    said = ctl.refused(*words)
    assert said.startswith("doorbellctl: ")
    assert error in said
    assert said.count("\n") == 1


def test_disconnect_asks_before_it_disconnects(ctl: Ctl, daemon: Daemon, region: str) -> None:
    with join(daemon, region) as peer:
        said = ctl.refused("disconnect", region, 0)
        cause = f'(pid {os.getpid()}), peer 0 of region "{region}", is a peer again when it connects again'
        assert said.endswith(f"{cause}; to disconnect it, add --yes\n")
        status, asked = ctl.on_terminal("disconnect", region, 0, answer="n\n")
        assert (status, "Disconnect it? [y/N]" in asked) == (1, True)
        assert len(ctl.json("peers", region, "--json")) == 1
        status, asked = ctl.on_terminal("disconnect", region, 0, answer="y\n")
        assert (status, "disconnected peer 0" in asked) == (0, True)
        peer.until_eof()


def test_disconnect_with_yes_does_not_ask(ctl: Ctl, daemon: Daemon, region: str) -> None:
    with join(daemon, region) as peer:
        assert "disconnected peer 0" in ctl("disconnect", region, 0, "--yes")
        peer.until_eof()


def test_disconnect_of_guest_says_that_it_takes_a_restart(ctl: Ctl, daemon: Daemon, region: str) -> None:
    with guest(daemon, region, "guest1"):
        said = ctl.refused("disconnect", region, "guest1")
        assert f'guest1, peer 0 of region "{region}", is a peer again when it restarts; to disconnect it' in said


# Regions


def test_create_with_every_option(ctl: Ctl, daemon: Daemon) -> None:
    path, memory = daemon.directory / "own", daemon.directory / "memory"
    given = f"--size 1M --vectors 2 --socket {path} --owner {os.getuid()} --group {os.getgid()} --mode 0600"
    given += f" --backing file:{memory} --first-id 5 --no-host-peer --max-peers 9 --stall-timeout 2min"
    made = ctl.json("create", "full", *given.split(), "--set", "many-vectors=true", "--json")
    assert made["name"] == "full"
    assert (made["size"], made["vectors"], made["socket"], made["mode"]) == (1 << 20, 2, str(path), "0600")
    assert (made["backing"], made["first-id"], made["max-peers"]) == (f"file:{memory}", 5, 9)
    assert (made["host-peer"], made["stall-timeout"], made["many-vectors"]) == (False, 120.0, True)
    assert "no host peer" in ctl.refused("notify", "full", "host", 0)
    assert ctl("remove", "full") == "removed region full\n"
    assert not path.exists()
    assert memory.exists()
    peers = 'peer=[{match={vm="nobody*"}, id=7}]'
    assert "made region ruled" in ctl("create", "ruled", "--host-peer-id", 9, "--set", peers, "--set", "mode=0640")
    assert ctl.json("remove", "ruled", "--json") == {"name": "ruled", "disconnected": 0}


def test_whoever_made_a_directory_removes_it(short_path: Path) -> None:
    with Daemon(short_path) as daemon:
        ctl, outside = Ctl(daemon.bus), short_path / "outside"
        before = sorted(os.listdir(daemon.runtime))
        ctl("create", "tmp")
        ctl("create", "far", "--socket", outside / "deep" / "socket")
        ctl("create-device", "loop", "loopback")
        assert sorted(os.listdir(daemon.runtime)) == sorted([*before, "tmp", "loop"])
        for name in ("tmp", "far", "loop"):
            ctl("remove", name)
        ctl("selftest")
        ctl("bench", "--seconds", 0.1)
        assert "reserve huge pages" in ctl.refused("create", "bad", "--backing", "hugetlb", "--size", "1024G")
        assert sorted(os.listdir(daemon.runtime)) == before
        assert not outside.exists()


def test_second_daemon_that_fails_leaves_no_directory(short_path: Path) -> None:
    with Daemon(short_path) as daemon:
        before = sorted(os.listdir(daemon.runtime))
        daemon.write_config("[region.other]\n[region.demo]\n")
        for bus in ("private", daemon.bus):
            command = [BIN / "doorbelld", "--config", daemon.config, "--bus", bus]
            done = subprocess.run(command, capture_output=True, timeout=DEADLINE, check=False)
            assert done.returncode in (os.EX_CANTCREAT, os.EX_UNAVAILABLE), done.stderr
            assert sorted(os.listdir(daemon.runtime)) == before


def test_create_lists_all_that_is_wrong(ctl: Ctl) -> None:
    said = ctl.refused("create", "bad", "--size", "3M", "--vectors", 65)
    assert "size: 3M is not a power of two (QEMU needs one); use 4M" in said
    assert "vectors: 65 is more than the 64" in said
    assert "no KEY=VALUE" in ctl.refused("create", "bad", "--set", "size", status=2)
    assert "can't go over D-Bus" in ctl.refused("create", "bad", "--set", "size=2026-01-01")


def test_remove_asks_before_it_disconnects(ctl: Ctl, daemon: Daemon, region: str) -> None:
    with join(daemon, region) as peer:
        said = ctl.refused("remove", region)
        assert f"(pid {os.getpid()}) connected" in said
        assert "add --yes" in said
        status, asked = ctl.on_terminal("remove", region, answer="n\n")
        assert (status, "stays" in asked) == (1, True)
        assert region in ctl()
        status, asked = ctl.on_terminal("remove", region, answer="y\n")
        assert (status, f"removed region {region}" in asked) == (0, True)
        peer.until_eof()


def test_remove_with_yes(ctl: Ctl, daemon: Daemon, region: str) -> None:
    with join(daemon, region) as peer:
        assert ctl.json("remove", region, "--yes", "--json") == {"name": region, "disconnected": 1}
        peer.until_eof()


def test_reload(short_path: Path) -> None:
    with Daemon(short_path) as daemon:
        ctl = Ctl(daemon.bus)
        daemon.write_config("[region.demo]\n[region.more]\n")
        assert ctl("reload") == "configuration reloaded: made region more\n"
        daemon.write_config("[region.demo]\nsize = 3\n")
        assert f"{daemon.config}:4: region.demo.size" in ctl.refused("reload")
        daemon.write_config("[region.demo]\n")
        done = {"made": [], "removed": ["region more"], "changed": []}
        assert ctl.json("reload", "--json") == {"regions": ["demo"], **NOTHING_ELSE, **done}
        assert ctl("reload") == "configuration reloaded: nothing changed\n"
        more = "[device.loop]\ntype = 'loopback'\n[flat.mcu]\nsocket = '/x'\n"
        daemon.write_config(f"[region.demo]\nmode = '0600'\n{more}")
        with Monitor(ctl, "--json") as monitor:
            assert monitor.event()["event"] == "watching"
            said = ctl("reload")
            assert said == "configuration reloaded: made device loop, flat device mcu; changed region demo\n"
            assert "device loop, flat mcu" in daemon.log, "the log says so too"
            while (event := monitor.event())["event"] != "configuration-reloaded":
                pass
            assert event == {
                "event": "configuration-reloaded",
                "made": ["device loop", "flat mcu"],
                "removed": [],
                "changed": ["region demo"],
            }


RULES = """
[region.demo]
max-peers = 3
relay = true
relay-rate = 5000
[[region.demo.peer]]
match = { vm = "guest*", uid = 4242 }
id = 7
may-ring = ["host", "8"]
[[region.demo.peer]]
match = { unit = "worker.service" }
[[region.demo.peer]]
match = { uid = UID }
[region.open]
"""


def test_rules_say_who_may_come_and_ring_whom_and_why_not(short_path: Path) -> None:
    with Daemon(short_path, RULES.replace("UID", str(os.getuid()))) as daemon:
        ctl = Ctl(daemon.bus)
        said = ctl("status", "demo", "-n", 0)
        assert re.search(
            r"Relay: on: rings pass the daemon, at most 5,000 deliveries a second of each pair$", said, re.M
        )
        assert re.search(r"Rules: 3 rules .*: doorbellctl rules demo$", said, re.M)
        said = ctl("status", "open", "-n", 0)
        assert "Relay: off: " in said and "Rules: none: " in said
        rows = ctl("rules", "demo").splitlines()
        assert rows[1].split() == ["1", "vm=guest*,", "uid=4242", "7", "host,", "8", "-"]
        assert "open has no rules" in ctl("rules", "open")
        yes = ctl("rules", "demo", "--vm", "guest1", "--uid", 4242)
        assert yes == "admitted: rule 1 gives ID 7; may ring host, 8\n"
        assert ctl("rules", "demo", "--unit", "worker.service") == "admitted: rule 2 gives a free ID; may ring *\n"
        done = ctl.run("rules", "demo", "--vm", "other", "--uid", 4242)
        assert (done.returncode, done.stdout.decode().splitlines()) == (
            1,
            [
                "refused: no rule of demo matches; add a [[region.demo.peer]]",
                "rule 1 wants vm guest*",
                "rule 2 wants unit worker.service",
                f"rule 3 wants uid {os.getuid()}",
            ],
        )
        assert ctl.json("rules", "open", "--vm", "x", "--json")["admitted"] is True
        peers = [join(daemon, "demo") for _ in range(3)]
        assert "demo is full, max-peers is 3" in ctl.run("rules", "demo", "--uid", os.getuid()).stdout.decode()
        with socket.socket(socket.AF_UNIX) as late:
            late.connect(str(daemon.socket("demo")))
            late.settimeout(DEADLINE)
            assert late.recv(1) == b"", "it is refused"
        eventually_refused = ctl("rules", "demo")
        assert "Refused lately:" in eventually_refused and "raise max-peers" in eventually_refused
        for peer in peers:
            peer.close()
        assert "is not known on this host" in ctl.refused("rules", "demo", "--uid", "nobody-of-that-name", status=2)


def test_the_configuration_of_a_daemon_that_was_given_a_file_is_that_file(short_path: Path) -> None:
    with Daemon(short_path) as daemon:
        ctl = Ctl(daemon.bus)
        assert ctl("cat-config").startswith(f"# {daemon.config}\n")
        assert f'runtime-directory = "{daemon.runtime}"' in ctl("cat-config", "--effective")
        assert "no configuration in" in ctl("cat-config", "--root", short_path / "run")


# Memory


def test_write_and_read(ctl: Ctl, region: str) -> None:
    assert "wrote 5 bytes at 16" in ctl("write", region, "0x10", "hello")
    assert ctl.json("write", region, 64, "de ad be ef", "--hex", "--json")["length"] == 4
    dump = ctl("read", region, 0, "0x60").splitlines()
    assert dump[0].startswith("00000000  00 00")
    assert dump[1].startswith("00000010  68 65 6c 6c 6f 00")
    assert dump[1].endswith("|hello...........|")
    assert dump[4].startswith("00000040  de ad be ef 00")
    assert dump[-1] == "00000060"
    assert ctl("read", region, 16, 5, "--raw") == "hello"
    assert ctl.json("read", region, 64, 4, "--json") == {"region": region, "offset": 64, "length": 4, "hex": "deadbeef"}
    assert ctl("read", region, "64K", 0, "--raw") == ""
    assert "*" in ctl("read", region, "1K", 64).splitlines()
    said = ctl.refused("write", region, 0, "xy", "--hex", status=2)
    assert "'xy' is not hexadecimal; write two digits for each byte, such as 'de ad be ef'" in said
    assert "fromhex" not in said, "that is Python's business"
    assert "is no number" in ctl.refused("read", region, "x", 1, status=2)


def test_more_than_one_message_takes(ctl: Ctl) -> None:
    data = os.urandom((2 << 20) + 3)
    assert ctl.feed(data, "write", "demo", 4096, "-").returncode == 0
    assert ctl.run("read", "demo", 4096, len(data), "--raw").stdout == data


# Guests


def test_qemu_arguments_for_a_pipe_are_one_line(ctl: Ctl, daemon: Daemon, region: str) -> None:
    line = ctl("qemu-args", region, "--check")
    assert line.count("\n") == 1
    assert shlex.split(line) == [
        "-chardev",
        f"socket,path={daemon.socket(region)},id=iv{region}",
        "-device",
        f"ivshmem-doorbell,chardev=iv{region},vectors=3",
    ]
    assert ctl.json("qemu-args", region, "--json")["arguments"] == shlex.split(line)
    assert shlex.split(ctl("qemu-args", region, "--all"))[0] == "qemu-system-x86_64"
    done = ctl.run("qemu-args", region, "--vectors", 2)
    assert b"vectors=2" in done.stdout
    assert b"note: the region gives each peer 3 vectors" in done.stderr
    assert "\\\r\n  -device" in ctl.on_terminal("qemu-args", region)[1]


def test_qemu_arguments_without_a_name_are_those_of_all(ctl: Ctl, daemon: Daemon, region: str) -> None:
    said = ctl("qemu-args")
    assert [str(daemon.socket(name)) in said for name in ("demo", region)] == [True, True]
    assert "no region and no device" in ctl.refused("qemu-args", "--kind", "device")


def test_qemu_arguments_that_would_not_work_are_refused(ctl: Ctl, daemon: Daemon, region: str) -> None:
    assert "backing shm:NAME" in ctl.refused("qemu-args", region, "--device", "plain")
    assert "backing shm:NAME" in ctl.refused("libvirt-xml", region, "--device", "plain")
    daemon.socket(region).unlink()
    assert "No such file" in ctl.refused("qemu-args", region, "--check")
    daemon.socket(region).write_text("")
    assert "it is no socket" in ctl.refused("libvirt-xml", region, "--check")
    daemon.socket(region).unlink()


def test_libvirt_xml(ctl: Ctl, daemon: Daemon, region: str) -> None:
    shmem = ET.fromstring(ctl("libvirt-xml", region))
    assert shmem.tag == "shmem"
    server = shmem.find("server")
    assert server is not None
    assert server.get("path") == str(daemon.socket(region))
    assert ET.fromstring(ctl.json("libvirt-xml", region, "--json")["xml"]).get("name") == region


# The self-test


@pytest.mark.parametrize("library", ["dbus_fast", "dbus_next"])
def test_selftest_with_both_libraries(ctl: Ctl, library: str) -> None:
    pytest.importorskip(library)
    said = ctl("selftest", DOORBELLD_DBUS_LIBRARY=library)
    assert len(re.findall("^ok ", said, re.M)) == 11
    assert "Everything works." in said
    assert "requests came back right" in said
    known = ctl.json("describe")
    assert (known["regions"].keys(), known["devices"]) == ({"demo"}, {})


def test_selftest_in_a_region_writes_nothing(ctl: Ctl, daemon: Daemon, region: str) -> None:
    ctl("write", region, 0, "precious")
    with join(daemon, region):
        result = ctl.json("selftest", region, "--json")
    assert result["ok"]
    assert all(step["ok"] for step in result["steps"])
    assert result["latency"]["ring"]["median_us"] > 0
    assert result["latency"]["notify"]["median_us"] > 0
    assert ctl("read", region, 0, 9, "--raw") == "precious\0"
    assert ctl.json("peers", region, "--json") == []


def test_a_selftest_that_fails_says_where_to_look(ctl: Ctl) -> None:
    ctl("create", "closed", "--set", 'peer=[{match={vm="nobody"}}]')
    try:
        done = ctl.run("selftest", "closed")
        said = done.stdout.decode()
        assert done.returncode == 1
        assert "FAILED  socket: A was turned away" in said
        assert "[[region.closed.peer]]" in said
        result = json.loads(ctl.run("selftest", "closed", "--json").stdout)
        assert (result["ok"], result["steps"][-1]["ok"], result["steps"][-1]["step"]) == (False, False, "socket")
    finally:
        ctl("remove", "closed")
    assert "FAILED  region: no region" in ctl.run("selftest", "nowhere").stdout.decode()


# Watching


def test_monitor_tells_what_happens(ctl: Ctl, daemon: Daemon) -> None:
    with Monitor(ctl, "--json") as monitor:
        assert monitor.event() == {"event": "watching", "regions": ["demo"], "peers": 0, **NOTHING_ELSE}
        ctl("create", "seen", "--size", "64K", "--vectors", "3")
        path = str(daemon.socket("seen"))
        made = {"region": "seen", "size": 65536, "vectors": 3, "socket": path}
        assert monitor.event() == {"event": "region-added", **made}
        with join(daemon, "seen"):
            joined = monitor.event()
            assert (joined["event"], joined["peer"], joined["pid"]) == ("peer-added", 0, os.getpid())
            ctl("notify", "seen", "host", 1)
            assert monitor.event() == {"event": "rung", "region": "seen", "vector": 1, "count": 1}
        left = monitor.event()
        assert (left["event"], left["peer"], "reason" in left) == ("peer-removed", 0, True)
        ctl("remove", "seen")
        assert monitor.event() == {"event": "region-removed", "region": "seen"}
        assert monitor.stop() == 0


def test_monitor_of_one_region_for_people(ctl: Ctl, daemon: Daemon, region: str) -> None:
    with Monitor(ctl, region) as monitor:
        assert f"watching region {region}, 0 peers" in monitor.line()
        ctl("notify", "demo", "host", 0)
        with join(daemon, region):
            assert f"{region}  peer 0 joined: pid {os.getpid()}, uid {os.getuid()}" in monitor.line()
            ctl("disconnect", region, 0, "--yes")
        line = monitor.line()
        assert re.match(r"\d\d:\d\d:\d\d\.\d{3}  ", line)
        assert line.endswith("peer 0 left: disconnected over D-Bus")
        assert monitor.stop(signal.SIGTERM) == 0
    with Monitor(ctl, "later") as monitor:
        assert "not there yet" in monitor.line()


def test_monitor_outlives_the_daemon_and_its_bus(short_path: Path) -> None:
    daemon = Daemon(short_path).start()
    with Monitor(Ctl(daemon.bus), "--json") as monitor:
        assert monitor.event()["event"] == "watching"
        assert daemon.stop() == 0
        assert monitor.event() == {"event": "daemon-gone"}
        with daemon:
            assert monitor.event() == {"event": "daemon-back", "regions": ["demo"], "peers": 0, **NOTHING_ELSE}
            with RawClient(str(daemon.socket())).greet(4):
                assert monitor.event()["event"] == "peer-added"
            assert monitor.event()["event"] == "peer-removed"
        assert monitor.event() == {"event": "daemon-gone"}


# Which daemon


@pytest.fixture
def elsewhere(ctl: Ctl, short_path: Path) -> Ctl:
    """A doorbellctl that does not find what runs on this host."""
    made = Ctl("auto")
    made.command = ctl_elsewhere(short_path)
    return made


def test_no_daemon_says_where_it_was_looked_for(elsewhere: Ctl, short_path: Path) -> None:
    ctl = elsewhere
    environment = {"DOORBELLD_BUS": "auto", "XDG_RUNTIME_DIR": str(short_path)}
    environment["DBUS_SYSTEM_BUS_ADDRESS"] = f"unix:path={short_path}/system"
    said = ctl.refused(status=69, **environment)
    assert f"unix:path={short_path}/system" in said
    assert f"{short_path}/doorbelld/bus" in said
    assert f"{short_path}/run/bus" in said
    assert f"{short_path}/service/bus" in said
    assert "systemctl start doorbelld" in said
    for words in (["peers", "demo"], ["monitor"], ["selftest"], ["--bus", "system"], ["--bus", "private", "reload"]):
        assert "no doorbelld" in ctl.refused(*words, status=69, **environment)


async def test_a_bus_without_the_daemon(short_path: Path, elsewhere: Ctl) -> None:
    ctl = elsewhere
    bus = PrivateBus(str(short_path))
    address = await bus.ensure()
    try:
        for words in ([], ["monitor"]):
            said = await asyncio.to_thread(ctl.refused, "--bus", address, *words, status=69)
            assert f"nobody owns org.doorbelld.Doorbell1 at {address}, and the bus can't start it" in said
        system = {"DOORBELLD_BUS": "auto", "DBUS_SYSTEM_BUS_ADDRESS": address}
        said = await asyncio.to_thread(ctl.refused, status=69, **system)
        assert "the system bus: there is a message bus, but nobody owns" in said
    finally:
        await bus.stop()


@pytest.mark.parametrize("library", ["dbus_fast", "dbus_next"])
def test_private_bus_of_another_user_says_whose_it_is(daemon: Daemon, ctl: Ctl, library: str) -> None:
    daemon.directory.chmod(0o755)
    environment = {**ctl.environment, "DOORBELLD_DBUS_LIBRARY": library}
    for words, status in (([], 69), (["doctor"], 1)):
        command = without_rights(BIN / "doorbellctl", *words)
        done = subprocess.run(command, capture_output=True, env=environment, timeout=DEADLINE, check=False, text=True)
        assert done.returncode == status, done.stderr
        whose = f"{daemon.bus}: that bus is root's and does not take uid {NOBODY}"
        if words:
            assert f"WRONG  daemon: {whose}\n       cure: ask as root\n" in done.stdout
            assert done.stdout.count("WRONG") == 1
        else:
            assert done.stderr == f"doorbellctl: {whose}; ask as root\n"


def test_a_pipe_that_closes_ends_it_quietly(ctl: Ctl) -> None:
    for words in ("read demo 0 1M", "describe"):
        script = f"{BIN}/doorbellctl {words} | read -r line"
        done = subprocess.run(["bash", "-c", script], capture_output=True, env=ctl.environment, timeout=DEADLINE)
        assert done.stderr == b""


def test_the_daemon_is_found_where_it_usually_is(elsewhere: Ctl, daemon: Daemon, short_path: Path) -> None:
    ctl = elsewhere
    nowhere = f"unix:path={short_path}/none"
    (short_path / "doorbelld").symlink_to(daemon.runtime)
    there = {"DOORBELLD_BUS": "auto", "XDG_RUNTIME_DIR": str(short_path), "DBUS_SYSTEM_BUS_ADDRESS": nowhere}
    assert f"on {short_path}/doorbelld/bus" in ctl(**there)
    assert "demo" in ctl("--bus", "private", **there)
    system = {"DOORBELLD_BUS": "auto", "XDG_RUNTIME_DIR": "/nowhere", "DBUS_SYSTEM_BUS_ADDRESS": daemon.bus}
    assert f"on {daemon.runtime}/bus" in ctl(**system)
    assert "demo" in ctl("--bus", "session", DBUS_SESSION_BUS_ADDRESS=daemon.bus)
    assert "demo" in ctl("--bus", daemon.bus, DOORBELLD_BUS="private", XDG_RUNTIME_DIR="/nowhere")


# The command line itself


@pytest.mark.parametrize(
    "words", [["--bus", "nonsense"], ["nofity"], ["notify"], ["notify", "demo", "0", "x"], ["status", "--what"]]
)
def test_a_wrong_command_line_is_status_2(ctl: Ctl, words: list[str]) -> None:
    assert "Usage: doorbellctl" in ctl.refused(*words, status=2)
    assert 'did you mean "notify"?' in ctl.refused("nofity", status=2)
    assert 'did you mean "remove"?' in ctl.refused("remove-region", status=2)


def test_name_typed_as_command_says_what_it_is(ctl: Ctl) -> None:
    said = ctl.refused("demo", status=2)
    assert said.endswith('Error: no command "demo"; demo is a region: doorbellctl status demo\n')
    assert "remove" not in ctl.refused("demo", status=2, DOORBELLD_BUS="unix:path=/nowhere").partition('"; did')[2]


def test_words_that_people_try(ctl: Ctl) -> None:
    assert ctl("list") == ctl()
    assert ctl.json("list", "--json").keys() == ctl.json("--json").keys()
    assert ctl("help") == ctl("--help")
    assert ctl("help", "create") == ctl("create", "--help")
    assert 'did you mean "create"?' in ctl.refused("help", "creat", status=2)
    assert ctl("version") == f"doorbellctl {__version__}\n"
    assert ctl.json("version", "--json") == {"version": __version__}


def test_refusal_with_json_is_json(ctl: Ctl) -> None:
    for words in (["--json", "peers", "nowhere"], ["peers", "nowhere", "--json"]):
        assert json.loads(ctl.refused(*words))["error"].startswith('no region "nowhere"')
    said = json.loads(ctl.refused("--json", status=69, DOORBELLD_BUS="unix:path=/nowhere"))
    assert said["status"] == 69
    assert said["error"].startswith("no doorbelld: ")


def test_help(ctl: Ctl) -> None:
    whole = ctl("--help")
    assert whole == ctl("-h")
    assert "Examples:" in whole
    assert "69  there is no daemon" in whole
    assert "..." not in whole.replace("[ARGS]...", "")
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", whole, re.M)
        said = ctl(command, "-h")
        assert said.startswith(f"Usage: doorbellctl {command}")
        assert "\\b" not in said
        assert max(map(len, (whole + said).splitlines())) <= 100
    assert re.search("^    doorbellctl notify demo 0 2  +vector 2 of peer 0$", ctl("notify", "-h"), re.M)
    assert ctl("--version") == f"doorbellctl {__version__}\n"


def complete(ctl: Ctl, *words: str, **environment: str) -> list[str]:
    typed = " ".join(["doorbellctl", *words])
    asked = {"_DOORBELLCTL_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(len(words))}
    done = ctl.run(**asked, **environment)
    assert done.stderr == b""
    return [line.partition(",")[2] for line in done.stdout.decode().split()]


def test_completion(ctl: Ctl, daemon: Daemon, region: str) -> None:
    assert complete(ctl, "sta") == ["status"]
    assert complete(ctl, "help", "sta") == ["status"]
    assert sorted(complete(ctl, "status", "")) == sorted(["demo", region])
    with join(daemon, region), join(daemon, region):
        assert complete(ctl, "notify", region, "") == ["0", "1"]
        assert complete(ctl, "notify", region, "0", "") == ["0", "1", "2"]
    assert complete(ctl, "status", "", DOORBELLD_BUS="unix:path=/nowhere") == []
    for shell in ("zsh", "fish"):
        assert "_DOORBELLCTL_COMPLETE" in ctl("completion", shell)
    for program in PROGRAMS:
        typed = {"COMP_WORDS": f"{program} --he", "COMP_CWORD": "1"}
        variable = re.search(r"(_[A-Z_]+_COMPLETE)=bash_complete", ctl("completion", "bash", program))
        assert variable
        done = subprocess.run(
            [BIN / program],
            env={**ctl.environment, **typed, variable[1]: "bash_complete"},
            capture_output=True,
            check=True,
        )
        assert done.stdout == b"plain,--help\n"
    script = ctl("completion", "bash")
    assert subprocess.run(["bash", "-n"], input=script.encode(), check=True).returncode == 0


def test_it_starts_without_what_it_does_not_need() -> None:
    code = "import sys, doorbelld.ctl.app; print([m for m in ('asyncio', 'rich', 'dbus_fast', 'dbus_next', 'structlog')"
    done = subprocess.run([sys.executable, "-c", f"{code} if m in sys.modules])"], capture_output=True, check=True)
    assert done.stdout == b"[]\n"


def test_doctor_goes_on_beside_a_file_system_whose_server_is_gone(ctl: Ctl, daemon: Daemon) -> None:
    with HangingFiles(daemon.runtime / "gone") as files:
        files.end_server()
        with pytest.raises(OSError, match="Transport endpoint is not connected"):
            os.stat(files.path())
        findings = json.loads(ctl.run("doctor", "--json").stdout)["findings"]
    assert "stale sockets" in {finding["check"] for finding in findings}
