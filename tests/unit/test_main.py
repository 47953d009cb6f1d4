# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The program as a user starts it: what it says, how it ends, and with which status."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from doorbelld.config.loader import Config, DaemonSpec
from doorbelld.main import _at_home
from support.busctl import Busctl
from support.daemon import BIN, Daemon
from support.needs import require
from support.rawclient import RawClient

DEADLINE = 30.0
LIBRARIES = ("dbus_next", "dbus_fast")


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run doorbelld to its end."""
    return subprocess.run(
        [BIN / "doorbelld", *map(str, arguments)],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that has no event of its own to wait for."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.005)


@pytest.fixture
def config(short_path: Path) -> Callable[[str], Path]:
    def write(regions: str) -> Path:
        file = short_path / "doorbelld.toml"
        file.write_text(f'[daemon]\nruntime-directory = "{short_path}/run"\n{regions}')
        return file

    return write


Write = Callable[[str], Path]


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_tells_options_and_exit_statuses(flag: str) -> None:
    done = run(flag)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("--config", "--bus", "--check", "--log-level", "SIGHUP", "  0 ", "  2 ", "  69 ", "  73 ", "  78 "):
        assert word in done.stdout


def test_version_and_module() -> None:
    assert run("--version").stdout.startswith("doorbelld 0.")
    said = subprocess.run([sys.executable, "-m", "doorbelld", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == run("--version").stdout


@pytest.mark.parametrize("arguments", [("--wrong",), ("--log-level", "loud"), ("extra",), ("--config",)])
def test_a_wrong_command_line_is_2(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "Error: " in done.stderr


def test_check_of_a_good_configuration_is_0_and_does_nothing(config: Write, short_path: Path) -> None:
    done = run("--check", "--config", config("[region.a]\n[region.b]\n"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{short_path}/doorbelld.toml: fine; 2 regions\n"
    assert not (short_path / "run").exists()
    file = config('[client.a]\nsocket = "/s"\n[client.b]\nsocket = "/s"\n[flat.a]\nsocket = "/s"\n')
    done = run("--check", "--config", file)
    assert done.stdout == f"{short_path}/doorbelld.toml: fine; 0 regions, 2 clients, 1 flat device\n"


def test_the_check_warns_of_an_image_that_is_not_there(config: Write, short_path: Path) -> None:
    file = config(f"[device.d]\ntype = 'blk'\npath = '{short_path}/the image'\n")
    done = run("--check", "--config", file)
    assert (done.returncode, done.stdout) == (0, f"{file}: fine; 0 regions, 1 device\n")
    cause = f"image {short_path}/the image: No such file or directory"
    cure = f"make it, for example: truncate -s 10G '{short_path}/the image'"
    assert done.stderr == f"warning: {file}:5: device.d.path: {cause}; {cure}\n"
    (short_path / "the image").write_bytes(bytes(512))
    assert run("--check", "--config", file).stderr == ""


@pytest.mark.parametrize("check", [["--check"], []])
def test_a_wrong_configuration_is_78_with_every_problem(config: Write, short_path: Path, check: list[str]) -> None:
    file = config('[region.a]\nsize = "3M"\n[region.b]\ncolour = "red"\n')
    done = run(*check, "--config", file, "--bus", "private")
    assert done.returncode == 78
    lines = done.stderr.splitlines()
    assert [line.split(": ")[0] for line in lines[:2]] == [f"{file}:4", f"{file}:6"]
    assert lines[2:] == ["2 problems in the configuration"]
    assert not (short_path / "run").exists()


def test_a_configuration_that_is_not_there_is_78(short_path: Path) -> None:
    done = run("--config", short_path / "none")
    assert done.returncode == 78
    assert "No such file" in done.stderr


def test_a_region_that_can_not_be_made_is_73_and_nothing_is_left(config: Write, short_path: Path) -> None:
    (short_path / "in-the-way").write_text("mine")
    file = config(
        f"""
        [region.good]
        [region.blocked]
        socket = "{short_path}/in-the-way"
        backing = "file:{short_path}/memory"
        [region.homeless]
        backing = "file:{short_path}/no/such/folder"
        [region.below-a-file]
        socket = "{short_path}/in-the-way/socket"
        """
    )
    done = run("--config", file, "--bus", "private")
    assert done.returncode == 73
    for region, cure in (
        ("blocked", "remove it or choose another socket path"),
        ("homeless", "make its directory"),
        ("below-a-file", "choose another socket path"),
    ):
        (line,) = [line for line in done.stderr.splitlines() if f"region={region}" in line]
        assert cure in line
    assert "Traceback" not in done.stderr
    assert [path for path in (short_path / "run").rglob("*") if not path.is_dir()] == []
    assert (short_path / "in-the-way").read_text() == "mine"
    assert not (short_path / "memory").exists()


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("bus", "words"),
    [
        ("nonsense", "use system, session, private or an address"),
        ("unix:path=/no/such/bus", "No such file"),
        ("smoke:signals=yes", "smoke"),
        ("session", "use --bus private"),
    ],
)
def test_no_bus_is_69(config: Write, library: str, bus: str, words: str, short_path: Path) -> None:
    done = run(
        *("--config", config("[region.demo]\n"), "--bus", bus),
        DOORBELLD_DBUS_LIBRARY=library,
        DBUS_SESSION_BUS_ADDRESS="",
        XDG_RUNTIME_DIR=str(short_path),
    )
    assert done.returncode == 69, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (short_path / "run" / "demo" / "socket").exists()


@contextmanager
def fake_bus(path: Path, answers: list[bytes]) -> Iterator[tuple[str, threading.Event, threading.Event]]:
    """A bus that takes one connection, gives *answers* by turns, and closes it once the second event is set."""
    reached, leave = threading.Event(), threading.Event()

    def serve() -> None:
        client, _ = listening.accept()
        with client:
            client.settimeout(DEADLINE)
            for answer in answers:
                client.recv(4096)
                client.sendall(answer)
            client.recv(4096)
            reached.set()
            leave.wait(DEADLINE)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.settimeout(DEADLINE)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"unix:path={path}", reached, leave
        finally:
            leave.set()
            thread.join()


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("answers", [[], [b"OK 0123456789abcdef0123456789abcdef\r\n"]], ids=["at once", "later"])
def test_a_bus_that_hangs_up_is_69(config: Write, library: str, answers: list[bytes], short_path: Path) -> None:
    with fake_bus(short_path / "bus", answers) as (address, _, leave):
        leave.set()
        done = run("--config", config(""), "--bus", address, DOORBELLD_DBUS_LIBRARY=library)
    assert done.returncode == 69, done.stderr
    assert "no message bus" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_private_bus_that_can_not_be_is_69(config: Write, short_path: Path) -> None:
    (short_path / "run").touch()
    done = run("--config", config(""), "--bus", "private")
    assert done.returncode == 69
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0_and_nothing_is_left(short_path: Path, number: signal.Signals) -> None:
    require("dbus-daemon", "dbus-daemon")
    daemon = Daemon(short_path).start()
    assert daemon.socket().exists()
    assert daemon.process is not None
    daemon.process.send_signal(number)
    assert daemon.process.wait(DEADLINE) == 0
    daemon.process = None
    left = [path.name for path in daemon.runtime.rglob("*") if not path.is_dir()]
    assert set(left) <= {"bus.conf", "bus.log"}
    assert "stopping" in daemon.log


def test_a_hangup_before_it_is_ready_does_not_end_it(config: Write, short_path: Path) -> None:
    with fake_bus(short_path / "bus", []) as (address, reached, leave), (short_path / "log").open("w+") as log:
        process = subprocess.Popen(
            [BIN / "doorbelld", "--config", config("[region.demo]\n"), "--bus", address], stderr=log
        )
        try:
            assert reached.wait(DEADLINE)
            config("[region.demo]\n[region.new]\n")
            process.send_signal(signal.SIGHUP)
            until(lambda: (short_path / "run/new/socket").exists(), "the new region")
            leave.set()
            assert process.wait(DEADLINE) == 69
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def daemon(short_path: Path) -> Iterator[Daemon]:
    require("dbus-daemon", "dbus-daemon")
    with Daemon(short_path, "[region.stays]\n[region.goes]\n") as running:
        yield running


def reload(daemon: Daemon, regions: str, words: str = "configuration reloaded") -> None:
    """Send SIGHUP and wait until the log says one more time what came of it."""
    daemon.write_config(regions)
    before = daemon.log.count(words)
    os.kill(daemon.pid, signal.SIGHUP)
    until(lambda: daemon.log.count(words) > before, f"{words}\n{daemon.log}")


def test_hangup_applies_the_difference(daemon: Daemon) -> None:
    bus = Busctl(daemon.bus)
    bus.call("", "Manager", "CreateRegion", "sa{sv}", "by-hand", 0)
    inode = daemon.socket("stays").stat().st_ino
    reload(daemon, "[region.stays]\n[region.new]\nvectors = 2\n")
    assert [name for name, _ in bus.call("", "Manager", "ListRegions")[0]] == ["by-hand", "new", "stays"]
    assert daemon.socket("stays").stat().st_ino == inode
    assert not daemon.socket("goes").exists()
    assert bus.get("/region/new", "Region", "Vectors") == 2


def test_hangup_changes_what_can_change_live(daemon: Daemon) -> None:
    bus = Busctl(daemon.bus)
    client = RawClient(str(daemon.socket("stays"))).greet(4)
    reload(daemon, '[region.stays]\nmax-peers = 1\nstall-timeout = "5s"\nmode = "0600"\n')
    assert bus.get("/region/stays", "Region", "MaxPeers") == 1
    assert bus.get("/region/stays", "Region", "StallTimeoutUSec") == 5_000_000
    assert daemon.socket("stays").stat().st_mode & 0o777 == 0o600
    assert not client.eof
    refused = RawClient(str(daemon.socket("stays")))
    refused.until_eof()
    client.close()
    refused.close()


@pytest.mark.parametrize(
    ("regions", "words"),
    [
        ("[region.stays]\nsize = 3\n", "is not a power of two"),
        (
            "[region.stays]\nvectors = 9\n",
            "can't change live: peers were told of so many doorbells; doorbellctl remove stays",
        ),
        ("[[[", "syntax"),
    ],
)
def test_hangup_with_a_wrong_configuration_changes_nothing(daemon: Daemon, regions: str, words: str) -> None:
    reload(daemon, regions, "configuration not reloaded")
    assert words in daemon.log
    names = [name for name, _ in Busctl(daemon.bus).call("", "Manager", "ListRegions")[0]]
    assert names == ["goes", "stays"]
    daemon.write_config("[region.stays]\n[region.goes]\n")


def test_a_region_that_fails_at_a_reload_does_not_hide_the_others_from_the_next(daemon: Daemon) -> None:
    file = daemon.directory / "in-the-way"
    file.touch()
    stays = "[region.stays]\n"
    blocked = f'[region.blocked]\nsocket = "{file}"\n'
    reload(daemon, stays + "[region.made]\n" + blocked, "configuration not reloaded")
    assert daemon.socket("made").exists()
    reload(daemon, stays)
    assert not daemon.socket("made").exists()
    file.unlink()
    reload(daemon, stays + blocked)
    assert file.is_socket()


def test_the_log_level_of_the_command_line_counts(short_path: Path) -> None:
    require("dbus-daemon", "dbus-daemon")
    with Daemon(short_path, log_level="error") as quiet:
        pass
    assert quiet.log == ""


def test_second_daemon_in_the_same_place_serves_nothing(short_path: Path, tmp_path: Path) -> None:
    with Daemon(short_path) as first:
        (tmp_path / "second.toml").write_text(f'[daemon]\nruntime-directory = "{first.runtime}"\n[region.other]\n')
        done = run("--config", tmp_path / "second.toml", "--bus", "private")
    assert done.returncode == 69
    assert "another doorbelld seems to run there" in done.stderr
    assert "region serves" not in done.stderr
    assert not (first.runtime / "other").exists()


def test_bus_that_is_not_there_is_told_without_numbers(config: Write) -> None:
    done = run("--config", config(""), "--bus", "unix:path=/no/such/bus")
    assert "no message bus at unix:path=/no/such/bus: No such file or directory;" in done.stderr


@pytest.mark.parametrize(
    ("uid", "home", "given", "directory"),
    [
        (1000, "/run/user/1000", "/run/doorbelld", "/run/user/1000/doorbelld"),
        (1000, "/run/user/1000", "/srv/run", "/srv/run"),
        (1000, "", "/run/doorbelld", "/run/doorbelld"),
        (1000, "here", "/run/doorbelld", "/run/doorbelld"),
        (0, "/run/user/0", "/run/doorbelld", "/run/doorbelld"),
    ],
)
def test_users_have_a_runtime_directory_of_their_own(
    uid: int, home: str, given: str, directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setenv("XDG_RUNTIME_DIR", home)
    assert _at_home(Config(DaemonSpec(runtime_directory=given))).daemon.runtime_directory == directory


@pytest.mark.parametrize(
    "program", [[BIN / "doorbelld"], [sys.executable, "-m", "doorbelld"]], ids=["script", "module"]
)
def test_first_words_name_programs_that_are_there(config: Write, program: list[str], short_path: Path) -> None:
    command = [*program, "--config", config("[region.demo]\n"), "--bus", "private", "--exec-restart"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=short_path, text=True
    ) as process:
        try:
            assert process.stdout is not None
            words = "".join(iter(process.stdout.readline, f"    kill -USR2 {process.pid}\n"))
        finally:
            process.terminate()
    named = set(re.findall(r"^    (\S*doorbellctl)\b", words, re.M))
    assert named and all((short_path / name).exists() for name in named)
    assert "Restart it, peers stay:" in words
