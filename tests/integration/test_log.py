# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The log holds up nobody: programs serve in full when nobody reads what they say."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from doorbelld.vhost.frontend import Frontend
from support.backendprogram import BackendProgram
from support.daemon import BIN, DEADLINE, Daemon
from support.dbusclient import Client, until
from support.ivshmemtools import CLIENT, SERVER, shared_name
from support.rawclient import RawClient
from support.unread import UNREAD, Unread

MANAGER = "Manager"


def heads(path: Path) -> None:
    """Be greeted by a region, ring and leave, a few times."""
    for _ in range(3):
        with RawClient(str(path)) as client:
            client.greet(1)


def serves(daemon: Daemon) -> None:
    """See that *daemon* greets clients, answers calls, and serves its device."""
    heads(daemon.socket())
    with Client(daemon.bus) as bus:
        assert bus.get("", MANAGER, "Version")
        bus.call("", MANAGER, "Reload")
    draws(daemon.runtime / "rng/socket")


def draws(path: Path) -> None:
    """Have a request done by the rng device at *path*."""
    with Frontend.connect(str(path)) as frontend:
        (queue,) = frontend.start(1)
        assert len(frontend.request(queue, room=32)) == 32


@pytest.mark.parametrize("early", [True, False], ids=["from the start", "later"])
@pytest.mark.parametrize("way", UNREAD)
def test_daemon_whose_log_is_unread_serves_everybody(short_path: Path, way: str, early: bool) -> None:
    regions = '[region.demo]\nvectors = 1\n[device.rng]\ntype = "rng"\n'
    with Unread(way) as stream:
        if early:
            stream.spoil()
        with Daemon(short_path, regions, stderr=stream.theirs) as daemon:
            if not early:
                stream.until(b"ready")
                stream.spoil()
            serves(daemon)
            serves(daemon)
            assert stream.blocks()


@pytest.mark.parametrize("way", ["pipe full", "terminal stopped"])
def test_reader_that_reads_on_is_told_how_many_lines_were_lost(short_path: Path, way: str) -> None:
    with Unread(way) as stream, Daemon(short_path, "[region.demo]\nvectors = 1\n", stderr=stream.theirs) as daemon:
        stream.until(b"ready")
        stream.spoil()
        heads(daemon.socket())
        with Client(daemon.bus) as bus:
            bus.get("", MANAGER, "Version")  # its answer comes after what the clients caused was logged
        stream.mend()
        with RawClient(str(daemon.socket())) as client:
            client.greet(1)
            said = stream.until(b"peer joined")
        assert b"log lines were lost" in said and b"count" in said


def test_guide_that_nobody_reads_does_not_end_the_daemon(short_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        with Daemon(short_path, "[region.demo]\nvectors = 1\n", stdout=writing) as daemon:
            heads(daemon.socket())
            daemon_log = daemon.log
    finally:
        os.close(writing)
    assert "Traceback" not in daemon_log


@pytest.mark.parametrize("way", UNREAD)
def test_backend_program_whose_log_is_unread_serves_front_ends(short_path: Path, way: str) -> None:
    path = short_path / "socket"
    with (
        Unread(way) as stream,
        BackendProgram(short_path, "rng", f"--socket-path={path}", stderr=stream.theirs) as program,
    ):
        stream.until(b"device serves")
        stream.spoil()
        for _ in range(3):
            draws(path)
        assert program.stop() == 0
        assert stream.blocks()


@pytest.mark.parametrize("way", UNREAD)
def test_server_whose_log_is_unread_serves_clients(short_path: Path, way: str) -> None:
    path = short_path / "socket"
    with Unread(way) as stream, shared_name() as name:
        command = [SERVER, "-F", "-v", "-S", path, "-M", name]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stream.theirs)
        try:
            stream.until(b"region serves")
            stream.spoil()
            heads(path)
            heads(path)
            process.terminate()
            assert process.wait(DEADLINE) == 0
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("way", UNREAD)
def test_client_whose_notes_are_unread_goes_on(short_path: Path, way: str) -> None:
    with Unread(way) as stream, Daemon(short_path, "[region.demo]\n") as daemon:
        stream.spoil()
        process = subprocess.Popen(
            [CLIENT, "-S", daemon.socket()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream.theirs,
            text=True,
            bufsize=1,
        )
        assert process.stdin is not None and process.stdout is not None
        with process:
            try:
                process.stdin.write("dump\n")
                assert select.select([process.stdout], [], [], DEADLINE)[0]
                assert "our" in process.stdout.readline()
                process.stdin.write("quit\n")
                assert process.wait(DEADLINE) == 0
            finally:
                process.kill()


@contextmanager
def on_terminal(directory: Path, *before: str) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    """Start a daemon in the foreground of a terminal; gives it, the terminal's other end, and the daemon's log."""
    (directory / "doorbelld.toml").write_text(f'[daemon]\nruntime-directory = "{directory}/run"\n')
    ours, theirs = pty.openpty()
    log = directory / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*before, str(BIN / "doorbelld"), "--config", str(directory / "doorbelld.toml"), "--bus", "private"],
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            stderr=file,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
    os.close(theirs)
    try:
        until(lambda: "ready" in log.read_text(), "the daemon")
        yield process, ours, log
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(DEADLINE)


def test_daemon_in_the_foreground_stops_when_its_terminal_is_closed(short_path: Path) -> None:
    with on_terminal(short_path) as (process, terminal, log):
        process.send_signal(signal.SIGHUP)
        until(lambda: "configuration reloaded" in log.read_text(), "a reload")
        os.close(terminal)
        assert process.wait(DEADLINE) == 0
    assert "stopping reason='its terminal was closed'" in log.read_text()


def test_daemon_that_nohup_started_outlives_its_terminal(short_path: Path) -> None:
    with on_terminal(short_path, "nohup") as (process, terminal, log):
        os.close(terminal)
        until(lambda: "configuration reloaded" in log.read_text(), "a reload")
        assert process.poll() is None


@pytest.mark.parametrize(
    "program",
    [
        "doorbelld.main",
        "doorbelld.standalone.blk",
        "doorbelld.standalone.rng",
        "doorbelld.standalone.server",
        "doorbelld.standalone.client",
    ],
)
def test_program_does_not_load_rich(program: str) -> None:
    code = f"import sys, {program}; print({{'rich', 'pygments', 'structlog.twisted', 'attr'}} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
