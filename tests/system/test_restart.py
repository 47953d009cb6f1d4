# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""systemd restarts the daemon, and keeps its descriptors meanwhile: no guest notices."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.dbusclient import until
from support.guest.image import Image, build_image
from support.guest.qemu import Qemu
from support.guest.vm import Guest
from support.loadprocess import LoadProcess
from support.machine.service import UNIT, Service

HOST = 65535
DEMO = "/region/demo"
RESTARTS = 200
GUEST_RESTARTS = 20
REGION_ENTRIES = 4
"""What the store has of a region without peers: state, memory, listening socket, host peer."""
SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture
def chance() -> random.Random:
    """A generator whose seed is in the output of a test that fails."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture
def load(service: Service) -> Iterator[LoadProcess]:
    """The load, in the machine, with the machine's Python and the daemon's modules as they are installed."""
    service.configure("[region.demo]\nvectors = 64\n")
    service.start()
    machine = service.machine
    folder = machine.path("/opt/load/support")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("__init__.py", "rawclient.py", "restartload.py"):
        (folder / name).write_text((SUPPORT / name).read_text())
    python = machine.path("/usr/bin/doorbelld").read_text().partition("\n")[0].removeprefix("#!").split()[0]
    command = ["env", "PYTHONPATH=/opt/load:/usr/lib/doorbelld/python", python, "-m", "support.restartload"]
    command += ["--socket", "/run/doorbelld/demo/socket", "--bus", "system"]
    with machine.popen(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield LoadProcess(process)
        finally:
            process.kill()


def entries(service: Service) -> int:
    """How many descriptors are in the store."""
    return int(service.show("NFileDescriptorStore"))


def test_two_hundred_restarts_lose_and_double_nothing(
    service: Service, load: LoadProcess, chance: random.Random
) -> None:
    for number in range(RESTARTS):
        load.check()
        time.sleep(chance.random() * 0.5)  # since the last was ready, or, as it comes back by itself, was killed
        if number % 2:
            service.machine.systemctl("restart", UNIT)
        else:
            service.machine.systemctl("kill", "--signal=KILL", UNIT, check=False)  # it may be between two lives
    service.machine.systemctl("restart", UNIT)
    report = load.finish()
    print(report)
    assert report["restarts"] > RESTARTS / 2
    assert report["restarts in the middle of a greeting"] > report["restarts"] / 2
    assert report.get("ended before the first byte", 0) <= RESTARTS / 20
    until(lambda: entries(service) == REGION_ENTRIES, f"{REGION_ENTRIES} entries in the store")
    service.stop_all()
    assert entries(service) == 0 or int(service.machine.run("systemctl", "--version").stdout.split()[1]) >= 254


@pytest.fixture(scope="module")
def image() -> Image:
    return build_image()


def test_a_guest_lives_through_twenty_restarts(service: Service, image: Image, qemu: Qemu, tmp_path: Path) -> None:
    service.start()
    restart_kinds = (("kill", "--signal=KILL", UNIT), ("restart", UNIT))
    ivshmem = [(service.socket(), 4)]
    with Guest(image, qemu=qemu, name="guest1", ivshmem=ivshmem, log_file=tmp_path / "guest.log") as guest:
        (device,) = guest.ready()
        guest.command(f"echo {HOST}")
        guest.write(4096, b"written before")
        for turn in range(1, GUEST_RESTARTS + 1):
            pid = service.pid
            service.machine.systemctl(*restart_kinds[turn % 2])
            guest.command(f"ring {HOST} 1")  # whether or not anybody is there to hear it
            service.until_back(pid)
            service.bus.call(DEMO, "Region", "Notify", "qq", device.id, 2)
            assert guest.wait_irq(2) == turn
            wanted = [0, turn, turn, 0]
            until(lambda wanted=wanted: service.bus.get(DEMO, "Region", "HostRings") == wanted, f"rings: {wanted}")
            seen = bytes(service.bus.call(DEMO, "Region", "ReadMemory", "tu", 128, 16)[0])
            assert seen.partition(b"\0")[0] == f"irq 2 #{turn}".encode()
        assert guest.read(4096, 14) == b"written before"
        assert service.bus.get(DEMO, "Region", "PeerCount") == 1
        guest.quit()
    until(lambda: entries(service) == REGION_ENTRIES, f"{REGION_ENTRIES} entries in the store")
