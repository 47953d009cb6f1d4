# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Everybody else's heartbeat, while somebody attacks the daemon.

`watched` starts two daemons with the same configuration: one is attacked in the body, the other one is left alone. For
each of them a process of its own does three things over and over, each in a thread: it joins a region and reads its
greeting, reads a property on D-Bus, and has a device serve a request. In the end it is compared how long each of them
took: under attack it must be within `LIMIT`, or, where the machine is slow, within three times of what it took the
other daemon, which had the same machine at the same time.

In the end the attacked daemon must be as large as it was before: descriptors, threads, mappings and memory.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import os
import re
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from support.apart import start_module
from support.daemon import Daemon, descriptors_of
from support.dbusclient import Client, until
from support.rawclient import RawClient

LIMIT = 0.1
"""Seconds that a beat may take."""
DEADLINE = 60.0
_PERIOD = 0.01
_VECTORS = 2
MEMORY_MARGIN = 24 << 20
"""How much larger the daemon may be in the end: room for the allocator, not for a leak."""
MAPPINGS_MARGIN = 24
"""How many more mappings: a heap and a stack of a thread or two that the event loop has made for later work."""
_BEATEN = f'[region.beaten]\nvectors = {_VECTORS}\n[device.beaten-rng]\ntype = "rng"\n'


@dataclass(frozen=True)
class Footprint:
    """What a process holds."""

    descriptors: int
    threads: int
    mappings: int
    memory: int
    """Resident, in bytes."""

    @classmethod
    def of(cls, pid: int) -> Footprint:
        """Look at a process."""
        proc = Path(f"/proc/{pid}")
        status = (proc / "status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.M)
        assert found is not None
        mappings = (proc / "maps").read_text().count("\n")
        return cls(descriptors_of(pid), len(os.listdir(proc / "task")), mappings, int(found[1]) << 10)

    def exceeds(self, before: Footprint, threads: int) -> bool:
        """Say whether more is held than *before*, but for *threads* that wait for work and some room."""
        return (
            self.descriptors > before.descriptors
            or self.threads > before.threads + threads
            or self.mappings > before.mappings + MAPPINGS_MARGIN + 3 * threads
            or self.memory > before.memory + MEMORY_MARGIN
        )


class _Process:
    """This module as a process of its own, which prints lines; `kill` ends it."""

    def __init__(self, *arguments: str) -> None:
        self.process = start_module("support.heartbeat", *arguments, text=True)

    def line(self, seconds: float = DEADLINE) -> str:
        """Give the next line that it prints; AssertionError if none comes."""
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], seconds)[0], f"process {self.process.pid} hangs"
        line = self.process.stdout.readline()
        assert line, f"process {self.process.pid} ended with {self.process.wait()}"
        return str(line).rstrip("\n")

    def kill(self) -> None:
        """End it whatever it does."""
        self.process.kill()
        self.process.communicate()


