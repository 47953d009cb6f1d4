# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Boots a root with a real systemd, and runs things in it.

Theory of operation: systemd-nspawn starts the root's init in namespaces of its own, and tells us over a notification
socket when the boot is over. From then on whatever is run in the machine is a child of ours that nsenter(1) moves into
its namespaces; it sees the machine's files and processes, and we see it. Files are read and written below
/proc/PID/root, which reaches those on the machine's own mounts too, such as sockets in /run.

The machine gets a control group of its own in each hierarchy that systemd uses, below that of the tests: two machines
at once don't meet.

It is powered off when the `with` block ends, or killed if it does not power off in time. nspawn is the first process of
a process namespace, so that nothing outlives it. Should the tests themselves be killed, the kernel kills nspawn, and
with it the machine; enter the block in a thread that outlives the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from support.needs import require

BOOT_TIMEOUT = 60.0
"""Seconds; some 2 are enough on an idle host."""

STOP_TIMEOUT = 30.0

DEADLINE = 60.0
"""Seconds for a command."""

_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "SYSTEMD_PAGER": "",
    "SYSTEMD_COLORS": "0",
}
"""What programs in the machine see of ours: nothing."""

_ENTER_GROUPS = 'while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs" || exit; shift; done; shift; exec "$@"'


class MachineError(Exception):
    """A machine did not boot, or something in it did not come in time; the message has the end of its console."""


class Inside(subprocess.Popen[str]):
    """A program in a machine. Signals are for it, not for the nsenter that waits for it.

    An nsenter that is killed leaves a zombie to whatever this host's init is, and should that not care, the machine's
    shutdown would wait for it.
    """

    def send_signal(self, sig: int) -> None:
        """Send a signal to the program."""
        if self.poll() is None:
            for pid in _children(self.pid) or [self.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sig)


