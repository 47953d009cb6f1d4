# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The block device: what it does to an image is what a simple model of a disk does."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from doorbelld.devices.blk import CONFIG, WRITEBACK_AT, Blk, BlkOptions
from doorbelld.devices.blk_io import RANGE_SECTORS_MAX, SEGMENTS_MAX, uring_permitted
from doorbelld.devices.image import ImageUnavailable
from doorbelld.errors import InvalidOptions
from doorbelld.options import parse
from doorbelld.vhost.device import ConfigRefused
from doorbelld.wire.vhost_messages import Config, VhostSetConfigType
from doorbelld.wire.vhost_requests import BackendRequest
from doorbelld.wire.vhost_requests import FrontendRequest as R
from hypothesis import given, settings
from hypothesis import strategies as st
from support.absent import PAGE, absent_page
from support.blkdriver import (
    DISCARD,
    FLUSH,
    GET_ID,
    IN,
    IOERR,
    MEMORY,
    NOTHING,
    OK,
    OUT,
    SECTOR,
    UNMAP,
    UNSUPP,
    WRITE_ZEROES,
    BlkDriver,
    blk_driver,
    until,
)
from support.devicesite import DeviceSite
from support.fdcount import no_leaks

SECTORS = 256
AIO = ["io_uring", "threads"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "image", SECTORS)


@pytest.fixture
def memory_image() -> Iterator[Path]:
    """An image in memory, where no file system brings pages of its own accord."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield make_image(Path(name) / "image", SECTORS)


def make_image(path: Path, sectors: int) -> Path:
    path.write_bytes(pattern(0, sectors))
    return path


def pattern(sector: int, count: int) -> bytes:
    """Make sectors that are unlike each other, and not zeroes."""
    return b"".join(struct.pack("<I", sector + i + 1) * (SECTOR // 4) for i in range(count))


def needs_uring(aio: str) -> None:
    if aio == "io_uring" and not uring_permitted():
        pytest.skip("io_uring is not permitted here")


# The model


@dataclass(frozen=True)
class Op:
    kind: int
    sector: int
    count: int
    cuts: list[int] = field(default_factory=list)
    flags: int = 0


def ops(unit: int) -> st.SearchStrategy[list[Op]]:
    """Requests on a disk that is used in so many sectors at a time, some beyond its end."""
    places = st.integers(0, SECTORS // unit + 2).map(lambda n: n * unit)
    counts = st.integers(0, 40 // unit).map(lambda n: n * unit)
    cuts = st.lists(st.integers(1, 3000), max_size=4)
    data = st.builds(Op, st.sampled_from([IN, OUT]), places, counts, cuts)
    clears = st.builds(Op, st.sampled_from([DISCARD, WRITE_ZEROES]), places, counts, cuts)
    unmaps = st.builds(Op, st.just(WRITE_ZEROES), places, counts, cuts, st.just(UNMAP))
    flushes = st.builds(Op, st.just(FLUSH), st.just(0), st.just(0), cuts)
    return st.lists(st.one_of(data, data, clears, unmaps, flushes), max_size=12)


class Model:
    """A disk."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    def expect(self, op: Op, stamp: int) -> tuple[int, bytes]:
        """Do it; the status, and what is read."""
        start, end = op.sector * SECTOR, (op.sector + op.count) * SECTOR
        if op.kind == FLUSH:
            return OK, b""
        if end > len(self.data):
            return IOERR, b""
        if op.kind == IN:
            return OK, bytes(self.data[start:end])
        self.data[start:end] = pattern(stamp, op.count) if op.kind == OUT else bytes(end - start)
        return OK, b""


def run(driver: BlkDriver, op: Op, stamp: int, align: int) -> tuple[int, bytes]:
    if op.kind == IN:
        answer = driver.request(IN, op.sector, room=op.count * SECTOR, cuts=op.cuts, align=align)
        return answer.status, answer.data if answer.status == OK else b""
    out = pattern(stamp, op.count) if op.kind == OUT else b""
    if op.kind in (DISCARD, WRITE_ZEROES):
        out = struct.pack("<QII", op.sector, op.count, op.flags)
    return driver.request(op.kind, op.sector, out, cuts=op.cuts, align=align).status, b""