class Heartbeat(_Process):
    """The process that beats at one daemon; it has begun once this is made."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(str(daemon.socket("beaten")), daemon.bus, str(daemon.socket("beaten-rng")))
        assert self.line() == "beating"

    def stop(self) -> dict[str, list[float]]:
        """End it: how long each beat took, by what it did, in seconds.

        Raises:
            AssertionError: a beat failed, or never came to an end.
        """
        assert self.process.stdin is not None
        self.process.stdin.write("stop\n")
        self.process.stdin.flush()
        found = json.loads(self.line())
        assert "failed" not in found, f"a heartbeat failed: {found['failed']}"
        assert self.process.wait(DEADLINE) == 0
        return dict(found)


class Watched:
    """A daemon under attack, and one that is left alone."""

    def __init__(self, daemon: Daemon, other: Daemon) -> None:
        self.daemon = daemon
        self.other = other
        self.before = Footprint.of(daemon.pid)

    def settle(self, threads: int) -> None:
        """Wait until the daemon holds no more than before."""

        def settled() -> bool:
            return not Footprint.of(self.daemon.pid).exceeds(self.before, threads)

        try:
            until(settled)
        except AssertionError:
            now = Footprint.of(self.daemon.pid)
            raise AssertionError(f"the daemon held {self.before} and now holds {now}:\n{self.daemon.log}") from None


@contextmanager
def watched(directory: Path, config: str = "", *, threads: int = 6, **options: Any) -> Iterator[Watched]:
    """Start a daemon with *config* (TOML), attack it in the body, and check that nobody else noticed.

    *options* are those of `Daemon`. *threads* may be left that wait for work.
    """
    with contextlib.ExitStack() as stack:
        both = []
        for name in ("attacked", "other"):
            (directory / name).mkdir()
            (directory / name).chmod(0o755)
            both.append(stack.enter_context(Daemon(directory / name, config + _BEATEN, **options)))
        attacked, other = both
        site = Watched(attacked, other)  # it is measured before the first newcomer: nothing is under way
        hearts = [Heartbeat(attacked), Heartbeat(other)]
        for heart in hearts:
            stack.callback(heart.kill)
        yield site
        assert attacked.alive, attacked.log
        beats, others = (heart.stop() for heart in hearts)
        compare(beats, others, attacked)
        site.settle(threads)
        assert "Traceback" not in attacked.log, attacked.log


def compare(beats: dict[str, list[float]], others: dict[str, list[float]], attacked: Daemon) -> None:
    """Fail if a beat took longer than it may."""
    for what, took in beats.items():
        worst, limit = max(took), max(LIMIT, 3 * max(others[what]))
        assert worst <= limit, (
            f"{what}: {worst:.3f} s at worst of {len(took)}, which may take {limit:.3f} s; "
            f"{sum(one > limit for one in took)} took longer:\n{attacked.log[-4000:]}"
        )


class Attack(_Process):
    """A function at the top level of a test module, called in a process of its own; it has begun once this is made.

    *function* is called with *arguments* (what JSON can say) as user *uid*, prints a line once what it does is under
    way, which is in ``first``, and is killed at the end of the ``with`` block. `line` gives further lines.
    """

    def __init__(self, function: Callable[..., object], *arguments: Any, uid: int | None = None) -> None:
        file = inspect.getsourcefile(function)
        order = {"file": file, "function": function.__name__, "arguments": arguments, "uid": uid}
        super().__init__("attack", json.dumps(order))
        self.first = self.line()

    def __enter__(self) -> Attack:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def under_way(text: str = "under way") -> None:
    """Let `Attack` know, in its process."""
    print(text, flush=True)


def _attack(order: dict[str, Any]) -> None:
    spec = importlib.util.spec_from_file_location("attack", order["file"])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # as root, who may read it
    if order["uid"] is not None:
        os.setgroups([])
        os.setgid(order["uid"])
        os.setuid(order["uid"])
    getattr(module, order["function"])(*order["arguments"])


def _join(path: str) -> Callable[[], None]:
    def beat() -> None:
        with RawClient(path) as newcomer:
            newcomer.greet(_VECTORS)

    return beat


def _ask(address: str) -> Callable[[], None]:
    client = Client(address)

    def beat() -> None:
        assert client.get("/region/beaten", "Region", "Vectors") == _VECTORS

    return beat


def _request(path: str) -> Callable[[], None]:
    from doorbelld.vhost.frontend import Frontend

    frontend = Frontend.connect(path, timeout=DEADLINE)
    (queue,) = frontend.start(1)

    def beat() -> None:
        assert len(frontend.request(queue, room=64)) == 64

    return beat


def _beat(beat: Callable[[], None], took: list[float], stopped: threading.Event, failed: list[str]) -> None:
    while not stopped.is_set() or not took:
        begun = time.monotonic()
        try:
            beat()
        except Exception as error:
            failed.append(f"{beat.__qualname__.partition('.')[0]}: {type(error).__name__}: {error}")
            return
        took.append(time.monotonic() - begun)
        stopped.wait(_PERIOD)


def _main() -> NoReturn:
    if sys.argv[1] == "attack":
        _attack(json.loads(sys.argv[2]))
        sys.exit()
    region, bus, device = sys.argv[1:]
    beats = {"a newcomer is greeted": _join(region), "D-Bus answers": _ask(bus), "a device serves": _request(device)}
    for beat in beats.values():
        beat()
    stopped, failed = threading.Event(), list[str]()
    took: dict[str, list[float]] = {what: [] for what in beats}
    threads = [
        threading.Thread(target=_beat, args=(beat, took[what], stopped, failed), daemon=True)
        for what, beat in beats.items()
    ]
    for thread in threads:
        thread.start()
    print("beating", flush=True)
    sys.stdin.readline()
    stopped.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"failed": failed} if failed else took), flush=True)
    os._exit(0)


if __name__ == "__main__":
    _main()
