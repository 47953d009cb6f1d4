# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A blk device against qemu-storage-daemon with aio=io_uring, and against a loop that makes system calls.

The front-end, ``c/blk_load.c``, is the same for both; it has one CPU, and who serves it the other. Each side has an
image of its own, alike, in the page cache; each block of it begins with its number, which the front-end checks.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import time
from collections.abc import Iterator
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
SERVE = Path(__file__).with_name("serve_device.py")


def make_image(path: Path, megabytes: int) -> None:
    """Write an image and wait until it is on the disk: what comes later is not to be about that."""
    rest = bytes(BLOCK - 8)
    with path.open("wb") as image:
        for number in range((megabytes << 20) // BLOCK):
            image.write(struct.pack("<Q", number) + rest)
        image.flush()
        os.fsync(image.fileno())


@contextlib.contextmanager
def images(megabytes: int) -> Iterator[tuple[Path, Path]]:
    """Make two images on a disk, not in a directory for temporary files that may live in memory."""
    made = BUILD / "ours.img", BUILD / "qemu.img"
    try:
        for path in made:
            make_image(path, megabytes)
        yield made
    finally:
        for path in made:
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Server:
    """Who serves a socket."""

    socket: Path
    pid: int

    def load(self, how: str, depth: int, seconds: float, cpu: int) -> dict[str, float]:
        """Have the front-end use it; with the CPU time of all our threads, in microseconds a request."""
        before = self._cpu_seconds()
        numbers = measure("blk_load", how, depth, seconds, self.socket, cpu=cpu)
        return {**numbers, "cpu": (self._cpu_seconds() - before) * 1e6 / numbers["per_second"] / seconds}

    def _cpu_seconds(self) -> float:
        return time.clock_gettime(~self.pid << 3 | 2)  # the clock that clock_getcpuclockid(3) gives: all threads


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


def compare(options: Options, report: Report, cpus: tuple[int, int], files: tuple[Path, Path], cache: str) -> None:
    """Measure all there is about one way to open the image.

    Turns are short and many: what else goes on on the machine comes in bursts, and then hits few of them.
    """
    seconds = 0.2 if options.quick else 0.3
    here, there = cpus
    with (
        directory() as place,
        ours(files[0], place, there, cache) as our_server,
        qemu(files[1], place, there, cache) as their_server,
    ):

        def loop(how: str) -> dict[str, float]:
            direct = ["direct"] if cache == "direct" else []
            return measure("pread_loop", files[0], how, seconds, *direct, cpu=there)

        for how in ("read", "write"):
            found = by_turns(
                {
                    "ours": lambda how=how: our_server.load(how, 64, seconds, here),
                    "qemu": lambda how=how: their_server.load(how, 64, seconds, here),
                    "loop": lambda how=how: loop(how),
                },
                options.rounds,
            )
            rates = {side: column(samples, "per_second") for side, samples in found.items()}
            against_qemu = 1.0 if cache == "direct" else 2.0 if how == "read" else 1.5
            against_loop = 0.5 if (cache, how) == ("buffered", "read") else None
            what = f"{cache} {how}s, 64 in flight"
            report.add(Row.against(f"{what}, QEMU", "1/s", rates["ours"], rates["qemu"], against_qemu, at_least=True))
            report.add(
                Row.against(f"{what}, bare loop", "1/s", rates["ours"], rates["loop"], against_loop, at_least=True)
            )
            work = {side: column(found[side], "cpu") for side in ("ours", "qemu")}
            report.add(Row.against(f"{what}, CPU, QEMU", "us", work["ours"], work["qemu"], 1.0))
            alone = by_turns(
                {
                    "ours": lambda how=how: our_server.load(how, 1, seconds, here),
                    "qemu": lambda how=how: their_server.load(how, 1, seconds, here),
                },
                options.rounds,
            )
            latency = {side: column(samples, "median") for side, samples in alone.items()}
            target = 1.0 if cache == "buffered" else None
            report.add(Row.against(f"{cache} {how}, alone, QEMU", "us", latency["ours"], latency["qemu"], target))


def benchmark(options: Options, report: Report) -> None:
    """Through the page cache, then past it."""
    cpus = two_cpus()
    with images(16 if options.quick else IMAGE_MB) as files:
        for cache in ("buffered", "direct"):
            compare(options, report, cpus, files, cache)


if __name__ == "__main__":
    run_benchmark("blk", benchmark, rounds=21)
