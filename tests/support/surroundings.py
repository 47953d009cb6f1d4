# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests don't see: the environment, home and working directory of whoever runs them, and daemons of theirs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import MutableMapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOREIGN = re.compile(
    r"DOORBELL_.*|DOORBELLD_(?!TEST_|FUZZ_SECONDS|SANITIZE|COVERAGE_H).*"
    r"|DBUS_.*|XDG_.*|LISTEN_.*|SYSTEMD_.*|NOTIFY_SOCKET|JOURNAL_STREAM|INVOCATION_ID|WATCHDOG_.*|MAINPID|FDSTORE"
    r"|COLUMNS|LINES|NO_COLOR|FORCE_COLOR|CLICOLOR.*|COLORTERM|(MAN)?PAGER|LESS|MANPATH|MANWIDTH|LC_.*|LANGUAGE|TZ"
    r"|PYTHON(WARNINGS|FAULTHANDLER|DEVMODE|UNBUFFERED|ASYNCIODEBUG|OPTIMIZE|INSPECT|VERBOSE|DONTWRITEBYTECODE)"
    r"|QEMU_.*|LD_DEBUG.*|G_.*|MALLOC_.*|PYTEST_(ADDOPTS|PLUGINS)"
)
"""Variables that change what our programs, or those that tests start, do. PYTHONDONTWRITEBYTECODE has each of hundreds
of programs compiled at each start."""
FIXED = {"TERM": "xterm", "LANG": "C.UTF-8"}

CTL_ELSEWHERE = """\
import sys
from doorbelld.ctl import bus_choice
from doorbelld.ctl.app import main

sys.prefix, bus_choice.SERVICE_BUS = {prefix!r}, {bus!r}
sys.argv[0] = "doorbellctl"
main()
"""


def forget(environment: MutableMapping[str, str], home: Path) -> None:
    """Remove from *environment* what is the user's own; *home* becomes the home directory.

    What pip and git need to work as for the user is kept: they are told where their configurations are.
    """
    user = Path(environment.get("HOME", "/nonexistent"))
    for variable, files in {
        "PIP_CONFIG_FILE": (".config/pip/pip.conf", ".pip/pip.conf"),
        "GIT_CONFIG_GLOBAL": (".gitconfig", ".config/git/config"),
    }.items():
        there = [user / file for file in files if (user / file).is_file()]
        if there and variable not in environment:
            environment[variable] = str(there[0])
    for name in [name for name in environment if FOREIGN.fullmatch(name)]:
        del environment[name]
    environment.update(FIXED, HOME=str(home))


def heed_signals() -> None:
    """Heed the signals that end a program, though whoever started us had us ignore them, as nohup and ``&`` do.

    Programs that tests start inherit what we ignore.
    """
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def ctl_elsewhere(directory: Path) -> list[str]:
    """Give the command of a doorbellctl as if its virtual environment were in *directory*, on a host without a service.

    It does not find the daemon of `make run` in this checkout, nor one that this host runs.
    """
    script = directory / "ctl.py"
    script.write_text(CTL_ELSEWHERE.format(prefix=str(directory / ".venv"), bus=str(directory / "service/bus")))
    return [sys.executable, str(script)]


def run_tests(
    *tests: str, checkout: Path, directory: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run some tests in a pytest of its own, started in *directory* with more of an *environment*, signals ignored.

    It runs in *checkout*, which is filled with links to this one.
    """
    for name in (".venv", "tests", "pyproject.toml"):
        (checkout / name).symlink_to(ROOT / name if name != ".venv" else sys.prefix)
    ignoring = ["env", "--ignore-signal=INT,HUP"]  # as a shell starts what runs in the background
    pytest = [str(checkout / ".venv/bin/python"), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    return subprocess.run(
        [
            *ignoring,
            *pytest,
            "-c",
            str(checkout / "pyproject.toml"),
            *(str(checkout / "tests" / test) for test in tests),
        ],
        cwd=directory,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
