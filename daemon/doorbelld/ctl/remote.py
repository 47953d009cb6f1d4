# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The option --host: doorbellctl runs itself on another host, over ssh.

All of it runs there, so memory and doorbells work as they do locally; input, output and the exit status come back as
they are. ``$DOORBELLD_SSH`` names another program than ssh, with options if need be.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import Any

import click

from .completion import VARIABLE as COMPLETE
from .session import Failure

VARIABLE = "DOORBELLD_SSH"
_SSH_FAILED = 255
_NOT_FOUND = 127
_SIGNALLED = 128
_QUIET = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=1")
_COMPLETION_SECONDS = 3.0


class Unreachable(Failure):
    """The other host, or doorbellctl there, could not be reached."""

    exit_code = os.EX_UNAVAILABLE


def validate_host(_: click.Context, __: click.Parameter, value: str) -> str:
    """Check the word of ``--host``."""
    if value.startswith("-") or any(letter.isspace() for letter in value):
        raise click.BadParameter(f'"{value}" is no host; write HOST, USER@HOST, or a Host of your ssh configuration')
    return value


def ssh(host: str, words: Sequence[str], options: Sequence[str] = ()) -> list[str]:
    """Give the command that runs ``doorbellctl WORDS`` on *host*, quoted for the shell there."""
    program = shlex.split(os.environ.get(VARIABLE, "")) or ["ssh"]
    return [*program, *options, "--", host, shlex.join(["doorbellctl", *words])]


def run(host: str, words: Sequence[str]) -> int:
    """Run ``doorbellctl WORDS`` on *host*, with a terminal there if there is one here; gives its exit status.

    Raises:
        Unreachable: ssh failed, or there is no doorbellctl on that host.
    """
    import subprocess

    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    command = ssh(host, words, ("-t",) if terminal else ("-T",))
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        cure = f"install it (openssh-client), or name another program with ${VARIABLE}"
        raise Unreachable(f"{command[0]}: {error.strerror}; {cure}") from None

    def hand_on(number: int, _: object) -> None:
        if number != signal.SIGINT:  # Ctrl-C has reached it already
            process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, hand_on)
    status = process.wait()
    if status == _SSH_FAILED:
        raise Unreachable(
            f"{host}: {command[0]} failed (its words are above); make sure that this works: "
            f"{shlex.join([*command[:-1], 'true'])}"
        )
    if status == _NOT_FOUND:
        raise Unreachable(f"{host}: there is no doorbellctl on the PATH there; install doorbelld on it")
    return status if status >= 0 else _SIGNALLED - status


def describe(host: str) -> dict[str, Any]:
    """Describe the daemon on *host* for shell completion: quickly and without a question, or OSError or ValueError."""
    import json
    import subprocess

    try:
        done = subprocess.run(
            ssh(host, ["describe"], ("-T", *_QUIET)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_COMPLETION_SECONDS,
            env={key: value for key, value in os.environ.items() if key != COMPLETE},  # or it would complete, too
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(str(error)) from error
    return dict(json.loads(done.stdout))


def complete_host(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Complete a host from ssh's configuration; patterns are none."""
    user, at, start = incomplete.rpartition("@")
    found: list[str] = []
    with (
        contextlib.suppress(OSError, UnicodeDecodeError),
        open(os.path.expanduser("~/.ssh/config"), encoding="utf-8") as config,
    ):
        for line in config:
            keyword, *hosts = line.replace("=", " ", 1).split() or [""]
            if keyword.lower() == "host":
                found += [host for host in hosts if not set("*?!") & set(host)]
    return [f"{user}{at}{host}" for host in found if host.startswith(start)]
