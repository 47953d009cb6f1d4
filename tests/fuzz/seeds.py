# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""First inputs: what real front-ends say, written down as steps.

`Recorder` listens in on a backend while a front-end talks to it: our own, QEMU with a guest that boots, User-Mode
Linux. A little of guest memory comes with it, so that there are rings to be served. Run once, and again only when a
front-end says something new: ``python -m fuzz seeds FOLDER``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from doorbelld.fds.owned import Fd
from doorbelld.vhost import conversation
from doorbelld.vhost.channel import receive
from doorbelld.vhost.device import Device
from doorbelld.vhost.frontend import Frontend
from doorbelld.wire.vhost_messages import (
    U64,
    Config,
    MemoryRegion,
    MemoryTable,
    SingleMemoryRegion,
    VringFd,
    VringState,
)
from doorbelld.wire.vhost_requests import FrontendRequest as R
from support.devicesite import DeviceSite, Echo, device_site

from .script import Step, build
from .stream import CHANNEL, EVENT, GUEST, HEADER, KICK, MESSAGE, PAUSE, SEND, WRITE, InbandEcho

DEVICES = {"echo": 0, "inband": 1, "blk": 2, "rng": 3}
_CHAINS = 3
"""Of each ring, so many chains are written down."""
_EXTENT = 64
"""Bytes of guest memory are written down by blocks of so many, those with something in them."""


class Recorder:
    """What a front-end sent, as steps."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._file: Fd | None = None

    def take(self, data: bytes, fds: list[Fd]) -> None:
        """Note what one ``recvmsg`` gave."""
        kinds = bytes(_kind(fd.fileno()) for fd in fds)
        if GUEST in kinds and self._file is None:
            self._file = fds[kinds.index(GUEST)].dup()
        while len(data) >= HEADER.size:
            request, flags, size = HEADER.unpack_from(data)
            if len(data) < HEADER.size + size or max(request, flags) > 0xFF:
                break
            message, data = data[HEADER.size : HEADER.size + size], data[HEADER.size + size :]
            # what the kernel gives at once ends with the message that has the descriptors
            self.steps.append(Step(MESSAGE, bytes([request, flags]) + message, b"" if data else kinds))
        if data:
            self.steps.append(Step(SEND, data, kinds))

    def memory(self) -> list[Step]:
        """Write down the last chains of each ring, as the first ones of rings that have no others."""
        assert self._file is not None
        regions: list[tuple[int, ...]] = []
        sizes: dict[int, int] = {}
        steps: list[Step] = []
        places: dict[int, tuple[int, ...]] = {}
        for step in self.steps:
            if step.kind != MESSAGE:
                continue
            request, payload = step.data[0], step.data[2:]
            if request == R.SET_MEM_TABLE:
                regions = [*struct.iter_unpack("<4Q", payload[8 : 8 + 32 * payload[0]])]
            elif request == R.ADD_MEM_REG:
                regions.append(struct.unpack("<4Q", payload[8:]))
            elif request == R.SET_VRING_NUM:
                sizes.update([struct.unpack("<II", payload)])
            elif request == R.SET_VRING_ADDR:
                index, _, desc, _, avail, _ = struct.unpack("<II4Q", payload)
                places[index] = desc, avail
        for index, (desc, avail) in places.items():
            steps += _chains(self._file, regions, sizes[index], desc, avail)
        return steps


@contextmanager
def recording() -> Iterator[Recorder]:
    """Record all that any backend receives."""
    recorder = Recorder()

    def listen(sock: socket.socket) -> tuple[bytes, list[Fd]]:
        data, fds = receive(sock)
        recorder.take(data, fds)
        return data, fds

    with mock.patch.object(conversation, "receive", listen):
        yield recorder


def _kind(fd: int) -> int:
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        return CHANNEL
    return GUEST if stat.S_ISREG(mode) else EVENT


def _chains(file: Fd, regions: list[tuple[int, ...]], num: int, desc: int, avail: int) -> Iterator[Step]:
    """Write down the last chains of one ring."""

    def place(address: int, column: int) -> int:
        found = [region for region in regions if region[column] <= address < region[column] + region[1]]
        return address - found[0][column] + found[0][3]

    def write(at: int, data: bytes) -> Step:
        return Step(WRITE, at.to_bytes(4, "little") + data)

    def read(at: int, length: int) -> bytes:
        return os.pread(file.fileno(), length, at)

    table, ring = place(desc, 2), place(avail, 2)
    (made,) = struct.unpack("<H", read(ring + 2, 2))
    heads = []
    for at in range(max(0, made - _CHAINS), made):
        heads.append(read(ring + 4 + 2 * (at % num), 2))
        yield from _chain(table, int.from_bytes(heads[-1], "little"), read, write, lambda address: place(address, 0))
    yield write(ring, bytes(2) + len(heads).to_bytes(2, "little") + b"".join(heads))


def _chain(
    table: int,
    head: int,
    read: Callable[[int, int], bytes],
    write: Callable[[int, bytes], Step],
    place: Callable[[int], int],
) -> Iterator[Step]:
    flags = 1
    index = head
    while flags & 1:
        raw = read(table + 16 * index, 16)
        address, length, flags, index = struct.unpack("<QIHH", raw)
        yield write(table + 16 * head, raw)
        if flags & 4:
            yield write(place(address), read(place(address), min(length, 16 * 8)))
            for at in range(0, min(length, 16 * 8), 16):
                inner, size, kind, _ = struct.unpack("<QIHH", read(place(address) + at, 16))
                if not kind & 2:
                    yield write(place(inner), read(place(inner), min(size, 32)))
        elif not flags & 2:
            yield write(place(address), read(place(address), min(length, 32)))
        head = index


def _memory(f: Frontend) -> list[Step]:
    """Write down what is in a front-end's memory."""
    steps: list[Step] = []
    data = os.pread(f.memfd.fileno(), f.size, 0)
    for at in range(0, f.size, _EXTENT):
        block = data[at : at + _EXTENT].rstrip(b"\0")
        if block:
            steps.append(Step(WRITE, at.to_bytes(4, "little") + block))
    return steps