@pytest.mark.parametrize(
    ("where", "options", "inline", "unit"),
    [
        pytest.param("disk", {}, True, 1, id="inline"),
        pytest.param("disk", {}, False, 1, id="io_uring"),
        pytest.param("disk", {"aio": "threads"}, False, 1, id="threads"),
        pytest.param("memory", {}, True, 1, id="in memory"),
        pytest.param("disk", {"cache": "direct"}, True, 8, id="direct"),
    ],
)
def test_it_is_a_disk(
    where: str, options: dict[str, Any], inline: bool, unit: int, image: Path, memory_image: Path
) -> None:
    path = image if where == "disk" else memory_image
    try:
        made = BlkDriver(path, **options)
    except ImageUnavailable as error:
        assert options.get("cache") == "direct" and "direct I/O" in str(error)
        pytest.skip(str(error))
    driver = made
    driver.device.disk.inline = inline

    @settings(max_examples=60, deadline=None)
    @given(requests=ops(unit), align=st.sampled_from([1, 512, 4096]))
    def check(requests: list[Op], align: int) -> None:
        os.truncate(path, 0)
        make_image(path, SECTORS)
        model = Model(path.read_bytes())
        for number, op in enumerate(requests):
            stamp = (number + 1) << 16
            assert run(driver, op, stamp, align) == model.expect(op, stamp)
        assert driver.rings[0].queue.in_flight == 0
        assert path.read_bytes() == model.data

    try:
        check()
    finally:
        driver.close()


def test_cached_reads_are_served_inline(image: Path) -> None:
    image.read_bytes()
    with blk_driver(image) as driver:
        assert driver.read(3, 5) == pattern(3, 5)
        assert driver.device.counters() == {"inline": 1, "deferred": 0}


def test_what_would_wait_is_deferred(image: Path) -> None:
    with blk_driver(image) as driver:
        driver.device.disk.inline = False
        driver.read(3, 5)
        driver.request(FLUSH)
        assert driver.device.counters() == {"inline": 0, "deferred": 2}
        driver.detach(0)
        driver.attach(0)
        driver.read(3, 5)
        assert driver.device.counters() == {"inline": 0, "deferred": 3}


@pytest.mark.parametrize(
    ("count", "sectors", "tellings"), [(32, 1, 1), (33, 1, 2), (64, 1, 2), (128, 1, 3), (8, 256, 4)]
)
def test_a_driver_may_begin_with_the_first_half_of_many(
    memory_image: Path, count: int, sectors: int, tellings: int
) -> None:
    with blk_driver(memory_image, num=256, ring_features=0) as driver:
        ring, [worker] = driver.rings[0], driver.workers
        header, answer = driver.spread(16), driver.spread(sectors * SECTOR + 1)
        driver.put(header, struct.pack("<IIQ", IN, 0, 0))
        worker.quiesce()
        for _ in range(count):
            ring.driver.add(header, answer)
        before = ring.queue.counters.calls  # without event indexes there is one whenever something is published
        worker.resume()
        until(lambda: ring.queue.used_index == count, "all done")
        worker.quiesce()
        assert ring.queue.counters.calls - before == tellings
        worker.resume()


def test_many_at_once(image: Path) -> None:
    for inline in (True, False):
        with blk_driver(image) as driver:
            driver.device.disk.inline = inline
            heads = [driver.send(IN, sector, room=SECTOR) for sector in range(30)]
            answers = driver.take(30)
            assert [answers[head].data for head in heads] == [pattern(sector, 1) for sector in range(30)]


def test_a_request_of_very_many_buffers(image: Path) -> None:
    """More than the kernel takes at a time."""
    data = pattern(7 << 16, 5)
    for inline in (True, False):
        with blk_driver(image) as driver:
            driver.device.disk.inline = inline
            driver.write(8, data, cuts=[2])
            assert driver.read(8, 5, cuts=[2]) == data
    assert image.read_bytes()[8 * SECTOR : 13 * SECTOR] == data


@pytest.mark.parametrize("queues", [2, 5])
def test_several_queues_and_workers(image: Path, queues: int) -> None:
    with blk_driver(image, queues=queues, workers=2) as driver:
        heads = [driver.send(IN, number, room=SECTOR, queue=number % queues) for number in range(20)]
        for queue in range(queues):
            mine = range(queue, 20, queues)
            answers = driver.take(len(mine), queue)
            assert [answers[heads[number]].data for number in mine] == [pattern(number, 1) for number in mine]


# What a driver may get wrong


