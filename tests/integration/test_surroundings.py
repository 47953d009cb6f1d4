# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests see nothing of their surroundings: not `make run` in the same checkout, and not the user's environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.daemon import Daemon
from support.dbusclient import Client
from support.surroundings import FOREIGN, forget, run_tests

SENSITIVE = (
    "integration/test_ctl.py::test_no_daemon_says_where_it_was_looked_for",
    "integration/test_ctl.py::test_a_bus_without_the_daemon",
    "integration/test_ctl.py::test_the_daemon_is_found_where_it_usually_is",
    "integration/test_ctl.py::test_a_wrong_command_line_is_status_2",
    "integration/test_config.py",
    "integration/test_ctl_ping.py::test_ctrl_c_sums_up",
    "unit/test_main.py::test_no_bus_is_69",
    "unit/test_log.py",
    "unit/bus/test_address.py",
    "unit/standalone/test_terminal.py",
)
"""Tests that have failed in other surroundings, or would."""


@pytest.fixture
def checkout(short_path: Path) -> Iterator[tuple[Path, Daemon]]:
    """A checkout beside which a daemon runs as `make run` starts it."""
    (short_path / "checkout").mkdir()
    with Daemon(short_path, "[region.demo]\n[region.other]\n") as daemon:
        (short_path / "checkout/run").symlink_to(daemon.runtime)
        yield short_path / "checkout", daemon


def test_demonstration_and_hostile_environment_change_no_test(checkout: tuple[Path, Daemon], tmp_path: Path) -> None:
    place, demonstration = checkout
    (tmp_path / "doorbelld").symlink_to(demonstration.runtime)
    (tmp_path / "doorbelld.toml").write_text("nonsense")
    environment = {
        "DOORBELLD_BUS": demonstration.bus,
        "DOORBELLD_FDSTORE_MAX": "7",
        "DOORBELL_FDS": "1 2 3",
        "DBUS_SESSION_BUS_ADDRESS": demonstration.bus,
        "DBUS_SYSTEM_BUS_ADDRESS": demonstration.bus,
        "XDG_RUNTIME_DIR": str(tmp_path),
        "XDG_STATE_HOME": "/dev/null",
        "XDG_CONFIG_HOME": str(tmp_path),
        "HOME": str(tmp_path),
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "JOURNAL_STREAM": "1:2",
        "INVOCATION_ID": "0" * 32,
        "LISTEN_FDS": "3",
        "LISTEN_PID": str(os.getpid()),
        "WATCHDOG_USEC": "1000",
        "COLUMNS": "17",
        "NO_COLOR": "1",
        "FORCE_COLOR": "1",
        "TERM": "dumb",
        "LANG": "de_DE.UTF-8",
        "LC_ALL": "tr_TR.UTF-8",
        "PYTHONWARNINGS": "ignore",
    }
    done = run_tests(*SENSITIVE, checkout=place, directory=tmp_path, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout.splitlines()[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"doorbelld", "doorbelld.toml"}
    with Client(demonstration.bus) as bus:
        assert bus.get("", "Manager", "Version")


def test_tests_run_in_an_environment_and_a_directory_of_their_own() -> None:
    assert [name for name in os.environ if FOREIGN.fullmatch(name) and not name.startswith("PYTEST")] == []
    assert Path.cwd() == Path(os.environ["HOME"])
    assert os.environ["LANG"] == "C.UTF-8"


def test_what_pip_and_git_need_of_the_user_is_kept(tmp_path: Path) -> None:
    (tmp_path / ".gitconfig").touch()
    environment = {"HOME": str(tmp_path), "PATH": "/bin", "PIP_INDEX_URL": "x", "XDG_STATE_HOME": "/x"}
    forget(environment, tmp_path / "other")
    assert environment == {
        "HOME": str(tmp_path / "other"),
        "PATH": "/bin",
        "PIP_INDEX_URL": "x",
        "GIT_CONFIG_GLOBAL": str(tmp_path / ".gitconfig"),
        "TERM": "xterm",
        "LANG": "C.UTF-8",
    }