def _finish(device: str, steps: list[Step], memory: list[Step]) -> bytes:
    kicks = sum(step.fds.count(EVENT) for step in steps)
    after = [Step(KICK, bytes([number])) for number in range(min(kicks, 16))]
    return build([Step(DEVICES[device]), *memory, *steps, *after, Step(PAUSE)])


# Our own front-end


def _requests(f: Frontend) -> None:
    for queue in f.start(2):
        for size in (1, 100):
            f.request(queue, bytes(size), size)


def _stop_and_go(f: Frontend) -> None:
    (queue,) = f.start(1)
    f.request(queue, b"one", 3)
    base = f.stop(0)
    f.place(0, base)
    f.connect_fds(0)
    f.enable(0, False)
    f.enable(0)
    f.request(queue, b"two", 3)


def _table(f: Frontend) -> None:
    f.negotiate(protocol=~(1 << 15))
    half = f.size // 2
    first = MemoryRegion(0x1_0000_0000, half, 0x7F00_0000_0000, 0)
    second = MemoryRegion(0x1_0000_0000 + half, half, 0x7F00_0000_0000 + half, half)
    f.tell(R.SET_MEM_TABLE, MemoryTable((first, second)), [f.memfd.fileno()] * 2)
    f.make_queue(0)
    f.place(0)
    f.connect_fds(0)
    f.enable(0)
    f.request(f.queues[0], b"x", 1)
    f.tell(R.SET_MEM_TABLE, MemoryTable((first,)), [f.memfd.fileno()])


def _slots(f: Frontend) -> None:
    _requests(f)
    region = MemoryRegion(0x9_0000_0000, 4096, 0x7E00_0000_0000, 4096)
    f.ask_number(R.GET_MAX_MEM_SLOTS)
    f.tell(R.ADD_MEM_REG, SingleMemoryRegion(region), [f.memfd.fileno()])
    f.tell(R.REM_MEM_REG, SingleMemoryRegion(region))