@pytest.mark.parametrize(
    ("sector", "length"),
    [(SECTORS, SECTOR), (SECTORS - 1, 2 * SECTOR), (SECTORS + 1, 0), (1 << 63, SECTOR), (-1, SECTOR), (0, 100)],
)
def test_out_of_bounds_or_no_whole_sectors(image: Path, sector: int, length: int) -> None:
    before = image.read_bytes()
    with blk_driver(image) as driver:
        assert driver.request(OUT, sector, b"x" * length) == (IOERR, b"", 1)
        answer = driver.request(IN, sector, room=length)
        assert (answer.status, answer.written) == (IOERR, 0 if length else 1)
        assert answer.data == bytes([NOTHING]) * length
        assert driver.rings[0].queue.counters.errors == 2
    assert image.read_bytes() == before


def test_nothing_at_all_at_the_end_is_fine(image: Path) -> None:
    with blk_driver(image) as driver:
        assert driver.request(IN, SECTORS) == (OK, b"", 1)
        assert driver.request(OUT, SECTORS) == (OK, b"", 1)


def test_requests_without_header_or_status(image: Path) -> None:
    with blk_driver(image) as driver:
        assert driver.request(0, raw=bytes(15)).status == IOERR
        assert driver.request(0, raw=b"").status == IOERR
        assert driver.request(IN, room=0, status=False).written == 0
        assert driver.request(0, raw=bytes(4), status=False).written == 0
        assert driver.rings[0].queue.counters.errors == 4
        assert driver.read(1, 1) == pattern(1, 1)


@pytest.mark.parametrize("kind", [2, 5, 14, 0x80000000, 0xFFFFFFFF])
def test_unknown_requests(image: Path, kind: int) -> None:
    with blk_driver(image) as driver:
        assert driver.request(kind, room=8).status == UNSUPP
        assert driver.read(1, 1) == pattern(1, 1)


def test_a_buffer_outside_of_memory_fails_its_request_only(image: Path) -> None:
    before = image.read_bytes()
    with blk_driver(image) as driver:
        assert driver.request(OUT, 0, readable=[(MEMORY - 256, SECTOR)]).status == IOERR
        assert driver.read(1, 1) == pattern(1, 1)
        assert not driver.rings[0].queue.broken
    assert image.read_bytes() == before


@pytest.mark.parametrize("inline", [True, False])
def test_memory_that_is_gone_breaks_the_queue_and_nothing_else(image: Path, inline: bool) -> None:
    second = make_image(image.with_name("second"), 8)
    with blk_driver(image) as driver, blk_driver(second) as other:
        driver.device.disk.inline = inline
        at = MEMORY - PAGE
        os.ftruncate(driver.guest.fds[0], at)
        driver.send(OUT, 0, readable=[(at, PAGE)])
        until(lambda: driver.rings[0].queue.broken, "broken")
        assert "truncated" in driver.rings[0].queue.broken
        assert other.read(1, 1) == pattern(1, 1)


def test_read_only(image: Path) -> None:
    before = image.read_bytes()
    with blk_driver(image, read_only=True) as driver:
        for kind in (OUT, DISCARD, WRITE_ZEROES):
            data = pattern(9, 1) if kind == OUT else struct.pack("<QII", 0, 1, 0)
            assert driver.request(kind, 0, data).status in (IOERR, UNSUPP)
        assert driver.request(OUT, 0, pattern(9, 1)).status == IOERR
        assert driver.request(FLUSH).status == OK
        assert driver.read(1, 1) == pattern(1, 1)
        names = driver.device.feature_names
        assert {names[bit] for bit in range(32) if driver.device.features >> bit & 1 and bit in names} >= {
            "VIRTIO_BLK_F_RO",
            "VIRTIO_BLK_F_FLUSH",
        }
        assert not driver.device.features >> 13 & 3
    assert image.read_bytes() == before


def test_get_id(image: Path) -> None:
    with blk_driver(image, serial="disk-0815") as driver:
        whole = b"disk-0815".ljust(20, b"\0")
        assert driver.request(GET_ID, room=20) == (OK, whole, 21)
        assert driver.request(GET_ID, room=20, cuts=[3]) == (OK, whole, 21)
        assert driver.request(GET_ID, room=4) == (OK, b"disk", 5)
        assert driver.request(GET_ID, room=24) == (OK, whole + bytes([NOTHING]) * 4, 20)


# Discarding and zeroes


def blocks(path: Path) -> int:
    return os.stat(path).st_blocks


