# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's block layer uses our disks through libblkio: a third front-end, with a driver and a ring of its own."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from doorbelld.vhost.backend import Backend
from doorbelld.vhost.events import RequestRefused, State
from support import libblkio
from support.devicesite import DeviceSite, device_site
from support.libblkio import ProgramFailed, disk

CONTENT = random.Random(5).randbytes(4 << 20)


@pytest.fixture
def site() -> Iterator[DeviceSite]:
    with device_site() as made:
        yield made


@pytest.fixture
def image(site: DeviceSite) -> Path:
    image = Path(site.folder) / "image"
    image.write_bytes(CONTENT)
    return image


@pytest.fixture(params=["buffered", "direct"])
def backend(request: pytest.FixtureRequest, site: DeviceSite, image: Path) -> Backend:
    return site.open("blk", path=str(image), cache=request.param)


def disk_of(backend: Backend) -> str:
    return disk(backend.spec.socket)


def test_what_qemu_io_writes_is_there_and_comes_back(site: DeviceSite, backend: Backend, image: Path) -> None:
    chance = random.Random(6)
    model = bytearray(CONTENT)
    commands = []
    for _ in range(300):
        at, length = chance.randrange(0, len(model), 512), chance.randint(1, 256) * 512
        length = min(length, len(model) - at)
        byte = chance.randrange(1, 256)
        kind = chance.choice(["write -P", "writev -P", "write -z", "write -z -u", "discard", "flush"])
        if kind.endswith("-P"):
            commands += [f"{kind} {byte} {at} {length}", f"read -P {byte} {at} {length}"]
            model[at : at + length] = bytes([byte]) * length
        elif kind == "flush":
            commands.append(kind)
        else:
            commands.append(f"{kind} {at} {length}")
            model[at : at + length] = bytes(length)
    said = libblkio.run(
        "qemu-io", *(word for each in commands for word in ("-c", each)), "--image-opts", disk_of(backend)
    )
    assert "verification failed" not in said and "failed" not in said, said
    assert said.count("wrote ") + said.count("read ") + said.count("discard ") == len(commands) - commands.count(
        "flush"
    )
    assert image.read_bytes() == model
    assert backend.queue(0).errors == 0
    assert site.of(RequestRefused) == []


def test_a_whole_disk_is_written_and_compared(site: DeviceSite, backend: Backend, image: Path) -> None:
    other = Path(site.folder) / "other"
    other.write_bytes(CONTENT[::-1])
    plain = f"driver=file,filename={other}"
    with pytest.raises(ProgramFailed, match="Content mismatch"):
        libblkio.run("qemu-img", "compare", "--image-opts", disk_of(backend), plain)
    libblkio.run("qemu-img", "convert", "-n", "--image-opts", "--target-image-opts", plain, disk_of(backend))
    assert image.read_bytes() == CONTENT[::-1]
    assert "identical" in libblkio.run("qemu-img", "compare", "--image-opts", disk_of(backend), plain)
    assert str(4 << 20) in libblkio.run("qemu-img", "info", "--image-opts", disk_of(backend))
    site.wait_state(backend, State.LISTENING)
    assert backend.reason == "it closed its connection"


def test_many_requests_at_once(backend: Backend, image: Path) -> None:
    bench = ["bench", "--image-opts", disk_of(backend), "-d", "64"]
    libblkio.run("qemu-img", *bench, "-w", "--pattern=165", "-c", "1024", "-s", "4096", "--flush-interval=100")
    assert image.read_bytes() == bytes([165]) * len(CONTENT)
    before = backend.queue(0)
    libblkio.run("qemu-img", *bench, "-c", "20000", "-s", "4096")
    after = backend.queue(0)
    assert after.requests - before.requests >= 20000
    assert after.bytes - before.bytes >= 20000 * 4096
    assert after.errors == 0


def test_a_disk_that_is_read_only_says_so(site: DeviceSite, image: Path) -> None:
    backend = site.open("blk", path=str(image), **{"read-only": True})
    with pytest.raises(ProgramFailed, match=re.compile("read.?only", re.I)):
        libblkio.run("qemu-io", "-c", "write 0 4096", "--image-opts", disk_of(backend))
    libblkio.run("qemu-io", "-r", "-c", "read 0 4096", "--image-opts", disk_of(backend))
    assert image.read_bytes() == CONTENT


def test_it_is_killed_with_requests_in_flight(site: DeviceSite, backend: Backend, image: Path) -> None:
    image.write_bytes(bytes([90]) * len(CONTENT))
    bench = ["bench", "--image-opts", disk_of(backend), "-d", "64", "-w", "--pattern=90", "-c", "10000000"]
    for number in range(20):
        enough = backend.queue(0).requests + 100 * number
        with libblkio.popen("qemu-img", *bench) as process:
            site.wait(lambda: backend.queue(0).requests > enough)  # noqa: B023  # it is over before the next round
            process.kill()
        site.farewell(number + 1)
    site.wait_state(backend, State.LISTENING)
    assert backend.reason == "it closed its connection"
    assert backend.memory_regions == []
    assert backend.queue(0).errors == 0
    assert image.read_bytes() == bytes([90]) * len(CONTENT)