def _plain(f: Frontend) -> None:
    f.start(1, features=~(1 << 30))
    f.request(f.queues[0], b"x", 1)


def _rest(f: Frontend) -> None:
    _requests(f)
    f.ask_number(R.GET_QUEUE_NUM)
    f.ask_number(R.GET_STATUS)
    f.tell(R.SET_STATUS, U64(15))
    f.open_channel()
    with contextlib.suppress(Exception):
        f.config()
        f.try_to_tell(R.SET_CONFIG, Config(32, b"\0"))
    f.tell(R.SET_VRING_ERR, VringFd(0), [f.queues[0].call_fd])
    f.tell(R.SET_VRING_CALL, VringFd(0, nofd=True))
    f.try_to_tell(R.VRING_KICK, VringState(0, 0))
    f.tell(R.RESET_DEVICE)
    f.tell(R.SET_STATUS, U64(0))
    f.tell(R.RESET_OWNER)


def _own(site: DeviceSite, folder: Path) -> Iterator[tuple[str, bytes]]:
    image = folder / "image"
    image.write_bytes(bytes(64 << 10))
    talks: list[Callable[[Frontend], None]] = [_requests, _stop_and_go, _table, _slots, _plain, _rest]
    devices: list[tuple[str, type[Device] | str, dict[str, Any]]] = [
        ("echo", Echo, {}),
        ("inband", InbandEcho, {}),
        ("blk", "blk", {"path": str(image), "queues": 2}),
        ("rng", "rng", {}),
    ]
    for device, kind, options in devices:
        backend = site.open(kind, **options)
        for talk in talks:
            if device == "rng" and talk in (_requests, _slots, _rest):
                continue  # it has one queue
            with recording() as recorder, site.connect(backend) as f:
                talk(f)
                memory = _memory(f)
            yield f"own-{device}{talk.__name__}", _finish(device, recorder.steps, memory)
            site.farewell(len(site.frontends))


# Others


def _uml(site: DeviceSite, folder: Path) -> Iterator[tuple[str, bytes]]:
    from support.uml import Uml

    disk = folder / "uml-disk"
    disk.write_bytes(bytes(64 << 10))
    blk = {"path": str(disk), "queues": 2}
    machines: list[tuple[str, type[Device] | str, int, str, dict[str, Any]]] = [
        ("blk", "blk", 2, "virtio_blk", blk),
        ("inband", _InbandConsole, 3, "virtio_console", {}),
    ]
    for device, kind, number, module, options in machines:
        backend = site.open(kind, **options)
        with recording() as recorder, Uml([(backend.spec.socket, number)], [module]) as linux:
            linux.ready()
            memory = recorder.memory()
        yield f"uml-{device}", _finish(device, recorder.steps, memory)


def _qemu(site: DeviceSite, folder: Path) -> Iterator[tuple[str, bytes]]:
    from support.guest.image import build_image
    from support.guest.vm import Guest

    disk = folder / "qemu-disk"
    disk.write_bytes(bytes(64 << 10))
    image = build_image(modules=("virtio_pci", "virtio_blk", "virtio-rng"))
    options: dict[str, Any] = {"path": str(disk), "queues": 2}
    machines: list[tuple[str, str, dict[str, Any], str]] = [
        (
            "blk",
            "vhost-user-blk-pci,chardev=c,num-queues=2",
            {"path": str(disk), "queues": 2},
            "dd if=/dev/vda bs=512 count=1 of=/dev/null",
        ),
        ("rng", "vhost-user-rng-pci,chardev=c", {}, "dd if=/dev/hwrng bs=8 count=1 of=/dev/null"),
    ]
    for device, model, options, work in machines:
        backend = site.open(device, **options)
        args = ["-chardev", f"socket,path={backend.spec.socket},id=c", "-device", model]
        with recording() as recorder, Guest(image, args=args, shared=True) as guest:
            guest.ready()
            guest.run(
                work or "dd if=/dev/vda bs=512 count=1 of=/dev/null; dd if=/dev/zero bs=512 count=1 of=/dev/vda; sync"
            )
            memory = recorder.memory()
        yield f"qemu-{device}", _finish(device, recorder.steps, memory)


