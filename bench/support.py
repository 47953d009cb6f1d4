# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the benchmarks share: building the C programs, starting both sides, taking turns, and the verdict.

Absolute numbers are noise on a shared machine, which may well run at half speed for some seconds. So both sides are
measured in one run, in the order A B B A A B ..., each turn of ours is divided by the other side's of the same round,
and what counts is the median of these ratios; their range says how far to trust it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "bench" / "c"
BUILD = ROOT / "build" / "bench"
PATIENCE = 30.0

BUS_NAME = "org.doorbelld.Doorbell1"
ROOT_PATH = "/org/doorbelld/Doorbell1"
REGION_PATH = f"{ROOT_PATH}/region/bench"
VECTORS = 8

_BUS_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
  <limit name="max_incoming_bytes">1000000000</limit>
  <limit name="max_outgoing_bytes">1000000000</limit>
  <limit name="max_message_size">134217728</limit>
  <limit name="max_replies_per_connection">50000</limit>
  <limit name="max_match_rules_per_connection">50000</limit>
</busconfig>
"""


class Malfunction(Exception):
    """A benchmark could not be carried out."""


# Programs


def build() -> None:
    """Compile each C program whose binary is older than the sources."""
    BUILD.mkdir(parents=True, exist_ok=True)
    newest = max(source.stat().st_mtime for source in SOURCES.iterdir())
    for source in SOURCES.glob("*.c"):
        binary = program(source.stem)
        if binary.exists() and binary.stat().st_mtime > newest:
            continue
        systemd = ["pkg-config", "--cflags", "--libs", "libsystemd"]
        flags = shlex.split(output(systemd)) if source.stem.startswith("sdbus") else []
        output(["cc", "-O2", "-Wall", "-Wextra", "-pthread", "-o", str(binary), str(source), *flags])


def program(name: str) -> Path:
    """Tell where the binary of ``bench/c/NAME.c`` is."""
    return BUILD / name


def measure(name: str, *arguments: object, cpu: int | None = None) -> dict[str, float]:
    """Run a C program to its end, on one CPU if told, and return the JSON that it prints."""
    numbers: dict[str, float] = json.loads(output([*on_cpu(cpu), str(program(name)), *map(str, arguments)]))
    return numbers


def drive(
    socket: Path, readable: int, writable: int, depth: int, seconds: float, *, cpu: int | None = None
) -> dict[str, float]:
    """Keep a device of any type busy with requests of so many bytes, and return the numbers of ``drive_device.py``."""
    arguments = map(str, (socket, readable, writable, depth, seconds))
    script = ROOT / "bench" / "drive_device.py"
    numbers: dict[str, float] = json.loads(output([*on_cpu(cpu), sys.executable, str(script), *arguments]))
    return numbers


def two_cpus() -> tuple[int, int]:
    """Choose a CPU for each side of a socket."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        raise Malfunction("two CPUs are needed, one for each side of a socket")
    return cpus[0], cpus[-1]


def on_cpu(cpu: int | None) -> list[str]:
    """Say what to put before a command so that it runs on that CPU only."""
    return [] if cpu is None else ["taskset", "-c", str(cpu)]


def output(command: Sequence[str]) -> str:
    """Run a program to its end and give what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Malfunction(f"{shlex.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str] | None = None, **popen: Any
) -> Iterator[subprocess.Popen[str]]:
    """Keep a program running for the body."""
    with subprocess.Popen(command, env={**os.environ, **(environment or {})}, text=True, **popen) as process:
        try:
            yield process
        finally:
            if process.stdin:
                process.stdin.close()  # what "hold" waits for
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until(
    true: Callable[[], object], what: str, process: subprocess.Popen[str], patience: float = PATIENCE
) -> None:
    """Wait for something that *process* is to bring about."""
    deadline = time.monotonic() + patience
    while not true():
        if process.poll() is not None:
            raise Malfunction(f"{what}: {process.args!r} ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise Malfunction(f"{what}: not within {patience:g} s")
        time.sleep(0.002)


def listening(path: Path) -> bool:
    """Tell whether somebody listens at *path*, without connecting (that would be a join)."""
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as sockets:
        return any(line.endswith(f" {path}\n") and line.split()[3] == "00010000" for line in sockets)


def rss_mb(pid: int) -> float:
    """Return a process's resident memory in MB (of 10^6 bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise Malfunction(f"process {pid} has no VmRSS")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that the main thread of a process has had."""
    return int(Path(f"/proc/{pid}/schedstat").read_text("ascii").split()[0]) / 1e9


