# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A blk device against qemu-storage-daemon with aio=io_uring, and against a loop that makes system calls.

The front-end, ``c/blk_load.c``, is the same for both; it has one CPU, and who serves it the other. Each side has an
image of its own, alike, in the page cache; each block of it begins with its number, which the front-end checks.
"""

from __future__ import annotations

import contextlib
import functools
import os
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from support import (
    BUILD,
    Options,
    Report,
    Row,
    by_turns,
    column,
    directory,
    listening,
    measure,
    on_cpu,
    running,
    two_cpus,
    wait_until,
)
from support import main as run_benchmark

BLOCK = 4096
IMAGE_MB = 256
ENTRIES = 128
"""Of the ring; what QEMU's disk has unless it is told otherwise."""
SERVE = Path(__file__).with_name("serve_device.py")
SMALL = BLOCK
"""Bytes that a guest writes at once; the page cache keeps them in folios of that size."""
LARGE = 1 << 20
"""Bytes that people's tools write at once (``dd bs=1M``, ``qemu-img convert``): folios as large as memory has them."""


@contextlib.contextmanager
def images(megabytes: int, piece: int) -> Iterator[tuple[Path, Path]]:
    """Make two images on a disk, not in a directory for temporary files that may live in memory.

    They are written by turns, *piece* bytes at once. Else the second one would find less memory in large folios, and be
    up to twice as fast.
    """
    made = BUILD / "ours.img", BUILD / "qemu.img"
    rest = bytes(BLOCK - 8)
    content = b"".join(struct.pack("<Q", number) + rest for number in range((megabytes << 20) // BLOCK))
    try:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(path.open("wb", buffering=0)) for path in made]
            for start in range(0, len(content), piece):
                for file in files:
                    file.write(content[start : start + piece])
            for file in files:
                os.fsync(file.fileno())
        yield made
    finally:
        for path in made:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def busy(cpus: Iterable[int]) -> Iterator[None]:
    """Keep each of *cpus* busy with one more program, of the same priority."""
    with contextlib.ExitStack() as stack:
        for cpu in cpus:
            stack.enter_context(running([*on_cpu(cpu), sys.executable, "-c", "while True: pass"]))
        yield


@dataclass(frozen=True)
class Server:
    """Who serves a socket."""

    socket: Path
    pid: int

    def load(self, how: str, depth: int, seconds: float, cpu: int, entries: int = ENTRIES) -> dict[str, float]:
        """Have the front-end use it; with the CPU time of all our threads, in microseconds a request."""
        before = self._cpu_seconds()
        numbers = measure("blk_load", how, depth, entries, seconds, self.socket, cpu=cpu)
        return {**numbers, "cpu": (self._cpu_seconds() - before) * 1e6 / numbers["per_second"] / seconds}

    def _cpu_seconds(self) -> float:
        return time.clock_gettime(~self.pid << 3 | 2)  # the clock that clock_getcpuclockid(3) gives: all threads


def table(image: Path) -> str:
    """Give the configuration of a disk of the daemon's."""
    return f'type = "blk"\npath = "{image}"\nread-only = true\nqueues = 1'


@contextlib.contextmanager
def ours(image: Path, place: Path, cpu: int, cache: str) -> Iterator[Server]:
    """Serve *image*."""
    socket = place / f"ours-{cache}"
    keys = [f'path = "{image}"', f'cache = "{cache}"', "queues = 1"]
    with running([*on_cpu(cpu), sys.executable, str(SERVE), "blk", str(socket), *keys]) as process:
        wait_until(lambda: listening(socket), "our device", process)
        yield Server(socket, process.pid)


@contextlib.contextmanager
def qemu(image: Path, place: Path, cpu: int, cache: str) -> Iterator[Server]:
    """Have QEMU's daemon serve *image*."""
    socket = place / f"qemu-{cache}"
    file = (
        f"driver=file,node-name=disk,filename={image},aio=io_uring,cache.direct={'on' if cache == 'direct' else 'off'}"
    )
    export = f"type=vhost-user-blk,id=bench,addr.type=unix,addr.path={socket},node-name=disk,writable=on,num-queues=1"
    command = ["qemu-storage-daemon", "--blockdev", file, "--export", export]
    with running([*on_cpu(cpu), *command]) as process:
        wait_until(lambda: listening(socket), "qemu-storage-daemon", process)
        yield Server(socket, process.pid)


@dataclass(frozen=True)
class Bench:
    """What all measurements have in common.

    Turns are short and many: what else goes on on the machine comes in bursts, and then hits few of them.
    """

    options: Options
    report: Report
    here: int
    """The front-end's CPU."""
    there: int
    """The CPU of who serves it."""

    @property
    def seconds(self) -> float:
        """How long a turn takes."""
        return 0.2 if self.options.quick else 0.3

    @contextlib.contextmanager
    def servers(self, files: tuple[Path, Path], cache: str) -> Iterator[dict[str, Server]]:
        """Serve both images."""
        with (
            directory() as place,
            ours(files[0], place, self.there, cache) as our_server,
            qemu(files[1], place, self.there, cache) as their_server,
        ):
            yield {"ours": our_server, "qemu": their_server}

    def turns(
        self, servers: Mapping[str, Server], how: str, depth: int, loop: Callable[[], dict[str, float]] | None = None
    ) -> dict[str, list[dict[str, float]]]:
        """Have *servers* used by turns, and *loop* between them."""
        sides = {
            name: functools.partial(server.load, how, depth, self.seconds, self.here)
            for name, server in servers.items()
        }
        return by_turns({**sides, **({"loop": loop} if loop else {})}, self.options.rounds)

    def add(
        self, what: str, unit: str, samples: Mapping[str, list[dict[str, float]]], key: str, target: float | None = None
    ) -> None:
        """Report our side against the other one; rates are to be high, all else low."""
        mine, other = (column(each, key) for each in samples.values())
        self.report.add(Row.against(what, unit, mine, other, target, at_least=key == "per_second"))

    def throughput(self, files: tuple[Path, Path], cache: str, how: str, made: str = "") -> None:
        """Compare reads or writes of 64 in flight with QEMU's, and with a bare loop on the same file."""
        direct = ["direct"] if cache == "direct" else []

        def loop() -> dict[str, float]:
            return measure("pread_loop", files[0], how, self.seconds, *direct, cpu=self.there)

        with self.servers(files, cache) as servers:
            found = self.turns(servers, how, 64, loop)
        against_qemu = 1.0 if cache == "direct" else 2.0 if how == "read" else 1.5
        against_loop = 0.5 if (cache, how) == ("buffered", "read") else None
        what = f"{cache} {how}s{made}, 64 in flight"
        pair = {side: found[side] for side in ("ours", "qemu")}
        self.add(f"{what}, QEMU", "1/s", pair, "per_second", against_qemu if not made else 1.0)
        self.add(
            f"{what}, bare loop", "1/s", {side: found[side] for side in ("ours", "loop")}, "per_second", against_loop
        )
        self.add(f"{what}, CPU, QEMU", "us", pair, "cpu", 1.0)

    def latency(self, files: tuple[Path, Path], cache: str, how: str) -> None:
        """Compare what one request alone takes."""
        with self.servers(files, cache) as servers:
            found = self.turns(servers, how, 1)
        self.add(f"{cache} {how}, alone, QEMU", "us", found, "median", 1.0 if cache == "buffered" else None)

    def contended(self, files: tuple[Path, Path]) -> None:
        """Compare reads while another program wants each CPU, too."""
        with self.servers(files, "buffered") as servers, busy((self.here, self.there)):
            found = self.turns(servers, "read", 64)
        self.add("buffered reads, 64 in flight, CPUs busy, QEMU", "1/s", found, "per_second", 1.0)

    def ring_sizes(self, files: tuple[Path, Path], how: str) -> None:
        """Compare long rings with one of 256 entries, which nobody should be slower than."""
        with directory() as place, ours(files[0], place, self.there, "buffered") as server:
            for depth in (64, 256):
                found = by_turns(
                    {
                        entries: functools.partial(server.load, how, depth, self.seconds, self.here, entries)
                        for entries in (256, 1024, 32768)
                    },
                    self.options.rounds,
                )
                for entries in (1024, 32768):
                    what = f"buffered {how}s, {depth} in flight, ring {entries}:256"
                    pair = {"ours": found[entries], "short": found[256]}
                    self.add(what, "1/s", pair, "per_second", 1.0 if entries == 1024 else None)
                    self.add(f"{what}, CPU", "us", pair, "cpu")


def benchmark(options: Options, report: Report) -> None:
    """Through the page cache, past it, with other rings, and with an image as people make them."""
    bench = Bench(options, report, *two_cpus())
    megabytes = 16 if options.quick else IMAGE_MB
    with images(megabytes, SMALL) as files:
        for cache in ("buffered", "direct"):
            for how in ("read", "write"):
                bench.throughput(files, cache, how)
                bench.latency(files, cache, how)
        bench.contended(files)
        for how in ("read", "write"):
            bench.ring_sizes(files, how)
    with images(megabytes, LARGE) as files:
        for how in ("read", "write"):
            bench.throughput(files, "buffered", how, " (1M)")


if __name__ == "__main__":
    run_benchmark("blk", benchmark, rounds=21)