class _InbandConsole(InbandEcho):
    """What Linux takes for a console."""

    id = 3
    config = bytes(12)


def write(folder: Path) -> list[str]:
    """Write the seeds of each target into a folder in *folder*, and say which there are."""
    made = []

    def put(target: str, source: Iterator[tuple[str, bytes]]) -> None:
        (folder / target).mkdir(parents=True, exist_ok=True)
        for name, raw in source:
            (folder / target / name).write_bytes(raw)
            made.append(f"{target}/{name}: {len(raw)} bytes")

    with device_site() as site:
        for talks in (_own, _uml, _qemu):
            put("stream", talks(site, Path(site.folder)))
    put("chains", chains())
    put("disk", disk())
    return made


# Chains


def chains() -> Iterator[tuple[str, bytes]]:
    """Make a few rings for the target ``chains``, for each kind of device."""
    from .chainsteps import NAMES

    def step(name: str, *data: int) -> Step:
        return Step(NAMES.index(name), bytes(data))

    def buffer(table: int, index: int, at: int, length: int, flags: int, following: int) -> Step:
        code = at.to_bytes(2, "little") + length.to_bytes(2, "little")
        return Step(NAMES.index("descriptor"), bytes([table, index]) + code + bytes([flags, following]))

    direct = [buffer(0, 0, 0x0000, 16, 1, 1), buffer(0, 1, 0x1000, 512, 1, 2), buffer(0, 2, 0x2000, 513, 2, 0)]
    table = [buffer(2, 0, 0x0000, 16, 1, 1), buffer(2, 1, 0x2100, 513, 2, 0), step("table", 3, 1, 2, 0, 0)]
    offer = [step("available", 0, 0), step("available", 3, 0)]
    by_one = [
        *(step("pop"), step("read_chain", 0, 8, 0), step("write_chain", 0, 1, 2, 3), step("push", 0, 0xFF, 0xFF)),
        *(
            step("notify"),
            step("avail_bytes", 1, 31, 1, 31),
            step("pop"),
            step("unpop"),
            step("pop"),
            step("rewind", 1),
        ),
        *(step("pop"), step("fill", 0, 1, 0, 0), step("flush", 1), step("event", 1), step("notify"), step("empty")),
        *(step("set_notification", 0), step("set_notification", 1), step("memory", 1), step("restart")),
    ]
    for device, name in enumerate(("python", "echo", "blk", "rng")):
        work = by_one if name == "python" else [step("serve")]
        for layout in range(4):
            first = Step(device + 2 if device else 0, bytes([3, layout, layout]))
            yield f"{name}-{layout}", build([first, *direct, *table, *offer, *work])
    endless = [buffer(0, 0, 0x7000, 0x8000 | 20, 4, 0), buffer(1, 0, 0x0000, 16, 1, 0), offer[0], step("pop")]
    yield "python-endless", build([Step(0, bytes([3, 1])), *endless])


# Disk


def disk() -> Iterator[tuple[str, bytes]]:
    """Make requests of each kind for the target ``disk``, for each disk."""

    def step(kind: int, sector: int, count: int, *more: int) -> Step:
        return Step(kind, struct.pack("<HH", sector, count) + bytes(more))

    requests = [
        *(step(0, 3, 5), step(1, 3, 5, 7, 200), step(0, 0, 128, 100, 3), step(2, 0, 0), step(3, 0, 20)),
        *(step(4, 8, 8), step(5, 1, 30, 0, 0, 1), step(5, 1, 3, 0, 0, 0, 0, 9, 9, 0), step(0, 127, 2), step(7, 0, 16)),
        *(step(1, 0, 1, 0, 0, 128, 3), step(6, 0, 8, 0, 0, 0, 0, 99, *bytes(15)), step(0, 0x8001, 1)),
        *(step(4, 1, 1, 0, 0, 1), step(5, 1, 1, 0, 0, 2)),
    ]
    for number in range(6):
        yield f"all-{number}", build([Step(number), *requests])
