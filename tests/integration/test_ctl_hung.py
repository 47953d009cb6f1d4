# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""doorbellctl with a daemon that does not answer: each command says so in seconds, with the cure, and ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.daemon import BIN, Daemon
from support.dbusclient import until

HANGS = """
import signal, time
signal.signal(signal.SIGRTMIN + 7, lambda *_: time.sleep(120))
"""
"""Has a signal hang the event loop."""
SECONDS_MAX = 25.0
STOPPED, HUNG = "stopped", "hung"


@pytest.fixture(params=[STOPPED, HUNG])
def silent(request: pytest.FixtureRequest, short_path: Path) -> Iterator[tuple[Daemon, str]]:
    """A daemon that does not answer, and why."""
    (short_path / "sitecustomize.py").write_text(HANGS)
    with Daemon(short_path, "[region.demo]\n", environment={"PYTHONPATH": str(short_path)}) as daemon:
        if request.param == STOPPED:
            os.kill(daemon.pid, signal.SIGSTOP)
            until(lambda: state(daemon.pid) == "T", "the daemon to stop")
        else:
            os.kill(daemon.pid, signal.SIGRTMIN + 7)
        yield daemon, request.param
        if request.param == HUNG:
            os.kill(daemon.pid, signal.SIGKILL)
            assert daemon.process is not None
            daemon.process.wait()
            daemon.process = None
        else:
            os.kill(daemon.pid, signal.SIGCONT)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


COMMANDS = ("selftest", "status demo", "reload", "monitor", "remove demo", "doctor --json")


def test_each_command_says_that_the_daemon_does_not_answer(silent: tuple[Daemon, str]) -> None:
    daemon, why = silent
    cure = f"kill -CONT {daemon.pid}" if why == STOPPED else "systemctl restart doorbelld"
    running = {
        words: subprocess.Popen(
            [BIN / "doorbellctl", "--bus", daemon.bus, *words.split()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for words in COMMANDS
    }
    try:
        for words, process in running.items():
            out, err = process.communicate(timeout=SECONDS_MAX)
            said = out if words.startswith("doctor") else err
            assert f"doorbelld (PID {daemon.pid}) has not answered for 5 s" in said, (words, out, err)
            assert cure in said
            assert "Traceback" not in err
            assert process.returncode == (1 if words.startswith("doctor") else 69)
            if words.startswith("doctor"):
                (finding,) = [one for one in json.loads(out)["findings"] if "has not answered" in one["found"]]
                assert finding["level"] == "wrong" and cure in finding["cure"]
    finally:
        for process in running.values():
            process.kill()
            process.communicate()