class Machine:
    """A machine that runs while the `with` block runs. *root* is changed by it: give it a copy."""

    def __init__(self, root: Path) -> None:
        require("/usr/bin/systemd-nspawn", "systemd-container")
        require("/usr/bin/nsenter", "util-linux")
        self._root = root
        self._undo = contextlib.ExitStack()
        self.pid = 0
        """Its init, as this host numbers it."""

    def __enter__(self) -> Self:
        with self._undo as undo:
            self._boot(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._undo.close()

    def _boot(self, undo: contextlib.ExitStack) -> None:
        place = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="machine")))
        name = f"machine-{os.getpid()}-{id(self):x}"
        listening = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        listening.bind(str(place / "notify"))
        command = ["unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
        command += ["systemd-nspawn", "--quiet", f"--directory={self._root}", f"--machine={name}", "--boot"]
        command += ["--register=no", "--keep-unit", "--private-network", "--notify-ready=yes", "--console=read-only"]
        command += ["--link-journal=no", "--resolv-conf=off", "--timezone=off"]
        groups = _make_groups(name)
        undo.callback(_remove_groups, groups)
        undo.callback(shutil.rmtree, f"/run/systemd/nspawn/propagate/{name}", ignore_errors=True)  # it may leave that
        self._console = place / "console"
        with self._console.open("wb") as console:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "sh", "-c", _ENTER_GROUPS, "sh", *map(str, groups), "--", *command],
                env={**os.environ, "NOTIFY_SOCKET": str(place / "notify")},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )
        undo.callback(self._power_off)
        self._await_boot(listening)

    def _await_boot(self, listening: socket.socket) -> None:
        deadline = time.monotonic() + BOOT_TIMEOUT
        ended = os.pidfd_open(self._process.pid)
        try:
            while True:
                left = max(0.0, deadline - time.monotonic())
                readable, _, _ = select.select([listening.fileno(), ended], [], [], left)
                if listening.fileno() not in readable:
                    raise self._error("it ended instead of booting" if readable else "it did not boot in time")
                if re.search(rb"^READY=1$", listening.recv(4096), re.M):
                    break
        finally:
            os.close(ended)
        (nspawn,) = _children(self._process.pid)
        (self.pid,) = _children(nspawn)
        state = self.run("systemctl", "is-system-running", "--wait", check=False, timeout=BOOT_TIMEOUT).stdout.strip()
        if state != "running":
            raise self._error(f"it is {state}:\n{self.run('systemctl', '--failed', '--no-pager').stdout}")

    def _power_off(self) -> None:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            if self.pid:
                os.kill(self.pid, signal.SIGRTMIN + 4)  # systemd(1): power off
                self._process.wait(STOP_TIMEOUT)
        self._process.kill()
        self._process.wait()

    def _error(self, message: str) -> MachineError:
        tail = "\n".join(self.console.splitlines()[-40:])
        return MachineError(f"{message}; end of its console:\n{tail}")

    @property
    def console(self) -> str:
        """All that it has said on its console."""
        return self._console.read_text(errors="replace")

    def path(self, path: str | Path) -> Path:
        """Tell where *path* of the machine is on this host."""
        return Path(f"/proc/{self.pid}/root") / str(path).lstrip("/")

    def command(self, *argv: str | Path, user: str = "") -> list[str]:
        """Make the command line that runs *argv* in the machine, as root or as *user* with all of its groups.

        It ends (by SIGKILL) when nsenter does.
        """
        identity = []
        if user:
            identity = [f"--reuid={user}", f"--regid={self._primary_group(user)}", "--init-groups"]
        enter = ["nsenter", f"--target={self.pid}", "--all", "setpriv", "--pdeathsig", "KILL", *identity, "--"]
        return [*enter, *map(str, argv)]

    def _primary_group(self, user: str) -> str:
        for line in self.path("/etc/passwd").read_text().splitlines():
            name, _, _, gid, *_ = line.split(":")
            if name == user:
                return gid
        raise MachineError(f"it has no user {user}")

    def run(
        self,
        *argv: str | Path,
        user: str = "",
        check: bool = True,
        input: str = "",  # subprocess calls it so
        timeout: float = DEADLINE,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the machine, as root or as *user*, and give its output.

        Raises:
            MachineError: it failed, and *check* is set; with what it wrote to standard error.
        """
        done = subprocess.run(
            self.command(*argv, user=user),
            env={**_ENVIRONMENT, **(environment or {})},
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise MachineError(f"{' '.join(map(str, argv))}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def popen(self, *argv: str | Path, user: str = "", **options: Any) -> Inside:
        """Start a program in the machine; it ends with the machine at the latest."""
        return Inside(self.command(*argv, user=user), env=_ENVIRONMENT, text=True, **options)

    def systemctl(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run systemctl as root."""
        return self.run("systemctl", "--no-pager", *argv, check=check)

    def show(self, unit: str, name: str) -> str:
        """Read a property of a unit."""
        return self.systemctl("show", "--value", f"--property={name}", unit).stdout.strip()

    def add_user(self, name: str, groups: Sequence[str] = ()) -> None:
        """Make an ordinary user that is in *groups* as well."""
        self.run("useradd", "--create-home", f"--groups={','.join(groups)}", name)

    def journal_end(self) -> str:
        """Mark the end of the journal, for what takes *after*.

        It is a time: journalctl 252 leaves out an entry too many after a cursor whose own entry does not match.
        """
        self.run("journalctl", "--sync")
        return f"@{time.time():.6f}"

    def journal(self, *matches: str, after: str = "") -> list[dict[str, Any]]:
        """Read the journal's entries that match (FIELD=value, or options of journalctl), oldest first."""
        self.run("journalctl", "--sync")
        words = ["--quiet", "--all", "--output=json", *_since(after), *matches]
        said = self.run("journalctl", *words).stdout
        return [json.loads(line) for line in said.splitlines()]

    def await_journal(self, pattern: str, *matches: str, after: str = "", timeout: float = DEADLINE) -> dict[str, Any]:
        """Wait for an entry that matches and in whose MESSAGE *pattern* is found, and give it.

        Raises:
            MachineError: it did not come in time.
        """
        words = ["--quiet", "--all", "--output=json", "--follow", "--lines=all", *_since(after), *matches]
        with self.popen("journalctl", *words, stdout=subprocess.PIPE) as following:
            assert following.stdout is not None
            try:
                for line in _lines(following.stdout, timeout):
                    entry: dict[str, Any] = json.loads(line)
                    if re.search(pattern, str(entry.get("MESSAGE"))):
                        return entry
            finally:
                following.kill()
        last = "\n".join(str(entry.get("MESSAGE")) for entry in self.journal(*matches, after=after)[-40:])
        raise MachineError(f"the journal does not say {pattern!r} within {timeout:g} s; it says:\n{last}")


def _since(after: str) -> list[str]:
    return [f"--since={after}"] if after else []


def _lines(stream: IO[str], timeout: float) -> Any:
    """Yield lines as they come, until the end or until *timeout* seconds have passed."""
    deadline = time.monotonic() + timeout
    rest = b""
    while select.select([stream], [], [], max(0.0, deadline - time.monotonic()))[0]:
        data = os.read(stream.fileno(), 1 << 16)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from lines


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _make_groups(name: str) -> list[Path]:
    """Make a control group *name* below ours in each hierarchy that systemd uses."""
    mounts = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup2":
            mounts[""] = left.split()[4]
        elif kind == "cgroup" and "name=systemd" in options.split(","):
            mounts["name=systemd"] = left.split()[4]
    groups = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, hierarchy, ours = line.split(":", 2)
        if hierarchy in mounts:
            group = Path(mounts[hierarchy] + ours) / name
            group.mkdir()
            groups.append(group)
    return groups


def _remove_groups(groups: Sequence[Path]) -> None:
    for group in groups:
        for folder, _, _ in os.walk(group, topdown=False):
            os.rmdir(folder)
