# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""blk: the block device (VIRTIO 1.2, 5.2), on a raw file or a block device.

Requests are served by `blk_io`, without Python, and `image` opens what is behind them; this module has the rest of the
section: feature bits (5.2.3), configuration space (5.2.4), and the cache that may be turned off (5.2.6.2).

*Write-back and write-through.* A driver that accepted FLUSH has a disk with a cache: what is written is safe after the
next flush. It may turn that off with the ``writeback`` byte, if it accepted CONFIG_WCE too. For a driver that did not
accept FLUSH each write is safe when it is done.

*Size.* It may change while a driver is there; `Blk.refresh` tells it. A sector that is not whole does not count.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..errors import Problem
from ..options import boolean, choice, integer, option, path, text
from ..ring.queue import VirtQueue
from ..ring.worker import Worker
from ..vhost.device import QUEUES_MAX, ConfigRefused, Device
from ..wire.vhost_messages import VhostSetConfigType
from .blk_io import ID_BYTES, RANGE_SECTORS_MAX, SECTOR, SEGMENTS_MAX, DiskQueue, Served, uring_permitted
from .disk import Disk
from .image import Image, ImageUnavailable, cure

VIRTIO_BLK_F_SEG_MAX = 2
VIRTIO_BLK_F_RO = 5
VIRTIO_BLK_F_BLK_SIZE = 6
VIRTIO_BLK_F_FLUSH = 9
VIRTIO_BLK_F_TOPOLOGY = 10
VIRTIO_BLK_F_CONFIG_WCE = 11
VIRTIO_BLK_F_MQ = 12
VIRTIO_BLK_F_DISCARD = 13
VIRTIO_BLK_F_WRITE_ZEROES = 14

CONFIG = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3x")
"""struct virtio_blk_config."""
WRITEBACK_AT = 32
"""Where its field ``writeback`` is: the only one that a driver may write."""

SEG_MAX = 126
"""Buffers of data in a request: what a ring of 128 has room for beside header and status."""
BLOCK_MAX = 4096


def _block_size(raw: object) -> int:
    value = integer(SECTOR, BLOCK_MAX)(raw)
    if value & (value - 1):
        raise ValueError(f"{value} is not the size of a block; write 512, 1024, 2048 or 4096")
    return value


def _serial(raw: object) -> str:
    value = text(raw)
    if not value.isascii() or len(value) > ID_BYTES:
        raise ValueError(f"{value!r} is not a serial number; write up to {ID_BYTES} ASCII characters")
    return value


_TOLD = "the driver was told"


@dataclass(frozen=True, slots=True)
class BlkOptions:
    """What ``[device.NAME]`` may say of a blk beside what all devices have."""

    path: str = option(path, frozen="the image is open")
    """A raw image or a block device."""
    read_only: bool = option(boolean, default=False, frozen=_TOLD)
    cache: str = option(choice("buffered", "direct"), default="buffered", frozen="the image is open")
    """Through the host's page cache, or past it."""
    aio: str = option(choice("auto", "io_uring", "threads"), default="auto", frozen="the queues are set up for it")
    """Who does what would have to wait; "auto" is io_uring where it is permitted."""
    threads: int = option(integer(1, 64), default=1, frozen="the workers run")
    """How many worker threads share the queues."""
    serial: str = option(_serial, default="", frozen=_TOLD)
    block_size: int | None = option(_block_size, default=None, frozen=_TOLD)
    """Smallest unit that a driver should use, in bytes; None for what the image has."""
    discard: bool = option(boolean, default=True, frozen=_TOLD)
    """Whether discarding gives space of the image back to the host."""

    def warnings(self, prefix: str) -> list[Problem]:
        """Say that the image is not there, if it is not."""
        try:
            os.stat(self.path)
        except OSError as error:
            cause = f"image {self.path}: {error.strerror}"
            return [Problem(f"{prefix}.path", cause, cure(self.path, error.errno, self.read_only))]
        return []