# The two sides


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """Make a directory with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="db-bench-", dir="/tmp") as name:
        yield Path(name)


@contextlib.contextmanager
def private_bus() -> Iterator[str]:
    """Run a dbus-daemon of our own and yield its address."""
    with directory() as place:
        config, path = place / "bus.conf", place / "bus"
        config.write_text(_BUS_CONFIG.format(path=path), "utf-8")
        command = ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile"]
        with running(command, stderr=subprocess.DEVNULL) as process:  # it moans about its limit of open files
            wait_until(lambda: listening(path), "dbus-daemon", process)
            yield f"unix:path={path}"


@dataclass
class Server:
    """An ivshmem server that runs: ours or the plain one."""

    process: subprocess.Popen[str]
    socket: Path

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    def device(self, name: str) -> Path:
        """Tell where front-ends of a device of ours connect."""
        return self.socket.parent / name / "socket"


@dataclass(frozen=True)
class Daemon:
    """How to start ours: the executable, and the D-Bus library that it is to use."""

    executable: Path
    library: str = "dbus_fast"

    @contextlib.contextmanager
    def start(
        self,
        bus: str,
        *,
        cpu: int | None = None,
        wait: bool = True,
        devices: Mapping[str, str] | None = None,
        max_peers: int = 2000,
        keys: str = "",
    ) -> Iterator[Server]:
        """Start it with one region, "bench", and no host peer; by default wait until it serves and owns its name.

        *devices* are more tables of the configuration, by the name of the device; *keys* are more lines of the region.
        """
        tables = "".join(f"[device.{name}]\n{table}\n" for name, table in (devices or {}).items())
        with directory() as place:
            config, socket = place / "doorbelld.toml", place / "bench.sock"
            config.write_text(
                f'[daemon]\nruntime-directory = "{place}"\n[region.bench]\nsize = "4M"\nvectors = {VECTORS}\n'
                f'socket = "{socket}"\nmax-peers = {max_peers}\nhost-peer = false\n{keys}{tables}',
                "utf-8",
            )
            command = [str(self.executable), "--config", str(config), "--bus", bus, "--log-level", "warning"]
            environment = {"DOORBELLD_DBUS_LIBRARY": self.library}
            with running([*on_cpu(cpu), *command], environment) as process:
                if wait:
                    wait_until(lambda: listening(socket), "doorbelld", process)
                    wait_for_name(bus, process)
                yield Server(process, socket)


@contextlib.contextmanager
def plain_server(*, cpu: int | None = None) -> Iterator[Server]:
    """Run ``plain_server.c``."""
    with directory() as place:
        socket = place / "bench.sock"
        with running([*on_cpu(cpu), str(program("plain_server")), str(socket), str(VECTORS)]) as process:
            wait_until(lambda: listening(socket), "plain_server", process)
            yield Server(process, socket)


@contextlib.contextmanager
def sdbus_service(bus: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``sdbus_service.c`` under our name, so that the very same client calls it."""
    command = [str(program("sdbus_service")), bus, BUS_NAME, REGION_PATH, f"{BUS_NAME}.Region"]
    with running(command) as process:
        wait_for_name(bus, process)
        yield process


def wait_for_name(bus: str, owner: subprocess.Popen[str]) -> float:
    """Wait until *owner* has our bus name; the time.monotonic() of that."""
    command = [str(program("sdbus_client")), bus, BUS_NAME, "/", "-", "-", "wait"]
    with running(command, stdout=subprocess.PIPE) as process:
        wait_until(lambda: process.poll() is not None or owner.poll() is not None, "a bus name", process)
        if process.poll() is None or process.stdout is None:
            raise Malfunction(f"{owner.args!r} ended with {owner.returncode} before it owned {BUS_NAME}")
        return float(json.loads(process.stdout.read())["monotonic"])


