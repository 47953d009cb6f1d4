# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""doorbellctl where it lasts, reaches far, or looks beyond the daemon: top, wait, doctor, --host, status."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from doorbelld.bus.private import PrivateBus
from support.daemon import BIN, DEADLINE, Daemon
from support.rawclient import RawClient

from .test_ctl import Ctl, complete, ctl, join

__all__ = ["ctl"]  # a fixture

HOST = 65535


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    directory = Path(tempfile.mkdtemp(prefix="db"))
    directory.chmod(0o755)
    with Daemon(directory, '[region.demo]\nmode = "0666"\n') as running:
        yield running
    shutil.rmtree(directory)


@pytest.fixture
def region(request: pytest.FixtureRequest, ctl: Ctl) -> Iterator[str]:
    """A region of the test's own."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[-40:].strip("-")
    ctl("create", name, "--size", "64K", "--vectors", 3, "--mode", "0666")
    yield name
    ctl.run("remove", name, "--yes")


@pytest.fixture
def lasting_bus(short_path: Path) -> Iterator[str]:
    """A bus that stays when the daemon goes."""
    (short_path / "bus").mkdir()
    with asyncio.Runner() as runner:
        bus = PrivateBus(str(short_path / "bus"))
        yield runner.run(bus.ensure())
        runner.run(bus.stop())


class Running:
    """A doorbellctl that lasts; its output is read line by line."""

    def __init__(self, ctl: Ctl, *words: object, **environment: str) -> None:
        self.process = subprocess.Popen(
            [BIN / "doorbellctl", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**ctl.environment, **environment},
        )
        self._rest = {"stdout": b"", "stderr": b""}

    def line(self, stream: str = "stdout") -> str:
        """Wait for the next line of its output, or of its errors."""
        pipe = getattr(self.process, stream)
        while b"\n" not in self._rest[stream]:
            assert select.select([pipe], [], [], DEADLINE)[0], "it says nothing"
            piece = os.read(pipe.fileno(), 4096)
            assert piece, "it ended"
            self._rest[stream] += piece
        line, _, self._rest[stream] = self._rest[stream].partition(b"\n")
        return line.decode()

    def event(self) -> dict[str, Any]:
        """Wait for the next line and read it as JSON."""
        found: dict[str, Any] = json.loads(self.line())
        return found

    def end(self, number: int = signal.SIGINT) -> int:
        """Send it a signal and give its exit status."""
        self.process.send_signal(number)
        return self.status()

    def status(self) -> int:
        """Wait for its end and give its exit status."""
        return self.process.wait(DEADLINE)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def eventually(what: Any) -> Any:
    """Ask again until the answer is true; the deadline is the test's end."""
    until = time.monotonic() + DEADLINE
    while not (answer := what()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return answer


def program(directory: Path, name: str, script: str) -> Path:
    """Put a program there that does what *script* says."""
    directory.mkdir(exist_ok=True)
    place = directory / name
    place.write_text(f"#!/bin/sh\n{script}\n")
    place.chmod(0o755)
    return place


def on_path(directory: Path) -> str:
    return f"{directory}:{os.environ['PATH']}"


# top


def test_top_prints_plain_columns_into_a_pipe(ctl: Ctl, daemon: Daemon, region: str) -> None:
    with join(daemon, region):
        said = ctl("top", "-n", 2, "-d", 0.05)
    assert len(re.findall(r"^\d\d:\d\d:\d\d  doorbelld .*, pid \d+: CPU ", said, re.M)) == 2
    assert f"pid {daemon.pid}: CPU -, memory" in said
    first, second = re.findall(rf"^{region} +1 +0 +(\S+) +- +0 +(\S+) +\S+$", said, re.M)
    assert first == ("-", "-")
    assert second == ("0.0", "0.0")
    assert len(re.findall(rf"^{region} +0 +\(\S+\) +{os.getpid()} +3 +20", said, re.M)) == 2
    assert "\x1b" not in said


def test_top_counts_rings_and_joins(ctl: Ctl, daemon: Daemon, region: str) -> None:
    counted: Counter[str] = Counter()
    with Running(ctl, "top", "--json", "-d", 0.1) as top:
        first = top.event()
        assert (first["event"], first["interval"], first["pid"]) == ("frame", None, daemon.pid)
        assert first["memory"] > 1 << 20
        with RawClient(str(daemon.socket(region)), keep=True) as peer:
            peer.greet(3)
            while HOST not in peer.fds or len(peer.fds[HOST]) < 3:
                assert peer.message() is not None
            for _ in range(40):
                os.write(peer.fds[HOST][2], (1).to_bytes(8, "little"))
        while counted["leaves"] < 1 or counted["rings"] < 40:
            frame = top.event()
            seen, seconds = frame["regions"][region], frame["interval"]
            counted["rings"] += round(seen["rings-per-second"][2] * seconds)
            counted["joins"] += round(seen["joins-per-second"] * seconds)
            counted["leaves"] += round(seen["leaves-per-second"] * seconds)
        assert seen["rings"] == [0, 0, 40]
        assert counted == {"rings": 40, "joins": 1, "leaves": 1}
        assert top.end() == 0


@contextmanager
def terminal(ctl: Ctl, *words: object) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """Run it on a terminal: the process, our end, theirs."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = subprocess.Popen(
        [BIN / "doorbellctl", *map(str, words)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**ctl.environment, "TERM": "xterm-256color"},
        start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, termios.TIOCSCTTY, 0),
    )
    try:
        yield process, ours, theirs
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def read_until(fd: int, mark: bytes) -> bytes:
    seen = b""
    while mark not in seen:
        assert select.select([fd], [], [], DEADLINE)[0], seen
        seen += os.read(fd, 65536)
    return seen


@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_top_gives_the_terminal_back(ctl: Ctl, region: str, key: bytes) -> None:
    with terminal(ctl, "top", "-d", 0.1) as (process, ours, theirs):
        before = termios.tcgetattr(theirs)
        seen = read_until(ours, region.encode())
        assert b"\x1b[?1049h" in seen
        eventually(lambda: not termios.tcgetattr(theirs)[3] & termios.ICANON)
        os.write(ours, key)
        read_until(ours, b"\x1b[?1049l")
        assert process.wait(DEADLINE) == 0
        assert termios.tcgetattr(theirs) == before


def test_top_outlives_the_daemon(short_path: Path, lasting_bus: str) -> None:
    for bus in ("private", lasting_bus):
        daemon = Daemon(short_path, bus=bus).start()
        with Running(Ctl(daemon.bus), "top", "--json", "-d", 0.05) as top:
            assert top.event()["pid"] == daemon.pid
            assert daemon.stop() == 0
            while (event := top.event())["event"] == "frame":
                pass
            assert event["event"] == "daemon-gone"
            with daemon:
                assert top.event()["event"] == "daemon-back"
                assert top.event()["pid"] == daemon.pid
            assert top.end(signal.SIGTERM) == 0


def test_top_on_a_terminal_says_that_the_daemon_is_away(short_path: Path) -> None:
    daemon = Daemon(short_path).start()
    with terminal(Ctl(daemon.bus), "top", "-d", 0.05) as (process, ours, _):
        read_until(ours, b"q quits")
        daemon.stop()
        read_until(ours, b"went away")
        os.write(ours, b"q")
        read_until(ours, b"\x1b[?1049l")
        assert process.wait(DEADLINE) == 0


# wait


def test_wait_ends_with_the_first_ring(ctl: Ctl, region: str) -> None:
    ctl("notify", region, "host", 1)
    with Running(ctl, "wait", region, "--json") as waiting:
        # what was rung before does not count; this is rung until it listens
        eventually(lambda: [ctl("notify", region, "host", 2), waiting.process.poll()][1] is not None)
        assert waiting.status() == 0
        event = waiting.event()
    assert (event["region"], event["vector"]) == (region, 2)
    assert event["count"] >= 1


def test_wait_after_a_total(ctl: Ctl, region: str) -> None:
    for _ in range(3):
        ctl("notify", region, "host", 1)
    assert ctl("wait", region, 1, "--after", 1) == f"{region}: vector 1: 2 rings, 3 in all\n"
    told = ctl.json("wait", region, 1, "--after", 0, "--json")
    assert told == {"region": region, "vector": 1, "count": 3, "total": 3}
    done = ctl.run("wait", region, 1, "--after", 3, "--timeout", "50ms")
    assert (done.returncode, done.stdout) == (124, b"")
    assert b"nobody rang in 0.05 s" in done.stderr
    assert ctl.run("wait", region, 1, "--after", 0, "--count", 4, "--timeout", "50ms").returncode == 124
    assert "3 rings" in ctl("wait", region, 1, "--after", 0, "--count", 3)


def test_wait_runs_a_command(ctl: Ctl, region: str) -> None:
    ctl("notify", region, "host", 0)
    words = ["wait", region, 0, "--after", 0, "--exec"]
    command = "echo $DOORBELLD_REGION $DOORBELLD_VECTOR $DOORBELLD_COUNT $DOORBELLD_TOTAL"
    assert ctl(*words, command) == f"{region} 0 1 1\n"
    assert ctl.run(*words, "exit 7").returncode == 7
    assert ctl.run(*words, "kill -9 $$").returncode == 128 + signal.SIGKILL


def test_wait_for_ever_loses_no_ring(ctl: Ctl, daemon: Daemon, region: str, tmp_path: Path) -> None:
    told = tmp_path / "told"
    command = f"echo $DOORBELLD_VECTOR $DOORBELLD_COUNT >> {told}"
    with RawClient(str(daemon.socket(region)), keep=True) as peer:
        peer.greet(3)
        while HOST not in peer.fds or len(peer.fds[HOST]) < 3:
            assert peer.message() is not None

        def ring(vector: int, count: int) -> None:
            for _ in range(count):
                os.write(peer.fds[HOST][vector], (1).to_bytes(8, "little"))

        def sums() -> dict[int, int]:
            counts: Counter[int] = Counter()
            for line in told.read_text().splitlines() if told.exists() else ():
                vector, count = line.split()
                counts[int(vector)] += int(count)
            return counts

        with Running(ctl, "wait", region, "--forever", "--exec", command) as waiting:
            eventually(lambda: [ring(0, 1), sums()][1])
            rung = ctl.json("describe")["regions"][region]["host-rings"][0]
            base = eventually(lambda: sums() if sums()[0] <= rung else None)
            for _ in range(30):
                ring(1, 7)
                ring(2, 3)
                ctl.run("--version")  # let commands run in between
            eventually(lambda: sums()[1] == 210 and sums()[2] == 90)
            assert base[1] == base[2] == 0
            assert waiting.end(signal.SIGTERM) == 128 + signal.SIGTERM


def test_a_command_that_fails_does_not_end_it(ctl: Ctl, region: str) -> None:
    ctl("notify", region, "host", 0)
    with Running(ctl, "wait", region, 0, "--after", 0, "--forever", "--exec", "exit 3") as waiting:
        assert "exit 3: ended with status 3; waiting on" in waiting.line("stderr")
        ctl("notify", region, "host", 0)
        assert "ended with status 3" in waiting.line("stderr")
        assert waiting.end() == 128 + signal.SIGINT


def test_a_command_that_runs_ends_with_it(ctl: Ctl, region: str) -> None:
    ctl("notify", region, "host", 0)
    with Running(ctl, "wait", region, 0, "--after", 0, "--exec", "echo $$; exec sleep 600") as waiting:
        pid = int(waiting.line())
        assert waiting.end(signal.SIGTERM) == 128 + signal.SIGTERM
        assert not Path(f"/proc/{pid}").exists()


def test_wait_outlives_the_daemon(short_path: Path, lasting_bus: str) -> None:
    for bus in ("private", lasting_bus):
        daemon = Daemon(short_path, bus=bus).start()
        ctl = Ctl(daemon.bus)
        for _ in range(3):
            ctl("notify", "demo", "host", 1)
        with Running(ctl, "wait", "demo", 1, "--after", 0, "--forever", "--json") as waiting:
            assert waiting.event()["count"] == 3
            assert daemon.stop() == 0
            assert "went away; waiting for it" in waiting.line("stderr")
            with daemon:
                for total in (1, 2):  # this daemon starts from nothing, so its total does, too
                    ctl("notify", "demo", "host", 1)
                    event = waiting.event()
                    assert (event["count"], event["total"]) == (1, total)
            assert waiting.end() == 128 + signal.SIGINT


def test_a_region_that_is_removed_ends_it(ctl: Ctl) -> None:
    ctl("create", "brief", "--size", "64K")
    ctl("notify", "brief", "host", 0)
    with Running(ctl, "wait", "brief", 0, "--after", 0, "--forever") as waiting:
        waiting.line()
        ctl("remove", "brief")
        assert 'region "brief" was removed' in waiting.line("stderr")
        assert waiting.status() == 1


def test_what_can_not_be_waited_for(ctl: Ctl, region: str) -> None:
    assert 'no region "nowhere"' in ctl.refused("wait", "nowhere")
    assert "has vectors 0 to 2, not 3" in ctl.refused("wait", region, 3)
    assert "name the VECTOR" in ctl.refused("wait", region, "--after", 1, status=2)
    assert "is not a duration" in ctl.refused("wait", region, "--timeout", "soon", status=2)
    ctl("create", "mute", "--no-host-peer")
    try:
        assert "has no host peer" in ctl.refused("wait", "mute")
    finally:
        ctl("remove", "mute")
    assert "no doorbelld" in ctl.refused("wait", "demo", status=69, DOORBELLD_BUS="unix:path=/nowhere")
    assert "no doorbelld" in ctl.refused("top", status=69, DOORBELLD_BUS="unix:path=/nowhere")


# doctor


def findings(done: subprocess.CompletedProcess[bytes]) -> dict[str, list[dict[str, str]]]:
    by_check: dict[str, list[dict[str, str]]] = {}
    for finding in json.loads(done.stdout)["findings"]:
        by_check.setdefault(finding["check"], []).append(finding)
    return by_check


def test_doctor_finds_nothing_wrong(ctl: Ctl, daemon: Daemon) -> None:
    done = ctl.run("doctor", "--json")
    found = findings(done)
    assert found["daemon"][0]["level"] == "ok"
    assert f"pid {daemon.pid}" in found["daemon"][0]["found"]
    assert [finding["level"] for finding in found["sockets"]] == ["ok"]
    assert found["bus policy"][0]["level"] == "skipped"
    assert json.loads(done.stdout)["ok"]
    said = ctl("doctor", "--all")
    assert "Nothing is wrong" in said
    assert re.search("^ok     sockets: region", said, re.M)
    assert re.search("^-      bus policy: ", said, re.M)
    assert not re.search("^- ", ctl("doctor"), re.M)


def test_doctor_finds_what_is_wrong(ctl: Ctl, daemon: Daemon, region: str) -> None:
    path = daemon.socket(region)
    path.unlink()
    stale = daemon.runtime / "gone/socket"
    stale.parent.mkdir()
    code = f"import socket; socket.socket(1).bind({str(stale)!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    words = [
        "-chardev",
        f"socket,path={daemon.socket('demo')},id=iv",
        "-device",
        "ivshmem-doorbell,chardev=iv,vectors=2",
    ]
    command = ["qemu-system-x86_64", "-c", "input()", "-name", "guest=odd", *words]
    with subprocess.Popen(command, executable=sys.executable, stdin=subprocess.PIPE) as guest:
        try:
            done = eventually(lambda: _with(ctl.run("doctor", "--json"), "odd"))
            said = ctl.run("doctor")
        finally:
            guest.communicate(b"\n")
    found = findings(done)
    assert done.returncode == said.returncode == 1
    assert f"{path} is not there" in found["sockets"][-1]["found"]
    assert f"rm {stale}" in found["stale sockets"][0]["cure"]
    (odd,) = [finding for finding in found["guests"] if "odd" in finding["found"]]
    assert (odd["level"], "vectors=4" in odd["cure"]) == ("wrong", True)
    assert b"2 things wrong" in said.stdout
    assert b"       cure: " in said.stdout
    shutil.rmtree(stale.parent)


def _with(done: subprocess.CompletedProcess[bytes], word: str) -> subprocess.CompletedProcess[bytes] | None:
    return done if word in done.stdout.decode() else None


def test_doctor_without_a_daemon(ctl: Ctl, tmp_path: Path) -> None:
    unit = "LoadState=loaded\\nActiveState=failed\\nSubState=failed\\nResult=watchdog\\n"
    program(tmp_path, "systemctl", f'printf "{unit}"')
    done = ctl.run("doctor", "--json", DOORBELLD_BUS="unix:path=/nowhere", PATH=on_path(tmp_path))
    found = findings(done)
    assert done.returncode == 1
    assert "/nowhere" in found["daemon"][0]["found"]
    assert "systemctl start doorbelld" in found["daemon"][0]["cure"]
    assert "failed (watchdog)" in found["unit"][0]["found"]
    assert done.stderr == b""


# --host

_SSH = """\
printf '%s\\n' "$@" >> {log}
for last; do :; done
PATH={bin}:$PATH
export PATH
eval "exec $last"
"""


class Far(Ctl):
    """doorbellctl for "another host", which a false ssh reaches."""

    def __init__(self, bus: str, directory: Path) -> None:
        super().__init__(bus)
        self.log = directory / "log"
        self.environment["DOORBELLD_SSH"] = str(program(directory, "ssh", _SSH.format(log=self.log, bin=BIN)))

    def words(self) -> list[str]:
        """Give what ssh was last called with, and forget it."""
        words = self.log.read_text().splitlines()
        self.log.unlink()
        return words


@pytest.fixture
def far(daemon: Daemon, tmp_path: Path) -> Far:
    return Far(daemon.bus, tmp_path)


def test_a_command_on_another_host(ctl: Ctl, far: Far, region: str) -> None:
    assert far("-H", "me@there") == ctl()
    assert far.words() == ["-T", "--", "me@there", "doorbellctl"]
    assert far.json("--host", "there", "--json", "peers", region) == []
    assert far.words() == ["-T", "--", "there", f"doorbellctl --json peers {region}"]
    assert "wrote 9 bytes" in far("-H", "there", "write", region, 0, "it's $x;\\")
    assert ctl("read", region, 0, 9, "--raw") == "it's $x;\\"
    assert far("-H", "there", "status", "--help") == ctl("status", "--help")


def test_input_and_status_go_through(far: Far, ctl: Ctl, region: str) -> None:
    assert far.feed(b"from afar", "-H", "there", "write", region, 0, "-").returncode == 0
    assert ctl("read", region, 0, 9, "--raw") == "from afar"
    assert 'no region "nowhere"' in far.refused("-H", "there", "peers", "nowhere", status=1)
    assert "Usage" in far.refused("-H", "there", "notify", status=2)
    assert 'did you mean "notify"?' in far.refused("-H", "there", "nofity", status=2)


def test_only_a_bus_that_was_typed_goes_along(far: Far, daemon: Daemon) -> None:
    far("--bus", daemon.bus, "-H", "there", "peers", "demo")
    assert far.words()[-1] == f"doorbellctl --bus {daemon.bus} peers demo"
    assert "is no bus" in far.refused("--bus", "nonsense", "-H", "there", status=2)
    assert not far.log.exists()


def test_a_terminal_goes_along(far: Far) -> None:
    status, said = far.on_terminal("-H", "there", "status", "demo")
    assert (status, "Region" in said) == (0, True)
    assert far.words()[:2] == ["-t", "--"]


def test_a_host_that_can_not_be_reached(far: Far, tmp_path: Path) -> None:
    broken = str(program(tmp_path / "broken", "ssh", "exit 255"))
    said = far.refused("-H", "there", status=69, DOORBELLD_SSH=broken)
    assert f"make sure that this works: {broken} -T -- there true" in said
    absent = str(program(tmp_path / "absent", "ssh", "exit 127"))
    assert "install doorbelld on it" in far.refused("-H", "there", status=69, DOORBELLD_SSH=absent)
    assert "name another program" in far.refused("-H", "there", status=69, DOORBELLD_SSH="/nowhere/ssh")
    assert "is no host" in far.refused("-H", "-oProxyCommand=x", status=2)


def test_signals_reach_the_other_side(far: Far, region: str, ctl: Ctl) -> None:
    ctl("notify", region, "host", 0)
    with Running(far, "-H", "there", "wait", region, 0, "--after", 0, "--forever") as waiting:
        assert "1 ring" in waiting.line()
        assert waiting.end(signal.SIGTERM) == 128 + signal.SIGTERM


# status


def test_status_of_the_daemon(ctl: Ctl, daemon: Daemon, tmp_path: Path) -> None:
    said = ctl("status")
    for words in (f"Process: {daemon.pid}, up ", daemon.bus, "dbus-", "Serves: 1 region, 0 peers", "Descriptors: "):
        assert words in said
    assert "Unit" not in said
    found = ctl.json("status", "--json")
    assert (found["pid"], found["regions"], found["unit"], found["bus"]) == (daemon.pid, 1, {}, daemon.bus)
    assert 0 <= found["uptime"] < 3600
    unit = f"LoadState=loaded\\nActiveState=active\\nSubState=running\\nMainPID={daemon.pid}\\nUnitFileState=enabled\\n"
    program(tmp_path, "systemctl", f'printf "{unit}"')
    assert "Unit: doorbelld.service, active (running) (enabled)" in ctl("status", PATH=on_path(tmp_path))
    program(tmp_path, "systemctl", 'printf "LoadState=loaded\\nMainPID=1\\n"')
    assert "Unit" not in ctl("status", PATH=on_path(tmp_path))


def test_status_with_the_journals_last_lines(ctl: Ctl, daemon: Daemon, tmp_path: Path) -> None:
    program(tmp_path, "journalctl", 'echo "journal: $*"')
    path = {"PATH": on_path(tmp_path)}
    last = f"journal: _PID={daemon.pid} DOORBELLD_REGION=demo -n 10 --no-pager -q"
    assert ctl("status", "demo", **path).splitlines()[-1] == last
    assert ctl.json("status", "demo", "--json", **path)["journal"] == [last]
    assert "-n 3 " in ctl("status", "demo", "--lines", 3, **path)
    assert "journal" not in ctl("status", "demo", "-n", 0, **path)
    assert f"journal: _PID={daemon.pid} -n 10" in ctl("status", **path)
    system = {"DOORBELLD_BUS": "system", "DBUS_SYSTEM_BUS_ADDRESS": daemon.bus, **path}
    assert "journal: -u doorbelld DOORBELLD_REGION=demo -n 10" in ctl("status", "demo", **system)
    program(tmp_path, "journalctl", "exit 1")
    assert ctl.json("status", "demo", "--json", **path)["journal"] == []


def test_status_of_a_unit_that_failed(ctl: Ctl, tmp_path: Path) -> None:
    unit = "LoadState=loaded\\nActiveState=failed\\nSubState=failed\\nResult=exit-code\\nFragmentPath=/lib/unit\\n"
    program(tmp_path, "systemctl", f'printf "{unit}"')
    program(tmp_path, "journalctl", "echo last words")
    done = ctl.run("status", DOORBELLD_BUS="unix:path=/nowhere", PATH=on_path(tmp_path))
    assert done.returncode == 69
    assert done.stdout == b"Unit: doorbelld.service, failed (failed, exit-code) (/lib/unit)\n\nlast words\n"
    assert b"systemctl start doorbelld" in done.stderr


# Completion


def test_new_commands_are_completed(ctl: Ctl, far: Far, region: str) -> None:
    assert complete(ctl, "wa") == ["wait"]
    assert sorted(complete(ctl, "wait", "")) == sorted(["demo", region])
    assert complete(ctl, "wait", region, "") == ["0", "1", "2"]
    assert complete(ctl, "wait", "nowhere", "") == []
    assert complete(ctl, "wait", region, "--f") == ["--forever"]
    assert complete(ctl, "top", "--it") == ["--iterations"]
    assert complete(ctl, "doctor", "--a") == ["--all"]
    assert complete(ctl, "status", region[:5]) == [region]
    assert sorted(complete(far, "-H", "there", "status", "")) == sorted(["demo", region])
    assert far.words()[:6] == ["-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=1", "--"]
    assert complete(far, "-H", "there", "status", "", DOORBELLD_SSH="/nowhere/ssh") == []


def test_bash_completes(ctl: Ctl, region: str, tmp_path: Path) -> None:
    (tmp_path / "script").write_text(ctl("completion", "bash"))
    ask = f"""
        source {tmp_path}/script
        COMP_WORDS=(doorbellctl wait {region} ''); COMP_CWORD=3
        function=$(complete -p doorbellctl | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        $function doorbellctl; echo "${{COMPREPLY[@]}}"
    """
    environment = {**ctl.environment, "PATH": on_path(BIN)}
    done = subprocess.run(["bash", "-c", ask], capture_output=True, env=environment, timeout=DEADLINE, check=True)
    assert done.stdout.decode().split() == ["0", "1", "2"]
    assert done.stderr == b""


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_can_read_their_scripts(ctl: Ctl, shell: str) -> None:
    script = ctl("completion", shell)
    assert "doorbellctl" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script.encode(), check=True, timeout=DEADLINE)