class Blk(Device):
    """A disk."""

    name = "blk"
    id = 2
    Options = BlkOptions
    queues_max = QUEUES_MAX
    queues = 16
    feature_names: ClassVar[Mapping[int, str]] = {
        VIRTIO_BLK_F_SEG_MAX: "VIRTIO_BLK_F_SEG_MAX",
        VIRTIO_BLK_F_RO: "VIRTIO_BLK_F_RO",
        VIRTIO_BLK_F_BLK_SIZE: "VIRTIO_BLK_F_BLK_SIZE",
        VIRTIO_BLK_F_FLUSH: "VIRTIO_BLK_F_FLUSH",
        VIRTIO_BLK_F_TOPOLOGY: "VIRTIO_BLK_F_TOPOLOGY",
        VIRTIO_BLK_F_CONFIG_WCE: "VIRTIO_BLK_F_CONFIG_WCE",
        VIRTIO_BLK_F_MQ: "VIRTIO_BLK_F_MQ",
        VIRTIO_BLK_F_DISCARD: "VIRTIO_BLK_F_DISCARD",
        VIRTIO_BLK_F_WRITE_ZEROES: "VIRTIO_BLK_F_WRITE_ZEROES",
    }

    def __init__(self, options: BlkOptions, *, queues: int | None = None, queue_size: int | None = None) -> None:
        """Open the image that *options* name.

        Raises:
            ImageUnavailable: it can't be had; the text names the cause and the cure.
        """
        super().__init__(options, queues=queues, queue_size=queue_size)
        self.options: BlkOptions = options
        self.threads = options.threads
        self.aio = options.aio if options.aio != "auto" else "io_uring" if uring_permitted() else "threads"
        """Who does what would have to wait: "io_uring" or "threads"."""
        if self.aio == "io_uring" and not uring_permitted():
            raise ImageUnavailable(
                f"image {options.path} can't be used with io_uring, which this process may not use "
                '(kernel.io_uring_disabled, or a system call filter); permit it, or set aio = "auto"'
            )
        self._image = Image(options.path, read_only=options.read_only, direct=options.cache == "direct")
        geometry = self._image.geometry
        block = options.block_size or geometry.block
        if block < geometry.block:
            self._image.file.close()
            raise ImageUnavailable(
                f"image {options.path} can't be used in blocks of {block} bytes; "
                f"leave block-size out or make it {geometry.block}"
            )
        self._block = block
        self.disk = Disk(
            self._image.file,
            read_only=options.read_only,
            direct=options.cache == "direct",
            discard=options.discard,
            serial=options.serial.encode("ascii"),
            memory_align=geometry.memory_align,
            block=geometry.block,
        )
        self.disk.capacity = self._image.sectors
        self._served: dict[int, DiskQueue] = {}
        self._before = Served(0, 0)
        """Of queues that were detached."""
        self._accepted: int | None = None

    # 5.2.3

    @property
    def features(self) -> int:  # type: ignore[override]  # it depends on the options
        """Feature bits of this disk."""
        bits = {
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_CONFIG_WCE,
        }
        if self.queues > 1:
            bits.add(VIRTIO_BLK_F_MQ)
        if self.options.read_only:
            bits.add(VIRTIO_BLK_F_RO)
        else:
            bits.add(VIRTIO_BLK_F_WRITE_ZEROES)
            if self.options.discard:
                bits.add(VIRTIO_BLK_F_DISCARD)
        return sum(1 << bit for bit in bits)

    def ack(self, features: int) -> None:
        """Have a cache, or not, for a driver that accepted *features*; what it chose since then stays."""
        before, self._accepted = self._accepted, features
        if before is None or (before ^ features) >> VIRTIO_BLK_F_FLUSH & 1:
            self.disk.writethrough = not features >> VIRTIO_BLK_F_FLUSH & 1

    def reset(self) -> None:
        """Have a cache again, as at first."""
        self._accepted = None
        self.disk.writethrough = False

    # 5.2.4

    def get_config(self) -> bytes:
        """Return struct virtio_blk_config."""
        geometry, block, writable = self._image.geometry, self._block, not self.options.read_only
        discards = writable and self.options.discard
        return CONFIG.pack(
            self.disk.capacity,
            0,  # size_max: not offered
            max(1, min(SEG_MAX, self.queue_size - 2)),
            *(0, 0, 0),  # geometry: not offered
            block,
            max(0, (geometry.physical // block).bit_length() - 1),  # physical_block_exp
            min(geometry.misaligned // block, 0xFF),  # alignment_offset
            min(max(geometry.least // block, 1), 0xFFFF),  # min_io_size
            min(geometry.best // block, 0xFFFF_FFFF),  # opt_io_size
            not self.disk.writethrough,
            self.queues,
            RANGE_SECTORS_MAX if discards else 0,
            SEGMENTS_MAX if discards else 0,
            max(block, geometry.physical) // SECTOR if discards else 0,  # discard_sector_alignment
            RANGE_SECTORS_MAX if writable else 0,
            SEGMENTS_MAX if writable else 0,
            discards,  # write_zeroes_may_unmap
        )

    def set_config(self, offset: int, data: bytes, kind: VhostSetConfigType) -> None:
        """Let the driver turn the cache on or off."""
        if offset != WRITEBACK_AT or data not in (b"\0", b"\1"):
            raise ConfigRefused("of a disk's configuration only writeback can be written, with 0 or 1")
        if not (self._accepted or 0) >> VIRTIO_BLK_F_CONFIG_WCE & 1:
            raise ConfigRefused("writeback can't be written: VIRTIO_BLK_F_CONFIG_WCE was not accepted")
        self.disk.writethrough = data == b"\0"

    def refresh(self) -> None:
        """See whether the image has another size now, and tell the driver if it has.

        Raises:
            ImageUnavailable: it does not say.
        """
        try:
            sectors = self._image.sectors
        except OSError as error:
            cause = f"image {self.options.path} does not tell its size: {error.strerror}"
            raise ImageUnavailable(f"{cause}; see to the disk behind it, then try again") from error
        if sectors != self.disk.capacity:
            self.disk.capacity = sectors
            self.config_changed()

    # 5.2.6

    def attach(self, worker: Worker, queue: VirtQueue) -> None:
        """Have *queue* served natively."""
        served = DiskQueue(self.disk, queue, threads=self.aio == "threads")
        served.attach(worker)
        self._served[queue.index] = served

    def detach(self, worker: Worker, queue: VirtQueue) -> None:
        """End that."""
        self._served[queue.index].detach(worker)
        last = self._served.pop(queue.index).served
        self._before = Served(self._before.inline + last.inline, self._before.deferred + last.deferred)

    def counters(self) -> dict[str, int]:
        """Return how many requests were served inline, and how many had to wait."""
        counts = [self._before, *(queue.served for queue in self._served.values())]
        return {
            "inline": sum(count.inline for count in counts),
            "deferred": sum(count.deferred for count in counts),
        }

    def close(self) -> None:
        """Close the image; the queues are detached."""
        self._image.file.close()