@pytest.mark.parametrize("flags", [UNMAP, 0])
def test_zeroes_make_holes_only_where_the_driver_permits_it(memory_image: Path, flags: int) -> None:
    before = blocks(memory_image)
    with blk_driver(memory_image) as driver:
        assert driver.clear(WRITE_ZEROES, (0, SECTORS // 2, flags)) == OK
        assert driver.read(0, SECTORS // 2) == bytes(SECTORS // 2 * SECTOR)
        assert driver.read(SECTORS // 2, 1) == pattern(SECTORS // 2, 1)
    assert blocks(memory_image) == (before // 2 if flags else before)


def test_discarding_makes_holes(memory_image: Path) -> None:
    before = blocks(memory_image)
    with blk_driver(memory_image) as driver:
        assert driver.clear(DISCARD, (0, 8, 0), (64, 64, 0), (0, 0, 0)) == OK
        assert driver.read(8, 56) == pattern(8, 56)
        assert driver.read(64, 64) == bytes(64 * SECTOR)
    assert blocks(memory_image) == before - 72
    assert memory_image.stat().st_size == SECTORS * SECTOR


def test_two_segments_of_a_discard_are_served_as_the_configuration_says(memory_image: Path) -> None:
    with blk_driver(memory_image) as driver:
        fields = CONFIG.unpack(driver.device.get_config())
        assert fields[14] == fields[17] == SEGMENTS_MAX == 32  # max_discard_seg, max_write_zeroes_seg
        assert driver.clear(DISCARD, (0, 8, 0), (16, 8, 0)) == OK
        assert driver.read(0, 24) == bytes(8 * SECTOR) + pattern(8, 8) + bytes(8 * SECTOR)


def test_without_discard_the_image_keeps_its_space(memory_image: Path) -> None:
    before = blocks(memory_image)
    with blk_driver(memory_image, discard=False) as driver:
        assert not driver.device.features >> 13 & 1
        assert driver.clear(DISCARD, (0, 8, 0)) == UNSUPP
        assert driver.clear(WRITE_ZEROES, (0, 8, UNMAP)) == OK
        assert driver.read(0, 9) == bytes(8 * SECTOR) + pattern(8, 1)
    assert blocks(memory_image) == before


@pytest.mark.parametrize(
    ("kind", "ranges", "status"),
    [
        (DISCARD, [(0, 1, 1)], UNSUPP),
        (WRITE_ZEROES, [(0, 1, 2)], UNSUPP),
        (WRITE_ZEROES, [(0, 1, 0), (SECTORS, 1, 0)], IOERR),
        (DISCARD, [(SECTORS - 1, 2, 0)], IOERR),
        (DISCARD, [(1 << 60, 1, 0)], IOERR),
        (DISCARD, [(0, RANGE_SECTORS_MAX + 1, 0)], IOERR),
        (DISCARD, [(0, 1, 0)] * (SEGMENTS_MAX + 1), IOERR),
        (DISCARD, [], IOERR),
        (DISCARD, [(0, 1, 0)] * SEGMENTS_MAX, OK),
    ],
)
def test_ranges_are_all_checked_before_one_is_touched(
    image: Path, kind: int, ranges: list[tuple[int, int, int]], status: int
) -> None:
    before = image.read_bytes()
    with blk_driver(image) as driver:
        assert driver.clear(kind, *ranges, cuts=[5]) == status
        assert driver.request(kind, 0, bytes(17)).status == IOERR
    assert (image.read_bytes() == before) is (status != OK)


# The cache


@pytest.mark.parametrize("aio", AIO)
def test_a_flush_syncs_the_file_and_says_if_that_fails(image: Path, aio: str) -> None:
    needs_uring(aio)
    with blk_driver(image, aio=aio) as driver:
        assert driver.request(FLUSH) == (OK, b"", 1)
        nothing_to_sync = os.eventfd(0)
        os.dup2(nothing_to_sync, driver.device.disk.file.fileno())
        os.close(nothing_to_sync)
        assert driver.request(FLUSH) == (IOERR, b"", 1)


def test_without_a_cache_writes_are_not_just_copied(memory_image: Path) -> None:
    with blk_driver(memory_image) as driver:
        driver.write(0, pattern(100, 1))
        assert driver.device.counters() == {"inline": 1, "deferred": 0}
        driver.device.set_config(WRITEBACK_AT, b"\0", VhostSetConfigType.FRONTEND)
        driver.write(1, pattern(101, 1))
        assert driver.clear(WRITE_ZEROES, (2, 1, 0)) == OK
        assert driver.device.counters() == {"inline": 1, "deferred": 2}
        assert driver.read(0, 4) == pattern(100, 2) + bytes(SECTOR) + pattern(3, 1)


def test_who_decides_about_the_cache(image: Path) -> None:
    flush, wce = 1 << 9, 1 << 11
    kind = VhostSetConfigType.FRONTEND

    def writeback() -> int:
        return device.get_config()[WRITEBACK_AT]

    device = Blk(BlkOptions(str(image)), queues=1)
    assert writeback() == 1
    device.ack(0)
    assert writeback() == 0
    device.ack(flush)
    assert writeback() == 1
    with pytest.raises(ConfigRefused, match="CONFIG_WCE"):
        device.set_config(WRITEBACK_AT, b"\0", kind)
    device.ack(flush | wce)
    device.set_config(WRITEBACK_AT, b"\0", kind)
    assert writeback() == 0
    device.ack(flush | wce | 1 << 26)  # while it runs, to log what it writes
    assert writeback() == 0
    for offset, data in ((0, b"\0"), (WRITEBACK_AT, b"\2"), (WRITEBACK_AT, b"\0\0")):
        with pytest.raises(ConfigRefused, match="writeback"):
            device.set_config(offset, data, kind)
    device.reset()
    assert writeback() == 1
    device.close()


# Slow disks


@pytest.mark.parametrize("aio", AIO)
def test_a_request_that_waits_keeps_no_other_from_its_turn(memory_image: Path, aio: str) -> None:
    """It waits for memory here, as it would for a disk; and a pause waits for it."""
    needs_uring(aio)
    at = MEMORY - 4 * PAGE
    with blk_driver(memory_image, aio=aio) as driver, absent_page(driver.guest.memory.views(at, PAGE)[0]) as page:
        worker, disk = driver.workers[0], driver.device.disk
        disk.inline = False
        slow = driver.send(OUT, 8, readable=[(at, PAGE)])
        page.wait_for_touch()
        assert driver.read(3, 2) == pattern(3, 2)
        assert driver.request(GET_ID, room=20).status == OK
        disk.inline = True
        assert driver.read(5, 2) == pattern(5, 2)
        assert driver.rings[0].queue.in_flight == 1

        with pytest.raises(TimeoutError, match="in flight"):
            worker.quiesce(0.01)
        assert driver.read(7, 1) == pattern(7, 1)  # it went on
        page.fill(pattern(500, 8))
        worker.quiesce(20)
        assert driver.rings[0].queue.in_flight == 0
        worker.resume()
        assert driver.take(1) == {slow: (OK, b"", 1)}
        assert driver.read(8, 8) == pattern(500, 8)


def test_without_io_uring_threads_do_it(image: Path) -> None:
    """In a process of its own, which forbids itself the system call."""
    program = Path(__file__).parents[2] / "support" / "nouring.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(program.parents[1]), *sys.path])}
    done = subprocess.run(
        [sys.executable, str(program), str(image)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["threads", "0", "refused"]


# Behind a socket


def test_a_front_end_uses_it_and_hears_of_another_size(site: DeviceSite, image: Path) -> None:
    backend, f = site.started("blk", path=str(image), queues=2)
    device = backend.device
    assert isinstance(device, Blk)
    assert f.config(0, 8) == struct.pack("<Q", SECTORS)
    assert f.request(f.queues[0], struct.pack("<IIQ", IN, 0, 5), SECTOR + 1) == pattern(5, 1) + bytes([OK])
    assert f.try_to_tell(R.SET_CONFIG, Config(WRITEBACK_AT, b"\0")) == 0
    assert device.disk.writethrough
    assert f.try_to_tell(R.SET_CONFIG, Config(0, b"\0")) != 0
    f.open_channel()
    os.truncate(image, 8 * SECTOR)
    device.refresh()
    assert f.hear().request == BackendRequest.CONFIG_CHANGE_MSG
    assert f.config(0, 8) == struct.pack("<Q", 8)
    f.tell(R.RESET_DEVICE)
    assert not device.disk.writethrough


# The image


def test_the_configuration_space(image: Path) -> None:
    device = Blk(BlkOptions(str(image), block_size=1024), queues=3, queue_size=64)
    fields = CONFIG.unpack(device.get_config())
    assert CONFIG.size == 60
    assert fields[:3] == (SECTORS, 0, 62)
    assert fields[6] == 1024
    assert fields[11:13] == (1, 3)
    assert fields[13:15] == (RANGE_SECTORS_MAX, SEGMENTS_MAX)
    assert fields[16:] == (RANGE_SECTORS_MAX, SEGMENTS_MAX, 1)
    physical = 1024 << fields[7]
    assert physical >= 1024 and fields[9] * 1024 >= physical
    assert device.features >> 12 & 1 and not device.features >> 5 & 1
    device.close()
    alone = Blk(BlkOptions(str(image)), queues=1)
    assert not alone.features >> 12 & 1
    alone.close()


def test_the_size_may_change(image: Path) -> None:
    told = []
    with blk_driver(image) as driver:
        driver.device.tell_config_changed = lambda: told.append(driver.device.get_config()[:8])
        driver.device.refresh()
        assert not told
        with image.open("ab") as more:
            more.write(pattern(SECTORS, 8) + b"a part of a sector")
        assert driver.request(IN, SECTORS, room=SECTOR).status == IOERR
        driver.device.refresh()
        assert told == [struct.pack("<Q", SECTORS + 8)]
        assert driver.read(SECTORS + 7, 1) == pattern(SECTORS + 7, 1)
        assert driver.request(IN, SECTORS + 8, room=SECTOR).status == IOERR
        os.truncate(image, 4 * SECTOR)
        for inline in (True, False):
            driver.device.disk.inline = inline
            assert driver.request(IN, 8, room=SECTOR).status == IOERR  # before anybody looked
        driver.device.refresh()
        assert driver.read(3, 1) == pattern(3, 1)


def test_an_image_is_used_once(image: Path) -> None:
    device = Blk(BlkOptions(str(image)))
    for read_only in (False, True):
        with pytest.raises(ImageUnavailable, match=r"another device or program; stop that"):
            Blk(BlkOptions(str(image), read_only=read_only))
    device.close()
    readers = [Blk(BlkOptions(str(image), read_only=True)) for _ in range(2)]
    with pytest.raises(ImageUnavailable, match="is in use"):
        Blk(BlkOptions(str(image)))
    for reader in readers:
        reader.close()
    Blk(BlkOptions(str(image))).close()


def test_no_image(tmp_path: Path, image: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, words in (
        (tmp_path / "absent", "make it"),
        (tmp_path, "file or a block device"),
        (tmp_path / "fifo", "neither a file nor a block device"),
        (Path("/dev/null"), "neither a file nor a block device"),
    ):
        with no_leaks(), pytest.raises(ImageUnavailable, match=words):
            Blk(BlkOptions(str(path)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block-size", 1000),
        ("block-size", 256),
        ("serial", "x" * 21),
        ("serial", "ü"),
        ("cache", "none"),
        ("threads", 0),
    ],
)
def test_options_that_can_not_be(key: str, value: object) -> None:
    with pytest.raises(InvalidOptions, match=rf"device\.disk0\.{key}: .*; "):
        parse(BlkOptions, {"path": "/image", key: value}, "device.disk0")


def test_options_need_a_path() -> None:
    with pytest.raises(InvalidOptions, match=r"device\.disk0\.path: missing"):
        parse(BlkOptions, {}, "device.disk0")


@pytest.mark.parametrize("aio", AIO)
def test_nothing_leaks(image: Path, aio: str) -> None:
    needs_uring(aio)
    threads = len(os.listdir("/proc/self/task"))
    with no_leaks():
        for _ in range(10):
            with blk_driver(image, aio=aio, queues=2) as driver:
                driver.device.disk.inline = False
                for queue in range(2):
                    driver.read(1, 3, queue=queue)
                driver.detach(0)
                driver.attach(0)
                driver.read(1, 3)
    until(lambda: len(os.listdir("/proc/self/task")) <= threads, "threads end")


def test_errors_of_the_file_are_told(image: Path) -> None:
    with blk_driver(image) as driver:
        full = os.open("/dev/full", os.O_RDWR)
        os.dup2(full, driver.device.disk.file.fileno())
        os.close(full)
        assert os.strerror(errno.ENOSPC)
        for inline in (True, False):
            driver.device.disk.inline = inline
            assert driver.request(OUT, 0, pattern(0, 1)).status == IOERR