@contextlib.contextmanager
def peers(socket: Path, count: int, extra: int = 0, *, cpu: int | None = None) -> Iterator[dict[str, float]]:
    """Keep *count* clients connected for the body; yields how long it took until each knew everybody."""
    command = [*on_cpu(cpu), str(program("join_client")), str(socket), str(count), str(VECTORS), str(extra), "hold"]
    with running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise Malfunction(f"join_client ended with {process.wait()}")
        yield json.loads(line)


def by_turns(sides: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Measure all sides *rounds* times, each round in the opposite order of the one before."""
    results: dict[str, list[T]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            results[name].append(sides[name]())
    return results


# The verdict


@dataclass
class Row:
    """One line of the result: ours alone, or against *other*; *target* is for the ratio then, else for ours."""

    what: str
    ours: float
    unit: str
    other: float | None = None
    target: float | None = None
    at_least: bool = False
    ratios: Sequence[float] = ()
    """Ours divided by the other side's, round by round."""

    @classmethod
    def against(
        cls,
        what: str,
        unit: str,
        ours: Sequence[float],
        other: Sequence[float],
        target: float | None = None,
        *,
        at_least: bool = False,
    ) -> Row:
        """Make the row that holds *ours* against *other*, both one number a round."""
        ratios = [a / b for a, b in zip(ours, other, strict=True)]
        return cls(what, median(ours), unit, median(other), target, at_least, ratios)

    @property
    def ratio(self) -> float | None:
        """The median of the ratios."""
        return median(self.ratios) if self.ratios else None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        value = self.ours if self.ratio is None else self.ratio
        return value >= self.target if self.at_least else value <= self.target


class Report:
    """Collects rows, prints them as they come, and leaves them in ``build/bench/NAME.json``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: list[Row] = []
        print(f"{name:<52}{'ours':>12}{'other':>12}  {'unit':<8}{'ratio':>7}  {'range':<12}target", flush=True)

    def add(self, row: Row) -> None:
        """Print a row and keep it."""
        self.rows.append(row)
        other = "" if row.other is None else f"{row.other:,.4g}" if row.other < 1e4 else f"{row.other:,.0f}"
        ours = f"{row.ours:,.4g}" if row.ours < 1e4 else f"{row.ours:,.0f}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        spread = f"{min(row.ratios):.2f}-{max(row.ratios):.2f}" if row.ratios else ""
        target = "" if row.target is None else f"{'>=' if row.at_least else '<='} {row.target:g}"
        verdict = {None: "", True: "  met", False: "  MISSED"}[row.met]
        print(
            f"{row.what:<52}{ours:>12}{other:>12}  {row.unit:<8}{ratio:>7}  {spread:<12}{target}{verdict}", flush=True
        )

    def save(self) -> None:
        """Write the JSON file."""
        rows = [{**asdict(row), "ratio": row.ratio, "met": row.met} for row in self.rows]
        BUILD.joinpath(f"{self.name}.json").write_text(json.dumps(rows, indent=2) + "\n", "utf-8")


def column(samples: Sequence[Mapping[str, float]], key: str) -> list[float]:
    """Take one number of each sample."""
    return [sample[key] for sample in samples]


def medians(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Take the median of each number."""
    return {key: median(sample[key] for sample in samples) for key in samples[0]}


@dataclass(frozen=True)
class Options:
    """What the command line said."""

    rounds: int
    quick: bool
    daemon: Daemon


def main(name: str, benchmark: Callable[[Options, Report], None], rounds: int) -> None:
    """Run a benchmark: 0 whether or not targets are met, 1 if it could not be carried out."""
    parser = argparse.ArgumentParser(prog=f"bench/{name}.py")
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each side (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller runs: does it work, no verdict")
    parser.add_argument(
        "--daemon", type=Path, default=Path(sys.executable).with_name("doorbelld"), help="which doorbelld to measure"
    )
    given = parser.parse_args()
    options = Options(2 if given.quick else max(1, given.rounds), given.quick, Daemon(given.daemon))
    try:
        build()
        report = Report(name)
        benchmark(options, report)
        report.save()
    except (Malfunction, OSError) as error:
        sys.exit(f"bench/{name}.py: {error}")
